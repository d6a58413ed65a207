"""A fake runner for hooks that end a run."""

import logging
from types import SimpleNamespace

import pytest

from bootmae.distributed.counters import AsyncCounters


class Data(list):
    """A data set of 30,000 images; ``reports`` lists the unreadable ones."""

    def __init__(self):
        super().__init__(range(30000))
        self.reports = []

    def take_reports(self):
        reports, self.reports = self.reports, []
        return reports


class Saver:
    """A hook that records when it is asked to save; an ``error`` makes it fail."""

    def __init__(self):
        self.calls, self.error = [], None

    def save_now(self, runner, counted=False):
        self.calls.append((runner.iter, counted))
        if self.error:
            raise OSError(self.error)
        return 'step_9.pth'


class FakeRunner(SimpleNamespace):
    """Makes an optimizer step in every second iteration."""

    def call_hook(self, name: str, **arguments) -> None:
        for hook in self.hooks:
            getattr(hook, name, lambda runner: None)(self, **arguments)

    def train(self, iterations: int = 1) -> None:
        for _ in range(iterations):
            for hook in self.hooks[1:]:
                hook.after_train_iter(self, self.iter)
            self.iter += 1


@pytest.fixture
def fake_runner(tmp_path) -> FakeRunner:
    runner = FakeRunner(
        rank=0,
        iter=0,
        work_dir=str(tmp_path),
        _resume=False,
        averaged=False,
        train_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=Data(), worker_init_fn=None)),
        val_loop=None,
        logger=logging.getLogger('fake_runner'),
        hooks=[Saver()],
        counters=AsyncCounters(),
    )
    runner.optim_wrapper = SimpleNamespace(should_update=lambda: (runner.iter + 1) % 2 == 0)
    return runner
