"""The text form: generic MLIR that MLIR's own tools read (with unregistered dialects allowed) and that round-trips:
``parse(print_graph(g)) == g``. Tensors stand in it by name and digest, as MLIR's external resources.

Syntax: https://mlir.llvm.org/docs/LangRef/
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from snncc.ir.diagnostics import input_error
from snncc.ir.graph import Graph, Node, Stage
from snncc.ir.ops import OPS
from snncc.ir.types import DTYPES, Domain, Loc, Param, PerChannel, Source, Store, Type

T = TypeVar("T")


# --- printing ------------------------------------------------------------------------------------------------------


_PRINTABLE = "".join(chr(c) for c in range(32, 127) if chr(c) != "%")


def _string(text: str) -> str:
    # What is not printable ASCII is percent-encoded, as in file URIs: MLIR's own escapes of it are bytes, which xdsl
    # does not take in a location.
    plain = quote(text, safe=_PRINTABLE, errors="surrogatepass")
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _float(value: float) -> str:
    if not math.isfinite(value):
        return f"0x{struct.pack('>d', value).hex().upper()}"
    text = repr(float(value))  # of numpy's floats, too
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return text


def _param(param: Param) -> str:
    return f"dense_resource<{param.name}${param.digest}> : tensor<{_dims(param.shape)}{param.dtype}>"


def _dims(shape: tuple[int, ...]) -> str:
    return "".join(f"{n}x" for n in shape)


def _attribute(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value} : i64"
    if isinstance(value, float):
        return f"{_float(value)} : f64"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, tuple):
        return f"array<i64{': ' if value else ''}{', '.join(map(str, value))}>"
    if isinstance(value, Param):
        return _param(value)
    raise TypeError(f"no text form for {value!r}")


def print_type(type: Type) -> str:
    """``tensor<1x28x28xf32>`` of a real value; domain and unit as the tensor's encoding otherwise."""
    if type.domain is Domain.REAL and type.unit == 1.0:
        return f"tensor<{_dims(type.shape)}{type.dtype}>"
    encoding = f'domain = "{type.domain.value}", unit = {_attribute(type.unit)}'
    return f"tensor<{_dims(type.shape)}{type.dtype}, {{{encoding}}}>"


def print_loc(loc: Loc) -> str:
    """The user's places as named locations, the passes as names without a place."""
    parts = []
    for s in loc.sources:
        # A file location of MLIR has a column; column 1 stands for the whole line.
        place = f"{_string(s.file)}:{s.line}:1" if s.file or s.line else "unknown"
        parts.append(f"{_string(s.module)}({place})")
    parts += [_string(p) for p in loc.passes]
    if not parts:
        return "loc(unknown)"
    return f"loc({parts[0]})" if len(parts) == 1 else f"loc(fused[{', '.join(parts)}])"


def print_node(graph: Graph, node: Node, locations: bool = True) -> str:
    """One line of text."""
    attributes = []
    for f in fields(node.op):
        value = getattr(node.op, f.name)
        # Defaults are left out, but only those of the exact type: 0 and 0.0 are different attributes.
        if value is None or (f.default is not MISSING and value == f.default and type(value) is type(f.default)):
            continue
        attributes.append(f"{f.name} = {_attribute(value)}")
    if node.place:
        attributes.append(f"place = {_string(node.place)}")
    body = f" {{{', '.join(attributes)}}}" if attributes else ""
    if node.op.arity == 0:
        args, types = f"%{node.name}$arg", print_type(node.type)
    else:
        args = ", ".join(f"%{arg}" for arg in node.args)
        types = ", ".join(print_type(t) for t in graph.arg_types(node))
    loc = f" {print_loc(node.loc)}" if locations else ""
    return f'%{node.name} = "snn.{node.op.mnemonic}"({args}){body} : ({types}) -> {print_type(node.type)}{loc}'


def print_banner(label: str) -> str:
    """The line that names the pass after which a graph stands, as MLIR's tools print and look for it."""
    return f"// -----// IR Dump After {label} //----- //"


def print_graph(graph: Graph, locations: bool = True, banner: str = "") -> str:
    """The whole graph as MLIR text; ``banner`` names the pass after which it stands."""
    lines = [print_banner(banner)] if banner else []
    lines.append(f'module attributes {{snn.name = {_string(graph.name)}, snn.stage = "{graph.stage.value}"}} {{')
    args = ", ".join(f"%{n.name}$arg: {print_type(n.type)}" for n in graph.inputs)
    results = ", ".join(print_type(graph[o].type) for o in graph.outputs)
    lines.append(f"  func.func @main({args}) -> ({results}) {{")
    lines += [f"    {print_node(graph, node, locations)}" for node in graph.nodes]
    values = ", ".join(f"%{o}" for o in graph.outputs)
    lines.append(f"    func.return {values} : {results}" if graph.outputs else "    func.return")
    return "\n".join([*lines, "  }", "}", ""])


# --- parsing -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<space>(?:\s|//[^\n]*)+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<hex>0x[0-9A-F]{16})
      | (?P<float>[-+]?\d+\.\d*(?:[eE][-+]?\d+)?)
      | (?P<int>-?\d+)
      | (?P<id>[%@]?[A-Za-z_][A-Za-z0-9_.$]*)
      | (?P<punct>->|[()\[\]{}<>:,=])""",
    re.VERBOSE,
)
_SHAPE = re.compile(r"((?:\d+x)*)(\w+)")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.pos, self.start, self.last = text, 0, 0, 0
        self.kind, self.token = "", ""
        self.advance()

    def fail(self, message: str) -> Exception:
        line = self.text.count("\n", 0, self.start) + 1
        context = self.text.split("\n")[line - 1].strip()
        return input_error("SNN071", f"IR text, line {line}: {message}, found {self.token or 'the end'!r}\n  {context}")

    def advance(self) -> str:
        done, self.last = self.token, self.start
        while True:
            self.start = self.pos
            if self.pos == len(self.text):
                self.kind, self.token = "end", ""
                return done
            match = _TOKEN.match(self.text, self.pos)
            if match is None:
                self.token = self.text[self.pos]
                raise self.fail("unexpected character")
            self.pos = match.end()
            if match.lastgroup != "space":
                self.kind, self.token = str(match.lastgroup), match.group()
                return done

    def accept(self, token: str) -> bool:
        if self.token == token and self.kind != "string":
            self.advance()
            return True
        return False

    def expect(self, *tokens: str) -> None:
        for token in tokens:
            if not self.accept(token):
                raise self.fail(f"expected {token!r}")

    def take(self, kind: str) -> str:
        if self.kind != kind:
            raise self.fail(f"expected {kind}")
        return self.advance()

    def string(self) -> str:
        plain = re.sub(r'\\(["\\])', r"\1", self.take("string")[1:-1])
        return unquote(plain, errors="surrogatepass")

    def list(self, close: str, item: Callable[[], T]) -> list[T]:
        items: list[T] = []
        while not self.accept(close):
            if items:
                self.expect(",")
            items.append(item())
        return items

    def ident(self, sigil: str = "") -> str:
        token = self.take("id")
        if not token.startswith(sigil):
            raise self.fail(f"expected a name with {sigil}")
        return token[len(sigil) :]

    def tensor(self, encoded: bool) -> Type:
        """``tensor<...>``; the shape is lexed by itself, since ``1x28xf32`` is no MLIR token."""
        if self.token != "tensor":
            raise self.fail("expected a tensor type")
        self.advance()
        if self.token != "<":
            raise self.fail("expected '<'")
        match = _SHAPE.match(self.text, self.pos)
        if match is None or match[2] not in DTYPES:
            raise self.fail("expected a shape and a known dtype")
        self.pos = match.end()
        self.advance()
        shape = tuple(int(n) for n in match[1].split("x") if n)
        domain, unit = Domain.REAL, 1.0
        if encoded and self.accept(","):
            attributes = self.attributes()
            domain, unit = Domain(attributes["domain"]), attributes["unit"]
        self.expect(">")
        return Type(shape, match[2], domain, unit)

    def type(self) -> Type:
        return self.tensor(encoded=True)

    def attribute(self) -> Any:
        if self.kind == "string":
            return self.string()
        if self.kind == "hex":
            value = struct.unpack(">d", bytes.fromhex(self.advance()[2:]))[0]
            self.expect(":", "f64")
            return value
        if self.kind in ("int", "float"):
            number: PerChannel = int(self.token) if self.kind == "int" else float(self.token)
            suffix = "i64" if self.kind == "int" else "f64"
            self.advance()
            self.expect(":", suffix)
            return number
        word = self.ident()
        if word in ("true", "false"):
            return word == "true"
        self.expect("<")
        if word == "array":
            self.expect("i64")
            if self.accept(">"):
                return ()
            self.expect(":")
            return tuple(self.list(">", lambda: int(self.take("int"))))
        if word == "dense_resource":
            name, _, digest = self.ident().partition("$")
            self.expect(">", ":")
            tensor = self.tensor(encoded=False)
            return Param(name, tensor.shape, tensor.dtype, digest)
        raise self.fail(f"unknown attribute {word!r}")

    def attributes(self) -> dict[str, Any]:
        self.expect("{")

        def entry() -> tuple[str, Any]:
            name = self.ident()
            self.expect("=")
            return name, self.attribute()

        return dict(self.list("}", entry))

    def loc(self) -> Loc:
        if not self.accept("loc"):
            return Loc()
        self.expect("(")
        sources: list[Source] = []
        passes: list[str] = []

        def part() -> None:
            name = self.string()
            if not self.accept("("):
                passes.append(name)
            elif self.accept("unknown"):
                sources.append(Source(name))
                self.expect(")")
            else:
                file = self.string()
                self.expect(":")
                line = int(self.take("int"))
                self.expect(":")
                self.take("int")
                self.expect(")")
                sources.append(Source(name, file, line))

        if self.accept("fused"):
            self.expect("[")
            self.list("]", part)
        elif not self.accept("unknown"):
            part()
        self.expect(")")
        return Loc(tuple(sources), tuple(passes))

    def node(self) -> Node:
        name = self.ident("%")
        self.expect("=")
        mnemonic = self.string().removeprefix("snn.")
        if mnemonic not in OPS:
            raise self.fail(f"unknown operation {mnemonic!r} before")
        cls = OPS[mnemonic]
        self.expect("(")
        args = tuple(self.list(")", lambda: self.ident("%")))
        attributes = self.attributes() if self.token == "{" else {}
        self.expect(":", "(")
        self.list(")", self.type)
        self.expect("->")
        type = self.type()
        place = attributes.pop("place", "")
        try:
            op = cls(**attributes)
        except TypeError as error:
            raise self.fail(f"{mnemonic}: {error}; before") from None
        return Node(name, op, () if cls.arity == 0 else args, type, self.loc(), place)

    def graph(self, store: Store) -> Graph:
        self.expect("module", "attributes")
        attributes = self.attributes()
        stage, name = Stage(attributes["snn.stage"]), str(attributes["snn.name"])
        self.expect("{", "func.func")
        self.ident("@")
        self.expect("(")

        def argument() -> None:
            self.ident("%")
            self.expect(":")
            self.type()

        self.list(")", argument)
        self.expect("->", "(")
        self.list(")", self.type)
        self.expect("{")
        nodes = []
        while self.token != "func.return":
            nodes.append(self.node())
        self.advance()
        outputs = []
        if self.kind == "id" and self.token.startswith("%"):
            outputs.append(self.ident("%"))
            while self.accept(","):
                outputs.append(self.ident("%"))
            self.expect(":")
            self.type()
            while self.accept(","):
                self.type()
        self.expect("}", "}")
        self.take("end")
        return Graph(tuple(nodes), tuple(outputs), stage, name, store)


def parse(text: str, store: Store | None = None) -> Graph:
    """Read what :func:`print_graph` wrote (comments and banners are skipped).

    Args:
        text: MLIR text.
        store: where the parameters' bytes are; by default nowhere, and the graph can be compared but not run.

    Raises:
        InputError: text that is not of this form, with the line.
    """
    parser = _Parser(text)
    try:
        return parser.graph(store if store is not None else Store())
    except (KeyError, TypeError, ValueError) as error:  # a value that no attribute, name or stage can have
        parser.start = parser.last
        raise parser.fail(f"{type(error).__name__}: {error}; before") from None
