"""Widths with which a network fits: how many channels each of its layers could have, found with the placement itself.

A layer's width is a number that others share: a residual sum has one on both sides, a batch norm and a depthwise
convolution have that of what they read, a concatenation those of its parts, and inputs and outputs stay as they are. So
the traced network is read into *widths*, made narrower as a whole, and sent through the compiler's own passes up to the
placement. What is proposed so is what compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import gcd, lcm, prod

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, Store, ops
from snncc.ir.types import Array, Param

TRIALS = 60  # networks that are placed at most


@dataclass(eq=False)
class Width:
    """A number of channels that may change.

    Attributes:
        now: what it is.
        free: whether it may.
        grain: what it has to be a multiple of (groups).
        pieces: what it consists of, once something reads only a part of it.
        same: the width that it is tied to, which stands for both.
    """

    now: int
    free: bool = True
    grain: int = 1
    pieces: tuple[Width, ...] = ()
    same: Width | None = None

    @property
    def root(self) -> Width:
        """What stands for it."""
        return self if self.same is None else self.same.root


@dataclass(frozen=True)
class Run:
    """Values in a row: ``times`` for every channel of a width (its pixels, once they are flattened)."""

    width: Width
    times: int = 1

    @property
    def size(self) -> int:
        return self.width.now * self.times

    def parts(self) -> list[Run]:
        """The runs that it is now."""
        root = self.width.root
        return [p for piece in root.pieces for p in Run(piece, self.times).parts()] or [Run(root, self.times)]


Axis = tuple[Run, ...]  # what the first axis of a value consists of


def parts(axis: Axis) -> list[Run]:
    """The runs that an axis is now."""
    return [part for run in axis for part in run.parts()]


class Widths:
    """The widths of a traced network: ``axes`` has what the first axis of every value consists of."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._axes: dict[str, Axis] = {}
        shared: dict[Param, Node] = {}
        for node in graph.nodes:
            self._axes[node.name] = self._read(node)
            if isinstance(node.op, ops.Weighted):
                first = shared.setdefault(node.op.weight, node)  # a layer that is called twice has one width
                for a, b in ((first, node), *zip(graph.producers(first), graph.producers(node), strict=True)):
                    self._tie(self._axes[a.name], self._axes[b.name])
        for name in graph.outputs:
            self._keep(self._axes[name])

    def axis(self, name: str) -> list[Run]:
        """What the first axis of a value consists of."""
        return parts(self._axes[name])

    @property
    def free(self) -> list[Width]:
        """Those that may change, in order."""
        runs = (run for node in self.graph.nodes for run in self.axis(node.name))
        return list(dict.fromkeys(run.width for run in runs if run.width.free))

    # --- reading ---

    def _read(self, node: Node) -> Axis:
        op, shape = node.op, node.type.shape
        operands = [self._axes[arg] for arg in node.args]
        x = self.graph.arg_types(node)[0].shape if node.args else ()
        match op:
            case ops.Conv2d() if op.groups == 1:
                return (Run(Width(shape[0])),)
            case ops.Conv2d() if op.groups == x[0]:
                return tuple(Run(run.width, run.times * (shape[0] // x[0])) for run in operands[0])
            case ops.Conv2d():
                for run in (reads := parts(operands[0])):
                    run.width.grain = lcm(run.width.grain, op.groups)
                    run.width.free &= len(reads) == run.times == 1
                return (Run(Width(shape[0], grain=op.groups)),)
            case ops.Linear() if len(shape) == 1:
                return (Run(Width(shape[0])),)
            case ops.Elementwise() | ops.BatchNorm() | ops.Affine() | ops.Stateful():
                return operands[0]
            case ops.AvgPool() | ops.AdaptiveAvgPool() | ops.SumPool():
                return operands[0]
            case ops.Pad() if not op.before[0] and not op.after[0]:
                return operands[0]
            case ops.Concat() if op.axis == 0:
                return tuple(run for axis in operands for run in axis)
            case ops.Concat() | ops.Add():
                for axis in operands[1:]:
                    self._tie(operands[0], axis)
                return operands[0]
            case ops.Slice() if op.step[0] == 1:
                return self._slice(operands[0], op.start[0], op.stop[0])
            case ops.Flatten() | ops.Reshape() if len(shape) == 1:
                return tuple(Run(run.width, run.times * prod(x[1:])) for run in operands[0])
            case ops.Reshape() if shape[0] == x[0]:
                return operands[0]
        for axis in operands:
            self._keep(axis)
        return (Run(Width(shape[0], free=False)),)

    def _keep(self, axis: Axis) -> None:
        for run in parts(axis):
            run.width.free = False

    def _tie(self, a: Axis, b: Axis) -> None:
        """Make two axes of one length the same."""
        left, right = parts(a), parts(b)
        if [(r.width.now, r.times) for r in left] != [(r.width.now, r.times) for r in right]:
            self._keep((*a, *b))
            return
        for p, q in zip(left, right, strict=True):
            one, other = p.width.root, q.width.root
            if one is not other:
                one.free, one.grain, other.same = one.free and other.free, lcm(one.grain, other.grain), one

    def _slice(self, axis: Axis, start: int, stop: int) -> Axis:
        """Some of the channels: a width that is cut becomes pieces of one size, as of ``chunk``."""
        for cut in (start, stop):
            at = 0
            for run in parts(axis):
                if at < cut < at + run.size:
                    n, rest = divmod(cut - at, run.times)
                    if rest or run.width.grain > 1:
                        self._keep(axis)
                        return (Run(Width(stop - start, free=False)),)
                    one = gcd(n, run.width.now)
                    run.width.pieces = (Width(one, run.width.free),) * (run.width.now // one)
                at += run.size
        found, at = [], 0
        for run in parts(axis):
            if start <= at < stop:
                found.append(run)
            at += run.size
        return tuple(found)

    # --- a narrower network ---

    def kept(self, name: str, widths: Mapping[Width, int]) -> Array:
        """Which values of the first axis stay: of every width the first ones."""
        kept, at = [np.arange(0)], 0
        for run in self.axis(name):
            kept.append(np.arange(at, at + widths.get(run.width, run.width.now) * run.times))
            at += run.size
        return np.concatenate(kept)

    def narrowed(self, widths: Mapping[Width, int]) -> Graph:
        """The network with these widths."""
        store, nodes = Store(), dict[str, Node]()
        for node in self.graph.nodes:
            op = self._narrow(node, widths, store)
            type = op.infer(tuple(nodes[arg].type for arg in node.args), store)
            nodes[node.name] = replace(node, op=op, type=type)
        return replace(self.graph, nodes=tuple(nodes.values()), store=store)

    def _narrow(self, node: Node, widths: Mapping[Width, int], store: Store) -> ops.Op:
        op, rows = node.op, self.kept(node.name, widths)
        reads = self.kept(node.args[0], widths) if node.args else rows
        new: dict[str, object] = {}
        for name, param in op.params():
            value = self.graph.value(param)
            if name == "weight" and isinstance(op, ops.Conv2d | ops.Linear):
                if isinstance(op, ops.Conv2d) and op.groups == self.graph.arg_types(node)[0].shape[0]:
                    value = value[rows]
                    new["groups"] = len(reads)  # (1 of a single channel)
                elif isinstance(op, ops.Conv2d) and op.groups > 1:
                    value = value[rows][:, : len(reads) // op.groups]
                elif isinstance(op, ops.Conv2d) or len(node.type.shape) == 1:
                    value = value[rows][:, reads]
            elif value.shape[:1] == node.type.shape[:1]:
                value = value[rows]
            new[name] = store.put(param.name, value)
        if isinstance(op, ops.Slice):
            start, stop = (int(np.searchsorted(reads, at)) for at in (op.start[0], op.stop[0]))
            new |= {"start": (start, *op.start[1:]), "stop": (stop, *op.stop[1:])}
        elif isinstance(op, ops.Reshape):
            new["shape"] = (len(rows), *op.shape[1:])
        return replace(op, **new)


def tidy(width: Width) -> list[int]:
    """The numbers of channels to try, ascending: such as 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, and what it is now."""
    most = width.now // width.grain
    steps = (n << i for i in range(most.bit_length()) for n in ((4, 5, 6, 7) if i else (1, 2, 3, 4, 5, 6, 7)))
    return [n * width.grain for n in sorted({n for n in steps if n < most} | {most})]


@dataclass
class Trials:
    """Tries networks; ``left``: how many more may be tried."""

    fits: Callable[[Graph], bool]
    widths: Widths
    left: int = TRIALS
    known: dict[tuple[int, ...], bool] = field(default_factory=dict)

    def fit(self, sizes: Mapping[Width, int]) -> bool:
        """Whether the network fits with these widths; False when there is no trial left."""
        key = tuple(sizes.values())
        if key not in self.known and self.left:
            self.left -= 1
            self.known[key] = self.fits(self.widths.narrowed(sizes))
        return self.known.get(key, False)


def proposed(widths: Widths, fits: Callable[[Graph], bool]) -> dict[Width, int] | None:
    """Widths with which the network fits: all narrower by one factor first, then each as wide as may be, the one
    that lost most first. None: not even with the smallest ones."""
    trials, steps = Trials(fits, widths), {width: tidy(width) for width in widths.free}

    def scaled(n: int) -> dict[Width, int]:
        """All widths by the root of 2 to the -n."""
        return {w: max([sizes[0], *(s for s in sizes if s <= w.now / 2 ** (n / 2))]) for w, sizes in steps.items()}

    best = {width: sizes[0] for width, sizes in steps.items()}
    if not trials.fit(best):
        return None
    low, high = 0, 2 * max(width.now for width in steps).bit_length()
    while low < high:
        middle = (low + high) // 2
        if trials.fit(scaled(middle)):
            high, best = middle, scaled(middle)
        else:
            low = middle + 1
    growing = [width for width in steps if best[width] < width.now]
    while growing:
        width = min(growing, key=lambda w: best[w] / w.now)
        wider = best | {width: next(n for n in steps[width] if n > best[width])}
        if trials.fit(wider):
            best = wider
        if not trials.fit(wider) or best[width] == width.now:
            growing.remove(width)
    return best


def layers(widths: Widths, sizes: Mapping[Width, int]) -> Iterator[tuple[str, int, int]]:
    """The layers with weights whose width changes: module, width now, and the proposed one."""
    seen = set[Param]()
    for node in widths.graph.nodes:
        if isinstance(node.op, ops.Conv2d | ops.Linear) and node.op.weight not in seen:
            seen.add(node.op.weight)
            now, new = node.type.shape[0], len(widths.kept(node.name, sizes))
            if new != now:
                yield next((s.module for s in node.loc if s.module), node.name), now, new


def propose(
    graph: Graph, chip: str, fits: Callable[[Graph], bool], why: Callable[[Graph], list[Diagnostic]]
) -> Diagnostic | None:
    """SNN048: widths with which a traced network fits, or that there are none.

    Args:
        fits: whether a network does.
        why: what keeps one from fitting; empty, if it is something else than the chip's size.
    """
    widths = Widths(graph)
    sizes = proposed(widths, fits)
    if sizes is not None:
        rows = tuple(layers(widths, sizes))
        text = f"the layers do not fit the cores of {chip} together; with fewer channels in {len(rows)} of them they do"
        return Diagnostic("SNN048", text, hint="train with these numbers of channels", widths=rows)
    smallest = {width: tidy(width)[0] for width in widths.free}
    reasons = why(widths.narrowed(smallest))
    if not reasons:
        return None
    text = f"no numbers of channels make the network fit {chip}. With the fewest, {reasons[0].message}"
    return Diagnostic("SNN048", text, hint=reasons[0].hint)
