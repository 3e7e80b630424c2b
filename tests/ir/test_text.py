"""The text form: it round-trips, MLIR's own tools read it, and what is not of its form is refused with the line."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import any_graph, any_hostile_graph, hostile_float, hostile_graphs, hostile_text
from xdsl.context import Context
from xdsl.dialect_interfaces.op_asm import OpAsmDialectInterface
from xdsl.dialects.builtin import Builtin
from xdsl.dialects.func import Func
from xdsl.ir import Dialect
from xdsl.parser import Parser

from snncc.ir import Domain, Graph, InputError, Loc, Node, Source, Stage, Store, Type, ops, parse, print_graph, verify


def relu(**given: object) -> Graph:
    """The smallest network: input and ReLU."""
    x = Node("x", ops.Input((2, 3)), (), Type((2, 3)))
    y = Node("y", ops.Relu(), ("x",), x.type, Loc((Source("act", "/a/net.py", 12),), ("trace",)))
    return Graph((x, y), ("y",), **given)  # type: ignore[arg-type]


# --- round trip ----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(any_hostile_graph)
def test_round_trip(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse(text)
    assert again == graph
    assert print_graph(again) == text
    for old, new in zip(graph.nodes, again.nodes, strict=True):
        for f in fields(old.op):  # equality does not tell 1 from 1.0
            assert type(getattr(old.op, f.name)) is type(getattr(new.op, f.name))


@settings(max_examples=50)
@given(any_hostile_graph)
def test_what_is_read_with_its_bytes_verifies(graph: Graph) -> None:
    verify(parse(print_graph(graph), graph.store))
    verify(parse(print_graph(graph)))  # and without, as far as that goes


@settings(max_examples=50)
@given(any_graph)
def test_without_locations_only_they_are_lost(graph: Graph) -> None:
    text = print_graph(graph, locations=False)
    assert "loc(" not in text
    assert parse(text) == graph  # generated graphs have none


@given(hostile_text, hostile_text)
@example("n\u00e9t\n", 'C:\\dir\\"x"')
def test_any_string_survives(name: str, file: str) -> None:
    graph = relu(name=name)
    graph = Graph(
        (graph.nodes[0], Node("y", ops.Relu(), ("x",), Type((2, 3)), Loc((Source(name, file, 1),), (file,)))),
        ("y",),
        name=name,
    )
    text = print_graph(graph)
    assert text.isascii()
    assert len(text.split("\n")) == 8
    assert parse(text) == graph


@given(hostile_float, hostile_float)
@example(1e-05, -0.0)
@example(np.float64(0.1), np.float64(1e22))  # type: ignore[arg-type]
def test_any_float_survives(low: float, high: float) -> None:
    node = Node("x", ops.Input((1,), low, high), (), Type((1,), "f32", Domain.CURRENT, 5e-324))
    (again,) = parse(print_graph(Graph((node,), ("x",)))).nodes
    assert isinstance(again.op, ops.Input)
    assert (repr(again.op.low), repr(again.op.high)) == (repr(float(low)), repr(float(high)))
    assert again.type == node.type


def test_integer_and_float_attributes_stay_apart() -> None:
    store = Store()
    thresholds: list[float | int] = [1, 1.0, 2**40]
    for threshold in thresholds:
        x = Node("x", ops.If(threshold), ("x",), Type((1,)))
        (again,) = parse(print_graph(Graph((x,), ("x",), Stage.SNN, store=store))).nodes
        assert isinstance(again.op, ops.If)
        assert repr(again.op.threshold) == repr(threshold)


def test_the_attributes_of_spiking_networks_are_text() -> None:
    store = Store()
    theta = store.put("theta", np.array([1.0, 2.0], np.float32))
    nodes = [Node("x", ops.Input((2, 4, 4)), (), Type((2, 4, 4)))]
    for op in (ops.Encode(), ops.Lif(theta, 0.75, "zero"), ops.MaxPool((2, 2), (2, 2), each_step=True), ops.Lif(1)):
        nodes.append(Node(f"n{len(nodes)}", op, (nodes[-1].name,), op.infer((nodes[-1].type,), store)))
    graph = Graph(tuple(nodes), ("n4",), Stage.SNN, store=store)
    verify(graph)
    text = print_graph(graph)
    assert '"snn.lif"(%n1) {threshold = dense_resource<theta' in text
    assert 'decay = 0.75 : f64, reset = "zero"' in text
    assert "each_step = true" in text
    assert parse(text) == graph
    old = parse(text.replace(", each_step = true", ""))  # as of before there was a choice
    assert old["n3"].op == ops.MaxPool((2, 2), (2, 2))


def test_the_text_of_a_small_network() -> None:
    assert print_graph(relu(), banner="canonicalize") == (
        "// -----// IR Dump After canonicalize //----- //\n"
        'module attributes {snn.name = "main", snn.stage = "ann"} {\n'
        "  func.func @main(%x$arg: tensor<2x3xf32>) -> (tensor<2x3xf32>) {\n"
        '    %x = "snn.input"(%x$arg) {shape = array<i64: 2, 3>} : (tensor<2x3xf32>) -> tensor<2x3xf32> loc(unknown)\n'
        '    %y = "snn.relu"(%x) : (tensor<2x3xf32>) -> tensor<2x3xf32> '
        'loc(fused["act"("/a/net.py":12:1), "trace"])\n'
        "    func.return %y : tensor<2x3xf32>\n"
        "  }\n"
        "}\n"
    )


@given(any_graph, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_comments_banners_and_white_space_are_skipped(graph: Graph, random: object) -> None:
    lines = print_graph(graph, banner="a pass // of ours").split("\n")
    text = '\n\n  // a comment, with "quotes"\n'.join(f"\t{line}  // why" for line in lines)
    assert parse(text) == graph


# --- MLIR's tools --------------------------------------------------------------------------------------------------


def read_by_xdsl(text: str) -> None:
    context = Context(allow_unregistered=True)
    # xdsl keeps the resources' names for the life of a process; a dialect of its own forgets them.
    parts = list(Builtin.operations), list(Builtin.attributes), [OpAsmDialectInterface()]
    context.load_dialect(Dialect(Builtin.name, *parts))
    context.load_dialect(Func)
    Parser(context, text).parse_module().verify()


@settings(max_examples=100)
@given(any_hostile_graph, st.booleans())
def test_xdsl_reads_every_dump(graph: Graph, locations: bool) -> None:
    read_by_xdsl(print_graph(graph, locations, banner="a-pass"))


def test_xdsl_opt_reads_a_file(tmp_path: Path) -> None:
    found: list[Graph] = []
    for stage in Stage:
        settings(max_examples=15, database=None)(given(hostile_graphs(stage))(lambda graph: found.append(graph)))()
    file = tmp_path / "stages.mlir"
    file.write_text("module {\n" + "\n".join(print_graph(graph, banner="pass") for graph in found) + "}\n")
    command = [sys.executable, "-m", "xdsl.tools.xdsl_opt", "--allow-unregistered-dialect", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    operations = re.findall(r'^ *%[^ ]+ = "snn\.\w+"\(', done.stdout, re.MULTILINE)  # a name may hold "snn. too
    assert len(operations) == sum(len(graph.nodes) for graph in found)


# --- what is refused -----------------------------------------------------------------------------------------------

GOOD = print_graph(relu())


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (GOOD, "", 1, "expected 'module', found 'the end'"),
        (GOOD, "\n\n", 3, "expected 'module', found 'the end'"),
        (GOOD, "hello", 1, "expected 'module', found 'hello'"),
        ("snn.relu", "snn.gelu", 4, "unknown operation 'gelu'"),
        ("snn.stage", "snn.page", 1, "KeyError: 'snn.stage'"),
        ('"ann"', '"cnn"', 1, "'cnn' is not a valid Stage"),
        ("array<i64: 2, 3>", "array<i32: 2, 3>", 3, "expected 'i64', found 'i32'"),
        ("shape = ", "size = ", 3, "unexpected keyword argument 'size'"),
        (" {shape = array<i64: 2, 3>}", "", 3, "missing 1 required positional argument: 'shape'"),
        ("shape = array", "shape = splat", 3, "unknown attribute 'splat'"),
        ("2x3xf32", "2x3xf16", 2, "expected a shape and a known dtype"),
        ("%x =", "x =", 3, "expected a name with %"),
        ("%y =", "%$ =", 4, "unexpected character, found '%'"),
        ("%y =", "%y$z =", 4, "node name 'y$z' is no identifier"),
        ('"act"', '"a%FFb"', 4, "UnicodeDecodeError"),
        (":12:1", ":12", 4, "expected ':'"),
        ('"trace"])', '"trace")', 4, "expected ','"),
        ("func.return %y", "func.return y", 5, "expected '}'"),
        ("  }\n}\n", "  }\n", 7, "expected '}', found 'the end'"),
        ("  }\n}\n", "  }\n}\nmodule", 8, "expected end, found 'module'"),
        ('"trace"', '"trace', 4, "unexpected character"),
    ],
)
def test_malformed_text_names_its_line(old: str, new: str, line: int, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(GOOD.replace(old, new))
    (diagnostic,) = error.value.diagnostics
    assert diagnostic.code == "SNN071"
    assert diagnostic.message.startswith(f"IR text, line {line}: ")
    assert message in diagnostic.message


@settings(max_examples=300)
@given(any_graph, st.data())
def test_text_that_was_cut_or_changed_is_read_or_refused(graph: Graph, data: st.DataObject) -> None:
    text = print_graph(graph)
    at = data.draw(st.integers(0, len(text)))
    text = (
        text[:at]
        + data.draw(st.sampled_from(["", "0", "}", '"', "%", "\n", "tensor<"]))
        + text[at + data.draw(st.integers(0, 9)) :]
    )
    with suppress(InputError):
        parse(text)
