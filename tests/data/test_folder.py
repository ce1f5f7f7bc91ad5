import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import ImageDataset, from_arrays, from_folder, pictures, reading
from resnet_jax.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (36, 6, 5, 3), np.uint8)
LABELS = np.repeat(np.arange(3), 12)
CLASSES = ("ant", "bee", "cat")
A_TENTH = {"train": (8, 10, 10), "validation": (2, 1, 1), "test": (2, 1, 1)}  # 3.6 of 36 are 4


def draw(root: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS, suffix: str = ".png") -> Path:
    """root/CLASS/NN.png, in the order of the arrays."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / CLASSES[label] / f"{i:02}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.squeeze(image)).save(path)
    return root


def read(root: Path, lines: list[str] | None = None, **options) -> ImageDataset:
    return from_folder(root, progress=False, log=[].append if lines is None else lines.append, **options)


def content(data: ImageDataset) -> dict[str, tuple[list, list]]:
    return {part: (arrays.images.tolist(), arrays.labels.tolist()) for part, arrays in data.parts.items()}


@pytest.fixture
def folder(tmp_path) -> Path:
    return draw(tmp_path / "pictures")


@pytest.mark.parametrize("options", [{}, {"validation": 6, "test": 0, "seed": 4}, {"validation": 0, "test": 0.25}])
def test_it_is_from_arrays_of_the_same_pictures(folder, options):
    data = read(folder, **options)
    expected = from_arrays(IMAGES, LABELS, CLASSES, **({"validation": 0.1, "test": 0.1} | options))
    assert data.digest == expected.digest
    assert (data.name, data.class_names, data.image_shape) == ("pictures", CLASSES, (6, 5, 3))
    assert (data.mean, data.std) == (expected.mean, expected.std)


def test_a_tenth_is_held_out_twice_unless_asked(folder):
    assert read(folder).class_counts() == A_TENTH
    assert read(folder, validation=0, test=0).class_counts() == {"train": (12, 12, 12)}
    assert read(folder, validation=0.5, test=0).class_counts() == {"train": (6, 6, 6), "validation": (6, 6, 6)}


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_the_parts_of_the_folder(tmp_path, name):
    for part, rows in (("train", slice(0, 36)), (name, slice(0, 36, 2)), ("test", slice(1, 36, 3))):
        draw(tmp_path / "pictures" / part, IMAGES[rows], LABELS[rows])
    root = tmp_path / "pictures"
    data = read(root)
    expected = from_arrays(
        IMAGES, LABELS, CLASSES, validation=(IMAGES[::2], LABELS[::2]), test=(IMAGES[1::3], LABELS[1::3])
    )
    assert data.digest == read(root).digest == expected.digest
    assert set(read(root, validation=0).parts) == {"train", "test"}
    with pytest.raises(DataError, match=r"validation 0\.2: .* has a validation folder already; leave out the argument"):
        read(root, validation=0.2)


def test_a_folder_with_some_of_the_parts(tmp_path):
    root = tmp_path / "pictures"
    draw(root / "train")
    assert read(root).class_counts() == A_TENTH
    draw(root / "test")
    assert read(root).class_counts() == {"train": (12, 12, 12), "test": (12, 12, 12)}
    counts = {"train": (9, 9, 9), "validation": (3, 3, 3), "test": (12, 12, 12)}
    assert read(root, validation=0.25).class_counts() == counts


def test_a_class_may_be_called_train(tmp_path):
    root = draw(tmp_path / "pictures")
    for old, new in zip(CLASSES, ("car", "plane", "train"), strict=True):
        (root / old).rename(root / new)
    assert read(root).class_names == ("car", "plane", "train")


def test_what_counts_as_a_picture(tmp_path):
    root = draw(tmp_path / "pictures")
    first = root / "ant" / "00.png"
    (root / "ant" / "inner" / "deep").mkdir(parents=True)
    first.rename(root / "ant" / "inner" / "deep" / "00.PNG")
    Image.fromarray(IMAGES[0]).save(root / "ant" / "00.BMP")
    Image.fromarray(IMAGES[0]).save(root / "ant" / "00.Tiff")
    (root / "ant" / ".hidden.png").write_bytes(b"no picture")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "ant" / "notes.txt").touch()
    (root / "bee" / "README").touch()
    (root / "ant" / "loop").symlink_to(root)
    (root / "README.md").touch()
    Image.fromarray(IMAGES[0]).save(root / "stray.png")
    lines = []
    assert read(root, lines, validation=0, test=0).class_counts() == {"train": (14, 12, 12)}
    assert lines[:2] == [
        f"ignored 2 files in {root} that are not pictures",
        f"ignored 1 pictures in {root} that are in no class folder",
    ]


def test_a_linked_class_folder(tmp_path):
    draw(tmp_path / "elsewhere")
    (tmp_path / "pictures").mkdir()
    for name in CLASSES:
        (tmp_path / "pictures" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert read(tmp_path / "pictures").digest == read(tmp_path / "elsewhere").digest


def test_gray_and_colour(tmp_path):
    gray = draw(tmp_path / "gray", IMAGES[..., :1])
    data = read(gray, validation=0, test=0)
    np.testing.assert_array_equal(data.train.images, IMAGES[..., :1], strict=True)
    np.testing.assert_array_equal(
        read(gray, channels=3, validation=0, test=0).train.images, data.train.images.repeat(3, 3)
    )
    Image.fromarray(IMAGES[0]).save(gray / "ant" / "00.png")
    assert read(gray).image_shape == (6, 5, 3)
    assert read(gray, channels=1).image_shape == (6, 5, 1)


def test_pictures_of_different_sizes_are_brought_to_the_median(tmp_path):
    shapes = [(6, 5), (20, 30), (8, 9)]
    root = tmp_path / "pictures"
    for i, (height, width) in enumerate(shapes * 12):
        (root / CLASSES[i // 12]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (i, 9, 9)).save(root / CLASSES[i // 12] / f"{i:02}.png")
    lines = []
    data = read(root, lines, validation=0, test=0)
    assert data.image_shape == (8, 9, 3)
    assert (data.train.images[..., 0] == np.arange(36).reshape(-1, 1, 1)).all()
    assert lines[0].startswith("the pictures have 3 sizes: each is scaled to cover 8x9 pixels and cropped around")
    assert read(root, image_size=4).image_shape == (4, 4, 3)
    assert read(root, image_size=(4, 7)).image_shape == (4, 7, 3)


def test_the_median_of_large_pictures_is_scaled_down(tmp_path):
    root = tmp_path / "pictures"
    for i in range(6):
        (root / CLASSES[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (896 + i, 448)).save(root / CLASSES[i % 2] / f"{i}.png")
    assert read(root).image_shape == (112, 224, 1)


def test_a_picture_lying_on_its_side_has_the_size_of_the_others(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    Image.fromarray(np.rot90(IMAGES[0]).copy()).save(folder / "ant" / "00.png", exif=exif)
    assert read(folder).digest == from_arrays(IMAGES, LABELS, CLASSES, validation=0.1, test=0.1).digest


def forbid(*args: object, **kwargs: object) -> None:
    raise AssertionError("a picture was decoded")


def test_the_second_start_decodes_nothing(folder, monkeypatch, tmp_path):
    first = read(folder)
    monkeypatch.setattr(reading, "read_pictures", forbid)
    lines = []
    assert read(folder, lines).digest == first.digest
    cache = tmp_path / "home" / ".cache" / "resnet_jax" / "pictures"
    assert f"read from the cache {cache}" in lines[-1]
    # another split needs no decoding either
    assert read(folder, validation=0.5, seed=5).class_counts()["validation"] == (6, 6, 6)


def test_another_way_to_read_a_file_is_not_cached(folder, tmp_path):
    def negative(path: str, size: tuple[int, int], channels: int) -> np.ndarray:
        return 255 - pictures.decode(path, size, channels)

    plain = read(folder, validation=0, test=0, cache_dir=tmp_path / "cache")
    other = read(folder, validation=0, test=0, cache_dir=tmp_path / "cache", decode=negative)
    np.testing.assert_array_equal(other.train.images, 255 - plain.train.images)
    assert read(folder, validation=0, test=0, cache_dir=tmp_path / "cache").digest == plain.digest


@pytest.mark.parametrize("variable", [True, False], ids=["XDG_CACHE_HOME", "cache_dir"])
def test_where_the_cache_is(folder, tmp_path, monkeypatch, variable):
    if variable:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read(folder, **({} if variable else {"cache_dir": tmp_path / "cache"}))
    assert list((tmp_path / "cache").rglob("images.npy"))
    assert not (tmp_path / "home").exists()


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "time": lambda folder: touch(folder / "ant" / "00.png"),
    "size": lambda folder: (folder / "ant" / "00.png").write_bytes((folder / "ant" / "00.png").read_bytes() + b" "),
    "name": lambda folder: (folder / "ant" / "00.png").rename(folder / "ant" / "000.png"),
    "one less": lambda folder: (folder / "ant" / "00.png").unlink(),
    "class": lambda folder: (folder / "ant" / "00.png").rename(folder / "bee" / "00.png"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_folder_is_decoded_again_and_its_old_entry_removed(folder, tmp_path, case):
    read(folder, cache_dir=tmp_path / "cache")
    (old,) = (tmp_path / "cache").glob("*/*")
    CHANGES[case](folder)
    lines = []
    read(folder, lines, cache_dir=tmp_path / "cache")
    assert ", decoded in" in lines[-1]
    (new,) = (tmp_path / "cache").glob("*/*")
    assert new != old


def test_each_size_has_an_entry_of_its_own(folder, tmp_path, monkeypatch):
    expected = [read(folder, image_size=n, cache_dir=tmp_path / "cache").digest for n in (3, 4)]
    assert len(list((tmp_path / "cache").glob("*/*"))) == 2
    monkeypatch.setattr(reading, "read_pictures", forbid)
    assert [read(folder, image_size=n, cache_dir=tmp_path / "cache").digest for n in (3, 4)] == expected


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda entry: (entry / name).write_bytes(change((entry / name).read_bytes()))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": edit("images.npy", lambda blob: blob[:-1] + bytes([blob[-1] ^ 1])),
    "flipped header": edit("images.npy", lambda blob: blob[:30] + bytes([blob[30] ^ 1]) + blob[31:]),
    "truncated": edit("images.npy", lambda blob: blob[:-1]),
    "empty": edit("images.npy", lambda blob: b""),
    "no images": lambda entry: (entry / "images.npy").unlink(),
    "no information": lambda entry: (entry / "entry.json").unlink(),
    "half the information": edit("entry.json", lambda blob: blob[: len(blob) // 2]),
    "other information": edit("entry.json", lambda blob: b"[]"),
    "other pictures": edit("entry.json", lambda blob: blob.replace(b'"unreadable": {', b'"unreadable": {"3": "no"')),
    "a file": lambda entry: [
        (entry / "images.npy").unlink(),
        (entry / "entry.json").unlink(),
        entry.rmdir(),
        entry.touch(),
    ],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_entry_is_reported_and_made_again(folder, tmp_path, monkeypatch, case):
    first = read(folder, cache_dir=tmp_path / "cache", skip_unreadable=True)
    (entry,) = (tmp_path / "cache").glob("*/*")
    DAMAGE[case](entry)
    lines = []
    assert read(folder, lines, cache_dir=tmp_path / "cache", skip_unreadable=True).digest == first.digest
    assert lines[0].startswith(f"the cache {entry} is damaged (")
    assert lines[0].endswith("): the pictures are decoded again")
    monkeypatch.setattr(reading, "read_pictures", forbid)
    assert read(folder, cache_dir=tmp_path / "cache", skip_unreadable=True).digest == first.digest
    assert list((tmp_path / "cache").glob("*/*")) == [entry]


def test_a_cache_that_cannot_be_written_is_reported_only(folder, tmp_path):
    (tmp_path / "file").touch()
    lines = []
    data = read(folder, lines, cache_dir=tmp_path / "file")
    assert data.class_counts() == A_TENTH
    assert lines[0].startswith(f"the decoded pictures are not kept, because {tmp_path}/file/")
    assert lines[0].endswith("cannot be written (Not a directory); cache_dir sets another")


def test_a_write_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        read(folder, lines, cache_dir=tmp_path / "cache")
    assert "(No space left on device)" in lines[0]
    assert not list((tmp_path / "cache").glob("*/*"))


def test_what_a_killed_process_left_is_removed_after_an_hour(folder, tmp_path, monkeypatch):
    read(folder, cache_dir=tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    for name, age in (("part-old", 7200), ("part-new", 0)):
        (place / name).mkdir()
        os.utime(place / name, ns=(0, (place / name).stat().st_mtime_ns - age * 10**9))
    (place / "part-busy").mkdir()  # of another process, which still writes
    (place / "part-busy" / "images.npy").touch()
    os.utime(place / "part-busy", ns=(0, 0))
    touch(folder / "ant" / "00.png")
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a host whose clock is wrong
    read(folder, cache_dir=tmp_path / "cache")
    assert {path.name for path in place.glob("part-*")} == {"part-new", "part-busy"}


def test_two_processes_at_once(folder, tmp_path):
    program = (
        "import sys; from resnet_jax.data import from_folder\n"
        "print(from_folder(sys.argv[1], cache_dir=sys.argv[2], progress=False, log=lambda line: None).digest)"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate()[0].strip() for process in processes}
    assert outputs == {read(folder).digest}
    assert len(list((tmp_path / "cache").glob("*/*"))) == 1


def spoil(folder: Path) -> list[str]:
    """Seven pictures that cannot be read; their names."""
    whole = (folder / "ant" / "00.png").read_bytes()
    (folder / "ant" / "00.png").write_bytes(whole[:-30])  # truncated
    (folder / "ant" / "01.png").write_text("no picture")
    (folder / "ant" / "02.png").write_bytes(b"")
    (folder / "ant" / "03.png").unlink()
    (folder / "ant" / "03.png").symlink_to("nowhere.png")
    flipped = bytearray(whole)
    flipped[50] ^= 255  # the checksum of the pixels is wrong
    (folder / "bee" / "12.png").write_bytes(flipped)
    (folder / "bee" / "13.png").write_bytes(whole[:20])
    (folder / "bee" / "14.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return ["ant/00", "ant/01", "ant/02", "ant/03", "bee/12", "bee/13", "bee/14"]


@pytest.mark.parametrize("options", [{}, {"image_size": (6, 5), "channels": 3}], ids=["headers first", "at once"])
def test_unreadable_pictures_are_an_error_that_names_five_and_counts_all(folder, options):
    names = spoil(folder)
    with pytest.raises(DataError, match=r"7 of 36 pictures in .* cannot be read: ") as caught:
        read(folder, **options)
    text = str(caught.value)
    assert all((f"{name}.png (" in text) == (i < 5) for i, name in enumerate(names))
    assert "ant/01.png (not a picture)" in text
    assert text.endswith("and 2 more; repair or remove them, or pass skip_unreadable=True (--skip-unreadable)")
    assert "\n" not in text


def test_unreadable_pictures_are_skipped_and_reported_on_each_start(folder, monkeypatch):
    names = spoil(folder)
    kept = [i for i in range(36) if not any(name.endswith(f"/{i:02}") for name in names)]
    expected = from_arrays(IMAGES[kept], LABELS[kept], CLASSES, validation=0.1, test=0.1).digest
    for start in ("first", "second"):
        if start == "second":
            monkeypatch.setattr(reading, "read_pictures", forbid)
        lines = []
        assert read(folder, lines, skip_unreadable=True).digest == expected
        assert lines[0].startswith(f"skipped 7 of 36 pictures in {folder} cannot be read: ant/00.png (")
    monkeypatch.undo()


def test_the_cache_of_a_start_that_skipped_is_not_used_by_one_that_does_not(folder, tmp_path):
    spoil(folder)
    read(folder, skip_unreadable=True, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="7 of 36 pictures"):
        read(folder, cache_dir=tmp_path / "cache")


def test_a_class_of_which_no_picture_can_be_read(folder):
    for path in (folder / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class 'bee' has no readable picture in the train part: 12 of 36 pictures"):
        read(folder, skip_unreadable=True)


def test_no_picture_can_be_read(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="36 of 36 pictures"):
        read(folder)


@pytest.mark.parametrize("limit", [20, 10])
def test_pillows_limit_of_pixels_is_kept(folder, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"36 of 36 pictures .*ant/00\.png \(.*30 pixels.*limit of"):
        read(folder)


def test_a_home_sign_is_expanded(tmp_path):
    draw(tmp_path / "home" / "pictures")
    assert read(Path("~/pictures")).name == "pictures"
    assert from_folder("~/pictures", progress=False, log=[].append).name == "pictures"


def test_more_pictures_than_memory(folder):
    with pytest.raises(DataError, match=r"image_size 9000000x9000000: 36 pictures .* need .* GB of memory"):
        read(folder, image_size=9_000_000)


def keep(*names: str) -> Callable[[Path], object]:
    """Hides every class folder but those named."""
    return lambda root: [(root / name).rename(root / f".{name}") for name in CLASSES if name not in names]


def parts(*names: str) -> Callable[[Path], object]:
    return lambda root: [draw(root / name) for name in names] and keep()(root)


def lone(root: Path) -> None:
    keep()(root)
    Image.fromarray(IMAGES[0]).save(root / "a.png")


def different_classes(root: Path) -> None:
    parts("train", "test")(root)
    (root / "test" / "bee").rename(root / "test" / "dog")


BAD: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "empty": (keep(), {}, "pictures holds no class folders; put the pictures in .*pictures/CLASS/"),
    "one class": (keep("ant"), {}, "holds one class only, 'ant'; training needs at least two class folders"),
    "no classes": (lone, {}, "pictures holds 1 pictures but no class folders; put the pictures in"),
    "no pictures": (lambda root: (root / "dog").mkdir(), {}, "the class folder .*/dog holds no pictures; add some"),
    "few pictures": (
        lambda root: [path.unlink() for path in sorted((root / "bee").iterdir())[2:]],
        {},
        r"class 'bee' has 2 images, fewer than the 3 parts of the split \(train, validation, test\)",
    ),
    "no train": (parts("test", "val"), {}, r"has test/ and val/ but no train/; add train/CLASS/"),
    "two val": (parts("train", "val", "valid"), {}, "has val/ and valid/, two folders for validation; remove one"),
    "parts and more": (
        lambda root: [parts("train", "test")(root), (root / "extra").mkdir()],
        {},
        "has train/ and test/ and also extra/; move what is no part out",
    ),
    "other classes": (
        different_classes,
        {},
        "class 'bee' is in .*/train but not in .*/test; every part needs",
    ),
    "validation": (lambda root: None, {"validation": 1.0}, r"validation 1\.0: give a share in \(0, 1\)"),
    "count": (lambda root: None, {"test": 36}, "test 36: give a share .* from 1 to 35"),
    "image_size": (lambda root: None, {"image_size": 0}, r"image_size 0: give a whole number of pixels, or \(height"),
    "three sizes": (lambda root: None, {"image_size": (1, 2, 3)}, r"image_size \(1, 2, 3\): give"),
    "channels": (lambda root: None, {"channels": 2}, r"channels 2: give 1 \(gray\), 3 \(colour\) or None"),
    "workers": (lambda root: None, {"workers": 0}, "workers 0: give a whole number from 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_anything_is_decoded(folder, monkeypatch, case):
    monkeypatch.setattr(reading, "read_pictures", forbid)
    change, options, message = BAD[case]
    change(folder)
    with pytest.raises(DataError, match=message) as caught:
        read(folder, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match=f"folder of pictures {tmp_path}/nowhere does not exist; put the pictures in"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="/file is a file, not a folder"):
        read(tmp_path / "file")


def test_importing_data_imports_neither_jax_nor_pillow_nor_tfds():
    """The parent package is replaced, because this test is about resnet_jax.data alone."""
    program = (
        "import sys, types; package = types.ModuleType('resnet_jax'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['resnet_jax'] = package\n"
        "import resnet_jax.data\n"
        "heavy = {'jax', 'PIL', 'tensorflow_datasets', 'tqdm', 'requests', 'etils'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    package = Path(__file__).parents[2] / "resnet_jax"
    subprocess.run([sys.executable, "-c", program, str(package)], check=True)


def test_the_bar_and_the_lines_go_where_they_should(folder, capfd, monkeypatch):
    monkeypatch.setattr(reading, "BAR_DELAY", 0)
    from_folder(folder)
    out, err = capfd.readouterr()
    assert out.startswith("pictures: 28 training, 4 validation and 4 test images of 6x5x3 in 3 classes, decoded in ")
    assert "decoding pictures" in err
    from_folder(folder, progress=False, log=lambda line: None)
    assert capfd.readouterr() == ("", "")


def test_without_a_home_folder_the_pictures_are_not_kept(folder, monkeypatch):
    """Issue 11, case 18: a user without HOME and without an entry in the system's list of users."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.fspath(path))
    lines: list[str] = []
    expected = read(folder, cache_dir=folder.parent / "cache")
    data = read(folder, lines)
    assert data.digest == expected.digest
    assert any("not kept, because the home folder is unknown" in line for line in lines)
    with pytest.raises(DataError, match="cache_dir ~/cache: the home folder is unknown"):
        read(folder, cache_dir="~/cache")
