"""What a run runs on: devices, precision, the cache of compiled programs."""

import os
from pathlib import Path

import jax
from jax import numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import Dtype
from resnet_jax.training.state import Device

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
    """The dtype of activations: what is asked for, or for "auto" bfloat16 where the device computes in it."""
    if precision != "auto":
        return jnp.dtype(precision)
    ampere = device.platform == "gpu" and float(device.compute_capability) >= 8.0  # A100 and later
    return jnp.dtype(jnp.bfloat16 if device.platform == "tpu" or ampere else jnp.float32)


def pick_steps_per_dispatch(asked: int, device: Device) -> int:
    """How many train steps go into one call of the device."""
    return asked or (1 if device.platform == "cpu" else STEPS_PER_DISPATCH)


def describe(devices: list[Device], dtype: Dtype) -> str:
    """One line: backend, devices, precision."""
    device = devices[0]
    cores = f", {len(os.sched_getaffinity(0))} cores" if device.platform == "cpu" else ""
    return f"{device.platform}: {len(devices)} x {device.device_kind}{cores}, {jnp.dtype(dtype).name}"


def use_compile_cache() -> None:
    """Keep every compiled program on disk, where the next run finds it."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "resnet_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
