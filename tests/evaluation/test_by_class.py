"""What each class got: kept beside the log, the usual results as they were."""

import json
import logging

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS as MMDET_METRICS
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmpretrain.registry import METRICS
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS as MMSEG_METRICS

import bootmae.evaluation.metrics_det  # noqa: F401  registers CocoByClass
from bootmae.evaluation import by_class
from bootmae.evaluation.by_class import FILE, keep_classes
from bootmae.report.classes import FILE as READ_FILE
from bootmae.report.classes import read_classes


@pytest.fixture
def work_dir(tmp_path):
    """A work directory whose log the current logger writes, as in a run."""
    folder = tmp_path / '20260101_100000'
    folder.mkdir()
    logger = MMLogger.get_instance(f'by_class_{tmp_path.name}', log_file=str(folder / 'a.log'))
    yield tmp_path
    for handler in logger.handlers:
        handler.close()
    MMLogger._instance_dict.pop(logger.instance_name)


def score(*numbers):
    return torch.tensor(numbers)


def test_accuracy(work_dir):
    metric = METRICS.build(dict(type='bootmae.evaluation.by_class.AccuracyByClass', topk=(1, 2)))
    metric.dataset_meta = dict(classes=('cat', 'dog', 'cow', 'never seen'))
    guesses = [
        (0, score(0.9, 0.1, 0)),
        (0, score(0.2, 0.5, 0.3)),
        (0, score(0.8, 0.1, 0.1)),
        (0, score(0.6, 0.2, 0.2)),
        (1, score(0.1, 0.7, 0.2)),
        (2, score(0.5, 0.1, 0.4)),
    ]
    metric.process({}, [dict(pred_score=scores, gt_label=torch.tensor([truth])) for truth, scores in guesses])
    found = metric.evaluate(len(guesses))
    assert found == pytest.approx({'accuracy/top1': 400 / 6, 'accuracy/top2': 500 / 6})
    assert read_classes(work_dir) == {'accuracy': {'cat': 75.0, 'dog': 100.0, 'cow': 0.0}}


def test_accuracy_of_labels_without_names(work_dir):
    metric = METRICS.build(dict(type='bootmae.evaluation.by_class.AccuracyByClass'))
    metric.process(
        {},
        [
            dict(pred_label=torch.tensor([guess]), gt_label=torch.tensor([truth]))
            for truth, guess in ((0, 0), (0, 2), (1, 1))
        ],
    )
    assert metric.evaluate(3)['accuracy/top1'] == pytest.approx(200 / 3)
    assert read_classes(work_dir) == {'accuracy': {'0': 50.0, '1': 100.0}}


def test_iou(work_dir):
    truth, guess = torch.tensor([[0, 0, 1, 1], [0, 255, 1, 1]]), torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]])
    results = {}
    for kind in (IoUMetric, MMSEG_METRICS.get('bootmae.evaluation.metrics_seg.IoUByClass')):
        metric = kind(iou_metrics=['mIoU'])
        metric.dataset_meta = dict(classes=('sky', 'sea', 'absent'))
        metric.process({}, [dict(pred_sem_seg=dict(data=guess[None]), gt_sem_seg=dict(data=truth[None]))])
        results[kind.__name__] = metric.evaluate(1)
    assert results['IoUByClass'] == results['IoUMetric']
    kept = read_classes(work_dir)
    assert kept['IoU'] == {'sky': 50.0, 'sea': 60.0}  # 2 of 4, 3 of 5 pixels; the absent class has no number
    assert kept['Acc'] == pytest.approx({'sky': 66.6667, 'sea': 75.0})


BOX = [2, 2, 8, 8]  # x, y, width, height


def coco_file(path):
    things = [
        dict(
            id=i + 1,
            image_id=1,
            category_id=i + 1,
            bbox=BOX,
            area=64,
            iscrowd=0,
            segmentation=[[2, 2, 10, 2, 10, 10, 2, 10]],
        )
        for i in range(2)
    ]
    path.write_text(
        json.dumps(
            dict(
                images=[dict(id=1, file_name='a.jpg', width=32, height=32)],
                annotations=things,
                categories=[dict(id=i + 1, name=name) for i, name in enumerate(('cat', 'cow', 'ant'))],
            )
        )
    )
    return str(path)


def instances(masks):
    """The cat found well by box and mask, the cow well by its box only."""
    encoded = [dict(size=[32, 32], counts=counts) for counts in masks]
    boxes = np.array([[2, 2, 10, 10], [2, 2, 10, 10]], dtype=np.float32)
    return dict(
        img_id=1,
        bboxes=boxes,
        scores=np.array([0.9, 0.8]),
        labels=np.array([0, 1]),
        masks=encoded,
        mask_scores=np.array([0.9, 0.8]),
    )


def test_boxes_and_masks(work_dir):
    from pycocotools import mask

    right, wrong = np.zeros((32, 32), np.uint8, 'F'), np.zeros((32, 32), np.uint8, 'F')
    right[2:10, 2:10], wrong[20:, 20:] = 1, 1
    results = [
        (dict(img_id=1, width=32, height=32), instances([mask.encode(right)['counts'], mask.encode(wrong)['counts']]))
    ]
    settings = dict(ann_file=coco_file(work_dir / 'truth.json'), metric=['bbox', 'segm'])
    plain, ours = CocoMetric(**settings), MMDET_METRICS.build(dict(type='CocoByClass', **settings))
    for metric in (plain, ours):
        metric.dataset_meta = dict(classes=('cat', 'cow', 'ant'))
    found = ours.compute_metrics(results)
    expected = plain.compute_metrics(results)
    assert found == expected
    assert list(found) == list(expected)
    assert (found['bbox_mAP'], found['segm_mAP']) == (1.0, 0.5)
    assert read_classes(work_dir) == {'box AP': {'cat': 100.0, 'cow': 100.0}, 'mask AP': {'cat': 100.0, 'cow': 0.0}}
    assert (ours.metrics, ours.classwise) == (['bbox', 'segm'], False)


def test_newest_validation_counts_and_metrics_share_the_file(work_dir):
    assert FILE == READ_FILE
    keep_classes({'IoU': {'a': 1.0}, 'Acc': {'a': 5.0}})
    keep_classes({'IoU': {'a': 2.0, 'b': float('nan')}})
    assert read_classes(work_dir) == {'IoU': {'a': 2.0}, 'Acc': {'a': 5.0}}
    later = work_dir / '20260102_100000'
    later.mkdir()
    assert read_classes(work_dir)['IoU'] == {'a': 2.0}  # no validation there yet
    (later / FILE).write_text('{"IoU": {"a": 3}}')
    assert read_classes(work_dir) == {'IoU': {'a': 3.0}}
    assert read_classes(work_dir / 'nowhere') == {}
    (later / FILE).write_text('[1]')
    with pytest.raises(ValueError, match=r'classes.json: not percent by class and metric .*; delete it'):
        read_classes(work_dir)


def test_a_full_disk_ends_no_training(work_dir, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(by_class, 'write_file', fail)
    keep_classes({'IoU': {'a': 1.0}})
    log = next(work_dir.glob('*/a.log'))
    for handler in MMLogger.get_current_instance().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.flush()
    assert 'what each class got is not kept (disk full)' in log.read_text()
    assert read_classes(work_dir) == {}


def test_scopes_find_the_metrics():
    with DefaultScope.overwrite_default_scope('mmseg'):
        metric = MMSEG_METRICS.build(dict(type='bootmae.evaluation.metrics_seg.IoUByClass', iou_metrics=['mIoU']))
    assert metric.metrics == ['mIoU']
