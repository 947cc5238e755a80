"""The sweep file: read, explained line by line, overridden, fuzzed, and written back."""

import dataclasses
import inspect
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalejax.errors import SweepError
from scalejax.spec import DataSpec, HalvingSpec, ModelGrid, Sweep, TrainSpec, check_models
from scalejax.spec.file import load_sweep, parse_override, sweep_to_toml

GOOD = """\
# Question: none.
name = "quickstart"
seeds = 3
[data]
source = "mnist1d"
train_examples = [20, 60, 200]
test_examples = 1000
[[models]]
family = "logistic"
[[models]]
family = "mlp"
width = [
  8,
  32,  # [train]
]
depth = 2
[train]
learning_rate = [1e-3, 3e-3]
batch_size = 64
steps = 3000
schedule = "cosine"
"""


def logistic(*, inputs: int, classes: int, rngs: Any): ...


def mlp(*, inputs: int, classes: int, width: int, depth: "int", rate: float = 0.5, kind: str = "relu", rngs: Any): ...


FAMILIES = {"logistic": logistic, "mlp": mlp}


def known_families(sweep):
    check_models(sweep, FAMILIES)


def sentence(caught: pytest.ExceptionInfo[SweepError]) -> str:
    """Return the error's text, which must be one line of moderate length, whatever it is about."""
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert len(text) < 500
    return text


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "x.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_a_good_file_is_read(tmp_path):
    got = load_sweep(write(tmp_path, GOOD), check=known_families)
    assert got == Sweep(
        name="quickstart",
        seeds=(0, 1, 2),
        data=DataSpec("mnist1d", train_examples=(20, 60, 200), test_examples=1000),
        models=(ModelGrid("logistic"), ModelGrid("mlp", width=(8, 32), depth=(2,))),
        train=TrainSpec((1e-3, 3e-3), (64,), steps=3000),
    )
    assert load_sweep(write(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())) == got


# --- one mistake at a time

BAD_FILES: list[tuple[str, str, str]] = [  # replaced in GOOD; by; line and sentence
    ("steps = 3000", "steps = 3000\nlearning_rte = 1",
     "line 21, [train] learning_rte: unknown key; did you mean learning_rate?"),
    ("steps = 3000", "steps = 3000.0", "line 20, [train] steps: expected a whole number >= 1, found 3000.0"),
    ("steps = 3000", '"steps" = "3"', "line 20, [train] steps: expected a whole number >= 1, found '3'"),
    ("steps = 3000", "steps = 1979-05-27",
     "line 20, [train] steps: expected a whole number >= 1, found a value of type date"),
    ("steps = 3000", "epochs = 3000\nsteps=3",
     "line 21, [train] steps: expected exactly one of steps and epochs, found both"),
    ("steps = 3000", "", "line 17, [train] steps: expected exactly one of steps and epochs, found neither"),
    ("batch_size = 64", "", "line 17, [train] batch_size: needed but missing; expected a whole number >= 1, or a list"),
    ("steps = 3000", "epochs = 3\nmin_steps = 9\nmax_steps = 5",
     "line 21, [train] min_steps: expected at most max_steps = 5, found 9"),
    ("steps = 3000", "steps.x = 3", "line 20, [train] steps: expected a whole number >= 1, found a table"),
    ("steps = 3000", "seeds = 2\nsteps = 1", "line 20, [train] seeds: unknown key; it belongs above the first table"),
    ("seeds = 3", "steps = 3", "line 3, steps: unknown key; it belongs into [train]"),
    ("seeds = 3", "sedes = 3", "line 3, sedes: unknown key; did you mean seeds?"),
    ("seeds = 3", "zz = '''\n[train]\nsteps = 1\n'''",
     "line 3, zz: unknown key; expected one of name, data, models, train, seeds"),
    ("\n[train]", "\n[trian]", "line 17, trian: unknown key; did you mean train?"),
    ("\n[train]", "\n[[train]]", "line 17, [train]: expected one table [train], found a list of tables"),
    ('family = "mlp"', f'family = "{__name__}:GOOD"',
     f"line 11, [[models]] index 1 family: {__name__}:GOOD is '# Question: none."),
    ('schedule = "cosine"', 'optimizer = "nowhere:rule"', "line 21, [train] optimizer: nowhere:rule: there is no m"),
    ('schedule = "cosine"', "momentum = 0.5",
     "line 21, [train] momentum: adamw does not have this, it has b1, b2, eps; drop this key"),
    ('schedule = "cosine"', 'optimizer = "sgd"\nb1 = 0.5',
     "line 22, [train] b1: sgd does not have this, it has no numbers of its own; drop this key"),
    ('schedule = "cosine"', "eps = 1e-40",
     "line 21, [train] eps: expected a finite number >= 1e-30, or a list of such values"),
    ('schedule = "cosine"', "decay_fraction = 0.5",
     'line 21, [train] decay_fraction: only the schedule "wsd" has this; drop this key'),
    ('schedule = "cosine"', f'optimizer = "{__name__}:test_overrides"\nb2 = 0.9',
     "line 22, [train] b2: an optimizer of your own keeps its numbers itself; drop this key"),
    ("[data]", "[data]\n[data.zzz]", "line 5, [data] zzz: unknown key; expected one of source,"),
    ("[data]", "[data]\n'a.\"b' = 1", "line 5, [data] a.\"b: unknown key; expected one of source,"),
    ("[data]", "[data]\nexamples = 100", "line 7, [data] train_examples: expected at most examples = 100, found 200"),
    ("[data]", '[data]\n"\\n" = 1', "line 4, [data] '\\n': unknown key; expected one of source,"),
    ('source = "mnist1d"', 'source = """\\\nseed = 1"""\nseed = -1', "line 7, [data] seed: expected a whole number"),
    ("[data]", "[data]\n'' = 1", "line 5, [data] '': unknown key; expected one of source,"),
    ("[data]", "[data]\nself = 1", "line 5, [data] self: unknown key; expected one of source,"),
    ('family = "mlp"\n', "", "line 10, [[models]] index 1 family: needed but missing; expected the name of a family"),
    ('family = "mlp"', "family = 3",
     "line 11, [[models]] index 1 family: expected the name of a family, or a builder, found 3"),
    ('family = "mlp"', 'family = "mpl"', "line 11, [[models]] index 1 family: unknown family 'mpl'; did you mean mlp?"),
    ('family = "mlp"', 'family = "zzz"',
     "line 11, [[models]] index 1 family: unknown family 'zzz'; expected one of logistic, mlp"),
    ('family = "mlp"', 'family = "a:b"',
     "line 11, [[models]] index 1 family: a:b: there is no module a, neither installed nor in"),
    ("depth = 2", "dept = 2", "line 16, [[models]] index 1 dept: unknown knob of mlp; did you mean depth?"),
    ("depth = 2", "", "line 10, [[models]] index 1 depth: needed by mlp but missing; expected a whole number >= 1"),
    ("depth = 2", "depth = 2.0", "line 16, [[models]] index 1 depth: expected a whole number >= 1, found 2.0"),
    ("depth = 2", "depth = [0]", "line 16, [[models]] index 1 depth: expected a whole number >= 1, found 0"),
    ("depth = 2", "depth = []", "line 16, [[models]] index 1 depth: expected at least one value, found an empty list"),
    ("depth = 2", "depth = [2, 2]", "line 16, [[models]] index 1 depth: 2 is given twice; expected distinct values"),
    ("depth = 2", "depth = 2\nrate = nan",
     "line 17, [[models]] index 1 rate: expected a whole number up to 2147483647, a finite"),
    ("depth = 2", "depth = 2\nrate = 'a'", "line 17, [[models]] index 1 rate: expected a finite number, found 'a'"),
    ("depth = 2", "depth = 2\nkind = true",
     "line 17, [[models]] index 1 kind: expected a non-empty text on one line, found true"),
    ("depth = 2", "depth = 2\n[models.kind]\na=1", "line 17, [[models]] index 1 kind: expected a whole number up to"),
    ("depth = 2", "depth = 2\nclasses = 3", "line 17, [[models]] index 1 classes: this cannot be a size knob"),
    ('family = "logistic"', 'family = "logistic"\nwidth = 3',
     "line 10, [[models]] index 0 width: unknown knob of logistic; it has none"),
    ("\n[train]", '\n[[models]]\nfamily="mlp"\nwidth=[4,8]\ndepth=2\n[train]',
     "line 18, [[models]] index 2 family: repeats a model of index 1 (width = 8, depth = 2)"),
    ("\n[train]", '\n[[models]]\nfamily="mlp"\nwidth=8\ndepth=2\nrate=0.5\n[train]',
     "line 18, [[models]] index 2 family: repeats a model of index 1 (rate = 0.5,"),
    ('schedule = "cosine"', "[train.halving]\nrungs = [0.5, 1.5]",
     "line 22, [train.halving] rungs: expected a finite number > 0 and < 1, or an ascending list of such values"),
    ('schedule = "cosine"', "[train.halving]\nrung = 0.5",
     "line 22, [train.halving] rung: unknown key; did you mean rungs?"),
    ('schedule = "cosine"', "[train.halving]\nreduction = 3", "line 21, [train.halving] rungs: needed but missing"),
    ('schedule = "cosine"', "[train.halving]\nrungs = 0.5\nsteps = 3",
     "line 23, [train.halving] steps: unknown key; it belongs into [train]"),
    ('schedule = "cosine"', "[[train.halving]]\nrungs = 0.5",
     "line 21, [train.halving]: expected one table [train.halving], found a list of tables"),
    ('schedule = "cosine"', "halving = true",
     "line 21, [train.halving]: expected one table [train.halving], found true"),
    ('schedule = "cosine"', "halving = {rungs = 0.5, reduction = 1}",
     "line 21, [train.halving] reduction: expected a whole number >= 2, found 1"),
    ('schedule = "cosine"', "halving.rungs = 1",
     "line 21, [train.halving] rungs: expected a finite number > 0 and < 1"),
    ('schedule = "cosine"', "rungs = 0.5", "line 21, [train] rungs: unknown key; it belongs into [train.halving]"),
    ("\n[train]", "\n[halving]\nrungs = 0.5\n[train]", "line 17, halving: unknown key; did you mean [train.halving]?"),
    ("[1e-3, 3e-3]", "1e-3\nhalving = {rungs = 0.5}",
     "line 19, [train.halving]: expected several learning rates to choose from, found one; give more of them, or no h"),
    ("seeds = 3", "seeds = 3\nseeds = 4", "line 4: not valid TOML: Cannot overwrite a value"),
    ("seeds = 3", "seeds = ", "line 3: not valid TOML: Invalid value"),
    ("seeds = 3", "seeds = " + "9" * 5000, ": not valid TOML: a number has too many digits"),
    ("seeds = 3", "seeds = 0x" + "f" * 9000,
     "line 3, seeds: expected a number of seeds from 1 to 10000 or a list of seeds, found a value too large"),
    ("seeds = 3", "seeds = " + "[" * 50_000, ": not a sweep; its arrays or tables are nested too deeply"),
    ("steps = 3000", "steps = 1e400", "line 20, [train] steps: expected a whole number >= 1, found inf"),
    ("steps = 3000", "s\0 = 1", "line 20: not valid TOML: "),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "says"), BAD_FILES)
def test_bad_file(old, new, says, tmp_path):
    assert GOOD.count(old) == 1
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(SweepError) as caught:
        load_sweep(path, check=known_families)
    text = sentence(caught)
    assert text.startswith(path)
    assert text.removeprefix(path).removeprefix(", ").startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "name: needed but missing"),
        ('name = "a"', "[data]: needed but missing"),
        ('name = "a"\ndata = 3', "line 2, [data]: expected one table [data], found 3"),
        ('name = "a"\nmodels = 3', "line 2, [[models]]: expected tables [[models]], found 3"),
        (
            'name = "a"\n[models]\nfamily = "mlp"',
            "line 2, [[models]]: expected tables [[models]], found a single table",
        ),
        ('models = [{family="mlp", width=[nan]}]', "line 1, [[models]] index 0 width: expected a whole number up to"),
        (GOOD.replace('[[models]]\nfamily = "logistic"\n', "").split("[[")[0], "[[models]]: needed but missing"),
        (GOOD[: GOOD.rindex("[train]")], "[train]: needed but missing"),
        ('data.source = "a"\n\ndata.seed = -1', "line 3, [data] seed: expected a whole number >= 0, found -1"),
    ],
)
def test_bad_structure(text, says, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(SweepError) as caught:
        load_sweep(path)
    assert sentence(caught).startswith(f"{path}, {says}")


def test_unreadable_files(tmp_path):
    cases = {
        str(tmp_path / "absent.toml"): "there is no such file",
        str(tmp_path): "this is a folder",
        f"{tmp_path}/a\0b": "cannot be read (not a valid file name)",
        str(tmp_path / ("n" * 5000)): "cannot be read (File name too long)",
        write(tmp_path, GOOD.encode() + b"\n# \xff"): ", line 23: not UTF-8 text",
    }
    for path, says in cases.items():
        with pytest.raises(SweepError) as caught:
            load_sweep(path)
        assert str(caught.value).startswith(path if path.isprintable() else repr(path))
        assert says in str(caught.value)
        assert str(caught.value).isprintable()


# --- overrides


def test_overrides(tmp_path):
    texts = ["seeds=1", "train.learning_rate=[1e-3,3e-3]", "models.1.width=[4]", "train.schedule=constant",
             "train.steps=", "train.epochs=2.5", "data.source=digits", "name = 'q r'"]  # fmt: skip
    overrides = dict(map(parse_override, texts))
    assert overrides.pop("name") == "q r"
    got = load_sweep(write(tmp_path, GOOD), overrides)
    assert got.seeds == (0,)
    assert got.models[1].knobs == {"width": (4,), "depth": (2,)}
    assert got.data.source == "digits"
    assert (got.train.schedule, got.train.steps, got.train.epochs) == ("constant", None, 2.5)


def test_overrides_of_halving(tmp_path):
    def halving(*texts: str, text: str = GOOD) -> HalvingSpec | None:
        return load_sweep(write(tmp_path, text), dict(map(parse_override, texts))).train.halving

    with_it = GOOD + "[train.halving]\nrungs = [0.1, 0.3]\n"
    assert halving(text=with_it) == HalvingSpec((0.1, 0.3))
    assert halving("train.halving.rungs=[0.1]") == HalvingSpec((0.1,))
    assert halving("train.halving.reduction=4", text=with_it) == HalvingSpec((0.1, 0.3), 4)
    assert halving("train.halving={rungs = [0.2], reduction = 3}", text=with_it) == HalvingSpec((0.2,), 3)
    assert halving("train.halving=", text=with_it) is None
    assert halving("train.halving.reduction=") is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"train.halving": 3}, "--set train.halving: expected one table [train.halving], found 3"),
        ({"train.halving": {"rungs": 2}}, "--set train.halving: expected a finite number > 0 and < 1, or an ascending"),
        ({"train.halving": {1: 2}}, "--set train.halving: unknown key; expected one of rungs, reduction"),
        (
            {"train.halving.rungs": 2},
            "--set train.halving.rungs: expected a finite number > 0 and < 1, or an ascending",
        ),
        ({"train.halving.rung": 2}, "--set train.halving.rung: unknown key; did you mean rungs?"),
        ({"halving.rungs": 2}, "--set halving.rungs: unknown key; did you mean train.halving.rungs?"),
        (
            {"train.halving.rungs": 0.1, "train.learning_rate": 1},
            "--set train.halving.rungs: expected several learning rates to choose from, found one;",
        ),
        ({"train": 3}, "--set train: train is a table; expected one of its keys"),
    ],
)
def test_bad_override_of_halving(overrides, says, tmp_path):
    with pytest.raises(SweepError) as caught:
        load_sweep(write(tmp_path, GOOD), overrides)
    assert sentence(caught).startswith(says)


def test_an_override_that_takes_the_choice_from_halving_is_to_blame(tmp_path):
    with pytest.raises(SweepError, match=r"^--set train.learning_rate: expected several learning rates to choose from"):
        load_sweep(write(tmp_path, GOOD + "halving = {rungs = 0.5}\n"), {"train.learning_rate": 1e-3})


def test_other_overrides_are_not_to_blame(tmp_path):
    path = write(tmp_path, GOOD + "[train.halving]\nrungs = 2\n")
    with pytest.raises(SweepError, match=r"line 23, \[train.halving\] rungs: expected a finite number"):
        load_sweep(path, {"train.halving.reduction": 3, "train.steps": 10})


@pytest.mark.parametrize(
    ("dotted", "says"),
    [
        ("steps", "unknown key; did you mean train.steps?"),
        ("trian.steps", "unknown key; did you mean train.steps?"),
        ("train.setps", "unknown key; did you mean steps?"),
        ("train.steps.x", "unknown key; did you mean train.steps?"),
        ("train", "train is a table; expected one of its keys, for instance train.learning_rate"),
        ("models", "models is a table; expected one of its keys, for instance models.0.width"),
        ("models.2.width", "the file has 2 [[models]], counted from 0, found index 2"),
        ("models.-1.width", "the file has 2 [[models]], counted from 0, found index -1"),
        ("models.1.widht", "unknown knob of mlp; did you mean width?"),
        (
            "q.q.q",
            "unknown key; expected name, seeds, packing, task, metric, keep_weights, data.KEY, train.KEY or "
            "models.INDEX.KNOB",
        ),
    ],
)
def test_bad_override(dotted, says, tmp_path):
    with pytest.raises(SweepError) as caught:
        load_sweep(write(tmp_path, GOOD), {dotted: 3}, check=known_families)
    assert sentence(caught) == f"--set {dotted}: {says}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.steps", "--set train.steps: expected KEY=VALUE, for instance train.steps=100"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("a=[1,", "--set a: expected a TOML value, found '[1,'; a text with spaces or brackets needs quotes"),
        ("a=b c", "--set a: expected a TOML value, found 'b c'"),
        ("a=1\nb=2", "--set a: expected a TOML value, found '1\\nb=2'"),
    ],
)
def test_parse_override_refuses(text, says):
    with pytest.raises(SweepError) as caught:
        parse_override(text)
    assert sentence(caught).startswith(says)


def test_override_of_a_broken_table(tmp_path):
    with pytest.raises(
        SweepError, match=r"^--set train.steps: expected the file to have one table \[train\], found 3$"
    ):
        load_sweep(write(tmp_path, "train = 3"), {"train.steps": 3})


# --- properties

WORDS = st.sampled_from(
    ["nan", "inf", "-inf", "1e400", "-0.0", "0", "1", "2", "-1", "9" * 30, "9" * 5000, "0x" + "f" * 5000, "true",
     "1979-05-27", "07:32:00", '""', '"x"', '"\\u0000"', '"""a\nb"""', "'''\nq", '"adamw"', "[]", "[[1]]", "[1, 1.0]",
     "[true, 1]", "[" * 3000, "{}", "{a = 1}", "{a.b.c = [{}]}", "\0", "\u2028", "é", "=", "#", "\n", "\r", "[train]",
     "[[train]]", "[data.x]", "[models]", "[[models]]", '[[models]]\nfamily = "mlp"', '"a.b" = 1', "'\"' = 2",
     "[train.halving]", "halving = {rungs = 0.5}", "rungs = [0.1, 0.3]", "steps = 1", "epochs = 2", "a.b.c = 1",
     ".".join("a" * 3000) + " = 1", "fractions = 0.5"]
)  # fmt: skip
EDITS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["value", "line", "insert", "text"]), WORDS | st.text(max_size=8)),
    min_size=1,
    max_size=3,
)


def edited(text: str, edits: list[tuple[int, str, str]]) -> str:
    for where, how, word in edits:
        lines = text.split("\n")
        at = where % len(lines)
        before = lines[at].partition("=")[0]
        changed = {
            "value": [f"{before}= {word}"],
            "line": [word],
            "insert": [word, lines[at]],
            "text": [lines[at] + word],
        }
        lines[at : at + 1] = changed[how]
        text = "\n".join(lines)
    return text


def explained(call: Callable[[], Any]) -> Any:
    """Return what `call` returns, or None after a proper error; anything else passes through and fails the test."""
    try:
        return call()
    except SweepError as error:
        kind, text = type(error), str(error)
    assert kind is SweepError  # not the reader's own subclass, which does not know the file
    assert text.isprintable()
    assert len(text.splitlines()) == 1
    return None


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(edits=EDITS)
def test_any_text_is_read_or_explained(edits, tmp_path):
    path = write(tmp_path, edited(GOOD, edits).encode("utf-8", "surrogatepass"))
    got = explained(lambda: load_sweep(path, check=known_families))
    if got is not None:
        assert load_sweep(write(tmp_path, sweep_to_toml(got))) == got


KEYS = ["name", "seeds", *(f"data.{field.name}" for field in dataclasses.fields(DataSpec)),
        *(f"train.{field.name}" for field in dataclasses.fields(TrainSpec)), "train.halving.rungs",
        "train.halving.reduction", "models.1.width", "models.0.family", "models.9.x", "models", "train", "a.b",
        ""]  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=2), st.dates(),
    st.just(10**500), st.sampled_from(["adamw", "lion", "mlp", "constant"]), st.just(object()), st.just({1, 2}),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)


@FUZZ
@given(overrides=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), VALUES, min_size=1, max_size=3))
def test_any_override_is_taken_or_explained(overrides, tmp_path):
    path = write(tmp_path, GOOD)
    sweep = explained(lambda: load_sweep(path, overrides, check=known_families))
    assert sweep is None or isinstance(sweep, Sweep)


@given(text=st.text(max_size=20) | st.builds("a={}".format, WORDS))
def test_any_override_text_is_parsed_or_explained(text):
    parsed = explained(lambda: parse_override(text))
    assert parsed is None or parsed[0]


POSITIVE_FLOATS = st.floats(0, exclude_min=True, allow_infinity=False)
COUNTS = st.integers(1, 2**31 - 1)
SEEDS: Any = st.integers(1, 9) | st.lists(COUNTS, min_size=1, max_size=3, unique=True)
TEXTS = st.text(min_size=1, max_size=8).filter(str.isprintable)
KNOB = COUNTS | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
KNOBS = st.dictionaries(
    st.sampled_from(["width", "depth", "é", "_x"]),
    st.lists(KNOB, min_size=1, max_size=3, unique_by=repr),
    max_size=2,
)


@st.composite
def sweeps(draw: st.DrawFn) -> Sweep:
    def grid(values: st.SearchStrategy[Any]) -> Any:
        return draw(values | st.lists(values, min_size=1, max_size=3, unique=True))

    data = {"source": draw(st.sampled_from(["mnist1d", "digits", "land"])), "seed": draw(COUNTS)}
    if data["source"] == "land":
        data |= {"fourier_features": 2, "fourier_scale": draw(st.none() | POSITIVE_FLOATS)}
    data |= draw(
        st.sampled_from([{"train_examples": [3, 1]}, {"fractions": (0.1, 1)}, {"train_examples": 5, "examples": 5}])
    )
    train = {"learning_rate": grid(POSITIVE_FLOATS), "batch_size": grid(COUNTS), "weight_decay": grid(st.floats(0, 1))}
    train |= {"optimizer": draw(st.sampled_from(["sgd", "lion"])), "patience": draw(st.none() | COUNTS)}
    train |= draw(st.sampled_from([{"steps": 7}, {"epochs": 1.5, "min_steps": 2, "max_steps": 2}, {"epochs": 3}]))
    if isinstance(train["learning_rate"], list) and len(train["learning_rate"]) > 1:
        rungs = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), min_size=1, max_size=3, unique=True)
        train["halving"] = draw(st.none() | st.builds(HalvingSpec, rungs.map(sorted), st.integers(2, 9)))
    names = draw(st.lists(st.from_regex(r"[a-z\"\\ é]{1,5}", fullmatch=True), min_size=1, max_size=3, unique=True))
    models = []
    for name in names:
        # 0.0 and -0.0, or 1 and 1.0, are one value twice; such a grid is left out.
        models.append(explained(lambda name=name: ModelGrid(name, draw(KNOBS))) or ModelGrid(name))
    folder = draw(st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=9))
    return Sweep(folder, DataSpec(**data), tuple(models), TrainSpec(**train), draw(SEEDS))


@settings(FUZZ, max_examples=200)
@given(made=sweeps())
def test_round_trip(made, tmp_path):
    again = load_sweep(write(tmp_path, sweep_to_toml(made)))
    assert again == made
    assert repr(again) == repr(made)  # also the types, and the order


def one_to_zero(step, steps):
    return 1.0 - step / steps


def test_a_builder_an_optimizer_and_a_schedule_are_found_by_their_names(tmp_path):
    made = load_sweep(write(tmp_path, GOOD))
    train = dataclasses.replace(made.train, optimizer=test_overrides, schedule=one_to_zero)
    own = dataclasses.replace(made, models=(ModelGrid(mlp, width=8, depth=2),), train=train)
    text = sweep_to_toml(own)
    assert f'family = "{__name__}:mlp"\n' in text
    assert f'optimizer = "{__name__}:test_overrides"\n' in text
    assert f'schedule = "{__name__}:one_to_zero"\n' in text
    again = load_sweep(write(tmp_path, text))
    assert again == own
    assert again.models[0].family is mlp


def test_a_builder_without_a_name_that_leads_to_it_is_written_for_the_record_only(tmp_path):
    made = load_sweep(write(tmp_path, GOOD))

    def inner(*, width: int, rngs: Any): ...

    text = sweep_to_toml(dataclasses.replace(made, models=(ModelGrid(inner, width=8),)))
    assert "# a Python object: this file cannot be read back" in text
    with pytest.raises(SweepError, match="names no Python object; expected package"):
        load_sweep(write(tmp_path, text))


LAND = GOOD.replace('source = "mnist1d"', 'source = "land"')


def test_a_file_in_the_table_of_a_source_is_sought_beside_the_sweep_file(tmp_path):
    (tmp_path / "text.bin").write_text("the quick brown fox")
    for name, more in (("bytes", ""), ("tokens", "vocabulary = 300\n")):
        source, path = f'source = "{name}"', 'path = "text.bin"\n'
        texts = (
            GOOD.replace('source = "mnist1d"', f"{source}\n{path}{more}"),
            GOOD.replace('source = "mnist1d"', source).replace(
                "[[models]]", f"[data.{name}]\n{path}{more}[[models]]", 1
            ),
        )
        found = [load_sweep(write(tmp_path, text)).data.options["path"] for text in texts]
        assert found == [str(tmp_path / "text.bin")] * 2


def test_options_of_a_source_stand_in_its_table_or_beside_the_keys_of_all(tmp_path):
    flat = LAND.replace('source = "land"', 'source = "land"\nfourier_features = 8')
    table = LAND.replace("[[models]]", "[data.land]\nfourier_features = 8\n[[models]]", 1)
    one, other = (load_sweep(write(tmp_path, text)) for text in (flat, table))
    assert one == other
    assert one.data.options == {"fourier_features": 8}
    for text in (flat, table):
        for key in ("data.fourier_features", "data.land.fourier_features"):
            assert load_sweep(write(tmp_path, text), {key: 6}).data.options == {"fourier_features": 6}
            assert not load_sweep(write(tmp_path, text), {key: None}).data.options
        with pytest.raises(SweepError, match=r"^--set data.land.fourier_features: expected an even number"):
            load_sweep(write(tmp_path, text), {"data.land.fourier_features": 7})
    with pytest.raises(SweepError, match="unknown option of land; did you mean fourier_features"):
        load_sweep(write(tmp_path, table), {"data.land.fourier_feature": 7})
    changed = {"data.land": None, "data.source": "mnist1d"}
    assert load_sweep(write(tmp_path, table), changed).data == load_sweep(write(tmp_path, GOOD)).data
    changed = {"data.land.fourier_features": None, "data.source": "mnist1d"}
    assert load_sweep(write(tmp_path, table), changed).data == load_sweep(write(tmp_path, GOOD)).data
    with pytest.raises(SweepError, match=r"expected the file to have one table \[land\], found 3"):
        load_sweep(write(tmp_path, LAND.replace('"land"', '"land"\nland = 3')), {"data.land.fourier_features": 4})
    both = flat.replace("[[models]]", "[data.land]\nfourier_features = 8\n[[models]]", 1)
    with pytest.raises(SweepError, match=r"\[data\] fourier_features: given twice, here and in \[data.land\]"):
        load_sweep(write(tmp_path, both))
    twice: Any = {"options": {"fourier_features": 8}, "fourier_features": 6}
    with pytest.raises(SweepError, match="given twice, as a keyword and in options"):
        DataSpec("land", train_examples=(3,), **twice)
    with pytest.raises(
        SweepError, match=r"land: the source is .mnist1d.; drop this table, or change the source to land"
    ):
        load_sweep(write(tmp_path, table), {"data.source": "mnist1d"})


def test_a_source_that_is_a_number_without_end_is_one_sentence(tmp_path):
    text = GOOD.replace('source = "mnist1d"', f"source = 0x{'f' * 5000}")
    with pytest.raises(
        SweepError, match="source: expected the name of a source or the path of a file, found a value too"
    ):
        load_sweep(write(tmp_path, text))


def test_objects_of_ones_own_are_written_for_the_record_only(tmp_path):
    class Own:
        name = metric = "own"

        def outputs(self): ...

        loss = score = headline = outputs

    made = load_sweep(write(tmp_path, GOOD))
    for changes, key in (
        ({"task": Own()}, "task"),
        ({"train": dataclasses.replace(made.train, optimizer=lambda: None)}, "[train] optimizer"),
    ):
        text = sweep_to_toml(dataclasses.replace(made, **changes))
        with pytest.raises(SweepError) as caught:
            load_sweep(write(tmp_path, text))
        assert f"{key}: " in sentence(caught)
        told = sentence(caught)  # a task is sought by its name, and one within a function is not found by it
        assert "names no Python object; expected package.module:object" in told or "Own" in told


def test_the_names_that_a_file_may_give_are_those_of_the_tables():
    from scalejax.models.precision import PRECISIONS
    from scalejax.spec.sweep import OPTIMIZER_NUMBERS, OWN_NUMBERS
    from scalejax.spec.sweep import OPTIMIZERS as OPTIMIZER_NAMES
    from scalejax.spec.sweep import PRECISIONS as PRECISION_NAMES
    from scalejax.spec.sweep import SCHEDULES as SCHEDULE_NAMES
    from scalejax.spec.sweep import TASKS as TASK_NAMES
    from scalejax.train.optimizers import OPTIMIZERS, SMALLEST_EPS
    from scalejax.train.schedules import SCHEDULES
    from scalejax.train.task import TASKS

    assert tuple(OPTIMIZERS) == OPTIMIZER_NAMES
    for name, numbers in OPTIMIZER_NUMBERS.items():
        takes = inspect.signature(OPTIMIZERS[name]).parameters
        assert {each: takes[each].default for each in takes if each in OWN_NUMBERS} == numbers
    assert {each.name for each in dataclasses.fields(TrainSpec)} >= set(OWN_NUMBERS)
    for of in (optax.scale_by_adam, optax.scale_by_lion):  # a default is a constant, as it has been from the first
        defaults = OPTIMIZER_NUMBERS["adamw" if of is optax.scale_by_adam else "lion"]
        assert {each: inspect.signature(of).parameters[each].default for each in defaults} == defaults
    assert tuple(TASKS) == TASK_NAMES
    assert tuple(SCHEDULES) == SCHEDULE_NAMES
    assert tuple(PRECISIONS) == PRECISION_NAMES
    smallest = TrainSpec(learning_rate=(1.0,), batch_size=(1,), steps=1, eps=(SMALLEST_EPS,))
    with pytest.raises(SweepError, match=f">= {SMALLEST_EPS}"):
        dataclasses.replace(smallest, eps=(SMALLEST_EPS / 2,))
