"""What a trial may be: the words of the column `status`."""

from enum import StrEnum


class Status(StrEnum):
    """The status of a trial, in the order in which it is counted."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    DIVERGED = "diverged"  # its loss was not finite
    STOPPED = "stopped"  # early, by halving: final as long as the sweep as it stands stops it
    FAILED = "failed"  # it could not be trained; the next run tries again


FINAL = (Status.DONE, Status.DIVERGED)  # never trained again
ENDED = (*FINAL, Status.STOPPED, Status.FAILED)
