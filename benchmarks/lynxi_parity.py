"""spikingjelly's conversion for Lynxi's chips and ours, on networks made of spikingjelly's own modules.

    python benchmarks/lynxi_parity.py [NAME ...] [--json out.json]

The truth is the network itself, run by spikingjelly step by step. Beside it: its
`lynxi_exchange.to_lynxi_supported_modules`; `compiled.modules("snn")` in both forms, our conversion with the network's
own weights; and the compiled integers, which are what is written for the chip, inputs and weights rounded. What the
last neurons give is compared one by one: the part of it that differs, and how far the means over time are apart.
Nothing is timed.

spikingjelly 2.0.0 converts seven kinds of layers and says of any other, in its log, that it is passed on as it is. That
log is off unless it is enabled (its `logger.py`); here it is, and `says` shows it. Its modules are made in multi-step
mode, as its conversion wants them, and put into evaluation mode afterwards, which it leaves to the user.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
T, SAMPLES, SHAPE = 8, 16, (2, 12, 12)
REAL = 1e-5  # outputs that are no spikes may differ by this, times the largest: sums in another order
FORMS = ("unrolled", "outer-loop")


# --- in spikingjelly's environment ----------------------------------------------------------------------------------


def networks() -> dict[str, Callable[[], list[Any]]]:
    """Lists of spikingjelly's modules, as its conversion takes them."""
    from spikingjelly.activation_based import layer, neuron
    from torch import nn

    def cnn(node: Callable[[], Any], *tail: Any, pool: Any = None, norm: Any = None) -> list[Any]:
        return [
            layer.Conv2d(2, 8, 3, padding=1, bias=False), norm or layer.BatchNorm2d(8), node(),
            pool or layer.MaxPool2d(2), layer.Conv2d(8, 8, 3, padding=1), node(), *tail,
        ]  # fmt: skip

    def flat(*tail: Any) -> list[Any]:
        return [layer.Flatten(), layer.Linear(8 * 36, 10), *tail]

    def fire(**options: Any) -> Callable[[], Any]:
        return lambda: neuron.IFNode(**options)

    def lif(**options: Any) -> Callable[[], Any]:
        return lambda: neuron.LIFNode(**options)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.node = layer.Conv2d(8, 8, 3, padding=1), layer.BatchNorm2d(8), neuron.IFNode()

        def forward(self, x: Any) -> Any:
            return x + self.node(self.norm(self.conv(x)))

    def normal(module: Any) -> Any:  # no parameters: the statistics are all that it has
        return type(module)(8, affine=False)

    return {
        "IF, max pooling": lambda: cnn(fire()),
        "IF, average pooling": lambda: cnn(fire(), pool=layer.AvgPool2d(2)),
        "IF, adaptive pooling": lambda: cnn(fire(), pool=layer.AdaptiveAvgPool2d((4, 4))),
        "IF, soft reset": lambda: cnn(fire(v_reset=None)),
        "IF, v_reset 0.25": lambda: cnn(fire(v_reset=0.25)),
        "IF, threshold 2, v_reset 0.5": lambda: cnn(fire(v_threshold=2.0, v_reset=0.5)),
        "LIF, tau 2": lambda: cnn(lif()),
        "LIF, tau 2, input not decayed": lambda: cnn(lif(decay_input=False)),
        "LIF, tau 3, average pooling": lambda: cnn(lif(tau=3.0), pool=layer.AvgPool2d(2)),
        "LIF, soft reset": lambda: cnn(lif(v_reset=None)),
        "LIF, tau 3, input not decayed, soft": lambda: cnn(lif(tau=3.0, decay_input=False, v_reset=None)),
        "LIF, v_reset 0.25": lambda: cnn(lif(v_reset=0.25)),
        "LIF, v_reset -0.5, tau 4, not decayed": lambda: cnn(lif(v_reset=-0.5, tau=4.0, decay_input=False)),
        "LIF, threshold 0.5, v_reset 0.2": lambda: cnn(lif(v_threshold=0.5, v_reset=0.2)),
        "IF, linear, IF": lambda: cnn(fire(), *flat(neuron.IFNode())),
        "LIF, linear, LIF": lambda: cnn(lif(), *flat(neuron.LIFNode())),
        "IF, linear scores": lambda: cnn(fire(), *flat()),
        "IF, linear, batch norm, IF": lambda: cnn(fire(), *flat(layer.BatchNorm1d(10), neuron.IFNode())),
        "IF, dropout": lambda: cnn(fire(), layer.Dropout(), *flat(neuron.IFNode())),
        "IF, batch norm without parameters": lambda: cnn(fire(), norm=normal(layer.BatchNorm2d(8))),
        "IF, standardized weights": lambda: cnn(fire(), layer.WSConv2d(8, 8, 3), neuron.IFNode()),
        "IF, residual": lambda: cnn(fire(), Residual(), layer.Conv2d(8, 8, 1), neuron.IFNode()),
        "parametric LIF": lambda: cnn(neuron.ParametricLIFNode),
        "QIF (not known to either)": lambda: cnn(neuron.QIFNode),
        "integer LIF (a kind of LIF)": lambda: cnn(neuron.ILIFNode),
        "IF, group norm": lambda: cnn(fire(), layer.GroupNorm(2, 8), neuron.IFNode()),
        "IF, GELU": lambda: cnn(fire(), nn.GELU(), layer.Conv2d(8, 8, 1), neuron.IFNode()),
    }


def peer(chosen: list[str]) -> None:
    """Run networks in every way; one JSON line for each."""
    import numpy as np
    import torch
    from spikingjelly.activation_based import base, functional
    from torch import nn

    x = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (SAMPLES, *SHAPE)).astype(np.float32))

    def steps(net: nn.Module) -> torch.Tensor:
        functional.set_step_mode(net, "s")
        functional.reset_net(net)
        with torch.no_grad():
            found = torch.stack([net(x) for _ in range(T)])
        functional.reset_net(net)
        return found

    made = networks()
    if unknown := set(chosen) - set(made):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(made)}")
    for name in chosen or made:
        torch.manual_seed(0)
        net = nn.Sequential(*made[name]()).eval()
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
            elif isinstance(module, nn.Conv2d | nn.Linear):  # so that all fire
                module.weight.data *= 4 if isinstance(module, nn.Conv2d) else 8
        try:
            truth = steps(net)
        except Exception as error:  # the benchmark's own fault: say of what
            raise RuntimeError(f"the network {name!r} does not run") from error
        spiking = isinstance(net[-1], base.MemoryModule)
        row: dict[str, Any] = {"network": name, "spiking": spiking, "rate": float(truth.mean())}
        row["theirs"] = theirs(net, x, truth)
        functional.set_step_mode(net, "s")
        functional.reset_net(net)
        row |= ours(net, x, truth, spiking)
        print("ROW " + json.dumps(row), flush=True)


def theirs(net: Any, x: Any, truth: Any) -> dict[str, Any]:
    """What spikingjelly converts a network to, and what its log says."""
    import torch
    from spikingjelly.activation_based import functional, lynxi_exchange
    from spikingjelly.logger import logger

    said: list[str] = []
    logger.remove()
    logger.enable("spikingjelly")
    logger.add(lambda message: said.append(message.record["message"]), level="DEBUG")
    functional.set_step_mode(net, "m")
    doing = "converted"
    try:
        made = lynxi_exchange.to_lynxi_supported_modules(net, T)
        doing = "run"
        with torch.no_grad():
            found = torch.nn.Sequential(*made).eval()(x.repeat(T, 1, 1, 1))
        answer = apart(found, truth)
    except Exception as error:  # noqa: BLE001 (it is what they say)
        answer = {"error": f"{type(error).__name__}: {error}", "when": doing}
    left = [line.split("'")[1] for line in said if "not processed" in line]
    return answer | {"left": [name.rpartition(".")[2] for name in left], "log": said}


def ours(net: Any, x: Any, truth: Any, spiking: bool) -> dict[str, Any]:
    """Our conversion in both forms, and the integers."""
    import torch

    import snncc
    from snncc.ir import SnnccError
    from snncc.ir.diagnostics import errors
    from snncc.targets.lynxi import model

    row: dict[str, Any] = {}
    try:
        for form in FORMS:
            compiled = snncc.compile(net, "lynxi", calibration=x, timesteps=T, form=form, bias="keep")
            module = compiled.modules("snn")
            model.reset()
            with torch.no_grad():
                found = module(x) if form == "unrolled" else torch.stack([module(x) for _ in range(T)])
            model.reset()
            row[form] = apart(found, truth)
        last = compiled.graph.outputs[0]
        done = compiled.simulate(x, record=last)
        row["integers"] = apart(done.spikes[last], truth) if spiking else mean_apart(done.output, truth)
    except SnnccError as error:
        first = errors(error.diagnostics)[0]
        row["refused"] = {"code": first.code, "message": first.message}
    except Exception as error:  # noqa: BLE001 (the other networks are worth seeing)
        row["error"] = f"{type(error).__name__}: {error}"
    return {"ours": row}


def apart(found: Any, truth: Any) -> dict[str, Any]:
    """The part of all values that differs, and the largest difference of the means over time."""
    import numpy as np
    import torch

    found = torch.as_tensor(np.asarray(found))
    if found.numel() != truth.numel():
        return {"error": f"{found.numel():,} values for {truth.numel():,}, of shape {tuple(found.shape)}"}
    found = found.reshape(truth.shape).double()
    near = REAL * float(truth.abs().max())
    return {"differ": float(((found - truth).abs() > near).double().mean()), **mean_apart(found.mean(0), truth)}


def mean_apart(mean: Any, truth: Any) -> dict[str, float]:
    """The largest difference from the mean of the truth, and the largest of its values."""
    import numpy as np

    wanted = truth.double().mean(0).numpy()
    off = np.abs(np.asarray(mean).reshape(wanted.shape) - wanted)
    return {"mean": float(off.max()), "of": float(np.abs(wanted).max())}


# --- here -----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Install snncc where spikingjelly is, run there, and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks, as the table names them; by default all")
    parser.add_argument("--json", type=Path, help="write the rows")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options.names)
        return 0
    from peers import interpreter

    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        install += ["--no-deps", "--no-build-isolation", "--target", folder, str(ROOT)]
        subprocess.run(install, check=True)
        environment = {**os.environ, "PYTHONPATH": folder}
        line = [str(interpreter("spikingjelly")), __file__, "--peer", *options.names]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    rows = [json.loads(row.removeprefix("ROW ")) for row in done.stdout.splitlines() if row.startswith("ROW ")]
    if done.returncode or not rows:
        raise SystemExit(done.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)
    return int(any(our_verdict(row) == "wrong" for row in rows))


def equal(answer: dict[str, Any]) -> bool:
    """Whether nothing differs."""
    return answer.get("differ") == 0


def their_verdict(row: dict[str, Any]) -> str:
    """What becomes of a network there."""
    answer = row["theirs"]
    if "error" in answer:
        return f"an error when {answer.get('when', 'compared')}"
    if equal(answer):
        return "equal, though layers were passed on" if answer["left"] else "equal"
    return "wrong after a log line" if answer["left"] else "wrong without a word"


def our_verdict(row: dict[str, Any]) -> str:
    """What becomes of it here."""
    if "refused" in row["ours"]:
        return "refused by name"
    return "equal in both forms" if all(equal(row["ours"].get(form, {})) for form in FORMS) else "wrong"


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and how many are right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from snncc.console import console

    def cell(answer: dict[str, Any], rounded: bool = False) -> Text:
        if "error" in answer:
            error = " ".join(answer["error"].split())
            return Text(error if len(error) < 64 else error[:61] + "...", style="yellow")
        if equal(answer):
            return Text("equal", style="green")
        mean = f"mean {answer['mean']:.2g}" + ("" if "differ" in answer else f" of {answer['of']:.3g}")
        part = f"{answer['differ']:.2%}, " if "differ" in answer else ""
        return Text(part + mean, style="" if rounded else "red")

    title = f"spikes of the last neurons that differ from spikingjelly's, and their mean over T = {T}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("network", "rate", "theirs", "says", "ours (both forms)", "in integers"):
        table.add_column(name, justify="right" if name == "rate" else "left", overflow="fold")
    for row in rows:
        mine = row["ours"]
        left = ", ".join(dict.fromkeys(row["theirs"]["left"]))
        says = Text(f"passes on {left}" if left else "", style="yellow")
        if refused := mine.get("refused"):
            message = refused["message"].rpartition(": ")[2]
            cells = [Text(f"{refused['code']}: {message}", style="yellow"), Text("")]
        elif "error" in mine:
            cells = [cell(mine), Text("")]
        else:
            worst = max((mine[form] for form in FORMS), key=lambda answer: answer.get("differ", 1))
            cells = [cell(worst), cell(mine["integers"], rounded=True)]
        rate = f"{row['rate']:.3f}" if row["spiking"] else ""
        table.add_row(row["network"], rate, cell(row["theirs"]), says, *cells)
    out = console()
    out.print(table)
    for who, verdict in (("theirs", their_verdict), ("ours", our_verdict)):
        found = Counter(map(verdict, rows))
        out.print(f"{who}, of {len(rows)}: " + "; ".join(f"{n} {what}" for what, n in sorted(found.items())))


if __name__ == "__main__":
    sys.exit(main())
