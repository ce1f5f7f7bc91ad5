"""What a run does where oneDNN has no bfloat16 convolution."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from made import NETS, make_splits

from resnet_jax import create_model, ops
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.hardware import pick_dtype

HELPERS = Path(__file__).parents[1] / "helpers"
TRAIN_AND_PREDICT = """
import sys
import jax, made, numpy as np
from resnet_jax import fit, load, ops
from resnet_jax.runs.hardware import pick_dtype

made.install()
data_dir, run_dir = sys.argv[1:]
print(pick_dtype("auto", jax.devices()[0]), repr(ops.native_bfloat16()))
fit(made.make_config(data_dir, run_dir, epochs=1, devices=1, precision="bfloat16", cpu_kernels="onednn"))
predict = load(run_dir)
print(np.dtype(predict.model.dtype))
np.save(run_dir + "/rows.npy", predict(made.make_splits().test.images))
"""

pytestmark = pytest.mark.skipif(not ops.native_available(), reason="the oneDNN kernels are not installed")


def test_a_cpu_without_bfloat16(data_dir, cache_dir, tmp_path):
    """Training computes convolutions through float32, predictions are in float32, and a line says so each time."""
    env = os.environ | {"XDG_CACHE_HOME": str(cache_dir), "PYTHONPATH": f"{HELPERS.parents[1]}:{HELPERS}"}
    command = [sys.executable, "-c", TRAIN_AND_PREDICT, str(data_dir), str(tmp_path / "run")]
    run = subprocess.run(command, env=env | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "float32 ''"
    (training,) = [line for line in lines if line.startswith("tiny on cpu")]
    assert training.endswith("but convolutions by XLA in float32: oneDNN has none for bfloat16 on this CPU")
    assert "predicting in float32: the run is bfloat16, for which oneDNN has no convolution on this CPU" in lines
    assert lines[-1] == "float32"
    model = create_model(NETS[0], 4)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        assert checkpoints.restore_meta(step)["dtype"] == "bfloat16"
        variables = checkpoints.restore_variables(step, like)
    images = (make_splits().test.images.astype(np.float32) / 255 - 0.5) / 0.25
    expected = jax.nn.softmax(jax.jit(model.apply)(variables, images))
    np.testing.assert_allclose(np.load(tmp_path / "run" / "rows.npy"), expected, atol=1e-5)


def test_bfloat16_where_it_is_fast(monkeypatch):
    """ "auto" asks oneDNN too: the CPU's flags alone do not say which instruction sets it may use."""
    monkeypatch.setattr("resnet_jax.runs.hardware.cpu_flags", lambda: {"avx512_bf16"})
    for speed, dtype in {"fast": "bfloat16", "slow": "float32", "": "float32"}.items():
        monkeypatch.setattr(ops, "native_bfloat16", lambda speed=speed: speed)
        assert pick_dtype("auto", jax.devices()[0]) == dtype
