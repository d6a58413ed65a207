"""Published numbers beside measured ones: what may stand together, by hand."""

import re
from dataclasses import replace
from pathlib import Path

from bootmae.report import ResultRow, published_rows
from bootmae.report.published import beside_published, command_of, measured_at, missing_commands

PAPER = ResultRow(
    'ImageNet-1k', 'bootmae', 'finetune', 'all', 'accuracy', 84.2, -1, 'ViT-B, 800 epochs', 'abstract', label='paper'
)
OURS = replace(
    PAPER, value=84.0, seed=0, protocol='100 epochs', config='configs/pretrain/bootmae_vitb.py', label='reproduced'
)
BOXES = replace(PAPER, data='COCO', task='detection', metric='box AP over MAE', value=1.3, protocol='ViT-B, Mask R-CNN')


def cells(table):
    return [[cell.text for cell in line] for line in table.rows]


def test_same_place_only():
    rows = [OURS, replace(OURS, seed=1, value=84.6)]
    ((protocol, spread),) = measured_at(rows, PAPER)
    assert (protocol, spread.mean, spread.n) == ('100 epochs', 84.3, 2)
    for other in (
        dict(data='ImageNet-100'),
        dict(method='mae'),
        dict(task='linear'),
        dict(labels='10'),
        dict(config='configs/pretrain/bootmae_vitl.py'),
        dict(label='demo'),
    ):
        assert measured_at([replace(row, **other) for row in rows], PAPER) == []


def test_table_by_hand():
    table = beside_published([PAPER, BOXES], [OURS, replace(OURS, seed=1, value=84.6)])
    assert [name for name, _ in table.columns] == [
        'Data',
        'Task',
        'Published with',
        'Method',
        'Published',
        'Here',
        'Difference',
        'Here with',
        'Source',
    ]
    assert cells(table) == [  # 84.0 and 84.6: mean 84.3, deviation 0.42, its error 0.3
        [
            'ImageNet-1k',
            'fine-tuning',
            'ViT-B, 800 epochs',
            'BootMAE',
            '84.2',
            '84.3 ± 0.4 (2)',
            '+0.10 ± 0.30 (2)',
            '100 epochs',
            'abstract',
        ],
        ['COCO', 'detection box AP over MAE', 'ViT-B, Mask R-CNN', 'BootMAE', '+1.3', 'not run', '–', '–', 'abstract'],
    ]


def test_a_gain_is_compared_with_the_paired_difference():
    boxes = replace(OURS, data='COCO', task='detection', metric='box AP', protocol='1x')
    rows = [
        replace(boxes, value=value, seed=seed, method=method, config=f'configs/pretrain/{method}_vitb.py')
        for method, values in (('mae', (40.0, 41.0)), ('bootmae', (41.0, 43.0)))
        for seed, value in enumerate(values)
    ]
    assert cells(beside_published([BOXES], rows))[0][4:8] == ['+1.3', '+1.50 ± 0.50 (2)', '+0.20 ± 0.50 (2)', '1x']
    assert measured_at(rows[2:], BOXES) == []


def test_several_scales_are_another_number():
    flipped = replace(PAPER, data='ADE20K', task='segmentation', metric='mIoU', protocol='ViT-B, multi-scale and flip')
    single = replace(OURS, data='ADE20K', task='segmentation', metric='mIoU', protocol='UperNet')
    assert measured_at([single], flipped) == []
    assert len(measured_at([replace(single, protocol='UperNet, multi-scale and flip')], flipped)) == 1


def test_commands_of_what_was_not_run_are_those_of_the_configs():
    found = missing_commands(published_rows(), [OURS])
    assert 'ImageNet-1k, fine-tuning, BootMAE, ViT-B' not in found
    command = found['ImageNet-1k, fine-tuning, MAE, ViT-B']
    assert re.fullmatch(r'tools/dist_train.sh configs/cls/mae_vitb_finetune.py 8 --init work_dirs/\S+\.pth', command)
    assert 'configs/det/bootmae_vitb_maskrcnn_1x.py' in found['COCO, detection box AP, BootMAE, ViT-B']
    assert found['ADE20K, segmentation mIoU, BootMAE, ViT-B, multi-scale'].endswith('.py CHECKPOINT --tta')
    assert len(found) == len(published_rows()) - 1
    root = Path(__file__).parents[2]
    assert all((root / word).is_file() for command in found.values() for word in command.split() if '.py' in word)
    assert command_of(replace(PAPER, protocol='ViT-H')) == ''


def test_rows_that_say_not_run_follow():
    missing = replace(
        OURS,
        value=float('nan'),
        label='not run',
        config='configs/cls/mae_vitl_linear.py',
        method='mae',
        task='linear',
        protocol='',
    )
    assert cells(beside_published([PAPER], [missing]))[-1] == [
        'ImageNet-1k',
        'linear probe',
        '',
        'MAE',
        '–',
        'not run',
        'configs/cls/mae_vitl_linear.py',
    ]
    found = missing_commands([PAPER], [missing])
    assert 'configs/cls/mae_vitl_linear.py' in found['ImageNet-1k, linear probe, MAE, ViT-L']
