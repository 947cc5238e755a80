"""Programs on devices: packs of lanes, and the scheduler that keeps them busy."""

CHECKPOINT_SECONDS = 60.0  # between two checkpoints of a pack, by default; here, where it can be read without JAX
