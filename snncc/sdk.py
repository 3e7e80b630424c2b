"""Builds and finds the vendors' Python environments: `python -m snncc.sdk build samna onnxruntime tvm lava-nc lava`.

A vendor's SDK needs a Python and packages that exclude the compiler's own, so each gets a virtual environment under a
cache folder outside the checkout (`SNNCC_CACHE`, else `$XDG_CACHE_HOME/snncc`, else `~/.cache/snncc`). Standard library
only.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON = "3.10"  # what every vendor environment so far needs
_COMPLETE = "snncc-complete"  # written last into an environment: one without it is half built


class SdkError(RuntimeError):
    """A vendor environment cannot be built, or is not where the user says that it is."""


@dataclass(frozen=True)
class Environment:
    """One vendor environment: what pip installs, whole and pinned, and what must then import."""

    name: str
    requirements: tuple[str, ...]
    imports: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the environment lives; other requirements make another folder."""
        digest = hashlib.sha256("\n".join((PYTHON, *self.requirements)).encode()).hexdigest()
        return cache_folder() / "sdk" / f"{self.name}-{digest[:10]}"

    @property
    def python(self) -> Path:
        """The environment's interpreter, built or not."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


_ONNXRUNTIME = """
coloredlogs==15.0.1 flatbuffers==25.12.19 humanfriendly==10.0 mpmath==1.3.0 numpy==2.2.6 onnxruntime==1.23.2
packaging==26.4 protobuf==7.36.2 sympy==1.14.0
"""

_TVM = """
apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.15.post2 ml-dtypes==0.6.0 numpy==2.2.6 onnx==1.23.2 packaging==26.4
protobuf==7.36.2 typing-extensions==4.16.0
"""

# What `pip freeze` says after an install of lava-nc 0.10.0 and h5py.
_LAVA_NC = """
asteval==0.9.33 cloudpickle==3.1.2 h5py==3.16.0 joblib==1.6.0 lava-nc==0.10.0 networkx==2.8.7 numpy==1.26.4
scikit-learn==1.7.2 scipy==1.15.3 threadpoolctl==3.8.0
"""

# What lava-dl 0.6.0 adds (it takes torch 2.3 and pytest 7 only); from execnet on, what snncc and its tests need there.
_LAVA_DL = """
argparse==1.4.0 contourpy==1.3.2 cycler==0.12.1 exceptiongroup==1.3.1 filelock==4.1.0 fonttools==4.65.0 fsspec==2026.9.0
iniconfig==2.3.1 jinja2==3.1.6 kiwisolver==1.5.1 lava-dl==0.6.0 linecache2==1.0.0 markupsafe==3.0.4 matplotlib==3.10.9
mpmath==1.3.0 ninja==1.13.2 opencv-python-headless==4.11.0.86 packaging==26.3 pillow==10.4.0 pluggy==1.7.0
pyparsing==3.3.3 pytest==7.4.4 python-dateutil==3.0.0 six==1.17.0 sympy==1.14.0 tomli==2.5.0 torch==2.3.1
torchvision==0.18.1 traceback2==1.4.0 typing-extensions==4.16.0 tzdata==2026.6 unittest2==1.1.0
execnet==2.1.2 hypothesis==6.168.5 markdown-it-py==4.3.0 mdurl==0.1.2 pygments==2.21.0 pytest-xdist==3.8.0 rich==15.0.0
immutabledict==4.3.1 ordered-set==4.1.0 safetensors==0.8.0 sortedcontainers==2.4.0 xdsl==0.73.0
"""

# What torch 2.3.1 brings along there and nowhere else.
_LINUX = '; platform_system == "Linux" and platform_machine == "x86_64"'
_LAVA_CUDA = """
nvidia-cublas-cu12==12.1.3.1 nvidia-cuda-cupti-cu12==12.1.105 nvidia-cuda-nvrtc-cu12==12.1.105
nvidia-cuda-runtime-cu12==12.1.105 nvidia-cudnn-cu12==8.9.2.26 nvidia-cufft-cu12==11.0.2.54
nvidia-curand-cu12==10.3.2.106 nvidia-cusolver-cu12==11.4.5.107 nvidia-cusparse-cu12==12.1.0.106
nvidia-nccl-cu12==2.20.5 nvidia-nvjitlink-cu12==12.9.86 nvidia-nvtx-cu12==12.1.105 triton==2.3.1
"""

ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (
        # samna declares no dependencies; numpy is for the emitted runner. The newer samna on PyPI are empty shells.
        Environment("samna", ("numpy==1.26.4", "samna==0.7.1.0"), ("numpy", "samna")),
        # Where Lynxi's own runtime is not: its programs' ONNX step runs in the one, and TVM, which Lynxi's compiler
        # descends from, compiles it in the other.
        Environment("onnxruntime", tuple(_ONNXRUNTIME.split()), ("numpy", "onnxruntime")),
        Environment("tvm", tuple(_TVM.split()), ("tvm.relax.frontend.onnx",)),
        Environment("lava-nc", tuple(_LAVA_NC.split()), ("h5py", "lava.proc.lif.process")),
        Environment(
            "lava",
            (*_LAVA_NC.split(), *_LAVA_DL.split(), *(pinned + _LINUX for pinned in _LAVA_CUDA.split())),
            ("lava.lib.dl.netx.hdf5", "lava.lib.dl.slayer"),
        ),
    )
}


def cache_folder() -> Path:
    """The folder that snncc keeps its own things in, outside any checkout."""
    if own := os.environ.get("SNNCC_CACHE"):
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "snncc"


def find(name: str, python: str | os.PathLike[str] | None = None) -> Path | None:
    """The interpreter with the SDK `name`: the one given, else of `SNNCC_<NAME>_PYTHON`, else the built one, else None.

    Raises `SdkError` if a path is given, here or in the variable, and is no file; KeyError for an unknown name.
    """
    environment, variable = ENVIRONMENTS[name], f"SNNCC_{name.upper().replace('-', '_')}_PYTHON"
    for source, path in (("the path given", python), (variable, os.environ.get(variable))):
        if path:
            # Not resolved: a virtual environment's python is a link, and the link's place is what makes it one.
            found = Path(path).expanduser().absolute()
            if not found.is_file():
                raise SdkError(f"no Python for {name} at {found} ({source})")
            return found
    return environment.python if (environment.folder / _COMPLETE).is_file() else None


def build(name: str, python: str | os.PathLike[str] | None = None) -> Path:
    """Builds the environment unless it stands already, and returns its interpreter.

    `python` is the Python 3.10 to build from, found if not given. Raises `SdkError` with what to do.
    """
    environment = ENVIRONMENTS[name]
    if (environment.folder / _COMPLETE).is_file():
        return environment.python
    base = find_python(python)
    shutil.rmtree(environment.folder, ignore_errors=True)  # what a build that was cut short left behind
    environment.folder.parent.mkdir(parents=True, exist_ok=True)
    modules = "; ".join(f"import {module}" for module in environment.imports)
    for command in (
        [base, "-m", "venv", environment.folder],
        [environment.python, "-m", "pip", "install", "--disable-pip-version-check", *environment.requirements],
        [environment.python, "-c", modules],
    ):
        line = [str(word) for word in command]
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            tail = "\n".join(done.stdout.strip().splitlines()[-15:])
            raise SdkError(f"building {name} failed with status {done.returncode} at: {' '.join(line)}\n{tail}")
    (environment.folder / _COMPLETE).touch()
    return environment.python


def find_python(given: str | os.PathLike[str] | None = None) -> Path:
    """A Python 3.10: the one given or of `SNNCC_PYTHON310`, else `python3.10` on PATH, else pyenv's, else this one.

    Each is asked for its version, as pyenv's shim for a version that is not switched on is there and fails.
    """
    for stated in (given, os.environ.get("SNNCC_PYTHON310")):
        if stated:
            if _version(Path(stated)) != PYTHON:
                raise SdkError(f"{stated} is no Python {PYTHON}: it answers {_version(Path(stated)) or 'nothing'}")
            return Path(stated)
    for candidate in _candidates():
        if _version(candidate) == PYTHON:
            return candidate
    raise SdkError(
        f"no Python {PYTHON} was found, which the vendor SDKs need. Install one (`pyenv install {PYTHON}`, "
        f"`uv python install {PYTHON}`, or your system's package) and put python{PYTHON} on PATH, or give its path in "
        "SNNCC_PYTHON310."
    )


def _candidates() -> Iterator[Path]:
    if on_path := shutil.which(f"python{PYTHON}"):
        yield Path(on_path)
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from sorted(versions.glob(f"{PYTHON}.*/bin/python"), reverse=True)
    yield Path(sys.executable)


def _version(python: Path) -> str:
    """What the interpreter says that its version is, empty if it does not answer."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        asked = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def main(arguments: list[str] | None = None) -> int:
    """The command line: `build NAME...` and `list`. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m snncc.sdk", description="Builds and lists vendor environments.")
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="build environments that do not stand yet")
    builder.add_argument("names", nargs="+", choices=list(ENVIRONMENTS), metavar="NAME", help=", ".join(ENVIRONMENTS))
    builder.add_argument("--python", help=f"the Python {PYTHON} to build from")
    commands.add_parser("list", help="name each environment and where it is")
    options = parser.parse_args(arguments)
    try:
        for name in ENVIRONMENTS if options.command == "list" else options.names:
            print(f"{name}: {find(name) or 'not built' if options.command == 'list' else build(name, options.python)}")
    except SdkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
