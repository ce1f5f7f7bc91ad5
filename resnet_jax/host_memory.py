"""The memory of this machine, or the limit of its container (cgroup v1 or v2) if that is smaller."""

from pathlib import Path
from typing import NamedTuple

from resnet_jax import cgroups
from resnet_jax.cgroups import ROOT

LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}  # the file in the folder of a cgroup, by version


class Memory(NamedTuple):
    """Bytes; None if they are unknown. total: of the machine, or the limit of the container if it is smaller."""

    available: int | None
    total: int | None


def memory(root: Path = ROOT) -> Memory:
    """The memory that this process may use. root: the folder that holds proc and sys, for tests."""
    parted = [line.partition(":") for line in cgroups.lines(root / "proc/meminfo")]
    held = {name: int(rest.split()[0]) * 1024 for name, _, rest in parted if rest}
    total, available = held.get("MemTotal"), held.get("MemAvailable")
    limit = memory_limit(root)
    if limit is not None and total is not None and limit < total:
        total, available = limit, None if available is None else min(available, limit)
    return Memory(available, total)


def memory_limit(root: Path = ROOT) -> int | None:
    """The smallest limit, in bytes, of this process's cgroup and those above it; None without a limit."""
    texts = ["".join(cgroups.lines(folder / LIMITS[version])) for folder, version in cgroups.folders("memory", root)]
    return min((int(text) for text in texts if text.isdigit()), default=None)  # "max": no limit
