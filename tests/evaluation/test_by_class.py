"""Metrics keep per-class results and report the usual numbers; the run writes both kinds of weights apart."""

import json
from statistics import fmean

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS as MMDET_METRICS
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmpretrain.registry import METRICS
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS as MMSEG_METRICS

import bootmae.evaluation.metrics_det  # noqa: F401  registers CocoByClass
from bootmae.commands.train import train
from bootmae.engine.hooks import class_results as hook_module
from bootmae.engine.hooks.class_results import write_class_results
from bootmae.engine.runner import records
from bootmae.evaluation.by_class import take_class_results
from bootmae.report.classes import class_results, read_classes
from bootmae.report.curves import read_curve
from bootmae.results.names import CLASSES_FILE
from bootmae.results.provenance import REPOSITORY


def score(*numbers):
    return torch.tensor(numbers)


def test_accuracy():
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
    assert take_class_results([metric]) == {'accuracy': {'cat': 75.0, 'dog': 100.0, 'cow': 0.0}}


def test_accuracy_of_labels_without_names():
    metric = METRICS.build(dict(type='bootmae.evaluation.by_class.AccuracyByClass'))
    metric.process(
        {},
        [
            dict(pred_label=torch.tensor([guess]), gt_label=torch.tensor([truth]))
            for truth, guess in ((0, 0), (0, 2), (1, 1))
        ],
    )
    assert metric.evaluate(3)['accuracy/top1'] == pytest.approx(200 / 3)
    assert take_class_results([metric]) == {'accuracy': {'0': 50.0, '1': 100.0}}


def test_iou():
    truth, guess = torch.tensor([[0, 0, 1, 1], [0, 255, 1, 1]]), torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]])
    results = {}
    for kind in (IoUMetric, MMSEG_METRICS.get('bootmae.evaluation.metrics_seg.IoUByClass')):
        metric = kind(iou_metrics=['mIoU'])
        metric.dataset_meta = dict(classes=('sky', 'sea', 'absent'))
        metric.process({}, [dict(pred_sem_seg=dict(data=guess[None]), gt_sem_seg=dict(data=truth[None]))])
        results[kind.__name__] = metric.evaluate(1)
    assert results['IoUByClass'] == results['IoUMetric']
    kept = take_class_results([metric])
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


def test_boxes_and_masks(tmp_path):
    from pycocotools import mask

    right, wrong = np.zeros((32, 32), np.uint8, 'F'), np.zeros((32, 32), np.uint8, 'F')
    right[2:10, 2:10], wrong[20:, 20:] = 1, 1
    results = [
        (dict(img_id=1, width=32, height=32), instances([mask.encode(right)['counts'], mask.encode(wrong)['counts']]))
    ]
    settings = dict(ann_file=coco_file(tmp_path / 'truth.json'), metric=['bbox', 'segm'])
    plain, ours = CocoMetric(**settings), MMDET_METRICS.build(dict(type='CocoByClass', **settings))
    for metric in (plain, ours):
        metric.dataset_meta = dict(classes=('cat', 'cow', 'ant'))
    found = ours.compute_metrics(results)
    expected = plain.compute_metrics(results)
    assert found == expected
    assert list(found) == list(expected)
    assert (found['bbox_mAP'], found['segm_mAP']) == (1.0, 0.5)
    assert take_class_results([ours]) == {'box AP': {'cat': 100.0, 'cow': 100.0}, 'mask AP': {'cat': 100.0, 'cow': 0.0}}
    assert (ours.metrics, ours.classwise) == (['bbox', 'segm'], False)


@pytest.mark.parametrize('kind', ['CocoByClass', 'SubsetCocoMetric'])
def test_a_detector_that_finds_nothing_has_an_ap_of_zero(tmp_path, kind):
    """Of the annotated classes; ants are not annotated. And no AP at all if nothing is."""
    none = dict(
        img_id=1,
        bboxes=np.zeros((0, 4)),
        scores=np.zeros(0),
        labels=np.zeros(0, int),
        masks=[],
        mask_scores=np.zeros(0),
    )
    path = coco_file(tmp_path / 'truth.json')
    metric = MMDET_METRICS.build(dict(type=kind, ann_file=path, metric=['bbox', 'segm', 'proposal']))
    metric.dataset_meta = dict(classes=('cat', 'cow', 'ant'))
    results = [(dict(img_id=1, width=32, height=32), none)]
    assert metric.compute_metrics(results) == dict(bbox_mAP=0.0, segm_mAP=0.0)
    assert take_class_results([metric]) == {key: {'cat': 0.0, 'cow': 0.0} for key in ('box AP', 'mask AP')}
    metric.cat_ids = [3]
    assert metric.compute_metrics(results) == dict(bbox_mAP=-1.0, segm_mAP=-1.0)
    metric.format_only = True
    assert metric.compute_metrics(results) == {}


def evaluator(**by_class):
    metric = METRICS.build(dict(type='bootmae.evaluation.by_class.AccuracyByClass'))
    metric.by_class = by_class
    return Evaluator([metric])


def test_newest_validation_counts_and_metrics_share_the_file(tmp_path):
    first, later = tmp_path / '20260101_100000', tmp_path / '20260102_100000'
    first.mkdir(), later.mkdir()
    write_class_results(first, evaluator(IoU={'a': 1.0}, Acc={'a': 5.0}))
    write_class_results(first, evaluator(IoU={'a': 2.0, 'b': float('nan')}))
    assert read_classes(tmp_path) == {'IoU': {'a': 2.0}, 'Acc': {'a': 5.0}}
    (later / CLASSES_FILE).write_text('{"IoU": {"a": 3}}')
    assert read_classes(tmp_path) == {'IoU': {'a': 3.0}}
    assert read_classes(tmp_path / 'nowhere') == {}
    (later / CLASSES_FILE).write_text('[1]')
    with pytest.raises(ValueError, match=r'classes.json: not percent by class and metric .*; delete it'):
        read_classes(tmp_path)


def test_ema_and_raw_weights_are_kept_apart(tmp_path):
    """The headline is of the EMA weights: mean over the (equally frequent) classes is the logged accuracy of each."""
    ema = dict(type='EMAHook', momentum=1e-4, evaluate_on_ema=True, evaluate_on_origin=True)
    options = dict(custom_hooks=[ema], train_cfg=dict(max_epochs=1), experiment_name='classes_of_ema')
    train(str(REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'), str(tmp_path), options)
    kept = read_classes(tmp_path)
    assert list(kept) == ['accuracy', 'accuracy_origin']
    for key in kept:
        logged = read_curve('', tmp_path, having='accuracy/top1').values[key.replace('accuracy', 'accuracy/top1')]
        assert fmean(kept[key].values()) == pytest.approx(logged[-1], abs=1e-3)
    assert kept['accuracy'] != kept['accuracy_origin']
    labels = [metric for *_, metric, _ in class_results('digits/mae/0', tmp_path)]
    assert labels == ['accuracy', 'accuracy of the raw weights (headline: EMA)']


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    lines = []
    monkeypatch.setattr(hook_module, 'write_file', fail)
    monkeypatch.setattr(records, 'print_log', lambda text, *_: lines.append(text))
    write_class_results(tmp_path, evaluator(IoU={'a': 1.0}))
    file = tmp_path / CLASSES_FILE
    assert lines == [f'{file} was not written: disk full. The run continues without it; free some space']
    assert read_classes(tmp_path) == {}


def test_scopes_find_the_metrics():
    with DefaultScope.overwrite_default_scope('mmseg'):
        metric = MMSEG_METRICS.build(dict(type='bootmae.evaluation.metrics_seg.IoUByClass', iou_metrics=['mIoU']))
    assert metric.metrics == ['mIoU']
