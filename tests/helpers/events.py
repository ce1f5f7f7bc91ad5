"""Reads events files as TensorBoard does: the framing of TFRecord, and which points a restart drops."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

Points = dict[str, list[tuple[int, Any]]]  # tag -> (step, value), in order


def records(path: Path) -> list[bytes]:
    """length, its checksum, content, its checksum; a torn last record ends the file."""
    held, content, at = [], path.read_bytes(), 0
    while at + 12 <= len(content):
        (length,) = struct.unpack("<Q", content[at : at + 8])
        record = content[at + 12 : at + 12 + length]
        checksums = content[at + 8 : at + 12] + content[at + 12 + length : at + 16 + length]
        if len(checksums) < 8:
            break
        assert struct.unpack("<II", checksums) == (masked_crc32c(content[at : at + 8]), masked_crc32c(record))
        held.append(record)
        at += 16 + length
    return held


def read(folder: Path) -> Points:
    """The points that TensorBoard shows of a folder. A start of a session drops the points from its step on."""
    proto: Any = event_pb2
    found: Points = {}
    for path in sorted(folder.iterdir()):
        for record in records(path):
            event = proto.Event.FromString(record)
            if event.HasField("session_log") and event.session_log.status == proto.SessionLog.START:
                found = {tag: [point for point in points if point[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                held = value.simple_value if value.HasField("simple_value") else picture(value.image)
                found.setdefault(value.tag, []).append((event.step, held))
    return found


def picture(image: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
