"""What becomes of a network on a Speck? snncc and sinabs on networks that a converter may get wrong.

    python benchmarks/dynapcnn_coverage.py [NAME ...] [--per layer] [--json out.json]

A side either refuses a network, or writes a configuration. Of a valid one, its own simulation (sinabs:
`DynapcnnNetwork`, ours: `simulate`) runs over many time steps, and its rates are compared with the PyTorch network's
outputs: an error of more than 25 %, the norm of the difference over the norm of the outputs, is `wrong`, and so is a
number of outputs that is not the network's. Nobody has said so then.

Ours is compiled for `speck2`, whose validator samna 0.7.1.0 has; what that chip cannot do is compiled for `speck2f`
and judged as sinabs' configurations are (sinabs_peer.py says how).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from dynapcnn_networks import CASES, SAMPLES, TIMESTEPS, build, inputs, relative_error
from peers import interpreter
from rich import box
from rich.markup import escape
from rich.table import Table

import snncc
from snncc.console import console
from snncc.ir import SnnccError
from snncc.ir.diagnostics import errors

WRONG = 0.25


@dataclass(frozen=True)
class Answer:
    """What one side makes of one network: `valid`, `wrong` or `refused`."""

    verdict: str
    said: str
    error: float | None = None

    @property
    def text(self) -> str:
        """For a cell of the table."""
        colour = {"valid": "green", "wrong": "red", "refused": "yellow"}[self.verdict]
        return f"[{colour}]{self.verdict}[/] {escape(self.said)}"


def sinabs(name: str) -> Answer:
    """One network in a process of its own, as samna can kill it."""
    answer = peer("coverage", name)
    if "valid" not in answer:
        return Answer("refused", answer["said"])
    if not answer["valid"]:
        samna = f" (samna: {answer['samna']})" if answer["samna"] else ""
        return Answer("refused", answer["said"] + samna)
    facts = [f"weights all zero: layer {i}" for i in answer["zero_layers"]]
    if answer["exits"] != 1:
        facts.append(f"{answer['exits']} outputs, {answer['edges']} edges left")
        return Answer("wrong", "; ".join(facts))
    error = answer["error"]
    facts.append(f"error {100 * error:.1f} %")
    return Answer("wrong" if error > WRONG else "valid", "; ".join(facts), error)


def ours(name: str, per: str) -> Answer:
    """The same network by `snncc.compile`, for the first chip that takes it."""
    net, shape = build(name)
    refusals = []
    for target in ("speck2", "speck2f"):
        try:
            compiled = snncc.compile(
                net, target, calibration=inputs(shape, 256, seed=2), bias="keep", timesteps=TIMESTEPS, per=per
            )
        except SnnccError as error:
            found = errors(error.diagnostics)
            refusals.append(f"{', '.join(dict.fromkeys(d.code for d in found))}: {found[0].message}")
            continue
        if target == "speck2":
            validation = compiled.validate()
            valid, message = validation.valid, validation.message
        else:
            with TemporaryDirectory() as folder:
                answer = peer("validate", str(compiled.save(Path(folder) / "model")))
            valid, message = answer.get("valid", False), answer["said"]
        if not valid:
            return Answer("refused", f"{target}, samna: {message}")
        x = inputs(shape, SAMPLES)
        rates = torch.from_numpy(compiled.simulate(x, timesteps=TIMESTEPS).output).float()
        error = relative_error(rates, net, x)
        return Answer("wrong" if error > WRONG else "valid", f"{target}, error {100 * error:.1f} %", error)
    return Answer("refused", " / ".join(dict.fromkeys(refusals)))  # mostly for the same reason


def peer(what: str, which: str) -> dict[str, Any]:
    """The line of JSON out of sinabs_peer.py; a process that ends without one has `said` what it ended with."""
    line = [interpreter("sinabs"), Path(__file__).with_name("sinabs_peer.py"), what, which]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"said": f"the process ended with status {done.returncode}: {last}"}
    return json.loads(done.stdout)


def main() -> int:
    """Ask both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--per", choices=["channel", "layer"], default="channel", help="our thresholds")
    parser.add_argument("--json", type=Path, help="write the answers here, too")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CASES):
        parser.error(f"unknown: {', '.join(unknown)}")
    found = {name: {"sinabs": sinabs(name), "ours": ours(name, options.per)} for name in options.names or CASES}
    table = Table(box=box.SIMPLE_HEAD, title="what becomes of a network on a Speck", title_justify="left")
    for column in ("network", "sinabs 3.1.3", "ours"):
        table.add_column(column, overflow="fold")
    for name, answers in found.items():
        table.add_row(escape(f"{name}: {CASES[name].about}"), *(answer.text for answer in answers.values()))
    console().print(table)
    for side in ("sinabs", "ours"):
        verdicts = [answers[side].verdict for answers in found.values()]
        print(f"{side}: " + ", ".join(f"{verdicts.count(v)} {v}" for v in ("valid", "refused", "wrong")))
    if options.json:
        data = {name: {side: asdict(answer) for side, answer in answers.items()} for name, answers in found.items()}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return int(any(answers["ours"].verdict == "wrong" for answers in found.values()))


if __name__ == "__main__":
    sys.exit(main())
