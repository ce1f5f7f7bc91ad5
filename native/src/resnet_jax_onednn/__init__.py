"""The C++ part of resnet_jax.ops: loads the library and registers its operations with XLA.

The import does nothing. `register()` loads the library; if that fails, it raises `LoadError` with the reason
in one line. `limit_threads()` limits the threads of every operation. `level()` names the instruction set of our own
kernels.
"""

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax.ffi

__all__ = ["TARGETS", "LoadError", "level", "limit_threads", "register"]

TARGETS = (
    "resnet_jax_conv_forward",
    "resnet_jax_conv_inference",
    "resnet_jax_conv_backward_data",
    "resnet_jax_conv_backward_weights",
    "resnet_jax_winograd_forward",
    "resnet_jax_winograd_inference",
    "resnet_jax_winograd_backward_data",
    "resnet_jax_winograd_backward_weights",
    "resnet_jax_max_pool",
    "resnet_jax_max_pool_gradient",
    "resnet_jax_bn_moments",
    "resnet_jax_bn_normalise",
    "resnet_jax_bn_gradient_sums",
    "resnet_jax_bn_gradient",
    "resnet_jax_bn_pool",
    "resnet_jax_bn_pool_gradient_sums",
    "resnet_jax_bn_pool_gradient",
)


class LoadError(RuntimeError):
    """The library is installed but does not load; the message gives the reason in one line."""


def _libdnnl() -> Path:
    """oneDNN's library: its wheel puts it under the environment's prefix, outside site-packages."""
    for file in metadata.files("onednn-cpu-gomp") or ():
        if file.name == "libdnnl.so.3":
            return Path(file.locate())
    return Path(sys.prefix, "lib", "libdnnl.so.3")


def library() -> Path:
    """The path of the compiled library."""
    return Path(__file__).with_name("libresnet_jax_onednn.so")


@functools.cache
def _load() -> ctypes.CDLL:
    with _short_waits():
        # Loaded by path first: our library needs "libdnnl.so.3" and then finds it loaded.
        ctypes.CDLL(str(_libdnnl()))
        return ctypes.CDLL(str(library()))


@contextlib.contextmanager
def _short_waits() -> Iterator[None]:
    """A thread of libgomp spins at most 2,000 times for the others before it sleeps, unless the user says otherwise.

    By default it spins for milliseconds, on a core that another program may need. Beside two busy programs on 2 cores
    a step of resnet18 at 28x28 took 421 ms in place of 1210 (n = 1). libgomp reads the variable when it is loaded.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "2000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


@functools.cache
def register() -> None:
    """Load oneDNN and the library, and register every operation for the CPU platform; once per process."""
    try:
        lib = _load()
        for target in TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(lib, target)), platform="cpu")
        lib.resnet_jax_limit_threads.argtypes = [ctypes.c_int]
    except (OSError, AttributeError, metadata.PackageNotFoundError, RuntimeError, ValueError) as error:
        raise LoadError(str(error).replace("\n", " ")) from error


def limit_threads(threads: int) -> None:
    """Use at most so many threads for an operation, from 1. Without a limit it is the affinity of the calling thread.

    The environment variable OMP_NUM_THREADS comes before it. Call register() first.
    """
    _load().resnet_jax_limit_threads(threads)


def level() -> int:
    """The level of x86-64 whose instructions our own kernels use here: 2 (SSE4), 3 (AVX2) or 4 (AVX-512).

    The environment variable ONEDNN_MAX_CPU_ISA limits it, as it limits oneDNN. Call register() first.
    """
    return _load().resnet_jax_level()
