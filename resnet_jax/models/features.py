"""The activations of a network, for transfer learning, retrieval and analysis."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from resnet_jax.errors import ConfigError
from resnet_jax.models.airbench import Airbench
from resnet_jax.models.resnet import ResNet


def features(model: nn.Module, variables: Mapping[str, Any], x: jax.Array) -> dict[str, jax.Array]:
    """The output of the stem and of each stage, and the pooled features, in evaluation mode.

    x: (N, H, W, C) -> {"stem": (N, h, w, c), "stage1": ..., ..., "pooled": (N, C')}. The head is not used, so
    it makes no difference whether the model has one. ConfigError if model is not from create_model.
    Pre-activation networks (wrn_*) have a norm and an activation between the last stage and "pooled".

        run = jax.jit(functools.partial(resnet_jax.models.features, model))
        run(variables, images)["stage3"]
    """
    if not isinstance(model, ResNet | Airbench):
        raise ConfigError(f"features: model is a {type(model).__name__}; use a ResNet, as create_model returns")
    stages = model.arch if isinstance(model, ResNet) else model.widths
    trunk = model.clone(num_classes=0, parent=None)

    def is_part(module: nn.Module, method: str) -> bool:
        return method == "__call__" and len(module.path) == 1 and module.path[0].startswith(("stem", "stage"))

    pooled, state = trunk.apply(variables, x, mutable=["intermediates"], capture_intermediates=is_part)
    parts: Any = state["intermediates"]
    names = ["stem", *(f"stage{i + 1}" for i in range(len(stages)))]
    return {name: parts[name]["__call__"][0] for name in names} | {"pooled": pooled}
