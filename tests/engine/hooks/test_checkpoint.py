"""Wherever a save is killed or fails, a complete checkpoint remains and is found again."""

import errno
import logging
import os
import re
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.runner import Runner
from survivors import Boundaries, die, killed, toy_runner, validated

from bootmae.checkpoints import read_checkpoint
from bootmae.checkpoints.checksum import SummingFile, peek
from bootmae.checkpoints.resume import find_newest
from bootmae.engine.hooks import checkpoint as saving
from bootmae.engine.runner import runner as runner_module


def names(folder: Path, pattern: str = '*.pth') -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


@pytest.fixture
def said(monkeypatch):
    """The messages that are logged at error level."""
    messages = []
    monkeypatch.setattr(logging.Logger, 'log', lambda self, level, message, *args: messages.append(message))
    return messages


@pytest.fixture
def trained(tmp_path):
    """A runner at the end of its third epoch of five, its hook, and its folder with only ``epoch_2.pth``."""
    folder = tmp_path / 'run'
    runner = toy_runner(folder, epochs=2)
    runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, saving.SafeCheckpointHook))
    runner.train_loop._max_epochs, runner.train_loop._iter = 5, 12
    assert names(folder) == ['epoch_2.pth']
    return runner, hook, folder


def at_every_boundary(runner, hook, folder: Path, monkeypatch, act, spoiled, every: int = 1) -> list[int]:
    """Save the third epoch once for each file operation of a save, and call ``act`` there.

    Args:
        spoiled: runs the save and returns whether it ended as expected.
        every: act only in each ``every``-th of the many small writes.

    Returns:
        The iteration of the newest checkpoint after each save.
    """
    base = folder.with_name('base')
    shutil.copytree(folder, base)
    with monkeypatch.context() as patch:
        noted = Boundaries(patch, act, None)
        killed(lambda: (hook._save_checkpoint(runner), base.with_name('seen').write_text('\n'.join(noted.seen))))
    seen, iterations = base.with_name('seen').read_text().split('\n'), []
    assert len(seen) > 60
    assert {'within a write', 'before fsync', 'after replace', 'before unlink', 'after unlink'} <= set(seen)
    writes = [at for at, where in enumerate(seen) if where.endswith('a write')]
    for at in sorted({*range(len(seen))} - {*writes} | {*writes[::every]}):
        shutil.rmtree(folder)
        shutil.copytree(base, folder)
        with monkeypatch.context() as patch:
            Boundaries(patch, act, at)
            assert spoiled(lambda: hook._save_checkpoint(runner)), (at, seen[at])
        found = find_newest(folder)
        assert not found.skipped, 'only whole files have names'
        iterations.append(found.content['meta']['iter'])
    return iterations


# --- killed and failed saves ---


@pytest.mark.parametrize('every', [16, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_at_every_boundary(trained, monkeypatch, every):
    """A complete checkpoint remains, the newest is found, and no temporary file stays."""
    runner, hook, folder = trained
    iterations = at_every_boundary(runner, hook, folder, monkeypatch, die, killed, every)
    assert iterations == sorted(iterations)
    assert set(iterations) == {8, 12}
    (folder / f'.epoch_3.pth.{os.getpid()}.tmp').write_bytes(b'half')
    resumed = toy_runner(folder, epochs=5, resume=True)
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (5, 20)
    assert names(folder) == ['epoch_5.pth']
    assert not names(folder, '.*.tmp')


def test_the_stock_hook_loses_the_only_file(tmp_path, monkeypatch):
    """This shows that the test above can fail: mmengine's hook deletes the old file before it writes."""
    runner = toy_runner(tmp_path, dict(type='CheckpointHook', max_keep_ckpts=1), epochs=2)
    runner.train()
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'CheckpointHook')
    runner.train_loop._max_epochs = 5
    assert find_newest(tmp_path).content['meta']['epoch'] == 2
    with monkeypatch.context() as patch:
        patch.setattr(type(runner), 'save_checkpoint', Runner.save_checkpoint)
        patch.setattr(LocalBackend, 'put', lambda self, data, path: (Path(path).write_bytes(data[:99]), die()))
        assert killed(lambda: hook._save_checkpoint(runner))
    found = find_newest(tmp_path)
    assert (found.path, names(tmp_path)) == (None, ['epoch_3.pth'])


def test_a_failure_at_every_boundary(trained, monkeypatch):
    """The run continues with all old files and saves again later."""
    runner, hook, folder = trained

    def fail() -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    def goes_on(save) -> bool:
        hook.keep_ckpt_ids[0] = 2  # as before the save
        save()
        return True

    monkeypatch.setattr(runner.logger, 'disabled', True)
    iterations = at_every_boundary(runner, hook, folder, monkeypatch, fail, goes_on, every=8)
    assert set(iterations) == {8, 12}
    hook._save_checkpoint(runner)
    assert names(folder) == ['epoch_3.pth']
    assert len(names(folder, '.*.tmp')) <= 1  # where even deleting it failed


def test_a_full_disk(trained, said):
    """A limit of 2000 bytes per file stands for a full disk."""
    runner, hook, folder = trained
    before, ids = (folder / 'epoch_2.pth').read_bytes(), list(hook.keep_ckpt_ids)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        hook._save_checkpoint(runner)
        runner.train_loop._epoch = 4  # the last one
        with pytest.raises(OSError, match='File too large.*epoch_5.pth'):
            hook._save_checkpoint(runner)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(said) == 1
    assert re.search(r'CHECKPOINT NOT SAVED: .*File too large.*epoch_3.pth.*The run continues', said[0])
    assert (names(folder), (folder / 'epoch_2.pth').read_bytes()) == (['epoch_2.pth'], before)
    assert not names(folder, '.*.tmp')
    assert list(hook.keep_ckpt_ids) == ids == runner.message_hub.get_info('keep_ckpt_ids')
    assert (folder / 'last_checkpoint').read_text() == hook.last_ckpt == str(folder / 'epoch_2.pth')


def test_space_is_looked_for_before_writing(trained, said, monkeypatch):
    runner, hook, folder = trained
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=900_000))
    monkeypatch.setattr(SummingFile, 'write', lambda self, data: pytest.fail('written'))
    hook._save_checkpoint(runner)
    assert re.search(r'1\.\d MB are needed and 0\.9 MB are free; free some space', said[0])
    assert names(folder) == ['epoch_2.pth']


def test_the_old_file_goes_last(trained, monkeypatch):
    """The new file comes first, then its record, then the deletion."""
    runner, hook, folder = trained
    events, replace, unlink = [], os.replace, Path.unlink
    monkeypatch.setattr(os, 'replace', lambda a, b: events.append(Path(b).name) or replace(a, b))
    monkeypatch.setattr(
        Path,
        'unlink',
        lambda path, **kwargs: (
            events.append(f'delete {path.name}') if path.suffix == '.pth' else None,
            unlink(path, **kwargs),
        ),
    )
    hook._save_checkpoint(runner)
    assert events == ['epoch_3.pth', 'last_checkpoint', 'delete epoch_2.pth']
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'epoch_3.pth')


def test_fewer_files_to_keep_on_resuming(tmp_path):
    """Old files are deleted after the next save; mmengine deletes them before the first step."""
    toy_runner(tmp_path, dict(max_keep_ckpts=3), epochs=3).train()
    seen = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
            seen.append(names(tmp_path))

    runner = toy_runner(tmp_path, dict(max_keep_ckpts=1), epochs=4, resume=True)
    runner.register_hook(Look())
    runner.train()
    assert seen[0] == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']
    assert names(tmp_path) == ['epoch_4.pth']


# --- between the regular files ---


class Clock:
    """Each optimizer step takes a minute."""

    def __init__(self, monkeypatch):
        self.minutes = 0
        monkeypatch.setattr(saving.time, 'monotonic', lambda: self.minutes * 60)

    def hook(self) -> Hook:
        clock = self

        class Tick(Hook):
            priority = 'HIGHEST'

            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
                clock.minutes += 1

        return Tick()


def recorded(monkeypatch) -> list[tuple]:
    """(name, epoch, iteration, other step files in the folder) of each file when it is written."""
    files, write = [], runner_module.write_checkpoint

    def note(path, content):
        write(path, content)
        files.append((path.name, content['meta']['epoch'], content['meta']['iter'], names(path.parent, 'step_*.pth')))

    monkeypatch.setattr(runner_module, 'write_checkpoint', note)
    return files


@pytest.mark.parametrize('accumulation, steps', [(1, [3, 7]), (2, [4])])
def test_saved_every_few_minutes(tmp_path, monkeypatch, accumulation, steps):
    """Saves happen within epochs, after whole optimizer steps; only the newest stays, until a newer file exists."""
    clock, files = Clock(monkeypatch), recorded(monkeypatch)
    runner = toy_runner(
        tmp_path, dict(minutes=3, max_keep_ckpts=-1), epochs=3, **{'optim_wrapper.accumulative_counts': accumulation}
    )
    runner.register_hook(clock.hook())
    runner.train()
    if accumulation == 1:  # at minutes 3, 4 (epoch), 7, 8 (epoch), 11, 12 (epoch)
        assert files == [
            ('step_3.pth', 0, 3, ['step_3.pth']),
            ('epoch_1.pth', 1, 4, ['step_3.pth']),
            ('step_7.pth', 1, 7, ['step_7.pth']),
            ('epoch_2.pth', 2, 8, ['step_7.pth']),
            ('step_11.pth', 2, 11, ['step_11.pth']),
            ('epoch_3.pth', 3, 12, ['step_11.pth']),
        ]
    else:  # whole steps at even minutes; at the last iteration of an epoch the epoch is not counted yet
        assert [file[:3] for file in files] == [
            ('step_4.pth', 0, 4),
            ('epoch_1.pth', 1, 4),
            ('step_8.pth', 1, 8),
            ('epoch_2.pth', 2, 8),
            ('step_12.pth', 2, 12),
            ('epoch_3.pth', 3, 12),
        ]
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']


def test_only_the_newest_step_file_stays(tmp_path, monkeypatch):
    clock, files = Clock(monkeypatch), recorded(monkeypatch)
    runner = toy_runner(tmp_path, dict(minutes=1.5, interval=10), epochs=2)
    runner.register_hook(clock.hook())
    runner.train()
    assert [file[0] for file in files] == ['step_2.pth', 'step_4.pth', 'step_6.pth', 'step_8.pth', 'epoch_2.pth']
    assert names(tmp_path) == ['epoch_2.pth']


def test_only_rank_0_looks_at_the_clock(tmp_path, monkeypatch):
    hook = saving.SafeCheckpointHook(minutes=1)
    monkeypatch.setattr(saving.time, 'monotonic', lambda: hook.saved + 61)
    assert hook._is_due()
    monkeypatch.setattr(saving.dist, 'is_main_process', lambda: False)
    assert not hook._is_due()
    hook.minutes = 0
    monkeypatch.setattr(saving.dist, 'is_main_process', lambda: True)
    assert not hook._is_due()


def test_save_now_in_a_step_and_between_steps(trained):
    runner, hook, folder = trained
    runner.train_loop._epoch, runner.train_loop._iter = 3, 13
    path = hook.save_now(runner)
    assert (path, peek(path), names(folder)) == (str(folder / 'step_14.pth'), 14, ['epoch_2.pth', 'step_14.pth'])
    path = hook.save_now(runner, counted=True)
    assert (path, peek(path)) == (str(folder / 'step_13.pth'), 13)
    content = read_checkpoint(path)
    assert (content['meta']['epoch'], 'optimizer' in content, 'param_schedulers' in content) == (3, True, True)
    assert (folder / 'last_checkpoint').read_text() == path


def test_save_now_tells_of_a_failure(trained, monkeypatch):
    runner, hook, folder = trained
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=0))
    with pytest.raises(OSError, match='MB are needed'):
        hook.save_now(runner)
    assert names(folder) == ['epoch_2.pth']


def test_regular_saves_by_iteration_wait_for_whole_steps(tmp_path, monkeypatch):
    files = recorded(monkeypatch)
    toy_runner(
        tmp_path,
        dict(by_epoch=False, interval=3, max_keep_ckpts=2),
        epochs=2,
        **{'optim_wrapper.accumulative_counts': 2},
    ).train()
    assert [file[:3] for file in files] == [('iter_4.pth', 0, 4), ('iter_6.pth', 1, 6), ('iter_8.pth', 1, 8)]
    assert names(tmp_path) == ['iter_6.pth', 'iter_8.pth']


# --- the best file ---


def test_best_files(tmp_path):
    runner = toy_runner(tmp_path, dict(save_best='acc', max_keep_ckpts=1), epochs=4, **validated([0.5, 0.7, 0.6, 0.9]))
    runner.train()
    assert names(tmp_path) == ['best_acc_epoch_4.pth', 'epoch_4.pth']
    info = read_checkpoint(tmp_path / 'epoch_4.pth')['message_hub']['runtime_info']
    assert (info['best_score'], Path(info['best_ckpt']).name) == (0.9, 'best_acc_epoch_4.pth')
    assert 'optimizer' not in read_checkpoint(tmp_path / 'best_acc_epoch_4.pth')


def test_the_best_file_of_the_run_that_another_folder_continues_stays(tmp_path):
    """Each folder has one, also after it was copied with the records of its checkpoints."""
    old, new, copy = (tmp_path / name for name in ('old', 'new', 'copy'))
    best = dict(save_best='acc', max_keep_ckpts=-1)
    toy_runner(old, best, epochs=1, **validated([0.7])).train()
    shutil.copytree(old, copy)
    named = dict(resume=True, load_from=str(old / 'epoch_1.pth'))
    toy_runner(new, best, epochs=3, **named, **validated([0.8, 0.9])).train()
    toy_runner(copy, best, epochs=2, resume=True, **validated([0.8])).train()
    assert names(old, 'best_*') == ['best_acc_epoch_1.pth']
    assert names(new, 'best_*') == ['best_acc_epoch_3.pth']
    assert names(copy, 'best_*') == ['best_acc_epoch_1.pth', 'best_acc_epoch_2.pth']


def test_a_best_file_that_cannot_be_written(tmp_path, said, monkeypatch):
    """The previous best file stays, in the folder and in the records of the next checkpoint."""
    write = runner_module.write_checkpoint

    def fail(path, content):
        if path.name == 'best_acc_epoch_2.pth':
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, content)

    monkeypatch.setattr(runner_module, 'write_checkpoint', fail)
    toy_runner(tmp_path, dict(save_best='acc'), epochs=3, **validated([0.5, 0.7, 0.4])).train()
    assert names(tmp_path) == ['best_acc_epoch_1.pth', 'epoch_3.pth']
    info = read_checkpoint(tmp_path / 'epoch_3.pth')['message_hub']['runtime_info']
    assert (info['best_score'], Path(info['best_ckpt']).name) == (0.5, 'best_acc_epoch_1.pth')
    assert len([message for message in said if 'CHECKPOINT NOT SAVED' in message]) == 1


def test_options_that_make_no_sense():
    with pytest.raises(ValueError, match='minutes=-1: give the minutes'):
        saving.SafeCheckpointHook(minutes=-1)
    with pytest.raises(ValueError, match='checkpoints are written to local folders'):
        saving.SafeCheckpointHook(backend_args=dict(backend='petrel'))


def test_a_run_deletes_what_killed_writers_left(tmp_path):
    """Also a run that does not resume."""
    (tmp_path / f'.epoch_9.pth.{os.getpid()}.tmp').write_bytes(b'half')
    toy_runner(tmp_path, epochs=1).train()
    assert not names(tmp_path, '.*.tmp')
