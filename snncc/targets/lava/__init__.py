"""Intel's Lava and Loihi 2."""

from snncc.targets.lava.slayer import blocks, encoded

__all__ = ["blocks", "encoded"]
