"""Reading images in place from uncompressed tar archives: paths, a backend of mmengine, and the index of an archive.

The path of such an image contains the position of its bytes, so readers need no index::

    tar://512+109000@/data/a.tar!/n01/x.JPEG        109000 bytes from byte 512 on

Everything that uses ``mmengine.fileio`` can read these paths. Names are escaped: ``%25`` stands for ``%``, ``%3A//``
for ``://``, and ``%21/`` for ``!/`` in the name of the archive.
"""

import logging
import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from typing import IO

from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.logging import print_log

from .scan import skipped

PREFIX = 'tar://'
OPEN_ARCHIVES = 128  # per process; ImageNet has 1000 archives, and a process may often open only 1024 files
PACKED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
NESTED = '.tar'

Place = tuple[int, int]  # offset and size of a file


def tar_path(archive: str, name: str, offset: int, size: int) -> str:
    """Return the path of the member ``name``, ``size`` bytes at ``offset`` of an archive."""
    return f'{PREFIX}{offset}+{size}@{_quote(archive).replace("!/", "%21/")}!/{_quote(name)}'


def is_tar_path(path: str) -> bool:
    """Return whether a path was made by :func:`tar_path`."""
    return path.startswith(PREFIX)


def split_tar_path(path: str) -> tuple[str, str, int, int]:
    """Split a path of :func:`tar_path` into archive, name, offset and size.

    Raises:
        ValueError: If it is no such path.
    """
    place, _, rest = path.removeprefix(PREFIX).partition('@')
    archive, slash, name = rest.partition('!/')
    offset, _, size = place.partition('+')
    if not is_tar_path(path) or not slash or not (offset + size).isdecimal():
        raise ValueError(
            f'{path!r} is no path into a tar archive, such as tar://512+109000@/data/a.tar!/x.jpg: '
            "ImageFiles(roots='/data/a.tar') makes them"
        )
    return _unquote(archive), _unquote(name), int(offset), int(size)


def readable(path: str) -> str:
    """Format a path for messages: ``/data/a.tar!/n01/x.JPEG`` for an image in an archive, other paths unchanged."""
    return '!/'.join(split_tar_path(path)[:2]) if is_tar_path(path) else path


def read_tar_path(path: str) -> bytes:
    """Read the bytes of an image inside an archive.

    Raises:
        FileNotFoundError: If there is no such archive.
        ValueError: If the archive is truncated. Names the archive and the image.
    """
    archive, name, offset, size = split_tar_path(path)
    # pread moves no file position, so forked workers may share a descriptor.
    data = os.pread(_archive(archive).descriptor, size, offset)
    if len(data) != size:
        raise ValueError(f'{archive} is cut off: {name} has {size} bytes there, {len(data)} are left')
    return data


@register_backend('tar', prefixes='tar', force=True)
class TarBackend(BaseStorageBackend):
    """Backend of ``mmengine.fileio`` for ``tar://`` paths, used by LoadImageFromFile, mmseg, mmdet and mmcv.imread."""

    def get(self, filepath: str) -> bytes:
        """Read the bytes, see :func:`read_tar_path`."""
        return read_tar_path(str(filepath))

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Read the bytes as text."""
        return self.get(filepath).decode(encoding)


class _Archive:
    """An open file that closes with its last reference: a thread may still read what the cache has dropped."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))

    def __del__(self):
        if hasattr(self, 'descriptor'):
            os.close(self.descriptor)


_archive = lru_cache(maxsize=OPEN_ARCHIVES)(_Archive)


def index_tar(archive: str) -> dict[str, Place | None]:
    """Return offset and size of each file in an archive by name; of two files with one name the last counts.

    A nested archive counts as a folder with its name without ``.tar``, since the training images of ImageNet come as a
    tar of a thousand tars; hidden ones, such as those that macOS adds, count as files. Links to files inside the
    archive are followed. Other links have no place: None. Folders are left out.

    Raises:
        ValueError: If the file is compressed, damaged, truncated, or no tar archive.
    """
    with open(archive, 'rb') as file:
        _refuse_packed(archive, file.read(6))
        file.seek(0)
        try:
            return dict(_members(archive, file))
        except tarfile.TarError as error:
            raise ValueError(
                f'{archive} is no tar archive, or not a whole one ({error}): compare its size and '
                "checksum with its source's, and fetch it again"
            ) from error


def _members(archive: str, file: IO[bytes], prefix: str = '', start: int = 0) -> Iterator[tuple[str, Place | None]]:
    """Yield name and place of the files in an archive that begins at byte ``start`` of the outermost one."""
    places: dict[str, Place | None] = {}
    links = []
    with tarfile.open(fileobj=file, mode='r:') as tar:
        # The offset is 0 if there is no member at all; Python 3.10 would then seek to a negative position.
        while tar.offset and (member := tar.next()) is not None:
            tar.members.clear()  # 1 kB for each of perhaps a million members
            name = plain(member.name)
            if member.issparse():
                raise ValueError(
                    f'{archive}: {prefix}{name} is a sparse file, whose bytes do not lie together: pack '
                    'it without --sparse'
                )
            if member.isreg():
                places[name] = member.offset_data + start, member.size
            elif member.islnk() or member.issym():
                folder = os.path.dirname(name) if member.issym() else ''
                links.append((name, plain(os.path.join(folder, member.linkname))))
            if name.lower().endswith(NESTED) and member.isreg() and not any(map(skipped, name.split('/'))):
                del places[name]
                inner, inside = f'{archive}!/{prefix}{name}', f'{prefix}{name[: -len(NESTED)]}/'
                yield from _members(inner, tar.extractfile(member), inside, member.offset_data + start)
        _check_end(archive, file, tar.offset)
    for name, target in links:
        places[name] = places.get(target) or places.get(name)
    for name, place in places.items():
        yield prefix + name, place


def _check_end(archive: str, file: IO[bytes], place: int):
    """Check for the zero block that ends an archive; tarfile takes any invalid header for the end."""
    file.seek(place)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b'\0'):
        raise tarfile.ReadError(f'no header at byte {place}')
    if not block:
        print_log(
            f'{archive} has no end mark: it may have been cut off between two files',
            logger='current',
            level=logging.WARNING,
        )


def _refuse_packed(archive: str, head: bytes):
    for magic, kind in PACKED.items():
        if head.startswith(magic):
            raise ValueError(
                f'{archive} is compressed ({kind}), so no image in it can be reached without unpacking '
                'all before it: decompress it into a plain .tar (images gain nothing from compression)'
            )


def plain(name: str) -> str:
    """Normalize the name of a member: ``./a/b`` and ``/a/b`` become ``a/b``."""
    return os.path.normpath('/' + name).lstrip('/')


def _quote(name: str) -> str:
    return name.replace('%', '%25').replace('://', '%3A//')


def _unquote(name: str) -> str:
    return name.replace('%21', '!').replace('%3A', ':').replace('%25', '%')
