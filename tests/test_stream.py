"""Batches from the host, to the last bit those that a device draws itself; and text that is read where it lies."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from engine_helpers import slow
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import scalejax as sx
from scalejax.data import describe, load, tokens
from scalejax.data.host_shuffle import batch_rows, own_rows, shuffled
from scalejax.data.shuffle import index_shuffle
from scalejax.rules import SpecError
from scalejax.run.watch import Accountant
from scalejax.train.recipe import Recipe, Settings
from scalejax.train.step import BLOCK_STEPS, Cursor, batch_indices

SIZES = st.one_of(st.integers(1, 300), st.integers(1, 2**31 - 1))
KEYS = st.integers(0, 2**32 - 1)


@jax.jit
def on_device(index: jax.Array, size: jax.Array, key: jax.Array) -> jax.Array:
    return index_shuffle(index, size=size, key=key)


@settings(max_examples=60, deadline=None)
@given(size=SIZES, key=KEYS)
def test_the_host_shuffles_as_the_devices_do(size: int, key: int):
    index = np.linspace(0, size - 1, 50).astype(np.int64)
    device = on_device(jnp.asarray(index, jnp.uint32), jnp.uint32(size), jnp.uint32(key))
    assert shuffled(index, size=size, key=key).tolist() == np.asarray(device).tolist()


@settings(max_examples=4, deadline=None)
@given(
    examples=st.integers(1, 500), more=st.integers(0, 1000), batch=st.integers(1, 9), step=st.integers(0, 10**6),
    subset=KEYS, shuffle=KEYS,
)  # fmt: skip
def test_the_host_draws_the_batches_that_a_device_draws(examples, more, batch, step, subset, shuffle):
    recipe = Recipe("adamw", "constant", None, batch_size=batch)
    numbers = Settings(1e-3, 0.0, 10, 0, examples, subset, shuffle).scalars()
    epoch, position = divmod(step * batch, examples)
    cursor = Cursor(np.uint32(epoch), np.uint32(position))
    device = batch_indices(recipe, numbers, cursor, pool=examples + more, first=jnp.int32(0))
    keys = {"pool": examples + more, "subset_key": subset, "shuffle_key": shuffle}
    rows = batch_rows(step * batch, BLOCK_STEPS * batch, train_examples=examples, **keys)
    assert rows.tolist() == np.asarray(device).reshape(-1).tolist()
    assert set(rows) <= set(own_rows(examples, pool=examples + more, key=subset))


def sweep_of(data: sx.DataSpec, **changes) -> sx.Sweep:
    train = sx.TrainSpec(learning_rate=(1e-3, 1e-2), batch_size=(16,), steps=60, weight_decay=(0.1,))
    models = (sx.ModelGrid("logistic"), sx.ModelGrid("mlp", width=[4, 16], depth=1))
    return sx.Sweep(**{"name": "streamed", "seeds": 2, "data": data, "models": models, "train": train} | changes)


SMALL = sx.DataSpec(
    source="mnist1d", examples=1_000, train_examples=(50, 400), validation_examples=100, test_examples=100
)


def tables(run: sx.Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    return run.results().drop(columns=["seconds", "mode"]), run.measurements()


# One family in the short form: the other's batches come by the same way.
@pytest.mark.parametrize(
    ("mode", "family"), [("vmap", "mlp"), *slow(("vmap", "logistic"), ("map", "mlp"), ("map", "logistic"))]
)
def test_a_streamed_run_has_the_numbers_of_a_resident_one(
    mode: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scalejax.execute.modes.choose_mode", lambda *_, **__: mode)
    models = tuple(each for each in sweep_of(SMALL).models if each.family == family)
    resident, streamed = (
        sx.run_sweep(sweep_of(replace(SMALL, stream=stream), models=models), tmp_path / str(stream), progress=False)
        for stream in (False, True)
    )
    for one, other in zip(tables(resident), tables(streamed), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_plan_says_that_batches_are_streamed_and_how_much_memory_they_take():
    facts = sx.plan(sweep_of(replace(SMALL, stream=True)), devices=2).facts
    assert facts["data_bytes"] == 200 * (40 * 4 + 4)  # validation and test alone
    batch = 16 * (40 * 4 + 4)
    assert facts["stream_bytes"] % batch == 0
    assert "streamed  the training pool stays on the host" in str(sx.plan(sweep_of(replace(SMALL, stream=True)), 2))
    assert sx.plan(sweep_of(SMALL), devices=2).facts["stream_bytes"] == 0


def token_file(path: Path, *, tokens: int = 20_000, seed: int = 0) -> Path:
    np.random.default_rng(seed).integers(0, 500, tokens).astype(np.uint16).tofile(path)
    return path


def tokens_of(path: Path, **changes) -> sx.DataSpec:
    options = {"path": str(path), "vocabulary": 500, "sequence_length": 16} | changes
    return sx.DataSpec(source="tokens", train_examples=(20,), options=options)


@pytest.mark.parametrize(("tokens", "length"), [(20_000, 16), (6_401, 16), (500, 7), (29, 7)])
def test_each_window_is_in_one_split_once_and_its_target_follows_it(tmp_path: Path, tokens: int, length: int):
    path = tmp_path / "tokens.bin"
    text = np.arange(tokens, dtype=np.uint16)  # every window is another one
    text.tofile(path)
    spec = tokens_of(path, vocabulary=2**16, sequence_length=length)
    spec = replace(spec, train_examples=(1,))
    data = load(spec)
    splits = (data.train, data.validation, data.test)
    first = np.concatenate([np.asarray(split.inputs[:])[:, 0] for split in splits])
    count = (tokens - 1) // length
    assert sorted(first.tolist()) == [length * number for number in range(count)]
    for split in splits:
        inputs, targets = np.asarray(split.inputs[:]), np.asarray(split.targets[:])
        assert (inputs == inputs[:, :1] + np.arange(length)).all()
        assert (targets == inputs[:, -1] + 1).all()
    rows = np.array([[3, 0], [1, 1]]) % len(data.train.targets)
    assert data.train.inputs[rows].tolist() == np.asarray(data.train.inputs[:])[rows].tolist()


def test_one_token_of_the_training_set_that_the_vocabulary_lacks_is_found_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = token_file(tmp_path / "tokens.bin")
    monkeypatch.setattr(tokens, "BLOCK", 1_000)
    for place in (0, 12_345, 19_999):
        text = np.fromfile(path, np.uint16) % 500
        text[place] = 500
        text.tofile(path)
        with pytest.raises(SpecError, match=rf"holds the token 500 where .* at position {place:,}; correct") as caught:
            describe(tokens_of(path))
        assert caught.value.keys == ("vocabulary",)
        assert describe(tokens_of(path, vocabulary=501)).vocabulary == 501


def test_of_a_large_file_pieces_are_read_and_other_tokens_checked_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = token_file(tmp_path / "tokens.bin")
    monkeypatch.setattr(tokens, "HASHED_WHOLE", 10_000)
    monkeypatch.setattr(tokens, "PIECES", 5)
    monkeypatch.setattr(tokens, "PIECE", 101)  # bytes: each piece begins or ends within a token
    text = np.fromfile(path, np.uint16)
    spec = replace(tokens_of(path), validation_examples=10, test_examples=10)
    for place, early in ((0, True), (10, True), (19_990, True), (7_000, False)):
        beyond = text.copy()
        beyond[place] = 500
        beyond.tofile(path)
        if early:
            with pytest.raises(SpecError, match=f"at position {place:,}; correct"):
                describe(spec)
        else:
            train = load(spec).train.inputs
            with pytest.raises(sx.RunError, match=r"holds the token 500 where .* correct the vocabulary, the dtype or"):
                train[:]


def test_text_is_split_by_passages(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 251)) * 400)
    data = load(
        sx.DataSpec(source="bytes", train_examples=(1,), options={"path": str(tmp_path), "sequence_length": 10})
    )
    inputs = data.test.inputs
    follows = (inputs[1:, 0].astype(int) - 1) % 250 == inputs[:-1, -1].astype(int) % 250
    assert follows.mean() > 0.9  # neighbouring windows stay together


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path):
    one, other = token_file(tmp_path / "one.bin"), token_file(tmp_path / "other.bin")
    prints = [describe(tokens_of(path)).fingerprint for path in (one, other)]
    assert prints[0] == prints[1]
    token_file(other, seed=1)
    changed = tokens_of(one, sequence_length=8), tokens_of(one, bytes_per_token=4.0), tokens_of(other)
    found = [*prints[:1], *(describe(spec).fingerprint for spec in changed)]
    assert len(set(found)) == 4


def test_windows_of_another_length_and_another_vocabulary_are_other_data_of_the_same_sizes(tmp_path: Path):
    sizes = {"examples": 300, "validation_examples": 20, "test_examples": 20}
    path = token_file(tmp_path / "tokens.bin")
    lengths = [replace(tokens_of(path, sequence_length=length), **sizes) for length in (8, 16)]
    changed = [*lengths, replace(tokens_of(path, sequence_length=16, vocabulary=900), **sizes)]
    (tmp_path / "a.txt").write_bytes(b"the quick brown fox " * 1_000)
    for length in (8, 16):
        options = {"path": str(tmp_path / "a.txt"), "sequence_length": length}
        changed.append(replace(tokens_of(path), source="bytes", options=options, **sizes))
    assert len({describe(each).fingerprint for each in changed}) == 5


def test_a_token_beyond_the_vocabulary_and_a_file_that_changes_are_one_sentence(tmp_path: Path):
    path = token_file(tmp_path / "tokens.bin")
    says = (
        r"vocabulary: .* holds the token 499 where vocabulary = 400 has tokens from 0 to 399; .* at position \d+; cor"
    )
    with pytest.raises(sx.SweepError, match=says):
        describe(tokens_of(path, vocabulary=400))
    train = load(tokens_of(path)).train
    token_file(path, tokens=30_000)
    with pytest.raises(sx.RunError, match=r"changed while it was read; run again"):
        train.inputs[np.arange(3)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "bytes", "path": "missing"}, "path: missing: there is no such file in .*, nor beside"),
        ({"source": "bytes", "path": "empty"}, "expected at least three windows of 128 bytes, found 0 bytes of text"),
        ({"source": "bytes", "path": "*.none"}, "there are no files; correct the path"),
        ({"source": "bytes"}, "path: needed but missing"),
        ({"source": "tokens", "path": "odd", "vocabulary": 9}, "expected uint16 tokens, 2 bytes each"),
        ({"source": "tokens", "path": "folder", "vocabulary": 9}, "path: folder: this is a folder; expected a file"),
        ({"source": "tokens", "path": "od", "vocabulary": 9}, "path: od: there is no such file; did you mean odd"),
        ({"source": "bytes", "path": "emtpy"}, "path: emtpy: there is no such file; did you mean empty"),
        ({"source": "bytes", "path": "long" * 99}, r"cannot be read \(File name too long\)"),
        ({"source": "tokens", "path": "odd", "vocabulary": 9, "dtype": "float"}, "float.*is unknown"),
    ],
)
def test_text_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, says):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "odd").write_bytes(b"x" * 99_999)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sx.SweepError, match=says) as caught:
        describe(sx.DataSpec(train_examples=(10,), **options))
    assert "\n" not in str(caught.value)


def test_binary_and_hidden_files_of_a_folder_are_left_out(tmp_path: Path):
    (tmp_path / ".hidden").write_text("hidden" * 1_000)
    (tmp_path / "binary").write_bytes(b"\0" * 9_000)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("b" * 1_000)
    (tmp_path / "a.txt").write_text("a" * 1_000)
    card = describe(
        sx.DataSpec(source="bytes", train_examples=(10,), options={"path": str(tmp_path), "sequence_length": 10})
    )
    assert card.examples + card.validation_examples + card.test_examples == 200  # of 2,001 bytes
    globbed = sx.DataSpec(
        source="bytes", train_examples=(10,), options={"path": f"{tmp_path}/**/b.txt", "sequence_length": 10}
    )
    assert sum(describe(globbed).sizes.values()) == 99


@pytest.mark.slow
def test_a_streamed_run_that_is_stopped_resumes_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = token_file(tmp_path / "tokens.bin")
    data = replace(tokens_of(path), stream=True, train_examples=(20, 400))
    sweep = sweep_of(data, models=sx.ModelGrid(Bigrams, width=[4, 8]))
    whole = sx.run_sweep(sweep, tmp_path / "whole", progress=False)
    shown, show = [], Accountant.show

    def stop(*arguments):
        show(*arguments)
        shown.append(None)
        if len(shown) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    with monkeypatch.context() as patched:
        patched.setattr(Accountant, "show", stop)
        with pytest.raises(sx.Interrupted):
            sx.run_sweep(sweep, tmp_path / "stopped", progress=False)
    assert sx.Run(tmp_path / "stopped").counts()["done"] < len(whole.results())
    resumed = sx.run_sweep(sweep, tmp_path / "stopped", progress=False)
    for one, other in zip(tables(whole), tables(resumed), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert set(whole.results()["metric"]) == {"bits_per_token"}
    nats, bits = whole.results()["test_loss"], whole.results()["test_metric"]
    np.testing.assert_allclose(bits, nats / np.log(2), rtol=1e-6)


class Bigrams(nnx.Module):
    """Each token says what follows it, through few numbers."""

    def __init__(self, *, vocabulary: int, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.output = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.output(self.embed(tokens))


LONG = """
import resource, sys
import scalejax as sx
path, tokens, stream, out = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True", sys.argv[4]
data = {"path": path, "vocabulary": 256, "sequence_length": 256}
sweep = sx.Sweep(
    name="long",
    data=sx.DataSpec(
        source="tokens", fractions=(1.0,), validation_examples=16, test_examples=16, stream=stream, options=data
    ),
    models=sx.ModelGrid("transformer", width=256, depth=2),
    train=sx.TrainSpec(learning_rate=(1e-3,), batch_size=(8,), steps=80, evaluate_every=80),
)
result = sx.run_sweep(sweep, out, progress=False).results().iloc[0]
print(result["status"], result["seconds"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_large_file_is_streamed_in_little_memory_and_about_as_fast_as_from_memory(tmp_path: Path):
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    with large.open("wb") as file:
        file.truncate(20_000_000_000)  # sparse: it reads as zeros
    with small.open("wb") as file:
        file.truncate(50_000_000)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(3):  # in turns, for machines drift
        for streamed, path in ((True, large), (False, small)):
            command = [sys.executable, "-c", LONG, path, "0", streamed, tmp_path / f"{number}-{streamed}"]
            found = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.split()
            assert found[0] == "done"
            seconds[streamed].append(float(found[1]))
            assert not streamed or int(found[2]) * 1024 < 1.5e9
    print(seconds)
    assert np.median(seconds[False]) / np.median(seconds[True]) > 0.8


def test_validation_and_test_do_not_dwarf_a_short_training(tmp_path: Path):
    def card(count: int, **options):
        path.write_bytes(bytes(count))
        return describe(replace(tokens_of(path, dtype="uint8"), **options))

    path = tmp_path / "tokens.bin"
    assert (card(16 * 4_000 + 1).validation_examples, card(16 * 10_000 + 1).test_examples) == (400, 500)


def test_a_short_text_is_said_to_have_few_windows(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("a" * 240)
    options = {"path": str(tmp_path / "notes.txt"), "sequence_length": 64}
    with pytest.raises(SpecError, match="200 is more than the 1 window of 64 that validation and test leave"):
        describe(sx.DataSpec("bytes", train_examples=(200,), options=options))
