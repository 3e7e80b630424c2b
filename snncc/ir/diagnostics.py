"""What the compiler has to say to the user: collected, with stable codes, places, amounts and hints."""

from __future__ import annotations

import linecache
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any

from snncc.ir.types import Loc

# Stable: a code is never given a second meaning. docs/diagnostics.md is made from this table.
CODES: dict[str, str] = {
    "SNN001": "operation that the compiler does not know",
    "SNN002": "control flow that depends on data",
    "SNN003": "weights that are not finite",
    "SNN004": "hook that tracing does not see",
    "SNN005": "shapes that do not fit",
    "SNN006": "traced graph that disagrees with the model",
    "SNN007": "option of an operation that the compiler does not know",
    "SNN008": "model that cannot be traced",
    "SNN010": "activation without calibration",
    "SNN011": "calibration data that cannot be used",
    "SNN012": "input that the encoding cannot express",
    "SNN020": "bias",
    "SNN021": "bias removed",
    "SNN022": "bias folded into the initial potential",
    "SNN030": "activation that no spiking neuron replaces",
    "SNN031": "pooling that the target cannot take",
    "SNN032": "operation that spikes cannot go through",
    "SNN033": "output without an activation",
    "SNN034": "batch norm that cannot be folded",
    "SNN035": "spiking neuron of the network's own",
    "SNN036": "shift in front of a padding",
    "SNN040": "weights left with few bits",
    "SNN041": "threshold below one weight step",
    "SNN042": "integers beyond the target's width",
    "SNN046": "loss beyond the limit on calibration samples",
    "SNN047": "result that the calibration sample cannot run on",
    "SNN050": "kernel size",
    "SNN051": "stride",
    "SNN052": "padding",
    "SNN053": "pooling size",
    "SNN054": "number of features",
    "SNN055": "feature map size",
    "SNN056": "kernel memory",
    "SNN057": "neuron memory",
    "SNN058": "bias memory",
    "SNN059": "number of layers",
    "SNN060": "no placement",
    "SNN061": "topology that the chip cannot wire",
    "SNN062": "dilation",
    "SNN063": "groups",
    "SNN064": "operation that the chip does not have",
    "SNN065": "threshold or potential out of range",
    "SNN066": "weights, biases or configuration out of range",
    "SNN067": "network that the emitted form cannot hold",
    "SNN068": "arithmetic of the hardware: what fp16 costs, or cannot hold",
    "SNN069": "use of an operation that the vendor's compiler is not known to take",
    "SNN070": "value that an option or argument cannot have",
    "SNN071": "file that cannot be read",
    "SNN072": "incomplete folder",
    "SNN073": "changed file",
    "SNN074": "input data",
    "SNN075": "file that cannot be written",
    "SNN078": "target that is not known",
    "SNN079": "option that is not known",
    "SNN080": "vendor environment",
    "SNN081": "vendor's runtime said no",
    "SNN082": "option that the target or the network does not take",
    "SNN083": "options or arguments that exclude each other",
    "SNN084": "layer, neuron or value that is not there",
    "SNN085": "stage or pass that is not there",
    "SNN086": "call that the target or the stage has no answer to",
    "SNN087": "model that its file or module does not have",
    "SNN088": "target of another package that cannot be used",
    "SNN089": "model that is no torch.nn.Module",
    "SNN090": "graph that breaks its stage's rules",
    "SNN091": "error of the compiler itself",
    "SNN092": "what was written is not what was simulated",
    "SNN100": "input that was not given",
    "SNN101": "package that is not installed",
}


CHOICES = 20  # names that a hint lists; of more, how many there are


class Severity(str, Enum):
    """An error stops the compile; a warning says what is lost; a note only informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Diagnostic:
    """One finding. ``limit`` and ``found`` are numbers in ``quantity``'s unit, when the finding is about an amount."""

    code: str
    message: str
    loc: Loc = Loc()
    severity: Severity = Severity.ERROR
    hint: str = ""
    limit: float | None = None
    found: float | None = None
    quantity: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unregistered diagnostic code {self.code}")

    def render(self) -> str:
        """Plain text in the manner of rustc, with the user's source line when its file can be read."""
        lines = [f"{self.severity.value}[{self.code}]: {_plain(self.message)}"]
        gutter = max([len(str(s.line)) for s in self.loc if s.file], default=1)
        pad = " " * gutter
        places: dict[tuple[str, int], list[str]] = {}  # fused layers often come from one line
        for source in self.loc:
            places.setdefault((source.file, source.line), []).append(source.module)
        for (file, line), modules in places.items():
            module = ", ".join(f"`{_plain(m)}`" for m in modules if m)
            if module:
                module = f"module{'s' if len(modules) > 1 else ''} {module}"
            if not file:
                lines.append(f"{pad}--> {module}")
                continue
            lines.append(f"{pad}--> {_plain(file)}:{line}" + (f", {module}" if module else ""))
            code = linecache.getline(file, line).rstrip()
            if code:
                lines += [f"{pad} |", f"{line:>{gutter}} | {code}", f"{pad} |"]
        if self.limit is not None and self.found is not None:
            over = self.found - self.limit
            # A lower limit is broken from below; say by how much in both cases.
            passed = f"{_number(abs(over))} too {'many' if over > 0 else 'few'}" if over else "at the limit"
            lines.append(
                f"{pad} = limit: {_number(self.limit)} {self.quantity}".rstrip()
                + f", found {_number(self.found)} ({passed})"
            )
        if self.hint:
            lines.append(f"{pad} = help: {self.hint}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The diagnostic as plain data; absent fields are left out."""
        data: dict[str, Any] = {
            "code": self.code,
            "title": CODES[self.code],
            "severity": self.severity.value,
            "message": self.message,
            "locations": [{"module": s.module, "file": s.file, "line": s.line} for s in self.loc],
            "hint": self.hint,
        }
        if self.limit is not None:
            data |= {"limit": self.limit, "found": self.found, "quantity": self.quantity}
        return data


def _plain(text: str) -> str:
    """``text`` with control characters visible: what users name things must not move a terminal's cursor."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.6g}"


def errors(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Those that stop the compile."""
    return [d for d in diagnostics if d.severity is Severity.ERROR]


class SnnccError(Exception):
    """Base of what the compiler raises for reasons that a user can mend. Always carries diagnostics."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__("\n\n".join(d.render() for d in self.diagnostics))


class CompileError(SnnccError):
    """The model cannot be compiled for the target: ``diagnostics`` lists everything that stands in the way.

    Attributes:
        compilation: how far :func:`snncc.compile` got, a
            :class:`snncc.compilation.Compilation`: its stages, to be explored.
    """

    compilation: Any = None


class InputError(SnnccError):
    """A file, folder, option or array given by the user cannot be used."""


def input_error(code: str, message: str, hint: str = "") -> InputError:
    """An InputError with one diagnostic."""
    return InputError([Diagnostic(code, message, hint=hint)])


def wrong_value(name: str, value: Any, why: str, known: Iterable[Any] = (), hint: str = "") -> InputError:
    """SNN070: an option or argument has a value that it cannot have.

    Args:
        name: of the option or argument.
        why: what is wrong, as the sentence goes on: "is not a whole number".
        known: the values that there are, for the hint.
        hint: where there is no such list.
    """
    return input_error("SNN070", f"{name}={value!r} {why}", hint or choices(value, known))


def unknown(code: str, what: str, name: str, known: Iterable[str], where: str = "") -> InputError:
    """A name that does not exist: of a ``what`` ("target", "stage"), ``where`` ("to record"). The hint has what is
    known, and what was probably meant."""
    return input_error(code, f"there is no {what} {name!r}" + (f" {where}" if where else ""), choices(name, known))


def choices(word: Any, known: Iterable[Any]) -> str:
    """A hint that names what there is, the likeliest first: ``did you mean 'speck2b'? choose one of 'speck', ...``."""
    names = [str(k) for k in known if k is not None]
    near = meant(str(word), names)
    told = ", ".join(names[:CHOICES]) + (f" ... ({len(names)} in all)" if len(names) > CHOICES else "")
    parts = [f"did you mean {near!r}?"] if near else []
    return " ".join([*parts, f"choose one of {told}" if len(names) > 1 else f"choose {told}" if names else ""]).strip()


def meant(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that was probably meant by ``word``; empty if none is near."""
    by_name = {k.lower(): k for k in known}
    near = get_close_matches(word.lower(), by_name, 1)
    return by_name[near[0]] if near else ""
