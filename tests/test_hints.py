"""Hints are tested by following them: what is said is gone, and no error has come in its place.

Every code stands in :data:`HINTS`, :data:`ELSEWHERE` or :data:`WITHOUT`: a new one has to be entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from lynxinets import IFNode
from torch import Tensor, nn
from torch.nn import functional as F

import snncc
from snncc.ir import Diagnostic, SnnccError
from snncc.ir.diagnostics import CODES, errors

X = np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)


def chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in layers:
        for module in layer.modules():  # made before the seed was set
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.3)
    return nn.Sequential(*layers).eval()


def small(bias: bool = False, activation: nn.Module | None = None) -> nn.Module:
    first, last = nn.Conv2d(1, 4, 3, bias=bias), nn.Linear(144, 4, bias=bias)
    return chain(first, activation or nn.ReLU(), nn.Flatten(), last)


def pooled(pooling: nn.Module, features: int = 36) -> nn.Module:
    return chain(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), pooling, nn.Flatten(), nn.Linear(features, 4, bias=False))


def two(*between: nn.Module, last: int = 3) -> nn.Module:
    return chain(nn.Conv2d(1, 4, 3, bias=False), *between, nn.Conv2d(4, 2, last, padding=1, bias=False), nn.ReLU())


class Then(nn.Module):
    """One convolution, and whatever a function does with what it gives."""

    def __init__(self, does: Callable[[Tensor], Tensor], first: bool = False, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.does, self.first = nn.Conv2d(1, 4, 3, padding=padding, bias=False), does, first
        nn.init.normal_(self.conv.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(self.does(x))) if self.first else self.does(torch.relu(self.conv(x)))


def then(does: Callable[[Tensor], Tensor], first: bool = False, padding: int = 0) -> nn.Module:
    return Then(does, first, padding).eval()


class Sum(nn.Module):
    """A shortcut around a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return torch.relu(self.b(x) + x)


def hooked(hook: Callable[..., Any] | None) -> nn.Module:
    net = small()
    if hook is not None:
        net.get_submodule("0").register_forward_hook(hook)
    return net


def spoilt(value: float) -> nn.Module:
    net = small()
    with torch.no_grad():
        net.get_parameter("0.weight")[0, 0, 0, 0] = value
    return net


def compile(model: nn.Module | None = None, target: str = "reference", **options: Any) -> snncc.CompiledModel:
    if "example_input" not in options:
        options.setdefault("calibration", X)
    return snncc.compile(small() if model is None else model, target, timesteps=options.pop("timesteps", 16), **options)


def change(compiled: snncc.CompiledModel, model: nn.Module) -> snncc.CompiledModel:
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    return compiled


def said(do: Callable[[], Any]) -> tuple[Diagnostic, ...]:
    """What is said when something is done."""
    try:
        return tuple(getattr(do(), "diagnostics", ()))
    except SnnccError as error:
        return error.diagnostics


def loaded(all_weights: bool) -> snncc.CompiledModel:
    with TemporaryDirectory() as folder:
        return snncc.load(compile().save(Path(folder) / "net", explorer=False, all_weights=all_weights))


def saved(name: str) -> Path:
    with TemporaryDirectory() as folder:
        (Path(folder) / "taken").mkdir()
        (Path(folder) / "taken" / "thesis.tex").touch()
        return compile().save(Path(folder) / name, explorer=False)


Case = tuple[str, str, Callable[[], Any], Callable[[], Any]]
NET = small()

# By code: words of the hint, what gives it, and what the hint makes of that.
HINTS: Iterable[Case] = [
    ("SNN001", "only means over the map, (2, 3)",
     lambda: compile(then(lambda x: x.mean(1))), lambda: compile(then(lambda x: x.mean((2, 3))))),
    ("SNN002", "decide by shapes or attributes",
     lambda: compile(then(lambda x: x if x.sum() > 0 else x * 2)),
     lambda: compile(then(lambda x: x if x.shape[1] > 0 else x * 2))),
    ("SNN003", "was the training stable?", lambda: compile(spoilt(float("nan"))), lambda: compile(spoilt(0.5))),
    ("SNN004", "if it changes values, move what it does into forward",
     lambda: compile(hooked(lambda module, xs, y: None)), lambda: compile(hooked(None))),
    ("SNN005", "use x.unsqueeze(0)",
     lambda: compile(chain(nn.Linear(8, 4, bias=False)), example_input=X[0, 0, 0], calibration=X[0, 0]),
     lambda: compile(chain(nn.Linear(8, 4, bias=False)), example_input=X[0, 0, :1], calibration=X[0, 0])),
    ("SNN006", "on a hook?",
     lambda: compile(hooked(lambda module, xs, y: y * 2)), lambda: compile(hooked(None))),
    ("SNN007", "pass training=self.training",
     lambda: compile(then(lambda x: F.dropout(x, 0.5, training=True))),
     lambda: compile(then(lambda x: F.dropout(x, 0.5, training=False)))),
    ("SNN010", "pass calibration=", lambda: compile(example_input=X), compile),
    ("SNN011", "make it a tuple that starts with the inputs",
     lambda: compile(calibration=[{"x": X}]), lambda: compile(calibration=[(X, np.zeros(16))])),
    ("SNN011", "pass an array (N, *shape)", lambda: compile(calibration=3), compile),
    ("SNN012", "move the normalisation into the network (x * a + b as its first layer)",
     lambda: compile(target="speck2f", calibration=X * 2 - 1),
     lambda: compile(then(lambda x: x * 2 - 1, first=True), "speck2f")),
    ("SNN012", "use encoding='constant'",
     lambda: compile(encoding="rate", calibration=X * 2 - 1),
     lambda: compile(encoding="constant", calibration=X * 2 - 1)),
    ("SNN012", "calibrate with data that covers the input's range",
     lambda: compile(encoding="bernoulli").simulate(X * 2),
     lambda: compile(encoding="bernoulli", calibration=X * 2).simulate(X * 2)),
    ("SNN020", "train with bias=False", lambda: compile(small(True), "speck2f"), lambda: compile(target="speck2f")),
    *(("SNN020", "or choose bias='keep' or 'strip'", lambda: compile(small(True), "speck2f"),
       lambda b=b: compile(small(True), "speck2f", bias=b)) for b in ("keep", "strip")),
    ("SNN030", "train with ReLU, ReLU6", lambda: compile(small(activation=nn.Hardtanh())),
     lambda: compile(small(activation=nn.ReLU6()))),
    *(("SNN031", "train with nn.AvgPool2d", lambda t=t: compile(pooled(nn.MaxPool2d(2)), t),
       lambda t=t: compile(pooled(nn.AvgPool2d(2)), t)) for t in ("speck2f", "lava")),
    *(("SNN031", "choose an output size that divides the input's",
       lambda t=t: compile(pooled(nn.AdaptiveAvgPool2d(4), 64), t),
       lambda t=t: compile(pooled(nn.AdaptiveAvgPool2d(3)), t)) for t in ("reference", "speck2f")),
    ("SNN032", "put a ReLU between them", lambda: compile(two(), "lava"), lambda: compile(two(nn.ReLU()), "lava")),
    ("SNN032", "or choose neuron='sigma-delta'", lambda: compile(two(), "lava"),
     lambda: compile(two(), "lava", neuron="sigma-delta")),
    ("SNN034", "put batch norm directly behind a convolution",
     lambda: compile(chain(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))),
     lambda: compile(chain(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))),
    ("SNN035", "compile for target='lynxi'",
     lambda: compile(small(activation=IFNode())), lambda: compile(small(activation=IFNode()), "lynxi")),
    ("SNN035", "or convert a network of ReLUs", lambda: compile(small(activation=IFNode())), compile),
    ("SNN036", "train without the shift, or without padding in this layer",
     lambda: compile(then(lambda x: x * 2 + 0.5, True, 1), "speck2f"),
     lambda: compile(then(lambda x: x * 2, True, 1), "speck2f")),
    ("SNN036", "or without padding in this layer",
     lambda: compile(then(lambda x: x * 2 + 0.5, True, 1), "speck2f"),
     lambda: compile(then(lambda x: x * 2 + 0.5, True), "speck2f")),
    ("SNN067", "choose form='process', or leave it out",
     lambda: compile(chain(Sum()), "lava", form="netx", reset="zero"),
     lambda: compile(chain(Sum()), "lava", form="process", reset="zero")),
    ("SNN070", "did you mean 'keep'?", lambda: compile(bias="kep"), lambda: compile(bias="keep")),
    ("SNN073", "compile again",
     lambda: change(compile(NET), NET).network(X, "ann"), lambda: compile(NET).network(X, "ann")),
    ("SNN072", "save with all_weights=True", lambda: loaded(False).simulate(X, stage="snn"),
     lambda: loaded(True).simulate(X, stage="snn")),
    ("SNN075", "choose another folder", lambda: saved("taken"), lambda: saved("free")),
    ("SNN078", "did you mean 'lava'?", lambda: compile(target="lave"), lambda: compile(target="lava")),
    ("SNN079", "did you mean 'timesteps'?", lambda: compile(timestep=4), lambda: compile(timesteps=4)),
    ("SNN082", "choose one of 'if'", lambda: compile(neuron="sigma-delta"), lambda: compile(neuron="if")),
    ("SNN082", "leave it out", lambda: compile(form="netx"), compile),
    ("SNN082", "leave it out", lambda: compile(target="lava", weight_bits=16), lambda: compile(target="lava")),
    ("SNN083", "leave encoding out", lambda: compile(target="speck2b", sensor="auto", encoding="rate"),
     lambda: compile(target="speck2b", sensor="auto")),
    ("SNN083", "choose reset='zero', or form='process'",
     lambda: compile(target="lava", form="netx"), lambda: compile(target="lava", form="netx", reset="zero")),
    ("SNN084", "did you mean 'relu_1'?", lambda: compile().simulate(X, record="relu1"),
     lambda: compile().simulate(X, record="relu_1")),
    ("SNN085", "choose one of ann, folded, snn, int", lambda: compile().simulate(X, stage="mapped"),
     lambda: compile().simulate(X, stage="int")),
    ("SNN086", "use network(x, stage=...)", lambda: compile().simulate(X, stage="folded"),
     lambda: compile().network(X, stage="folded")),
    ("SNN100", "pass one batch of input", lambda: compile(calibration=None),
     lambda: compile(example_input=X, calibration=X)),
]  # fmt: skip

CHIP = "the limits of chips: tests/targets/test_chip_hints.py"
ELSEWHERE = {
    **{f"SNN{number:03}": CHIP for number in (48, *range(50, 67))},
    "SNN008": "how a model is given: tests/frontend",
    "SNN009": "how a model is given: tests/frontend",
    "SNN043": "more steps than compiled for: tests/targets/test_lava.py",
    "SNN044": "larger inputs than compiled for: tests/targets/test_lava.py",
    **{f"SNN{number:03}": "what integers lose: tests/passes/test_quantize.py" for number in (40, 41, 42)},
    "SNN046": "the hint has been tried by the compile itself: tests/test_selfcheck.py",
    "SNN071": "files of the command line: tests/test_cli.py",
    "SNN102": "weights of the command line: tests/test_cli.py",
    "SNN087": "names on the command line: tests/test_cli.py",
}
WITHOUT = {
    **dict.fromkeys(("SNN021", "SNN033"), "says what was done, which was asked for"),
    "SNN047": "no small network reaches it: integers beyond 2**53 on the calibration sample",
    "SNN068": "what fp16 costs is measured; more data and fewer steps may lower it",
    "SNN069": "no operation that snncc writes for Lynxi is without evidence",
    **dict.fromkeys(("SNN074", "SNN089"), "names what is wrong with an argument"),
    **dict.fromkeys(("SNN080", "SNN081", "SNN088", "SNN101"), "is mended outside of this process"),
    **dict.fromkeys(("SNN090", "SNN091", "SNN092"), "an error of the compiler"),
}


@pytest.mark.parametrize(
    ("code", "words", "before", "after"), HINTS, ids=[f"{c} {words[:24]}" for c, words, *_ in HINTS]
)
def test_a_hint_works_when_it_is_followed(
    code: str, words: str, before: Callable[[], Any], after: Callable[[], Any]
) -> None:
    found = said(before)
    assert any(d.code == code and words in d.hint for d in found), found
    left = said(after)
    assert [d for d in left if d.code == code and words in d.hint] == [] == errors(left)


def test_every_code_is_entered() -> None:
    tested = {code for code, *_ in HINTS}
    assert sorted(set(CODES) - tested - set(ELSEWHERE) - set(WITHOUT)) == []
    assert tested & {*ELSEWHERE, *WITHOUT} == set()
