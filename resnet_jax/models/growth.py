"""Networks that grow: new blocks that are the identity, among those that are there.

A residual block is the identity of a non-negative input where its last gamma and beta are 0 (a pre-activation block of
any input, where its last kernel is): what a network computes, a deeper one computes too, and both can go on learning.
Net2Net's deeper networks (arXiv:1511.05641, section 2.3) need an activation that is idempotent for the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import BatchNorm
from resnet_jax.models.registry import MOST_BLOCKS, Arch, create_model, get_arch, grown_name
from resnet_jax.models.summary import LeafPath, variable_shapes

COLLECTIONS = ("params", "batch_stats")
Variables = Mapping[str, Any]


def insert_block(
    arch: str | Arch, variables: Variables, stage: int, position: int | None = None, *, key: jax.Array
) -> tuple[Arch, dict[str, Any]]:
    """The network with one block more in a stage, and its variables: its logits are the same, in either mode.

    stage, position count from 1, as params/stage3/block2 does; the new block takes that position, or the stage's end if
    there is none, and those from there on move one up. Its layers are drawn from key as initialisation draws them,
    but for what makes it the identity. Old leaves are passed on as they are, not copied.
    ConfigError where there is no such place, or where the input of the place has another form than its output.

        arch, variables = resnet_jax.insert_block("resnet18", variables, stage=3, key=jax.random.key(0))
        model = resnet_jax.create_model(arch)  # resnet18-2-2-3-2

    With stochastic_depth, the rates of the other blocks are those of the deeper network.
    """
    return insert_blocks(arch, variables, stage, position, [key])


def insert_blocks(
    arch: str | Arch, variables: Variables, stage: int, position: int | None, keys: Sequence[jax.Array]
) -> tuple[Arch, dict[str, Any]]:
    """insert_block, of one block for each key, one after the other from that position on."""
    arch = as_arch(arch)
    check_blocks(arch, variables)
    position = check_place(arch, variables, stage, position, len(keys))
    check_stage(arch, variables, stage)
    init = jax.jit(_block(arch, variables, stage).init)  # of this block alone, whatever the network's size
    image = jnp.zeros((1, 1, 1, _inputs(variables)[stage]))
    blocks = [init(key, image) for key in keys]
    grown = {}
    for name in COLLECTIONS:
        flat = traverse_util.flatten_dict(variables[name])
        tree = {moved(path, stage, position, len(keys)): leaf for path, leaf in flat.items()}
        for i, block in enumerate(blocks):
            tree |= traverse_util.flatten_dict({f"stage{stage}": {f"block{position + i}": block[name]}})
        grown[name] = traverse_util.unflatten_dict(tree)
    stages = list(arch.stages)
    stages[stage - 1] = (stages[stage - 1][0] + len(keys), stages[stage - 1][1])
    return changed(arch, stages=tuple(stages)), grown


def embed(
    small_variables: Variables, large_arch: str | Arch, *, key: jax.Array | None = None, width: float = 1.0
) -> dict[str, Any]:
    """Variables of large_arch that compute what small_variables do: resnet18 is inside resnet34.

    What the small network lacks are blocks at the ends of its stages, drawn from key (jax.random.key(0) if None) as
    insert_block draws them. width: that of both networks. ConfigError where the small one does not nest.
    """
    large = as_arch(large_arch)
    key = jax.random.key(0) if key is None else key
    depths = _depths(small_variables, len(large.stages))
    for i, (has, (may_have, _)) in enumerate(zip(depths, large.stages, strict=True)):
        if not 0 < has <= may_have:
            raise ConfigError(f"{large.name} has {may_have} blocks in stage {i + 1} and the smaller network {has}")
    stages = tuple((has, channels) for has, (_, channels) in zip(depths, large.stages, strict=True))
    arch, variables = changed(large, stages=stages), dict(small_variables)
    check_variables(arch, variables, width)
    for i, (has, (wanted, _)) in enumerate(zip(depths, large.stages, strict=True)):
        if has < wanted:
            keys = jax.random.split(jax.random.fold_in(key, i), wanted - has)
            arch, variables = insert_blocks(arch, variables, i + 1, None, list(keys))
    return variables


def moved(path: LeafPath, stage: int, position: int, count: int = 1) -> LeafPath:
    """Where a leaf is after count blocks have come in at a position; any tree that has the names of blocks in it."""
    for i in range(len(path) - 1):
        if path[i] == f"stage{stage}" and path[i + 1].startswith("block"):
            block = int(path[i + 1].removeprefix("block"))
            return (*path[: i + 1], f"block{block + count * (block >= position)}", *path[i + 2 :])
    return path


def as_arch(arch: str | Arch) -> Arch:
    """The table's row for a name."""
    return get_arch(arch) if isinstance(arch, str) else arch


def changed(arch: Arch, **changes: Any) -> Arch:
    """The Arch with other stages, and with a name that says so, by which get_arch knows it."""
    new = dataclasses.replace(arch, **changes)
    return dataclasses.replace(new, name=grown_name(arch, new))


def projects(variables: Variables, stage: int) -> bool:
    """Whether the first block of a stage changes the size or the channels of its input."""
    inputs = _inputs(variables)
    return stage > 1 or inputs[0] != inputs[1]


def _inputs(variables: Variables) -> list[int]:
    """The channels that go into each stage, and into the head."""
    params = variables["params"]
    stages = range(1, sum(name.startswith("stage") for name in params) + 1)
    firsts = [np.shape(params[f"stage{i}"]["block1"]["conv1"]["kernel"])[-2] for i in stages]
    return [*firsts, np.shape(params["head"]["kernel"])[0]]


def _depths(variables: Variables, num_stages: int) -> list[int]:
    """How many blocks each stage has in these variables."""
    if missing := [name for name in COLLECTIONS if name not in variables]:
        raise ConfigError(f"variables without {' and '.join(missing)}; give what model.init gives, both collections")
    return [len(variables["params"].get(f"stage{i + 1}", ())) for i in range(num_stages)]


def _block(arch: Arch, variables: Variables, stage: int, project: bool = False) -> nn.Module:
    """A block of a stage, as the trunk makes it, that starts as the identity."""
    model = create_model(arch)
    options = {"squeeze_excitation": True} if "se" in variables["params"][f"stage{stage}"]["block1"] else {}
    channels = _inputs(variables)[stage]
    return model.block(channels, use_1x1conv=project, conv=model.conv, norm=BatchNorm, zero_init=True, **options)


def check_place(arch: Arch, variables: Variables, stage: int, position: int | None, blocks: int = 1) -> int:
    """The position, if blocks that are the identity can take it; ConfigError if they cannot."""
    end = check_stage_number(arch, stage) + 1
    position = end if position is None else position
    first = 2 if projects(variables, stage) else 1
    if not 1 <= position <= end:
        raise ConfigError(
            f"position {position}: stage {stage} of {arch.name} has {end - 1} blocks; use {first} to {end}"
        )
    if position < first:
        raise ConfigError(
            f"position 1: the first block of stage {stage} of {arch.name} changes the size or the channels of its "
            f"input, which the identity cannot do; use 2 to {end}"
        )
    if end - 1 + blocks > MOST_BLOCKS:
        raise ConfigError(
            f"blocks {blocks}: stage {stage} of {arch.name} has {end - 1}, and a stage has at most {MOST_BLOCKS}"
        )
    return position


def check_stage_number(arch: Arch, stage: int) -> int:
    """How many blocks that stage has; ConfigError if there is no such stage."""
    if not 1 <= stage <= len(arch.stages):
        raise ConfigError(f"stage {stage}: {arch.name} has {len(arch.stages)} stages; use 1 to {len(arch.stages)}")
    return arch.stages[stage - 1][0]


def check_blocks(arch: Arch, variables: Variables) -> None:
    """Raise ConfigError where variables have not as many blocks as the architecture."""
    depths = _depths(variables, len(arch.stages))
    beyond = f"stage{len(arch.stages) + 1}" in variables["params"]
    if beyond or depths != [blocks for blocks, _ in arch.stages]:
        has, wants = ("-".join(map(str, blocks)) for blocks in (depths, [blocks for blocks, _ in arch.stages]))
        raise ConfigError(
            f"these are not the variables of {arch.name}: their stages have {has}{' and more' * beyond} blocks, "
            f"not {wants}; give the Arch that goes with them"
        )


def check_stage(arch: Arch, variables: Variables, stage: int) -> None:
    """Raise ConfigError where the blocks of a stage have other leaves or shapes than the architecture's."""
    inputs = _inputs(variables)
    for name, block in variables["params"][f"stage{stage}"].items():
        first = name == "block1"
        module = _block(arch, variables, stage, first and projects(variables, stage))
        image = jnp.zeros((1, 1, 1, inputs[stage - 1 if first else stage]))
        wanted = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
        check_shapes(arch, f"stage{stage}/{name}", block, wanted)


def check_variables(arch: Arch, variables: Variables, width: float) -> None:
    """Raise ConfigError where these are not the architecture's variables, at that width."""
    check_blocks(arch, variables)
    shapes = shapes_like(arch, variables, width)
    for name in COLLECTIONS:
        check_shapes(arch, name, variables[name], shapes[name])


def shapes_like(arch: Arch, variables: Variables, width: float) -> dict[str, Any]:
    """The shapes of an architecture's variables, with the stem, the head and the options that these have."""
    params = variables["params"]
    kernel_size, _, in_channels, _ = np.shape(params["stem"]["conv"]["kernel"])
    model = create_model(
        arch,
        np.shape(params["head"]["kernel"])[1],
        stem="small" if kernel_size == 3 else "standard",
        width=width,
        squeeze_excitation="se" in params["stage1"]["block1"],
    )
    return variable_shapes(model, in_channels)


def _shapes(tree: Variables) -> dict[str, tuple[int, ...]]:
    flat: dict[LeafPath, Any] = traverse_util.flatten_dict(tree)
    return {"/".join(path): np.shape(leaf) for path, leaf in flat.items()}


def check_shapes(arch: Arch, where: str, held: Variables, wanted: Variables) -> None:
    held_shapes, wanted_shapes = (_shapes(tree) for tree in (held, wanted))
    wrong = [name for name in held_shapes | wanted_shapes if held_shapes.get(name) != wanted_shapes.get(name)]
    if wrong:
        name = sorted(wrong)[0]
        has, wants = (shapes.get(name, "not there") for shapes in (held_shapes, wanted_shapes))
        raise ConfigError(
            f"these are not the variables of {arch.name}: {where}/{name} is {has}, its own {wants}; "
            "give the Arch (and the width) that goes with them"
        )
