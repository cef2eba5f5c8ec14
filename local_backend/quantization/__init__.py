"""Weights in few bits: one neutral form, the ways into it from floats and checkpoints, the ways to run it."""
