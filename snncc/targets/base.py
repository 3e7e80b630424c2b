"""What a target is: its passes as a plain list, its limits as data, and the files that it writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph
from snncc.ir.diagnostics import input_error, unknown, wrong_value
from snncc.ir.ops import Encode
from snncc.ir.ranges import Ranges
from snncc.ir.types import Array
from snncc.passes.base import Pass
from snncc.passes.calibrate import METHODS
from snncc.passes.check_bias import POLICIES


@dataclass(frozen=True)
class Options:
    """What a user can ask of a compile. A target says which of it, it cannot do.

    Attributes:
        timesteps: T that the result is meant for.
        bias: what to do with biases: "error", "warn", "keep" or "strip" (:mod:`snncc.passes.check_bias`).
        encoding: "constant", "rate", "bernoulli" or "spikes" (:mod:`snncc.ir.encode`); None: the target's default.
        reset: "subtract" or "zero".
        threshold: how calibration chooses thresholds: "mse", "percentile" or "max" (:mod:`snncc.passes.calibrate`).
        percentile: of threshold="percentile".
        per: thresholds per "channel" or "layer".
        v0: initial potential, in thresholds; None: the target's, 1/2 where it can.
        neuron: "if" (integrate and fire) or "sigma-delta" (messages carry changes of a ReLU's value).
        form: of the emitted program, where a target has several; None: chosen by what the network needs.
        weight_bits: width of weights; None: the target's.
        seed: of the Bernoulli encoding.
        monitor: neurons, or layers of weights, whose spikes the hardware is to report, beside the outputs'.
        cores: those that may be taken, by number; None: all.
        sensor: the chip's own sensor as the input, in the target's words, "auto" for what the input's shape asks for.
        readout: send the outputs to the chip's own readout block.
        batch: samples that the emitted program takes at once.
        oversize: write what is more than the hardware holds, with a warning in place of an error: for simulation, or to
            be split by hand.
        selfcheck: run the result on calibration samples, and warn of what it loses (:mod:`snncc.selfcheck`).
    """

    timesteps: int = 32
    bias: str = "warn"
    encoding: str | None = None
    reset: str = "subtract"
    threshold: str = "mse"
    percentile: float = 99.9
    per: str = "channel"
    v0: float | None = None
    neuron: str = "if"
    form: str | None = None
    weight_bits: int | None = None
    seed: int = 0
    monitor: tuple[str, ...] = ()
    cores: tuple[int, ...] | None = None
    sensor: str | None = None
    readout: bool = False
    batch: int = 1
    oversize: bool = False
    selfcheck: bool = True

    # What a value is one of, and the kind of a number with its least and its largest.
    CHOICES: ClassVar[Mapping[str, Sequence[str | None]]] = {
        "bias": POLICIES,
        "encoding": (None, *Encode.METHODS),
        "reset": ("subtract", "zero"),
        "threshold": METHODS,
        "per": ("channel", "layer"),
        "neuron": ("if", "sigma-delta"),
        "form": (None, "netx", "process", "outer-loop", "unrolled"),
    }
    RANGES: ClassVar[Mapping[str, tuple[type, float, float]]] = {
        "timesteps": (int, 1, 1 << 20),
        "percentile": (float, 1e-3, 100),
        "v0": (float, -1e3, 1e3),
        "seed": (int, 0, (1 << 63) - 1),
        "batch": (int, 1, 1 << 20),
        "weight_bits": (int, 2, 32),
    }

    def __post_init__(self) -> None:
        for name, known in self.CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, (str, type(None))) or value not in known:
                raise wrong_value(name, value, "is unknown", known)
        for name, (kind, low, high) in self.RANGES.items():
            value, what = getattr(self, name), {int: "a whole number", float: "a number"}[kind]
            if value is None and name in ("weight_bits", "v0"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
                raise wrong_value(name, value, f"is not {what}")
            object.__setattr__(self, name, kind(value))  # numpy's numbers cannot be written as JSON
            if not low <= getattr(self, name) <= high:
                raise wrong_value(name, value, f"is not {what} from {low:g} to {high:g}")
        lists: dict[str, tuple[type, str]] = {"monitor": (str, "names"), "cores": (Integral, "numbers of cores")}
        for name, (of, what) in lists.items():
            value = getattr(self, name)
            if name == "cores" and value is None:
                continue
            value = (value,) if isinstance(value, of) else value
            if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, of) for v in value):
                raise wrong_value(name, value, f"is no list of {what}")
            object.__setattr__(self, name, tuple(v if of is str else int(v) for v in value))  # JSON's lists, too
        flags = dict.fromkeys(("readout", "oversize", "selfcheck"), (bool,))
        for name, kinds in ({"sensor": (str, type(None))} | flags).items():
            if not isinstance(getattr(self, name), kinds):
                raise wrong_value(name, getattr(self, name), f"is no {kinds[0].__name__}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """Options by name; unknown names are an InputError that lists the known ones."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise unknown("SNN079", "option", name, sorted(known))
        return cls(**options)

    def plain(self) -> dict[str, Any]:
        """By name, as JSON has them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True)
class Events:
    """What hardware did that works event by event, on N samples.

    Attributes:
        outputs: of every output of the graph, its spikes (N, *shape).
        counts: of every neuron of the graph, its spikes (N, *shape).
        spikes: of those that were recorded, spikes in each time step (T, N, *shape).
        synops: of every layer of weights, its synaptic operations (N,).
    """

    outputs: tuple[Array, ...]
    counts: Mapping[str, Array]
    spikes: Mapping[str, Array]
    synops: Mapping[str, Array]


class Written(ABC):
    """A network that was read back from written bytes, and takes one time step after the other.

    States are potentials as the last stage counts them, or its own state where a neuron has several numbers; values
    and states have the last stage's names of neurons, or the places where these lie.

    Attributes:
        exact: integers up to this size are exact in its arithmetic.
        worth: of each output, the real value of one of its integers, where the files say it.
        cost: of one of its multiplications, in those of a matrix product in memory.
        whole: it tells what every neuron sends.
        stateless: it takes all time steps in one call of :meth:`run`, and has no :meth:`step`.
    """

    exact: float = 2.0**53
    worth: tuple[Array, ...] = ()
    cost: float = 1.0
    whole: bool = True
    stateless: bool = False

    @abstractmethod
    def start(self, n: int) -> dict[str, Array]:
        """Every state before the first step, (N, ...) by the name of its neuron."""

    @abstractmethod
    def step(
        self, xs: Sequence[Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], tuple[Array, ...], dict[str, Array]]:
        """One time step: what neurons send (N, *shape) by name, the outputs in integers, and the states after it.

        Args:
            xs: of every input, whole numbers (N, *shape).
            states: those before the step; what is not named is as it was at first.
        """

    def run(self, xs: Sequence[Array], timesteps: int) -> tuple[dict[str, Array], tuple[Array, ...]]:
        """All time steps of inputs (T, N, *shape), or (1, N, *shape) of one that is the same in every step: what
        neurons send and the outputs, (T, N, *shape)."""
        states, values, outputs = self.start(xs[0].shape[1]), list[dict[str, Array]](), list[tuple[Array, ...]]()
        for t in range(timesteps):
            sent, out, states = self.step([x[t if len(x) > 1 else 0] for x in xs], states)
            values.append(sent)
            outputs.append(out)
        series = {name: np.stack([sent[name] for sent in values]) for name in values[0]}
        return series, tuple(np.stack(rows) for rows in zip(*outputs, strict=True))

    def thresholds(self) -> dict[str, Array]:
        """One number, or one for each channel, of neurons whose threshold it says in so many words."""
        return {}

    def units(self, thresholds: Mapping[str, float]) -> dict[str, float]:
        """What one unit of the last stage's potential is in the numbers of this form: a power of two; 1 by default.

        Args:
            thresholds: the largest of every neuron, in the last stage's units.
        """
        return dict.fromkeys(thresholds, 1.0)


@dataclass(frozen=True)
class WrittenGraph:
    """A form that was read back as a graph.

    Attributes:
        graph: spiking, in integers.
        names: of its neurons, those of the last stage's neuron or the place where that lies, by the graph's own name.
        every: k for neurons of which only every k-th channel is one of the last stage's; the others must stay silent.
    """

    graph: Graph
    names: Mapping[str, str]
    every: Mapping[str, int] = field(default_factory=dict)


class Target(ABC):
    """A place to run a network. Subclasses are data (frozen dataclasses) with a few rules.

    Attributes:
        name: what users write.
        summary: one line for listings.
        takes: the values that it takes of options that not every target can honour; None: any.
        spiking: whether it takes networks that have spiking neurons themselves.
        run_flags: the emitted runner's own flags by the argument of :meth:`snncc.CompiledModel.run`.
    """

    name: str
    summary: str
    takes: ClassVar[Mapping[str, Sequence[Any] | None]] = {
        "neuron": ("if",), "form": (None,), "monitor": ((),), "cores": (None,), "sensor": (None,), "readout": (False,),
        "batch": (1,), "oversize": (False,),
    }  # fmt: skip
    spiking: ClassVar[bool] = False
    run_flags: ClassVar[Mapping[str, str]] = {}

    def __repr__(self) -> str:
        return f"<target {self.name}: {self.summary}>"

    def accept(self, options: Options) -> None:
        """Refuse what the target cannot honour.

        Raises:
            InputError: naming the option and what the target takes.
        """
        for name, known in {**Target.takes, **self.takes}.items():
            value = getattr(options, name)
            if known is not None and value not in known:
                words = ", ".join(repr(k) for k in known if k not in (None, (), False))
                hint = f"choose one of {words}" if words else "leave it out"
                raise input_error("SNN082", f"target {self.name} does not take {name}={value!r}", hint)

    @abstractmethod
    def passes(self, options: Options) -> list[Pass]:
        """The whole compile after tracing, in order.

        Raises:
            InputError: an option that the target cannot honour.
        """

    def files(self, graph: Graph, options: Options) -> dict[str, str | bytes]:
        """The target's own files for the last stage, by path within the folder. One named run.py is its runner."""
        return {}

    def read_back(self, files: Mapping[str, str | bytes]) -> dict[str, Written | WrittenGraph]:
        """Every form of the network in :meth:`files`, read back from its bytes alone, by the name of its file.

        What reads must share no code with what wrote: :func:`snncc.readback.check_written` holds both against each
        other. Raises anything where the bytes say nothing that can be run.
        """
        return {}

    def beyond(self, graph: Graph, found: Ranges, timesteps: int) -> Iterator[tuple[str, str, str]]:
        """What may leave the numbers that the target's arithmetic has, if all of the last stage lies within ``found``
        over so many time steps: the kind ("sum" in one step, or "state" over all), the value, and a sentence."""
        yield from ()

    def environments(self, graph: Graph, options: Options) -> tuple[str, ...]:
        """The vendor environments (:mod:`snncc.sdk`) that the runner can use, the preferred first; none: no runner."""
        return ()

    def lacks(self) -> str:
        """Why the environments that ``make sdk`` builds cannot run what is written, if they cannot; empty: they can."""
        return ""

    def simulate_events(
        self, graph: Graph, options: Options, xs: Sequence[Array], order: str, record: Sequence[str]
    ) -> Events:
        """Simulate hardware that answers single events, in its own arithmetic, which no time step of the IR has.

        Args:
            graph: the last stage.
            xs: spikes of every input, whole numbers (T, N, *shape).
            order: of the events, in the target's words.
            record: names of neurons whose spikes to keep.

        Raises:
            InputError: the target has no such arithmetic, or not this order.
        """
        raise input_error("SNN086", f"target {self.name} does not work event by event", "leave out order")

    def power(self, synops: Mapping[str, Array], seconds: float) -> list[dict[str, Any]]:
        """What samples may cost by published figures, as plain data; empty where there are none.

        Args:
            synops: of every layer, the synaptic operations of each sample (N,).
            seconds: how long a sample takes.
        """
        return []

    def modules(self, graph: Graph, options: Options) -> Any:
        """A spiking stage as a plain torch module, where hardware is given such.

        Raises:
            InputError: this is not given any.
        """
        raise input_error("SNN086", f"target {self.name} is not given torch modules", "target='lynxi' is")

    def limits(self) -> dict[str, Any]:
        """The limits as plain data, for people and programs."""
        return {}

    def fits(self, graph: Graph, options: Options) -> list[dict[str, Any]]:
        """What each layer of a network, as the limits see it, needs of the hardware, whether it fits or not."""
        return []

    def proposal(self, graph: Graph, options: Options, found: Sequence[Diagnostic]) -> Diagnostic | None:
        """What to change in a network as a whole, so that the hardware holds it; None: there is nothing to say.

        Args:
            graph: the network as it was traced.
            found: the errors.
        """
        return None

    def usage(self, graph: Graph, options: Options) -> dict[str, dict[str, Any]]:
        """What nodes take of the hardware, for the report: by the name of the node that stands for the layer."""
        return {}

    def measured(self, graph: Graph, options: Options, xs: Sequence[Array]) -> dict[str, dict[str, Any]]:
        """What only the hardware's own arithmetic shows, for the report: by the name of a neuron.

        Args:
            xs: some calibration samples of every input, (N, *shape).
        """
        return {}

    def rooms(self, graph: Graph, options: Options) -> dict[str, Any]:
        """The chip as a plan to draw, as plain data: its ``name``, perhaps a ``note``, and its ``rooms``. Each has a
        ``name``, the ``place`` of the nodes in it (:attr:`snncc.ir.Node.place`; "": all of them), the number of
        ``cores`` that it stands for, and ``memories``: ``name``, ``used``, ``size`` and ``unit`` of what is taken and
        what there is. Empty: no chip."""
        return {}

    def mapping(self, graph: Graph, options: Options) -> dict[str, Any]:
        """What the whole network takes, and what was chosen for it, as plain data for people and programs."""
        return {}
