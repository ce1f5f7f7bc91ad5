"""Networks with folded batch norms, against the same networks with the norms as layers of their own."""

from functools import partial
from typing import Any, cast

import flax_side
import jax
import numpy as np
import pytest
import seeded
from flax import linen as nn
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import ResNet, create_model, ops
from resnet_jax.models import BatchNorm, Conv
from resnet_jax.models.folding import Pairs, fold, folded_into, unfolded_part
from resnet_jax.models.registry import Arch

TOLERANCE = 1e-5  # of probabilities
SMALL = partial(Arch, "small", ((1, 16), (2, 32)), stem="small", stem_channels=16)
NETWORKS: dict[str, tuple[Any, int]] = {  # model, number of its pairs
    "residual": (create_model(SMALL()), 7),
    "standard stem": (create_model(SMALL(), stem="standard"), 7),
    "resnext": (create_model(SMALL(block="resnext", group_width=8)), 11),
    "basic": (create_model(SMALL(block="basic")), 8),
    "padded": (create_model(SMALL(block="basic", pad_shortcut=True)), 7),
    "grouped": (create_model(SMALL(block="bottleneck", bot_mul=0.5, groups=4)), 11),
    "squeezed": (create_model(SMALL(block="basic"), squeeze_excitation=True), 8),
    # In each block the second norm follows a convolution. The first follows one if it is the only reader of the stem.
    "pre-activation": (create_model(SMALL(block="preact")), 3),
    "pre-activation, wide": (create_model(SMALL(block="preact", stem_channels=8)), 4),
    "norms without a scale": (create_model("airbench", width=0.25), 3),
    "another activation": (create_model(SMALL(), act=nn.gelu), 7),
    "another norm": (create_model(SMALL(), norm=partial(nn.GroupNorm, num_groups=4)), 0),
    "Flax's norm": (create_model(SMALL(), norm=nn.BatchNorm), 0),
}
SHAPE = (3, 12, 14, 3)


def run(model: nn.Module, variables: Any, x: Any) -> Any:
    return jax.nn.softmax(flax_side.apply(model, variables, x, train=False))


def folded(model: nn.Module, variables: Any, pairs: Pairs, x: Any) -> Any:
    with folded_into(pairs):
        return run(model, unfolded_part(variables, pairs), x)


def made(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[Any, np.ndarray, Pairs]:
    variables, x = flax_side.variables(model, shape), seeded.normal("folding", shape)
    return variables, x, fold(partial(run, model), variables, x)


@pytest.mark.parametrize("kernels", thorough_except(("auto", "onednn", "xla", "plain"), "auto"))
@pytest.mark.parametrize("name", NETWORKS)
def test_folded_networks_return_the_same(name, kernels):
    if kernels == "onednn" and not ops.native_available():
        pytest.skip("the oneDNN kernels are not built")
    model, count = NETWORKS[name]
    variables, x, pairs = made(model)
    assert len(pairs) == count
    with ops.cpu_kernels(kernels):
        expected = jax.jit(partial(run, model))(variables, x)
        found = jax.jit(partial(folded, model))(variables, pairs, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "norms", "count"), [("resnet50", 53, 53), ("tv_resnet18", 20, 20), ("wrn_16_4", 13, 7)]
)
def test_the_norms_of_the_table_that_follow_a_convolution(name, norms, count):
    variables, _, pairs = made(create_model(name, width=0.5), (1, 32, 32, 3))
    assert sum(path.endswith("mean") for path, _ in seeded.leaves(variables["batch_stats"])) == norms
    assert len(pairs) == count


def test_a_folded_program_has_no_norm():
    model, _ = NETWORKS["basic"]
    variables, x, pairs = made(model)
    assert "rsqrt" not in jax.jit(partial(folded, model)).lower(variables, pairs, x).as_text()
    assert "rsqrt" in jax.jit(partial(run, model)).lower(variables, x).as_text()


@pytest.mark.parametrize("kernels", thorough_except(("auto", "xla", "plain"), "auto"))
def test_gradients_are_those_of_the_network(kernels):
    model, _ = NETWORKS["standard stem"]
    variables, x, pairs = made(model)

    def score(network, *arguments):
        return jnp.sum(network(*arguments) * seeded.normal("score", (SHAPE[0], 10)))

    with ops.cpu_kernels(kernels):
        expected = jax.jit(jax.grad(partial(score, partial(run, model)), 1))(variables, x)
        found = jax.jit(jax.grad(partial(score, partial(folded, model)), 2))(variables, pairs, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()) + 1e-7)


def test_the_variables_of_folded_layers_are_not_needed():
    model, _ = NETWORKS["basic"]
    variables, _, pairs = made(model)
    others = unfolded_part(variables, pairs)
    assert {path for path, _ in seeded.leaves(others)} == {"params/head/kernel", "params/head/bias"}
    model, _ = NETWORKS["pre-activation"]
    variables, _, pairs = made(model)
    left = {path.rsplit("/", 1)[0] for path, _ in seeded.leaves(unfolded_part(variables, pairs)["batch_stats"])}
    assert left == {"bn", "stage1/block1/bn1", "stage2/block1/bn1", "stage2/block2/bn1"}


def test_bfloat16_is_nearer_to_float32_than_the_unfolded_network():
    """The unfolded network also rounds between a convolution and its norm."""
    exact, _ = NETWORKS["grouped"]
    model = exact.clone(dtype=jnp.bfloat16)
    variables, x, pairs = made(model, (64, 12, 14, 3))
    assert len(pairs) == 11
    expected = jax.jit(partial(run, exact))(variables, x)
    unfolded = jax.jit(partial(run, model))(variables, x)
    found = jax.jit(partial(folded, model))(variables, pairs, x)
    assert jnp.square(found - expected).mean() < jnp.square(unfolded - expected).mean()
    np.testing.assert_allclose(found, expected, atol=0.03)


class Own(nn.Module):
    """A network of a user, of the package's layers. `form` says how it uses them."""

    form: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        dtype = jnp.bfloat16 if self.form == "other dtype" else jnp.float32
        norm = BatchNorm(use_running_average=not train, relu=True, dtype=dtype, name="norm")
        conv = Conv(8, (3, 3), padding=1, name="conv")
        y = conv(x)
        if self.form == "read twice":
            return (norm(y) + y).mean((1, 2))
        if self.form == "read by a branch":
            return (norm(y) + jax.lax.cond(x.sum() > 0, lambda: y, lambda: 2 * y)).mean((1, 2))
        if self.form == "shared norm":
            return (norm(y) + norm(Conv(8, (1, 1), name="other")(x))).mean((1, 2))
        if self.form == "shared convolution":
            return (norm(y) + conv(2 * x)).mean((1, 2))
        if self.form == "something between":
            return norm(2 * y).mean((1, 2))
        if self.form == "residual by position":
            return norm(y, jnp.ones_like(y)).mean((1, 2))
        return norm(y).mean((1, 2))


class Tied(nn.Module):
    """A network that reads the kernel of a convolution itself too."""

    def setup(self):
        self.conv, self.norm = Conv(8, (3, 3), padding=1), BatchNorm(use_running_average=True)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = self.norm(self.conv(x))
        return y.mean((1, 2)) + self.conv.variables["params"]["kernel"].sum((0, 1, 2))


class Mapped(nn.Module):
    """A network whose layers read a function of their variables."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def double(variables):
            return jax.tree.map(lambda leaf: 2 * leaf, variables)

        mapped = nn.map_variables(Own, "params", trans_in_fn=double, init=self.is_initializing())
        return mapped("plain", name="own")(x, train)


class Copies(nn.Module):
    """Two networks with variables of their own, by nn.vmap."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        options: Any = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        options |= {"in_axes": (None, None), "axis_size": 2}
        copies = nn.vmap(Own, **options)
        return copies("plain", name="own")(x, train).sum(0)


class Trained(nn.Module):
    """A network whose norm uses the statistics of the batch, in evaluation mode too."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = Conv(8, (3, 3), padding=1, name="conv")(x)
        return BatchNorm(use_running_average=False, name="norm")(y).mean((1, 2))


class Penalised(nn.Module):
    """It reads the kernel of a layer: with all other variables, or by its name."""

    by_name: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = Conv(10, (3, 3), padding=1)
        y = BatchNorm(use_running_average=not train)(conv(x)).mean((1, 2))
        if self.is_initializing():
            return y
        kernel = cast(Any, conv.get_variable("params", "kernel"))
        leaves = [kernel] if self.by_name else jax.tree.leaves(dict(self.variables["params"]))
        return y + sum(jnp.sum(leaf**2) for leaf in leaves) * jnp.arange(10)


class Keywords(nn.Module):
    """It calls a layer by keyword."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = Conv(10, (3, 3), padding=1)(x=x)
        return BatchNorm(use_running_average=not train)(y).mean((1, 2))


OWN: dict[str, tuple[nn.Module, int]] = {
    "all variables": (Penalised(by_name=False), 0),
    "a kernel by its name": (Penalised(by_name=True), 0),
    "keywords": (Keywords(), 0),
    "plain": (Own("plain"), 1),
    "residual by position": (Own("residual by position"), 1),
    **{
        form: (Own(form), 0)
        for form in ("read twice", "read by a branch", "shared convolution", "something between", "other dtype")
    },
    "shared norm": (Own("shared norm"), 0),
    "tied": (Tied(), 0),
    "map_variables": (Mapped(), 0),
    "vmap": (Copies(), 0),
    "remat": (ResNet(((1, 8), (1, 16)), stem="small", stem_channels=8, remat=True), 1),
}


@pytest.mark.parametrize("name", OWN)
def test_own_networks(name):
    """What is no pair stays as it is, so that each network returns the same."""
    model, count = OWN[name]
    variables, x, pairs = made(model)
    assert len(pairs) == count
    expected = jax.jit(partial(run, model))(variables, x)
    np.testing.assert_allclose(jax.jit(partial(folded, model))(variables, pairs, x), expected, rtol=0, atol=TOLERANCE)


def test_statistics_of_the_batch_are_not_folded():
    x, model = seeded.normal("folding", SHAPE), Trained()
    variables = flax_side.variables(model, SHAPE)
    assert not fold(lambda held, x: flax_side.apply(model, held, x, mutable=["batch_stats"])[0], variables, x)


def test_a_bias_that_the_convolution_does_not_use():
    model = ResNet(((1, 8),), stem="small", stem_channels=8, conv=partial(Conv, use_bias=False))
    variables = flax_side.variables(model, SHAPE)
    variables["params"]["stem"]["conv"]["bias"] = np.ones(8, np.float32)
    x = seeded.normal("folding", SHAPE)
    pairs = fold(partial(run, model), variables, x)
    assert len(pairs) == 3
    expected = run(model, variables, x)
    np.testing.assert_allclose(folded(model, variables, pairs, x), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("path", [("params", "stem", "conv", "kernel"), ("batch_stats", "stem", "bn", "var")])
def test_nan_stays_nan(path):
    model, _ = NETWORKS["basic"]
    variables, x, _ = made(model)
    tree = variables
    for part in path[:-1]:
        tree = tree[part]
    tree[path[-1]] = np.full_like(tree[path[-1]], np.nan)
    pairs = fold(partial(run, model), variables, x)
    with ops.cpu_kernels("auto"):
        assert np.isnan(jax.jit(partial(folded, model))(variables, pairs, x)).all()
