"""What a target is: its passes as a plain list, its limits as data, and the files that it writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from snncc.ir import Graph
from snncc.ir.diagnostics import input_error
from snncc.ir.ops import Encode
from snncc.passes.base import Pass
from snncc.passes.calibrate import METHODS
from snncc.passes.check_bias import POLICIES


@dataclass(frozen=True)
class Options:
    """What a user can ask of a compile. A target says which of it, it cannot do.

    Attributes:
        timesteps: T that the result is meant for.
        bias: what to do with biases: "error", "warn", "keep", "strip" or "fold" (:mod:`snncc.passes.check_bias`).
        encoding: "constant", "rate", "bernoulli" or "spikes" (:mod:`snncc.ir.encode`); None: the target's default.
        reset: "subtract" or "zero".
        threshold: how calibration chooses thresholds: "mse", "percentile" or "max" (:mod:`snncc.passes.calibrate`).
        percentile: of threshold="percentile".
        per: thresholds per "channel" or "layer".
        v0: initial potential, in thresholds.
        weight_bits: width of weights; None: the target's.
        seed: of the Bernoulli encoding.
    """

    timesteps: int = 32
    bias: str = "warn"
    encoding: str | None = None
    reset: str = "subtract"
    threshold: str = "mse"
    percentile: float = 99.9
    per: str = "channel"
    v0: float = 0.5
    weight_bits: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[str | None]] = {
            "bias": POLICIES,
            "encoding": (None, *Encode.METHODS),
            "reset": ("subtract", "zero"),
            "threshold": METHODS,
            "per": ("channel", "layer"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if not isinstance(value, (str, type(None))) or value not in known:
                words = ", ".join(repr(k) for k in known if k is not None)
                raise input_error("SNN070", f"option {name}={value!r} is unknown", f"choose one of {words}")
        ranges: dict[str, tuple[type, float, float]] = {
            "timesteps": (int, 1, 1 << 20),
            "percentile": (float, 1e-3, 100),
            "v0": (float, -1e3, 1e3),
            "seed": (int, 0, (1 << 63) - 1),
        }
        if self.weight_bits is not None:
            ranges["weight_bits"] = (int, 2, 32)
        for name, (kind, low, high) in ranges.items():
            value, what = getattr(self, name), {int: "a whole number", float: "a number"}[kind]
            if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
                raise input_error("SNN070", f"option {name}={value!r} is not {what}")
            object.__setattr__(self, name, kind(value))  # numpy's numbers cannot be written as JSON
            if not low <= getattr(self, name) <= high:
                raise input_error("SNN070", f"option {name}={value!r} is not {what} from {low:g} to {high:g}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """Options by name; unknown names are an InputError that lists the known ones."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise input_error("SNN070", f"option {name!r} is unknown", f"known: {', '.join(sorted(known))}")
        return cls(**options)


class Target(ABC):
    """A place to run a network. Subclasses are data (frozen dataclasses) with a few rules.

    Attributes:
        name: what users write.
        summary: one line for listings.
        environment: the vendor environment that the emitted runner needs (:mod:`snncc.sdk`), or None.
    """

    name: str
    summary: str
    environment: str | None = None

    @abstractmethod
    def passes(self, options: Options) -> list[Pass]:
        """The whole compile after tracing, in order.

        Raises:
            InputError: an option that the target cannot honour.
        """

    def files(self, graph: Graph) -> dict[str, str]:
        """The target's own files for the last stage, by path within the folder. One named run.py is its runner."""
        return {}

    def limits(self) -> dict[str, Any]:
        """The limits as plain data, for people and programs."""
        return {}

    def usage(self, graph: Graph) -> dict[str, dict[str, Any]]:
        """What nodes take of the hardware, for the report: by the name of the node that stands for the layer."""
        return {}
