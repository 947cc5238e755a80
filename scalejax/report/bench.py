"""Speeds in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from scalejax.text import percent, quantity


def bench_table(facts: Mapping[str, Any]) -> Table:
    """Return the speeds of `scalejax bench` as a table.

    Args:
        facts: as printed by `scalejax bench --json`.
    """
    table = Table(
        title=f"Useful FLOP/s on {facts['devices']} x {facts['device_kind']}, batch {facts['batch_size']}; "
        f"matrix products reach {quantity(facts['peak'], 'FLOP/s')}",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for name in ("width", "lanes", "vmap", "map", "of the peak", "plain loop", "lanes / loop"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in facts["widths"]:
        best = max(row["vmap"], row["map"])
        vmap, in_turn, loop = (quantity(row[name], "FLOP/s") for name in ("vmap", "map", "loop"))
        shares = percent(best / facts["peak"]), loop, f"{best / row['loop']:.2f}x"
        table.add_row(str(row["width"]), str(row["lanes"]), vmap, in_turn, *shares)
    return table
