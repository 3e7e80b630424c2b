"""The stages' rules, and the verifier that holds every graph to them before and after every pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

from snncc.ir import loihi, ops
from snncc.ir.diagnostics import Diagnostic, SnnccError
from snncc.ir.graph import Graph, Node, Stage
from snncc.ir.text import print_node, print_type
from snncc.ir.types import Domain, MissingBytes

_SHAPES = (ops.Input, ops.Ones, ops.Reshape, ops.Flatten, ops.Pad, ops.Slice, ops.Concat)
_LINEAR = (ops.Add, ops.Conv2d, ops.Linear, ops.Affine)
_POOLS = (ops.AvgPool, ops.AdaptiveAvgPool, ops.SumPool, ops.MaxPool)
_ACTIVATIONS = (ops.Relu, ops.Clamp, ops.QuantRelu)
_FLOAT = _SHAPES + _LINEAR + _POOLS


@dataclass(frozen=True)
class Spec:
    """What a graph at a stage may hold."""

    ops: tuple[type[ops.Op], ...]
    domains: frozenset[Domain]
    integer: bool = False
    placed: bool = False


_SPIKING = frozenset(Domain)
_SIGMA_DELTA = (loihi.Delta, loihi.SigmaDelta, loihi.Sigma)
_LOIHI = (loihi.CubaLif, loihi.AtrLif, loihi.Delay)
_INT = (*_SHAPES, *_LINEAR, ops.SumPool, ops.MaxPool, ops.Encode, ops.If, ops.Lif, *_SIGMA_DELTA, *_LOIHI)
SPECS: dict[Stage, Spec] = {
    Stage.ANN: Spec(
        (*_FLOAT, *_ACTIVATIONS, ops.BatchNorm, ops.Identity, ops.Dropout, ops.Floor, ops.Lif),
        frozenset({Domain.REAL}),
    ),
    Stage.FOLDED: Spec((*_FLOAT, *_ACTIVATIONS, ops.Floor, ops.Lif), frozenset({Domain.REAL})),
    Stage.SNN: Spec((*_FLOAT, ops.Encode, ops.If, ops.Lif, *_SIGMA_DELTA), _SPIKING),
    Stage.INT: Spec(_INT, _SPIKING, integer=True),
    Stage.MAPPED: Spec(_INT, _SPIKING, integer=True, placed=True),
}


class VerifyError(SnnccError):
    """A graph breaks its stage's rules: a fault of a pass, not of the user's model."""


def _node_problems(graph: Graph, node: Node, spec: Spec, defined: set[str]) -> list[str]:
    op, problems = node.op, []
    if not isinstance(op, spec.ops):
        problems.append(f"operation {op.mnemonic} does not belong in stage {graph.stage.value}")
    if len(node.args) != op.arity if op.arity is not None else not node.args:
        problems.append(f"{op.mnemonic} takes {op.arity or 'one or more'} operands, has {len(node.args)}")
    missing = [arg for arg in node.args if arg not in defined]
    if missing:
        return [*problems, f"operand %{missing[0]} is not defined before its use"]
    if isinstance(op, ops.Input):
        if node.type.domain is not Domain.REAL:
            problems.append("an input is real")
    else:
        # An encode op stands between the real input and everything that spikes.
        if graph.stage.spiking and (node.type.domain is Domain.REAL):
            problems.append(f"a {node.type.domain.value} value after the encoding")
        reads = any(isinstance(producer.op, ops.Input) for producer in graph.producers(node))
        if graph.stage.spiking and reads != isinstance(op, ops.Encode):
            problems.append("encode ops, and nothing else, read inputs")
        if node.type.domain not in spec.domains:
            problems.append(f"a {node.type.domain.value} value in stage {graph.stage.value}")
        if node.type.integer != spec.integer:
            problems.append(f"dtype {node.type.dtype} in stage {graph.stage.value}")
        for name, param in op.params():
            if isinstance(op, ops.Weighted) and param.dtype.startswith("i") != spec.integer:
                problems.append(f"{name} is {param.dtype} in stage {graph.stage.value}")
    if spec.placed and not node.place and not isinstance(op, ops.Input | ops.Encode):
        problems.append("no place is assigned")
    if problems:
        return problems
    try:
        expected = op.infer(graph.arg_types(node), graph.store)
    except MissingBytes:
        return []  # read from text alone: units per channel cannot be computed
    except ops.ShapeError as error:
        return [str(error)]
    if op.free_unit and expected.integer:
        expected = replace(expected, unit=node.type.unit)
    same = replace(expected, unit=1.0) == replace(node.type, unit=1.0) and ops.same_unit(expected.unit, node.type.unit)
    if not same:
        problems.append(f"type is {print_type(node.type)}, but the operation gives {print_type(expected)}")
    return problems


def problems(graph: Graph) -> list[tuple[Node | None, str]]:
    """Everything that is wrong with ``graph``, with the node where it is."""
    found: list[tuple[Node | None, str]] = []
    spec = SPECS[graph.stage]
    defined: set[str] = set()
    for node in graph.nodes:
        found += [(node, text) for text in _node_problems(graph, node, spec, defined)]
        if node.name in defined:
            found.append((node, "the name is taken"))
        defined.add(node.name)
    if not graph.outputs:
        found.append((None, "the graph has no output"))
    found += [(None, f"output %{name} is not defined") for name in graph.outputs if name not in defined]
    if graph.stage.spiking:
        raw = [node.name for node in graph.inputs if node.name in graph.outputs]
        found += [(None, f"output %{name} is an input, which has no time steps") for name in raw]
    return found


def verify(graph: Graph, when: str = "") -> None:
    """Check ``graph`` against its stage's rules.

    Raises:
        VerifyError: all problems at once, each shown in the lines around it.
    """
    found = problems(graph)
    if not found:
        return
    diagnostics = []
    for node, text in found:
        context = []
        if node is not None:
            at = graph.nodes.index(node)
            for i in range(max(0, at - 2), min(len(graph.nodes), at + 3)):
                near = graph.nodes[i]
                known = all(arg in graph.by_name for arg in near.args)
                line = print_node(graph, near, locations=False) if known else f"%{near.name} = {near.op}{near.args}"
                context.append(f"{'>>>' if i == at else '   '} {line}")
        head = f"{text}{f' ({when})' if when else ''}"
        diagnostics.append(Diagnostic("SNN090", "\n".join([head, *context]), node.loc if node else Diagnostic.loc))
    raise VerifyError(diagnostics)
