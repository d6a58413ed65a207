"""Writing: complete or not at all, and never over an existing file unasked."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import safe_open

from bootmae.checkpoints import read_checkpoint
from bootmae.checkpoints.checksum import SummingFile
from bootmae.checkpoints.write import OVERHEAD, bytes_of, check_target, write_checkpoint
from bootmae.files import write_file

CONTENT = dict(state_dict={'a': torch.arange(6.0).view(2, 3)}, meta=dict(bootmae=dict(mean=[1.0, 2.0], kind='x')))


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors', 'a'])
def test_what_is_written_is_read(tmp_path, name):
    write_checkpoint(tmp_path / name, CONTENT)
    assert os.listdir(tmp_path) == [name]
    read = read_checkpoint(tmp_path / name)
    assert read['meta'] == CONTENT['meta']
    assert list(read['state_dict']) == ['a']
    assert torch.equal(read['state_dict']['a'], CONTENT['state_dict']['a'])


def test_safetensors_of_shared_and_strided_tensors(tmp_path):
    a = torch.arange(6.0).view(2, 3)
    write_checkpoint(tmp_path / 'a.safetensors', CONTENT | dict(state_dict={'a': a, 'b': a, 'c': a.T, 'd': a[0]}))
    read = read_checkpoint(tmp_path / 'a.safetensors')['state_dict']
    assert torch.equal(read['c'], a.T)
    assert torch.equal(read['b'], a)
    assert torch.equal(read['d'], a[0])
    with safe_open(tmp_path / 'a.safetensors', 'pt') as file:
        assert json.loads(file.metadata()['bootmae']) == CONTENT['meta']['bootmae']


def test_safetensors_hold_one_state(tmp_path):
    with pytest.raises(ValueError, match='has no place for model, model_ema: use a name that ends'):
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
    with pytest.raises(FileExistsError, match=r'a\.pth exists: use another name, or --force'):
        check_target(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='is a folder: use the path of a file'):
        check_target(tmp_path, force=True)
    with pytest.raises(FileNotFoundError, match=r'no folder .*missing for a\.pth: create it first'):
        check_target(tmp_path / 'missing' / 'a.pth')


# --- space, on the disk and in memory ---


def test_bytes_of_tensors():
    """As torch writes them: the whole memory of a view, and shared memory once."""
    a = torch.zeros(10, 10)
    assert bytes_of(dict(a=a)) == bytes_of([dict(a=a, b=a.T), (a[0],)]) == bytes_of(a[0]) == 400
    assert bytes_of(dict(a=a, b=torch.zeros(3, dtype=torch.bfloat16), c=1, d='x')) == 406


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_too_little_space_is_seen_before_writing(tmp_path, monkeypatch, name):
    write_checkpoint(tmp_path / name, CONTENT)
    before = (tmp_path / name).read_bytes()
    need = OVERHEAD + 24
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=need - 1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'open', lambda *args: pytest.fail('written'))
        with pytest.raises(OSError, match=r'1\.0 MB are needed and 1\.0 MB are free; free some space') as error:
            write_checkpoint(tmp_path / name, CONTENT)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / name))
    assert (tmp_path / name).read_bytes() == before
    assert os.listdir(tmp_path) == [name]
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=need))
    write_checkpoint(tmp_path / name, CONTENT)


@pytest.mark.parametrize('at', [1, 5, 30])
def test_a_full_disk_has_its_own_error(tmp_path, monkeypatch, at):
    """The OSError is raised, not torch's error about positions in its file."""
    calls, write = [], SummingFile.write

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            calls.append(data)
            if len(calls) >= at:
                raise OSError(errno.ENOSPC, 'No space left on device')
            return self.file.write(data)

    def into_full(self, data):
        if not isinstance(self.file, Full):
            self.file = Full(self.file)
        return write(self, data)

    (tmp_path / 'a.pth').write_text('old')
    monkeypatch.setattr(SummingFile, 'write', into_full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'a.pth'}'")):
        write_checkpoint(tmp_path / 'a.pth', CONTENT)
    assert os.listdir(tmp_path) == ['a.pth']
    assert (tmp_path / 'a.pth').read_text() == 'old'


def memory_growth(folder: Path, save: Callable[[Path, dict], None], megabytes: int = 128) -> float:
    """Peak memory of a save over what was used before, as a share of the tensors; of a copy of this process."""
    result = folder / 'growth'
    result.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            content = dict(state_dict={f'{k}': torch.ones(megabytes, 2**15) for k in range(8)}, meta=dict(iter=1))
            Path('/proc/self/clear_refs').write_text('5')  # the peak becomes what is used now

            def peak() -> int:
                return int(re.search(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())[1])

            before = peak()
            save(folder / 'a.pth', content)
            result.write_text(str((peak() - before) / (megabytes << 10)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return float(result.read_text())


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs /proc')
def test_a_save_makes_no_copy_in_memory(tmp_path):
    """At most 10 % more than the tensors, of 128 MB; mmengine's builds the whole file in memory first.

    In a process of its own: one that has run many tests has memory to spare, and would not grow.
    """
    code = (
        'import sys; from pathlib import Path; from mmengine.runner import save_checkpoint\n'
        'from test_write import memory_growth, write_checkpoint; folder = Path(sys.argv[1])\n'
        'print(memory_growth(folder, write_checkpoint), '
        'memory_growth(folder, lambda path, content: save_checkpoint(content, str(path))))'
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)],
        env=os.environ | dict(PYTHONPATH=paths),
        capture_output=True,
        text=True,
        timeout=120,
    )
    ours, theirs = map(float, done.stdout.split()[-2:])
    assert ours < 0.1
    assert theirs > 0.9
