"""Runs on folders with unreadable images: within and above the budget, strict, unprotected; and a killed worker."""

import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from scripts import shell
from sklearn.datasets import load_digits
from test_train import call, forget_logs, scalars

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.train import train
from bootmae.config.load import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
DEBUG = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'
IMAGES, BAD = 64, ('007.jpg', '021.jpg', '040.jpg')  # an epoch has 2 steps; each kind of reading fails elsewhere
BUDGET = 'default_hooks.bad_images.budget=0.05'  # three images
EACH_STEP = ['log_processor.window_size=1', 'custom_hooks.0.ema=[[0,0.9],[1,0.99]]']
WORKERS = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']


@pytest.fixture
def data(tmp_path) -> Path:
    """64 digits as JPEG files; one is truncated, one is empty, one is text."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for number, digit in enumerate(load_digits().images[:IMAGES]):
        picture = cv2.resize((digit * 15).astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f'{number:03}.jpg'), picture)
    whole = (folder / BAD[0]).read_bytes()
    for name, content in zip(BAD, (whole[:-300], b'', b'404 Not Found'), strict=True):
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def config(tmp_path, data) -> Path:
    """A config of the debug pretraining on these files."""
    path = tmp_path / 'config.py'
    pipeline = [dict(type='LoadImageFromFile'), *load_config(DEBUG).to_dict()['train_pipeline']]
    path.write_text(f"""_base_ = {str(DEBUG)!r}
train_dataloader = dict(dataset=dict(_delete_=True, type='ImageFiles', roots={str(data)!r}, pipeline={pipeline}))
""")
    return path


def mend(data: Path, *names: str) -> None:
    for name in names:
        shutil.copy(data / '000.jpg', data / name)


def listed(work_dir: Path) -> list[str]:
    """Return the names in bad_images.txt in order."""
    rows = [line.split('\t') for line in (work_dir / 'bad_images.txt').read_text().splitlines()]
    assert all(reason for _, reason in rows)
    return [Path(path).name for path, _ in rows]


def losses(work_dir: Path) -> list[float]:
    return [step['loss'] for step in scalars(work_dir)]


@pytest.mark.slow
def test_within_the_budget_a_run_ends_well(data, config, tmp_path):
    """Losses are the same with workers, and each bad image is listed once with its reason."""
    for name, workers in (('plain', []), ('workers', WORKERS)):
        assert call('train', config, '--work-dir', tmp_path / name, options=[*EACH_STEP, BUDGET, *workers]) == 0
        assert sorted(listed(tmp_path / name)) == list(BAD)
    assert len(losses(tmp_path / 'plain')) == 4  # all steps of two epochs
    assert losses(tmp_path / 'workers') == losses(tmp_path / 'plain')
    reasons = dict(line.split('\t') for line in (tmp_path / 'plain' / 'bad_images.txt').read_text().splitlines())
    assert 'buf.empty' in reasons[str(data / BAD[1])]
    assert 'failed to load image' in reasons[str(data / BAD[2])]


def test_one_bad_image_is_always_allowed(data, config, tmp_path):
    mend(data, *BAD[1:])
    assert call('train', config, '--work-dir', tmp_path / 'run', options=EACH_STEP) == 0
    assert listed(tmp_path / 'run') == [BAD[0]]


@pytest.mark.slow
def test_over_the_budget_a_run_ends_and_goes_on_as_its_message_says(data, config, tmp_path, capsys):
    """It saves, counts on when resumed, and continues bit for bit with a larger budget and a new list."""
    work_dir, whole = tmp_path / 'run', tmp_path / 'whole'
    assert call('train', config, '--work-dir', whole, options=[*EACH_STEP, BUDGET]) == 0
    assert call('train', config, '--work-dir', work_dir, options=EACH_STEP) == 4
    message = capsys.readouterr().err.split('stopped: ')[-1]
    found = listed(work_dir)
    assert message.startswith(f'{len(found)} of 64 images cannot be read; at most 1 are allowed (budget 0.0001):')
    assert 2 <= len(found) <= 3
    assert all(f'  {data / name}: ' in message for name in found)
    assert 'Traceback' not in message
    saved = read_checkpoint(next(work_dir.glob('*.pth')))['meta']['iter']
    assert saved < 4
    forget_logs(work_dir)
    assert call('train', config, '--work-dir', work_dir, '--resume', options=EACH_STEP) == 4
    assert f'{len(found)} of 64 images' in capsys.readouterr().err
    later = read_checkpoint(max(work_dir.glob('*.pth'), key=lambda path: path.stat().st_mtime_ns))['meta']['iter']
    (work_dir / 'bad_images.txt').unlink()
    forget_logs(work_dir)
    assert call('train', config, '--work-dir', work_dir, '--resume', options=[*EACH_STEP, BUDGET]) == 0
    assert losses(work_dir) == losses(whole)[later:]
    assert losses(work_dir)


@pytest.mark.slow
def test_strict_runs_name_the_first_bad_image(data, config, tmp_path, capsys):
    mend(data, *BAD[1:])
    for workers in ([], WORKERS):
        options = [*EACH_STEP, 'bad_images=raise', *workers]
        assert call('train', config, '--work-dir', tmp_path / 'run', options=options) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f'error: {data / BAD[0]} cannot be read (AssertionError: failed to load image')
        assert 'repair or remove it' in line


def test_without_the_protection_a_run_dies_of_one_bad_image(data, config, tmp_path, monkeypatch):
    mend(data, *BAD[1:])
    monkeypatch.setattr('bootmae.config.steps.apply_run_defaults', lambda cfg: None)
    with pytest.raises(AssertionError, match=f'failed to load image: {data / BAD[0]}'):
        train(str(config), str(tmp_path / 'run'), {'experiment_name': 'bad_unprotected', 'log_level': 'ERROR'})


@pytest.mark.slow
def test_two_processes_replace_and_count_as_one(data, config, tmp_path):
    two, one = tmp_path / 'two', tmp_path / 'one'
    options = [*EACH_STEP, 'train_dataloader.batch_size=16', 'log_level=WARNING']
    assert call('train', config, '--work-dir', one, options=[*EACH_STEP, BUDGET]) == 0
    done = shell('dist_train.sh', config, 2, '--work-dir', two, '--cfg-options', *options, BUDGET)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert sorted(listed(two)) == list(BAD)
    done = shell('dist_train.sh', config, 2, '--work-dir', tmp_path / 'over', '--cfg-options', *options)
    assert done.returncode == 4, done.stderr[-3000:]
    found = listed(tmp_path / 'over')
    assert len(found) >= 2
    assert all(f'  {data / name}: ' in done.stderr for name in found)
    assert list((tmp_path / 'over').glob('*.pth'))


# --- a data loader's process that is killed, as for want of memory ---

KILLER = """
import multiprocessing
import os
import signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Killer(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_is_named(data, config, tmp_path):
    mend(data, *BAD)
    (tmp_path / 'killer_hook.py').write_text(KILLER)
    config.write_text(
        config.read_text() + "custom_imports = dict(imports=['bootmae.registry', 'killer_hook'], "
        "allow_failed_imports=False)\ndefault_hooks = dict(killer=dict(type='Killer'))\n"
    )
    options = ['--cfg-options', 'train_dataloader.batch_size=4', 'auto_scale_lr.base_batch_size=8', *WORKERS]
    begin = time.monotonic()
    done = shell('dist_train.sh', config, 2, '--work-dir', tmp_path / 'run', *options, PYTHONPATH=str(tmp_path))
    assert time.monotonic() - begin < 100  # it would never end if the other worker outlived the run
    assert done.returncode not in (0, 75), done.stderr[-3000:]
    assert 'DataLoader worker (pid' in done.stderr
    assert 'Killed' in done.stderr or 'exited unexpectedly' in done.stderr
