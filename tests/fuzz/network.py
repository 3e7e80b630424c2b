"""A generated case: a PyTorch network as a list of steps, the data that it is calibrated on, a target and its options.

It is built by running the program that it prints, so what a failure reports is what was tried. Sizes that follow from
the steps before are written as such ({s[1]}: axis 1 of the first operand), so a case stays whole when steps are taken
out of it.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lynxinets import IFNode, LIFNode
from torch import Tensor, nn

NAMES: dict[str, Any] = {"np": np, "torch": torch, "nn": nn, "F": F, "IFNode": IFNode, "LIFNode": LIFNode}
HEADER = "import numpy as np\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n\nimport snncc\n"
SPIKING = "from lynxinets import IFNode, LIFNode\n"
# Statistics as of a trained network.
SETTLED = """\
for module in model.modules():
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_var is not None:
        module.running_mean.normal_(0, 0.2)
        module.running_var.uniform_(0.1, 0.5)
"""


@dataclass(frozen=True)
class Step:
    """One line of ``forward``.

    Attributes:
        text: an expression of operands {0}, {1}, of what it owns, {m}, and of sizes of the first operand, {s[1]}.
        args: which earlier values the operands are: the inputs, then the results of the steps.
        own: the module, parameter (an expression that starts with ``nn.``) or buffer that it owns; "" for none.
        name: under which it is kept; steps of one name share it.
    """

    text: str
    args: tuple[int, ...]
    own: str = ""
    name: str = ""


@dataclass(frozen=True)
class Case:
    """See the module.

    Attributes:
        inputs: the shape of each input, without the batch.
        steps: of ``forward``.
        outputs: which values it returns.
        edits: statements on ``model`` before it is compiled.
        precision: "float", "double" or "half".
        data: an expression for an input of ``shape`` with the numpy generator ``rng``.
        samples: of the calibration data.
        target: to compile for.
        options: of the compile.
        seed: of weights and data.
    """

    inputs: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    edits: tuple[str, ...] = ()
    precision: str = "float"
    data: str = "rng.random(shape)"
    samples: int = 8
    target: str = "reference"
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0

    def batch(self, n: int, seed: int) -> list[np.ndarray]:
        """Inputs (n, *shape), not those that it is calibrated on unless the seed is that of the case."""
        rng = np.random.default_rng(seed)
        return [self._drawn(rng, (n, *shape)) for shape in self.inputs]

    def _drawn(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return eval(self.data, {"np": np, "rng": rng, "shape": shape}).astype(np.float32)  # noqa: S307 (our own text)

    @property
    def spiking(self) -> bool:
        """Whether it has spiking neurons of its own."""
        return any("IFNode(" in step.own for step in self.steps)

    @cached_property
    def source(self) -> str:
        """The program, up to the model.

        Raises:
            Exception: torch's own; the steps do not fit together.
        """
        draft = Draft(self.inputs, self.seed)
        for step in self.steps:
            draft.add(step)
        values = [f"x{i}" for i in range(len(self.inputs))]
        made, lines = [f"torch.manual_seed({self.seed})"], list[str]()
        for name, own in draft.owned.items():
            made.append(f"self.{name} = {own}" if own.startswith(OBJECTS) else f"self.register_buffer({name!r}, {own})")
        for i, step in enumerate(self.steps):
            values.append(f"v{i}")
            lines.append(f"v{i} = {draft.written(step, [values[arg] for arg in step.args])}")
        lines.append(f"return {', '.join(values[i] for i in self.outputs)}")
        indent = "\n        "
        text = (
            f"class Network(nn.Module):\n    def __init__(self):\n        super().__init__(){indent}{indent.join(made)}"
        )
        text += f"\n\n    def forward(self, {', '.join(values[: len(self.inputs)])}):{indent}{indent.join(lines)}\n\n\n"
        text += "model = Network().eval()\n"
        edits = SETTLED if any("BatchNorm" in own for own in draft.owned.values()) else ""
        edits += "".join(f"{edit}\n" for edit in self.edits)
        if edits:
            text += "with torch.no_grad():\n" + "".join(f"    {line}\n" for line in edits.splitlines())
        return text + ("" if self.precision == "float" else f"model.{self.precision}()\n")

    def program(self) -> str:
        """The whole program, to be run with tests/ on the path where the network has spiking neurons."""
        return (
            f"{HEADER}{SPIKING if self.spiking else ''}\n\n{self.source}\n"
            f"rng = np.random.default_rng({self.seed})\n"
            f"x = tuple(({self.data}).astype(np.float32) for shape in {self._batches()})\n"
            f"options = {dict(self.options)}\n"
            f"compiled = snncc.compile(model, {self.target!r}, calibration=[x], **options)\n"
        )

    def _batches(self) -> str:
        return repr(tuple((self.samples, *shape) for shape in self.inputs))

    def model(self) -> nn.Module:
        """The network, in eval mode.

        Raises:
            Exception: torch's own.
        """
        name = "<network>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[name] = (len(self.source), None, lines, name)  # so that diagnostics show the lines
        space = {**NAMES, "__name__": "generated"}
        exec(compile(self.source, name, "exec"), space)  # noqa: S102 (our own text)
        return space["model"]


BATCH = 13
OBJECTS = ("nn.", "IFNode(", "LIFNode(")


class Draft:
    """Runs steps one by one, with a batch whose size nothing else has: what takes it for another axis fails."""

    def __init__(self, inputs: Sequence[tuple[int, ...]], seed: int) -> None:
        self.values: list[Tensor] = [torch.rand(BATCH, *shape) for shape in inputs]
        self.owned: dict[str, str] = {}  # what is kept, by name, with sizes as numbers
        self.modules: dict[str, Any] = {}
        self.sizes: dict[Step, tuple[int, ...]] = {}

    @torch.no_grad()
    def add(self, step: Step) -> Tensor:
        """The new value.

        Raises:
            Exception: the step does not fit; nothing was added.
        """
        operands = [self.values[arg] for arg in step.args]
        self.sizes[step] = tuple(operands[0].shape)
        fresh = step.name and step.name not in self.modules
        if fresh:
            text = step.own.format(s=self.sizes[step])
            self.modules[step.name] = eval(text, dict(NAMES))  # noqa: S307 (our own text)
            if isinstance(self.modules[step.name], nn.Module):
                self.modules[step.name].eval()
            self.owned[step.name] = text
        try:
            space = {**NAMES, "self": _Namespace(self.modules), **{f"a{i}": x for i, x in enumerate(operands)}}
            value = eval(self.written(step, [f"a{i}" for i in range(len(operands))]), space)  # noqa: S307 (our own text)
            if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != BATCH:
                raise ValueError("not a value of a sample each")
        except Exception:
            if fresh:
                del self.modules[step.name], self.owned[step.name]
            raise
        self.values.append(value)
        return value

    def written(self, step: Step, operands: Sequence[str]) -> str:
        return step.text.format(*operands, m=f"self.{step.name}", s=self.sizes[step])


class _Namespace:
    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ = values
