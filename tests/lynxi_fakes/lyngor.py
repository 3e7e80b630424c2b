"""A fake of Lynxi's compiler, with the calls that its published users make and no others; each is written to the file
that FAKE_LYNXI_LOG names. LynxiTech/BIDL: lynadapter/model_operate.py, custom_op_in_lyn/custom_op_my_lif.py;
spikingjelly: activation_based/lynxi_exchange.py."""

import json
import os
from collections import Counter
from pathlib import Path

import torch


def log(*entry):
    with Path(os.environ["FAKE_LYNXI_LOG"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, default=str) + "\n")


op_graph_batch_limit = None  # set before a model is loaded
pytorch_convert_map = {}


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
    """`mod` and `graph` are two names of what was loaded, by different users."""

    def load(self, model, model_type, *, inputs_dict, in_type="float32", out_type=None):
        assert isinstance(model, torch.nn.Module)
        assert not model.training
        inputs = [torch.zeros(shape) for shape in inputs_dict.values()]
        with torch.no_grad():
            graph = torch.jit.trace(model, inputs, check_trace=False).inlined_graph
        kinds = Counter(node.kind() for node in graph.nodes() if node.kind().startswith("custom::"))
        flags = [list(n.inputs())[1].toIValue() for n in graph.nodes() if n.kind() == "custom::save"]
        # What TVM's front end hands to a converter: the operands, tensors and numbers.
        converted = []
        for node in graph.nodes():
            if node.kind().startswith("custom::"):
                operands = [[] if v.node().kind() == "prim::ListConstruct" else v.toIValue() for v in node.inputs()]
                converted.append(pytorch_convert_map[node.kind()](["x", *operands[1:]], None))
        log("load", model_type, {k: list(v) for k, v in inputs_dict.items()}, in_type, out_type, op_graph_batch_limit)
        log("traced", dict(kinds), flags, converted)
        self.mod = self.graph = "graph"
        self.params = "params"


class Builder:
    def __init__(self, *, target, is_map):
        log("Builder", target, is_map)

    def build(self, graph, params, *opt_level, out_path, **options):
        assert set(options) <= {"apu_only", "profiler", "run_batch", "version"}
        log("build", graph, params, list(opt_level), Path(out_path).name, options)
        return out_path
