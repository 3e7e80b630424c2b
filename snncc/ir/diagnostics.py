"""What the compiler has to say to the user: collected, with stable codes, places, amounts and hints."""

from __future__ import annotations

import functools
import inspect
import linecache
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, ParamSpec, TypeVar

from snncc.ir.types import Loc

T = TypeVar("T")
P = ParamSpec("P")

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
    "SNN009": "random numbers in forward",
    "SNN010": "activation without calibration",
    "SNN011": "calibration data that cannot be used",
    "SNN012": "input that the encoding cannot express",
    "SNN020": "bias",
    "SNN021": "bias removed",
    # SNN022 is retired: biases were folded into initial potentials.
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
    "SNN043": "more time steps than the target's numbers hold",
    "SNN044": "inputs larger than the target's numbers hold",
    "SNN046": "loss beyond the limit on calibration samples",
    "SNN047": "result that the calibration sample cannot run on",
    "SNN048": "widths with which a network fits",
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
    "SNN102": "weights that were not given",
}


LINE, EXCERPT = 120, 100  # characters of a diagnostic in a list, and of a line of source
CHOICES = 20  # names that a hint lists; of more, how many there are


class Severity(str, Enum):
    """An error stops the compile; a warning says what is lost; a note only informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Diagnostic:
    """One finding. ``limit`` and ``found`` are numbers in ``quantity``'s unit, when the finding is about an amount.
    ``widths``: what the hint proposes, as (layer, channels now, channels proposed)."""

    code: str
    message: str
    loc: Loc = Loc()
    severity: Severity = Severity.ERROR
    hint: str = ""
    limit: float | None = None
    found: float | None = None
    quantity: str = ""
    widths: tuple[tuple[str, int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unregistered diagnostic code {self.code}")

    def __repr__(self) -> str:
        """One line; :meth:`render` gives all of it."""
        head = self._head(self.message)
        return f"<{head if len(head) <= LINE else head[: LINE - 3] + '...'}>"

    def render(self) -> str:
        """Plain text in the manner of rustc, with the user's source line when its file can be read."""
        return "\n".join([self._head(self.message), *self._places(), *self._amount(), *self._help()])

    def _head(self, message: str) -> str:
        return f"{self.severity.value}[{self.code}]: {_plain(message)}"

    def _places(self) -> list[str]:
        lines, pad, gutter = list[str](), self._pad, len(self._pad)
        places: dict[tuple[str, int], list[str]] = {}  # fused layers often come from one line
        for source in self.loc:
            places.setdefault((source.file, source.line), []).append(source.module)
        for (file, line), modules in places.items():
            module = _few([f"`{_plain(m)}`" for m in modules if m])
            if module:
                module = f"module{'s' if len(modules) > 1 else ''} {module}"
            if not file:
                lines.append(f"{pad}--> {module}")
                continue
            lines.append(f"{pad}--> {_plain(file)}:{line}" + (f", {module}" if module else ""))
            code = linecache.getline(file, line).rstrip()
            if code:
                code = code if len(code) <= EXCERPT else code[: EXCERPT - 3] + "..."
                lines += [f"{pad} |", f"{line:>{gutter}} | {code}", f"{pad} |"]
        return lines

    @property
    def _pad(self) -> str:
        """As wide as the largest line number."""
        return " " * max([len(str(s.line)) for s in self.loc if s.file], default=1)

    def _amount(self) -> list[str]:
        if self.limit is None or self.found is None:
            return []
        over = self.found - self.limit
        # A lower limit is broken from below; say by how much in both cases.
        passed = f"{_number(abs(over))} too {'many' if over > 0 else 'few'}" if over else "at the limit"
        limit = f"{_number(self.limit)} {self.quantity}".rstrip()
        return [f"{self._pad} = limit: {limit}, found {_number(self.found)} ({passed})"]

    def _help(self) -> list[str]:
        columns = [(name, [str(row[i]) for row in self.widths]) for i, name in enumerate(("layer", "now", "proposed"))]
        table = _table(columns, list(range(len(self.widths)))) if self.widths else []
        return [f"{self._pad} = help: {self.hint}", *map(_plain, table)] if self.hint else []

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
        if self.widths:
            data["widths"] = [{"layer": layer, "now": now, "proposed": new} for layer, now, new in self.widths]
            data["hint"] += f": {', '.join(f'{layer} {new:,} instead of {now:,}' for layer, now, new in self.widths)}"
        return data


def _plain(text: str) -> str:
    """``text`` with control characters visible: what users name things must not move a terminal's cursor."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.6g}"


# --- many of them ----------------------------------------------------------------------------------------------------

ROWS = (8, 5)  # of a table: of the only one, and of several
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
_SLOT = re.compile(  # what differs between messages of one kind: names, numbers, and what is said of two of them
    r"`[^`]*`(?:(?:, | and )`[^`]*`)*(?:, \.\.\.)?|'[^']*'|\([\d, ]*\d,? ?\)"
    rf"|(?<![\w.]){_NUMBER}(?: (?:instead of|of its|of|x) {_NUMBER})*"
)


def render_all(diagnostics: Iterable[Diagnostic]) -> list[str]:
    """Texts for people: those of a kind are one message with a table, and errors come last, where a reader's eye is.

    Notes are short, and so are warnings beside errors; notes beside errors are left out. All that the texts do not say
    is in the diagnostics.
    """
    kinds: dict[Any, list[Diagnostic]] = {}
    for d in diagnostics:
        kinds.setdefault((d.code, d.severity, d.quantity, tuple(_SLOT.split(d.message))), []).append(d)
    order = (Severity.NOTE, Severity.WARNING, Severity.ERROR)
    ranked = sorted(kinds.values(), key=lambda kind: order.index(kind[0].severity))
    failed = bool(ranked) and ranked[-1][0].severity is Severity.ERROR
    full = Severity.ERROR if failed else Severity.WARNING
    tables = sum(len(kind) > 1 and kind[0].severity is full for kind in ranked)
    return [
        _render_kind(kind, 0 if kind[0].severity is not full else ROWS[tables > 1])
        for kind in ranked
        if not (failed and kind[0].severity is Severity.NOTE)
    ]


def _render_kind(kind: list[Diagnostic], most: int) -> str:
    """Diagnostics in the same words, as one text with a table of ``most`` rows; 0: without places, amounts and help."""
    first, n = kind[0], len(kind)
    if n == 1 and most:
        return first.render()
    message, columns = _columns(kind)
    named = columns[0][1] if columns and columns[0][0] == "layer" else []
    if n > 1:
        message = f"{n} {'layers' if named else 'times'}: {message.removeprefix('…: ')}"
    lines, pad = [first._head(message)], first._pad
    if not most:
        if n > 1 and named:
            lines.append(f" --> {_few(list(dict.fromkeys(named)))}")
        return "\n".join(lines)
    places = [next(((s.file, s.line) for s in d.loc if s.file), ("", 0)) for d in kind]
    files = {file for file, _ in places}
    if len(set(places)) == 1:
        lines += [f"{pad}--> {_plain(file)}:{line}" for file, line in places[:1] if file]
    elif len(files) == 1:
        lines.append(f"{pad}--> {_plain(*files)}")
        columns.append(("", [f"line {line}" for _, line in places]))
    else:
        columns.append(("", [f"{_plain(file)}:{line}" if file else "" for file, line in places]))
    rows = sorted(sorted(range(n), key=lambda i: -_beyond(kind[i]))[:most])  # the worst, in order
    lines += _table(columns, rows)
    if first.limit is not None and first.found is not None:
        limits, found = ([v for d in kind if (v := getattr(d, name)) is not None] for name in ("limit", "found"))
        lines.append(f"{pad} = limit: {f'{_span(limits)} {first.quantity}'.rstrip()}, found {_span(found)}")
    if len({d.hint for d in kind}) == 1:
        return "\n".join([*lines, *first._help()])
    worst = max((i for i in range(n) if kind[i].hint), key=lambda i: _beyond(kind[i]))
    return "\n".join([*lines, f"{pad} = help: {f'of `{named[worst]}`: ' if named else ''}{kind[worst].hint}"])


def _columns(kind: list[Diagnostic]) -> tuple[str, list[tuple[str, list[str]]]]:
    """The message that all share, with ``…`` for what differs; and that, as columns with headings, names first."""
    words = _SLOT.split(kind[0].message)
    columns = list[tuple[str, list[str]]]()
    message = words[0]
    slots = zip(*(_SLOT.findall(d.message) for d in kind), strict=True)
    for values, before, after in zip(slots, words, words[1:], strict=False):
        same = len(set(values)) == 1
        message += (values[0] if same else "…") + after
        if not same:
            # What is counted stands behind the number, up to the next little word.
            counted = re.match(r" ?(%|\w[\w-]*(?: (?!of|that|per|are|is|in|to|fit)\w[\w-]*)?)", after)
            heading = counted.group(1) if counted else " ".join(re.findall(r"\w+", before)[-1:])
            heading = "layer" if values[0].startswith("`") else heading
            columns.append((heading, [_plain(v).replace("`", "") for v in values]))
    if not any(heading == "layer" for heading, _ in columns) and any(s.module for d in kind for s in d.loc):
        modules = [list(dict.fromkeys(_plain(s.module) for s in d.loc if s.module)) for d in kind]
        columns.append(("layer", [_few(names) for names in modules]))
    return message, sorted(columns, key=lambda column: column[0] != "layer")


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _beyond(diagnostic: Diagnostic) -> float:
    """By how much it passes its limit."""
    d = diagnostic
    return 0.0 if d.limit is None or d.found is None else abs(d.found - d.limit)


def _table(columns: list[tuple[str, list[str]]], rows: list[int]) -> list[str]:
    """The rows in columns; names to the left, numbers to the right; and how many rows there are besides."""
    if not columns:
        return []
    shown = [[heading, *(cells[i] for i in rows)] for heading, cells in columns]
    widths = [max(map(len, cells)) for cells in shown]
    left = [heading in ("layer", "") for heading, _ in columns]
    lines = []
    for line in zip(*shown, strict=True):
        cells = (c.ljust(w) if text else c.rjust(w) for c, w, text in zip(line, widths, left, strict=True))
        lines.append(f"     {'  '.join(cells)}".rstrip())
    more = len(columns[0][1]) - len(rows)
    return [*lines, *([f"     and {more} more"] if more else [])]


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def errors(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Those that stop the compile."""
    return [d for d in diagnostics if d.severity is Severity.ERROR]


class SnnccError(Exception):
    """Base of what the compiler raises for reasons that a user can mend. Always carries diagnostics."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__("\n\n".join(render_all(self.diagnostics)))


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


OURS = "this is an error of snncc, not of your network: please report it, with the network"


@contextmanager
def only_ours(what: str | Callable[[], str], said: Sequence[Diagnostic] = ()) -> Iterator[None]:
    """Let nothing but a :class:`SnnccError` leave a public call, and nothing be lost that was reported.

    Args:
        what: was going on, for SNN091.
        said: what has been reported so far. An exception behind an error is mostly its consequence, so then those are
            what is raised.

    Raises:
        CompileError: in place of any other exception, which is its cause.
    """
    try:
        yield
    except (SnnccError, MemoryError):
        raise
    except OSError as error:  # a full disk, say
        named = what if isinstance(what, str) else what()
        raise input_error("SNN075", f"{named}: {error}", "look at the disk and at the rights of the folder") from error
    except Exception as error:
        if errors(said):
            raise CompileError(list(said)) from error
        words = " ".join(str(error).split())
        text = f"{what if isinstance(what, str) else what()}: {type(error).__name__}{f': {words}' if words else ''}"
        raise CompileError([*said, Diagnostic("SNN091", text, hint=OURS)]) from error


def public(cls: type[T]) -> type[T]:
    """A class whose public methods let nothing but a :class:`SnnccError` leave."""
    for name, method in list(vars(cls).items()):
        if not name.startswith("_") and inspect.isfunction(method):
            setattr(cls, name, guarded(method))
    return cls


def guarded(method: Callable[P, T]) -> Callable[P, T]:
    """A function or method that lets nothing but a :class:`SnnccError` leave."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with only_ours(method.__qualname__):
            return method(*args, **kwargs)

    return call
