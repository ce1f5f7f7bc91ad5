"""Batch norm folded into the convolution before it, for inference.

In evaluation mode a batch norm multiplies each channel by a number and adds another. After a convolution, both can
be part of the kernel and the bias:

    norm(conv(x, kernel) + bias) = conv(x, kernel * factor) + (bias - mean) * factor + beta
    factor = gamma / sqrt(var + epsilon), one number for each output channel

`fold` computes the kernels and biases once. Inside `folded_into(pairs)` the network uses them, and needs only the other
variables:

    pairs = fold(lambda variables, x: model.apply(variables, x, train=False), variables, x)
    others = unfolded_part(variables, pairs)
    with folded_into(pairs):
        logits = model.apply(others, x, train=False)

A pair is a `Conv` and the `BatchNorm` that is the only reader of its output. All other layers compute as before:
norms after an addition, Flax's own layers, shared layers, and layers in nn.vmap, nn.scan or nn.remat.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from resnet_jax import ops
from resnet_jax.models.layers import BatchNorm, Conv

Pair = tuple[str, str]  # the paths of a Conv and of its BatchNorm
Pairs = dict[Pair, dict[str, Any]]  # the folded "kernel" and "bias" of each pair, and the "digest" of that kernel
LEAVES = (("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var"))


class _Output(NamedTuple):
    """What a Conv returned to the network, with the layer and its input."""

    y: jax.Array
    layer: Conv
    path: str
    x: jax.Array


class _Layers(NamedTuple):
    """The layers of a pair."""

    conv: Conv
    norm: BatchNorm


def fold(run: Callable[[Any, Any], Any], variables: Mapping[str, Any], x: Any) -> Pairs:
    """The pairs of a network, with the kernels and biases that contain the batch norms, as numpy arrays.

    run: (variables, x) -> outputs, which applies the network in evaluation mode. x: an array or a
    jax.ShapeDtypeStruct. `run` is traced, and nothing is computed but the new kernels and biases. These are computed
    in float64 and rounded to the type of the kernel. Nothing is folded if one of them is NaN or infinite: oneDNN's ReLU
    returns 0 for NaN and would hide it.
    """
    pairs = {}
    for (conv, norm), layers in _find(run, variables, x).items():
        kernel = np.asarray(_leaf(variables, "params", conv, "kernel"))
        bias = np.asarray(_leaf(variables, "params", conv, "bias") if layers.conv.use_bias else 0, np.float64)
        gamma, beta, mean, var = (np.asarray(_leaf(variables, c, norm, leaf), np.float64) for c, leaf in LEAVES)
        gamma = gamma if layers.norm.use_scale else 1.0
        factor = gamma / np.sqrt(var + layers.norm.epsilon)
        folded = {"kernel": kernel * factor, "bias": beta + (bias - mean) * factor}
        pairs[conv, norm] = {name: value.astype(kernel.dtype) for name, value in folded.items()}
        pairs[conv, norm]["digest"] = _digest(pairs[conv, norm]["kernel"])
    finite = all(np.isfinite(pair[name]).all() for pair in pairs.values() for name in ("kernel", "bias"))
    return pairs if finite and _is_whole(run, variables, pairs, x) else {}


def _is_whole(run: Callable[[Any, Any], Any], variables: Mapping[str, Any], pairs: Pairs, x: Any) -> bool:
    """Whether no other part of the network reads the variables of a folded layer."""
    with folded_into(pairs):
        program = jax.make_jaxpr(run)(variables, x).jaxpr
    read = {id(var) for equation in program.eqns for var in equation.invars} | {id(var) for var in program.outvars}
    folded = _folded_paths(pairs)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    return not any(
        id(var) in read and tuple(key.key for key in path) in folded
        for path, var in zip(paths, program.invars[: len(paths)], strict=True)
    )


def _folded_paths(pairs: Pairs) -> set[tuple[str, ...]]:
    """The paths of the variables of the layers of the pairs."""
    return {(*layer.split("/"), leaf) for conv, norm in pairs for layer, leaf in _names(conv, norm)}


def unfolded_part(variables: Mapping[str, Any], pairs: Pairs) -> dict[str, Any]:
    """The variables without those of the layers of the pairs."""
    folded = _folded_paths(pairs)

    def kept(tree: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        parts = {name: part for name, part in tree.items() if (*path, name) not in folded}
        return {n: kept(part, (*path, n)) if isinstance(part, Mapping) else part for n, part in parts.items()}

    return kept(variables, ())


def _names(conv: str, norm: str) -> list[tuple[str, str]]:
    """The variables of a pair: (collection/path, leaf)."""
    kernel = [(f"params/{conv}", leaf) for leaf in ("kernel", "bias")]
    return kernel + [(f"{collection}/{norm}", leaf) for collection, leaf in LEAVES]


def _digest(kernel: np.ndarray) -> np.ndarray:
    """Numbers by which ops.conv_add_relu knows the kernel: (4,) uint32."""
    return np.frombuffer(hashlib.blake2b(kernel.tobytes(), digest_size=16).digest(), np.uint32)


@contextlib.contextmanager
def folded_into(pairs: Pairs) -> Iterator[None]:
    """Within the block, networks that are traced compute each of these pairs as one convolution.

    The Conv of a pair returns NaN, and its BatchNorm computes the convolution, as it knows what else to add.
    A function under jax.jit needs the pairs as an argument: its cache does not depend on this block.
    """
    outputs: dict[int, _Output] = {}
    kernels = {conv: pair["kernel"] for (conv, _), pair in pairs.items()}

    def intercept(call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if type(layer) is Conv and context.method_name == "__call__" and _path(layer) in kernels:
            x = args[0].astype(layer.dtype)
            y = jax.eval_shape(partial(ops.conv, **layer.window()), x, kernels[_path(layer)])
            output = _Output(jnp.full(y.shape, jnp.nan, y.dtype), layer, _path(layer), x)
            outputs[id(output.y)] = output  # which keeps y, so no other array gets its id
            return output.y
        output = _conv_before(layer, context, args, outputs)
        pair = output and pairs.get((output.path, _path(layer)))
        return _joined(output, layer, pair, *args[1:], **kwargs) if output and pair else call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def _path(layer: nn.Module) -> str:
    return "/".join(layer.path)


def _conv_before(layer: nn.Module, context: Any, args: tuple, outputs: Mapping[int, _Output]) -> _Output | None:
    """The Conv whose output this call of a BatchNorm in evaluation mode normalises; None if there is none."""
    if type(layer) is not BatchNorm or context.method_name != "__call__" or not layer.use_running_average:
        return None
    output = outputs.get(id(args[0])) if args else None
    return output if output and output.layer.dtype == layer.dtype else None


def _joined(output: _Output, layer: Any, pair: Mapping[str, Any], residual: jax.Array | None = None) -> jax.Array:
    """What the BatchNorm `layer` returns, from the input of the convolution before it."""
    residual = None if residual is None else residual.astype(layer.dtype)
    how = {"residual": residual, "relu": layer.relu, "digest": pair["digest"], **output.layer.window()}
    y = ops.conv_add_relu(output.x, pair["kernel"], pair["bias"], **how)
    return ops.max_pool(y) if layer.pool else y


def _find(run: Callable[[Any, Any], Any], variables: Mapping[str, Any], x: Any) -> dict[Pair, _Layers]:
    """Each pair that can be folded.

    The output of a Conv passes through an operation of that name, and its BatchNorm reads the value before it. If
    the traced program uses the value after it, something else reads the output, and the pair stays as it is.
    """
    found: dict[Pair, _Layers] = {}
    calls: Counter[str] = Counter()  # of each layer; a shared layer has several

    def traced(variables: Mapping[str, Any], x: Any) -> Any:
        outputs: dict[int, _Output] = {}
        plain: dict[int, jax.Array] = {}

        def intercept(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
            layer, is_call = context.module, context.method_name == "__call__"
            calls[_path(layer)] += is_call
            if type(layer) is Conv and is_call and args:
                y = call(*args, **kwargs)
                named = checkpoint_name(y, _path(layer))
                outputs[id(named)], plain[id(named)] = _Output(named, layer, _path(layer), args[0]), y
                return named
            output = _conv_before(layer, context, args, outputs)
            if output is None or not _own(variables, output.layer, layer):
                return call(*args, **kwargs)
            found[output.path, _path(layer)] = _Layers(output.layer, cast(BatchNorm, layer))
            return call(plain[id(output.y)], *args[1:], **kwargs)

        with nn.intercept_methods(intercept):
            return run(variables, x)

    read = _names_read(jax.make_jaxpr(traced)(variables, x).jaxpr)
    return {
        pair: layers for pair, layers in found.items() if pair[0] not in read and all(calls[path] == 1 for path in pair)
    }


def _own(variables: Mapping[str, Any], conv: nn.Module, norm: nn.Module) -> bool:
    """Whether these layers read the leaves of `variables` at their paths, unchanged.

    They do not inside nn.vmap or nn.scan, where a layer reads a slice, or nn.map_variables, where it reads a function.
    """
    leaves = [("params", conv, "kernel"), ("params", conv, "bias"), *((c, norm, leaf) for c, leaf in LEAVES)]
    return all(
        layer.get_variable(collection, leaf) is _leaf(variables, collection, _path(layer), leaf)
        for collection, layer, leaf in leaves
    )


def _leaf(variables: Mapping[str, Any], collection: str, path: str, leaf: str) -> Any:
    """The variable at a path; None if there is none."""
    tree: Any = variables.get(collection, {})
    for part in (*filter(None, path.split("/")), leaf):
        tree = tree.get(part, {})
    return tree if hasattr(tree, "dtype") else None


def _names_read(jaxpr: Any) -> set[str]:
    """The names of checkpoint_name whose values this program, or a program inside it, uses."""
    used = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    names = set()
    for equation in jaxpr.eqns:
        if "name" in equation.params and equation.primitive.name == "name" and id(equation.outvars[0]) in used:
            names.add(equation.params["name"])
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            names |= _names_read(inner) if hasattr(inner, "eqns") else set()
    return names
