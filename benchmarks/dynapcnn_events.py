"""What does a chip's event by event arithmetic change? A LeNet on Fashion-MNIST, compiled for a Speck 2b.

    python benchmarks/dynapcnn_events.py [--images 500] [--timesteps 16 32] [--repeat 3] [--json out.json]

The same integers are run step by step, and event by event in both orders: the accuracies, how fast the event-driven
simulation is (median, one thread for each processor), and how far the layers' spikes are apart. In a chain of layers
both orders are the same. Data and weights are in ../shared/data, beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from safetensors.torch import load_file
from torch import nn

import snncc
from snncc.console import apart_table, console
from snncc.engine.compare import differences, same_class
from snncc.ir.types import per_channel
from snncc.targets.dynapcnn.config import from_json
from snncc.targets.dynapcnn.events import EventRun, Order, simulate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ORDERS: tuple[Order, ...] = ("depth-first", "breadth-first")


def lenet() -> nn.Module:
    """Two convolutions of 5 x 5 with batch norm and average pooling, two linear layers; trained."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(800, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    weights = load_file(DATA / "weights" / "fashion_lenet.safetensors")
    net.load_state_dict({name.removeprefix("net."): value for name, value in weights.items()})
    return net.eval()


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(training images, test images, test labels); images (N, 1, 28, 28) from 0 to 1, split as for the training."""
    with np.load(DATA / "fashion_mnist" / "fashion_mnist_70k_by_class.npz") as file:
        order = np.random.default_rng(0).permutation(len(file["y"]))
        images, labels = (file["x"][order][:, None] / 255).astype(np.float32), file["y"][order]
    return images[:60000], images[60000:], labels[60000:]


def correct(scores: np.ndarray, labels: np.ndarray) -> float:
    """Percent of samples whose largest score is their class."""
    return 100 * float((scores.reshape(len(scores), -1).argmax(axis=1) == labels).mean())


def measure(
    net: nn.Module, calibration: np.ndarray, x: np.ndarray, labels: np.ndarray, timesteps: int, repeat: int
) -> Any:
    """One number of time steps: accuracies and speeds, and the rows of the comparison with the depth-first run."""
    model = snncc.compile(net, "speck2b", calibration=calibration, timesteps=timesteps, bias="keep")
    config = from_json(str(model.target.files(model.graph, model.options)["config.json"]))
    step = model.simulate(x, record="spikes")
    (encoded,) = (node.name for node in model.graph.nodes if node.op.mnemonic == "encode")
    simulate(config, (step.spikes[encoded][:, :1],))  # compiles
    unit = model.graph[model.graph.outputs[0]].type.unit  # what a spike of each class is worth
    found: dict[str, Any] = {"timesteps": timesteps, "step-wise": correct(step.output, labels)}
    for order in ORDERS:
        seconds = []
        for _ in range(repeat):
            begin = time.perf_counter()
            run = simulate(config, (step.spikes[encoded],), order)
            seconds.append(time.perf_counter() - begin)
        scores = per_channel(unit, model.graph.store, 1) * run.outputs[0].reshape(len(x), -1)
        found[order] = {"accuracy": correct(scores, labels), **speed(run, statistics.median(seconds))}
        if order == ORDERS[0]:
            spikes = {row["layer"]: step.spikes[row["neuron"]].sum(0, dtype=np.int64) for row in model.report}
            found["layers"] = differences(spikes, run.counts)
            found |= {"order": order, "samples": len(x), "same_class": float(same_class(step.output, scores).mean())}
    return found


def speed(run: EventRun, seconds: float) -> dict[str, float]:
    """What all cores did in a second, and for one sample."""
    events, synops = (sum(int(each.sum()) for each in counts.values()) for counts in (run.events, run.synops))
    samples = len(run.outputs[0])
    return {
        "seconds": seconds,
        "events_per_second": events / seconds,
        "synops_per_second": synops / seconds,
        "events_per_sample": events / samples,
        "synops_per_sample": synops / samples,
    }


def main() -> None:
    """Compile, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    if not DATA.exists():
        raise SystemExit(f"the data are not here: {DATA}")
    net, (train, x, labels) = lenet(), data()
    x, labels = x[: options.images], labels[: options.images]
    with torch.inference_mode():
        network = correct(net(torch.from_numpy(x)).numpy(), labels)
    found = [measure(net, train[:256], x, labels, timesteps, options.repeat) for timesteps in options.timesteps]

    out = console()
    table = Table(title=f"{len(x):,} images; PyTorch {network:.1f} %", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("T", "simulation", "accuracy", "events/s", "synops/s", "events", "synops"):
        table.add_column(name, justify="left" if name == "simulation" else "right")
    for each in found:
        table.add_row(str(each["timesteps"]), "step-wise", f"{each['step-wise']:.1f} %")
        for order in ORDERS:
            one = each[order]
            rates = (f"{one['events_per_second'] / 1e6:.1f} M", f"{one['synops_per_second'] / 1e9:.2f} G")
            sizes = (f"{one['events_per_sample']:,.0f}", f"{one['synops_per_sample'] / 1e6:.1f} M")
            table.add_row("", order, f"{one['accuracy']:.1f} %", *rates, *sizes)
    out.print(table)
    out.print("[dim]events and synops: of all layers, for an image[/dim]\n")
    for each in found:
        out.print(f"T = {each['timesteps']}", apart_table(each))
    if options.json:
        options.json.write_text(json.dumps({"images": len(x), "network": network, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
