"""SLAYER's blocks of a compiled network, in lava-dl's environment with the wheel installed (`make test-lava`): their
spikes are those of the simulation, they train, and they export what the emitted `.net` file has."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from passes.build import Net
from torch import nn

import snncc
from snncc.compiled import CompiledModel
from snncc.engine import TorchEngine
from snncc.ir import Graph, InputError, Stage, Store, ops
from snncc.ir.loihi import CubaLif, Delta, Sigma, SigmaDelta
from snncc.ir.types import Array
from snncc.targets import Options
from snncc.targets.lava import blocks, encoded
from snncc.targets.lava.slayer import Compiled

pytestmark = [pytest.mark.vendor, pytest.mark.slayer]
T, N = 16, 3


@pytest.fixture(scope="module", autouse=True)
def _in_the_environment_of_lava_dl() -> None:
    if importlib.util.find_spec("lava") is None:
        reason = "this runs in lava-dl's environment: make test-lava"
        if os.environ.get("SNNCC_REQUIRE_SDK") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def test_the_wheel_is_what_is_tested() -> None:
    assert not Path(snncc.__file__).is_relative_to(Path(__file__).parents[2] / "snncc")


class Tally:
    """How many spikes were compared, and how many of them differ."""

    networks = compared = different = spikes = 0

    def add(self, made: list[nn.Module], model: Compiled, x: Array, shift: int = 0) -> None:
        """Hold every block with neurons against the simulation; each is ``shift`` steps behind the one before."""
        done = TorchEngine().simulate(model.graph, x, timesteps=model.options.timesteps, record="all")
        wanted = done.spikes | done.values
        layers = [node for node in model.graph.nodes if isinstance(node.op, CubaLif | Delta | SigmaDelta | Sigma)]
        y, late = encoded(model, x), 0
        with torch.no_grad():
            for block in made:
                y = block(y)
                if getattr(block, "neuron", None) is None:
                    continue
                late += shift
                node = layers.pop(0)
                mine = np.moveaxis(wanted[node.name], 0, -1)
                mine = mine[..., : mine.shape[-1] - late]
                theirs = y.numpy() if isinstance(node.op, CubaLif) else y.numpy() * 4096
                assert not theirs[..., :late].any()
                theirs = theirs[..., late:].cumsum(-1) if isinstance(node.op, Sigma) else theirs[..., late:]
                assert theirs.shape == mine.shape
                self.compared += mine.size
                self.spikes += int(np.count_nonzero(mine))
                self.different += int((theirs != mine).sum())
        assert not layers
        assert np.array_equal(y.numpy().shape[1:-1], model.graph[model.graph.outputs[0]].type.shape)
        self.networks += 1

    def hold(self) -> None:
        text = (
            f"{self.networks} networks, {self.compared:,} values compared ({self.spikes:,} of them not 0), "
            f"{self.different} different"
        )
        print(f"\n{text}")
        assert self.different == 0 and self.spikes > self.compared / 100, text


def compiled(net: nn.Module, shape: tuple[int, ...], seed: int = 0, **options: Any) -> tuple[CompiledModel, Array]:
    x = np.random.default_rng(seed).random((N, *shape)).astype(np.float32)
    options = {"reset": "zero", "timesteps": T, "bias": "keep"} | options
    return snncc.compile(net.eval(), "lava", calibration=x, **options), x


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def mlp(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    sizes = [64, 40, 30, 10]
    layers = [(nn.Linear(a, b, bias), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *(layer for pair in layers for layer in pair))


def chain(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, int, int]]:
    """A sequence of layers with strides, padding, dilation, groups, biases and pooling."""

    def coin(p: float) -> bool:
        return bool(rng.random() < p)

    channels, size = int(rng.integers(1, 4)), [int(n) for n in rng.integers(5, 9, 2)]
    shape, layers = (channels, size[0], size[1]), list[nn.Module]()
    for _ in range(int(rng.integers(0, 4))):
        kernel, stride, padding = int(rng.integers(1, min(3, *size) + 1)), 1 + coin(0.3), int(coin(0.5))
        dilation = 2 if kernel == 2 and min(size) > 2 and coin(0.5) else 1
        groups = channels if coin(0.3) else 1
        out = groups * int(rng.integers(1, 4))
        layers += [nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=coin(0.6)), nn.ReLU()]
        size = [(n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in size]
        channels = out
        if not any(n % 2 for n in size) and coin(0.6):
            layers.append(nn.AvgPool2d(2))
            size = [n // 2 for n in size]
    if not isinstance((layers or [None])[-1], nn.ReLU) or coin(0.7):
        layers += [nn.Flatten(), nn.Linear(channels * size[0] * size[1], 4, bias=coin(0.6))]
    return nn.Sequential(*layers), shape


@pytest.mark.parametrize("train", [False, True])
def test_lenet_and_mlp(train: bool) -> None:
    tally = Tally()
    for net, shape in ((lenet(), (1, 28, 28)), (mlp(), (1, 8, 8))):
        model, x = compiled(net, shape)
        made = blocks(model)
        tally.add(list(nn.Sequential(*made).train(train)), model, x)
        kinds = [type(block).__name__ for block in made]
        assert kinds == ["Input", *["Conv"] * (len(shape) == 3 and shape[1] == 28) * 2, "Flatten", *["Dense"] * 3]
    tally.hold()


def test_generated_chains() -> None:
    tally = Tally()
    for seed in range(40):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net, shape = chain(np.random.default_rng(seed))
        encoding = ("constant", "rate", "bernoulli")[seed % 3]
        model, x = compiled(net, shape, seed, encoding=encoding, per=("channel", "layer")[seed % 2])
        tally.add(blocks(model), model, x)
    tally.hold()


def test_ready_made_spikes() -> None:
    tally = Tally()
    counts = np.random.default_rng(0).integers(0, 3, (T, N, 1, 8, 8))
    model, _ = compiled(mlp(), (1, 8, 8), encoding="spikes")
    tally.add(blocks(model), model, counts)
    tally.hold()


# --- neurons --------------------------------------------------------------------------------------------------------


@dataclass
class ByHand:
    """A layer that was not compiled."""

    graph: Graph
    options: Options


def layer(weight: Array, op: CubaLif, store: Store, timesteps: int) -> ByHand:
    net = Net(weight.shape[1], stage=Stage.INT, encoding="spikes", store=store)
    net(ops.Linear(net.param(weight, np.int8)))
    net(op)
    return ByHand(net.graph(), Options(timesteps=timesteps))


THRESHOLDS = [0, 1, 63, 64, 4095, 4096, 65535, 131070]


def test_any_neuron() -> None:
    """Any threshold, decays that leave states between units, biases: with charge that stays within 24 bits."""
    tally = Tally()
    for threshold, decays in product(THRESHOLDS, [(4096, 0), (1000, 77), (0, 4096), (4095, 1)]):
        rng, store = np.random.default_rng(threshold), Store()
        low, high = (-64, 64) if threshold < 4000 else (-8, 128)
        bias = store.put("bias", (rng.integers(-1000, 1001, 50) * 64).astype(np.int32))
        model = layer(rng.integers(low, high, (50, 12)), CubaLif(threshold, bias, *decays), store, 60)
        counts = 22 if low == -8 and decays[0] > 4000 else 2
        tally.add(blocks(model), model, rng.integers(0, counts, (60, N, 12)))
    tally.hold()


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_spike_takes_more_than_the_threshold(threshold: int) -> None:
    """In float32, SLAYER's own comparison loses the difference from a threshold of 4096 on."""
    store, tally = Store(), Tally()
    bias = store.put("bias", np.array([-64, 0, 64], np.int32))
    model = layer(np.ones((3, 1)), CubaLif(threshold, bias), store, 1)
    tally.add(blocks(model), model, np.full((1, 1, 1), threshold))
    assert (tally.different, tally.spikes) == (0, 1)


def test_later_by_one_step_a_block() -> None:
    tally = Tally()
    model, x = compiled(mlp(bias=False), (1, 8, 8))
    made = blocks(model)
    for block in made[1:]:
        block.delay_shift = True
    tally.add(made, model, x, shift=1)
    tally.hold()


def messages(rng: np.random.Generator) -> tuple[ByHand, Array]:
    """A sequence of sigma-delta neurons, with all that there is."""

    def pick(*options: int) -> int:
        return int(rng.choice(options))

    shape = (pick(1, 2), pick(5, 6, 7), pick(6, 8))
    net = Net(*shape, stage=Stage.INT, low=-100.0, high=100.0)
    net(Delta(scale=pick(1, 3)))
    for _ in range(pick(0, 1, 2)):
        channels, groups = net.nodes[net.last].type.shape[0], pick(1, net.nodes[net.last].type.shape[0])
        weight = rng.integers(-64, 65, (groups * pick(1, 3), channels // groups, 2, pick(1, 2)))
        net(ops.Conv2d(net.param(weight, np.int8), stride=(pick(1, 2), 1), padding=(1, 1, 0, 0), groups=groups))
        bias = net.param(rng.integers(-4000, 4000, len(weight)), np.int32)
        net(SigmaDelta(None if pick(0, 1) else bias, shift=pick(6, 7, 9)))
        if not any(n % 2 for n in net.nodes[net.last].type.shape[1:]):
            net(ops.SumPool((2, 2), (2, 2)))
    net(ops.Flatten())
    net(ops.Linear(net.param(rng.integers(-64, 65, (5, net.nodes[net.last].type.size)), np.int8)))
    if pick(0, 1):
        net(SigmaDelta(net.param(rng.integers(-4000, 4000, 5), np.int32), shift=7))
        net(ops.Linear(net.param(rng.integers(-64, 65, (3, 5)), np.int8)))
    size = net.nodes[net.last].type.size
    net(Sigma(None if pick(0, 1) else net.param(rng.integers(-99, 99, size), np.int32)))
    return ByHand(net.graph(), Options(timesteps=4)), rng.integers(-100, 101, (N, *shape))


def test_sigma_delta_neurons() -> None:
    tally = Tally()
    for seed in range(40):
        model, x = messages(np.random.default_rng(seed))
        tally.add(blocks(model), model, x)
    tally.hold()


def test_sigma_delta_blocks_train_and_are_not_exported() -> None:
    """In netx every message is shifted by 6 bits: it would read other numbers than these."""
    model, x = messages(np.random.default_rng(6))
    net = nn.Sequential(*blocks(model))
    net(encoded(model, x)).sum(-1).square().mean().backward()
    learned = [name for name, p in net.named_parameters() if p.requires_grad]
    assert sum("weight" in name for name in learned) >= 2 and any("running_mean" in name for name in learned)
    assert all(
        p.grad is not None and p.grad.any() and torch.isfinite(p.grad).all()
        for p in net.parameters()
        if p.requires_grad
    )
    with pytest.raises(InputError, match="netx files cannot hold"):
        export(list(net))


# --- training and exchange ------------------------------------------------------------------------------------------


def test_blocks_train() -> None:
    """Weights and biases learn: the loss falls, and they stay on the chip's grid."""
    model, x = compiled(mlp(), (1, 8, 8))
    net = nn.Sequential(*blocks(model))
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert sorted(name.partition(".")[2] for name in parameters) == [
        *["neuron.norm.running_mean"] * 3, *["synapse.weight"] * 3,
    ]  # fmt: skip
    before = {name: p.detach().clone() for name, p in parameters.items()}
    spikes, wanted = encoded(model, x), torch.tensor([7, 3, 5])
    optimizer = torch.optim.Adam(parameters.values(), 0.01)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(net(spikes).sum(-1), wanted)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, losses
    assert all((p != before[name]).any() for name, p in parameters.items())
    for block in net:
        if getattr(block, "neuron", None) is not None:
            for hook, p in (
                (block.synapse.pre_hook_fx, block.synapse.weight),
                (block.neuron.norm.pre_hook_fx, block.neuron.norm.running_mean),
            ):
                whole = hook(p, descale=True)
                assert (whole == whole.round()).all()


def test_gradients_at_the_smallest_threshold() -> None:
    store = Store()
    net = nn.Sequential(*blocks(layer(np.ones((3, 2)), CubaLif(0), store, 4)))
    net(torch.ones(1, 2, 4)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def export(made: list[nn.Module]) -> io.BytesIO:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for i, block in enumerate(made):
            block.export_hdf5(file.create_group(f"layer/{i}"))
    return buffer


def test_export_is_the_emitted_file(tmp_path: Path) -> None:
    """Loaded by netx, too; what it computes with such files is in test_lava.py."""
    for net, shape, layers in ((lenet(), (1, 28, 28), 5), (mlp(), (1, 8, 8), 3)):
        model, _ = compiled(net, shape, form="netx")
        path = tmp_path / f"{layers}.net"  # netx never closes its files
        path.write_bytes(export(blocks(model)).getvalue())
        ours = model.target.files(model.graph, model.options)["network.net"]
        assert isinstance(ours, bytes)
        with h5py.File(path) as theirs, h5py.File(io.BytesIO(ours)) as file:
            names: list[str] = []
            file.visititems(lambda name, item, names=names: names.append(name) if hasattr(item, "dtype") else None)
            assert len(names) > 20
            for name in names:
                a, b = np.asarray(theirs[name][()]), np.asarray(file[name][()])
                assert np.array_equal(a.reshape(-1), b.reshape(-1)), (name, a, b)
        from lava.lib.dl.netx.hdf5 import Network

        assert len(Network(str(path), input_message_bits=8)) == layers


def test_copies_and_states() -> None:
    model, x = compiled(mlp(), (1, 8, 8))
    made = blocks(model)
    tally = Tally()
    tally.add(copy.deepcopy(made), model, x)
    fresh = blocks(model)
    for block in fresh:
        for p in block.parameters():
            p.data.zero_()
    nn.Sequential(*fresh).load_state_dict(nn.Sequential(*made).state_dict())
    tally.add(fresh, model, x)
    tally.hold()
