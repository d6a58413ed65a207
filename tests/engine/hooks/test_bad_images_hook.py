"""Unreadable images are listed, and too many end the run."""

import pytest

from bootmae.distributed.exits import BadDataError
from bootmae.engine.hooks.bad_images import BadImagesHook


@pytest.fixture
def runner(fake_runner):
    fake_runner.hooks.append(BadImagesHook())
    fake_runner.hooks[1].before_train(fake_runner)
    return fake_runner


@pytest.fixture
def data(runner):
    return runner.train_loop.dataloader.dataset


def test_bad_images_are_listed_once(runner, data, tmp_path, caplog):
    data.reports = [('a.jpg', 'OSError: cut\noff')]
    runner.train(2)
    data.reports = [('a.jpg', 'OSError: cut\noff'), ('b.jpg', 'empty')]
    runner.train(2)
    assert (tmp_path / 'bad_images.txt').read_text().splitlines() == ['a.jpg\tOSError: cut off', 'b.jpg\tempty']
    assert [record.getMessage().split()[0] for record in caplog.records] == ['a.jpg', 'b.jpg']
    runner.train(4)  # 3 of 30000 are allowed
    runner.hooks[1].after_train(runner)


def test_over_the_budget_all_are_named_and_the_run_is_saved(runner, data):
    data.reports = [(f'{k}.jpg', f'reason {k}') for k in range(4)]
    runner.train()
    with pytest.raises(
        BadDataError,
        match=r'(?s)4 of 30,000 images cannot be read; at most 3 may be unreadable.*0.jpg: reason 0.*3.jpg: '
        r'reason 3.*default_hooks.bad_images.budget=0.001',
    ):
        runner.train()
    assert runner.hooks[0].calls == [(1, False)]


def test_a_resumed_run_continues_the_list_and_a_new_one_does_not(runner, data, tmp_path):
    data.reports = [('a.jpg', 'x'), ('b.jpg', 'y'), ('c.jpg', 'z')]
    runner.train(2)
    runner._resume, runner.hooks[1] = True, BadImagesHook()
    runner.hooks[1].before_train(runner)
    data.reports = [('c.jpg', 'z'), ('d.jpg', 'w')]
    runner.train()
    with pytest.raises(BadDataError, match='4 of 30,000'):
        runner.train()
    runner._resume = False
    runner.hooks[1].before_train(runner)
    assert not (tmp_path / 'bad_images.txt').exists()


def test_a_list_that_cannot_be_written_does_not_end_the_run(runner, data, tmp_path, caplog):
    (tmp_path / 'bad_images.txt').mkdir()
    data.reports = [('a.jpg', 'cut off')]
    runner.train(2)
    assert runner.hooks[1].bad == {'a.jpg': 'cut off'}
    assert [record.getMessage().split()[0] for record in caplog.records] == ['a.jpg']


def test_reports_of_the_last_step_count(runner, data):
    runner.train(2)
    data.reports = [(f'{k}.jpg', '') for k in range(4)]
    with pytest.raises(BadDataError):
        runner.hooks[1].after_train(runner)


@pytest.mark.parametrize('budget', [-1, 1.1])
def test_wrong_budgets(budget):
    with pytest.raises(ValueError, match='give the share'):
        BadImagesHook(budget=budget)
