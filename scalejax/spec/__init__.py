"""The sweep: frozen, strictly validated dataclasses, and their TOML file."""

from scalejax.spec.sweep import DataSpec, FeaturesSpec, HalvingSpec, Knob, ModelGrid, Sweep, TrainSpec, check_models

__all__ = ["DataSpec", "FeaturesSpec", "HalvingSpec", "Knob", "ModelGrid", "Sweep", "TrainSpec", "check_models"]
