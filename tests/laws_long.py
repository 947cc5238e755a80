"""The long forms of the tests of laws: 200 planted truths and 500 simulated experiments a law.

    python tests/laws_long.py truths [LAW ...]      every parameter within 1e-6, no noise
    python tests/laws_long.py coverage [LAW ...]    90 % intervals hold the truth in 86 to 94 % of experiments

Prints one line a law and exits with 1 if one falls short. On one CPU core the truths take about ten minutes.
"""

import argparse
import sys
import time

import numpy as np
from laws_helpers import TRUTHS, covered, worst_error

from scalejax.analysis.laws.laws import LAWS

SEED = 2022


def truths(law: str, number: int) -> bool:
    """Print and judge the worst errors of planted truths."""
    generator = np.random.default_rng(SEED)
    errors = np.array([worst_error(law, generator) for _ in range(number)])
    missed = int((errors > 1e-6).sum())
    print(f"{law}: {number - missed} of {number} truths within 1e-6; worst {errors.max():.1e}", flush=True)
    return missed == 0


def coverage(law: str, number: int) -> bool:
    """Print and judge the share of experiments whose intervals hold the truth."""
    generator = np.random.default_rng(SEED)
    hits = [covered(law, generator, bootstrap=200) for _ in range(number)]
    shares = {name: float(np.mean([hit[name] for hit in hits])) for name in TRUTHS[law]}
    print(f"{law}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()), flush=True)
    return all(0.86 <= share <= 0.94 for share in shares.values())


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["truths", "coverage"])
    parser.add_argument("laws", nargs="*", default=list(LAWS), metavar="LAW")
    parser.add_argument("--number", type=int, help="truths (200) or experiments (500) a law")
    options = parser.parse_args()
    number = options.number or {"truths": 200, "coverage": 500}[options.what]
    fine = True
    for law in options.laws:
        begun = time.perf_counter()
        fine &= (truths if options.what == "truths" else coverage)(law, number)
        print(f"    {time.perf_counter() - begun:.0f} s", flush=True)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
