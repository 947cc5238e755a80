"""The sweep: frozen, strictly validated dataclasses, and their TOML file."""

from scalejax.spec.sweep import DataSpec, HalvingSpec, Knob, ModelGrid, Sweep, TrainSpec, check_models

__all__ = ["DataSpec", "HalvingSpec", "Knob", "ModelGrid", "Sweep", "TrainSpec", "check_models"]
