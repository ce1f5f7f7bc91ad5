"""Importing the package imports nothing else and changes nothing in the process."""

import pickle
import subprocess
import sys

import pytest
from thorough import thorough_except

import resnet_jax
from resnet_jax import layer_summary

IMPORT = """
import logging, sys, warnings
hook, filters, before = sys.unraisablehook, list(warnings.filters), set(sys.modules)
import resnet_jax
assert sys.unraisablehook is hook
assert warnings.filters == filters
assert not any(logging.getLogger(name).filters for name in ("absl", "asyncio"))
heavy = {"jax", "flax", "numpy", "optax", "orbax", "PIL", "tensorflow_datasets"}
assert not heavy & {name.partition(".")[0] for name in set(sys.modules) - before}
"""

UNCHANGED = """
import sys
import jax
hook, config = sys.unraisablehook, dict(jax.config.values)
import resnet_jax, resnet_jax.runs
for name in resnet_jax.__all__:
    getattr(resnet_jax, name)
assert sys.unraisablehook is hook
assert dict(jax.config.values) == config
"""


@pytest.mark.parametrize("code", [IMPORT, UNCHANGED])
def test_the_process_is_as_it_was(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    assert sorted(resnet_jax.__all__) == dir(resnet_jax)
    for name in resnet_jax.__all__:
        assert getattr(resnet_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = resnet_jax.nothing


@pytest.mark.parametrize(
    "name", thorough_except(("resnet18", "resnext18", "resnet50", "resnet20", "wrn_16_4"), "resnet20")
)
def test_models_can_be_pickled(name):
    model = resnet_jax.create_model(name)
    again = pickle.loads(pickle.dumps(model))
    assert layer_summary(again, (1, 64, 64, 3)) == layer_summary(model, (1, 64, 64, 3))
