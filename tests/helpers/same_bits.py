"""Runs whose final weights are frozen, to the bit, and the machines that they are frozen for."""

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from made import final, make_config

from resnet_jax import fit
from resnet_jax.runs.hardware import cpu_flags

FROZEN = Path(__file__).parents[1] / "fixtures" / "frozen_runs.json"

CASES: dict[str, dict[str, Any]] = {
    "one_device": {"devices": 1},
    "two_devices": {},
    "local_statistics": {"sync_batch_norm": False, "devices": 4},
    "flip_alone": {"flip": True, "crop_padding": 0, "normalize": False, "devices": 1},
    "crop_alone": {"flip": False, "crop_padding": 2, "devices": 1},
    "resized": {"image_size": 11, "devices": 1},
    "stochastic_depth": {"stochastic_depth": 0.3, "devices": 2},
    # SGD with a cosine schedule, more than 20 steps
    "quick": {
        "schedule": "cosine",
        "epochs": 7,
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
        "devices": 1,
        "flip": False,
        "crop_padding": 0,
        "normalize": False,
    },
    "grown": {"grow": "2:2", "devices": 2},
    "scanned": {"steps_per_dispatch": 2, "devices": 2},
}


def machine() -> str:
    """What the bits of a float32 sum depend on: instruction sets, cores and versions."""
    flags = " ".join(sorted(flag for flag in cpu_flags() if flag.startswith(("avx", "amx", "fma", "sse"))))
    sets = hashlib.sha256(flags.encode()).hexdigest()[:12]
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
    return f"{platform.machine()} {sets}, {cores} cores, {versions}"


def train(name: str, kernels: str, data_dir: Path, run_dir: Path) -> dict[str, Any]:
    """A run of a case: the digest of its final state, and its losses."""
    fit(make_config(data_dir, run_dir, cpu_kernels=kernels, compile_cache=False, **CASES[name]))
    step, _, digests, _, history = final(run_dir)
    digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return {"step": step, "digest": digest, "history": history}
