"""Which core gets what: an exact search, as a chip has few cores.

A layer that no core holds is split by output channels over several: each gets the whole input, holds some of the
kernels, and shifts its channels on the way out. A core has two destinations; where a layer has to reach more cores,
*relays* pass its spikes on: a core that copies every spike, and has two destinations again.

The search takes the fewest cores, and among those the most even split, since the core with the most channels has the
most to do. It is complete: where it finds nothing, there is nothing, and the smallest set of layers that cannot be
placed together is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product
from operator import mul

from snncc.targets.dynapcnn.chips import Chip, Core, kernel_words, neuron_words

Words = tuple[int, int, int]
Counts = tuple[int, ...]  # how many cores of each kind


@dataclass(frozen=True, eq=False)
class Demand:
    """A layer to be placed.

    Attributes:
        name: of the layer.
        channels: that it computes.
        words: the (kernel, neuron, bias) memory that so many of its channels take.
        size: height and width of its output, which a relay would have.
        reads: the layers whose spikes it takes; one that it takes twice is named twice. "" is the input.
        exits: destinations that it needs besides those that read it.
    """

    name: str
    channels: int
    words: Callable[[int], Words]
    size: tuple[int, int]
    reads: tuple[str, ...] = ()
    exits: int = 0

    def relay(self, channels: int) -> Words:
        """The memory of a core that passes on so many of its channels."""
        return kernel_words(channels, channels, 1), neuron_words(channels, *self.size), 0


@dataclass(frozen=True)
class Part:
    """Some channels of a layer on a core."""

    core: int
    first: int
    channels: int


@dataclass(frozen=True)
class Relay:
    """A core that passes on channels of a layer, whole or a part."""

    core: int
    part: int | None  # of the layer; None: all of it


@dataclass(frozen=True)
class Plan:
    """Every layer's parts, in order of channels, and its relays."""

    parts: Mapping[str, tuple[Part, ...]]
    relays: Mapping[str, tuple[Relay, ...]]

    @property
    def cores(self) -> int:
        """How many are taken."""
        return sum(map(len, self.parts.values())) + sum(map(len, self.relays.values()))


@dataclass(frozen=True)
class Conflict:
    """Why there is no plan: ``layers`` cannot be placed together, on ``cores`` between them. ``fan_out``: they could,
    were it not for the relays that it takes to reach all."""

    layers: tuple[str, ...]
    cores: tuple[int, ...]
    fan_out: bool = False


def capacity(demand: Demand, core: Core) -> int:
    """How many of the layer's channels the core holds."""
    low, high = 0, min(demand.channels, 1024)
    while low < high:  # what is needed grows with the channels
        middle = (low + high + 1) // 2
        if all(need <= has for need, has in zip(demand.words(middle), core.words, strict=True)):
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Search:
    """Layers in order, a layer after those that it reads, for one chip. ``cores``: those that may be taken;
    ``from_input``: how many cores the input can reach, None for any number (a host sends to all)."""

    demands: Sequence[Demand]
    chip: Chip
    cores: tuple[int, ...]
    from_input: int | None = None
    _options: dict[str, list[Counts]] = field(default_factory=dict, compare=False, repr=False)
    _every: dict[str, list[Counts]] = field(default_factory=dict, compare=False, repr=False)
    _capacities: dict[str, list[int]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def kinds(self) -> list[tuple[Core, list[int]]]:
        """The different kinds of core, each with its members."""
        kinds: dict[Core, list[int]] = {}
        for i in self.cores:
            kinds.setdefault(self.chip.cores[i], []).append(i)
        return list(kinds.items())

    def capacities(self, demand: Demand) -> list[int]:
        """How many of the layer's channels each kind of core holds."""
        if demand.name not in self._capacities:
            self._capacities[demand.name] = [capacity(demand, kind) for kind, _ in self.kinds]
        return self._capacities[demand.name]

    def options(self, demand: Demand) -> list[Counts]:
        """All smallest sets of cores that hold the layer, the best first: without any of them, it would not fit."""
        if demand.name not in self._options:
            holds, found = self.capacities(demand), []
            for counts in self._sets(demand):
                held = sum(n * h for n, h in zip(counts, holds, strict=True))
                if held - min(h for n, h in zip(counts, holds, strict=True) if n) < demand.channels:
                    found.append(counts)
            self._options[demand.name] = self._ranked(demand, found)
        return self._options[demand.name]

    def _sets(self, demand: Demand) -> list[Counts]:
        """All sets of cores that hold the layer."""
        holds = self.capacities(demand)
        most = (len(members) if held else 0 for held, (_, members) in zip(holds, self.kinds, strict=True))
        return [
            counts
            for counts in product(*(range(n + 1) for n in most))
            if sum(map(mul, counts, holds)) >= demand.channels >= sum(counts)
        ]

    def _larger(self, demand: Demand) -> list[Counts]:
        """Sets that are not smallest, too."""
        if demand.name not in self._every:
            self._every[demand.name] = self._ranked(demand, self._sets(demand))
        return self._every[demand.name]

    def _ranked(self, demand: Demand, sets: list[Counts]) -> list[Counts]:
        """The sets with the fewest cores first, then the most even."""
        return sorted(sets, key=lambda c: (sum(c), self._unevenness(demand, c), tuple(-n for n in c)))

    def _shares(self, demand: Demand, counts: Counts) -> list[list[int]]:
        """How many channels each core gets, by kind: as even as what they hold allows."""
        holds = self.capacities(demand)
        limits = sorted((h, k) for k, n in enumerate(counts) for h in [holds[k]] * n)
        shares: list[list[int]] = [[] for _ in counts]
        left = demand.channels
        for i, (hold, kind) in enumerate(limits):
            share = min(hold, -(-left // (len(limits) - i)))
            shares[kind].append(share)
            left -= share
        return shares

    def _unevenness(self, demand: Demand, counts: Counts) -> int:
        return sum(share**2 for shares in self._shares(demand, counts) for share in shares)

    def least(self) -> tuple[dict[str, int], int]:
        """The relays that each layer takes at least, and the cores that all of them and the layers take; all layers
        must have options."""
        smallest = {d.name: self.options(d)[0] for d in self.demands}
        reached = self._reached(self.demands, smallest)
        relays = {d.name: n for d in self.demands if (n := reached[d.name] - self.chip.destinations) > 0}
        return relays, sum(map(sum, smallest.values())) + sum(relays.values())

    # --- the search ---

    def plan(self) -> Plan | None:
        """The best plan, if there is one."""
        return self._best(self.demands, relays=True)

    def run(self) -> Plan | Conflict:
        """The best plan, or why there is none."""
        if (plan := self.plan()) is not None:
            return plan
        for size in range(1, len(self.demands) + 1):
            for some in combinations(self.demands, size):
                if self._best(some, relays=False) is None:
                    return Conflict(tuple(d.name for d in some), self._places(some))
        for size in range(1, len(self.demands) + 1):
            for some in combinations(self.demands, size):
                if self._best(some, relays=True) is None:
                    return Conflict(tuple(d.name for d in some), self._places(some), fan_out=True)
        raise AssertionError("without a plan for all layers there is a set without one")

    def _places(self, demands: Sequence[Demand]) -> tuple[int, ...]:
        """The cores that hold something of these layers."""
        held = (
            i
            for d in demands
            for h, (_, members) in zip(self.capacities(d), self.kinds, strict=True)
            if h
            for i in members
        )
        return tuple(sorted(set(held)))

    def _best(self, demands: Sequence[Demand], relays: bool) -> Plan | None:
        options = {d.name: self.options(d) for d in demands}
        if not all(options.values()):
            return None
        if not relays:  # then any choice will do
            chosen = next(self._choices(demands, options, len(self.cores)), None)
            return None if chosen is None else self._plan(demands, chosen, [])
        # More cores than a layer needs have smaller parts: of use only for relays, as these may hold no larger ones.
        widest = self._reached(demands, {name: max(sets, key=sum) for name, sets in options.items()})
        wide = [d for d in demands if widest[d.name] > self.chip.destinations]
        return self._fewest(demands, {**options, **{d.name: self._larger(d) for d in wide}})

    def _fewest(self, demands: Sequence[Demand], options: Mapping[str, Sequence[Counts]]) -> Plan | None:
        """The plan with the fewest cores, and of those the most even one."""
        smallest = {d.name: options[d.name][0] for d in demands}
        reached = self._reached(demands, smallest)
        relays = sum(max(0, reached[d.name] - self.chip.destinations) for d in demands)  # that it takes at least
        least = sum(map(sum, smallest.values())) + relays
        for total in range(least, len(self.cores) + 1):
            best: tuple[int, dict[str, Counts], list[_Unit]] | None = None
            most_even = sum(
                min(
                    self._unevenness(d, counts)
                    for counts in options[d.name]
                    if sum(counts) - sum(smallest[d.name]) <= total - least
                )
                for d in demands
            )
            for chosen in self._choices(demands, options, total - relays):
                uneven = sum(self._unevenness(d, chosen[d.name]) for d in demands)
                if best is not None and uneven >= best[0]:
                    continue
                left = tuple(
                    len(members) - sum(c[k] for c in chosen.values()) for k, (_, members) in enumerate(self.kinds)
                )
                for units in self._relays(demands, chosen):
                    used = sum(sum(counts) for counts in chosen.values()) + len(units)
                    if used == total and (seats := self._seats(units, left)) is not None:
                        best = uneven, chosen, [unit.on(kind) for unit, kind in zip(units, seats, strict=True)]
                        break
                if best is not None and best[0] == most_even:
                    break
            if best is not None:
                return self._plan(demands, best[1], best[2])
        return None

    def _choices(
        self, demands: Sequence[Demand], options: Mapping[str, Sequence[Counts]], most: int
    ) -> Iterator[dict[str, Counts]]:
        """Every choice of one option for each layer, no core twice, ``most`` cores in all."""
        order = sorted(demands, key=lambda d: (-sum(options[d.name][0]), len(options[d.name])))
        least = [0]  # cores that the last i layers take at least
        for d in reversed(order):
            least.append(least[-1] + sum(options[d.name][0]))

        def choose(i: int, free: Counts, most: int) -> Iterator[dict[str, Counts]]:
            if i == len(order):
                yield {}
                return
            for counts in options[order[i].name]:
                left = tuple(f - n for f, n in zip(free, counts, strict=True))
                if min(left, default=0) >= 0 and sum(counts) + least[len(order) - i - 1] <= most:
                    for rest in choose(i + 1, left, most - sum(counts)):
                        yield {order[i].name: counts, **rest}

        yield from choose(0, tuple(len(members) for _, members in self.kinds), most)

    def _reached(self, demands: Sequence[Demand], chosen: Mapping[str, Counts]) -> dict[str, int]:
        """How many destinations each layer, and the input, must reach."""
        reached = {"": 0, **{d.name: d.exits for d in demands}}
        for d in demands:
            for name in d.reads:
                if name in reached:
                    reached[name] += sum(chosen[d.name])
        return reached

    def _relays(self, demands: Sequence[Demand], chosen: Mapping[str, Counts]) -> Iterator[list[_Unit]]:
        """The relays that a choice needs, in every way: of each layer whole, or of each of its parts. None, if the
        input cannot reach all."""
        reached, ways = self._reached(demands, chosen), list[list[list[_Unit]]]()
        if self.from_input is not None and reached[""] > self.from_input:
            return
        for d in demands:
            more = reached[d.name] - self.chip.destinations
            if more <= 0:
                continue
            shares = [share for kind in self._shares(d, chosen[d.name]) for share in kind]
            splits: list[list[tuple[int | None, int]]] = [[(None, d.channels)]]
            splits += [list(enumerate(shares))] if len(shares) > 1 else []
            ways.append(
                [
                    [_Unit(d.name, part, self._fits(d.relay(n))) for part, n in split for _ in range(more)]
                    for split in splits
                ]
            )
        for way in product(*ways):
            yield [unit for units in way for unit in units]

    def _fits(self, words: Words) -> tuple[bool, ...]:
        """Whether each kind of core holds so much."""
        return tuple(all(n <= has for n, has in zip(words, core.words, strict=True)) for core, _ in self.kinds)

    def _seats(self, units: Sequence[_Unit], free: Counts) -> list[int] | None:
        """A kind of core for each relay, or None."""
        if not units:
            return []
        for kind, fits in enumerate(units[0].kinds):
            if fits and free[kind]:
                left = tuple(f - (k == kind) for k, f in enumerate(free))
                if (rest := self._seats(units[1:], left)) is not None:
                    return [kind, *rest]
        return None

    def _plan(self, demands: Sequence[Demand], chosen: Mapping[str, Counts], units: Sequence[_Unit]) -> Plan:
        members = [list(numbers) for _, numbers in self.kinds]
        parts: dict[str, tuple[Part, ...]] = {}
        for d in demands:
            first, placed = 0, []
            for kind, shares in enumerate(self._shares(d, chosen[d.name])):
                for share in shares:
                    placed.append(Part(members[kind].pop(0), first, share))
                    first += share
            parts[d.name] = tuple(placed)
        relays: dict[str, tuple[Relay, ...]] = {}
        for unit in units:
            relays[unit.layer] = (*relays.get(unit.layer, ()), Relay(members[unit.kind].pop(0), unit.part))
        return Plan(parts, relays)


@dataclass(frozen=True)
class _Unit:
    """A relay that is needed: of which layer, of which part (None: all), what kinds of core hold it, which it got."""

    layer: str
    part: int | None
    kinds: tuple[bool, ...]
    kind: int = -1

    def on(self, kind: int) -> _Unit:
        """The same with its kind of core."""
        return _Unit(self.layer, self.part, self.kinds, kind)
