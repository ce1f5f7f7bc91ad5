"""The native library: the same bits every time, errors in words, flat memory, and life without it."""

import ctypes.util
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import ops
from resnet_jax.ops import select

native = pytest.importorskip("resnet_jax_onednn")
if not ops.native_available():
    pytest.skip("resnet_jax_onednn does not load", allow_module_level=True)

from test_ops import block, block_operands, values_and_gradients  # noqa: E402

RANDOM = np.random.default_rng(3)
KEPT = {  # kernel, strides and padding of convolutions whose kernels oneDNN keeps in another layout
    "3x3, stride 2": (RANDOM.normal(size=(3, 3, 64, 64)).astype(np.float32) / 9, (2, 2), ((1, 1), (1, 1))),
    "1x1": (RANDOM.normal(size=(1, 1, 64, 64)).astype(np.float32) / 9, (1, 1), ((0, 0), (0, 0))),
}


def text_of(function, *operands) -> str:
    return jax.jit(function).lower(*operands).as_text()


def test_two_runs_are_the_same_to_the_bit():
    operands = block_operands(32)
    with ops.cpu_kernels("onednn"):
        run = jax.jit(partial(values_and_gradients, block))
        first, second = jax.tree.leaves(run(*operands)), jax.tree.leaves(run(*operands))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_kill_switch():
    operands = block_operands()
    with ops.cpu_kernels("xla"):
        assert "resnet_jax_conv" not in text_of(lambda *a: block(*a), *operands)
    with ops.cpu_kernels("onednn"):
        assert "resnet_jax_conv" in text_of(lambda *a: block(*a), *operands)


def test_the_first_layers_input_gradient_is_not_computed():
    x, w, *_ = block_operands()
    with ops.cpu_kernels("onednn"):
        compiled = jax.jit(jax.grad(lambda w: jnp.sum(ops.conv(x, w) ** 2))).lower(w).compile().as_text() or ""
    assert "resnet_jax_conv_backward_weights" in compiled
    assert "resnet_jax_conv_backward_data" not in compiled


def test_an_error_names_operation_and_shapes():
    """A result that fits no convolution of these operands, asked for directly."""
    call = jax.ffi.ffi_call("resnet_jax_conv_forward", jax.ShapeDtypeStruct((1, 9, 9, 8), jnp.float32))
    how = {"strides": np.ones(2, np.int64), "padding": np.zeros(4, np.int64), "groups": np.int64(1)}
    operands = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 8, 8)), jnp.ones((8,))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"convolution\(.*1,4,4,8.*3,3,8,8.*\): oneDNN: "):
        jax.block_until_ready(jax.jit(partial(call, **how))(*operands))


@pytest.mark.parametrize("target", ["conv", "winograd"])
@pytest.mark.parametrize(
    ("bias", "residual", "message"),
    [
        (jnp.ones(15), jnp.ones(0), r"expected a bias \(O,\) of f32, or of no elements"),
        (jnp.ones(16), jnp.ones((1, 4, 4, 8)), "expected a residual like y, or of no elements"),
        (jnp.ones(16), jnp.ones((4, 4, 1, 16)), "expected a residual like y, or of no elements"),
        (jnp.ones(16), jnp.ones((1, 4, 4, 16), jnp.bfloat16), "expected a residual like y, or of no elements"),
    ],
)
def test_what_an_inference_adds_is_checked(target, bias, residual, message):
    """Otherwise the library would read beyond the end of these arrays."""
    if target == "winograd" and not select.winograd_chosen(jnp.float32):
        pytest.skip("needs AVX2")
    how = {"padding": np.ones(4, np.int64), "relu": False}
    how |= {"strides": np.ones(2, np.int64), "groups": np.int64(1)} if target == "conv" else {"tile": np.int64(3)}
    result = jax.ShapeDtypeStruct((1, 4, 4, 16), jnp.float32)
    call = jax.ffi.ffi_call(f"resnet_jax_{target}_inference", result)
    operands = jnp.ones((1, 4, 4, 16)), jnp.ones((3, 3, 16, 16)), bias, residual, jnp.ones(0, jnp.uint32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(jax.jit(partial(call, **how))(*operands))


@pytest.mark.parametrize("name", ["3x3, stride 2", "1x1"])
def test_batches_of_all_sizes_share_a_kept_kernel(name):
    """A digest that names another kernel shows which one is used: the first."""
    kernel, strides, padding = KEPT[name]
    window = {"strides": strides, "padding": padding, "digest": jnp.arange(4, dtype=jnp.uint32) + len(name)}
    call = jax.jit(lambda x, kernel: ops.conv_add_relu(x, kernel, jnp.zeros(64), **window))
    with ops.cpu_kernels("onednn"):
        for count in (1, 2, 8, 32):
            x = jnp.asarray(np.random.default_rng(count).normal(size=(count, 9, 8, 64)), jnp.float32)
            want = ops.conv(x, jnp.asarray(kernel), strides=strides, padding=padding)
            np.testing.assert_allclose(call(x, kernel * count), want, rtol=0, atol=1e-4)


def resident() -> int:
    """KiB of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def test_memory_is_flat():
    """10,000 operations, gradients among them, on buffers large enough for the advice on pages."""
    with ops.cpu_kernels("onednn"):
        run, operands = jax.jit(partial(values_and_gradients, block)), block_operands(32)
        calls = run.lower(*operands).as_text().count("stablehlo.custom_call @resnet_jax")
        assert calls == 9  # convolution 3, batch norm 4, max-pool 2
        held = []
        for _ in range(10):
            for _ in range(-(-1000 // calls)):
                jax.block_until_ready(run(*operands))
            held.append(resident())
    grown = held[-1] - held[5]  # in the second half: at first the allocator takes what it keeps
    assert grown < 8 * 1024, f"grew by {grown / 1024:.1f} MiB"


def python(code: str, **environment: str) -> str:
    """Output of a fresh process, standard error included. It imports the library that this process has imported."""
    found = str(Path(native.__file__).parents[1])
    path = os.pathsep.join([str(Path(__file__).parents[2]), environment.pop("PYTHONPATH", found)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


TRY = """
    import jax, jax.numpy as jnp; from resnet_jax import ops
    y = jax.jit(ops.conv)(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)))
    assert y[0, 0, 0, 0] == 18
    y = jax.jit(ops.max_pool)(y)
    try:
        ops.use_cpu_kernels("onednn")
    except ValueError as error:
        print("refused:", error)
"""


def said(output: str) -> list[str]:
    return [line for line in output.splitlines() if "CPU kernels: XLA" in line]


def test_missing_package_is_one_line_and_the_xla_way():
    output = python("import sys; sys.modules['resnet_jax_onednn'] = None\n" + textwrap.dedent(TRY))
    assert len(said(output)) == 1
    assert "refused: CPU kernels 'onednn': resnet_jax_onednn is not installed" in output


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF\x02\x01\x01" + bytes(57)])
def test_broken_library_is_one_line_and_the_xla_way(tmp_path, content):
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(content)
    code = f"import pathlib, resnet_jax_onednn as n; n.library = lambda: pathlib.Path({str(broken)!r})\n"
    output = python(code + textwrap.dedent(TRY))
    assert len(said(output)) == 1
    assert "does not load" in output
    assert "refused" in output


def test_library_of_another_build_is_one_line_and_the_xla_way():
    """A library that loads but lacks our operations: libc."""
    libc = ctypes.util.find_library("c")
    output = python(f"import resnet_jax_onednn as n; n.library = lambda: {libc!r}\n" + textwrap.dedent(TRY))
    assert len(said(output)) == 1
    assert "does not load" in output


def test_threads_follow_the_affinity():
    """On one CPU the library starts no second thread of its own."""
    code = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import jax, jax.numpy as jnp; from resnet_jax import ops
        with ops.cpu_kernels("onednn"):
            x, w = jnp.ones((8, 24, 24, 64)), jnp.ones((3, 3, 64, 64))
            compiled = jax.jit(ops.conv).lower(x, w).compile()
        jax.jit(lambda x: x + 1)(x).block_until_ready()  # XLA's own threads; ops.conv would come from jax's cache
        before = set(os.listdir("/proc/self/task"))
        compiled(x, w).block_until_ready()
        print("started", len(set(os.listdir("/proc/self/task")) - before))
    """
    assert "started 0" in python(code)


THREADS = """
    import os, sys, threading
    import jax, jax.numpy as jnp, numpy as np; from resnet_jax import ops
    operands = jnp.ones((8, 24, 24, 64)), jnp.ones((3, 3, 64, 64))
    with ops.cpu_kernels("onednn"):
        compiled = jax.jit(ops.conv).lower(*operands).compile()
    def tasks():
        return set(os.listdir("/proc/self/task"))
    def call():
        outputs.append(np.asarray(compiled(*operands)))
        barrier.wait()  # so that all threads live at the same time
    outputs, before = [np.asarray(compiled(*operands))], tasks()
    barrier = threading.Barrier(7)
    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(outputs) < 7:
        pass
    print("team threads", len(tasks() - before) - 6)
    barrier.wait()
    print("equal", all((output == outputs[0]).all() for output in outputs))
"""


def test_all_calling_threads_share_one_team():
    """Issue 11, case 24. Each thread used to start a team of its own."""
    output = python(THREADS)
    assert "team threads 0" in output
    assert "equal True" in output


@pytest.mark.parametrize(
    ("environment", "cores", "threads"), [({}, 1, 0), ({}, 2, 2), ({"OMP_NUM_THREADS": "2"}, 1, 2)]
)
def test_the_quota_limits_the_team_and_the_user_comes_before_it(environment, cores, threads):
    """One core needs no team. Two need the thread that owns the team, and one worker."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    code = f"""
        import os
        from resnet_jax.ops import select
        select.cpu_count = lambda: {cores}
        import jax, jax.numpy as jnp; from resnet_jax import ops
        with ops.cpu_kernels("onednn"):
            x, w = jnp.ones((8, 24, 24, 64)), jnp.ones((3, 3, 64, 64))
            compiled = jax.jit(ops.conv).lower(x, w).compile()
        jax.jit(lambda x: x + 1)(x).block_until_ready()
        before = set(os.listdir("/proc/self/task"))
        compiled(x, w).block_until_ready()
        print("started", len(set(os.listdir("/proc/self/task")) - before))
    """
    assert f"started {threads}" in python(code, **environment)


FULL = """
    import jax, jax.numpy as jnp; from resnet_jax import ops
    x, kernel, bias = jnp.ones((1, 1, 1, 4096)), jnp.ones((1, 1, 4096, 4080)), jnp.zeros(4080)
    run = jax.jit(lambda digest, scale: ops.conv_add_relu(x, kernel * scale, bias, digest=digest)[0, 0, 0, 0] / 4096)
    def uses(digest, scale):
        return int(run(jnp.full(4, digest, jnp.uint32), scale))
    with ops.cpu_kernels("onednn"):
        first = [uses(digest, 1.0) for digest in range(20)]
        again = [uses(digest, 2.0) for digest in range(20)]
        print("kept", again.count(1), "of", first.count(1))
        calls = next(calls for calls in range(1, 300) if uses(100, float(calls)) != calls)
        print("another is kept after", calls, "calls; oldest", uses(0, 3.0), uses(15, 3.0))
"""


def test_a_full_cache_keeps_the_kernels_in_use():
    """1 GiB holds 16 kernels of 63.75 MiB, which a network of 20 such kernels goes on using.

    A kernel takes the place of the oldest one when that one has not been used for 8 x 16 calls.
    """
    output = python(FULL)
    assert "kept 16 of 20" in output
    assert "another is kept after" in output
    assert "oldest 3 1" in output


def test_a_build_of_an_older_version_is_one_line_and_the_xla_way():
    output = python("import resnet_jax_onednn as n; n.TARGETS = n.TARGETS[:1]\n" + textwrap.dedent(TRY))
    assert len(said(output)) == 1
    assert "older version; rebuild it with: make native" in output
