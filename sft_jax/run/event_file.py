"""TensorBoard's event file, for scalars. The library tensorboardX would import torch if installed, which takes seconds.

The file is a sequence of records (tensorflow/core/lib/io/record_writer.h): length, its checksum, message, its checksum.
A message is an `Event` (tensorflow/core/util/event.proto) in protobuf's encoding.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path


class EventFile:
    """A new event file in a folder. A point is on disk once `scalars` returns."""

    def __init__(self, folder: Path):
        self._file = (folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}").open("wb")
        self._write(_bytes(3, b"brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the chart of each tag of `values`."""
        points = [_bytes(1, _bytes(1, tag.encode()) + struct.pack("<Bf", 2 << 3 | 5, values[tag])) for tag in values]
        self._write(bytes([2 << 3]) + _varint(step) + _bytes(5, b"".join(points)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, fields: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + fields
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))


def _bytes(field: int, content: bytes) -> bytes:
    """Encodes a field that is a string or a message."""
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Encodes a number of at least 0: seven bits per byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes(found) + bytes([number])


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = [_table_entry(byte) for byte in range(256)]


def _checksum(data: bytes) -> bytes:
    """Returns the CRC-32C (RFC 3720, B.4) of `data`, masked as in TFRecord files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
