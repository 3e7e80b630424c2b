"""Small PyTorch networks that the tests compile: plain torch, in the styles that people write, nothing of snncc.

`build(name, seed)` gives a network as if trained: batch norms have statistics near those of the data, scales and
offsets are far from 1 and 0, and activations neither vanish nor explode, so that an error in folding or scaling shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = TypeVar("Shape", bound=tuple[int, ...])


@dataclass(frozen=True)
class Spec:
    """How to make a network, and the shape of one input without the batch: (C, H, W) or (F,)."""

    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    sequential: bool  # one chain of layers: no adds, no concats
    gain: float = 1.0  # scale of the activations; above 1 where a cap such as ReLU6's must be reached


def build(name: str, seed: int = 0) -> nn.Module:
    """The network `name` of ZOO, SEQUENTIAL_ZOO or GRAPH_ZOO in eval mode; the same weights for the same seed."""
    spec = {**ZOO, **SEQUENTIAL_ZOO, **GRAPH_ZOO}[name]
    return _seeded(spec.make, spec.input_shape, seed, gain=spec.gain)


def example_input(shape: Sequence[int], batch: int = 2, seed: int = 0) -> Tensor:
    """Inputs in 0..1; images are smooth blobs with a little noise, so that they still differ after a global pooling."""
    rng = torch.Generator().manual_seed(seed)
    if len(shape) == 1:
        return torch.rand(batch, *shape, generator=rng)
    channels, height, width = shape
    blobs = F.interpolate(torch.rand(batch, channels, 3, 3, generator=rng), (height, width), mode="bilinear")
    return (blobs + 0.1 * torch.randn(blobs.shape, generator=rng)).clamp(0, 1)


def _seeded(
    make: Callable[[], nn.Module], shape: Sequence[int], seed: int, gain: float = 1.0, batch: int = 16
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        settle(model, example_input(shape, batch, seed), gain)
    return model


@torch.no_grad()
def settle(model: nn.Module, x: Tensor, gain: float = 1.0) -> None:
    """Give each layer the statistics of a trained one, front to back, in one forward pass over `x`."""
    done: set[nn.Module] = set()  # a shared module is set by its first call

    def weights(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if layer in done:
            return None
        done.add(layer)
        dims = [d for d in range(out.dim()) if d != 1]
        if layer.bias is None:  # nothing else takes an offset away: the filters must not answer to a constant input
            if layer.weight[0].numel() > 9:
                layer.weight -= layer.weight.mean(tuple(range(1, layer.weight.dim())), keepdim=True)
            layer.weight /= layer.forward(*args).square().mean().sqrt() / gain
        else:
            scale = out.var(dims).mean().sqrt() / gain
            mean = (out.mean(dims) - layer.bias) / scale
            layer.weight /= scale
            layer.bias.copy_(gain * 0.3 * torch.randn_like(mean) - mean)
        return layer.forward(*args)

    def statistics(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        if norm in done:
            return
        done.add(norm)
        dims = [d for d in range(args[0].dim()) if d != 1]
        mean, var = args[0].mean(dims), args[0].var(dims) / gain**2
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean + gain * 0.3 * torch.randn_like(mean))
        norm.running_var.copy_(gain**2 * (var * torch.empty_like(var).uniform_(0.7, 1.4)).clamp(0.3, 2))
        norm.weight.copy_(gain * torch.empty_like(mean).uniform_(0.5, 1.5))
        norm.bias.copy_(gain * torch.empty_like(mean).uniform_(-0.3, 0.3))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(weights))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(statistics))
    model(x)
    for hook in hooks:
        hook.remove()


def _conv_bn_relu(c_in: int, c_out: int, k: int, relu: type[nn.Module] = nn.ReLU, **conv: Any) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, k, bias=False, **conv), nn.BatchNorm2d(c_out), relu()]


# ---------------------------------------------------------------------------------------------------- chains


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(32, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Linear(24, 10),
    )  # fmt: skip


def lenet_bn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


class VGG(nn.Module):
    """Max pooling, `F.relu` and `view`; a bias before the batch norm, as VGG-BN has it."""

    def __init__(self, widths: Sequence[int] = (8, 16, 16), num_classes: int = 10) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(ins, widths, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(widths[-1] * 4, 32)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.pool(F.relu(norm(conv(x))))
        x = x.view(x.size(0), -1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


class MobileNet(nn.Module):
    """Depthwise separable convolutions with ReLU6, and a global pooling written as a mean."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        layers = _conv_bn_relu(3, width, 3, nn.ReLU6, stride=2, padding=1)
        for c, stride in (width, 1), (2 * width, 2), (4 * width, 1):
            layers += _conv_bn_relu(c, c, 3, nn.ReLU6, stride=stride, padding=1, groups=c)
            layers += _conv_bn_relu(c, 2 * c, 1, nn.ReLU6)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def conv_variants() -> nn.Module:
    """Convolutions with the options that a compiler is likely to forget."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, padding="same"), nn.ReLU(),  # an even kernel: 'same' pads unevenly
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, (3, 1), stride=(2, 1), padding=(1, 0), groups=4), nn.Hardtanh(0.0, 2.0),
        nn.Conv2d(16, 16, (1, 5), stride=(1, 2), padding="valid"), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Linear(64, 10),
    )  # fmt: skip


class Functional(nn.Module):
    """No layer modules: own parameters, functions and tensor methods. Has one residual add."""

    def __init__(self, c: int = 8, num_classes: int = 10) -> None:
        super().__init__()

        def weight(*shape: int) -> nn.Parameter:
            w = torch.randn(shape)
            return nn.Parameter((w - w.flatten(1).mean(1).view(-1, *[1] * (w.dim() - 1))) * (3 / w[0].numel()) ** 0.5)

        def bias(n: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(n).uniform_(-0.3, 0.3))

        self.w1, self.b1 = weight(c, 3, 3, 3), bias(c)
        self.w2, self.b2 = weight(c, c, 3, 3), bias(c)
        self.w3 = weight(c, c, 1, 1)
        self.w4, self.b4 = weight(2 * c, c, 3, 3), bias(2 * c)
        self.w5, self.b5 = weight(32, 32 * c), bias(32)
        self.w6, self.b6 = weight(num_classes, 32), bias(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.conv2d(2 * x - 1, self.w1, self.b1, padding=1))
        y = F.conv2d(x, self.w2, self.b2, padding=1).relu()
        y = torch.conv2d(y, self.w3)
        y += x
        x = torch.add(F.avg_pool2d(F.relu(y), 2), torch.mean(y, dim=(2, 3), keepdim=True)).clamp(min=0)
        x = F.avg_pool2d(F.conv2d(x, self.w4, self.b4, 1, 1).clamp(0, 1.5), kernel_size=2)
        x = torch.flatten(x.view(x.shape[0], x.shape[1], -1), 1)
        x = F.linear(x, self.w5, self.b5).reshape(-1, 32)
        return F.linear(F.hardtanh(x, 0.0, 2.0), self.w6, self.b6)


# ---------------------------------------------------------------------------------------------------- branches


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.downsample = _downsample(c_in, c, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        c_out = c * self.expansion
        self.conv1 = nn.Conv2d(c_in, c, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.conv3 = nn.Conv2d(c, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


def _downsample(c_in: int, c_out: int, stride: int) -> nn.Module | None:
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


class ResNet(nn.Module):
    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], layers: Sequence[int], width: int, num_classes: int, stem: str
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        elif stem == "cifar":
            self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        else:
            raise ValueError(f"stem is 'imagenet' or 'cifar', not {stem!r}")
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages, c_in = [], width
        for i, depth in enumerate(layers):
            c = width << i
            blocks = []
            for j in range(depth):
                blocks.append(block(c_in, c, 2 if i > 0 and j == 0 else 1))
                c_in = c * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.stages(x))
        return self.fc(torch.flatten(x, 1))


def resnet(
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    layers: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    num_classes: int = 1000,
    stem: str = "imagenet",
) -> ResNet:
    """Any ResNet, untrained: `build` or `settle` gives it usable statistics."""
    return ResNet(block, layers, width, num_classes, stem)


def resnet152(seed: int = 0) -> nn.Module:
    """ImageNet's ResNet-152 (60 million weights, input (3, 224, 224)) with random weights, in eval mode."""
    # The statistics need no full-size images.
    return _seeded(partial(resnet, Bottleneck, (3, 8, 36, 3)), (3, 96, 96), seed, batch=4)


class OptionABlock(nn.Module):
    """The CIFAR ResNet's block, whose shortcut has no weights: a strided slice and zeros for the new channels."""

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.pad = (c - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        out += x
        return F.relu(out)


class ResNetA(nn.Module):
    def __init__(self, depth: int = 1, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = [OptionABlock(width, width, 1) for _ in range(depth)]
        for c in width, 2 * width:
            blocks += [OptionABlock(c, 2 * c, 2), *(OptionABlock(2 * c, 2 * c, 1) for _ in range(depth - 1))]
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


class DenseLayer(nn.Module):
    """Batch norm and ReLU come before the convolution, so there is nothing to fold the norm into."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.relu(self.norm1(x)))
        new = self.conv2(self.relu(self.norm2(new)))
        return torch.cat([x, new], 1)


class DenseNet(nn.Module):
    def __init__(self, blocks: Sequence[int] = (2, 2), growth: int = 6, num_classes: int = 10) -> None:
        super().__init__()
        c = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(3, c, 3, padding=1, bias=False)]
        for i, depth in enumerate(blocks):
            if i:
                layers += [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c // 2, 1, bias=False), nn.AvgPool2d(2)]
                c //= 2
            layers += [DenseLayer(c + j * growth, growth) for j in range(depth)]
            c += depth * growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(c))
        self.classifier = nn.Linear(c, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.features(x)), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class InceptionBlock(nn.Module):
    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.one = nn.Sequential(*_conv_bn_relu(c_in, c, 1))
        self.three = nn.Sequential(*_conv_bn_relu(c_in, c, 1), *_conv_bn_relu(c, c, 3, padding=1))
        self.five = nn.Sequential(*_conv_bn_relu(c_in, c // 2, 1), *_conv_bn_relu(c // 2, c, 5, padding=2))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), *_conv_bn_relu(c_in, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.one(x), self.three(x), self.five(x), self.pool(x)), dim=1)


def inception() -> nn.Module:
    return nn.Sequential(
        *_conv_bn_relu(3, 8, 3, padding=1), nn.AvgPool2d(2), InceptionBlock(8, 4), nn.AvgPool2d(2),
        InceptionBlock(16, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


ZOO: dict[str, Spec] = {
    "mlp": Spec(mlp, (20,), sequential=True),
    "lenet_bn": Spec(lenet_bn, (1, 28, 28), sequential=True),
    "vgg": Spec(VGG, (3, 16, 16), sequential=True),
    "resnet18": Spec(partial(resnet, BasicBlock, (2, 2, 2, 2), 8, 10), (3, 64, 64), sequential=False),
    "bottleneck": Spec(partial(resnet, Bottleneck, (1, 2), 8, 10, "cifar"), (3, 16, 16), sequential=False),
    "resnet_a": Spec(ResNetA, (3, 16, 16), sequential=False),
    "mobilenet": Spec(MobileNet, (3, 32, 32), sequential=True, gain=3.0),
    "densenet": Spec(DenseNet, (3, 16, 16), sequential=False),
    "functional": Spec(Functional, (3, 16, 16), sequential=False),
    "inception": Spec(inception, (3, 16, 16), sequential=False),
    "conv_variants": Spec(conv_variants, (3, 16, 16), sequential=True),
}


# ---------------------------------------------------------------------------------------------------- DYNAP-CNN


def chip_lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, bias=False), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 5, bias=False), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 10, bias=False),
    )  # fmt: skip


def chip_bias() -> nn.Module:
    """Biases, strides, and a linear head written as a convolution."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(16, 10, 3), nn.Flatten(),
    )  # fmt: skip


def chip_bn() -> nn.Module:
    return nn.Sequential(
        *_conv_bn_relu(1, 8, 3, padding=1), nn.AvgPool2d(4),
        *_conv_bn_relu(8, 16, 3, padding=1), nn.Dropout2d(0.2),
        nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip


def chip_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32, bias=False), nn.ReLU(), nn.Linear(32, 10)
    )


def chip_kernels() -> nn.Module:
    """Every kernel size from 1 to 5, both strides, odd sizes that do not divide."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 5, padding=2, bias=False), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(4, 8, 4, stride=2), nn.ReLU(),
        nn.Conv2d(8, 8, 1, bias=False), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Conv2d(16, 16, 2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


def chip_small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)
    )


def chip_nine() -> nn.Module:
    """Nine weight layers: one for each core."""
    return nn.Sequential(
        *_conv_bn_relu(2, 8, 3, stride=2, padding=1),
        *_conv_bn_relu(8, 8, 3, padding=1),
        *_conv_bn_relu(8, 16, 3, padding=1), nn.AvgPool2d(2),
        *_conv_bn_relu(16, 16, 3, padding=1),
        *_conv_bn_relu(16, 32, 3, padding=1), nn.AvgPool2d(2),
        *_conv_bn_relu(32, 32, 3, padding=1), nn.AvgPool2d(2),
        *_conv_bn_relu(32, 32, 1),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


class ChipResidual(nn.Module):
    """Two residual blocks; the second halves the map, its shortcut is a convolution of stride 2 (He et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn_relu(2, 8, 3, padding=1))
        self.a1, self.a2 = nn.Sequential(*_conv_bn_relu(8, 8, 3, padding=1)), nn.Conv2d(8, 8, 3, padding=1)
        self.b1 = nn.Sequential(*_conv_bn_relu(8, 16, 3, stride=2, padding=1))
        self.b2, self.shortcut = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(8, 16, 1, stride=2, bias=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.a2(self.a1(x)) + x)
        x = torch.relu(self.b2(self.b1(x)) + self.shortcut(x))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


class ChipBranches(nn.Module):
    """Three branches out of one map, one of them pooled, concatenated; then a sum of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.one, self.three = nn.Conv2d(6, 4, 2, stride=2), nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.mix, self.left = nn.Conv2d(15, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
        self.head = nn.Linear(8 * 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([torch.relu(self.one(x)), F.avg_pool2d(x, 2), torch.relu(self.three(x))], 1)
        x = torch.relu(self.mix(x))
        return self.head((torch.relu(self.left(x)) + torch.relu(self.right(x))).flatten(1))


def chip_depthwise() -> nn.Module:
    """Depthwise-separable blocks (Howard et al. 2017), the depthwise part dilated once."""
    return nn.Sequential(
        *_conv_bn_relu(2, 12, 3, stride=2, padding=1),
        *_conv_bn_relu(12, 12, 3, padding=2, dilation=2, groups=12),
        *_conv_bn_relu(12, 24, 1),
        *_conv_bn_relu(24, 24, 3, stride=2, padding=1, groups=24),
        nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 1), nn.ReLU6(),  # a linear bottleneck
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, 10),
    )  # fmt: skip


def chip_split() -> nn.Module:
    """A layer of 96 Ki kernel words and one of 96 Ki neurons: neither fits a core."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 8, 3, stride=4, padding=1), nn.ReLU(), nn.AvgPool2d(4),
        nn.Conv2d(8, 24, 1), nn.ReLU(),
        nn.Conv2d(24, 256, 4), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


class ChipExits(nn.Module):
    """Two exits, and a map that three layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.early = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(96, 4)
        self.a, self.b, self.c = (nn.Conv2d(6, n, 3, padding=1) for n in (4, 3, 5))
        self.late = nn.Linear(12 * 16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.avg_pool2d(torch.relu(self.stem(x)), 2)
        late = torch.cat([torch.relu(f(x)) for f in (self.a, self.b, self.c)], 1)
        return self.early(x.flatten(1)), self.late(late.flatten(1))


class ChipPreact(nn.Module):
    """Pre-activation blocks (He et al. 2016b): the stream between the blocks is never rectified itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.convs:
            x = x + conv(torch.relu(x))
        return self.head(torch.relu(x).mean((2, 3)))


# Networks with branches, or layers larger than a core, that fit a DYNAP-CNN chip.
GRAPH_ZOO: dict[str, Spec] = {
    "chip_residual": Spec(ChipResidual, (2, 16, 16), sequential=False),
    "chip_branches": Spec(ChipBranches, (1, 8, 8), sequential=False),
    "chip_depthwise": Spec(chip_depthwise, (2, 64, 64), sequential=True),
    "chip_split": Spec(chip_split, (1, 64, 64), sequential=True),
    "chip_exits": Spec(ChipExits, (1, 8, 8), sequential=False),
    "chip_preact": Spec(ChipPreact, (1, 8, 8), sequential=False),
}

# Chains that fit a DYNAP-CNN chip: at most 9 weight layers, each within a core of its own (test_zoo.py checks it).
SEQUENTIAL_ZOO: dict[str, Spec] = {
    "chip_small": Spec(chip_small, (1, 8, 8), sequential=True),
    "chip_mlp": Spec(chip_mlp, (1, 8, 8), sequential=True),
    "chip_lenet": Spec(chip_lenet, (1, 28, 28), sequential=True),
    "chip_bias": Spec(chip_bias, (1, 28, 28), sequential=True),
    "chip_bn": Spec(chip_bn, (1, 28, 28), sequential=True),
    "chip_kernels": Spec(chip_kernels, (2, 64, 64), sequential=True),
    "chip_nine": Spec(chip_nine, (2, 64, 64), sequential=True),
}


# ---------------------------------------------------------------------------------------------------- generated


class Clamp(nn.Module):
    def __init__(self, high: float) -> None:
        super().__init__()
        self.high = high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, self.high)

    def extra_repr(self) -> str:
        return f"high={self.high:g}"


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.relu = body, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.body(x))


class Concat(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def drawn(
    rng: np.random.Generator, layers: Callable[[np.random.Generator], tuple[list[nn.Module], Shape]]
) -> tuple[nn.Module, Shape]:
    """The chain that `layers` draws, in eval mode, its batch norms far from 1 and 0, and its input shape; equal seeds
    give equal networks."""
    seed = int(rng.integers(2**31))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chain, shape = layers(rng)
        model = nn.Sequential(*chain).eval()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.1, 0.5)
    return model, shape


def random_model(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network drawn from `rng`, in eval mode, and its input shape; equal seeds give equal networks."""
    seed = int(rng.integers(2**31))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, shape = _random_mlp(rng) if _coin(rng, 0.2) else _random_cnn(rng)
        model = nn.Sequential(*layers).eval()
        settle(model, example_input(shape, 16, seed))
    return model, shape


def _coin(rng: np.random.Generator, p: float = 0.5) -> bool:
    return bool(rng.random() < p)


def _pick(rng: np.random.Generator, *options: int) -> int:
    return int(rng.choice(options))


def _activation(rng: np.random.Generator) -> nn.Module:
    return Clamp(float(rng.choice([1.0, 2.0]))) if _coin(rng, 0.25) else nn.ReLU()


def _random_mlp(rng: np.random.Generator) -> tuple[list[nn.Module], tuple[int, ...]]:
    features = first = _pick(rng, 4, 10, 17)
    layers: list[nn.Module] = []
    for _ in range(_pick(rng, 1, 2, 3)):
        out = _pick(rng, 8, 16)
        layers.append(nn.Linear(features, out, bias=_coin(rng)))
        if _coin(rng):
            layers.append(nn.BatchNorm1d(out))
        layers.append(_activation(rng))
        features = out
        if _coin(rng, 0.3):
            layers.append(Residual(nn.Linear(out, out, bias=_coin(rng))))
    return [*layers, nn.Linear(features, 5)], (first,)


def _random_cnn(rng: np.random.Generator) -> tuple[list[nn.Module], tuple[int, ...]]:
    channels, size = _pick(rng, 1, 2, 3), _pick(rng, 7, 8, 11, 12)
    shape = (channels, size, size)

    def conv(c_in: int, c_out: int, k: int, stride: int = 1, groups: int = 1, padding: int | None = None) -> nn.Module:
        pad = k // 2 if padding is None else padding
        body: list[nn.Module] = [nn.Conv2d(c_in, c_out, k, stride, pad, groups=groups, bias=_coin(rng))]
        return nn.Sequential(*body, nn.BatchNorm2d(c_out)) if _coin(rng, 0.6) else body[0]

    channels, layers = 4, [conv(channels, 4, 3), _activation(rng)]
    for _ in range(int(rng.integers(0, 4))):
        kind = str(rng.choice(["conv", "depthwise", "residual", "concat", "pool"]))
        c = channels
        if kind == "conv":
            channels, k, stride = _pick(rng, 4, 6, 8), _pick(rng, 1, 2, 3), _pick(rng, 1, 1, 2)
            padding = _pick(rng, 0, k // 2) if size > 4 else k // 2
            layers += [conv(c, channels, k, stride, padding=padding), _activation(rng)]
            size = (size + 2 * padding - k) // stride + 1
        elif kind == "depthwise":
            layers += [conv(c, c, 3, groups=c), _activation(rng), conv(c, c, 1), _activation(rng)]
        elif kind == "residual":
            layers.append(Residual(nn.Sequential(conv(c, c, 3), _activation(rng), conv(c, c, _pick(rng, 1, 3)))))
        elif kind == "concat":
            shortcut = nn.Identity() if _coin(rng) else nn.Sequential(conv(c, 2, 1), _activation(rng))
            layers.append(Concat(shortcut, nn.Sequential(conv(c, 4, 3), _activation(rng))))
            channels = 4 + (c if isinstance(shortcut, nn.Identity) else 2)
        elif size >= 4:
            layers.append(nn.AvgPool2d(2))
            size //= 2
    if _coin(rng, 0.3):
        layers.append(nn.AdaptiveAvgPool2d(1))
        size = 1
    layers.append(nn.Flatten())
    features = channels * size * size
    if _coin(rng, 0.3):
        layers += [nn.Linear(features, 8), _activation(rng)]
        features = 8
    return [*layers, nn.Linear(features, 5)], shape
