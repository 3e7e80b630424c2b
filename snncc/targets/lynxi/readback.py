"""Back from the written files: model.py is run as it was written, on network.json and network.npz; so are the
TorchScript and the ONNX step.

Nothing here is shared with :mod:`snncc.targets.lynxi.lower`, which made the numbers. All compute in float32, which is
exact below 2**24.
"""

from __future__ import annotations

import io
import json
import types
import warnings
from collections.abc import Mapping, Sequence
from math import log2
from typing import TYPE_CHECKING, Any

import numpy as np

from snncc.ir.types import Array
from snncc.targets.base import Written, WrittenGraph

if TYPE_CHECKING:
    import torch

Step = tuple[dict[str, Array], tuple[Array, ...], dict[str, Array]]


def read_back(files: Mapping[str, str | bytes]) -> dict[str, Written | WrittenGraph]:
    """The module of model.py, the TorchScript and the ONNX step, by the names of the files that hold their numbers.

    Raises anything where one cannot be read.
    """
    import torch

    from snncc.targets.lynxi import model as runtime

    runtime.register()  # so that states lie with the one that is known here, and not with the copy that is run
    network, content = json.loads(files["network.json"]), files["network.npz"]
    assert isinstance(content, bytes)
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    source = types.ModuleType("written_model")
    exec(compile(files["model.py"], "model.py", "exec"), source.__dict__)  # noqa: S102 (our own file, as it was written)
    module = source.build(network, arrays)
    runtime.reset()
    again = io.BytesIO()
    source.trace(module, source.example(network), again)
    runtime.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # lyngor has nothing newer
        ours, script = (torch.jit.load(io.BytesIO(each)) for each in (again.getvalue(), _bytes(files["network.pt"])))
    _same_script(ours, script)
    made = _Unrolled if network["form"] == "unrolled" else _Module
    step: Written = _Onnx(network, arrays, _bytes(files["step.onnx"]))
    return {
        "network.npz": made(network, arrays, module),
        "network.pt": made(network, arrays, script),
        "step.onnx": step,
    }


def _bytes(content: str | bytes) -> bytes:
    assert isinstance(content, bytes)
    return content


def _same_script(ours: torch.jit.ScriptModule, theirs: torch.jit.ScriptModule) -> None:
    """Both have the same operations and constants in the same order, and the same parameters.

    A neuron's threshold is a constant of a script, and nothing but what it sends in the end could tell it.
    """
    import torch

    def operations(script: torch.jit.ScriptModule) -> list[tuple[Any, ...]]:
        return [
            (node.kind(), *((name, str(_attribute(node, name))) for name in sorted(node.attributeNames())))
            for node in script.inlined_graph.nodes()
            if node.kind() != "prim::GetAttr"
        ]

    mine, other = ours.state_dict(), theirs.state_dict()
    wrong = [name for name, value in mine.items() if name not in other or not torch.equal(value, other[name])]
    if wrong or len(mine) != len(other):
        names = ", ".join(wrong[:3]) or "more than there are"
        raise ValueError(f"network.pt has other parameters than network.npz: {names}")
    if operations(ours) != operations(theirs):
        raise ValueError("network.pt has other operations or constants than what model.py makes of network.json")


def _attribute(node: Any, name: str) -> Any:
    return getattr(node, node.kindOf(name))(name)


class _Numbers(Written):
    """What network.json says of neurons and outputs."""

    exact = 2.0**24

    def __init__(self, network: dict[str, Any], arrays: Mapping[str, Array]) -> None:
        self.network, self.arrays = network, arrays
        self.neurons = {e["name"]: e for e in network["layers"] if e["kind"] == "neuron"}
        self.timesteps = network["timesteps"]
        scales = [self.value(e, "scale") for e in network["outputs"]]
        self.scales = [s.reshape(s.shape[0], *[1] * (len(e["shape"]) - 1)) if s.ndim else s
                       for s, e in zip(scales, network["outputs"], strict=True)]  # fmt: skip
        shown = zip(network["outputs"][: network["scores"]], scales, strict=False)
        self.worth = tuple(self.value(e, "worth") * s for e, s in shown)

    def value(self, entry: Mapping[str, Any], what: str) -> Array:
        """A number, or one for each channel."""
        value = entry[what]
        return np.asarray(self.arrays[value] if isinstance(value, str) else value, np.float64)

    def threshold(self, name: str) -> Array:
        return self.value(self.neurons[name], "threshold")

    def rest(self, name: str) -> Array:
        """Where a state of 0 lies, counted from where potentials do: a state counts from where it starts."""
        entry = self.neurons[name]
        if entry["amount"] is not None:
            return np.asarray(self.threshold(name) - self.value(entry, "amount"))
        return self.value(entry, "rest")

    def thresholds(self) -> dict[str, Array]:
        return {name: np.asarray(self.threshold(name) - self.rest(name)) for name in self.neurons}

    def units(self, thresholds: Mapping[str, float]) -> dict[str, float]:
        """The power of two that brings a threshold next to the written one."""
        return {
            name: 2.0 ** round(log2(float(np.max(mine)) / thresholds[name])) for name, mine in self.thresholds().items()
        }

    def per_neuron(self, name: str, value: Array) -> Array:
        """Such that it broadcasts over (N, *shape)."""
        return value.reshape(-1, *[1] * (len(self.neurons[name]["shape"]) - 1)) if value.ndim else value

    def start(self, n: int) -> dict[str, Array]:
        return {
            name: np.broadcast_to(-self.per_neuron(name, self.rest(name)), (n, *entry["shape"])).copy()
            for name, entry in self.neurons.items()
        }

    def stored(self, name: str, state: Array) -> Array:
        """A potential as the program keeps it, float32 (N, *shape)."""
        return np.asarray(state + self.per_neuron(name, self.rest(name)), np.float32)

    def potential(self, name: str, stored: Array) -> Array:
        return stored.astype(np.float64) - self.per_neuron(name, self.rest(name))

    def integers(self, i: int, y: Array) -> Array:
        """An output's, (N, *shape)."""
        return np.asarray(
            y.astype(np.float64).reshape(*y.shape[:1], *self.network["outputs"][i]["shape"]) / self.scales[i]
        )

    def told(self, ys: Sequence[Array]) -> tuple[dict[str, Array], tuple[Array, ...]]:
        """What monitored neurons send, and the scores, of outputs in the program's numbers."""
        found = [self.integers(i, y) for i, y in enumerate(ys)]
        entries, scores = self.network["outputs"], self.network["scores"]
        return {e["value"]: y for e, y in zip(entries[scores:], found[scores:], strict=True)}, tuple(found[:scores])


class _Module(_Numbers):
    """One time step as torch runs it. Of TorchScript only outputs and states can be seen."""

    def __init__(self, network: dict[str, Any], arrays: Mapping[str, Array], module: torch.nn.Module) -> None:
        import torch

        super().__init__(network, arrays)
        self.module, self.sent = module, dict[str, Array]()
        self.whole = not isinstance(module, torch.jit.ScriptModule)
        for name, entry in self.neurons.items() if self.whole else ():
            module.get_submodule(entry["module"]).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def hook(module: Any, args: Any, y: torch.Tensor) -> None:
            self.sent[name] = y.double().numpy(force=True)

        return hook

    def call(self, xs: Sequence[Array]) -> list[Array]:
        import torch

        with torch.no_grad():  # no inference mode: torch cannot slice an input there
            y = self.module(*(torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in xs))
        return [part.numpy(force=True) for part in (y if isinstance(y, tuple) else (y,))]

    def step(self, xs: Sequence[Array], states: Mapping[str, Array]) -> Step:
        import torch

        from snncc.targets.lynxi import model as runtime

        runtime.reset()
        for name, state in states.items():
            if name in self.neurons:
                x = self.stored(name, state)
                four = x.reshape(*x.shape, *[1] * (4 - x.ndim))
                runtime.STATES[name] = torch.from_numpy(np.ascontiguousarray(four.transpose(0, 2, 3, 1)))
            else:
                runtime.STATES[name] = torch.from_numpy(state)
        told, outputs = self.told(self.call(xs))
        after = {}
        for name, kept in runtime.STATES.items():
            if name in self.neurons:
                last = kept.numpy(force=True).transpose(0, 3, 1, 2)
                after[name] = self.potential(name, last.reshape(len(last), *self.neurons[name]["shape"]))
            else:
                after[name] = kept.numpy(force=True).copy()
        runtime.reset()
        return {**told, **self.sent}, outputs, after


class _Unrolled(_Module):
    """All time steps in one call."""

    stateless = True

    def run(self, xs: Sequence[Array], timesteps: int) -> tuple[dict[str, Array], tuple[Array, ...]]:
        if timesteps != self.timesteps:
            raise ValueError(f"it is unrolled to {self.timesteps} time steps")
        told, outputs = self.told(self.call([x.reshape(-1, *x.shape[2:]) for x in xs]))

        def folded(y: Array) -> Array:
            return y.reshape(timesteps, -1, *y.shape[1:])

        sent = {name: folded(y) for name, y in {**told, **self.sent}.items()}
        return sent, tuple(map(folded, outputs))


class _Onnx(_Numbers):
    """The ONNX step in onnx's own evaluator, with what every neuron sends as further outputs."""

    cost = 100.0  # that evaluator is written to be read

    def __init__(self, network: dict[str, Any], arrays: Mapping[str, Array], content: bytes) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        super().__init__(network, arrays)
        model = onnx.load_from_string(content)
        graph = model.graph
        constants = {each.name: onnx.numpy_helper.to_array(each).astype(np.float64) for each in graph.initializer}
        self.constants = {name: value.reshape(-1) if value.ndim else value for name, value in constants.items()}
        self.states = {
            each.name.removesuffix(".state"): [axis.dim_value for axis in each.type.tensor_type.shape.dim][1:]
            for each in graph.input
            if each.name.endswith(".state")
        }
        self.fed = [each.name for each in graph.input if not each.name.endswith(".state")]
        self.neurons = {name: entry for name, entry in self.neurons.items() if name in self.states}
        self.names = [each.name for each in graph.output]
        for name in self.neurons:
            if name not in self.names:
                graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        self.session = ReferenceEvaluator(model)

    def threshold(self, name: str) -> Array:
        return self.constants[f"{name}.theta"]

    def rest(self, name: str) -> Array:
        if f"{name}.amount" in self.constants:
            return np.asarray(self.threshold(name) - self.constants[f"{name}.amount"])
        return self.constants[f"{name}.rest"]

    def step(self, xs: Sequence[Array], states: Mapping[str, Array]) -> Step:
        n = len(xs[0])
        feeds = {name: np.asarray(x, np.float32) for name, x in zip(self.fed, xs, strict=True)}
        for name, shape in self.states.items():
            state = states.get(name)
            if state is None:
                feeds[f"{name}.state"] = np.zeros((n, *shape), np.float32)
            else:
                feeds[f"{name}.state"] = self.stored(name, state) if name in self.neurons else state
        names = [*self.names, *(name for name in self.neurons if name not in self.names)]
        results = dict(zip(names, self.session.run(names, feeds), strict=True))
        entries = self.network["outputs"]
        told, outputs = self.told([results[f"{entry['value']}.output"] for entry in entries])
        after = {}
        for name in self.states:
            last = results[f"{name}.next"]
            after[name] = self.potential(name, last) if name in self.neurons else last
        sent = {name: np.asarray(results[name], np.float64) for name in self.neurons}
        return {**told, **sent}, outputs, after
