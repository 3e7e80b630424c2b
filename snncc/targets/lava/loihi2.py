"""Loihi 2's neurocores as data, and networks divided over them.

Lava has no public tool that does it. Where the numbers come from, by the word in front:

- Intel: "Taking Neuromorphic Computing to the Next Level with Loihi 2", technology brief, 2021, table 1.
- lava-dl: what Lava's compiler for the chip, which is not public, printed of networks on real chips: the tables of
  per-core use in lava-dl's notebooks (tutorials/lava/lib/dl/netx at d825ac5: mnist/run, yolo_kp/run, oxford/run,
  pilotnet_sdnn/benchmark, pilotnet_snn/benchmark). Read off, not documented: estimates. The formulas here give those
  tables' amounts of synapses exactly where lava-dl has the weights, too (tests/targets/test_loihi2.py).
- nengo: nengo-loihi 1.1.0, block.py, which is about Loihi 1.
- assumed: nothing was found.

Layers do not share cores, and every core holds the synapses into its neurons (lava-dl: each layer has cores of its own,
down to a layer of one neuron). A core takes a tile: some channels, rows and columns of a population.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Severity, Stage, ops
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.targets.lava.program import NEURONS, Connection, Population, Program

WORD = 64  # bits of a word of a core's memory (lava-dl: the only size that gives its numbers; nengo: the same)


@dataclass(frozen=True)
class Estimates:
    """What no document says of a core. Memory is counted in words of 64 bits."""

    core_words: int = 20_000  # lava-dl (mnist, yolo_kp): Total, the sum of the columns, is in percent of it
    synapse_words: int = 16_000  # lava-dl (mnist, yolo_kp): 784 axons of 16 words are 78.40 %. In 2022 it was 12,000
    state_words: int = 4_095  # lava-dl (yolo_kp): 3,584 neurons are 87.52 %
    axons_in: int = 16_000  # lava-dl (mnist): 784 are 4.90 %
    axons_out: int = 16_000  # lava-dl (mnist): column AxonMap, 50 are 0.31 %
    # lava-dl (mnist, oxford, pilotnet): of each synapse that is stored singly, the neuron that it goes to; nengo: the
    # widest index of Loihi 1.
    index_bits: int = 12
    header_bits: int = 10  # nengo: of every list of synapses. lava-dl's numbers leave 1 to 16
    delay_bits: int = 6  # assumed: a delayed synapse stores its delay
    # Words of state per neuron. lava-dl: 1 of LIF (pilotnet_snn) and of sigma-delta neurons (yolo_kp). Assumed: the
    # others; ATRLIF has four variables of 24 bits in lava-nc.
    neuron_words: dict[str, int] = field(
        default_factory=lambda: {"cuba_lif": 1, "atr_lif": 2, "sigma_delta": 1, "delta": 1, "sigma": 1}
    )


@dataclass(frozen=True)
class Chip:
    """A chip of neurocores: what is published, and apart from it what is not."""

    name: str = "Loihi 2"
    neurocores: int = 128  # Intel
    usable_neurocores: int = 120  # publications about runs on it; Hala Point has 140,544 on 1,152 chips, 122 each
    neurons_per_core: int = 8_192  # Intel: 1 million on 128 cores
    memory_per_core: int = 192 * 1024  # Intel: bytes, for synapses, neurons, axons and code alike
    weight_bits: int = 8  # Intel
    chips_on_a_board: int = 8  # Intel: Kapoho Point; larger systems are made of such boards
    most_chips: int = 1_152  # Intel: Hala Point, the largest system
    estimates: Estimates = Estimates()

    @property
    def limits(self) -> dict[str, int]:
        """What a core has of each resource."""
        e = self.estimates
        return {
            "neurons": self.neurons_per_core,
            "state_words": e.state_words,
            "synapse_words": e.synapse_words,
            "core_words": e.core_words,
            "axons_in": e.axons_in,
            "axons_out": e.axons_out,
        }


LOIHI2 = Chip()
NAMES = {
    "neurons": "neurons",
    "state_words": "neuron state",
    "synapse_words": "synaptic memory",
    "core_words": "memory",
    "axons_in": "axons in",
    "axons_out": "axons out",
}
BASIS = "estimated by a core's limits as Lava's compiler for Loihi 2 printed them; only that of neurons is documented"


def weight_bits(weights: Array) -> int:
    """Bits that these integers need on the chip: two's complement where they have both signs, without zeros that all of
    them end in; 8 instead of 7 (nengo: Loihi 1 has no 7; lava-dl, oxford: nor is it used here)."""
    either = int(np.bitwise_or.reduce(weights, axis=None))
    unit = either & -either or 1
    low, high = int(weights.min(initial=0)) // unit, int(weights.max(initial=0)) // unit
    signed = int(low < 0 < high)
    bits = max(1, high.bit_length(), (-low - signed).bit_length()) + signed
    return 8 if bits == 7 else bits


def list_words(synapses: Array, bits: int, chip: Chip = LOIHI2) -> Array:
    """Words that one axon's list of single synapses takes, by their number and the bits of a weight (and delay)."""
    e = chip.estimates
    return -(-(synapses * (bits + e.index_bits) + e.header_bits) // WORD)


def run_words(channels: int, bits: int, chip: Chip = LOIHI2) -> int:
    """Words that a kernel's weights from one element to so many channels take. No neuron is named: they lie in runs of
    a power of two (lava-dl: 48 channels of 4 bits take as much as one run of 32 and one of 16)."""
    runs = [1 << i for i in range(channels.bit_length()) if channels >> i & 1]
    return sum(-(-(run * bits + chip.estimates.header_bits) // WORD) for run in runs)


def kernel_words(shape: tuple[int, ...], groups: int, bits: int, channels: int, chip: Chip = LOIHI2) -> int:
    """Words of a shared kernel of ``shape`` (O, I/groups, kh, kw) on the fullest core, if each has so many output
    channels. All positions share it (Intel: "shared synapses for convolution"; lava-dl); groups are assumed to add up.
    """
    size = shape[0] // groups
    most = 0
    for start in range(0, shape[0], channels):
        stop = min(start + channels, shape[0])
        spans = (min(stop, (g + 1) * size) - max(start, g * size) for g in range(start // size, -(-stop // size)))
        most = max(most, sum(run_words(span, bits, chip) for span in spans))
    return most * int(np.prod(shape[1:]))


@dataclass(frozen=True)
class Share:
    """The cores of a population.

    Attributes:
        layers: the layers of weights that flow into it, with how many connections between neurons each is part of.
        synapses: all connections between neurons.
        tile: the neurons of a full core, along (channels, rows, columns).
        first: the first core, counted over all chips.
        used: of each resource (:attr:`Chip.limits`), on the fullest core.
        cores_by: the cores that each resource alone would need.
        cores_unshared: the least cores if each core stored kernels synapse by synapse; None without convolutions.
    """

    population: str
    layers: dict[str, int]
    neurons: int
    synapses: int
    tile: tuple[int, ...]
    first: int
    cores: int
    used: dict[str, int]
    cores_by: dict[str, int]
    cores_unshared: int | None


_AXONS = ("axons_in", "axons_out")


@dataclass(frozen=True)
class Partition:
    """A network on cores: every population on whole cores, in order."""

    chip: Chip
    shares: tuple[Share, ...]
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def cores(self) -> int:
        return sum(share.cores for share in self.shares)

    @property
    def chips(self) -> int:
        return -(-self.cores // self.chip.usable_neurocores)

    @property
    def dominant(self) -> Share:
        """The population with the most cores; of several, the one with the fullest."""
        return max(self.shares, key=lambda s: (s.cores, s.used["core_words"]))

    def resource(self, share: Share) -> str:
        """What a population has so many cores for: the resource that alone needs the most, or is the fullest."""
        return max(share.used, key=lambda r: (share.cores_by[r], share.used[r] / self.chip.limits[r]))

    def fill(self, share: Share) -> dict[str, float]:
        """Percent of each resource, on the fullest core."""
        return {r: round(100 * share.used[r] / limit, 1) for r, limit in self.chip.limits.items()}

    def place(self, population: str) -> str:
        """The cores of a population: "chip 0 cores 3-7"."""
        share = next(s for s in self.shares if s.population == population)
        size = self.chip.usable_neurocores
        end, parts = share.first + share.cores, []
        for chip in range(share.first // size, -(-end // size)):
            a, b = max(share.first - chip * size, 0), min(end - chip * size, size) - 1
            parts.append(f"chip {chip} core {a}" if a == b else f"chip {chip} cores {a}-{b}")
        return ", ".join(parts)

    def usage(self) -> dict[str, dict[str, Any]]:
        """Per layer of weights: its synapses, and the cores of the population that it flows into."""
        kept = ("cores", "place", "fill", "estimates")
        return {
            layer: {"synapses": n} | {name: value for name, value in self._row(share).items() if name in kept}
            for share in self.shares
            for layer, n in share.layers.items()
        }

    def mapping(self) -> dict[str, Any]:
        """The whole network's partition."""
        top = self.dominant
        resource = self.resource(top)
        estimates = {r: max(s.used[r] for s in self.shares) for r in _AXONS}
        if any(s.cores_unshared for s in self.shares):
            estimates["cores_unshared"] = sum(s.cores_unshared or s.cores for s in self.shares)
        return {
            "chip": self.chip.name,
            "chips": self.chips,
            "cores": self.cores,
            "cores_per_chip": self.chip.usable_neurocores,
            "neurons": sum(s.neurons for s in self.shares),
            "synapses": sum(s.synapses for s in self.shares),
            "dominant": {
                "population": top.population,
                "layers": list(top.layers),
                "cores": top.cores,
                "resource": NAMES[resource],
                "fill": self.fill(top)[resource],
            },
            "basis": BASIS,
            "populations": [
                {"population": s.population, "layers": list(s.layers), "neurons": s.neurons, "synapses": s.synapses}
                | self._row(s)
                for s in self.shares
            ],
            "estimates": estimates,
        }

    def _row(self, share: Share) -> dict[str, Any]:
        fill = self.fill(share)
        estimates: dict[str, Any] = {r: share.used[r] for r in _AXONS}
        estimates["axons_fill"] = max(fill[r] for r in _AXONS)
        estimates["cores_by_axons"] = max(share.cores_by[r] for r in _AXONS)
        if share.cores_unshared is not None:
            estimates["cores_unshared"] = share.cores_unshared
        amounts: dict[str, dict[str, Any]] = {"used": share.used, "fill": fill, "cores_by": share.cores_by}
        return {
            "cores": share.cores,
            "place": self.place(share.population),
            "tile": list(share.tile),
            **{name: {r: n for r, n in of.items() if r not in _AXONS} for name, of in amounts.items()},
            "estimates": estimates,
        }


def partition(program: Program, chip: Chip = LOIHI2) -> Partition:
    """Divide every population over as few cores as tiles of one size allow, one population after the other. What the
    host sends takes no cores."""
    shares: list[Share] = []
    found: list[Diagnostic] = []
    for population in program.populations:
        tiling = _Tiling(program, population, chip)
        shares.append(tiling.share(sum(s.cores for s in shares)))
        found += tiling.problems(shares[-1])
    result = Partition(chip, tuple(shares))
    if result.chips > chip.chips_on_a_board:
        top, too_many = result.dominant, result.chips > chip.most_chips
        what, limit = ("the largest system", chip.most_chips) if too_many else ("a board", chip.chips_on_a_board)
        text = f"the network takes {result.cores:,} cores on {result.chips:,} chips, more than {what} has"
        hint = f"`{' + '.join(top.layers) or top.population}` alone takes {top.cores:,}"
        hint += "; oversize=True writes it as it is, for simulation" if too_many else ""
        severity = Severity.ERROR if too_many else Severity.WARNING
        loc = program.graph[top.population].loc
        found.append(Diagnostic("SNN060", text, loc, severity, hint, limit, result.chips, "chips"))
    return replace(result, diagnostics=tuple(found))


class _Tiling:
    """The ways to cut a population into tiles, one a core, and what the fullest core then holds."""

    def __init__(self, program: Program, population: Population, chip: Chip) -> None:
        self.population, self.chip, self.graph = population, chip, program.graph
        self.into = program.into(population.name)
        self.lists = [c for c in self.into if c.kind == "sparse"]
        readers = [c for c in program.connections if c.source == population.name]
        self.kernels_read = any(c.kind == "conv" for c in readers)
        self.singly_read = population.name in program.outputs or any(c.kind != "conv" for c in readers)
        channels, *rest = population.shape
        self.size = (channels, rest[0] if rest else 1, int(np.prod(rest[1:], dtype=np.int64)))
        # Of all tiles that cut an axis into the same number of parts, the smallest; and whole runs of channels.
        axes = [np.unique(-(-n // np.arange(1, n + 1))) for n in self.size]
        axes[0] = np.union1d(axes[0], 1 << np.arange(channels.bit_length()))
        self.tiles = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")])  # (3, candidates)
        self.cores = np.prod([-(-n // t) for n, t in zip(self.size, self.tiles, strict=True)], axis=0)
        self._used: dict[int, dict[str, int]] = {}

    # --- what the fullest core holds ---

    @cached_property
    def _fixed(self) -> tuple[Array, Array]:
        """By candidate, the words of synapses and the axons in, without synapses that are listed one by one."""
        channels, neurons = self.tiles[0], self.tiles.prod(axis=0)
        words, axons = np.zeros_like(neurons), np.zeros_like(neurons)
        for connection in self.into:
            weight = connection.weight
            if connection.kind == "direct":
                axons += neurons
            elif weight is not None and connection.kind == "dense":
                words += connection.shape[1] * list_words(neurons, weight_bits(weight), self.chip)
                axons += connection.shape[1]
            elif weight is not None:
                sizes, index = np.unique(channels, return_inverse=True)
                groups, bits = connection.geometry["groups"], weight_bits(weight)
                words += np.array([kernel_words(weight.shape, groups, bits, int(n), self.chip) for n in sizes])[index]
                axons += self._runs(channels)
        return words, axons

    @cached_property
    def least(self) -> dict[str, Array]:
        """By candidate, what each resource needs at least."""
        words, axons = self._fixed
        for connection in self.lists:
            assert connection.columns is not None
            sources = len(np.unique(connection.columns))
            bits = connection.synapses * (self._bits(connection) + self.chip.estimates.index_bits)
            words = words - (-max(sources, bits // WORD) // self.cores)
            axons = axons - (-sources // self.cores)
        return self._loads(words, axons, slice(None))

    def used(self, i: int) -> dict[str, int]:
        """What each resource needs for the tiles of candidate ``i``."""
        if i not in self._used:
            words, axons = (fixed[i] + listed for fixed, listed in zip(self._fixed, self._listed(i), strict=True))
            self._used[i] = {r: int(n) for r, n in self._loads(words, axons, i).items()}
        return self._used[i]

    def _loads(self, words: Array, axons_in: Array, at: Any) -> dict[str, Array]:
        channels, rows, columns = self.tiles[:, at]
        neurons = channels * rows * columns
        # lava-dl: one for each neuron, if it is read singly; kernels are told positions, once for each run of channels.
        axons_out = neurons * self.singly_read + rows * columns * self._runs(channels) * self.kernels_read
        state = neurons * self.chip.estimates.neuron_words[self.population.kind]
        total = words + axons_in + axons_out + state
        return dict(zip(self.chip.limits, (neurons, state, words, total, axons_in, axons_out), strict=True))

    def _runs(self, channels: Array) -> Array:
        """Into how many runs of a power of two so many channels fall, or the rest on the last core."""
        count = np.vectorize(int.bit_count, otypes=[np.int64])
        both = channels.astype(object), (self.size[0] % channels).astype(object)
        return np.asarray(np.maximum(*map(count, both)))

    def _listed(self, i: int) -> tuple[int, int]:
        """Words and axons in of synapses that are listed one by one: the most of each on any core."""
        if not self.lists:
            return 0, 0
        parts = [-(-n // t) for n, t in zip(self.size, self.tiles[:, i], strict=True)]
        index = np.unravel_index(np.arange(self.population.size), self.size)
        core = np.ravel_multi_index([a // t for a, t in zip(index, self.tiles[:, i], strict=True)], parts)
        words, axons = np.zeros(self.cores[i]), np.zeros(self.cores[i])
        for connection in self.lists:
            sources = connection.shape[1]
            lists, synapses = np.unique(core[connection.rows] * sources + connection.columns, return_counts=True)
            size = list_words(synapses, self._bits(connection), self.chip)
            words += np.bincount(lists // sources, size, self.cores[i])
            axons += np.bincount(lists // sources, minlength=self.cores[i])
        return int(words.max()), int(axons.max())

    def _bits(self, connection: Connection) -> int:
        """Of a listed synapse's weight and delay."""
        assert connection.values is not None
        return weight_bits(connection.values) + self.chip.estimates.delay_bits * (connection.delay > 0)

    # --- the choice ---

    def share(self, first: int) -> Share:
        """The population on the fewest cores."""
        order = np.lexsort((self.least["core_words"], self.cores))
        limits = self.chip.limits

        def fewest(resources: tuple[str, ...]) -> int:
            """The candidate with the fewest cores, or with one core for each neuron if none fits."""
            fits = np.all([self.least[r] <= limits[r] for r in resources], axis=0)
            for i in map(int, order[fits[order]]):
                if all(self.used(i)[r] <= limits[r] for r in resources):
                    return i
            return int(order[-1])

        chosen = fewest(tuple(limits))
        layers: dict[str, int] = {}
        for c in self.into:
            for layer in _layers(self.graph, c.layer, c.source) or ():
                layers[layer] = layers.get(layer, 0) + c.synapses
        kernels = [(c.synapses, weight_bits(c.weight)) for c in self.into if c.kind == "conv" and c.weight is not None]
        words = sum(n * (bits + self.chip.estimates.index_bits) // WORD for n, bits in kernels)
        unshared = max(int(self.cores[chosen]), -(-words // limits["synapse_words"])) if kernels else None
        return Share(
            self.population.name,
            layers,
            self.population.size,
            sum(c.synapses for c in self.into),
            tuple(map(int, self.tiles[:, chosen])),
            first,
            int(self.cores[chosen]),
            self.used(chosen),
            {r: int(self.cores[fewest((r,))]) for r in limits},
            unshared,
        )

    def problems(self, share: Share) -> list[Diagnostic]:
        """What of a population no partition can hold: a neuron that is too much for a core."""
        limits = self.chip.limits
        over = [r for r in limits if share.used[r] > limits[r]]
        if not over:
            return []
        loc = self.graph[next(iter(share.layers), self.population.name)].loc
        what = f"a single neuron of `{self.population.name}`"
        hint = "give it fewer inputs: pool more in front of it, or split the layer in two"
        bits = np.zeros(self.population.size, np.int64)
        for c in self.into:
            if c.weight is not None:
                bits += int(np.prod(c.weight.shape[1:])) * weight_bits(c.weight)
            elif c.values is not None:
                bits += np.bincount(c.rows, minlength=len(bits)) * weight_bits(c.values)  # type: ignore[arg-type]
        stored = int(bits.max()) // 8
        if stored > self.chip.memory_per_core:
            text = f"{what} has more weights than a core's whole memory holds"
            return [
                Diagnostic(
                    "SNN056", text, loc, hint=hint, limit=self.chip.memory_per_core, found=stored, quantity="bytes"
                )
            ]
        r = max(over, key=lambda r: share.used[r] / limits[r])
        text = (
            f"{what} takes more {NAMES[r]} than Lava's compiler for the chip has been seen to allow on a core; "
            "the simulation is not affected"
        )
        quantity = "axons" if r in _AXONS else "words"
        return [Diagnostic("SNN056", text, loc, Severity.WARNING, hint, limits[r], share.used[r], quantity)]


def _layers(graph: Graph, name: str, source: str) -> dict[str, None] | None:
    """The layers of weights on the ways from a population to the value ``name``; None if there is no way."""
    node = graph[name]
    if name == source:
        return {}
    if isinstance(node.op, (*NEURONS, ops.Encode)):
        return None
    ways = [way for arg in node.args if (way := _layers(graph, arg, source)) is not None]
    own = {name: None} if isinstance(node.op, ops.Weighted) else {}
    return {layer: None for way in ways for layer in way} | own if ways else None


@dataclass(frozen=True)
class PlaceOnCores(Pass):
    """Say of every neuron on which cores it lies. What flows into it is computed there, too: layers and shape
    operations lie where the neurons that read them do."""

    chip: Chip = LOIHI2
    oversize: bool = False  # more chips than there are are a warning, not an error
    name: ClassVar[str] = "place"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.INT,)
    ensures: ClassVar[Stage] = Stage.MAPPED
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        """The graph with ``place`` set on every node but inputs and encodings."""
        program = Program(graph)
        cores = partition(program, self.chip)
        for diagnostic in (*program.diagnostics, *cores.diagnostics):
            mild = self.oversize and diagnostic.code == "SNN060"
            context.report(replace(diagnostic, severity=Severity.WARNING) if mild else diagnostic)
        places: dict[str, dict[str, None]] = {}
        for node in reversed(graph.nodes):
            if isinstance(node.op, NEURONS):
                places[node.name] = {cores.place(node.name): None}
            elif not isinstance(node.op, ops.Input | ops.Encode):
                places[node.name] = {p: None for user in graph.users[node.name] for p in places[user.name]}
        for node in graph.nodes:  # outputs that are reshaped: where they come from
            if node.name in places and not places[node.name]:
                places[node.name] = {p: None for arg in node.args for p in places.get(arg, ())}
        return replace(
            graph,
            nodes=tuple(replace(n, place="; ".join(places[n.name])) if n.name in places else n for n in graph.nodes),
        )
