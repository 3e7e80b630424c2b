"""The emitted Lava runner on networks written by hand, against plain numpy: every kind of connection and neuron."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from snncc import sdk

pytestmark = pytest.mark.vendor
LAVA = Path(sdk.__file__).parent / "targets" / "lava"
Array = np.ndarray[Any, Any]


class Net:
    """A network.json and what it means, in plain numpy."""

    def __init__(self, timesteps: int) -> None:
        self.arrays: dict[str, Array] = {}
        self.data: dict[str, Any] = {
            "format": 1, "snncc": "0", "form": "process", "timesteps": timesteps, "longest": 1 << 20,
            "inputs": [], "populations": [], "connections": [], "outputs": [],
        }  # fmt: skip

    def key(self, array: Array) -> str:
        self.arrays[f"a{len(self.arrays)}"] = array
        return f"a{len(self.arrays) - 1}"

    def input(self, name: str, *shape: int, bits: int = 0) -> str:
        self.data["inputs"].append({"name": name, "shape": list(shape), "message_bits": bits})
        return name

    def pulses(self, *messages: tuple[int, int]) -> str:
        self.data["pulses"] = {"name": "pulses", "messages": [list(each) for each in messages]}
        return "pulses"

    def neurons(
        self, name: str, kind: str, shape: tuple[int, ...], depth: int, *, arrays: Any = None, **given: Any
    ) -> str:
        keys = {key: self.key(array) for key, array in (arrays or {}).items()}
        self.data["populations"].append(
            {"name": name, "kind": kind, "shape": list(shape), "depth": depth, "parameters": given, "arrays": keys}
        )
        return name

    def connect(self, source: str, destination: str, kind: str, bits: int = 0, **given: Any) -> None:
        given = {key: self.key(value) if isinstance(value, np.ndarray) else value for key, value in given.items()}
        self.data["connections"].append(
            {"source": source, "destination": destination, "kind": kind, "message_bits": bits, **given}
        )

    def conv(
        self, source: str, destination: str, weight: Array, shape: tuple[int, ...], bits: int = 0, **given: Any
    ) -> None:
        given = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, **given}
        self.connect(source, destination, "conv", bits, weight=weight, input_shape=list(shape), **given)

    def sparse(self, source: str, destination: str, matrix: Array, bits: int = 0, **given: Any) -> None:
        rows, columns = (each.astype(np.int32) for each in np.nonzero(matrix))
        values = matrix[rows, columns].astype(np.int8)
        shape = list(matrix.shape)
        self.connect(
            source, destination, "sparse", bits, rows=rows, columns=columns, values=values, shape=shape, **given
        )

    def write(self, folder: Path) -> None:
        shutil.copy(LAVA / "run.py", folder)
        (folder / "processes").mkdir(exist_ok=True)
        shutil.copy(LAVA / "processes" / "snncc_processes.py", folder / "processes")
        (folder / "network.json").write_text(json.dumps(self.data))
        if self.data["form"] == "process":
            np.savez(folder / "network.npz", **self.arrays)

    def expect(self, *inputs: Array, timesteps: int | None = None) -> dict[str, Array]:
        """Every population's values (T, N, *shape), each sample alone and each population in its own time."""
        steps = self.data["timesteps"] if timesteps is None else timesteps
        sent: dict[str, Array] = {}
        for spec, x in zip(self.data["inputs"], inputs, strict=True):
            timed = x if x.ndim == len(spec["shape"]) + 2 else np.broadcast_to(x, (steps, *x.shape))
            steps = len(timed)
            sent[spec["name"]] = timed.reshape(*timed.shape[:2], -1).astype(np.int64)
        samples = next(iter(sent.values())).shape[1]
        if "pulses" in self.data:
            # In the time of the population that they go to, whose depth is one more than their step, that is step 0.
            messages = np.array([value for _, value in self.data["pulses"]["messages"]])
            sent["pulses"] = np.zeros((steps, samples, len(messages)), np.int64)
            sent["pulses"][0] = messages
        for p in self.data["populations"]:
            current = np.zeros((steps, samples, int(np.prod(p["shape"]))), np.int64)
            for c in self.data["connections"]:
                if c["destination"] == p["name"]:
                    current += self.through(c, sent[c["source"]])
            given = {key: self.arrays[name].astype(np.int64) for key, name in p["arrays"].items()}
            sent[p["name"]] = MODELS[p["kind"]](current, **{**p["parameters"], **given})
        return {p["name"]: sent[p["name"]].reshape(steps, samples, *p["shape"]) for p in self.data["populations"]}

    def through(self, c: dict[str, Any], x: Array) -> Array:
        """The synaptic sums of a connection, (T, N, out)."""
        if c["kind"] == "direct":
            return x
        if c["kind"] == "dense":
            return x @ self.arrays[c["weight"]].astype(np.int64).T
        if c["kind"] == "sparse":
            matrix = np.zeros(c["shape"], np.int64)
            matrix[self.arrays[c["rows"]], self.arrays[c["columns"]]] = self.arrays[c["values"]]
            return x @ matrix.T << c.get("exponent", 0)
        steps, samples, _ = x.shape
        x, w = x.reshape(-1, *c["input_shape"]), self.arrays[c["weight"]].astype(np.int64)
        (py, px), (sy, sx), (dy, dx), g = c["padding"], c["stride"], c["dilation"], c["groups"]
        x = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
        windows = np.lib.stride_tricks.sliding_window_view(
            x, (dy * (w.shape[2] - 1) + 1, dx * (w.shape[3] - 1) + 1), axis=(2, 3)
        )[:, :, ::sy, ::sx, ::dy, ::dx]
        windows = windows.reshape(len(x), g, -1, *windows.shape[2:])
        kernels = w.reshape(g, -1, *w.shape[1:])
        return np.einsum("ngchwij,gocij->ngohw", windows, kernels).reshape(steps, samples, -1)


def fade(x: Array, decay: int) -> Array:
    return np.sign(x) * (np.abs(x) * (4096 - decay) >> 12)


def cuba_lif(x: Array, threshold: int, decay_u: int, decay_v: int, bias: Any = 0, v0: Any = 0) -> Array:
    u, v, spikes = np.zeros_like(x[0]), np.zeros_like(x[0]) + v0 * 64, np.zeros_like(x)
    for t, a in enumerate(x):
        u = fade(u, decay_u) + a * 64
        v = fade(v, decay_v) + u + bias
        spikes[t] = v > threshold * 64
        v = np.where(spikes[t], 0, v)
    return spikes


def atr_lif(x: Array, theta: int, bias: Any = 0, v0: Any = 0) -> Array:
    """What it is without its decays: integrate and fire with a threshold of 2 theta from which it subtracts."""
    v, spikes = np.zeros_like(x[0]) + (theta + v0) * 64, np.zeros_like(x)
    for t, a in enumerate(x):
        v = v + a * 64 + bias
        spikes[t] = v >= 2 * theta * 64
        v = v - spikes[t] * 2 * theta * 64
    return spikes


def changes(a: Array, threshold: int) -> Array:
    last, residue, sent = np.zeros_like(a[0]), np.zeros_like(a[0]), np.zeros_like(a)
    for t, now in enumerate(a):
        change = now - last + residue
        sent[t] = np.where(np.abs(change) >= threshold, change, 0)
        last, residue = now, change - sent[t]
    return sent


def delta(x: Array, threshold: int, scale: int) -> Array:
    return changes(x, threshold) * scale


def sigma_delta(x: Array, threshold: int, shift: int, activation: str) -> Array:
    sums = np.cumsum(x, axis=0)
    return changes(np.maximum(sums, 0) if activation == "relu" else sums, threshold) >> shift


def sigma(x: Array) -> Array:
    return np.cumsum(x, axis=0)


MODELS: dict[str, Callable[..., Array]] = {
    "cuba_lif": cuba_lif, "atr_lif": atr_lif, "delta": delta, "sigma_delta": sigma_delta, "sigma": sigma,
}  # fmt: skip


@pytest.fixture
def python(sdk_python: Callable[[str], Path]) -> Path:
    return sdk_python("lava-nc")


def call(python: Path, folder: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [python, folder / "run.py", "--json", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    return done.returncode, json.loads(done.stdout)


def run(
    python: Path, folder: Path, *inputs: Array, record: str = "all", more: tuple[object, ...] = ()
) -> dict[str, Array]:
    np.savez(folder / "in.npz", **{f"x{i}": x for i, x in enumerate(inputs)})
    status, answer = call(python, folder, "--input", "in.npz", "--output", "out", "--record", record, *more)
    assert (status, answer["valid"]) == (0, True), answer
    with np.load(folder / "out") as file:
        return dict(file)


def agree(net: Net, found: dict[str, Array], expected: dict[str, Array], busy: float = 0.02) -> None:
    """Every recorded value, and the counts; and that there was something to compare in each population."""
    recorded = {name.partition("/")[2] for name in found if name.startswith("spikes/")}
    assert recorded == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[f"spikes/{name}"], values, err_msg=name)
        assert found[f"spikes/{name}"].dtype == (np.int8 if np.abs(values + 0.5).max() < 128 else np.int32)
        assert busy < np.count_nonzero(values) / values.size, f"{name} is silent"
    for i, name in enumerate(net.data["outputs"]):
        np.testing.assert_array_equal(found[f"counts{i}"], expected[name].sum(axis=0))


# --------------------------------------------------------------------------------------------------- what it computes


def spiking(rng: np.random.Generator) -> Net:
    """Every connection but "direct" and both spiking neurons, with a shortcut that waits for two layers."""
    net = Net(timesteps=6)
    x, z = net.input("x", 2, 7, 6), net.input("z", 5, bits=8)

    def weights(*shape: int) -> Array:
        return rng.integers(-128, 128, shape)

    bias = rng.integers(-64, 64, 32) << rng.integers(0, 8, 32)
    bias[:2] = -4096 << 7, 4095 << 7  # the widest
    arrays = {"bias": bias, "v0": rng.integers(-50, 100, 32)}
    a = net.neurons("a", "cuba_lif", (4, 4, 2), 1, threshold=100, decay_u=1024, decay_v=200, arrays=arrays)
    net.conv(x, a, weights(4, 1, 3, 2), (2, 7, 6), stride=[2, 3], padding=[1, 1], dilation=[1, 2], groups=2)
    net.connect(z, a, "dense", 8, weight=weights(32, 5))
    b = net.neurons("b", "atr_lif", (200, 1, 2), 2, theta=90, arrays={"v0": rng.integers(-90, 90, 400)})
    net.sparse(a, b, weights(400, 32) * (rng.random((400, 32)) < 0.2))
    c = net.neurons("c", "atr_lif", (200, 1, 1), 3, theta=70, arrays={"bias": rng.integers(-9, 10, 200) * 64})
    net.conv(b, c, weights(200, 1, 1, 2), (200, 1, 2), groups=200)
    net.sparse(x, c, weights(200, 84) * (rng.random((200, 84)) < 0.1), delay=2)
    d = net.neurons("d", "cuba_lif", (3,), 4, threshold=2000, decay_u=4096, decay_v=0)
    net.connect(c, d, "dense", weight=weights(3, 200))
    net.sparse(b, d, rng.integers(-64, 64, (3, 400)), exponent=0, delay=1)
    net.sparse(b, d, rng.integers(-2, 3, (3, 400)), exponent=7, delay=1)
    e = net.neurons("e", "cuba_lif", (2,), 2, threshold=300, decay_u=0, decay_v=4095)
    net.connect(a, e, "dense", weight=np.abs(weights(2, 32)) // 2)
    net.data["outputs"] = [d, e]
    return net


@pytest.mark.parametrize("timesteps", [None, 3])
def test_spiking_networks(python: Path, tmp_path: Path, timesteps: int | None) -> None:
    rng = np.random.default_rng(7)
    net = spiking(rng)
    net.write(tmp_path)
    z = rng.integers(-3, 40, (5, 5))
    if timesteps is None:
        x = rng.integers(0, 2, (6, 5, 2, 7, 6)).astype(np.uint8)
        agree(net, run(python, tmp_path, x, z), net.expect(x, z))
    else:  # fewer time steps than the network is deep
        x = rng.random((5, 2, 7, 6)) < 0.5
        found = run(python, tmp_path, x, z, more=("--timesteps", timesteps))
        agree(net, found, net.expect(x, z, timesteps=timesteps), busy=0)
    assert not (tmp_path / "processes" / "__pycache__").exists()


def test_sigma_delta_networks(python: Path, tmp_path: Path) -> None:
    """Graded messages, biases as pulses, thresholds and shifts, both activations: samples one after the other."""
    rng = np.random.default_rng(11)
    net = Net(timesteps=7)
    x = net.input("x", 2, 5, 4, bits=16)
    # Deeper than a sample is long: these pulses leave when the next samples are under way.
    pulses = net.pulses((0, 1), (1, 1), (1, 128), (10, 3))
    d = net.neurons("d", "delta", (2, 5, 4), 0, threshold=3, scale=4)
    net.connect(x, d, "direct")
    a = net.neurons("a", "sigma_delta", (3, 5, 4), 1, threshold=512, shift=6, activation="relu")
    net.conv(d, a, rng.integers(-128, 128, (3, 2, 3, 3)), (2, 5, 4), 32, padding=[1, 1])
    net.sparse(pulses, a, np.outer(rng.integers(-128, 128, 60), [1, 0, 0, 0]), 32)
    b = net.neurons("b", "sigma_delta", (6,), 2, threshold=0, shift=0, activation="none")
    net.connect(a, b, "dense", 32, weight=rng.integers(-128, 128, (6, 60)))
    net.sparse(pulses, b, rng.integers(-128, 128, (6, 4)) * [0, 1, 1, 0], 32)
    net.sparse(d, b, rng.integers(-128, 128, (6, 40)), 32, delay=1)
    s = net.neurons("s", "sigma", (4,), 11, busy=0)
    net.sparse(b, s, rng.integers(-1, 2, (4, 6)), 32, delay=8)
    net.sparse(pulses, s, rng.integers(-128, 128, (4, 4)) * [0, 0, 0, 1], 32)
    net.data["outputs"] = [s]
    del net.data["populations"][-1]["parameters"]["busy"]
    net.write(tmp_path)
    still, moving = rng.integers(-100, 300, (3, 2, 5, 4)), rng.integers(-4, 5, (7, 3, 2, 5, 4)).cumsum(axis=0)
    for x0 in (still, moving):
        agree(net, run(python, tmp_path, x0), net.expect(x0))


def test_weights_are_exact(python: Path, tmp_path: Path) -> None:
    """Whatever the matrix's values are: Lava picks a sign mode by them, rounds to its bits, and drops zeros."""
    net = Net(timesteps=2)
    x, ramp = net.input("x", 1, 8, 8), np.arange(-128, 128).reshape(4, 64)
    matrices = [np.full((4, 64), value) for value in (0, -1, 1, 127, -128)]
    matrices += [ramp, np.maximum(ramp, 0), np.minimum(ramp, 0), np.eye(4, 64, dtype=int) * -3]
    for i, matrix in enumerate(matrices):
        name = net.neurons(f"n{i}", "sigma", (4,), 1)
        net.connect(x, name, "dense", weight=matrix)
        net.sparse(x, name, matrix)
        net.conv(x, name, matrix.reshape(4, 1, 8, 8), (1, 8, 8))
        net.sparse(x, name, matrix, exponent=1)
    net.data["outputs"] = [f"n{len(matrices) - 1}", "n0"]
    net.write(tmp_path)
    x0 = np.random.default_rng(0).integers(0, 2, (2, 3, 1, 8, 8))
    expected = net.expect(x0)
    sums = np.cumsum(x0.reshape(2, 3, 64), axis=0)
    for i, matrix in enumerate(matrices):
        np.testing.assert_array_equal(expected[f"n{i}"], sums @ matrix.T * 5)
    agree(net, run(python, tmp_path, x0), expected, busy=-1)


def test_delays(python: Path, tmp_path: Path) -> None:
    """Each from 1 to 62, all into one population: it sees the input of 62 - delay steps later, the sample repeated."""
    rng = np.random.default_rng(5)
    net = Net(timesteps=64)
    net.input("x", 6)
    net.neurons("n", "sigma", (4,), 63)
    x, expected = rng.integers(0, 2, (64, 1, 6)), np.zeros((64, 1, 4), np.int64)
    for delay in range(1, 63):
        weight = rng.integers(-128, 128, (4, 6))
        net.sparse("x", "n", weight, delay=delay)
        expected += np.roll(x, delay - 62, axis=0) @ weight.T
    net.data["outputs"] = ["n"]
    net.write(tmp_path)
    agree(net, run(python, tmp_path, x), {"n": expected.cumsum(axis=0)})


# --------------------------------------------------------------------------------------------------------------- netx


def netx(folder: Path, rng: np.random.Generator) -> Net:
    """A network.net (conv, flatten, dense, dense), and the same as processes: netx's weights are even here, so that
    its own sign modes do not change them."""
    net = Net(timesteps=8)
    net.input("x", 2, 5, 4, bits=4)
    w = [2 * rng.integers(-40, 60, shape) for shape in ((3, 2, 3, 2), (6, 3 * 3 * 3), (4, 6))]
    bias = rng.integers(-64, 64, 3)
    shapes, thresholds = [(3, 3, 3), (6,), (4,)], [100, 60, 20]
    with h5py.File(folder / "network.net", "w") as file:
        layers: list[dict[str, Any]] = [{"type": "input", "shape": (2, 5, 4)}]
        conv = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "bias": bias}
        layers += [{"type": "conv", **conv}, {"type": "flatten"}, {"type": "dense"}, {"type": "dense"}]
        real = [layers[1], layers[3], layers[4]]
        for layer, weight, shape, threshold in zip(real, w, shapes, thresholds, strict=True):
            neuron = {"type": "CUBA", "vThMant": threshold, "iDecay": 4096, "vDecay": 128}
            layer |= {"weight": weight, "shape": shape, "neuron": neuron}
        for i, layer in enumerate(layers):
            for key, value in layer.items():
                for name, each in value.items() if isinstance(value, dict) else [("", value)]:
                    path = f"layer/{i}/{key}/{name}".rstrip("/")
                    file[path] = np.array([each], "S10") if isinstance(each, str) else np.asarray(each)
    names = ["conv", "hidden", "out"]
    for i, (name, shape, threshold) in enumerate(zip(names, shapes, thresholds, strict=True)):
        arrays = {"bias": bias.repeat(9) * 64} if i == 0 else {}
        net.neurons(name, "cuba_lif", shape, i + 1, threshold=threshold, decay_u=4096, decay_v=128, arrays=arrays)
    net.conv("x", "conv", w[0], (2, 5, 4), 4)
    net.connect("conv", "hidden", "dense", weight=w[1])
    net.connect("hidden", "out", "dense", weight=w[2])
    net.data |= {"outputs": ["out"], "form": "netx"}
    return net


def test_netx(sdk_python: Callable[[str], Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    net = netx(tmp_path, rng)
    net.write(tmp_path)
    python, x = sdk_python("lava"), rng.integers(-1, 3, (4, 2, 5, 4))
    agree(net, run(python, tmp_path, x), net.expect(x))
    status, answer = call(python, tmp_path)
    assert (status, answer) == (0, {"valid": True, "message": "", "version": "lava-nc 0.10.0, lava-dl 0.6.0"})
    with h5py.File(tmp_path / "network.net", "a") as file:
        file["layer/3/weight"][0, 0] = 256
    status, answer = call(python, tmp_path)
    assert (status, answer["valid"]) == (1, False) and "clipped to 254" in answer["message"]


def test_netx_needs_lava_dl(python: Path, tmp_path: Path) -> None:
    net = netx(tmp_path, np.random.default_rng(3))
    net.write(tmp_path)
    status, answer = call(python, tmp_path)
    assert status == 2 and answer["valid"] is None
    assert "lava-dl is not installed" in answer["message"] and "lava-dl==0.6.0" in answer["message"]


# ------------------------------------------------------------------------------------------------------------- errors


def small(weight: Array | None = None, how: str = "dense", delay: int = 0, **changes: Any) -> Net:
    """One input, one connection and one population; `changes` to what that has."""
    given: dict[str, Any] = {"kind": "cuba_lif", "depth": 1, "threshold": 1, "decay_u": 4096, "decay_v": 0}
    net = Net(timesteps=20)
    net.input("x", 3)
    net.neurons("n", shape=(2,), **{**given, **changes})
    net.connect("x", "n", how, weight=np.ones((2, 3), np.int8) if weight is None else weight, delay=delay)
    net.data["outputs"] = ["n"]
    return net


REFUSED = {
    "bias": ({"arrays": {"bias": np.array([8192, 8193])}}, "`n` has the bias 8193"),
    "wide bias": ({"arrays": {"bias": np.array([-(4096 << 7) - 128, 0])}}, "`n` has the bias -524416"),
    "weights": ({"weight": np.full((2, 3), 128)}, "from `x` to `n` has weights from 128 to 128, not within 8 bits"),
    "kind of neuron": ({"kind": "izhikevich"}, "`n` is of the kind izhikevich, which this run.py does not know"),
    "kind of connection": ({"how": "pool"}, "from `x` to `n` is of the kind pool, which this run.py does not know"),
    "delay": ({"delay": 1}, "from `x` to `n` is of the kind dense, which has no delay"),
    "scale": ({"kind": "delta", "scale": 3, "how": "direct"}, "`n` has the scale 3, which is no power of two"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_lava_would_bend_is_refused(python: Path, tmp_path: Path, case: str) -> None:
    changes, said = REFUSED[case]
    small(**changes).write(tmp_path)
    status, answer = call(python, tmp_path, "--validate")
    assert status == 2 and answer["valid"] is None
    assert said in answer["message"]


def test_lava_says_no(python: Path, tmp_path: Path) -> None:
    small(weight=np.ones((2, 4), np.int8)).write(tmp_path)
    status, answer = call(python, tmp_path)
    assert status == 1 and answer["valid"] is False and answer["version"] == "lava-nc 0.10.0"
    assert answer["message"].startswith("DuplicateConnection") or "shape" in answer["message"].lower()


def test_hardware_is_not_there(python: Path, tmp_path: Path) -> None:
    small().write(tmp_path)
    for samples, said in ((1, "lava-nc 0.10.0 has no Loihi 2 backend"), (2, "one sample a run on hardware")):
        np.savez(tmp_path / "in.npz", x0=np.ones((samples, 3), np.int8))
        status, answer = call(python, tmp_path, "--input", "in.npz", "--output", "out.npz", "--hardware")
        assert status == 2 and said in answer["message"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise ValueError('it\\nbreaks')", "Lava's SinkModel: ValueError: it breaks"),
        (
            "__import__('os').kill(__import__('os').getpid(), 9)",
            "one of Lava's processes was ended by SIGKILL (out of memory?)",
        ),
    ],
)
@pytest.mark.parametrize("where", ["run_spk", "__init__"])
def test_a_process_that_fails_ends_the_run(python: Path, tmp_path: Path, what: str, said: str, where: str) -> None:
    """Lava's other processes would wait for it forever."""
    small().write(tmp_path)
    file = tmp_path / "processes" / "snncc_processes.py"
    before = {"run_spk": "        data, row = self.a_in.recv()", "__init__": "        self.rows = np.load"}[where]
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, f"        {what}\n{before}"))
    np.savez(tmp_path / "in.npz", x0=np.ones((4, 3), np.int8))
    status, answer = call(python, tmp_path, "--input", "in.npz", "--output", "out.npz")
    assert status == 2 and said in answer["message"]
    assert not running(tmp_path) and not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_run_that_is_ended(python: Path, tmp_path: Path, how: signal.Signals) -> None:
    small().write(tmp_path)
    np.savez(tmp_path / "in.npz", x0=np.ones((10**6, 3), np.int8))  # hours
    process = subprocess.Popen([python, tmp_path / "run.py", "--input", tmp_path / "in.npz", "--output", "out.npz"])
    wait(lambda: len(running(tmp_path)) > 4)
    process.send_signal(how)
    assert process.wait(10) != 0
    wait(lambda: not running(tmp_path))


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def running(folder: Path) -> list[str]:
    """The processes of a folder's runner."""
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]
