"""A CNN trained on scikit-learn's digits, compiled for a Speck chip: what `make demo` runs.

Prints the accuracy of every stage, where each layer lies on the chip, and what samna's validator says; writes the
folder that one copies to the machine with the board.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn

import snncc
from snncc.console import console, core_table, print_diagnostics, report_table

TIMESTEPS = (4, 8, 16, 32, 64)


class Net(nn.Module):
    """Two convolutions with batch norm and average pooling, and a linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.classifier(x.flatten(1))


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(train images, train labels, test images, test labels): 1,297 and 500 images (N, 1, 8, 8) from 0 to 1."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x = (digits.images[order, None] / 16).astype(np.float32)
    y = digits.target[order]
    return x[:-500], y[:-500], x[-500:], y[-500:]


def train(x: np.ndarray, y: np.ndarray, epochs: int, seed: int = 0) -> Net:
    """Adam with a cosine schedule."""
    torch.manual_seed(seed)
    net, images, labels = Net(), torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in track(range(epochs), "train", transient=True):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Percent of samples whose largest score is their class."""
    return 100 * float((scores.argmax(axis=1) == labels).mean())


def main() -> None:
    """Train, compile, compare, validate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="speck2b")
    parser.add_argument("--output", type=Path, default=Path("build/digits"))
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    out = console()

    x, y, x_test, y_test = data()
    begin = time.perf_counter()
    net = train(x, y, options.epochs)
    out.print(f"trained in {time.perf_counter() - begin:.1f} s")
    begin = time.perf_counter()
    compiled = snncc.compile(net, target=options.target, calibration=x, timesteps=32)
    out.print(f"compiled for {options.target} in {time.perf_counter() - begin:.1f} s")
    print_diagnostics(compiled.diagnostics, out)

    table = Table(title="accuracy on 500 test images", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("stage")
    for name in ("network", *(f"T = {t}" for t in TIMESTEPS)):
        table.add_column(name, justify="right")
    with torch.inference_mode():
        scores = net(torch.from_numpy(x_test)).numpy()
    table.add_row("PyTorch", f"{accuracy(scores, y_test):.1f} %")
    for stage in ("ann", "folded"):
        table.add_row(stage, f"{accuracy(compiled.network(x_test, stage), y_test):.1f} %")
    for stage in ("snn", compiled.graph.stage.value):
        row = [accuracy(compiled.simulate(x_test, t, stage=stage).output, y_test) for t in TIMESTEPS]
        label = f"{stage} (float)" if stage == "snn" else f"{stage} (the chip's integers)"
        table.add_row(label, "", *(f"{value:.1f} %" for value in row))
    row = [accuracy(compiled.simulate(x_test, t, order="depth-first").output, y_test) for t in TIMESTEPS]
    table.add_row("  event by event, as the chip", "", *(f"{value:.1f} %" for value in row))
    out.print(table)
    out.print(report_table(compiled.report))
    if (cores := core_table(compiled)) is not None:
        out.print()
        out.print(cores)

    try:
        answer = compiled.validate()
        said = "(True, '')" if answer.valid else f"(False, {answer.message!r})"
        out.print(f"{answer.version} validates the configuration: {said}", markup=False)
    except snncc.InputError as error:
        out.print(f"not validated: {error.diagnostics[0].message}. {error.diagnostics[0].hint}", markup=False)
    folder = compiled.save(options.output)
    out.print(f"written: {options.output}/", markup=False)
    for path in sorted(folder.iterdir()):
        size = f"{len(list(path.iterdir()))} files" if path.is_dir() else f"{path.stat().st_size:,} bytes"
        out.print(f"  {path.name}  {size}", markup=False)


if __name__ == "__main__":
    main()
