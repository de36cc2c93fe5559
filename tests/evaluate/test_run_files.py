"""The file of a run: what it says comes back to the last bit, and nothing else passes for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial, wraps

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from st_gchb._artifacts import digest
from st_gchb._errors import InputError
from st_gchb.evaluate import METHODS, Run, RunFolder, RunKey, describe, parse_run

KEY = RunKey("S1", "ridge", 0, {"package": "1", "data": "d", "described": {"function": "f"}})
numbers = st.floats(allow_nan=False, allow_infinity=False)


def run_of(values, prediction=None):
    genes = pd.Index([f"Gene{i}" for i in range(len(values))], name="gene")
    frame = pd.DataFrame({"pearson": values, "constant": [False] * len(values)}, index=genes)
    return Run({"AG": float(np.mean(values)), "n>0.3": len(values)}, frame, prediction)


@given(values=st.lists(numbers, min_size=1, max_size=5))
def test_numbers_come_back_to_the_last_bit(tmp_path_factory, values):
    folder = RunFolder(tmp_path_factory.getbasetemp() / "bits")
    run = run_of(values)
    folder.write(KEY, run)
    found = folder.read(KEY)
    assert {name: type(value) for name, value in found.row.items()} == {"AG": float, "n>0.3": int}
    assert found.row == run.row or not np.isfinite(run.row["AG"])
    pd.testing.assert_frame_equal(found.genes, run.genes, check_exact=True)


def test_prediction_comes_back(tmp_path):
    folder = RunFolder(tmp_path)
    prediction = np.random.default_rng(0).random((4, 2)).astype(np.float32)
    folder.write(KEY, run_of([0.5, 0.25], prediction))
    np.testing.assert_array_equal(folder.read(KEY, with_prediction=True).prediction, prediction)
    assert folder.read(KEY).prediction is None
    folder.write(KEY, run_of([0.5, 0.25]))
    assert folder.read(KEY, with_prediction=True) is None


def content(tmp_path):
    RunFolder(tmp_path).write(KEY, run_of([0.5, 0.25]))
    return (tmp_path / f"{KEY.stem}.json").read_bytes()


@given(noise=st.binary(max_size=200))
def test_no_bytes_pass_for_a_run(noise):
    assert isinstance(parse_run(noise, KEY), str)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
own_names = st.sampled_from(["format", "key", "key_sha256", "row", "genes", "prediction_sha256", "record_sha256"])


@given(record=json_values | st.dictionaries(own_names, json_values))
def test_no_json_passes_for_a_run(record):
    assert isinstance(parse_run(json.dumps(record).encode(), KEY), str)


@given(
    row=json_values, genes=json_values | st.dictionaries(st.just("gene") | st.text(), json_values), other=json_values
)
def test_a_record_that_vouches_for_itself_has_to_be_a_table(row, genes, other):
    record = {"format": 1, "key_sha256": KEY.sha256, "row": row, "genes": genes, "prediction_sha256": other}
    record["record_sha256"] = digest(json.loads(json.dumps(record)))
    found = parse_run(json.dumps(record).encode(), KEY)
    if not isinstance(found, str):
        assert isinstance(row, dict)
        assert list(found[0].genes.columns) == [name for name in genes if name != "gene"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return content(tmp_path_factory.mktemp("written"))


@given(st.data())
def test_any_change_is_seen(written, data):
    assert not isinstance(parse_run(written, KEY), str)
    at = data.draw(st.integers(0, len(written) - 1))
    if data.draw(st.booleans()):
        broken = written[:at]
    else:
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != written[at]))
        broken = written[:at] + bytes([byte]) + written[at + 1 :]
    found = parse_run(broken, KEY)
    # Only what JSON itself does not tell apart may pass: white space between words.
    assert isinstance(found, str) or json.loads(broken) == json.loads(written)


@pytest.mark.parametrize("bomb", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b'"\\ud800"', b"[1e999, NaN]"])
def test_hostile_json(bomb):
    assert isinstance(parse_run(bomb, KEY), str)


def test_a_key_is_all_that_it_holds(written):
    for other in (
        RunKey("S2", "ridge", 0, KEY.depends_on),
        RunKey("S1", "knn", 0, KEY.depends_on),
        RunKey("S1", "ridge", 1, KEY.depends_on),
        RunKey("S1", "ridge", 0, {**KEY.depends_on, "package": "2"}),
    ):
        assert other.stem != KEY.stem
        assert parse_run(written, other) == "is the file of another run"


def test_names_of_slices_and_methods_are_no_paths(tmp_path):
    folder = RunFolder(tmp_path / "runs")
    keys = [RunKey(name, "a/b\\c:*?" * 30, 0, {}) for name in ("../up", "..\\up", ".", "", "Größe", "x" * 300)]
    for key in keys:
        folder.write(key, run_of([0.5]))
        assert folder.read(key) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert len(list((tmp_path / "runs").iterdir())) == len(keys)


def one(task, k=1, *, deep=True):
    return task


def other(task, k=1, *, deep=True):
    return task + 1


@wraps(one)
def wrapped(task):
    return other(task)


@dataclass
class Averaged:
    inner: object
    weight: float = 0.5

    def __call__(self, task):
        return self.inner(task)


class Plain:
    def __call__(self, task):
        return task


def test_methods_are_told_apart():
    methods = [
        *METHODS.values(),
        partial(METHODS["knn"], k=7),
        partial(METHODS["default"], beta=3.0),
        one,
        other,
        partial(one, k=2),
        partial(one, k=2.0),
        partial(one, k="2"),
        partial(one, k=[2]),
        partial(one, k={"2": None}),
        partial(one, k=np.zeros(2)),
        partial(one, k=np.ones(2)),
        partial(one, k=one),
        partial(one, 2),
        Averaged(one),
        Averaged(other),
        Averaged(one, 0.7),
        Averaged(partial(METHODS["default"], beta=3.0)),
    ]
    described = [json.dumps(describe(method), sort_keys=True) for method in methods]
    assert "null" not in described
    assert len(set(described)) == len(methods)
    assert described == [json.dumps(describe(method), sort_keys=True) for method in methods]


def test_order_of_keywords_is_nothing():
    assert describe(partial(one, k=2, deep=False)) == describe(partial(one, deep=False, k=2))
    model = METHODS["default"]
    assert describe(partial(model, beta=3.0, lr=0.1)) == describe(partial(partial(model, lr=0.1), beta=3.0))


def test_what_has_no_description():
    here = one

    def closure(task):
        return here(task)

    @dataclass
    class Local:
        def __call__(self, task):
            return task

    scope: dict = {}
    exec("def typed(task):\n    return task\n", scope)
    methods = [
        lambda task: task,
        closure,
        wrapped,
        Plain(),
        Plain().__call__,
        Local(),
        len,
        scope["typed"],
        partial(one, k=object()),
        partial(one, k=lambda: 1),
        partial(one, k=np.array([object()])),
        partial(one, k={1: 2}),
        Averaged(closure),
    ]
    assert [describe(method) for method in methods] == [None] * len(methods)


def test_a_setting_that_is_none():
    with pytest.raises(InputError, match="betta.*beta"):
        describe(partial(METHODS["default"], betta=3.0))
