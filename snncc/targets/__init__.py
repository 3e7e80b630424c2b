"""The targets. ``snncc.targets()`` lists them; other packages add theirs through the entry-point group
``snncc.targets`` (an object with the interface of :class:`snncc.targets.base.Target`)."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from types import ModuleType

from snncc.ir.diagnostics import input_error, unknown
from snncc.targets.base import Options, Target
from snncc.targets.dynapcnn.chips import CHIPS
from snncc.targets.dynapcnn.target import Dynapcnn
from snncc.targets.lava.target import Lava
from snncc.targets.lynxi.target import Lynxi
from snncc.targets.reference import Reference

GROUP = "snncc.targets"


def all_targets() -> dict[str, Target]:
    """Every target by name.

    Raises:
        InputError: a target of another package cannot be loaded, or has the name of one that is there already.
    """
    own: list[Target] = [Reference(), Lava(), Lynxi(), *map(Dynapcnn, CHIPS.values())]
    found = {target.name: target for target in own}
    for entry in entry_points(group=GROUP):
        try:
            target = entry.load()
        except Exception as error:
            message = f"the target {entry.name!r} of {entry.value} cannot be loaded: {type(error).__name__}: {error}"
            raise input_error("SNN088", message, "mend or uninstall that package") from error
        if not isinstance(target, Target):
            raise input_error("SNN088", f"{entry.value}, named as a target, is a {type(target).__name__}")
        if target.name in found:
            raise input_error("SNN088", f"the target {target.name!r} of {entry.value} has a name that is taken")
        found[target.name] = target
    return found


def find(name: str) -> Target:
    """The target called ``name``, or an InputError that lists the known ones."""
    known = all_targets()
    if name not in known:
        raise unknown("SNN078", "target", name, known)
    return known[name]


class _Callable(ModuleType):
    """``snncc.targets()`` as well as ``snncc.targets.dynapcnn``: the list and the package share their name."""

    def __call__(self) -> dict[str, Target]:
        return all_targets()


sys.modules[__name__].__class__ = _Callable

__all__ = ["Options", "Target", "all_targets", "find"]
