"""One time step as ONNX, in functional form: states go in and come out. For executors that have no states of their own,
onnxruntime and TVM among them; lyngor takes ONNX, too, but it has no operation there that keeps a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from snncc.ir.diagnostics import input_error
from snncc.targets.lynxi.lower import Program

OPSET = 17  # of August 2022: onnxruntime 1.13 and later


def states(network: Mapping[str, Any]) -> dict[str, list[int]]:
    """The shape, without batch, of every state by the name of its layer."""
    shapes = {"neuron": "shape", "max_of_counts": "input_shape"}
    return {layer["name"]: layer[shapes[layer["kind"]]] for layer in network["layers"] if layer["kind"] in shapes}


def write(program: Program, precision: str = "float32") -> bytes:
    """The step of a program of the form "outer-loop".

    Inputs are those of the program, and ``<layer>.state`` (N, *shape) of every state, at first 0; outputs are
    ``<value>.output`` of the program, and ``<layer>.next``.

    Raises:
        InputError: onnx is missing, which writes it.
    """
    try:
        import onnx
    except ImportError:
        raise input_error(
            "SNN101", "onnx is missing, which writes the ONNX step", "pip install 'snncc[lynxi]'"
        ) from None
    graph = _Writer(program, precision).graph()
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=8,  # of that opset: newer ones are refused by older readers
        producer_name="snncc",
        producer_version=program.network["snncc"],
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


class _Writer:
    def __init__(self, program: Program, precision: str) -> None:
        from onnx import TensorProto

        self.program, self.dtype = program, np.dtype(precision)
        self.type = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[precision]
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def graph(self) -> Any:
        from onnx import helper

        network = self.program.network
        kept = states(network)
        inputs = {entry["name"]: entry["shape"] for entry in network["inputs"]}
        inputs |= {f"{name}.state": shape for name, shape in kept.items()}
        for layer in network["layers"]:
            getattr(self, f"_{layer['kind']}")(layer, list(layer["inputs"]))
        outputs = {}
        for entry in network["outputs"]:
            output = f"{entry['value']}.output"
            if output not in outputs:  # a value may be returned twice, or monitored as well
                outputs[output] = entry["shape"]
                self._op("Identity", [entry["name"]], output)
        outputs |= {f"{name}.next": shape for name, shape in kept.items()}
        given, made = (
            [helper.make_tensor_value_info(name, self.type, ["N", *shape]) for name, shape in values.items()]
            for values in (inputs, outputs)
        )
        return helper.make_graph(self.nodes, "step", given, made, list(self.constants.values()))

    def _op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: Any, dtype: Any = None) -> str:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype or self.dtype), name)
        return name

    # --- layers, each under its own name ---

    def _conv(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        xs += [
            self._constant(layer[what], self.program.arrays[layer[what]])
            for what in ("weight", "bias")
            if what in layer
        ]
        top, left = layer["padding"]
        self._op(
            "Conv", xs, layer["name"], strides=layer["stride"], pads=[top, left, top, left], group=layer["groups"],
            dilations=layer["dilation"], kernel_shape=self.program.arrays[layer["weight"]].shape[2:],
        )  # fmt: skip

    def _linear(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        weight = self._constant(layer["weight"], self.program.arrays[layer["weight"]].T)
        product = layer["name"] if "bias" not in layer else f"{layer['name']}.product"
        self._op("MatMul", [*xs, weight], product)
        if "bias" in layer:
            bias = self._constant(layer["bias"], self.program.arrays[layer["bias"]])
            self._op("Add", [product, bias], layer["name"])

    def _scale(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        product = layer["name"] if "bias" not in layer else f"{layer['name']}.product"
        self._op("Mul", [*xs, self._constant(layer["weight"], self.program.value(layer, "weight"))], product)
        if "bias" in layer:
            self._op("Add", [product, self._constant(layer["bias"], self.program.value(layer, "bias"))], layer["name"])

    def _add(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        self._op("Add", xs, layer["name"])

    def _concat(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        self._op("Concat", xs, layer["name"], axis=layer["axis"])

    def _avg_pool(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        self._op("AveragePool", xs, layer["name"], kernel_shape=layer["kernel"], strides=layer["stride"])

    def _max_pool(self, layer: Mapping[str, Any], xs: list[str], output: str = "") -> None:
        # As much padding behind as the windows reach: of ceil_mode, ONNX and torch have different ideas.
        axes = zip(*(layer[name] for name in ("stride", "kernel", "dilation", "padding")), strict=True)
        sizes = zip(layer["shape"][-2:], layer["input_shape"][-2:], strict=True)
        behind = [
            max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size - before)
            for (stride, kernel, dilation, before), (out, size) in zip(axes, sizes, strict=True)
        ]
        attributes = {"strides": layer["stride"], "dilations": layer["dilation"], "kernel_shape": layer["kernel"]}
        self._op("MaxPool", xs, output or layer["name"], pads=[*layer["padding"], *behind], **attributes)

    def _max_of_counts(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        name = layer["name"]
        counts = self._op("Add", [*xs, f"{name}.state"], f"{name}.next")
        self._max_pool(layer, [counts], f"{name}.now")
        self._max_pool(layer, [f"{name}.state"], f"{name}.before")
        self._op("Sub", [f"{name}.now", f"{name}.before"], name)

    def _neuron(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        name = layer["name"]
        v = self._op("Add", [*xs, f"{name}.state"], f"{name}.v")
        theta = self._constant(f"{name}.theta", self.program.value(layer, "threshold"))
        fires = self._op("GreaterOrEqual", [v, theta], f"{name}.fires")
        self._op("Cast", [fires], name, to=self.type)
        after = f"{name}.next" if layer["decay"] == 1 else f"{name}.reset"
        if layer["amount"] is not None:
            amount = self._constant(f"{name}.amount", self.program.value(layer, "amount"))
            self._op("Sub", [v, self._op("Mul", [name, amount], f"{name}.taken")], after)
        else:
            rest = self._constant(f"{name}.rest", self.program.value(layer, "rest"))
            self._op("Where", [fires, rest, v], after)
        if layer["decay"] != 1:
            decay = self._constant(f"{name}.decay", layer["decay"])
            self._op("Mul", [after, decay], f"{name}.next")

    def _flatten(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        self._op("Flatten", xs, layer["name"], axis=1)

    def _reshape(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        shape = self._constant(f"{layer['name']}.shape", [-1, *layer["shape"]], np.int64)
        self._op("Reshape", [*xs, shape], layer["name"])

    def _pad(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        name = layer["name"]
        modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
        pads = self._constant(f"{name}.pads", [0, *layer["before"], 0, *layer["after"]], np.int64)
        xs = [*xs, pads, self._constant(f"{name}.value", layer["value"])]
        self._op("Pad", xs, name, mode=modes[layer["mode"]])

    def _slice(self, layer: Mapping[str, Any], xs: list[str]) -> None:
        name = layer["name"]
        rows = {
            "start": layer["start"],
            "stop": layer["stop"],
            "axes": range(1, len(layer["start"]) + 1),
            "step": layer["step"],
        }
        ends = [self._constant(f"{name}.{what}", list(values), np.int64) for what, values in rows.items()]
        self._op("Slice", [*xs, *ends], name)
