"""Images inside uncompressed tar archives, read in place: their paths, a reader of mmengine, an archive's index.

The path of such an image says where its bytes lie, so that no process needs the index again::

    tar://512+109000@/data/a.tar!/n01/x.JPEG        109000 bytes from byte 512 on

Everything that reads through ``mmengine.fileio`` can read it. What would be ambiguous in a name is written ``%25`` for
``%``, ``%3A//`` for ``://``, and in the archive's own name ``%21/`` for ``!/``.
"""

import logging
import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from typing import IO

from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.logging import print_log

PREFIX = 'tar://'
OPEN_ARCHIVES = 128  # of a process; a set of one archive per class has a thousand, a process may open 1024 files
PACKED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
NESTED = '.tar'


def tar_path(archive: str, name: str, offset: int, size: int) -> str:
    """The path of ``size`` bytes at ``offset`` of an archive, called ``name`` there."""
    return f'{PREFIX}{offset}+{size}@{_quote(archive).replace("!/", "%21/")}!/{_quote(name)}'


def is_tar_path(path: str) -> bool:
    """Whether a path is one of :func:`tar_path`."""
    return path.startswith(PREFIX)


def split_tar_path(path: str) -> tuple[str, str, int, int]:
    """Archive, name, offset and size of a path of :func:`tar_path`.

    Raises:
        ValueError: for any other text.
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
    """A path as people read it: ``/data/a.tar!/n01/x.JPEG`` for one into an archive, others as they are."""
    return '!/'.join(split_tar_path(path)[:2]) if is_tar_path(path) else path


def read_tar_path(path: str) -> bytes:
    """The bytes of an image inside an archive.

    Raises:
        FileNotFoundError: if there is no such archive.
        ValueError: if the archive ends before them; names both.
    """
    archive, name, offset, size = split_tar_path(path)
    data = os.pread(_archive(archive).descriptor, size, offset)  # moves no file position: forked workers may share it
    if len(data) != size:
        raise ValueError(f'{archive} is cut off: {name} has {size} bytes there, {len(data)} are left')
    return data


@register_backend('tar', prefixes='tar', force=True)
class TarBackend(BaseStorageBackend):
    """Reads ``tar://`` paths for whoever uses ``mmengine.fileio``: LoadImageFromFile, mmseg, mmdet, mmcv.imread."""

    def get(self, filepath: str) -> bytes:
        """The bytes; errors as :func:`read_tar_path`."""
        return read_tar_path(str(filepath))

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """The bytes as text."""
        return self.get(filepath).decode(encoding)


class _Archive:
    """An open file, closed when the last one lets go of it: a thread may still read what the cache has dropped."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))

    def __del__(self):
        if hasattr(self, 'descriptor'):
            os.close(self.descriptor)


_archive = lru_cache(maxsize=OPEN_ARCHIVES)(_Archive)


def index_tar(archive: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each file in an archive, by name; of two files with one name the last counts, as in unpacking.

    An archive inside the archive is a folder of its name without ``.tar``: ImageNet's training images come as one tar
    of a thousand. Links to files inside the archive are followed; other links and folders are left out.

    Raises:
        ValueError: for a compressed, damaged or cut-off archive, and for what is none.
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


def _members(archive: str, file: IO[bytes], prefix: str = '', start: int = 0) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and (offset, size) of the files in an archive that begins at byte ``start`` of the outermost one."""
    places, links = {}, []
    with tarfile.open(fileobj=file, mode='r:') as tar:
        # the offset is 0 where not even one member was found: Python 3.10 would look for the next before the file
        while tar.offset and (member := tar.next()) is not None:
            tar.members.clear()  # 1 kB each, which a million need not leave behind
            name = _plain(member.name)
            if member.issparse():
                raise ValueError(
                    f'{archive}: {prefix}{name} is a sparse file, whose bytes do not lie together: pack '
                    'it without --sparse'
                )
            if member.isreg():
                places[name] = member.offset_data + start, member.size
            elif member.islnk() or member.issym():
                folder = os.path.dirname(name) if member.issym() else ''
                links.append((name, _plain(os.path.join(folder, member.linkname))))
            if name.lower().endswith(NESTED) and member.isreg():
                inner = places.pop(name)[0]
                yield from _members(
                    f'{archive}!/{prefix}{name}', tar.extractfile(member), f'{prefix}{name[: -len(NESTED)]}/', inner
                )
        _check_end(archive, file, tar.offset)
    places |= {name: places[target] for name, target in links if target in places}
    for name, place in places.items():
        yield prefix + name, place


def _check_end(archive: str, file: IO[bytes], place: int):
    """tarfile takes whatever is no header for the end; an archive's end is a block of zeros."""
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


def _plain(name: str) -> str:
    """A member's name without what means "here": ``./a/b`` and ``/a/b`` are ``a/b``."""
    return os.path.normpath('/' + name).lstrip('/')


def _quote(name: str) -> str:
    return name.replace('%', '%25').replace('://', '%3A//')


def _unquote(name: str) -> str:
    return name.replace('%21', '!').replace('%3A', ':').replace('%25', '%')
