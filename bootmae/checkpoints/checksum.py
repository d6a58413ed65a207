"""Checksums of checkpoint files, which detect any damage.

A torch file is a ZIP archive. Its checksum record is the comment of the archive, which other readers skip::

    MARK  iteration (20 digits)  SHA-256 (64 hex digits)  MARK

The SHA-256 covers everything before it, with the length of the comment taken as 0. MARK stands twice, so that a file in
which one of them is damaged is not taken for a file without a record.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

MARK = b'bootmae#'
DIGITS, HEX = 20, 64
NONE = '-' * DIGITS  # for a file without iteration
SIZE = 2 * len(MARK) + DIGITS + HEX
# Signatures of a ZIP archive. The last two bytes of its end record are the length of the comment that follows.
BEGIN, END, END_SIZE = b'PK\x03\x04', b'PK\x05\x06', 22
LENGTH = SIZE.to_bytes(2, 'little')
CHUNK = 1 << 22
DIGESTS = ('sha256', 'checksum')  # in the header of a safetensors file, twice for the same reason
AGAIN = 'use an older file or copy it again'


class DamagedError(ValueError):
    """The content of a file differs from what was written."""


class SummingFile:
    """A binary file that hashes what is written and keeps the first OSError, which torch replaces by its own."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()

    def mark(self, iteration: int | None) -> None:
        """Append the checksum record to a complete archive."""
        head = MARK + (NONE if iteration is None else f'{iteration:0{DIGITS}}').encode()
        self.digest.update(head)
        self.file.seek(-2, os.SEEK_END)
        self.file.write(LENGTH)
        self.file.write(head + self.digest.hexdigest().encode() + MARK)


def _read_record(file: BinaryIO, path: Path) -> tuple[int | None, str] | None:
    """Read the checksum record of an open file; this moves its position.

    Returns:
        The iteration and the SHA-256, or None if the file has no record.

    Raises:
        DamagedError: if the file has a damaged record.
    """
    zipped = file.read(len(BEGIN)) == BEGIN
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - SIZE - END_SIZE, 0))
    tail = file.read()
    where = tail.rfind(END)
    length, comment = tail[where + END_SIZE - 2 : where + END_SIZE], tail[where + END_SIZE :]
    cut = (
        zipped
        and 0 <= where <= len(tail) - END_SIZE
        and (int.from_bytes(length, 'little') != len(comment) or (length == LENGTH and b'\0' in comment))
    )
    if MARK not in tail and not cut:
        return None
    mark = tail[-SIZE:]
    number, digest = mark[len(MARK) : len(MARK) + DIGITS], mark[len(MARK) + DIGITS : -len(MARK)]
    whole = (
        len(tail) == SIZE + END_SIZE
        and where == 0
        and tail[END_SIZE - 2 : END_SIZE] == LENGTH
        and mark.startswith(MARK)
        and mark.endswith(MARK)
        and (number.isdigit() or number == NONE.encode())
    )
    if not whole:
        raise DamagedError(f'{path} is damaged (checksum): its end is cut or changed; {AGAIN}')
    return (None if number == NONE.encode() else int(number)), digest.decode('latin')


def peek(path: str | Path) -> int | None:
    """Read the iteration of a torch file from its last bytes.

    Returns:
        The iteration, or None if the file has no checksum record or no iteration.

    Raises:
        OSError: if the file cannot be read.
        DamagedError: if the record is damaged.
    """
    with Path(path).open('rb') as file:
        mark = _read_record(file, Path(path))
    return None if mark is None else mark[0]


def verify_checksum(path: str | Path) -> bool:
    """Compare a torch file with its checksum.

    Returns:
        True if the checksum is right, False if the file has none.

    Raises:
        OSError: if the file cannot be read.
        DamagedError: if any bit of a file with a checksum has changed.
    """
    path = Path(path)
    with path.open('rb', buffering=0) as file:
        mark = _read_record(file, path)
        if mark is None:
            return False
        left, digest, buffer = file.seek(0, os.SEEK_END) - SIZE - 2, hashlib.sha256(), bytearray(CHUNK)
        file.seek(0)
        view = memoryview(buffer)
        while left and (count := file.readinto(view[: min(left, CHUNK)])):
            digest.update(view[:count])
            left -= count
        digest.update(bytes(2))
        digest.update(MARK + (NONE if mark[0] is None else f'{mark[0]:0{DIGITS}}').encode())
    if left or digest.hexdigest() != mark[1]:
        raise DamagedError(f'{path} is damaged (checksum): its content is not what was written; {AGAIN}')
    return True


def tensors_digest(tensors: dict[str, torch.Tensor], facts: Iterable = ()) -> str:
    """Checksum of a safetensors file: SHA-256 of the names, types, shapes and values of tensors, and of plain facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    add_tensors(digest, tensors)
    return digest.hexdigest()


def add_tensors(digest: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Add names, types, shapes and values of tensors to a hash of hashlib."""
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f'{key}{value.dtype}{tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
