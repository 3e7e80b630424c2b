"""What do Loihi's neurons cost in accuracy? A LeNet on MNIST, each kind of neuron, simulated in Lava's integers.

    python benchmarks/lava_accuracy.py [--json out.json]

Sigma-delta neurons compute the quantized network itself: the scores are compared one by one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from mnist import accuracy, lenet
from rich import box
from rich.console import Console
from rich.table import Table

import snncc

TIMESTEPS = (8, 16, 32, 64)


def main() -> None:
    """Train, compile, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    begin = time.perf_counter()
    net, (x, _, x_test, y_test) = lenet()
    with torch.inference_mode():
        network = accuracy(net(torch.from_numpy(x_test)).numpy(), y_test)
    out = Console()
    out.print(
        f"LeNet on MNIST: 4,000 images, trained in {time.perf_counter() - begin:.0f} s; {len(x_test):,} test images"
    )
    table = Table(title="accuracy", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("neurons", "reset", *(f"T = {t}" for t in TIMESTEPS)):
        table.add_column(name, justify="left" if name in ("neurons", "reset") else "right")
    found: dict[str, object] = {"network": network}
    table.add_row("PyTorch", "", f"{network:.1f} %")
    for reset, title in (("subtract", "if (ATRLIF)"), ("zero", "if (LIF)")):
        row = []
        for t in TIMESTEPS:
            model = snncc.compile(net, "lava", calibration=x[:256], timesteps=t, reset=reset, bias="keep")
            row.append(accuracy(model.simulate(x_test).output, y_test))
        found[reset] = dict(zip(map(str, TIMESTEPS), row, strict=True))
        table.add_row(title, reset, *(f"{value:.1f} %" for value in row))
    model = snncc.compile(net, "lava", calibration=x[:256], timesteps=1, neuron="sigma-delta", bias="keep")
    scores, quantized = model.simulate(x_test).output, model.network(x_test, "mapped")
    equal = int((scores == quantized).all(axis=1).sum())
    found["sigma-delta"] = {"accuracy": accuracy(scores, y_test), "equal": equal, "images": len(x_test)}
    table.add_row("sigma-delta", "", f"{accuracy(scores, y_test):.1f} %", *["(in one step)"])
    out.print(table)
    out.print(f"sigma-delta: the scores of {equal:,} of {len(x_test):,} images equal the quantized network's exactly")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
