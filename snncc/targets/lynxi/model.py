"""The network as a plain torch module, of what Lynxi's lyngor is known to take, from network.json and network.npz.

This file stands alone, beside those two, on the machine that has lyngor: Python 3.6, an old torch and numpy are enough.
It needs nothing of snncc, and reads no pickle.

One time step, the published outer loop: the state of a neuron lies with the runtime, between ``custom::load`` and
``custom::save``, and the module is called once for each step. Or all of them, unrolled: time is folded into the batch,
step after step, and neurons walk through it in a static loop. No tensor has more than four axes, nothing is changed in
place, and nothing depends on data but data. The operations ``custom::*`` and what they mean are those of LynxiTech/BIDL
(``lynadapter``, ``layers/lif.py``, and the page `api_neu` of its documentation).
"""

import json
import operator
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST = -100.0  # th0 of resetwithdecay in BIDL's custom_op_my_lif.py: a potential below it is reset as well
HIGHEST = 31744.0  # th1 of cmpandfire, 0x7C00: as a number this, as the bits of an fp16 infinity


# --- the operations of Lynxi's compiler ----------------------------------------------------------------------------

Network = Dict[str, Any]
Arrays = Dict[str, Any]  # of numpy's
Number = Union[float, Any]  # or one for each channel, an array

STATES: Dict[str, Tensor] = {}  # what was saved, by flag


def reset() -> None:
    """Forget all states: what the runtime does before the first time step."""
    STATES.clear()


def _load(x: Tensor, flag: str, *_: Any) -> Tensor:
    return STATES[flag].to(x.dtype).clone() if flag in STATES else x.clone()


def _save(x: Tensor, flag: str, *_: Any) -> Tensor:
    STATES[flag] = x.clone()
    return x.clone()


def _cmpandfire(x: Tensor, theta: float) -> Tensor:
    return ((x > theta) & (x <= HIGHEST)).to(x.dtype)


def _resetwithdecay(x: Tensor, theta: float, v_0: float, alpha: float, beta: float) -> Tensor:
    kept = (x > LOWEST) & (x <= theta)
    return torch.where(kept, x * alpha + beta, torch.full_like(x, v_0 * alpha + beta))


OPERATIONS = {
    "load(Tensor data, str flag, bool is_initial, int[] shape, str dtype, int offset, int step, bool uselookup,"
    " int mode, int group_id) -> Tensor": _load,
    "save(Tensor data, str flag, int offset, int step, bool isOutput, bool uselookup, int mode, int group_id)"
    " -> Tensor": _save,
    "cmpandfire(Tensor x, float theta) -> Tensor": _cmpandfire,
    "resetwithdecay(Tensor x, float theta, float v_0, float alpha, float beta) -> Tensor": _resetwithdecay,
}


_LIBRARY: List[Any] = []  # torch forgets the operations with it


def register(library: Optional[str] = None) -> None:
    """Make ``torch.ops.custom`` known to torch, with the meaning above; or load the one that BIDL builds (its
    libcustom_ops.so, which has no meaning but can be traced), where torch is too old for the first."""
    if library:
        torch.ops.load_library(library)
        return
    try:
        torch.ops.custom.load  # noqa: B018 (torch looks for it when it is asked)
    except (AttributeError, RuntimeError):
        pass
    else:
        return
    made = torch.library.Library("custom", "DEF")
    for schema, function in OPERATIONS.items():
        # Conservative: else tracing takes save for a function without effects, whose result nobody needs, and drops it.
        made.define(schema, alias_analysis="CONSERVATIVE")
        made.impl(schema.partition("(")[0], function, "CompositeExplicitAutograd")
    _LIBRARY.append(made)


def below(value: float, precision: str) -> float:
    """The largest number of a precision, "float16" or "float32", below ``value``. Custom operations fire *above* their
    threshold, as BIDL documents and trains it; neurons fire where they reach it."""
    number = np.dtype(precision).type(value)
    if float(number) >= value:
        number = np.nextafter(number, np.dtype(precision).type(-np.inf))
    return float(number)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def load(like: Tensor, flag: str) -> Tensor:
    """The state called ``flag``, of the shape of ``like`` (N, C, H, W), at first 0; in the order of axes that the
    runtime keeps it in."""
    data = _channels_last(torch.zeros_like(like))
    return _channels_first(torch.ops.custom.load(data, flag, True, [], "float32", 0, 0, False, 0, 0))


def save(x: Tensor, flag: str) -> None:
    """Keep ``x`` (N, C, H, W) for the next step."""
    torch.ops.custom.save(_channels_last(x), flag, 0, 0, False, False, 0, 0)


# --- modules --------------------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Walks through time, one step in a call, or unrolled, ``timesteps`` in one.

    Subclasses say what a step does: ``step(x, state)``, (N, C, H, W) both, gives (result, state).

    Args:
        shape: of the input without the batch, one to three axes.
        flag: the name of the state, unlike any other's.
        timesteps: how many; None: one in each call.
    """

    def __init__(self, shape: Sequence[int], flag: str = "v", timesteps: Optional[int] = None) -> None:
        super().__init__()
        self.flag, self.timesteps = flag, timesteps
        self.missing = 3 - len(shape)  # axes: the custom operations take (N, C, H, W)
        self.four = (-1, *shape, *[1] * self.missing)
        self.size = int(np.prod(shape))

    def step(self, x: Tensor, state: Tensor) -> Tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.timesteps is None:
            for _ in range(self.missing):
                x = x.unsqueeze(-1)
            y, state = self.step(x, load(x, self.flag))
            save(state.clone(), self.flag)
        else:
            x = x.reshape(self.timesteps, -1, self.size)
            state, results = torch.zeros_like(x[0].reshape(self.four)), []
            for t in range(self.timesteps):
                y, state = self.step(x[t].reshape(self.four), state)
                results.append(y)
            y = torch.cat(results, dim=0)
        for _ in range(self.missing):
            y = y.squeeze(-1)
        return y


class IF(Stateful):
    """Integrate and fire. A potential counts from where it starts, so that the state is 0 at first.

    Args:
        threshold: where it fires; this and the next two: a number, or an array of one for each channel.
        amount: what a spike takes away; None: a spike resets it instead.
        rest: to what.
        decay: what the potential is multiplied by after that.
        custom: whether Lynxi's own operations fire and reset it, which take one number for all channels.
        precision: of the arithmetic that the module is for, "float16" or "float32".
    """

    threshold: Any
    amount: Any
    rest: Any

    def __init__(
        self,
        shape: Sequence[int],
        threshold: Number,
        amount: Optional[Number] = None,
        rest: Number = 0.0,
        decay: float = 1.0,
        custom: bool = False,
        precision: str = "float32",
        **others: Any,
    ) -> None:
        super().__init__(shape, **others)
        self.decay, self.custom = decay, custom
        self.above = below(threshold, precision) if custom else None
        for name, value in (("threshold", threshold), ("amount", amount), ("rest", rest)):
            if np.ndim(value):  # type: ignore[arg-type]
                self.register_buffer(name, _tensor(value).reshape(1, -1, 1, 1))
            else:
                setattr(self, name, value)

    def step(self, x: Tensor, state: Tensor) -> Tuple[Tensor, Tensor]:
        v = x + state
        if self.custom:
            spikes = torch.ops.custom.cmpandfire(v.clone(), self.above)
            return spikes, torch.ops.custom.resetwithdecay(v.clone(), self.above, self.rest, self.decay, 0.0)
        spikes = (v >= self.threshold).to(v.dtype)
        subtracts = self.amount is not None
        v = v - spikes * self.amount if subtracts else (1.0 - spikes) * v + spikes * self.rest
        return spikes, (v if self.decay == 1 else v * self.decay)

    def extra_repr(self) -> str:
        kind = "custom" if self.custom else "generic"
        how = "zero" if self.amount is None else "subtract"
        value = "per channel" if isinstance(self.threshold, Tensor) else self.threshold
        return f"threshold={value}, reset={how}, decay={self.decay:g}, {kind} operations"


class LIF(IF):
    """The same with a decay below 1: leaky integrate and fire."""


class MaxOfCounts(Stateful):
    """Max pooling of spikes over time: it sends a spike whenever the largest count so far in a window grows."""

    def __init__(self, shape: Sequence[int], pool: nn.MaxPool2d, **others: Any) -> None:
        super().__init__(shape, **others)
        self.pool = pool

    def step(self, x: Tensor, state: Tensor) -> Tuple[Tensor, Tensor]:
        counts = x + state
        return self.pool(counts) - self.pool(state), counts


class Scale(nn.Module):
    """One factor, and perhaps a summand, for each channel."""

    weight: Tensor
    bias: Optional[Tensor]

    def __init__(self, weight: Tensor, bias: Optional[Tensor], rank: int) -> None:
        super().__init__()
        shape = (1, -1, *[1] * (rank - 1))
        self.register_buffer("weight", weight.reshape(shape))
        self.register_buffer("bias", None if bias is None else bias.reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.weight
        return y if self.bias is None else y + self.bias


class Reshape(nn.Module):
    """A change of shape (N, *shape)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape((-1, *self.shape))


class Pad(nn.Module):
    """Padding of all axes but the batch; of the modes of torch.nn.functional.pad."""

    def __init__(self, before: Sequence[int], after: Sequence[int], mode: str, value: float) -> None:
        super().__init__()
        self.pads = [n for pair in reversed(list(zip(before, after))) for n in pair]
        least = 2 if mode == "constant" else 4  # copies go along height and width
        while len(self.pads) > least and self.pads[-2:] == [0, 0]:
            self.pads = self.pads[:-2]
        self.mode, self.value = mode, value

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "constant":
            return F.pad(x, self.pads, value=self.value)
        return F.pad(x, self.pads, mode=self.mode)


class Slice(nn.Module):
    """x[start:stop:step] along every axis but the batch."""

    def __init__(self, start: Sequence[int], stop: Sequence[int], step: Sequence[int]) -> None:
        super().__init__()
        self.slices = [slice(*s) for s in zip(start, stop, step)]

    def forward(self, x: Tensor) -> Tensor:
        return x[(slice(None), *self.slices)]


class Repeat(nn.Module):
    """What is the same in every time step, once for each."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.timesteps, dim=0)


# --- the network ----------------------------------------------------------------------------------------------------


def build(network: Network, arrays: Arrays, precision: str = "float32") -> torch.fx.GraphModule:
    """The module of a network.

    Args:
        network: network.json as Python reads it.
        arrays: network.npz, or a dict: arrays by the names that network.json has.
        precision: of the arithmetic that it is for, "float16" or "float32". The parameters are float32 in any case:
            lyngor converts them.

    Returns:
        A torch.fx.GraphModule in eval mode: from one tensor for each input to one for the output, or a tuple of them.
    """
    register()
    root, graph = nn.Module(), torch.fx.Graph()
    values: Dict[str, torch.fx.Node] = {}
    for entry in network["inputs"]:
        values[entry["name"]] = graph.placeholder(entry["argument"])
    for entry in network["layers"]:
        xs = [values[name] for name in entry["inputs"]]
        if entry["kind"] == "add":
            y = graph.call_function(operator.add, tuple(xs))
        elif entry["kind"] == "concat":
            y = graph.call_function(torch.cat, (xs, entry["axis"]))
        else:
            root.add_module(entry["module"], _module(network, entry, arrays, precision))
            y = graph.call_module(entry["module"], tuple(xs))
        values[entry["name"]] = y
    outputs = [values[entry["name"]] for entry in network["outputs"]]
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    module = torch.fx.GraphModule(root, graph).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def read(folder: Union[str, Path]) -> Tuple[Network, Arrays]:
    """(network, arrays) of a folder that snncc wrote."""
    network = json.loads((Path(folder) / "network.json").read_text(encoding="utf-8"))
    with np.load(str(Path(folder) / "network.npz"), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return network, arrays


def example(network: Network) -> Tuple[Tensor, ...]:
    """Inputs of the shapes that the module is compiled for, all 0. An outer loop takes one sample: of a larger batch,
    lyngor makes copies."""
    unrolled = network["form"] == "unrolled"
    batch = network["batch"] if unrolled else 1
    steps = network["timesteps"] if unrolled else 1
    return tuple(
        torch.zeros((batch * (1 if entry["constant"] else steps), *entry["shape"])) for entry in network["inputs"]
    )


def trace(module: nn.Module, inputs: Sequence[Tensor], file: Any = None) -> torch.jit.ScriptModule:
    """The module as TorchScript, which is what lyngor makes of it; written to ``file``, if there is one."""
    reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # lyngor has nothing newer
        traced: torch.jit.ScriptModule = torch.jit.trace(module, tuple(inputs), check_trace=False)
        if file is not None:
            torch.jit.save(traced, file)
    reset()
    return traced


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _weighted(module: Any, entry: Dict[str, Any], arrays: Arrays) -> Any:
    module.weight = nn.Parameter(_tensor(arrays[entry["weight"]]), requires_grad=False)
    if "bias" in entry:
        module.bias = nn.Parameter(_tensor(arrays[entry["bias"]]), requires_grad=False)
    return module


def _module(network: Network, entry: Dict[str, Any], arrays: Arrays, precision: str) -> Any:
    timesteps = network["timesteps"] if network["form"] == "unrolled" else None
    time: Dict[str, Any] = {"flag": entry["name"], "timesteps": timesteps}
    kind = entry["kind"]

    def value(name: str) -> Any:
        return arrays[entry[name]] if isinstance(entry[name], str) else entry[name]

    if kind == "conv":
        outputs, per_group, height, width = arrays[entry["weight"]].shape
        module = nn.Conv2d(
            per_group * entry["groups"], outputs, (height, width), tuple(entry["stride"]), tuple(entry["padding"]),
            tuple(entry["dilation"]), entry["groups"], "bias" in entry,
        )  # fmt: skip
        return _weighted(module, entry, arrays)
    if kind == "linear":
        outputs, inputs = arrays[entry["weight"]].shape
        return _weighted(nn.Linear(inputs, outputs, "bias" in entry), entry, arrays)
    if kind == "scale":
        bias = _tensor(arrays[entry["bias"]]) if "bias" in entry else None
        return Scale(_tensor(arrays[entry["weight"]]), bias, len(entry["shape"]))
    if kind == "avg_pool":
        return nn.AvgPool2d(
            tuple(entry["kernel"]), tuple(entry["stride"]), tuple(entry["padding"]), entry["ceil_mode"],
            entry["count_include_pad"], entry["divisor"] or None,
        )  # fmt: skip
    if kind == "adaptive_avg_pool":
        return nn.AdaptiveAvgPool2d(tuple(entry["output"]))
    if kind in ("max_pool", "max_of_counts"):
        stride, padding, dilation = (tuple(entry[name]) for name in ("stride", "padding", "dilation"))
        pool = nn.MaxPool2d(tuple(entry["kernel"]), stride, padding, dilation, ceil_mode=entry["ceil_mode"])
        return pool if kind == "max_pool" else MaxOfCounts(entry["input_shape"], pool, **time)
    if kind == "neuron":
        options = {name: value(name) for name in ("threshold", "amount", "rest", "decay")}
        custom = entry["custom"] and timesteps is None  # which know of no unrolled time
        kind_of = IF if entry["decay"] == 1 else LIF
        return kind_of(entry["shape"], custom=custom, precision=precision, **options, **time)
    if kind == "flatten":
        return nn.Flatten()
    if kind == "reshape":
        return Reshape(entry["shape"])
    if kind == "pad":
        return Pad(entry["before"], entry["after"], entry["mode"], entry["value"])
    if kind == "slice":
        return Slice(entry["start"], entry["stop"], entry["step"])
    if kind == "repeat":
        return Repeat(network["timesteps"])
    raise ValueError(f"network.json has a layer of the unknown kind {kind!r}")
