import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_set import NAMES, assert_same, idx_contents, make_spec, make_splits, write_files

from resnet_jax.data import DATASETS, Splits, load
from resnet_jax.data.catalogue import obtain
from resnet_jax.data.dataset import measure_mean_std
from resnet_jax.data.sources import DownloadError
from resnet_jax.data.split import stratified
from resnet_jax.errors import DataError

SPLITS = make_splits()
CONTENTS = idx_contents(SPLITS)
SPEC = make_spec(CONTENTS)  # its server is a closed port


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A data folder that holds the small data set; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    obtain(SPEC, folder / "data", write_files(folder / "files", CONTENTS), print)
    return folder / "data"


@pytest.fixture
def damaged(prepared, tmp_path) -> tuple[Path, Path]:
    """A copy to damage: the data folder and the prepared folder in it."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "small_raw" / "1.0.0"


def test_prepared_data_come_before_the_download(prepared):
    lines = []
    assert_same(obtain(SPEC, prepared, None, lines.append), SPLITS)
    assert lines == [f"small: 40 training and 10 test images, prepared before, in {prepared}/small_raw/1.0.0"]


def test_the_users_folder_comes_before_prepared_data(prepared, tmp_path):
    """Issue 11, case 13: it was ignored."""
    lines = []
    folder = write_files(tmp_path / "files", CONTENTS)
    assert_same(obtain(SPEC, prepared, folder, lines.append), SPLITS)
    assert lines == [f"small: 40 training and 10 test images from {folder}"]
    (folder / NAMES[2]).unlink()
    with pytest.raises(DataError, match=f"{NAMES[2]} is missing"):
        obtain(SPEC, prepared, folder, print)
    with pytest.raises(DataError, match="/nowhere is not a folder"):
        obtain(SPEC, prepared, Path("/nowhere"), print)


@pytest.mark.parametrize("name", ["cat/1.png", "train/cat/1.JPG"])
@pytest.mark.parametrize("ready", [True, False])
def test_a_folder_of_pictures_is_no_data_set(prepared, tmp_path, name, ready):
    """Issue 11, case 13, for both flags: the line names --data-folder, and nothing is written."""
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.touch()
    mine = tmp_path / "mine"
    with pytest.raises(
        DataError, match=f"ubyte.gz is missing.*; to train on the pictures in it, give --data-folder {mine}"
    ):
        obtain(SPEC, prepared if ready else tmp_path / "data", mine, print)
    with pytest.raises(DataError, match=f"{mine} holds pictures; --data-dir is for .* give --data-folder {mine}"):
        obtain(SPEC, mine, None, print)
    assert sorted(os.listdir(tmp_path)) == ["mine"]
    assert sorted(os.listdir(mine)) == [name.partition("/")[0]]


@pytest.mark.parametrize("given", ["gs://bucket/data", "s3://bucket/data", Path("hdfs://host/data"), "$DATA/x"])
@pytest.mark.parametrize("name", ["data_dir", "source_dir", "TFDS_DATA_DIR"])
def test_a_path_that_is_none(given, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "TFDS_DATA_DIR":
        monkeypatch.setenv(name, str(given))
    with pytest.raises(DataError, match=rf"^{name}.*(is a URL|not expanded)"):
        load("fashion_mnist", **({name: given} if name != "TFDS_DATA_DIR" else {}))
    assert not list(tmp_path.iterdir())


def test_the_users_folder(tmp_path):
    lines = []
    folder = write_files(tmp_path / "files", CONTENTS)
    assert_same(obtain(SPEC, tmp_path / "data", folder, lines.append), SPLITS)
    assert lines == [f"small: 40 training and 10 test images, from {folder}, in {tmp_path}/data/small_raw/1.0.0"]


def test_debians_folder(tmp_path):
    lines = []
    folder = write_files(tmp_path / "debian", CONTENTS, level=1)
    spec = dataclasses.replace(SPEC, debian_dir=str(folder))
    assert_same(obtain(spec, tmp_path / "data", None, lines.append), SPLITS)
    assert f"from {folder}" in lines[0]


def test_the_download(tmp_path, web):
    url, folder = web
    write_files(folder, CONTENTS)
    lines = []
    assert_same(obtain(make_spec(CONTENTS, url), tmp_path / "data", None, lines.append), SPLITS)
    assert f"downloaded from {url}" in lines[0]


def test_a_bad_debian_folder_is_told_and_the_download_tried(tmp_path, web):
    url, folder = web
    write_files(folder, CONTENTS)
    bad = write_files(tmp_path / "debian", CONTENTS)
    (bad / NAMES[0]).unlink()
    lines = []
    spec = dataclasses.replace(make_spec(CONTENTS, url), debian_dir=str(bad))
    assert_same(obtain(spec, tmp_path / "data", None, lines.append), SPLITS)
    assert "is missing" in lines[0]
    assert f"downloaded from {url}" in lines[1]


def test_a_bad_folder_of_the_user_is_an_error_although_the_download_works(tmp_path, web):
    url, folder = web
    write_files(folder, CONTENTS)
    with pytest.raises(DataError, match="is not a folder"):
        obtain(make_spec(CONTENTS, url), tmp_path / "data", tmp_path / "nowhere", print)


def test_a_download_with_another_checksum(tmp_path, web):
    url, folder = web
    write_files(folder, CONTENTS, level=1)
    with pytest.raises(DownloadError, match="another sha256 than TFDS registers"):
        obtain(make_spec(CONTENTS, url), tmp_path / "data", None, print)
    assert not list(tmp_path.glob("data/small_raw/*"))
    write_files(folder, CONTENTS)
    assert_same(obtain(make_spec(CONTENTS, url), tmp_path / "data", None, print), SPLITS)


def test_a_download_whose_later_file_is_not_there(tmp_path, web):
    url, folder = web
    write_files(folder, CONTENTS)
    (folder / NAMES[3]).unlink()
    with pytest.raises(DownloadError, match=r"404.*pass --source-dir"):
        obtain(make_spec(CONTENTS, url), tmp_path / "data", None, print)
    assert not list(tmp_path.glob("data/small_raw/*"))


def test_no_server_and_nothing_written(tmp_path):
    with pytest.raises(DownloadError, match="cannot connect"):
        obtain(SPEC, tmp_path / "data", None, print)
    assert not (tmp_path / "data").exists()


def test_preparing_prints_nothing(tmp_path, capfd):
    obtain(SPEC, tmp_path / "data", write_files(tmp_path / "files", CONTENTS), lambda line: None)
    assert capfd.readouterr() == ("", "")


def test_a_data_folder_that_is_a_file(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match=rf"\(--data-dir\) .*: {tmp_path}/data is not a writable folder"):
        obtain(SPEC, tmp_path / "data", write_files(tmp_path / "files", CONTENTS), print)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_that_is_not_writable(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(DataError, match=r"\(--data-dir\) .*closed is not a writable folder"):
        obtain(SPEC, tmp_path / "closed" / "data", write_files(tmp_path / "files", CONTENTS), print)


def test_a_data_folder_that_cannot_be_made(tmp_path):
    """/proc takes no new folder, not even from root."""
    with pytest.raises(DataError, match=r"/proc.*pass --data-dir"):
        obtain(SPEC, Path("/proc/resnet_jax"), write_files(tmp_path / "files", CONTENTS), print)


def test_a_preparation_that_fails_leaves_nothing_prepared(tmp_path, monkeypatch):
    from resnet_jax.data.builders import RawImages

    folder = write_files(tmp_path / "files", CONTENTS)
    generate = RawImages._generate_examples

    def fail_late(self, arrays):
        yield from list(generate(self, arrays))[:-1]
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(RawImages, "_generate_examples", fail_late)
        with pytest.raises(DataError, match=r"cannot write to the data folder .*disk full"):
            obtain(SPEC, tmp_path / "data", folder, print)
    assert_same(obtain(SPEC, tmp_path / "data", folder, print), SPLITS)


def test_a_preparation_that_was_killed_is_not_taken(damaged, tmp_path):
    """What TFDS leaves of a killed process: a folder incomplete.*, and no final one."""
    data_dir, folder = damaged
    folder.rename(folder.with_name(f"incomplete.ABCDEF_{folder.name}"))
    with pytest.raises(DownloadError):
        obtain(SPEC, data_dir, None, print)
    assert_same(obtain(SPEC, data_dir, write_files(tmp_path / "files", CONTENTS), print), SPLITS)


def test_another_process_that_prepares_first_wins(tmp_path, monkeypatch):
    from resnet_jax.data import builders

    folder = write_files(tmp_path / "files", CONTENTS)
    generate = builders.RawImages._generate_examples

    def overtaken(self, arrays):
        monkeypatch.undo()
        builders.prepare(SPEC, tmp_path / "data", SPLITS)
        yield from generate(self, arrays)

    monkeypatch.setattr(builders.RawImages, "_generate_examples", overtaken)
    assert_same(obtain(SPEC, tmp_path / "data", folder, print), SPLITS)
    assert [path.name for path in (tmp_path / "data" / "small_raw").iterdir()] == ["1.0.0"]


def test_two_processes_at_once(tmp_path):
    write_files(tmp_path / "files", CONTENTS)
    program = (
        "import sys; from pathlib import Path; from small_set import *\n"
        "from resnet_jax.data.catalogue import obtain\n"
        "splits = make_splits(); spec = make_spec(idx_contents(splits))\n"
        "assert_same(obtain(spec, Path(sys.argv[1]), Path(sys.argv[2]), print), splits)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data"), str(tmp_path / "files")]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]


def overwrite(folder: Path, split: str, change) -> None:
    (shard,) = folder.glob(f"*-{split}.array_record-*")
    shard.write_bytes(change(shard.read_bytes()))


def flip(blob: bytes) -> bytes:
    middle = SPLITS.train.images[5].tobytes()[100:120]
    at = blob.index(middle)  # random images do not compress, so their bytes lie in the file as they are
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


def put_test_in_place_of_train(folder: Path) -> None:
    (train,) = folder.glob("*-train.*")
    (test,) = folder.glob("*-test.*")
    train.write_bytes(test.read_bytes())


DAMAGE = {
    "bit flipped": lambda folder: overwrite(folder, "train", flip),
    "truncated": lambda folder: overwrite(folder, "test", lambda blob: blob[: len(blob) // 2]),
    "empty": lambda folder: overwrite(folder, "test", lambda blob: b""),
    "shard missing": lambda folder: [path.unlink() for path in folder.glob("*-test.*")],
    "splits mixed up": put_test_in_place_of_train,
    "no digests": lambda folder: (folder / "metadata.json").unlink(),
    "broken digests": lambda folder: (folder / "metadata.json").write_text("{"),
    "nothing there": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_prepared_data(damaged, case):
    data_dir, folder = damaged
    DAMAGE[case](folder)
    with pytest.raises(DataError, match=rf"{folder} is damaged \(.*\); delete that folder") as caught:
        obtain(SPEC, data_dir, None, print)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_good_data_that_cannot_be_read_just_now_is_not_called_damaged(prepared, monkeypatch, number):
    def refuse(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(
        DataError, match=rf"cannot be read \({os.strerror(number)}\); this does not mean that it is damaged"
    ):
        obtain(SPEC, prepared, None, print)


@pytest.mark.parametrize("error", [MemoryError, ImportError])
def test_errors_that_say_nothing_about_the_data_pass(prepared, monkeypatch, error):
    def refuse(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(error):
        obtain(SPEC, prepared, None, print)


@pytest.mark.parametrize("known", [True, False], ids=["digests of the table", "digests recorded"])
def test_whole_records_of_another_data_set_are_found_by_digest(tmp_path, known):
    """Records that array_record finds whole, but not those that belong there."""
    spec = SPEC if known else dataclasses.replace(SPEC, digests=None)
    other = make_splits()
    other.train.images[3, 2, 1] ^= 1
    contents = idx_contents(other)
    obtain(SPEC, tmp_path / "data", write_files(tmp_path / "files", CONTENTS), print)
    obtain(make_spec(contents), tmp_path / "other", write_files(tmp_path / "files", contents), print)
    (shard,) = (tmp_path / "other").glob("small_raw/*/*-train.*")
    shutil.copy(shard, tmp_path / "data" / "small_raw" / "1.0.0")
    with pytest.raises(DataError, match="sha256"):
        obtain(spec, tmp_path / "data", None, print)


def test_the_stock_reader_of_tfds_reads_it(prepared):
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(prepared / "small_raw" / "1.0.0")
    assert builder.info.features["label"].names == list(SPEC.class_names)
    rows = builder.as_data_source("train")
    np.testing.assert_array_equal([row["image"] for row in rows], SPLITS.train.images)
    np.testing.assert_array_equal([row["label"] for row in rows], SPLITS.train.labels)


def test_reading_prepared_data_does_not_import_tensorflow(prepared):
    program = (
        "import sys; from pathlib import Path; from small_set import *\n"
        "from resnet_jax.data.catalogue import obtain\n"
        "obtain(make_spec(idx_contents(make_splits())), Path(sys.argv[1]), None, print)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program, str(prepared)], env=environment, check=True)


def test_an_unknown_name():
    with pytest.raises(DataError, match="did you mean fashion_mnist"):
        load("fashion-mnist")


@pytest.mark.parametrize("variable", [True, False], ids=["TFDS_DATA_DIR", "home"])
def test_the_default_folder_is_that_of_tfds(prepared, tmp_path, monkeypatch, variable):
    monkeypatch.setitem(DATASETS, "small", SPEC)
    default = tmp_path / ("elsewhere" if variable else "home/tensorflow_datasets")
    if variable:
        monkeypatch.setenv("TFDS_DATA_DIR", str(default))
    shutil.copytree(prepared, default)
    data = load("small", log=lambda line: None)
    assert data.validation is None
    assert data.test is not None
    assert_same(Splits(data.train, data.test), SPLITS)


def test_a_validation_part_is_held_out_in_the_official_order(prepared, monkeypatch):
    monkeypatch.setitem(DATASETS, "small", dataclasses.replace(SPEC, mean_std=(0.25, 0.5)))
    data = load("small", 10, 3, data_dir=prepared, log=lambda line: None)
    assert data.class_counts() == {"train": (3,) * 10, "validation": (1,) * 10, "test": (1,) * 10}
    assert (data.name, data.class_names, data.mean, data.std) == ("small", tuple("abcdefghij"), (0.25,), (0.5,))
    assert data.validation is not None
    rows = stratified(SPLITS.train.labels, SPEC.class_names, validation=10, seed=3)
    np.testing.assert_array_equal(data.validation.images, SPLITS.train.images[rows.validation])
    np.testing.assert_array_equal(data.train.images, SPLITS.train.images[rows.train])
    with pytest.raises(DataError, match=r"validation 40: give a share .* from 1 to 39"):
        load("small", 40, data_dir=prepared)


@pytest.mark.real_data
@pytest.mark.skipif(not os.path.isdir("/usr/share/datasets/fashion-mnist"), reason="needs dataset-fashion-mnist")
def test_the_real_fashion_mnist(tmp_path):
    data = load("fashion_mnist", data_dir=tmp_path)
    train, test = data.train, data.test
    assert test is not None
    assert (train.images.shape, test.images.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert np.bincount(train.labels).tolist() == [6_000] * 10
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    spec = DATASETS["fashion_mnist"]
    measured = train.images.mean() / 255, float(train.images.std()) / 255
    assert tuple(round(value, 6) for value in measured) == spec.mean_std
    assert (data.mean, data.std) == ((0.286041,), (0.353024,))
    (mean,), (std,) = measure_mean_std(train.images)
    assert (round(mean, 6), round(std, 6)) == spec.mean_std
    part = load("fashion_mnist", 6000, data_dir=tmp_path).validation
    assert part is not None
    assert np.bincount(part.labels).tolist() == [600] * 10


@pytest.mark.parametrize("name", ["data_dir", "source_dir"])
def test_an_empty_path_is_refused(name):
    """Only None stands for the default."""
    with pytest.raises(DataError, match=rf"^{name} \(--{name.replace('_', '-')}\) '' is empty; give a path"):
        load("fashion_mnist", **{name: ""})  # pyright: ignore[reportArgumentType]
