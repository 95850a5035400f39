"""Checkpoint layouts of DFlash drafters, with a head (DSpark) and without."""
