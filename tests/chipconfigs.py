"""Configurations near the corners of what a DYNAP-CNN chip takes: legal ones, and ones that pass a limit or are broken.

`build` draws cores one by one and wires each to what fits, so that whatever it gives is consistent; `beyond` lets one
number pass its limit. `broken` changes one thing of a configuration, whatever becomes of the rest. Equal seeds give
equal configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from snncc.targets.dynapcnn.chips import Chip, log2_ceil
from snncc.targets.dynapcnn.config import (
    PIXELS,
    Config,
    CoreConfig,
    Destination,
    InputRoute,
    Monitor,
    Problem,
    Readout,
    Sensor,
)

Rng = np.random.Generator
Shape = tuple[int, int, int]
# What `build` can pass, in one core.
LIMITS = (
    "kernel", "stride", "padding", "pooling 0", "pooling 3", "pooling 8", "pooling 16", "features in", "features out",
    "input size", "output size", "kernel memory", "neuron memory", "threshold_high", "threshold_low", "overlap",
)  # fmt: skip


def pick(rng: Rng, *options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


@dataclass
class Builder:
    """A configuration that grows core by core. `initial`: "any", or "channel" for one potential a channel."""

    chip: Chip
    rng: Rng
    beyond: str = ""
    initial: str = "any"
    gentle: bool = False  # small maps, and thresholds that a few events reach
    cores: dict[int, CoreConfig] = field(default_factory=dict)
    routes: list[InputRoute] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    sensor: Sensor | None = None

    def coin(self, p: float = 0.5) -> bool:
        return bool(self.rng.random() < p)

    def spend(self, limit: str) -> bool:
        """Whether to pass this limit now: once in a configuration."""
        if self.beyond != limit:
            return False
        self.beyond = ""
        return True

    def build(self) -> Config:
        if not self.gentle and not self.beyond and self.coin(0.12):
            self.sensor = self.draw_sensor()
        places = [int(index) for index in self.rng.permutation(len(self.chip.cores))]
        for index in places[: int(self.rng.integers(1, 7))]:
            shape = self.from_sensor(index) or self.from_cores(index) or self.from_host(index)
            if shape is not None:
                self.cores[index] = self.draw_core(index, shape)
        ends = [core.index for core in self.cores.values() if not core.destinations]
        self.cores |= {index: replace(self.cores[index], monitor=True) for index in ends}
        outputs: dict[Any, list[int]] = {}
        for index in ends:  # those of one size are one output, or several
            shape = self.cores[index].output_shape
            outputs.setdefault(shape[1:] if self.coin() else (index,), []).append(index)
        readouts = []
        for number, of in enumerate(outputs.values()):
            first = 0
            for index in of:
                readouts.append(Readout(index, first, 1, number))
                first += self.cores[index].output_shape[0]
        cores = tuple(self.cores.values())
        monitors = tuple(Monitor(f"{core.name}_neurons", core.index) for core in cores if core.monitor)
        order = [int(i) for i in self.rng.permutation(len(readouts))]
        return Config(
            self.chip, cores, tuple(self.routes), tuple(readouts[i] for i in order), tuple(self.shapes), self.sensor,
            monitors,
        )  # fmt: skip

    def draw_sensor(self) -> Sensor:
        pooling = (pick(self.rng, *self.chip.poolings), pick(self.rng, *self.chip.poolings))
        origin, size = [0, 0], [PIXELS // p for p in pooling]
        for axis in range(2):
            if pooling[axis] == 1 and self.coin(0.7):
                size[axis] = pick(self.rng, 1, 8, 64, 127)
                origin[axis] = pick(self.rng, 0, 1, PIXELS - size[axis])
        on, mirror = self.coin(0.8), (self.coin(0.3), self.coin(0.3))
        turned = size[0] == size[1] and self.coin(0.3)
        return Sensor(
            pooling, (origin[0], origin[1]), (size[0], size[1]), self.coin(), on, not on or self.coin(), mirror, turned
        )

    def from_sensor(self, index: int) -> Shape | None:
        if self.sensor is None or (self.routes and (len(self.routes) > 1 or self.coin(0.8))):
            return None
        self.shapes = [self.sensor.shape]
        self.routes.append(InputRoute(index, self.sensor.shape))
        return self.sensor.shape

    def from_host(self, index: int) -> Shape | None:
        """One or two ways of one or two inputs, side by side in the channels."""
        if self.sensor is not None:
            return None
        h, w = (int(pick(self.rng, 1, 2, 3, 5, 8, 16, *((31, 64, 65, 128) if not self.gentle else ()))) for _ in "yx")
        h = PIXELS + 1 if self.spend("input size") else h
        channels = 0
        for _ in range(pick(self.rng, 1, 1, 2)):
            pooling = pick(self.rng, 1, 1, 2, 3)
            c = int(self.rng.integers(1, 4))
            if channels == 0 and not self.gentle and self.spend("features in"):
                c, h, w = 1025, min(h, 2), min(w, 2)
            rest = [int(self.rng.integers(pooling)) if self.coin(0.3) else 0 for _ in "yx"]
            shape = (c, h * pooling + rest[0], w * pooling + rest[1])
            number = len(self.shapes)
            same = [i for i, has in enumerate(self.shapes) if prod(has) == prod(shape)]
            if same and self.coin():
                number = same[0]
            else:
                less = int(self.rng.integers(prod(shape))) if self.coin(0.2) else 0
                self.shapes.append(shape if not less else (prod(shape) - less,))
            self.routes.append(InputRoute(index, shape, pooling, channels, number))
            channels += c
        return channels, h, w

    def from_cores(self, index: int) -> Shape | None:
        """From some of the cores that have a destination left, whose pooled maps are of one size."""
        if self.coin(0.15) and self.sensor is None:
            return None
        ways = []
        for core in self.cores.values():
            for _ in range(self.chip.destinations - len(core.destinations)):
                ways += [(core.index, p) for p in self.chip.poolings if p <= min(core.output_shape[1:])]
        if not ways:
            return None
        number = self.beyond.removeprefix("pooling ") if self.beyond.startswith("pooling") else ""
        first, pooling = ways[int(self.rng.integers(len(ways)))]
        if number and int(number) <= min(self.cores[first].output_shape[1:]) and self.spend(f"pooling {number}"):
            pooling, ways = int(number), []
        size = self.pooled(first, pooling)
        sources, channels = [(first, pooling)], self.cores[first].output_shape[0]
        mates = [way for way in ways if self.pooled(*way) == size]
        if mates:
            mates.remove((first, pooling))
        for i in self.rng.permutation(len(mates)):
            source, by = mates[int(i)]
            free = self.chip.destinations - len(self.cores[source].destinations)
            fits = channels + self.cores[source].output_shape[0] <= 1024
            if fits and sum(taken == source for taken, _ in sources) < free and self.coin(0.4):
                sources.append((source, by))
                channels += self.cores[source].output_shape[0]
        adds = self.chip.adds or (len(sources) > 1 and self.spend("overlap"))
        shift = 0
        top = 0
        for i in self.rng.permutation(len(sources)):
            source, by = sources[int(i)]
            core = self.cores[source]
            if adds and shift and (self.coin(0.6) or not self.chip.adds):
                shift = int(self.rng.integers(shift))
            self.cores[source] = replace(core, destinations=(*core.destinations, Destination(index, by, shift)))
            shift += core.output_shape[0]
            top = max(top, shift)
        return (top, *size)

    def pooled(self, index: int, pooling: int) -> tuple[int, int]:
        h, w = self.cores[index].output_shape[1:]
        return (h // pooling, w // pooling) if pooling else (h, w)

    def draw_core(self, index: int, shape: Shape) -> CoreConfig:
        rng, chip, (c, h, w) = self.rng, self.chip, shape
        has = chip.cores[index]
        for attempt in range(60):
            last = attempt == 59
            kernel = 1 if last else int(pick(rng, 1, 1, 2, 3, 3, 16, min(h, w, 16), rng.integers(1, 17)))
            padding = [0, 0] if last else [int(pick(rng, 0, 0, 1, kernel // 2 % 8, 7, rng.integers(8))) for _ in "yx"]
            stride = [2 if n > 64 else 1 for n in (h, w)] if last else [int(pick(rng, 1, 1, 1, 2, 4, 8)) for _ in "yx"]
            if not last and self.beyond == "kernel":
                kernel = 17
            if not last and self.beyond == "stride":
                stride[pick(rng, 0, 1)] = pick(rng, 3, 5, 16)
            if not last and self.beyond == "padding":
                padding[pick(rng, 0, 1)] = 8
            size = [(n + 2 * p - kernel) // s + 1 for n, p, s in zip((h, w), padding, stride, strict=True)]
            if min(n + 2 * p for n, p in zip((h, w), padding, strict=True)) < kernel:
                continue
            if max(size) > (65 if self.beyond == "output size" else 64):
                continue
            most_kernel = (has.kernel_words >> log2_ceil(kernel * kernel)) // c
            most_neurons = has.neuron_words >> (log2_ceil(size[0]) + log2_ceil(size[1]))
            most = min(1 << max(most_kernel.bit_length() - 1, 0), most_neurons, 1024) if most_kernel else 0
            if most < 1 and not last:
                continue
            features = min(int(pick(rng, 1, 2, 3, 4, 5, 8)), max(most, 1))
            large = not self.gentle and self.coin(0.01)
            if large:
                features = max(most, 1)
            if self.beyond == "features out" and has.bias_words:
                features = 1025
            if self.beyond == "kernel memory" and 0 < most_kernel < 512:
                features = (1 << most_kernel.bit_length() - 1) + 1
            if self.beyond == "neuron memory" and most_neurons < 1024:
                features = most_neurons + 1
            break
        reached = {
            "kernel": kernel == 17, "stride": bool({3, 5, 16} & set(stride)), "padding": 8 in padding,
            "output size": 65 in size, "features out": features == 1025,
            "kernel memory": features > 1 << max(most_kernel.bit_length() - 1, 0),
            "neuron memory": features > most_neurons,
        }  # fmt: skip
        if reached.get(self.beyond):
            self.beyond = ""
        output = (features, size[0], size[1])
        thresholds = (int(pick(rng, 1, 2, 100, 2**15 - 1)), -int(pick(rng, 1, 100, 2**15)))
        if self.gentle:
            thresholds = (int(rng.integers(1, 300)), -int(rng.integers(1, 400)))
        high = pick(rng, 0, 2**15, 70000, -1) if self.spend("threshold_high") else thresholds[0]
        low = pick(rng, 0, 1, -(2**15) - 1) if self.spend("threshold_low") else thresholds[1]
        biases = rng.integers(-(2**15), 2**15, features).astype(np.int16)
        if self.gentle:
            biases = rng.integers(-20, 21, features).astype(np.int16)
        weights = rng.integers(-128, 128, (features, c, kernel, kernel)).astype(np.int8)
        weights[0, :, 0, 0] = pick(rng, -128, -1, 1, 127)  # no input channel without weights
        return CoreConfig(
            index=index,
            name=f"layer{index}",
            input_shape=shape,
            output_shape=output,
            kernel=kernel,
            stride=(stride[0], stride[1]),
            padding=(padding[0], padding[1]),
            weights=weights,
            threshold_high=high,
            threshold_low=low,
            biases=biases if has.bias_words >= features and biases.any() and self.coin() else None,
            initial=self.draw_initial(output, high),
            return_to_zero=self.coin(),
            monitor=self.coin(0.3),
        )

    def draw_initial(self, shape: Shape, high: int) -> Any:
        kind = pick(self.rng, "zero", "one", "channel", self.initial)
        if kind == "zero":
            return None
        low, top = (-(2**15), 2**15) if not self.gentle else (-high, high)
        drawn = self.rng.integers(low, top, {"one": (1, 1, 1), "channel": (shape[0], 1, 1)}.get(kind, shape))
        whole = np.broadcast_to(drawn, shape).astype(np.int16)
        return whole if whole.any() else None


# What we refuse and samna 0.7.1.0 takes, as docs/dynapcnn_refusals.md lists it: by `kind`.
OURS_ALONE = (
    "threshold_high 0", "threshold_low 0", "numbers of too many bits", "all weights zero", "pooling 8",
    "destination nowhere", "cycle", "core without sources", "core without destinations", "sensor without polarities",
    "sensor pools and cuts", "sensor mirrors a rectangle", "ways of the input", "readouts and monitors",
)  # fmt: skip


def kind(problem: Problem) -> str:
    """What a problem is about, in the words of OURS_ALONE where it is there."""
    item, found = problem.item, problem.found
    if problem.core_name.startswith("input ") or item in {
        "inputs", "number of the input", "way of the sensor", "input shapes",
    }:  # fmt: skip
        return "ways of the input"
    if item.startswith(("readout", "output", "monitor", "sizes of the maps", "channels between")):
        return "readouts and monitors" if not item.startswith("output ") else item
    if item in {"threshold_high", "threshold_low"} and found == 0:
        return f"{item} 0"
    if item in {"threshold_high", "biases", "initial state"} or (item == "weights" and found != "all zero"):
        return "numbers of too many bits"
    if item == "sources" and found == "two" and "Overlap" not in problem.text:
        return "ways of the input"  # the host's, in the channels of somebody else's
    if item == "channels fed" and "cores or pixels" not in problem.text:
        return "ways of the input"
    names = {
        "weights": "all weights zero",
        "destination": "destination nowhere",
        "connections": "cycle",
        "destinations": "core without destinations",
        "sources": "core without sources" if found == "none" else "channels that meet",
        "sensor polarities": "sensor without polarities",
        "sensor cut x": "sensor pools and cuts",
        "sensor cut y": "sensor pools and cuts",
        "sensor size with a diagonal mirror": "sensor mirrors a rectangle",
        "pooling": f"pooling {found}",
    }
    return names.get(item, item)


def build(chip: Chip, rng: Rng, beyond: str = "", initial: str = "any", gentle: bool = False) -> Config:
    """A configuration, and if `beyond` names one of LIMITS it is passed."""
    for _ in range(200):
        builder = Builder(chip, rng, beyond, initial, gentle)
        config = builder.build()
        if not builder.beyond:
            break
    return config


# ------------------------------------------------------------------------------------------------ one thing that is off


def _other(config: Config, core: CoreConfig, **changes: Any) -> Config:
    new = replace(core, **changes)
    return replace(config, cores=tuple(new if each is core else each for each in config.cores))


def _nudged(pair: tuple[int, ...], rng: Rng, *by: int) -> tuple[int, ...]:
    at = int(rng.integers(len(pair)))
    return tuple(n + pick(rng, *by) if i == at else n for i, n in enumerate(pair))


def _wire(config: Config, core: CoreConfig, rng: Rng, to: int) -> Config:
    """One more destination, or the last one changed; for a core of one's own or an earlier one, that makes a cycle."""
    kept = core.destinations[: config.chip.destinations - 1]
    sizes = {other.index: other.input_shape for other in config.cores}
    pooling = 1
    if to in sizes and sizes[to][1]:
        fits = [p for p in config.chip.poolings if core.output_shape[1] // p == sizes[to][1]]
        pooling = fits[0] if fits else 1
    return _other(config, core, destinations=(*kept, Destination(to, pooling, pick(rng, 0, 0, 0, 1))))


def _unused(config: Config, rng: Rng) -> int:
    free = sorted(set(range(len(config.chip.cores))) - {core.index for core in config.cores})
    return int(pick(rng, *free)) if free else 9


def _bent(config: Config, core: CoreConfig, rng: Rng, **changes: Any) -> Config:
    """One of a core's destinations changed."""
    if not core.destinations:
        return config
    at = int(rng.integers(len(core.destinations)))
    new = [replace(d, **changes) if i == at else d for i, d in enumerate(core.destinations)]
    return _other(config, core, destinations=tuple(new))


def _shifted(config: Config, core: CoreConfig, rng: Rng) -> Config:
    if not core.destinations:
        return config
    shift = core.destinations[0].feature_shift
    return _bent(config, core, rng, feature_shift=max(shift + pick(rng, -1, 1, core.output_shape[0], 1024), 0))


def _self_loop(config: Config, core: CoreConfig, rng: Rng) -> Config:
    """A core that feeds itself, and nothing else does: samna finds no fault with its channels."""
    shape = (core.output_shape[0], *core.output_shape[1:])
    weights = np.ones((shape[0], shape[0], 1, 1), np.int8)
    looped = replace(
        core, input_shape=shape, kernel=1, stride=(1, 1), padding=(0, 0), weights=weights,
        destinations=(Destination(core.index),),
    )  # fmt: skip
    others = tuple(replace(c, destinations=(), monitor=True) for c in config.cores if c is not core)
    return replace(config, cores=(looped, *others))


def _cycle(config: Config, core: CoreConfig, rng: Rng) -> Config:
    """Two cores that feed each other and fit."""
    if len(config.cores) < 2:
        return config
    other = next(each for each in config.cores if each is not core)
    shape = (2, 4, 3)
    both = [
        replace(
            one, input_shape=shape, output_shape=shape, kernel=1, stride=(1, 1), padding=(0, 0), biases=None,
            weights=np.ones((2, 2, 1, 1), np.int8), initial=None, destinations=(Destination(to.index),), monitor=True,
        )
        for one, to in ((core, other), (other, core))
    ]  # fmt: skip
    return replace(config, cores=tuple(both))


def _sensor_off(config: Config, core: CoreConfig, rng: Rng) -> Config:
    """The pixels changed, and the first core that they feed with them or not."""
    if config.sensor is None:
        return config
    sensor, at = config.sensor, int(rng.integers(2))
    pairs = {
        "pooling": _nudged(sensor.pooling, rng, 1, 2, 7),
        "origin": _nudged(sensor.origin, rng, -1, 1, 128),
        "size": _nudged(sensor.size, rng, -1, 1),
    }
    changes: dict[str, Any] = pick(
        rng, *({name: pair} for name, pair in pairs.items()), {"on": False, "off": False},
        {"merge": not sensor.merge}, {"mirror_diagonal": True}, {"size": tuple(n // 2 or 1 for n in sensor.size)},
        {"size": (sensor.size[0], 1)}, {"pooling": (2, 2), "origin": (3, 3), "size": (4 + at, 4)},
    )  # fmt: skip
    changed = replace(sensor, **changes)
    if rng.random() < 0.3:
        return replace(config, sensor=changed)
    routes = tuple(replace(route, shape=changed.shape) for route in config.inputs)
    found = replace(config, sensor=changed, inputs=routes, input_shapes=(changed.shape,))
    for route in routes:
        target = next(each for each in found.cores if each.index == route.core)
        c, h, w = changed.shape
        k = target.kernel
        size = [(n + 2 * p - k) // s + 1 for n, p, s in zip((h, w), target.padding, target.stride, strict=True)]
        if min(size) < 1:
            continue
        output = (target.output_shape[0], *size)
        found = _other(
            found, target, input_shape=changed.shape, output_shape=output, initial=None, destinations=(), monitor=True,
            weights=np.ones((output[0], c, k, k), np.int8),
        )  # fmt: skip
    return found


def _host(config: Config, core: CoreConfig, rng: Rng) -> Config:
    """What samna does not see: the ways of the host."""
    if not config.inputs:
        return config
    route = config.inputs[int(rng.integers(len(config.inputs)))]
    changes: dict[str, Any] = pick(
        rng, {"core": 9}, {"core": core.index}, {"shape": _nudged(route.shape, rng, -1, 1)}, {"pooling": 0},
        {"pooling": route.pooling + 1}, {"feature_shift": route.feature_shift + 1}, {"feature_shift": -1}, {"index": 7},
    )  # fmt: skip
    routes = [replace(each, **changes) if each is route else each for each in config.inputs]
    return replace(config, inputs=pick(rng, tuple(routes), tuple(routes), tuple(routes), (), (*config.inputs, route)))


def _read(config: Config, core: CoreConfig, rng: Rng) -> Config:
    """What samna does not see: the readouts and monitors."""
    if not config.readouts:
        return config
    readout, after = config.readouts[0], int(rng.integers(1, 9))
    readouts = pick(
        rng, (), config.readouts[1:], (*config.readouts, readout), (replace(readout, core=9), *config.readouts[1:]),
        (replace(readout, first=readout.first + 1), *config.readouts[1:]), (replace(readout, step=0),),
        (replace(readout, step=4, first=0),), tuple(replace(each, output=each.output + 1) for each in config.readouts),
        (*config.readouts, Readout(core.index, output=9)),
        (*config.readouts, Readout(core.index, after, 1, readout.output)),
    )  # fmt: skip
    monitors = pick(rng, config.monitors, (*config.monitors, Monitor("x", core.index, pick(rng, 0, -1))))
    return replace(config, readouts=readouts, monitors=monitors)


BROKEN: dict[str, Callable[[Config, CoreConfig, Rng], Config]] = {
    "input shape": lambda o, c, r: _other(o, c, input_shape=_nudged(c.input_shape, r, -1, 1)),
    "output shape": lambda o, c, r: _other(o, c, output_shape=_nudged(c.output_shape, r, -1, 1)),
    "kernel": lambda o, c, r: _other(o, c, kernel=max(c.kernel + pick(r, -1, 1), 0)),
    "stride": lambda o, c, r: _other(o, c, stride=_nudged(c.stride, r, 1, -1)),
    "padding": lambda o, c, r: _other(o, c, padding=_nudged(c.padding, r, 1)),
    "no weights": lambda o, c, r: _other(o, c, weights=np.zeros_like(c.weights)),
    "large weights": lambda o, c, r: _other(o, c, weights=c.weights.astype(int) + pick(r, 128, 200, -256)),
    "large biases": lambda o, c, r: _other(o, c, biases=np.full(c.output_shape[0], pick(r, 2**15, -40000, 70000))),
    "large initial": lambda o, c, r: _other(o, c, initial=np.full(c.output_shape, pick(r, 2**15, -(2**15) - 1))),
    "weights of another shape": lambda o, c, r: _other(
        o, c, weights=pick(r, c.weights[:, :, :1], np.concatenate([c.weights, c.weights[:1]]), c.weights[:, :0])
    ),
    "biases of another shape": lambda o, c, r: _other(o, c, biases=np.ones(c.output_shape[0] + pick(r, -1, 1), int)),
    "initial of another shape": lambda o, c, r: _other(
        o, c, initial=np.ones(_nudged(c.output_shape, r, 1), int)
    ),
    "to a core that is not used": lambda o, c, r: _wire(o, c, r, _unused(o, r)),
    "to any core": lambda o, c, r: _wire(o, c, r, int(pick(r, *(each.index for each in o.cores)))),
    "to no core": lambda o, c, r: _wire(o, c, r, int(pick(r, 9, 10, 11, 12, 13, 15, 16))),
    "self loop": _self_loop,
    "cycle": _cycle,
    "shift": _shifted,
    "pooling": lambda o, c, r: _bent(o, c, r, pooling=pick(r, 0, 1, 2, 3, 4, 8, 16)),
    "no destinations": lambda o, c, r: _other(o, c, destinations=(), monitor=pick(r, True, False)),
    "no monitor": lambda o, c, r: _other(o, c, monitor=False),
    "a core is missing": lambda o, c, r: replace(o, cores=tuple(each for each in o.cores if each is not c) or o.cores),
    "sensor": _sensor_off,
    "host": _host,
    "readouts": _read,
}  # fmt: skip


def broken(config: Config, rng: Rng, what: str = "") -> tuple[Config, str]:
    """The configuration with one thing changed, and what."""
    core = config.cores[int(rng.integers(len(config.cores)))]
    what = what or str(pick(rng, *BROKEN))
    return BROKEN[what](config, core, rng), what


def corners(chip: Chip, count: int, seed: int) -> Iterator[tuple[Config, str]]:
    """As many configurations, and what was done to each: a third legal, a third past one limit, a third broken."""
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        if i % 3 == 0:
            yield build(chip, rng), "legal"
        elif i % 3 == 1:
            limit = LIMITS[i // 3 % len(LIMITS)]
            yield build(chip, rng, limit), f"beyond {limit}"
        else:
            first = list(BROKEN)[i // 3 % len(BROKEN)]
            config = build(chip, rng)
            while first == "sensor" and config.sensor is None:
                config = build(chip, rng)
            config, what = broken(config, rng, first)
            if rng.random() < 0.4:
                config, second = broken(config, rng)
                what = f"{what}, {second}"
            yield config, what
