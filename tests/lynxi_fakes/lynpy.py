"""A fake of lynpy as LynxiTechnology/Lynxi-model-zoo publishes it (common/libs/lynpy.py): sizes are checked as there, a
batch goes in and comes out sample by sample. The model that it runs is the module of the written folder, in float32."""

import sys
from pathlib import Path

import numpy as np
import pylynchipsdk
import torch
from lyngor import log


class Tensor:
    def __init__(self, dev_id=0, size=0):
        self.data_size, self.data, self.devptr = size, None, None

    def from_numpy(self, data):
        parts = data if isinstance(data, list) else [data]
        assert all(isinstance(d, np.ndarray) and d.dtype == np.float16 for d in parts)
        total = sum(d.nbytes for d in parts)
        assert self.data_size == total, f"required {self.data_size}, input {total}"
        self.data = data
        return self

    def apu(self):
        self.devptr = np.concatenate([d.ravel() for d in (self.data if isinstance(self.data, list) else [self.data])])
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.data


class Model:
    def __init__(self, dev_id=0, path=None):
        log("Model", dev_id, Path(path).name)
        sys.path.insert(0, str(Path(path).parent))
        import model

        self.context, self.stream, self.model = "context", "stream", "model"
        self.network, arrays = model.read(Path(path).parent)
        self.module = model.build(self.network, arrays)
        pylynchipsdk.STATES = model.STATES  # which nothing but its reset may clear
        self.shapes = [tuple(x.shape) for x in model.example(self.network)]
        self.batch_size = self.network["batch"] if self.network["form"] == "outer-loop" else 1
        self.inputs = Tensor(size=2 * self.batch_size * sum(int(np.prod(s)) for s in self.shapes))

    def input_tensor(self):
        return self.inputs

    def __call__(self, tensor):
        assert tensor is self.inputs and tensor.devptr is not None
        log("infer", int(tensor.devptr.size))
        samples, at = [], 0
        for _ in range(self.batch_size):
            row = []
            for shape in self.shapes:
                size = int(np.prod(shape))
                row.append(torch.from_numpy(tensor.devptr[at : at + size].astype(np.float32).reshape(shape)))
                at += size
            samples.append(row)
        whole = [torch.cat([row[i] for row in samples]) for i in range(len(self.shapes))]
        with torch.no_grad():
            y = self.module(*whole)
        self.found = [part.numpy() for part in (y if isinstance(y, tuple) else (y,))]
        return self

    def output_list(self):
        rows = []
        for i in range(self.batch_size):
            row = []
            for y in self.found:
                tensor = Tensor()
                tensor.data = y[i : i + 1] if self.batch_size > 1 or len(y) == 1 else y
                row.append(tensor)
            rows.append(row)
        return rows
