"""The names that users import, as DESIGN.md promises them."""

import importlib
import inspect

import jax
import pytest
from jax import numpy as jnp
from thorough import thorough_except

import resnet_jax

PROMISED = [
    "create_model",
    "create_state",
    "train_step",
    "Trainer",
    "EarlyStopping",
    "TensorBoard",
    "by_path",
    "from_torch",
    "to_torch",
    "list_models",
    "Residual",
    "ResNeXtBlock",
    "ResNet",
    "ResNet18",
    "layer_summary",
    "fit",
    "load",
    "grad_cam",
]


def test_what_is_promised_is_there():
    assert set(PROMISED) <= set(resnet_jax.__all__)


@pytest.mark.parametrize("package", ["", ".models", ".ops", ".data", ".interop", ".runs", ".cli"])
def test_every_public_name_exists_once(package):
    module = importlib.import_module("resnet_jax" + package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    classes = [name for name in module.__all__ if name[0].isupper()]
    functions = [name for name in module.__all__ if name[0].islower()]
    assert module.__all__ == classes + sorted(functions)  # how ruff orders classes, ruff checks


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Residual", "num_channels, use_1x1conv=False, strides=1"),
        ("ResNeXtBlock", "num_channels, groups, bot_mul, use_1x1conv=False, strides=1"),
        ("ResNet", "arch=((2, 64), (2, 128), (2, 256), (2, 512)), num_classes=10"),
        ("create_model", "name, num_classes=10"),
        ("layer_summary", "model, input_shape"),
        ("fit", "config"),
        ("load", "run_dir"),
        ("TensorBoard", "log_dir"),
        ("grad_cam", "model, variables, images, classes=None, layer=None"),
        ("create_state", "model, optimizer, image_shape, seed=0"),
        ("train_step", "state, batch, axis_name=None"),
    ],
)
def test_the_first_arguments(name, arguments):
    """Without their types; what comes after them may grow."""
    parameters = inspect.signature(getattr(resnet_jax, name)).parameters.values()
    plain = [p.replace(annotation=p.empty) for p in parameters]
    assert ", ".join(map(str, plain)).startswith(arguments)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'resnet_jax' has no attribute 'Resnet18'"):
        resnet_jax.Resnet18  # noqa: B018
    assert dir(resnet_jax) == sorted(resnet_jax.__all__)


@pytest.mark.parametrize(
    "name", thorough_except(("resnet18", "resnet34", "resnext18", "resnext34"), "resnet18", "resnext18")
)
def test_the_table_holds_the_seeds(name):
    assert name in resnet_jax.list_models()
    model = resnet_jax.create_model(name, num_classes=7)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 1))))
    assert set(variables) == {"params", "batch_stats"}
    for train in (False, True):
        call = {"train": train, "mutable": ["batch_stats"] if train else False}
        out = jax.eval_shape(lambda v, call=call: model.apply(v, jnp.zeros((2, 32, 32, 1)), **call), variables)
        assert (out[0] if train else out).shape == (2, 7)


def test_resnet18_is_the_table_s():
    assert resnet_jax.ResNet18(num_classes=10) == resnet_jax.create_model("resnet18", num_classes=10)
    assert resnet_jax.list_models() == sorted(set(resnet_jax.list_models()))
