"""Runs in processes of their own, for test_05_processes.py. They begin with the first test, beside all others."""

import os
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from rehearsal import toy

from bootmae.checkpoints import read_checkpoint

TIMEOUT = 120  # of one process
REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(REPOSITORY / 'tools' / 'train.py')]
LAUNCH = [str(REPOSITORY / 'tools' / 'dist_train.sh')]  # CONFIG GPUS
STEPS, TROUBLE_AT = 10, 5
MODULE = f'''
import math
import os
import signal
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from bootmae.engine.unwrap import bare_model


@HOOKS.register_module()
class Trouble(Hook):
    """From one iteration on: a signal to this process, or images that are NaN."""

    def __init__(self, what=''):
        self.what = what

    def before_train(self, runner):
        backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else 'no exchange'
        device = next(runner.model.parameters()).device.type
        exact = torch.are_deterministic_algorithms_enabled()
        print(f'on {{device}}, {{backend}}, deterministic {{exact}}', flush=True)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == {TROUBLE_AT} and self.what.startswith('SIG'):
            os.kill(os.getpid(), getattr(signal, self.what))
        if runner.iter == {TROUBLE_AT} and self.what == 'poison':
            bare_model(runner).data_preprocessor.mean.fill_(math.nan)
'''
CONFIG = f"""_base_ = {str(REPOSITORY / 'configs/pretrain/bootmae_debug.py')!r}
custom_imports = dict(imports=['bootmae.registry', 'gpu_trouble'], allow_failed_imports=False)
optim_wrapper = dict(type='AutocastOptimWrapper')
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=-1), trouble=dict(type='Trouble'))
randomness = dict(deterministic=True)
log_level = 'WARNING'
"""


class Run:
    """What a process printed, its exit code, and its work directory."""

    def __init__(self, folder: Path, name: str, command: list[str], *args: str, trouble: str = ''):
        self.work_dir, self.printed = folder / name, ''
        clean = {key: value for key, value in os.environ.items() if not key.startswith(('SLURM', 'MASTER_', 'NODE_'))}
        paths = [str(folder), str(REPOSITORY), *filter(None, [os.environ.get('PYTHONPATH')])]
        count = ['1'] if command is LAUNCH else []
        self.process = subprocess.Popen(
            [
                *command,
                str(folder / 'config.py'),
                *count,
                '--work-dir',
                str(self.work_dir),
                *args,
                *(['--cfg-options', f'default_hooks.trouble.what={trouble}'] if trouble else []),
            ],
            env=clean | dict(PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(paths)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            start_new_session=True,
        )

    def wait(self) -> 'Run':
        """Until it has ended. A process that takes too long is killed, which its exit code, -9, tells."""
        try:
            self.printed = self.process.communicate(timeout=TIMEOUT)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            self.printed = f'killed after {TIMEOUT} s\n{self.process.communicate()[0]}'
        return self

    def kill(self) -> None:
        """End it and the processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def code(self) -> int:
        return self.process.returncode

    def content(self, name: str = f'iter_{STEPS}.pth') -> dict:
        return read_checkpoint(self.work_dir / name)


CHAINS = {  # of runs, one after the other: command, arguments, what happens to it
    'whole': [(TRAIN, [], '')],
    'killed': [(TRAIN, [], 'SIGKILL'), (TRAIN, ['--resume'], '')],
    'stopped': [(LAUNCH, [], 'SIGTERM'), (LAUNCH, ['--resume'], '')],
    'poisoned': [(TRAIN, [], 'poison')],
    'mistaken': [(TRAIN, ['--init', 'missing.pth'], '')],
}


class Runs:
    """``runs(chain)`` waits for the runs of a chain. Those asked for are started at once, some side by side."""

    def __init__(self, folder: Path, chains: list[str]):
        self.folder, self.started, self.ended = folder, [], False
        (folder / 'gpu_trouble.py').write_text(MODULE)
        (folder / 'config.py').write_text(CONFIG)
        self.pool = ThreadPoolExecutor(toy(4, 1))
        self.futures: dict[str, Future] = {name: self.pool.submit(self.follow, name) for name in chains}

    def follow(self, name: str) -> list[Run]:
        return [self.start(name, command, args, trouble).wait() for command, args, trouble in CHAINS[name]]

    def start(self, name: str, command: list[str], args: list[str], trouble: str) -> Run:
        self.started.append(Run(self.folder, name, command, *args, trouble=trouble))
        if self.ended:
            self.started[-1].kill()
        return self.started[-1]

    def __call__(self, name: str) -> list[Run]:
        return self.futures[name].result()

    def end(self) -> None:
        """Leave nothing behind, also where tests were broken off."""
        self.ended = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        for run in self.started:
            run.kill()
        self.pool.shutdown()
