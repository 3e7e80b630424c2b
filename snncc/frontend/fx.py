"""From a PyTorch model to the IR's first stage, by torch.fx's symbolic tracing.

The model's forward runs on proxies. Each operation on a proxy becomes IR at once (:mod:`snncc.frontend.torch_ops` has
the table, :mod:`snncc.frontend.recorder` the bookkeeping), so its shape is known when the user's Python asks for it:
what depends on shapes is answered, what depends on data is reported. torch's layers are followed into as well; hence
parametrized weights, pruning, subclasses and functional layers need no rules of their own.
"""

from __future__ import annotations

import copy
import inspect
import operator
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from snncc.frontend.places import Place, constructed_at, is_users, users_place
from snncc.frontend.recorder import Recorder, Refused, ShapeUnknown, Value, is_torchs
from snncc.frontend.spiking import as_network, is_neuron, lower
from snncc.frontend.torch_ops import LAYERS, TABLE, BatchSize, Entry, hint
from snncc.ir import Diagnostic, Graph, Loc, Severity, Source
from snncc.ir.diagnostics import errors
from snncc.ir.ops import Identity, Input, ShapeError
from snncc.ir.types import Array

Evaluate = Callable[[Graph, list[Array]], list[Array]]

# The batch of likenesses on the meta device: a prime that is no other axis' size, so that it is found again.
_META_BATCH = 7919
_TORCH_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AttributeError, AssertionError)
_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}  # torch takes both


class Shape(tuple[Any, ...]):
    """What stands for torch.Size: the batch axis has no number."""

    __slots__ = ()

    def numel(self) -> Any:
        product: Any = 1
        for n in self:
            product = n * product
        return product

    def __getitem__(self, index: Any) -> Any:
        result = super().__getitem__(index)
        return Shape(result) if isinstance(index, slice) else result


class TensorProxy(fx.Proxy):
    """A tensor of the running forward. Its shape and kind are facts; its values are not known."""

    tracer: Tracer

    def __init__(self, value: Value, tracer: Tracer) -> None:
        super().__init__(cast(fx.Node, SimpleNamespace(name=value.name, meta={})), tracer)
        self.value = value

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # The user's code finds a tensor, as it does when the model runs. torch's must not: it would look inside.
        return Tensor if is_users(sys._getframe(1)) else TensorProxy

    def __getattr__(self, name: str) -> Any:
        if name in _ATTRIBUTES:
            return _ATTRIBUTES[name](self.tracer, self.value)
        known = getattr(Tensor, name, None)
        if known is None or name.startswith("__"):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        if callable(known):
            return partial(self._method, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def _method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", name, (self, *args), kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            self._method("set_", value)
        else:
            super().__setattr__(name, value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._method("__setitem__", index, value)

    def __len__(self) -> int:
        return int(self.tracer.batch)

    def __int__(self) -> int:
        return int(self.tracer.to_bool(self, "a number")) + 1

    __index__ = __int__

    def __float__(self) -> float:
        return float(self.__int__())

    def __array__(self, *args: Any, **kwargs: Any) -> Array:
        return np.full((), int(self.tracer.to_bool(self, "a numpy array")))

    def __repr__(self) -> str:
        return f"<tensor {self.value.name}>"

    def __format__(self, spec: str) -> str:
        return repr(self)


_AUGMENTED = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor")


def _augmented(name: str) -> Callable[[TensorProxy, Any], Any]:
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in _AUGMENTED:
    setattr(TensorProxy, f"__{_name}__", _augmented(_name))


class Tracer(fx.Tracer):
    """Runs a model on proxies and records what it does."""

    def __init__(self, model: nn.Module, xs: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.recorder = Recorder(model, trace.__code__)
        report = partial(
            self.recorder.report, "SNN002", hint="pass the size on as the leading axis, or leave it out: x.flatten(1)"
        )
        self.batch = BatchSize(report)
        self.dtype, self.device = xs[0].dtype, xs[0].device
        self.paths = {module: path for path, module in model.named_modules()}
        names = list(inspect.signature(model.forward).bind(*xs).arguments)
        if len(names) < len(xs):  # *args
            names += [f"{names.pop()}_{i}" for i in range(len(xs) - len(names))]
        self.inputs = [self.recorder.input(name, tuple(x.shape[1:])) for name, x in zip(names, xs, strict=True)]
        self.outputs: list[str] | None = None

    def run(self) -> None:
        """Trace the model. Whatever its forward raises is reported."""
        try:
            self.trace(self.model)
        except Exception as error:  # noqa: BLE001 (the user's code runs here: it may raise anything)
            if self.recorder.troubled:  # the error may well be a consequence
                return
            message = f"the model's forward cannot be followed: {type(error).__name__}: {error}"
            help = "forward runs on stand-ins for tensors: use torch's operations on them, and no numpy"
            self.recorder.report("SNN008", message, help, self.recorder.loc(error.__traceback__))

    # --- what torch.fx asks ------------------------------------------------------------------------------------

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        # The call, not the class's forward: a layer as the model, hooks and replaced forwards then work as anywhere.
        def call(*args: Any) -> Any:
            return self.model(*args)

        return call, [TensorProxy(value, self) for value in self.inputs]

    def create_arg(self, a: Any) -> Any:
        return a

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: Any = None,
        type_expr: Any = None,
    ) -> Any:
        """torch.fx's own graph stays empty; it has one node to add, the output."""
        leaves = pytree.tree_leaves(args[0])
        if not leaves or not all(isinstance(x, TensorProxy) for x in leaves):
            wrong = next((x for x in leaves if not isinstance(x, TensorProxy)), None)
            what = "a constant tensor" if isinstance(wrong, Tensor) else repr(wrong)
            self._output_error(f"the model returns {what}, which does not depend on its input")
            leaves = [x for x in leaves if isinstance(x, TensorProxy)]
        self.outputs = [self.recorder.read(x.value) for x in leaves]
        for output in self.outputs:
            if isinstance(self.recorder.nodes[output].op, Input):
                self._output_error(f"the model returns its input `{output}` as it is")

    def _output_error(self, message: str) -> None:
        if not self.recorder.reported:  # else it may well be a consequence
            self.recorder.report("SNN008", message, "return the activations of the last layer", Loc())

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val  # parameters as they are: what the user's code computes from them is computed

    def to_bool(self, obj: Any, what: str = "control flow") -> bool:
        name = self.recorder.read(obj.value)
        if self.recorder.known(name) or self.recorder.meta(obj.value) is not None:
            self.recorder.report(
                "SNN002",
                f"the values of a tensor are used for {what}",
                "the compiled network does the same for every input; decide by shapes or attributes of the model",
            )
        else:
            self.recorder.needed.add(name)  # nobody knows what it is, and why was said
        return False

    def iter(self, obj: Any) -> Iterator[Any]:
        self.to_bool(obj, "a loop")
        return iter(())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not any(isinstance(x, TensorProxy) for x in pytree.tree_leaves((args, kwargs))):
            return forward(*args, **kwargs)  # computes a weight
        stack = self.recorder.stack
        own = is_torchs(m)
        stack.append((self.paths.get(m, stack[-1][0] if stack else ""), m))
        try:
            if is_neuron(m):  # a loop would hide behind its forward: its state goes from step to step
                op = lower(m, self.recorder)
                (x,) = (*args, *kwargs.values())
                try:
                    return TensorProxy(self.recorder.new(op, x.value), self)
                except ShapeError as error:
                    raise Refused(str(error), code="SNN005") from None
            if isinstance(m, torch.jit.ScriptModule) or (own and not isinstance(m, LAYERS)):
                # A copy on the meta device, to learn the result's shape: the memo replaces the tensors.
                memo: dict[int, Any] = {id(x): x.to("meta") for x in (*m.parameters(), *m.buffers())}

                def likeness(*args: Any, **kwargs: Any) -> Any:
                    return copy.deepcopy(m, memo).forward(*args, **kwargs)

                changes = bool(getattr(m, "inplace", False))
                return self._unknown(self._unsupported(_title(m)), likeness, args, kwargs, changes)
            result = forward(*args, **kwargs)
            if isinstance(m, nn.Identity) and own:
                result = TensorProxy(self.recorder.view(result.value, Identity()), self)
            return result
        except Refused as refused:
            why = self._problem(m, refused.code, refused.message, refused.hint)
            return self._unknown(why, lambda x: x, args, kwargs)
        except _TORCH_ERRORS as error:
            if not own:
                raise
            return self._unknown(self._problem(m, "SNN005", str(error)), lambda *a, **k: None, args, kwargs)
        finally:
            stack.pop()

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Any = None,
    ) -> Any:
        """Record an operation; its result as the running forward is to see it."""
        if target in _FACTS and args and isinstance(args[0], TensorProxy):
            return _FACTS[target](self, args[0].value, *args[1:], **kwargs)
        entry = TABLE.get(target)
        why: Diagnostic | None = None
        if kwargs.get("out") is not None:  # reported at once, as the result may never be used
            self.recorder.report("SNN007", f"{_spelling(target)}: the result is written to out=", "use what it returns")
            kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        try:
            if entry is not None:
                return self._known(entry, args, kwargs)
            if _is_torchs_function(target):
                why = self._unsupported(_spelling(target if target is not getattr else args[1]), target)
            else:  # reported at once, as it may also change its operands
                message = f"{_spelling(target)} is hidden from the compiler by torch.fx.wrap"
                help = "leave out torch.fx.wrap, so that the function's own operations are seen"
                self.recorder.report("SNN001", message, help)
        except ShapeUnknown:
            pass
        except ShapeError as error:
            why = self._problem(target, "SNN005", str(error))
        except Refused as refused:
            why = self._problem(target, refused.code, refused.message, refused.hint)
        function = partial(_call_method, target) if kind == "call_method" else target
        return self._unknown(why, function, args, kwargs, _changes(target, kwargs))

    def _known(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values, options = pytree.tree_map(lambda x: x.value if isinstance(x, TensorProxy) else x, (args, kwargs))
        options = {_NUMPY_NAMES.get(key, key): value for key, value in options.items()}
        inplace = options.pop("inplace", False) or entry.inplace
        options.pop("out", None)
        try:
            bound = inspect.signature(entry.handler).bind(self.recorder, *values, **options)
        except TypeError as error:
            raise Refused(f"the compiler takes no such option: {error}", code="SNN007") from None
        if inplace and not isinstance(bound.args[1], Value):
            raise Refused("changes a tensor of the model in place", "write the result as a new tensor")
        result = entry.handler(*bound.args, **bound.kwargs)
        if inplace:
            self.recorder.write(bound.args[1], result)
            return args[0] if args else kwargs["input"]
        return pytree.tree_map(lambda value: TensorProxy(value, self), result)

    # --- what is not known --------------------------------------------------------------------------------------

    def _problem(self, target: Any, code: str, message: str, help: str = "") -> Diagnostic:
        layer = self.recorder.layer
        title = _spelling(target) if layer is None else _title(layer)
        return Diagnostic(code, f"{title}: {message}", self.recorder.loc(), hint=help)

    def _unsupported(self, name: str, target: Any = None) -> Diagnostic:
        message, help = f"{name} is not supported", hint(name.strip("`"))
        if target is not None and self.recorder.layer is not None:
            message = f"{_title(self.recorder.layer)}: {message}"
        return Diagnostic("SNN001", message, self.recorder.loc(), hint=help)

    def _unknown(
        self, why: Diagnostic | None, function: Callable[..., Any], args: Any, kwargs: Any, changes: bool = False
    ) -> Any:
        """What an operation gives that has no equal in the IR. Its shape is found by running it on the meta device, so
        that what comes after can still be looked at."""
        proxies = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, TensorProxy)]
        names = [self.recorder.read(x.value) for x in proxies]

        def meta(x: Any) -> Any:
            if isinstance(x, TensorProxy):
                if (known := self.recorder.meta(x.value)) is not None:
                    return known
                return torch.empty((_META_BATCH, *self.recorder.shape(x.value)), device="meta")
            return _META_BATCH * x.factor if isinstance(x, BatchSize) else x.to("meta") if isinstance(x, Tensor) else x

        def value(result: Any) -> Value:
            if not isinstance(result, Tensor):
                return self.recorder.unknown(why, names)
            if result.dim() and result.shape[0] == _META_BATCH:
                return self.recorder.unknown(why, names, tuple(result.shape[1:]))
            return self.recorder.unknown(why, names, meta=result)

        result = None
        try:
            if changes and args and isinstance(args[0], TensorProxy):
                self.recorder.write(args[0].value, value(meta(args[0])))
                return args[0]
            if _is_torchs_function(function):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = function(*(pytree.tree_map(meta, arg) for arg in args), **pytree.tree_map(meta, kwargs))
        except (*_TORCH_ERRORS, ShapeUnknown):
            pass
        return pytree.tree_map(lambda x: TensorProxy(value(x), self), result)


def _call_method(name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    if name in ("item", "tolist", "numpy"):  # values, which a tensor on the meta device does not have
        return torch.empty((), device="meta")
    return getattr(x, name)(*args, **kwargs)


def _changes(target: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation changes its first operand, by torch's conventions."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    augmented = getattr(target, "__module__", "") == "_operator" and name in _AUGMENTED
    return bool(kwargs.get("inplace")) or augmented or name == "__setitem__" or (name[-1:] == "_" and name[:2] != "__")


def _is_torchs_function(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__module__", None) or "torch"
    return owner.partition(".")[0] in ("torch", "snncc", "math", "_operator", "builtins")


def _spelling(target: Any) -> str:
    if isinstance(target, nn.Module):
        return _title(target)
    if isinstance(target, str):
        return f"`Tensor.{target}`"
    owner = {None: "torch", "torch._C._nn": "torch.nn.functional", "_operator": "operator"}
    module = getattr(target, "__module__", None)
    name = getattr(target, "__name__" if _is_torchs_function(target) else "__qualname__", target)
    return f"`{owner.get(module, module)}.{name}`"


def _title(module: nn.Module) -> str:
    cls = type(module)
    own = cls.__module__.startswith("torch.nn.modules.")
    return f"`nn.{cls.__name__}`" if own else f"`{cls.__module__}.{cls.__qualname__}`"


# --- facts about tensors -------------------------------------------------------------------------------------------


def _shape(t: Tracer, value: Value, dim: int | None = None) -> Any:
    if (meta := t.recorder.meta(value)) is not None:
        shape = Shape(t.batch.times(n // _META_BATCH) if n and n % _META_BATCH == 0 else n for n in meta.shape)
    else:
        try:
            shape = Shape((t.batch, *t.recorder.shape(value)))
        except ShapeUnknown:
            # Most tensors have the batch first; the rest nobody knows.
            return t.batch if dim == 0 else TensorProxy(t.recorder.unknown(None, [t.recorder.read(value)]), t)
    return shape if dim is None else shape[dim]


def _of_shape(rule: Callable[[Shape], Any]) -> Callable[[Tracer, Value], Any]:
    def fact(t: Tracer, value: Value) -> Any:
        shape = _shape(t, value)
        return rule(shape) if isinstance(shape, Shape) else shape

    return fact


_ATTRIBUTES: dict[str, Callable[[Tracer, Value], Any]] = {
    "shape": _shape,
    "ndim": _of_shape(len),
    "dtype": lambda t, value: t.dtype,
    "device": lambda t, value: t.device,
    "is_cuda": lambda t, value: t.device.type == "cuda",
    "requires_grad": lambda t, value: False,
    "data": lambda t, value: TensorProxy(t.recorder.view(value), t),
}
# Functions, and methods by name.
_FACTS: dict[Any, Callable[..., Any]] = {
    "size": _shape,
    **dict.fromkeys(("dim", "ndimension"), _of_shape(len)),
    **dict.fromkeys(("numel", "nelement", torch.numel), _of_shape(Shape.numel)),
    **dict.fromkeys(("is_floating_point", torch.is_floating_point), lambda t, value: t.dtype.is_floating_point),
    "is_contiguous": lambda t, value: True,
}


# --- the user's model, left as it was ------------------------------------------------------------------------------


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards the model and the random state are as they were."""
    modules = list(model.modules())
    attributes = [dict(vars(m)) for m in modules]
    # Containers may be changed in place: registries of parameters and hooks, and the user's own.
    containers = [(c, copy.copy(c)) for found in attributes for c in found.values() if type(c) in _MUTABLE]
    buffers = [(b, b.clone()) for b in model.buffers() if not b.is_meta]
    devices = {x.get_device() for x in (*model.parameters(), *model.buffers()) if x.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)), torch.no_grad():
        try:
            for m in modules:
                vars(m)["training"] = False  # not eval(), which may be the user's own
            yield
        finally:
            for m, found in zip(modules, attributes, strict=True):
                vars(m).clear()
                vars(m).update(found)
            for container, content in containers:
                if isinstance(container, list):
                    container[:] = content
                else:
                    container.clear()
                    container.update(content)
            for buffer, content in buffers:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


_MUTABLE = (list, dict, set, OrderedDict)


def _silence_hooks(model: nn.Module) -> list[Diagnostic]:
    """Take away the user's hooks, which mostly look on and would be confused by stand-ins for tensors; torch's own
    stay, as pruning and weight norm work by them. To be undone by :func:`untouched`."""
    found = []
    for path, module in model.named_modules():
        for name in ("_backward_hooks", "_backward_pre_hooks"):
            setattr(module, name, OrderedDict())
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            kept = OrderedDict()
            for key, hook in getattr(module, name).items():
                if (getattr(hook, "__module__", None) or "").partition(".")[0] == "torch":
                    kept[key] = hook
                    continue
                code = getattr(hook, "__code__", None)
                place = (code.co_filename, code.co_firstlineno) if code else ("", 0)
                title = getattr(hook, "__qualname__", type(hook).__qualname__)
                message = f"the hook `{title}` on {_title(module)} is not compiled"
                help = "if it changes values, move what it does into forward; if it only looks on, all is well"
                found.append(Diagnostic("SNN004", message, Loc((Source(path, *place),)), Severity.WARNING, help))
            setattr(module, name, kept)
    return found


# --- the front end's face ------------------------------------------------------------------------------------------


def trace(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    name: str = "main",
    check: bool = True,
    evaluate: Evaluate | None = None,
) -> tuple[Graph | None, list[Diagnostic]]:
    """Trace ``model`` into a graph of stage ``ann``.

    Args:
        model: the trained network; left as it is, and traced in eval mode.
        example_input: one tensor for each input of the model, with a batch axis.
        check: run the model on the example, and compare (see :func:`check_against`).
        evaluate: runs a graph; without it only the shapes are compared.

    Returns:
        The graph, None if there are errors; and everything that was found.
    """
    model = getattr(model, "_orig_mod", model)  # that torch.compile was given
    xs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    problems = _check_arguments(model, xs)
    if problems:
        return None, problems
    tracer = Tracer(model, xs)
    with untouched(model):
        hooks = _silence_hooks(model)
        tracer.run()
    problems = tracer.recorder.diagnostics(tracer.outputs)
    if errors(problems) or tracer.outputs is None:
        return None, hooks + problems
    graph = tracer.recorder.graph(name, tracer.outputs)
    if check:
        found = check_against(model, graph, evaluate, xs)
        if any(d.code == "SNN006" for d in found):
            hooks = [replace(hook, severity=Severity.ERROR) for hook in hooks]
        problems += found
    return (None if errors(hooks + problems) else graph), hooks + problems


def _check_arguments(model: nn.Module, xs: tuple[Tensor, ...]) -> list[Diagnostic]:
    """What makes tracing pointless."""

    def error(code: str, message: str, help: str) -> list[Diagnostic]:
        return [Diagnostic(code, message, hint=help)]

    if isinstance(model, torch.jit.ScriptModule):
        return error("SNN008", "the model is compiled by torch.jit", "pass the module that it was made from")
    if any(nn.parameter.is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        return error("SNN008", "the model has lazy layers without weights", "run it once before compiling it")
    if not xs or not all(isinstance(x, Tensor) for x in xs):
        return error("SNN005", "the example input must be a tensor or a tuple of tensors", "torch.rand(1, 3, 32, 32)")
    if any(x.dim() < 2 or not len(x) for x in xs) or len({len(x) for x in xs}) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in xs)
        return error("SNN005", f"the example input has shape {shapes}: no common batch axis", "use x.unsqueeze(0)")
    try:
        inspect.signature(model.forward).bind(*xs)
    except TypeError as problem:
        return error(
            "SNN005", f"the model's forward does not take {len(xs)} inputs: {problem}", "give one tensor for each"
        )
    return []


def check_against(
    model: nn.Module, graph: Graph, evaluate: Evaluate | None, xs: Sequence[Tensor], rtol: float = 1e-3
) -> list[Diagnostic]:
    """Compare ``graph`` with ``model``, on the model's own device in eval mode.

    Args:
        evaluate: gives the graph's outputs for arrays (N, ...); None: only the shapes are compared.
        rtol: the largest deviation, relative to the largest output.
    """
    device = next((x.device for x in (*model.parameters(), *model.buffers())), None)
    with untouched(model), as_network(model):
        try:
            # Copies: a model may change its input in place.
            copies = [x.detach().to(device or x.device) for x in xs]
            before = _random_states()
            outputs = pytree.tree_leaves(model(*(x.clone() for x in copies)))
            if _random_states() != before and (drawn := _drawn(model, copies, outputs)):
                return drawn
        except Exception as error:  # noqa: BLE001 (the user's code runs here: it may raise anything)
            place = users_place(error.__traceback__) or constructed_at(model)
            message = f"the model fails on the example input: {type(error).__name__}: {error}"
            return [Diagnostic("SNN005", message, Loc((Source("", *place),)) if place else Loc())]
    found: list[Diagnostic] = []
    if len(outputs) != len(graph.outputs) or not all(isinstance(x, Tensor) for x in outputs):
        message = f"the model gives {len(outputs)} outputs, the traced graph {len(graph.outputs)} tensors"
        return [Diagnostic("SNN006", message)]
    got = None if evaluate is None else evaluate(graph, [_array(x) for x in xs])
    for i, (name, output) in enumerate(zip(graph.outputs, outputs, strict=True)):
        node, want = graph[name], _array(output)
        if want.shape[1:] != node.type.shape:
            message = f"output {i} of the model has shape {want.shape}, the traced graph's (N, *{node.type.shape})"
            found.append(Diagnostic("SNN006", message, node.loc))
        elif got is not None:
            limit = max(rtol, 8 * torch.finfo(output.dtype).eps) * float(np.abs(want).max(initial=0.0))
            off = float(np.abs(want - got[i]).max(initial=0.0))
            if not off <= limit:  # also of NaN
                message = f"output {i} of the traced graph is off the model's by {off:.3g}, allowed are {limit:.3g}"
                hint = "does the model do something that depends on data, or on a hook?"
                found.append(Diagnostic("SNN006", message, node.loc, hint=hint))
    return found


def _random_states() -> tuple[Any, ...]:
    """Of everything that a forward may draw random numbers from, on the host."""
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002 (the user's code may draw from it)
    return torch.random.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), position, random.getstate()


class _Watch(TorchDispatchMode):
    """Finds the user's line that draws random numbers."""

    place: Place | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.random.get_rng_state()
        result = func(*args, **(kwargs or {}))
        if self.place is None and not torch.equal(before, torch.random.get_rng_state()):
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and not is_users(frame):
                frame = frame.f_back
            self.place = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else None
        return result


def _drawn(model: nn.Module, xs: Sequence[Tensor], outputs: Sequence[Any]) -> list[Diagnostic]:
    """Whether the random numbers that a forward draws change its outputs: those of the trace would stand for all."""
    with _Watch() as watch:  # type: ignore[no-untyped-call]
        again = [pytree.tree_leaves(model(*(x.clone() for x in xs))) for _ in range(3)]
    tensors = [[x for x in found if isinstance(x, Tensor)] for found in (outputs, *again)]
    if all(torch.equal(a, b) for other in tensors for a, b in zip(tensors[0], other, strict=False)):
        return []
    place = watch.place or constructed_at(model)
    message = "the model's forward draws random numbers, in eval mode, too; compiled, they would be always the same"
    hint = "draw them only `if self.training`, or give them to forward as an input"
    return [Diagnostic("SNN009", message, Loc((Source("", *place),)) if place else Loc(), hint=hint)]


def _array(x: Tensor) -> Array:
    x = x.detach().cpu()
    return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
