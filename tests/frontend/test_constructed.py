"""Places of what has no running line of the user's: where modules are made, and where inputs come in."""

from __future__ import annotations

import copy
import cProfile
import functools
import gc
import inspect
import pickle
import profile
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.cli import _import, main
from snncc.frontend import constructed, trace
from snncc.frontend.places import _MADE, constructed_at
from snncc.ir import InputError

Make = Callable[[str, str], nn.Module]

# A comment names a network, and of it what the line is the place of.
SOURCE = """
import torch
from torch import nn
from collections import OrderedDict


def plain():
    return nn.Sequential(  # plain input
        nn.Conv2d(1, 2, 3),  # plain 0
        nn.ReLU(),  # plain 1
        nn.Flatten(), nn.Linear(  # plain 2 3
            8,
            4,
        ),
        nn.ReLU(),  # plain 4
    )


def nested():
    head = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))  # nested 1.0 1.1
    return nn.Sequential(  # nested input
        nn.Sequential(
            nn.Conv2d(1, 2, 3),  # nested 0.0
            nn.Sequential(nn.ReLU()),  # nested 0.1.0
        ),
        head,
    )


def named():
    return nn.Sequential(  # named input
        OrderedDict(
            conv=nn.Conv2d(1, 2, 3),  # named conv
            act=nn.ReLU(),  # named act
            flat=nn.Flatten(),  # named flat
        )
    )


def block(n, m):
    return [
        nn.Conv2d(n, m, 1),  # looped 0 2 4
        nn.ReLU(),  # looped 1 3 5
    ]


def looped():
    layers = []
    for n in (1, 2, 3):
        layers += block(n, n + 1)
    layers.append(nn.Flatten())  # looped 6
    return nn.Sequential(*layers)  # looped input


class Own(nn.Sequential):
    def __init__(self, n):
        super().__init__(  # root input
            nn.Conv2d(1, n, 3),  # root 0
            nn.ReLU(),  # root 1
        )
        self.append(nn.Flatten())  # root 2


root = Own(2)


class Scaled(nn.Module):
    def forward(self, x):
        return x * 2  # mixed 0


mixed = nn.Sequential(  # mixed input
    Scaled(),
    nn.ReLU(),  # mixed 1
)


class Users(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    @torch.no_grad()
    @torch.autocast(
        "cpu", enabled=False
    )
    def forward(self, x):  # Users input
        x = self.body(x)  # Users body.0 body.1
        return self.fc(x.flatten(1))  # Users flatten fc


def unsupported():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.LPPool2d(2, 2),  # unsupported 1
    )


def cloned():
    return nn.Sequential(
        nn.Flatten(2),
        nn.TransformerEncoder(  # cloned 1
            nn.TransformerEncoderLayer(16, 2, 8), 2, enable_nested_tensor=False
        ),
    )


def broken():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear())  # broken 0
"""
NETWORKS = ("plain", "nested", "named", "looped", "root", "mixed", "Users")


def marked(network: str) -> dict[str, int]:
    """The lines that the source says."""
    found: dict[str, int] = {}
    for i, row in enumerate(SOURCE.splitlines(), start=1):
        name, *what = row.partition("# ")[2].split() or [""]
        found |= dict.fromkeys(what, i) if name == network else {}
    return found


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    path, modules = list(sys.path), set(sys.modules)
    place = tmp_path / "networks_of_containers.py"
    place.write_text(SOURCE)
    yield str(place)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("networks_of_containers"):
            del sys.modules[name]


def by_context(file: str, name: str) -> nn.Module:
    names: dict[str, Any] = {"__name__": "networks_of_containers"}
    with constructed():
        exec(compile(SOURCE, file, "exec"), names)  # noqa: S102
        value = names[name]
        made: nn.Module = value if isinstance(value, nn.Module) else value()
    return made


def by_command(file: str, name: str) -> nn.Module:
    model: nn.Module = _import(f"{file}:{name}")
    return model


def sources(model: nn.Module, *shape: int) -> list[tuple[str, str, str, int]]:
    """Of every node: its name, the module, file and line."""
    graph, found = trace(model.eval(), torch.rand(2, *(shape or (1, 4, 4))))
    assert graph is not None, found
    return [(n.name, s.module, s.file, s.line) for n in graph.nodes for s in n.loc]


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


# ------------------------------------------------------------------------------------------------ where layers are made


@pytest.mark.parametrize("make", [by_context, by_command])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_node_has_its_line(make: Make, network: str, file: str) -> None:
    got = sources(make(file, network))
    x = "x" if network == "Users" else "input"
    want = marked(network)
    assert got[0] == (x, "", file, want["input"])
    assert {(module or name, file, line) for name, module, file, line in got[1:]} == {
        (name, file, line) for name, line in want.items() if name != "input"
    }


def test_encoded_inputs_have_it_too(file: str) -> None:
    model = by_context(file, "plain").eval()
    calibration = np.random.default_rng(0).random((8, 1, 4, 4), dtype=np.float32)
    for options in ({"encoding": "rate"}, {"neuron": "sigma-delta", "target": "lava"}):
        done = snncc.compile(model, calibration=calibration, timesteps=4, bias="keep", **options)  # type: ignore[arg-type]
        found = [n for r in done.records for n in r.graph.nodes if n.op.mnemonic in ("input", "encode")]
        assert {n.op.mnemonic for n in found} == {"input", "encode"}
        assert all((file, marked("plain")["input"]) in {(s.file, s.line) for s in n.loc} for n in found)
        assert all(s.file for r in done.records for n in r.graph.nodes for s in n.loc)


def test_without_it_all_is_as_before(file: str) -> None:
    names: dict[str, Any] = {"__name__": "networks_of_containers"}
    exec(compile(SOURCE, file, "exec"), names)  # noqa: S102
    assert [place for _, *place in sources(names["plain"]())] == [[str(i), "", 0] for i in range(5)]
    assert {line for *_, line in sources(names["Users"]())} == set(marked("Users").values())


def test_what_no_line_made_has_the_place_of_what_is_around_it(file: str) -> None:
    """Copies, here those that torch makes of a layer."""
    model: Any = by_context(file, "cloned")
    assert constructed_at(model[1].layers[0].linear1) is None
    _, found = trace(model.eval(), torch.rand(2, 3, 4, 4))
    assert found and {(s.file, s.line) for d in found for s in d.loc} == {(file, marked("cloned")["1"])}
    net = by_context(file, "plain")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301
        assert {line for *_, line in sources(other)} == {0}
        with constructed():
            around, line = nn.Sequential(other), here()
        assert {(at, found) for _, _, at, found in sources(around)} == {(__file__, line)}


def test_shared_modules() -> None:
    with constructed():
        relu, at = nn.ReLU(), here()
        net, line = nn.Sequential(relu, nn.Linear(3, 3), relu), here()
    assert [(s[1], s[3]) for s in sources(net, 3)] == [("", line), ("0", at), ("1", line), ("0", at)]


def test_a_layer_is_a_model_too() -> None:
    with constructed():
        layer, line = nn.Linear(3, 3), here()
    assert [(at, found) for *_, at, found in sources(layer, 3)] == [(__file__, line)] * 2


# ------------------------------------------------------------------------------------------------- where inputs come in


def test_a_forward_that_is_put_on_the_instance() -> None:
    """Also behind a decorator of torch's or of the user's own; or no function at all."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x * 2

    def twice(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def again(x: Tensor) -> Tensor:
            return function(x) * 2

        return again

    def entered(new: Callable[..., Tensor]) -> list[list[Any]]:
        net.forward = new
        return [place for name, _, *place in sources(net, 3) if name == "x"]

    net: Any = nn.Sequential()
    first = forward.__code__.co_firstlineno
    assert entered(MethodType(forward, net)) == [[__file__, first]]
    assert entered(torch.no_grad()(MethodType(forward, net))) == [[__file__, first]]
    assert entered(twice(MethodType(forward, net))) == [[__file__, twice.__code__.co_firstlineno + 1]]
    assert entered(lambda x: x * 2) == [[__file__, here()]]
    assert entered(functools.partial(forward, net)) == []
    with constructed():
        net, line = nn.Sequential(), here()
    assert entered(functools.partial(forward, net)) == [[__file__, line]]


def test_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    graph, _ = trace(Two(), (torch.rand(2, 3), torch.rand(2, 3)))
    assert graph is not None
    line = Two.forward.__code__.co_firstlineno
    assert [[(s.module, s.file, s.line) for s in n.loc] for n in graph.inputs] == [[("", __file__, line)]] * 2


def test_a_function_without_source() -> None:
    names: dict[str, Any] = {"__name__": "nowhere"}
    exec(compile("def deco(f): return f\n@deco\ndef forward(self, x):\n  return x * 2\n", "<no file>", "exec"), names)  # noqa: S102
    net: Any = type("Net", (nn.Module,), {"forward": names["forward"]})()
    assert [(at, line) for *_, at, line in sources(net, 3)] == [("<no file>", 2), ("<no file>", 4)]


# ---------------------------------------------------------------------------------------------------------- diagnostics


def test_diagnostics_show_the_line(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:unsupported", "--input-shape", "1,8,8"]) == 1
    err = capsys.readouterr().err
    assert f"{file}:{marked('unsupported')['1']}, module `1`" in err and "nn.LPPool2d(2, 2),  # unsupported 1" in err


def test_of_what_fails_the_users_lines_are_told(file: str) -> None:
    """And none of the compiler's."""
    with pytest.raises(InputError) as caught:
        by_command(file, "broken")
    (found,) = caught.value.diagnostics
    assert [(s.file, s.line) for s in found.loc] == [(file, marked("broken")["0"])]
    assert sys.getprofile() is None


def test_a_class_of_torchs_that_the_command_line_calls_has_no_line() -> None:
    assert constructed_at(_import("torch.nn:Identity")) is None


def test_a_model_that_fails_when_it_runs() -> None:
    """With no line of the user's that runs, neither in tracing nor in the run on the example."""
    with constructed():
        net, line = nn.Sequential(nn.ModuleList()), here()
    _, found = trace(net, torch.rand(2, 3))
    assert [(d.code, s.file, s.line) for d in found for s in d.loc] == [("SNN008", __file__, line)]


# ----------------------------------------------------------------------------------------------------- the block itself


def test_nothing_is_left_behind() -> None:
    before = set(_MADE)
    with constructed():
        net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert len(set(_MADE) - before) == 3
    assert set(vars(net)) == set(vars(nn.Sequential()))
    del net
    gc.collect()
    assert set(_MADE) <= before


def test_outside_of_the_block_nothing_is_remembered() -> None:
    with constructed():
        pass
    assert constructed_at(nn.ReLU()) is None and sys.getprofile() is None


def test_a_raise_ends_it() -> None:
    with pytest.raises(KeyError, match="mine"), constructed():
        raise KeyError("mine")
    assert sys.getprofile() is None


def test_nested_blocks() -> None:
    with constructed():
        with constructed():
            inner, at = nn.ReLU(), here()
        outer, line = nn.ReLU(), here()
    assert sys.getprofile() is None
    assert (constructed_at(inner), constructed_at(outer)) == ((__file__, at), (__file__, line))


def test_a_profile_function_of_the_users_goes_on() -> None:
    seen = []

    def users(frame: FrameType, event: str, arg: Any) -> None:
        seen.append((frame.f_code.co_name, event))

    def within() -> None:
        pass

    sys.setprofile(users)
    try:
        with constructed():
            within()
            made = nn.ReLU()
        assert sys.getprofile() is users
    finally:
        sys.setprofile(None)
    assert constructed_at(made) is not None
    assert seen.count(("within", "call")) == seen.count(("within", "return")) == 1


def test_one_that_is_set_within_stays() -> None:
    def users(frame: FrameType, event: str, arg: Any) -> None:
        pass

    try:
        with constructed():
            sys.setprofile(users)
        assert sys.getprofile() is users
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("profiler", [cProfile.Profile, profile.Profile])
def test_pythons_own_profilers_count_on(profiler: Any) -> None:
    def within() -> nn.Module:
        return nn.ReLU()

    def block() -> nn.Module:
        with constructed():
            return within()

    watching = profiler()
    made = watching.runcall(block)
    watching.create_stats()
    assert sum(name == "within" for *_, name in watching.stats) == 1
    known = constructed_at(made) is not None
    assert known or (profiler is cProfile.Profile and sys.version_info < (3, 12))


def test_other_threads_are_left_alone() -> None:
    made = []
    with constructed():
        thread = threading.Thread(target=lambda: made.append((nn.ReLU(), sys.getprofile())))
        thread.start()
        thread.join()
    ((module, found),) = made
    assert found is None and constructed_at(module) is None


def test_modules_with_a_hash_of_their_own() -> None:
    """Which does not work before they are made."""

    class Named(nn.ReLU):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Named) and other.name == self.name

        def __hash__(self) -> int:
            return hash(self.name)

    with constructed():
        a, b = Named("a"), Named("a")
    assert a == b and constructed_at(a) == constructed_at(b) == (__file__, Named.__init__.__code__.co_firstlineno + 1)
