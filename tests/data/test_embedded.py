"""Digits and photo crops are the known ones, disjoint between splits, reproducible, and fit mmpretrain's transforms."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import DATASETS

from bootmae.data import embedded
from bootmae.data.embedded import GAP, PHOTOS, DigitImages, GrayPhotoCrops, PhotoCrops, cut, draw_box, half, photo

TRAIN_DIGITS = [128, 132, 127, 133, 131, 132, 131, 129, 124, 130]
PIPELINE = [dict(type='RandomResizedCrop', scale=32), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]


def photos(split, **kwargs):
    return PhotoCrops(split, **{'crops_per_image': 6, **kwargs})


def labels(dataset):
    return np.bincount(dataset.get_gt_labels()).tolist()


def test_digits_are_counted():
    train, val = DigitImages('train'), DigitImages('val')
    assert (len(train), len(val)) == (1297, 500)
    assert labels(val) == [50] * 10
    assert labels(train) == TRAIN_DIGITS
    assert sum(TRAIN_DIGITS) + 500 == 1797
    assert train.metainfo['classes'] == tuple('0123456789')
    assert train.describe() == '1,297 images, 10 classes, DigitImages train'


def test_splits_partition_the_digits_of_scikit_learn():
    from sklearn.datasets import load_digits

    source = load_digits()
    train, val = DigitImages('train', size=8), DigitImages('val', size=8)
    both = np.concatenate([train.images(range(1297)), val.images(range(500))])
    ours = sorted(
        (image[..., 0].tobytes(), label) for image, label in zip(both, [*train.get_gt_labels(), *val.get_gt_labels()])
    )
    gray = np.round(source.images * 255 / 16).astype(np.uint8)
    assert ours == sorted((image.tobytes(), label) for image, label in zip(gray, source.target))


def test_enlarged_digit_keeps_its_strokes():
    small, large = DigitImages('val', size=8).images([0])[0], DigitImages('val', size=32).images([0])[0]
    assert large.shape == (32, 32, 3)
    assert large.dtype == np.uint8
    assert (large[..., 0] == large[..., 2]).all()
    blocks = large[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    assert np.corrcoef(blocks.ravel(), small[..., 0].ravel())[0, 1] > 0.97


def test_gray_crops_are_the_luma_of_the_colored_ones():
    color, gray = photos('val'), GrayPhotoCrops('val', crops_per_image=6)
    shown, expected = gray.images(range(len(gray))), color.images(range(len(color))) @ [0.299, 0.587, 0.114]
    assert np.abs(shown - expected[..., None]).max() <= 1
    assert (shown == shown[..., :1]).all()
    assert gray.get_gt_labels().tolist() == color.get_gt_labels().tolist()


@pytest.mark.parametrize('make, classes', [(DigitImages, 10), (photos, 18)])
def test_few_labels_are_balanced_nested_and_seeded(make, classes):
    few, more, other = (make('train', labels_per_class=n, subset_seed=s) for n, s in [(2, 0), (4, 0), (4, 1)])
    assert labels(few) == [2] * classes
    assert labels(more) == [4] * classes

    def pictures(dataset):
        return {image.tobytes() for image in dataset.images(range(len(dataset)))}

    assert pictures(few) < pictures(more) < pictures(make('train'))
    assert pictures(more) != pictures(other)
    assert pictures(more) == pictures(make('train', labels_per_class=4))


@pytest.mark.parametrize(
    'make, kwargs, message',
    [
        (DigitImages, dict(split='test'), "split='test' must be 'train' or 'val'"),
        (DigitImages, dict(split='train', size=0), 'size=0'),
        (DigitImages, dict(split='val', labels_per_class=3), 'labels_per_class=3 is for the training split'),
        (DigitImages, dict(split='train', labels_per_class=125), 'class 8 has 124 training images: lower'),
        (DigitImages, dict(split='train', labels_per_class=0), 'labels_per_class=0 must be at least 1'),
        (PhotoCrops, dict(split='train', labels_per_class=7, crops_per_image=6), 'class 0 has 6 training images'),
        (PhotoCrops, dict(split='train', crops_per_image=0), 'crops_per_image=0'),
        (PhotoCrops, dict(split='train', crop_size=(96, 48)), r'crop_size=\(96, 48\)'),
        (PhotoCrops, dict(split='train', crop_size=(48, 300)), r'crop_size=\(48, 300\).*8 and 160'),
    ],
)
def test_faults_are_named(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_photo_crops_are_counted():
    train, val = PhotoCrops('train', size=16), PhotoCrops('val', size=16)
    assert labels(train) == [256] * 18
    assert labels(val) == [64] * 18
    assert train.metainfo['classes'] == tuple(PHOTOS)
    assert train.images([0, 5]).shape == (2, 16, 16, 3)
    assert train.describe() == '4,608 images, 18 classes, PhotoCrops train'


def test_photographs_are_the_known_ones():
    sizes = {name: photo(name).shape for name in PHOTOS}
    assert sizes['astronaut'] == (512, 512, 3)
    assert sizes['china'] == (427, 640, 3)
    assert sizes['grace_hopper'] == (600, 512, 3)
    assert sizes['retina'] == (1411, 1411, 3)
    red, _, blue = photo('retina')[700, 700]
    assert red > 2 * blue  # RGB, not BGR
    with pytest.raises(ValueError, match='read-only'):
        photo('retina')[0, 0] = 0
    assert photo('retina') is photo('retina')


def test_halves_leave_a_gap():
    assert half((300, 400), 'train') == (0, 0, 192, 300)
    assert half((300, 400), 'val') == (208, 0, 400, 300)
    assert half((400, 300), 'train') == (0, 0, 300, 192)
    assert half((400, 300), 'val') == (0, 208, 300, 400)


def test_no_pixel_is_shared_between_splits():
    train, val = photos('train', crops_per_image=200), photos('val', crops_per_image=200)
    for number, name in enumerate(PHOTOS):
        height, width = photo(name).shape[:2]
        seen = []
        for dataset in (train, val):
            covered = np.zeros((height, width), dtype=bool)
            for x, y, side in dataset.boxes[number * 200 : (number + 1) * 200]:
                assert 0 <= x <= width - side
                assert 0 <= y <= height - side
                covered[y : y + side, x : x + side] = True
            seen.append(covered)
        along = int(width >= height)
        assert seen[1].any(axis=1 - along).argmax() - (seen[0].any(axis=1 - along).nonzero()[0].max() + 1) >= GAP


def test_crops_have_the_size_asked_for():
    sides = photos('train', crop_size=(50, 60), crops_per_image=100).boxes[:, 2].reshape(18, 100)
    for name, found in zip(PHOTOS, sides):
        scale = max(1, min(photo(name).shape[:2]) / 512)
        assert (found.min(), found.max()) == (round(50 * scale), round(60 * scale)), name
    assert len(np.unique(photos('train', crop_size=(64, 64)).boxes[:, 2][:6])) == 1


def test_a_picture_is_its_box():
    dataset = photos('val', size=24)
    x, y, side = dataset.boxes[9]
    expected = cut(photo('brick'), (x, y, side), 24)
    assert dataset.images([9])[0].tolist() == expected.tolist()
    assert dataset.get_data_info(9)['gt_label'] == 1
    square = photo('chelsea')[10:40, 20:50]
    assert cut(photo('chelsea'), (20, 10, 30), 30).tolist() == square.tolist()


def test_boxes_follow_the_seed():
    one, again, other, more = (photos('train', **kw) for kw in [{}, {}, dict(crop_seed=1), dict(crops_per_image=9)])
    assert one.boxes.tolist() == again.boxes.tolist()
    assert (one.images(range(108)) == again.images(range(108))).all()
    assert one.boxes.tolist() != other.boxes.tolist()
    assert more.boxes.reshape(18, 9, 3)[:, :6].tolist() == one.boxes.reshape(18, 6, 3).tolist()


def test_featureless_crops_are_drawn_again():
    image = np.full((128, 256, 3), 90, np.uint8)
    image[:, :100] = np.random.default_rng(0).integers(0, 256, (128, 100, 3))
    rng = np.random.default_rng(0)
    assert all(draw_box(image, (0, 0, 256, 128), (32, 32), rng)[0] < 100 for _ in range(50))
    flat = np.zeros((64, 64, 3), np.uint8)
    assert draw_box(flat, (0, 0, 64, 64), (32, 32), rng)[2] == 32


def test_missing_picture_names_package_version_and_remedy(tmp_path, monkeypatch):
    package = tmp_path / 'bare_wheel'
    package.mkdir()
    (package / '__init__.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PHOTOS, 'lost', ('scikit-image', 'bare_wheel', 'data/lost.png'))
    monkeypatch.setitem(PHOTOS, 'absent', ('no-such-package', 'no_such_package', 'data/lost.png'))
    monkeypatch.setattr(embedded, 'version', lambda distribution: '9.9')
    with pytest.raises(FileNotFoundError, match=r'bare_wheel/data/lost.png: scikit-image 9.9 .*pip install'):
        photo('lost')
    with pytest.raises(FileNotFoundError, match='not installed: pip install no-such-package'):
        photo('absent')


@pytest.mark.parametrize('make', [DigitImages, photos])
def test_sample_before_the_pipeline(make):
    dataset = make('val')
    info = dataset.get_data_info(70)
    assert info['img'].dtype == np.uint8
    assert info['img'].flags.c_contiguous
    assert info['img'][..., ::-1].tolist() == dataset.images([70])[0].tolist()
    assert info['img_shape'] == info['ori_shape'] == (32, 32)
    assert info['sample_idx'] == 70
    info['img'][:] = 0
    assert dataset.images([70]).any()


@pytest.mark.parametrize('kind', ['DigitImages', 'PhotoCrops'])
def test_mmpretrain_transforms_take_the_samples(kind):
    dataset = DATASETS.build(dict(type=kind, split='val', pipeline=PIPELINE))
    sample = dataset[3]
    assert sample['inputs'].shape == (3, 32, 32)
    assert sample['inputs'].dtype == torch.uint8
    assert sample['data_samples'].gt_label.tolist() == [dataset.get_data_info(3)['gt_label']]
    assert dataset.describe() in repr(dataset)
