"""The statistics of a sweep against scipy's, and files that hold no sweep."""

import json

import numpy as np
import pytest
import scipy.stats
from made_sweep import CPU, record_of, run_of

from resnet_jax.errors import ConfigError
from resnet_jax.runs.sweep_file import (
    accuracy_text,
    half_interval,
    machine_text,
    read_record,
    seconds_of,
    summary_of,
    with_run,
    write_record,
)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 40])
def test_the_interval_is_scipys(count):
    values = np.random.default_rng(count).normal(0.9, 0.01, count).tolist()
    found = summary_of(values)
    assert found is not None
    expected = scipy.stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    np.testing.assert_allclose(found["interval"], expected, rtol=1e-12)
    assert found["mean"] == pytest.approx(np.mean(values), rel=1e-14)
    assert found["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert found["n"] == count


def test_the_interval_by_hand():
    """The quantile of one degree of freedom is tan(0.475 pi); of 0 and 1 the deviation is sqrt(1/2)."""
    assert half_interval([0.0, 1.0]) == pytest.approx(np.tan(0.475 * np.pi) / 2, rel=1e-12)
    assert half_interval([0.5, 0.5, 0.5]) == 0.0


def test_one_value_has_no_interval():
    found = summary_of([0.5])
    assert found is not None
    assert found == {"n": 1, "mean": 0.5, "std": None, "interval": None}
    assert accuracy_text(found) == "0.5000 (n = 1)"
    assert summary_of([]) is None


def test_failed_runs_do_not_count():
    record = record_of(run_of(3, 0.93, 200), {"seed": 1, "failed": "it has diverged"}, run_of(0, 0.91, 100))
    assert [run["seed"] for run in record["runs"]] == [0, 1, 3]
    assert record["test_accuracy"] == summary_of([0.91, 0.93])
    assert accuracy_text(record["test_accuracy"]) == "0.9200 ± 0.1271 (n = 2)"  # 12.706 * 0.01
    assert seconds_of(record) == 150


def test_a_run_of_the_same_seed_replaces_the_old_one():
    record = with_run(record_of(run_of(0, 0.9), run_of(1, 0.8)), run_of(0, 0.7))
    assert record == record_of(run_of(0, 0.7), run_of(1, 0.8))


def test_the_machine_in_words():
    gpu = {"devices": "gpu: 1 x NVIDIA H200, bfloat16", "cpu": "Intel"}
    cpu = "AMD EPYC 9R14: bfloat16, 2 cores, oneDNN kernels"
    assert machine_text(record_of(run_of(0, 0.9), run_of(1, 0.9))) == cpu
    assert machine_text(record_of(run_of(0, 0.9), run_of(1, 0.9, 1.0, gpu))) == f"{cpu} and {gpu['devices']}"
    nameless = CPU | {"cpu": ""}
    assert machine_text(record_of(run_of(0, 0.9, 1.0, nameless))) == "bfloat16, 2 cores, oneDNN kernels"


def test_a_file_is_read_as_it_was_written(tmp_path):
    record = record_of(run_of(0, 0.9), {"seed": 1, "failed": "it has diverged"})
    write_record(tmp_path / "sweep.json", record)
    assert read_record(tmp_path / "sweep.json") == record


def test_statistics_are_those_of_the_runs(tmp_path):
    """Whatever the file says of them."""
    record = record_of(run_of(0, 0.9), run_of(1, 0.8))
    write_record(tmp_path / "sweep.json", record | {"test_accuracy": 0.99})
    assert read_record(tmp_path / "sweep.json") == record


BAD = {
    "": "it does not hold a sweep",
    "[1, 2]": "it has no list of runs",
    json.dumps(record_of() | {"runs": 3}): "it has no list of runs",
    json.dumps({"runs": []}): "it has no command",
    json.dumps(record_of() | {"runs": [{"seed": 1}]}): "a run is incomplete",
    json.dumps(record_of() | {"runs": [1]}): "a run is incomplete",
    json.dumps(record_of() | {"runs": [run_of(0, 0.9) | {"seed": "0"}]}): "a seed or an accuracy is no number",
    json.dumps(record_of() | {"runs": [run_of(0, 0.9) | {"test_accuracy": "0.9"}]}): "an accuracy is no number",
}


@pytest.mark.parametrize("text", BAD)
def test_a_file_that_holds_no_sweep(text, tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: it does not hold a sweep (")
    assert BAD[text] in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_record(tmp_path)
