"""The event-driven simulation of a DYNAP-CNN chip against a slow one, written by itself: recursion and a queue."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from chipsim import run_chip
from hypothesis import given, settings
from hypothesis import strategies as st

from snncc import InputError
from snncc.engine.compare import differences, same_class
from snncc.targets.dynapcnn import events, run
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.config import (
    Config,
    ConfigError,
    CoreConfig,
    Destination,
    HostBias,
    InputRoute,
    Readout,
    problems,
)
from snncc.targets.dynapcnn.events import EventRun, simulate, simulate_events, to_counts

Array = np.ndarray[Any, Any]
Place = tuple[int, int, int]
DEEP: events.Order = "depth-first"
BROAD: events.Order = "breadth-first"
CHIP = CHIPS["speck2f"]  # it takes additions too


def core(index: int, shape: Place, weights: Array, **options: Any) -> CoreConfig:
    """A core that the host may feed and that is monitored, where `options` say nothing else."""
    stride, padding, k = options.get("stride", (1, 1)), options.get("padding", (0, 0)), weights.shape[2]
    size = [(n + 2 * p - k) // s + 1 for n, p, s in zip(shape[1:], padding, stride, strict=True)]
    defaults: dict[str, Any] = {"stride": stride, "padding": padding, "threshold_high": 100, "threshold_low": -100}
    return CoreConfig(
        index=index,
        name=f"core{index}",
        input_shape=shape,
        output_shape=(len(weights), size[0], size[1]),
        kernel=k,
        weights=weights.astype(np.int8),
        **{"monitor": True, **defaults, **options},
    )


def chain(*cores: CoreConfig, inputs: tuple[int, ...] | None = None) -> Config:
    """Cores, each of which feeds those that its destinations name; the host feeds the first, the last is read."""
    shape = cores[0].input_shape
    return Config(CHIP, cores, (InputRoute(cores[0].index, shape),), (Readout(cores[-1].index),), (inputs or shape,))


# --- the slow one ---------------------------------------------------------------------------------------------------


class Slow:
    """One sample on a chip, in plain Python, straight from the rules."""

    def __init__(self, config: Config) -> None:
        self.config, self.cores = config, {c.index: c for c in config.cores}
        self.v = {
            (c.index, *map(int, place)): 0 if c.initial is None else int(c.initial[place])
            for c in config.cores
            for place in np.ndindex(*c.output_shape)
        }
        self.seen = {c.index: [v for (index, *_), v in self.v.items() if index == c.index] for c in config.cores}
        self.events, self.synops, self.dropped = Counter[int](), Counter[int](), 0
        self.spikes: list[tuple[int, int, Place]] = []  # step, core, neuron
        self.step = 0

    def run(self, sent: list[list[tuple[int, int]]], depth_first: bool) -> Slow:
        """`sent`: of each time step, the spikes of the host, (input, place in C order)."""
        for self.step, spikes in enumerate(sent):
            self.tick()
            host = [event for index, place in spikes for event in self.host(index, place)]
            if depth_first:
                for event in host:
                    self.deep(*event)
                continue
            queue = deque(host)
            while queue:
                index, place = queue.popleft()
                for neuron in list(self.update(index, place)):
                    queue.extend(self.sent(index, neuron))
        return self

    def deep(self, index: int, place: Place) -> None:
        for neuron in self.update(index, place):  # which goes on with the next neuron after all that follows from one
            for event in self.sent(index, neuron):
                self.deep(*event)

    def tick(self) -> None:
        for (index, f, y, x), v in self.v.items():
            biases = self.cores[index].biases
            if biases is not None:
                self.see(index, v + int(biases[f]))
                self.v[index, f, y, x] = max(v + int(biases[f]), self.cores[index].threshold_low)

    def see(self, index: int, v: int) -> None:
        self.seen[index].append(v)

    def update(self, index: int, place: Place) -> Iterator[Place]:
        """The neurons that fire, one after the other."""
        c = self.cores[index]
        self.events[index] += 1
        features, height, width = c.output_shape
        for oy in range(height):
            for ox in range(width):
                ky = place[1] + c.padding[0] - oy * c.stride[0]
                kx = place[2] + c.padding[1] - ox * c.stride[1]
                if not (0 <= ky < c.kernel and 0 <= kx < c.kernel):
                    continue
                for f in range(features):
                    v = self.v[index, f, oy, ox] + int(c.weights[f, place[0], ky, kx])
                    self.synops[index] += 1
                    self.see(index, v)
                    fires = v >= c.threshold_high
                    if fires:
                        v = 0 if c.return_to_zero else v - c.threshold_high
                    self.v[index, f, oy, ox] = max(v, c.threshold_low)
                    if fires:
                        self.spikes.append((self.step, index, (f, oy, ox)))
                        yield f, oy, ox

    def sent(self, index: int, neuron: Place) -> Iterator[tuple[int, Place]]:
        for to in self.cores[index].destinations:
            yield from self.arrive(to.layer, to.pooling, to.feature_shift, neuron)

    def host(self, index: int, place: int) -> Iterator[tuple[int, Place]]:
        if index < 0:
            events = [
                (b.core, (channel, y, x))
                for b in self.config.host_biases
                for channel in range(b.first, b.first + b.count)
                for y in b.rows
                for x in b.columns
            ]
            yield from events[place : place + 1]
        for route in self.config.inputs:
            if route.index == index:
                at = np.unravel_index(place, route.shape)
                yield from self.arrive(route.core, route.pooling, route.feature_shift, tuple(map(int, at)))  # type: ignore[arg-type]

    def arrive(self, index: int, pooling: int, shift: int, place: Place) -> Iterator[tuple[int, Place]]:
        y, x = place[1] // pooling, place[2] // pooling
        if y < self.cores[index].input_shape[1] and x < self.cores[index].input_shape[2]:
            yield index, (place[0] + shift, y, x)
        else:
            self.dropped += 1


def turn(shape: tuple[int, ...]) -> list[int]:
    """The places of an input in the order in which the host sends them: bit by bit of its row and column, from the
    lowest on; then channel by channel."""

    def key(place: int) -> tuple[list[tuple[int, int]], int]:
        channel, y, x = np.unravel_index(place, shape if len(shape) == 3 else (1, 1, *shape))
        return [(int(y) >> bit & 1, int(x) >> bit & 1) for bit in range(11)], int(channel)

    return sorted(range(int(np.prod(shape))), key=key)


def spread(xs: tuple[Array, ...], sample: int, biases: int = 0) -> list[list[tuple[int, int]]]:
    """Counts as the host's spikes, step by step, after its biases."""
    turns = [turn(x.shape[2:]) for x in xs]
    return [
        [(-1, place) for place in range(biases)]
        + [
            (i, place)
            for i, x in enumerate(xs)
            for place in turns[i]
            for _ in range(int(x[step, sample].ravel()[place]))
        ]
        for step in range(len(xs[0]))
    ]


def assert_same(config: Config, xs: tuple[Array, ...], run: EventRun, depth_first: bool) -> None:
    steps, samples = xs[0].shape[:2]
    biases = sum(b.count * len(b.rows) * len(b.columns) for b in config.host_biases)
    slow = [Slow(config).run(spread(xs, sample, biases), depth_first) for sample in range(samples)]
    for c in config.cores:
        expected = np.zeros((steps, samples, *c.output_shape), int)
        for sample, one in enumerate(slow):
            for step, index, neuron in one.spikes:
                if index == c.index:
                    expected[(step, sample, *neuron)] += 1
        np.testing.assert_array_equal(run.spikes[c.name], expected)
        np.testing.assert_array_equal(run.counts[c.name], expected.sum(0))
        np.testing.assert_array_equal(run.events[c.name], [one.events[c.index] for one in slow])
        np.testing.assert_array_equal(run.synops[c.name], [one.synops[c.index] for one in slow])
        seen = [v for one in slow for v in one.seen[c.index]]
        assert (run.lowest[c.name], run.highest[c.name]) == (min(seen), max(seen))
    lost = sum(run.dropped.values(), np.zeros(samples, int))
    np.testing.assert_array_equal(lost, [one.dropped for one in slow])
    for output, shape in enumerate(config.output_shapes):
        assert run.outputs[output].shape == (samples, *shape)
        total = sum(run.counts[f"core{r.core}"].sum() for r in config.readouts if r.output == output)
        assert run.outputs[output].sum() == total


# --- generated ------------------------------------------------------------------------------------------------------


class Draft:
    """A network that grows core by core: branches, concatenations, additions, several inputs and outputs."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.cores, self.routes = rng, list[CoreConfig](), list[InputRoute]()
        self.inputs = [
            (int(rng.integers(1, 4)), int(rng.integers(3, 9)), int(rng.integers(3, 9)))
            for _ in range(rng.integers(1, 3))
        ]
        for index in range(int(rng.integers(1, 7))):
            self.grow(index)

    def pick(self, *options: int) -> int:
        return int(self.rng.choice(options))

    def free(self) -> list[tuple[str, int, Place]]:
        """What a core may read: inputs, and cores with a destination left."""
        inputs = [("input", i, shape) for i, shape in enumerate(self.inputs)]
        return inputs + [("core", c.index, c.output_shape) for c in self.cores if len(c.destinations) < 2]

    def grow(self, index: int) -> None:
        rng, sources = self.rng, self.free()
        unread = [s for s in sources if s[0] == "core" and not self.cores[s[1]].destinations]
        first = unread[-1] if unread and rng.random() < 0.7 else sources[int(rng.integers(len(sources)))]
        pooling = self.pick(*(p for p in (1, 1, 1, 2, 2, 4) if p <= min(first[2][1:])))
        size = (first[2][1] // pooling, first[2][2] // pooling)
        joined = [(first, pooling, 0)]
        channels = first[2][0]
        others = [
            (s, p)
            for s in sources
            for p in (1, 2, 4)
            if (s[2][1] // p, s[2][2] // p) == size and (s[:2] != first[:2] or s[0] == "input" or not unread)
        ]
        if others and rng.random() < 0.6:
            other, p = others[int(rng.integers(len(others)))]
            if other[0] == "input" or other[:2] != first[:2] or not self.cores[other[1]].destinations:
                shift = channels if rng.random() < 0.6 else max(0, channels - other[2][0])
                joined.append((other, p, shift))
                channels = max(channels, shift + other[2][0])
        for (kind, number, shape), p, shift in joined:
            if kind == "input":
                self.routes.append(InputRoute(index, shape, p, shift, number))
            else:
                c = self.cores[number]
                self.cores[number] = replace(c, destinations=(*c.destinations, Destination(index, p, shift)))
        self.cores.append(self.core(index, (channels, *size)))

    def core(self, index: int, shape: Place) -> CoreConfig:
        rng, k = self.rng, self.pick(1, 2, 3, 3, 4, 5)
        least = max(0, -(-(k - min(shape[1:])) // 2))
        padding = (max(least, self.pick(0, 0, 1, 2)), max(least, self.pick(0, 0, 1, 2)))
        stride = (self.pick(1, 1, 1, 2, 4), self.pick(1, 1, 1, 2, 4))
        made = core(
            index,
            shape,
            rng.integers(-40, 60, (self.pick(1, 2, 3, 5), shape[0], k, k)),
            stride=stride,
            padding=padding,
            threshold_high=self.pick(40, 60, 100, 300),
            threshold_low=-self.pick(1, 5, 50, 1000),
            return_to_zero=bool(rng.random() < 0.3),
        )
        if rng.random() < 0.4:
            made = replace(made, biases=rng.integers(-30, 30, made.output_shape[0]).astype(np.int16))
        if rng.random() < 0.3:
            made = replace(made, initial=rng.integers(-20, 120, made.output_shape).astype(np.int16))
        return made

    def config(self) -> Config:
        ends = [c.index for c in self.cores if not c.destinations]
        readouts = tuple(Readout(index, output=i) for i, index in enumerate(ends))
        return Config(CHIP, tuple(self.cores), tuple(self.routes), readouts, tuple(self.inputs))


def drawn(seed: int) -> tuple[Config, tuple[Array, ...]]:
    rng = np.random.default_rng(seed)
    config = Draft(rng).config()
    xs = tuple(rng.poisson(rng.choice([0.1, 0.5, 1.5]), (3, 2, *shape)) for shape in config.input_shapes)
    return config, xs


@settings(max_examples=150, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_generated_chips_equal_the_slow_simulation(seed: int, depth_first: bool) -> None:
    config, xs = drawn(seed)
    assert problems(config) == []
    order = DEEP if depth_first else BROAD
    assert_same(config, xs, simulate(config, xs, order, [c.name for c in config.cores]), depth_first)


@settings(max_examples=60, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_the_order_is_no_choice_where_all_ways_are_equally_long(seed: int) -> None:
    """And running several samples at a time is none anywhere."""
    config, xs = drawn(seed)
    level: dict[int, set[int]] = {c.index: set() for c in config.cores}
    for route in config.inputs:
        level[route.core].add(0)
    for c in config.cores:
        for to in c.destinations:
            level[to.layer] |= {n + 1 for n in level[c.index]}
    deep, broad, single = (
        simulate(config, xs, order, [c.name for c in config.cores], threads)
        for order, threads in ((DEEP, 2), (BROAD, 2), (DEEP, 1))
    )
    for name in deep.spikes:
        np.testing.assert_array_equal(deep.spikes[name], single.spikes[name])
        if all(len(lengths) == 1 for lengths in level.values()):
            np.testing.assert_array_equal(deep.spikes[name], broad.spikes[name])


@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 28, 28), (3, 7, 1), (1, 1, 1), (37,)])
def test_the_runner_sends_in_the_same_order(shape: tuple[int, ...]) -> None:
    """The emitted run.py stands alone, so it has the rule once more."""
    expected = turn(shape)
    assert events.host_order(shape).tolist() == run.host_order(np, shape).tolist() == expected


def test_biases_that_the_host_gives() -> None:
    """Two channels, each with an event for every window, through a kernel of twos and threes."""
    rng = np.random.default_rng(3)
    weights = rng.integers(-9, 9, (3, 4, 3, 3))
    weights[:, 2], weights[:, 3] = np.array([2, -3, 0])[:, None, None], np.array([3, -3, 9])[:, None, None]
    given = {"inputs": (InputRoute(0, (2, 6, 6)),), "input_shapes": ((2, 6, 6),)}
    config = replace(chain(core(0, (4, 6, 6), weights)), **given, host_biases=(HostBias(0, 2, 2, (2, 5), (2, 5)),))
    assert problems(config) == []
    xs = (rng.integers(0, 2, (3, 2, 2, 6, 6)),)
    for deep in (True, False):
        assert_same(config, xs, simulate(config, xs, DEEP if deep else BROAD, ["core0"]), deep)
    assert int(simulate(config, (0 * xs[0],)).events["core0"][0]) == 3 * 2 * 4


def test_what_is_generated() -> None:
    """All that the tests above are for does occur."""
    found = Counter[str]()
    for seed in range(150):
        config, xs = drawn(seed)
        deep, broad = (simulate(config, xs, order) for order in (DEEP, BROAD))
        fed = [(d.layer, d.feature_shift) for c in config.cores for d in c.destinations]
        found["orders differ"] += any((deep.counts[n] != broad.counts[n]).any() for n in deep.counts)
        found["dropped"] += any(edge.startswith("core") for edge in deep.dropped)
        found["dropped of the host"] += "host" in deep.dropped
        found["two destinations"] += any(len(c.destinations) == 2 for c in config.cores)
        found["addition"] += any(n > 1 for n in Counter(fed).values())
        found["concatenation"] += any(shift for _, shift in fed)
        found["two inputs"] += len(config.input_shapes) == 2
        found["two outputs"] += len(config.readouts) == 2
        found["deep"] += len(config.cores) > 3
        found["fires"] += all(count.any() for count in deep.outputs)
        found["bias"] += any(c.leaks for c in config.cores)
        found["zero"] += any(c.return_to_zero for c in config.cores)
        found["stride"] += any(max(c.stride) > 1 for c in config.cores)
        found["padding"] += any(max(c.padding) > 0 for c in config.cores)
    assert len(found) == 14 and min(found.values()) >= 5, found


# --- by hand --------------------------------------------------------------------------------------------------------


def weights(*values: int, channels: int = 1) -> Array:
    """For 1 x 1 kernels, [out][in]."""
    return np.array(values).reshape(-1, channels, 1, 1)


def still(config: Config, timesteps: int, samples: int = 1, value: int = 0) -> tuple[Array, ...]:
    return tuple(np.full((timesteps, samples, *shape), value) for shape in config.input_shapes)


@pytest.mark.parametrize(("ticks", "potential"), [(2, 101), (3, 88), (4, 75), (5, 62), (6, 49)])
def test_leak(ticks: int, potential: int) -> None:
    """sinabs, `leak_neuron.ipynb`: w = 1, b = -0.1, thresholds 1 and -1 and v = 1 are 127, -13, 127, -127 and 127. At
    the threshold a neuron fires at the next event, not at a tick."""
    thresholds = {"threshold_high": 127, "threshold_low": -127}
    start = {"biases": np.array([-13], np.int16), "initial": np.full((1, 1, 1), 127, np.int16)}
    config = chain(core(0, (1, 1, 1), weights(127), **thresholds, **start))
    xs = still(config, ticks)
    run = simulate(config, xs)
    assert (run.lowest["core0"], run.highest["core0"]) == (potential, 127)
    assert (run.outputs[0].sum(), run.events["core0"].sum(), run.ticked) == (0, 0, {"core0": ticks})
    xs[0][-1] = 1
    assert simulate(config, xs).outputs[0].sum() == 1


def test_the_leak_stops_at_the_floor() -> None:
    config = chain(core(0, (1, 1, 1), weights(1), threshold_low=-20, biases=np.array([-13], np.int16)))
    assert simulate(config, still(config, 5)).lowest["core0"] == -33


@pytest.mark.parametrize(("to_zero", "spikes"), [(False, 2), (True, 1)])
def test_one_spike_an_event(to_zero: bool, spikes: int) -> None:
    """What is left above the threshold is silent until the next event, though its weight be 0."""
    config = chain(core(0, (2, 1, 1), weights(120, 0, channels=2), threshold_high=50, return_to_zero=to_zero))
    xs = still(config, 4)
    xs[0][0, 0, 0] = 1
    assert simulate(config, xs).outputs[0].sum() == 1
    xs[0][1:, 0, 1] = 1
    assert simulate(config, xs).outputs[0].sum() == spikes


def test_the_order_matters_where_a_way_is_longer() -> None:
    """The +1 of the first core, and over the second its -1: one by one, or both +1 before."""
    first = core(0, (1, 1, 1), weights(100), destinations=(Destination(1), Destination(2)))
    second = core(1, (1, 1, 1), weights(100), destinations=(Destination(2, feature_shift=1),))
    third = core(2, (2, 1, 1), weights(1, -1, channels=2), threshold_high=2, threshold_low=-1)
    config = chain(first, second, third)
    xs = still(config, 1, value=2)
    assert [simulate(config, xs, order).outputs[0].sum() for order in (DEEP, BROAD)] == [0, 1]


def test_the_edge_of_a_pooling_is_dropped() -> None:
    """Its row and column are just where the next core's padding is."""
    first = core(0, (1, 5, 5), weights(100), destinations=(Destination(1, pooling=2),))
    config = chain(first, core(1, (1, 2, 2), weights(100), padding=(1, 1)))
    run = simulate(config, still(config, 2, samples=3, value=1))
    assert run.counts["core1"].tolist() == 3 * [[[[0, 0, 0, 0], [0, 8, 8, 0], [0, 8, 8, 0], [0, 0, 0, 0]]]]
    assert {edge: n.tolist() for edge, n in run.dropped.items()} == {"core0 -> core1": [18, 18, 18]}


def test_ways_of_the_host() -> None:
    """A flat input is laid into a larger map, and goes to two cores, to one of them pooled and shifted."""
    cores = (core(0, (2, 2, 2), np.full((1, 2, 2, 2), 100)), core(1, (1, 4, 4), weights(100)))
    pooled = InputRoute(0, (1, 4, 4), pooling=2, feature_shift=1)
    routes = (pooled, InputRoute(0, (1, 2, 2), index=1), InputRoute(1, (1, 4, 4)))
    config = Config(CHIP, cores, routes, (Readout(0), Readout(1, output=1)), ((13,), (1, 2, 2)))
    xs = still(config, 1, value=1)
    xs[0][..., 5] = 3
    first, second = simulate(config, xs).outputs
    assert first.ravel().tolist() == [15 + 4]
    assert second.ravel().tolist() == [1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]


def test_readouts_join_cores_and_skip_channels() -> None:
    cores = (core(0, (1, 1, 1), weights(100, 100)), core(1, (1, 1, 1), weights(50, 0, 100)))
    routes = (InputRoute(0, (1, 1, 1)), InputRoute(1, (1, 1, 1)))
    config = Config(CHIP, cores, routes, (Readout(0), Readout(1, first=2, step=2)), ((1, 1, 1),))
    assert simulate(config, still(config, 4, value=1)).outputs[0].ravel().tolist() == [4, 4, 2, 4]


def test_cores_of_one_name() -> None:
    config = chain(core(0, (1, 1, 1), weights(1), destinations=(Destination(1),)), core(1, (1, 1, 1), weights(1)))
    config = replace(config, cores=tuple(replace(c, name="conv") for c in config.cores))
    assert list(simulate(config, still(config, 1)).counts) == ["conv (core 0)", "conv (core 1)"]


@settings(max_examples=100, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_a_chain_with_one_event_a_neuron_and_step_is_the_step_wise_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cores, shape = list[CoreConfig](), (1, int(rng.integers(3, 12)), int(rng.integers(3, 12)))
    for index in range(3):
        options: dict[str, Any] = {"padding": (int(rng.integers(3)), 0), "stride": (1, int(rng.integers(1, 3)))}
        options |= {"threshold_low": -int(rng.integers(1, 60)), "return_to_zero": bool(rng.integers(2))}
        taps = rng.integers(-30, 100, (4 if index == 2 else 1, 1, 1, 1)) | 1
        made = core(index, shape, taps, destinations=() if index == 2 else (Destination(index + 1),), **options)
        cores.append(replace(made, initial=rng.integers(made.threshold_low, 100, made.output_shape).astype(np.int16)))
        shape = made.output_shape
    config = chain(*cores)
    spikes = rng.integers(0, 2, (8, 2, *config.input_shapes[0]))
    run = simulate(config, (spikes,), record=[c.name for c in cores])
    for name, expected in run_chip(config, spikes).items():
        np.testing.assert_array_equal(run.spikes[name], expected)


@pytest.mark.parametrize("order", [DEEP, BROAD])
@pytest.mark.parametrize(
    ("weight", "options", "sent", "range"),
    [
        (-128, {"threshold_low": -(2**15)}, 257, "-32,896..0"),
        (127, {"threshold_high": 2**15 - 1}, 259, "0..32,893"),
        (1, {"biases": np.array([20000], np.int16)}, 0, "0..40,000"),
        (1, {"biases": np.array([-20000], np.int16), "threshold_low": -(2**15)}, 0, "-40,000..0"),
    ],
)
def test_beyond_16_bits(weight: int, options: dict[str, Any], sent: int, range: str, order: events.Order) -> None:
    config = chain(core(0, (1, 1, 1), weights(weight), **options))
    xs = still(config, 2, samples=3)
    xs[0][1, 1] = sent
    with pytest.raises(OverflowError, match=f"core0: {range};"):
        simulate(config, xs, order)
    if sent:
        xs[0][1, 1] -= 1
        assert simulate(config, xs, order).events["core0"].tolist() == [0, sent - 1, 0]


# --- streams of events ----------------------------------------------------------------------------------------------


def stream(rng: np.random.Generator, n: int, shape: Place, end: int) -> tuple[Array, Array, Array, Array]:
    t = np.sort(rng.integers(0, end, n))
    p, y, x = (rng.integers(0, size, n) for size in shape)
    return t, x, y, p


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("tick_us", [None, 1000, 137])
def test_a_stream_of_events(seed: int, tick_us: int | None) -> None:
    rng = np.random.default_rng(seed)
    second = core(1, (3, 3, 4), rng.integers(-40, 60, (4, 3, 2, 2)), biases=rng.integers(-9, 9, 4).astype(np.int16))
    first = core(0, (2, 6, 8), rng.integers(-40, 60, (3, 2, 3, 3)), padding=(1, 1), destinations=(Destination(1, 2),))
    config = chain(first, second)
    t, x, y, p = stream(rng, 200, (2, 6, 8), 5000)
    run, (heard,) = simulate_events(config, t, x, y, p, tick_us)
    steps = t // (tick_us or 5000)
    places = ((p * 6 + y) * 8 + x).tolist()
    sent = [[(0, places[i]) for i in np.flatnonzero(steps == step)] for step in range(steps[-1] + 1)]
    silent = replace(config, cores=(first, replace(second, biases=None)))
    slow = Slow(config if tick_us else silent).run(sent, depth_first=True)
    fired = [(step, neuron) for step, index, neuron in slow.spikes if index == 1]
    assert len(fired) > 3
    assert sorted(fired) == sorted((time // (tick_us or 5000), (f, oy, ox)) for time, f, oy, ox in heard.tolist())
    assert heard.tolist() == sorted(heard.tolist()) and set(heard[:, 0]) <= set(t)
    assert run.outputs[0].sum() == len(heard) and run.events["core0"] == 200
    assert bool(run.ticked["core1"]) == (tick_us is not None)


def test_the_time_of_a_spike_is_that_of_its_event() -> None:
    config = chain(core(0, (2, 1, 1), weights(100, 50, channels=2)))
    where = np.zeros(5, int)
    _, (heard,) = simulate_events(config, np.array([0, 3, 3, 7, 9]), where, where, np.array([0, 1, 0, 1, 1]))
    assert heard.tolist() == [[0, 0, 0, 0], [3, 0, 0, 0], [7, 0, 0, 0]]
    run, (heard,) = simulate_events(config, *[np.zeros(0, int)] * 4, tick_us=10)
    assert heard.shape == (0, 4) and run.outputs[0].tolist() == [[[[0]]]]


def test_counts_of_a_stream() -> None:
    t, x, y, p = stream(np.random.default_rng(0), 300, (2, 4, 5), 1000)
    found = to_counts(t, x, y, p, (2, 4, 5), 9, 100)
    expected = np.zeros((9, 1, 2, 4, 5), int)
    for i in range(300):
        if t[i] < 900:
            expected[t[i] // 100, 0, p[i], y[i], x[i]] += 1
    np.testing.assert_array_equal(found, expected)
    config = chain(core(0, (2, 4, 5), np.random.default_rng(1).integers(-40, 60, (3, 2, 3, 3))))
    rank = np.argsort(turn((2, 4, 5)))
    order = np.lexsort((rank[(p * 4 + y) * 5 + x], t // 100))  # as the host sends counts
    run, _ = simulate_events(config, t[order] // 100 * 100, x[order], y[order], p[order], 100)
    np.testing.assert_array_equal(
        simulate(config, (to_counts(t, x, y, p, (2, 4, 5), 10, 100),)).outputs[0], run.outputs[0]
    )


# --- what is refused ------------------------------------------------------------------------------------------------

ONE = chain(core(0, (2, 3, 4), np.ones((1, 2, 3, 3))))


@pytest.mark.parametrize(
    ("xs", "options", "code"),
    [
        ((np.zeros((1, 1, 2, 3, 4)),), {}, "SNN074"),
        ((np.full((1, 1, 2, 3, 4), -1),), {}, "SNN074"),
        ((np.zeros((1, 1, 24), int),), {}, "SNN074"),
        ((), {}, "SNN074"),
        (still(ONE, 1), {"order": "sideways"}, "SNN070"),
        (still(ONE, 1), {"record": ["conv9"]}, "SNN084"),
    ],
)
def test_refused(xs: tuple[Array, ...], options: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        simulate(ONE, xs, **options)
    assert [d.code for d in caught.value.diagnostics] == [code]


@pytest.mark.parametrize(
    ("t", "x", "y", "p", "tick_us"),
    [([1, 0], [0, 0], [0, 0], [0, 0], None), ([0], [4], [0], [0], None), ([0], [0], [3], [0], None),
     ([0], [0], [0], [2], None), ([-1], [0], [0], [0], None), ([0.5], [0], [0], [0], None), ([0], [0], [0], [0], 0)],
)  # fmt: skip
def test_refused_streams(t: list[int], x: list[int], y: list[int], p: list[int], tick_us: int | None) -> None:
    with pytest.raises(InputError) as caught:
        simulate_events(ONE, *map(np.array, (t, x, y, p)), tick_us=tick_us)
    assert [d.code for d in caught.value.diagnostics] == ["SNN074"]


def test_a_configuration_with_problems() -> None:
    with pytest.raises(ConfigError, match="threshold_high"):
        simulate(replace(ONE, cores=(replace(ONE.cores[0], threshold_high=0),)), still(ONE, 1))


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    events._compiled.cache_clear()
    with pytest.raises(InputError, match="needs numba") as caught:
        simulate(ONE, still(ONE, 1))
    assert [d.code for d in caught.value.diagnostics] == ["SNN101"]
    events._compiled.cache_clear()


# --- how far apart --------------------------------------------------------------------------------------------------


def test_differences() -> None:
    a = np.arange(12).reshape(2, 6)
    rows = differences({"x": a, "y": a, "z": a}, {"y": 2 * a.reshape(2, 3, 2), "z": np.ones((2, 6)), "w": a})
    assert [row["layer"] for row in rows] == ["y", "z"]
    assert rows[0] == pytest.approx(
        {"layer": "y", "step": 66, "events": 132, "difference": 5.5, "mean": 5.5, "correlation": 1.0}
    )
    assert (rows[1]["events"], rows[1]["correlation"]) == (12, None)
    assert rows[1]["difference"] == pytest.approx(np.abs(a - 1).mean())


def test_same_class() -> None:
    step, by_event = np.array([[1, 2, 0], [3, 3, 1], [0, 0, 1]]), np.array([[0, 5, 1], [1, 2, 1], [0, 0, 9]])
    assert same_class(step, by_event[..., None, None]).tolist() == [True, False, True]
