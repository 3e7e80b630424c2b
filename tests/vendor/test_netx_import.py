"""Real Lava on `.net` files: what read_netx makes of them does the same, in every step of every layer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from netxfiles import Layer, conv, cuba, dense, drive, random_net, sdnn, whc, write

from snncc.engine import TorchEngine
from snncc.frontend import read_netx
from snncc.ir import InputError, verify
from snncc.ir.loihi import CubaLif, Sigma, SigmaDelta, synapse_weights
from snncc.ir.types import Array

pytestmark = pytest.mark.vendor
GENERATED, STEPS = 60, 16
SPIKES: Layer = {"type": "input", "shape": [4]}
IMAGE: Layer = {"type": "input", "shape": [2, 4, 5]}
W = np.array([[3, -2, 0, 1], [-4, 5, 1, 2], [1, 1, -3, 2]])
K = np.arange(24).reshape(3, 2, 2, 2) - 11
NO_INPUT = [conv((3, 3, 4), K, cuba(), bias=np.array([1, 9, 0])), {"type": "flatten"}, dense(np.ones((2, 36)), sdnn())]

# Weights of one dense layer that netx changes, or nearly. Beside each what Lava computes with.
WEIGHTS: dict[str, tuple[list[int], list[int]]] = {
    "ones below zero": ([-1, -1, -1, -1], [0, 0, 0, 0]),
    "a power of two below zero": ([-1, -3, -4, -2], [-1, -3, -3, -2]),
    "a power of two, and zero": ([0, -4, -2, -4], [0, -3, -2, -3]),
    "the lowest": ([-256, -3, -1, -7], [-255, -3, -1, -7]),
    "too low": ([-257, -3, -1, -7], [0, 0, 0, 0]),
    "low, odd, and zero": ([-131, 0, -64, -2], [0, 0, 0, 0]),
    "too high": ([256, 3, 0, 1], [0, 0, 0, 0]),
    "the highest": ([255, 3, 0, 1], [255, 3, 0, 1]),
    "mixed, too high": ([300, 3, -5, 0], [254, 3, -5, 0]),
    "mixed, too low": ([-300, 3, 255, 0], [-256, 3, 254, 0]),
    "mixed, odd": ([-255, 253, 129, -131], [-255, 253, 129, -131]),
}

# What netx or Lava fails on, and read_netx refuses.
REFUSED: dict[str, list[Layer]] = {
    "weights of zero": [SPIKES, dense(0 * W, cuba())],
    "weights of three axes": [SPIKES, dense(W[..., None], cuba())],
    "too few delays": [SPIKES, dense(W, cuba(), delay=np.array([1]))],
    "a delay below zero": [SPIKES, dense(W, cuba(), delay=np.array([-1, 2, 3]))],
    "a sigma output with a bias": [SPIKES, dense(W, sdnn(sigma_output=True), bias=np.ones(3))],
    "message bits": [SPIKES, dense(W, cuba(messageBits=8))],
    "a neuron RF": [SPIKES, dense(W, {"type": "RF", "vThMant": 1, "sinDecay": 10, "cosDecay": 4000})],
    "a neuron nobody knows": [SPIKES, dense(W, {"type": "LIF", "vThMant": 1})],
    "flat neurons flattened": [SPIKES, dense(W, cuba()), {"type": "flatten"}, dense(W[:, :3], cuba())],
    "an image not flattened": [IMAGE, conv((3, 3, 4), K, cuba()), dense(np.ones((2, 36)), cuba())],
    "a convolution without neurons": [IMAGE, {k: v for k, v in conv((3, 3, 4), K, cuba()).items() if k != "neuron"}],
    "another shape": [IMAGE, conv((3, 4, 4), K, cuba())],
    "a stride of one value": [IMAGE, conv((3, 3, 4), K, cuba(), stride=[1])],
    "biases (C, H, W)": [IMAGE, conv((3, 3, 4), K, cuba(), bias=np.ones((3, 3, 4)))],
    "a bias without axes": [IMAGE, conv((3, 3, 4), K, cuba(), bias=np.array(1))],
    "no input shape": [conv((3, 3, 4), K, cuba())],
    **{k: [IMAGE, conv((3, 3, 4), K, cuba()), {"type": k}] for k in ("pool", "average", "concat", "convT", "unpool")},
}  # fmt: skip


def depthwise(groups: int) -> Layer:
    return conv((groups, 1, 1), np.ones((groups, 1, 2, 2)), cuba(1), groups=groups)


@dataclass
class Case:
    """A file and what to feed it. ``options``: of read_netx, which are netx's as well; ``more``: netx's own."""

    path: Path
    x: Array = field(default_factory=lambda: np.zeros((STEPS, 1, 4)))
    lava: Array = field(default_factory=lambda: np.zeros((STEPS, 4)))
    steps: int = STEPS
    options: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def random(cls, path: Path, layers: list[Layer], seed: int = 0, steps: int = STEPS, **options: Any) -> Case:
        graph, _ = read_netx(write(path, layers), **options)
        return cls(path, *drive(graph, layers, steps, seed), steps, options)

    def job(self) -> dict[str, Any]:
        """What netx_reference.py takes."""
        given = self.path.with_suffix(".npy")
        np.save(given, self.lava)
        options = {name: value[::-1] if name == "input_shape" else value for name, value in self.options.items()}
        files = {"net": str(self.path), "input": str(given), "output": str(self.path.with_suffix(".npz"))}
        return {**files, "steps": self.steps, "options": options | self.more}

    def answer(self) -> dict[str, Array]:
        """What Lava did."""
        return dict(np.load(self.path.with_suffix(".npz")))

    def compare(self) -> Array:
        """How many values of all layers, and of the last one's final state, are compared, not 0, and different."""
        graph, _ = read_netx(self.path, **self.options)
        verify(graph)
        names = [node.name for node in graph.nodes if re.fullmatch(r"layer_\d+", node.name)]
        run = TorchEngine().simulate(graph, self.x, timesteps=self.steps, record=names, final=True)
        ours, lavas, last = {**run.spikes, **run.values}, self.answer(), graph[names[-1]]
        pairs = [(ours[name][:, 0], whc(lavas.pop(f"layer_{i}"), 1)) for i, name in enumerate(names)]
        states = {CubaLif: ["u", "v"], SigmaDelta: ["sigma", "act", "residue"], Sigma: ["sigma"]}[type(last.op)]
        assert sorted(states) == sorted(lavas)
        final = run.final[last.name].reshape(len(states), *last.type.shape)
        pairs += [(own, whc(lavas[name])) for own, name in zip(final, states, strict=True)]
        assert all(own.shape == lava.shape for own, lava in pairs)
        return sum(np.array([own.size, np.count_nonzero(lava), np.count_nonzero(own != lava)]) for own, lava in pairs)


@dataclass(frozen=True)
class Lava:
    """The `lava` environment, and a folder for files."""

    python: Path
    folder: Path

    def run(self, jobs: list[dict[str, Any]]) -> list[str]:
        """Per job "" or why Lava failed."""
        (self.folder / "jobs.json").write_text(json.dumps(jobs))
        (self.folder / "lava").mkdir()  # see netx_reference.py
        script = shutil.copy(Path(__file__).with_name("netx_reference.py"), self.folder / "lava")
        line = [self.python, script, self.folder / "jobs.json"]
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=600)
        answers: list[str] = json.loads(done.stdout.splitlines()[-1])
        return answers

    def compare(self, cases: list[Case]) -> None:
        """Print the counts, and hold them to no difference."""
        assert self.run([case.job() for case in cases]) == [""] * len(cases)
        counts = np.array([case.compare() for case in cases])
        for case, row in zip(cases, counts, strict=True):
            if row[2] or len(cases) < 30:
                print("{}: {} values compared, {} not 0, {} different".format(case.path.stem, *row))
        total = counts.sum(axis=0)
        print("{} networks: {} values compared, {} not 0, {} different".format(len(cases), *total))
        assert total[2] == 0 < total[1]


@pytest.fixture
def lava(sdk_python: Callable[[str], Path], tmp_path: Path) -> Lava:
    return Lava(sdk_python("lava"), tmp_path)


def test_shipped_networks(lava: Lava) -> None:
    """The networks that lava-dl's wheel has among its tests; with their inputs, where there are some."""
    line = [lava.python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    tests, rng = Path(packages, "tests/lava/lib/dl/netx"), np.random.default_rng(0)

    def images(name: str, path: str, given: Array, weight: int = 64, bias: int = 0, steps: int = STEPS) -> Case:
        return Case(shutil.copy(tests / path, lava.folder / name), (whc(given) - bias)[None] / weight, given, steps)

    def data(path: str) -> Array:
        return np.load(tests / "gts" / path).astype(np.int64)

    ntidigits = Path(shutil.copy(tests / "gts/ntidigits/ntidigits.net", lava.folder))
    digits = data("ntidigits/input.npy").T[:200]
    square = rng.integers(-60, 65, (33, 33, 3))
    lava.compare(
        [
            images("tiny.net", "tiny.net", data("tinynet/input_bias.npy"), 36, 34, 32),
            images("mnist.net", "mnist.net", rng.integers(0, 140, 784), 76, 64, 32),
            images("pilotnet_lif.net", "gts/pilotnet_lif/network.net", data("pilotnet_lif/image.npy"), 40, 36),
            images("pilotnet_sdnn.net", "gts/pilotnet_sdnn/network.net", data("pilotnet_sdnn/input.npy")[..., 0]),
            images("square_network.net", "gts/pilotnet_sdnn/square_network.net", square, steps=8),
            Case(ntidigits, digits.reshape(200, 1, 1, 1, 64), digits, 200, {"num_layers": 5}),
        ]
    )


def test_generated_networks(lava: Lava) -> None:
    """Every third is of CUBA, of SDNN, of both."""
    spike_exp = (6, 3, 0)
    lava.compare(
        [
            Case.random(lava.folder / f"{i}.net", random_net(i), i, spike_exp=spike_exp[i // 3 % 3])
            for i in range(GENERATED)
        ]
    )


def test_special_networks(lava: Lava) -> None:
    networks: dict[str, list[Layer]] = {
        "delays_clamped": [SPIKES, dense(W, cuba(0), delay=np.array([-1, 2, 70]))],
        "biases_wrapped": [SPIKES, dense(W, cuba(0), bias=np.array([40000, -40000, 9]))],
        "fractions_cut": [SPIKES, dense(W * 1.3, cuba(0), delay=np.array(2.7))],
        "flatten_before_conv": [IMAGE, {"type": "flatten"}, *NO_INPUT[::2]],
        "input_shape": NO_INPUT,
        "messages": [SPIKES, dense(W, cuba(20))],
        "groups_127": [{"type": "input", "shape": [127, 2, 2]}, depthwise(127)],
        **{name: [SPIKES, dense([row, row], cuba(0, 0, 0))] for name, (row, _) in WEIGHTS.items()},
    }
    options = {"input_shape": {"input_shape": (2, 4, 5)}}
    cases = {
        name: Case.random(lava.folder / f"{name}.net", layers, steps=80, **options.get(name, {}))
        for name, layers in networks.items()
    }
    messages = cases["messages"]
    messages.x, messages.lava, messages.more = 7 * messages.x, 7 * messages.lava, {"input_message_bits": 8}
    lava.compare(list(cases.values()))
    for name, (stored, effective) in WEIGHTS.items():
        graph, found = read_netx(cases[name].path)
        assert graph.store[graph["layer_1.linear"].op.weight].tolist() == [effective] * 2
        assert any("netx changes" in d.message for d in found) == (stored != effective)


def test_synapse_weights(lava: Lava) -> None:
    """Lava's own model of a dense layer on matrices of all ranges, of which netx changes many."""
    rng, pairs = np.random.default_rng(0), []
    for low in range(-270, 271, 3):
        pairs += [(low, high) for high in {low, low + 1, 0, -1, 1, 127, 129, 254, 255, 256, -128}]
    weights = [np.array([[low, high, (low + high) // 2], [high, low, low]]) for low, high in pairs]
    for _ in range(1000):
        low, high = sorted(rng.integers(-(2 ** rng.integers(1, 10)), 2 ** rng.integers(1, 10), 2))
        weights.append(rng.integers(low, high + 1, (3, 5)) * 2 ** rng.integers(0, 4))
    files = {"weights": str(lava.folder / "weights.npz"), "output": str(lava.folder / "products.npz")}
    np.savez(files["weights"], *weights)
    assert lava.run([files]) == [""]
    products = np.load(files["output"])
    counts = {"the same": 0, "changed": 0, "none": 0, "half": 0}
    for i, stored in enumerate(weights):
        alone, together = products[f"arr_{i}"][:-1], products[f"arr_{i}"][-1:].sum(0)
        try:
            effective = synapse_weights(stored)
        except ValueError:
            effective = None
        if effective is None:  # netx fails, or Lava's sums are not those of any weights
            assert not alone.size or (together != 2 * alone.sum(0)).any(), stored
            counts["half" if alone.size else "none"] += 1
            continue
        assert np.array_equal(alone.T, effective) and np.array_equal(together, 2 * effective.sum(1)), stored
        counts["changed" if (effective != stored).any() else "the same"] += 1
    print(f"{len(weights)} matrices, effective weights: {counts}")
    assert min(counts.values()) > 0


def test_what_netx_fails_on_is_refused(lava: Lava) -> None:
    """And convolutions with 128 groups, whose input Lava loses without a word."""
    cases = [Case(write(lava.folder / f"{name}.net", layers)) for name, layers in REFUSED.items()]
    groups = [{"type": "input", "shape": [128, 2, 2]}, depthwise(128)]
    lost = Case(write(lava.folder / "groups.net", groups), lava=np.ones((STEPS, 2, 2, 128)))
    *errors, last = lava.run([case.job() for case in (*cases, lost)])
    assert all(errors) and last == "", dict(zip(REFUSED, errors, strict=True))
    assert not lost.answer()["layer_0"].any()
    for case in (*cases, lost):
        with pytest.raises(InputError):
            read_netx(case.path)
