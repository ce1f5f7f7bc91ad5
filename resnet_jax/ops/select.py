"""The choice of implementation: oneDNN, XLA's fast forms for a CPU or for a GPU and TPU, or the plain operations."""

import contextlib
import ctypes
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.cores import cpu_count
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.ops.varying import vary_alike
from resnet_jax.ops.winograd import AVX2

log = logging.getLogger(__name__)

AVX512, AVX512_BF16, AMX = 0x27, 0xE7, 0xFEF  # dnnl_cpu_isa_avx512_core, ..._core_bf16 and ..._core_amx
CHOICES = ("auto", "xla", "onednn", "plain")
_chosen = "auto"


@functools.cache
def native_problem() -> str | None:
    """The reason why the native kernels do not work on this machine, in one line; None if they work."""
    try:
        import resnet_jax_onednn
    except ImportError as error:
        return f"resnet_jax_onednn is not installed ({error}); build it with: make native"
    if "resnet_jax_conv_inference" not in getattr(resnet_jax_onednn, "TARGETS", ()):
        return "resnet_jax_onednn is of an older version; rebuild it with: make native"
    try:
        resnet_jax_onednn.register()
        resnet_jax_onednn.limit_threads(cpu_count())
    except resnet_jax_onednn.LoadError as error:
        return f"resnet_jax_onednn does not load ({error}); rebuild it with: make native"
    return None


@functools.cache
def _onednn_isa() -> int:
    """The bits of the instruction sets that oneDNN uses: those of the CPU, up to ONEDNN_MAX_CPU_ISA. 0: unknown."""
    if native_problem() is not None:
        return 0
    try:
        return ctypes.CDLL("libdnnl.so.3").dnnl_get_effective_cpu_isa()  # loaded already; dnnl_types.h has the values
    except (OSError, AttributeError):
        return 0  # a build that cannot be asked


def _has(isa: int) -> bool:
    return _onednn_isa() & isa == isa


def native_bfloat16() -> str:
    """How oneDNN computes convolutions in bfloat16 here: "fast", "slow" (in float32 inside), or "" if it has none."""
    return "fast" if _has(AVX512_BF16) else "slow" if _has(AVX512) else ""


@functools.cache
def simd_level() -> int:
    """The level of x86-64 that the native kernels use here: 2 (SSE4), 3 (AVX2) or 4 (AVX-512); 0 without them.

    The environment variable ONEDNN_MAX_CPU_ISA limits it.
    """
    if native_problem() is not None:
        return 0
    import resnet_jax_onednn

    return resnet_jax_onednn.level()


def native_available() -> bool:
    """Whether the oneDNN kernels are installed and loadable."""
    return native_problem() is None


def use_cpu_kernels(choice: str) -> None:
    """Choose the implementation for programs that are traced from now on.

    choice: one of
        "auto"    the native kernels if they load; else "xla", after one warning in the log. Convolutions that are
                  faster in Winograd's form take it (see ops/winograd.py)
        "onednn"  the native kernels, but all convolutions are oneDNN's; raises ConfigError if they do not load
        "xla"     XLA, in forms that it compiles to fast code for a CPU
        "plain"   XLA's own operations, on every platform. They are slower on a CPU. JAX can differentiate
                  them in forward mode and any number of times; the others support jax.grad and jax.vjp only.

    The first three make no difference on GPU and TPU, which run the forms of xla_gpu_tpu.py. Functions that are
    already compiled keep their implementation: call jax.jit again for a new one.
    """
    global _chosen
    if choice not in CHOICES:
        raise ConfigError(unknown("choice of CPU kernels", choice, CHOICES))
    if choice == "onednn" and (problem := native_problem()):
        raise ConfigError(f"CPU kernels 'onednn': {problem}, or use 'auto'")
    _chosen = choice


@contextlib.contextmanager
def cpu_kernels(choice: str) -> Iterator[None]:
    """`use_cpu_kernels(choice)` for the programs that are traced inside the with block."""
    before = _chosen
    use_cpu_kernels(choice)
    try:
        yield
    finally:
        use_cpu_kernels(before)


@functools.cache
def _say_once(problem: str) -> None:
    log.warning("CPU kernels: XLA%s", problem)


def native_chosen() -> bool:
    """Whether a program traced now uses the native kernels on the CPU."""
    if _chosen in ("xla", "plain"):
        return False
    problem = native_problem()
    if problem is not None and jax.default_backend() == "cpu":
        _say_once(f", as {problem}")
    return problem is None


def winograd_chosen(dtype: Any) -> bool:
    """Whether a program traced now may use Winograd's form of a convolution on the CPU.

    Its arithmetic is float32. So for bfloat16 a CPU with AMX, which multiplies bfloat16 much faster, keeps oneDNN's.
    """
    if _chosen != "auto" or not native_chosen() or simd_level() < AVX2:
        return False
    return dtype == jnp.float32 or (dtype == jnp.bfloat16 and not _has(AMX))


def native_convolves(dtype: Any) -> bool:
    """Whether oneDNN has a convolution of that dtype; a warning in the log says once that it has none for bfloat16."""
    if dtype != jnp.bfloat16 or native_bfloat16():
        return True
    if native_chosen() and jax.default_backend() == "cpu":
        _say_once(" for bfloat16 convolutions, as oneDNN has none on this CPU")
    return False


def by_platform(
    native: Callable | None, xla_cpu: Callable, accelerator: Callable, plain: Callable, x: jax.Array, *others: Any
) -> Any:
    """Call the implementation for the platform that the program is lowered for.

    native: None if the native kernels do not support the operands. accelerator: for GPU and TPU. float64 always
    takes the plain operations, as the others compute in float32. Lowering for one platform keeps that platform's
    branch only, so nothing is decided at run time.
    """
    operands = vary_alike(x, *others)
    if _chosen == "plain" or x.dtype == jnp.float64:
        return plain(*operands)
    on_cpu = native if native is not None and native_chosen() else xla_cpu
    return jax.lax.platform_dependent(*operands, cpu=on_cpu, default=accelerator)
