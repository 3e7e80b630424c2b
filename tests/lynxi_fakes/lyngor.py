"""A fake of Lynxi's compiler, with the calls that its published users make and no others; each is written to the file
that FAKE_LYNXI_LOG names. LynxiTech/BIDL: lynadapter/model_operate.py, custom_op_in_lyn/custom_op_my_lif.py;
fangwei123456/spikingjelly: spikingjelly/activation_based/lynxi_exchange.py."""

import json
import os
import sys
import types
from pathlib import Path

import torch

STATES = ("custom::load", "custom::save")  # by their flag


def log(*entry):
    with Path(os.environ["FAKE_LYNXI_LOG"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


class Strict(types.ModuleType):
    def __setattr__(self, name, value):
        assert name == "op_graph_batch_limit", f"nobody sets lyngor.{name}"
        log(name, value)


sys.modules[__name__].__class__ = Strict


class ConvertMap(dict):
    def update(self, entries):
        (name,) = entries
        assert name in (*STATES, "custom::cmpandfire", "custom::resetwithdecay")
        log("convert", name)
        super().update(entries)


pytorch_convert_map = ConvertMap()


class apu:
    @staticmethod
    def pfit(*, data, th0, th1, cfg, const0, const1, const2, const3, else0, else1):
        return {"pfit": [data, th0, th1, cfg, const0, const1, const2, const3, else0, else1]}

    @staticmethod
    def load(*, data, flag, is_initial, shape, dtype, offset, step, uselookup, mode, group_id):
        return {"load": [data, flag, is_initial, shape, dtype, offset, step, uselookup, mode, group_id]}

    @staticmethod
    def save(data, flag, offset, step, isOutput, uselookup, mode, group_id):
        return {"save": [data, flag, offset, step, isOutput, uselookup, mode, group_id]}


class DLModel:
    def load(self, model, model_type, *, inputs_dict, in_type, out_type=None):
        assert isinstance(model, torch.nn.Module)
        assert not model.training
        log("load", model_type, {k: list(v) for k, v in inputs_dict.items()}, in_type, out_type)
        inputs = [torch.zeros(shape) for shape in inputs_dict.values()]
        with torch.no_grad():
            graph = torch.jit.trace(model, inputs, check_trace=False).inlined_graph
        traced, converted = [], []
        for node in graph.nodes():
            if not node.kind().startswith("custom::"):
                continue
            # What TVM's front end hands to a converter: a tensor as an expression, numbers and texts as they are.
            given = list(node.inputs())[1:]
            operands = ["x", *([] if v.node().kind() == "prim::ListConstruct" else v.toIValue() for v in given)]
            traced.append([node.kind(), operands[1]] if node.kind() in STATES else [node.kind()])
            converted.append(pytorch_convert_map[node.kind()](operands, None))
        log("traced", *traced)
        log("converted", *converted)
        self.mod, self.graph, self.params = "mod", "graph", "params"


class Builder:
    def __init__(self, *, target, is_map):
        log("Builder", target, is_map)

    def build(self, graph, params, *opt_level, out_path, **options):
        assert set(options) <= {"apu_only", "profiler", "run_batch", "version"}
        log("build", graph, params, *opt_level, Path(out_path).name, options)
        (Path(out_path) / "Net_0").mkdir(parents=True)
        return out_path
