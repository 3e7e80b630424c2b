"""What does Lynxi's fp16 cost? A LeNet on Fashion-MNIST, compiled for a KA200.

    python benchmarks/lynxi_fp16.py [--images 10000] [--timesteps 4 8 16 32] [--reset subtract zero] [--json out.json]

The same program in float32, which equals the compiled integers, and with the result of every operation rounded to fp16.
Accuracies on test images; calibrated on training images. Data and weights are in ../shared/data, beside the checkout.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from dynapcnn_events import correct, data, lenet
from rich import box
from rich.progress import track
from rich.table import Table

import snncc
from snncc.console import console
from snncc.targets.lynxi import fp16

BATCH = 250


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--reset", nargs="+", default=["subtract", "zero"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    calibration, images, labels = data()
    images, labels = images[: options.images], labels[: options.images]
    cases = [(reset, timesteps) for reset in options.reset for timesteps in options.timesteps]
    rows = [
        measure(calibration, images, labels, *case) for case in track(cases, "measure", console=console(stderr=True))
    ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    title = f"accuracy on {len(images):,} test images, in percent; the network {rows[0]['network']:.2f}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("reset", "T", "snn (float)", "float32", "fp16", "fp16 - float32", "same class", "spikes that differ"):
        table.add_column(name, justify="left" if name == "reset" else "right")
    for row in rows:
        table.add_row(
            row["reset"], str(row["timesteps"]), f"{row['snn']:.2f}", f"{row['float32']:.2f}", f"{row['fp16']:.2f}",
            f"{row['fp16'] - row['float32']:+.2f}", f"{row['same_class']:.2%}", f"{row['differ']:.2%}",
        )  # fmt: skip
    console().print(table)


def measure(calibration: Any, images: Any, labels: Any, reset: str, timesteps: int) -> dict[str, Any]:
    """One row."""
    compiled = snncc.compile(
        lenet(), "lynxi", calibration=calibration[:512], timesteps=timesteps, reset=reset, bias="keep"
    )
    parts = [fp16(compiled, images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
    return {
        "reset": reset,
        "timesteps": timesteps,
        "network": correct(compiled.network(images), labels),
        "snn": correct(compiled.simulate(images, stage="snn").output, labels),
        "float32": correct(compiled.simulate(images).output, labels),
        "fp16": correct(np.concatenate([part.outputs[0] for part in parts]), labels),
        "same_class": float(np.mean([part.same_class for part in parts])),
        "differ": float(np.mean([np.mean(list(part.spikes.values())) for part in parts])),
    }


if __name__ == "__main__":
    main()
