import contextlib
import os
from pathlib import Path

from resnet_jax.whole_file import whole_file


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_file_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "a").write_text("old")
    with whole_file(tmp_path / "a") as part:
        part.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert contents(tmp_path) == {"a": "new"}


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """Issue 11, case 26: the second one used to take the first one's unfinished file, and to remove it."""
    with whole_file(tmp_path / "a") as first:
        first.write_text("first")
        with whole_file(tmp_path / "a") as second:
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
    assert contents(tmp_path) == {"a": "first"}


def test_a_users_file_named_part_stays(tmp_path):
    (tmp_path / "a.part").write_text("of the user")
    with whole_file(tmp_path / "a") as part:
        part.write_text("new")
    assert contents(tmp_path) == {"a": "new", "a.part": "of the user"}


def test_after_an_error_the_old_file_is_left_alone(tmp_path):
    (tmp_path / "a").write_text("old")
    with contextlib.suppress(KeyError), whole_file(tmp_path / "a") as part:
        part.write_text("half")
        raise KeyError
    assert contents(tmp_path) == {"a": "old"}


def test_the_mode_is_that_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "a") as part:
            part.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
