"""What a traced program has done so far: IR nodes, the tensors that stand for them, and what could not be said in IR.

Trouble is recorded as a node of its own (:class:`Unknown`), and only those that an output needs are reported in the
end: dead code is nobody's problem, and what comes after an unknown operation is still looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType, TracebackType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from snncc.frontend.places import Place, constructed_at, entered_at, is_users, users_place
from snncc.ir import Diagnostic, Graph, Loc, Node, Param, Severity, Source, Store, Type
from snncc.ir.ops import Input, Op, Pad, Reshape, ShapeError, Slice
from snncc.ir.types import identifier


class Refused(Exception):
    """An operation, or a use of one, that has no equal in the IR."""

    def __init__(self, message: str, hint: str = "", code: str = "SNN001") -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


class ShapeUnknown(Exception):
    """The operand comes from an operation that was refused, and nothing is known of its shape."""


@dataclass(frozen=True)
class Unknown(Op):
    """Stands where the IR has no operation, in graphs that never leave the front end.

    ``diagnostic`` None: a consequence of others. ``meta``: the result's likeness on torch's meta device, where the
    result has no batch axis. ``known``: whether the node's type is that of the result.
    """

    diagnostic: Diagnostic | None = None
    meta: Tensor | None = field(default=None, compare=False)
    known: bool = False
    mnemonic: ClassVar[str] = "unknown"
    arity: ClassVar[int | None] = None


@dataclass(eq=False)
class Memory:
    """What a tensor and its views share: an in-place operation on one of them is seen by all. ``name``: the node that
    has the whole content now; every change counts ``version`` up."""

    name: str
    version: int = 0


@dataclass(eq=False)
class Value:
    """A tensor of the user's program: its memory seen through ``views`` (operations, the first to apply first).

    ``exact`` False: whether torch makes a view or a copy here depends on strides, which are not tracked.
    ``name`` is the node with this tensor's content as of ``version``.
    """

    memory: Memory
    name: str
    version: int = 0
    views: tuple[Op, ...] = ()
    exact: bool = True

    @property
    def whole(self) -> bool:
        """Whether the tensor shows all of its memory, so that a change of it is one of the memory."""
        return self.exact and not any(isinstance(op, Slice) for op in self.views)


class Recorder:
    """Builds the graph, one operation at a time.

    Args:
        model: the user's, for the names of its parameters and the places of its modules.
        stop: the code whose frame ends the search for the user's frame: beyond it is whoever called the compiler.
    """

    def __init__(self, model: nn.Module, stop: CodeType) -> None:
        self.model = model
        self.store = Store()
        self.nodes: dict[str, Node] = {}
        self.stack: list[tuple[str, nn.Module]] = []  # the modules whose forward is running, by path
        self.reported: dict[Diagnostic, int] = {}  # and how many nodes there were at the time
        self.needed: set[str] = set()  # unknown nodes that Python asked about, whether or not an output needs them
        self.rounded: list[str] = []
        self.neurons: set[nn.Module] = set()  # the spiking ones, each of which has one state
        self._stop = stop
        self._counts: dict[str, int] = {}
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named}
        self._params: dict[int, tuple[Tensor, Param]] = {}  # the tensor is kept, so that its id is not used again
        self.param_names: dict[Param, str] = {}

    # --- places and names ---------------------------------------------------------------------------------------

    def loc(self, traceback: TracebackType | None = None) -> Loc:
        """The user's innermost line that runs now, or that ``traceback`` went through; else the one that made the
        innermost module."""
        place = (users_place(traceback) if traceback else self._here()) or self._made()
        module = self.stack[-1][0] if self.stack else ""
        return Loc((Source(module, *(place or ())),)) if module or place else Loc()

    def _here(self) -> Place | None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not self._stop:
            if is_users(frame):
                return frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return None  # a model of torch's own containers: no line of the user's is running

    def _made(self) -> Place | None:
        running = (module for _, module in reversed(self.stack))
        return next(filter(None, map(constructed_at, (*running, self.model))), None)

    @property
    def layer(self) -> nn.Module | None:
        """The module that is running, if it is one of torch's layers."""
        module = self.stack[-1][1] if self.stack else None
        return module if module is not None and is_torchs(module) else None

    def name(self, op: Op) -> str:
        """A readable name, not yet taken: a layer's path; of other operations, the mnemonic under the module's path."""
        path = self.stack[-1][0] if self.stack else ""
        if not path or self.layer is None:
            name = f"{path}.{op.mnemonic}" if path else op.mnemonic
        elif isinstance(op, Pad) and isinstance(self.layer, nn.Conv2d):
            name = f"{path}.pad"
        else:
            name = path
        return self.unique(f"{op.mnemonic}_{name}" if name[0].isdigit() else name)

    def unique(self, name: str) -> str:
        base = name = identifier(name)
        while name in self.nodes:
            self._counts[base] = self._counts.get(base, 0) + 1
            name = f"{base}_{self._counts[base]}"
        return name

    # --- nodes and tensors --------------------------------------------------------------------------------------

    def emit(self, op: Op, *args: str) -> str:
        """Add a node; its type is inferred (ShapeError), unless that of an operand is unknown."""
        if not all(map(self.known, args)):
            return self.unknown(None, args).name
        type = op.infer(tuple(self.nodes[arg].type for arg in args), self.store)
        return self._add(Node(self.name(op), op, args, type, self.loc()))

    def _add(self, node: Node) -> str:
        self.nodes[node.name] = node
        return node.name

    def input(self, name: str, shape: tuple[int, ...]) -> Value:
        place = entered_at(self.model)
        loc = Loc((Source("", *place),)) if place else Loc()
        node = Node(self.unique(name), Input(shape), (), Type(shape), loc)
        return self.own(self._add(node))

    def unknown(
        self,
        why: Diagnostic | None,
        args: Iterable[str],
        shape: tuple[int, ...] | None = None,
        meta: Tensor | None = None,
    ) -> Value:
        """The result of an operation that is refused for the reason ``why``; None: because of its operands."""
        op = Unknown(why, meta, shape is not None)
        return self.own(self._add(Node(self.unique("unknown"), op, tuple(args), Type(shape or ()), self.loc())))

    def own(self, name: str) -> Value:
        """A tensor with memory of its own, that holds the node ``name``."""
        return Value(Memory(name), name)

    def new(self, op: Op, *values: Value) -> Value:
        return self.own(self.emit(op, *map(self.read, values)))

    def known(self, name: str) -> bool:
        op = self.nodes[name].op
        return not isinstance(op, Unknown) or op.known

    def meta(self, value: Value) -> Tensor | None:
        """The tensor's likeness, if it has no batch axis (and so comes from an unknown operation)."""
        op = self.nodes[self.read(value)].op
        return op.meta if isinstance(op, Unknown) else None

    def shape(self, value: Value) -> tuple[int, ...]:
        """Without the batch axis. Raises ShapeUnknown."""
        name = self.read(value)
        if not self.known(name):
            raise ShapeUnknown
        return self.nodes[name].type.shape

    # --- views and in-place operations --------------------------------------------------------------------------

    def view(self, value: Value, *views: Op, exact: bool = True) -> Value:
        """Another tensor on the same memory. ``exact`` False: a copy, where the strides demand it."""
        name = self.read(value)
        for op in views:
            name = self.emit(op, name)
        exact = value.exact and (exact or value.whole)
        return Value(value.memory, name, value.memory.version, value.views + views, exact)

    def read(self, value: Value) -> str:
        """The node with the content of ``value`` now."""
        memory = value.memory
        if value.version != memory.version:
            name = memory.name
            if not value.exact:
                name = self._lost(
                    "changed in place, but a view or a copy of it (torch decides) is used afterwards", name
                )
            for op in value.views:
                name = self.emit(op, name)
            value.name, value.version = name, memory.version
        return value.name

    def write(self, value: Value, result: Value) -> None:
        """Let ``value`` hold what ``result`` does, as an in-place operation does."""
        name, old = self.read(result), self.read(value)
        both = self.known(name), self.known(old)
        if all(both) and self.nodes[name].type.shape != self.nodes[old].type.shape:
            raise ShapeError(f"a result of {self.nodes[name].type.shape} does not fit in place")
        memory = value.memory
        whole = name
        if not value.whole:
            whole = self._lost("changed in place through a view of a part of it", memory.name, name)
        elif value.views and all(both) and self.known(memory.name):
            shape = self.nodes[memory.name].type.shape
            whole = name if shape == self.nodes[name].type.shape else self.emit(Reshape(shape), name)
        memory.name, memory.version = whole, memory.version + 1
        value.name, value.version = name, memory.version

    def _lost(self, how: str, *args: str) -> str:
        node = self.nodes[args[0]]
        shape = node.type.shape if self.known(node.name) else None
        hint = "write the change as a new tensor: x = x + y instead of x += y"
        return self.unknown(Diagnostic("SNN001", f"a tensor is {how}", self.loc(), hint=hint), args, shape).name

    # --- parameters ---------------------------------------------------------------------------------------------

    def param(self, tensor: Tensor, what: str) -> Param:
        """The reference to a constant tensor: float32 without a copy where it is that already."""
        if id(tensor) in self._params:
            return self._params[id(tensor)][1]
        name = self.label(tensor, what)
        if tensor.is_meta:
            raise Refused(f"`{name}` has no data: it lies on torch's meta device", "load the weights first", "SNN008")
        data = tensor.detach().to("cpu")
        if data.dtype == torch.float64 and id(tensor) in self._names and not torch.equal(data.float().double(), data):
            self.rounded.append(name)
        param = self.store.put(name if not name[0].isdigit() else f"_{name}", data.float().numpy(), copy=False)
        self._params[id(tensor)] = tensor, param
        self.param_names[param] = name
        return param

    def label(self, tensor: Tensor, what: str) -> str:
        """The name of a constant in the user's model; of one that was computed, ``what`` it is for."""
        path = self.stack[-1][0] if self.stack else ""
        return self._names.get(id(tensor)) or (f"{path}.{what}" if path else what)

    # --- the result ---------------------------------------------------------------------------------------------

    def report(self, code: str, message: str, hint: str = "", loc: Loc | None = None) -> None:
        self.reported.setdefault(
            Diagnostic(code, message, self.loc() if loc is None else loc, hint=hint), len(self.nodes)
        )

    @property
    def troubled(self) -> bool:
        """Whether anything was met so far that makes what follows doubtful."""
        return bool(self.reported) or any(isinstance(node.op, Unknown) for node in self.nodes.values())

    def graph(self, name: str, outputs: Sequence[str]) -> Graph:
        """What the outputs need."""
        return Graph(tuple(self.nodes.values()), tuple(outputs), name=name, store=self.store).live()

    def diagnostics(self, outputs: Sequence[str] | None) -> list[Diagnostic]:
        """Everything that was found, in the program's order. ``outputs`` None: tracing broke off, all nodes count."""
        every = tuple(self.nodes) if outputs is None else (*outputs, *self.needed)
        live = self.graph("", every).by_name
        found = [(at, d) for d, at in self.reported.items()]
        seen: set[Param] = set()
        for at, node in enumerate(self.nodes.values()):
            if node.name not in live:
                continue
            if isinstance(node.op, Unknown) and node.op.diagnostic:
                found.append((at, node.op.diagnostic))
            for _, param in node.op.params():
                if param not in seen and (finite := self._not_finite(param)):
                    found.append((at, Diagnostic("SNN003", finite, node.loc, hint="was the training stable?")))
                seen.add(param)
        if self.rounded:
            names = ", ".join(f"`{name}`" for name in self.rounded[:3]) + (", ..." if len(self.rounded) > 3 else "")
            text = f"{len(self.rounded)} float64 parameters are rounded to float32: {names}"
            found.append((len(self.nodes), Diagnostic("SNN007", text, severity=Severity.NOTE)))
        return list(dict.fromkeys(d for _, d in sorted(found, key=lambda item: item[0])))

    def _not_finite(self, param: Param) -> str:
        value = self.store[param]
        finite = np.isfinite(value)
        if finite.all():
            return ""
        nan = int(np.isnan(value).sum())
        bad = value.size - int(finite.sum())
        parts = [f"{n} {what}" for n, what in ((nan, "NaN"), (bad - nan, "infinite")) if n]
        return (
            f"`{self.param_names.get(param, param.name)}` is not finite: {' and '.join(parts)} of {param.size} values"
        )


def is_torchs(module: nn.Module) -> bool:
    """Whether the module's forward is torch's own, and not that of a container."""
    owner = next(c for c in type(module).__mro__ if "forward" in vars(c))
    container = isinstance(module, torch.fx.GraphModule) or owner in (nn.Module, nn.Sequential)
    return not container and "forward" not in vars(module) and owner.__module__.partition(".")[0] == "torch"
