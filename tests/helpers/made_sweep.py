"""A made record of a sweep, as sweep.json holds it."""

from typing import Any

from resnet_jax.runs.sweep_file import with_run

CPU = {"devices": "cpu: 1 x cpu, bfloat16, 2 cores, oneDNN kernels", "cpu": "AMD EPYC 9R14"}


def run_of(seed: int, accuracy: float, seconds: float = 190.0, hardware: dict[str, str] = CPU) -> dict[str, Any]:
    return {"seed": seed, "epochs": 5, "test_accuracy": accuracy, "seconds": seconds, "hardware": hardware}


def record_of(*runs: dict[str, Any], recipe: str = "quick", flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Five epochs of Fashion-MNIST."""
    config = {"epochs": 5, "data": {"dataset": "fashion_mnist"}}
    command = " ".join(["resnet-jax sweep", recipe, f"--seeds {len(runs)}", *flags])
    record = {"recipe": recipe, "flags": list(flags), "command": command, "config": config, "parameters": 11_178_378}
    record |= {"runs": [], "validation_accuracy": None, "test_accuracy": None}
    for run in runs:
        record = with_run(record, run)
    return record
