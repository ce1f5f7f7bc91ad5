"""Sums on the host and rows in a file."""

import json
import math
import os

import pytest
from jax import numpy as jnp

from resnet_jax.errors import TrainingError
from resnet_jax.runs.rundir import write_rows
from resnet_jax.training.metrics import Sums, check_finite
from resnet_jax.training.step import Metrics


def test_sums_are_one_push_behind_until_they_settle():
    sums = Sums()
    for loss, correct in ((1.5, 1), (2.25, 0), (4.0, 2)):
        sums.push(Metrics(jnp.float32(loss), jnp.int32(correct), jnp.int32(2)))
    assert sums.values() == {"loss": 3.75, "correct": 1, "count": 4}
    sums.settle()
    sums.settle()
    assert sums.values() == {"loss": 7.75, "correct": 3, "count": 6}
    assert (sums.mean_loss, sums.accuracy) == (7.75 / 6, 0.5)
    assert Sums(**json.loads(json.dumps(sums.values()))) == sums


def test_many_small_losses_are_not_lost_beside_a_large_one():
    """float32 would stay at 2**24."""
    sums = Sums(loss=2.0**24)
    for _ in range(100):
        sums.push(Metrics(jnp.float32(1), jnp.int32(0), jnp.int32(1)))
    sums.settle()
    assert sums.loss == 2.0**24 + 100


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_the_run(loss):
    with pytest.raises(TrainingError, match="step 12: training has diverged") as caught:
        check_finite(Sums(loss, 1, 2), 12)
    assert "\n" not in str(caught.value)
    check_finite(Sums(1e30, 1, 2), 12)


def test_a_file_of_rows_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write_rows(tmp_path, [{"epoch": 1, "loss": 0.1}])
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path, [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 0.05}])
    assert path.read_text() == '{"epoch": 1, "loss": 0.1}\n'
