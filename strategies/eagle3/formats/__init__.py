"""Checkpoint layouts of Eagle 3 drafters."""
