"""How long does a conversion take, and how much memory? snncc and spikingjelly side by side, on the same network.

    python benchmarks/compile_time.py                                    # ResNet-152 at 224 x 224
    python benchmarks/compile_time.py --network resnet18 --repeat 5 --json out.json
    python benchmarks/compile_time.py --sides spikingjelly forward

Each measurement is a fresh process: it builds the network (same definition, same seed) and the calibration batch,
imports the library, then starts the clock. Time and memory are those of the conversion alone, the first and only one
in its process. Memory is the peak of the resident set above what it was when the clock started: the network is not in
it. Every conversion runs the network on the batch; `forward` is a plain forward, for what that alone costs.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is for the worker, rich for the table: the peers' environments have no rich
    from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
MB = 1e6


@dataclass(frozen=True)
class Measurement:
    """One conversion in one process."""

    version: str
    seconds: float
    peak_mb: float  # above the network, the batch and the imports
    weights_mb: float


# ------------------------------------------------------------------------------------------ worker: one measurement


def snncc_side(model: nn.Module, x: Tensor, timesteps: int) -> tuple[str, Callable[[], object]]:
    """All passes up to integer weights and thresholds."""
    from importlib.metadata import PackageNotFoundError, version

    import snncc
    import snncc.api
    import snncc.engine
    import snncc.frontend  # snncc imports these late; spikingjelly at once

    try:
        found = version("snncc")
    except PackageNotFoundError:  # run from a checkout that is not installed
        found = "checkout"
    return found, lambda: snncc.compile(
        model, target="reference", example_input=x, calibration=[x], timesteps=timesteps
    )


def spikingjelly_side(model: nn.Module, x: Tensor, timesteps: int) -> tuple[str, Callable[[], object]]:
    """The converter with its defaults: one threshold for a layer, its maximum. It does not ask for T."""
    return _spikingjelly(model, x)


def spikingjelly_channel_side(model: nn.Module, x: Tensor, timesteps: int) -> tuple[str, Callable[[], object]]:
    """The options that convert best for their price: percentiles by channel, half a threshold at the start."""
    return _spikingjelly(model, x, mode="99.9%", channel_wise=True, half_threshold=True)


def _spikingjelly(model: nn.Module, x: Tensor, **options: object) -> tuple[str, Callable[[], object]]:
    from importlib.metadata import version

    from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe

    return version("spikingjelly"), lambda: Converter(RateCodingRecipe(dataloader=[(x, None)], **options)).convert(
        model
    )


def forward_side(model: nn.Module, x: Tensor, timesteps: int) -> tuple[str, Callable[[], object]]:
    """No conversion."""
    import torch

    def run() -> Tensor:
        with torch.no_grad():
            return model(x)

    return f"(torch {torch.__version__})", run


SIDES = {
    "snncc": snncc_side,
    "spikingjelly": spikingjelly_side,
    "spikingjelly-channel": spikingjelly_channel_side,
    "forward": forward_side,
}
PEER_OF = {"spikingjelly": "spikingjelly", "spikingjelly-channel": "spikingjelly"}  # the rest runs in this environment


def measure(side: str, network: str, batch: int, timesteps: int, threads: int) -> Measurement:
    """Run one side in this process, which must be a fresh one."""
    import torch

    from tests import zoo

    torch.set_num_threads(threads)
    if network == "resnet152":
        model, x = zoo.resnet152(), zoo.example_input((3, 224, 224), batch, seed=1)
    else:
        spec = (zoo.ZOO | zoo.SEQUENTIAL_ZOO)[network]
        model, x = zoo.build(network), zoo.example_input(spec.input_shape, batch, seed=1)
    version, convert = SIDES[side](model, x, timesteps)

    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what building the network left free would be used and not be counted
    Path("/proc/self/clear_refs").write_text("5")  # Linux: sets VmHWM, the peak, back to the present VmRSS
    before = _status("VmRSS")
    start = time.perf_counter()
    result = convert()
    seconds = time.perf_counter() - start
    peak = _status("VmHWM")
    del result  # alive until here: what a conversion returns is part of its peak
    return Measurement(version, seconds, (peak - before) / MB, weights / MB)


def _status(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


# ------------------------------------------------------------------------------------------ parent: repeat and compare


def spawn(side: str, args: argparse.Namespace) -> Measurement | str:
    """Measure in a process of its own; a failure comes back as its last line, so that the other sides still count."""
    from peers import interpreter

    python = interpreter(PEER_OF[side]) if side in PEER_OF else sys.executable
    options = {name: getattr(args, name) for name in ("network", "batch", "timesteps", "threads")}
    command = [python, __file__, "--worker", json.dumps({"side": side, **options})]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))  # libraries print too: ours is the last line


def main() -> int:
    """Measure every side `--repeat` times in turn, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet152", help="resnet152 or a name in tests/zoo.py")
    parser.add_argument("--batch", type=int, default=4, help="samples in the one calibration batch")
    parser.add_argument("--timesteps", type=int, default=32, help="T that snncc compiles for")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="ratios are to the first")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("memory is read from /proc: Linux only")
    if args.worker:
        print(json.dumps(asdict(measure(**args.worker))))
        return 0

    runs: dict[str, list[Measurement]] = {side: [] for side in args.sides}
    failed: dict[str, str] = {}
    for _ in range(args.repeat):  # in turn, so that a slow spell of the machine hits all of them
        for side in args.sides:
            if side not in failed:
                outcome = spawn(side, args)
                if isinstance(outcome, str):
                    failed[side] = outcome
                else:
                    runs[side].append(outcome)
    show(runs, failed, args)
    if args.json:
        settings = {name: getattr(args, name) for name in ("network", "batch", "timesteps", "threads", "repeat")}
        machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
        measured = {side: [asdict(m) for m in found] for side, found in runs.items()}
        report = {"settings": settings, "machine": machine, "runs": measured, "failed": failed}
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0


def show(runs: dict[str, list[Measurement]], failed: dict[str, str], args: argparse.Namespace) -> None:
    """The medians as a table, each also as a multiple of the first side that ran."""
    from rich.console import Console
    from rich.table import Table

    measured = {side: found for side, found in runs.items() if found and side not in failed}

    def median(side: str, field: str) -> float:
        return float(statistics.median(getattr(m, field) for m in measured[side]))

    first = next(iter(measured), "")
    weights = f"{median(first, 'weights_mb'):.0f} MB of weights, " if first else ""
    table = Table(
        title=f"{args.network}: {weights}batch of {args.batch}, threads: {args.threads}, median of {args.repeat}",
        caption=f"Ratios are to {first}. MB: the peak on top of the network itself.",
    )
    table.add_column("side", no_wrap=True)
    # The best run too: a busy neighbour on the machine can slow a threaded one tenfold, and nothing makes it faster.
    for column in "seconds", "best", "ratio", "MB", "x weights", "ratio":
        table.add_column(column, justify="right")
    for side, found in measured.items():
        seconds, best, peak = median(side, "seconds"), min(m.seconds for m in found), median(side, "peak_mb")
        table.add_row(
            f"{side} {found[0].version}",
            f"{seconds:.2f}", f"{best:.2f}", f"{seconds / median(first, 'seconds'):.2f}",
            f"{peak:.0f}", f"{peak / median(first, 'weights_mb'):.2f}", f"{peak / median(first, 'peak_mb'):.2f}",
        )  # fmt: skip
    console = Console()
    if measured:
        console.print(table)
    for side, why in failed.items():
        console.print(f"{side} failed: {why}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
