"""metrics.jsonl, also if a line of it is torn."""

import pytest

from resnet_jax.errors import CheckpointError
from resnet_jax.runs.history import read_rows
from resnet_jax.runs.rundir import write_rows

ROWS = [{"epoch": 1, "train_loss": 2.5}, {"epoch": 2, "train_loss": 1.5}]


@pytest.mark.parametrize(
    ("tail", "torn"),
    [("", []), ('{"epoch": 3, "tra', [3]), ("[1]\n", [3]), ("\xff\n", [3]), ("\n", [3]), ("x\ny", [3, 4])],
)
def test_torn_lines_are_left_out_and_named(tail, torn, tmp_path):
    write_rows(tmp_path, ROWS)
    with (tmp_path / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write(tail)
    assert read_rows(tmp_path) == (ROWS, torn)


def test_no_file_and_a_folder_in_its_place(tmp_path):
    assert read_rows(tmp_path) == ([], [])
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        read_rows(tmp_path)
