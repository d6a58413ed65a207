"""Recognizes files that are no checkpoints from their first bytes, before torch or safetensors gives a reason."""

import bz2
import gzip
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from .checksum import AGAIN

FETCH = 'download it again with a link to the file itself, and compare its size with that of the original'
MERGE = 'merge all parts into one file first: read each, join the dicts, and save the result with torch.save'
HEAD, SMALLEST = 1 << 16, 16  # bytes that are looked at, and that a text has at least
SAFETENSORS = '.safetensors'
ZIP, EMPTY_ZIP, PICKLE = b'PK\x03\x04', b'PK\x05\x06', b'\x80'
LEGACY = b'\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19'  # in the first bytes of torch's format before ZIP
SHARD = re.compile(r'-(\d{5})-of-(\d{5})\.\w+$')
LFS, ANNEX = b'version https://git-lfs.github.com/spec/', b'/annex/objects/'
COMPRESSED: dict[bytes, tuple[str, str, Callable | None]] = {
    b'\x1f\x8b': ('gzip', 'gunzip', gzip.open),
    b'BZh': ('bzip2', 'bunzip2', bz2.open),
    b'\xfd7zXZ\x00': ('xz', 'unxz', lzma.open),
    b'\x28\xb5\x2f\xfd': ('zstd', 'unzstd', None),
    b'7z\xbc\xaf\x27\x1c': ('7-Zip', '7z x', None),
    b'Rar!': ('RAR', 'unrar x', None),
}
TENSORS = 'convert it to a dict of PyTorch tensors with the program that wrote it (torch.save or safetensors)'
OTHERS: dict[bytes, tuple[str, str]] = {
    b'\x93NUMPY': ('a NumPy array (.npy)', TENSORS),
    b'\x89HDF\r\n\x1a\n': ('an HDF5 file, as Keras and TensorFlow write them', TENSORS),
    b'GGUF': ('a GGUF file', TENSORS),
    b'\x89PNG\r\n': ('a PNG image', 'give the path of the weights'),
    b'\xff\xd8\xff': ('a JPEG image', 'give the path of the weights'),
    b'%PDF': ('a PDF document', 'give the path of the weights'),
}


def is_safetensors(path: Path) -> bool:
    """Whether a file is to be read as safetensors: by its first bytes, and if they do not tell, by its name."""
    head = first_bytes(path, 9)
    if head[8:] == b'{' or not head.startswith((ZIP, PICKLE)) or len(head) < 9:
        return head[8:] == b'{' or path.suffix == SAFETENSORS
    return False


def safetensors_size(path: Path) -> int | None:
    """Size of a safetensors file in bytes according to its header; None if that cannot be read."""
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        try:
            header = json.loads(file.read(length)) if length < path.stat().st_size else None
            return 8 + length + max(each['data_offsets'][1] for key, each in header.items() if key != '__metadata__')
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None


def check_kind(path: Path) -> None:
    """Raise a ValueError for a file that is no checkpoint of PyTorch or safetensors, with what it is and what to do.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if each.suffix in ('.pth', '.pt', '.bin', SAFETENSORS))
        there = f'it has {shown(names)}' if names else 'it has no .pth or .safetensors file'
        raise FileNotFoundError(
            f'no checkpoint {path}: this is a folder; {there}. Give the path of one file, or the folder of a run'
        )
    if not path.is_file():
        link = f' (a link to {path.readlink()}, which does not exist)' if path.is_symlink() else ''
        where = '' if path.is_absolute() else f' in {Path.cwd()}'
        raise FileNotFoundError(f'no checkpoint {path}{where}{link}: use the path of a .pth or .safetensors file')
    size, head = path.stat().st_size, first_bytes(path)
    if not head.strip(b'\0'):
        what = f'{"filled" if size <= HEAD else "begun"} with zeros ({size:,} bytes)' if size else 'empty (0 bytes)'
        raise ValueError(f'{path} is damaged: it is {what}. The copy or the download has failed; {AGAIN}')
    if found := describe(path):
        what, remedy = found
        raise ValueError(f'{path} is {what}, not a checkpoint: {remedy}')


def describe(path: Path) -> tuple[str, str] | None:
    """What a file is and what to do, or None for what may be a checkpoint."""
    head, size = first_bytes(path), path.stat().st_size
    for magic, (name, command, opener) in COMPRESSED.items():
        if head.startswith(magic):
            return _compressed(path, name, command, opener)
    for magic, (name, remedy) in OTHERS.items():
        if head.startswith(magic):
            return name, remedy
    if path.suffix == '.onnx' or re.match(rb'\x08[\x01-\x20]\x12.\w+', head, re.DOTALL):
        return 'an ONNX model', 'ONNX has no names of a ViT; give the PyTorch weights that it was exported from'
    if head.startswith((ZIP, EMPTY_ZIP)):
        found = _zip(path)
        if found:
            return found
    if head[257:262] == b'ustar':
        return _tar(path)
    if found := describe_text(head, size) if size >= SMALLEST or head[:1] in (b'<', b'{') else None:
        return found
    shard = SHARD.search(path.name)
    return (f'part {int(shard[1])} of {int(shard[2])} of a checkpoint', MERGE) if shard and int(shard[2]) > 1 else None


def describe_text(head: bytes, size: int) -> tuple[str, str] | None:
    """What a text is: a pointer, a page, an index, an error of a server; None for binary data."""
    if head.startswith(LFS):
        stated = re.search(rb'^size (\d+)', head, re.MULTILINE)
        number = f' to a file of {int(stated[1]):,} bytes' if stated else ''
        return (
            f'a Git LFS pointer{number}',
            'fetch the file itself: git lfs pull in its repository, or its download link',
        )
    if ANNEX in head[:200]:
        return 'a git-annex pointer', 'fetch the file itself: git annex get in its repository'
    head = head.removeprefix(b'\xef\xbb\xbf').strip()
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 and not head.startswith(b'<'):  # else the last character is cut
            return None
        text = head.decode('latin-1')
    if not text or re.search(r'[\x00-\x08\x0e-\x1f]', text):
        return None
    if text.startswith('<'):
        title = re.search(r'<title[^>]*>\s*([^<]{1,80}?)\s*<', text, re.IGNORECASE)
        kind = 'an HTML page' if re.search(r'<(!doctype\s+)?html', text, re.IGNORECASE) else 'a page of XML'
        page = f'{kind} titled "{title[1]}"' if title else kind
        return page, f'the link leads to a page, a login or an error; {FETCH}'
    if text.startswith(('{', '[')):
        return _json(text, size)
    return f'a text file that begins with {text.splitlines()[0][:60]!r}', 'give the path of the weights'


def _json(text: str, size: int) -> tuple[str, str]:
    try:
        content = json.loads(text)
    except ValueError:
        content = {}
    names = re.findall(r'"[^"]+"\s*:\s*"([^"]+-\d{5}-of-\d{5}\.\w+)"', text)
    if names or '"weight_map"' in text:
        return f'the index of a checkpoint in parts ({shown(sorted(set(names)))})', MERGE
    if isinstance(content, dict) and {'error', 'message', 'errors', 'detail'} & set(content):
        return f'an error message of a server, {text[:80]!r}', f'the download has failed; {FETCH}'
    if isinstance(content, dict) and {'architectures', 'model_type', 'architecture'} & set(content):
        return 'the configuration of a model (JSON)', 'give the weights beside it, e.g. model.safetensors'
    return f'a JSON text of {size:,} bytes', 'give the path of the weights'


def _compressed(path: Path, name: str, command: str, opener: Callable | None) -> tuple[str, str]:
    """A compressed file: an unpacked page or text is told as what it is."""
    inner = None
    if opener:
        try:
            with opener(path) as file:
                head = file.read(HEAD)
            inner = ('a tar archive', '') if head[257:262] == b'ustar' else describe_text(head, len(head))
        except (OSError, EOFError, lzma.LZMAError, zlib.error):
            return f'a damaged {name} file', AGAIN
    if inner and inner[0] != 'a tar archive':
        return f'{inner[0]}, compressed by {name}', inner[1]
    what = f'{inner[0]} compressed by {name}' if inner else f'compressed by {name}'
    return what, f'unpack it first: {"tar xf" if inner else command} {path.name}'


def zip_names(path: Path) -> list[str] | None:
    """Names of the files in a ZIP archive; None if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # damage raises BadZipFile, ValueError, struct.error, UnicodeDecodeError and others
        return None


def _zip(path: Path) -> tuple[str, str] | None:
    """What a ZIP archive is; None for one that torch.save has written, or a damaged one."""
    names = zip_names(path)
    if names is None:
        return None  # its checksum comes first, then torch's reader
    parts = [name.partition('/')[2] for name in names]
    if 'constants.pkl' in parts or any(part.startswith('code/') for part in parts):
        return (
            'a TorchScript archive, a program with weights',
            "save its weights alone, where you trust the file: torch.save(torch.jit.load(FILE).state_dict(), 'w.pth')",
        )
    if 'data.pkl' in parts:
        return None
    if names and all(name.endswith('.npy') for name in names):
        return f'a NumPy archive (.npz) of {len(names)} arrays ({shown(names)})', TENSORS
    if any(part == 'archive_format' or part.startswith('models/') for part in parts):
        return 'a program of torch.export (.pt2)', "save the model's state_dict() instead"
    return f'a ZIP archive that holds {shown(names)}', f'unpack it first: unzip {path.name}'


def _tar(path: Path) -> tuple[str, str]:
    try:
        with tarfile.open(path) as archive:
            names = [member.name for _, member in zip(range(20), archive)]
    except (tarfile.TarError, OSError, EOFError):
        return 'a damaged tar archive', AGAIN
    return f'a tar archive that holds {shown(names)}', f'unpack it first: tar xf {path.name}'


def shown(names: Sequence[str], number: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f' and {len(names) - number} more' if len(names) > number else ''
    return (', '.join(names[:number]) or 'nothing') + more


def first_bytes(path: Path, size: int = HEAD) -> bytes:
    with path.open('rb') as file:
        return file.read(size)
