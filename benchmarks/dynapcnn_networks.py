"""The networks that we and sinabs compile for a Speck: plain torch, imported by both sides.

`CHAINS` are for the time of a compile. `CASES` are what a converter may get wrong: each is small, and its input is a
map of zeros and ones. Every activation is an `nn.ReLU` of its own, as sinabs replaces modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from operator import add

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
TIMESTEPS, SAMPLES = 256, 4  # of the simulations that tell how far the rates are from the outputs


class Add(nn.Module):
    """A sum of two that is a module: sinabs' side makes it a `Merge`, which is how sinabs wants it written."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Branches(nn.Module):
    """A stem, branches that all start from it (None: the stem's output itself), what joins the first two, then that and
    the third, and the rest."""

    def __init__(
        self, stem: nn.Module, branches: list[nn.Module | None], joins: list[Callable[..., Tensor]], head: nn.Module
    ) -> None:
        super().__init__()
        self.stem, self.head, self.width = stem, head, len(branches)
        for i, branch in enumerate(branches):
            setattr(self, f"branch{i}", branch)
        for i, join in enumerate(joins, 1):  # an attribute each, not a list: sinabs finds modules by their names
            setattr(self, f"join{i}", join)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [getattr(self, f"branch{i}") for i in range(self.width)]
        joined, *others = (x if branch is None else branch(x) for branch in branches)
        for i, other in enumerate(others, 1):
            joined = getattr(self, f"join{i}")(joined, other)
        return self.head(joined)


def cat(a: Tensor, b: Tensor) -> Tensor:
    """All channels, one map after the other."""
    return torch.cat([a, b], 1)


def conv(*sizes: int, **options: object) -> list[nn.Module]:
    """A convolution and its activation."""
    return [nn.Conv2d(*sizes, **options), nn.ReLU()]  # type: ignore[arg-type]


def dense(*features: int) -> list[nn.Module]:
    """Linear layers, each with its activation."""
    return [nn.Flatten(), *(layer for pair in pairwise(features) for layer in (nn.Linear(*pair), nn.ReLU()))]


def chain(*parts: list[nn.Module] | nn.Module) -> nn.Sequential:
    """One after the other."""
    return nn.Sequential(*(layer for part in parts for layer in (part if isinstance(part, list) else [part])))


def chain5() -> nn.Module:
    """Three convolutions and two linear layers."""
    return chain(
        conv(2, 16, 3, padding=1), nn.AvgPool2d(2), conv(16, 32, 3, padding=1), nn.AvgPool2d(2),
        conv(32, 32, 3, padding=1), nn.AvgPool2d(2), dense(512, 64, 10),
    )  # fmt: skip


def chain9() -> nn.Module:
    """As many layers as the chip has cores, seven convolutions and two linear layers: few placements fit."""
    return chain(
        conv(2, 16, 3, padding=1), nn.AvgPool2d(2), conv(16, 16, 3, padding=1), conv(16, 32, 3, padding=1),
        nn.AvgPool2d(2), conv(32, 32, 3, padding=1), nn.AvgPool2d(2), conv(32, 64, 3, padding=1), conv(64, 32, 1),
        nn.AvgPool2d(2), conv(32, 64, 3, padding=1), nn.AvgPool2d(2), dense(256, 128, 10),
    )  # fmt: skip


def plain() -> nn.Module:
    """Nothing special."""
    return chain(conv(2, 8, 3), nn.AvgPool2d(2), conv(8, 8, 3), dense(8 * 5 * 5, 10))


def residual(
    join: Callable[..., Tensor], skip: nn.Module | None = None, branch: nn.Module | None = None, size: int = 12
) -> nn.Module:
    """A layer whose output meets that of the next one; `size` is that of the map after the layer behind them."""
    branch = branch or chain(conv(8, 8, 3, padding=1))
    return Branches(chain(conv(2, 8, 3)), [skip, branch], [join], chain(conv(8, 8, 3), dense(8 * size * size, 10)))


def two_scores() -> nn.Module:
    """Two sets of scores, added: nothing comes behind the sum."""
    branches: list[nn.Module | None] = [chain(conv(8, 8, 3), dense(8 * 12 * 12, 10)), chain(dense(8 * 14 * 14, 10))]
    return Branches(chain(conv(2, 8, 3)), branches, [add], nn.Identity())


def concat() -> nn.Module:
    """Two branches of different kernels."""
    branches: list[nn.Module | None] = [chain(conv(8, 8, 3, padding=1)), chain(conv(8, 8, 1))]
    return Branches(chain(conv(2, 8, 3)), branches, [cat], chain(conv(16, 8, 3), dense(8 * 12 * 12, 10)))


def fan_out() -> nn.Module:
    """Three branches of different kernels, added."""
    branches: list[nn.Module | None] = [chain(conv(8, 8, kernel, padding=kernel // 2)) for kernel in (1, 3, 5)]
    return Branches(chain(conv(2, 8, 3)), branches, [Add(), Add()], chain(conv(8, 8, 3), dense(8 * 12 * 12, 10)))


@dataclass(frozen=True)
class Case:
    """One network of the comparison."""

    build: Callable[[], nn.Module]
    about: str
    shape: Shape = (2, 16, 16)
    finish: Callable[[nn.Module], None] = lambda net: None  # sets the values that the case is about


def _wide_biases(net: nn.Module) -> None:
    """A large bias against a sum of many small weights: beside 8-bit weights it is a number of 15 bits."""
    last = next(module for module in net.modules() if isinstance(module, nn.Linear))
    last.weight.abs_()
    last.bias.zero_()
    last.bias.copy_(-0.7 * net(inputs((2, 16, 16), 64)).mean(0))


def _small_variance(net: nn.Module) -> None:
    """A batch norm whose variance is that of its eps; its inputs are as small, so that its outputs are around 1."""
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    first.weight.mul_(1e-5**0.5)
    first.bias.zero_()
    norm.running_var.fill_(1e-5)


CHAINS = {
    "chain5": Case(chain5, "5 layers", (2, 32, 32)),
    "chain9": Case(chain9, "9 layers", (2, 64, 64)),
}
CASES = {
    "plain": Case(plain, "two convolutions, average pooling, a linear layer"),
    "kernel-96ki": Case(
        lambda: chain(conv(2, 24, 3), nn.AvgPool2d(2), conv(24, 256, 4), nn.AvgPool2d(2), dense(256 * 2 * 2, 10)),
        "96 Ki words of kernel memory, the largest core has 64 Ki",
    ),
    "depthwise": Case(
        lambda: chain(conv(2, 8, 3), conv(8, 8, 3, groups=8), dense(8 * 12 * 12, 10)), "a depthwise convolution"
    ),
    "dilation": Case(
        lambda: chain(conv(2, 8, 3), conv(8, 8, 3, dilation=2), dense(8 * 10 * 10, 10)), "a convolution with dilation 2"
    ),
    "mlp": Case(lambda: chain(dense(28 * 28, 64, 10)), "two linear layers on 28 x 28", (1, 28, 28)),
    "a + b": Case(lambda: residual(add), "a residual, added by `+`"),
    "a + b, last": Case(two_scores, "two branches' scores, added by `+`"),
    "merge": Case(lambda: residual(Add()), "a residual, added by a module (sinabs: `Merge`)"),
    "pooled-skip": Case(
        lambda: residual(Add(), nn.AvgPool2d(2), chain(conv(8, 8, 3, padding=1, stride=2)), 5),
        "a residual whose skip is average pooling, added by a module",
    ),
    "pooled-branch": Case(
        lambda: residual(
            Add(), chain(conv(8, 8, 3, padding=1), nn.AvgPool2d(2)), chain(conv(8, 8, 3, padding=1, stride=2)), 5
        ),
        "average pooling at the end of one of two branches that a module adds",
    ),
    "concat": Case(concat, "two branches joined by `torch.cat`"),
    "fan-out-3": Case(fan_out, "one layer that feeds three"),
    "kernel-3x5": Case(
        lambda: chain(conv(2, 8, 3), [nn.Conv2d(8, 8, (3, 5)), nn.ReLU()], dense(8 * 12 * 10, 10)),
        "a kernel that is not square",
    ),
    "same": Case(
        lambda: chain(conv(2, 8, 3, padding="same"), nn.AvgPool2d(2), conv(8, 8, 3), dense(8 * 6 * 6, 10)),
        'padding="same"',
    ),
    "bias-16": Case(
        lambda: chain(conv(2, 8, 3), dense(8 * 14 * 14, 10)), "biases that need 16 bits", finish=_wide_biases
    ),
    "norm-eps": Case(
        lambda: chain([nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU()], nn.AvgPool2d(2), dense(8 * 7 * 7, 10)),
        "a batch norm with a variance of 1e-5",
        finish=_small_variance,
    ),
    "iaf-defaults": Case(plain, "as the first, in sinabs with `IAFSqueeze(batch_size=1)`, all else by default"),
}


def build(name: str) -> tuple[nn.Module, Shape]:
    """A network in eval mode and the shape of its input; equal on both sides, which `digest` tells."""
    case = (CHAINS | CASES)[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = case.build().eval()
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # torch's own leaves little to see after a few layers
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.uniform_(module.bias, -0.05, 0.05)
        case.finish(net)
    return net, case.shape


def inputs(shape: Shape, samples: int, seed: int = 1) -> Tensor:
    """Maps of zeros and ones."""
    return (torch.rand(samples, *shape, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def digest(net: nn.Module) -> str:
    """A hash of all weights."""
    found = hashlib.sha256()
    for value in net.state_dict().values():
        found.update(value.numpy().tobytes())
    return found.hexdigest()[:16]


def relative_error(rates: Tensor, net: nn.Module, x: Tensor) -> float:
    """How far a compiled network's rates are from the PyTorch network's outputs: norm of difference over norm."""
    with torch.no_grad():
        wanted = net(x)
    return float(torch.linalg.norm(rates.reshape(wanted.shape) - wanted) / torch.linalg.norm(wanted))
