"""Programs on devices: packs of lanes, and the scheduler that keeps them busy."""
