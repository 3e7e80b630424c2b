"""Places in the user's program: the line that runs, the function that a model begins with, and the lines that made its
modules, for networks of torch's own containers, in whose forward no line of the user's runs."""

from __future__ import annotations

import inspect
import linecache
import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, TracebackType
from typing import Any

from torch import nn

Place = tuple[str, int]  # file, line

_OURS = ("torch", "snncc")
_INIT = nn.Module.__init__.__code__
# By identity, as a module of the user's may have a hash of its own, which need not work before it is made.
_MADE: dict[int, tuple[weakref.ref[nn.Module], Place]] = {}


def is_users(frame: FrameType) -> bool:
    """Whether the frame runs code that is neither torch's nor the compiler's."""
    return _package(frame.f_globals) not in _OURS


def _package(names: dict[str, Any]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]


def users_place(traceback: TracebackType | None) -> Place | None:
    """(file, line): the innermost of the user's that an exception went through."""
    place = None
    while traceback is not None:
        if is_users(traceback.tb_frame):
            place = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
    return place


@contextmanager
def constructed() -> Iterator[None]:
    """Remember which line makes each module: the place of what runs in an ``nn.Sequential``, which has no other.

    ::

        from snncc.frontend import constructed

        with constructed():
            model = make_model()
        compiled = snncc.compile(model, ...)  # diagnostics and the record name the lines in make_model

    A model whose forward is the user's own needs none of this: the lines that run there are known, and are preferred.
    The command line does it for every model that it imports or makes.

    Remembered is the user's innermost line, for as long as the module lives; nothing is written on the module. Copies
    and unpickled modules were made by no line. Only this thread is watched, by :func:`sys.setprofile`, which makes
    calls of Python functions slower within the block. A profile function that is set already goes on; where it is no
    Python function (cProfile's until Python 3.11) it is left alone, and nothing is remembered.
    """
    before: Any = sys.getprofile()
    if before is not None and not callable(before):
        yield
        return

    def watch(frame: FrameType, event: Any, arg: Any) -> None:
        if event == "call" and frame.f_code is _INIT:
            _remember(frame)
        if before is not None:
            before(frame, event, arg)

    sys.setprofile(watch)
    try:
        yield
    finally:
        if sys.getprofile() is watch:  # else the user's code has set another one, which is to stay
            sys.setprofile(before)


def _remember(init: FrameType) -> None:
    caller = init.f_back
    while caller is not None and _package(caller.f_globals) == "torch":
        caller = caller.f_back
    if caller is None or not is_users(caller):  # the compiler itself: beyond it is whoever called it
        return
    module = init.f_locals["self"]
    key = id(module)

    def forget(_: object, made: dict[int, Any] = _MADE) -> None:  # an argument, as the interpreter's end clears names
        made.pop(key, None)

    _MADE[key] = weakref.ref(module, forget), (caller.f_code.co_filename, caller.f_lineno)


def constructed_at(module: nn.Module) -> Place | None:
    """The user's line that made the module within :func:`constructed`."""
    made = _MADE.get(id(module))
    return None if made is None else made[1]


def entered_at(model: nn.Module) -> Place | None:
    """Where the model's inputs come in: its forward, at the ``def``, if that is the user's own, else where the model
    was constructed."""
    function = inspect.unwrap(model.forward)  # of a decorator such as torch.no_grad()
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function) or _package(function.__globals__) in _OURS:
        return constructed_at(model)
    return function.__code__.co_filename, _line_of_def(function.__code__)


def _line_of_def(code: CodeType) -> int:
    """Python counts a function from its first decorator on."""
    first = code.co_firstlineno
    last = max((line for *_, line in code.co_lines() if line is not None), default=first)
    start = re.compile(rf"\s*def\s+{re.escape(code.co_name)}\b")
    lines = linecache.getlines(code.co_filename)[first - 1 : last]
    return next((first + i for i, line in enumerate(lines) if start.match(line)), first)
