"""A signal stops a run in good order."""

import os
import signal

import pytest

from bootmae.distributed.exits import BadDataError, Requeue, RunStopped
from bootmae.engine.hooks.bad_images import BadImagesHook
from bootmae.engine.hooks.preemption import PreemptionHook


@pytest.fixture
def runner(fake_runner):
    hook = PreemptionHook()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    fake_runner.hooks.append(hook)
    hook.before_train(fake_runner)
    yield fake_runner
    hook.close()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_the_next_update(runner, number):
    """It is known one iteration later (1), which ends an update."""
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # has no further effect
    runner.train()
    assert runner.hooks[0].calls == []
    with pytest.raises(Requeue, match=rf'{number.name}: saved step_9.pth. .* --resume'):
        runner.train()
    assert runner.hooks[0].calls == [(1, False)]


def test_ctrl_c_is_a_signal_to_stop(runner, capfd):
    os.kill(os.getpid(), signal.SIGINT)
    assert 'Ctrl-C: the run saves after this step and ends; a second Ctrl-C ends it at once' in capfd.readouterr().err
    runner.train()
    with pytest.raises(Requeue, match='Ctrl-C: saved step_9.pth. .* --resume'):
        runner.train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_end_within_an_accumulation(runner):
    runner.train()
    os.kill(os.getpid(), signal.SIGTERM)
    runner.train(2)
    with pytest.raises(Requeue):
        runner.train()
    assert runner.hooks[0].calls == [(3, False)]


def test_a_signal_during_validation(runner):
    hook = runner.hooks[1]
    hook.after_val_iter(runner, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Requeue):
        hook.after_val_iter(runner, 1)
    assert runner.hooks[0].calls == [(0, True)]
    hook.after_val_iter(runner, 0)  # of a validation after the run


def test_a_save_that_fails_is_no_requeue(runner):
    runner.hooks[0].error = 'no space left'
    os.kill(os.getpid(), signal.SIGTERM)
    runner.train()
    with pytest.raises(RunStopped, match='(?s)SIGTERM.*could not be saved: no space left') as stop:
        runner.train()
    assert stop.value.code == 1


@pytest.mark.parametrize('images, ending', [(1, Requeue), (4, BadDataError)])
def test_bad_images_of_the_last_step_are_listed(runner, tmp_path, images, ending):
    """Above the budget (3) they are the reason for the end."""
    runner.hooks.insert(1, BadImagesHook())
    runner.hooks[1].before_train(runner)
    os.kill(os.getpid(), signal.SIGTERM)
    runner.train()
    runner.train_loop.dataloader.dataset.reports = [(f'{k}.jpg', 'cut off') for k in range(images)]
    with pytest.raises(ending):
        runner.train()
    assert len((tmp_path / 'bad_images.txt').read_text().splitlines()) == images
    assert runner.hooks[0].calls == [(1, False)]
