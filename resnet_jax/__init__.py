"""ResNets and ResNeXts in JAX and Flax: train, study and reuse them on CPU, GPU and TPU.

Importing this package imports nothing else: each name below is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax import data, interop, models, ops
    from resnet_jax.data import augment
    from resnet_jax.interop import from_torch, to_torch
    from resnet_jax.models import (
        BasicBlock,
        BatchNorm,
        BottleneckBlock,
        Conv,
        PreActBlock,
        Residual,
        ResNet,
        ResNet18,
        ResNeXtBlock,
        create_model,
        embed,
        features,
        grad_cam,
        insert_block,
        layer_summary,
        list_models,
        multiply_adds,
        widen,
    )
    from resnet_jax.reporting.tensorboard import TensorBoard
    from resnet_jax.runs import Config, Predictor, Trainer, fit, load, load_recipe
    from resnet_jax.training.averaging import Ema, Lookahead
    from resnet_jax.training.callbacks import EarlyStopping, FlipAveraging
    from resnet_jax.training.optim import by_path
    from resnet_jax.training.state import TrainState, create_state
    from resnet_jax.training.step import train_step

SUBMODULES = ("data", "interop", "models", "ops")
# public name -> the module that defines it
NAMES = {
    **dict.fromkeys(("from_torch", "to_torch"), "interop"),
    **dict.fromkeys(("BasicBlock", "BottleneckBlock", "PreActBlock", "ResNeXtBlock", "Residual"), "models"),
    **dict.fromkeys(("BatchNorm", "Conv", "ResNet", "ResNet18", "create_model", "features", "list_models"), "models"),
    **dict.fromkeys(("embed", "grad_cam", "insert_block", "widen", "layer_summary", "multiply_adds"), "models"),
    **dict.fromkeys(("Config", "Predictor", "Trainer", "fit", "load", "load_recipe"), "runs"),
    **dict.fromkeys(("TrainState", "create_state"), "training.state"),
    **dict.fromkeys(("EarlyStopping", "FlipAveraging"), "training.callbacks"),
    **dict.fromkeys(("Ema", "Lookahead"), "training.averaging"),
    "TensorBoard": "reporting.tensorboard",
    "by_path": "training.optim",
    "train_step": "training.step",
}

__all__ = [
    "BasicBlock",
    "BatchNorm",
    "BottleneckBlock",
    "Config",
    "Conv",
    "EarlyStopping",
    "Ema",
    "FlipAveraging",
    "Lookahead",
    "PreActBlock",
    "Predictor",
    "ResNeXtBlock",
    "ResNet",
    "ResNet18",
    "Residual",
    "TensorBoard",
    "TrainState",
    "Trainer",
    "augment",
    "by_path",
    "create_model",
    "create_state",
    "data",
    "embed",
    "features",
    "fit",
    "from_torch",
    "grad_cam",
    "insert_block",
    "interop",
    "layer_summary",
    "list_models",
    "load",
    "load_recipe",
    "models",
    "multiply_adds",
    "ops",
    "to_torch",
    "train_step",
    "widen",
]


def __getattr__(name: str) -> Any:
    if name == "augment":
        value = importlib.import_module("resnet_jax.data.augment")
    elif name in SUBMODULES:
        value = importlib.import_module(f"resnet_jax.{name}")
    elif name in NAMES:
        value = getattr(importlib.import_module(f"resnet_jax.{NAMES[name]}"), name)
    else:
        raise AttributeError(f"module 'resnet_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
