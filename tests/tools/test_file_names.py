"""Names of files, folders and classes: bytes that are not UTF-8, lists of paths, files of class names."""

import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from calling import call_tool
from toy_images import call, make_folder, write_config

from bootmae.checkpoints import read_checkpoint
from bootmae.data.findings import DataFault
from bootmae.data.images import ImageFiles


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_folder(tmp_path / 'images')


@pytest.fixture
def config(tmp_path, folder) -> Path:
    return write_config(tmp_path / 'config.py', folder)


def latin(folder: Path, name: str) -> Path:
    """A path whose name is Latin-1 on the disk."""
    return folder / os.fsdecode(name.encode('latin-1'))


@pytest.mark.parametrize('report', ['r.json', 'r.txt'])
def test_verify_data_survives_any_name(folder, tmp_path, capsys, monkeypatch, report):
    """The findings are printed and written, with the bytes of the name as \\xe9."""
    cat = latin(folder / 'train', 'chât')
    (folder / 'train' / 'cat').rename(cat)
    shutil.rmtree(folder / 'val')
    latin(cat, 'café.jpg').write_bytes(b'nothing')
    latin(cat, 'tab\tand\nline.jpg').write_bytes(b'')
    strict = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', errors='strict')
    monkeypatch.setattr(sys, 'stdout', strict)
    good = tmp_path / 'good.txt'
    args = ('--workers', 0, '--out', tmp_path / report, '--write-list', good)
    assert call_tool('verify_data', folder / 'train', *args) == 1
    strict.seek(0)
    written = (tmp_path / report).read_text(encoding='utf-8')
    shown = rf'{folder}/train/ch\xe2t/caf\xe9.jpg'
    assert f"  {shown}: starts with b'nothing'" in strict.read()
    assert (shown.replace('\\', r'\\') if report.endswith('json') else shown) in written
    assert rf'{folder}/train/ch\xe2t/tab\tand\nline.jpg'.replace('\\', '\\' * (1 + (report[-4:] == 'json'))) in written
    assert call_tool('verify_data', good, '--root', folder / 'train', '--workers', 0) == 0, 'the other 8 images'


def test_runs_survive_any_name(folder, config, tmp_path, capsys):
    for split in ('train', 'val'):
        (folder / split / 'cat').rename(latin(folder / split, 'chât'))
    broken = latin(latin(folder / 'train', 'chât'), 'é.png')
    broken.write_bytes(b'nothing')
    assert call('train', config, '--work-dir', tmp_path / 'run', options=('train_cfg.max_epochs=2',)) == 0
    assert 'Logging error' not in capsys.readouterr().err
    (log,) = (tmp_path / 'run').glob('*/*.log')
    shown = rf'{folder}/train/ch\xe2t/\xe9.png'
    assert f'{shown} cannot be read and is replaced by another image' in log.read_text(encoding='utf-8')
    assert (tmp_path / 'run' / 'bad_images.txt').read_text(encoding='utf-8').startswith(f'{shown}\t')
    classes = read_checkpoint(tmp_path / 'run' / 'epoch_2.pth')['meta']['dataset_meta']['classes']
    assert classes == (r'ch\xe2t', 'dog')
    rows = tmp_path / 'rows.csv'
    args = ('--untrained', 1, '--data-name', 'mine', '--rows', rows, '--workers', 0)
    assert call('knn', config, *args) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f'error: {shown} cannot be read')
    broken.unlink()
    assert call('knn', config, *args) == 0
    assert rows.is_file()
    odd = folder.rename(latin(tmp_path, 'né'))
    options = [f'{part}_dataloader.dataset.roots={odd}' for part in ('train', 'val')]
    assert call('train', config, '--work-dir', tmp_path / 'odd', options=options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(rf'error: roots={tmp_path}/n\xe9 is not valid UTF-8 text'), error
    assert call_tool('verify_data', odd, '--workers', 0) == 0


# --- lists and class names ---


@pytest.fixture
def listed(folder) -> Path:
    path = folder.parent / 'lists' / 'train.txt'
    path.parent.mkdir()
    path.write_text(''.join(f'train/{name}/train_{number}.png\n' for name in ('cat', 'dog') for number in range(4)))
    return path


def test_relative_paths_of_a_list_start_at_the_root_or_at_the_list(listed, folder, capsys):
    """In training and in verify_data: at the root, or without a root at the folder of the list."""
    assert len(ImageFiles(str(folder), list_file=str(listed), pipeline=[])) == 8
    assert call_tool('verify_data', listed, '--root', folder, '--workers', 0) == 0
    with pytest.raises(
        FileNotFoundError, match=f'relative paths start at {listed.parent}: correct `roots` or the list'
    ):
        ImageFiles(list_file=str(listed), pipeline=[])
    assert call_tool('verify_data', listed, '--workers', 0) == 1
    assert f'relative paths start at {listed.parent}' in capsys.readouterr().out
    beside = listed.rename(folder / 'train.txt')
    dataset = ImageFiles(list_file=str(beside), pipeline=[], check_files='all')
    assert dataset.get_data_info(7)['img_path'] == f'{folder}/train/dog/train_3.png'
    assert call_tool('verify_data', beside, '--workers', 0) == 0


@pytest.mark.parametrize(
    'content, message',
    [
        ('train/cat/train_0.png\n'.encode('utf-16'), '{list}: UTF-16, not UTF-8: save it as UTF-8'),
        (b'\x89PNG\0\0', '{list}: no text: give a list with one path per line'),
        (b'train/cat/train_0.png\ntrain/caf\xe9.png\n', r'caf\xe9.png'),
        (b'train/cat/train_0.png 2\nb\n', "{list}:2: no integer label at the end of 'b'"),
        (b'notes.txt\n', "{list}:1: 'notes.txt' does not end like an image"),
    ],
)
def test_lists_that_training_refuses(listed, folder, content, message, capsys):
    listed.write_bytes(content)
    message = message.format(list=listed)
    labels = 'list' if b' 2' in content else None
    with pytest.raises((DataFault, FileNotFoundError)) as refused:
        ImageFiles(str(folder), list_file=str(listed), labels=labels, pipeline=[])
    assert message in str(refused.value)
    assert call_tool('verify_data', listed, '--root', folder, '--workers', 0) == 1
    said = capsys.readouterr().out
    assert message in said
    if b'caf' in content:
        assert 'not valid UTF-8 there: save it as UTF-8' in str(refused.value)
        assert 'not valid UTF-8 there: save it as UTF-8' in said


@pytest.mark.parametrize(
    'content, message',
    [
        ('chat\nch\xe2t\n'.encode('latin-1'), 'is not UTF-8 text .invalid continuation byte.: save it as UTF-8'),
        (b'', 'names no class'),
        (b'cat\ndog\ncat\n', 'names cat twice'),
    ],
)
def test_files_of_class_names_that_are_refused(folder, tmp_path, content, message):
    file = tmp_path / 'classes.txt'
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f'^classes={file} {message}'):
        ImageFiles(str(folder), split='train', labels='folder', classes=str(file), pipeline=[])
    with pytest.raises(FileNotFoundError, match=f'classes={file}.gone is not a file; {tmp_path} holds'):
        ImageFiles(str(folder), split='train', labels='folder', classes=f'{file}.gone', pipeline=[])
