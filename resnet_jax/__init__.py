"""ResNets and ResNeXts in JAX and Flax: train, study and reuse them on CPU, GPU and TPU."""

from resnet_jax.interop import from_torch, to_torch
from resnet_jax.models import (
    BasicBlock,
    BottleneckBlock,
    PreActBlock,
    Residual,
    ResNet,
    ResNet18,
    ResNeXtBlock,
    create_model,
    embed,
    insert_block,
    layer_summary,
    list_models,
    multiply_adds,
    widen,
)
from resnet_jax.training import Config, fit, load, load_recipe

__all__ = [
    "BasicBlock",
    "BottleneckBlock",
    "Config",
    "PreActBlock",
    "ResNeXtBlock",
    "ResNet",
    "ResNet18",
    "Residual",
    "create_model",
    "embed",
    "fit",
    "from_torch",
    "insert_block",
    "layer_summary",
    "list_models",
    "load",
    "load_recipe",
    "multiply_adds",
    "to_torch",
    "widen",
]
