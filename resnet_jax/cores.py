"""The CPU cores that this process may use: its affinity mask, and the CPU quota of its container (cgroup v1 or v2)."""

import math
import os
from pathlib import Path

from resnet_jax import cgroups
from resnet_jax.cgroups import ROOT

XLA_THREADS = ("PJRT_NPROC", "NPROC")  # the variables that XLA:CPU reads when it starts; the first one set wins


def cpu_count(root: Path = ROOT) -> int:
    """The number of cores that this process may use, at least 1. A quota such as `docker --cpus=1.5` is rounded up.

    root: the folder that holds proc and sys, for tests.
    """
    quota = cpu_quota(root)
    return affinity() if quota is None else max(1, min(affinity(), math.ceil(quota)))


def affinity() -> int:
    """The number of cores in the affinity mask; every core of the machine where the system has no such mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_xla() -> None:
    """Make XLA:CPU start no more threads than cpu_count(); it counts the affinity mask alone.

    It changes an environment variable of this process, so commands call it and the library does not. It has no effect
    after XLA has started. A variable that the user has set is kept.
    """
    if cpu_count() < affinity() and not any(os.environ.get(name) for name in XLA_THREADS):
        os.environ[XLA_THREADS[0]] = str(cpu_count())


def cpu_quota(root: Path = ROOT) -> float | None:
    """The smallest CPU quota, in cores, of this process's cgroup and those above it; None without a quota."""
    quotas = [_quota_in(folder, version) for folder, version in cgroups.folders("cpu", root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_in(folder: Path, version: int) -> float | None:
    """The quota of one cgroup, in cores."""
    if version == 2:
        words = " ".join(cgroups.lines(folder / "cpu.max")).split()  # "200000 100000", or "max 100000"
    else:
        words = [
            *cgroups.lines(folder / "cpu.cfs_quota_us"),
            *cgroups.lines(folder / "cpu.cfs_period_us"),
        ]  # -1: no quota
    if len(words) != 2 or not all(word.isdigit() and int(word) > 0 for word in words):
        return None
    return int(words[0]) / int(words[1])
