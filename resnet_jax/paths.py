"""Paths that a user gives: user_path reads each of them, check_writable checks those that will be written."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from resnet_jax.errors import ConfigError, UserError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path("gs://b") is gs:/b, so one slash is enough; C:/ is no URL
VARIABLE = re.compile(r"\$(\w+|\{\w+\})(/|$)")


def user_path(given: str | os.PathLike[str], name: str, error: type[UserError] = ConfigError) -> Path:
    """The path that a user means: ~ and ~user are expanded, and file:// is understood.

    name: of the flag or the argument, for messages. Raises `error` for an empty path, a URL of another kind such as
    gs://bucket or s3://bucket, an unknown ~user, a NUL or a line break, and for an object that is no path.
    """
    try:
        text = os.fsdecode(given)
    except TypeError:
        raise error(f"{name} {given!r} is not a path; give text or a pathlib.Path") from None
    if not text.strip():
        raise error(f"{name} {text!r} is empty; give a path")
    if "\0" in text or text.splitlines() != [text]:
        raise error(f"{name} {text!r}: a path cannot hold a NUL or a line break; give another one")
    if VARIABLE.match(text):
        raise error(f"{name} {text}: variables are not expanded here; give the path itself, or begin it with ~")
    if URL.match(text):
        return _of_url(text, name, error)
    if text.startswith("~"):
        return _expanded(text, name, error)
    path = Path(text)
    # ./~ and ./gs: name files; absolute, they mean the same when they are read again
    return path.absolute() if str(path).startswith("~") or _is_special(str(path)) else path


def cache_home() -> Path | None:
    """The folder for caches: $XDG_CACHE_HOME/resnet_jax, or ~/.cache/resnet_jax. None if the home folder is unknown."""
    text = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return None if _with_home(text).startswith("~") else user_path(text, "XDG_CACHE_HOME") / "resnet_jax"


def check_readable(path: Path, name: str, error: type[UserError] = ConfigError) -> None:
    """Raise `error` if the system refuses to look a path up: a loop of links, or a parent without permission.

    A path that does not exist is accepted. name: of the flag or the argument, for messages.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as problem:
        raise error(f"{name} {path}: {problem.strerror}; give another path") from None


def check_writable(path: Path, name: str, error: type[UserError] = ConfigError) -> None:
    """Raise `error` unless a file or a folder can be made at `path`: its nearest existing parent is a writable folder.

    name: of the flag or the argument, for messages. A link without a target on the way raises too. Nothing is made.
    """
    on_the_way = (path, *path.absolute().parents)
    for link in on_the_way:
        if os.path.islink(link) and not os.path.exists(link):
            raise error(
                f"{name} {path}: {link} is a link to {os.readlink(link)}, which does not exist; give another path"
            )
    existing = next(parent for parent in on_the_way if os.path.exists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise error(f"{name} {path}: {existing} is not a writable folder; give another one")


def check_file_writable(path: Path, name: str, error: type[UserError] = ConfigError) -> None:
    """Raise `error` unless a file can be written at `path`, in a folder that exists. Nothing is made."""
    if path.is_dir():
        raise error(f"{name} {path} is a folder; give the path of a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise error(f"{name} {path}: {path.parent} is not a writable folder; make it, or give another path")


def _with_home(text: str) -> str:
    """The text with ~ and ~user expanded; unchanged if that home folder is unknown. An empty HOME names no folder."""
    own = text.partition(os.sep)[0] == "~"
    return text if own and not os.environ.get("HOME", "~").strip() else os.path.expanduser(text)


def _expanded(text: str, name: str, error: type[UserError]) -> Path:
    expanded = _with_home(text)
    if expanded.startswith("~"):
        user = text[1:].partition(os.sep)[0]
        found = f"there is no user {user}" if user else "the home folder is unknown"
        raise error(f"{name} {text}: {found}; give the path without ~")
    return Path(expanded)


def _is_special(text: str) -> bool:
    return bool(URL.match(text) or VARIABLE.match(text))


def _of_url(text: str, name: str, error: type[UserError]) -> Path:
    """The path of a file:// URL of this machine; every other URL raises `error`."""
    scheme, _, rest = text.partition(":")
    scheme, host = scheme.lower(), re.match(r"///|//localhost/|/(?!/)", rest)
    if scheme == "file" and host:
        return user_path("/" + unquote(rest[host.end() :]), name, error)
    raise error(
        f"{name} {text} is a URL: only paths of this machine can be read and written; "
        f"give a local path, or one at which the {scheme}:// storage is mounted"
    )
