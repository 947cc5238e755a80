"""Experiment trackers that a run tells what it does: one file each, or an object of the user's own."""

from scalejax.run.trackers.names import tracker_of
from scalejax.run.trackers.tracker import Tracker

__all__ = ["Tracker", "tracker_of"]
