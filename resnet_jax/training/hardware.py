"""What a run runs on: devices, precision, the cache of compiled programs."""

import os
from pathlib import Path

import jax
from jax import numpy as jnp

from resnet_jax import ops
from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import Dtype
from resnet_jax.training.state import Device

BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}
STEPS_PER_DISPATCH = 32  # on accelerators, where a dispatch would otherwise be as long as a small step


def pick_devices(asked: int) -> list[Device]:
    """The first `asked` devices of this process, or all for 0; ConfigError if there are fewer."""
    devices = jax.local_devices()
    if asked > len(devices):
        raise ConfigError(
            f"--devices {asked}: this process has {len(devices)} ({devices[0].device_kind}); "
            f"use --devices {len(devices)} or leave it out"
        )
    return devices[: asked or len(devices)]


def pick_dtype(precision: str, device: Device) -> Dtype:
    """The dtype of activations: what is asked for, or for "auto" bfloat16 where device and kernels compute in it."""
    if precision != "auto":
        return jnp.dtype(precision)
    if device.platform == "cpu":  # XLA's own kernels there are slower in bfloat16
        return jnp.dtype(jnp.bfloat16 if ops.native_chosen() and cpu_flags() & BFLOAT16_FLAGS else jnp.float32)
    capability = str(device.compute_capability) if device.platform == "gpu" else ""  # of AMD's a name, not a number
    ampere = capability.replace(".", "").isdigit() and float(capability) >= 8.0
    return jnp.dtype(jnp.bfloat16 if device.platform == "tpu" or ampere else jnp.float32)


def pick_steps_per_dispatch(asked: int, device: Device) -> int:
    """How many train steps go into one call of the device."""
    return asked or (1 if device.platform == "cpu" else STEPS_PER_DISPATCH)


def cpu_flags() -> set[str]:
    """The instruction sets that Linux says the CPU has."""
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
    """Keep every compiled program on disk, where the next run finds it, unless the user has named a place."""
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "resnet_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
