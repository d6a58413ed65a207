"""Reading: valid files are read, no code in a file runs, and damage raises a clear error."""

import argparse
import gzip
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from payloads import CALLS, HARMLESS, PAYLOADS, Call
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from bootmae.checkpoints import read_checkpoint

# Honest files


@pytest.mark.parametrize('name', ['a.pth', 'a.pt', 'a.ckpt', 'a'])
@pytest.mark.parametrize('zipped', [True, False])
def test_tensors_and_plain_types(tmp_path, name, zipped):
    content = dict(
        state_dict={'a': torch.randn(3, 4), 'b': torch.tensor([1, 2])},
        epoch=3,
        text='x',
        none=None,
        nested=[1.5, (True, {'k': {2}})],
    )
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / name)
    assert torch.equal(read['state_dict']['a'], content['state_dict']['a'])
    assert read['state_dict']['b'].tolist() == [1, 2]
    assert {k: v for k, v in read.items() if k != 'state_dict'} == {
        k: v for k, v in content.items() if k != 'state_dict'
    }


def test_a_text_path_will_do(tmp_path):
    torch.save({'a': 1}, tmp_path / 'a.pth')
    assert read_checkpoint(str(tmp_path / 'a.pth')) == {'a': 1}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool])
def test_types_of_numbers_stay(tmp_path, dtype):
    values = torch.randn(5).to(dtype)
    torch.save({'a': values}, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')['a']
    assert read.dtype == dtype
    assert torch.equal(read, values)


def test_safetensors(tmp_path):
    tensors = {'a': torch.randn(3, 4), 'b.c': torch.arange(3)}
    save_file(tensors, tmp_path / 'a.safetensors')
    read = read_checkpoint(tmp_path / 'a.safetensors')
    assert set(read) == {'a', 'b.c'}
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def test_a_file_like_the_authors(tmp_path):
    args = argparse.Namespace(model='bootmae_base', lr=1.5e-4, betas=[0.9, 0.95], output_dir=None)
    torch.save(
        dict(
            model={'cls_token': torch.ones(1)},
            model_ema={'cls_token': torch.zeros(1)},
            epoch=800,
            scaler=dict(scale=1.0),
            args=args,
        ),
        tmp_path / 'a.pth',
    )
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read['args'] == args
    assert read['model']['cls_token'].item() == 1
    assert read['epoch'] == 800


def test_numpy_numbers(tmp_path):
    content = dict(
        scalar=np.float64(0.5),
        small=np.float32(0.25),
        count=np.int64(7),
        array=np.arange(4.0),
        flags=np.array([True, False]),
        empty=np.array([]),
    )
    torch.save(content, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert (read['scalar'], read['small'], read['count']) == (0.5, 0.25, 7)
    assert read['array'].tolist() == [0, 1, 2, 3]
    assert read['flags'].tolist() == [True, False]
    assert read['empty'].tolist() == []


def test_numpy_numbers_of_numpy_1(tmp_path):
    """Older files name a module that numpy 2 has renamed."""
    path = tmp_path / 'a.pth'
    torch.save(dict(scalar=np.float64(0.5), array=np.arange(4.0)), path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    assert written.count(b'numpy._core.multiarray') == 2
    path.write_bytes(written.replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))
    read = read_checkpoint(path)
    assert read['scalar'] == 0.5
    assert read['array'].tolist() == [0, 1, 2, 3]


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x, y, mode):
        return dict(loss=(self.linear(x).squeeze(1) - y).square().mean())


def test_a_file_of_mmengine(tmp_path):
    """With log histories, whose pickles name their own methods through getattr."""
    data = DataLoader(TensorDataset(torch.randn(8, 2), torch.randn(8)), batch_size=2)
    runner = Runner(
        Toy(),
        str(tmp_path),
        train_dataloader=data,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        log_level='ERROR',
        param_scheduler=dict(type='CosineAnnealingLR', T_max=2),
        default_scope='mmengine',
        experiment_name='test_read',
        randomness=dict(seed=0),
    )
    runner.train()
    path = tmp_path / 'epoch_2.pth'
    assert b'builtin' in path.read_bytes()
    read = read_checkpoint(path)
    assert torch.equal(read['state_dict']['linear.weight'], runner.model.linear.weight)
    assert (read['meta']['epoch'], read['meta']['iter']) == (2, 8)
    history = read['message_hub']['log_scalars']['train/loss']
    assert type(history) is HistoryBuffer
    values, counts = history.data
    assert len(values) == 8
    assert counts.tolist() == [1] * 8
    assert history.mean(4) == pytest.approx(values[-4:].mean())
    assert history.statistics('max') == values.max()


# Malicious files: a marker would appear if their code ran


@pytest.mark.parametrize('kind', CALLS | HARMLESS)
@pytest.mark.parametrize('form', ['zip', 'legacy', 'pickle', 'history'])
def test_no_code_is_run(tmp_path, kind, form):
    marker, path = tmp_path / 'marker', tmp_path / 'a.pth'
    payload = (CALLS | HARMLESS)[kind](marker)
    content = dict(state_dict={'a': torch.ones(2)}, meta=payload)
    if form == 'history':  # hidden in a type that is allowed
        history = HistoryBuffer()
        history.__dict__['payload'] = payload
        content['meta'] = history
    if form == 'pickle':
        path.write_bytes(pickle.dumps(dict(a=payload), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != 'legacy')
    with pytest.raises(ValueError, match='holds more than tensors and plain types') as error:
        read_checkpoint(path)
    assert not marker.exists()
    assert str(path) in str(error.value)
    assert 'weights_only' not in str(error.value), 'no advice to read it unsafely'
    assert 'add_safe_globals' not in str(error.value)


@pytest.mark.parametrize('kind', PAYLOADS)
def test_the_malicious_files_would_work(tmp_path, kind):
    """A reader that trusts files runs the payloads."""
    marker, path = tmp_path / 'marker', tmp_path / 'a.pth'
    PAYLOADS[kind](path, marker)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_the_message_names_what_was_refused(tmp_path):
    torch.save({'a': Call(eval, '1')}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'GLOBAL (\w+\.)?eval was not an allowed global'):
        read_checkpoint(tmp_path / 'a.pth')
    torch.save({'a': Call(os.system, 'true')}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'GLOBAL posix.system whose module posix is blocked'):
        read_checkpoint(tmp_path / 'a.pth')
    torch.save({'a': Call(getattr, HistoryBuffer, '__init__')}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"a reference to __init__ of <class '.*HistoryBuffer'>"):
        read_checkpoint(tmp_path / 'a.pth')


def test_nothing_stays_allowed_afterwards(tmp_path):
    before = list(torch.serialization.get_safe_globals())
    torch.save({'args': argparse.Namespace(a=1)}, tmp_path / 'a.pth')
    read_checkpoint(tmp_path / 'a.pth')
    torch.save({'a': Call(eval, '1')}, tmp_path / 'b.pth')
    with pytest.raises(ValueError):
        read_checkpoint(tmp_path / 'b.pth')
    assert set(torch.serialization.get_safe_globals()) == set(before)


# Damaged and other files


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*a\.pth: use the path of a \.pth or \.safetensors'):
        read_checkpoint(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
@pytest.mark.parametrize(
    'content', [b'', b'\x80', b'PK\x03\x04', b'hello' * 100, b'<!DOCTYPE html><html>404</html>', b'\n' * 40]
)
def test_no_checkpoint_at_all(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_checkpoint(tmp_path / name)


def test_a_damaged_compressed_file(tmp_path):
    data = bytearray(gzip.compress(bytes(range(256)) * 40))
    data[20:40] = b'x' * 20
    (tmp_path / 'a.pth').write_bytes(data)
    with pytest.raises(ValueError, match='a.pth .*a damaged gzip file'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('form', ['zip', 'legacy', 'safetensors'])
def test_truncated_anywhere(tmp_path, form):
    path, tensors = tmp_path / ('a.safetensors' if form == 'safetensors' else 'a.pth'), {'a': torch.randn(200)}
    if form == 'safetensors':
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == 'zip')
    whole = path.read_bytes()
    for length in [*range(1, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match='is damaged'):
            read_checkpoint(path)


@pytest.mark.parametrize(
    'content, name', [([1, 2], 'list'), (torch.ones(2), 'Tensor'), ('text', 'str'), (None, 'NoneType')]
)
def test_no_dict(tmp_path, content, name):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=f'holds a {name}, not a dict of weights'):
        read_checkpoint(tmp_path / 'a.pth')


def test_two_threads_may_read_at_once(tmp_path, monkeypatch):
    """All threads share torch's list of safe types; the first to end must not clear it for the others."""
    path, load, entered, ended = tmp_path / 'run.pth', torch.load, threading.Event(), threading.Event()
    torch.save(dict(history=HistoryBuffer([1.0], [1]), args=argparse.Namespace(lr=1.0)), path)

    def load_late(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            ended.wait(0.5)  # for the other thread, if nothing keeps it from reading meanwhile
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', load_late)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(read_checkpoint, path)
        assert entered.wait(5)
        second = read_checkpoint(path)
        ended.set()
        assert first.result()['args'].lr == second['args'].lr == 1.0
