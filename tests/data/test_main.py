import pytest
from small_set import NAMES, idx_contents, make_spec, make_splits, write_files

from resnet_jax.data import DATASETS
from resnet_jax.data.__main__ import main

CONTENTS = idx_contents(make_splits())


@pytest.fixture(autouse=True)
def _small_data_set(monkeypatch):
    monkeypatch.setitem(DATASETS, "small", make_spec(CONTENTS))  # its server is a closed port


def test_exit_codes_and_lines(tmp_path, capsys):
    data, files = str(tmp_path / "data"), write_files(tmp_path / "files", CONTENTS)
    assert main(["--dataset", "small", "--data-dir", data]) == 3
    assert "cannot download small" in capsys.readouterr().err
    (files / NAMES[1]).rename(tmp_path / "aside")
    assert main(["--dataset", "small", "--data-dir", data, "--source-dir", str(files)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {files / NAMES[1]} is missing")
    (tmp_path / "aside").rename(files / NAMES[1])
    assert main(["--dataset", "small", "--data-dir", data, "--source-dir", str(files)]) == 0
    assert f"from {files}" in capsys.readouterr().out
    assert main(["--dataset", "small", "--data-dir", data]) == 0
    assert main(["--dataset", "smal"]) == 2
