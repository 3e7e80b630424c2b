"""The live explorer over HTTP: what a change of a file or a setting leads to, and who is refused."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

import snncc.live
from snncc.cli import _model_file, _parser, _rebuilt, main
from snncc.compilation import Compilation
from snncc.ir import InputError
from snncc.live import Live, Settings, form
from snncc.targets import all_targets, find
from snncc.targets.base import Options

PATIENCE = 60.0  # seconds that anything may take
MODEL = """
import torch
from torch import nn
from sizes import HIDDEN


def make_model():
    torch.manual_seed(0)
    first = nn.Conv2d(1, HIDDEN, 3, bias=False)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(36 * HIDDEN, 5, bias=False))
"""
Record = dict[str, Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a module beside it, and data: the current one."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "sizes.py").write_text("HIDDEN = 4\n")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Served:
    """A server in a thread, and a client of it."""

    def __init__(self, *arguments: str, model: str = "model.py:make_model") -> None:
        options = _parser()[0].parse_args(["explore", model, "--calibration", "x.npy", *arguments])
        self.live = Live(
            partial(_rebuilt, options), _model_file(model), "speck2f", {"timesteps": 8}, files=[options.calibration]
        )
        self.thread = threading.Thread(target=self.live.run)
        self.thread.start()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by lower-case name, body. A header of None is not sent."""
        every = {"host": f"127.0.0.1:{self.live.port}", "content_type": "application/json" if body else None, **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.live.port, timeout=PATIENCE)
        connection.putrequest(method, path, skip_host=True)
        for name, value in every.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        if body is not None and "content_length" not in every:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def send(self, method: str, name: str, data: object, **headers: str | None) -> tuple[int, dict[str, Any]]:
        status, _, body = self.ask(method, self.base + name, json.dumps(data).encode(), **headers)
        return status, json.loads(body)

    @property
    def base(self) -> str:
        return f"/{self.live.token}/"

    def record(self) -> Record:
        status, headers, body = self.ask("GET", self.base + "record")
        assert status == 200
        return {**json.loads(body), "version": int(headers["etag"].strip('"'))}

    def until(self, true: Callable[[Record], object]) -> Record:
        """The first record that is so, of which there must be one."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = self.record()
            if true(found):
                return found
            time.sleep(0.05)
        raise AssertionError(self.record()["diagnostics"])

    def ok(self) -> Record:
        return self.until(lambda r: r["version"] and r["ok"])

    def error(self, code: str) -> Record:
        return self.until(lambda r: code in {d["code"] for d in r["diagnostics"] if d["severity"] == "error"})

    def events(self) -> Iterator[Record]:
        """What is told, as it comes; the connection is closed with the iterator."""
        connection = http.client.HTTPConnection("127.0.0.1", self.live.port, timeout=PATIENCE)
        connection.request("GET", self.base + "events")
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "text/event-stream"
        try:
            while line := answer.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))
        finally:
            answer.close()
            connection.close()

    def end(self) -> None:
        self.live.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture
def served(place: Path) -> Iterator[Served]:
    server = Served()
    yield server
    server.end()


def width(record: Record) -> int:
    """Channels of the first layer."""
    return next(n["type"]["shape"][0] for n in record["stages"][0]["nodes"] if n["op"] == "conv2d")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- what changes ---------------------------------------------------------------------------------------------------


def test_a_changed_module_makes_another_network(served: Served, place: Path) -> None:
    """The module beside the model is imported anew, also where two edits of one length fall into one second."""
    first = served.ok()
    assert (first["target"], first["options"]["timesteps"], width(first)) == ("speck2f", 8, 4)
    assert "text" not in first["stages"][0] and first["stages"][0]["head"]
    for channels in (6, 8, 5, 7, 6):
        (place / "sizes.py").write_text(f"HIDDEN = {channels}\n")
        found = served.until(lambda r, n=channels: r["ok"] and width(r) == n)
        assert found["version"] > first["version"]
        first = found
    (place / "model.py").write_text(MODEL.replace("nn.ReLU()", "nn.ReLU(), nn.AvgPool2d(2)").replace("36", "9"))
    served.until(lambda r: r["ok"] and "pool" in str(r["stages"][0]["nodes"]))
    assert set(served.live.files) == {str(place / name) for name in ("model.py", "sizes.py", "x.npy")}


def test_calibration_data_are_watched(served: Served, place: Path) -> None:
    served.ok()
    np.save(place / "x.npy", np.ones((8, 1, 9, 9), np.float32))
    assert served.error("SNN005")["stages"] == []
    np.save(place / "x.npy", np.ones((8, 1, 8, 8), np.float32))
    served.ok()


def test_a_syntax_error_is_shown_and_mended(served: Served, place: Path) -> None:
    served.ok()
    broken = MODEL.replace("def make_model():", "def make_model(:")
    (place / "model.py").write_text(broken)
    found = served.error("SNN071")
    (at,) = found["diagnostics"][0]["locations"][:1]
    assert (at["file"], at["line"]) == (str(place / "model.py"), 7)
    assert found["sources"][at["file"]] == broken
    assert (found["ok"], found["stages"], found["target"]) == (False, [], "speck2f")
    (place / "model.py").write_text(MODEL)
    assert served.ok()["sources"][at["file"]] == MODEL


def test_an_error_in_a_module_is_shown_there_and_mended_there(served: Served, place: Path) -> None:
    served.ok()
    (place / "sizes.py").write_text("HIDDEN = 4\nHIDDEN / 0\n")
    found = served.error("SNN071")
    at = found["diagnostics"][0]["locations"][0]
    assert (at["file"], at["line"]) == (str(place / "sizes.py"), 2)
    assert set(found["sources"]) == {str(place / "sizes.py"), str(place / "model.py")}
    (place / "sizes.py").write_text("HIDDEN = 4\n")
    served.ok()


def test_a_module_that_is_missing_may_come(place: Path) -> None:
    (place / "sizes.py").unlink()
    server = Served()
    try:
        server.error("SNN071")
        (place / "sizes.py").write_text("HIDDEN = 3\n")
        assert width(server.ok()) == 3
    finally:
        server.end()


def test_a_network_that_does_not_fit_shows_how_far_it_came(served: Served, place: Path) -> None:
    served.ok()
    (place / "sizes.py").write_text("HIDDEN = 3000\n")
    found = served.until(lambda r: not r["ok"])
    assert found["stages"][-1]["failed"] and found["fits"]
    assert width(found) == 3000


def test_a_removed_model_is_an_error_until_it_is_back(served: Served, place: Path) -> None:
    served.ok()
    (place / "model.py").rename(place / "kept")
    served.error("SNN071")
    (place / "kept").rename(place / "model.py")
    served.ok()


def test_a_file_that_is_missing_for_a_moment_is_being_saved(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snncc.live, "GONE", 1e6)
    live = Live(find, place / "model.py", "reference", {})  # type: ignore[arg-type]  # which nobody calls
    assert live._looked() and not live._looked()
    (place / "model.py").rename(place / "model.py~")
    assert not live._looked() and not live._looked()
    (place / "model.py~").rename(place / "model.py")
    assert not live._looked()  # the same file is back
    (place / "model.py").unlink()
    assert not live._looked()
    (place / "model.py").write_text("x = 1\n")
    assert live._looked() and not live._looked()
    monkeypatch.setattr(snncc.live, "GONE", 0.0)
    (place / "model.py").unlink()
    assert live._looked() and not live._looked()  # it is gone
    (place / "model.py").write_text("x = 1\n")
    assert live._looked()


def test_what_is_written_while_it_compiles_is_compiled_again(place: Path) -> None:
    """A file that a compile names for the first time may have been read before it was written."""
    live = Live(find, place / "model.py", "reference", {})  # type: ignore[arg-type]  # which nobody calls
    assert live._looked()
    sizes = place / "sizes.py"
    began = sizes.stat().st_mtime_ns
    live._watch([str(place / "model.py"), str(sizes)], began, True)
    assert not live._looked()
    live._watch([str(place / "model.py")], began, True)
    live._watch([str(place / "model.py"), str(sizes)], began - 1, True)
    assert live._looked() and not live._looked()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_newer_change_ends_a_compile_that_goes_on_and_on(served: Served, place: Path) -> None:
    """With what it started itself."""
    served.ok()
    sleep = (
        "import subprocess, sys, time\n"
        "asleep = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "open('asleep', 'w').write(str(asleep.pid))\ntime.sleep(3600)\n"
    )
    (place / "model.py").write_text(sleep)
    pid = int(wait_for(lambda: (place / "asleep").exists() and (place / "asleep").read_text()))
    before = served.record()
    assert next(served.events())["busy"]
    (place / "model.py").write_text(MODEL.replace("5, bias", "6, bias"))
    assert served.until(lambda r: r["version"] > before["version"])["ok"]
    wait_for(lambda: not runs(pid))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("code", "said"), [("os._exit(3)", "exit status 3"), ("os.kill(os.getpid(), 9)", "killed by signal 9")]
)
def test_a_process_that_dies_is_an_error(served: Served, place: Path, code: str, said: str) -> None:
    served.ok()
    (place / "model.py").write_text(f"import os\n{code}\n")
    found = served.error("SNN071")
    assert said in found["diagnostics"][0]["message"]
    assert list(found["sources"]) == [str(place / "model.py")]
    (place / "model.py").write_text(MODEL)
    served.ok()


def test_an_error_of_the_compiler_is_shown_and_the_server_goes_on(
    served: Served, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served.ok()
    broken = "import snncc.api\ndef trace(*a, **b): raise KeyError('no such pass')\nsnncc.api._trace = trace\n"
    (place / "model.py").write_text(broken + MODEL)
    found = served.until(lambda r: not r["ok"])
    assert "KeyError: 'no such pass'" in found["diagnostics"][0]["message"]
    (place / "model.py").write_text(MODEL)
    served.ok()


def test_modules_of_the_users_do_not_stand_in_for_pythons(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a compile imports is found where Python has it, not in the current folder."""
    script = tmp_path_factory.mktemp("bin") / "snncc"
    script.write_text("import sys\nfrom snncc.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n")
    (place / "queue.py").write_text("raise ValueError('not this one')\n")
    command = [sys.executable, str(script), *COMMAND[3:], "--json"]
    with subprocess.Popen(command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        done = json.loads(process.stdout.readline())
        process.terminate()
        assert done["ok"] and process.communicate(timeout=PATIENCE) == ("", "")


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings(served: Served) -> None:
    served.ok()
    asked = {"target": "reference", "options": {"timesteps": 16, "reset": "zero", "seed": 0}}
    assert served.send("POST", "settings", asked) == (200, {})
    found = served.until(lambda r: r["target"] == "reference" and r["version"])
    assert found["ok"]
    assert (found["options"]["timesteps"], found["options"]["reset"]) == (16, "zero")
    settings = next(served.events())["settings"]
    assert settings == {"target": "reference", "options": {"timesteps": 16, "reset": "zero"}}
    assert served.send("POST", "settings", {"target": "speck2f", "options": {}})[0] == 200
    assert served.until(lambda r: r["target"] == "speck2f")["options"]["timesteps"] == Options().timesteps


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"target": "speck9", "options": {}}, "no target 'speck9'; did you mean 'speck'? choose one of reference"),
        ({"target": "speck2f", "options": {"depth": 3}}, "there is no option 'depth'; choose one of batch"),
        ({"target": "speck2f", "options": {"timesteps": 0}}, "timesteps=0 is not a whole number from 1"),
        ({"target": "speck2f", "options": {"timesteps": True}}, "is not a whole number"),
        ({"target": "speck2f", "options": {"readout": 3}}, "readout=3 is no bool"),
        ({"target": "reference", "options": {"form": "netx"}}, "does not take form='netx'; leave it out"),
        ({"target": "speck2f", "options": {"reset": ["zero"]}}, "reset=['zero'] is unknown"),
        ({"target": "speck2f", "options": {"v0": float("nan")}}, "v0=nan"),
        ({"target": "speck2f"}, "is not a target's name and options by name"),
        ({"target": ["speck2f"], "options": {}}, "is not a target's name and options by name"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(served: Served, asked: object, said: str) -> None:
    status, answer = served.send("POST", "settings", asked)
    assert status == 400 and said in answer["message"]
    assert served.ok()["target"] == "speck2f"
    assert next(served.events())["settings"] == {"target": "speck2f", "options": {"timesteps": 8}}


def test_the_form_has_every_option() -> None:
    """As a field of one kind, with a default that is allowed and words."""
    made = form()
    assert json.loads(json.dumps(made)) == made
    assert list(made) == [field.name for field in fields(Options)]
    for name, field in made.items():
        assert field["help"] and ":mod:" not in field["help"] and "\n" not in field["help"], name
        Options.of({name: field["default"]})
        if field["type"] == "choice":
            assert field["default"] in field["choices"]
            for value in field["choices"]:
                Options.of({name: value})
        elif field["type"] in ("int", "float"):
            Options.of({name: field["min"]})
            Options.of({name: field["max"]})
            with pytest.raises(InputError):
                Options.of({name: field["max"] + 1})
        else:
            Options.of(
                {
                    name: {"bool": True, "text": "auto", "list": [3] if field.get("of") == "int" else ["a"]}[
                        field["type"]
                    ]
                }
            )
    assert made["monitor"] | {"help": ""} == {"type": "list", "of": "text", "default": [], "help": ""}


def test_settings_keep_what_is_not_as_by_default() -> None:
    asked = {"timesteps": 32, "monitor": [], "cores": (0, 1), "bias": "keep"}
    assert Settings.of("speck2f", asked) == Settings("speck2f", {"cores": [0, 1], "bias": "keep"})


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_says_what_it_may_ask(served: Served, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snncc.live, "page", lambda record, live: json.dumps([record["ok"], live]))
    status, headers, body = served.ask("GET", served.base)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    for name, value in (
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ):
        assert headers[name] == value
    ok, live = json.loads(body)
    assert ok and live["base"] == served.base and live["version"] == 1  # the page waits for the first record
    assert [t["name"] for t in live["targets"]] == list(all_targets()) and all(t["summary"] for t in live["targets"])
    assert live["options"] == form()
    assert live["settings"] == {"target": "speck2f", "options": {"timesteps": 8}}
    assert live["editable"] == [str(place / "model.py")]


def test_the_page_of_a_model_that_never_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snncc.live, "page", lambda record, live: json.dumps([record, live]))
    monkeypatch.setattr(snncc.live._Handler, "patience", 0.0)
    text = "import time\ntime.sleep(3600)\n"
    (place / "model.py").write_text(text)
    server = Served()
    try:
        record, live = json.loads(server.ask("GET", server.base)[2])
        assert (live["version"], record["stages"], record["diagnostics"]) == (0, [], [])
        assert record["sources"] == {str(place / "model.py"): text}
        assert next(server.events()) == {
            "version": 0, "busy": True, "seconds": None, "settings": live["settings"], "editable": live["editable"],
        }  # fmt: skip
    finally:
        server.end()


def test_events_tell_versions_in_order(served: Served, place: Path) -> None:
    told = served.events()
    seen = [next(told)]
    for channels in (5, 6, 7):
        while seen[-1]["busy"] or not seen[-1]["version"]:
            seen.append(next(told))
        (place / "sizes.py").write_text(f"HIDDEN = {channels}\n")
        while not seen[-1]["busy"]:
            seen.append(next(told))
    while seen[-1]["busy"]:
        seen.append(next(told))
    told.close()  # type: ignore[attr-defined]
    versions = [event["version"] for event in seen]
    assert versions == sorted(versions) and set(versions) >= {1, 2, 3, 4}
    assert all(event["seconds"] > 0 for event in seen if event["version"])
    assert width(served.record()) == 7


def test_streams_that_nobody_reads_any_more_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snncc.live._Handler, "heartbeat", 0.1)
    served.ok()
    before = threading.active_count()
    streams = [served.events() for _ in range(20)]
    for stream in streams:
        next(stream)
    assert threading.active_count() >= 20
    served.record()  # they block nobody
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    wait_for(lambda: threading.active_count() <= before)


def test_a_stream_ends_with_the_server(place: Path) -> None:
    server = Served()
    told: queue.Queue[Record | None] = queue.Queue()
    reader = threading.Thread(target=lambda: [*map(told.put, server.events()), told.put(None)])
    reader.start()
    told.get(timeout=PATIENCE)
    server.end()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert not listens(server.live.port)


# --- editing --------------------------------------------------------------------------------------------------------


def test_a_source_is_written_and_compiled(served: Served, place: Path) -> None:
    served.ok()
    file = place / "model.py"
    file.chmod(0o640)
    text = MODEL.replace("HIDDEN, 3", "2 * HIDDEN, 3").replace("36 *", "72 *") + "# ü\n"
    assert served.send("PUT", "source", {"file": str(file), "text": text, "was": digest(MODEL)}) == (200, {})
    assert file.read_bytes() == text.encode() and file.stat().st_mode & 0o777 == 0o640
    assert served.until(lambda r: r["ok"] and width(r) == 8)["sources"][str(file)] == text
    assert sorted(p.name for p in place.iterdir() if "model.py" in p.name) == ["model.py"]
    status, answer = served.send("PUT", "source", {"file": str(file), "text": MODEL, "was": digest(MODEL)})
    assert status == 409 and "changed" in answer["message"]
    assert file.read_bytes() == text.encode()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_stay(served: Served, place: Path, end: str) -> None:
    """The page has the text with line feeds."""
    served.ok()
    file = place / "model.py"
    file.write_bytes(MODEL.replace("\n", end).encode())
    shown = MODEL + "# more\n"
    assert served.send("PUT", "source", {"file": str(file), "text": shown, "was": digest(MODEL)})[0] == 200
    assert file.read_bytes() == shown.replace("\n", end).encode()
    served.until(lambda r: r["ok"] and r["sources"][str(file)].splitlines() == shown.splitlines())


def test_a_file_of_mixed_line_ends_is_written_only_as_it_is(served: Served, place: Path) -> None:
    served.ok()
    file = place / "model.py"
    old = MODEL.replace("\n", "\r\n", 3)
    file.write_bytes(old.encode())
    assert served.send("PUT", "source", {"file": str(file), "text": MODEL, "was": digest(MODEL)})[0] == 409
    assert served.send("PUT", "source", {"file": str(file), "text": old + "\n", "was": digest(old)})[0] == 200
    assert file.read_bytes() == (old + "\n").encode()


def test_a_link_is_written_through(place: Path) -> None:
    (place / "model.py").rename(place / "real.py")
    (place / "model.py").symlink_to("real.py")
    server = Served()
    try:
        server.ok()
        asked = {"file": str(place / "model.py"), "text": MODEL + "#\n", "was": digest(MODEL)}
        assert server.send("PUT", "source", asked)[0] == 200
        assert (place / "model.py").is_symlink() and (place / "real.py").read_text() == MODEL + "#\n"
    finally:
        server.end()


def test_files_that_cannot_be_edited(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Only the user's own sources can: none beside, above, installed, or behind a link."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "outside.py"
    installed = place / "lib" / "site-packages" / "layers.py"
    installed.parent.mkdir(parents=True)
    layer = "from torch import nn\nclass {}(nn.Module):\n    def forward(self, x):\n        return x.relu()\n"
    elsewhere.write_text(layer.format("Outside"))
    installed.write_text(layer.format("Installed"))
    (place / "linked.py").symlink_to(elsewhere)
    (place / "note.txt").write_text("hello\n")
    path = f"import sys\nsys.path += [{str(elsewhere.parent)!r}, {str(installed.parent)!r}]\n"
    names = "import layers, linked, outside\n"
    net = MODEL.replace("nn.ReLU()", "layers.Installed(), outside.Outside(), linked.Outside()")
    (place / "model.py").write_text(path + names + net)
    server = Served()
    try:
        sources = server.ok()["sources"]
        forbidden = [str(elsewhere), str(installed), str(place / "linked.py")]
        assert set(forbidden) <= set(sources)
        assert next(server.events())["editable"] == [str(place / "model.py")]
        others = [
            "../outside.py", "model.py", str(place / "note.txt"), str(place / "new.py"), "/etc/passwd", "", "\0",
            str(place / "lib" / ".." / "model.py"),
        ]  # fmt: skip
        for file in forbidden + others:
            was = digest(Path(file).read_text() if file in forbidden else "")
            status, answer = server.send("PUT", "source", {"file": file, "text": "pwned", "was": was})
            assert status == 403 and "edited" in answer["message"], file
        assert all(Path(file).read_text() == sources[file] for file in forbidden)
        assert not (place / "new.py").exists()
    finally:
        server.end()


@pytest.mark.parametrize("asked", [{}, {"file": 1, "text": "", "was": ""}, {"text": "x", "was": "x"}])
def test_edits_that_make_no_sense(served: Served, asked: object) -> None:
    assert served.send("PUT", "source", asked)[0] == 400


def test_an_edit_that_cannot_be_written(served: Served, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.ok()
    asked = {"file": str(place / "model.py"), "text": MODEL + "#", "was": digest(MODEL)}
    assert served.send("PUT", "source", {**asked, "text": "\ud800"})[0] == 400

    def full(path: Path, target: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    status, answer = served.send("PUT", "source", asked)
    assert status == 409 and "No space left on device" in answer["message"]
    assert (place / "model.py").read_text() == MODEL
    assert sorted(p.name for p in place.iterdir() if "model.py" in p.name) == ["model.py"]


# --- who is refused -------------------------------------------------------------------------------------------------


def test_strangers_are_refused(served: Served, place: Path) -> None:
    port, base = served.live.port, served.base
    good = json.dumps({"target": "reference", "options": {}}).encode()
    mine, other = f"http://127.0.0.1:{port}", "http://example.com"

    def status(method: str, path: str, body: bytes | None = None, **headers: str | None) -> int:
        found, sent, text = served.ask(method, path, body, **headers)
        assert sent["cache-control"] == "no-store" and "Traceback" not in text.decode()
        if method != "HEAD" and found not in (200, 501):
            assert json.loads(text)["message"]
        return found

    token = served.live.token
    nowhere = ["/", "/favicon.ico", f"/{token}", f"/{token[:-1]}/", "/wrong/record", f"/x{base}record", "*"]
    for path in (*nowhere, base + "nothing", base + "record/", base + "../", base + "settings"):
        assert status("GET", path) == 404, path
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"GET /é{base} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        assert client.makefile("rb").readline().split()[1] == b"404"
    ports = (f"evil.com:{port}", f"127.0.0.1:{port + 1}", f"localhost.evil.com:{port}")
    for host in ("evil.com", "127.0.0.1", "", None, *ports):
        assert status("GET", base + "record", host=host) == 403, host
        assert status("POST", base + "settings", good, host=host) == 403, host
    assert status("GET", base + "record", host=f"localhost:{port}") == 200
    for origin in (other, "null", f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}", f"{mine}.evil.com"):
        assert status("POST", base + "settings", good, origin=origin) == 403, origin
        assert status("GET", base + "record", origin=origin) == 403, origin
    for kind in (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json"):
        assert status("POST", base + "settings", good, content_type=kind) == 415, kind
        assert status("PUT", base + "source", b"{}", content_type=kind) == 415, kind
    assert status("POST", base + "source", good) == status("PUT", base + "settings", good) == 404
    assert status("POST", "/wrong/settings", good) == status("PUT", "/wrong/source", good) == 404
    assert status("DELETE", base + "source") == status("OPTIONS", base + "settings") == 501
    for body in (b"{", b"\xff", b"[]", b"3", b"[" * 100_000):
        assert status("POST", base + "settings", body) == 400
    for length in ("-1", "x", "", "1e3", "٣".encode().decode("latin-1")):
        assert status("POST", base + "settings", b"{}", content_length=length) == 411, length
    assert status("PUT", base + "source", b" " * (snncc.live.BODY + 1)) == 413
    assert status("PUT", base + "source", b" " * snncc.live.BODY) == 400
    found = served.ok()
    assert (found["target"], found["sources"]) == ("speck2f", {str(place / "model.py"): MODEL})
    assert status("POST", base + "settings", good, origin=mine) == 200
    served.until(lambda r: r["target"] == "reference")


def test_nobody_else_is_listened_to(served: Served) -> None:
    assert served.live._server.server_address[0] == "127.0.0.1"
    assert len(served.live.token) >= 32


def test_an_error_of_the_server_is_not_shown_to_clients(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    served.ok()
    for error in (ZeroDivisionError(), FileNotFoundError()):
        monkeypatch.setattr(snncc.live, "page", Mock(side_effect=error))
        status, _, body = served.ask("GET", served.base)
        assert status == 500 and json.loads(body) == {"message": "the server failed; the terminal shows where"}
    assert re.findall(r"^\w+Error", capfd.readouterr().err, re.MULTILINE) == ["ZeroDivisionError", "FileNotFoundError"]


# --- the command ----------------------------------------------------------------------------------------------------


COMMAND = (sys.executable, "-m", "snncc", "explore", "model.py:make_model", "--calibration", "x.npy", "--watch")


class Command:
    """The real command; its processes and theirs are told by a variable that they inherit."""

    def __init__(self, place: Path, *arguments: str) -> None:
        self.mark = f"SNNCC_TEST_MARK={place}".encode()
        environment = {**os.environ, "SNNCC_TEST_MARK": str(place)}
        self.process = subprocess.Popen(
            [*COMMAND, "--no-open", *arguments], cwd=place, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def left(self) -> list[int]:
        """The processes that still run."""
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if self._is_ours(folder)]

    def _is_ours(self, folder: Path) -> bool:
        try:
            return self.mark in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


@pytest.fixture
def command(place: Path) -> Iterator[Callable[..., Command]]:
    made: list[Command] = []

    def make(*arguments: str) -> Command:
        made.append(Command(place, *arguments))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.communicate()
        for pid in one.left():
            os.kill(pid, signal.SIGKILL)


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_with_all_that_it_started(
    place: Path, command: Callable[..., Command], how: signal.Signals
) -> None:
    """Ctrl-C goes to all of a terminal's processes."""
    here = command("--target", "speck2f", "--timesteps", "8")
    url = here.line()
    assert url.startswith("http://127.0.0.1:") and url.endswith("/\n")
    assert here.line() == "watching 2 files; Ctrl-C ends\n"
    assert " ok in " in here.line()
    assert here.line() == "watching 3 files; Ctrl-C ends\n"
    (place / "sizes.py").write_text("HIDDEN = 4; print(HIDDEN) nonsense\n")
    assert " 1 error in " in here.line()
    (place / "sizes.py").write_text("HIDDEN = 4\nimport time; open('asleep', 'w').close(); time.sleep(3600)\n")
    wait_for((place / "asleep").exists)
    assert len(here.left()) >= 3  # the server, what forks, the compile
    if how is signal.SIGINT:
        os.killpg(here.process.pid, how)
    else:
        here.process.send_signal(how)
    out, err = here.process.communicate(timeout=PATIENCE)
    assert (here.process.returncode, out, err) == (0, "", "")
    wait_for(lambda: not here.left())
    assert not listens(int(url.split(":")[2].split("/")[0]))


@needs_proc
def test_a_command_that_is_killed_leaves_nothing_behind(place: Path, command: Callable[..., Command]) -> None:
    (place / "model.py").write_text("import time; open('asleep', 'w').close(); time.sleep(3600)\n")
    here = command()
    wait_for((place / "asleep").exists)
    here.process.kill()
    wait_for(lambda: not here.left())


def test_the_command_answers_as_json(place: Path, command: Callable[..., Command]) -> None:
    """A line each, with nothing of what the user's code prints between."""
    (place / "sizes.py").write_text("print('hello')\nHIDDEN = 4\n")
    here = command("--json")
    assert list(json.loads(here.line())) == ["url"]
    done = json.loads(here.line())
    assert done.pop("seconds") > 0
    assert done == {"version": 1, "ok": True, "errors": 0, "files": 3}
    (place / "sizes.py").write_text("HIDDEN = 'x'\n")
    done = json.loads(here.line())
    assert (done["version"], done["ok"], done["errors"]) == (2, False, 1)
    here.process.terminate()
    out, err = here.process.communicate(timeout=PATIENCE)
    assert (here.process.returncode, out, err) == (0, "", "hello\n")


def test_a_module_is_watched_without_being_imported(place: Path) -> None:
    (place / "pkg").mkdir()
    shutil.move(place / "model.py", place / "pkg" / "model.py")
    for name in ("pkg", "pkg/deeper"):
        (place / name).mkdir(exist_ok=True)
        (place / name / "__init__.py").write_text("import sizes\nassert sizes.HIDDEN < 9\n")
    (place / "pkg" / "deeper" / "net.py").write_text("from pkg.model import make_model\n")
    path = list(sys.path)
    server = Served(model="pkg.deeper.net:make_model")
    sys.path[:] = path
    try:
        server.ok()
        parts = ("pkg/__init__.py", "pkg/deeper/__init__.py", "pkg/deeper/net.py", "pkg/model.py", "sizes.py", "x.npy")
        assert set(server.live.files) == {str(place / name) for name in parts}
        assert "pkg" not in sys.modules
        (place / "sizes.py").write_text("HIDDEN = 9\n")
        server.error("SNN071")
        (place / "sizes.py").write_text("HIDDEN = 8\n")
        assert width(server.ok()) == 8
    finally:
        server.end()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    path = list(sys.path)
    status = main(["explore", *arguments])
    sys.path[:] = path
    out, err = capsys.readouterr()
    assert (status, out) in ((1, ""), (2, "")) and "Traceback" not in err
    return err


def test_what_cannot_be_watched(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said at once, as no change of a file can mend it."""
    model = ("model.py:make_model", "--watch", "--no-open")
    data = (*model, "--calibration", "x.npy")
    (place / "folder").mkdir()
    assert "is a written folder" in fails(capsys, "folder", *data[1:])
    assert "there is no file gone.py" in fails(capsys, "gone.py:make_model", *data[1:])
    for name in ("gone.model", "sizes.inner", "gone", ".model", "json.nothing"):
        assert f"there is no module {name}" in fails(capsys, f"{name}:make_model", *data[1:])
    assert "model='model.py' names no model" in fails(capsys, "model.py", *data[1:])
    assert "neither --input-shape nor --calibration" in fails(capsys, *model)
    assert "write it as 1,28,28" in fails(capsys, *model, "--input-shape", "1x28x28")
    assert "there is no target 'speck9'" in fails(capsys, *data, "--target", "speck9")
    assert "timesteps=0 is not" in fails(capsys, *data, "--timesteps", "0")
    assert "-o means nothing with --watch" in fails(capsys, *data, "-o", "page.html")
    assert "port=99999 cannot be used" in fails(capsys, *data, "--port", "99999")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port={port} cannot be used" in fails(capsys, *data, "--port", str(port))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, place: Path) -> Iterator[None]:
    """Pages that are only their records; import paths and modules as before afterwards."""

    def explore(self: Compilation, path: str | Path) -> Path:
        Path(path).write_text(json.dumps(self.record()))
        return Path(path)

    monkeypatch.setattr(Compilation, "explore", explore)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(" ")[0] in ("model", "sizes"):
            del sys.modules[name]


@pytest.mark.usefixtures("written")
def test_a_page_is_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explore", "model.py:make_model", "--calibration", "x.npy", "--target", "speck2f"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "written: Sequential-speck2f.html\n"
    assert json.loads((place / "Sequential-speck2f.html").read_text())["ok"]
    assert main([*arguments, "-o", "page.html", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["ok"], answer["page"], err) == (True, "page.html", "")
    assert {d["severity"] for d in answer["diagnostics"]} == {"note", "warning"}
    assert (place / "page.html").exists()
    assert main(["compile", *arguments[1:], "-o", "folder"]) == 0
    assert main(["explore", "folder", "-o", "loaded.html"]) == 0
    assert json.loads((place / "loaded.html").read_text())["target"] == "speck2f"


@pytest.mark.usefixtures("written")
def test_a_page_is_written_of_a_compile_that_fails(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "sizes.py").write_text("HIDDEN = 3000\n")
    arguments = ["explore", "model.py:make_model", "--calibration", "x.npy", "--target", "speck2f"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "written: Sequential-speck2f.html\n" and "error[SNN0" in err
    record = json.loads((place / "Sequential-speck2f.html").read_text())
    assert not record["ok"] and record["stages"][-1]["failed"]
    assert main([*arguments, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["page"]) == (False, "Sequential-speck2f.html") and answer["diagnostics"]
    (place / "model.py").write_text("1 / 0\n")
    assert main([*arguments, "-o", "none.html"]) == 1
    assert not (place / "none.html").exists()


@pytest.mark.usefixtures("written")
def test_names_of_classes_make_safe_names_of_files(place: Path) -> None:
    odd = 'type("../a b/\\u00e9<" + "x" * 200, (nn.Sequential,), {})'
    (place / "model.py").write_text(MODEL.replace("return nn.Sequential", f"return {odd}"))
    assert main(["explore", "model.py:make_model", "--calibration", "x.npy", "--json"]) == 0
    (page,) = place.glob("*.html")
    assert page.name == "_a_b_é_" + "x" * 90 + "-reference.html" or page.name.endswith("-reference.html")


@pytest.mark.usefixtures("written")
def test_the_browser_is_opened_for_a_person_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    arguments = ["explore", "model.py:make_model", "--calibration", "x.npy", "-o", "page.html"]
    assert main(arguments) == 0
    assert opened == []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([*arguments, "--no-open"]) == main([*arguments, "--json"]) == 0
    assert opened == []
    assert main(arguments) == 0
    assert opened == [(place / "page.html").as_uri()]


# --- helpers --------------------------------------------------------------------------------------------------------


def wait_for(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def runs(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
