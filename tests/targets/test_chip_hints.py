"""A hint is tested by following it: the network or the options are changed as it says, and no error is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.ir.diagnostics import errors

Shape = tuple[int, ...]


def conv(i: int, o: int, k: int | tuple[int, int] = 3, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(i, o, k, **options), nn.ReLU()]


def chain(*parts: nn.Module | list[nn.Module]) -> nn.Module:
    return nn.Sequential(*(m for part in parts for m in (part if isinstance(part, list) else [part])))


def head(features: int, classes: int = 10) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(features, classes)]


class Block(nn.Module):
    """A ResNet's, its shortcut with a stride, or pooled in front of its convolution."""

    def __init__(self, i: int, o: int, stride: int = 1, pool: bool = False) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.c2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.n1, self.n2 = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
        self.short: nn.Module = nn.Identity()
        if i != o:
            self.short = nn.Conv2d(i, o, 1, 1 if pool else stride, bias=False)
            if pool:
                self.short = nn.Sequential(nn.AvgPool2d(stride), self.short)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.n2(self.c2(torch.relu(self.n1(self.c1(x))))) + self.short(x))


def resnet(pool: bool) -> nn.Module:
    blocks = Block(4, 4), Block(4, 8, 2, pool), Block(8, 8, 2, pool), Block(8, 16, 2, pool)
    blocks = (blocks[0], blocks[1], blocks[3])
    return chain(conv(1, 4, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), head(16))


class Fan(nn.Module):
    """One layer that n others read."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.f = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4 * n, 4, 1)
        self.b = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        return self.f(torch.cat([torch.relu(b(a)) for b in self.b], 1))


class Sizes(nn.Module):
    """Two maps that meet, the larger one cut, or pooled."""

    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        small = nn.functional.avg_pool2d(a, 2) if self.pool else a[:, :, :14, :14]
        return self.f(torch.cat([small, torch.relu(self.b(a))], 1))


class Folded(nn.Module):
    """Pixels made channels, by a reshape or by a convolution."""

    def __init__(self, stride: bool) -> None:
        super().__init__()
        self.a, self.f = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.fold, self.stride = nn.Sequential(nn.Conv2d(4, 16, 2, 2), nn.ReLU()), stride

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        return self.f(self.fold(a) if self.stride else a.reshape(-1, 16, 4, 4))


def check(make: Callable[[], nn.Module], shape: Shape, target: str, options: dict[str, Any]) -> list[snncc.Diagnostic]:
    torch.manual_seed(0)
    return errors(snncc.check(make().eval(), target, example_input=torch.rand(1, *shape), **options))


def case(
    code: str,
    hint: str,
    shape: Shape,
    before: Callable[[], nn.Module],
    after: Callable[[], nn.Module] | None = None,
    target: str = "speck2f",
    options: dict[str, Any] | None = None,
    followed: dict[str, Any] | None = None,
) -> Any:
    return code, hint, shape, before, after or before, target, options or {}, followed or {}


HINTS = {
    "an average that no kernel holds": case(
        "SNN053", "pool less: by 4, 28 x 28 to 7 x 7, or by 2, 28 x 28 to 14 x 14", (1, 28, 28),
        lambda: chain(conv(1, 4, padding=1), nn.AdaptiveAvgPool2d(4), head(64)),
        lambda: chain(conv(1, 4, padding=1), nn.AdaptiveAvgPool2d(7), head(4 * 49)),
    ),
    "an average in front of a convolution": case(
        "SNN053", "by 4, 28 x 28 to 7 x 7", (1, 28, 28),
        lambda: chain(conv(1, 4, padding=1), nn.AvgPool2d(7), conv(4, 4, padding=1), head(64)),
        lambda: chain(conv(1, 4, padding=1), nn.AvgPool2d(4), conv(4, 4, padding=1), head(4 * 49)),
    ),
    "a second average": case(
        "SNN053", "leave it out, and let a layer in front of it stride by 2 or 4", (1, 40, 40),
        lambda: chain(conv(1, 4, 1), nn.AvgPool2d(4), nn.AvgPool2d(5), conv(4, 4, 1), head(16)),
        lambda: chain(conv(1, 4, 1, stride=4), nn.AvgPool2d(4), conv(4, 4, 1), head(16)),
    ),
    "windows of different sizes": case(
        "SNN031", "choose an output size that divides the input's: one of 1, 2, 5, 10", (1, 10, 10),
        lambda: chain(conv(1, 4, padding=1), nn.AdaptiveAvgPool2d(4), head(64)),
        lambda: chain(conv(1, 4, padding=1), nn.AdaptiveAvgPool2d(5), head(100)),
    ),
    "windows that are not square": case(
        "SNN053", "pool square windows side by side, of 1, 2, 4", (1, 12, 12),
        lambda: chain(conv(1, 4, padding=1), nn.AvgPool2d((3, 2)), conv(4, 4), head(32)),
        lambda: chain(conv(1, 4, padding=1), nn.AvgPool2d(2), conv(4, 4), head(64)),
    ),
    "windows divided by different numbers": case(
        "SNN053", "use ceil_mode=False, and count_include_pad=True", (1, 11, 11),
        lambda: chain(conv(1, 4, padding=1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), conv(4, 4), head(64)),
        lambda: chain(conv(1, 4, padding=1), nn.AvgPool2d(3, 2, 1), conv(4, 4), head(64)),
    ),
    "a map too large for a linear layer": case(
        "SNN050", "pool by 2 more before flattening, to 14 x 14", (1, 28, 28),
        lambda: chain(conv(1, 2, padding=1), head(2 * 784)),
        lambda: chain(conv(1, 2, padding=1), nn.AvgPool2d(2), head(2 * 196)),
    ),
    "a pooled map too large for a linear layer": case(
        "SNN050", "pool by 2 more before flattening, to 10 x 10", (1, 40, 40),
        lambda: chain(conv(1, 2, padding=1), nn.AvgPool2d(2), head(2 * 400)),
        lambda: chain(conv(1, 2, padding=1), nn.AvgPool2d(2), nn.AvgPool2d(2), head(2 * 100)),
    ),
    "two convolutions as one": case(
        "SNN050", "kernels that span at most 16 x 16, with all layers up to the next activation", (1, 24, 24),
        lambda: chain(nn.Conv2d(1, 2, 9), conv(2, 2, 9), head(128)),
        lambda: chain(nn.Conv2d(1, 2, 9), conv(2, 2, 8), head(162)),
    ),
    "dilation": case(
        "SNN062", "a dilation of at most 7", (1, 40, 40),
        lambda: chain(conv(1, 2, 3, dilation=8, stride=2), head(288)),
        lambda: chain(conv(1, 2, 3, dilation=7, stride=2), head(338)),
    ),
    "padding": case(
        "SNN052", "pad by at most 7", (1, 4, 4),
        lambda: chain(conv(1, 2, 9, padding=8), head(288)),
        lambda: chain(conv(1, 2, 9, padding=7), head(200)),
    ),
    "a large input": case(
        "SNN055", "begin with nn.AvgPool2d(2), which the host computes", (1, 160, 160),
        lambda: chain(conv(1, 2, 3, stride=8), nn.AvgPool2d(2), head(200)),
        lambda: chain(nn.AvgPool2d(2), conv(1, 2, 3, stride=8), head(200)),
    ),
    "a large output": case(
        "SNN055", "a stride of 2", (1, 100, 100),
        lambda: chain(conv(1, 2, 3), conv(2, 2, 3, stride=8), head(288)),
        lambda: chain(conv(1, 2, 3, stride=2), conv(2, 2, 3, stride=8), head(72)),
    ),
    "shortcuts with a stride": case(
        "SNN059", "nn.AvgPool2d in front of a 1 x 1 convolution", (1, 16, 16),
        lambda: resnet(pool=False), lambda: resnet(pool=True),
    ),
    "more biases than memory for them": case(
        "SNN060", "bias='strip'", (1, 6, 6),
        lambda: chain(nn.Flatten(), *(nn.Sequential(nn.Linear(36, 36), nn.ReLU()) for _ in range(3))), None,
        "speck2cmini", {}, {"bias": "strip"},
    ),
    "an output that many read": case(
        "SNN061", "let 3 fewer layers read it", (1, 8, 8), lambda: Fan(6), lambda: Fan(3),
    ),
    "maps of two sizes": case(
        "SNN061", "bring both to one size before they meet, by pooling", (1, 28, 28),
        lambda: Sizes(pool=False), lambda: Sizes(pool=True),
    ),
    "a reshape": case(
        "SNN064", "where channels become more and pixels fewer, a convolution with a stride", (1, 8, 8),
        lambda: Folded(stride=False), lambda: Folded(stride=True),
    ),
    "no activation between, a ReLU6": case(
        "SNN032", "put a ReLU between them, or merge the two layers$", (1, 8, 8),
        lambda: chain(nn.Conv2d(1, 2, 3), nn.ReLU6(), nn.Conv2d(2, 2, 1), conv(2, 2)),
        lambda: chain(nn.Conv2d(1, 2, 3), nn.ReLU6(), conv(2, 2, 1), conv(2, 2)), "lava",
    ),
}  # fmt: skip


def test_a_global_average_of_a_large_map_is_pooled_in_part_on_the_way() -> None:
    model = chain(conv(1, 4, padding=1), nn.AdaptiveAvgPool2d(1), head(4))
    assert not check(lambda: model, (1, 64, 64), "speck2f", {})


@pytest.mark.parametrize("name", HINTS)
def test_a_hint_that_is_followed_leaves_no_error(name: str) -> None:
    code, hint, shape, before, after, target, options, followed = HINTS[name]
    found = check(before, shape, target, options)
    said = {d.code: f"{d.hint}$" for d in found}
    assert code in said and said.keys() <= {code, "SNN048", "SNN064"}
    assert said[code].endswith(hint) if hint.endswith("$") else hint in said[code]
    assert all(len(words) > 1 for words in said.values())
    assert not check(after, shape, target, followed or options)


@pytest.mark.parametrize("between", [[], [nn.ReLU()]])
def test_an_activation_that_messages_cannot_carry(between: list[nn.Module]) -> None:
    """Integrate-and-fire neurons are named only where they would do."""
    model = chain(nn.Conv2d(1, 2, 3), nn.ReLU6(), nn.Conv2d(2, 2, 1), between, conv(2, 2)).eval()
    x = torch.rand(4, 1, 8, 8)
    (found,) = errors(snncc.check(model, "lava", calibration=x, neuron="sigma-delta"))
    assert found.code == "SNN030" and ("integrate-and-fire" in found.hint) == bool(between)
    assert bool(errors(snncc.check(model, "lava", example_input=x))) == (not between)


# --- the widths that are proposed -------------------------------------------------------------------------------------


class Chain(nn.Module):
    """VGG-like: convolutions, averages, and a head of two layers."""

    def __init__(self, n: Mapping[str, int]) -> None:
        super().__init__()
        a, b, c, d = (n.get(name, now) for name, now in (("a", 64), ("b", 256), ("c", 512), ("fc1", 256)))
        self.a, self.b, self.c = nn.Conv2d(2, a, 3, 1, 1), nn.Conv2d(a, b, 3, 1, 1), nn.Conv2d(b, c, 3, 1, 1)
        self.fc1, self.fc2 = nn.Linear(4 * c, d), nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(nn.functional.avg_pool2d(torch.relu(self.a(x)), 2)))
        x = nn.functional.avg_pool2d(torch.relu(self.c(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class Residual(nn.Module):
    """Two sums of currents, the second behind a shortcut that pools."""

    def __init__(self, n: Mapping[str, int]) -> None:
        super().__init__()
        w, m, v = n.get("a", 128), n.get("b", 96), n.get("short", 192)
        assert (n.get("c", 128), n.get("e", 192)) == (w, v)  # what is added has one width
        self.a, self.b, self.c = nn.Conv2d(2, w, 3, 1, 1), nn.Conv2d(w, m, 3, 1, 1), nn.Conv2d(m, w, 3, 1, 1)
        self.norm, k = nn.BatchNorm2d(w), n.get("d", 192)
        self.d, self.e, self.short = nn.Conv2d(w, k, 3, 2, 1), nn.Conv2d(k, v, 3, 1, 1), nn.Conv2d(w, v, 1)
        self.fc = nn.Linear(v, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.norm(self.c(torch.relu(self.b(x)))) + x)
        x = torch.relu(self.e(torch.relu(self.d(x))) + self.short(nn.functional.avg_pool2d(x, 2)))
        return self.fc(x.mean((2, 3)))


class Split(nn.Module):
    """A C2f block: halves of one layer, concatenated with what comes out of one of them."""

    def __init__(self, n: Mapping[str, int]) -> None:
        super().__init__()
        a, b, c = n.get("a", 256), n.get("b", 256), n.get("c", 256)
        assert a % 2 == 0
        self.a, self.b, self.c = nn.Conv2d(2, a, 3, 1, 1), nn.Conv2d(a // 2, b, 3, 1, 1), nn.Conv2d(a + b, c, 1)
        self.fc = nn.Linear(4 * c, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.a(x)).chunk(2, 1)
        x = torch.relu(self.c(torch.cat([left, right, torch.relu(self.b(right))], 1)))
        return self.fc(nn.functional.avg_pool2d(x, 4).flatten(1))


class Depthwise(nn.Module):
    """MobileNet: what is depthwise has the width of what it reads."""

    def __init__(self, n: Mapping[str, int]) -> None:
        super().__init__()
        a, b, c = n.get("a", 96), n.get("b", 192), n.get("c", 192)
        assert (n.get("da", 96), n.get("db", 192)) == (a, b)
        self.a, self.da, self.b = nn.Conv2d(2, a, 3, 1, 1), nn.Conv2d(a, a, 3, 1, 1, groups=a), nn.Conv2d(a, b, 1)
        self.db, self.c, self.fc = nn.Conv2d(b, b, 3, 2, 1, groups=b), nn.Conv2d(b, c, 1), nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.da, self.b, self.db, self.c):
            x = nn.functional.relu6(layer(x))
        return self.fc(x.mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self, n: Mapping[str, int]) -> None:
        super().__init__()
        a, b = n.get("a", 2048), n.get("b", 512)
        self.a, self.b, self.c = nn.Linear(128, a), nn.Linear(a, b), nn.Linear(b, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x.flatten(1))))))


X = np.random.default_rng(0).random((2, 2, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("target", ["speck2f", "speck2b"])
@pytest.mark.parametrize("make", [Chain, Residual, Split, Depthwise, Mlp])
def test_the_proposed_network_compiles(make: Callable[[Mapping[str, int]], nn.Module], target: str) -> None:
    """Built with the proposed widths it fits; with all of them but one, or doubled, it does not."""
    torch.manual_seed(0)
    quick = partial(snncc.check, target=target, example_input=X)
    (found,) = (d for d in quick(make({}).eval()) if d.code == "SNN048")
    proposed = {layer: new for layer, _, new in found.widths}
    assert all(0 < new < now for _, now, new in found.widths) and sum(proposed.values()) > 64
    assert not errors(snncc.compile(make(proposed).eval(), target, calibration=X, timesteps=2).diagnostics)
    assert errors(quick(make({layer: 2 * n for layer, n in proposed.items()}).eval()))


def test_a_proposal_is_a_table_and_data() -> None:
    with pytest.raises(snncc.CompileError) as caught:
        snncc.compile(Mlp({}).eval(), "speck2f", calibration=X)
    found = caught.value.diagnostics[-1]
    assert found.code == "SNN048" and [layer for layer, _, _ in found.widths] == ["a", "b"]
    table = str(caught.value).split("= help: train with these numbers of channels")[1].splitlines()
    assert [line.split() for line in table if line] == [
        ["layer", "now", "proposed"], *([layer, str(now), str(new)] for layer, now, new in found.widths)
    ]  # fmt: skip
    data, new = found.to_json(), found.widths[0][2]
    assert data["widths"][0] == {"layer": "a", "now": 2048, "proposed": new}
    assert (
        f"train with these numbers of channels: a {new:,} instead of 2,048, b " in data["hint"]
    )  # the explorer's text


def test_no_widths_help() -> None:
    """Ten layers; and the proposal says what helps."""
    found = {d.code: d for d in check(lambda: resnet(pool=False), (1, 16, 16), "speck2f", {})}
    assert "With the fewest" in found["SNN048"].message and found["SNN048"].hint == found["SNN059"].hint
    assert not found["SNN048"].widths


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.Conv2d(256, 256, 3, stride=3)])
def test_errors_that_are_no_sizes(layer: nn.Module) -> None:
    """A proposal holds beside an error that changes no sizes; where nothing can be placed, there is none."""
    torch.manual_seed(0)
    model = chain(conv(2, 256, padding=1), layer, nn.ReLU(), conv(256, 1024, 1), nn.Flatten(), nn.LazyLinear(10)).eval()
    model(torch.from_numpy(X))
    codes = [d.code for d in errors(snncc.check(model, "speck2f", example_input=X))]
    assert ("SNN048" in codes) == isinstance(layer, nn.MaxPool2d)
