"""Devices: where arrays live, and what crosses devices. The only file that names pmap.

The train step is written for one device's share of the batch. It is used under pmap by the Trainer, and under jit,
pmap or jax.shard_map by loops of users.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import ConfigError, one_line
from resnet_jax.ops.varying import axes_of, vary_over

AXIS = "batch"
PyTree = Any
Device = Any  # a jax.Device, which type checkers do not know
Axes = tuple[str, ...]
BUCKET = 30 * 2**20  # bytes; XLA combines all-reduces up to this size on GPUs, so buckets of this size stay apart
STEPS_PER_CALL = 32  # on accelerators, where a call would otherwise take as long as a small step


def pick_devices(asked: int | Sequence[Device]) -> list[Device]:
    """The devices of a list, or the first `asked` of this process, all for 0; ConfigError if there are fewer."""
    devices = local_devices()
    if not isinstance(asked, int):
        if not asked:
            raise ConfigError("devices: the list is empty; give at least one device, or 0 for all")
        return list(asked)
    if not 0 <= asked <= len(devices):
        raise ConfigError(
            f"devices (--devices) {asked}: this process has {len(devices)} ({devices[0].device_kind}); "
            f"use 1 to {len(devices)}, or 0 for all"
        )
    return devices[: asked or len(devices)]


def local_devices() -> list[Device]:
    """The devices of this process; ConfigError if JAX cannot start them, or if there are several processes."""
    platforms = jax.config.values["jax_platforms"]
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # JAX raises an empty AssertionError for a missing "cuda"
        asked = f"JAX_PLATFORMS={platforms}: " if platforms else ""
        reason = "no such device" if isinstance(error, AssertionError) else one_line(error)
        raise ConfigError(
            f"{asked}JAX cannot start this machine's devices ({reason}); set JAX_PLATFORMS=cpu to use the CPU, or "
            "install JAX for the device"
        ) from error
    if jax.process_count() > 1:
        raise ConfigError(
            f"jax.process_count() is {jax.process_count()}: several processes are not supported; start one "
            "process, which uses all devices of its machine, and do not call jax.distributed.initialize"
        )
    return devices


def pick_steps_per_call(asked: int, device: Device) -> int:
    """How many train steps one call of the devices makes."""
    return asked or (1 if device.platform == "cpu" else STEPS_PER_CALL)


def replicate(tree: PyTree, devices: Sequence[Device]) -> PyTree:
    """Copy the tree to every device, with the sharding that a step returns, so that a step compiles once."""
    return jax.device_put(tree, NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec()))


def shard(x: np.ndarray, devices: Sequence[Device]) -> jax.Array:
    """Put each row of x (devices, ...) on its own device."""
    return jax.device_put(x, NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS)))


def on_devices(
    function: Callable, devices: Sequence[Device], in_axes: tuple[int | None, ...], donate: tuple[int, ...] = ()
) -> Callable:
    """pmap of a function over the devices. Its outputs are the same on every device and have no device axis."""
    return jax.pmap(function, axis_name=AXIS, in_axes=in_axes, out_axes=None, devices=devices, donate_argnums=donate)


@dataclasses.dataclass(frozen=True)
class Group:
    """The devices that one update runs over, as seen from the function that is being traced.

    axes: the names of pmap's or shard_map's axes; () under plain jit. tracked: whether shard_map knows which arrays
    differ between devices (check_vma=True, its default); pmap does not.
    """

    axes: Axes = ()
    tracked: bool = False

    @property
    def size(self) -> int:
        """The number of devices."""
        return int(lax.psum(1, self.axes)) if self.axes else 1

    @property
    def index(self) -> Any:
        """The place of this device in the group, from 0."""
        return lax.axis_index(self.axes) if self.axes else 0

    def vary(self, tree: PyTree) -> PyTree:
        """Mark every leaf as differing between devices.

        shard_map sums the gradient of unmarked parameters over devices by itself; the step would then sum it again.
        """
        return jax.tree.map(partial(vary_over, frozenset(self.axes)), tree) if self.tracked else tree

    def differs(self, leaf: jax.Array) -> bool:
        """Whether a leaf can differ between devices."""
        return bool(axes_of(leaf)) if self.tracked else self.size > 1

    def reduce(self, operation: Callable, tree: PyTree) -> PyTree:
        """The operation (lax.psum, lax.pmax) of every leaf over the devices.

        A single device under pmap needs none, and XLA:CPU would copy every array for it. Under shard_map, leaves that
        are equal on all devices stay as they are.
        """
        return jax.tree.map(lambda leaf: operation(leaf, self.axes) if self.differs(leaf) else leaf, tree)

    def sum(self, tree: PyTree) -> PyTree:
        """The sum of every leaf over the devices, behind a barrier: gradients, and what crosses with them.

        Without the barrier XLA fuses each layer's update into the backward pass, which then waits for that layer's
        all-reduce (GPUs: 18 all-reduces for resnext18; benchmarks/ahead_of_time.py counts).
        """
        leaves, structure = jax.tree.flatten(tree)

        def one_by_one(*leaves: jax.Array) -> tuple[jax.Array, ...]:
            return lax.optimization_barrier(self.reduce(lax.psum, leaves))

        if self.axes:
            sums = lax.platform_dependent(*leaves, cpu=one_by_one, tpu=one_by_one, default=self._sum_in_buckets)
        else:  # under plain jit an array may be split over devices, and XLA would gather it to join it
            sums = one_by_one(*leaves)
        return jax.tree.unflatten(structure, sums)

    def _sum_in_buckets(self, *leaves: jax.Array) -> tuple[jax.Array, ...]:
        """The sums of the leaves, which cross joined to a few long arrays.

        XLA's all-reduce of several arrays on a GPU is a copy into one array, its all-reduce, and a copy out of it. XLA
        fuses the joining and splitting here with the passes before and after. The long arrays also have the order of
        the parameters. cuDNN's kernel gradients have another order, so an update could not overwrite its parameter.
        """
        sums = list(leaves)
        for places in buckets(leaves, BUCKET):
            joined = jnp.concatenate([leaves[place].ravel() for place in places])
            joined = lax.optimization_barrier(self.reduce(lax.psum, joined))
            ends = np.cumsum([leaves[place].size for place in places])
            for place, part in zip(places, jnp.split(joined, ends[:-1]), strict=True):
                sums[place] = part.reshape(leaves[place].shape)
        return tuple(sums)


def buckets(leaves: Sequence[jax.Array], limit: int) -> list[list[int]]:
    """The places of the leaves in groups of one type and of at most `limit` bytes. A larger leaf is a group of its own.

    The largest leaves come first: the kernels of the last stage, whose gradients are ready first.
    """

    def type_of(place: int) -> tuple[str, list[str]]:
        return leaves[place].dtype.name, sorted(axes_of(leaves[place]))

    def size(place: int) -> int:
        return leaves[place].size * leaves[place].dtype.itemsize

    groups: list[list[int]] = []
    for place in sorted(range(len(leaves)), key=lambda place: (type_of(place), -size(place))):
        last = groups[-1] if groups else []
        if last and type_of(last[0]) == type_of(place) and sum(map(size, last)) + size(place) <= limit:
            last.append(place)
        else:
            groups.append([place])
    return groups


def group_of(batch: PyTree, axis_name: str | Axes | None = None) -> Group:
    """The group of devices that hold the parts of a batch.

    Without axis_name the axes are those of the enclosing pmap or shard_map. jax before 0.8 does not tell the name of
    pmap's axis: there it must be "batch", or given here.
    """
    marked = axes_of(*jax.tree.leaves(batch))
    if axis_name is not None:
        return Group((axis_name,) if isinstance(axis_name, str) else tuple(axis_name), bool(marked))
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if marked:
        return Group(tuple(axis for axis in axes if axis in marked), tracked=True)
    return Group(axes or _axis_of_old_pmap())


def _axis_of_old_pmap() -> Axes:
    try:
        lax.axis_index(AXIS)
    except NameError:  # no pmap, or one with another name
        return ()
    return (AXIS,)
