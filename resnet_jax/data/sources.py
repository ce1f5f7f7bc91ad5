"""Reads the official files into checked arrays, and checks that their server answers. Writes nothing."""

import gzip
import hashlib
import math
import queue
import tarfile
import threading
import zlib
from pathlib import Path

import numpy as np

from resnet_jax.data.dataset import Arrays
from resnet_jax.data.finding import file_names, find_files, is_unpacked
from resnet_jax.data.specs import DATASETS, DatasetSpec, Splits, idx_header, owner_of
from resnet_jax.errors import DataError

IDX_CONTENT = {idx_header((0,))[:4]: "labels", idx_header((0, 0, 0))[:4]: "images"}
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
CIFAR10_TRAIN = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))
CIFAR10_TEST = ("cifar-10-batches-bin/test_batch.bin",)


class DownloadError(DataError):
    """The server cannot be reached, or it sends something else than the data set."""


def read_folder(spec: DatasetSpec, folder: Path) -> Splits:
    """The arrays of the official files that find_files finds in `folder`, after all checks.

    If the digests of the content are known, unpacked files and files compressed again (Debian's) are accepted;
    otherwise only the registered files are. Raises DataError with the file, what was found, what is expected and what
    to do.
    """
    paths = find_files(spec, folder).paths
    if spec.digests is None:
        _check_registered(spec, paths)
    return read_files(spec, paths)


def read_files(spec: DatasetSpec, paths: tuple[Path, ...]) -> Splits:
    """The arrays of `paths`, which are in the order of spec.files. Checks shapes, counts, digests and labels."""
    return _read_idx_files(spec, paths) if spec.layout == "idx" else _read_cifar10(spec, paths[0])


def _wrong(spec: DatasetSpec, path: Path, found: str, expected: str) -> DataError:
    return DataError(f"{path} {found}, expected {expected}; replace it with the file from {spec.url}")


def _check_registered(spec: DatasetSpec, paths: tuple[Path, ...]) -> None:
    for file, path in zip(spec.files, paths, strict=True):
        if is_unpacked(path):
            with path.open("rb") as stream:
                _check_owner(spec, path, hashlib.file_digest(stream, "sha256").hexdigest())
            raise DataError(
                f"{path} cannot be verified: of {spec.name} only the digests of the packed files are known; "
                f"put {file.name} from {spec.url} beside it"
            )
        if (size := path.stat().st_size) != file.size:  # checked first, so that a huge file is not read
            _check_owner(spec, path)
            raise _wrong(spec, path, f"has {size} bytes", f"the official file's {file.size}")
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if sha256 != file.sha256:
            _check_owner(spec, path)
            raise _wrong(spec, path, f"has sha256 {sha256}", f"the official file's {file.sha256}")


def _check_owner(spec: DatasetSpec, path: Path, content_sha256: str = "") -> None:
    """Raises DataError if a digest says that the file belongs to another data set. Large files are not read."""
    owner = owner_of(content_sha256)
    if owner is None and path.stat().st_size in {file.size for other in DATASETS.values() for file in other.files}:
        owner = owner_of(hashlib.sha256(path.read_bytes()).hexdigest())
    if owner not in (None, spec.name):
        raise DataError(
            f"{path} belongs to {owner}, not to {spec.name}; pass --dataset {owner}, or the folder of {spec.name}: "
            f"its files are at {spec.url}"
        )


def _read_idx_files(spec: DatasetSpec, paths: tuple[Path, ...]) -> Splits:
    image = spec.image_shape[:2]
    shapes = ((spec.num_train, *image), (spec.num_train,), (spec.num_test, *image), (spec.num_test,))
    digests = spec.digests or (None,) * 4
    arrays = [_read_idx(spec, *each) for each in zip(paths, shapes, digests, strict=True)]
    for path, labels in ((paths[1], arrays[1]), (paths[3], arrays[3])):
        _check_labels(spec, path, labels)
    return Splits(_split(spec, arrays[0], arrays[1]), _split(spec, arrays[2], arrays[3]))


def _read_idx(spec: DatasetSpec, path: Path, shape: tuple[int, ...], sha256: str | None) -> np.ndarray:
    header = idx_header(shape)
    size = len(header) + math.prod(shape)
    holds = "has" if is_unpacked(path) else "unpacks to"
    content = _content(spec, path, size + 1)  # one byte too many proves the file wrong; the rest is not unpacked
    if content[:4] != header[:4]:
        found = IDX_CONTENT.get(content[:4], "no idx file")
        expected = f"0x{header[:4].hex()} ({IDX_CONTENT[header[:4]]})"
        raise _wrong(spec, path, f"has magic 0x{content[:4].hex()} ({found})", expected)
    if len(content) >= len(header) and content[: len(header)] != header:
        found = tuple(int(n) for n in np.frombuffer(content[4 : len(header)], ">u4"))
        raise _wrong(spec, path, f"holds {_times(found)} {IDX_CONTENT[header[:4]]}", _times(shape))
    if len(content) != size:
        found = f"{holds} {'more than ' if len(content) > size else ''}{min(len(content), size)} bytes"
        raise _wrong(spec, path, found, f"{size}")
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        _check_owner(spec, path, found)
        hint = f" ({spec.digest_hint})" if spec.digest_hint else ""
        raise _wrong(spec, path, f"{holds} sha256 {found}", f"{sha256}{hint}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _content(spec: DatasetSpec, path: Path, limit: int) -> bytes:
    """At most `limit` bytes of the idx file. A file with an unpacked name may be packed all the same."""
    try:
        with path.open("rb") as stream:
            if not is_unpacked(path) or stream.read(len(GZIP)) == GZIP:
                return _gunzip(spec, path, limit)
            stream.seek(0)
            return stream.read(limit)
    except OSError as error:
        raise _wrong(spec, path, f"cannot be read ({error.strerror})", "a readable file") from None


def _gunzip(spec: DatasetSpec, path: Path, limit: int) -> bytes:
    """At most `limit` bytes of the unpacked file. At the end of the file, gzip verifies its checksum."""
    try:
        with gzip.open(path) as stream:
            return stream.read(limit)
    except EOFError:
        raise _wrong(spec, path, "is truncated", "a whole gzip file") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _wrong(spec, path, f"cannot be unpacked ({error})", "a gzip file") from None
    except OSError as error:
        raise _wrong(spec, path, f"cannot be read ({error.strerror})", "a readable file") from None


def _check_labels(spec: DatasetSpec, path: Path, labels: np.ndarray) -> None:
    if (top := int(labels.max())) >= spec.num_classes:
        raise _wrong(spec, path, f"holds label {top}", f"labels from 0 to {spec.num_classes - 1}")


def _split(spec: DatasetSpec, images: np.ndarray, labels: np.ndarray) -> Arrays:
    return Arrays(images.reshape(-1, *spec.image_shape), labels.astype(np.int32))


def _read_cifar10(spec: DatasetSpec, path: Path) -> Splits:
    """Each record is a label byte and 3 x 32 x 32 bytes, channels first.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    try:
        with tarfile.open(path) as archive:
            train = _cifar10_records(spec, path, archive, CIFAR10_TRAIN, spec.num_train)
            test = _cifar10_records(spec, path, archive, CIFAR10_TEST, spec.num_test)
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
        raise _wrong(spec, path, f"cannot be unpacked ({error})", "a whole tar.gz archive") from None
    return Splits(train, test)


def _cifar10_records(
    spec: DatasetSpec, path: Path, archive: tarfile.TarFile, members: tuple[str, ...], count: int
) -> Arrays:
    height, width, channels = spec.image_shape
    record = 1 + height * width * channels
    sizes = [archive.getmember(member).size for member in members]
    if sum(sizes) != count * record:  # before anything is unpacked
        raise _wrong(spec, path, f"holds {sum(sizes)} bytes in {', '.join(members)}", f"{count * record}")
    content = b"".join(_member(archive, member) for member in members)
    rows = np.frombuffer(content, np.uint8).reshape(count, record)
    _check_labels(spec, path, rows[:, 0])
    images = rows[:, 1:].reshape(count, channels, height, width).transpose(0, 2, 3, 1)
    return _split(spec, np.ascontiguousarray(images), rows[:, 0])


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise tarfile.TarError(f"{name} is not a file")
    with stream:
        return stream.read()


def check_server(spec: DatasetSpec, seconds: float) -> None:
    """Returns when the server has sent the first byte of the first file. Else DownloadError within `seconds`.

    The request runs in a thread, because the timeouts of requests do not cover a name server that does not
    answer, or a server that sends its headers very slowly.
    """
    url = spec.url + spec.files[0].name
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answer.put(_ask(url, seconds)), daemon=True).start()
    try:
        problem = answer.get(timeout=seconds)
    except queue.Empty:
        problem = "timeout"
    if problem:
        raise download_error(spec, f"no answer within {seconds:g} s" if problem == "timeout" else problem)


def _ask(url: str, seconds: float) -> str:
    """The problem with `url`, or "". requests uses the proxies of the environment, and so does TFDS later."""
    import requests  # late, because it takes 0.1 s and prepared data need no download

    try:
        with requests.get(url, stream=True, timeout=seconds) as response:
            if response.status_code != 200:
                return f"the server answers {response.status_code} {response.reason}"
            next(response.iter_content(1))
            return ""
    except requests.Timeout:
        return "timeout"
    except StopIteration:
        return "the server sends nothing"
    except requests.RequestException as error:
        return f"cannot connect ({type(error).__name__})"


def download_error(spec: DatasetSpec, reason: str) -> DownloadError:
    debian = f", or on Debian apt-get install {spec.debian_package}" if spec.debian_package else ""
    return DownloadError(
        f"cannot download {spec.name} from {spec.url}: {reason}; "
        f"put {file_names(spec)} in a folder and pass --source-dir FOLDER{debian}"
    )
