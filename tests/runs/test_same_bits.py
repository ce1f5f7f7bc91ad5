"""The same seed and data give the same weights as before the training loop became a core of its own."""

import itertools
import json

import pytest
import same_bits
from thorough import thorough_except

from resnet_jax import ops

FROZEN = json.loads(same_bits.FROZEN.read_text())


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize(
    ("name", "kernels"),
    thorough_except(
        itertools.product(same_bits.CASES, ("xla", "onednn")),
        ("two_devices", "xla"),
        ("two_devices", "onednn"),
        ("quick", "xla"),
    ),
)
def test_weights_are_those_of_the_frozen_run(name, kernels, data_dir, tmp_path):
    """To the bit on the machine that froze them. Elsewhere sums round differently, so the losses are compared."""
    if kernels == "onednn" and not ops.native_available():
        pytest.skip("the oneDNN kernels are not installed")
    found = same_bits.train(name, kernels, data_dir, tmp_path / "run")
    if same_bits.machine() in FROZEN:
        assert found == FROZEN[same_bits.machine()][f"{name}/{kernels}"]
        return
    expected = next(iter(FROZEN.values()))[f"{name}/{kernels}"]
    assert found["step"] == expected["step"]
    for row, old in zip(found["history"], expected["history"], strict=True):
        assert row["train_loss"] == pytest.approx(old["train_loss"], rel=1e-2)
        assert row["learning_rate"] == old["learning_rate"]
