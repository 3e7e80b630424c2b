"""A mapped graph as Lava sees it: populations of neurons, and connections that each compute one linear map.

Between populations everything is flat, in C order of (C, H, W). A connection is a convolution or a matrix where the
layers between two populations are one; what lies between them otherwise (pooling, padding that is not symmetric,
slices, sums of currents, parts of a concatenation) is multiplied out into a sparse matrix: exactly what the network
computes, with no neurons in between. Average pooling in front of a layer is part of its kernel.

Every connection takes one time step. A population's ``depth`` is the longest way to it from the input; a shorter way is
delayed by the difference, so that everything which belongs together arrives together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from snncc.ir import CompileError, Diagnostic, Domain, Graph, Node, Severity, ops
from snncc.ir.loihi import AtrLif, CubaLif, Delta, Sigma, SigmaDelta, bias_of
from snncc.ir.types import Array, per_channel

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NEURONS = (CubaLif, AtrLif, Delta, SigmaDelta, Sigma)
DIGIT = 7  # bits of one synapse's part of a weight that is too large for one: parts have the exponents 0, 7, 14, ...
SHIFTS = 7  # lava-nc 0.10.0, sdn/models.py: state_exp has `precision=3`, which nothing enforces
MOST_DELAY = 62  # netx 0.6 clamps above; 6 bits with 63 (lava-nc, dense/models.py)


@dataclass(frozen=True)
class Population:
    """Neurons of one kind with common parameters. ``arrays`` are flat, one value per neuron."""

    name: str
    kind: str
    shape: tuple[int, ...]
    depth: int
    parameters: dict[str, int | str]
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Connection:
    """Synapses from one population to another.

    Attributes:
        kind: "conv", "dense", "sparse", or "direct" (an input into its own population; no synapse, no time step).
        weight: of conv (O, I/groups, kh, kw), of dense (out, in); integers from -128 to 127.
        rows, columns, values: of sparse, in the order of rows.
        exponent: weights count ``2**exponent``.
        delay: further time steps, of sparse connections.
        message_bits: 0 if spikes are 0 or 1, else the width of what comes in.
        layer: the layer of weights that it stands for.
    """

    source: str
    destination: str
    kind: str
    shape: tuple[int, int]  # (neurons of the destination, of the source)
    message_bits: int = 0
    weight: Array | None = None
    geometry: dict[str, Any] = field(default_factory=dict)
    rows: Array | None = None
    columns: Array | None = None
    values: Array | None = None
    exponent: int = 0
    delay: int = 0
    layer: str = ""

    @property
    def synapses(self) -> int:
        """Connections between single neurons; those over padding do not exist."""
        if self.values is not None:
            return len(self.values)
        if self.weight is None:
            return 0
        if self.kind == "dense":
            return self.weight.size
        g = self.geometry
        reached = 1
        for i in (0, 1):
            out = (g["input_shape"][i + 1] + 2 * g["padding"][i] - _span(self.weight, g, i)) // g["stride"][i] + 1
            at = np.arange(out)[:, None] * g["stride"][i] - g["padding"][i]
            at = at + np.arange(self.weight.shape[i + 2]) * g["dilation"][i]
            reached *= int(((at >= 0) & (at < g["input_shape"][i + 1])).sum())
        return reached * int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def stored(self) -> int:
        """Weights that are kept: of a convolution, its kernel."""
        return self.synapses if self.weight is None else self.weight.size


def _span(weight: Array, geometry: dict[str, Any], axis: int) -> int:
    return int(geometry["dilation"][axis] * (weight.shape[axis + 2] - 1) + 1)


class Program:
    """The populations and connections of a graph of Loihi neurons, at the stage ``int`` or ``mapped``.

    Attributes:
        inputs: the encodings, in order, as (name, shape, message bits).
        pulses: what the source "pulses" sends, one channel each, as (step, value): a sigma-delta network's biases.
        populations, connections: in order of depth.
        outputs: names of populations.
        diagnostics: what Lava cannot do.
    """

    PULSES = "pulses"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inputs: list[tuple[str, tuple[int, ...], int]] = []
        self.pulses: list[tuple[int, int]] = []
        self.populations: list[Population] = []
        self.connections: list[Connection] = []
        self.diagnostics: list[Diagnostic] = []
        self._depth: dict[str, int] = {}
        for node in graph.nodes:
            if isinstance(node.op, ops.Encode):
                self._depth[node.name] = 0
                self.inputs.append((node.name, node.type.shape, _message_bits(graph, node)))
            elif isinstance(node.op, NEURONS):
                self._population(node)
        channels = len(self.pulses)  # of all layers, now that they are known
        self.connections = [
            replace(c, shape=(c.shape[0], channels)) if c.source == self.PULSES else c for c in self.connections
        ]
        self.outputs = tuple(self._output(name) for name in graph.outputs)
        wide = [p.name for p in self.populations if int(p.parameters.get("shift", 0)) > SHIFTS]
        if wide:
            names = ", ".join(f"`{name}`" for name in wide[:3]) + (", ..." if len(wide) > 3 else "")
            text = (
                f"the messages of {len(wide)} layers ({names}) are sums shifted by more than {SHIFTS} bits. Lava's CPU "
                "simulation does that; but it declares 3 bits for the shift, and what the chip takes is not published"
            )
            self.diagnostics.append(Diagnostic("SNN066", text, graph[wide[0]].loc, Severity.NOTE))

    @property
    def latency(self) -> int:
        """Time steps from the input to the last population."""
        return max((p.depth for p in self.populations), default=0)

    @cached_property
    def by_name(self) -> dict[str, Population]:
        return {p.name: p for p in self.populations}

    def into(self, population: str) -> list[Connection]:
        """The connections that end at a population."""
        return [c for c in self.connections if c.destination == population]

    # --- reading the graph ---

    def _output(self, name: str) -> str:
        """The population that an output comes from; in a flat order, a change of shape is none."""
        node = self.graph[name]
        while isinstance(node.op, ops.Flatten | ops.Reshape):
            node = self.graph[node.args[0]]
        if not isinstance(node.op, NEURONS):
            text = f"output `{name}` is no neuron's; only what neurons send can be read"
            self.diagnostics.append(Diagnostic("SNN061", text, node.loc))
        return node.name

    def _population(self, node: Node) -> None:
        synapses = list(self._synapses(node))
        if [s.kind for s in synapses] == ["direct"]:
            depth = self._depth[synapses[0].source]
        else:
            depth = 1 + max((self._depth[s.source] for s in synapses), default=0)
        self._depth[node.name] = depth
        op, store, shape = node.op, self.graph.store, node.type.shape
        kind, arrays = op.mnemonic, dict[str, Array]()
        parameters: dict[str, int | str] = {}
        for name in ("threshold", "decay_u", "decay_v", "theta", "scale", "shift", "activation"):
            if hasattr(op, name):
                parameters[name] = getattr(op, name)

        def flat(value: Any) -> Array:
            return np.broadcast_to(value, (1, *shape)).reshape(-1).astype(np.int32)

        bias = getattr(op, "bias", None)
        if bias is not None:
            value = flat(bias_of(bias, store, node.type))
            if isinstance(op, SigmaDelta | Sigma):
                synapses += self._pulsed(node.name, value, depth)
            else:
                arrays["bias"] = value
        v0 = getattr(op, "v0", 0)
        if not isinstance(v0, int) or v0:
            arrays["v0"] = flat(per_channel(v0, store, len(shape)))
        self.populations.append(Population(node.name, kind, shape, depth, parameters, arrays))
        for synapse in synapses:
            source = 0 if synapse.source == self.PULSES else self._depth[synapse.source]
            delay = 0 if synapse.source == self.PULSES or synapse.kind == "direct" else depth - 1 - source
            self._connect(node, synapse, delay)

    def _connect(self, node: Node, synapse: _Synapse, delay: int) -> None:
        if delay > MOST_DELAY:
            text = f"`{synapse.source}` waits {delay} steps for what `{node.name}` adds to it"
            hint = "put a layer into the shortcut"
            found = Diagnostic("SNN061", text, node.loc, hint=hint, limit=MOST_DELAY, found=delay, quantity="steps")
            self.diagnostics.append(found)
        bits = 32 if synapse.source == self.PULSES else _message_bits(self.graph, self.graph[synapse.source])
        size = len(self.pulses) if synapse.source == self.PULSES else self.graph[synapse.source].type.size
        shape = (node.type.size, size)
        common: dict[str, Any] = {"message_bits": bits, "layer": synapse.layer}
        if synapse.kind == "direct":
            self.connections.append(Connection(synapse.source, node.name, "direct", shape, **common))
            return
        if synapse.weight is not None and not delay:
            weight = synapse.weight
            made = Connection(
                synapse.source, node.name, synapse.kind, shape, weight=weight, geometry=synapse.geometry, **common
            )
            self.connections.append(made)
            return
        matrix = synapse.matrix if synapse.matrix is not None else self._matrix_of(synapse)
        for exponent, rows, columns, values in _digits(matrix):
            self.connections.append(
                Connection(
                    synapse.source, node.name, "sparse", shape, rows=rows, columns=columns, values=values,
                    exponent=exponent, delay=delay, **common,
                )
            )  # fmt: skip

    def _pulsed(self, name: str, bias: Array, depth: int) -> list[_Synapse]:
        """Synapses that bring a sigma-delta neuron its bias in the very step in which its input comes: in the digits of
        one synapse's width, from channels that send their digit's worth once a sample."""
        from scipy.sparse import csr_matrix

        values, rows, columns = [], [], []
        rest, worth = bias.astype(np.int64), 1
        while rest.any():
            digit = _low_digit(rest)
            if (depth - 1, worth) not in self.pulses:
                self.pulses.append((depth - 1, worth))
            (used,) = np.nonzero(digit)
            values.append(digit[used])
            rows.append(used)
            columns.append(np.full(len(used), self.pulses.index((depth - 1, worth))))
            rest, worth = (rest - digit) >> DIGIT, worth << DIGIT
        if not values:
            return []
        entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return [_Synapse(self.PULSES, "sparse", name, matrix=csr_matrix(entries, shape=(len(bias), len(self.pulses))))]

    def _synapses(self, node: Node) -> Iterator[_Synapse]:
        """What flows into a neuron, one synapse per population that sends."""
        operand = self.graph[node.args[0]]
        if isinstance(node.op, Delta):
            yield _Synapse(operand.name, "direct", operand.name)
            return
        for term in self._terms(operand.name):
            yield from self._whole(term) or self._multiplied(term)

    def _terms(self, name: str) -> Iterator[str]:
        """The currents that a sum consists of."""
        node = self.graph[name]
        if isinstance(node.op, ops.Add):
            for arg in node.args:
                yield from self._terms(arg)
        else:
            yield name

    def _is_source(self, name: str) -> bool:
        return isinstance(self.graph[name].op, (*NEURONS, ops.Encode))

    def _whole(self, name: str) -> list[_Synapse]:
        """A layer as one convolution or matrix, if it is one: perhaps behind a flattening, or average pooling."""
        node = self.graph[name]
        op = node.op
        if not isinstance(op, ops.Conv2d | ops.Linear | ops.Affine):
            return []
        below, pool = self.graph[node.args[0]], (1, 1)
        if isinstance(below.op, ops.Flatten) and isinstance(op, ops.Linear) and len(node.type.shape) == 1:
            below = self.graph[below.args[0]]
        if isinstance(below.op, ops.SumPool) and below.op.kernel == below.op.stride:
            pool, below = below.op.kernel, self.graph[below.args[0]]
        if not self._is_source(below.name):
            return []
        weight, shape = self.graph.value(op.weight), below.type.shape
        if isinstance(op, ops.Linear) and len(node.type.shape) == 1:
            if pool != (1, 1):
                weight = _spread(weight, shape, pool)
            return [_Synapse(below.name, "dense", name, weight=weight)]
        if len(shape) != 3:
            return []
        geometry: dict[str, Any] = {"input_shape": list(shape)}
        if isinstance(op, ops.Affine) and pool == (1, 1):
            weight = weight.reshape(-1, 1, 1, 1)
            geometry |= {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": len(weight)}
        elif isinstance(op, ops.Conv2d):
            top, bottom, left, right = op.padding
            uneven = any(n % p for n, p in zip(shape[1:], pool, strict=True))
            if (top, left) != (bottom, right) or uneven or (pool != (1, 1) and op.dilation != (1, 1)):
                return []
            weight = weight.repeat(pool[0], axis=2).repeat(pool[1], axis=3)
            geometry |= {
                "stride": [s * p for s, p in zip(op.stride, pool, strict=True)],
                "padding": [top * pool[0], left * pool[1]],
                "dilation": list(op.dilation),
                "groups": op.groups,
            }
        else:
            return []
        if not _fits(weight):
            return []
        return [_Synapse(below.name, "conv", name, weight=weight.astype(np.int8), geometry=geometry)]

    def _multiplied(self, name: str) -> list[_Synapse]:
        """All that lies between a current and the populations that it comes from, multiplied out."""
        return [_Synapse(source, "sparse", name, matrix=m) for source, m in self._maps(name).items() if m.nnz]

    def _matrix_of(self, synapse: _Synapse) -> csr_matrix:
        return self._maps(synapse.layer)[synapse.source]

    def _maps(self, name: str) -> dict[str, csr_matrix]:
        """The value as a linear map of each population's: matrices (its size, the population's)."""
        from scipy.sparse import csr_matrix, identity

        node, op = self.graph[name], self.graph[name].op
        if self._is_source(name):
            return {name: identity(node.type.size, np.int64, format="csr")}
        below = [self._maps(arg) for arg in node.args]
        rows = np.arange(node.type.size)
        if isinstance(op, ops.Concat):
            # Where each element of the result comes from, (operand, element) in one number.
            sizes = [self.graph[arg].type.size for arg in node.args]
            starts = np.cumsum([0, *sizes])
            at = [
                np.arange(a, b).reshape(1, *self.graph[arg].type.shape)
                for a, b, arg in zip(starts, starts[1:], node.args, strict=False)
            ]
            taken = op.evaluate(at, node.type, self.graph.store).astype(np.int64).reshape(-1)
            steps = []
            for start, size in zip(starts, sizes, strict=False):
                mine = (taken >= start) & (taken < start + size)
                entries = np.ones(mine.sum(), np.int64), (rows[mine], taken[mine] - start)
                steps.append(csr_matrix(entries, shape=(node.type.size, size)))
        else:
            steps = [_step(self.graph, node, i) for i in range(len(node.args))]
        found: dict[str, csr_matrix] = {}
        for step, maps in zip(steps, below, strict=True):
            for source, matrix in maps.items():
                product = step @ matrix
                found[source] = found[source] + product if source in found else product
        return found

    def layers(self) -> Iterator[tuple[Population, list[Connection]]]:
        """Populations with what ends at them, in order."""
        for population in self.populations:
            yield population, self.into(population.name)


@dataclass(frozen=True)
class _Synapse:
    source: str
    kind: str
    layer: str
    weight: Array | None = None
    geometry: dict[str, Any] = field(default_factory=dict)
    matrix: Any = None  # csr_matrix


def _fits(weight: Array) -> bool:
    return int(weight.max(initial=0)) <= 127 and int(weight.min(initial=0)) >= -128


def _message_bits(graph: Graph, node: Node) -> int:
    """0 of spikes that are 0 or 1; else the width of what is sent: a sign and the magnitude."""
    if node.type.domain is Domain.MESSAGE:
        return 32
    if not isinstance(node.op, ops.Encode):
        return 0
    source = graph[node.args[0]].op
    assert isinstance(source, ops.Input)
    op, peak = node.op, max(abs(source.low or 0.0), abs(source.high or 0.0))
    if op.method == "bernoulli" or (op.method == "rate" and peak <= op.unit):
        return 0
    # Ready-made spikes may be counts above 1; Lava would read them as 1 where no width is given.
    return 32 if op.method == "spikes" else max(8, int(np.rint(peak / op.unit)).bit_length() + 1)


def _low_digit(x: Array) -> Array:
    """The lowest digit of base 128, from -64 to 63."""
    half = 1 << (DIGIT - 1)
    return ((x + half) & ((1 << DIGIT) - 1)) - half


def _digits(matrix: csr_matrix) -> Iterator[tuple[int, Array, Array, Array]]:
    """A matrix as one of 8-bit weights, or as several with exponents: (exponent, rows, columns, values)."""
    matrix = matrix.tocsr()
    matrix.sum_duplicates()
    coo = matrix.tocoo()
    rows, columns, rest = coo.row.astype(np.int32), coo.col.astype(np.int32), coo.data.astype(np.int64)
    exponent = 0
    while len(rest):
        part = rest if _fits(rest) else _low_digit(rest)
        used = part != 0
        if used.any():
            yield exponent, rows[used], columns[used], part[used].astype(np.int8)
        rest = (rest - part) >> DIGIT
        left = rest != 0
        rows, columns, rest, exponent = rows[left], columns[left], rest[left], exponent + DIGIT


def _spread(weight: Array, shape: tuple[int, ...], pool: tuple[int, int]) -> Array:
    """A matrix over pooled maps as one over the maps (C, H, W) in front of the pooling; edges left over weigh 0."""
    c, h, w = shape
    rows, columns = h // pool[0], w // pool[1]
    spread = weight.reshape(len(weight), c, rows, columns).repeat(pool[0], axis=2).repeat(pool[1], axis=3)
    edges = (h - rows * pool[0], w - columns * pool[1])
    return np.pad(spread, ((0, 0), (0, 0), (0, edges[0]), (0, edges[1]))).reshape(len(weight), -1)


def _step(graph: Graph, node: Node, operand: int) -> csr_matrix:
    """One operation as a matrix (size of its result, size of its operand)."""
    from scipy.sparse import csr_matrix, identity

    op, x, out = node.op, graph[node.args[operand]].type, node.type
    rows = np.arange(out.size).reshape(out.shape)
    index = np.arange(x.size).reshape(x.shape)
    if isinstance(op, ops.Add | ops.Flatten):
        return identity(out.size, np.int64, format="csr")
    if isinstance(op, ops.Conv2d | ops.SumPool):
        return _window_matrix(op, graph, x.shape, out.shape)
    if isinstance(op, ops.Affine):
        factor = graph.value(op.weight).astype(np.int64).repeat(out.size // out.shape[0])
        return csr_matrix((factor, (rows.ravel(), index.ravel())), shape=(out.size, x.size))
    if isinstance(op, ops.Linear):
        weight = graph.value(op.weight).astype(np.int64)
        lines = x.size // weight.shape[1]
        matrix = np.kron(np.eye(lines, dtype=np.int64), weight) if lines > 1 else weight
        return csr_matrix(matrix)
    if isinstance(op, ops.Reshape | ops.Slice | ops.Pad):
        # Moved like values; one more than the index, as padding brings zeros in.
        taken = op.evaluate([index[None] + 1.0], out, graph.store).astype(np.int64).reshape(-1) - 1
        used = taken >= 0
        entries = np.ones(used.sum(), np.int64), (rows.ravel()[used], taken[used])
        return csr_matrix(entries, shape=(out.size, x.size))
    raise CompileError([Diagnostic("SNN064", f"`{node.name}`: no synapses compute {op.mnemonic}", node.loc)])


def _window_matrix(op: ops.Conv2d | ops.SumPool, graph: Graph, x: tuple[int, ...], out: tuple[int, ...]) -> csr_matrix:
    """A convolution, or a sum of windows, as a matrix."""
    from scipy.sparse import csr_matrix

    if isinstance(op, ops.Conv2d):
        weight, groups, dilation = graph.value(op.weight).astype(np.int64), op.groups, op.dilation
        padding = (op.padding[0], op.padding[2])
    else:
        weight = np.ones((x[0], 1, *op.kernel), np.int64)
        groups, dilation, padding = x[0], (1, 1), (0, 0)
    o, c, kh, kw = weight.shape
    # For every output row and kernel row, the input row; the same of columns.
    y = np.arange(out[1])[:, None] * op.stride[0] - padding[0] + np.arange(kh) * dilation[0]
    z = np.arange(out[2])[:, None] * op.stride[1] - padding[1] + np.arange(kw) * dilation[1]
    inside = ((y >= 0) & (y < x[1]))[:, None, :, None] & ((z >= 0) & (z < x[2]))[None, :, None, :]  # (h, w, kh, kw)
    place = y[:, None, :, None] * x[2] + z[None, :, None, :]
    channel = (np.arange(o) // (o // groups))[:, None] * c + np.arange(c)  # (o, c): the input channel
    row = np.arange(o)[:, None] * (out[1] * out[2]) + np.arange(out[1] * out[2])  # (o, h*w)
    flat_inside, flat_place = inside.reshape(out[1] * out[2], -1), place.reshape(out[1] * out[2], -1)
    at, kernel = np.nonzero(flat_inside)  # position of the output, position in the kernel
    columns = channel[:, :, None] * (x[1] * x[2]) + flat_place[at, kernel]
    values = weight.reshape(o, c, -1)[:, :, kernel]
    rows = np.broadcast_to(row[:, None, at], columns.shape)
    used = values != 0
    return csr_matrix((values[used], (rows[used], columns[used])), shape=(int(np.prod(out)), int(np.prod(x))))
