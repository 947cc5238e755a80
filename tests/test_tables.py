"""What a law is fitted to: columns of any table, or the tuned trials of a run."""

import numpy as np
import pandas as pd
import pytest

from scalejax.analysis.laws.laws import LAWS
from scalejax.analysis.tables import from_table, from_trials, parse_columns, read_table

SIZES = (100, 1000, 10000)


def trials() -> pd.DataFrame:
    """Two widths, three sizes, two rates of which the second is better, two seeds."""
    rows = [
        {
            "trial_id": f"{width}-{size}-{rate}-{seed}", "family": "mlp", "width": width, "params": 10 * width,
            "train_examples": size, "seed": seed, "learning_rate": rate, "weight_decay": 0.0, "batch_size": 16,
            "steps": 50, "status": "done", "validation_loss": size**-0.3 + 0.1 * (rate == 0.1),
            "test_loss": 2 * size**-0.3 + width / 1e6, "test_error": 0.5, "steps_taken": 50,
        }
        for width in (4, 8) for size in SIZES for rate in (0.1, 0.01) for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_law_in_one_predictor_is_fitted_to_each_model_with_its_best_rate():
    found = from_trials(LAWS["power"], trials(), columns={})
    assert [each.curve for each in found] == ["mlp width 4", "mlp width 8"]
    for each, width in zip(found, (4, 8), strict=True):
        assert each.columns == {"x": "train_examples", "loss": "test_loss"}
        assert sorted(each.predictors["x"]) == sorted(np.repeat(SIZES, 2))
        np.testing.assert_allclose(each.loss, 2 * each.predictors["x"] ** -0.3 + width / 1e6)
        assert each.groups is not None
        assert len(set(each.groups)) == len(SIZES)


def test_a_law_in_params_and_tokens_is_fitted_to_all_models_together():
    (found,) = from_trials(LAWS["chinchilla"], trials(), columns={})
    assert len(found.loss) == 12
    assert set(found.predictors["params"]) == {40, 80}
    assert found.groups is not None
    assert len(set(found.groups)) == 6


@pytest.mark.parametrize("pair", [("relu", "gelu"), (True, False), (1, "1"), (1, True)])
def test_models_of_one_size_that_differ_in_another_knob_are_fitted_apart(pair):
    """Two activations have the same number of parameters, and some knobs are equal in Python or look alike in print."""
    one = trials().query("width == 4")
    other = one.assign(trial_id="other " + one["trial_id"], test_loss=0.5 * one["test_loss"])
    for table, value in ((one, pair[0]), (other, pair[1])):
        table.insert(3, "kind", pd.Series([value] * len(table), index=table.index, dtype=object))
    table = pd.concat([one, other], ignore_index=True)
    found = from_trials(LAWS["power"], table, columns={})
    assert len({each.curve for each in found}) == 2
    for each, scale in zip(found, (1, 0.5), strict=True):
        np.testing.assert_allclose(each.loss, scale * (2 * each.predictors["x"] ** -0.3 + 4 / 1e6))
    (together,) = from_trials(LAWS["chinchilla"], table, columns={})
    assert together.groups is not None
    assert len(set(together.groups)) == 2 * len(SIZES)


@pytest.mark.parametrize("law", ["power", "chinchilla"])
def test_a_fit_says_where_all_seeds_train_on_the_same_examples(law):
    table = trials()
    assert from_trials(LAWS[law], table, columns={})[0].notes == ()
    table["fraction"] = table["train_examples"] / max(SIZES)
    for each in from_trials(LAWS[law], table, columns={}):
        (note,) = each.notes
        assert note.startswith("All seeds train on the same 10,000 examples, the whole pool: ")
    alone = table.query("seed == 0")
    assert from_trials(LAWS[law], alone, columns={})[0].notes == ()


def test_repeated_examples_are_distinguished_from_new_ones():
    (found,) = from_trials(LAWS["data_constrained"], trials(), columns={})
    assert set(found.predictors["tokens"]) == {800}
    assert set(found.predictors["unique_tokens"]) == {100, 800}


def test_any_column_of_numbers_can_stand_for_the_loss():
    found = from_trials(LAWS["power"], trials(), columns={"loss": "test_error", "x": "params"})
    assert set(found[0].loss) == {0.5}
    assert set(found[0].predictors["x"]) == {40}


def test_the_metric_of_a_regression_is_fitted_under_its_name():
    rows = trials().assign(test_metric=7.0, metric="RMSE", test_error=np.nan)
    for column in ("test_metric", "test_RMSE"):
        found = from_trials(LAWS["power"], rows, columns={"loss": column})
        assert set(found[0].loss) == {7.0}
        assert found[0].columns["loss"] == "test_RMSE"
    assert from_trials(LAWS["power"], rows, columns={})[0].columns["loss"] == "test_loss"


def test_a_table_is_taken_as_it_is_and_divided_by_a_column():
    table = pd.DataFrame({"N": [1, 2, 3], "D": [4.0, 5.0, 6.0], "L": [1.0, np.nan, 3.0], "run": ["a", "b", "a"]})
    columns = {"params": "N", "tokens": "D", "loss": "L"}
    (whole,) = from_table(LAWS["chinchilla"], table, columns=columns)
    assert whole.curve == ""
    assert whole.groups is None
    np.testing.assert_array_equal(whole.loss, [1, np.nan, 3])  # left out by the fit, which counts it
    a, b = from_table(LAWS["chinchilla"], table, columns=columns, curve="run")
    assert (a.curve, b.curve) == ("a", "b")
    assert a.predictors["params"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("columns", "curve", "says"),
    [
        ({"params": "M", "tokens": "D", "loss": "L"}, None, "no column 'M' for params: did you mean params="),
        ({"params": "N", "tokens": "D", "loss": "L", "x": "D"}, None, "has no x: its columns are params, tokens and"),
        ({"params": "N", "tokens": "D", "loss": "run"}, None, "'run' has values that are not numbers"),
        ({"params": "N", "tokens": "D", "loss": "L"}, "rnu", "no column 'rnu' for curves: did you mean curves=run"),
        ({"params": "N", "loss": "L"}, None, "no column 'tokens' for tokens"),
    ],
)
def test_a_mistake_in_the_columns_is_a_sentence_with_the_nearest_name(columns, curve, says):
    table = pd.DataFrame({"N": [1.0], "D": [2.0], "L": [3.0], "run": ["a"]})
    with pytest.raises(ValueError, match=says):
        from_table(LAWS["chinchilla"], table, columns=columns, curve=curve)


def test_pairs_are_parsed_and_other_words_refused():
    assert parse_columns(["params=N", "loss=a=b"]) == {"params": "N", "loss": "a=b"}
    with pytest.raises(ValueError, match="'params' is not of the form NAME=COLUMN"):
        parse_columns(["params"])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b'"a,b\n1', None])
def test_a_file_that_is_no_table_is_a_sentence(tmp_path, content):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a table") as caught:
        read_table(path)
    assert len(str(caught.value).splitlines()) == 1
