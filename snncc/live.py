"""The explorer's page, kept up to date: a server on this machine that compiles anew whenever a file, the target or an
option changes.

Every compile has a process of its own, forked from one that has imported torch and the compiler already: the user's
modules are always imported anew, nothing leaks from one compile into the next, and one that a newer change supersedes
is killed, even where the user's code loops for ever.

Under a random path that no other page knows, the server answers only those that name it as this machine, and to what
changes anything only JSON, which no other site's form can send:

======================  ============================================================================================
``GET /TOKEN/``         the page
``GET /TOKEN/events``   server-sent events, one at once and one at every change: ``version`` of the record, whether
                        the compiler is ``busy``, ``seconds`` of the last compile (null: none yet), ``settings`` and
                        ``editable`` as the page's ``live`` has them
``GET /TOKEN/record``   the latest record as the page has it, its version as the ETag
``POST .../settings``   ``{"target": NAME, "options": {NAME: VALUE}}``: compile so; what is left out has its default
``PUT /TOKEN/source``   ``{"file": NAME, "text": NEW, "was": DIGEST}``: write a source file, if the SHA-256 of its text
                        (as UTF-8, in hex) is still the one given
======================  ============================================================================================

What is refused is answered with ``{"message": WHY}``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import signal
import socketserver
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Pipe, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar

from snncc.compilation import Compilation
from snncc.explore import page, write
from snncc.explore.html import drawn
from snncc.ir import CompileError, Diagnostic, InputError, Loc, SnnccError, Source
from snncc.ir.diagnostics import wrong_value
from snncc.targets import all_targets, find
from snncc.targets.base import Options

Build = Callable[[str, Mapping[str, Any]], Compilation]  # of the target's name and options; what a process can be sent

POLL = 0.1  # seconds between two looks at the files
GONE = 0.5  # seconds that a file may be missing: editors write a new one and rename it
BODY = 10_000_000  # bytes of a request
Signature = tuple[int, ...] | None  # of a watched file: as it was when it was last looked at; None: it was not there
UNSEEN: Signature = ()
LOST = (ConnectionError, TimeoutError)  # what a client leads to that went away
# What a compile imports, so that its process has it from the start. The last ones are imported late by torch and numpy.
PRELOAD = (
    "torch", "snncc.live", "snncc.cli", "snncc.api", "snncc.compiled", "snncc.engine", "snncc.frontend",
    "resource", "numpy.ma",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is compiled for: a target's name, and the options that are not as by default."""

    target: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, target: Any, options: Any) -> Settings:
        """Checked.

        Raises:
            InputError: there is no such target or option, or the target does not take it.
        """
        if not isinstance(target, str) or not isinstance(options, Mapping):
            raise wrong_value("settings", [target, options], "is not a target's name and options by name")
        chosen, asked = find(target), Options.of(options)
        chosen.accept(asked)
        chosen.passes(asked)
        default = Options().plain()
        return cls(target, {name: value for name, value in asked.plain().items() if value != default[name]})

    def failed(self, diagnostics: Iterable[Diagnostic]) -> dict[str, Any]:
        """The record of a compile that came to no stage."""
        return Compilation(find(self.target), Options.of(self.options), (), tuple(diagnostics)).record()


def form() -> dict[str, dict[str, Any]]:
    """Every option as a field of a form: its ``type`` (choice, int, float, text, bool or list), ``choices`` or ``min``
    and ``max`` (of a list ``of``: what it holds), its ``default`` and ``help``."""
    words, default = _help(), Options().plain()
    made: dict[str, dict[str, Any]] = {}
    for field in fields(Options):
        name = field.name
        if name in Options.CHOICES:
            made[name] = {"type": "choice", "choices": list(Options.CHOICES[name])}
        elif name in Options.RANGES:
            kind, low, high = Options.RANGES[name]
            made[name] = {"type": kind.__name__, "min": low, "max": high}
        elif isinstance(field.default, bool):
            made[name] = {"type": "bool"}
        elif "tuple" in str(field.type):
            made[name] = {"type": "list", "of": "int" if "int" in str(field.type) else "text"}
        else:
            made[name] = {"type": "text"}
        made[name] |= {"default": default[name], "help": words.get(name, "")}
    return made


def _help() -> dict[str, str]:
    """What the documentation of the options says of each, without its references."""
    text = (Options.__doc__ or "").partition("Attributes:")[2]
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", text, re.MULTILINE)
    return {name: " ".join(re.sub(r"\s*\(:mod:`[^`]*`\)", "", words).split()) for name, words in found}


# --- the compile, in a process of its own ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What a process is to compile.

    Attributes:
        file: of the model.
        folder: the current one.
        roots: folders in which files are the user's.
        quiet: what the user's code prints goes to standard error.
    """

    build: Build
    settings: Settings
    file: Path
    folder: Path
    roots: tuple[Path, ...]
    quiet: bool


def _work(send: Connection, task: _Task) -> None:
    """Compile and send the record and the user's files that were read, as JSON."""
    if hasattr(os, "setsid"):
        os.setsid()  # of a group of its own, with all that the user's code starts, and out of reach of Ctrl-C
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    sys.dont_write_bytecode = True  # what is kept is told by its time in whole seconds: too coarse for two quick edits
    os.chdir(task.folder)
    if task.quiet:
        os.dup2(2, 1)
    before = set(sys.modules)
    record, files = _compiled(task)
    files += [str(made) for name in set(sys.modules) - before if (made := _home(name)) and is_own(made, task.roots)]
    with suppress(OSError, ValueError, AttributeError):  # the user's code may have closed or replaced them
        sys.stdout.flush()
        sys.stderr.flush()
    with suppress(OSError):  # nobody waits for it any more
        send.send_bytes(json.dumps({"record": record, "files": files}, allow_nan=False).encode())


def _end_with(parent: int) -> None:
    """End when the server does, however it does."""
    wait([parent])
    _kill_group(os.getpid())
    os._exit(1)


def _compiled(task: _Task) -> tuple[dict[str, Any], list[str]]:
    """The record of a compile, however it ends, and files that would change how."""
    try:
        return task.build(task.settings.target, task.settings.options).record(progress=False), []
    except CompileError as error:
        if error.compilation is not None:
            return error.compilation.record(progress=False), []
        return task.settings.failed(error.diagnostics), []
    except SnnccError as error:
        files: list[str] = []
        cause = error.__cause__
        if isinstance(cause, ImportError) and cause.name:  # a module that may yet come
            places = [root.joinpath(*cause.name.split(".")) for root in task.roots]
            files = [str(file) for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        return task.settings.failed(error.diagnostics), files
    except (Exception, SystemExit) as error:  # noqa: BLE001  # shown here and on the page; the server goes on
        traceback.print_exc()
        message = f"the compiler itself failed: {type(error).__name__}: {error}"
        found = Diagnostic("SNN091", message, hint="this is an error in snncc; the terminal shows where")
        return task.settings.failed([found]), []


def _home(name: str) -> Path | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file).absolute() if isinstance(file, str) and Path(file).is_file() else None


def is_own(file: Path, roots: Iterable[Path]) -> bool:
    """Whether a file is the user's: within ``roots``, and nothing that was installed."""
    real, installed = file.resolve(), {"site-packages", "dist-packages"}
    library = Path(sysconfig.get_path("stdlib")).resolve()
    inside = any(real.is_relative_to(root) for root in roots)
    return inside and not installed.intersection(real.parts) and not real.is_relative_to(library)


def _kill_group(pid: int) -> None:
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _processes() -> Any:
    """What makes processes, which have imported already what a compile takes."""
    if os.name == "nt":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    # Beside an editor and a browser, threads that spin while they wait take ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Interpreters look for modules where they start: not where a queue.py of the user's may be.
    here = Path.cwd()
    os.chdir("/")
    try:
        resource_tracker.ensure_running()  # which the other one would start, and then let Ctrl-C through
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    finally:
        os.chdir(here)
    return context


class _Compile:
    """A compile that runs: its process and the pipe for its answer."""

    def __init__(self, context: Any, task: _Task) -> None:
        self.task, self.clock, self.began = task, time.perf_counter(), time.time_ns()
        self.answers, send = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(send, task))
        try:
            self.process.start()
        except BaseException:
            self.end()
            raise
        finally:
            send.close()

    def answer(self) -> dict[str, Any]:
        """What came, or the record of a process that died without a word."""
        with suppress(EOFError, OSError):
            if self.answers.poll():  # what it started may hold the pipe open
                answer: dict[str, Any] = json.loads(self.answers.recv_bytes())
                return answer
        self.process.join(1)
        status = self.process.exitcode
        how = f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        message = f"{self.task.file.name} cannot be used: the process that compiled it died ({how})"
        hint = "the system does so when there is no memory left" if status == -9 else "the terminal may show why"
        found = Diagnostic("SNN071", message, Loc((Source("", str(self.task.file), 1),)), hint=hint)
        return {"record": self.task.settings.failed([found]), "files": []}

    def end(self) -> None:
        """Kill the process with all that it started."""
        if self.process.pid is not None:
            _kill_group(self.process.pid)
            self.process.kill()
            self.process.join()
        self.process.close()
        self.answers.close()


# --- the server ------------------------------------------------------------------------------------------------------


class Live:
    """The server and the compiles.

    Args:
        build: compiles. It runs in another process, so it and what it holds must pickle.
        file: the model's, absolute.
        target: to begin with.
        options: to begin with.
        files: other files that a compile reads: calibration data, weights.
        port: 0: any that is free.
        after: called after every compile, in the thread of :meth:`run`.
        quiet: what the user's code prints goes to standard error.

    Attributes:
        url: the page's address, random in part.
        starting: :meth:`run` waits for a process to start. The first imports torch.

    Raises:
        InputError: target, options or port cannot be used.
    """

    def __init__(
        self,
        build: Build,
        file: Path,
        target: str,
        options: Mapping[str, Any],
        *,
        files: Sequence[Path] = (),
        port: int = 0,
        after: Callable[[Live], None] = lambda live: None,
        quiet: bool = False,
    ) -> None:
        self.settings = Settings.of(target, options)
        self.build, self.file, self.after, self.quiet = build, file, after, quiet
        self.folder = Path.cwd()
        self.roots = (file.parent.resolve(), self.folder.resolve())
        self._always = [str(path) for path in (file, *(f.absolute() for f in files))]
        self._seen: dict[str, Signature] = dict.fromkeys(self._always, UNSEEN)
        self._missing: dict[str, float] = {}
        self._compile: _Compile | None = None
        self._asked, self.busy, self.starting, self.stopped = False, True, False, False
        self._woken, self._waker = Pipe(duplex=False)
        self._change, self._ticks, self._writing = threading.Condition(), 0, threading.Lock()
        self.version = 0
        self.seconds: float | None = None
        self.record = self._with_model(self.settings.failed([]))
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            hint = "choose another, or 0 for any"
            raise wrong_value("port", port, f"cannot be used: {error}", hint=hint) from None
        self._server.live = self
        self.token = secrets.token_urlsafe(24)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/{self.token}/"

    @property
    def files(self) -> tuple[str, ...]:
        """What is watched."""
        return tuple(self._seen)

    def summary(self) -> dict[str, Any]:
        """The last compile in a few words, as plain data."""
        said = [d["severity"] for d in self.record["diagnostics"]]
        words = {"version": self.version, "ok": self.record["ok"], "errors": said.count("error")}
        return {**words, "seconds": self.seconds, "files": len(self.files)}

    def run(self) -> None:
        """Serve and compile until :meth:`stop`; then all processes are gone and the port is closed."""
        context = _processes()
        threading.Thread(target=self._server.serve_forever, args=(POLL,), daemon=True).start()
        try:
            while not self.stopped:
                if self._looked() or self._asked:
                    self._begin(context)
                self._wait()
        finally:
            self.stopped = True
            if self._compile:
                self._compile.end()
            self._told()
            self._server.shutdown()
            self._server.server_close()

    def stop(self) -> None:
        """End :meth:`run`. May be called by any thread and by signal handlers."""
        self.stopped = True
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):  # at the end there is nobody to wake
            self._waker.send_bytes(b".")

    # --- compiling: in the thread of run alone ---

    def _begin(self, context: Any) -> None:
        """Start to compile, in the place of a compile that still runs."""
        if self._compile:
            self._compile.end()
            self._compile = None
        with self._change:
            self._asked, self.busy = False, True
            task = _Task(self.build, self.settings, self.file, self.folder, self.roots, self.quiet)
        self._told()
        self.starting = True
        try:
            self._compile = _Compile(context, task)
            self.starting = False
        except (OSError, EOFError) as error:  # no process can be made
            self.starting = False
            message = f"no process can be started to compile in: {type(error).__name__}: {error}"
            self._publish(task.settings.failed([Diagnostic("SNN071", message)]), 0.0)

    def _wait(self) -> None:
        """Until there is an answer, somebody calls, or it is time to look at the files again."""
        done = self._compile
        ready = wait([self._woken, *((done.answers, done.process.sentinel) if done else ())], POLL)
        while self._woken.poll():
            self._woken.recv_bytes()
        if done and (done.answers in ready or done.process.sentinel in ready):
            answer, seconds = done.answer(), time.perf_counter() - done.clock
            done.end()
            self._compile = None
            record = answer["record"]
            self._watch([*self._always, *record["sources"], *answer["files"]], done.began, record["ok"])
            self._publish(record, seconds)

    def _publish(self, record: dict[str, Any], seconds: float) -> None:
        if self.stopped:
            return
        with self._change:
            self.record, self.seconds, self.busy = self._with_model(record), seconds, False
            self.version += 1
        self._told()
        self.after(self)

    def _with_model(self, record: dict[str, Any]) -> dict[str, Any]:
        """The model's own text belongs to every record: it is what one mends."""
        name = str(self.file)
        if name not in record["sources"]:
            with suppress(OSError, ValueError):
                record["sources"][name] = self.file.read_text(encoding="utf-8")
        return record

    def _watch(self, files: Iterable[str], began: int, ok: bool) -> None:
        """Watch these. What was watched before a compile failed stays so: it may be what is to be mended."""
        old = self._seen
        self._seen = {} if ok else dict(old)
        for file in files:
            found = old.get(file, UNSEEN)
            if found == UNSEEN:
                found = _signature(file)
                if found and found[0] > began:
                    found = UNSEEN  # written while it compiled, perhaps after it was read
            self._seen[file] = found

    def _looked(self) -> bool:
        """Whether a watched file is another than before."""
        changed, clock = False, time.monotonic()
        for file, old in self._seen.items():
            new = _signature(file)
            if new is not None or old == UNSEEN:
                self._missing.pop(file, None)
            elif old is not None and clock - self._missing.setdefault(file, clock) < GONE:
                continue
            changed |= new != old
            self._seen[file] = new
        return changed

    # --- what the server's threads ask ---

    def state(self, seen: int = -1, timeout: float = 0.0) -> tuple[int, dict[str, Any]]:
        """A number that every change raises, and what there is to say; if that is ``seen`` already, at the next change
        or after ``timeout`` seconds."""
        with self._change:
            self._change.wait_for(lambda: self._ticks != seen or self.stopped, timeout)
            return self._ticks, {
                "version": self.version,
                "busy": self.busy,
                "seconds": self.seconds,
                **self.choices(),
            }

    def first(self, timeout: float) -> None:
        """Wait for the first record."""
        with self._change:
            self._change.wait_for(lambda: self.version > 0 or self.stopped, timeout)

    def choices(self) -> dict[str, Any]:
        """What is chosen, and which files can be written."""
        settings = {"target": self.settings.target, "options": dict(self.settings.options)}
        return {"settings": settings, "editable": [f for f in self.record["sources"] if is_own(Path(f), self.roots)]}

    def latest(self) -> tuple[int, dict[str, Any]]:
        """The last record and its version."""
        with self._change:
            return self.version, self.record

    def page(self) -> str:
        """The page of the latest record."""
        with self._change:
            live = {
                "base": f"/{self.token}/",
                "targets": [{"name": t.name, "summary": t.summary} for t in all_targets().values()],
                "options": form(),
                **self.choices(),
                "version": self.version,
            }
            record = self.record
        return page(record, live)

    def choose(self, asked: Mapping[str, Any]) -> None:
        """Compile with other settings.

        Raises:
            Refused: they cannot be used.
        """
        try:
            chosen = Settings.of(asked.get("target"), asked.get("options"))
        except InputError as error:
            said = (f"{d.message}; {d.hint}" if d.hint else d.message for d in error.diagnostics)
            raise Refused(400, "\n".join(said)) from None
        with self._change:
            self.settings, self._asked = chosen, True
        self._told()
        self._wake()

    def write(self, asked: Mapping[str, Any]) -> None:
        """Write a source file, wholly or not at all; line ends stay what they are.

        Raises:
            Refused: not this file, or it is no longer what the page has.
        """
        file, text, was = (asked.get(name) for name in ("file", "text", "was"))
        if not isinstance(file, str) or not isinstance(text, str) or not isinstance(was, str):
            raise Refused(400, "file, text and was are needed")
        if file not in self.choices()["editable"]:
            raise Refused(403, f"{file} is none of the files that can be edited here")
        path = Path(file).resolve()
        with self._writing:
            try:
                old = path.read_bytes()
                data = _edited(old, text, was)
                if data is None:
                    raise Refused(409, f"{file} has changed on the disk")
                write(path, data)
            except UnicodeEncodeError:
                raise Refused(400, "the text cannot be written as UTF-8") from None
            except OSError as error:
                raise Refused(409, f"{file} cannot be written: {error.strerror}") from None
        self._wake()

    def _told(self) -> None:
        with self._change:
            self._ticks += 1
            self._change.notify_all()


def _signature(file: str) -> Signature:
    """What tells that a file was written; None: there is none."""
    try:
        found = Path(file).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _edited(old: bytes, text: str, was: str) -> bytes | None:
    """The new content of a file that holds ``old``; None: that is not what ``was`` is the digest of.

    Pages have lines that end in a line feed, whatever the file's do: both digests count, and the file's ends stay.
    """
    reader = io.TextIOWrapper(io.BytesIO(old), encoding="utf-8")
    try:
        shown = reader.read()
    except ValueError:
        return None
    ends = reader.newlines
    alike = not isinstance(ends, tuple)  # else nobody knows which line had which
    known = [old, shown.encode()] if alike else [old]
    if was not in (hashlib.sha256(data).hexdigest() for data in known):
        return None
    if isinstance(ends, str):
        text = re.sub(r"\r\n|\r|\n", ends, text)
    return text.encode()


class Refused(Exception):
    """A request that is not done: an HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class _Server(ThreadingHTTPServer):
    live: Live
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = os.name != "nt"  # there, it would let others have the port, too

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the network for this machine's name

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], LOST):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """A request, in a thread of its own."""

    server: _Server
    server_version, sys_version = "snncc", ""
    timeout = 20  # seconds that a client may let wait for the rest of what it sends, or to take what it asked for
    heartbeat: ClassVar[float] = 15.0  # seconds between signs of life, which tell a client that is gone
    patience: ClassVar[float] = 10.0  # seconds that the page waits for the first record
    left: int | None = None  # bytes of the body that are not read yet; None: all

    def do_GET(self) -> None:
        self._guarded({"": self._page, "events": self._events, "record": self._record})

    def do_POST(self) -> None:
        self._guarded({"settings": lambda: self._done(self.live.choose)})

    def do_PUT(self) -> None:
        self._guarded({"source": lambda: self._done(self.live.write)})

    @property
    def live(self) -> Live:
        return self.server.live

    def _guarded(self, known: Mapping[str, Callable[[], None]]) -> None:
        """Do what is asked, if whoever asks may."""
        try:
            hosts = [f"{name}:{self.live.port}" for name in ("127.0.0.1", "localhost")]
            if self.headers.get_all("Host") not in [[host] for host in hosts]:
                raise Refused(403, "this is no name of this server")  # a site whose name was made to lead here
            if not {f"http://{host}" for host in hosts}.issuperset(self.headers.get_all("Origin", [])):
                raise Refused(403, "asked by another site")
            path, base = self.path.partition("?")[0], f"/{self.live.token}/"
            inside = secrets.compare_digest(path[: len(base)].encode(), base.encode())
            if not inside or path[len(base) :] not in known:
                raise Refused(404, "there is nothing here")
            known[path[len(base) :]]()
        except Refused as refused:
            self._json(refused.status, {"message": refused.message})
            self._read_up()
        except LOST:
            raise
        except Exception:  # noqa: BLE001  # shown here, and not to the client
            traceback.print_exc()
            self._json(500, {"message": "the server failed; the terminal shows where"})

    def _page(self) -> None:
        self.live.first(self.patience)
        self._answer(200, "text/html; charset=utf-8", self.live.page().encode())

    def _record(self) -> None:
        version, record = self.live.latest()
        data = json.dumps(drawn(record), allow_nan=False).encode()
        self._answer(200, "application/json", data, {"ETag": f'"{version}"'})

    def _events(self) -> None:
        self._head(200, {"Content-Type": "text/event-stream"})
        seen, state = self.live.state()
        self._event(state)
        while not self.live.stopped:
            last, (seen, state) = seen, self.live.state(seen, self.heartbeat)
            if seen == last:
                self.wfile.write(b":\n\n")
            else:
                self._event(state)

    def _event(self, state: Mapping[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(state)}\n\n".encode())

    def _done(self, do: Callable[[Mapping[str, Any]], None]) -> None:
        do(self._asked())
        self._json(200, {})

    def _asked(self) -> dict[str, Any]:
        """The request's body."""
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "application/json is needed")
        length = self._length()
        if length is None:
            raise Refused(411, "the length is needed")
        if length > BODY:
            raise Refused(413, f"more than {BODY:,} bytes")
        body, self.left = self.rfile.read(length), 0
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "this is no JSON") from None
        if not isinstance(data, dict):
            raise Refused(400, "a JSON object is needed")
        return data

    def _json(self, status: int, data: Mapping[str, Any]) -> None:
        self._answer(status, "application/json", json.dumps(data).encode())

    def _length(self) -> int | None:
        text = self.headers.get("Content-Length", "")
        return int(text) if re.fullmatch("[0-9]{1,12}", text) else None

    def _read_up(self) -> None:
        """Take the rest of a refused request: a client that still writes might else not see the answer."""
        left = min((self._length() or 0) if self.left is None else self.left, 10 * BODY)
        while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
            left -= len(piece)

    def _answer(self, status: int, kind: str, data: bytes, more: Mapping[str, str] | None = None) -> None:
        self._head(status, {"Content-Type": kind, "Content-Length": str(len(data)), **(more or {})})
        self.wfile.write(data)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the terminal is for the compiles."""
