"""What one chip is told: a `Config`, what is wrong with it, and the JSON that samna reads.

samna's own checks are not enough: its `from_json` wraps a weight of 200 to -56, its validator crashes on a pooling of
0, and accepts cycles and a bias that no clock drives. So `problems` checks every range, shape and memory here, and
`to_json` refuses a configuration with problems. Arrays are in torch's order ([out, in, y, x] and [channel, y, x]); the
JSON has x before y.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import numpy.typing as npt

from snncc.targets.dynapcnn.chips import (
    CHIPS,
    Chip,
    Json,
    bias_words,
    cereal_array,
    kernel_words,
    neuron_words,
    periphery,
)

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Destination:
    """Where a core's spikes go: to (channel + feature_shift, y // pooling, x // pooling) of core `layer`."""

    layer: int
    pooling: int = 1
    feature_shift: int = 0


@dataclass(frozen=True, eq=False)
class CoreConfig:
    """One core: a convolution, its neurons, and where their spikes go.

    `name` is the user's layer. Shapes are (channels, height, width), `output_shape` before any pooling; pairs are
    (y, x). `weights` is int8 [out, in, k, k], `biases` int16 [out] or None, `initial` (the potentials at the start)
    int16 of `output_shape` or None for all zero.
    """

    index: int
    name: str
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    kernel: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    weights: Integers
    threshold_high: int
    threshold_low: int
    biases: Integers | None = None
    initial: Integers | None = None
    return_to_zero: bool = False
    destinations: tuple[Destination, ...] = ()
    monitor: bool = False

    @property
    def leaks(self) -> bool:
        """Whether the slow clock has anything to add: only a bias that is not all zero costs energy and memory."""
        return self.biases is not None and bool(np.any(self.biases))

    @property
    def memory(self) -> tuple[int, int, int]:
        """The words needed of the kernel, neuron and bias memory."""
        channels, height, width = self.output_shape
        return (
            kernel_words(self.input_shape[0], channels, self.kernel),
            neuron_words(channels, height, width),
            bias_words(channels, self.leaks),
        )


@dataclass(frozen=True)
class Readout:
    """How a monitored core's spikes become classes: a spike of channel c counts for class first + c // step."""

    core: int
    first: int = 0
    step: int = 1


@dataclass(frozen=True, eq=False)
class Config:
    """A whole chip. `inputs` are the cores that the host sends each input event to (more than one: a copy to each).

    A host's event names its core, so the DVS layer plays no part and stays off.
    """

    chip: Chip
    cores: tuple[CoreConfig, ...]
    inputs: tuple[int, ...]
    readouts: tuple[Readout, ...]

    @property
    def classes(self) -> int:
        """The number of classes that the readouts give."""
        channels = {core.index: core.output_shape[0] for core in self.cores}
        return max((r.first + -(-channels.get(r.core, 0) // r.step) for r in self.readouts), default=0)


@dataclass(frozen=True)
class Problem:
    """One thing that the chip cannot do. `core_name` is the user's layer, empty for the configuration as a whole."""

    core_name: str
    item: str
    limit: str | int
    found: str | int
    text: str


class ConfigError(ValueError):
    """A configuration with problems was to be written."""

    def __init__(self, found: list[Problem]) -> None:
        super().__init__("\n".join(problem.text for problem in found))
        self.problems = found


def problems(config: Config) -> list[Problem]:
    """Everything that stands in the way of this configuration on its chip, empty if nothing does."""
    found = [problem for core in config.cores for problem in (*_ranges(config.chip, core), *_shapes(config.chip, core))]
    return [*found, *_connections(config), *_ends(config)]


def _ranges(chip: Chip, core: CoreConfig) -> Iterator[Problem]:
    """Each number of one core against the chip's legal values."""
    numbers: list[tuple[str, int, range | tuple[int, ...]]] = [
        ("core", core.index, range(len(chip.cores))),
        ("kernel size", core.kernel, chip.kernel_sizes),
        ("stride y", core.stride[0], chip.strides),
        ("stride x", core.stride[1], chip.strides),
        ("padding y", core.padding[0], chip.paddings),
        ("padding x", core.padding[1], chip.paddings),
        ("input features", core.input_shape[0], chip.features),
        ("input height", core.input_shape[1], chip.input_sizes),
        ("input width", core.input_shape[2], chip.input_sizes),
        ("output features", core.output_shape[0], chip.features),
        ("output height", core.output_shape[1], chip.output_sizes),
        ("output width", core.output_shape[2], chip.output_sizes),
        ("threshold_high", core.threshold_high, chip.thresholds_high),
        ("threshold_low", core.threshold_low, chip.thresholds_low),
        *(("pooling", destination.pooling, chip.poolings) for destination in core.destinations),
    ]
    for item, value, legal in numbers:
        if value not in legal:
            yield _problem(core.name, item, _words(legal), value)
    if len(core.destinations) > chip.destinations:
        yield _problem(core.name, "destinations", chip.destinations, len(core.destinations))
    arrays = [("weights", core.weights, chip.weights), ("biases", core.biases, chip.biases)]
    for item, array, legal in [*arrays, ("initial state", core.initial, chip.states)]:
        if array is None or array.size == 0:
            continue
        if not np.issubdtype(array.dtype, np.integer):
            yield _problem(core.name, f"{item} dtype", "an integer dtype", str(array.dtype))
        elif int(array.min()) not in legal or int(array.max()) not in legal:
            yield _problem(core.name, item, _words(legal), f"{array.min()}..{array.max()}")
    if not np.any(core.weights):
        text = f"{core.name}: all weights are zero, so that the core does nothing"
        yield Problem(core.name, "weights", "not all zero", "all zero", text)


def _shapes(chip: Chip, core: CoreConfig) -> Iterator[Problem]:
    """The shapes of one core against each other, and its needs against the core's memories."""
    (c_in, *size_in), (c_out, *size_out), k = core.input_shape, core.output_shape, core.kernel
    shapes = [("weights", core.weights, (c_out, c_in, k, k)), ("biases", core.biases, (c_out,))]
    for item, array, shape in [*shapes, ("initial state", core.initial, core.output_shape)]:
        if array is not None and array.shape != shape:
            yield _problem(core.name, f"shape of {item}", str(shape), str(array.shape))
    if min(*core.input_shape, *core.output_shape, k, *core.stride) < 1:
        return  # named by _ranges already, and the formulas below take sizes only
    for axis, n, stride, pad, out in zip("yx", size_in, core.stride, core.padding, size_out, strict=True):
        if out != (n + 2 * pad - k) // stride + 1:
            yield _problem(core.name, f"output size {axis}", (n + 2 * pad - k) // stride + 1, out)
    if 0 <= core.index < len(chip.cores):
        has = chip.cores[core.index]
        limits = (has.kernel_words, has.neuron_words, has.bias_words)
        for item, needed, limit in zip(("kernel", "neuron", "bias"), core.memory, limits, strict=True):
            if needed > limit:
                text = f"{core.name}: needs {needed} words of {item} memory, core {core.index} has {limit}"
                yield Problem(core.name, f"{item} memory", limit, needed, text)


def _connections(config: Config) -> Iterator[Problem]:
    """Every destination against the core that it names, and the graph that they make."""
    chip, cores = config.chip, {core.index: core for core in config.cores}
    if len(cores) != len(config.cores):
        yield _problem("", "cores", "each core once", str([core.index for core in config.cores]))
    # Of each core, the channels that others feed: first, last + 1, by which layer.
    taken: dict[int, list[tuple[int, int, str]]] = {index: [] for index in cores}
    for core in config.cores:
        for destination in core.destinations:
            target, shift = cores.get(destination.layer), destination.feature_shift
            if chip.readout and destination.layer == chip.readout.layer:
                most = (chip.readout.classes - 1) * chip.readout.step + 1
                if core.output_shape[0] + shift > most or shift < 0:
                    yield _problem(core.name, "channels into the readout", most, core.output_shape[0] + shift)
                continue
            if target is None or target is core:
                legal = f"another used core ({', '.join(str(index) for index in cores if index != core.index)})"
                yield _problem(core.name, "destination", legal, destination.layer)
                continue
            edge = f"{core.name} -> {target.name}"
            for axis, out, into in zip("yx", core.output_shape[1:], target.input_shape[1:], strict=True):
                if destination.pooling in chip.poolings and out // destination.pooling != into:
                    yield _problem(edge, f"size {axis} after pooling", into, out // destination.pooling)
            first, last = shift, shift + core.output_shape[0]
            if first < 0 or last > target.input_shape[0]:
                yield _problem(edge, "channels", f"0..{target.input_shape[0] - 1}", f"{first}..{last - 1}")
            for other_first, other_last, other in taken[target.index]:
                if first < other_last and other_first < last and not chip.adds:
                    both = f"{max(first, other_first)}..{min(last, other_last) - 1}"
                    text = f"{target.name}: channels {both} come from both {other} and {core.name}; "
                    text += f"on {chip.name} a core can concatenate its sources, not add them"
                    yield Problem(target.name, "sources", "one a channel", "two", text)
            taken[target.index].append((first, last, core.name))
    for core in config.cores:
        fed = len({channel for first, last, _ in taken[core.index] for channel in range(first, last)})
        if core.index in config.inputs and fed:
            yield _problem(core.name, "sources", "the host or other cores", "both")
        elif core.index not in config.inputs and not fed:
            yield _problem(core.name, "sources", "the host or another core", "none")
        elif core.index not in config.inputs and fed < core.input_shape[0]:
            yield _problem(core.name, "channels fed", core.input_shape[0], fed)
    try:
        TopologicalSorter({core.index: [d.layer for d in core.destinations] for core in config.cores}).prepare()
    except CycleError as error:
        path = [cores[index].name for index in reversed(error.args[1]) if index in cores]
        if len(path) > 2:  # a core that feeds itself is named above
            yield _problem("", "connections", "no cycle", " -> ".join(path))


def _ends(config: Config) -> Iterator[Problem]:
    """Where spikes come in and where they are counted."""
    cores = {core.index: core for core in config.cores}
    for item, named in (("inputs", config.inputs), ("readouts", tuple(readout.core for readout in config.readouts))):
        if not named or len(set(named)) != len(named) or not set(named) <= set(cores):
            yield _problem("", item, f"some of the used cores ({', '.join(map(str, cores))}), each once", str(named))
    shapes = {cores[index].input_shape for index in config.inputs if index in cores}
    if len(shapes) > 1:
        yield _problem("", "input shapes", "the same for all inputs", str(sorted(shapes)))
    for readout in config.readouts:
        if readout.core in cores and not cores[readout.core].monitor:
            yield _problem(cores[readout.core].name, "monitor", "on, for a readout", "off")
        if readout.first < 0 or readout.step < 1:
            yield _problem("", "readout", "first >= 0, step >= 1", str(readout))
    for core in config.cores:
        if not core.destinations and not core.monitor:
            yield _problem(core.name, "destinations", "a destination or the monitor", "neither")


def _problem(core_name: str, item: str, limit: str | int, found: str | int) -> Problem:
    who = f"{core_name}: " if core_name else ""
    return Problem(core_name, item, limit, found, f"{who}{item} is {found}, legal is {limit}")


def _words(legal: range | tuple[int, ...]) -> str:
    return f"{legal[0]}..{legal[-1]}" if isinstance(legal, range) else ", ".join(map(str, legal))


def to_json(config: Config) -> str:
    """The configuration as samna's JSON (the form of C++'s cereal, spelled as the chip's module spells it).

    A key of our own, `snncc`, stands beside samna's root (samna skips it): what the runner needs and samna has no field
    for. Raises `ConfigError` if `problems(config)` finds any.
    """
    if found := problems(config):
        raise ConfigError(found)
    chip, used = config.chip, {core.index: core for core in config.cores}
    unused = CoreConfig(0, "", (1, 1, 1), (1, 1, 1), 1, (1, 1), (0, 0), np.zeros((1, 1, 1, 1), np.int8), 0, 0)
    layers = [_core(chip, used.get(index, unused)) for index in range(len(chip.cores))]
    root = {"cnn_layers": cereal_array(layers), **periphery(chip)}
    header = {
        "chip": chip.name,
        "samna_module": chip.samna_module,
        "samna_configuration": chip.samna_configuration,
        "whole": chip.validated,  # else: to be laid over the module's own defaults
        "neuron_major": chip.neuron_major,
        "input_shape": used[config.inputs[0]].input_shape,
        "leaks": any(core.leaks for core in config.cores),
        "inputs": config.inputs,
        "readouts": [[readout.core, readout.first, readout.step] for readout in config.readouts],
        "classes": config.classes,
        "names": {str(core.index): core.name for core in config.cores},
    }
    body = _camel(root) if chip.key_style == "camel" else root
    return json.dumps({"value0": body, "snncc": header}, separators=(",", ":"))  # samna reads whatever comes first


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote. Raises KeyError or ValueError for a text that it did not write."""
    data = json.loads(text)
    header, root = data["snncc"], _snake(data["value0"])
    layers, names = root["cnn_layers"], header["names"]
    cores = tuple(_read_core(int(index), name, layers[f"value{index}"]) for index, name in names.items())
    readouts = tuple(Readout(*readout) for readout in header["readouts"])
    return Config(CHIPS[header["chip"]], cores, tuple(header["inputs"]), readouts)


def _core(chip: Chip, core: CoreConfig) -> Json:
    weights = core.weights.transpose(0, 1, 3, 2)  # x before y
    biases = np.zeros(core.output_shape[0], np.int16) if core.biases is None else core.biases
    initial = np.zeros(core.output_shape, np.int16) if core.initial is None else core.initial
    tensors = {"weights": weights, "biases": biases, "neurons_initial_value": initial.transpose(0, 2, 1)}
    if chip.validated:  # a kill bit switches a memory cell off; later modules have none (sinabs, chips/speck2cmini.py)
        kills = {
            "weights_kill_bit": weights,
            "biases_kill_bit": biases,
            "neurons_value_kill_bit": initial.transpose(0, 2, 1),
        }
        tensors |= {name: np.zeros(tensor.shape, bool) for name, tensor in kills.items()}
    enabled = len(core.destinations)
    slots = enumerate((*core.destinations, *[Destination(0)] * (chip.destinations - enabled)))
    return {
        "destinations": cereal_array(
            [
                {"layer": d.layer, "enable": i < enabled, "feature_shift": d.feature_shift, "pooling": d.pooling}
                for i, d in slots
            ]
        ),
        "return_to_zero": core.return_to_zero,
        "leak_enable": core.leaks,
        "threshold_high": core.threshold_high,
        "threshold_low": core.threshold_low,
        "monitor_enable": core.monitor,
        "dimensions": {
            "padding": _xy(core.padding),
            "stride": _xy(core.stride),
            "kernel_size": core.kernel,
            "input_shape": {"feature_count": core.input_shape[0], "size": _xy(core.input_shape[1:])},
            "output_shape": {"feature_count": core.output_shape[0], "size": _xy(core.output_shape[1:])},
        },
        **{name: _tensor(tensor) for name, tensor in tensors.items()},
    }


def _read_core(index: int, name: str, core: Json) -> CoreConfig:
    def yx(pair: Json) -> tuple[int, int]:
        return pair["y"], pair["x"]

    def shape(io: Json) -> tuple[int, int, int]:
        return (io["feature_count"], *yx(io["size"]))

    def tensor(key: str, dtype: type[np.integer[Any]]) -> Integers:
        read: Integers = np.array(core[key]["values"], dtype).reshape(*core[key]["dimensions"].values())
        return read

    dimensions = core["dimensions"]
    return CoreConfig(
        index=index,
        name=name,
        input_shape=shape(dimensions["input_shape"]),
        output_shape=shape(dimensions["output_shape"]),
        kernel=dimensions["kernel_size"],
        stride=yx(dimensions["stride"]),
        padding=yx(dimensions["padding"]),
        weights=tensor("weights", np.int8).transpose(0, 1, 3, 2),
        threshold_high=core["threshold_high"],
        threshold_low=core["threshold_low"],
        biases=tensor("biases", np.int16) if core["leak_enable"] else None,
        initial=tensor("neurons_initial_value", np.int16).transpose(0, 2, 1),
        return_to_zero=core["return_to_zero"],
        destinations=tuple(
            Destination(d["layer"], d["pooling"], d["feature_shift"])
            for d in core["destinations"].values()
            if d["enable"]
        ),
        monitor=core["monitor_enable"],
    )


def _xy(pair: tuple[int, ...]) -> Json:
    return {"x": pair[1], "y": pair[0]}


def _tensor(array: npt.NDArray[Any]) -> Json:
    """A tensor in samna's form: `offsets` are its row-major strides, in elements."""
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    return {
        "dimensions": cereal_array(list(array.shape)),
        "offsets": cereal_array(strides),
        "values": array.ravel().tolist(),
    }


def _camel(data: Json) -> Json:
    def spell(key: str) -> str:
        first, *rest = key.split("_")
        return first + "".join(word[0].upper() + word[1:] for word in rest)

    return {spell(key): _camel(value) if isinstance(value, dict) else value for key, value in data.items()}


def _snake(data: Json) -> Json:
    """The keys in snake style, as far as the cores have them: no digit of theirs follows a word."""

    def spell(key: str) -> str:
        return "".join(f"_{char.lower()}" if char.isupper() else char for char in key)

    return {spell(key): _snake(value) if isinstance(value, dict) else value for key, value in data.items()}
