"""What a run finds on its machine: precision, kernels, the cache of compiled programs."""

import os
from pathlib import Path

import jax
from jax import numpy as jnp

from resnet_jax import ops
from resnet_jax.models.layers import Dtype
from resnet_jax.paths import user_path
from resnet_jax.training.parallel import Device

BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}


def pick_dtype(precision: str, device: Device) -> Dtype:
    """The dtype of activations. "auto" is bfloat16 if the device and its kernels compute in it, else float32."""
    if precision != "auto":
        return jnp.dtype(precision)
    if device.platform == "cpu":  # XLA's kernels on a CPU are slower in bfloat16
        return jnp.dtype(jnp.bfloat16 if ops.native_chosen() and cpu_flags() & BFLOAT16_FLAGS else jnp.float32)
    capability = str(device.compute_capability) if device.platform == "gpu" else ""  # AMD's is a name
    ampere = capability.replace(".", "").isdigit() and float(capability) >= 8.0
    return jnp.dtype(jnp.bfloat16 if device.platform == "tpu" or ampere else jnp.float32)


def cpu_flags() -> set[str]:
    """The instruction sets of the CPU, as Linux reports them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def describe(devices: list[Device], dtype: Dtype) -> str:
    """One line: backend, devices, precision."""
    device = devices[0]
    where = f"{device.platform}: {len(devices)} x {device.device_kind}, {jnp.dtype(dtype).name}"
    if device.platform != "cpu":
        return where
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # Linux has it
    kernels = "oneDNN" if ops.native_chosen() else "XLA"
    return f"{where}, {cores} cores, {kernels} kernels"


def use_compile_cache() -> None:
    """Keep every compiled program on disk for the next run, unless the user has configured a cache."""
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    home = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
    jax.config.update("jax_compilation_cache_dir", str(home / "resnet_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
