"""The end of a run by a signal or by too many unreadable images, with a runner that only looks like one."""

import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bootmae.distributed.exits import BadDataError, Requeue, RunStopped
from bootmae.distributed.signals import StopSignals, start_worker
from bootmae.engine.hooks.preemption import BAD_IMAGES, PreemptionHook


class Data(list):
    """A data set of 30000 images; ``reports`` are those it could not read."""

    def __init__(self):
        super().__init__(range(30000))
        self.reports = []

    def take_reports(self):
        reports, self.reports = self.reports, []
        return reports


class Saver:
    """A hook that notes when it is asked to save; with an ``error``, in vain."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def save_now(self, runner, counted=False):
        self.calls.append((runner.iter, counted))
        if self.error:
            raise OSError(self.error)
        return 'step_9.pth'


@pytest.fixture
def runner(tmp_path):
    """Makes an update in each second iteration."""
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=Data(), worker_init_fn=None))
    runner = SimpleNamespace(
        rank=0,
        iter=0,
        work_dir=str(tmp_path),
        _resume=False,
        train_loop=loop,
        val_loop=None,
        logger=logging.getLogger('watch'),
        hooks=[Saver()],
    )
    runner.optim_wrapper = SimpleNamespace(should_update=lambda: (runner.iter + 1) % 2 == 0)
    return runner


@pytest.fixture
def hook(runner):
    hook = PreemptionHook()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    hook.before_train(runner)
    yield hook
    hook.close()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


def step(hook, runner, number: int = 1) -> None:
    for _ in range(number):
        hook.after_train_iter(runner, runner.iter)
        runner.iter += 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_the_next_update(hook, runner, number):
    """Learnt one iteration later (1), which ends an update."""
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # nothing more
    step(hook, runner)
    assert runner.hooks[0].calls == []
    with pytest.raises(Requeue, match=rf'{number.name}: saved step_9.pth. .* --resume'):
        step(hook, runner)
    assert runner.hooks[0].calls == [(1, False)]


def test_no_end_within_an_accumulation(hook, runner):
    step(hook, runner)
    os.kill(os.getpid(), signal.SIGTERM)
    step(hook, runner, 2)
    with pytest.raises(Requeue):
        step(hook, runner)
    assert runner.hooks[0].calls == [(3, False)]


def test_a_signal_during_validation(hook, runner):
    hook.after_val_iter(runner, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Requeue):
        hook.after_val_iter(runner, 1)
    assert runner.hooks[0].calls == [(0, True)]


def test_a_save_that_fails_is_no_requeue(hook, runner):
    runner.hooks[0].error = 'no space left'
    os.kill(os.getpid(), signal.SIGTERM)
    step(hook, runner)
    with pytest.raises(RunStopped, match='(?s)SIGTERM.*could not be saved: no space left') as stop:
        step(hook, runner)
    assert stop.value.code == 1


def test_bad_images_are_listed_once(hook, runner, caplog):
    data = runner.train_loop.dataloader.dataset
    data.reports = [('a.jpg', 'OSError: cut\noff')]
    step(hook, runner, 2)
    data.reports = [('a.jpg', 'OSError: cut\noff'), ('b.jpg', 'empty')]
    step(hook, runner, 2)
    lines = ['a.jpg\tOSError: cut off', 'b.jpg\tempty']
    assert runner_file(runner).read_text().splitlines() == lines
    assert [record.getMessage().split()[0] for record in caplog.records] == ['a.jpg', 'b.jpg']
    step(hook, runner, 4)  # 3 of 30000 are allowed
    hook.after_train(runner)


def runner_file(runner) -> Path:
    return Path(runner.work_dir) / BAD_IMAGES


def test_over_the_budget_all_are_named_and_the_run_is_saved(hook, runner):
    runner.train_loop.dataloader.dataset.reports = [(f'{k}.jpg', f'reason {k}') for k in range(4)]
    step(hook, runner)
    with pytest.raises(
        BadDataError,
        match=r'(?s)4 of 30000 images cannot be read, 3 may be.*0.jpg: reason 0.*3.jpg: '
        r'reason 3.*default_hooks.preemption.budget=0.001',
    ):
        step(hook, runner)
    assert runner.hooks[0].calls == [(1, False)]


def test_the_count_survives_a_resume_and_no_more(hook, runner):
    runner.train_loop.dataloader.dataset.reports = [('a.jpg', 'x'), ('b.jpg', 'y'), ('c.jpg', 'z')]
    step(hook, runner, 2)
    hook.close()
    runner._resume, again = True, PreemptionHook()
    again.before_train(runner)
    runner.train_loop.dataloader.dataset.reports = [('c.jpg', 'z'), ('d.jpg', 'w')]
    runner.iter = 0
    step(again, runner)
    with pytest.raises(BadDataError, match='4 of 30000'):
        step(again, runner)
    runner._resume = False
    again.before_train(runner)
    assert not runner_file(runner).exists()
    again.close()


def test_reports_of_the_last_step_count(hook, runner):
    step(hook, runner, 2)
    runner.train_loop.dataloader.dataset.reports = [(f'{k}.jpg', '') for k in range(4)]
    with pytest.raises(BadDataError):
        hook.after_train(runner)


def test_a_worker_outlives_signals_until_the_run_leaves():
    """Those that a scheduler sends to all processes; the last one is Python's own, at the end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        leaving = torch.zeros(1)
        start_worker(0, lambda worker: os.write(writing, b'inner, '), leaving)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.write(writing, b'alive')
        leaving.fill_(1)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(reading, 100) == b'inner, alive'
    os.close(reading)


def test_signals_note_the_first():
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    signals.restore()
    assert signals.asked is signal.SIGUSR1


@pytest.mark.parametrize('budget', [-1, 1.1])
def test_budget(budget):
    with pytest.raises(ValueError, match='give the share'):
        PreemptionHook(budget=budget)
