"""Spiking neurons that a model brings itself, as spikingjelly writes them: ``IFNode``, ``LIFNode`` and
``ParametricLIFNode``, by their names and attributes, so that spikingjelly need not be there.

Their charge, in spikingjelly's words (its ``activation_based/neuron``): ``v += (x - (v - v_reset)) / tau`` with
``decay_input``, else ``v += x - (v - v_reset) / tau``; a spike where ``v >= v_threshold``; then ``v = v_reset``, or
``v -= v_threshold`` where ``v_reset`` is None. :class:`snncc.ir.ops.Lif` says the same in potentials that count from
``v_reset``, times tau where the input decays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snncc.frontend.recorder import Recorder, Refused
from snncc.ir.ops import Lif

NAMES = ("IFNode", "LIFNode", "ParametricLIFNode")
_ONE_STEP = (
    "compile the network of one time step: functional.set_step_mode(model, 's'), and no loop over time in forward"
)


def is_neuron(module: nn.Module) -> bool:
    """Whether the module is a spiking neuron, of a kind that is known here or not: it has a firing threshold. A network
    may keep the one that it gives its neurons."""
    having = [m for m in module.modules() if hasattr(m, "v_threshold")]
    return having == [module]


def lower(module: Any, recorder: Recorder) -> Lif:
    """A spiking neuron in the IR.

    Raises:
        Refused: one that is not known, or works on many steps at once.
    """
    if type(module).__name__ not in NAMES:
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        raise Refused(f"the spiking neuron {name} is not known", f"known are {', '.join(NAMES)}")
    if getattr(module, "step_mode", "s") != "s":
        raise Refused("it works on many time steps at once (step_mode='m')", _ONE_STEP, code="SNN007")
    if module in recorder.neurons:
        raise Refused("it is called more than once, and has but one state", _ONE_STEP, code="SNN007")
    recorder.neurons.add(module)
    leaks = type(module).__name__ != "IFNode"
    if leaks and not hasattr(module, "decay_input"):  # nothing to guess: thresholds would be off by tau
        help = "set it: where spikingjelly's releases have no such attribute, inputs decay (True)"
        raise Refused("it does not say whether its input decays: it has no `decay_input`", help, code="SNN007")
    tau, theta = _tau(module), _threshold(module)
    if leaks and not tau > 1:
        raise Refused(f"its tau is {tau:g}, which is not above 1", code="SNN007")
    if not bool((theta > 0).all()):
        raise Refused("its threshold does not lie above its reset potential", code="SNN007")
    threshold = float(theta) if theta.numel() == 1 else recorder.param(theta.reshape(-1), "threshold")
    return Lif(threshold, 1.0 - 1.0 / tau if leaks else 1.0, "subtract" if module.v_reset is None else "zero")


def _tau(module: Any) -> float:
    if type(module).__name__ == "IFNode":
        return 1.0
    return float(1 / module.w.detach().double().sigmoid()) if hasattr(module, "w") else float(module.tau)


def _threshold(module: Any) -> Tensor:
    """What the potential must reach, counted from the reset potential, and times tau where the input decays."""
    theta = torch.as_tensor(module.v_threshold, dtype=torch.float64).detach().cpu() - (module.v_reset or 0.0)
    return theta * _tau(module) if getattr(module, "decay_input", False) else theta


@contextmanager
def as_network(model: nn.Module) -> Iterator[None]:
    """Let every spiking neuron answer as :meth:`Lif.evaluate` does, so that what is between them can be compared. Its
    own forward does not run: the state stays, which may be that of a batch of another size."""
    neurons = [m for m in model.modules() if is_neuron(m)]
    forwards = [vars(m).get("forward") for m in neurons]  # of the instance: mostly none
    try:
        for m in neurons:
            vars(m)["forward"] = _transfer(m)
        yield
    finally:
        for m, forward in zip(neurons, forwards, strict=True):
            del vars(m)["forward"]
            vars(m).update({} if forward is None else {"forward": forward})


def _transfer(module: nn.Module) -> Callable[..., Tensor]:
    def answer(*args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())
        theta = _threshold(module).to(x)
        return torch.clamp(x / (theta.reshape(-1, *(1,) * (x.dim() - 2)) if theta.numel() > 1 else theta), 0, 1)

    return answer
