"""One of two hosts of a job, for `test_hosts`: trains a sweep, stops in one and resumes it, and meets mistakes.

    python hosts_job.py SWEEP.toml FOLDER HOST:PORT NUMBER

It prints what became of each step, a JSON object of results by name.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax

import scalejax as sx
from scalejax.execute.pack import Pack, PendingCall
from scalejax.spec.file import load_sweep

HOSTS, SIGNALLED = 2, 1  # how many, and which of them is told to stop
CALLS = 6  # before the signal


def main(file: str, folder: Path, coordinator: str, number: int) -> dict[str, str]:
    """Do all that this file says, beside the other host."""
    sweep, other = load_sweep(Path(file)), load_sweep(Path(file), {"seeds": 2})
    said = {}

    def tried(name: str, out: str, sweep: sx.Sweep) -> None:
        try:
            said[name] = str(sx.run_sweep(sweep, folder / out, progress=False, checkpoint_seconds=0))
        except (sx.SweepError, KeyboardInterrupt) as error:
            said[name] = f"{type(error).__name__}: {error}"

    jax.distributed.initialize(coordinator, num_processes=HOSTS, process_id=number)
    tried("others", "others", sweep if number == 0 else other)
    (folder / "file").touch()
    tried("no folder", "file", sweep)
    tried("whole", "two", sweep)

    launch, launched = Pack.launch, []

    def counted(self: Pack, *, copy: bool = False) -> PendingCall:
        launched.append(self)
        if len(launched) == CALLS and number == SIGNALLED:
            os.kill(os.getpid(), signal.SIGTERM)
        return launch(self, copy=copy)

    Pack.launch = counted
    tried("stopped", "stopped", sweep)
    Pack.launch = launch
    if number == 0:
        shutil.copytree(folder / "stopped", folder / "moved")
    tried("resumed", "stopped", sweep)
    tried("again", "stopped", sweep)
    said["others' devices"] = str(len(jax.devices()) - len(jax.local_devices()))
    return said


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
