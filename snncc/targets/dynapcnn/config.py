"""What one chip is told: a `Config`, what is wrong with it, and the JSON that samna reads.

samna's own checks are not enough: its `from_json` wraps a weight of 200 to -56, its validator crashes on a pooling of
0, and accepts cycles and a bias that no clock drives. So `problems` checks every range, shape and memory here, and
`to_json` refuses a configuration with problems. Arrays are in torch's order ([out, in, y, x] and [channel, y, x]); the
JSON has x before y.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from graphlib import CycleError, TopologicalSorter
from math import prod
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
PIXELS = 128  # of the sensor, in either direction (datasheet 2.3)


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
class InputRoute:
    """How the host's input number `index` gets to core `core`.

    The host lays the input's values, in C order, into a map `shape` (channels, height, width), which may be larger than
    the input: what is left is never sent. A spike of (channel, y, x) of that map becomes an event at (channel +
    feature_shift, y // pooling, x // pooling) of the core.
    """

    core: int
    shape: tuple[int, int, int]
    pooling: int = 1
    feature_shift: int = 0
    index: int = 0


@dataclass(frozen=True)
class HostBias:
    """Biases of a core that the host gives, in place of the core's slow clock, which fires no neuron.

    At the start of each time step it sends one event to each of `rows` x `columns` of each of `count` channels from
    `first` on. Of a bias, every window of the core sees just one of them, at taps where the kernel holds (a part of)
    it. A channel of ones (:class:`snncc.ir.ops.Ones`) has them everywhere: windows in the padding see fewer.
    """

    core: int
    first: int
    count: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Sensor:
    """The chip's own pixels as the input, in place of the host: 128 x 128, events of two polarities.

    In this order (datasheet 2.3): polarities (`on`, `off`: taken or not; `merge`: both in channel 0), sum pooling, the
    cut to `size` pooled pixels from `origin`, mirroring. Pairs are (y, x).
    """

    pooling: tuple[int, int] = (1, 1)
    origin: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (128, 128)
    merge: bool = False
    on: bool = True
    off: bool = True
    mirror: tuple[bool, bool] = (False, False)
    mirror_diagonal: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """The map (channels, height, width) that the cores see."""
        return (1 if self.merge else 2, *self.size)


@dataclass(frozen=True)
class Readout:
    """How a monitored core's spikes become scores: one of channel c counts for channel first + c // step of the
    network's output number `output`."""

    core: int
    first: int = 0
    step: int = 1
    output: int = 0


@dataclass(frozen=True)
class Monitor:
    """Of which neurons of the network a monitored core's spikes are: channel c of the core is channel first + c of
    `name`. A layer that is split over cores has a monitor for each."""

    name: str
    core: int
    first: int = 0


@dataclass(frozen=True, eq=False)
class Config:
    """A whole chip. `inputs` are the ways of what the host sends, an event for each way; with a `sensor`, they name the
    cores that it sends to. `input_shapes` are the network's own.
    """

    chip: Chip
    cores: tuple[CoreConfig, ...]
    inputs: tuple[InputRoute, ...]
    readouts: tuple[Readout, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    sensor: Sensor | None = None
    monitors: tuple[Monitor, ...] = ()
    host_biases: tuple[HostBias, ...] = ()

    @property
    def output_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Of each output the channels that its readouts give, and the height and width of their cores' maps."""
        cores, shapes = {core.index: core for core in self.cores}, dict[int, tuple[int, int, int]]()
        for readout in self.readouts:
            channels, height, width = cores[readout.core].output_shape
            last = readout.first + -(-channels // readout.step)
            shapes[readout.output] = (max(last, shapes.get(readout.output, (0,))[0]), height, width)
        return tuple(shapes[output] for output in sorted(shapes))


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
    return [*found, *_connections(config), *_sensor(config), *_ends(config)]


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


@dataclass(frozen=True)
class _Source:
    """Channels first..last of a core that somebody feeds. `wired`: on the chip, so that samna's validator sees it."""

    first: int
    last: int
    name: str
    wired: bool


def _connections(config: Config) -> Iterator[Problem]:
    """Every way into a core against the core that it names, and the graph that the cores make."""
    chip, cores = config.chip, {core.index: core for core in config.cores}
    if len(cores) != len(config.cores):
        yield _problem("", "cores", "each core once", str([core.index for core in config.cores]))
    sources: dict[int, list[_Source]] = {index: [] for index in cores}
    for route in config.inputs:
        name, target = f"input {route.index}", cores.get(route.core)
        legal = range(len(config.input_shapes))
        if route.index not in legal:
            yield _problem("", "number of the input", _words(legal) if legal else "none", route.index)
        elif prod(route.shape) < prod(config.input_shapes[route.index]):
            yield _problem(
                name, "size of its map", f"{prod(config.input_shapes[route.index])} or more", prod(route.shape)
            )
        if target is None:
            yield _problem("", "inputs", f"some of the used cores ({', '.join(map(str, cores))})", route.core)
            continue
        edge = f"{name} -> {target.name}"
        if route.pooling < 1:  # else any: the host divides the coordinates itself
            yield _problem(edge, "pooling", "1 or more", route.pooling)
        else:
            yield from _fits(edge, route.shape, route.pooling, route.feature_shift, target)
        first, last = route.feature_shift, route.feature_shift + route.shape[0] - 1
        sources[target.index].append(_Source(first, last, name, wired=config.sensor is not None))
    for bias in config.host_biases:
        if (target := cores.get(bias.core)) is None or config.sensor is not None:
            yield _problem("", "host's biases", "of a used core, without the sensor", bias.core)
            continue
        for axis, places, size in zip("yx", (bias.rows, bias.columns), target.input_shape[1:], strict=True):
            if not places or not set(places) <= set(range(size)):
                yield _problem(target.name, f"host's biases along {axis}", f"0..{size - 1}", str(places))
        if bias.count < 1 or bias.first < 0 or bias.first + bias.count > target.input_shape[0]:
            found = f"{bias.first}..{bias.first + bias.count - 1}"
            yield _problem(target.name, "channels of the host's biases", f"0..{target.input_shape[0] - 1}", found)
        last = bias.first + bias.count - 1
        sources[target.index].append(_Source(bias.first, last, "the host's biases", wired=False))
    for core in config.cores:
        for destination in core.destinations:
            target, shift = cores.get(destination.layer), destination.feature_shift
            if chip.readout and destination.layer == chip.readout.layer:
                most = (chip.readout.classes - 1) * chip.readout.step + 1
                if core.output_shape[0] + shift > most or shift < 0:
                    yield _problem(core.name, "channels into the readout", most, core.output_shape[0] + shift)
                continue
            if target is None or target is core:
                others = f"another used core ({', '.join(str(index) for index in cores if index != core.index)})"
                yield _problem(core.name, "destination", others, destination.layer)
                continue
            if destination.pooling in chip.poolings:
                edge = f"{core.name} -> {target.name}"
                yield from _fits(edge, core.output_shape, destination.pooling, shift, target)
            sources[target.index].append(_Source(shift, shift + core.output_shape[0] - 1, core.name, wired=True))
    for core in config.cores:
        yield from _sources(chip, core, sources[core.index])
    try:
        TopologicalSorter({core.index: [d.layer for d in core.destinations] for core in config.cores}).prepare()
    except CycleError as error:
        path = [cores[index].name for index in reversed(error.args[1]) if index in cores]
        if len(path) > 2:  # a core that feeds itself is named above
            yield _problem("", "connections", "no cycle", " -> ".join(path))


def _fits(edge: str, shape: tuple[int, int, int], pooling: int, shift: int, target: CoreConfig) -> Iterator[Problem]:
    """A map that arrives, pooled and shifted, against the core's input."""
    for axis, out, into in zip("yx", shape[1:], target.input_shape[1:], strict=True):
        if out // pooling != into:
            yield _problem(edge, f"size {axis} after pooling", into, out // pooling)
    if shift < 0 or shift + shape[0] > target.input_shape[0]:
        yield _problem(edge, "channels", f"0..{target.input_shape[0] - 1}", f"{shift}..{shift + shape[0] - 1}")


def _sources(chip: Chip, core: CoreConfig, sources: list[_Source]) -> Iterator[Problem]:
    """That each channel of a core has one source, or on some chips several."""
    for i, source in enumerate(sources):
        for other in sources[:i]:
            first, last = max(source.first, other.first), min(source.last, other.last)
            if first <= last and not chip.adds:
                text = f"{core.name}: channels {first}..{last} come from both {other.name} and {source.name}; "
                text += f"on {chip.name} a core can concatenate its sources, not add them"
                if source.wired and other.wired:
                    text += " (samna 0.7.1.0 answers `Overlap`)"
                yield Problem(core.name, "sources", "one a channel", "two", text)
    if not sources:
        yield _problem(core.name, "sources", "the host or another core", "none")
        return
    every = range(core.input_shape[0])
    fed = {channel for source in sources for channel in range(source.first, source.last + 1)}
    wired = {channel for source in sources if source.wired for channel in range(source.first, source.last + 1)}
    known = core.weights.ndim == 4 and core.weights.shape[1] == len(every)
    if missing := [c for c in every if c not in fed and (not known or np.any(core.weights[:, c]))]:
        yield _problem(core.name, "channels fed", len(every), len(every) - len(missing))
    elif wired and not chip.adds and len(wired) < len(every):
        # samna 0.7.1.0: `Gap between`, `Input range does not start from 0` or `Input space feature count does not
        # match`, whatever the weights of the other channels are. Of the host's channels it knows nothing.
        text = f"{core.name}: {len(wired)} of its {len(every)} channels come from cores or pixels; on {chip.name} it "
        text += "must be all or none, so that the host cannot give the rest and none can be left out"
        yield Problem(core.name, "channels fed", len(every), len(wired), text)


def _sensor(config: Config) -> Iterator[Problem]:
    """The pixels as the input: what samna's dvs_layer takes."""
    chip, sensor = config.chip, config.sensor
    if sensor is None:
        return
    if config.input_shapes != (sensor.shape,):
        yield _problem("", "input shapes", str((sensor.shape,)), str(config.input_shapes))
    if len(config.inputs) > chip.destinations:
        yield _problem("", "cores that the sensor feeds", chip.destinations, len(config.inputs))
    for route in config.inputs:
        if route != InputRoute(route.core, sensor.shape):
            yield _problem("", "way of the sensor", str(InputRoute(route.core, sensor.shape)), str(route))
    for axis, pooling, origin, size in zip("yx", sensor.pooling, sensor.origin, sensor.size, strict=True):
        if pooling not in chip.poolings:
            yield _problem("", f"sensor pooling {axis}", _words(chip.poolings), pooling)
        elif not 0 <= origin < origin + size <= PIXELS // pooling:
            legal = f"within the {PIXELS // pooling} pooled pixels"
            yield _problem("", f"sensor cut {axis}", legal, f"{origin}..{origin + size - 1}")
        elif pooling > 1 and size < PIXELS // pooling and chip.validated:
            text = f"sensor: it pools and cuts {axis}, and it is not known in which pixels {chip.name} cuts: samna "
            text += "0.7.1.0 counts them before the pooling, the datasheet and sinabs after it; do one of the two"
            yield Problem("", f"sensor cut {axis}", "none with pooling", f"{origin}..{origin + size - 1}", text)
    if not (sensor.on or sensor.off):
        yield _problem("", "sensor polarities", "on, off or both", "none")
    if sensor.mirror_diagonal and sensor.size[0] != sensor.size[1]:  # samna and sinabs do not turn the size with it
        yield _problem("", "sensor size with a diagonal mirror", "a square", str(sensor.size))


def _ends(config: Config) -> Iterator[Problem]:
    """Where spikes come in and where they are counted."""
    cores = {core.index: core for core in config.cores}
    used = f"some of the used cores ({', '.join(map(str, cores))})"
    if not config.inputs:
        yield _problem("", "inputs", used, "none")
    readouts = [(readout.core, readout.output) for readout in config.readouts]
    outputs = sorted({output for _, output in readouts})
    if not readouts or len(set(readouts)) != len(readouts) or not {core for core, _ in readouts} <= set(cores):
        yield _problem("", "readouts", f"{used}, each once an output", str(readouts))
    elif outputs != list(range(len(outputs))):
        yield _problem("", "outputs", f"0..{len(outputs) - 1}", str(outputs))
    else:
        for output in outputs:
            yield from _output(config, output)
    for readout in config.readouts:
        if readout.core in cores and not cores[readout.core].monitor:
            yield _problem(cores[readout.core].name, "monitor", "on, for a readout", "off")
    for monitor in config.monitors:
        if monitor.core not in cores or not cores[monitor.core].monitor or monitor.first < 0:
            yield _problem(monitor.name, "monitor", "a core with its monitor on, first >= 0", str(monitor))
    for core in config.cores:
        if not core.destinations and not core.monitor:
            yield _problem(core.name, "destinations", "a destination or the monitor", "neither")


def _output(config: Config, output: int) -> Iterator[Problem]:
    """The readouts of one output: they tile its channels, and channels that a step leaves out are silent."""
    cores = {core.index: core for core in config.cores}
    readouts = sorted((r for r in config.readouts if r.output == output), key=lambda r: r.first)
    sizes, end = {cores[readout.core].output_shape[1:] for readout in readouts}, 0
    if len(sizes) > 1:
        yield _problem("", f"sizes of the maps of output {output}", "one", str(sorted(sizes)))
    for readout in readouts:
        core = cores[readout.core]
        if readout.step < 1 or readout.first != end:
            yield _problem("", "readout", f"first = {end}, step >= 1", str(readout))
            return
        end += -(-core.output_shape[0] // readout.step)
        between = [c for c in range(core.output_shape[0]) if c % readout.step]
        pushed = [each for each in (core.weights, core.biases) if each is not None]
        loud = any(len(each) == core.output_shape[0] and np.any(each[between]) for each in pushed)
        if core.initial is not None and core.initial.shape == core.output_shape:
            loud |= bool(np.any(core.initial[between] >= core.threshold_high))
        if loud:
            legal = "no weights, no biases and a potential below the threshold"
            yield _problem(core.name, "channels between those that are read", legal, "others")


def _problem(core_name: str, item: str, limit: str | int, found: str | int) -> Problem:
    who = f"{core_name}: " if core_name else ""
    return Problem(core_name, item, limit, found, f"{who}{item} is {found}, legal is {limit}")


def _words(legal: range | tuple[int, ...]) -> str:
    return f"{legal[0]}..{legal[-1]}" if isinstance(legal, range) else ", ".join(map(str, legal))


def with_own_biases(config: Config) -> Config:
    """The same network with the host's biases as the cores' own: what it computes in each time step is the same. Those
    of which windows see different numbers stay."""
    cores = {core.index: core for core in config.cores}
    own_biases = [bias for bias in config.host_biases if _is_bias(bias, cores[bias.core])]
    for bias in own_biases[::-1]:  # the last channels first: the others keep their places
        core, own = cores[bias.core], slice(bias.first, bias.first + bias.count)
        parts = core.weights[:, own].astype(np.int64).reshape(len(core.weights), bias.count, -1)
        taps = np.abs(parts).max(axis=(0, 1))
        channels, height, width = core.input_shape
        cores[bias.core] = replace(
            core,
            input_shape=(channels - bias.count, height, width),
            weights=np.delete(core.weights, own, axis=1),
            biases=parts[:, :, int(taps.argmax())].sum(axis=1),
        )
    kept = tuple(bias for bias in config.host_biases if bias not in own_biases)
    return replace(config, cores=tuple(cores.values()), host_biases=kept)


def _is_bias(bias: HostBias, core: CoreConfig) -> bool:
    """Whether every window sees one event of the host's through the taps that hold something, behind all channels of
    inputs, of which there are some."""
    if core.biases is not None or not bias.first or bias.first + bias.count != core.input_shape[0]:
        return False
    held = np.any(core.weights[:, bias.first : bias.first + bias.count], axis=(0, 1))
    for i, places, taken in ((0, bias.rows, held.any(axis=1)), (1, bias.columns, held.any(axis=0))):
        taps = np.flatnonzero(taken)
        starts = np.arange(core.output_shape[i + 1]) * core.stride[i] - core.padding[i]
        if (np.isin(starts[:, None] + taps, places).sum(axis=1) != 1).any():
            return False
    return True


# The readout block in use, every spike counted and its winner told to the host (synsense's tutorial 'using the readout
# layer', for the speck2e; names: datasheet of the speck2f). Not checked: no such samna can be had.
READOUT_BLOCK: Json = {
    "enable": True,
    "readout_configuration_sel": 3,
    "output_mode_sel": 1,
    "low_pass_filter_disable": True,
    "monitor_enable": False,
    "readout_pin_monitor_enable": True,
}


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
    if config.sensor is not None:
        root["dvs_layer"] = {**root["dvs_layer"], **_dvs_layer(chip, config.sensor, config.inputs)}
    if chip.readout and any(d.layer == chip.readout.layer for core in config.cores for d in core.destinations):
        root["readout"] = READOUT_BLOCK
    header = {
        "chip": chip.name,
        "samna_module": chip.samna_module,
        "samna_configuration": chip.samna_configuration,
        "whole": chip.validated,  # else: to be laid over the module's own defaults
        "neuron_major": chip.neuron_major,
        "leaks": any(core.leaks for core in config.cores),
        "input_shapes": config.input_shapes,
        "inputs": [astuple(route) for route in config.inputs],
        "readouts": [astuple(readout) for readout in config.readouts],
        "outputs": config.output_shapes,
        "sensor": None if config.sensor is None else asdict(config.sensor),
        "monitors": [astuple(monitor) for monitor in config.monitors],
        "biases": [astuple(bias) for bias in config.host_biases],
        "names": {str(core.index): core.name for core in config.cores},
    }
    body = _camel(root) if chip.key_style == "camel" else root
    return json.dumps({"value0": body, "snncc": header}, separators=(",", ":"))  # samna reads whatever comes first


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote; initial potentials that are all zero are None.

    Raises KeyError, TypeError or ValueError for a text that it did not write.
    """
    data = json.loads(text)
    header, root = data["snncc"], _snake(data["value0"])
    layers, names = root["cnn_layers"], header["names"]
    sensor: Json = {k: tuple(v) if isinstance(v, list) else v for k, v in (header["sensor"] or {}).items()}
    return Config(
        chip=CHIPS[header["chip"]],
        cores=tuple(_read_core(int(index), name, layers[f"value{index}"]) for index, name in names.items()),
        inputs=tuple(InputRoute(core, (c, h, w), *rest) for core, (c, h, w), *rest in header["inputs"]),
        readouts=tuple(Readout(*readout) for readout in header["readouts"]),
        input_shapes=tuple(map(tuple, header["input_shapes"])),
        sensor=Sensor(**sensor) if sensor else None,
        monitors=tuple(Monitor(*monitor) for monitor in header["monitors"]),
        host_biases=tuple(
            HostBias(core, first, count, tuple(y), tuple(x)) for core, first, count, y, x in header["biases"]
        ),
    )


def read_cores(data: Json) -> tuple[CoreConfig, ...]:
    """All the cores of a JSON of samna's, used or not. Raises KeyError, TypeError or ValueError if it is another's."""
    layers = _snake(data["value0"])["cnn_layers"]
    return tuple(_read_core(i, f"core{i}", layers[f"value{i}"]) for i in range(len(layers)))


def read_dvs_layer(data: Json) -> tuple[Sensor, tuple[int, ...]] | None:
    """The sensor of a JSON of samna's and the cores that it feeds; None if it feeds none. Its size is the difference of
    `cut` and `origin`, whether that counts pixels after the pooling or before (see `_dvs_layer`)."""
    dvs = _snake(data["value0"])["dvs_layer"]
    cores = tuple(slot["layer"] for slot in dvs["destinations"].values() if slot["enable"])
    if not cores or not dvs["pass_sensor_events"]:
        return None
    origin, cut = _yx(dvs["origin"]), _yx(dvs["cut"])
    sensor = Sensor(
        pooling=_yx(dvs["pooling"]),
        origin=origin,
        size=(cut[0] - origin[0] + 1, cut[1] - origin[1] + 1),
        merge=dvs["merge"],
        on=dvs["on_channel"],
        off=dvs["off_channel"],
        mirror=_yx(dvs["mirror"]),
        mirror_diagonal=dvs["mirror_diagonal"],
    )
    return sensor, cores


def _dvs_layer(chip: Chip, sensor: Sensor, routes: tuple[InputRoute, ...]) -> Json:
    """The fields of samna's dvs_layer with the pixels on.

    `origin` and `cut` (the last row and column taken) count pooled pixels: sinabs 3.1.3, `DVSLayer.get_config_dict` in
    `sinabs/backend/dynapcnn/dvs_layer.py`. samna 0.7.1.0's validator counts them before the pooling, but writes them to
    the chip's registers as they are. So for its chips an axis that is pooled and not cut is written as all 128 pixels,
    which is the same in either reading; `_sensor` refuses the others.
    """
    cut = [origin + size - 1 for origin, size in zip(sensor.origin, sensor.size, strict=True)]
    if chip.validated:
        cut = [last if pooling == 1 else PIXELS - 1 for last, pooling in zip(cut, sensor.pooling, strict=True)]
    slots = [route.core for route in routes] + [0] * (chip.destinations - len(routes))
    return {
        "destinations": cereal_array([{"layer": core, "enable": i < len(routes)} for i, core in enumerate(slots)]),
        "merge": sensor.merge,
        "mirror": _xy(sensor.mirror),
        "mirror_diagonal": sensor.mirror_diagonal,
        "pass_sensor_events": True,
        "on_channel": sensor.on,
        "off_channel": sensor.off,
        "pooling": _xy(sensor.pooling),
        "cut": _xy(cut),
        "origin": _xy(sensor.origin),
    }


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
    def shape(io: Json) -> tuple[int, int, int]:
        return (io["feature_count"], *_yx(io["size"]))

    def tensor(key: str, dtype: type[np.integer[Any]]) -> Integers:
        wide, legal = np.array(core[key]["values"], np.int64), np.iinfo(dtype)
        if wide.size and not legal.min <= wide.min() <= wide.max() <= legal.max:  # older numpy would wrap it
            raise OverflowError(f"{key} {wide.min()}..{wide.max()} out of bounds for {legal.dtype}")
        read: Integers = wide.astype(dtype).reshape(*core[key]["dimensions"].values())
        if _tensor(read)["offsets"] != core[key]["offsets"]:
            raise ValueError(f"{name}: {key} in another order")
        return read

    if len(core["destinations"]) > Chip.destinations:  # samna 0.7.1.0 reads two and says nothing
        raise ValueError(f"{name}: {len(core['destinations'])} destinations")
    if any(any(tensor["values"]) for key, tensor in core.items() if key.endswith("kill_bit")):
        raise ValueError(f"{name}: memory cells that are switched off")
    dimensions, initial = core["dimensions"], tensor("neurons_initial_value", np.int16).transpose(0, 2, 1)
    return CoreConfig(
        index=index,
        name=name,
        input_shape=shape(dimensions["input_shape"]),
        output_shape=shape(dimensions["output_shape"]),
        kernel=dimensions["kernel_size"],
        stride=_yx(dimensions["stride"]),
        padding=_yx(dimensions["padding"]),
        weights=tensor("weights", np.int8).transpose(0, 1, 3, 2),
        threshold_high=core["threshold_high"],
        threshold_low=core["threshold_low"],
        biases=tensor("biases", np.int16) if core["leak_enable"] else None,
        initial=initial if initial.any() else None,
        return_to_zero=core["return_to_zero"],
        destinations=tuple(
            Destination(d["layer"], d["pooling"], d["feature_shift"])
            for d in core["destinations"].values()
            if d["enable"]
        ),
        monitor=core["monitor_enable"],
    )


def _xy(pair: Sequence[int]) -> Json:
    return {"x": pair[1], "y": pair[0]}


def _yx(pair: Json) -> tuple[Any, Any]:
    return pair["y"], pair["x"]


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
