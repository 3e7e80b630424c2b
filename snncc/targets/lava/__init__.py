"""Intel's Lava and Loihi 2."""
