"""Grad-CAM: where in a picture a network finds the class that it predicts."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp
from jax.core import Tracer

from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models.resnet import ResNet
from resnet_jax.ops.plain import widened

Outputs = dict[str, list[jax.ShapeDtypeStruct]]  # path of a layer -> shape and dtype of the output of each call


def grad_cam(
    model: nn.Module, variables: Mapping[str, Any], images: Any, classes: Any = None, layer: str | None = None
) -> jax.Array:
    """Grad-CAM maps of a network in evaluation mode: one map (h, w) for each image.

    model: any linen module that maps images (N, H, W, C) to logits (N, K). It is called with train=False if it has
    that argument. images: as the model takes them, so resized and normalised.
    classes: the class to explain, one integer for all images or (N,) integers; None: the predicted class of each.
    layer: the path of a module with output (N, h, w, channels), such as "stage3" or "stage2/block1". None: the last
    one that the model calls, which in a ResNet is the input of global average pooling.
    Returns (N, h, w) float32, not negative and not normalised: ReLU(sum_k a_k A_k), where A is the output of the
    layer, and a_k is the mean over all positions of the gradient of the class's logit with respect to A_k. In the
    default layer of a ResNet, a value is what its position adds to the logit. jax.jit can compile it.
    Raises ConfigError for an invalid layer, invalid classes, or a model that does not return logits.
    Source: arXiv:1610.02391, section 3.

        predictor = resnet_jax.load("runs/NAME")
        x = predictor.preprocess.evaluate(images)
        maps = jax.jit(functools.partial(resnet_jax.grad_cam, predictor.model))(predictor.variables, x)
    """
    if np.ndim(images) != 4:
        raise ConfigError(f"images of shape {np.shape(images)}: give (N, H, W, C), as the model takes them")
    model = model.clone(remat=False, parent=None) if isinstance(model, ResNet) else model
    outputs, logits = outputs_of(model, variables, images)
    layer = chosen_layer(outputs, layer)
    classes = checked_classes(classes, logits)

    def is_layer(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) == layer

    def score(change: jax.Array) -> tuple[jax.Array, Any]:
        """The sum of the logits if `change` is added to the layer's output, and that output."""

        def add(call, args, kwargs, context):
            y = call(*args, **kwargs)
            return y + change if is_layer(context.module, context.method_name) else y

        with nn.intercept_methods(add):
            options: Any = {"mutable": ["intermediates"], "capture_intermediates": is_layer}
            logits, state = applied(model, variables, images, **options)
        wanted = logits.argmax(-1) if classes is None else classes
        return jnp.take_along_axis(logits, wanted[:, None], 1).sum(), output_in(state.get("intermediates", {}), layer)

    (expected,) = outputs[layer]
    gradient, activations = jax.grad(score, has_aux=True)(jnp.zeros(expected.shape, expected.dtype))
    if getattr(activations, "shape", None) != expected.shape:
        raise ConfigError(f"layer {layer!r} runs inside nn.vmap; use the layer around it")
    weights = widened(gradient).mean((1, 2), keepdims=True)
    return nn.relu((weights * widened(activations)).sum(-1)).astype(jnp.float32)


def applied(model: nn.Module, variables: Mapping[str, Any], images: Any, **options: Any) -> Any:
    """model.apply in evaluation mode."""
    mode = {"train": False} if "train" in inspect.signature(type(model).__call__).parameters else {}
    return model.apply(variables, images, **mode, **options)


def outputs_of(model: nn.Module, variables: Mapping[str, Any], images: Any) -> tuple[Outputs, Any]:
    """The outputs of all layers in the order in which they are ready, and of the model. Nothing is computed."""
    outputs: Outputs = {}

    def record(call, args, kwargs, context):
        y = call(*args, **kwargs)
        path = "/".join(context.module.path)
        if path and context.method_name == "__call__" and hasattr(y, "shape"):
            outputs.setdefault(path, []).append(jax.ShapeDtypeStruct(y.shape, y.dtype))
        return y

    with nn.intercept_methods(record):
        logits = jax.eval_shape(lambda: applied(model, variables, images))
    if len(getattr(logits, "shape", ())) != 2:
        raise ConfigError(
            f"model: {type(model).__name__} does not return an array of logits (N, K); use one for classification"
        )
    return outputs, logits


def chosen_layer(outputs: Outputs, layer: str | None) -> str:
    """The layer itself, or the last one with output (N, h, w, channels) for None. ConfigError if there is none."""
    suitable = [path for path, calls in outputs.items() if len(calls) == 1 and len(calls[0].shape) == 4]
    if layer is None and suitable:
        return suitable[-1]
    if layer is None:
        raise ConfigError("model: none of its modules returns an array (N, h, w, channels), which Grad-CAM needs")
    if layer not in outputs:
        raise ConfigError(unknown("layer", layer, suitable))
    if len(outputs[layer]) > 1:
        raise ConfigError(f"layer {layer!r} runs more than once, or inside nn.scan; use a layer that runs once")
    if layer not in suitable:
        shape = outputs[layer][0].shape
        raise ConfigError(f"layer {layer!r} returns shape {shape}; use a layer that returns (N, h, w, channels)")
    return layer


def checked_classes(classes: Any, logits: jax.ShapeDtypeStruct) -> jax.Array | None:
    """The classes as (N,) integers, or None. ConfigError for another type or shape, or a class that does not exist."""
    if classes is None:
        return None
    count, number = logits.shape
    array = classes if isinstance(classes, Tracer) else np.asarray(classes)
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.shape not in ((), (count,)):
        what = f"classes of dtype {array.dtype} and shape {array.shape}"
        raise ConfigError(f"{what}: give one integer, or {count} integers, one for each image")
    if isinstance(array, np.ndarray) and array.size and not (array.min() >= 0 and array.max() < number):
        wrong = array[(array < 0) | (array >= number)].flat[0]
        raise ConfigError(f"classes: {wrong} does not exist; the model has the classes 0 to {number - 1}")
    return jnp.broadcast_to(jnp.asarray(array), (count,))


def output_in(intermediates: Any, layer: str) -> Any:
    """The output that Flax captured of a layer; None if a lifted transformation dropped it."""
    for name in (*layer.split("/"), "__call__"):
        if name not in intermediates:
            return None
        intermediates = intermediates[name]
    return intermediates[0]
