"""What a command writes at its end is checked before its work."""

from pathlib import Path

import pytest
from calling import call_tool
from mmengine.config import Config

from bootmae.commands.outputs import check_rows, check_writable, columns_of_rows
from bootmae.config.load import load_config
from bootmae.config.model import task_of
from bootmae.evaluation.rows import trained_rows

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PRETRAIN, TUNE = CONFIGS / 'pretrain' / 'bootmae_debug.py', CONFIGS / 'cls' / 'bootmae_debug_finetune.py'
SEG, DET = CONFIGS / 'seg' / 'upernet_debug.py', CONFIGS / 'det' / 'mask_rcnn_debug.py'


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    check_writable(str(tmp_path / 'new' / 'folder' / 'a.json'))
    assert not (tmp_path / 'new').exists()
    check_writable(str(tmp_path / 'file'))
    with pytest.raises(ValueError, match='is a folder: give a file'):
        check_writable(str(tmp_path))
    with pytest.raises(ValueError, match='a.json cannot be written, because .*/file is a file'):
        check_writable(str(tmp_path / 'file' / 'a.json'))
    monkeypatch.setattr('os.access', lambda path, mode: False)
    with pytest.raises(ValueError, match=f'a.json cannot be written: you may not write to {tmp_path}'):
        check_writable(str(tmp_path / 'a.json'))


def test_a_file_of_other_columns(tmp_path):
    check_rows(str(tmp_path / 'none.csv'))
    (tmp_path / 'mine.csv').write_text('a,b\n')
    with pytest.raises(ValueError, match='mine.csv, line 1: missing columns data'):
        check_rows(str(tmp_path / 'mine.csv'))


def test_columns(tmp_path):
    cfg, file = load_config(TUNE), str(tmp_path / 'rows.csv')
    assert columns_of_rows(cfg, None, [], 'val') == {}
    with pytest.raises(ValueError, match='--row task=finetune data=mine needs --rows FILE.csv'):
        columns_of_rows(cfg, None, ['task=finetune', 'data=mine'], 'val')
    columns = dict(seed=0, task='finetune', labels='all', data='mine')
    assert columns_of_rows(cfg, file, ['task=finetune', 'data=mine'], 'val') == columns | dict(
        labels=str(cfg.train_dataloader.dataset.get('labels_per_class') or 'all'), seed=cfg.randomness.seed
    )


@pytest.mark.parametrize('head', ['roi_head', 'bbox_head', 'panoptic_head', 'mask_head', 'rpn_head'])
def test_models_of_mmdet_are_detectors(head):
    assert task_of(Config(dict(model={'backbone': {}, head: {}}))) == 'detection'


@pytest.mark.parametrize(
    ('config', 'task', 'message'),
    [
        (TUNE, 'segmentation', 'bootmae_debug_finetune.py is one for classification: give linear or finetune'),
        (SEG, 'linear', 'upernet_debug.py is one for segmentation: give segmentation'),
        (PRETRAIN, 'linear', 'bootmae_debug.py has no val_dataloader and no val_evaluator and no test_dataloader'),
    ],
)
def test_a_task_of_another_model(config, task, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        columns_of_rows(load_config(config), str(tmp_path / 'rows.csv'), [f'task={task}'], 'val')


@pytest.mark.parametrize('more', [[], ['--dry-run']])
def test_a_training_is_refused_before_it_begins(more, tmp_path, capsys):
    rows = ['--rows', tmp_path / 'rows.csv', '--row', 'task=finetune']
    none = [f'{name}=None' for name in ('val_dataloader', 'val_evaluator', 'val_cfg')]
    assert call_tool('train', TUNE, '--work-dir', tmp_path, *rows, *more, '--cfg-options', *none) == 2
    assert '--rows needs the metrics of val_dataloader' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_test_is_refused_before_it_begins(tmp_path, capsys):
    (tmp_path / 'file').touch()
    for flag, path, message in (
        ('--out', tmp_path / 'file' / 'a.json', 'cannot be written'),
        ('--rows', tmp_path / 'file', 'file, line 1: missing columns'),
    ):
        assert call_tool('test', TUNE, 'missing.pth', flag, path, '--row', 'task=finetune') == 2
        assert message in capsys.readouterr().err


def test_rows_of_the_metrics_that_there_are(monkeypatch):
    """A detector without masks has one of two; an evaluator with none of them is an error that names its own."""
    monkeypatch.setattr('bootmae.evaluation.rows.data_hash', lambda cfg: '')
    cfg, columns = load_config(DET), dict(task='detection', data='mine', labels='all', seed=0)
    (row,) = trained_rows(cfg, {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5}, columns, None, '', 0.0)
    assert (row.metric, row.value) == ('box AP', 25.0)
    with pytest.raises(ValueError, match='mask_rcnn_debug.py gives pascal_voc/mAP, and none of coco/bbox_mAP'):
        trained_rows(cfg, {'pascal_voc/mAP': 0.5}, columns, None, '', 0.0)
