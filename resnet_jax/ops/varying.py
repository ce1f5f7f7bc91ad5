"""The mesh axes over which an array varies, under jax.shard_map with check_vma=True (its default).

There the type of an array names these axes. Three places have to agree on them: the branches of
`lax.platform_dependent`, the operands and gradients of a custom_vjp, and the operands of jax.ffi calls.
"""

import jax
from jax import Array


def axes_of(*arrays: Array | None) -> frozenset[str]:
    """The axes over which at least one of the arrays varies; none outside jax.shard_map."""
    return frozenset().union(*(_varying(jax.typeof(array)) for array in arrays if array is not None))


def _varying(aval) -> frozenset[str]:
    """The varying axes of a type. jax 0.10 moved them from `vma` to `manual_axis_type`."""
    if hasattr(aval, "manual_axis_type"):
        return aval.manual_axis_type.varying
    return getattr(aval, "vma", frozenset())


def vary_over(axes: frozenset[str], array: Array) -> Array:
    """The same array, with a type that varies over these axes too. It does nothing at run time."""
    missing = tuple(sorted(axes - axes_of(array)))
    if not missing:
        return array
    if hasattr(jax.lax, "pcast"):  # since jax 0.8
        return jax.lax.pcast(array, missing, to="varying")
    return jax.lax.pvary(array, missing)  # pyright: ignore[reportAttributeAccessIssue]


def vary_alike(*arrays: Array | None) -> tuple[Array | None, ...]:
    """All arrays, varying over the same axes.

    The gradient of this is the sum over devices for arrays that were replicated, such as parameters.
    """
    axes = axes_of(*arrays)
    return tuple(None if array is None else vary_over(axes, array) for array in arrays)
