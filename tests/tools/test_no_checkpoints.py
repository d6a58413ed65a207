"""Files that are no checkpoints, given to every tool that reads weights: one line says what the file is."""

import bz2
import gzip
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import call_tool

REPOSITORY = Path(__file__).resolve().parents[2]
FINETUNE = REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
PRETRAIN = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'
STATE = {'backbone.cls_token': torch.ones(1, 1, 8), 'backbone.blocks.0.norm1.weight': torch.ones(8)}
LFS = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 343268096\n'
PAGE = '<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>log in first</body></html>'
INDEX = json.dumps(
    dict(
        metadata=dict(total_size=9),
        weight_map={'a.weight': 'model-00001-of-00002.safetensors', 'b.weight': 'model-00002-of-00002.safetensors'},
    )
)


def torch_bytes(content: object = STATE, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, cls=np.ones(3), kernel=np.ones((2, 2)))
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('weights/vit.pth', torch_bytes())
    return buffer.getvalue()


def tarred(compression: str = '') -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f'w:{compression}') as archive:
        entry = tarfile.TarInfo('vit.pth')
        entry.size = len(torch_bytes())
        archive.addfile(entry, io.BytesIO(torch_bytes()))
    return buffer.getvalue()


def onnx() -> bytes:
    return b'\x08\x07\x12\x07pytorch\x1a\x052.1.0:' + bytes(range(256))


# name: (file name, content, what the message says after the path)
FILES: dict[str, tuple[str, bytes | Callable[[], bytes], str]] = {
    'Git LFS pointer': (
        'vit.pth',
        LFS.encode(),
        'is a Git LFS pointer to a file of 343,268,096 bytes, not a checkpoint: fetch the file itself: git lfs pull in '
        'its repository, or its download link',
    ),
    'git-annex pointer': (
        'vit.pth',
        b'/annex/objects/SHA256E-s343--4d7a.pth\n',
        'is a git-annex pointer, not a checkpoint: fetch the file itself: git annex get in its repository',
    ),
    'HTML page': (
        'vit.pth',
        PAGE.encode(),
        'is an HTML page titled "Sign in", not a checkpoint: the link leads to a page, a login or an error; download '
        'it again with a link to the file itself, and compare its size with that of the original',
    ),
    'HTML page in Latin 1': (
        'vit.bin',
        ('\n' + PAGE + 'é' * 9).encode('latin-1'),
        'is an HTML page titled "Sign in", not a',
    ),
    'HTML page, gzip': (
        'vit.pth',
        lambda: gzip.compress(PAGE.encode()),
        'is an HTML page titled "Sign in", compressed by gzip, not a checkpoint: the link leads to a page',
    ),
    'XML error': ('vit.pth', b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'is a page of'),
    'JSON error': (
        'vit.safetensors',
        b'{"error": "Repository not found"}',
        """is an error message of a server, '{"error": "Repository not found"}', not a checkpoint: the download has """
        'failed; download it again',
    ),
    'safetensors index': (
        'model.safetensors.index.json',
        INDEX.encode(),
        'is the index of a checkpoint in parts (model-00001-of-00002.safetensors, model-00002-of-00002.safetensors), '
        'not a checkpoint: merge all parts into one file first',
    ),
    'bin index': (
        'pytorch_model.bin.index.json',
        INDEX.replace('safetensors', 'bin').encode(),
        'is the index of a checkpoint in parts (model-00001-of-00002.bin, model-00002-of-00002.bin), not a checkpoint',
    ),
    'a part': (
        'pytorch_model-00002-of-00003.bin',
        torch_bytes,
        'is part 2 of 3 of a checkpoint, not a checkpoint: merge all parts into one file first',
    ),
    'model config': ('config.json', b'{"model_type": "vit", "hidden_size": 768}', 'is the configuration of a'),
    'TorchScript': (
        'vit.pt',
        scripted,
        'is a TorchScript archive, a program with weights, not a checkpoint: save its weights alone, where you trust '
        "the file: torch.save(torch.jit.load(FILE).state_dict(), 'w.pth')",
    ),
    'npz': (
        'vit.npz',
        arrays,
        'is a NumPy archive (.npz) of 2 arrays (cls.npy, kernel.npy), not a checkpoint: convert it to a dict of '
        'PyTorch tensors',
    ),
    'npy': ('vit.npy', b'\x93NUMPY\x01\x00' + bytes(99), 'is a NumPy array (.npy), not a checkpoint'),
    'ONNX': ('vit.pth', onnx, 'is an ONNX model, not a checkpoint: ONNX has no names of a ViT'),
    'HDF5': ('vit.h5', b'\x89HDF\r\n\x1a\n' + bytes(99), 'is an HDF5 file, as Keras and TensorFlow write'),
    'zip': (
        'vit.zip',
        zipped,
        'is a ZIP archive that holds weights/vit.pth, not a checkpoint: unpack it first: unzip vit.zip',
    ),
    'tar': ('vit.tar', tarred, 'is a tar archive that holds vit.pth, not a checkpoint: unpack it first: tar xf'),
    'tar.gz': (
        'vit.tgz',
        lambda: tarred('gz'),
        'is a tar archive compressed by gzip, not a checkpoint: unpack it first: tar xf vit.tgz',
    ),
    'gzip': ('vit.pth.gz', lambda: gzip.compress(torch_bytes()), 'is compressed by gzip, not a checkpoint: unpack it'),
    'bzip2': ('a.bz2', lambda: bz2.compress(torch_bytes()), 'is compressed by bzip2, not a checkpoint: unpack it'),
    'empty': ('vit.pth', b'', 'is damaged: it is empty (0 bytes). The copy or the download has failed; use an'),
    'zeros': ('vit.pth', bytes(5000), 'is damaged: it is filled with zeros (5,000 bytes). The copy or the'),
    'text': (
        'vit.pth',
        b"_base_ = 'bootmae_vitb.py'\n",
        'is a text file that begins with "_base_ = \'bootmae_vitb.py\'", not a checkpoint: give the path of the '
        'weights',
    ),
    'truncated': (
        'vit.pth',
        lambda: torch_bytes()[:-700],
        'is damaged: it ends too early, after SIZE bytes, or its end has changed: use an older file or copy it again',
    ),
    'truncated safetensors': (
        'vit.safetensors',
        (60).to_bytes(8, 'little') + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ',
        'is damaged: it has 68 bytes, and 104 according to its header: use an older file or copy it again',
    ),
    'safetensors, header cut': (
        'vit.safetensors',
        (60).to_bytes(8, 'little') + b'{"a":{"dtype"',
        'is damaged: it ends too early, after 21 bytes: use an older file or copy it again',
    ),
    'unknown': (
        'vit.pth',
        b'\x00\x01\x02\x03' * 99,
        "is damaged or not a checkpoint (it begins with b'\\x00\\x01\\x02\\x03\\x00\\x01\\x02\\x03', unlike files of "
        'torch and safetensors): use an older file or copy it again',
    ),
    'pickle of protocol 2': (
        'model_final.pkl',
        b'\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01K\x01s.'.ljust(40, b'\x00'),
        'is damaged or not a checkpoint (a pickle that torch.save did not write): use an older file or copy it again',
    ),
    'pickle': (
        'model_final.pkl',
        b'\x80\x04\x95\x25\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x05model\x94}\x94\x8c\x03abcK\x01su.',
        'holds more than tensors and plain types, or is damaged, and was not read (a pickle that torch.save did not '
        'write). Convert it to a dict of tensors with the program that wrote it.',
    ),
}


def write(folder: Path, kind: str) -> tuple[Path, str]:
    """Write a file of a kind; return its path, and the message about it."""
    name, make, message = FILES[kind]
    content = make if isinstance(make, bytes) else make()
    (folder / name).write_bytes(content)
    return folder / name, f'error: {folder / name} {message.replace("SIZE", f"{len(content):,}")}'


@pytest.mark.parametrize('kind', FILES)
def test_the_message_says_what_the_file_is(tmp_path, capsys, kind):
    path, message = write(tmp_path, kind)
    assert call_tool('convert_checkpoint', path, '--to', 'safetensors', tmp_path / 'out.safetensors') == 2
    line = capsys.readouterr().err
    assert line.startswith(message), line
    assert line.count('\n') == 1
    assert not re.search(r'weights_only|safe_globals|arbitrary code|Traceback', line)
    assert not (tmp_path / 'out.safetensors').exists()


TOOLS = {
    'train': lambda path: ('train', FINETUNE, '--init', path),
    'resume': lambda path: ('train', PRETRAIN, '--resume', path),
    'test': lambda path: ('test', FINETUNE, path),
    'knn': lambda path: ('knn', FINETUNE, '--init', path),
    'visualize': lambda path: ('visualize', path),
}


@pytest.mark.parametrize('tool', TOOLS)
def test_every_tool_says_it(tmp_path, monkeypatch, capsys, tool):
    monkeypatch.chdir(tmp_path)
    path, message = write(tmp_path, 'TorchScript')
    options = [] if tool in ('knn', 'visualize') else ['--work-dir', tmp_path / 'run']
    assert call_tool(*TOOLS[tool](path), *options) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_a_folder_and_a_broken_link(tmp_path, capsys):
    (tmp_path / 'epoch_1.pth').write_bytes(b'')
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'gone.pth')
    for path, message in (
        (tmp_path, 'this is a folder; it has epoch_1.pth, link.pth. Give the path of one file, or the folder of a run'),
        (tmp_path / 'link.pth', 'use the path of a .pth or .safetensors file'),
    ):
        assert call_tool('knn', FINETUNE, '--init', path) == 2
        assert message in capsys.readouterr().err


def test_the_content_counts_and_not_the_suffix(tmp_path):
    """safetensors named .bin, and a torch file named .safetensors, are read."""
    from safetensors.torch import save_file

    from bootmae.checkpoints import read_checkpoint

    save_file(STATE, tmp_path / 'a.bin')
    (tmp_path / 'b.safetensors').write_bytes(torch_bytes())
    (tmp_path / 'c.safetensors').write_bytes(torch_bytes(_use_new_zipfile_serialization=False))
    for name in ('a.bin', 'b.safetensors', 'c.safetensors'):
        read = read_checkpoint(tmp_path / name)
        assert set(read) == set(STATE)
        assert torch.equal(read['backbone.cls_token'], STATE['backbone.cls_token'])
