"""The option ``sensor``: which of the chip's pixels feed a network, and how."""

from __future__ import annotations

from snncc.ir.diagnostics import choices, input_error, wrong_value
from snncc.passes.fuse_linear import as_map
from snncc.targets.dynapcnn.chips import Chip
from snncc.targets.dynapcnn.config import Sensor

PIXELS = 128
WORDS = ("auto", "pooling=P", "origin=Y,X", "on", "off", "mirror-x", "mirror-y", "mirror-diagonal")


def parse(words: str, shape: tuple[int, ...], chip: Chip) -> Sensor:
    """The sensor for an input ``shape`` (channels, height, width).

    The shape says most: two channels are the polarities, one is both merged; the pixels are pooled as much as the size
    lets, and cut around their middle. ``words``, apart by spaces, say otherwise: "auto" for nothing, else some of
    pooling=P, origin=Y,X (in pooled pixels), on or off (one polarity only), mirror-x, mirror-y and mirror-diagonal.

    Raises:
        InputError: a word that is unknown, or a shape that the sensor cannot give.
    """
    channels, height, width = as_map(shape)
    if channels > 2 or max(height, width) > PIXELS or len(shape) != 3:
        message = f"the sensor gives 1 or 2 channels of up to {PIXELS} x {PIXELS} pixels, the network takes {shape}"
        raise input_error("SNN005", message)
    pooling = max(p for p in chip.poolings if p * max(height, width) <= PIXELS)
    if chip.validated and (pooling * height, pooling * width) != (PIXELS, PIXELS):
        pooling = 1  # these chips are not known to pool and cut in one order (config.problems)
    origin: tuple[int, int] | None = None
    only: set[str] = set()
    mirror: set[str] = set()
    for word in words.split():
        name, _, value = word.partition("=")
        numbers = value.split(",") if value else []
        if not all(n.isdecimal() for n in numbers):
            raise wrong_value("sensor", words, f"has {word!r}, which is no number", hint=choices(name, WORDS))
        if name == "pooling" and len(numbers) == 1:
            pooling = int(numbers[0])
        elif name == "origin" and len(numbers) == 2:
            origin = (int(numbers[0]), int(numbers[1]))
        elif word in ("on", "off"):
            only.add(word)
        elif word in ("mirror-x", "mirror-y", "mirror-diagonal"):
            mirror.add(word)
        elif word != "auto":
            raise wrong_value("sensor", words, f"has {word!r}, which is unknown", hint=choices(word, WORDS))
    if pooling not in chip.poolings:
        legal = ", ".join(map(str, chip.poolings))
        raise wrong_value("sensor", words, f"asks for pooling {pooling}; the chip has {legal}")
    if origin is None:
        origin = ((PIXELS // pooling - height) // 2, (PIXELS // pooling - width) // 2)
    for n, o, what in zip((height, width), origin, ("rows", "columns"), strict=True):
        if not 0 <= o <= PIXELS // pooling - n:
            message = f"asks for {n} {what} from {o} on, of {PIXELS // pooling} after pooling {pooling}"
            raise wrong_value("sensor", words, message, hint="choose a smaller pooling or origin")
    return Sensor(
        pooling=(pooling, pooling),
        origin=origin,
        size=(height, width),
        merge=channels == 1,
        on=not only or "on" in only,
        off=not only or "off" in only,
        mirror=("mirror-y" in mirror, "mirror-x" in mirror),
        mirror_diagonal="mirror-diagonal" in mirror,
    )
