"""The table of architectures against the seed's networks in PyTorch, and its own promises."""

import dataclasses

import family
import jax
import numpy as np
import pytest
import seeded
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import create_model, list_models
from resnet_jax.errors import ConfigError
from resnet_jax.models.registry import ARCHS, get_arch, grown_name

FROZEN = seeded.frozen("torch_nets")


def shapes_of(model, input_shape):
    """(output, variables) as shapes: no arithmetic."""
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros(input_shape)))


@pytest.mark.parametrize("name", [name for name in list_models() if ARCHS[name].trunk == "resnet"])
def test_a_grown_network_is_known_by_its_name(name):
    """Deeper, then wider, then deeper again; with a stem that goes with the first stage where that does not project."""
    arch = get_arch(name)
    (blocks, channels), *rest = arch.stages
    deeper = dataclasses.replace(arch, stages=((blocks + 1, channels), *rest))
    deeper = dataclasses.replace(deeper, name=grown_name(arch, deeper))
    stem = 2 * channels if arch.stem_channels == channels else arch.stem_channels
    wider = dataclasses.replace(deeper, stages=((blocks + 2, 2 * channels), *rest), stem_channels=stem)
    wider = dataclasses.replace(wider, name=grown_name(deeper, wider))
    assert deeper.name == f"{name}-{blocks + 1}" + "".join(f"-{b}" for b, _ in rest)
    assert wider.name == f"{name}-{blocks + 2}" + "".join(f"-{b}" for b, _ in rest) + (
        f"-w{2 * channels}" + "".join(f"-{c}" for _, c in rest)
    )
    for grown in (deeper, wider):
        assert get_arch(grown.name) == grown


def test_names_are_sorted_and_hold_the_seeds():
    assert list_models() == sorted(set(list_models()))
    assert set(seeded.ARCHS) <= set(list_models())


@pytest.mark.parametrize("channels", thorough_except((1, 3), 1))
@pytest.mark.parametrize("name", thorough_except(list_models(), "airbench", *family.ONE_OF_EACH))
def test_every_name_makes_a_network(name, channels):
    output, variables = shapes_of(create_model(name, num_classes=7), (2, 64, 48, channels))
    assert output.shape == (2, 7)
    assert output.dtype == jnp.float32
    assert variables["params"]["stem"]["conv"]["kernel"].shape[2] == channels
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("channels", thorough_except((1, 3), 1))
@pytest.mark.parametrize("name", seeded.ARCHS)
def test_parameter_counts_are_pytorchs(name, channels):
    """Part by part: stem, stages, head."""
    _, variables = shapes_of(create_model(name), (1, 96, 96, channels))
    parts = ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    assert sorted(variables["params"]) == sorted(parts)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(variables["params"][part])) for part in parts]
    assert counts == FROZEN[f"parameters/{name}/{channels}"].tolist()


def test_resnet18_has_the_seeds_count():
    _, variables = shapes_of(create_model("resnet18"), (1, 96, 96, 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_178_378


@pytest.mark.parametrize("name", ["resnext18", "resnext34"])
def test_resnext_has_groups_of_16_channels(name):
    """The seed's ResNeXtBlock(32, 16, 1), whatever the stage's width."""
    _, variables = shapes_of(create_model(name), (1, 96, 96, 1))
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        for block in variables["params"][stage].values():
            kernel = block["conv2"]["kernel"].shape
            assert kernel[:3] == (3, 3, 16)
            assert kernel[3] == block["conv1"]["kernel"].shape[3]  # bot_mul 1


def test_stem_can_be_overridden():
    for stem, kernel in (("standard", (7, 7, 3, 64)), ("small", (3, 3, 3, 64))):
        _, variables = shapes_of(create_model("resnet18", stem=stem), (1, 32, 32, 3))
        assert variables["params"]["stem"]["conv"]["kernel"].shape == kernel


def test_an_architecture_is_data():
    """A row with another number of blocks is another network, without an entry in the table."""
    arch = dataclasses.replace(get_arch("resnet18"), name="resnet10", stages=((1, 64), (1, 128), (1, 256), (1, 512)))
    _, variables = shapes_of(create_model(arch), (1, 96, 96, 1))
    assert [sorted(variables["params"][f"stage{i}"]) for i in (1, 2, 3, 4)] == [["block1"]] * 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        arch.stages = ()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "resnet81"}, ["unknown", "'resnet81'", "did you mean resnet", *seeded.ARCHS]),
        ({"name": "ResNet18"}, ["'ResNet18'", "resnet18"]),
        ({"name": ""}, ["''", *seeded.ARCHS]),
        ({"name": "zzz"}, ["'zzz'", *seeded.ARCHS]),
        ({"name": "resnet18", "stem": "smal"}, ["'smal'", "did you mean small", "standard"]),
        ({"name": "resnet18", "num_classes": -3}, ["num_classes -3", "at least 1"]),
        ({"name": None}, ["arch None: give the name of an architecture, such as resnet18"]),
        ({"name": "resnet18", "stem": ""}, ["unknown stem ''"]),
        ({"name": "resnet18", "stem": 3}, ["stem 3: give text"]),
        ({"name": "resnet18", "num_classes": "10"}, ["num_classes 10: give a whole number"]),
        ({"name": "resnet18", "num_classes": None}, ["num_classes None: give a whole number"]),
        ({"name": "resnet18", "num_classes": True}, ["num_classes True: give a whole number"]),
        ({"name": "resnet18", "num_classes": 10.0}, ["num_classes 10.0: give a whole number, such as 10"]),
        ({"name": "resnet18", "width": "2"}, ["width 2: give a number"]),
        ({"name": "resnet18", "width": None}, ["width None: give a number"]),
        ({"name": "resnet18", "stochastic_depth": "0.1"}, ["stochastic_depth 0.1: give a number"]),
        ({"name": "resnet18", "zero_init": "yes"}, ["zero_init yes: give True or False"]),
        ({"name": "resnet18", "remat": 1}, ["remat 1: give True or False"]),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, says):
    with pytest.raises(ConfigError) as error:
        create_model(**arguments)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in says), message
