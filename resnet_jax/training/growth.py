"""A state that grows with its network: old weights keep what the optimizer knows of them, new ones start without."""

from typing import Any

import jax
import numpy as np
import optax

from resnet_jax.errors import ConfigError, listed
from resnet_jax.models import Arch
from resnet_jax.models.growth import check_place, insert_blocks, moved
from resnet_jax.models.summary import LeafPath
from resnet_jax.training.state import PyTree, TrainState

Leaves = dict[LeafPath, Any]
GROWTH = 2**31 - 1  # apart from the steps, whose keys are folded from the seed too


def grow_state(
    arch: Arch,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    seed: int,
    stage: int,
    position: int | None = None,
    blocks: int = 1,
) -> tuple[Arch, TrainState]:
    """The network with blocks more in a stage, and its state, the old leaves on the host, the optimizer's grafted.

    The blocks are drawn from the seed and from how many there were before, so that a run that is resumed, or grown by
    the command, grows the same. step and whatever the optimizer counts go on.
    """
    held = jax.device_get(state)
    variables = {"params": held.params, "batch_stats": held.batch_stats}
    position = check_place(arch, variables, stage, position, blocks)
    key, before = jax.random.fold_in(jax.random.key(seed), GROWTH), sum(count for count, _ in arch.stages)
    keys = [jax.random.fold_in(key, before + i) for i in range(blocks)]
    arch, variables = insert_blocks(arch, variables, stage, position, keys)
    params = variables["params"]
    names = [f"block{i}" for i in range(position, position + blocks)]
    inserted = {f"stage{stage}": {name: params[f"stage{stage}"][name] for name in names}}
    old = {moved(path, stage, position, blocks): leaf for path, leaf in by_name(held.opt_state).items()}
    return arch, TrainState(held.step, params, variables["batch_stats"], graft(optimizer, params, inserted, old))


def graft(optimizer: optax.GradientTransformation, params: PyTree, inserted: PyTree, old: Leaves) -> PyTree:
    """The optimizer's state for params: what it held of the old ones, by name, and its initial state of those inserted.

    An optimizer keeps its numbers for each weight in a tree with the names of the weights, at any depth; the rest, such
    as counts, stays where it was. ConfigError where names or shapes say that this one does not.
    """
    leaves = by_name(optimizer.init(inserted)) | old  # of the inserted alone: no second state of the whole network
    like = jax.eval_shape(optimizer.init, params)
    wanted = {name: leaf.shape for name, leaf in by_name(like).items()}
    if wanted != (held := {name: np.shape(leaf) for name, leaf in leaves.items()}):
        wrong = listed(sorted("/".join(name) for name, _ in wanted.items() ^ held.items()))
        raise ConfigError(f"the optimizer's state cannot be carried over to the grown network: {wrong}")
    return jax.tree.map_with_path(lambda path, _: leaves[_names(path)], like)


def by_name(tree: PyTree) -> Leaves:
    """The leaves by the names on their way."""
    return {_names(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _names(path: tuple[Any, ...]) -> LeafPath:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
