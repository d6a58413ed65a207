"""Curves of validations and probes: read in percent, with the right unit, and drawn for all methods together."""

import json
import re

import numpy as np
import pytest

from bootmae.report import Curve, read_metrics
from bootmae.report.figures import OTHER_COLORS, method_colors
from bootmae.report.metric_curves import metric_plots, metric_svg


def write_log(work_dir, *lines):
    folder = work_dir / '20260101_100000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')


def test_detection_is_turned_into_percent_by_epoch(tmp_path):
    write_log(
        tmp_path,
        dict(loss=2.0, epoch=1, iter=50, step=50),
        {'coco/bbox_mAP': 0.1, 'coco/segm_mAP': 0.2, 'step': 1},
        dict(loss=1.0, epoch=2, iter=100, step=100),
        {'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.4, 'step': 2},
    )
    boxes, masks = read_metrics('COCO/mae/0', tmp_path)
    assert (boxes.unit, boxes.steps.tolist(), list(boxes.values)) == ('epoch', [1, 2], ['coco/bbox_mAP'])
    assert boxes.values['coco/bbox_mAP'].tolist() == pytest.approx([10.0, 30.0])
    assert masks.values['coco/segm_mAP'].tolist() == pytest.approx([20.0, 40.0])


def test_segmentation_counts_iterations(tmp_path):
    write_log(tmp_path, dict(loss=2.0, iter=10, step=10), dict(mIoU=30.0, step=10), dict(mIoU=40.0, step=20))
    (curve,) = read_metrics('ADE20K/mae/0', tmp_path)
    assert (curve.unit, curve.steps.tolist(), curve.values['mIoU'].tolist()) == ('iteration', [10, 20], [30.0, 40.0])


def test_probe_of_a_pretraining_and_nothing_else(tmp_path):
    write_log(
        tmp_path,
        dict(loss=2.0, epoch=1, iter=20, step=20),
        {'probe/knn': 50.0, 'probe/rankme': 12.5, 'step': 1},
        dict(loss=2.0, epoch=2, iter=40, step=40),
        {'probe/knn': 60.0, 'probe/rankme': 2.5, 'step': 2},
    )
    knn, rank = read_metrics('digits/bootmae/0', tmp_path)
    assert (knn.unit, knn.values['probe/knn'].tolist()) == ('epoch', [50.0, 60.0])
    assert (rank.unit, rank.values['probe/rankme'].tolist()) == ('epoch', [12.5, 2.5])
    for curve, label in ((knn, 'percent'), (rank, 'effective rank')):
        assert f'>{label}<' in metric_svg([curve], *curve.values)
    assert read_metrics('digits/bootmae/0', tmp_path / 'none') == []


def curve_of(name, *values, key='mIoU'):
    return Curve(name, np.arange(1, len(values) + 1), {key: np.array(values, dtype=float)})


def test_methods_share_a_plot_and_single_points_are_left_out():
    curves = [
        curve_of('a/mae/0', 1, 2),
        curve_of('a/bootmae/0', 2, 3),
        curve_of('a/bootmae/1', 2, 4),
        curve_of('b/mae/0', 5),
        curve_of('b/mae/0', 1, 2, key='probe/knn'),
        curve_of('c/mae/0', 5, np.nan),
    ]
    plots = metric_plots(curves)
    assert [heading for heading, _ in plots] == ['a, mIoU', 'b, online k-NN']
    lines = re.findall(r'<path d="M[^"]*"[^>]*stroke: var\(--(mae|bootmae),[^"]*stroke-opacity', plots[0][1])
    assert sorted(lines[:3]) == ['bootmae', 'bootmae', 'mae']
    assert [plots[0][1].count(f'>{name}<') for name in ('MAE', 'BootMAE')] == [1, 1]


def test_line_follows_the_values():
    svg = metric_svg([curve_of('a/mae/0', 1, 2, 3, 5, 5, 5, 5)], 'mIoU')
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--mae', svg)[1]
    _, y = np.array([[float(x) for x in point] for point in re.findall(r'([\d.]+) ([\d.]+)', path)]).T
    np.testing.assert_allclose((y - y[0]) / (y[-1] - y[0]), [0, 1 / 4, 1 / 2, 1, 1, 1, 1], atol=1e-4)


def test_colors_are_a_methods_own_and_run_out_late():
    further = [f'method-{number}' for number in range(len(OTHER_COLORS) + 1)]
    colors = method_colors([further[0], 'mae', further[1], 'bootmae', 'untrained', *further[2:]])
    assert [colors[name] for name in further] == [*OTHER_COLORS, OTHER_COLORS[-1]]
    assert len(set(colors.values())) == 12
