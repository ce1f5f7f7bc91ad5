"""What a run finds on its machine: precision, kernels, the cache of compiled programs."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax import numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from tqdm import tqdm

from resnet_jax import ops
from resnet_jax.cores import cpu_count
from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import Dtype
from resnet_jax.paths import cache_home
from resnet_jax.training.parallel import Device

CACHE_DIR, CACHE_SECONDS = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}


def pick_dtype(precision: str, device: Device) -> Dtype:
    """The dtype of activations. "auto" is bfloat16 if the device and its kernels compute in it, else float32."""
    if precision != "auto":
        return jnp.dtype(precision)
    if device.platform == "cpu":  # XLA's kernels on a CPU are slower in bfloat16
        fast = ops.native_chosen() and cpu_flags() & BFLOAT16_FLAGS and ops.native_bfloat16() == "fast"
        return jnp.dtype(jnp.bfloat16 if fast else jnp.float32)
    capability = str(device.compute_capability) if device.platform == "gpu" else ""  # AMD's is a name
    ampere = capability.replace(".", "").isdigit() and float(capability) >= 8.0
    return jnp.dtype(jnp.bfloat16 if device.platform == "tpu" or ampere else jnp.float32)


def lacks_bfloat16(dtype: Dtype, platform: str) -> bool:
    """Whether oneDNN is chosen, and has no convolution of that dtype on this CPU."""
    return platform == "cpu" and jnp.dtype(dtype) == jnp.bfloat16 and ops.native_chosen() and not ops.native_bfloat16()


def prediction_dtype(dtype: Dtype) -> Dtype:
    """The dtype to predict in, for a network that was trained in `dtype`: float32, with a line, if oneDNN lacks it."""
    if not lacks_bfloat16(dtype, jax.default_backend()):
        return dtype
    tqdm.write("predicting in float32: the run is bfloat16, for which oneDNN has no convolution on this CPU")
    return jnp.dtype(jnp.float32)


def cpu_flags() -> set[str]:
    """The instruction sets of the CPU, as Linux reports them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def cpu_model() -> str:
    """The name of the CPU, as Linux reports it; "" if it does not."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def describe(devices: list[Device], dtype: Dtype) -> str:
    """One line: backend, devices, precision."""
    device = devices[0]
    where = f"{device.platform}: {len(devices)} x {device.device_kind}, {jnp.dtype(dtype).name}"
    if device.platform != "cpu":
        return where
    kernels = "oneDNN kernels" if ops.native_chosen() else "XLA kernels"
    if lacks_bfloat16(dtype, device.platform):
        kernels += ", but convolutions by XLA in float32: oneDNN has none for bfloat16 on this CPU"
    return f"{where}, {cpu_count()} cores, {kernels}"


@contextlib.contextmanager
def compile_cache(wanted: bool = True) -> Iterator[None]:
    """Keep programs that are compiled inside the with block on disk for the next run, in ~/.cache/resnet_jax.

    Afterwards jax's settings are as before. A cache that the user has configured stays as it is. A folder that cannot
    be written to is reported, and nothing is kept.
    """
    folder = cache_folder() if wanted and not jax.config.values[CACHE_DIR] else None
    if folder is None:
        yield
        return
    before = {name: jax.config.values[name] for name in (CACHE_DIR, CACHE_SECONDS)}
    compilation_cache.reset_cache()  # jax opens its cache once: without this, an earlier one would stay in use
    jax.config.update(CACHE_DIR, folder)
    jax.config.update(CACHE_SECONDS, 0.0)
    try:
        yield
    finally:
        if jax.config.values[CACHE_DIR] == folder:  # not if a callback has configured a cache of its own
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def cache_folder() -> str | None:
    """The folder for compiled programs, which is made if it does not exist; None, and a line, if it is not writable."""
    try:
        folder, reason = cache_home(), "the home folder is unknown"
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return str(folder)
            reason = f"{folder} cannot be written to"
    except ConfigError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename} cannot be made ({error.strerror})"
    tqdm.write(f"compiled programs are not kept: {reason}; XDG_CACHE_HOME names another folder for caches")
    return None
