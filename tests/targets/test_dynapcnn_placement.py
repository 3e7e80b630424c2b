"""The search for cores against brute force: every way to give a few cores to a few layers and relays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snncc.targets.dynapcnn.chips import CHIPS, Chip, Core, bias_words, kernel_words, neuron_words
from snncc.targets.dynapcnn.placement import Conflict, Demand, Plan, Search, capacity

Words = tuple[int, int, int]


def words(channels: int, c_in: int, kernel: int, size: int, biased: bool) -> Words:
    return kernel_words(c_in, channels, kernel), neuron_words(channels, size, size), bias_words(channels, biased)


def demand(
    name: str, channels: int = 4, *reads: str, c_in: int = 1, kernel: int = 1, size: int = 1, biased: bool = False,
    exits: int = 0,
) -> Demand:  # fmt: skip
    need = partial(words, c_in=c_in, kernel=kernel, size=size, biased=biased)
    return Demand(name, channels, need, (size, size), reads, exits)


def search(
    demands: Sequence[Demand], *cores: Core, taken: Sequence[int] | None = None, from_input: int | None = None
) -> Search:
    chip = Chip("made-up", cores, "none")
    return Search(demands, chip, tuple(range(len(cores)) if taken is None else taken), from_input)


def run(demands: Sequence[Demand], *cores: Core, **options: int) -> Plan | Conflict:
    return search(demands, *cores, **options).run()  # type: ignore[arg-type]


def cores(*kernel: int, neuron: int = 1024, bias: int = 1024) -> tuple[Core, ...]:
    """Cores that differ in their kernel memory: of a layer with one input and 1 x 1, the channels that they hold."""
    return tuple(Core(k, neuron, bias) for k in kernel)


# --- brute force -----------------------------------------------------------------------------------------------------


def holds(core: Core, need: Words) -> bool:
    return all(n <= has for n, has in zip(need, core.words, strict=True))


def even(demand: Demand, on: Sequence[Core]) -> list[int] | None:
    """A channel at a time to the core that has the fewest and holds one more; None if that is not all, or one has
    none."""
    shares = [0] * len(on)
    for _ in range(demand.channels):
        free = [i for i, core in enumerate(on) if shares[i] < 1024 and holds(core, demand.words(shares[i] + 1))]
        if not free:
            return None
        shares[min(free, key=lambda i: shares[i])] += 1
    return shares if all(shares) else None


def subsets(items: frozenset[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(sorted(items), n) for n in range(len(items) + 1))


def every_placement(s: Search, demands: Sequence[Demand]) -> Iterator[dict[str, tuple[tuple[int, ...], list[int]]]]:
    """All ways to give the cores to the layers: of each layer its cores and what they get."""

    def ways(i: int, free: frozenset[int]) -> Iterator[dict[str, tuple[tuple[int, ...], list[int]]]]:
        if i == len(demands):
            yield {}
            return
        for some in subsets(free):
            shares = even(demands[i], [s.chip.cores[c] for c in some])
            if shares is not None:
                for rest in ways(i + 1, free - set(some)):
                    yield {demands[i].name: (some, shares), **rest}

    yield from ways(0, frozenset(s.cores))


def relays(s: Search, demands: Sequence[Demand], placed: Mapping[str, tuple[tuple[int, ...], list[int]]]) -> int | None:
    """The fewest relays with which all is reached; None if that cannot be."""
    reached = {name: next((d.exits for d in demands if d.name == name), 0) for name in ("", *placed)}
    for d in demands:
        for name in d.reads:
            if name in reached:
                reached[name] += len(placed[d.name][0])
    if s.from_input is not None and reached[""] > s.from_input:
        return None
    wanted = []  # for each layer that needs relays: their memories, in either way
    for d in demands:
        more = reached[d.name] - 2
        if more > 0:
            shares = placed[d.name][1]
            whole = [d.relay(d.channels)] * more
            wanted.append([whole, *([[d.relay(n) for n in shares for _ in range(more)]] if len(shares) > 1 else [])])
    free = [s.chip.cores[i] for i in s.cores if all(i not in on for on, _ in placed.values())]
    found = []
    for way in itertools.product(*wanted):
        needs = [need for some in way for need in some]
        if len(needs) <= len(free) and any(
            all(map(holds, some, needs)) for some in itertools.permutations(free, len(needs))
        ):
            found.append(len(needs))
    return min(found, default=None)


def best(s: Search, demands: Sequence[Demand], with_relays: bool = True) -> tuple[int, int] | None:
    """The fewest cores, and the smallest sum of squares of what they get."""
    found = []
    for placed in every_placement(s, demands):
        number = relays(s, demands, placed) if with_relays else 0
        if number is not None:
            shares = [n for _, shares in placed.values() for n in shares]
            found.append((len(shares) + number, sum(n * n for n in shares)))
    return min(found, default=None)


# --- what a plan must be ---------------------------------------------------------------------------------------------


def check_plan(s: Search, plan: Plan) -> None:
    """Legal: every core once and within its memories, every channel once, no core with more than two destinations."""
    used: list[int] = []
    for d in s.demands:
        parts, at = plan.parts[d.name], 0
        for part in parts:
            assert part.first == at and part.channels > 0
            assert holds(s.chip.cores[part.core], d.words(part.channels))
            at += part.channels
            used.append(part.core)
        assert at == d.channels
        for relay in plan.relays.get(d.name, ()):
            assert holds(
                s.chip.cores[relay.core], d.relay(d.channels if relay.part is None else parts[relay.part].channels)
            )
            used.append(relay.core)
        # A relay takes one destination and gives two.
        reached = d.exits + sum(len(plan.parts[r.name]) for r in s.demands for name in r.reads if name == d.name)
        passed = [relay.part for relay in plan.relays.get(d.name, ())]
        assert set(passed) <= ({None} if None in passed else set(range(len(parts))))
        for i in range(len(parts)):
            assert reached <= 2 + passed.count(None) + passed.count(i)
    assert plan.parts.keys() == {d.name for d in s.demands}
    assert len(set(used)) == len(used) == plan.cores
    assert set(used) <= set(s.cores)
    if s.from_input is not None:
        assert sum(len(plan.parts[d.name]) for d in s.demands for name in d.reads if name == "") <= s.from_input


def check(s: Search) -> None:
    found, known = s.run(), best(s, s.demands)
    if isinstance(found, Plan):
        check_plan(s, found)
        squares = sum(part.channels**2 for parts in found.parts.values() for part in parts)
        assert (found.cores, squares) == known
        return
    assert known is None
    stuck = [d for d in s.demands if d.name in found.layers]
    assert tuple(d.name for d in stuck) == found.layers
    assert best(s, stuck, found.fan_out) is None
    for fewer in itertools.combinations(stuck, len(stuck) - 1):
        assert best(s, fewer, found.fan_out) is not None
    if found.fan_out:  # without the relays, there is room
        assert best(s, s.demands, with_relays=False) is not None
    able = [i for i in s.cores if any(even(replace(d, channels=1), [s.chip.cores[i]]) for d in stuck)]
    assert list(found.cores) == able


@st.composite
def searches(draw: st.DrawFn) -> Search:
    """A few cores of up to three kinds, and a few layers that read one another or the input."""

    def pick(*options: int) -> int:
        return draw(st.sampled_from(options))

    layers = pick(1, 2, 2, 3)
    kinds = [Core(pick(4, 8, 16, 32, 64), pick(8, 16, 64), pick(64, 64, 0)) for _ in range(pick(1, 2, 3))]
    cores = [kinds[pick(*range(len(kinds)))] for _ in range(pick(2, 3, 4, 5, 5, 6 if layers < 3 else 5))]
    demands = []
    for name in "abc"[:layers]:
        reads = draw(st.lists(st.sampled_from(["", *(d.name for d in demands)] * 2), min_size=1, max_size=4))
        options = {"c_in": pick(1, 1, 2), "size": pick(1, 1, 2), "biased": bool(pick(0, 1))}
        exits = pick(0, 0, 1, 2) if layers == 3 else pick(0, 1, 2, 3, 4, 5)
        demands.append(demand(name, pick(1, 2, 3, 5, 6, 8, 9, 10, 12), *reads, **options, exits=exits))
    taken = None if pick(0, 1) else sorted(draw(st.sets(st.sampled_from(range(len(cores))), min_size=2)))
    return search(demands, *cores, taken=taken, from_input=[None, 2][pick(0, 0, 1)])


@settings(max_examples=200, deadline=None)
@given(searches())
def test_brute_force(s: Search) -> None:
    check(s)


# --- what a core holds -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 2, 3]), st.booleans(),
    st.builds(Core, st.integers(0, 300), st.integers(0, 100), st.integers(0, 50)),
)  # fmt: skip
def test_capacity(channels: int, c_in: int, size: int, biased: bool, core: Core) -> None:
    d = demand("a", channels, c_in=c_in, kernel=size, size=size, biased=biased)
    fits = [n for n in range(1, channels + 1) if holds(core, d.words(n))]
    assert fits == list(range(1, len(fits) + 1))  # fewer channels never need more
    assert capacity(d, core) == len(fits)
    assert capacity(demand("a", channels + 1, c_in=c_in, kernel=size, size=size, biased=biased), core) >= len(fits)


def test_no_core_holds_more_than_1024_channels() -> None:
    d = demand("a", 1500)
    assert capacity(d, Core(4096, 4096, 4096)) == 1024
    plan = run([d], *cores(4096, 4096, neuron=4096))
    assert isinstance(plan, Plan) and [part.channels for part in plan.parts["a"]] == [750, 750]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.lists(st.sampled_from([0, 4, 8, 16]), min_size=1, max_size=6))
def test_options_are_all_smallest_sets(channels: int, kernel: list[int]) -> None:
    s = search([demand("a", channels)], *cores(*kernel))
    room, kinds = s.capacities(s.demands[0]), [len(members) for _, members in s.kinds]

    def held(counts: Sequence[int]) -> int:
        return sum(n * h for n, h in zip(counts, room, strict=True))

    smallest = {
        counts
        for counts in itertools.product(*(range(n + 1) for n in kinds))
        if held(counts) >= channels and all(held(counts) - h < channels for n, h in zip(counts, room, strict=True) if n)
    }
    found = s.options(s.demands[0])
    assert set(found) == smallest and len(found) == len(smallest)
    assert [sum(counts) for counts in found] == sorted(sum(counts) for counts in found)


# --- single cases ----------------------------------------------------------------------------------------------------


def test_parts_are_even() -> None:
    plan = run([demand("a", 10)], *cores(4, 8, 8, 2))
    assert isinstance(plan, Plan)
    assert sorted((part.core, part.channels) for part in plan.parts["a"]) == [(1, 5), (2, 5)]  # and not 4, 8
    plan = run([demand("a", 17)], *cores(4, 8, 8, 2))  # a small core holds what it can
    assert isinstance(plan, Plan)
    assert sorted((part.core, part.channels) for part in plan.parts["a"]) == [(0, 4), (1, 7), (2, 6)]


def test_fewer_cores_are_better_than_more_even_ones() -> None:
    plan = run([demand("a", 16)], *cores(8, 8, 16))
    assert isinstance(plan, Plan) and [part.core for part in plan.parts["a"]] == [2]
    # unless another layer needs that one
    plan = run([demand("a", 16), demand("b", 1, "a", c_in=16)], *cores(8, 8, 16))
    assert isinstance(plan, Plan)
    assert {part.core for part in plan.parts["a"]} == {0, 1} and [part.core for part in plan.parts["b"]] == [2]


def test_the_smallest_set_that_conflicts_is_named() -> None:
    """Three large layers for two large cores; the small ones fit anywhere."""
    large = [demand(name, 1, c_in=16) for name in ("l1", "l2", "l3")]
    small = [demand(name, 1) for name in ("s1", "s2")]
    found = run([small[0], *large, small[1]], *cores(8, 16, 8, 16, 8, 8))
    assert found == Conflict(("l1", "l2", "l3"), (1, 3))


def test_a_layer_that_fits_nowhere_conflicts_alone() -> None:
    assert run([demand("a"), demand("b", 1, c_in=64)], *cores(8, 8)) == Conflict(("b",), ())
    # 9 channels of 4 + 4
    assert run([demand("a"), demand("b", 9)], *cores(4, 4)) == Conflict(("b",), (0, 1))


def test_more_layers_than_cores() -> None:
    found = run([demand(name) for name in "abc"], *cores(4, 4))
    assert found == Conflict(("a", "b", "c"), (0, 1))


def heads(n: int, of: int = 4, **options: int) -> list[Demand]:
    """A layer that ``n`` others read."""
    return [demand("a", of, "", **options), *(demand(f"h{i}", 1, "a", c_in=of) for i in range(n))]


@pytest.mark.parametrize(("readers", "relayed"), [(1, 0), (2, 0), (3, 1), (4, 2), (5, 3)])
def test_relays_make_room_for_one_more_reader_each(readers: int, relayed: int) -> None:
    plan = run(heads(readers), *cores(*[16] * 9))
    assert isinstance(plan, Plan)
    assert plan.cores == 1 + readers + relayed
    assert [relay.part for relay in plan.relays.get("a", ())] == [None] * relayed
    needed = 1 + readers + relayed
    assert isinstance(run(heads(readers), *cores(*[16] * needed)), Plan)
    fewer = run(heads(readers), *cores(*[16] * (needed - 1)))
    names = ("a", *(f"h{i}" for i in range(readers)))
    assert fewer == Conflict(names, tuple(range(needed - 1)), fan_out=relayed > 0)


def test_who_reads_twice_needs_two_destinations() -> None:
    once, twice = heads(2), [*heads(1), demand("h1", 1, "a", "a", c_in=8)]
    for demands, relayed in ((once, 0), (twice, 1)):
        plan = run(demands, *cores(*[16] * 5))
        assert isinstance(plan, Plan) and plan.cores == 3 + relayed


def test_an_exit_is_a_destination() -> None:
    plan = run([demand("a", 4, "", exits=1), *heads(2)[1:]], *cores(*[16] * 5))
    assert isinstance(plan, Plan) and len(plan.relays["a"]) == 1


def test_each_part_of_a_layer_that_reads_is_reached() -> None:
    """A reader in three parts is three cores to reach."""
    plan = run([demand("a"), demand("b", 3, "a", c_in=4)], *cores(16, 4, 4, 4, 16))
    assert isinstance(plan, Plan)
    assert (len(plan.parts["b"]), len(plan.relays.get("a", ()))) == (1, 0)  # on the second core of 16
    plan = run([demand("a"), demand("b", 3, "a", c_in=4), demand("c", 4, "b", c_in=3)], *cores(16, 4, 4, 4, 16, 16))
    assert isinstance(plan, Plan) and plan.cores == 3


def test_a_relay_that_fits_nowhere_is_split_as_the_layer_is() -> None:
    """8 channels need 64 words to be passed on whole, and 16 in halves; so do layers that one core would hold."""
    demands = heads(3, of=8)
    plan = run(demands, *cores(*[16] * 7, neuron=8))
    assert isinstance(plan, Plan)
    assert [part.channels for part in plan.parts["a"]] == [4, 4]
    assert sorted(relay.part for relay in plan.relays["a"] if relay.part is not None) == [0, 1]
    whole = run(demands, *cores(*[16] * 7, 64, neuron=8))
    assert isinstance(whole, Plan) and (whole.cores, whole.relays["a"][0].core) == (5, 7)


def test_the_host_sends_to_all_and_the_sensor_to_two() -> None:
    demands = [demand(name, 1, "") for name in "abc"]
    assert isinstance(run(demands, *cores(*[4] * 3)), Plan)
    assert run(demands, *cores(*[4] * 3), from_input=2) == Conflict(("a", "b", "c"), (0, 1, 2), fan_out=True)
    # a layer on three cores
    wide = [demand("a", 12, "")]
    assert isinstance(run(wide, *cores(*[4] * 3)), Plan)
    assert run(wide, *cores(*[4] * 3), from_input=2) == Conflict(("a",), (0, 1, 2), fan_out=True)
    assert isinstance(run(wide, *cores(*[4] * 3, 16), from_input=2), Plan)


def test_only_the_cores_that_may_be_taken() -> None:
    plan = search([demand("a"), demand("b", 1, "a", c_in=4)], *cores(*[16] * 5), taken=(4, 2)).run()
    assert isinstance(plan, Plan) and sorted(p.core for parts in plan.parts.values() for p in parts) == [2, 4]
    found = search([demand("a"), demand("b"), demand("c")], *cores(*[16] * 5), taken=(4, 2)).run()
    assert found == Conflict(("a", "b", "c"), (2, 4))


def test_every_layer_of_nine_on_a_real_chip() -> None:
    """Two of each kind that only this kind holds, and one that any does."""
    chip = CHIPS["speck2b"]
    wants = [(1, 64 * 1024)] * 3 + [(32 * 1024, 32 * 1024)] * 2 + [(64 * 1024, 1)] * 2 + [(1, 1)] * 2
    demands = [Demand(f"d{i}", 1, lambda n, w=w: (*w, 0), (1, 1)) for i, w in enumerate(wants)]  # type: ignore[misc]
    plan = Search(demands, chip, tuple(range(9))).run()
    assert isinstance(plan, Plan)
    assert [plan.parts[d.name][0].core for d in demands] == list(range(9))
