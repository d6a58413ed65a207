"""Checksums: any damage to a file of ours is detected, and other readers still read it."""

import json
import os
import random
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from bootmae.checkpoints import read_checkpoint
from bootmae.checkpoints.checksum import SIZE, peek, verify_checksum
from bootmae.checkpoints.write import write_checkpoint

SUMS = r'is damaged \(checksum\)'


def content(iteration: int | None = 7) -> dict:
    meta = dict(epoch=1, bootmae=dict(mean=[1.0, 2.0])) | ({} if iteration is None else dict(iter=iteration))
    return dict(state_dict={'a': torch.arange(300.0).view(20, 15), 'b': torch.ones(3)}, meta=meta)


@pytest.fixture(params=['a.pth', 'a.safetensors'])
def written(request, tmp_path) -> tuple:
    path = tmp_path / request.param
    write_checkpoint(path, content())
    return path, path.read_bytes()


def silently_changed(path, data: bytes) -> bool:
    """Whether a changed file is read without an error."""
    path.write_bytes(data)
    try:
        read_checkpoint(path)
    except ValueError as error:
        return str(path) not in str(error)
    return True


def flips(data: bytes, number: int = 100, last: int = 300) -> list[bytes]:
    """Copies with one flipped bit: at random positions, and more of them at the beginning and in the record."""
    rng = random.Random(0)
    places = [rng.randrange(len(data)) for _ in range(number)]
    places += [rng.randrange(len(data) - last, len(data)) for _ in range(last)] + list(range(60))
    return [data[:k] + bytes([data[k] ^ (1 << rng.randrange(8))]) + data[k + 1 :] for k in places]


def test_every_flipped_bit_is_found(written):
    path, data = written
    assert not sum(silently_changed(path, changed) for changed in flips(data))
    assert silently_changed(path, data), 'the file as it was is good'


def test_flipped_bits_of_a_stock_file_pass(tmp_path):
    """The test above can fail, because torch does not check anything."""
    torch.save(content(), tmp_path / 'a.pth')
    data = (tmp_path / 'a.pth').read_bytes()
    assert sum(silently_changed(tmp_path / 'a.pth', changed) for changed in flips(data)[:100]) > 10
    save_file(content()['state_dict'], tmp_path / 'a.safetensors')
    data = (tmp_path / 'a.safetensors').read_bytes()
    assert sum(silently_changed(tmp_path / 'a.safetensors', changed) for changed in flips(data)[:100]) > 10


def test_every_truncation_is_found(written):
    path, data = written
    rng = random.Random(1)
    lengths = [rng.randrange(len(data)) for _ in range(100)] + list(range(len(data) - SIZE - 70, len(data)))
    assert not sum(silently_changed(path, data[:length]) for length in lengths)
    assert not silently_changed(path, data + b'\0')
    assert not silently_changed(path, data + data[-50:])


def test_the_mark_cut_off_or_taken_from_another_file(tmp_path):
    write_checkpoint(tmp_path / 'a.pth', content())
    write_checkpoint(tmp_path / 'b.pth', content(8))
    a, b = ((tmp_path / name).read_bytes() for name in ('a.pth', 'b.pth'))
    assert len(a) == len(b)
    for changed in (a[:-SIZE], a[:-SIZE] + b[-SIZE:], a[:-SIZE] + bytes(SIZE)):
        (tmp_path / 'a.pth').write_bytes(changed)
        with pytest.raises(ValueError, match=SUMS):
            read_checkpoint(tmp_path / 'a.pth')


def test_iteration_is_read_from_the_tail(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    for iteration in (0, 7, 123456789, None):
        write_checkpoint(path, content(iteration))
        assert peek(path) == iteration
        assert verify_checksum(path)
    torch.save(content(), path)
    assert (peek(path), verify_checksum(path)) == (None, False)
    write_checkpoint(path, content())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=SUMS):
        peek(path)


@pytest.mark.parametrize('mmap', [False, True])
def test_other_readers_read_it(tmp_path, mmap):
    write_checkpoint(tmp_path / 'a.pth', content())
    theirs = torch.load(tmp_path / 'a.pth', mmap=mmap)
    assert torch.equal(theirs['state_dict']['a'], content()['state_dict']['a'])
    with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
        assert archive.testzip() is None
        assert len(archive.comment) == SIZE
    assert b'PK\x06\x06' in (tmp_path / 'a.pth').read_bytes(), 'torch writes ZIP64, as for more than 4 GB'
    write_checkpoint(tmp_path / 'a.safetensors', content())
    assert torch.equal(load_file(tmp_path / 'a.safetensors')['a'], content()['state_dict']['a'])


def test_files_without_a_mark_are_read(tmp_path):
    torch.save(content(), tmp_path / 'a.pth')
    assert torch.equal(read_checkpoint(tmp_path / 'a.pth')['state_dict']['a'], content()['state_dict']['a'])
    header = dict(format='pt', bootmae=json.dumps(dict(mean=[1.0])))
    save_file(content()['state_dict'], tmp_path / 'a.safetensors', metadata=header)
    assert read_checkpoint(tmp_path / 'a.safetensors')['meta'] == dict(bootmae=dict(mean=[1.0]))


def test_a_comment_of_another_program_is_no_mark(tmp_path):
    torch.save(content(), tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth', 'a') as archive:
        archive.comment = b'x' * SIZE
    assert (peek(tmp_path / 'a.pth'), verify_checksum(tmp_path / 'a.pth')) == (None, False)
    assert os.path.getsize(tmp_path / 'a.pth') > SIZE
