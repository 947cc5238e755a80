"""Trials, packing and training."""
