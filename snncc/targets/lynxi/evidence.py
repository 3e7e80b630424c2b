"""Whether a traced module is what lyngor is known to take. No list of its operations is public; what is known is which
ones its users' models hold, so anything else is said to be unknown, and not to be wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from snncc.ir import Diagnostic, Loc, Severity, Source

if TYPE_CHECKING:
    import torch

BIDL = "LynxiTech/BIDL, layers and lynadapter"
ZOO = "Lynxi-model-zoo, efficientnet-b0"
SPIKINGJELLY = "spikingjelly, lynxi_exchange.py"
# Where each operation was seen in a model that was compiled for a Lynxi chip.
EVIDENCE: dict[str, str] = {
    **dict.fromkeys(
        (
            "_convolution", "batch_norm", "max_pool2d", "linear", "relu", "flatten", "add", "div", "clone", "permute",
            "squeeze", "unsqueeze", "zeros_like",
        ),
        BIDL,
    ),
    "conv2d": ZOO,
    **dict.fromkeys(
        ("avg_pool2d", "adaptive_avg_pool2d", "reshape", "cat", "ge", "sub", "rsub", "mul", "to", "select"),
        SPIKINGJELLY,
    ),
}  # fmt: skip
CUSTOM = ("load", "save", "cmpandfire", "resetwithdecay")
MOST_AXES = 4  # spikingjelly, lynxi_exchange.py; BIDL_doc_en, neuron_simulation_toolkit.rst
_BOOKKEEPING = ("prim::Constant", "prim::GetAttr", "prim::ListConstruct", "prim::TupleConstruct", "prim::CallMethod")
_UNKNOWN = "compile_lynxi.py will tell; where it does not take it, change the layer that the operation comes from"


def conformance(
    module: torch.nn.Module | torch.jit.ScriptModule,
    inputs: Sequence[torch.Tensor],
    places: dict[str, Loc] | None = None,
) -> list[Diagnostic]:
    """Everything in a module that breaks lyngor's published rules, or that none of its users has shown.

    Args:
        module: any torch module, or what torch.jit.trace made of it.
        inputs: of the shapes that it is to be compiled for.
        places: where the submodules come from, by name; else the lines that torch recorded are named.
    """
    import torch

    from snncc.targets.lynxi import model

    if isinstance(module, torch.jit.ScriptModule):
        traced = module
    else:
        model.register()
        traced = model.trace(module, inputs)
    found: list[Diagnostic] = []
    flags: dict[str, Counter[str]] = {"load": Counter(), "save": Counter()}
    for node in _nodes(traced.inlined_graph):
        found += _problems(node, _place(node, places or {}), flags)
    found += _unpaired(flags)
    return list(dict.fromkeys(found))


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of the blocks of loops and branches, too."""
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)


def _problems(node: Any, loc: Loc, flags: dict[str, Counter[str]]) -> Iterator[Diagnostic]:
    kind = node.kind()
    space, _, name = kind.partition("::")
    if kind in ("prim::If", "prim::Loop"):
        message = f"control flow that depends on data ({kind})"
        yield Diagnostic(
            "SNN064", message, loc, hint="decide by shapes and constants; loops with a fixed number of steps"
        )
        return
    for output in node.outputs():
        sizes = output.type().sizes() if output.type().kind() == "TensorType" else None
        if sizes is not None and len(sizes) > MOST_AXES:
            shape = tuple(sizes)
            yield Diagnostic(
                "SNN064", f"{kind} gives a tensor of {len(shape)} axes, {shape}", loc,
                hint="fold the time steps into the batch", limit=MOST_AXES, found=len(shape), quantity="axes",
            )  # fmt: skip
    if kind in _BOOKKEEPING:
        return
    if space == "aten" and name.endswith("_") and not name.endswith("__"):
        message = f"{kind} changes a tensor in place, which lyngor drops without a word"
        yield Diagnostic("SNN064", message, loc, hint="write the change as a new tensor")
    elif space == "custom" and name in CUSTOM:
        if name in flags:
            flags[name][str(list(node.inputs())[1].toIValue())] += 1
    elif space != "aten" or name not in EVIDENCE:
        message = f"{kind} is in none of the models that are known to have been compiled for Lynxi's chips"
        yield Diagnostic("SNN069", message, loc, Severity.WARNING, _UNKNOWN)


def _unpaired(flags: dict[str, Counter[str]]) -> Iterator[Diagnostic]:
    for name, count in sorted((flags["load"] | flags["save"]).items()):
        if (flags["load"][name], flags["save"][name]) != (1, 1):
            loads, saves = flags["load"][name], flags["save"][name]
            message = f"the state {name!r} is loaded {loads} times and saved {saves} times"
            yield Diagnostic(
                "SNN069", message, hint="load and save each state once, under a flag of its own", found=count
            )


_SCOPE = re.compile(r"__module\.(\w+)")
_LINE = re.compile(r"^(.+?)\((\d+)\): ", re.MULTILINE)


def _place(node: Any, places: dict[str, Loc]) -> Loc:
    scope = _SCOPE.search(node.scopeName())
    if scope and scope[1] in places:
        return places[scope[1]]
    lines = [(file, int(line)) for file, line in _LINE.findall(node.sourceRange()) if "/torch/" not in file]
    module = scope[1] if scope else ""
    return Loc((Source(module, *lines[0]),)) if lines else Loc((Source(module),)) if module else Loc()
