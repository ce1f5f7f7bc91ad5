"""Networks of every block on the oneDNN kernels against XLA's: outputs, statistics and gradients, float32.

tests/ops holds the operations to XLA's one by one; here they have the shapes, strides and groups that blocks give
them. The networks are small, so that no ReLU flips on rounding.
"""

import dataclasses
import re

import flax_side
import jax
import numpy as np
import pytest
import seeded
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import create_model, ops
from resnet_jax.models.registry import Arch

pytestmark = pytest.mark.skipif(not ops.native_available(), reason="the oneDNN kernels are not built")

TOLERANCE = 1e-4  # of the largest value of an array, or of 1
PLAIN = Arch("plain", ((1, 16), (2, 32), (1, 32)), stem="small", stem_channels=16)
NETWORKS = {
    "residual": PLAIN,
    "resnext": dataclasses.replace(PLAIN, block="resnext", group_width=8),
    "basic": dataclasses.replace(PLAIN, block="basic"),
    "padded": dataclasses.replace(PLAIN, block="basic", pad_shortcut=True, stages=((1, 16), (2, 32), (1, 40))),
    "bottleneck": dataclasses.replace(PLAIN, block="bottleneck", bot_mul=0.25),
    "grouped": dataclasses.replace(PLAIN, block="bottleneck", bot_mul=0.5, groups=4),
    "preact": dataclasses.replace(PLAIN, block="preact"),
}
OPTIONS = {"plain": {}, "squeezed": {"squeeze_excitation": True}, "standard": {"stem": "standard"}}


@pytest.mark.parametrize(
    ("name", "options"),
    thorough_except(
        [
            *((name, "plain") for name in NETWORKS),
            *((name, o) for name in ("residual", "grouped") for o in OPTIONS if o != "plain"),
        ],
        ("residual", "standard"),
        ("grouped", "plain"),
        ("preact", "plain"),
    ),
)
def test_onednns_numbers_are_xlas(name, options):
    model = create_model(NETWORKS[name], **OPTIONS[options])
    side = 32 if options == "standard" else 12  # 8, 4 and 2 pixels wide in the stages, or 12, 6 and 3
    case = (f"{name} {options}", (4, side, side, 3), (4, 10), "train")
    theirs = flax_side.answer(model, *case)
    with ops.cpu_kernels("onednn"):
        ours = flax_side.answer(model, *case)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        atol = TOLERANCE * max(1, np.abs(value).max())
        np.testing.assert_allclose(ours[key], value, rtol=0, atol=atol, err_msg=key)


def test_they_are_run():
    model, x = create_model(NETWORKS["grouped"]), seeded.normal("x", (1, 12, 12, 3))
    run = jax.jit(flax_side.answer_function(model, "train"))
    with ops.cpu_kernels("onednn"):
        text = run.lower(flax_side.variables(model, x.shape), x, jnp.ones((1, 10))).as_text()
    called = set(re.findall(r"@resnet_jax_(\w+)", text))
    assert {"conv_forward", "conv_backward_data", "conv_backward_weights"} <= called
