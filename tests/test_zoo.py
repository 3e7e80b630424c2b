"""The zoo's networks are fit to test with: alive, of sensible size, repeatable, within the chip if they claim so."""

from __future__ import annotations

from math import ceil, log2

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from zoo import GRAPH_ZOO, SEQUENTIAL_ZOO, ZOO, build, example_input, random_model, resnet152

EVERY = ZOO | SEQUENTIAL_ZOO | GRAPH_ZOO
ACTIVATIONS = {"relu", "relu_", "relu6", "clamp", "hardtanh", "hardtanh_"}


class Watch(TorchFunctionMode):
    """Collects the activations' outputs, however they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ACTIVATIONS:
            self.seen.append(out.clone())
        return out


def check_alive(model: nn.Module, x: Tensor, spread: float = 0.05) -> list[Tensor]:
    with torch.no_grad(), Watch() as watch:
        found = model(x)
    for out in found if isinstance(found, tuple) else (found,):
        assert out.shape[0] == len(x) and out.isfinite().all()
        assert out.abs().max() < 50
        assert out.std(0).mean() > spread, "the output hardly depends on the input"
    assert watch.seen
    for i, activation in enumerate(watch.seen):
        zero = (activation == 0).double().mean()
        assert 0.01 < zero < 0.99, f"activation {i}: {zero:.0%} zeros"
    return watch.seen


@pytest.mark.parametrize("name", EVERY)
def test_alive(name: str) -> None:
    spec = EVERY[name]
    model = build(name)
    assert not model.training
    seen = check_alive(model, example_input(spec.input_shape, 8, seed=1))
    if spec.gain > 1:
        assert any((a == 6).any() for a in seen), "no activation reaches ReLU6's cap"


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_network(name: str) -> None:
    one, same, other = (build(name, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", EVERY)
def test_batch_norms_are_not_trivial(name: str) -> None:
    gain = EVERY[name].gain
    for norm in build(name).modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            assert norm.running_mean.abs().mean() > 0.05
            assert norm.running_var.min() / gain**2 >= 0.29 and norm.running_var.max() / gain**2 <= 2.01
            assert norm.weight.std() > 0.05 and norm.bias.std() > 0.05


@pytest.mark.parametrize("seed", range(60))
def test_random_models(seed: int) -> None:
    model, shape = random_model(np.random.default_rng(seed))
    again, _ = random_model(np.random.default_rng(seed))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with torch.no_grad():
        out = model(example_input(shape, 8, seed=1))
    assert out.isfinite().all() and out.abs().max() < 50 and out.std(0).mean() > 0.05


@pytest.mark.parametrize("name", SEQUENTIAL_ZOO)
def test_fits_dynapcnn(name: str) -> None:
    kernel_memory = [k * 1024 for k in (16, 16, 16, 32, 32, 64, 64, 16, 16)]
    neuron_memory = [k * 1024 for k in (64, 64, 64, 32, 32, 16, 16, 16, 16)]

    def lg(n: int) -> int:
        return ceil(log2(n))

    layers = layer_shapes(build(name), SEQUENTIAL_ZOO[name].input_shape)
    fits: nx.Graph[tuple[str, int]] = nx.Graph()
    for i, ((c_in, h_in, w_in), k, (c_out, h_out, w_out)) in enumerate(layers):
        assert max(h_in, w_in) <= 128 and max(h_out, w_out) <= 64 and max(c_in, c_out) <= 1024
        kernel = c_in * 2 ** (lg(k * k) + lg(c_out))
        neurons = c_out * 2 ** (lg(h_out) + lg(w_out))
        for core in range(9):
            if kernel <= kernel_memory[core] and neurons <= neuron_memory[core]:
                fits.add_edge(("layer", i), ("core", core))
    placed = nx.bipartite.maximum_matching(fits, [("layer", i) for i in range(len(layers)) if ("layer", i) in fits])
    assert all(("layer", i) in placed for i in range(len(layers)))


Shape = tuple[int, int, int]


def layer_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> list[tuple[Shape, int, Shape]]:
    """(input, kernel, output) of each weight layer as the chip sees it: linear is a convolution of full size."""
    found: list[tuple[Shape, int, Shape]] = []
    shape: tuple[int, ...] = input_shape

    def track(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal shape
        assert not isinstance(module, nn.MaxPool2d)
        if isinstance(module, nn.Conv2d):
            found.append((tuple(args[0].shape[1:]), module.kernel_size[0], tuple(out.shape[1:])))  # type: ignore[arg-type]
        if isinstance(module, nn.Linear):  # `shape` is the input's before it was flattened
            found.append((shape, shape[1], (module.out_features, 1, 1)))  # type: ignore[arg-type]
        shape = (*out.shape[1:], 1, 1)[:3] if isinstance(module, nn.Linear) or out.dim() == 4 else shape

    for module in model.children():
        module.register_forward_hook(track)
    with torch.no_grad():
        model(torch.zeros(2, *input_shape))
    return found


def test_resnet152_has_the_papers_size() -> None:
    model = resnet152()
    assert sum(p.numel() for p in model.parameters()) == 60_192_808
    check_alive(model, example_input((3, 64, 64), 4, seed=1))
