"""Result rows of segmentation and detection runs, and pictures of their predictions."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

from bootmae.checkpoints import load_encoder_weights
from bootmae.commands.test import evaluate
from bootmae.commands.train import train
from bootmae.config.load import load_config
from bootmae.config.model import build_model
from bootmae.data.scenes import SceneSpec, boxes_of, draw_scene
from bootmae.evaluation import rows
from bootmae.evaluation.predict import image_of, instances, label_map, predict
from bootmae.evaluation.rows import METRIC_KEYS, protocol_of, result_row, trained_columns, trained_rows
from bootmae.places import runs_folder
from bootmae.results.names import LOGGED_METRICS
from bootmae.results.rows import read_rows
from bootmae.suite import Cell, Suite
from bootmae.suite.cells import last_checkpoint
from bootmae.suite.collect import cell_config, data_name
from bootmae.suite.page import predictions
from bootmae.suite.spec import Method, Task

sys.path.append(str(Path(__file__).parents[1] / 'tools'))

from toy_runs import CONFIGS, write_config, write_files

SPEC = SceneSpec(train=6, val=5, values=(0, 1, 4, 7))
IMAGENET = [123.675, 116.28, 103.53]
KINDS = {'seg': 'segmentation', 'det': 'detection'}

pytestmark = pytest.mark.slow


def row_options(cell) -> dict:
    """``rows`` and ``row`` as the suite's commands give them."""
    _, file, _, *columns = cell._row_options()
    return dict(rows=file, row=columns)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """By task: a cell that was trained for two steps from a MAE file, and its runner."""
    root = tmp_path_factory.mktemp('dense')
    init, made = write_files(root)['mae'], {}
    for short, kind in KINDS.items():
        config = write_config(root, short, root / 'scenes')
        task = Task(
            name=kind,
            config=str(config),
            kind=kind,
            options={'log_level': 'ERROR', 'experiment_name': f'dense_{short}'},
        )
        suite = Suite(root / 'toy.yaml', None, 'toy', 'demo', (), (2,), {}, (task,))
        cell = Cell(suite, task, Method(name='mae', configs='mae', weights=str(init)), 2, root)
        runner = train(cell.config, str(cell.run), cell.options, init=cell.weights, **row_options(cell))
        made[short] = cell, runner
    return made


@pytest.mark.parametrize('short', KINDS)
def test_rows(runs, short):
    cell, runner = runs[short]
    rows = read_rows(cell.rows_file)
    for row, key in zip(rows, METRIC_KEYS[KINDS[short]], strict=True):
        metric, factor = LOGGED_METRICS[key]
        assert row.metric == metric
        assert row.value == pytest.approx(factor * runner.message_hub.get_scalar(f'val/{key}').current())
        assert (row.data, row.task, row.labels, row.method, row.seed, row.label) == (
            'digit scenes',
            KINDS[short],
            'all',
            'mae',
            2,
            'demo',
        )
        assert row.checkpoint_hash == runner.model.backbone.load_report.hash
        assert row.config.endswith('mae_demo_digits.py'), 'the pretraining'
        assert len(row.config_hash) == len(row.data_hash) == 12
        assert row.gpu_hours == 0
    assert (
        rows[0].protocol
        == {
            'seg': 'UperNet, 2 iterations, images as they are, whole, single scale',
            'det': 'Mask R-CNN, 1 epoch, 144 x 96 px',
        }[short]
    )


def test_several_scales_are_another_protocol(runs):
    cfg = load_config(runs['seg'][0].config)
    columns = trained_columns(cfg, ['task=segmentation', 'method=mae'])
    single, several = (trained_rows(cfg, {'mIoU': 12.5}, columns, None, '', 0.0, tta)[0] for tta in (False, True))
    assert (several.value, several.protocol.rpartition(', ')[2]) == (12.5, 'multi-scale and flip')
    assert single.key != several.key


def test_test_data_in_place_of_the_last_validation(runs):
    """The row is written by tools/test.py then, and says the same of the encoder as that of a training."""
    cell, _ = runs['seg']
    tested = Task(name='segmentation', config=cell.config, kind='segmentation', test=True, options=cell.options)
    cell = Cell(cell.suite, tested, cell.method, cell.seed, cell.root / 'tested')
    commands = cell.commands(0)
    assert [command[1].rpartition('/')[2] for command in commands] == ['train.py', 'test.py']
    assert ['--rows' in command for command in commands] == [False, True]
    run, given = runs['seg'][0], row_options(cell)
    metrics = evaluate(
        cell.config, str(last_checkpoint(run.run)), str(cell.folder), cell.options, init=cell.weights, **given
    )
    (row,), (validated,) = read_rows(cell.rows_file), read_rows(run.rows_file)
    assert row.value == metrics['mIoU']
    assert row == replace(validated, value=row.value, gpu_hours=row.gpu_hours)


def test_a_training_that_is_resumed_at_its_end_still_writes_its_rows(runs, tmp_path):
    cell, _ = runs['seg']
    given = row_options(cell) | dict(rows=str(tmp_path / 'rows.csv'))
    train(cell.config, str(cell.run), cell.options, init=cell.weights, resume='auto', **given)
    assert read_rows(tmp_path / 'rows.csv') == read_rows(cell.rows_file)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (['kind=x'], '--row kind: unknown column; give COLUMN=VALUE with one of data, method, task'),
        (['method=mae'], '--row task=: give one of linear, finetune'),
        (['task=linear', 'label=paper'], '--row label=paper: give one of measured, demo'),
    ],
)
def test_wrong_columns(given, message):
    with pytest.raises(ValueError, match=message):
        trained_columns(load_config('configs/cls/bootmae_debug_finetune.py'), given)


@pytest.mark.parametrize(
    ('config', 'data', 'given', 'label'),
    [
        ('configs/pretrain/bootmae_vitb.py', 'ImageNet-1k', {}, 'reproduced'),
        ('configs/pretrain/mae_vitl.py', 'COCO', dict(label='measured'), 'reproduced'),
        ('configs/pretrain/bootmae_vitb.py', 'my images', {}, 'measured'),
        ('configs/pretrain/bootmae_small_data_cpu.py', 'ImageNet-1k', dict(label='measured'), 'measured'),
        ('', 'ADE20K', {}, 'measured'),
        ('configs/pretrain/bootmae_vitb.py', 'ImageNet-1k', dict(label='demo'), 'demo'),
    ],
)
def test_reproduced_is_a_model_of_the_papers_on_their_data(config, data, given, label):
    columns = dict(data=data, task='knn', labels='all', metric='accuracy', value=1.0, seed=0)
    assert result_row('a.pth', 'abc', dict(config=config), **columns, **given).label == label


def test_other_data_in_validation_than_in_the_test_is_refused(runs):
    cell, _ = runs['seg']
    options = cell.options | {'test_dataloader.dataset.split': 'train'}
    other = Task(name='segmentation', config=cell.config, kind='segmentation', options=options)
    with pytest.raises(ValueError, match='tasks.segmentation: .* give the task "test: true"'):
        cell_config(Cell(cell.suite, other, cell.method, cell.seed, cell.root))


def test_gpu_hours():
    """Those of pretraining and evaluation."""
    columns = dict(data='d', task='knn', labels='all', metric='accuracy', value=1.0, seed=0)
    assert result_row('a.pth', 'abc', dict(gpu_seconds=3600.0), 4 * 1800.0, **columns).gpu_hours == 3.0


def test_protocols_of_the_recipes():
    def of(path: str, kind: str, **options) -> str:
        return protocol_of(load_config(path, options), kind)

    for method in ('mae', 'bootmae'):  # their recipes differ in learning rate and layer decay
        assert of(f'configs/cls/{method}_vitb_finetune.py', 'finetune') == 'all weights trained, 100 epochs, 224 px'
        assert of(f'configs/cls/{method}_vitb_linear.py', 'linear') == 'linear layer trained, 90 epochs, 224 px'
    assert of('configs/seg/bootmae_vitb_upernet.py', 'segmentation') == (
        'UperNet, 160,000 iterations, 2048 x 512 px, slide, single scale'
    )
    assert of('configs/det/mae_vitb_maskrcnn_1x.py', 'detection') == 'Mask R-CNN, 12 epochs, 1333 x 800 px'
    assert of('configs/det/mae_vitb_vitdet.py', 'detection').startswith('ViTDet, ')


@pytest.mark.parametrize(
    ('config', 'name'),
    [
        ('cls/bootmae_vitb_finetune.py', 'ImageNet-1k'),
        ('seg/bootmae_vitb_upernet.py', 'ADE20K'),
        ('det/bootmae_vitb_maskrcnn_1x.py', 'COCO'),
    ],
)
def test_data_of_a_known_format_elsewhere_are_other_data(config, name, tmp_path):
    """They would stand beside the published numbers."""
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
    task = dict(cls='finetune', seg='segmentation', det='detection')[config[:3]]
    assert trained_columns(load_config(f'configs/{config}'), [f'task={task}'])['data'] == name
    cfg = load_config(f'configs/{config}')
    dataset = cfg.test_dataloader.dataset
    key = 'data_root' if 'data_root' in dataset else 'roots'
    (tmp_path / 'link').symlink_to(runs_folder() / dataset[key])
    for same in (runs_folder() / dataset[key], tmp_path / 'link', f'./{dataset[key]}/'):
        dataset[key] = str(same)
        assert rows.data_name(cfg) == name
    own = load_config(f'configs/{config}', {'images': [str(tmp_path)]})
    with pytest.raises(ValueError, match='has no name for result rows: give one by'):
        trained_columns(own, [f'task={task}'])
    assert trained_columns(own, [f'task={task}', 'data=mine'])['data'] == 'mine'


def test_unknown_data_needs_a_name(runs):
    cell, _ = runs['seg']
    cfg = cell_config(cell)
    cfg.test_dataloader.dataset.type = 'MyMasks'
    with pytest.raises(ValueError, match=r'toy.yaml, tasks.segmentation.data: .* MyMasks has no name for result rows'):
        data_name(cell, cfg)


def test_the_hash_is_that_of_other_tasks(runs):
    """Classification, segmentation and detection from one file: one hash in their rows."""
    cfg = load_config(CONFIGS / 'cls' / 'mae_demo_digits_finetune.py', {'model.backbone.depth': 2})
    frozen = load_encoder_weights(MODELS.build(cfg.model.backbone), runs['seg'][0].weights).hash
    assert frozen == runs['seg'][1].model.backbone.load_report.hash == runs['det'][1].model.backbone.load_report.hash


@pytest.mark.parametrize('short', KINDS)
def test_a_trained_model_sees_images_as_in_training(runs, short):
    cell, runner = runs[short]
    model = build_model(load_config(cell.config), last_checkpoint(cell.run)).eval()
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx(IMAGENET)
    assert not model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in runner.model.state_dict().items())


def test_segmentation_samples(runs):
    cell, _ = runs['seg']
    samples = predict(load_config(cell.config), last_checkpoint(cell.run), [3, 0])
    for sample, index in zip(samples, (3, 0), strict=True):
        scene = draw_scene(SPEC, 'val', index)
        assert abs(image_of(sample).astype(float) - scene.image).mean() < 4
        assert np.array_equal(label_map(sample, truth=True), np.where(scene.semantic == 0, 255, scene.semantic - 1))
        assert label_map(sample).shape == scene.semantic.shape
        assert set(np.unique(label_map(sample))) <= set(range(5))


def test_detection_samples(runs):
    cell, _ = runs['det']
    (sample,) = predict(load_config(cell.config), last_checkpoint(cell.run), [4])
    scene, truth, found = draw_scene(SPEC, 'val', 4), instances(sample, truth=True), instances(sample)
    assert truth['labels'].tolist() == scene.labels.tolist()
    assert truth['boxes'].tolist() == boxes_of(scene.masks).tolist()
    assert np.array_equal(truth['masks'], scene.masks)
    assert truth['scores'] is None
    assert len(found['scores']) == len(found['boxes']) == len(found['masks']) > 0
    assert found['masks'].shape[1:] == scene.semantic.shape


@pytest.mark.parametrize('short', KINDS)
def test_pictures(runs, short, monkeypatch):
    """A column for every method, with the classes and colors of the data set."""
    cell, _ = runs[short]
    other = Cell(
        cell.suite, cell.training, Method(name='bootmae', configs='bootmae', weights=cell.weights), cell.seed, cell.root
    )
    (cell.root / other.name).mkdir(parents=True, exist_ok=True)
    if not other.run.exists():
        other.run.symlink_to(cell.run)
    pictures = [predictions(cells) for cells in ([cell], [cell, other])]
    one, two = (Image.open(io.BytesIO(next(iter(found.values())))) for found in pictures)
    assert next(iter(pictures[0])) == f'digit scenes, {KINDS[short]}: the first test images, runs of seed 2'
    assert two.width > 1.2 * one.width
    assert min(one.height, two.height) > 2 * SPEC.size[0]  # scenes, and the color key below
