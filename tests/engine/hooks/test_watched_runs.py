"""Runs with the monitoring hooks: the training does not change, and the logged numbers fit the checkpoints."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.knn import evaluate_features
from bootmae.commands.train import train
from bootmae.config.load import load_config
from bootmae.config.model import build_model
from bootmae.data.subsets import few_labels
from bootmae.engine.hooks.collapse import CollapseMonitorHook, momentum_distance, target_features, target_variance
from bootmae.engine.hooks.reconstruction import ReconstructionHook
from bootmae.evaluation.probe import build_encoder, extract_blocks
from bootmae.evaluation.rankme import before_norm, rank_me

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIGS = REPOSITORY / 'configs'
FINETUNE = str(CONFIGS / 'cls' / 'bootmae_debug_finetune.py')
MAE_INPUT = {'data_preprocessor.mean': [123.675, 116.28, 103.53], 'data_preprocessor.std': [58.395, 57.12, 57.375]}
FEW = {'train_dataloader.dataset.labels_per_class': 4, 'test_dataloader.dataset.indices': 50}
COUNT = itertools.count()


def options_of(method: str) -> dict:
    """Return options for 2 epochs of 3 iterations of the debug config, with a log line every second iteration."""
    probe = dict(
        type='OnlineProbeHook',
        config='configs/cls/bootmae_debug_finetune.py',
        tasks=['knn', 'linear'],
        labels=2,
        k=5,
        options=FEW | (MAE_INPUT if method == 'mae' else {}),
    )
    return {
        'train_dataloader.dataset.labels_per_class': None,
        'train_dataloader.dataset.indices': 48,
        'train_dataloader.batch_size': 16,
        'auto_scale_lr.base_batch_size': 16,
        'log_level': 'ERROR',
        'default_hooks.logger.interval': 2,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'default_hooks.probe': dict(probe, interval=1),
        'default_hooks.pictures': dict(type='ReconstructionHook', interval=1, count=2),
    }


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
    """``watched(method)`` returns the work directory, the runner, and its log lines."""
    made = {}

    def make(method: str) -> SimpleNamespace:
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            runner = train(
                str(CONFIGS / 'pretrain' / f'{method}_debug.py'),
                str(folder),
                options_of(method) | {'experiment_name': f'watched_{next(COUNT)}'},
            )
            data = next(folder.glob('*/vis_data'))
            lines = [json.loads(line) for line in (data / 'scalars.json').read_text().splitlines()]
            made[method] = SimpleNamespace(folder=folder, runner=runner, data=data, lines=lines)
        return made[method]

    return make


def test_watching_changes_no_weight(watched, tmp_path):
    """Also for a model that draws random masks in the step, as MAE does."""
    for method in ('bootmae', 'mae'):
        options = options_of(method) | {'default_hooks.collapse': None, 'experiment_name': f'bare_{next(COUNT)}'}
        options = {key: value for key, value in options.items() if not key.endswith(('.probe', '.pictures'))}
        bare = train(str(CONFIGS / 'pretrain' / f'{method}_debug.py'), str(tmp_path / method), options)
        assert not any(isinstance(hook, CollapseMonitorHook) for hook in bare.hooks)
        torch.testing.assert_close(watched(method).runner.model.state_dict(), bare.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('method', ['bootmae', 'mae'])
def test_the_online_probe_is_tools_knn(watched, method):
    """It gives the numbers of tools/knn.py on the same checkpoint, and evaluates the untrained encoder first."""
    found = watched(method)
    logged = {line['step']: line for line in found.lines if 'probe/knn' in line}
    assert sorted(logged) == [0, 1, 2]
    options = FEW | (MAE_INPUT if method == 'mae' else {})
    for epoch in (1, 2):
        rows = evaluate_features(
            FINETUNE,
            str(found.folder / f'epoch_{epoch}.pth'),
            tasks=('knn', 'linear'),
            labels=('2',),
            k=5,
            options=options,
        )
        assert [logged[epoch]['probe/knn'], logged[epoch]['probe/linear']] == [row.value for row in rows]
    cfg = load_config(FINETUNE, options)
    model = build_encoder(cfg, str(found.folder / 'epoch_2.pth'))
    kept: list[torch.Tensor] = []
    with before_norm(model.backbone, kept.append):
        loader, pipeline = cfg.train_dataloader, cfg.test_dataloader.dataset.pipeline
        ((_, labels),) = extract_blocks(model, loader, pipeline, [model.backbone.depth])
    assert logged[2]['probe/rankme'] == rank_me(torch.cat(kept)[few_labels(labels, 2, seed=0)])
    assert len({(line['probe/knn'], line['probe/linear']) for line in logged.values()}) > 1


def test_what_is_logged_of_the_target(watched):
    """The last line is recomputed with the weights and images of its iteration."""
    found = watched('bootmae')
    lines = [line for line in found.lines if 'loss' in line]
    assert [line['step'] for line in lines] == [2, 5]
    assert all(
        0 < line[name] < 1
        for line in lines
        for name in ('target_variance', 'target_variance_images', 'waiting_for_data')
    )
    assert 0 < lines[0]['momentum_distance'] < lines[1]['momentum_distance']
    hub = found.runner.message_hub
    assert all(len(hub.get_scalar(f'train/{name}').data[0]) == 2 for name in ('images_per_second', 'target_variance'))
    times = hub.get_scalar('train/time').data[0]
    assert lines[0]['images_per_second'] == pytest.approx(16 / np.mean(times[:2]))
    assert lines[1]['images_per_second'] == pytest.approx(16 / np.mean(times[2:5]))


def test_the_monitor_of_a_step_by_hand(watched):
    found = watched('bootmae')
    model = build_model(load_config(CONFIGS / 'pretrain' / 'bootmae_debug.py'), found.folder / 'epoch_2.pth').eval()
    batch = dict(inputs=torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8))
    health = CollapseMonitorHook(images=12).health(model, batch)
    images = (batch['inputs'][:12].float() - 127.5) / 127.5
    expected = *target_variance(target_features(model, images[:, [2, 1, 0]])), momentum_distance(model)
    assert list(health) == ['target_variance', 'target_variance_images', 'momentum_distance']
    torch.testing.assert_close(list(health.values()), list(expected))


def test_mae_logs_its_speed_alone(watched):
    lines = [line for line in watched('mae').lines if 'loss' in line]
    assert all(line['images_per_second'] > 0 for line in lines)
    assert not any('target_variance' in line for line in lines)


@pytest.mark.parametrize('method', ['bootmae', 'mae'])
def test_scalars_and_pictures_reach_tensorboard(watched, method):
    found = watched(method)
    events = EventAccumulator(str(found.data), size_guidance=dict(images=0, scalars=0)).Reload()
    assert [(point.step, pytest.approx(point.value)) for point in events.Scalars('probe/knn')] == [
        (line['step'], line['probe/knn']) for line in found.lines if 'probe/knn' in line
    ]
    assert [point.step for point in events.Scalars('images_per_second')] == [2, 5]
    assert [picture.step for picture in events.Images('reconstructions')] == [0, 1, 2]
    decoded = cv2.imdecode(np.frombuffer(events.Images('reconstructions')[2].encoded_image_string, np.uint8), 1)
    np.testing.assert_array_equal(decoded, cv2.imread(str(found.data / 'vis_image' / 'reconstructions_2.png')))


@pytest.mark.parametrize('method', ['bootmae', 'mae'])
def test_pictures_are_of_the_checkpoint_and_of_the_same_images(watched, method):
    found = watched(method)
    hook = next(hook for hook in found.runner.hooks if isinstance(hook, ReconstructionHook))
    pictures = [
        cv2.imread(str(found.data / 'vis_image' / f'reconstructions_{epoch}.png'))[..., ::-1] for epoch in range(3)
    ]
    model = build_model(load_config(CONFIGS / 'pretrain' / f'{method}_debug.py'), found.folder / 'epoch_1.pth').eval()
    np.testing.assert_array_equal(hook.picture(model), pictures[1])
    width = pictures[0].shape[1] // 3
    np.testing.assert_array_equal(pictures[0][:, : 2 * width], pictures[2][:, : 2 * width])
    assert (pictures[0][:, 2 * width :] != pictures[2][:, 2 * width :]).mean() > 0.1
    assert hook.images.shape == (2, 32, 32, 3)
    assert hook.num_masked == 48


@pytest.mark.slow
def test_two_processes_watch_as_one(watched, tmp_path):
    """With accumulation; each process has half of the probe's images."""
    one = watched('bootmae')
    options = options_of('bootmae') | {
        'train_dataloader.batch_size': 4,
        'optim_wrapper.accumulative_counts': 2,
        'default_hooks.logger.interval': 4,
    }
    (tmp_path / 'two.py').write_text(f'_base_ = {str(CONFIGS / "pretrain" / "bootmae_debug.py")!r}\n')
    code = (
        'import sys, torch; torch.set_num_threads(1); from bootmae.commands.train import train; '
        f'train({str(tmp_path / "two.py")!r}, {str(tmp_path / "run")!r}, {options!r}, launcher="pytorch")'
    )
    (tmp_path / 'two_main.py').write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--local_addr=127.0.0.1',
            '--nproc_per_node=2',
            str(tmp_path / 'two_main.py'),
        ],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=REPOSITORY,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY), CUDA_VISIBLE_DEVICES=''),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    path = next((tmp_path / 'run').glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ours, theirs = ([line['probe/knn'] for line in log if 'probe/knn' in line] for log in (lines, one.lines))
    assert ours == pytest.approx(theirs, abs=2.01)  # one query of 50, where sums are made in another order
    steps = [line for line in lines if 'loss' in line]
    assert [line['step'] for line in steps] == [4, 10]
    expected = [line for line in one.lines if 'loss' in line]
    assert steps[1]['momentum_distance'] == pytest.approx(expected[1]['momentum_distance'], rel=1e-3)
    torch.testing.assert_close(
        read_checkpoint(tmp_path / 'run' / 'epoch_2.pth')['state_dict'],
        one.runner.model.state_dict(),
        rtol=1e-4,
        atol=1e-5,
    )
