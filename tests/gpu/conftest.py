"""What all tests on a GPU share: a reason to be skipped, a time limit, and a process that is left when the GPU is dead.

Files are numbered by value, because a GPU may be at hand for a few minutes only. Measured errors are printed; pytest
shows them for a failed test, and for all with ``-s``.
"""

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rehearsal
import torch
from processes import Runs

SECONDS = 60  # limit of a test, its fixtures included; a module's own SECONDS counts more
DEAD = 70  # exit code of pytest when the GPU is dead


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line('markers', 'runs(chain, ...): the runs in other processes that a test waits for')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = rehearsal.skip_reason()
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason))


@contextmanager
def limited(item: pytest.Item) -> Iterator[None]:
    """Raise a TimeoutError in the test, or in its fixtures, when the time is over."""
    seconds = getattr(item.module, 'SECONDS', SECONDS)

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f'{item.nodeid} took more than {seconds} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item):
    with limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    with limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item):
    result = yield
    if rehearsal.skip_reason() is None and rehearsal.is_dead():
        pytest.exit(f'the GPU is dead after {item.nodeid}: deselect the tests that have ended, and start again', DEAD)
    return result


@pytest.fixture(scope='session')
def device() -> str:
    return rehearsal.DEVICE


@pytest.fixture(scope='session', autouse=True)
def runs(request, tmp_path_factory) -> Iterator[Runs]:
    """The runs in other processes that the chosen tests need; they begin before the first test."""
    marks = [mark for item in request.session.items for mark in item.iter_markers('runs')]
    runs = Runs(tmp_path_factory.mktemp('processes'), list(dict.fromkeys(name for mark in marks for name in mark.args)))
    yield runs
    runs.end()


@pytest.fixture(scope='module', autouse=True)
def exact_float32():
    """Convolutions in float32 too; by default cuDNN's round their inputs to TF32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, 'allow_tf32', False)
        yield


@pytest.fixture(scope='module', autouse=True)
def tidy():
    """Leave no compiled code and no memory to the next file."""
    yield
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
