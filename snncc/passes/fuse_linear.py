"""fuse-linear: all that stands between activations becomes one weighted operation in front of each.

A core of a chip is one kernel and its neurons. So what a network writes as sums, averages, slices and several layers
without an activation between them has to be one kernel over all that it reads. Everything linear is a sum of *terms*,

    out[o, y, x] = bias[o] + sum over terms, c, i, j of kernel[o, c, i, j] * source[c, y*sy + oy + i, x*sx + ox + j]

with zeros outside of the sources, which are activations and inputs. Terms add up, follow one another (their kernels are
convolved) and lie side by side; at the end those of one activation become a convolution over the concatenation of its
sources. A residual sum of currents, relu(conv(h) + x), so reads [h, x] with the kernel [W, 1]; a sum of activations in
front of a layer, conv(relu(a) + relu(b)), reads [a, b] with [W, W], each in a unit of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Loc, Node, Stage, ops
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder

Pair = tuple[int, int]
Shape = tuple[int, int, int]
ONE: Pair = (1, 1)
LARGEST = 1 << 27  # values of a kernel that is still made: a gigabyte


@dataclass(frozen=True)
class Wire:
    """What a kernel reads: a source's map, pooled by averages of ``pool`` x ``pool``, or every ``step``-th row and
    column of it from ``start`` on."""

    source: str
    pool: int = 1
    start: Pair = (0, 0)
    step: Pair = ONE


@dataclass(frozen=True, eq=False)
class Term:
    """A kernel over a wire. ``kernel`` (O, C, kh, kw), or for a mere choice of channels ``select`` (O,): the channel
    that each output copies, -1 for none."""

    wire: Wire
    shape: Shape  # of the wire's map
    whole: Pair  # height and width of the source's own
    select: Array | None = None
    kernel: Array | None = None
    stride: Pair = ONE
    offset: Pair = (0, 0)  # the first row and column that the first window reads; negative in padding

    @property
    def size(self) -> Pair:
        """The window."""
        return ONE if self.kernel is None else (self.kernel.shape[2], self.kernel.shape[3])

    @property
    def plain(self) -> bool:
        """Whether it only chooses channels: its map is the wire's."""
        return self.kernel is None and self.stride == ONE and self.offset == (0, 0)

    @property
    def dense(self) -> Array:
        """The kernel, (O, C, kh, kw)."""
        if self.kernel is not None:
            return self.kernel
        assert self.select is not None
        kernel = np.zeros((len(self.select), self.shape[0], 1, 1), np.float32)
        used = np.flatnonzero(self.select >= 0)
        kernel[used, self.select[used]] = 1.0
        return kernel

    def rows(self, rows: Array) -> Term:
        """The outputs ``rows`` only; -1 stands for one that is always zero."""
        held = self.select if self.kernel is None else self.kernel
        assert held is not None
        taken = held[rows].copy()
        taken[rows < 0] = -1 if self.kernel is None else 0
        return replace(self, select=taken) if self.kernel is None else replace(self, kernel=taken)


@dataclass(frozen=True, eq=False)
class Form:
    """A value as terms. ``layers``: the weighted operations in it."""

    shape: Shape
    terms: tuple[Term, ...]
    bias: Array | None = None
    layers: tuple[Node, ...] = ()


class Mixed(ValueError):
    """Two operations that are no single kernel; says why."""


@dataclass(frozen=True)
class FuseLinear(Pass):
    """Put one weighted operation in front of every activation.

    Networks that are so already stay as they are. What cannot be one kernel is left, with a diagnostic: a padding that
    sees the bias of the layer before, or sources of sizes that do not fit together.

    Attributes:
        poolings: windows, square and side by side, by which spikes can be pooled on their way, so no kernel has to.
        largest: how many rows and columns a kernel may have, and ``strides`` what strides; None: any. An average that
            would need more stays by itself, for it is what is too large.
    """

    poolings: tuple[int, ...] = (1,)
    largest: int | None = None
    strides: tuple[int, ...] | None = None
    name: ClassVar[str] = "fuse-linear"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        return _Fusion(self, graph, context).run()


def as_map(shape: tuple[int, ...]) -> Shape:
    """A feature map (c, h, w) of any shape: what has fewer axes is channels of one pixel."""
    c, h, w = (*shape, 1, 1)[:3]
    return c, h, w


def is_host_layout(graph: Graph, node: Node) -> bool:
    """Whether the node only lays out an input anew, which whoever feeds it can do, or is a channel of ones."""
    if isinstance(node.op, ops.Input | ops.Ones | ops.Encode):
        return True
    filled = isinstance(node.op, ops.Pad) and node.op.mode == "constant" and min(*node.op.before, *node.op.after) >= 0
    moves = isinstance(node.op, ops.Reshape | ops.Flatten) or (filled and len(node.type.shape) == 1)
    return moves and is_host_layout(graph, graph[node.args[0]])


class _Fusion:
    """The walk over one graph: ``parts`` holds what every value is, flattened maps side by side."""

    def __init__(self, options: FuseLinear, graph: Graph, context: Context) -> None:
        self.options, self.graph, self.context = options, graph, context
        self.parts: dict[str, tuple[Form, ...]] = {}
        self.plain: set[str] = set()  # values that a layer can read as they are
        # Flat inputs, which whoever feeds them can lay out in the size of any map.
        self.loose = {n.name for n in graph.nodes if len(n.type.shape) == 1 and is_host_layout(graph, n)}
        self.builder = Builder(graph)
        self.made: dict[tuple[ops.Op, tuple[str, ...]], str] = {}

    def run(self) -> Graph:
        fused: dict[str, Form] = {}
        for node in self.graph.nodes:
            if isinstance(node.op, ops.Activation) and not self._is_layer(node.args[0]):
                found = self.parts[node.args[0]]
                if len(found) == 1 and (form := self._aligned(node, found[0])) is not None:
                    fused[node.name] = form
            self._value(node)
        return self._build(fused) if fused else self.graph

    # --- what values are ---

    def _value(self, node: Node) -> None:
        self.parts[node.name], plain = (_source(node),), True
        if not isinstance(node.op, ops.Activation) and not is_host_layout(self.graph, node):
            try:
                self.parts[node.name] = self._linear(node)
                plain = self._is_wire(node)
            except Mixed as error:
                self._refuse(node, str(error))
            except NotLinear:
                pass  # a source of its own: whoever takes the graph has to say what it cannot do
        if plain:
            self.plain.add(node.name)

    def _refuse(self, node: Node, why: str) -> None:
        layers = [la for arg in node.args for form in self.parts[arg] for la in form.layers]
        before = ", ".join(f"`{la.name}`" for la in layers) or "what is in front of it"
        self.context.report(
            Diagnostic(
                "SNN032",
                f"`{node.name}`: no activation stands between it and {before}, and they are no single kernel: {why}",
                node.loc,
                hint="put a ReLU between them, or merge the two layers into one",
            )
        )

    def _is_wire(self, node: Node) -> bool:
        """Whether the value is spikes on their way: not weighted, whole, pooled as spikes can be, of one map size."""
        if not isinstance(node.op, ops.AvgPool | ops.Flatten | ops.Reshape | ops.Concat):
            return False
        forms = self.parts[node.name]
        return (
            all(arg in self.plain for arg in node.args)
            and not any(form.layers for form in forms)
            and all(t.plain for f in forms for t in f.terms)
            and len({form.shape[1:] for form in forms if form.terms[0].wire.source not in self.loose}) <= 1
        )

    def _is_layer(self, name: str) -> bool:
        """Whether the value is one weighted operation on wires, which nothing else reads."""
        node = self.graph[name]
        return (
            isinstance(node.op, ops.Weighted)
            and not self._of_pixels(node)
            and node.args[0] in self.plain
            and len(self.graph.users[name]) == 1
            and name not in self.graph.outputs
        )

    def _of_pixels(self, node: Node) -> bool:
        """Whether it scales each element of a flattened map: no kernel over channels does, but a matrix."""
        flat = isinstance(node.op, ops.Affine) and len(node.type.shape) == 1
        return flat and any(form.shape[1:] != ONE for form in self.parts[node.args[0]])

    def _linear(self, node: Node) -> tuple[Form, ...]:
        """The value of a linear operation. Raises Mixed, and NotLinear for another one."""
        op, store = node.op, self.graph.store
        operands = [self.parts[arg] for arg in node.args]
        if any(len(each.type.shape) not in (1, 3) for each in (node, *self.graph.producers(node))):
            raise NotLinear
        match op:
            case ops.Flatten():
                return operands[0]
            case ops.Reshape():
                (form,) = operands[0] if len(operands[0]) == 1 else (None,)
                if form is None or as_map(op.shape) not in (form.shape, (prod(form.shape), 1, 1)):
                    raise NotLinear
                if as_map(op.shape) != form.shape and len(op.shape) > 1:
                    raise NotLinear
                return (form,)
            case ops.Concat():
                if op.axis:
                    raise NotLinear
                forms = [form for operand in operands for form in operand]
                flat = len(node.type.shape) == 1
                return (_concat(forms),) if not flat or all(f.shape[1:] == ONE for f in forms) else tuple(forms)
            case ops.Add():
                left, right = operands
                if [f.shape for f in left] != [f.shape for f in right]:
                    raise Mixed("the maps that they flatten differ")
                return tuple(_add(a, b) for a, b in zip(left, right, strict=True))
            case ops.Linear() | ops.Affine() if isinstance(op, ops.Linear) or self._of_pixels(node):
                if len(node.type.shape) != 1:
                    raise NotLinear
                if isinstance(op, ops.Affine) and op.weight.size**2 > LARGEST:
                    raise Mixed(f"it scales {op.weight.size:,} elements of a flattened map one by one")
                weight = store[op.weight] if isinstance(op, ops.Linear) else np.diag(store[op.weight])
                columns = np.cumsum([0, *(prod(form.shape) for form in operands[0])])
                bias = None if op.bias is None else store[op.bias]
                result = Form((len(weight), 1, 1), (), bias, (node,))
                for form, at in zip(operands[0], columns, strict=False):
                    block = weight[:, at : at + prod(form.shape)].reshape(-1, *form.shape)
                    result = _add(result, _convolve(form, block, ONE, (0, 0), ONE, (1, 1)))
                return (result,)
        if len(operands) != 1 or len(operands[0]) != 1:
            raise NotLinear
        (form,) = operands[0]
        flat = len(node.type.shape) < 3 and form.shape[1:] != ONE
        match op:
            case ops.Conv2d():
                weight = ungrouped(store[op.weight], op.groups)
                size = (node.type.shape[1], node.type.shape[2])
                result = _convolve(form, weight, op.stride, (-op.padding[0], -op.padding[2]), op.dilation, size)
                return (_with_bias(result, None if op.bias is None else store[op.bias], node),)
            case ops.Affine() if not flat:
                terms = tuple(replace(t, kernel=_scaled(t.dense, store[op.weight]), select=None) for t in form.terms)
                bias = None if form.bias is None else form.bias * store[op.weight]
                result = replace(form, terms=terms, bias=bias)
                return (_with_bias(result, None if op.bias is None else store[op.bias], node),)
            case ops.AvgPool():
                return (self._average(op, form, as_map(node.type.shape)),)
            case ops.Slice() if not flat:
                (c, y, x), (sc, sy, sx) = ((*v, *(d,) * (3 - len(v))) for v, d in ((op.start, 0), (op.step, 1)))
                rows = np.arange(form.shape[0])[c : op.stop[0] : sc]
                bias = None if form.bias is None else form.bias[rows]
                result = Form(as_map(node.type.shape), tuple(t.rows(rows) for t in form.terms), bias, form.layers)
                return (_strided(result, (sy, sx), (y, x)),)
            case ops.Pad() if not flat and op.mode == "constant" and op.value == 0:
                (c, y, x), (c_end, _, _) = ((*v, 0, 0)[:3] for v in (op.before, op.after))
                rows = np.pad(np.arange(form.shape[0]), (max(c, 0), max(c_end, 0)), constant_values=-1)
                rows = rows[max(-c, 0) : len(rows) - max(-c_end, 0)]
                shape = as_map(node.type.shape)
                _need_zeros(form, (-y, -x), ONE, ONE, (shape[1], shape[2]))
                terms = tuple(t.rows(rows) for t in form.terms)
                bias = None if form.bias is None else np.where(rows < 0, 0, form.bias[rows])
                return (_strided(Form(shape, terms, bias, form.layers), ONE, (-y, -x)),)
        raise NotLinear

    def _average(self, op: ops.AvgPool, form: Form, shape: Shape) -> Form:
        counts = op.counts(form.shape, shape)
        if (counts != counts.flat[0]).any():
            raise NotLinear
        kh, kw = op.kernel
        plain = kh == kw and op.stride == op.kernel and op.padding == (0, 0) and counts.flat[0] == kh * kw
        plain = plain and all(n // kh == m for n, m in zip(form.shape[1:], shape[1:], strict=True))
        plain = plain and all(t.plain and t.wire.step == ONE and t.shape[1:] == form.shape[1:] for t in form.terms)
        pools = [p for p in self.options.poolings if all(t.wire.pool * p in self.options.poolings for t in form.terms)]
        if plain and kh in pools:  # (without a bias: no weighted operation is in it)
            terms = [
                replace(t, wire=replace(t.wire, pool=t.wire.pool * kh), shape=(t.shape[0], *shape[1:]))
                for t in form.terms
            ]
            return replace(form, shape=shape, terms=tuple(terms))
        # What spikes can be pooled by on their way needs no kernel: the rest has a smaller one.
        part = max((p for p in pools if kh % p == 0 and not any(n % p for n in form.shape[1:])), default=1)
        if plain and part > 1:
            first, rest = ((n, n) for n in (part, kh // part))
            size = (form.shape[0], form.shape[1] // part, form.shape[2] // part)
            pooled = self._average(ops.AvgPool(first, first), form, size)
            return self._average(ops.AvgPool(rest, rest), pooled, shape)
        window = np.full((1, 1, kh, kw), 1 / float(counts.flat[0]), np.float32)
        offset = (-op.padding[0], -op.padding[1])
        _need_zeros(form, offset, op.kernel, op.stride, (shape[1], shape[2]))
        kernels = (_taps(t, t.dense, window, lambda one, k: k * one[0, 0]) for t in form.terms)
        terms = [replace(t, kernel=k, select=None) for t, k in zip(form.terms, kernels, strict=True)]
        bias = None if form.bias is None else form.bias * (kh * kw / float(counts.flat[0]))
        return _strided(Form(shape, tuple(terms), bias, form.layers), op.stride, offset)

    def _aligned(self, node: Node, form: Form) -> Form | None:
        """The form in front of the activation ``node`` as one kernel can hold it; None, with a diagnostic, if none can
        or the activation sees another shape."""
        flat, reads = len(node.type.shape) == 1, self.graph[node.args[0]]
        if flat and form.shape[1:] != ONE:
            return None
        if _is_copy(form):
            return form
        if self._averages(reads) and not all(self._held(t, form) for t in form.terms):
            return None
        terms = align(form, self.loose if flat else set())
        if terms is None:
            sizes = ", ".join(sorted({f"`{t.wire.source}` {t.shape[1]} x {t.shape[2]}" for t in form.terms}))
            strides = " and ".join(sorted({"x".join(map(str, t.stride)) for t in form.terms}))
            text = f"`{node.name}` adds up what cannot be read by one kernel: {sizes}, with strides {strides}"
            hint = "bring both to one size before they meet, by pooling, or by an activation behind the strided layer"
            self.context.report(Diagnostic("SNN061", text, reads.loc.merge(node.loc), hint=hint))
            return None
        size = ONE if flat else _window(terms, form.shape).size
        shapes = {t.wire: t.shape if flat else t.shape[:1] for t in terms}.values()
        if form.shape[0] * sum(map(prod, shapes)) * prod(size) > LARGEST:
            words = " x ".join(map(str, (sum(map(prod, shapes)), *size)))
            text = f"the layers in front of `{node.name}` make one kernel of {words}"
            self.context.report(Diagnostic("SNN050", text, reads.loc, hint="put an activation between the layers"))
            return None
        return replace(form, terms=tuple(terms))

    def _averages(self, node: Node) -> bool:
        """Whether an average of activations, over windows side by side, is in this value."""
        if isinstance(node.op, ops.Activation) or is_host_layout(self.graph, node):
            return False
        if isinstance(node.op, ops.AvgPool) and node.op.stride == node.op.kernel and node.args[0] in self.plain:
            return node.name not in self.plain
        return any(self._averages(producer) for producer in self.graph.producers(node))

    def _held(self, term: Term, form: Form) -> bool:
        """Whether a kernel may have the term's size and stride."""
        small = self.options.largest is None or max(term.size) <= self.options.largest
        strides = [s for s, m in zip(term.stride, form.shape[1:], strict=True) if m > 1]
        return small and (self.options.strides is None or all(s in self.options.strides for s in strides))

    # --- the new graph ---

    def _build(self, fused: dict[str, Form]) -> Graph:
        kept: set[str] = {*self.graph.outputs, *(n.name for n in self.graph.inputs)}
        for node in reversed(self.graph.nodes):
            if node.name in kept and node.name in fused:
                kept.update(term.wire.source for term in fused[node.name].terms)
            elif node.name in kept:
                kept.update(node.args)
        self.free = self.graph.by_name.keys() - kept  # names that layers which are no more leave to those that come
        for node in self.graph.nodes:
            if node.name in kept:
                args = (self._layer(node, fused[node.name]),) if node.name in fused else node.args
                self.builder.copy(node, args)
        return replace(self.graph, nodes=tuple(self.builder.nodes.values())).live()

    def _layer(self, node: Node, form: Form) -> str:
        """The weighted operation in front of the activation ``node``."""
        flat, reads, terms = len(node.type.shape) == 1, self.graph[node.args[0]], form.terms
        if _is_copy(form):
            one = self.builder.store.put(f"{node.name}.one", np.ones(form.shape[0], np.float32))
            wire = self._wire(terms[0].wire, flat, reads.loc)
            return self.builder.add(self.builder.unique(f"{node.name}.copy"), ops.Affine(one), (wire,), node.loc)
        loc = Loc().merge(*(layer.loc for layer in form.layers), reads.loc)
        main = max(form.layers, key=lambda layer: layer.op.weight.size, default=reads)  # type: ignore[attr-defined]
        name, store = self._name(main.name), self.builder.store
        wires = dict.fromkeys(term.wire for term in terms)
        found = [self._wire(wire, flat, loc) for wire in wires]
        x = found[0] if len(found) == 1 else self.builder.add(self._name(f"{name}.in"), ops.Concat(), tuple(found), loc)
        bias = None
        if form.bias is not None and form.bias.any():
            bias = store.put(f"{name}.bias", form.bias.astype(np.float32))
        if flat:
            blocks = [_over_map([t for t in terms if t.wire == wire], form.shape) for wire in wires]
            weight = store.put(f"{name}.weight", np.concatenate(blocks, axis=1), copy=False)
            return self.builder.add(name, ops.Linear(weight, bias), (x,), loc)
        window = _window(terms, form.shape)
        padding = (window.before[0], window.after[0], window.before[1], window.after[1])
        weight = store.put(f"{name}.weight", _joined(terms, form.shape[0], window), copy=False)
        return self.builder.add(name, ops.Conv2d(weight, bias, terms[0].stride, padding), (x,), loc)

    def _name(self, name: str) -> str:
        if name in self.free and name not in self.builder.nodes:
            return name
        return self.builder.unique(name)

    def _once(self, name: str, op: ops.Op, args: tuple[str, ...], loc: Loc) -> str:
        """A node that serves all who read the same."""
        if (op, args) not in self.made:
            self.made[op, args] = self.builder.add(self._name(name), op, args, loc)
        return self.made[op, args]

    def _wire(self, wire: Wire, flat: bool, loc: Loc) -> str:
        """The value of a wire, flattened or as a map; made for the first that reads it."""
        name, shape = wire.source, as_map(self.builder.type(wire.source).shape)
        if wire.pool > 1:
            window = (wire.pool, wire.pool)
            pool = ops.AvgPool(window, window)
            there = (u.name for u in self.graph.users[name] if u.op == pool and u.name in self.builder.nodes)
            name = next(there, None) or self._once(f"{name}.pool", pool, (name,), loc)
        elif wire.step != ONE or wire.start != (0, 0):
            piece = ops.Slice((0, *wire.start), shape, (1, *wire.step))
            phase = "_".join(map(str, (*wire.start, *wire.step)))
            name = self._once(f"{name}.slice{phase}", piece, (name,), loc)
        rank = len(self.builder.type(name).shape)
        if flat and rank > 1:
            return self._once(f"{name}.flat", ops.Flatten(), (name,), loc)
        if not flat and rank == 1:
            return self._once(f"{name}.map", ops.Reshape(shape), (name,), loc)
        return name


class NotLinear(Exception):
    """An operation that is no sum of terms."""


# --- terms ------------------------------------------------------------------------------------------------------------


def _source(node: Node) -> Form:
    shape = as_map(node.type.shape)
    return Form(shape, (Term(Wire(node.name), shape, shape[1:], select=np.arange(shape[0])),))


def ungrouped(weight: Array, groups: int) -> Array:
    """Grouped weights (O, C/groups, kh, kw) as a dense kernel (O, C, kh, kw)."""
    if groups == 1:
        return weight
    o, c = weight.shape[:2]
    dense = np.zeros((o, c * groups, *weight.shape[2:]), weight.dtype)
    for g, rows in enumerate(np.split(np.arange(o), groups)):
        dense[rows, g * c : (g + 1) * c] = weight[rows]
    return dense


def _scaled(kernel: Array, rows: Array) -> Array:
    return np.asarray(kernel * rows.reshape(-1, 1, 1, 1).astype(np.float64))


def _with_bias(form: Form, bias: Array | None, layer: Node) -> Form:
    total = form.bias if bias is None else bias if form.bias is None else form.bias + bias.astype(np.float64)
    return replace(form, bias=total, layers=(*form.layers, layer))


def _add(a: Form, b: Form) -> Form:
    bias = b.bias if a.bias is None else a.bias if b.bias is None else a.bias + b.bias
    return Form(a.shape, (*a.terms, *b.terms), bias, (*a.layers, *b.layers))


def _concat(forms: Sequence[Form]) -> Form:
    total, at, terms = sum(form.shape[0] for form in forms), 0, []
    for form in forms:
        rows = np.full(total, -1)
        rows[at : at + form.shape[0]] = np.arange(form.shape[0])
        terms += [term.rows(rows) for term in form.terms]
        at += form.shape[0]
    bias = None
    if any(form.bias is not None for form in forms):
        bias = np.concatenate([np.zeros(f.shape[0]) if f.bias is None else f.bias for f in forms])
    layers = tuple(dict.fromkeys(layer for form in forms for layer in form.layers))
    return Form((total, *forms[0].shape[1:]), tuple(terms), bias, layers)


def _strided(form: Form, stride: Pair, offset: Pair) -> Form:
    """``form`` read at every ``stride``-th row and column from ``offset`` on."""
    terms = tuple(
        replace(
            t,
            stride=(t.stride[0] * stride[0], t.stride[1] * stride[1]),
            offset=(t.offset[0] + t.stride[0] * offset[0], t.offset[1] + t.stride[1] * offset[1]),
        )
        for t in form.terms
    )
    return replace(form, terms=terms)


def _need_zeros(form: Form, offset: Pair, size: Pair, stride: Pair, out: Pair) -> None:
    """Make sure that where windows reach outside of ``form``, there are zeros: a term's own window may lie over the
    edge of its source, where the value is not zero, as padding would have it. Raises Mixed."""
    for i, (o, k, s, m) in enumerate(zip(offset, size, stride, out, strict=True)):
        inner = form.shape[i + 1]
        first, last = o, (m - 1) * s + o + k - 1
        if first >= 0 and last < inner:
            continue
        if form.bias is not None and form.bias.any():
            raise Mixed("its padding is zero, where the bias before would be needed")
        for t in form.terms:
            low = -t.stride[i] + t.offset[i] + t.size[i] - 1  # the last row that the window in front of the first reads
            high = inner * t.stride[i] + t.offset[i]
            if (first < 0 and low >= 0) or (last >= inner and high < t.shape[i + 1]):
                raise Mixed("its padding is zero, where the layer before has windows over the edge of its input")


def _convolve(form: Form, weight: Array, stride: Pair, offset: Pair, dilation: Pair, out: Pair) -> Form:
    """A convolution of ``form`` with weight (O, M, kh, kw), windows from ``offset`` on. Raises Mixed."""
    reach = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
    _need_zeros(form, offset, (reach[0], reach[1]), stride, out)
    weight = _spread(weight, dilation)
    terms = []
    for t in form.terms:
        if t.kernel is None and t.select is not None:
            # Columns go where the channels come from; the usual case, all in order, is the weight itself.
            kernel = weight
            if len(t.select) != t.shape[0] or (t.select != np.arange(t.shape[0])).any():
                kernel = np.zeros((len(weight), t.shape[0], *weight.shape[2:]), weight.dtype)
                for m, c in enumerate(t.select):
                    if c >= 0:
                        kernel[:, c] += weight[:, m]
            kernel = _spread(kernel, t.stride)
        else:
            kernel = _taps(t, t.dense, weight, lambda w, k: np.tensordot(w, k, axes=(1, 0)))
        terms.append(replace(t, kernel=kernel, select=None))
    # A form's own bias passes through all of the window, as no part of it lies in padding.
    bias = None if form.bias is None else weight.sum(axis=(2, 3), dtype=np.float64) @ form.bias
    return _strided(Form((len(weight), *out), tuple(terms), bias, form.layers), stride, offset)


def _spread(kernel: Array, steps: Pair) -> Array:
    """``kernel`` with its rows and columns ``steps`` apart."""
    if steps == ONE:
        return kernel
    kh, kw = ((k - 1) * s + 1 for k, s in zip(kernel.shape[2:], steps, strict=True))
    spread = np.zeros((*kernel.shape[:2], kh, kw), kernel.dtype)
    spread[:, :, :: steps[0], :: steps[1]] = kernel
    return spread


def _taps(term: Term, inner: Array, outer: Array, multiply: Callable[[Array, Array], Array]) -> Array:
    """The kernel of ``outer`` (.., kh, kw) behind the term's ``inner`` one: a product for each of the outer's taps."""
    (kh, kw), (sy, sx) = outer.shape[2:], term.stride
    size = ((kh - 1) * sy + inner.shape[2], (kw - 1) * sx + inner.shape[3])
    total: Array | None = None
    for i, j in product(range(kh), range(kw)):
        part = multiply(outer[:, :, i, j], inner.astype(np.float64))
        if total is None:
            if len(part) * part.shape[1] * prod(size) > LARGEST:
                raise Mixed(f"together they have a kernel of {part.shape[1]} x {size[0]} x {size[1]}")
            total = np.zeros((*part.shape[:2], *size))
        total[:, :, i * sy : i * sy + inner.shape[2], j * sx : j * sx + inner.shape[3]] += part
    assert total is not None
    return total


# --- sources that meet in one kernel ----------------------------------------------------------------------------------


def align(form: Form, loose: Set[str] = frozenset()) -> list[Term] | None:
    """The terms with one stride over maps of one size, or None. Those of sources in ``loose`` may have any.

    Where they differ, a pooling goes into the kernel, or a source is read as slices of every n-th row and column.
    """
    terms = [_unstrided(t, form) for t in form.terms]
    if all(t.wire.source in loose for t in terms):
        return terms
    unpooled = {t: [_unstrided(u, form) for u in _unpooled(t)] for t in terms}
    goals = dict.fromkeys((t.stride, t.shape[1:]) for u in terms for t in (u, *unpooled[u]))
    best: tuple[int, list[Term]] | None = None
    for stride, size in goals:
        found, cost = [], 0
        for t in terms:
            if t.wire.source in loose:
                found.append(t)
                continue
            for price, options in ((0, [t]), (1, unpooled[t]), (100, _sliced(t, stride, size))):
                if options and all((o.stride, o.shape[1:]) == (stride, size) for o in options):
                    found += options
                    cost += price
                    break
            else:
                break
        else:
            if best is None or cost < best[0]:
                best = (cost, found)
    return best[1] if best is not None else None


def _unstrided(t: Term, form: Form) -> Term:
    """Of a single row or column, the stride is no matter."""
    stride = tuple(1 if m == 1 else s for s, m in zip(t.stride, form.shape[1:], strict=True))
    return replace(t, stride=(stride[0], stride[1]))


def _unpooled(t: Term) -> list[Term]:
    """The same on the source before its pooling; empty if there is none."""
    p = t.wire.pool
    if p == 1 or t.whole != (t.shape[1] * p, t.shape[2] * p):  # what pooling cuts off, a kernel would read
        return []
    return [
        replace(
            t,
            wire=replace(t.wire, pool=1),
            shape=(t.shape[0], *t.whole),
            kernel=t.dense.repeat(p, axis=2).repeat(p, axis=3) / (p * p),
            select=None,
            stride=(t.stride[0] * p, t.stride[1] * p),
            offset=(t.offset[0] * p, t.offset[1] * p),
        )
    ]


def _sliced(t: Term, stride: Pair, size: tuple[int, ...]) -> list[Term]:
    """The term over slices of its source, one for each phase that its kernel uses, with the wanted stride and size;
    empty if that is not possible."""
    if t.wire.pool > 1 or any(a % b for a, b in zip(t.stride, stride, strict=True)):
        return []
    step = tuple(a // b for a, b in zip(t.stride, stride, strict=True))
    kernel, found = t.dense, []
    for phase in product(*map(range, step)):
        # Rows offset + i of this phase: the first one, and the slice's row that it is.
        first = tuple((p - o) % s for p, o, s in zip(phase, t.offset, step, strict=True))
        part = kernel[:, :, first[0] :: step[0], first[1] :: step[1]]
        if not part.any():
            continue
        lengths = tuple(-(-(n - p) // s) for n, p, s in zip(t.shape[1:], phase, step, strict=True))
        if lengths != tuple(size):
            return []
        at = tuple((o + f - p) // s for o, f, p, s in zip(t.offset, first, phase, step, strict=True))
        wire = replace(t.wire, start=(phase[0], phase[1]), step=(step[0], step[1]))
        shape = (t.shape[0], lengths[0], lengths[1])
        found.append(Term(wire, shape, t.whole, None, part, stride, (at[0], at[1])))
    return found


@dataclass(frozen=True)
class _Window:
    """What a convolution of several terms spans, with its padding in front and behind."""

    size: Pair
    before: Pair
    after: Pair


def _window(terms: Sequence[Term], shape: Shape) -> _Window:
    """The smallest window over all terms with which a convolution gives just the rows and columns of ``shape``."""
    sizes, befores, afters = [], [], []
    for i in (0, 1):
        first = min(t.offset[i] for t in terms)
        before = max(-first, 0)
        size = max(t.offset[i] + t.size[i] for t in terms) + before
        n, m, s = terms[0].shape[i + 1] + before, shape[i + 1], terms[0].stride[i]
        after = max(0, (m - 1) * s + size - n)
        sizes.append(size + max(0, n + after - size - (m * s - 1)))  # else there would be one more
        befores.append(before)
        afters.append(after)
    return _Window((sizes[0], sizes[1]), (befores[0], befores[1]), (afters[0], afters[1]))


def _joined(terms: Sequence[Term], outputs: int, window: _Window) -> Array:
    """One kernel (O, C, kh, kw) over the channels of all wires, in the order in which they come first."""
    channels = {t.wire: t.shape[0] for t in terms}
    starts = dict(zip(channels, np.cumsum([0, *channels.values()]), strict=False))
    kernel = np.zeros((outputs, sum(channels.values()), *window.size), np.float32)
    for t in terms:
        at, (y, x) = starts[t.wire], (o + b for o, b in zip(t.offset, window.before, strict=True))
        kernel[:, at : at + t.shape[0], y : y + t.size[0], x : x + t.size[1]] += t.dense
    return kernel


def _is_copy(form: Form) -> bool:
    """Whether the value is a wire as it is."""
    if len(form.terms) != 1 or form.bias is not None:
        return False
    (t,) = form.terms
    return t.plain and t.shape == form.shape and np.array_equal(t.select, np.arange(t.shape[0]))  # type: ignore[arg-type]


def _over_map(terms: Sequence[Term], shape: Shape) -> Array:
    """A kernel of one window as weights over all of the terms' map (O, C*h*w): what it sees beside the map is zero and
    drops out."""
    window, (c, h, w) = _window(terms, shape), terms[0].shape
    y, x = window.before
    inside = _joined(terms, shape[0], window)[:, :, y : y + h, x : x + w]
    over = np.pad(inside, ((0, 0), (0, 0), (0, h - inside.shape[2]), (0, w - inside.shape[3])))
    return over.reshape(shape[0], c * h * w)
