"""Writing: whole or not at all, and never over a file unasked."""
import json
import os

import pytest
import torch
from safetensors.torch import safe_open

from bootmae.checkpoints import read_checkpoint
from bootmae.checkpoints.write import check_target, write_checkpoint, write_file

CONTENT = dict(state_dict={'a': torch.arange(6.).view(2, 3)}, meta=dict(bootmae=dict(mean=[1.0, 2.0], kind='x')))


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors', 'a'])
def test_what_is_written_is_read(tmp_path, name):
    write_checkpoint(tmp_path / name, CONTENT)
    assert os.listdir(tmp_path) == [name]
    read = read_checkpoint(tmp_path / name)
    assert read['meta'] == CONTENT['meta']
    assert list(read['state_dict']) == ['a']
    assert torch.equal(read['state_dict']['a'], CONTENT['state_dict']['a'])


def test_safetensors_of_shared_and_strided_tensors(tmp_path):
    a = torch.arange(6.).view(2, 3)
    write_checkpoint(tmp_path / 'a.safetensors', CONTENT | dict(state_dict={'a': a, 'b': a, 'c': a.T, 'd': a[0]}))
    read = read_checkpoint(tmp_path / 'a.safetensors')['state_dict']
    assert torch.equal(read['c'], a.T)
    assert torch.equal(read['b'], a)
    assert torch.equal(read['d'], a[0])
    with safe_open(tmp_path / 'a.safetensors', 'pt') as file:
        assert json.loads(file.metadata()['bootmae']) == CONTENT['meta']['bootmae']


def test_safetensors_hold_one_state(tmp_path):
    with pytest.raises(ValueError, match='has no place for model, model_ema: give a name that ends'):
        write_checkpoint(tmp_path / 'a.safetensors', dict(model={}, model_ema={}, meta={}))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('stage', ['save', 'sync', 'rename'])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, stage):
    path = tmp_path / 'a.pth'
    path.write_text('old')

    def fail(*args):
        raise OSError('disk full')

    def save(file):
        file.write_text('half')
        if stage == 'save':
            fail()
    if stage != 'save':
        monkeypatch.setattr(os, dict(sync='fsync', rename='replace')[stage], fail)
    with pytest.raises(OSError, match='disk full'):
        write_file(path, save)
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.pth']


def test_the_name_comes_last(tmp_path, monkeypatch):
    """The file is on the disk before it gets its name, and the name is on the disk before the call ends."""
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda handle: events.append('fsync') or fsync(handle))
    monkeypatch.setattr(os, 'replace', lambda a, b: events.append((a.parent, b.name)) or replace(a, b))
    write_file(tmp_path / 'a', lambda file: file.write_text('new'))
    assert events == ['fsync', (tmp_path, 'a'), 'fsync']
    assert (tmp_path / 'a').read_text() == 'new'


def test_targets(tmp_path):
    (tmp_path / 'a.pth').write_text('old')
    check_target(tmp_path / 'b.pth')
    check_target(tmp_path / 'a.pth', force=True)
    with pytest.raises(FileExistsError, match=r'a\.pth exists: give another name, or --force'):
        check_target(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='is a folder: give the path of a file'):
        check_target(tmp_path, force=True)
    with pytest.raises(FileNotFoundError, match=r'no folder .*missing for a\.pth: make it first'):
        check_target(tmp_path / 'missing' / 'a.pth')
