"""A data set of a user's own, through public doors: as many points as one asks for, and a number to predict."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

import scalejax as sx

pytestmark = pytest.mark.usefixtures("compile_quickly")


@dataclass(frozen=True)
class Waves:
    frequency: float = 2.0
    name: str = "waves"

    def facts(self) -> sx.Facts:
        return sx.Facts(shape=(2,), classes=None, content={"version": 1, "frequency": self.frequency})

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, sx.Split]:
        splits = {}
        for stream, (name, size) in enumerate(sizes.items()):
            x = np.random.default_rng([seed, stream]).uniform(-1, 1, (size, 2)).astype(np.float32)
            splits[name] = sx.Split(x, np.sin(self.frequency * x[:, 0]) * x[:, 1])
        return splits


def test_a_data_set_of_ones_own_is_trained_and_shown(tmp_path):
    data = sx.DataSpec(source=Waves(), train_examples=(30, 3000), test_examples=1000)
    models = (sx.ModelGrid("logistic"), sx.ModelGrid("mlp", width=[8, 16], depth=2))
    train = sx.TrainSpec(learning_rate=(1e-2,), batch_size=(32,), steps=400)
    run = sx.run_sweep(sx.Sweep(name="waves", data=data, models=models, train=train), tmp_path, progress=False)
    curves = run.curves().set_index(["model", "train_examples"])["value"].to_dict()
    assert curves["mlp width 16", 3000] < 0.1 < curves["logistic", 3000]
    assert "RMSE" in " ".join(run.summary())
    assert (tmp_path / "figures" / "learning_curves.png").is_file()
