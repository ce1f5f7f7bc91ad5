"""user_path: the one function for every path that a user gives."""

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
    return None if os.path.expanduser(text).startswith("~") else user_path(text, "XDG_CACHE_HOME") / "resnet_jax"


def _expanded(text: str, name: str, error: type[UserError]) -> Path:
    expanded = os.path.expanduser(text)
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
