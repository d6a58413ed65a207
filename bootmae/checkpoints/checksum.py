"""Marks of whole files: a checksum in each file that is written here, so that no damage passes for weights.

A torch file is a ZIP archive; its mark is the archive's comment, which any other reader skips::

    MARK  iteration (20 digits)  SHA-256 (64 hex digits)  MARK

The sum is over all that comes before it, with the comment's length taken as 0. MARK stands twice, so that damage to
one of them does not make the file look like one without a mark.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch

MARK = b'bootmae#'
DIGITS, HEX = 20, 64
NONE = '-' * DIGITS  # for a file of no iteration
SIZE = 2 * len(MARK) + DIGITS + HEX
# Of a ZIP archive; the last two bytes of its end are the length of the comment that follows.
BEGIN, END, END_SIZE = b'PK\x03\x04', b'PK\x05\x06', 22
LENGTH = SIZE.to_bytes(2, 'little')
CHUNK = 1 << 22
DIGESTS = ('sha256', 'checksum')  # in the header of a safetensors file: twice, for the same reason
AGAIN = 'take an older one or copy it again'


class DamagedError(ValueError):
    """A file is not what was written."""


class SummingFile:
    """A binary file that sums what is written to it and keeps the first error, which torch hides behind its own."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

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
        """End an archive that has been written whole with its mark."""
        head = MARK + (NONE if iteration is None else f'{iteration:0{DIGITS}}').encode()
        self.digest.update(head)
        self.file.seek(-2, os.SEEK_END)
        self.file.write(LENGTH)
        self.file.write(head + self.digest.hexdigest().encode() + MARK)


def _mark_of(file: BinaryIO, path: Path) -> tuple[int | None, str] | None:
    """Iteration and sum in the mark of an open file, or None where it has no mark; its position is lost.

    Raises:
        ValueError: if its end is that of a marked file, but damaged.
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
    """The iteration in a torch file's mark, from its last bytes alone; None without mark or iteration.

    Raises:
        OSError: if it cannot be read.
        ValueError: if its end is damaged.
    """
    with Path(path).open('rb') as file:
        mark = _mark_of(file, Path(path))
    return None if mark is None else mark[0]


def verify_checksum(path: str | Path) -> bool:
    """Whether a torch file has a mark, after its sum has been found right.

    Raises:
        OSError: if it cannot be read.
        ValueError: if any bit of a marked file has changed.
    """
    path = Path(path)
    with path.open('rb', buffering=0) as file:
        mark = _mark_of(file, path)
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
    """SHA-256 over names, types, shapes and values, and over plain facts: the mark of a safetensors file."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f'{key}{value.dtype}{tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
