"""The nouns of the IR: parameters, types, units and source locations. All immutable, all without torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The IR's dtype names are MLIR's; one table ties them to numpy's.
DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# A name that is also an MLIR bare identifier, so that text needs no quoting. '$' is kept for the digest.
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def identifier(text: str) -> str:
    """``text`` with every character that an MLIR identifier cannot hold replaced by ``_``."""
    clean = re.sub(r"[^A-Za-z0-9_.]", "_", text)
    return clean if IDENTIFIER.match(clean) else f"_{clean}"


class Domain(str, Enum):
    """What a value stands for. REAL: a network's activation. CURRENT: what flows into a neuron in one time step.
    SPIKE: what a neuron sent in one time step. MESSAGE: the same of neurons that send numbers, changes of either
    sign."""

    REAL = "real"
    CURRENT = "current"
    SPIKE = "spike"
    MESSAGE = "message"


@dataclass(frozen=True)
class Param:
    """A tensor by reference: its bytes lie in a :class:`Store` under ``digest``, so graphs compare, hash and print.

    ``digest`` is the first 128 bits of SHA-256 over dtype, shape and bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    digest: str

    def __post_init__(self) -> None:
        if not IDENTIFIER.match(self.name):
            raise ValueError(f"parameter name {self.name!r} is no identifier; see snncc.ir.types.identifier")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize


# A scalar, or one value per channel (axis 0 of the value without its batch axis).
PerChannel = float | int | Param


def digest(array: Array) -> str:
    """The content address of an array (see :class:`Param`)."""
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    sha = hashlib.sha256(f"{_NAMES[array.dtype]}{array.shape}".encode())
    sha.update(contiguous.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()[:32]


class MissingBytes(KeyError):
    """A parameter whose bytes are not in the store: a stage was read from text alone, or saved without weights."""

    def __str__(self) -> str:
        return str(self.args[0])


class Store:
    """The bytes of parameters by digest. It only grows, so all stages of a compile share one."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def put(self, name: str, array: npt.ArrayLike, copy: bool = True) -> Param:
        """Add ``array`` (float or integer) and return the reference to it.

        ``copy=False`` keeps the caller's memory, which must not change any more (:meth:`verify` finds out if it did).
        """
        value = np.asarray(array)
        if value.dtype not in _NAMES:
            raise TypeError(f"parameter {name!r} has dtype {value.dtype}; the IR holds {', '.join(DTYPES)}")
        key = digest(value)
        if key not in self._arrays:
            kept = value.copy() if copy else value.view()
            kept.setflags(write=False)
            self._arrays[key] = kept
        return Param(identifier(name), value.shape, _NAMES[value.dtype], key)

    def __getitem__(self, param: Param) -> Array:
        try:
            return self._arrays[param.digest]
        except KeyError:
            raise MissingBytes(f"the bytes of parameter {param.name!r} ({param.digest}) are not here") from None

    def __contains__(self, param: Param) -> bool:
        return param.digest in self._arrays

    def verify(self, param: Param) -> bool:
        """Whether the bytes still are what the digest says."""
        return digest(self[param]) == param.digest


@dataclass(frozen=True)
class Type:
    """The type of a value: its shape without the batch axis, storage, domain and unit.

    **Float values are real**: what the network computes; a spike has the value ``unit``. **Integer values count
    units**: the real value is ``value * unit``. So any two stages can be compared in numbers, and threshold scaling,
    integer scales and average-to-sum pooling all live in one place.
    """

    shape: tuple[int, ...]
    dtype: str = "f32"
    domain: Domain = Domain.REAL
    unit: PerChannel = 1.0

    @property
    def integer(self) -> bool:
        return self.dtype.startswith("i")

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def per_channel(value: PerChannel, store: Store, rank: int) -> Array | float:
    """``value`` as something that broadcasts over an array (N, C, ...) whose unbatched rank is ``rank``."""
    if isinstance(value, Param):
        return store[value].astype(np.float64).reshape((-1,) + (1,) * (rank - 1))
    return float(value)


@dataclass(frozen=True)
class Source:
    """A place in the user's program: the module's path in the model and the file and line that called it."""

    module: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{PurePath(self.file).name}:{self.line}" if self.file else ""
        return f"{where} ({self.module})" if where and self.module else where or self.module


@dataclass(frozen=True)
class Loc:
    """Where a node comes from: the user's places that went into it, and the passes that made it."""

    sources: tuple[Source, ...] = ()
    passes: tuple[str, ...] = ()

    def through(self, pass_name: str) -> Loc:
        return self if pass_name in self.passes else Loc(self.sources, (*self.passes, pass_name))

    def merge(self, *others: Loc) -> Loc:
        """The location of a node that replaces several: all their origins, each once, in order."""
        locs = (self, *others)
        return Loc(
            tuple(dict.fromkeys(s for loc in locs for s in loc.sources)),
            tuple(dict.fromkeys(p for loc in locs for p in loc.passes)),
        )

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)

    def __str__(self) -> str:
        return ", ".join(map(str, self.sources)) or "unknown"


# --- ranges ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """What the values of every channel lie between, (C,) each; of a value without axes, ()."""

    low: Array
    high: Array

    @classmethod
    def of(cls, low: Array | float, high: Array | float, type: Type) -> Range:
        """For a value of this type; numbers serve all channels."""
        return cls(*(np.broadcast_to(np.asarray(end, np.float64), type.shape[:1]) for end in (low, high)))

    @property
    def hull(self) -> tuple[float, float]:
        """Over all channels."""
        return float(self.low.min()), float(self.high.max())

    @property
    def size(self) -> float:
        """Upper bound on magnitudes."""
        low, high = self.hull
        return max(abs(low), abs(high))

    def within(self, other: Range) -> Range:
        """The smallest range with all of both."""
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    @property
    def or_zero(self) -> Range:
        return Range(np.minimum(self.low, 0.0), np.maximum(self.high, 0.0))

    def map(self, rule: Callable[[Array], Array]) -> Range:
        """Under a rule that never falls (a clip, a rounding), or that moves channels."""
        return Range(rule(self.low), rule(self.high))

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Range) -> Range:
        return Range(self.low - other.high, self.high - other.low)

    def times(self, factor: Array | float) -> Range:
        """``factor``: one number, or one for each channel."""
        with np.errstate(invalid="ignore"):  # 0 * inf
            ends = [
                np.nan_to_num(np.asarray(end * factor), nan=0.0, posinf=np.inf, neginf=-np.inf)
                for end in (self.low, self.high)
            ]
        return Range(np.minimum(*ends), np.maximum(*ends))
