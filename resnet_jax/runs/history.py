"""The history of a run, read from metrics.jsonl, which may be damaged."""

import json
from pathlib import Path
from typing import Any

from resnet_jax.errors import CheckpointError
from resnet_jax.runs.rundir import METRICS_FILE


def read_rows(run_dir: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of metrics.jsonl, and the numbers, from 1, of the lines that hold none, such as a torn last line.

    No file: no rows. CheckpointError for a file that the system cannot read.
    """
    path, rows, torn = run_dir / METRICS_FILE, [], []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:  # of JSON or of UTF-8
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn.append(number)
    return rows, torn
