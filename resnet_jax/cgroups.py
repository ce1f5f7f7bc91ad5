"""The folders in which Linux keeps the limits of this process's cgroups (version 1 or 2), which containers use."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


class Mount(NamedTuple):
    """A mounted cgroup hierarchy: its folder, the cgroup that the folder shows, and which controllers it has."""

    folder: Path
    shown: str
    version: int
    options: frozenset[str]


def folders(controller: str, root: Path = ROOT) -> Iterator[tuple[Path, int]]:
    """The folders of the process's cgroup and of those above it, and the version of cgroup that each belongs to.

    controller: cpu or memory. Version 1 has a hierarchy for each; a process has one cgroup in each hierarchy.
    root: the folder that holds proc and sys, for tests.
    """
    mounts = [mount for line in lines(root / "proc/self/mountinfo") if (mount := _mount(line, root))]
    for line in lines(root / "proc/self/cgroup"):
        _, names, path = (*line.split(":", 2), "", "")[:3]
        version = 2 if not names else 1
        for mount in mounts:
            if mount.version == version and (version == 2 or controller in mount.options & set(names.split(","))):
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


def lines(path: Path) -> list[str]:
    """The lines of a file of the system; none if it cannot be read, as on other systems than Linux."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
