"""Safe reading of tensors and plain types. Code stored in a file is never executed, and there is no fallback."""

import argparse
import json
import re
import threading
import warnings
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors import safe_open
from safetensors.torch import load_file

from .checksum import AGAIN, DIGESTS, DamagedError, tensors_digest, verify_checksum
from .file_kinds import LEGACY, PICKLE, ZIP, check_kind, first_bytes, is_safetensors, safetensors_size, zip_names
from .hub import is_name, read_named


def history_method(owner: type, name: str):
    """Replaces ``getattr`` in files of mmengine, whose log histories refer to their own methods with it."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise UnpicklingError(f'a reference to {name} of {owner}')


# Plain data that files hold beside tensors: mmengine's log history, numpy numbers, the authors' arguments.
_NUMPY = (np._core.multiarray._reconstruct, np._core.multiarray.scalar)
SAFE_TYPES = [
    argparse.Namespace,
    HistoryBuffer,
    (history_method, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    bytes,  # part of an empty array
    *(
        (function, f'numpy.{core}.multiarray.{function.__name__}')  # numpy 1 wrote numpy.core
        for function in _NUMPY
        for core in ('core', '_core')
    ),
    *(type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'uint8', 'float32', 'float64')),
]

ADVICE = re.compile(r'weights_only|safe_globals|arbitrary code')  # torch's advice to read a file unsafely
_READING = threading.Lock()  # torch's list of safe types is shared by all threads, and the first to leave clears it


def _reason(path: Path, error: UnpicklingError) -> str:
    """Why a pickle was refused, without torch's advice to read it unsafely."""
    if foreign := _foreign(path):
        return foreign
    found = re.search(r'WeightsUnpickler error:\s*(.+)|(Trying to load .+)', str(error))
    reason = (found[1] or found[2]).split('. ')[0].rstrip('.') if found else 'no pickle of torch'
    reason = re.sub(r'.*add_safe_globals.*but got', 'an object of type', reason)
    return 'no pickle of torch' if ADVICE.search(reason) else reason


def _foreign(path: Path) -> str:
    """What the first bytes say of a file that torch did not write; empty for one that it may have written."""
    head = first_bytes(path, 32)
    if not head.startswith((ZIP, PICKLE)):
        return f'it begins with {head[:8]!r}, unlike files of torch and safetensors'
    return 'a pickle that torch.save did not write' if head.startswith(PICKLE) and LEGACY not in head else ''


def _damage(path: Path, error: Exception) -> str:
    """What is wrong with a file that its reader has given up, in our words where its bytes tell it."""
    size = path.stat().st_size
    if is_safetensors(path):
        wanted = safetensors_size(path)
        if wanted and wanted != size:
            return f'is damaged: it has {size:,} bytes, and {wanted:,} according to its header'
        if size < 8 + int.from_bytes(first_bytes(path, 8), 'little'):
            return f'is damaged: it ends too early, after {size:,} bytes'
    elif first_bytes(path, 4) == ZIP:
        if zip_names(path) is None:
            return f'is damaged: it ends too early, after {size:,} bytes, or its end has changed'
    elif foreign := _foreign(path):
        return f'is damaged or not a checkpoint ({foreign})'
    text = str(error).strip().partition('\n')[0].partition('. ')[0]
    reason = type(error).__name__ + (f': {text}' if text and not ADVICE.search(text) else '')
    return f'is damaged or not a checkpoint ({reason})'


def _read_safetensors(path: Path) -> dict:
    """The tensors of a file, or ``state_dict`` and ``meta`` if :func:`write_checkpoint` wrote it."""
    with safe_open(path, framework='pt') as file:
        header = file.metadata() or {}
    tensors = load_file(path)
    digests = [header.pop(name) for name in DIGESTS if name in header]
    if digests and digests != [tensors_digest(tensors, header)] * len(DIGESTS):
        raise DamagedError(f'{path} is damaged (checksum): its content is not what was written; {AGAIN}')
    facts = header.get('bootmae')
    return tensors if facts is None else dict(state_dict=tensors, meta=dict(bootmae=dict(json.loads(facts))))


def _read_torch(path: Path) -> object:
    verify_checksum(path)
    with _READING, torch.serialization.safe_globals(SAFE_TYPES), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of unusual pickles, which are read or refused
        return torch.load(path, map_location='cpu', weights_only=True)


def read_checkpoint(path: str | Path) -> dict:
    """Read a ``.pth``/``.pt``/``.bin`` or ``.safetensors`` file, or ``timm:NAME`` (:func:`read_named`), on the CPU.

    Files of this suite have a checksum, which is verified.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another kind (:func:`check_kind`), is damaged, holds anything but tensors and
            plain types, or is not a dict.
    """
    if is_name(path):
        return read_named(str(path))
    path = Path(path)
    check_kind(path)
    try:
        content = (_read_safetensors if is_safetensors(path) else _read_torch)(path)
    except UnpicklingError as error:
        if not first_bytes(path, 4).startswith((ZIP, PICKLE)):
            raise ValueError(f'{path} {_damage(path, error)}: {AGAIN}') from None
        raise ValueError(
            f'{path} holds more than tensors and plain types, or is damaged, and was not read '
            f'({_reason(path, error)}). Convert it to a dict of tensors with the program that wrote it.'
        ) from None
    except DamagedError:
        raise
    except Exception as error:  # damage raises struct.error, IndexError, AssertionError, SafetensorError and others
        raise ValueError(f'{path} {_damage(path, error)}: {AGAIN}') from None
    if not isinstance(content, dict):
        raise ValueError(
            f'{path} holds a {type(content).__name__}, not a dict of weights: save a dict of named '
            'tensors, e.g. model.state_dict()'
        )
    return content
