"""Training states of growing networks: old weights keep their optimizer state, new ones start with an initial one."""

from typing import Any

import jax
import numpy as np
import optax

from resnet_jax.errors import ConfigError, listed
from resnet_jax.models import Arch
from resnet_jax.models.growth import check_place, insert_blocks, moved
from resnet_jax.models.summary import LeafPath
from resnet_jax.training.state import PyTree, TrainState, trained

Leaves = dict[LeafPath, Any]
GROWTH = 2**31 - 1  # no step has this number, so the keys differ from those of the steps


def grow_state(
    arch: Arch, state: TrainState, stage: int, position: int | None = None, blocks: int = 1
) -> tuple[Arch, TrainState]:
    """Insert blocks into a stage: the deeper network, and its state on the host with the grafted optimizer state.

    The blocks are drawn from the seed and the number of blocks before, so that a resumed run, and a run that the
    command grows, get the same ones. The averages get the same blocks. step and the optimizer's counts are kept.
    state.model stays the old model: set the new one with state.replace(model=...).
    """
    held = jax.device_get(state)
    variables = {"params": held.params, "batch_stats": held.batch_stats}
    position = check_place(arch, variables, stage, position, blocks)
    key, before = jax.random.fold_in(jax.random.key(held.seed), GROWTH), sum(count for count, _ in arch.stages)
    keys = [jax.random.fold_in(key, before + i) for i in range(blocks)]
    averages = held.averages and insert_blocks(arch, held.averages, stage, position, keys)[1]
    arch, variables = insert_blocks(arch, variables, stage, position, keys)
    params = variables["params"]
    old = {moved(path, stage, position, blocks): leaf for path, leaf in by_name(held.opt_state).items()}
    opt_state = graft(held.optimizer, trained(params, held.frozen), old)
    statistics = variables["batch_stats"]
    return arch, held.replace(params=params, batch_stats=statistics, opt_state=opt_state, averages=averages)


def graft(optimizer: optax.GradientTransformation, params: PyTree, old: Leaves) -> PyTree:
    """The optimizer's state for params: its old state where it has one, its initial state for the inserted ones.

    Optimizers keep their state of each weight in trees with the names of the weights, at any depth. Other leaves, such
    as counts, keep their values. ConfigError if the names or shapes of this optimizer's state do not follow that form.
    """

    def initial(params: PyTree) -> Leaves:
        return {name: leaf for name, leaf in by_name(optimizer.init(params)).items() if name not in old}

    leaves = jax.jit(initial)(params) | old  # under jit the state of the old params takes no memory
    like = jax.eval_shape(optimizer.init, params)
    wanted = {name: leaf.shape for name, leaf in by_name(like).items()}
    if wanted != (held := {name: np.shape(leaf) for name, leaf in leaves.items()}):
        wrong = listed(sorted("/".join(name) for name, _ in wanted.items() ^ held.items()))
        raise ConfigError(f"the optimizer's state cannot be carried over to the grown network: {wrong}")
    return jax.tree.map_with_path(lambda path, _: leaves[_names(path)], like)


def by_name(tree: PyTree) -> Leaves:
    """The leaves by the names on their paths."""
    return {_names(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _names(path: tuple[Any, ...]) -> LeafPath:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
