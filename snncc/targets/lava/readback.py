"""Back from the written files: netx's through the front end that reads netx, a process program by what its arrays say.

Nothing here is shared with :mod:`snncc.targets.lava.program`, which made them.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from snncc.ir import Store
from snncc.ir.loihi import AtrLif, CubaLif, Delay, Delta, Sigma, SigmaDelta
from snncc.ir.types import Array, Domain, Type
from snncc.targets.base import Written, WrittenGraph

STEP = ""  # among the states: how many steps were taken, which pulses depend on
KINDS = {op.mnemonic: op for op in (CubaLif, AtrLif, Delta, SigmaDelta, Sigma)}


def read_back(files: Mapping[str, str | bytes]) -> dict[str, Written | WrittenGraph]:
    """The form that was written, by the name of its file. Raises anything where it cannot be run."""
    network = json.loads(files["network.json"])
    if network["form"] == "netx":
        return {"network.net": _netx(_bytes(files["network.net"]), network)}
    with np.load(io.BytesIO(_bytes(files["network.npz"])), allow_pickle=False) as file:
        return {"network.npz": Processes(network, dict(file))}


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _netx(content: bytes, network: dict[str, Any]) -> WrittenGraph:
    """The file as a graph in each layer's own time: the step of latency that every layer has, the runner's windows
    undo."""
    from snncc.frontend.netx import read_netx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.net"
        path.write_bytes(content)
        graph, _ = read_netx(path)
    nodes, other = [], dict[str, str]()
    for node in graph.nodes:
        args = tuple(other.get(arg, arg) for arg in node.args)
        if isinstance(node.op, Delay):
            if node.op.steps == 1:
                other[node.name] = args[0]
                continue
            raise ValueError(f"{node.name}: a synapse waits longer than a step, in a network without delays")
        nodes.append(replace(node, args=args))
    neurons = [node.name for node in nodes if isinstance(node.op, tuple(KINDS.values()))]
    populations = [(p["name"], p["depth"]) for p in network["populations"]]
    if [depth for _, depth in populations] != list(range(1, len(neurons) + 1)):
        raise ValueError(f"network.net has {len(neurons)} layers, network.json has the depths {populations}")
    names = dict(zip(neurons, (name for name, _ in populations), strict=True))
    if [names[output] for output in graph.outputs] != network["outputs"]:
        raise ValueError(f"network.net gives {graph.outputs}, network.json {network['outputs']}")
    return WrittenGraph(replace(graph, nodes=tuple(nodes)), names)


@dataclass(frozen=True)
class _Population:
    op: Any
    type: Type
    depth: int
    into: tuple[dict[str, Any], ...]


def _shifted(state: Array, by: Array) -> Array:
    """A sigma's state with ``by`` more in its sum; other neurons get no pulses."""
    if not by.any():
        return state
    if state.ndim == by.ndim + 1:  # of Sigma itself
        return np.asarray(state + by)
    return np.concatenate([state[:, :1] + by, state[:, 1:]], axis=1)


class Processes(Written):
    """A process program: populations in the order of their depth, each in its own time."""

    def __init__(self, network: dict[str, Any], arrays: dict[str, Array]) -> None:
        self.network, self.arrays, self.store = network, arrays, Store()
        self.inputs = {entry["name"]: entry for entry in network["inputs"]}
        self.pulses = network.get("pulses", {"name": "", "messages": []})
        self.depth = dict.fromkeys([*self.inputs, self.pulses["name"]], 0)
        self.depth |= {p["name"]: p["depth"] for p in network["populations"]}
        self.populations = {p["name"]: self._population(p) for p in network["populations"]}
        for connection in network["connections"]:
            self._in_time(connection)

    def _population(self, entry: dict[str, Any]) -> _Population:
        store, shape = self.store, tuple(entry["shape"])
        given = {what: self.arrays[key].reshape(shape) for what, key in entry["arrays"].items()}
        values: dict[str, Any] = dict(entry["parameters"])
        if "bias" in given:
            values["bias"] = store.put("bias", given["bias"].astype(np.int32))
        op = KINDS[entry["kind"]](**values)
        domain = Domain.CURRENT if entry["kind"] == "sigma" else Domain.SPIKE
        into = tuple(c for c in self.network["connections"] if c["destination"] == entry["name"])
        return _Population(op, Type(shape, "i32", domain), entry["depth"], into)

    def _in_time(self, connection: dict[str, Any]) -> None:
        """What belongs to one step of the network arrives in one step of the hardware."""
        source, destination = connection["source"], connection["destination"]
        if source == self.pulses["name"]:
            return  # whose steps are the hardware's
        takes = 0 if connection["kind"] == "direct" else 1 + connection["delay"]
        if self.depth[source] + takes != self.depth[destination]:
            at, wanted = self.depth[source] + takes, self.depth[destination]
            raise ValueError(f"`{source}` reaches `{destination}` at step {at}, which reads at {wanted}")

    def start(self, n: int) -> dict[str, Array]:
        states = {name: p.op.start(n, p.type, self.store) for name, p in self.populations.items()}
        for entry in self.network["populations"]:
            if "v0" in entry["arrays"]:
                p, v0 = self.populations[entry["name"]], self.arrays[entry["arrays"]["v0"]]
                at = 1 if isinstance(p.op, CubaLif) else 0  # (u, v), or (v, r)
                states[entry["name"]][:, at] = 64.0 * v0.reshape(p.type.shape)  # as the runner gives it to Lava
        return states

    def step(
        self, xs: Sequence[Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], tuple[Array, ...], dict[str, Array]]:
        now = int(states.get(STEP, 0))
        sent = dict(zip(self.inputs, (np.asarray(x, np.float64) for x in xs), strict=True))
        n, after = len(xs[0]), {STEP: np.asarray(now + 1)}
        for name, p in sorted(self.populations.items(), key=lambda item: item[1].depth):
            current = np.zeros((n, p.type.size))
            for connection in p.into:
                if connection["source"] != self.pulses["name"]:
                    current += self._through(connection, sent[connection["source"]].reshape(n, -1))
            x = current.reshape(n, *p.type.shape)
            # What a sigma adds up has the biases in it that came as pulses; the last stage counts it without them.
            before, then = self._pulsed(p, now), self._pulsed(p, now + 1)
            state, sent[name] = p.op.step(_shifted(states[name], before), x + (then - before), p.type, self.store)
            after[name] = _shifted(state, -then)
        outputs = tuple(sent[name] for name in self.network["outputs"])
        return {name: sent[name] for name in self.populations}, outputs, after

    def _pulsed(self, p: _Population, steps: int) -> Array:
        """What pulses brought to a population before its own step ``steps``, (*shape)."""
        arrived = np.zeros((1, p.type.size))
        x = np.array([[value if at < p.depth + steps - 1 else 0 for at, value in self.pulses["messages"]]], np.float64)
        for connection in p.into:
            if connection["source"] == self.pulses["name"]:
                arrived += self._through(connection, x)
        return arrived.reshape(p.type.shape)

    def _through(self, connection: dict[str, Any], x: Array) -> Array:
        """What arrives of ``x`` (N, size)."""
        if tuple(connection["shape"])[1] != x.shape[1] and connection["kind"] != "conv":
            raise ValueError(f"a connection from {connection['shape'][1]} neurons reads {x.shape[1]}")
        if connection["kind"] == "direct":
            return x
        if not connection["message_bits"]:
            x = (x != 0).astype(np.float64)  # Lava reads spikes as true or false
        factor: float = 2.0 ** connection["exponent"]
        if connection["kind"] == "sparse":
            from scipy.sparse import csr_matrix

            values, rows, columns = (self.arrays[connection[key]] for key in ("values", "rows", "columns"))
            matrix = csr_matrix((values.astype(np.float64), (rows, columns)), shape=tuple(connection["shape"]))
            return np.asarray((matrix @ x.T).T * factor)
        weight = self.arrays[connection["weight"]].astype(np.float64)
        if connection["kind"] == "dense":
            return np.asarray(x @ weight.T * factor)
        if connection["kind"] != "conv":
            raise ValueError(f"a connection of the unknown kind {connection['kind']}")
        return np.asarray(self._convolved(connection, weight, x) * factor)

    @staticmethod
    def _convolved(connection: dict[str, Any], weight: Array, x: Array) -> Array:
        import torch
        import torch.nn.functional as F

        shape = tuple(connection["input_shape"])
        if prod(shape) != x.shape[1]:
            raise ValueError(f"a convolution of {shape} reads {x.shape[1]} neurons")
        maps = torch.from_numpy(np.ascontiguousarray(x)).reshape(-1, *shape)
        stride, padding, dilation = (tuple(map(int, connection[key])) for key in ("stride", "padding", "dilation"))
        y = F.conv2d(maps, torch.from_numpy(weight), None, stride, padding, dilation, connection["groups"])
        flat: Array = y.flatten(1).numpy()
        return flat
