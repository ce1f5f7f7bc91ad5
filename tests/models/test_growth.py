"""Grown networks against the networks that they grew from: the same function, and gradients that say so."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import flax_side
import jax
import numpy as np
import pytest
import seeded
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import create_model, embed, insert_block, list_models, widen
from resnet_jax.errors import ConfigError
from resnet_jax.models.growth import moved
from resnet_jax.models.registry import ARCHS, Arch, get_arch

ROOT = Path(__file__).parents[2]
KEY = jax.random.key(5)
RTOL = 1e-6  # of the logits' scale
X = seeded.normal("growth x", (8, 16, 16, 3))
LABELS = seeded.labels("growth y", 8)
# every form of block, and of grouping, of the table; small, each with a stage that could be the identity from the start
FORMS = {
    "resnet18": ((1, 64), (2, 16)),
    "resnext18": ((2, 64), (1, 32)),
    "tv_resnet18": ((2, 64), (1, 16)),
    "resnet50": ((1, 48), (2, 64)),
    "resnext50_32x4d": ((1, 64), (2, 128)),
    "resnet20": ((1, 16), (2, 32)),
    "wrn_16_4": ((1, 16), (2, 32)),
}
PADS = Arch("pads", ((2, 32),), block="basic", stem="small", stem_channels=16, pad_shortcut=True)
SQUEEZED = (("tv_resnet18", True), ("wrn_16_4", True))  # where the branch ends is a base class's, or pre-activation's


def small(name, **changes):
    return dataclasses.replace(ARCHS[name], stages=FORMS[name], **changes)


def variables_of(arch, **options):
    """With statistics away from 0 and 1, and every other leaf of its own."""
    return flax_side.variables(create_model(arch, **options), (1, 32, 32, 3))


def logits(arch, variables, x=X, jit=False, **options):
    """In evaluation and in training. Without jit XLA compiles each operation alone, so their order is the network's."""
    model = create_model(arch, **options)

    def run(variables):
        modes = (flax_side.apply(model, variables, x, train=train, mutable=["batch_stats"]) for train in (False, True))
        return tuple(out for out, _ in modes)

    return jax.jit(run)(variables) if jit else run(variables)


def assert_same_function(ours, theirs, *rtols):
    """rtols: of the logits' scale, in evaluation and in training."""
    for mode, mine, wanted, rtol in zip(("eval", "train"), ours, theirs, rtols, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=rtol * np.abs(wanted).max(), err_msg=mode)
    assert np.abs(ours[0] - ours[1]).max() > 0.01 * np.abs(ours[0]).max()  # the modes are not one


def shapes(tree):
    return {path: np.shape(leaf) for path, leaf in seeded.leaves(tree)}


def own_shapes(arch, **options):
    model = create_model(arch, **options)
    return shapes(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))))


# ---- deeper ----


@pytest.mark.parametrize(
    ("name", "squeeze_excitation"),
    thorough_except([*((name, False) for name in FORMS), *SQUEEZED], ("resnet20", False), ("wrn_16_4", True)),
)
def test_a_deeper_network_computes_the_same(name, squeeze_excitation):
    """To the bit: in both stages, at the end and in between, and first in a stage that does not project."""
    options, arch = {"squeeze_excitation": squeeze_excitation}, small(name)
    variables = variables_of(arch, **options)
    deeper, grown = insert_block(arch, variables, stage=1, key=KEY)
    deeper, grown = insert_block(deeper, grown, stage=2, position=2, key=KEY)
    if name in ("resnext18", "tv_resnet18", "resnet20", "wrn_16_4"):  # as many channels as the stem
        deeper, grown = insert_block(deeper, grown, 1, 1, key=KEY)
    assert shapes(grown) == own_shapes(deeper, **options)
    assert deeper.name == name + "".join(f"-{blocks}" for blocks, _ in deeper.stages)
    assert_same_function(logits(deeper, grown, **options), logits(arch, variables, **options), 0, 0)


def test_old_leaves_are_passed_on_and_new_ones_drawn():
    arch, variables = small("tv_resnet18"), variables_of(small("tv_resnet18"))
    before = jax.tree.map(np.copy, variables)
    _, grown = insert_block(arch, variables, 1, 2, key=KEY)
    for collection in ("params", "batch_stats"):
        old, new = variables[collection], grown[collection]
        pairs = [("stem", "stem"), ("stage2", "stage2")] + [("head", "head")] * (collection == "params")
        pairs = [(old[a], new[b]) for a, b in pairs]
        pairs += [(old["stage1"]["block1"], new["stage1"]["block1"])]
        pairs += [(old["stage1"]["block2"], new["stage1"]["block3"])]
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, *pair)) for pair in pairs)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    block = grown["params"]["stage1"]["block2"]
    bound = 5 * np.sqrt(2 / (9 * 64))  # He's deviation, by fan out
    assert 0.5 * bound < np.abs(block["conv2"]["kernel"]).max() < 1.5 * bound
    assert not np.any(block["bn2"]["scale"])
    assert np.all(block["bn1"]["scale"] == 1)
    _, other = insert_block(arch, variables, 1, 2, key=jax.random.key(6))
    assert np.any(other["params"]["stage1"]["block2"]["conv1"]["kernel"] != block["conv1"]["kernel"])


@pytest.mark.parametrize("name", thorough_except(("resnext50_32x4d", "wrn_16_4"), "wrn_16_4"))
def test_gradients_of_old_weights_stay_and_new_ones_learn(name):
    """So the first step after growth changes old weights as it would have without."""

    def gradients(arch, variables):
        model = create_model(arch)

        def loss(params):
            held = {"params": params, "batch_stats": variables["batch_stats"]}
            out, _ = flax_side.apply(model, held, X, train=True, mutable=["batch_stats"])
            return -jnp.take_along_axis(jax.nn.log_softmax(out), LABELS[:, None], 1).mean()

        run = jax.jit(jax.grad(loss), compiler_options=flax_side.RUN_ONCE)
        leaves = seeded.leaves(jax.device_get(run(variables["params"])))
        return {tuple(path.split("/")): leaf for path, leaf in leaves}

    arch, variables = small(name), variables_of(small(name))
    deeper, grown = insert_block(arch, variables, stage=2, position=2, key=KEY)
    old, new = gradients(arch, variables), gradients(deeper, grown)
    scale = max(np.abs(leaf).max() for leaf in old.values())
    for path, leaf in old.items():
        np.testing.assert_allclose(new.pop(moved(path, 2, 2)), leaf, rtol=0, atol=1e-5 * scale, err_msg=str(path))
    assert {path[:2] for path in new} == {("stage2", "block2")}
    last = ("conv2", "kernel") if name == "wrn_16_4" else ("bn3" if "conv3" in str(new) else "bn2", "scale")
    assert np.abs(new["stage2", "block2", *last]).max() > 1e-4 * scale


def test_numpy_and_legacy_keys_and_names():
    """A table's name, arrays of numpy or of jax, and either kind of key."""
    variables = variables_of("resnet20", width=0.5)
    for held in (variables, jax.tree.map(jnp.asarray, variables)):
        arch, grown = insert_block("resnet20", held, stage=3, key=jax.random.PRNGKey(0))
        arch, grown = insert_block(arch, grown, stage=3, key=jax.random.PRNGKey(0))
        assert arch.name == "resnet20-3-3-5"
        assert shapes(grown) == own_shapes(arch, width=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet20", 0), "stage 0: resnet20 has 3 stages; use 1 to 3"),
        (("resnet20", 4), "stage 4: resnet20 has 3 stages"),
        (("resnet20", 2, 0), "position 0: stage 2 of resnet20 has 3 blocks; use 2 to 4"),
        (("resnet20", 2, 5), "position 5"),
        (("resnet20", 2, 1), "position 1: the first block of stage 2 of resnet20 changes the size or the channels of"),
        (("resnet81", 2), "unknown architecture 'resnet81'"),
        (("resnet32", 2), "not the variables of resnet32: their stages have 3-3-3 blocks, not 5-5-5"),
        ((dataclasses.replace(ARCHS["resnet20"], stages=ARCHS["resnet20"].stages[:2]), 2), "3-3 and more blocks"),
        ((dataclasses.replace(ARCHS["resnet20"], block="residual"), 2), "block1/conv1/bias is not there, its own (16,"),
        ((dataclasses.replace(ARCHS["resnet20"], block="bottleneck"), 1), "stage1/block1/bn3/bias is not there"),
    ],
)
def test_where_no_block_can_be(arguments, message):
    with pytest.raises(ConfigError) as error:
        insert_block(arguments[0], VARIABLES_20, *arguments[1:], key=KEY)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


VARIABLES_20 = variables_of("resnet20", width=0.5)


def test_both_collections_are_needed():
    with pytest.raises(ConfigError, match="variables without batch_stats"):
        insert_block("resnet20", {"params": VARIABLES_20["params"]}, 1, key=KEY)


def test_an_arch_without_a_projection_refuses_nothing_in_its_first_stage():
    """And one with: a stem of another width."""
    arch = small("resnet18")
    insert_block(arch, variables_of(arch), 1, 1, key=KEY)
    arch = dataclasses.replace(arch, stages=((1, 32), (1, 32)))
    with pytest.raises(ConfigError, match="position 1: the first block of stage 1 of resnet18 changes the size or the"):
        insert_block(arch, variables_of(arch), 1, 1, key=KEY)


# ---- nested ----


def nests(a, b):
    """As data: b is a with more blocks."""
    same = dataclasses.replace(b, name=a.name, stages=a.stages) == a
    pairs = zip(a.stages, b.stages, strict=True) if len(a.stages) == len(b.stages) else [((1, 0), (0, 0))]
    return a != b and same and all(few <= many and c == d for (few, c), (many, d) in pairs)


NESTED = [(a, b) for a in list_models() for b in list_models() if nests(ARCHS[a], ARCHS[b])]


def test_which_pairs_nest():
    """2 of the seed's, 1 of basic blocks, 3 of bottlenecks, 1 wide, and 5 over 2 small ones."""
    assert len(NESTED) == 2 + 1 + 3 + 1 + 10
    assert {("resnet18", "resnet34"), ("resnet50", "resnet152"), ("resnet20", "resnet110")} < set(NESTED)


FIRST = ("resnet34", "resnet32")  # the larger of a pair with projections, and of one that pads


@pytest.mark.parametrize(
    ("a", "b"), [pytest.param(a, b, marks=[] if b in FIRST else pytest.mark.long) for a, b in NESTED]
)
def test_the_smaller_network_is_inside_the_larger(a, b):
    """A narrow one, and not compiled as a whole: the same operations, one by one, give the same bits."""
    width = 0.25 if a.startswith(("wide", "resnext")) else 0.125
    x = seeded.normal("nested x", (1, 33, 33, 1))
    inner, outer = create_model(a, width=width), create_model(b, width=width)
    variables = flax_side.variables(inner, x.shape)
    embedded = embed(variables, b, key=KEY, width=width)
    outer_shapes = jax.eval_shape(lambda: outer.init(jax.random.key(0), jnp.zeros(x.shape)))
    assert shapes(embedded) == shapes(outer_shapes)
    np.testing.assert_array_equal(outer.apply(embedded, x), inner.apply(variables, x))


def test_what_does_not_nest():
    variables = variables_of("resnet32", width=0.5)
    with pytest.raises(ConfigError, match="resnet20 has 3 blocks in stage 1 and the smaller network 5"):
        embed(variables, "resnet20", width=0.5)
    with pytest.raises(ConfigError, match=r"of resnet44-5-5-5: params/head/kernel is \(32, 10\), its own \(64"):
        embed(variables, "resnet44")
    with pytest.raises(ConfigError, match=r"resnet34 has 3 blocks in stage 4 and the smaller network 0"):
        embed(variables_of(dataclasses.replace(ARCHS["resnet18"], stages=((2, 64),) * 3), width=0.125), "resnet34")
    with pytest.raises(ConfigError, match="these are not the variables of wrn_28_10-2-2-2"):
        embed(variables_of("wrn_16_4", width=0.125), "wrn_28_10", width=0.125)


# ---- wider ----


@pytest.mark.parametrize(
    ("name", "squeeze_excitation"),
    thorough_except(
        [*((name, False) for name in FORMS if name != "resnet20"), *SQUEEZED],
        ("resnext50_32x4d", False),
        ("wrn_16_4", True),
    ),
)
def test_a_wider_network_computes_the_same(name, squeeze_excitation):
    """Both stages, one after the other; with them the stem, where the first does not project."""
    options, arch = {"squeeze_excitation": squeeze_excitation}, small(name)
    variables = variables_of(arch, **options)
    wider, grown = arch, variables
    for stage, (_, channels) in enumerate(arch.stages, start=1):
        wider, grown = widen(wider, grown, stage, (stage + 1) * channels, key=KEY)
        wider, grown = (wider, grown) if stage == 1 else insert_block(wider, grown, stage, key=KEY)
    first, last = arch.stages[0][1] * 2, arch.stages[1][1] * 3
    assert [channels for _, channels in wider.stages] == [first, last]
    assert wider.stem_channels == (arch.stem_channels if arch.stem_channels != arch.stages[0][1] else first)
    assert wider.name == f"{name}-{wider.stages[0][0]}-{wider.stages[1][0]}-w{first}-{last}"
    assert shapes(grown) == own_shapes(wider, **options)
    # sums are added in another order, and batch norm of 32 numbers a channel makes more of it
    assert_same_function(logits(wider, grown, **options), logits(arch, variables, **options), RTOL, 3 * RTOL)


def test_copies_are_copies_and_shares_sum_to_one():
    """By hand, on one block: a channel's copies put out the same, and what takes them in adds up to what it was."""
    arch, variables = small("tv_resnet18"), variables_of(small("tv_resnet18"))
    _, grown = widen(arch, variables, 2, 40, key=KEY)
    old, new = (v["params"]["stage2"]["block1"] for v in (variables, grown))
    scale = new["bn1"]["scale"]
    source = np.array([np.flatnonzero(old["bn1"]["scale"] == value)[0] for value in scale])
    np.testing.assert_array_equal(source[:16], np.arange(16))
    np.testing.assert_array_equal(new["conv1"]["kernel"], old["conv1"]["kernel"][..., source])
    stream = [np.flatnonzero(old["bn2"]["scale"] == value)[0] for value in new["bn2"]["scale"]]
    summed = np.zeros((3, 3, 16, 40))
    for i, channel in enumerate(source):
        summed[:, :, channel] += new["conv2"]["kernel"][:, :, i]
    np.testing.assert_allclose(summed, old["conv2"]["kernel"][..., stream], rtol=1e-6, atol=1e-8)
    head = np.zeros((16, 10))
    for i, channel in enumerate(stream):
        head[channel] += grown["params"]["head"]["kernel"][i]
    np.testing.assert_allclose(head, variables["params"]["head"]["kernel"], rtol=1e-6, atol=1e-8)
    twice = source[np.flatnonzero(np.bincount(source) > 1)[0]]
    copies = np.flatnonzero(source == twice)
    ratio = new["conv2"]["kernel"][:, :, copies[0]] / new["conv2"]["kernel"][:, :, copies[1]]
    assert np.ptp(ratio) < 1e-5  # one share for all that it goes to
    assert abs(ratio.mean() - 1) > 1e-3  # and not that of the other copy


def test_widths_of_a_narrower_network():
    """channels are the Arch's; the network has half of them."""
    variables = variables_of("wrn_16_4", width=0.5)
    arch, grown = widen("wrn_16_4", variables, 3, 512, key=KEY, width=0.5)
    assert arch.name == "wrn_16_4-2-2-2-w64-128-512"
    assert get_arch(arch.name) == arch
    assert shapes(grown) == own_shapes(arch, width=0.5)


def test_a_stem_that_has_the_first_stages_channels_at_one_width_alone():
    """Widened, it would go by a name that means another network."""
    with pytest.raises(ConfigError, match=r"the stem's channels at width 0\.125 alone"):
        widen("wrn_16_4", variables_of("wrn_16_4", width=0.125), 1, 128, key=KEY, width=0.125)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet20", (2, 128), "resnet20 cannot be widened: its shortcuts pad channels"),
        (PADS, (1, 64), "pads cannot be widened: its shortcuts pad channels"),
        ("resnet18", (3, 128), "stage 3: resnet18 has 2 stages"),
        ("resnet18", (2, 16), "channels 16: stage 2 of resnet18 has 16; use at least 17 at width 1.0"),
        ("resnet50", (1, 64), "channels 64: the stem has equally many"),
        ("resnext50_32x4d", (2, 140), "groups 32 must divide the 70 channels"),
        ("resnext18", (2, 40), "must divide the 40"),
    ],
)
def test_what_cannot_be_wider(name, arguments, message):
    arch = name if isinstance(name, Arch) else small(name)
    with pytest.raises(ConfigError) as error:
        widen(arch, variables_of(arch), *arguments, key=KEY)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ---- real images, and large networks ----

REAL = [
    "resnet18",
    "resnext18",
    "tv_resnet18",
    "resnet50",
    "resnext50_32x4d",
    "resnet20",
    "resnext29_8x64d",
    "wrn_16_4",
]


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_the_same_function_of_1000_real_images(name):
    """The table's own depths, an eighth as wide (a quarter for groups), in both modes."""
    from resnet_jax.data import load

    width = 0.25 if "resnext" in name else 0.125
    test = load("fashion_mnist", log=print).test
    assert test is not None
    x = test.images[:1000].astype(np.float32) / 255
    options = {"width": width, "stem": "small"}
    held = flax_side.variables(create_model(name, **options), (1, 28, 28, 1))
    stage = len(get_arch(name).stages)
    nets = {"old": (get_arch(name), held), "deeper": insert_block(name, held, stage, key=KEY)}
    if not get_arch(name).pad_shortcut:
        channels = get_arch(name).stages[-1][1] * 2
        nets["wider"] = widen(name, held, stage, channels, key=KEY, width=width)
    out = {kind: logits(arch, variables, x, jit=True, **options) for kind, (arch, variables) in nets.items()}
    for kind in nets.keys() - {"old"}:
        off = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(out[kind], out["old"], strict=True)]
        print(f"{name} {kind}: off by {off[0]:.1e} in evaluation and {off[1]:.1e} in training, of the scale")
        assert_same_function(out[kind], out["old"], RTOL, RTOL if kind == "deeper" else 3 * RTOL)


@pytest.mark.long
def test_growing_resnet152_holds_no_second_copy_of_its_state():
    """In a process of its own: what it holds at most grows by less than the weights and their momentum."""
    command = [sys.executable, "benchmarks/growth.py", "--cost", "resnet152"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    print(said)
    [(name, more, size)] = re.findall(r"(\S+): .* (\d+) MB beside its state of (\d+) MB\n", said)
    assert name == "resnet152-3-8-37-3"
    assert 0 < int(more) < int(size) / 2  # the weights without their momentum
