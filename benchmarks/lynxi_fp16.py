"""What does Lynxi's fp16 cost? A LeNet on Fashion-MNIST, compiled for a KA200.

    python benchmarks/lynxi_fp16.py [--images 10000] [--timesteps 4 8 16 32] [--reset subtract zero] [--json out.json]

The same program in float32, which equals the compiled integers, and with the result of every operation rounded to fp16.
Accuracies on test images; calibrated on training images. Data and weights are in ../shared/data, beside the checkout.
Wanted is that fp16 loses no more than 0.2 points at T = 16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynapcnn_events import DATA, correct, data, lenet
from rich import box
from rich.progress import track
from rich.table import Table
from torch import nn

import snncc
from snncc.console import console
from snncc.targets.lynxi import fp16

BATCH = 250
WANTED = 0.2  # points that fp16 may lose
WANTED_AT = 16  # time steps


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--reset", nargs="+", default=["subtract", "zero"])
    parser.add_argument("--json", type=Path, help="write the rows")
    options = parser.parse_args()
    if not DATA.exists():
        raise SystemExit(f"the data are not here: {DATA}")
    net, (calibration, images, labels) = lenet(), data()
    images, labels = images[: options.images], labels[: options.images]
    with torch.inference_mode():
        network = correct(np.concatenate([net(torch.from_numpy(x)).numpy() for x in batches(images)]), labels)
    cases = [(reset, timesteps) for reset in options.reset for timesteps in options.timesteps]
    rows = [
        measure(net, calibration, images, labels, *case)
        for case in track(cases, "measure", console=console(stderr=True))
    ]
    if options.json:
        found = {"images": len(images), "network": network, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(rows, f"accuracy on {len(images):,} test images, in percent; PyTorch {network:.2f}")


def batches(images: Any) -> Iterator[Any]:
    """The images, BATCH at a time."""
    return (images[at : at + BATCH] for at in range(0, len(images), BATCH))


def measure(net: nn.Module, calibration: Any, images: Any, labels: Any, reset: str, timesteps: int) -> dict[str, Any]:
    """One row."""
    compiled = snncc.compile(net, "lynxi", calibration=calibration[:512], timesteps=timesteps, reset=reset, bias="keep")
    exact = compiled.simulate(images).output
    parts = [fp16(compiled, x) for x in batches(images)]
    sizes = [len(x) for x in batches(images)]
    rounded = np.concatenate([part.outputs[0] for part in parts])
    classes = [scores.reshape(len(images), -1).argmax(axis=1) for scores in (exact, rounded)]
    return {
        "reset": reset,
        "timesteps": timesteps,
        "snn": correct(compiled.simulate(images, stage="snn").output, labels),
        "float32": correct(exact, labels),
        "fp16": correct(rounded, labels),
        "lost": int(((classes[0] == labels) & (classes[1] != labels)).sum()),
        "won": int(((classes[0] != labels) & (classes[1] == labels)).sum()),
        "same_class": float(np.average([part.same_class for part in parts], weights=sizes)),
        "differ": float(np.average([np.mean(list(part.spikes.values())) for part in parts], weights=sizes)),
        "overflow": sorted({name for part in parts for name in part.overflow}),
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The table, and what was wanted."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    names = (
        "reset",
        "T",
        "snn (float)",
        "float32",
        "fp16",
        "points",
        "lost",
        "won",
        "same class",
        "spikes that differ",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "reset" else "right")
    for row in rows:
        table.add_row(
            row["reset"], str(row["timesteps"]), f"{row['snn']:.2f}", f"{row['float32']:.2f}", f"{row['fp16']:.2f}",
            f"{row['fp16'] - row['float32']:+.2f}", f"{row['lost']}", f"{row['won']}", f"{row['same_class']:.2%}",
            f"{row['differ']:.2%}",
        )  # fmt: skip
    out = console()
    out.print(table)
    out.print("[dim]lost and won: images that only float32, and only fp16, has right[/dim]")
    for name in sorted({name for row in rows for name in row["overflow"]}):
        out.print(f"in fp16 the input of {name} is not finite")
    for row in rows:
        if row["timesteps"] == WANTED_AT:
            points = round(row["fp16"] - row["float32"], 6)
            verdict = "within" if points >= -WANTED else "MORE THAN"
            out.print(f"T = {WANTED_AT}, reset {row['reset']}: {points:+.2f} points, {verdict} the {WANTED} wanted")


if __name__ == "__main__":
    main()
