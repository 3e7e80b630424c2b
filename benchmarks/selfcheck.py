"""What the self-check costs beside calibration, and the figures that its limits were chosen by.

    python benchmarks/selfcheck.py                        # cost: LeNet, ResNet-20 and ResNet-18 (medians of 3)
    python benchmarks/selfcheck.py --limits               # output error and changed classes by T, of calibration data
    python benchmarks/selfcheck.py --data ../shared/data  # CIFAR-10 and the public weights of ResNet-20 there

Without the data, ResNet-20 has random weights and is left out of the limits. Costs are of one process: the pass
`calibrate` as its record says, the measuring alone, and by how much the whole compile takes longer with the self-check:
where it warns, that has the trials of the hint in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snncc
from snncc import selfcheck
from snncc.engine import TorchEngine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))


class Block(nn.Module):
    """A residual block; its shortcut is a strided slice with zero channels (He et al. 2016, option A)."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.stride, self.grow = stride, o - i

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:
            half = self.grow // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.grow - half))
        return F.relu(y + x)


class ResNet(nn.Module):
    """Stages of blocks that double the channels."""

    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        for i, n in enumerate(blocks):
            first = Block(width * 2 ** max(0, i - 1), width * 2**i, 2 if i else 1)
            rest = [Block(width * 2**i, width * 2**i, 1) for _ in range(n - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
        self.stages = len(blocks)
        self.linear = nn.Linear(width * 2 ** (len(blocks) - 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear(x.mean((2, 3)))


def lenet() -> nn.Module:
    """For 28 x 28."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def images(data: Path, n: int) -> np.ndarray:
    """The first training images of CIFAR-10, as the weights take them."""
    from PIL import Image

    x = np.asarray(Image.open(data / "cifar10/data_batch_1.png"))[..., :3].reshape(-1, 32, 32, 3)[:n] / 255
    x = (x - np.asarray((0.485, 0.456, 0.406))) / np.asarray((0.229, 0.224, 0.225))
    return x.transpose(0, 3, 1, 2).astype(np.float32)


def resnet20(data: Path | None) -> nn.Module:
    """With the public weights, where they are."""
    net = ResNet(16, (3, 3, 3))
    if data is not None:
        from safetensors.torch import load_file

        net.load_state_dict(load_file(data / "weights/cifar10_resnet20.safetensors"))
    return net.eval()


def settled(net: nn.Module, x: np.ndarray) -> nn.Module:
    """Batch norms with the statistics of the data, so that random weights give values of a size."""
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = None
        net.train()(torch.from_numpy(x[:32]))
    return net.eval()


def cost(name: str, net: nn.Module, x: np.ndarray, timesteps: int, repeat: int) -> dict[str, object]:
    """Medians of so many compiles."""
    rows = []
    for _ in range(repeat):
        begin = time.perf_counter()
        bare = snncc.compile(net, calibration=x, timesteps=timesteps, bias="keep", selfcheck=False)
        plain = time.perf_counter() - begin
        begin = time.perf_counter()
        snncc.compile(net, calibration=x, timesteps=timesteps, bias="keep")
        whole = time.perf_counter() - begin
        begin = time.perf_counter()
        found = selfcheck.measure(bare.stages, bare.sample, timesteps, TorchEngine())
        alone = time.perf_counter() - begin
        calibrate = next(r.seconds for r in bare.records if r.label.startswith("calibrate"))
        rows.append((calibrate, alone, alone / calibrate, whole - plain))
    calibrate, alone, ratio, extra = (round(statistics.median(column), 2) for column in zip(*rows, strict=True))
    assert found is not None
    return {
        "network": name, "T": timesteps, "calibration": len(x), "samples": found.samples, "calibrate s": calibrate,
        "measure s": alone, "ratio": ratio, "compile, longer by s": extra, "warns": found.exceeds,
    }  # fmt: skip


def limits(name: str, net: nn.Module, x: np.ndarray, target: str, samples: int = 128) -> None:
    """Print the output error and the classes that change, by T, on samples that the network is calibrated with."""
    for timesteps in (4, 8, 16, 32, 64):
        done = snncc.compile(net, target, calibration=x, timesteps=timesteps, bias="keep", selfcheck=False)
        xs = x[np.arange(samples) * len(x) // samples]
        got, want = done.simulate(xs).output, done.network(xs)
        changed = float((got.argmax(axis=1) != done.network(xs, "ann").argmax(axis=1)).mean())
        off = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        print(f"{name:<10} T = {timesteps:<3} output error {off:.3f}, {changed:.1%} of the classes change")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limits", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.limits:
        from digits_dynapcnn import data, train

        x, y, _, _ = data()
        limits("digits", train(x, y, 15), x[:256], "speck2b")
        if options.data:
            limits("ResNet-20", resnet20(options.data), images(options.data, 256), "reference")
        return
    random = np.random.default_rng(0).random
    small = images(options.data, 256) if options.data else random((256, 3, 32, 32)).astype(np.float32)
    net = resnet20(options.data) if options.data else settled(resnet20(None), small)
    large = random((128, 3, 32, 32)).astype(np.float32)
    cases = [
        ("LeNet", lenet(), random((256, 1, 28, 28)).astype(np.float32), 32),
        *(("ResNet-20", net, small, timesteps) for timesteps in (8, 32)),
        ("ResNet-18", settled(ResNet(64, (2, 2, 2, 2)), large), large, 32),
    ]
    found = []
    for case in cases:
        found.append(cost(*case, options.repeat))
        print(found[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
