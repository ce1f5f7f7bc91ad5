"""The networks: layers, blocks, the trunk, the table of architectures, and functions of whole networks."""

from resnet_jax.models.airbench import Airbench, whitening
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock, PreActBlock, Residual, ResNeXtBlock
from resnet_jax.models.features import features
from resnet_jax.models.grad_cam import grad_cam
from resnet_jax.models.growth import embed, insert_block
from resnet_jax.models.layers import BatchNorm, Conv
from resnet_jax.models.registry import (
    ARCHS,
    Arch,
    Network,
    arch_from_dict,
    as_arch,
    check_input_size,
    create_model,
    get_arch,
    list_models,
)
from resnet_jax.models.resnet import ResNet, ResNet18, check_image_size
from resnet_jax.models.summary import LayerSummary, layer_summary, multiply_adds
from resnet_jax.models.widening import widen

__all__ = [
    "ARCHS",
    "Airbench",
    "Arch",
    "BasicBlock",
    "BatchNorm",
    "BottleneckBlock",
    "Conv",
    "LayerSummary",
    "Network",
    "PreActBlock",
    "ResNeXtBlock",
    "ResNet",
    "ResNet18",
    "Residual",
    "arch_from_dict",
    "as_arch",
    "check_image_size",
    "check_input_size",
    "create_model",
    "embed",
    "features",
    "get_arch",
    "grad_cam",
    "insert_block",
    "layer_summary",
    "list_models",
    "multiply_adds",
    "whitening",
    "widen",
]
