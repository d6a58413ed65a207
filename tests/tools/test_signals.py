"""Runs of two processes end in good order after signals and dead or hanging processes, and can resume."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bootmae.checkpoints import read_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
PRETRAIN = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'
TROUBLE = '''
import multiprocessing
import os
import signal
import subprocess
import time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Trouble(Hook):
    """On one rank before one iteration: hangs, or sends a signal to itself, its launcher, or also its workers."""

    def __init__(self, what, rank=1, iteration=2):
        self.what, self.rank, self.iteration = what, rank, iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == self.rank and runner.iter == self.iteration - 1:
            time.sleep(1)  # some beats, the last of which names files
        if runner.rank == self.rank and runner.iter == self.iteration:
            targets = [os.getppid() if self.what.startswith('launcher_') else os.getpid()]
            if self.what == 'hang':
                time.sleep(600)
            if self.what.startswith('family_'):
                targets += [worker.pid for worker in multiprocessing.active_children()]
            if self.what == 'SIGSTOP':  # torchrun waits 30 s for a stopped process to end
                subprocess.Popen(['sh', '-c', f'sleep 12; kill -KILL {os.getpid()}'])
            for target in targets:
                os.kill(target, getattr(signal, self.what.split('_')[-1]))
'''
OPTIONS = {
    'train_dataloader.batch_size': 16,
    'train_dataloader.dataset.labels_per_class': 16,  # 5 iterations an epoch
    'log_level': 'WARNING',
    'log_processor.window_size': 1,
    'custom_hooks.0.ema': '[[0,0.9],[1,0.99]]',
    'default_hooks.heartbeat.type': 'HeartbeatHook',
    'default_hooks.heartbeat.limit': 3,
    'default_hooks.heartbeat.interval': 0.3,
    'default_hooks.heartbeat.patience': 60,
}


@pytest.fixture
def train(tmp_path):
    """``train(name, *args, trouble=None, processes=2)`` runs in ``tmp_path/name``; returns output and exit code."""
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'trouble_hook.py').write_text(TROUBLE)
    config = tmp_path / 'config.py'
    config.write_text(f"""_base_ = {str(PRETRAIN)!r}
custom_imports = dict(imports=['bootmae.registry', 'trouble_hook'], allow_failed_imports=False)
""")

    def call(name: str, *args, trouble: str | None = None, **options) -> subprocess.CompletedProcess:
        options = OPTIONS | options
        if trouble:
            options |= {'default_hooks.trouble.type': 'Trouble', 'default_hooks.trouble.what': trouble}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(('SLURM', 'MASTER_', 'NODE_'))}
        env = clean | dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(tmp_path / 'modules'))
        command = [
            REPOSITORY / 'tools' / 'dist_train.sh',
            config,
            2,
            '--work-dir',
            tmp_path / name,
            *args,
            '--cfg-options',
            *(f'{key}={value}' for key, value in options.items()),
        ]
        return subprocess.run(
            list(map(str, command)),
            cwd=REPOSITORY,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.STDOUT,
            timeout=150,
        )

    return call


def losses(work_dir: Path) -> dict[int, float]:
    """Return the values of each step of all runs in a work directory; the last run counts."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found |= {row['step']: row['loss'] for row in rows if 'loss' in row}
    return found


@pytest.mark.slow
@pytest.mark.parametrize('signal', ['SIGTERM', 'launcher_SIGINT', 'family_SIGUSR1'])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(train, tmp_path, signal):
    """The signal goes to one of two processes, the launcher, or a process and its workers, in the third step."""
    workers = {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True}
    if signal == 'SIGTERM':
        whole = train('whole')
        assert whole.returncode == 0, whole.stdout[-3000:]
    stopped = train('run', trouble=signal, **(workers if signal.startswith('family') else {}))
    assert stopped.returncode == 75, stopped.stdout[-3000:]
    files = sorted((tmp_path / 'run').glob('step_*.pth'))
    assert len(files) == 1
    steps = read_checkpoint(files[0])['meta']['iter']
    assert 3 <= steps <= 4  # the step that is under way, or the next: ranks learn of it one step later
    assert f'saved {files[0]}' in stopped.stdout
    assert 'Traceback' not in stopped.stdout
    if signal != 'SIGTERM':
        return
    time.sleep(1)  # the log folder has the second as its name
    done = train('run', '--resume')
    assert done.returncode == 0, done.stdout[-3000:]
    assert losses(tmp_path / 'run') == losses(tmp_path / 'whole')
    ours, theirs = (read_checkpoint(tmp_path / name / 'epoch_2.pth')['state_dict'] for name in ('run', 'whole'))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    'trouble, said',
    [
        ('SIGKILL', 'was killed by SIGKILL (exit code 137)'),
        ('SIGSTOP', 'no heartbeat for 3 s from rank 1 (host '),
        ('hang', 'no rank has made progress for 3 s; the last is rank 1 (host '),
    ],
)
def test_a_lost_process_ends_the_others_and_is_named(train, trouble, said):
    begin = time.monotonic()
    ended = train('run', trouble=trouble)
    assert time.monotonic() - begin < 110
    assert ended.returncode == 5, ended.stdout[-3000:]
    assert said in ended.stdout
    assert f'rank 1 (host {socket.gethostname()}, pid' in ended.stdout
    assert 'last files' in ended.stdout
    assert 'iteration 2' in ended.stdout or trouble != 'hang'  # of the others the last beat may be older


@pytest.mark.slow
@pytest.mark.parametrize(
    'args, line',
    [
        (
            ['--resume', 'missing.pth'],
            'error: no checkpoint missing.pth in .*: use the path of a .pth or .safetensors file',
        ),
        (['--nonsense'], 'train.py: error: unrecognized arguments: --nonsense'),
    ],
)
def test_an_error_of_the_user_is_printed_once_and_last(train, args, line):
    ended = train('run', *args)
    assert ended.returncode == 2
    lines = ended.stdout.splitlines()
    assert [text for text in lines if 'error' in text.lower()] == lines[-1:]
    assert re.fullmatch(line, lines[-1])
