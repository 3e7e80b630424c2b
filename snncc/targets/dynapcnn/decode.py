"""Back from the chip: a configuration as a mapped graph, and samna's memory writes as the arrays of the cores.

What was written can so be simulated like what was compiled, and both compared. Configurations that others made (sinabs,
by samna's own `to_json`) have no header of ours: their inputs and outputs are found in the wiring.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter

import numpy as np

from snncc.ir import Graph, Node, PerChannel, Stage, Store, ops
from snncc.ir.diagnostics import input_error
from snncc.ir.types import identifier
from snncc.targets.dynapcnn.chips import CHIPS, Chip, log2_ceil
from snncc.targets.dynapcnn.config import (
    PIXELS,
    Config,
    CoreConfig,
    HostBias,
    InputRoute,
    Integers,
    Readout,
    Sensor,
    from_json,
    read_cores,
    read_dvs_layer,
    with_own_biases,
)


def decode(config: str | Config, chip: str | None = None) -> Graph:
    """The mapped graph of a configuration: what the host sends as spikes, a convolution and neurons for each core, and
    the readouts as outputs. All units are 1: an output counts spikes.

    Args:
        config: a configuration, or its JSON: as `to_json` writes it, or as samna does.
        chip: the name of the chip, for a text of samna's, which does not name it.

    Raises:
        InputError: a text that is no configuration, or one that no graph can express.
    """
    try:
        if isinstance(config, str):
            config = read_config(config, chip)
        return _Decoder(with_own_biases(config)).graph()
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        why = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise input_error(
            "SNN071", f"this is not a configuration of a DYNAP-CNN chip that can be read: {why}"
        ) from None


class _Decoder:
    """A graph that grows along the wires."""

    def __init__(self, config: Config) -> None:
        self.config, self.store, self.nodes = config, Store(), dict[str, Node]()
        self.cores = {core.index: core for core in config.cores}
        # Of each core: which value arrives from which channel on.
        self.arriving: dict[int, list[tuple[int, str]]] = {index: [] for index in self.cores}

    def graph(self) -> Graph:
        encoded = []
        for i, shape in enumerate(self.config.input_shapes):
            name = self.add("input" if len(self.config.input_shapes) == 1 else f"input{i}", ops.Input(shape), ())
            encoded.append(self.add(f"{name}.spikes", ops.Encode("spikes", 1.0, "i32"), (name,)))
        for route in self.config.inputs:
            laid = self.lay(encoded[route.index], route)
            self.arriving[route.core].append((route.feature_shift, self.pool(laid, route.pooling, route.core)))
        for bias in self.config.host_biases:
            self.arriving[bias.core].append((bias.first, self.ones(bias, encoded[0])))
        sources: dict[int, set[int]] = {index: set() for index in self.cores}
        for core in self.config.cores:
            for destination in core.destinations:
                if destination.layer in self.cores:
                    sources[destination.layer].add(core.index)
                elif self.config.chip.readout is None or destination.layer != self.config.chip.readout.layer:
                    raise ValueError(f"{core.name}: its destination {destination.layer} is not in use")
        neurons = {}
        for index in TopologicalSorter(sources).static_order():
            core = self.cores[index]
            neurons[index] = self.core(core)
            for destination in core.destinations:
                if destination.layer in self.cores:  # else the chip's readout, which the outputs stand for
                    pooled = self.pool(neurons[index], destination.pooling, index)
                    self.arriving[destination.layer].append((destination.feature_shift, pooled))
        outputs = tuple(self.output(i, neurons) for i in range(len(self.config.output_shapes)))
        return Graph(tuple(self.nodes.values()), outputs, Stage.MAPPED, store=self.store)

    def add(self, name: str, op: ops.Op, args: tuple[str, ...], core: int | None = None, unit: float = 1.0) -> str:
        """The node's name: a new one if it is taken, and the old node if there is one that does the same."""
        place = "" if core is None else f"core {core}"
        for node in self.nodes.values():
            if (node.op, node.args, node.place) == (op, args, place) and args and not isinstance(op, ops.Weighted):
                return node.name
        name = identifier(name)
        taken = (f"{name}.{i}" for i in range(len(self.nodes)))
        while name in self.nodes:
            name = next(taken)
        type = op.infer(tuple(self.nodes[arg].type for arg in args), self.store)
        type = replace(type, unit=unit) if isinstance(op, ops.Weighted) else type
        self.nodes[name] = Node(name, op, args, type, place=place)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return self.nodes[name].type.shape

    def lay(self, name: str, route: InputRoute) -> str:
        """The input as the map that the host makes of it, filled up with what is never sent."""
        core, shape = route.core, self.shape(name)
        if shape == route.shape:
            return name
        flat = (math.prod(shape),)
        extra = math.prod(route.shape) - flat[0]
        if extra:
            name = self.add(f"{name}.flat", ops.Reshape(flat), (name,), core) if shape != flat else name
            name = self.add(f"{name}.fill", ops.Pad((0,), (extra,)), (name,), core)
        return self.add(f"{name}.map", ops.Reshape(route.shape), (name,), core)

    def ones(self, bias: HostBias, first: str) -> str:
        """What the host sends in every step, beside the inputs."""
        size = self.cores[bias.core].input_shape[1:]
        if bias.count != 1 or (bias.rows, bias.columns) != tuple(tuple(range(n)) for n in size):
            raise ValueError(f"{self.cores[bias.core].name}: the host sends it what is neither a bias nor ones")
        return self.add("ones", ops.Ones((size[0], size[1])), (first,), bias.core)

    def pool(self, name: str, pooling: int, core: int) -> str:
        window = (pooling, pooling)
        return name if pooling == 1 else self.add(f"{name}.pool", ops.SumPool(window, window, 1.0), (name,), core)

    def pad(self, name: str, before: int, after: int, core: int) -> str:
        """With channels of zeros."""
        if not before and not after:
            return name
        return self.add(f"{name}.pad", ops.Pad((before, 0, 0), (after, 0, 0)), (name,), core)

    def gather(self, core: CoreConfig) -> str:
        """What the core sees: its sources by their channels, added where they meet, zeros where there is none."""
        groups: list[tuple[int, int, str]] = []  # first channel, the one after the last, the value
        for first, name in sorted(self.arriving[core.index], key=lambda source: source[0]):
            last = first + self.shape(name)[0]
            if not groups or groups[-1][1] <= first:
                groups.append((first, last, name))
                continue
            start, end, sum_name = groups.pop()
            top = max(end, last)
            both = (
                self.pad(sum_name, 0, top - end, core.index),
                self.pad(name, first - start, top - last, core.index),
            )
            groups.append((start, top, self.add(f"{core.name}.add", ops.Add(), both, core.index)))
        parts, done = [], 0
        for i, (first, last, name) in enumerate(groups):
            after = core.input_shape[0] - last if i + 1 == len(groups) else 0
            if first < 0 or after < 0:
                raise ValueError(f"{core.name}: channels {first}..{last - 1} of {core.input_shape[0]}")
            parts.append(self.pad(name, first - done, after, core.index))
            done = last
        if not parts:
            raise ValueError(f"{core.name}: nothing feeds it")
        if len(parts) == 1:
            return parts[0]
        return self.add(f"{core.name}.concat", ops.Concat(), tuple(parts), core.index)

    def core(self, core: CoreConfig) -> str:
        """The name of its neurons."""
        seen = self.gather(core)
        if self.shape(seen) != core.input_shape:
            raise ValueError(f"{core.name}: it takes {core.input_shape}, what arrives is {self.shape(seen)}")
        (pad_y, pad_x), high = core.padding, core.threshold_high
        conv = ops.Conv2d(
            self.store.put(f"{core.name}.weight", core.weights.astype(np.int8)),
            None if core.biases is None else self.store.put(f"{core.name}.bias", core.biases.astype(np.int16)),
            core.stride,
            (pad_y, pad_y, pad_x, pad_x),
        )
        if high < 1:
            raise ValueError(f"{core.name}: its threshold is {high}")
        # One spike counts 1, to the last bit: else what comes from different thresholds could not be added.
        current = self.add(core.name, conv, (seen,), core.index, unit=1.0 / high)
        if self.shape(current) != core.output_shape:
            raise ValueError(f"{core.name}: it has {core.output_shape} neurons, its convolution {self.shape(current)}")
        gain = 1.0 if 1.0 / high * high == 1.0 else math.nextafter(1.0, 2.0)
        reset = "zero" if core.return_to_zero else "subtract"
        neuron = ops.If(high, self.start(core), reset, core.threshold_low, gain)
        # Neurons have their own name where the configuration tells it.
        mine = [monitor.name for monitor in self.config.monitors if monitor.core == core.index]
        whole = [name for name in mine if sum(monitor.name == name for monitor in self.config.monitors) == 1]
        name = next(iter(whole), f"{core.name}.spikes")
        return self.add(name, neuron, (current,), core.index)

    def start(self, core: CoreConfig) -> PerChannel:
        """The potentials at the start."""
        if core.initial is None:
            return 0
        each = core.initial.reshape(len(core.initial), -1)
        if (each != each[:, :1]).any():
            raise ValueError(f"{core.name}: initial potentials that differ within a channel")
        if (each == each[0, 0]).all():
            return int(each[0, 0])
        return self.store.put(f"{core.name}.v0", each[:, 0].astype(np.int16))

    def output(self, number: int, neurons: dict[int, str]) -> str:
        parts, readouts = [], [readout for readout in self.config.readouts if readout.output == number]
        for readout in sorted(readouts, key=lambda readout: readout.first):
            name = neurons[readout.core]
            if readout.step > 1:
                c, h, w = self.shape(name)
                every = ops.Slice((0, 0, 0), (c, h, w), (readout.step, 1, 1))
                name = self.add(f"{name}.read", every, (name,), readout.core)
            parts.append(name)
        if len(parts) == 1:
            return parts[0]
        tiles, name = {(readout.core, readout.first) for readout in readouts if readout.step == 1}, f"output{number}"
        for monitor in self.config.monitors:  # a layer that is split over cores has its own name
            if tiles == {(each.core, each.first) for each in self.config.monitors if each.name == monitor.name}:
                name = monitor.name
        return self.add(name, ops.Concat(), tuple(parts), readouts[0].core)


# ------------------------------------------------------------------------------------------------- samna's own texts


def read_config(text: str, chip: str | None = None) -> Config:
    """The configuration of a text with our header, or of one of samna's own `to_json` with the chip's name.

    Without a header: in use is what has a destination, the monitor, or is fed; the host sends to the cores that nothing
    feeds if the pixels are off; each core at the end of the wires is an output.

    Raises KeyError, OverflowError, TypeError or ValueError if it is neither.
    """
    data = json.loads(text)
    if "snncc" in data:
        return from_json(text)
    if chip is None:
        raise ValueError("it does not name its chip, and none was given")
    if chip not in CHIPS:
        raise ValueError(f"no chip is named {chip!r}; known: {', '.join(CHIPS)}")
    return _wired(CHIPS[chip], read_cores(data), read_dvs_layer(data))


def _wired(chip: Chip, found: tuple[CoreConfig, ...], dvs: tuple[Sensor, tuple[int, ...]] | None) -> Config:
    every = {core.index: core for core in found}
    pixels = dvs[1] if dvs else ()
    fed = {d.layer for core in found for d in core.destinations} | set(pixels)
    used = {core.index for core in found if core.destinations or core.monitor} | (fed & set(every))
    sensor, routes, shapes = None, list[InputRoute](), list[tuple[int, ...]]()
    if dvs:
        size = every[pixels[0]].input_shape[1:]
        sensor = _with_size(dvs[0], size)
        routes, shapes = [InputRoute(index, sensor.shape) for index in pixels], [sensor.shape]
    else:
        for index in sorted(used - fed):
            shape = every[index].input_shape
            shapes = [*shapes, shape] if shape not in shapes else shapes
            routes.append(InputRoute(index, shape, index=shapes.index(shape)))
    cores, readouts = [], list[Readout]()
    for index in sorted(used):
        core = every[index]
        to_readout = bool(chip.readout) and any(d.layer not in every for d in core.destinations)
        end = to_readout or not core.destinations
        cores.append(replace(core, monitor=core.monitor or end))
        if end:
            step = chip.readout.step if chip.readout and to_readout else 1
            readouts.append(Readout(index, step=step, output=len(readouts)))
    if not cores:
        raise ValueError("it uses no core")
    return Config(chip, tuple(cores), tuple(routes), tuple(readouts), tuple(shapes), sensor)


def _with_size(sensor: Sensor, size: tuple[int, int]) -> Sensor:
    """The sensor with the size that the core takes: samna 0.7.1.0 counts the cut before the pooling, others after."""
    for cut, pooling, origin, taken in zip(sensor.size, sensor.pooling, sensor.origin, size, strict=True):
        whole = origin == 0 and cut == PIXELS and taken == PIXELS // pooling
        if cut != taken and not whole:
            raise ValueError(f"the sensor gives {sensor.size} pixels, the core takes {size}")
    return replace(sensor, size=size)


# ---------------------------------------------------------------------------------------------------- memory writes


@dataclass(frozen=True, eq=False)
class Memories:
    """What one core's memories hold, in the order of `CoreConfig`'s arrays."""

    weights: Integers
    biases: Integers
    initial: Integers


def read_writes(writes: Iterable[tuple[str, int, int, int]], config: Config) -> dict[int, Memories]:
    """The memories of the used cores after samna's writes of a configuration (kind, core, address, value).

    Addresses, each part with as many bits as its size needs (samna's own *_to_event functions; for the neurons of
    which coordinate is highest, see `Chip.neuron_major`): a weight's is y * kernel + x, channel out, channel in; a
    bias's is the channel; a neuron's is y, x, channel, or x, y, channel.

    Raises:
        ValueError: writes at addresses that belong to nothing, twice at the same one, or none at one that needs it.
            A core that is not in use is written as one neuron that does nothing.
    """
    chip, cores = config.chip, {core.index: core for core in config.cores}
    found: dict[int, Memories] = {}
    given: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for kind, index, address, value in writes:
        given.setdefault((kind, index), []).append((address, value))
    wrong = []
    for (kind, index), words in given.items():
        if kind not in _KINDS:
            wrong.append(f"{kind} is no write of a memory")
        elif index not in cores and (index not in range(len(chip.cores)) or words != [(0, 0)]):
            wrong.append(f"core {index} is not in use, but has {kind} {words[:3]}")
    for index, core in cores.items():
        tables = _addresses(chip, core)
        arrays = []
        for kind, table in zip(_KINDS, tables, strict=True):
            words = given.get((kind, index), [])
            array, places = np.zeros(table.size, np.int64), {int(a): i for i, a in enumerate(table.ravel())}
            values = dict(words)
            if len(values) < len(words):
                wrong.append(f"{core.name}: {kind} twice at one address")
            wrong += [
                f"{core.name}: {kind} at {address}, where nothing is" for address in values.keys() - places.keys()
            ]
            wrong += [f"{core.name}: no {kind} at {address}" for address in places.keys() - values.keys()]
            for address in values.keys() & places.keys():
                array[places[address]] = values[address]
            arrays.append(array.reshape(table.shape))
        found[index] = Memories(*arrays)
    if wrong:
        raise ValueError("\n".join([*wrong[:20], *([f"and {len(wrong) - 20} more"] if len(wrong) > 20 else [])]))
    return found


_KINDS = ("WriteWeightValue", "WriteBiasValue", "WriteNeuronValue")


def _addresses(chip: Chip, core: CoreConfig) -> tuple[Integers, Integers, Integers]:
    """Of every weight, bias and neuron its address, in the shape of the core's arrays."""
    c, (f, h, w) = core.input_shape[0], core.output_shape
    c_bits, f_bits, y_bits, x_bits = map(log2_ceil, (c, f, h, w))
    out, into, y, x = np.ogrid[:f, :c, : core.kernel, : core.kernel]
    weights = (y * core.kernel + x) << (c_bits + f_bits) | out << c_bits | into
    channel, y, x = np.ogrid[:f, :h, :w]
    y_shift, x_shift = (f_bits, f_bits + y_bits) if chip.neuron_major == "x" else (f_bits + x_bits, f_bits)
    return weights, np.arange(f), y << y_shift | x << x_shift | channel
