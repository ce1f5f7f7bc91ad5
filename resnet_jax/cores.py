"""The CPU cores that this process may use: its affinity mask, and the CPU quota of its container (cgroup v1 or v2)."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
XLA_THREADS = ("PJRT_NPROC", "NPROC")  # the variables that XLA:CPU reads when it starts; the first one set wins


class Mount(NamedTuple):
    """A mounted cgroup hierarchy: its folder, the cgroup that the folder shows, and which controllers it has."""

    folder: Path
    shown: str
    version: int
    options: frozenset[str]


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
    quotas = [_quota_in(folder, version) for folder, version in _cgroup_folders(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _cgroup_folders(root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the process's cgroup and of those above it, and the version of cgroup that each belongs to."""
    mounts = [mount for line in _lines(root / "proc/self/mountinfo") if (mount := _mount(line, root))]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        version = 2 if not controllers else 1
        for mount in mounts:
            if mount.version == version and (version == 2 or "cpu" in mount.options & set(controllers.split(","))):
                inside = _below(path, mount.shown)
                yield from ((folder, version) for folder in _upwards(mount.folder, inside))


def _below(path: str, shown: str) -> str:
    """The part of a cgroup's path below the cgroup that a mount shows; "" if the path lies outside, as in a container
    that sees the host's paths."""
    if ".." in path.split("/"):
        return ""
    shown = shown.rstrip("/")
    return path[len(shown) :].strip("/") if path == shown or path.startswith(shown + "/") else ""


def _upwards(top: Path, inside: str) -> Iterator[Path]:
    """The folder top/inside, and its parents up to top."""
    parts = inside.split("/") if inside else []
    for length in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:length])


def _mount(line: str, root: Path) -> Mount | None:
    """A line of mountinfo, if it mounts cgroups. Source: https://man7.org/linux/man-pages/man5/proc.5.html"""
    first, _, last = line.partition(" - ")
    fields, kinds = first.split(), last.split()
    if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
        return None
    shown, folder = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text) for text in fields[3:5])
    version = 2 if kinds[0] == "cgroup2" else 1
    return Mount(root / folder.lstrip("/"), shown, version, frozenset(kinds[2].split(",")))


def _quota_in(folder: Path, version: int) -> float | None:
    """The quota of one cgroup, in cores."""
    if version == 2:
        words = " ".join(_lines(folder / "cpu.max")).split()  # "200000 100000", or "max 100000"
    else:
        words = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]  # -1: no quota
    if len(words) != 2 or not all(word.isdigit() and int(word) > 0 for word in words):
        return None
    return int(words[0]) / int(words[1])


def _lines(path: Path) -> list[str]:
    """The lines of a file of the system; none if it cannot be read, as on other systems than Linux."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
