"""A state that grows with its network: old weights keep what the optimizer knows of them, new ones start without."""

from typing import Any

import jax
import optax

from resnet_jax.models import Arch
from resnet_jax.models.growth import check_place, insert_blocks, moved
from resnet_jax.training.state import PyTree, TrainState, trained

GROWTH = 2**31 - 1  # apart from the steps, whose keys are folded from the seed too


def grow_state(
    arch: Arch,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    seed: int,
    stage: int,
    position: int | None = None,
    blocks: int = 1,
    freeze: bool = False,
) -> tuple[Arch, TrainState]:
    """The network with blocks more in a stage, and its state: insert_block's, with the optimizer's state grafted.

    The blocks are drawn from the seed and from how many there were before, so that a run that is resumed, or grown by
    the command, grows the same. step and whatever the optimizer counts go on.
    """
    held = jax.device_get(state)
    variables = {"params": held.params, "batch_stats": held.batch_stats}
    position = check_place(arch, variables, stage, position)
    key, before = jax.random.fold_in(jax.random.key(seed), GROWTH), sum(count for count, _ in arch.stages)
    keys = [jax.random.fold_in(key, before + i) for i in range(blocks)]
    arch, variables = insert_blocks(arch, variables, stage, position, keys)
    fresh = optimizer.init(trained(variables["params"], freeze))
    opt_state = graft(fresh, held.opt_state, stage, position, blocks)
    return arch, TrainState(held.step, variables["params"], variables["batch_stats"], opt_state)


def graft(fresh: PyTree, old: PyTree, stage: int, position: int, blocks: int) -> PyTree:
    """An optimizer's fresh state with the leaves of an old one, moved as their blocks moved, over its own.

    Whatever the optimizer keeps for each weight is in a tree with the names of the weights, at any depth; the rest,
    such as counts, is where it was.
    """
    held = {moved(_names(path), stage, position, blocks): leaf for path, leaf in jax.tree.leaves_with_path(old)}
    return jax.tree.map_with_path(lambda path, leaf: held.get(_names(path), leaf), fresh)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
