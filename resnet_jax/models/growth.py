"""Networks that grow deeper: new blocks start as the identity, so the network computes the same function.

A residual block whose last batch norm has gamma = beta = 0 returns its input unchanged, if the input is non-negative.
A pre-activation block does so for any input if its last kernel is 0. So the deeper network starts with the same
outputs, and all of its parameters can be trained. Net2Net (arXiv:1511.05641, section 2.3) has no shortcuts; its
deeper networks need an idempotent activation instead. Here the activation after the addition must be ReLU.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import numpy as jnp

from resnet_jax.arguments import whole
from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import BatchNorm
from resnet_jax.models.registry import MOST_BLOCKS, Arch, as_arch, check_blocks_of, create_model, grown_name
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.summary import LeafPath, variable_shapes

COLLECTIONS = ("params", "batch_stats")
Variables = Mapping[str, Any]


def insert_block(
    arch: str | Arch, variables: Variables, stage: int, position: int | None = None, *, key: jax.Array
) -> tuple[Arch, dict[str, Any]]:
    """Add a block to a stage. The logits stay the same, in training and in evaluation mode.

    stage and position count from 1, as in params/stage3/block2. The new block takes this position, by default the end
    of the stage, and the later blocks move up by one. key initialises its layers, except those that make it the
    identity. The old arrays are returned themselves, not copied.
    Returns the new Arch and its variables. ConfigError if there is no such position, if the block there cannot be the
    identity, or if the network has no batch norm or no head. The activation must be ReLU.

        arch, variables = resnet_jax.insert_block("resnet18", variables, stage=3, key=jax.random.key(0))
        model = resnet_jax.create_model(arch)  # resnet18-2-2-3-2

    With stochastic_depth, the rates of the other blocks change to those of the deeper network.
    """
    return insert_blocks(arch, variables, stage, position, [key])


def insert_blocks(
    arch: str | Arch, variables: Variables, stage: int, position: int | None, keys: Sequence[jax.Array]
) -> tuple[Arch, dict[str, Any]]:
    """Insert one block for each key, at this position and the next ones. See insert_block."""
    arch = as_arch(arch)
    check_blocks(arch, variables)
    position = check_place(arch, variables, stage, position, len(keys))
    check_stage(arch, variables, stage)
    init = jax.jit(_block(arch, variables, stage).init)  # compiles this block only
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
    """Variables of large_arch that compute the same function as small_variables, such as resnet34 from resnet18.

    The missing blocks are added at the ends of the stages, as insert_block does, from key (default
    jax.random.key(0)). width: of both networks. ConfigError if a stage of the small network is not a prefix.
    """
    large = check_blocks_of(as_arch(large_arch), "embed")
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
    """The path of a leaf after count blocks were inserted at a position. It works for every tree with block names."""
    for i in range(len(path) - 1):
        if path[i] == f"stage{stage}" and path[i + 1].startswith("block"):
            block = int(path[i + 1].removeprefix("block"))
            return (*path[: i + 1], f"block{block + count * (block >= position)}", *path[i + 2 :])
    return path


def changed(arch: Arch, **changes: Any) -> Arch:
    """The Arch with changes, and with a new name that get_arch can read."""
    new = dataclasses.replace(arch, **changes)
    return dataclasses.replace(new, name=grown_name(arch, new))


def projects(variables: Variables, stage: int) -> bool:
    """Whether the first block of a stage changes the size or the channels of its input."""
    inputs = _inputs(variables)
    return stage > 1 or inputs[0] != inputs[1]


def _inputs(variables: Variables) -> list[int]:
    """The number of input channels of each stage, and of the head."""
    params = variables["params"]
    stages = range(1, sum(name.startswith("stage") for name in params) + 1)
    firsts = [np.shape(params[f"stage{i}"]["block1"]["conv1"]["kernel"])[-2] for i in stages]
    return [*firsts, np.shape(params["head"]["kernel"])[0]]


def _depths(variables: Variables, num_stages: int) -> list[int]:
    """The number of blocks in each stage; ConfigError for variables that growth does not support."""
    if missing := [name for name in COLLECTIONS if name not in variables]:
        raise ConfigError(
            f"variables without {' and '.join(missing)}: growing needs both collections that model.init returns, and "
            "a network with batch norm; other norms are not supported"
        )
    if "head" not in variables["params"]:
        raise ConfigError("variables without params/head: growing needs a network with a head (num_classes above 0)")
    return [len(variables["params"].get(f"stage{i + 1}", ())) for i in range(num_stages)]


def _block(arch: Arch, variables: Variables, stage: int, project: bool = False) -> nn.Module:
    """A block of a stage, as the trunk builds it, that starts as the identity."""
    model = create_model(arch)
    assert isinstance(model, ResNet)  # check_blocks has refused other trunks
    options = {"squeeze_excitation": True} if "se" in variables["params"][f"stage{stage}"]["block1"] else {}
    channels = _inputs(variables)[stage]
    return model.block(channels, use_1x1conv=project, conv=model.conv, norm=BatchNorm, zero_init=True, **options)


def check_place(arch: Arch, variables: Variables, stage: int, position: int | None, blocks: int = 1) -> int:
    """The position at which blocks are inserted; ConfigError if identity blocks cannot go there."""
    end = check_stage_number(arch, stage) + 1
    position = end if position is None else whole("position", position)
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
    """The number of blocks of this stage; ConfigError if there is no such stage, or no blocks at all."""
    check_blocks_of(arch, "growing")
    if not 1 <= whole("stage", stage) <= len(arch.stages):
        raise ConfigError(f"stage {stage}: {arch.name} has {len(arch.stages)} stages; use 1 to {len(arch.stages)}")
    return arch.stages[stage - 1][0]


def check_blocks(arch: Arch, variables: Variables) -> None:
    """Raise ConfigError if the variables have other numbers of blocks than the architecture."""
    check_blocks_of(arch, "growing")
    depths = _depths(variables, len(arch.stages))
    beyond = f"stage{len(arch.stages) + 1}" in variables["params"]
    if beyond or depths != [blocks for blocks, _ in arch.stages]:
        has, wants = ("-".join(map(str, blocks)) for blocks in (depths, [blocks for blocks, _ in arch.stages]))
        raise ConfigError(
            f"these are not the variables of {arch.name}: their stages have {has}{' and more' * beyond} blocks, "
            f"not {wants}; pass the Arch of these variables"
        )


def check_stage(arch: Arch, variables: Variables, stage: int) -> None:
    """Raise ConfigError if the blocks of a stage differ in leaves or shapes from the architecture."""
    inputs = _inputs(variables)
    for name, block in variables["params"][f"stage{stage}"].items():
        first = name == "block1"
        module = _block(arch, variables, stage, first and projects(variables, stage))
        image = jnp.zeros((1, 1, 1, inputs[stage - 1 if first else stage]))
        wanted = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
        check_shapes(arch, f"stage{stage}/{name}", block, wanted)


def check_variables(arch: Arch, variables: Variables, width: float) -> None:
    """Raise ConfigError if these are not variables of the architecture at this width."""
    check_blocks(arch, variables)
    shapes = shapes_like(arch, variables, width)
    for name in COLLECTIONS:
        check_shapes(arch, name, variables[name], shapes[name])


def shapes_like(arch: Arch, variables: Variables, width: float) -> dict[str, Any]:
    """The shapes of variables of an architecture that has the stem, head and options of the given variables."""
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
    """Raise ConfigError if two trees differ in leaves or shapes; the message names the first leaf that differs."""
    held_shapes, wanted_shapes = (_shapes(tree) for tree in (held, wanted))
    wrong = [name for name in held_shapes | wanted_shapes if held_shapes.get(name) != wanted_shapes.get(name)]
    if wrong:
        name = sorted(wrong)[0]
        has, wants = (shapes.get(name, "not there") for shapes in (held_shapes, wanted_shapes))
        raise ConfigError(
            f"these are not the variables of {arch.name}: {where}/{name} is {has}, its own {wants}; "
            "pass the Arch and the width of these variables"
        )
