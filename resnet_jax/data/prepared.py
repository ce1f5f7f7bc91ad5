"""Reads back what builders.py wrote: 60,000 records at once, without importing TFDS (0.3 s instead of 4).

The layout: DIR/NAME_raw/VERSION/ holds NAME_raw-SPLIT.array_record-XXXXX-of-YYYYY, whose records are
tf.train.Example messages {"image": raw bytes, "label": one int64}. All records of a data set have the same
length and differ in the image's bytes and the label's byte only, so they are rows of one table.
"""

import json
from pathlib import Path

import numpy as np

from resnet_jax.data.specs import Arrays, DatasetSpec, Splits, digests_of
from resnet_jax.errors import DataError

VERSION = "1.0.0"  # of the layout


def builder_name(spec: DatasetSpec) -> str:
    """Not the stock name: a stock preparation (PNG, shuffled) in the same data_dir stays apart."""
    return f"{spec.name}_raw"


def prepared_dir(spec: DatasetSpec, data_dir: Path) -> Path:
    return data_dir / builder_name(spec) / VERSION


def read_prepared(spec: DatasetSpec, folder: Path) -> Splits:
    """The arrays in `folder`; their digests are those of the table, or else those recorded by builders.py."""
    try:
        digests = json.loads((folder / "metadata.json").read_text())["digests"]
        train = _read_split(spec, folder, "train", spec.num_train)
        test = _read_split(spec, folder, "test", spec.num_test)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # RuntimeError: array_record's
        raise _damaged(folder, " ".join(str(error).split())) from None
    splits = Splits(train, test)
    expected = spec.digests._asdict() if spec.digests else digests
    if (found := digests_of(splits)._asdict()) != expected:
        raise _damaged(folder, f"sha256 of the content are {found}, expected {expected}")
    return splits


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(f"the prepared data in {folder} is damaged ({reason}); delete that folder and run again")


def _read_split(spec: DatasetSpec, folder: Path, split: str, count: int) -> Arrays:
    records = [
        record
        for shard in sorted(folder.glob(f"{builder_name(spec)}-{split}.array_record-*"))
        for record in _read_shard(shard)
    ]
    if len(records) != count:
        raise ValueError(f"{len(records)} {split} records, expected {count}")
    return _unpack(spec, records)


def _read_shard(path: Path) -> list[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        return reader.read_all()
    finally:
        reader.close()


def _unpack(spec: DatasetSpec, records: list[bytes]) -> Arrays:
    """All records as one table of bytes; its columns that are neither image nor label must be as written."""
    size = int(np.prod(spec.image_shape))
    table = np.frombuffer(b"".join(records), np.uint8)
    for image_first in (False, True):  # protobuf leaves the order of a map's entries open
        blank, image, label = _example(size, image_first)
        if table.size != len(records) * len(blank):
            break
        rows = table.reshape(len(records), len(blank))
        frame = np.delete(np.arange(len(blank)), [*range(image, image + size), label])
        if (rows[:, frame] == np.frombuffer(blank, np.uint8)[frame]).all():
            images = np.ascontiguousarray(rows[:, image : image + size])
            return Arrays(images.reshape(-1, *spec.image_shape), rows[:, label].astype(np.int32))
    raise ValueError(f"records are not {size} image bytes and a label")


def _example(size: int, image_first: bool) -> tuple[bytes, int, int]:
    """A tf.train.Example of a black image and label 0; where the image starts, and where the label is.

    Source: tensorflow/core/example/{example,feature}.proto: Example.features = 1, Features.feature = 1 (a
    map: key = 1, value = 2), Feature.bytes_list = 1, Feature.int64_list = 3, both lists' value = 1.
    """
    image = _field(1, _field(1, b"image") + _field(2, _field(1, _field(1, bytes(size)))))
    label = _field(1, _field(1, b"label") + _field(2, _field(3, _field(1, bytes(1)))))
    entries = image + label if image_first else label + image
    example = _field(1, entries)
    start = len(example) - len(entries)
    image_end, label_end = (len(image), len(entries)) if image_first else (len(entries), len(label))
    return example, start + image_end - size, start + label_end - 1


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field (wire type 2): tag, length as a varint, payload."""
    length, varint = len(payload), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *varint, length]) + payload
