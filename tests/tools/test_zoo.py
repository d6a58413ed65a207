"""Generated tables and the model index: what is published, measured and not run, and that files follow the rows."""

import math
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from modelindex.load_model_index import load

from bootmae.report.model_results import config_of, model_results, place_of, row_files
from bootmae.report.verdicts import RULE
from bootmae.results.rows import ResultRow, published_rows, read_rows, write_rows
from pages.markers import filled
from pages.metafile import commands, full_size_configs, metafile
from pages.zoo import (
    behind,
    demo_markdown,
    full_size,
    index_behind,
    makers,
    pages_behind,
    published_markdown,
    zoo_table,
)

ROOT = Path(__file__).resolve().parents[2]
TUNED = ResultRow(
    'ImageNet-1k',
    'bootmae',
    'finetune',
    'all',
    'accuracy',
    84.0,
    0,
    'all weights trained',
    'configs/pretrain/bootmae_vitb.py',
    'a.pth',
    'ab12cd34ef56',
    '1234567890ab',
    'NVIDIA H100',
    label='reproduced',
    gpu_hours=90.0,
)
PAPER = ResultRow(
    'ImageNet-1k', 'bootmae', 'finetune', 'all', 'accuracy', 84.2, -1, 'ViT-B, 800 epochs', 'abstract', label='paper'
)
MISSING = replace(PAPER, value=math.nan, seed=0, config='configs/cls/bootmae_vitb_finetune.py', label='not run')


# ---- the repository


@pytest.fixture
def copy(tmp_path):
    """What the tables are made of and stand in."""
    shutil.copytree(ROOT / 'results', tmp_path / 'results')
    for name in ('README.md', 'metafile.yml', 'model-index.yml'):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    return tmp_path


def test_pages_say_what_the_rows_say():
    assert not [str(path) for path in pages_behind(ROOT)], 'run tools/zoo.py --write'


def test_a_changed_value_is_seen(copy):
    row = next(row for row in read_rows(copy / 'results' / 'demo.csv') if row.task == 'segmentation')
    write_rows(copy / 'results' / 'demo.csv', [replace(row, value=row.value + 30)])
    assert {path.name for path in pages_behind(copy)} >= {'model_zoo.md'}


@pytest.mark.slow
def test_the_index_says_what_rows_and_configs_say():
    assert not [str(path) for path in index_behind(ROOT)], 'run tools/zoo.py --write'


@pytest.mark.slow
def test_a_new_row_is_found_and_written(copy):
    write_rows(copy / 'results' / 'new.csv', [TUNED])
    found = {path.name: text for path, text in behind(copy).items()}
    assert sorted(found) == ['README.md', 'metafile.yml', 'model_zoo.md']
    assert '| 84.0 (1) |' in found['README.md']
    assert '| 84.0 (1) | 84.2 (800 epochs) | reproduced |' in found['model_zoo.md']
    for path, text in behind(copy).items():
        path.write_text(text, encoding='utf-8')
    assert behind(copy) == {}


@pytest.mark.slow
def test_the_command_checks_and_writes(copy, monkeypatch, capsys):
    command = runpy.run_path(str(ROOT / 'tools' / 'zoo.py'))['command']

    def run(option):
        monkeypatch.setattr(sys, 'argv', ['zoo.py', option, '--root', str(copy)])
        return command(), capsys.readouterr().out.splitlines()

    assert run('--check') == (0, [])
    (copy / 'model-index.yml').write_text('Import: []\n')
    assert run('--check') == (1, ['model-index.yml: out of date', 'run tools/zoo.py --write to update them'])
    assert run('--write') == (0, ['model-index.yml: rewritten'])
    assert run('--check') == (0, [])


def test_each_full_size_config_has_a_row():
    rows = [row for name, rows in row_files(ROOT / 'results').items() if name != 'published' for row in rows]
    assert {config_of(row) for row in rows} >= set(full_size_configs(ROOT))
    assert len(full_size_configs(ROOT)) == 24


def test_published_numbers_are_from_publications(tmp_path):
    assert {row.label for row in published_rows()} == {'paper'}
    write_rows(tmp_path / 'published.csv', [PAPER, TUNED])
    with pytest.raises(ValueError, match=r"published.csv: .*labeled 'reproduced'"):
        published_rows(tmp_path / 'published.csv')
    assert published_rows(tmp_path / 'none.csv') == []


def test_files_of_something_else_are_no_rows(tmp_path):
    write_rows(tmp_path / 'zzz.csv', [TUNED])
    write_rows(tmp_path / 'published.csv', [PAPER])
    (tmp_path / 'matrix.csv').write_text('date,python\n2026,3.11\n')
    assert row_files(tmp_path) == {'published': [PAPER], 'zzz': [TUNED]}
    (tmp_path / 'old.csv').write_text('data,method,task\na,b,c\n')
    with pytest.raises(ValueError, match=r'old.csv, line 1: missing columns labels'):
        row_files(tmp_path)


# ---- places


@pytest.mark.parametrize(
    ('changes', 'config'),
    [
        (dict(), 'configs/cls/bootmae_vitb_finetune.py'),
        (dict(task='linear'), 'configs/cls/bootmae_vitb_linear.py'),
        (dict(task='linear', protocol='logistic regression, block 12 of 12'), 'configs/pretrain/bootmae_vitb.py'),
        (dict(task='knn'), 'configs/pretrain/bootmae_vitb.py'),
        (dict(task='segmentation'), 'configs/seg/bootmae_vitb_upernet.py'),
        (dict(task='detection', protocol='Mask R-CNN'), 'configs/det/bootmae_vitb_maskrcnn_1x.py'),
        (dict(task='detection', protocol='ViTDet'), 'configs/det/bootmae_vitb_vitdet.py'),
        (dict(config='configs/pretrain/mae_vitl.py'), 'configs/cls/mae_vitl_finetune.py'),
        (dict(task='segmentation', config='configs/seg/upernet_quick.py'), 'configs/seg/upernet_quick.py'),
        (dict(config='configs/pretrain/bootmae_demo.py'), 'configs/pretrain/bootmae_demo.py'),
    ],
)
def test_the_config_that_makes_a_number(changes, config):
    assert config_of(replace(TUNED, **changes)) == config


def test_published_measured_and_missing_meet():
    assert place_of(TUNED) == place_of(PAPER) == place_of(MISSING)
    others = [dict(data='mine'), dict(labels='10'), dict(protocol='ViT-L'), dict(task='linear'), dict(metric='mIoU')]
    assert all(place_of(replace(PAPER, **changes)) != place_of(PAPER) for changes in others)
    gain = replace(PAPER, task='detection', metric='box AP over MAE', protocol='ViT-B, Mask R-CNN')
    box = replace(TUNED, task='detection', metric='box AP', protocol='Mask R-CNN')
    assert place_of(gain) == place_of(replace(gain, metric='box AP')) == place_of(box)
    assert place_of(replace(box, protocol='ViTDet')) != place_of(gain)


def test_not_run_gives_way_to_what_was_measured():
    rows = [MISSING, replace(MISSING, task='linear'), TUNED, replace(TUNED, seed=1, value=84.4)]
    first, second = model_results(rows, [PAPER])
    assert (first.config, first.paper, len(first.rows)) == ('configs/cls/bootmae_vitb_finetune.py', PAPER, 2)
    assert (second.paper, second.rows) == (None, [])
    apart = model_results([MISSING, TUNED, replace(TUNED, protocol='weights averaged')], [PAPER])
    assert [entry.rows[0].protocol for entry in apart] == ['all weights trained', 'weights averaged']


# ---- tables


def lines_of(table):
    return [[cell.strip() for cell in line[1:-1].split('|')] for line in table.splitlines()]


def test_published_beside_reproduced():
    mae = replace(TUNED, method='mae', config='configs/pretrain/mae_vitb.py')
    box = dict(task='detection', metric='box AP', protocol='Mask R-CNN', data='COCO')
    gain = replace(
        PAPER, task='detection', metric='box AP over MAE', data='COCO', value=1.3, protocol='ViT-B, Mask R-CNN'
    )
    published = [replace(PAPER, method='mae', value=83.4, protocol='ViT-B, 1600 epochs'), PAPER, gain]

    def cells(rows):
        return [line[1:5] for line in lines_of(published_markdown(published, rows))[2:]]

    papers = ['83.4 (1600 epochs)', '84.2 (800 epochs)']
    assert cells([MISSING]) == [[papers[0], 'not run', papers[1], 'not run'], ['–', '–', '+1.3', 'not run']]
    rows = [
        TUNED,
        replace(TUNED, seed=1, value=85.0),
        replace(mae, value=83.0, label='demo'),
        replace(TUNED, **box, value=50.0),
        replace(mae, **box, value=48.5),
    ]
    assert cells(rows) == [[papers[0], 'not run', papers[1], '84.5 ± 0.7 (2)'], ['–', '–', '+1.3', '+1.50 (1)']]


def test_one_line_a_model_and_task():
    run = [TUNED, replace(TUNED, seed=1, value=85.0, checkpoint_hash='ff00', commit='1234567890ab+', gpu_hours=100.0)]
    large = replace(MISSING, config='configs/cls/bootmae_vitl_finetune.py', protocol='ViT-L')
    heads, _, *body = lines_of(zoo_table([MISSING, large, *run], [PAPER], '', ROOT))
    tuned, missing = (dict(zip(heads, cells, strict=True)) for cells in body)
    assert tuned == {
        'model': 'bootmae_vitb',
        'data': 'ImageNet-1k',
        'task': 'fine-tuning',
        'labels': 'all',
        'metric': 'accuracy',
        'result': '84.5 ± 0.7 (2)',
        'published': '84.2 (800 epochs)',
        'label': 'reproduced',
        'config': '[bootmae_vitb_finetune](../configs/cls/bootmae_vitb_finetune.py)',
        'weights': 'ab12cd34ef56, ff00',
        'commit': '1234567, 1234567+',
        'device': 'NVIDIA H100',
        'GPU-hours': '95.0',
        'command': '`tools/dist_train.sh configs/cls/bootmae_vitb_finetune.py 8 '
        '--init work_dirs/bootmae_vitb/epoch_801.pth`',
    }
    assert (missing['model'], missing['result'], missing['label'], missing['weights']) == (
        'bootmae_vitl',
        'not run',
        'not run',
        '',
    )
    assert zoo_table([], [], '', ROOT) == '*Nothing yet.*\n'


def test_lines_of_the_demo_are_in_order_and_have_its_command():
    row = replace(TUNED, data='digits', config='configs/pretrain/bootmae_demo_digits.py', label='demo')
    rows = [row, replace(row, task='knn'), replace(row, task='knn', method='untrained', config='')]
    heads, _, *body = lines_of(zoo_table(rows, [], 'make demo', ROOT))
    assert [(cells[0], cells[2], cells[-1]) for cells in body] == [
        ('Untrained', 'k-NN', '`make demo`'),
        ('BootMAE', 'k-NN', '`make demo`'),
        ('BootMAE', 'fine-tuning', '`make demo`'),
    ]
    assert 'published' not in heads


def test_the_overview_says_where_its_numbers_come_from():
    row = replace(TUNED, label='demo', precision='float32', date='2026-11-24')
    text = demo_markdown([row, replace(row, seed=1)])
    assert '| BootMAE | 84.0 ± 0.0 (2) |' in text
    assert '[rule of the report](suite.md#when-a-difference-counts)' in text
    assert text.endswith('Commit 1234567, NVIDIA H100, float32, 2026-11-24.\n')


def test_commands_of_full_size_configs():
    config = 'configs/seg/mae_vitb_upernet.py'
    assert commands(config, 'segmentation', True, ROOT) == [
        f'tools/dist_test.sh {config} work_dirs/mae_vitb_upernet/iter_160000.pth 8 --tta'
    ]
    assert commands('configs/pretrain/mae_vitl.py', 'knn', False, ROOT) == [
        'tools/dist_train.sh configs/pretrain/mae_vitl.py 8',
        'tools/knn.py configs/cls/mae_vitl_finetune.py --init work_dirs/mae_vitl/epoch_800.pth',
    ]
    assert commands('configs/seg/upernet_quick.py', 'segmentation', False, ROOT) == []


def test_markers_of_other_kinds_stay():
    page = '<!-- speed: step -->\nold\n<!-- /speed -->\n<!-- zoo: full -->\nold\n<!-- /zoo -->\n'
    assert filled(page, 'a.md', 'zoo', {'full': lambda: 'new\n'}) == page.replace(
        'zoo: full -->\nold', 'zoo: full -->\nnew'
    )
    assert {name for name in makers({}, ROOT) if '/' not in name} == {
        'rule',
        'published',
        'overview',
        'full',
        'demo',
        'photographs',
        'watching',
    }  # the others are of docs/evidence.md


def test_a_measurement_in_two_files_is_an_error():
    files = {'published': [PAPER], 'a': [TUNED], 'b': [replace(TUNED, seed=1)], 'demo': [TUNED]}
    assert full_size(files) == [TUNED, replace(TUNED, seed=1)]
    with pytest.raises(ValueError, match=r'results/a.csv and results/b.csv have the same row \(ImageNet-1k, bootmae, '):
        full_size(files | {'b': [replace(TUNED, value=80.0, checkpoint_hash='other')]})


def test_the_rule_is_on_a_page():
    assert f'\n{RULE}\n' in (ROOT / 'docs' / 'suite.md').read_text(encoding='utf-8')


# ---- the model index


def test_the_index_is_read_by_its_own_reader():
    models = {model.name: model for model in load(str(ROOT / 'model-index.yml')).models}
    assert len(models) == 24
    tuned = models['bootmae_vitb_finetune']
    assert (tuned.in_collection, tuned.config) == ('BootMAE', 'configs/cls/bootmae_vitb_finetune.py')
    assert tuned.metadata.data == {'Training Data': 'ImageNet-1k', 'Epochs': 100, 'Batch Size': 2048}


@pytest.mark.slow
def test_only_reproduced_numbers_are_results():
    box = dict(task='detection', metric='box AP', protocol='Mask R-CNN', data='COCO')
    rows = [
        MISSING,
        TUNED,
        replace(TUNED, seed=1, value=85.0),
        replace(TUNED, task='linear', label='demo'),
        replace(TUNED, **box, value=50.0),
        replace(TUNED, **box | {'metric': 'mask AP'}, value=44.0, checkpoint='https://host/a.pth'),
    ]
    models = {model['Name']: model for model in yaml.safe_load(metafile(rows, ROOT))['Models']}
    assert models['bootmae_vitb_finetune']['Results'] == [
        {'Task': 'Image Classification', 'Dataset': 'ImageNet-1k', 'Metrics': {'Top 1 Accuracy': 84.5}}
    ]
    assert models['bootmae_vitb_linear']['Results'] is None
    assert models['bootmae_vitb_maskrcnn_1x']['Results'] == [
        {'Task': 'Object Detection', 'Dataset': 'COCO', 'Metrics': {'box AP': 50.0}},
        {'Task': 'Instance Segmentation', 'Dataset': 'COCO', 'Metrics': {'mask AP': 44.0}},
    ]
    assert models['bootmae_vitb_maskrcnn_1x']['Weights'] == 'https://host/a.pth'
    assert [name for name, model in models.items() if 'Weights' in model] == ['bootmae_vitb_maskrcnn_1x']
    assert models['mae_vitl']['Downstream'] == [
        'mae_vitl_finetune',
        'mae_vitl_linear',
        'mae_vitl_upernet',
        'mae_vitl_maskrcnn_1x',
        'mae_vitl_vitdet',
    ]
