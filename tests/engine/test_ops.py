"""Every operation's rule in the IR against torch's functional answer (tests/ir run without torch)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snncc.ir import Param, Store, Type, ops
from snncc.ir.types import Array

seeds = st.integers(0, 2**32 - 1)
images = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 8), st.integers(1, 8))  # (N, C, H, W)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


class Data:
    """Random operands and parameters."""

    def __init__(self, seed: int) -> None:
        self.rng, self.store = np.random.default_rng(seed), Store()

    def array(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)

    def param(self, *shape: int) -> tuple[Param, Tensor]:
        values = self.array(*shape).astype(np.float32)
        return self.store.put("p", values), torch.from_numpy(values).double()

    def check(self, op: ops.Op, want: Tensor, *xs: Array) -> None:
        """Shape and values of ``op`` for operands (N, ...)."""
        out = op.infer(tuple(Type(x.shape[1:]) for x in xs), self.store)
        assert out.shape == tuple(want.shape[1:])
        got = op.evaluate(list(xs), out, self.store)
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-10, atol=1e-10)


@settings(max_examples=150)
@given(
    images,
    st.sampled_from([1, 2, 3]),
    pairs(1, 3),
    pairs(1, 3),
    pairs(0, 3),
    pairs(0, 3),
    pairs(1, 3),
    st.booleans(),
    seeds,
)
def test_conv2d(
    image: tuple[int, ...],
    groups: int,
    kernel: ops.Pair,
    stride: ops.Pair,
    top_bottom: ops.Pair,
    left_right: ops.Pair,
    dilation: ops.Pair,
    biased: bool,
    seed: int,
) -> None:
    data = Data(seed)
    n, c, h, w = image
    x = data.array(n, c * groups, h, w)
    weight, tensor = data.param(2 * groups, c, *kernel)
    bias, offsets = data.param(2 * groups) if biased else (None, None)
    padded = F.pad(torch.from_numpy(x), (*left_right, *top_bottom))
    op = ops.Conv2d(weight, bias, stride, (*top_bottom, *left_right), dilation, groups)
    if any(s < d * (k - 1) + 1 for s, k, d in zip(padded.shape[2:], kernel, dilation, strict=True)):
        with pytest.raises(ops.ShapeError, match="is larger than its input"):
            op.infer((Type(x.shape[1:]),), data.store)
        return
    data.check(op, F.conv2d(padded, tensor, offsets, stride, 0, dilation, groups), x)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 5), st.booleans(), seeds)
def test_linear(shape: list[int], out: int, biased: bool, seed: int) -> None:
    data = Data(seed)
    x = data.array(2, *shape)
    weight, tensor = data.param(out, shape[-1])
    bias, offsets = data.param(out) if biased else (None, None)
    data.check(ops.Linear(weight, bias), F.linear(torch.from_numpy(x), tensor, offsets), x)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans(), seeds)
def test_batch_norm_and_affine(shape: list[int], affine: bool, seed: int) -> None:
    data = Data(seed)
    c = shape[0]
    x = data.array(3, *shape)
    mean, means = data.param(c)
    var = data.store.put("var", data.rng.uniform(0.1, 3, c).astype(np.float32))
    variances = torch.from_numpy(data.store[var].copy()).double()
    (weight, scale), (bias, shift) = (data.param(c), data.param(c)) if affine else ((None, None), (None, None))
    want = F.batch_norm(torch.from_numpy(x), means, variances, scale, shift, eps=1e-3)
    op = ops.BatchNorm(mean, var, weight, bias, 1e-3)
    data.check(op, want, x)
    scales, shifts = op.scale_shift(data.store)
    data.check(ops.Affine(data.store.put("w", scales), data.store.put("b", shifts)), want, x)


@settings(max_examples=200)
@given(images, pairs(1, 4), pairs(1, 4), pairs(0, 2), st.booleans(), st.booleans(), st.sampled_from([0, 1, 5]), seeds)
def test_avg_pool(
    image: tuple[int, ...],
    kernel: ops.Pair,
    stride: ops.Pair,
    padding: ops.Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int,
    seed: int,
) -> None:
    data = Data(seed)
    x = data.array(*image)
    op = ops.AvgPool(kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    try:
        args = kernel, stride, padding, ceil_mode, count_include_pad, divisor or None
        want = F.avg_pool2d(torch.from_numpy(x), *args)
    except RuntimeError:
        with pytest.raises(ops.ShapeError):
            op.infer((Type(x.shape[1:]),), data.store)
        return
    data.check(op, want, x)


@settings(max_examples=200)
@given(images, pairs(1, 4), pairs(1, 4), pairs(0, 2), pairs(1, 3), st.booleans(), seeds)
def test_max_pool(
    image: tuple[int, ...],
    kernel: ops.Pair,
    stride: ops.Pair,
    padding: ops.Pair,
    dilation: ops.Pair,
    ceil_mode: bool,
    seed: int,
) -> None:
    data = Data(seed)
    x = data.array(*image)
    op = ops.MaxPool(kernel, stride, padding, dilation, ceil_mode)
    try:
        want = F.max_pool2d(torch.from_numpy(x), kernel, stride, padding, dilation, ceil_mode)
    except RuntimeError:
        with pytest.raises(ops.ShapeError):
            op.infer((Type(x.shape[1:]),), data.store)
        return
    if torch.isinf(want).any():  # a window of padding alone; in an image, torch gives minus infinity for it
        with pytest.raises(ops.ShapeError, match="lies in its padding"):
            op.infer((Type(x.shape[1:]),), data.store)
        return
    data.check(op, want, x)


@given(images, pairs(1, 3), pairs(1, 3), st.sampled_from([1.0, 0.25]), seeds)
def test_sum_pool(image: tuple[int, ...], kernel: ops.Pair, stride: ops.Pair, scale: float, seed: int) -> None:
    data = Data(seed)
    x = data.array(*image)
    assume(all(s >= k for s, k in zip(image[2:], kernel, strict=True)))
    want = F.avg_pool2d(torch.from_numpy(x), kernel, stride) * (kernel[0] * kernel[1] * scale)
    data.check(ops.SumPool(kernel, stride, scale), want, x)


@given(images, pairs(1, 9), seeds)
def test_adaptive_avg_pool(image: tuple[int, ...], output: ops.Pair, seed: int) -> None:
    data = Data(seed)
    x = data.array(*image)
    data.check(ops.AdaptiveAvgPool(output), F.adaptive_avg_pool2d(torch.from_numpy(x), output), x)


@settings(max_examples=150)
@given(images, pairs(-3, 3), pairs(-3, 3), st.sampled_from(sorted(ops.Pad.NUMPY_MODES)), seeds)
def test_pad(image: tuple[int, ...], rows: ops.Pair, columns: ops.Pair, mode: str, seed: int) -> None:
    data = Data(seed)
    x = data.array(*image)
    op = ops.Pad((0, rows[0], columns[0]), (0, rows[1], columns[1]), mode, 1.5 if mode == "constant" else 0.0)
    kwargs: dict[str, Any] = {"value": 1.5} if mode == "constant" else {}
    try:
        want = F.pad(torch.from_numpy(x), (*columns, *rows), mode, **kwargs)
    except (RuntimeError, NotImplementedError):  # more than torch does
        return
    # Of circular padding with negative amounts torch returns memory that it has not written.
    if min(want.shape) > 0 and (mode == "constant" or min(*rows, *columns) >= 0):
        data.check(op, want, x)


@given(images, seeds)
def test_activations(image: tuple[int, ...], seed: int) -> None:
    data = Data(seed)
    x = data.array(*image) * 3
    t = torch.from_numpy(x)
    data.check(ops.Relu(), F.relu(t), x)
    data.check(ops.Clamp(0.0, 6.0), F.relu6(t), x)
    data.check(ops.Clamp(-1.0, 1.0), F.hardtanh(t), x)
    data.check(ops.Clamp(None, 0.5), t.clamp(max=0.5), x)
    data.check(ops.Clamp(0.5, -0.5), t.clamp(0.5, -0.5), x)
    data.check(ops.Floor(), t.floor(), x)
    # QCFS as its authors write it: theta * clip(floor(x * L / theta + 1/2) / L, 0, 1).
    data.check(ops.QuantRelu(1.5, 4), torch.clamp(torch.floor(t * 4 / 1.5 + 0.5) / 4, 0, 1) * 1.5, x)


@given(images, st.data(), seeds)
def test_shapes(image: tuple[int, ...], choice: st.DataObject, seed: int) -> None:
    data = Data(seed)
    x, y = data.array(*image), data.array(*image)
    t, u = torch.from_numpy(x), torch.from_numpy(y)
    axis = choice.draw(st.integers(0, 2))
    start = tuple(choice.draw(st.integers(0, n - 1)) for n in image[1:])
    stop = tuple(choice.draw(st.integers(a + 1, n)) for a, n in zip(start, image[1:], strict=True))
    step = tuple(choice.draw(st.integers(1, 3)) for _ in start)
    data.check(ops.Slice(start, stop, step), t[(slice(None), *map(slice, start, stop, step))], x)
    data.check(ops.Concat(axis), torch.cat([t, u, t], dim=axis + 1), x, y, x)
    data.check(ops.Add(), t + u, x, y)
    data.check(ops.Flatten(), t.flatten(1), x)
    shape = (image[3], image[1] * image[2])
    data.check(ops.Reshape(shape), t.reshape(-1, *shape), x)
    data.check(ops.Identity(), t, x)
    data.check(ops.Dropout(), F.dropout(t, training=False), x)
