"""A run continues without the logs and records that it cannot write."""

import errno
import io
import json
import logging
import os
import resource
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend
from survivors import toy_runner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bootmae.checkpoints import read_checkpoint
from bootmae.engine.runner import records

FULL = range(3, 8)  # iterations of the toy run, from 0, in which the disk is full; epochs have four
SIZE = resource.RLIMIT_FSIZE


@pytest.fixture
def set_limit():
    """Set the largest size of a file in bytes, which stands for the free space; None for no limit."""
    before = resource.getrlimit(SIZE)
    yield lambda size: resource.setrlimit(SIZE, (before[0] if size is None else size, before[1]))
    resource.setrlimit(SIZE, before)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')  # of TensorBoard's writer
def test_a_full_disk_with_the_logs_of_the_configs(tmp_path, set_limit, monkeypatch):
    """Log lines, a checkpoint and the log file are missed in it, and everything is written after it."""
    monkeypatch.setattr(records, 'PAUSE', 0)

    class Fill(Hook):
        priority = 'HIGHEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
            set_limit(0 if runner.iter in FULL else None)

    def run(name: str, *hooks: Hook) -> tuple[Path, dict[str, torch.Tensor]]:
        backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
        settings = {
            'visualizer': dict(type='Visualizer', vis_backends=backends),
            'default_hooks.logger': dict(type='LoggerHook', interval=1),
            'log_level': 'WARNING',
        }
        runner = toy_runner(tmp_path / name, dict(max_keep_ckpts=-1), epochs=3, **settings)
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()
        return Path(runner.log_dir), read_checkpoint(tmp_path / name / 'epoch_3.pth')['state_dict']

    log, weights = run('full', Fill())
    _, whole = run('whole')
    assert all(torch.equal(weights[key], value) for key, value in whole.items())
    files = sorted(path.name for path in (tmp_path / 'full').glob('*.pth'))
    assert files == ['epoch_3.pth'], 'those of the first two epochs fell into it'
    lines = [json.loads(line) for line in (log / 'vis_data' / 'scalars.json').read_text().splitlines()]
    steps = [step for step in range(1, 13) if step - 1 not in FULL]
    assert [line['step'] for line in lines] == steps
    drawn = EventAccumulator(str(log / 'vis_data')).Reload().Scalars('loss')
    assert sorted(event.step for event in drawn)[-4:] == steps[-4:], 'in a new file'


def test_a_backend_that_failed_is_left_alone_for_a_while(tmp_path, monkeypatch, caplog):
    seconds, calls = [100.0], []
    monkeypatch.setattr(time, 'monotonic', lambda: seconds[0])
    monkeypatch.setattr(LocalVisBackend, 'add_scalars', lambda self, values, **options: calls.append(values) or fail())

    def fail() -> None:
        raise ConnectionError('no answer')

    backend = LocalVisBackend(str(tmp_path))
    records.TolerantBackend(backend)
    for now in (0.0, 299.0, 301.0):
        seconds[0] = 100.0 + now
        backend.add_scalars({'loss': now}, step=1)
    assert calls == [{'loss': 0.0}, {'loss': 301.0}]
    monkeypatch.setattr(LocalVisBackend, 'add_config', lambda self, config: fail())
    with pytest.raises(ConnectionError):  # before the first step nothing is lost
        backend.add_config(Config())


def test_other_errors_are_raised(tmp_path):
    backend = TensorboardVisBackend(str(tmp_path))
    records.TolerantBackend(backend)
    with pytest.raises(AssertionError, match='step'):
        backend.add_scalars({'step': 1})


def test_text_is_appended_whole_or_not_at_all(tmp_path, set_limit):
    path = tmp_path / 'lines.txt'
    records.append_text(path, 'a' * 99 + '\n')
    set_limit(120)
    with pytest.raises(OSError, match='File too large'):
        records.append_text(path, 'b' * 99 + '\n')
    with pytest.raises(OSError, match='File too large'):
        records.append_text(tmp_path / 'new.txt', 'b' * 199)
    set_limit(None)
    records.append_text(path, 'ä\n')
    assert path.read_text(encoding='utf-8') == 'a' * 99 + '\nä\n'
    assert (tmp_path / 'new.txt').read_text() == ''


def test_a_log_file_that_cannot_be_written_is_named_once(tmp_path, set_limit, capfd):
    path = tmp_path / 'run.log'
    path.write_text('earlier\n' * 500)
    logger = MMLogger(f'full_{os.getpid()}', log_file=str(path), file_mode='a')
    records.tolerate_logs(logger)
    set_limit(4000)
    for text in ('one', 'two'):
        logger.info(text)
    set_limit(None)
    logger.handlers[1].handle(logging.makeLogRecord(dict(msg='%d', args=('no number',), levelno=logging.INFO)))
    printed = capfd.readouterr().err
    assert printed.count(f'{path} was not written: [Errno 27] File too large. The run continues') == 1
    assert printed.count('Traceback') == printed.count('TypeError') == 1, 'an error in the code is still shown'


def test_an_output_that_nobody_reads_is_named_once(capfd):
    """``| head -1``: each line of the log was a traceback."""

    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

    logger = logging.Logger('broken')
    logger.addHandler(logging.StreamHandler(Broken()))
    records.tolerate_logs(logger)
    for text in ('one', 'two'):
        logger.info(text)
    assert capfd.readouterr().err == 'the output was not written: [Errno 32] Broken pipe. The run continues\n'
