"""Labels and results of mmdet follow the names of the classes, whatever the order and the ids in a file."""

import json
from pathlib import Path

import mmdet.datasets  # noqa: F401
import numpy as np
import pytest
from mmdet.registry import DATASETS, METRICS

import bootmae.evaluation.metrics_det  # noqa: F401
from bootmae.data.coco import forget_files
from bootmae.data.coco_checks import reason_to_leave_out

CLASSES = ('cat', 'dog', 'cow')


@pytest.fixture(autouse=True)
def no_file_in_memory():
    forget_files()
    yield
    forget_files()


def write(path: Path, categories: list[tuple[int, str]], first: int = 1, names=CLASSES, **changes) -> Path:
    """Write three images with one instance of each of the names, at one place for each name."""
    ids = {name: number for number, name in categories}
    annotations = [
        dict(
            image_id=image,
            category_id=ids[name],
            bbox=[4 + 20 * CLASSES.index(name), 4, 12, 12 + image],
            area=100,
            iscrowd=0,
            segmentation=[[4, 4, 16, 4, 16, 16]],
        )
        | changes
        for image in range(3)
        for name in names
    ]
    content = dict(
        images=[dict(id=image, file_name=f'{image}.jpg', height=64, width=64) for image in range(3)],
        categories=[dict(id=number, name=name) for number, name in categories],
        annotations=[dict(one, id=first + number) for number, one in enumerate(annotations)],
    )
    path.write_text(json.dumps(content))
    return path


def dataset_of(path: Path, **changes):
    cfg = dict(
        type='CocoDataset', ann_file=str(path), data_prefix=dict(img=''), pipeline=[], metainfo=dict(classes=CLASSES)
    )
    return DATASETS.build(cfg | changes)


def labels_of(dataset) -> list[list[int]]:
    """Labels of each image, from left to right."""
    return [
        [one['bbox_label'] for one in sorted(dataset.get_data_info(index)['instances'], key=lambda one: one['bbox'])]
        for index in range(len(dataset))
    ]


ORDERS = {
    'as in the config': [(1, 'cat'), (2, 'dog'), (3, 'cow')],
    'reversed': [(3, 'cow'), (2, 'dog'), (1, 'cat')],
    'other ids': [(2, 'cat'), (3, 'dog'), (1, 'cow')],
    'from 0, with gaps': [(40, 'cat'), (0, 'dog'), (7, 'cow')],
    'unused categories': [(5, 'hen'), (9, 'cow'), (1, 'dog'), (0, 'fox'), (2, 'cat')],
}


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('first', [1, 0, -1, 10**17])
def test_labels_follow_the_names(tmp_path, order, first):
    dataset = dataset_of(write(tmp_path / 'a.json', ORDERS[order], first))
    assert labels_of(dataset) == [[0, 1, 2]] * 3


def test_a_file_without_a_class_and_with_others(tmp_path):
    categories = [(1, 'hen'), (2, 'cow'), (3, 'cat')]
    dataset = dataset_of(write(tmp_path / 'a.json', categories, names=('cat', 'cow')))
    assert labels_of(dataset) == [[0, 2]] * 3


# --- results ---

FOUND = dict(cat=0.97, dog=0.82, cow=0.62)  # overlap with the truth, as the share of the width


def predictions(names=CLASSES) -> list[tuple[dict, dict]]:
    """Results of the metric's ``process``: each class is found, more or less well."""
    results = []
    for image in range(3):
        boxes = [[4 + 20 * k, 4, 4 + 20 * k + 12 * FOUND[name], 16 + image] for k, name in enumerate(CLASSES)]
        labels = [k for k, name in enumerate(CLASSES) if name in names]
        boxes, scores = np.array(boxes, np.float32)[labels], np.array([0.9, 0.8, 0.7])[labels]
        results.append(
            (dict(img_id=image, width=64, height=64), dict(img_id=image, bboxes=boxes, scores=scores, labels=labels))
        )
    return results


def result_of(path: Path, kind: str, names=CLASSES, **options) -> tuple[dict, dict]:
    metric = METRICS.build(dict(type=kind, ann_file=str(path), metric='bbox') | options)
    metric.dataset_meta = dict(classes=CLASSES)
    found = metric.compute_metrics(predictions(names))
    return found, getattr(metric, 'by_class', {}).get('box AP', {})


@pytest.mark.parametrize('kind', ['CocoMetric', 'CocoByClass', 'SubsetCocoMetric'])
@pytest.mark.parametrize('order', list(ORDERS)[1:])
def test_results_do_not_depend_on_order_and_ids(tmp_path, kind, order):
    """COCOeval takes an instance with id 0 for one that was not found, and sorts the results by category."""
    expected, expected_classes = result_of(write(tmp_path / 'a.json', ORDERS['as in the config']), kind)
    assert expected['bbox_mAP'] == pytest.approx(np.mean([1, 0.7, 0.3]), abs=2e-3)
    for first in (1, 0):
        assert result_of(write(tmp_path / f'{first}.json', ORDERS[order], first), kind) == (expected, expected_classes)
    if kind != 'CocoMetric':
        assert expected_classes == pytest.approx(dict(cat=100, dog=70, cow=30), abs=0.2)


def test_the_table_of_classes_of_the_stock_metric(tmp_path):
    for order in ORDERS.values():
        found, _ = result_of(write(tmp_path / 'a.json', order), 'CocoMetric', classwise=True)
        assert [found[f'{name}_precision'] for name in CLASSES] == pytest.approx([1, 0.7, 0.3], abs=2e-3)


def test_a_class_that_the_test_file_lacks_does_not_count(tmp_path):
    """Wrong detections of it have no truth to be compared with, and the other classes keep their results."""
    path = write(tmp_path / 'a.json', [(1, 'cow'), (2, 'cat')], names=('cat', 'cow'))
    found, classes = result_of(path, 'CocoByClass')
    assert found['bbox_mAP'] == pytest.approx(np.mean([1, 0.3]), abs=2e-3)
    assert {name: value for name, value in classes.items() if value == value} == pytest.approx(
        dict(cat=100, cow=30), abs=0.2
    )


def test_the_ids_of_a_file_stay_in_written_results(tmp_path):
    """A test server knows the ids of its own file."""
    path = write(tmp_path / 'a.json', ORDERS['from 0, with gaps'])
    result_of(path, 'CocoMetric', outfile_prefix=str(tmp_path / 'out'))
    rows = json.loads((tmp_path / 'out.bbox.json').read_text())
    assert [row['category_id'] for row in rows[:3]] == [40, 0, 7]


# --- the loader ---


@pytest.mark.parametrize(
    'change',
    [
        dict(),
        dict(area=0),
        dict(area=-1),
        dict(bbox=[4, 4, 0.5, 9]),
        dict(bbox=[4, 4, 9, 0.99]),
        dict(bbox=[64, 4, 9, 9]),
        dict(bbox=[-9, 4, 9, 9]),
        dict(bbox=[-8.9, -8, 9, 9]),
        dict(ignore=1),
        dict(ignore=0),
    ],
)
def test_what_is_counted_as_left_out_is_left_out(tmp_path, change):
    dataset = dataset_of(write(tmp_path / 'a.json', ORDERS['reversed'], **change))
    entry = json.loads((tmp_path / 'a.json').read_text())
    reason = reason_to_leave_out(entry['annotations'][0], entry['images'][0])
    assert [bool(labels) for labels in labels_of(dataset)] == [reason is None] * 3


def test_mmdet_still_follows_the_file(tmp_path):
    """If it fails, mmdet has corrected this, and bootmae/data/coco_api.py can go."""
    from mmdet.datasets.api_wrappers.coco_api import COCO

    path = write(tmp_path / 'a.json', ORDERS['reversed'])
    api = COCO()
    api.dataset = json.loads(path.read_text())
    api.createIndex()
    assert COCO.get_cat_ids.__wrapped__(api, cat_names=CLASSES) == [3, 2, 1]
    assert COCO.get_cat_ids(api, cat_names=CLASSES) == [1, 2, 3]
