"""What the demo makes of a finished segmentation or detection run: result rows, and pictures of its predictions."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image
from toy_runs import CONFIGS, write_config, write_files

from bootmae.checkpoints import load_encoder, read_checkpoint
from bootmae.data.scenes import SceneSpec, boxes_of, draw_scene
from bootmae.engine import run
from bootmae.engine.demo_scenes import TASKS, dense_pictures, dense_rows, last_checkpoint
from bootmae.engine.predict import image_of, instances, label_map, load_trained, predict

SEGMENTATION, DETECTION = TASKS
SPEC = SceneSpec(train=6, val=5, values=(0, 1, 4, 7))
IMAGENET = [123.675, 116.28, 103.53]

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """By task: config, work directory and runner of two steps from a MAE file, and that file."""
    root = tmp_path_factory.mktemp('dense')
    init, made = write_files(root)['mae'], {}
    for task in ('seg', 'det'):
        config = write_config(root, task, root / 'scenes')
        runner = run.train(str(config), str(root / task), {'log_level': 'ERROR', 'experiment_name': f'dense_{task}'},
                           init=str(init))
        made[task] = config, root / task, runner, init
    return made


@pytest.mark.parametrize('task, name', [(SEGMENTATION, 'seg'), (DETECTION, 'det')])
def test_rows(runs, task, name):
    _, folder, runner, init = runs[name]
    rows = list(dense_rows(task, folder, str(init), method='mae', seed=2, label='demo'))
    assert [row.metric for row in rows] == list(task.metrics)
    for row, (key, factor) in zip(rows, task.metrics.values(), strict=True):
        assert row.value == pytest.approx(factor * runner.message_hub.get_scalar(f'val/{key}').current())
        assert (row.data, row.task, row.labels, row.method, row.seed) == ('digit scenes', task.name, 'all', 'mae', 2)
        assert row.checkpoint_hash == runner.model.backbone.verdict.hash
        assert row.config.endswith('mae_demo_digits.py'), 'the pretraining'
    untrained = next(dense_rows(task, folder, None, method='untrained', seed=0, label='demo'))
    assert (untrained.checkpoint, untrained.config) == ('', '')


def test_the_hash_is_that_of_other_tasks(runs):
    """Classification, segmentation and detection from one file: one hash in their rows."""
    init = runs['seg'][3]
    cfg = run.load_config(CONFIGS / 'cls' / 'mae_demo_digits_finetune.py', {'model.backbone.depth': 2})
    frozen = load_encoder(MODELS.build(cfg.model.backbone), init).hash
    assert frozen == runs['seg'][2].model.backbone.verdict.hash == runs['det'][2].model.backbone.verdict.hash


@pytest.mark.parametrize('name', ['seg', 'det'])
def test_a_trained_model_sees_images_as_in_training(runs, name):
    config, folder, runner, _ = runs[name]
    model = load_trained(run.load_config(config), last_checkpoint(folder))
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx(IMAGENET)
    assert not model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in runner.model.state_dict().items())


def test_segmentation_samples(runs):
    config, folder, _, _ = runs['seg']
    samples = predict(run.load_config(config), last_checkpoint(folder), [3, 0])
    for sample, index in zip(samples, (3, 0), strict=True):
        scene = draw_scene(SPEC, 'val', index)
        assert abs(image_of(sample).astype(float) - scene.image).mean() < 4
        assert np.array_equal(label_map(sample, truth=True), np.where(scene.semantic == 0, 255, scene.semantic - 1))
        assert label_map(sample).shape == scene.semantic.shape
        assert set(np.unique(label_map(sample))) <= set(range(5))


def test_detection_samples(runs):
    config, folder, _, _ = runs['det']
    sample, = predict(run.load_config(config), last_checkpoint(folder), [4])
    scene, truth, found = draw_scene(SPEC, 'val', 4), instances(sample, truth=True), instances(sample)
    assert truth['labels'].tolist() == scene.labels.tolist()
    assert truth['boxes'].tolist() == boxes_of(scene.masks).tolist()
    assert np.array_equal(truth['masks'], scene.masks)
    assert truth['scores'] is None
    assert len(found['scores']) == len(found['boxes']) == len(found['masks']) > 0
    assert found['masks'].shape[1:] == scene.semantic.shape


@pytest.mark.parametrize('task, name', [(SEGMENTATION, 'seg'), (DETECTION, 'det')])
def test_pictures(runs, task, name, monkeypatch):
    """A column for every method."""
    config, folder, _, _ = runs[name]
    assert read_checkpoint(last_checkpoint(folder))['meta']['bootmae']['init_hash']
    task = replace(task, config=str(config))
    one, two = (Image.open(io.BytesIO(dense_pictures(task, dict.fromkeys(methods, folder), count=2)))
                for methods in (('mae', ), ('mae', 'bootmae')))
    assert two.width > 1.2 * one.width
    assert min(one.height, two.height) > 2 * SPEC.size[0]  # two scenes, and the colour key below
