"""Checks of mmdet's annotations and of COCO metrics, on tiny files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.registry import METRICS as MMDET_METRICS
from test_checks import Model

import bootmae.evaluation.metrics_det  # noqa: F401  registers SubsetCocoMetric
from bootmae.config.checks import check_dataset, check_metric


def coco_file(path: Path, images: int = 3, categories=('cat', 'dog', 'cow'), labels=(1, 3)) -> Path:
    """Write annotations of ``images`` images with one box per label on each."""
    content = dict(
        images=[dict(id=i + 1, file_name=f'{i}.jpg', height=32, width=32) for i in range(images)],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(categories)],
        annotations=[
            dict(
                id=1 + i * len(labels) + k,
                image_id=i + 1,
                category_id=label,
                iscrowd=0,
                area=64,
                bbox=[2 + 10 * k, 2, 8, 8],
                segmentation=[[2, 2, 10, 2, 10, 10, 2, 10]],
            )
            for i in range(images)
            for k, label in enumerate(labels)
        ],
    )
    path.write_text(json.dumps(content))
    return path


def coco(path: Path, classes=('cat', 'dog', 'cow'), **changes):
    return MMDET_DATASETS.build(
        dict(
            type='CocoDataset',
            ann_file=str(path),
            data_prefix=dict(img=str(path.parent)),
            pipeline=[],
            metainfo=dict(classes=classes),
            test_mode=True,
        )
        | changes
    )


DETECTOR = Model(**{'roi_head': 3})


def test_instances(tmp_path, told):
    path = coco_file(tmp_path / 'a.json')
    check_dataset(coco(path), DETECTOR)
    assert told == ['CocoDataset: 1 of its classes do not occur in its annotations: dog']
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"{path}: class unknown to the annotation file: 'horse'; it has ['cat', 'dog', 'cow']: give the data set "
            'metainfo='
        ),
    ):
        check_dataset(coco(path, classes=('cat', 'horse', 'cow'), test_mode=False), DETECTOR)
    with pytest.raises(ValueError, match='CocoDataset has 2 classes, but num_classes is 3 in roi_head'):
        check_dataset(coco(path, classes=('cat', 'cow')), DETECTOR)


# --- metrics ---


def metric(path: Path, kind: str = 'CocoMetric', classes=('cat', 'dog', 'cow')):
    built = MMDET_METRICS.build(dict(type=kind, ann_file=str(path), metric='bbox'))
    built.dataset_meta = dict(classes=classes)
    return built


def test_a_metric_over_other_images_is_refused(tmp_path):
    path = coco_file(tmp_path / 'a.json')
    check_metric(metric(path), coco(path))
    with pytest.raises(
        ValueError,
        match='ann_file has 3 images and the data set 2, 2 of them in common: .*'
        'without indices, or use type=.SubsetCocoMetric',
    ):
        check_metric(metric(path), coco(path, indices=2))
    with pytest.raises(ValueError, match='has 1 images and the data set 3, 1 of them in common'):
        check_metric(metric(coco_file(tmp_path / 'b.json', images=1)), coco(path))
    check_metric(metric(path, 'SubsetCocoMetric'), coco(path, indices=2))
    content = json.loads(path.read_text())
    content['images'][1]['file_name'] = 'train/7.jpg'
    (tmp_path / 'other.json').write_text(json.dumps(content))
    for kind in ('CocoMetric', 'SubsetCocoMetric'):
        with pytest.raises(
            ValueError, match="image 2 is train/7.jpg in the evaluator's ann_file and .*1.jpg in the data"
        ):
            check_metric(metric(tmp_path / 'other.json', kind), coco(path))
    check_metric(MMDET_METRICS.build(dict(type='mmseg.IoUMetric')), coco(path, indices=2))


def predicted(image: int) -> tuple:
    """Return the metric's record of an image: the cat is found well, the cow badly."""
    boxes, scores = np.array([[2, 2, 10, 10], [13, 2, 20, 10]], dtype=np.float32), np.array([0.9, 0.8])
    return (
        dict(img_id=image, width=32, height=32),
        dict(img_id=image, bboxes=boxes, scores=scores, labels=np.array([0, 2])),
    )


def test_subset_metric_counts_predicted_images_only(tmp_path):
    """The result is that of an annotation file of these images; mmdet's metric counts the third image as missed."""
    whole, part = coco_file(tmp_path / 'whole.json'), coco_file(tmp_path / 'part.json', images=2)
    results = [predicted(2), predicted(1)]
    expected = metric(part).compute_metrics(results)
    assert metric(whole, 'SubsetCocoMetric').compute_metrics(results) == expected
    assert expected['bbox_mAP_50'] == 1.0
    assert 0.5 < expected['bbox_mAP'] < 1
    assert metric(whole).compute_metrics(results)['bbox_mAP_50'] < 0.7


def test_subset_metric_is_not_stuck_with_its_first_images(tmp_path):
    whole = metric(coco_file(tmp_path / 'whole.json'), 'SubsetCocoMetric')
    assert whole.compute_metrics([predicted(1)])['bbox_mAP_50'] == 1.0
    assert whole.compute_metrics([predicted(3), predicted(2)])['bbox_mAP_50'] == 1.0
    assert sorted(whole.img_ids) == [2, 3]
