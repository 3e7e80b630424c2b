"""spikingjelly's conversion for Lynxi's chips and ours, on networks made of spikingjelly's own modules.

    python benchmarks/lynxi_parity.py [--json out.json]

The truth is the network itself, run by spikingjelly step by step. Beside it: its
`lynxi_exchange.to_lynxi_supported_modules`; `compiled.modules("snn")`, our conversion with the network's own weights;
and the compiled integers, which are what is written for the chip, inputs and weights rounded. The spikes of the last
neurons are compared one by one. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
T, SAMPLES, SHAPE = 8, 16, (2, 12, 12)


# --- in spikingjelly's environment ----------------------------------------------------------------------------------


def networks() -> dict[str, Callable[[], list[Any]]]:
    """Lists of spikingjelly's modules, as its conversion takes them; all end in neurons."""
    from spikingjelly.activation_based import layer, neuron

    def cnn(node: Callable[[], Any], pool: Any, *tail: Any) -> list[Any]:
        return [
            layer.Conv2d(2, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), node(), pool,
            layer.Conv2d(8, 8, 3, padding=1), node(), *tail,
        ]  # fmt: skip

    def flat(node: Callable[[], Any], features: int = 8 * 36) -> list[Any]:
        return [layer.Flatten(), layer.Linear(features, 10), node()]

    def half() -> Any:
        return layer.MaxPool2d(2)

    def lif(**options: Any) -> Callable[[], Any]:
        return lambda: neuron.LIFNode(**options)

    def fire(**options: Any) -> Callable[[], Any]:
        return lambda: neuron.IFNode(**options)

    return {
        "IF, max pooling": lambda: cnn(fire(), half()),
        "IF, average pooling": lambda: cnn(fire(), layer.AvgPool2d(2)),
        "IF, adaptive pooling": lambda: cnn(fire(), layer.AdaptiveAvgPool2d((4, 4))),
        "IF, soft reset": lambda: cnn(fire(v_reset=None), half()),
        "IF, v_reset 0.25": lambda: cnn(fire(v_reset=0.25), half()),
        "LIF, tau 2": lambda: cnn(lif(), half()),
        "LIF, tau 3, input not decayed": lambda: cnn(lif(tau=3.0, decay_input=False), half()),
        "LIF, soft reset": lambda: cnn(lif(v_reset=None), half()),
        "LIF, v_reset 0.25": lambda: cnn(lif(v_reset=0.25), half()),
        "LIF, v_reset -0.5, tau 4": lambda: cnn(lif(v_reset=-0.5, tau=4.0), half()),
        "IF, linear": lambda: cnn(fire(), half(), *flat(fire())),
        "LIF, linear": lambda: cnn(lif(), half(), *flat(lif())),
        "parametric LIF": lambda: cnn(neuron.ParametricLIFNode, half()),
        "group norm": lambda: cnn(fire(), half(), layer.GroupNorm(2, 8), neuron.IFNode()),
        "an unknown neuron (QIF)": lambda: cnn(neuron.QIFNode, half()),
    }


def peer() -> None:
    """Run every network in every way; one JSON line for each."""
    import numpy as np
    import torch
    from spikingjelly.activation_based import functional, lynxi_exchange
    from torch import nn

    import snncc

    x = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (SAMPLES, *SHAPE)).astype(np.float32))

    def steps(net: nn.Module) -> torch.Tensor:
        functional.set_step_mode(net, "s")
        functional.reset_net(net)
        with torch.no_grad():
            found = torch.stack([net(x) for _ in range(T)])
        functional.reset_net(net)
        return found

    def apart(found: Any, wanted: torch.Tensor) -> float:
        found = torch.as_tensor(np.asarray(found)).reshape(wanted.shape)
        return float((found != wanted).double().mean())

    for name, make in networks().items():
        torch.manual_seed(0)
        net = nn.Sequential(*make()).eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
            elif isinstance(module, nn.Conv2d | nn.Linear):  # so that all fire
                module.weight.data *= 4
        truth = steps(net)
        row: dict[str, Any] = {"network": name, "rate": float(truth.mean())}
        functional.set_step_mode(net, "m")
        try:
            theirs = lynxi_exchange.to_lynxi_supported_modules(net, T)
            left = {type(m).__name__ for m in theirs if type(m).__module__.startswith("spikingjelly")}
            left -= {"IFNode", "LIFNode"} & {
                type(m).__name__ for m in theirs if type(m).__module__.endswith("lynxi_exchange")
            }
            row["left"] = sorted(left)
            with torch.no_grad():
                row["theirs"] = apart(nn.Sequential(*theirs).eval()(x.repeat(T, 1, 1, 1)), truth)
        except Exception as error:  # noqa: BLE001 (it is what they say)
            row["theirs"] = f"{type(error).__name__}: {error}"
        functional.set_step_mode(net, "s")
        functional.reset_net(net)
        try:
            compiled = snncc.compile(net, "lynxi", calibration=x, timesteps=T, form="unrolled", bias="keep")
            with torch.no_grad():
                row["ours"] = apart(compiled.modules("snn")(x), truth)
            done = compiled.simulate(x, record=compiled.graph.outputs)
            row["integers"] = apart(done.spikes[compiled.graph.outputs[0]], truth)
        except snncc.CompileError as error:
            row["ours"] = row["integers"] = "refused: " + error.diagnostics[-1].message.rpartition(": ")[2]
        print("ROW " + json.dumps(row), flush=True)


# --- here -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Install snncc where spikingjelly is, run there, and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer()
        return
    from peers import interpreter

    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        install += ["--no-deps", "--no-build-isolation", "--target", folder, str(ROOT)]
        subprocess.run(install, check=True)
        environment = {**os.environ, "PYTHONPATH": folder}
        line = [str(interpreter("spikingjelly")), __file__, "--peer"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    rows = [json.loads(row.removeprefix("ROW ")) for row in done.stdout.splitlines() if row.startswith("ROW ")]
    if done.returncode or not rows:
        raise SystemExit(done.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and how many are right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from snncc.console import console

    def cell(value: Any) -> Text:
        if isinstance(value, str):
            return Text(value if len(value) < 60 else value[:57] + "...", style="yellow")
        return (
            Text("equal", style="green")
            if value == 0
            else Text(f"{value:.2%} differ", style="red" if value > 1e-3 else "")
        )

    table = Table(
        title=f"spikes of the last neurons against spikingjelly, T = {T}", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for name in ("network", "rate", "theirs", "passed on as they are", "ours", "ours in integers"):
        table.add_column(name, justify="right" if name == "rate" else "left", overflow="fold")
    for row in rows:
        left = ", ".join(row.get("left", []))
        cells = [cell(row[key]) for key in ("theirs", "ours", "integers")]
        table.add_row(row["network"], f"{row['rate']:.3f}", cells[0], Text(left, style="yellow"), *cells[1:])
    out = console()
    out.print(table)
    for who in ("theirs", "ours"):
        equal = sum(row[who] == 0 for row in rows)
        failed = sum(isinstance(row[who], str) for row in rows)
        words = "refused by name" if who == "ours" else "raise an error of torch's"
        out.print(f"{who}: {equal} of {len(rows)} equal, {failed} {words}, {len(rows) - equal - failed} differ")


if __name__ == "__main__":
    main()
