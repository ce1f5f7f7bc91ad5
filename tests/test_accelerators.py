"""The train step as the compilers of TPUs and GPUs leave it; `make accelerators` runs this where it has them.

AHEAD_OF_TIME names the JSON file that benchmarks/ahead_of_time.py has written; without it everything is compiled anew.
"""

import itertools
import json
import math
import os
from pathlib import Path

import jax
import pytest
from jax import numpy as jnp

from benchmarks import ahead_of_time
from resnet_jax import create_model

pytestmark = pytest.mark.accelerators

COMBINED = {"tpu": math.inf, "gpu": 30 * 2**20}  # bytes up to which XLA makes one all-reduce of several
OURS = [program for program in ahead_of_time.programs() if program.form != "plain"]
PROGRAMS = list(itertools.product(("tpu", "gpu"), OURS))


@pytest.fixture(scope="module")
def facts():
    """(platform, Program) -> the facts of it."""
    kept = os.environ.get("AHEAD_OF_TIME")
    rows = json.loads(Path(kept).read_text()) if kept else ahead_of_time.compile_all()
    fields = ahead_of_time.Program._fields
    return {(f["platform"], ahead_of_time.Program(*(f[field] for field in fields))): f for f in rows}


@pytest.fixture(params=PROGRAMS, ids=lambda p: "-".join(map(str, (p[0], *p[1]))))
def fact(request, facts):
    return facts[request.param]


def parameters(arch):
    """(path, shape) of every parameter of a network."""
    shapes = jax.eval_shape(create_model(arch).init, jax.random.key(0), jnp.zeros((1, 96, 96, 1)))
    leaves = jax.tree.leaves_with_path(shapes["params"])
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape) for path, leaf in leaves]


def num_convolutions(arch):
    return sum(len(shape) == 4 for _, shape in parameters(arch))


def norm_depth(arch):
    """Batch norms one after another: bn4, on the shortcut of a ResNeXt block, stands beside bn3."""
    return sum(path.endswith("scale") and "bn4" not in path for path, _ in parameters(arch))


def test_state_is_donated(fact):
    """What goes out besides the state is the metrics, so all of it is written over what came in."""
    assert fact["state_bytes"] <= fact["alias_bytes"] <= 1.05 * fact["state_bytes"]  # a TPU pads arrays to tiles
    assert fact["output_bytes"] - fact["alias_bytes"] < 4096  # three numbers and the tuple of pointers


def test_gradients_cross_in_one_all_reduce(fact):
    """With the loss and the hits; batch statistics of all chips add one forward and one backward for each norm."""
    gradients = 4 * sum(math.prod(shape) for _, shape in parameters(fact["arch"]))
    expected = max(1, math.ceil(gradients / COMBINED[fact["platform"]]))
    if fact["form"] == "sync":
        expected += 2 * norm_depth(fact["arch"])
    assert len(fact["all_reduces"]) == expected
    assert all(one["in_loop"] == (fact["steps"] > 1) for one in fact["all_reduces"])


def test_nothing_crosses_twice(fact):
    """Each gradient once; of each norm two statistics and, with those of all chips, their gradients; loss and hits."""
    sizes = [(path, math.prod(shape)) for path, shape in parameters(fact["arch"])]
    channels = sum(size for path, size in sizes if path.endswith("scale"))
    expected = sum(size for _, size in sizes) + (4 if fact["form"] == "sync" else 2) * channels + 2
    # a projection's last bias is added to what the other branch's is: in float32 both have the same gradient, sent once
    last = {"resnet18": "conv3/bias", "resnext18": "bn4/bias"}[fact["arch"]]
    twins = sum(size for path, size in sizes if path.endswith(last)) if fact["dtype"] == "float32" else 0
    assert {type_ for one in fact["all_reduces"] for type_ in one["elements"]} == {"f32"}
    assert expected - twins <= sum(one["elements"]["f32"] for one in fact["all_reduces"]) <= expected


def test_every_convolution_has_the_dtype_asked_for(fact):
    """Each has its forward pass, its kernel's gradient and, but for the first, its input's: all on that type."""
    assert sum(fact["convolutions"].values()) == 3 * num_convolutions(fact["arch"]) - 1
    if fact["dtype"] == "bfloat16":
        assert set(fact["convolutions"]) == {"bf16, bf16"}
    elif fact["platform"] == "gpu":  # a TPU's compiler rounds operands where it likes: its units multiply bfloat16
        assert set(fact["convolutions"]) == {"f32, f32"}


def test_nothing_is_float64(fact):
    assert "f32" in fact["types"]
    assert not {"f64", "c128"} & set(fact["types"])


def test_host_takes_no_part(fact):
    assert fact["to_host"] == []
    assert fact["host_bytes"] == 0


def test_flop_are_those_of_the_network(fact):
    """The convolutions' three passes, but for the image's gradient; all the rest is at most a tenth of that."""
    convolutions = convolution_flop(fact["arch"])
    assert convolutions <= fact["flop_as_written"] <= 1.1 * convolutions
    assert fact["flop"] == pytest.approx(fact["flop_as_written"], rel=0.05)


def convolution_flop(arch):
    """FLOP of a chip's convolutions in a step at 96x96: twice the multiplications, without those by padding."""
    strided = {"resnet18": ("conv1", "conv3"), "resnext18": ("conv2", "conv4")}[arch]
    sizes = {"stage1": 24, "stage2": 12, "stage3": 6, "stage4": 3}
    total = 0
    for path, shape in parameters(arch):
        if len(shape) != 4:
            continue
        if path == "stem/conv/kernel":
            size, stride, passes = 48, 2, 2
        else:
            stage, block, conv, _ = path.split("/")
            halving = block == "block1" and stage != "stage1"
            stride = 2 if halving and conv in strided else 1
            before = halving and conv == "conv1" and conv not in strided  # it still has the input's size
            size, passes = sizes[stage] * (2 if before else 1), 3
        total += passes * 2 * taps(size, shape[0], stride) ** 2 * shape[2] * shape[3]
    return total * ahead_of_time.IMAGES_A_CHIP


def taps(size, kernel, stride):
    """Along one axis, the pairs of an output (of `size`) and a pixel under its window."""
    starts = [i * stride - (kernel - 1) // 2 for i in range(size)]
    return sum(0 <= start + tap < size * stride for start in starts for tap in range(kernel))


def test_scan_does_the_work_of_its_steps(facts):
    """The same FLOP, traffic and all-reduces a step as one step alone has."""
    for (platform, program), fact in facts.items():
        one = facts[platform, program._replace(steps=1)]
        assert fact["flop"] == pytest.approx(one["flop"], rel=0.02)
        # a TPU's loop moves less, as the copy of the data set into another layout stays outside
        assert 0.75 * one["bytes_counted"] < fact["bytes_counted"] < 1.05 * one["bytes_counted"]
        assert len(fact["all_reduces"]) == len(one["all_reduces"])


@pytest.mark.parametrize("steps", [1, ahead_of_time.SCAN])
@pytest.mark.parametrize(("platform", "share"), [("tpu", 0.95), ("gpu", 0.8)])
def test_fewer_bytes_than_plain_flax(facts, platform, share, steps):
    """Ours takes its images from a data set, and plain Flax's step does no data work."""
    programs = [ahead_of_time.Program("resnet18", "bfloat16", steps, form) for form in ("sync", "plain")]
    ours, plain = (facts[platform, program]["hbm_bytes"] for program in programs)
    assert ours < share * plain
