"""tools/test.py repeats the metrics of training, tools/plan.py prints a plan; both explain user errors."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from calling import call_tool

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.plan import Plan
from bootmae.commands.test import evaluate
from bootmae.commands.train import train
from bootmae.config.classes import recorded_classes
from bootmae.engine.runner.build import build_runner

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / 'configs'
PRETRAIN, FINETUNE = CONFIGS / 'pretrain' / 'bootmae_debug.py', CONFIGS / 'cls' / 'bootmae_debug_finetune.py'
VITB = CONFIGS / 'pretrain' / 'bootmae_vitb.py'
COUNT = itertools.count()


def options(**changes) -> dict:
    """Of one run: quiet, and with a name of its own, since mmengine keeps runs by name."""
    return {'experiment_name': f'commands_{next(COUNT)}', 'log_level': 'ERROR'} | changes


# --- test.py ---


@pytest.fixture(scope='module', params=['plain', pytest.param('averaged', marks=pytest.mark.slow)])
def finetuned(request, tmp_path_factory):
    """A fine-tuning run, with and without averaged weights: its work directory, its hooks, its last metrics."""
    work_dir = tmp_path_factory.mktemp(request.param)
    hooks = (
        []
        if request.param == 'plain'
        else [
            dict(type='EMAHook', momentum=0.1, evaluate_on_ema=True, evaluate_on_origin=True, priority='ABOVE_NORMAL')
        ]
    )
    runner = train(
        str(FINETUNE),
        str(work_dir),
        options(
            custom_hooks=hooks,
            **{
                'train_dataloader.dataset.labels_per_class': 60,
                'optim_wrapper.optimizer.lr': 5e-3,
                'train_cfg.val_interval': 2,
            },
        ),
    )
    names = ['accuracy/top1'] + (['accuracy/top1_origin'] if hooks else [])
    return work_dir, hooks, {name: runner.message_hub.get_scalar(f'val/{name}').current() for name in names}


def test_metrics_are_those_of_training(finetuned, monkeypatch):
    """Of the averaged weights and of the trained ones, each under its own name."""
    work_dir, hooks, last = finetuned
    assert 12 < last['accuracy/top1'] < 100, 'it has learnt something'
    runners, build = [], build_runner
    monkeypatch.setattr('bootmae.commands.test.build_runner', lambda *args: runners.append(build(*args)) or runners[-1])
    metrics = evaluate(
        str(FINETUNE), str(work_dir / 'epoch_2.pth'), str(work_dir / 'test'), options(custom_hooks=hooks)
    )
    assert metrics == {'accuracy/top1': last['accuracy/top1']}
    for name, value in last.items():
        assert runners[0].message_hub.get_scalar(f'test/{name}').current() == value
    if hooks:
        assert last['accuracy/top1'] != last['accuracy/top1_origin']


def test_test_as_a_tool(finetuned, tmp_path):
    work_dir, hooks, last = finetuned
    arguments = [f'experiment_name=commands_tool_{len(hooks)}', 'log_level=ERROR']
    assert (
        call_tool('test', FINETUNE, work_dir / 'epoch_2.pth', '--work-dir', tmp_path, '--cfg-options', *arguments) == 0
    )
    written = json.loads(next(tmp_path.glob('*/[0-9]*.json')).read_text())
    assert written['accuracy/top1'] == last['accuracy/top1'], 'without EMAHook, state_dict is what is evaluated'


def test_classes_of_another_order_are_refused(finetuned, tmp_path):
    """The labels would be permuted, and nothing else would show it."""
    work_dir, hooks, _ = finetuned
    content = read_checkpoint(work_dir / 'epoch_2.pth')
    assert recorded_classes(content) == tuple('0123456789')
    content['meta']['dataset_meta']['classes'] = tuple('1023456789')
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='the training of .*other.pth has the classes 1, 0, .*: label 0 is 1 there'):
        evaluate(str(FINETUNE), str(tmp_path / 'other.pth'), str(tmp_path / 'test'), options(custom_hooks=hooks))


def test_a_checkpoint_is_read_once(finetuned, tmp_path, monkeypatch):
    work_dir, hooks, last = finetuned
    reads = []
    for module in ('config.steps', 'engine.runner.runner'):
        read = lambda path: reads.append(path) or read_checkpoint(path)  # noqa: E731
        monkeypatch.setattr(f'bootmae.{module}.read_checkpoint', read)
    found = evaluate(str(FINETUNE), str(work_dir / 'epoch_2.pth'), str(tmp_path), options(custom_hooks=hooks))
    assert found['accuracy/top1'] == last['accuracy/top1']
    assert len(reads) == 1


def test_a_pretraining_file_is_no_classifier(tmp_path, capsys):
    """And neither are bare weights, a damaged file or a missing one."""
    train(str(PRETRAIN), str(tmp_path), options(**{'train_dataloader.dataset.indices': 32, 'train_cfg.max_epochs': 1}))
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    (tmp_path / 'damaged.pth').write_bytes((tmp_path / 'epoch_1.pth').read_bytes()[:5000])
    for file, message in (
        ('epoch_1', r'is not a checkpoint of this config.s ImageClassifier: \d+ weights? missing'),
        ('weights', 'holds weights, not a run'),
        ('damaged', '(is damaged|was not read)'),
        ('missing', 'use the path'),
    ):
        assert (
            call_tool(
                'test',
                FINETUNE,
                tmp_path / f'{file}.pth',
                '--work-dir',
                tmp_path / 'test',
                '--cfg-options',
                *(f'{key}={value}' for key, value in options().items()),
            )
            == 2
        )
        assert re.match(rf'error: .*{file}\.pth.*{message}', capsys.readouterr().err.splitlines()[-1])


def test_test_data_are_checked_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call_tool('test', CONFIGS / 'cls' / 'mae_vitb_finetune.py', 'missing.pth') == 2
    assert capsys.readouterr().err.startswith('error: roots=data/imagenet does not exist')
    assert not list(tmp_path.iterdir())


# --- plan.py ---


def plan(capsys, *args) -> dict:
    assert call_tool('plan', *args, '--json') == 0
    return json.loads(capsys.readouterr().out)


def test_plan_json(capsys):
    found = plan(capsys, VITB, '--gpus', 8)
    assert list(found) == [field.name for field in fields(Plan)]
    assert (found['global_batch'], found['accumulation'], found['params']) == (4096, 1, 115373251)
    assert (found['lr'], found['min_lr'], found['gpus']) == (pytest.approx(2.4e-3), 1e-4, 8)
    assert found['input_mean'] == found['input_std'] == [127.5] * 3
    assert found['images_per_second'] is found['gpu_hours'] is None
    assert plan(capsys, VITB, '--gpus', 4)['accumulation'] == 2
    timed = plan(capsys, VITB, '--gpus', 8, '--images-per-second', 2000)
    assert timed['gpu_hours'] == pytest.approx(timed['images'] / 2000 / 3600, abs=0.05)


def test_plan_text_and_options(capsys):
    options = ['--cfg-options', 'train_dataloader.batch_size=64', 'train_cfg.max_epochs=10']
    assert call_tool('plan', VITB, '--gpus', 16, '--auto-scale-lr', *options) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (lines['global_batch'], lines['epochs'], lines['train_images']) == ('1,024', '10', '1,281,167')
    assert float(lines['lr']) == pytest.approx(1.5e-4 * 1024 / 256)


@pytest.mark.parametrize(
    'args, message',
    [
        (
            [VITB, '--gpus', 3],
            r'3 GPUs x 512 x accumulation 2 = 3072, but the recipe.s batch is 4096. 3 GPUs do not '
            r'divide it: use one of \[1, 2, 4, 8, 16, 32, 64\] GPUs; or, .* add --auto-scale-lr',
        ),
        ([VITB, '--gpus', 0], 'gpus=0, batch_size=512'),
        ([VITB.with_name('nothing.py')], 'no config .*nothing.py'),
    ],
)
def test_plan_errors(capsys, args, message):
    assert call_tool('plan', *args) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert re.fullmatch(f'error: {message}.*\n', captured.err)


@pytest.mark.slow
def test_plan_as_a_command(tmp_path):
    """From another folder; nothing but the JSON is printed, also where the construction of a model logs something."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / 'tools' / 'plan.py', 'bootmae_vitb_finetune', '--gpus', '8', '--json'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['global_batch'] == 2048
    assert not list(tmp_path.iterdir())
