"""What the fuzzing found, made small: every case is held to all that `make fuzz` holds."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz.checks import examine
from fuzz.network import OBJECTS, Case, Step


def chain(target: str, shape: tuple[int, ...], *lines: str, **others: Any) -> Case:
    """Steps in a row, each an expression of {0}, the value before it (and {1}, the input), or a module."""
    steps = tuple(
        Step("{m}({0})", (i,), line, f"layer{i}") if line.startswith(OBJECTS) else Step(line, (i, 0))
        for i, line in enumerate(lines)
    )
    options = tuple({"timesteps": 4, **others.pop("options", {})}.items())
    return Case((shape,), steps, (len(lines),), target=target, options=options, **others)


FOUND = {
    # Exceptions that were not ours.
    "a part of the input": chain("lynxi", (1, 1, 3), "{0}[..., 1:]"),
    "a column of the input": chain("lynxi", (2, 3, 2), "{0}[:, :, :, 0]"),
    "copies along the width": chain("lynxi", (1, 2, 2), "nn.Conv2d(1, 1, 1, padding=(0, 1), padding_mode='circular')"),
    "copies along the height": chain(
        "lynxi", (1, 3, 4), "nn.Conv2d(1, 2, 3, padding=(1, 0), padding_mode='reflect', stride=(1, 2))"
    ),
    "a maximum beyond the border": chain("lynxi", (1, 2, 1), "nn.MaxPool2d((1, 1), 2, ceil_mode=True)"),
    "maxima with dilation": chain(
        "lynxi", (1, 8, 6), "nn.Conv2d(1, 2, 1)", "torch.relu({0})", "nn.MaxPool2d(2, 3, 1, 2, ceil_mode=True)"
    ),
    "numbers too close for a histogram": chain(  # seed 0: the explorer's page is written
        "reference", (2,), "nn.Linear(2, 1)", edits=("model.layer0.bias.mul_(1e6)",), samples=2
    ),
    "a channel of a map": chain("speck2b", (2, 1, 1), "{0}[:, 1]"),
    "channels in front of a layer along the width": chain(
        "speck2b", (2, 1, 1), "{0}.chunk(2, 1)[0]", "nn.Linear(1, 1)"
    ),
    "five axes": chain("dynapcnn", (2, 1, 1), "{0}.unflatten(1, (-1, 1))", "{0}.chunk(2, 1)[0]"),
    "one column": chain("dynapcnn", (1, 3, 3), "torch.relu({0})", "{0}[:, :, :, 0]", "nn.Linear(3, 2)"),
    "two axes": chain("speck2f", (1, 2), "{0} + {0}"),
    "a layer along the last axis": chain("dynapcnn", (2, 1), "nn.Linear(1, 4)"),
    # What was written could not be read back.
    "a negative padding": chain("lynxi", (1, 2, 3), "F.pad({0}, (1, -1))"),
    "ones beside spikes": chain(
        "speck2b", (1, 3, 3), "torch.relu({0})", "1 - {0}", "nn.Conv2d(1, 1, 1, padding=(0, 1))"
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_it_is_mended(name: str) -> None:
    assert examine(FOUND[name]).finding is None
