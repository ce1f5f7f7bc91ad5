"""Convolutions in Winograd's form against sums in float64, on every instruction set that this machine has."""

import os
import subprocess
import sys
import textwrap
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax import ops
from resnet_jax.ops import native, select, winograd
from resnet_jax.ops.winograd import DIRECT, Tiles

if select.simd_level() < winograd.AVX2:
    pytest.skip("the native kernels are not built, or this CPU has no AVX2", allow_module_level=True)

LIMIT = 2e-5  # the largest error, as a share of the largest value
ROUNDING = 2**-8 + LIMIT  # in bfloat16 only the result is rounded
pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
panels = st.integers(1, 5).map(lambda n: n * winograd.PANEL)


def taps(x, size: tuple[int, ...], padding):
    """The pixels that each tap of a 3x3 kernel sees: (3, 3, N, H', W', C)."""
    padded, (height, width) = np.pad(x, ((0, 0), *padding, (0, 0))), size
    return np.stack([np.stack([padded[:, i : i + height, j : j + width] for j in range(3)]) for i in range(3)])


def exact(padding, x, kernel, bias, dy):
    """y and the gradients of x, kernel and bias for the cotangent dy, in float64."""
    x, kernel, bias, dy = (np.asarray(a, np.float64) for a in (x, kernel, bias, dy))
    seen = taps(x, dy.shape[1:3], padding)
    y = np.einsum("ijnhwc,ijco->nhwo", seen, kernel, optimize=True) + bias
    back = [(2 - low, 2 - high) for low, high in padding]
    dx = np.einsum("ijnhwo,ijco->nhwc", taps(dy, x.shape[1:3], back), kernel[::-1, ::-1], optimize=True)
    return y, dx, np.einsum("ijnhwc,nhwo->ijco", seen, dy, optimize=True), dy.sum((0, 1, 2))


def convolved(padding, tiles, strides, x, kernel, bias) -> jax.Array:
    """A convolution by the native library, each pass with its tiles."""
    return cast(jax.Array, native._conv(strides, padding, 1, tiles, x, kernel, bias))


def computed(padding, tiles, x, kernel, bias, dy):
    """y and the gradients of x, kernel and bias by the native library."""
    y, back = jax.vjp(partial(convolved, padding, tiles, (1, 1)), x, kernel, bias)
    return y, *back(dy)


def operands_for(shape, outputs: int, padding, seed: int = 0):
    random = np.random.default_rng(seed)
    n, height, width, inputs = shape
    out = (n, height + sum(padding[0]) - 2, width + sum(padding[1]) - 2, outputs)
    sizes = (shape, (3, 3, inputs, outputs), (outputs,), out)
    return [jnp.asarray(random.normal(size=size), jnp.float32) for size in sizes]


def in_bfloat16(operands):
    """The same, with images in bfloat16; the weights are float32 in any network."""
    x, kernel, bias, dy = operands
    return [x.astype(jnp.bfloat16), kernel, bias, dy.astype(jnp.bfloat16)]


def check(padding, tiles, operands) -> None:
    found = jax.jit(lambda *a: computed(padding, tiles, *a))(*operands)
    dtypes = [operand.dtype for operand in (operands[0], *operands[:3])]
    for got, want, dtype in zip(found, exact(padding, *operands), dtypes, strict=True):
        assert got.dtype == dtype
        limit = LIMIT if dtype == jnp.float32 else ROUNDING
        np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=limit * np.abs(want).max())


@pytest.mark.parametrize("tile", winograd.SIZES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    images=st.tuples(st.integers(1, 9), st.integers(3, 14), st.integers(3, 14)),
    inputs=panels,
    outputs=panels,
    padding=st.tuples(pads, pads),
)
def test_values_and_gradients(tile, images, inputs, outputs, padding):
    operands = operands_for((*images, inputs), outputs, padding)
    check(padding, Tiles(tile, tile, tile), operands)
    check(padding, Tiles(tile, tile, tile), in_bfloat16(operands))


@pytest.mark.parametrize("tile", winograd.SIZES)
def test_many_tiles_and_many_channels(tile):
    """Several blocks of tiles, also with a last one that is not full, and sums over more channels than one pass has."""
    padding = ((1, 1), (1, 1))
    check(padding, Tiles(tile, tile, tile), operands_for((67, 13, 13, 32), 48, padding))
    check(padding, Tiles(tile, tile, tile), operands_for((9, 6, 6, 528), 304, padding))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    images=st.tuples(st.integers(1, 9), st.integers(4, 14), st.integers(4, 14)),
    inputs=panels,
    outputs=panels,
    padding=st.tuples(pads, pads),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_weight_gradient_by_taps(images, inputs, outputs, padding, window, strides):
    random = np.random.default_rng(0)
    x, kernel, bias = (
        jnp.asarray(random.normal(size=size), jnp.float32)
        for size in ((*images, inputs), (*window, inputs, outputs), (outputs,))
    )

    def gradients(tiles):
        y, back = jax.vjp(partial(convolved, padding, tiles, strides, x), kernel, bias)
        return back(jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.float32))

    for got, want in zip(gradients(Tiles(0, 0, winograd.TAPS)), gradients(DIRECT), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=LIMIT * float(jnp.abs(want).max()))


def test_each_pass_may_have_its_own_form():
    padding = ((1, 1), (0, 2))
    for tiles in (Tiles(4, 0, 3), Tiles(0, 3, winograd.TAPS), DIRECT):
        check(padding, tiles, operands_for((3, 8, 9, 32), 16, padding))


def test_two_runs_are_the_same_to_the_bit():
    padding = ((1, 1), (1, 1))
    operands = operands_for((64, 12, 12, 64), 64, padding)
    run = jax.jit(lambda *a: computed(padding, Tiles(4, 4, 4), *a))
    for first, second in zip(run(*operands), run(*operands), strict=True):
        np.testing.assert_array_equal(first, second)


def test_not_a_number_stays_in_its_tile():
    padding = ((1, 1), (1, 1))
    x, kernel, bias, _ = operands_for((2, 16, 16, 16), 16, padding)
    y = convolved(padding, Tiles(4, 4, 4), (1, 1), x.at[0, 0, 0, 0].set(jnp.nan), kernel, bias)
    assert jnp.isnan(y[0, 0, 0]).all()
    assert jnp.isfinite(y[0, 8:]).all()
    assert jnp.isfinite(y[1]).all()


def form(shape, kernel_shape, choice: str = "auto", dtype=jnp.float32, **how) -> bool:
    """Whether the program of that convolution contains Winograd's form."""
    x, kernel = jnp.zeros(shape, dtype), jnp.zeros(kernel_shape)
    with ops.cpu_kernels(choice):
        return "winograd" in jax.jit(lambda *a: ops.conv(*a, **how)).lower(x, kernel).as_text()


def test_only_the_default_choice_has_the_form():
    images, kernel, padding = (64, 12, 12, 64), (3, 3, 64, 64), ((1, 1), (1, 1))
    assert form(images, kernel, padding=padding)
    assert not form(images, kernel, "onednn", padding=padding)
    assert not form(images, kernel, "xla", padding=padding)


@pytest.mark.parametrize(
    ("images", "kernel", "how"),
    [
        ((64, 12, 12, 64), (3, 3, 64, 64), {"strides": (2, 2)}),
        ((64, 12, 12, 64), (3, 3, 32, 64), {"groups": 2}),
        ((64, 12, 12, 64), (5, 5, 64, 64), {}),
        ((64, 12, 12, 24), (3, 3, 24, 64), {}),
        ((64, 12, 12, 64), (3, 3, 64, 64), {"padding": ((3, 3), (1, 1))}),
    ],
)
def test_the_forward_pass_of_others_is_direct(images, kernel, how):
    assert not form(images, kernel, **how)


TAPS_ONLY = Tiles(0, 0, winograd.TAPS)


@pytest.mark.parametrize(
    ("images", "size", "channels", "strides", "with_avx2", "with_avx512", "with_bfloat16"),
    [
        (128, 24, 64, 1, Tiles(4, 4, 4), Tiles(4, 4, 4), Tiles(4, 4, 4)),
        (128, 6, 256, 1, Tiles(3, 3, 3), Tiles(3, 3, 3), Tiles(0, 0, 3)),
        (128, 28, 16, 1, Tiles(4, 4, 4), Tiles(4, 4, 0), DIRECT),
        (128, 24, 64, 2, TAPS_ONLY, DIRECT, DIRECT),
        (128, 12, 128, 2, TAPS_ONLY, TAPS_ONLY, DIRECT),
        (128, 2, 512, 1, TAPS_ONLY, DIRECT, DIRECT),
        (15, 6, 256, 1, DIRECT, DIRECT, DIRECT),  # 60 tiles
        (1, 24, 64, 1, DIRECT, DIRECT, DIRECT),
        (0, 24, 64, 2, DIRECT, DIRECT, DIRECT),
    ],
)
def test_the_choice_by_shape_and_instruction_set(
    images, size, channels, strides, with_avx2, with_avx512, with_bfloat16
):
    kernel = jnp.zeros((3, 3, channels, channels))
    cases = ((3, jnp.float32, with_avx2), (4, jnp.float32, with_avx512), (4, jnp.bfloat16, with_bfloat16))
    for level, dtype, expected in cases:
        x = jnp.zeros((images, size, size, channels), dtype)
        assert winograd.tiles((strides, strides), ((1, 1), (1, 1)), 1, x, kernel, level) == expected


def test_bfloat16_takes_the_form_except_with_amx(monkeypatch):
    images, kernel, padding = (64, 12, 12, 64), (3, 3, 64, 64), ((1, 1), (1, 1))
    if not select.native_bfloat16():
        pytest.skip("oneDNN has no bfloat16 convolution on this CPU")
    for isa, expected in ((select.AVX512_BF16, True), (select.AMX, False)):
        monkeypatch.setattr(select, "_onednn_isa", lambda isa=isa: isa)
        assert form(images, kernel, dtype=jnp.bfloat16, padding=padding) == expected


@pytest.mark.parametrize(
    ("x", "kernel", "y", "how", "reason"),
    [
        ((2, 4, 4, 16), (3, 3, 16, 16), (3, 4, 4, 16), {}, "N images twice"),
        ((2, 4, 4, 16), (3, 3, 16, 16), (2, 4, 4, 16), {"tile": 1}, "weight gradients only"),
        ((2, 4, 4, 16), (3, 3, 16, 16), (2, 4, 4, 16), {"tile": 2}, "tiles are 1, 3 or 4"),
        ((2, 4, 4, 16), (5, 5, 16, 16), (2, 4, 4, 16), {}, r"\(3, 3, C, O\)"),
        ((2, 4, 4, 16), (3, 3, 16, 16), (2, 4, 4, 16), {"padding": 2}, "4 numbers of padding"),
        ((2, 4, 4, 16), (3, 3, 16, 16), (2, 4, 4, 16), {"bias": 8}, r"bias \(O,\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused(x, kernel, y, how, reason):
    call = jax.ffi.ffi_call("resnet_jax_winograd_forward", jax.ShapeDtypeStruct(y, jnp.float32))
    attributes = {
        "padding": np.ones(how.get("padding", 4), np.int64),
        "tile": np.int64(how.get("tile", 4)),
    }
    operands = jnp.ones(x), jnp.ones(kernel), jnp.ones((how.get("bias", 16),))
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        jax.block_until_ready(jax.jit(lambda *a: call(*a, **attributes))(*operands))


def test_an_error_names_operation_and_shapes():
    call = jax.ffi.ffi_call("resnet_jax_winograd_forward", jax.ShapeDtypeStruct((1, 9, 9, 8), jnp.float32))
    operands = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 8, 8)), jnp.ones((8,))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"Winograd convolution\(.*1,4,4,8.*\): .*multiples of 16"):
        jax.block_until_ready(jax.jit(lambda *a: call(*a, padding=np.zeros(4, np.int64), tile=np.int64(4)))(*operands))


WITH_LEVEL = """
    import jax, numpy as np
    import test_winograd as t
    from resnet_jax.ops import select
    print("level", select.simd_level())
    padding = ((1, 1), (1, 1))
    t.check(padding, t.Tiles(4, 4, 4), t.operands_for((9, 11, 11, 48), 80, padding))
    t.check(padding, t.Tiles(3, 3, 3), t.operands_for((9, 6, 6, 288), 48, padding))
    t.check(padding, t.Tiles(4, 4, 4), t.in_bfloat16(t.operands_for((9, 11, 11, 48), 80, padding)))
"""


def python(code: str, isa: str) -> str:
    here = os.path.dirname(__file__)
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_avx2_on_every_machine():
    assert "level 3" in python(WITH_LEVEL, "AVX2")


def test_a_machine_with_less_convolves_directly():
    code = """
        import jax, jax.numpy as jnp; from resnet_jax import ops; from resnet_jax.ops import select
        x, kernel = jnp.ones((64, 12, 12, 64)), jnp.ones((3, 3, 64, 64))
        print("level", select.simd_level())
        print("winograd", "winograd" in jax.jit(ops.conv).lower(x, kernel).as_text())
        print("sum", float(jax.jit(ops.conv)(x, kernel)[0, 0, 0, 0]))
    """
    output = python(code, "SSE41")
    assert "level 2" in output
    assert "winograd False" in output
    assert "sum 576.0" in output
