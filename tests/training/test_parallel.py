"""What crosses devices: the sums of the forms for CPUs and GPUs against numpy's, on 8 fake devices."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from resnet_jax.training import parallel
from resnet_jax.training.parallel import AXIS, buckets, group_of

LEAVES = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["float32", "int32", "bfloat16"])), max_size=12)


@settings(deadline=None, max_examples=50)
@given(leaves=LEAVES, limit=st.integers(1, 300))
def test_buckets_are_of_one_type_and_as_full_as_the_limit_lets_them(leaves, limit):
    leaves = [jnp.zeros(size, dtype) for size, dtype in leaves]
    groups = [[leaves[place] for place in places] for places in buckets(leaves, limit)]
    assert sorted(place for places in buckets(leaves, limit) for place in places) == list(range(len(leaves)))
    for group in groups:
        assert len({leaf.dtype for leaf in group}) == 1
        assert len(group) == 1 or sum(leaf.nbytes for leaf in group) <= limit
    for group, following in pairwise(groups):
        if group[0].dtype == following[0].dtype:
            assert sum(leaf.nbytes for leaf in [*group, *following]) > limit


def share(tree):
    return group_of(tree).sum(tree)


def by_pmap(tree):
    return jax.pmap(share, AXIS, out_axes=None)(tree)


def by_shard_map(tree):
    whole, split = PartitionSpec(), PartitionSpec("d")
    mapped = jax.shard_map(share, mesh=Mesh(jax.devices(), "d"), in_specs=split, out_specs=whole)
    return jax.tree.map(lambda row: row[0], mapped(tree))


@pytest.mark.parametrize("limit", [1, 600, parallel.BUCKET])
@pytest.mark.parametrize("mapped", [by_pmap, by_shard_map])
@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_sums_over_8_devices(platform, mapped, limit, monkeypatch):
    """Whole numbers, whose sums are exact. Each form has the sums, shapes and types of numpy."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **forms: forms[platform](*args))
    monkeypatch.setattr(parallel, "BUCKET", limit)
    shapes = {"kernel": (3, 3, 2, 8), "bias": (8,), "empty": (0,), "count": (5,), "half": (4, 2)}
    types = {"count": np.int32, "half": jnp.bfloat16}
    rng = np.random.default_rng(0)
    tree = {k: rng.integers(-9, 9, (8, *shape)).astype(types.get(k, np.float32)) for k, shape in shapes.items()}
    found = mapped(tree)
    for name, leaf in tree.items():
        assert found[name].dtype == leaf.dtype
        np.testing.assert_array_equal(found[name], leaf.sum(0))


@pytest.mark.parametrize(("platform", "count"), [("cuda", 2), ("tpu", 4), ("cpu", 4)])
def test_the_number_of_all_reduces(platform, count):
    """On a GPU one for each bucket, here one for each type. On the others one for each array."""
    tree = {"a": jnp.ones((8, 3)), "b": jnp.ones((8, 2, 2)), "c": jnp.ones((8, 1)), "d": jnp.ones((8, 1), jnp.int32)}
    text = jax.jit(by_shard_map).trace(tree).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.all_reduce") == count
