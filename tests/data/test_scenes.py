"""Digit scenes: drawing, files, and the data sets of mmseg and mmdet."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.registry import METRICS as MMDET_METRICS
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS as MMSEG_DATASETS
from pycocotools import mask as coco_mask

from bootmae.data import scene_datasets, scenes  # noqa: F401  registers the data sets
from bootmae.data.scenes import BACKGROUND, MIN_SHOWN, UNLABELED, SceneSpec, boxes_of, draw_scene, write_scenes

SMALL = dict(train=5, val=3)
SPEC = SceneSpec(**SMALL)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp('scenes') / 'here', SPEC)


def test_a_scene_depends_on_seed_split_and_index_alone():
    first = draw_scene(SPEC, 'train', 3)
    again = draw_scene(SceneSpec(train=500, val=9), 'train', 3)
    assert all(
        np.array_equal(getattr(first, name), getattr(again, name)) for name in ('image', 'labels', 'masks', 'semantic')
    )
    for other in (draw_scene(SPEC, 'train', 4), draw_scene(SPEC, 'val', 3), draw_scene(SceneSpec(seed=1), 'train', 3)):
        assert not np.array_equal(first.image, other.image)


def test_splits_share_no_part_of_a_photograph(monkeypatch):
    picture = np.full((300, 400, 3), 10, dtype=np.uint8)
    picture[:, 200:] = 200
    monkeypatch.setattr(scenes, 'photo', lambda name: picture)
    for index in range(20):
        for split, level in (('train', 10 * scenes.DARKENED), ('val', 200 * scenes.DARKENED)):
            scene = draw_scene(SPEC, split, index)
            assert abs(scene.image[scene.semantic == BACKGROUND].astype(float) - level).mean() < 6


def test_labels_masks_and_semantic_map_agree():
    counts = []
    for index in range(30):
        scene = draw_scene(SPEC, 'train', index)
        assert scene.image.shape == (96, 144, 3)
        assert scene.masks.sum(axis=0).max() == 1
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            assert set(scene.semantic[mask]) == {label + BACKGROUND + 1}
            side = max(mask.any(0).sum(), mask.any(1).sum())
            assert 20 <= side <= 64
        rest = scene.semantic[~scene.masks.any(axis=0)]
        assert set(rest) == {UNLABELED, BACKGROUND}
        assert 0.01 < np.mean(scene.semantic == UNLABELED) < 0.25
        counts.append(len(scene.labels))
    assert set(counts) == {2, 3, 4}


def test_later_digits_leave_most_of_the_earlier_ones(monkeypatch):
    inks, resize = [], cv2.resize

    def record(image, *args, **kwargs):
        out = resize(image, *args, **kwargs)
        if out.ndim == 2:
            inks.append(np.sum(out >= scenes.INK))
        return out

    monkeypatch.setattr(scenes.cv2, 'resize', record)
    shares = []
    for index in range(40):
        inks.clear()
        scene = draw_scene(SPEC, 'train', index)
        if len(inks) == len(scene.labels):  # none was left out for lack of room
            shares += [mask.sum() / ink for mask, ink in zip(scene.masks, inks, strict=True)]
    assert len(shares) > 100
    assert MIN_SHOWN <= min(shares) < 1
    assert max(shares) == 1


def test_digits_stand_out():
    """The mean color of a digit differs from its surroundings."""
    differences = []
    for index in range(20):
        scene = draw_scene(SPEC, 'val', index)
        for mask in scene.masks:
            ring = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7))).astype(bool) & (scene.semantic == BACKGROUND)
            differences.append(abs(scene.image[mask].mean() - scene.image[ring].mean()) if ring.any() else 255)
    assert np.median(differences) > 40


def test_boxes():
    masks = np.zeros((2, 6, 8), dtype=bool)
    masks[0, 1:3, 2:7] = True
    masks[1, 5, 0] = True
    assert boxes_of(masks).tolist() == [[2, 1, 7, 3], [0, 5, 1, 6]]
    assert boxes_of(masks[:0]).shape == (0, 4)


def test_ade20k_layout(root):
    for split, folder, count in (('train', 'training', 5), ('val', 'validation', 3)):
        names = [f'{index + 1:06d}' for index in range(count)]
        assert sorted(os.listdir(root / 'images' / folder)) == [f'{name}.jpg' for name in names]
        assert sorted(os.listdir(root / 'annotations' / folder)) == [f'{name}.png' for name in names]
        scene = draw_scene(SPEC, split, 1)
        assert np.array_equal(cv2.imread(str(root / 'annotations' / folder / '000002.png'), -1), scene.semantic)
        image = cv2.imread(str(root / 'images' / folder / '000002.jpg'))[..., ::-1]
        assert abs(image.astype(float) - scene.image).mean() < 4


def test_coco_layout(root):
    for split, folder, count in (('train', 'train2017', 5), ('val', 'val2017', 3)):
        content = json.loads((root / 'annotations' / f'instances_{folder}.json').read_text())
        assert [image['file_name'] for image in content['images']] == sorted(os.listdir(root / folder))
        assert len(content['images']) == count
        assert [(c['id'], c['name']) for c in content['categories']] == [(d + 1, str(d)) for d in range(10)]
        assert [a['id'] for a in content['annotations']] == list(range(1, len(content['annotations']) + 1))
        scene = draw_scene(SPEC, split, 2)
        mine = [a for a in content['annotations'] if a['image_id'] == 3]
        assert [a['category_id'] - 1 for a in mine] == scene.labels.tolist()
        for annotation, mask in zip(mine, scene.masks, strict=True):
            assert np.array_equal(coco_mask.decode(annotation['segmentation']).astype(bool), mask)
            x, y, w, h = annotation['bbox']
            assert mask[int(y) : int(y + h), int(x) : int(x + w)].sum() == mask.sum() == annotation['area']


def test_scenes_are_drawn_once(root):
    before = (root / 'scenes.json').stat().st_mtime_ns
    assert write_scenes(root, SPEC) == root
    assert (root / 'scenes.json').stat().st_mtime_ns == before
    assert not [name for name in os.listdir(root.parent) if name.startswith('.')]


def test_several_may_ask_at_once(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: write_scenes(tmp_path / 'a' / 'b', SPEC), range(3)))
    assert os.listdir(tmp_path / 'a') == ['b']
    assert len(os.listdir(tmp_path / 'a' / 'b' / 'train2017')) == 5


def test_other_scenes_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match=rf'{root} does not hold the scenes .*train=6.*delete the folder'):
        write_scenes(root, SceneSpec(train=6, val=3))
    (tmp_path / 'mine').mkdir()
    with pytest.raises(ValueError, match='does not hold the scenes'):
        write_scenes(tmp_path / 'mine', SPEC)
    assert os.listdir(tmp_path / 'mine') == []


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, '_annotations', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_scenes(tmp_path / 'here', SPEC)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    'changes',
    [
        dict(train=0),
        dict(digits=(0, 3)),
        dict(digits=(4, 3)),
        dict(side=(4, 20)),
        dict(side=(20, 97)),
        dict(side=(30, 20)),
        dict(values=()),
        dict(values=(3, 1)),
        dict(values=(9, 10)),
    ],
)
def test_impossible_specs(changes):
    with pytest.raises(ValueError, match='SceneSpec'):
        SceneSpec(**changes)


def test_mmseg_reads_them(root, registry_scope):
    init_default_scope('mmseg')
    data = MMSEG_DATASETS.build(
        dict(
            type='DigitSceneMasks',
            split='val',
            data_root=str(root),
            scenes=SMALL,
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
        )
    )
    assert len(data) == 3
    assert data.metainfo['classes'] == ('background', *'0123456789')
    assert len(data.metainfo['palette']) == 11
    scene, sample = draw_scene(SPEC, 'val', 1), data[1]
    truth = sample['data_samples'].gt_sem_seg.data[0].numpy()
    assert np.array_equal(truth, np.where(scene.semantic == 0, 255, scene.semantic - 1))
    assert truth[scene.masks[0]][0] == scene.labels[0] + 1


def test_mmdet_reads_them(root, registry_scope):
    init_default_scope('mmdet')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape')),
    ]
    data = MMDET_DATASETS.build(
        dict(type='DigitSceneInstances', split='train', data_root=str(root), scenes=SMALL, pipeline=pipeline)
    )
    assert len(data) == 5
    scene, truth = draw_scene(SPEC, 'train', 4), data[4]['data_samples'].gt_instances
    assert truth.labels.tolist() == scene.labels.tolist()
    assert np.array_equal(truth.masks.masks.astype(bool), scene.masks)
    assert truth.bboxes.tensor.tolist() == boxes_of(scene.masks).tolist()


def test_the_truth_scores_full_marks(root, registry_scope):
    """The scenes themselves get AP 1 on the stored annotations, so boxes, masks and ids agree."""
    init_default_scope('mmdet')
    metric = MMDET_METRICS.build(
        dict(type='CocoMetric', metric=['bbox', 'segm'], ann_file=str(root / 'annotations' / 'instances_val2017.json'))
    )
    metric.dataset_meta = dict(classes=tuple('0123456789'))
    for index in range(3):
        scene = draw_scene(SPEC, 'val', index)
        found = dict(
            bboxes=boxes_of(scene.masks), labels=scene.labels, masks=scene.masks, scores=np.ones(len(scene.labels))
        )
        metric.process(
            {},
            [
                dict(
                    img_id=index + 1,
                    ori_shape=(96, 144),
                    pred_instances={key: _tensor(value) for key, value in found.items()},
                )
            ],
        )
    scores = metric.evaluate(3)
    assert scores['coco/bbox_mAP'] == scores['coco/segm_mAP'] == 1.0


def _tensor(value):
    import torch

    return torch.from_numpy(np.ascontiguousarray(value))


def test_some_digits_only(tmp_path, registry_scope):
    """Only digits that occur are classes, in the files and in both libraries."""
    some = dict(SMALL, values=(1, 4, 7))
    spec = SceneSpec(**some)
    drawn = [draw_scene(spec, 'train', index) for index in range(30)]
    assert {int(label) for scene in drawn for label in scene.labels} == {0, 1, 2}
    assert {int(value) for scene in drawn for value in np.unique(scene.semantic)} == {0, 1, 2, 3, 4}
    init_default_scope('mmseg')
    masks = MMSEG_DATASETS.build(dict(type='DigitSceneMasks', split='val', data_root=str(tmp_path / 'a'), scenes=some))
    assert masks.metainfo['classes'] == ('background', '1', '4', '7')
    init_default_scope('mmdet')
    instances = MMDET_DATASETS.build(
        dict(type='DigitSceneInstances', split='val', data_root=str(tmp_path / 'a'), scenes=some, pipeline=[])
    )
    assert instances.metainfo['classes'] == ('1', '4', '7')
    assert [info['bbox_label'] for info in instances.get_data_info(2)['instances']] == draw_scene(
        spec, 'val', 2
    ).labels.tolist()
