"""A failing case made smaller, as long as it fails in the same way."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from fuzz.network import Case, Step

SECONDS = 60.0


def shrink(case: Case, fails: Callable[[Case], bool], seconds: float = SECONDS) -> Case:
    """The smallest case that was found in that time; ``fails``: in the same way as the case given."""
    until, known = time.monotonic() + seconds, {repr(case)}
    while True:
        for smaller in _smaller(case):
            if time.monotonic() > until:
                return case
            if repr(smaller) in known:
                continue
            known.add(repr(smaller))
            try:
                smaller.source  # noqa: B018 (torch says whether it fits together)
            except Exception:  # noqa: BLE001
                continue
            if fails(smaller):
                case = smaller
                break
        else:
            return case


def _smaller(case: Case) -> Iterator[Case]:
    """Cases with one thing less, the largest things first."""
    for i in range(len(case.outputs) if len(case.outputs) > 1 else 0):
        yield _live(replace(case, outputs=case.outputs[:i] + case.outputs[i + 1 :]))
    first = len(case.inputs)
    for i in range(len(case.steps)):  # end earlier
        yield _live(replace(case, outputs=(first + i,)))
    yield _live(case)
    for i in reversed(range(len(case.steps))):
        for arg in dict.fromkeys(case.steps[i].args):
            yield _live(_without(case, i, arg))
    for i in range(len(case.edits)):
        yield replace(case, edits=case.edits[:i] + case.edits[i + 1 :])
    for i in range(len(case.options)):
        yield replace(case, options=case.options[:i] + case.options[i + 1 :])
    for steps in (1, 2, 4, 8):
        if dict(case.options).get("timesteps", 32) > steps:
            yield replace(case, options=tuple(dict(case.options, timesteps=steps).items()))
    for name, usual in {"precision": "float", "data": "rng.random(shape)", "target": "reference"}.items():
        if getattr(case, name) != usual:
            yield replace(case, **{name: usual})  # type: ignore[arg-type]
    for n in (1, 2, 4, 8):
        if n < case.samples:
            yield replace(case, samples=n)
    for i, shape in enumerate(case.inputs):
        for axis, n in enumerate(shape):
            for less in dict.fromkeys((1, 2, n // 2, n - 1)):
                if 0 < less < n:
                    smaller = (*shape[:axis], less, *shape[axis + 1 :])
                    yield replace(case, inputs=(*case.inputs[:i], smaller, *case.inputs[i + 1 :]))
    for i, step in enumerate(case.steps):
        for text in _simpler(step.text):
            yield _with(case, i, replace(step, text=text))
        for own in _simpler(step.own):
            every = tuple(replace(s, own=own) if s.name == step.name and s.own else s for s in case.steps)
            yield replace(case, steps=every)


def _with(case: Case, i: int, step: Step) -> Case:
    return replace(case, steps=(*case.steps[:i], step, *case.steps[i + 1 :]))


def _without(case: Case, i: int, arg: int) -> Case:
    """Without the step ``i``: the value ``arg`` stands for what it gave."""
    gone = len(case.inputs) + i

    def moved(value: int) -> int:
        value = arg if value == gone else value
        return value - (value > gone)

    steps = (*case.steps[:i], *case.steps[i + 1 :])
    steps = tuple(replace(step, args=tuple(map(moved, step.args))) for step in steps)
    return replace(case, steps=steps, outputs=tuple(map(moved, case.outputs)))


def _live(case: Case) -> Case:
    """Without steps and inputs that no output needs, and edits of what is gone."""
    first, needed = len(case.inputs), set(case.outputs)
    for i in reversed(range(len(case.steps))):
        if first + i in needed:
            needed.update(case.steps[i].args)
    for i in reversed(range(len(case.steps))):
        if first + i not in needed:
            case = _without(case, i, 0)
            needed = {value - (value > first + i) for value in needed}
    for i in reversed(range(first)):
        if i not in needed and len(case.inputs) > 1:
            renumbered = partial(_less, than=i)
            steps = tuple(replace(step, args=tuple(map(renumbered, step.args))) for step in case.steps)
            outputs, inputs = tuple(map(renumbered, case.outputs)), (*case.inputs[:i], *case.inputs[i + 1 :])
            case = replace(case, inputs=inputs, steps=steps, outputs=outputs)
            needed = {value - (value > i) for value in needed}
    names = {step.name for step in case.steps if step.name}
    return replace(case, edits=tuple(e for e in case.edits if set(re.findall(r"model\.(\w+)", e)) <= names))


def _less(value: int, than: int) -> int:
    return value - (value > than)


def _simpler(text: str) -> Iterator[str]:
    """The text with an argument less, or with a smaller number."""
    for match in re.finditer(r", ?\w+=(\([^()]*\)|[^,()]+)", text):
        yield text[: match.start()] + text[match.end() :]
    if text.startswith("nn.Sequential("):
        parts = re.split(r", (?=nn\.)", text[len("nn.Sequential(") : -1])
        yield from parts
    for match in re.finditer(r"(?<![\w.\[{])\d+(?![\w.\]}])", text):
        n = int(match.group())
        for less in dict.fromkeys((1, 2, n // 2)):
            if less < n:
                yield text[: match.start()] + str(less) + text[match.end() :]
