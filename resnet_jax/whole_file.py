"""Atomic writing of a file: the file is complete, or it does not exist."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On success it replaces `path`; after an error it is removed.

    Its random name belongs to this call: two processes may write the same file, and a user's own NAME.part stays.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part.touch(exist_ok=False)
    try:
        mode = part.stat().st_mode  # the umask's mode: safetensors creates files that only the owner can read
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
