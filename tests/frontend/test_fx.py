"""The front end against torch's own answers: spellings, aliasing, provenance, diagnostics, and an untouched model."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize, prune
from zoo import SEQUENTIAL_ZOO, ZOO, build, example_input, random_model

from snncc.frontend import check_against, trace
from snncc.ir import Diagnostic, Graph, Severity, interp, verify
from snncc.ir.types import Array

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*")


def evaluate(graph: Graph, xs: list[Array]) -> list[Array]:
    values = interp.run(graph, *xs)
    return [values[name] for name in graph.outputs]


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, start = inspect.getsourcelines(function)
    (found,) = [start + i for i, line in enumerate(lines) if text in line]
    return found


class Net(nn.Module):
    """A function as a network; `layers` become its submodules, given to the function by name."""

    def __init__(self, function: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.function, self.names = function, list(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *xs: Tensor) -> Any:
        return self.function(*xs, **{name: getattr(self, name) for name in self.names})


def data(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def faithful(model: nn.Module, *xs: Tensor, rtol: float = 1e-4) -> Graph:
    """The graph of a model that compiles; held to torch's answer."""
    with torch.no_grad():
        outputs = model.eval()(*(x.clone() for x in xs))
    graph, found = trace(model, xs, evaluate=evaluate)
    assert graph is not None, "\n".join(d.render() for d in found)
    assert found == []
    verify(graph)
    outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
    got = evaluate(graph, [x.numpy() for x in xs])
    for want, result in zip(outputs, got, strict=True):
        np.testing.assert_allclose(result, want.numpy(), rtol=0, atol=rtol * max(float(want.abs().max()), 1e-6))
    return graph


def refused(model: nn.Module, *xs: Tensor, **options: Any) -> list[Diagnostic]:
    graph, found = trace(model, xs, evaluate=evaluate, **options)
    assert graph is None
    assert any(d.severity is Severity.ERROR for d in found)
    return found


def codes(found: list[Diagnostic]) -> list[str]:
    return [d.code for d in found]


def mnemonics(graph: Graph) -> list[str]:
    return [node.op.mnemonic for node in graph.nodes if node.op.mnemonic != "input"]


# ---------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", [*ZOO, *SEQUENTIAL_ZOO])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_zoo(name: str) -> None:
    spec = {**ZOO, **SEQUENTIAL_ZOO}[name]
    faithful(build(name), example_input(spec.input_shape))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_generated_networks(seed: int) -> None:
    model, shape = random_model(np.random.default_rng(seed))
    faithful(model, example_input(shape))


# ---------------------------------------------------------------------------------------------------- spellings

C, H, W = 4, 6, 5
WEIGHT, BIAS = data(4, 3, 3)[0].expand(6, 4, 3, 3).clone() * torch.randn(6, 1, 1, 1), torch.randn(6)
MEAN, VAR = torch.randn(C), torch.rand(C) + 0.5
PER_CHANNEL = torch.tensor([1.0, -2.0, 0.5, 3.0])
MAT = torch.randn(7, C * H * W)


def augmented(symbol: str) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        x = x.clone()
        if symbol == "+":
            x += 2
        elif symbol == "-":
            x -= 2
        elif symbol == "*":
            x *= 2
        else:
            x /= 2
        return x

    return function


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.relu()


def split_and_join(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([a, b.relu()], 1)


SPELLINGS: dict[str, list[Any]] = {
    "conv2d": [
        lambda x: F.conv2d(x, WEIGHT, BIAS),
        lambda x: torch.conv2d(x, WEIGHT, stride=2, padding=(1, 0)),
        lambda x: F.conv2d(x, WEIGHT, BIAS, 1, "same", 2),
        lambda x: F.conv2d(x, WEIGHT[:, :2], None, padding="valid", groups=2),
        lambda x: F.conv2d(input=x, weight=WEIGHT * 2, bias=BIAS),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, stride=(2, 1), padding="valid", bias=False),
        nn.Conv2d(4, 6, 3, padding=(1, 2)),
    ],
    "pad conv2d": [
        *(nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
        nn.Conv2d(4, 6, (2, 4), padding="same", padding_mode="replicate"),
    ],
    "pad": [
        lambda x: F.pad(x, (1, 2)),
        lambda x: F.pad(x, (1, 2, 0, 3), "constant", -1.5),
        lambda x: F.pad(x, [0, 0, 0, 0, 1, 2]),
        *(lambda x, mode=mode: F.pad(x, (1, 2, 2, 1), mode=mode) for mode in ("reflect", "replicate", "circular")),
        nn.ZeroPad2d((1, 2, 3, 0)),
        nn.ConstantPad2d(1, 0.5),
        nn.ReflectionPad2d((1, 2, 0, 1)),
        nn.ReplicationPad2d(2),
    ],
    "pad slice": [
        lambda x: F.pad(x, (-1, 1, -2, 0), value=2.0),
        lambda x: F.pad(x, (2, -1, 0, 0), mode="reflect"),
    ],
    "flatten linear": [
        lambda x: F.linear(x.flatten(1), MAT, torch.ones(7)),
        lambda x: F.linear(torch.flatten(x, 1), weight=MAT),
        lambda x: F.linear(x.view(x.size(0), -1), MAT),
        lambda x: x.flatten(1) @ MAT.t(),
        lambda x: torch.matmul(x.flatten(1), MAT.t()),
        lambda x: F.linear(x.view(x.shape[0], -1), MAT),
        lambda x: F.linear(x.view(len(x.shape) - 5, MAT.shape[1]), MAT),
        lambda x: F.linear(x.view(-1, x.size(1) * x.size(2) * x.size(-1)), MAT),
        lambda x: F.linear(x.reshape((x.size(dim=0), C * H * W)), MAT),
        lambda x: F.linear(torch.reshape(x, (-1, C * H * W)), MAT),
        lambda x: F.linear(x.view(x.shape[0], x.numel() // x.shape[0]), MAT),
        lambda x: F.linear(x.view(x.size()[0], x.shape[1:].numel()), MAT),
        lambda x: F.linear(torch.flatten(x, start_dim=1, end_dim=-1), MAT),
        nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, 7)),
        nn.Sequential(nn.Flatten(1, -1), nn.Linear(C * H * W, 7, bias=False)),
    ],
    "linear": [nn.Linear(5, 3), lambda x: F.linear(x, MAT[:, :5])],
    "batch_norm": [
        lambda x: F.batch_norm(x, MEAN, VAR),
        lambda x: F.batch_norm(x, MEAN, VAR, PER_CHANNEL, PER_CHANNEL, eps=0.1),
        lambda x: torch.batch_norm(x, PER_CHANNEL, None, MEAN, VAR, False, 0.1, 1e-3, False),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, eps=0.5, momentum=None),
    ],
    "relu": [
        F.relu,
        torch.relu,
        lambda x: x.relu(),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.relu_(x),
        lambda x: torch.relu_(x),
        lambda x: x.relu_(),
        lambda x: torch.clamp(x, 0),
        lambda x: x.clamp(min=0.0),
        lambda x: torch.clamp_min(x, 0),
        lambda x: x.clamp_min_(0),
        lambda x: F.threshold(x, 0, 0),
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.Threshold(0, 0),
    ],
    "clamp": [
        F.relu6,
        nn.ReLU6(),
        nn.ReLU6(inplace=True),
        F.hardtanh,
        lambda x: F.hardtanh(x, min_val=-0.5, max_val=0.5),
        lambda x: F.hardtanh_(x, 0, 2),
        nn.Hardtanh(0, 1.5),
        lambda x: torch.clamp(x, 0, 1),
        lambda x: x.clamp(0, 1),
        lambda x: x.clamp_(-1, 1),
        lambda x: torch.clip(x, max=1),
        lambda x: x.clip(0, torch.tensor(1.5)),
        lambda x: torch.clamp_max(x, 0.5),
        lambda x: x.clamp_max(0.5),
    ],
    "floor": [torch.floor, lambda x: x.floor(), lambda x: x.clone().floor_()],
    "dropout": [
        nn.Dropout(),
        nn.Dropout2d(0.3),
        nn.AlphaDropout(),
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: F.dropout2d(x, training=False),
        lambda x: torch.dropout(x, 0.5, False),
    ],
    "avg_pool": [
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, kernel_size=(3, 2), stride=1, padding=1),
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
        lambda x: F.avg_pool2d(x, 2, divisor_override=3),
        lambda x: F.avg_pool2d(x, x.size()[2:]),
        lambda x: torch.nn.functional.avg_pool2d(x, [x.shape[-2], 1]),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
        lambda x: x.mean(3, keepdim=True),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    ],
    "avg_pool flatten": [
        lambda x: x.mean([2, 3]),
        lambda x: torch.mean(x, (-1, -2)),
        lambda x: x.mean(axis=(2, 3), keepdims=False),
    ],
    "avg_pool reshape": [lambda x: x.mean(-1), lambda x: x.mean(2)],
    "max_pool": [
        lambda x: F.max_pool2d(x, 2),
        lambda x: torch.max_pool2d(x, 3, 2, 1),
        lambda x: F.max_pool2d(x, kernel_size=2, dilation=2, stride=1, ceil_mode=True),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    ],
    "adaptive_avg_pool": [
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, (None, 2)),
        nn.AdaptiveAvgPool2d((4, 2)),
    ],
    "affine": [
        lambda x: x + 1,
        lambda x: 1.5 + x,
        lambda x: torch.add(x, 2, alpha=3),
        lambda x: x.add(0.5),
        lambda x: x.add_(PER_CHANNEL.view(1, -1, 1, 1)),
        lambda x: x - PER_CHANNEL.view(-1, 1, 1),
        lambda x: 1 - x,
        lambda x: torch.rsub(x, 1, alpha=2),
        lambda x: PER_CHANNEL.view(4, 1, 1) - x,
        lambda x: torch.sub(x, 2, alpha=0.5),
        lambda x: x.sub(torch.tensor(3.0)),
        lambda x: x * 2,
        lambda x: PER_CHANNEL[:, None, None] * x,
        lambda x: torch.mul(x, PER_CHANNEL.view(1, 4, 1, 1)),
        lambda x: x.mul_(0.5),
        lambda x: x / 255,
        lambda x: torch.div(x, PER_CHANNEL[:, None, None]),
        lambda x: x.div(4.0),
        lambda x: -x,
        lambda x: torch.neg(x),
        *map(augmented, "+-*/"),
    ],
    "relu add": [
        lambda x: x + F.relu(x),
        lambda x: torch.add(x, x.relu()),
        lambda x: x.add(other=x.relu()),
        lambda x: x.clone().add_(x.relu()),
    ],
    "relu affine add": [
        lambda x: x - F.relu(x),
        lambda x: torch.sub(x, x.relu(), alpha=2),
        lambda x: torch.add(x, x.relu(), alpha=-0.5),
        lambda x: x.sub(x.relu()),
    ],
    "avg_pool pad add": [lambda x: x + x.mean((2, 3), keepdim=True)],
    "relu concat": [
        lambda x: torch.cat([x, x.relu()], 1),
        lambda x: torch.cat((x, x.relu()), dim=-3),
        lambda x: torch.concat([x, F.relu(x)], dim=2),
        lambda x: torch.concatenate((x, F.relu(x)), axis=3),
        lambda x: torch.cat(tensors=[x, F.relu(x), x], dim=1),
    ],
    "slice slice relu concat": [split_and_join],
    "slice": [
        lambda x: F.pad(x, (-1, 0, 0, -2), mode="replicate"),
        nn.ZeroPad2d(-1),
        lambda x: x.split([1, 3], 1)[1],
        lambda x: torch.split(x, 4, dim=2)[0],
        lambda x: x[:, :, ::2, ::2],
        lambda x: x[:, 1:3],
        lambda x: x[..., :-1],
        lambda x: x[:, -2:, ..., 1:],
        lambda x: x[:, slice(0, 2)],
        lambda x: x[:, : x.shape[1] // 2],
    ],
    "slice reshape": [lambda x: x[:, 1], lambda x: x[..., -1], lambda x: x[:, 0:1, None]],
    "reshape": [
        lambda x: x.view(x.size(0), C, -1),
        lambda x: x.flatten(2),
        lambda x: x.unsqueeze(1),
        lambda x: torch.unsqueeze(x, -1),
        lambda x: x.unflatten(1, (2, 2)),
        lambda x: x[:, None],
        lambda x: x.view(*x.shape[:2], -1),
        nn.Unflatten(1, (2, -1)),
    ],
    "reshape reshape": [
        lambda x: x.unsqueeze(2).squeeze(2),
        lambda x: torch.squeeze(x[:, None], dim=1),
        lambda x: x.view(-1, 2, 2, H, W).view(x.shape),
        lambda x: x.unsqueeze(1).squeeze((1, 2)),
    ],
    "identity": [nn.Identity()],
    "relu ": [
        lambda x: F.relu(x.contiguous()),
        lambda x: F.relu(x).clone(),
        lambda x: F.relu(x.detach()),
        lambda x: F.relu(x.to(torch.float32)),
        lambda x: F.relu(x.float()),
        lambda x: F.relu(x.to(x.device)),
        lambda x: F.relu(x.data),
        lambda x: F.relu(x).type_as(x),
        lambda x: StraightThrough.apply(x.detach()),
        lambda x: F.relu(x) if x.shape[1] > 3 and x.dim() == 4 and x.ndim == 4 else x,
        lambda x: F.relu(x) if isinstance(x, Tensor) and x.is_floating_point() and not x.is_cuda else x,
        lambda x: F.relu(x) if x.shape == x.relu().shape and x.size(0) == x.shape[0] else x,
    ],
}


@pytest.mark.parametrize(
    ("ops", "model"),
    [
        pytest.param(ops, model, id=f"{ops.strip()}-{i}")
        for ops, group in SPELLINGS.items()
        for i, model in enumerate(group)
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_spelling_is_the_operation(ops: str, model: Any) -> None:
    graph = faithful(model if isinstance(model, nn.Module) else Net(model), data(C, H, W))
    assert mnemonics(graph) == ops.split()


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_one_dimensional_batch_norm(shape: tuple[int, ...]) -> None:
    norm = nn.BatchNorm1d(4)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.running_mean)
    faithful(norm, data(*shape))


def test_constants_of_vectors() -> None:
    faithful(Net(lambda x: (x + PER_CHANNEL) * PER_CHANNEL.view(1, 4) / 2), data(4))


def test_parameters_of_the_module_are_referred_to_by_name() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, 3, 3))
            self.scale = nn.Parameter(torch.randn(3))
            self.register_buffer("shift", torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))
            return F.conv2d(x * self.scale.view(-1, 1, 1), self.weight.transpose(0, 1), padding=2) + 0 * self.shift[0]

    faithful(Scaled(), data(4, 6, 6))
    tied = nn.Conv2d(4, 4, 1)
    graph = faithful(Net(lambda x, a, b: b(a(x)), a=tied, b=tied), data(4, 3, 3))
    assert sorted(p.name for p in graph.params()) == ["a.bias", "a.weight"]
    (weight,) = (p for p in graph.params() if p.name == "a.weight")
    assert graph.value(weight).ctypes.data == tied.weight.data_ptr(), "a copy"


# ---------------------------------------------------------------------------------------------------- structure


def test_a_module_called_twice_is_two_nodes() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x + self.relu(self.fc(x)))

    graph = faithful(Block(), data(4))
    assert [n.name for n in graph.nodes] == ["x", "fc", "relu", "add", "relu_1"]
    assert [n.loc.sources[0].module for n in graph.nodes[2:]] == ["relu", "", "relu"]


def test_names() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")

        def forward(self, image: Tensor) -> Tensor:
            return F.relu(self.conv(image)) + image

    graph = faithful(nn.Sequential(Inner(), nn.ReLU(), nn.Flatten()), data(3, 4, 4))
    assert [n.name for n in graph.nodes] == [
        "input", "pad_0.conv.pad", "conv2d_0.conv", "relu_0.relu", "add_0.add", "relu_1", "flatten_2",
    ]  # fmt: skip


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor, unused: Tensor) -> tuple[Tensor, list[Tensor]]:
            return left + right, [left - right]

    xs = data(3), data(3, seed=1), data(5, seed=2)
    graph, found = trace(Two(), xs, evaluate=evaluate)
    assert graph is not None and not found
    assert [(n.name, n.type.shape) for n in graph.inputs] == [("left", (3,)), ("right", (3,)), ("unused", (5,))]
    assert len(graph.outputs) == 2
    graph, found = trace(Net(lambda x: {"b": x + 1, "a": x.relu()}), data(3), evaluate=evaluate)
    assert graph is not None and not found
    assert [graph[name].op.mnemonic for name in graph.outputs] == ["affine", "relu"]


def test_dead_code_is_nobodys_problem() -> None:
    def forward(x: Tensor) -> Tensor:
        F.gelu(x)
        F.softmax(x, 1).sum()
        return x.relu()

    assert mnemonics(faithful(Net(forward), data(3))) == ["relu"]


def test_models_that_were_wrapped() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.ReLU()), data(3)
    want = mnemonics(faithful(model, x))
    assert want == ["linear", "identity", "relu"]
    assert mnemonics(faithful(fx.symbolic_trace(model), x)) == want
    graph, found = trace(torch.compile(model), x, evaluate=evaluate)
    assert graph is not None and not found and mnemonics(graph) == want
    assert [d.hint for d in refused(nn.DataParallel(model), x)] == ["pass the network inside: model.module"]
    assert codes(refused(nn.Sequential(torch.jit.script(model)), x)) == ["SNN001"]


def test_subclass_with_its_own_forward() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(2 * input) + 1

    class Standardised(nn.Conv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(input, weight - weight.mean(), bias)

    assert mnemonics(faithful(Scaled(3, 4, 3), data(3, 5, 5))) == ["affine", "conv2d", "affine"]
    faithful(nn.Sequential(Standardised(3, 4, 3)), data(3, 5, 5))
    replaced = nn.Sequential(nn.Conv2d(3, 3, 1))
    original = replaced[0].forward
    replaced[0].forward = lambda x: original(x).relu()
    assert mnemonics(faithful(replaced, data(3, 2, 2))) == ["conv2d", "relu"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("wrap", [
    parametrizations.weight_norm, torch.nn.utils.weight_norm, parametrizations.orthogonal,
    lambda m: prune.l1_unstructured(m, "weight", 0.5), parametrizations.spectral_norm,
])  # fmt: skip
def test_parametrized_weights(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = wrap(nn.Linear(6, 4))
    graph = faithful(nn.Sequential(layer, nn.ReLU()), data(6))
    assert mnemonics(graph) == ["linear", "relu"]
    assert parametrize.is_parametrized(layer) or layer._forward_pre_hooks


# ---------------------------------------------------------------------------------------------------- aliasing


def in_place_sum(x: Tensor) -> Tensor:
    y = x.relu()
    z = y
    y += x
    return z * 2


def view_then_base(x: Tensor) -> Tensor:
    y = x + 1
    flat = y.view(y.size(0), -1)
    y.relu_()
    return flat * 2


def base_then_view(x: Tensor) -> Tensor:
    y = x + 1
    F.relu(y.flatten(1), inplace=True)
    return y * 3


def slice_follows_base(x: Tensor) -> Tensor:
    y = x * 1
    part = y[:, 1:, 0]
    y.add_(1)
    y.mul_(2)
    return part.relu()


def clone_does_not_follow(x: Tensor) -> Tensor:
    y = x * 1
    z = y.clone()
    y.relu_()
    return y + z


def dropout_is_the_same_tensor(x: Tensor) -> Tensor:
    y = x * 1
    z = F.dropout(y, training=False)
    z += 1
    return y


def the_input_itself(x: Tensor) -> Tensor:
    y = x.detach()
    x.relu_()
    return y - 1


def part_alone_is_used(x: Tensor) -> Tensor:
    y = x * 1
    part = y[:, :2]
    part += 1
    return part.relu()


@pytest.mark.parametrize("function", [
    in_place_sum, view_then_base, base_then_view, slice_follows_base, clone_does_not_follow, dropout_is_the_same_tensor,
    the_input_itself, part_alone_is_used,
], ids=lambda f: f.__name__)  # fmt: skip
def test_in_place_operations_are_seen_through_every_name(function: Callable[[Tensor], Tensor]) -> None:
    faithful(Net(function), data(3, 4, 4))


def part_then_base(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :2].relu_()  # here
    return y + 1


def item_assignment(x: Tensor) -> Tensor:
    y = x * 1
    y[:, 0] = 0  # here
    return y + 1


def new_data(x: Tensor) -> Tensor:
    y = x * 1
    y.data = x.relu()  # here
    return y + 1


def unknown_layer_in_place(x: Tensor) -> Tensor:
    y = x * 1
    nn.LeakyReLU(inplace=True)(y)  # here
    return y + 1


def function_with_side_effects(x: Tensor) -> Tensor:
    y = x * 1
    hidden(y)  # here
    return y + 1


def unknown_in_place(x: Tensor) -> Tensor:
    y = x * 1
    F.elu_(y)  # here
    return y + 1


def copy_or_view(x: Tensor) -> Tensor:
    y = x * 1
    flat = y[:, ::2].flatten(1)
    y.relu_()
    return flat + 1  # here


@pytest.mark.parametrize("function", [
    part_then_base, item_assignment, new_data, unknown_layer_in_place, function_with_side_effects, unknown_in_place,
    copy_or_view,
], ids=lambda f: f.__name__)  # fmt: skip
def test_in_place_operations_that_cannot_be_followed(function: Callable[[Tensor], Tensor]) -> None:
    (problem,) = refused(Net(function), data(3, 4, 4))
    assert problem.code == "SNN001"
    assert [(s.file, s.line) for s in problem.loc] == [(__file__, line_of(function, "# here"))]


STEPS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: x.view(x.size(0), -1, 4), lambda x, y: x.flatten(1), lambda x, y: x[:, 1:], lambda x, y: x[:, :, ::2],
    lambda x, y: x.clone(), lambda x, y: x.reshape(-1, *x.shape[1:]), lambda x, y: x.unsqueeze(1),
    lambda x, y: x.detach(), lambda x, y: x.contiguous(), lambda x, y: F.dropout(x, 0.5, False), lambda x, y: x * 2,
    lambda x, y: x.relu_(), lambda x, y: x.add_(1), lambda x, y: x.neg_(),
    lambda x, y: x.sub_(y) if x.shape == y.shape else x.mul_(3),
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, len(STEPS) - 1)), max_size=8))
def test_any_mix_of_views_and_in_place_operations_is_right_or_refused(program: list[tuple[int, int, int]]) -> None:
    def forward(x: Tensor) -> tuple[Tensor, ...]:
        tensors = [x + 1]
        for a, b, step in program:
            operand, other = tensors[a % len(tensors)], tensors[b % len(tensors)]
            if operand.dim() > (2 if step == 3 else 1) and operand.shape[1] > 1:
                tensors.append(STEPS[step](operand, other))
        return tuple(tensors)

    try:
        with torch.no_grad():
            forward(data(4, 4))
    except RuntimeError:  # a view that strides do not allow, a shape that does not divide
        return
    graph, found = trace(Net(forward), data(4, 4), evaluate=evaluate)
    assert graph is not None or all(d.code == "SNN001" and "in place" in d.message for d in found), found


# ---------------------------------------------------------------------------------------------------- provenance


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)  # line of body
        y = x.flatten(1)  # line of flatten
        y = self.head(y) + 1  # line of plus
        return F.relu(y)  # line of relu

    def head(self, y: Tensor) -> Tensor:
        return self.fc(y)  # line of fc


def test_provenance() -> None:
    graph = faithful(Placed(), data(3, 2, 2))
    got = {n.name: (s.module, s.file, s.line) for n in graph.nodes for s in n.loc}
    forward, head = (lambda text: line_of(Placed.forward, text)), line_of(Placed.head, "line of fc")
    assert got == {
        "x": ("", __file__, forward("def forward")),
        "body.0": ("body.0", __file__, forward("line of body")),
        "body.1": ("body.1", __file__, forward("line of body")),
        "flatten": ("", __file__, forward("line of flatten")),
        "fc": ("fc", __file__, head),
        "affine": ("", __file__, forward("line of plus")),
        "relu": ("", __file__, forward("line of relu")),
    }


def test_a_container_has_no_line_of_the_users() -> None:
    graph = faithful(nn.Sequential(nn.Linear(3, 3)), data(3))
    assert [(s.module, s.file) for s in graph.nodes[-1].loc] == [("0", "")]


# ---------------------------------------------------------------------------------------------------- refusals


@fx.wrap
def hidden(x: Tensor) -> Tensor:
    return x * 2


class Troubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gelu, self.norm = nn.Conv2d(3, 4, 1), nn.GELU(), nn.LayerNorm(4)
        self.fc = nn.Linear(4, 2)
        with torch.no_grad():
            self.fc.weight[0, :2] = torch.nan
            self.fc.weight[1, 0] = torch.inf
            assert self.conv.bias is not None
            self.conv.bias[0] = -torch.inf

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  # conv
        if x.max() > 1:  # if
            x = x + 1
        x = self.gelu(x)  # gelu
        for row in x:  # for
            row.relu_()
        x = self.norm(x.mean((2, 3)))  # norm
        x = x * x.relu()  # product
        x = hidden(x)  # hidden
        return self.fc(torch.softmax(x, 1))  # fc


def test_everything_is_reported_at_once() -> None:
    found = refused(Troubled(), data(3, 4, 4))
    want = [
        ("SNN003", "`conv.bias`", "conv"), ("SNN002", "control flow", "if"), ("SNN001", "`nn.GELU`", "gelu"),
        ("SNN002", "loop", "for"), ("SNN001", "`nn.LayerNorm`", "norm"), ("SNN001", "multiplies", "product"),
        ("SNN001", "test_fx.hidden`", "hidden"), ("SNN001", "`torch.softmax`", "fc"),
    ]  # fmt: skip
    want = [(code, text, line_of(Troubled.forward, f"# {line}")) for code, text, line in want]
    got = [(d.code, d.message, d.loc.sources[0].line) for d in found]
    for (code, text, line), (code_got, message, line_got) in zip(want, got, strict=False):
        assert (code, line) == (code_got, line_got) and text in message
    assert len(got) == len(want), got
    assert all(s.file == __file__ for d in found for s in d.loc)
    assert all(d.hint for d in found)


def test_weights_that_are_not_finite_are_counted() -> None:
    model = Troubled()
    found = refused(nn.Sequential(model.conv, nn.Flatten(), nn.LazyLinear(4).eval(), model.fc), data(3, 1, 1))
    assert codes(found) == ["SNN008"]  # not initialised
    found = refused(nn.Sequential(model.conv, Net(lambda x: {}["missing"])), data(3, 1, 1))
    assert codes(found) == ["SNN003", "SNN008"]  # neither follows from the other
    found = refused(nn.Sequential(model.conv, nn.Flatten(), model.fc), data(3, 1, 1))
    assert [(d.code, d.message) for d in found] == [
        ("SNN003", "`0.bias` is not finite: 1 infinite of 4 values"),
        ("SNN003", "`2.weight` is not finite: 2 NaN and 1 infinite of 8 values"),
    ]


REFUSED: list[tuple[str, str, Any, str]] = [
    # code, text in the message, model, text in the hint
    ("SNN001", "`nn.LeakyReLU`", nn.LeakyReLU(), "ReLU"),
    ("SNN001", "`nn.Sigmoid`", nn.Sigmoid(), "ReLU"),
    ("SNN001", "`nn.Softmax`", nn.Sequential(nn.Flatten(), nn.Softmax(1)), "logits"),
    ("SNN001", "`nn.LogSoftmax`", nn.Sequential(nn.Flatten(), nn.LogSoftmax(1)), "logits"),
    ("SNN001", "`nn.ConvTranspose2d`", nn.ConvTranspose2d(4, 4, 3), "Conv2d"),
    ("SNN001", "`nn.InstanceNorm2d`", nn.InstanceNorm2d(4), "batch norm"),
    ("SNN001", "`nn.Upsample`", nn.Upsample(scale_factor=2), "size"),
    ("SNN001", "`nn.LPPool2d`", nn.LPPool2d(2, 2), ""),
    (
        "SNN001",
        "`nn.MultiheadAttention`",
        Net(lambda x, a: a(x[:, 0], x[:, 0], x[:, 0])[0], a=nn.MultiheadAttention(5, 1)),
        "",
    ),
    ("SNN001", "`torch.nn.functional.gelu`", F.gelu, "ReLU"),
    ("SNN001", "`torch.exp`", torch.exp, "ReLU"),
    ("SNN001", "`Tensor.sigmoid`", lambda x: x.sigmoid(), "ReLU"),
    ("SNN001", "`operator.pow`", lambda x: x**2, "ReLU"),
    ("SNN001", "`Tensor.permute`", lambda x: x.permute(0, 2, 3, 1), "(N, C, H, W)"),
    ("SNN001", "`torch.matmul`", lambda x: torch.matmul(x, x.relu()), "F.linear"),
    ("SNN001", "multiplies two activations", lambda x: x * x.relu(), "constant"),
    ("SNN001", "divides by an activation", lambda x: 1 / x, "constant"),
    ("SNN001", "more than one value per channel", lambda x: x + torch.rand(H, W), "per channel"),
    ("SNN001", "from sample to sample", lambda x: x * torch.rand(2, 1, 1, 1), ""),
    ("SNN001", "enlarges", lambda x: x[:, :1] + PER_CHANNEL.view(4, 1, 1), ""),
    ("SNN001", "mixes the batch axis", lambda x: x.view(1, -1), "x.flatten(1)"),
    ("SNN001", "mixes the batch axis", lambda x: x.view(x.size(0) * C, -1), "x.flatten(1)"),
    ("SNN001", "mixes the batch axis", lambda x: x.view(-1, W), "x.flatten(1)"),
    ("SNN001", "batch axis", lambda x: x.flatten(), "axis 0"),
    ("SNN001", "batch axis", lambda x: torch.cat([x, x]), "axis 0"),
    ("SNN001", "batch axis", lambda x: x[0], "x[:"),
    ("SNN001", "batch axis", lambda x: x.mean(0, keepdim=True), "axis 0"),
    ("SNN001", "batch axis", lambda x: x[:, :1, :1, :1].squeeze(), "squeeze(-1)"),
    ("SNN001", "constants", lambda x: torch.cat([x, torch.zeros(2, 1, H, W)], 1), "F.pad"),
    ("SNN001", "mean over", lambda x: x.mean(1), "pooling"),
    ("SNN001", "tensors or lists", lambda x: x[:, [0, 1]], "slices"),
    ("SNN001", "not computed from the input", lambda x: F.conv2d(x, x), ""),
    ("SNN001", "maxpool", nn.Sequential(nn.MaxPool2d(2, return_indices=True), Net(lambda x: x[0])), "return_indices"),
    ("SNN002", "size of the batch", lambda x: x * (1 / x.size(0)), "leading axis"),
    ("SNN002", "size of the batch", lambda x: x + 1 if x.shape[0] > 1 else x.relu(), "leading axis"),
    ("SNN002", "size of the batch", lambda x: x + torch.zeros(x.size(0), 1, 1, 1), "leading axis"),
    ("SNN002", "size of the batch", lambda x: x * len(x), "leading axis"),
    ("SNN002", "control flow", lambda x: x.relu() if x.sum().item() > 0 else x + 1, "shapes"),
    ("SNN002", "a number", lambda x: x.relu() * int(x.max()), "shapes"),
    ("SNN002", "a numpy array", lambda x: torch.from_numpy(np.asarray(x)), "shapes"),
    ("SNN003", "4 values of the variance `running_var` are negative", lambda x: F.batch_norm(x, MEAN, -VAR), ""),
    ("SNN005", "conv2d takes 3 channels", nn.Sequential(nn.Conv2d(3, 2, 1)), ""),
    ("SNN005", "4D input", nn.Sequential(nn.Flatten(), nn.BatchNorm2d(4)), ""),
    ("SNN005", "cannot reshape", lambda x: x.view(x.size(0), 7, -1), ""),
    ("SNN005", "arithmetic with a list", lambda x: x * [1], ""),
    ("SNN005", "cannot add", lambda x: x + x[:, :2], ""),
    ("SNN005", "larger than its input", lambda x: F.max_pool2d(x, 9), ""),
    ("SNN007", "statistics of the batch", nn.BatchNorm2d(4, track_running_stats=False), "track_running_stats"),
    ("SNN007", "at random", lambda x: F.dropout(x), "self.training"),
    ("SNN007", "out=", lambda x: torch.mean(x, (2, 3), out=torch.empty(2, 4)), ""),
    ("SNN007", "no such option", lambda x: x.floor(decimals=1), ""),
    ("SNN001", "`Tensor.half`", lambda x: x.half().float(), ""),
    ("SNN007", "float16", lambda x: x.to(torch.float16), ""),
    ("SNN007", "rounding_mode", lambda x: torch.div(x, 2, rounding_mode="floor"), ""),
    ("SNN008", "does not depend on its input", lambda x: torch.zeros(2, 3), ""),
    ("SNN008", "returns its input", nn.Sequential(), ""),
    ("SNN008", "KeyError", lambda x: {}["missing"], ""),
]


@pytest.mark.parametrize(
    ("code", "text", "model", "help"), [pytest.param(*row, id=f"{i}-{row[1]}") for i, row in enumerate(REFUSED)]
)
def test_refusals(code: str, text: str, model: Any, help: str) -> None:
    model = model if isinstance(model, nn.Module) else Net(model)
    (problem,) = refused(model, data(C, H, W))
    assert problem.code == code
    assert text.lower() in problem.message.lower()
    assert help in problem.hint
    assert "7919" not in problem.message + problem.hint


def test_user_code_may_fail_in_any_way() -> None:
    def forward(x: Tensor) -> Tensor:
        return x.relu() + {}[x.dim()]  # fails

    (problem,) = refused(Net(forward), data(3))
    assert problem.code == "SNN008"
    assert [(s.file, s.line) for s in problem.loc] == [(__file__, line_of(forward, "# fails"))]


# ---------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("xs", "text"),
    [
        (data(3, 7, 7), "takes 4 features, got shape (49"),
        (data(2, 2, 2), "conv2d takes 3 channels, got shape (2, 2, 2)"),
        (data(2, 2), "conv2d takes 3 axes besides the batch"),
        (torch.zeros(3), "no common batch axis"),
        (torch.zeros(0, 3, 2, 2), "no common batch axis"),
        ((data(3, 2, 2), data(3, 2, 2)), "does not take 2 inputs"),
        ((), "must be a tensor"),
        (data(3, 2, 2).double(), "fails on the example input"),
    ],
)
def test_wrong_example_inputs(xs: Any, text: str) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 1, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).flatten(1))

    graph, (problem,) = trace(Plain(), xs)
    assert graph is None
    assert problem.code == "SNN005"
    assert text in problem.message
    assert all(s.line == line_of(Plain.forward, "return") for s in problem.loc)


# ---------------------------------------------------------------------------------------------------- the model


class Stateful(nn.Module):
    """Everything that a forward may leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(1))
        self.log: list[Any] = []
        self.last: Any = None
        self.conv.weight.requires_grad_(False)
        self.conv.register_forward_hook(self.look)
        self.conv.register_full_backward_hook(lambda *_: None)
        prune.l1_unstructured(self.fc, "weight", 0.5)

    def look(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.log.append(out)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.log.append(x)
        self.calls += 1
        torch.rand(1)
        if not hasattr(self, "seen"):
            self.seen = True
        return self.fc(self.drop(self.norm(self.conv(x))).mean((2, 3)))


def test_the_model_is_left_as_it_was() -> None:
    model = Stateful().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    tensors = [id(x) for x in (*model.parameters(), *model.buffers())]
    attributes = [{k: (id(v), copy.copy(v)) for k, v in vars(m).items()} for m in model.modules()]
    call, getattribute = nn.Module.__call__, nn.Module.__getattr__
    torch.manual_seed(3)
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    x = data(3, 8, 8)
    kept = x.clone()
    for check in (evaluate, None):
        graph, found = trace(model, x, evaluate=check)
        assert graph is not None
        assert codes(found) == ["SNN004"] and found[0].severity is Severity.WARNING
        assert "Stateful.look" in found[0].message and found[0].loc.sources[0].module == "conv"
    refused(nn.Sequential(model, nn.GELU()), x)
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled() is grad
    assert (call, getattribute) == (nn.Module.__call__, nn.Module.__getattr__)
    assert torch.equal(x, kept)
    assert [id(x) for x in (*model.parameters(), *model.buffers())] == tensors
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in model.conv.parameters()] == [False, True]
    for module, was in zip(model.modules(), attributes, strict=True):
        assert vars(module).keys() == was.keys()
        for key, value in vars(module).items():
            assert id(value) == was[key][0], key
            if isinstance(value, list | dict):
                assert list(value) == list(was[key][1]), key


def test_a_hook_that_changes_values_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    handle = model[0].register_forward_hook(lambda module, args, out: out + 1)
    found = refused(model, data(3))
    assert [(d.code, d.severity) for d in found] == [("SNN004", Severity.ERROR), ("SNN006", Severity.ERROR)]
    handle.remove()
    faithful(model, data(3))


def test_check_against() -> None:
    model, x = nn.Linear(3, 3).eval(), data(3)
    graph = faithful(model, x)
    assert check_against(model, graph, evaluate, [x]) == []
    (problem,) = check_against(model, graph, lambda graph, xs: [evaluate(graph, xs)[0] + 1], [x])
    assert problem.code == "SNN006" and "is off the model's by 1" in problem.message
    (problem,) = check_against(model, graph, lambda graph, xs: [evaluate(graph, xs)[0] * np.nan], [x])
    assert problem.code == "SNN006"
    (problem,) = check_against(Net(lambda x: (x, x)), graph, None, [x])
    assert problem.code == "SNN006" and "2 outputs" in problem.message
    (problem,) = check_against(nn.Linear(3, 4), graph, None, [x])
    assert problem.code == "SNN006" and "(2, 4)" in problem.message


def test_a_forward_that_changes_from_call_to_call_is_found_out() -> None:
    calls = itertools.count()
    found = refused(Net(lambda x: x + next(calls)), data(3))
    assert codes(found) == ["SNN006"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dtype=dtype), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, dtype=dtype))
    graph, found = trace(model, data(3, 4, 4).to(dtype), evaluate=evaluate)
    assert graph is not None
    assert {p.dtype for p in graph.params()} == {"f32"}
    assert [(d.code, d.severity) for d in found] == [("SNN007", Severity.NOTE)] * (dtype == torch.float64)
    assert next(model.parameters()).dtype == dtype


def test_meta_models_have_no_weights() -> None:
    (problem,) = refused(nn.Linear(3, 3, device="meta"), data(3))
    assert problem.code == "SNN008" and "no data" in problem.message


def test_scripted_models_are_refused() -> None:
    scripted = torch.jit.script(nn.Linear(3, 3))
    (problem,) = refused(scripted, data(3))
    assert problem.code == "SNN008" and "torch.jit" in problem.message


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn(1)  # this line draws


def gated(x: Tensor) -> Tensor:
    return x * torch.rand(1)  # this line draws


def dropped(x: Tensor) -> Tensor:
    return F.dropout(torch.ones(3), 0.5, training=True) * x  # this line draws


@pytest.mark.parametrize("forward", [noisy, gated, dropped])
def test_random_numbers_in_forward_are_an_error(forward: Callable[[Tensor], Tensor]) -> None:
    """They were those of the trace, for ever."""
    state = torch.random.get_rng_state()
    (found,) = refused(Net(forward), data(3))
    assert found.code == "SNN009" and "self.training" in found.hint
    assert [(s.file, s.line) for s in found.loc] == [(__file__, line_of(forward, "this line draws"))]
    assert torch.equal(state, torch.random.get_rng_state())


def test_random_numbers_of_numpy_are_an_error() -> None:
    (found,) = refused(Net(lambda x: x + float(np.random.rand())), data(3))  # noqa: NPY002
    assert found.code == "SNN009"
    faithful(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), data(3))
