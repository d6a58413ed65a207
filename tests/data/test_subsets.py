"""Spread indices, unwrapped data sets, few labels of each class, held-out images, and messages about errors."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from bootmae.data.embedded import DigitImages
from bootmae.data.images import ImageFiles
from bootmae.data.subsets import few_labels, held_out, leaves, spread

LABELS = np.array([0, 1, 2] * 8)


def make_images(root, counts):
    """Empty files, ``counts`` of each class; the root as a string."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f'{number:02}.jpg').touch()
    return str(root)


def names(dataset):
    return ['/'.join(dataset.get_data_info(i)['img_path'].split('/')[-2:]) for i in range(len(dataset))]


def test_spread():
    """All classes of a sorted list keep their share, and no index comes twice."""
    assert spread(5, None).tolist() == spread(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread(10, 3).tolist() == [0, 3, 6]
    many = spread(1_281_167, 50_000)
    assert len(set(many.tolist())) == 50_000
    assert many[-1] > 1_281_167 - 30


def test_leaves_of_data_sets_and_of_configs():
    one, two = SimpleNamespace(), SimpleNamespace()
    wrapped = SimpleNamespace(datasets=[SimpleNamespace(dataset=one), two])
    assert list(leaves(one)) == [one]
    assert list(leaves(SimpleNamespace(dataset=wrapped))) == [one, two]
    config = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=dict(type='A')), dict(type='B')])
    assert list(leaves(config)) == [dict(type='A'), dict(type='B')]


def test_draws_are_those_of_stored_results():
    """Another draw would move results that are published."""
    assert few_labels(LABELS, 2, seed=7).tolist() == [0, 2, 10, 18, 19, 20]


def test_held_out_share_of_each_class():
    labels = np.array([0] * 20 + [1] * 3 + [2] * 9)
    mask = held_out(labels, 0.25, seed=0)
    assert [int(mask[labels == label].sum()) for label in range(3)] == [5, 1, 2]
    assert (mask == held_out(labels, 0.25, seed=0)).all()
    assert any((mask != held_out(labels, 0.25, seed)).any() for seed in range(1, 4))
    larger = held_out(labels, 0.5, seed=0)
    assert (larger >= mask).all()
    assert [int(held_out([0, 0], share, 0).sum()) for share in (0.01, 0.99)] == [1, 1]


def test_images_held_out_are_not_the_few_labels_of_the_same_seed():
    """One stream for both would give the same images for every seed."""
    same = [
        np.flatnonzero(held_out(LABELS, 0.25, seed)).tolist() == few_labels(LABELS, 2, seed).tolist()
        for seed in range(4)
    ]
    assert not any(same)


@pytest.mark.parametrize('share', [0, 1, -0.1, 1.5, float('nan')])
def test_share_outside_is_refused(share):
    with pytest.raises(ValueError, match=f'share={share} must lie between 0 and 1'):
        held_out(LABELS, share, 0)


@pytest.mark.parametrize('seed', [-1, 0.5, True, '1'])
def test_bad_seeds_are_named(seed):
    with pytest.raises(ValueError, match=f'^seed={seed!r} must be'):
        held_out(LABELS, 0.5, seed)
    with pytest.raises(ValueError, match=f'subset_seed={seed!r} must be'):
        few_labels(LABELS, 1, seed)


def test_single_image_cannot_be_held_out():
    with pytest.raises(ValueError, match='class 4 has a single image'):
        held_out([3, 3, 4], 0.5, 0)


# Few labels of image files


def test_image_files_keep_few_of_each_class_in_their_order(tmp_path):
    root = make_images(tmp_path, {'cat': 9, 'dog': 5, 'eel': 7})
    everything = names(ImageFiles(root, labels='folder'))
    few, more, other = (
        ImageFiles(root, labels='folder', labels_per_class=n, subset_seed=s) for n, s in [(2, 0), (4, 0), (4, 1)]
    )
    assert [few.get_data_info(i)['gt_label'] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert names(more) == sorted(names(more))
    assert set(names(few)) < set(names(more)) < set(everything)
    assert names(more) != names(other)
    assert names(more) == [everything[i] for i in few_labels([0] * 9 + [1] * 5 + [2] * 7, 4, 0)]
    assert few.describe() == f'6 images, 3 classes, 2 labels of each (subset_seed=0), roots {root}'
    assert 'each' not in ImageFiles(root, labels='folder').describe()


def test_image_files_and_embedded_images_draw_alike(tmp_path):
    """The same order of labels and the same seed give the same images."""
    whole = DigitImages('train', size=8)
    labels = [whole.get_data_info(i)['gt_label'] for i in range(len(whole))]
    path = tmp_path / 'list.txt'
    path.write_text(''.join(f'{i}.png {label}\n' for i, label in enumerate(labels)))
    files = ImageFiles(str(tmp_path), str(path), labels='list', check_files='none', labels_per_class=5, subset_seed=3)
    digits = DigitImages('train', size=8, labels_per_class=5, subset_seed=3)
    drawn = [int(os.path.basename(files.get_data_info(i)['img_path'])[:-4]) for i in range(len(files))]
    assert drawn == [digits.get_data_info(i)['row'] for i in range(len(digits))]
    assert len(drawn) == 50


def test_limit_applies_before_the_draw(tmp_path):
    root = make_images(tmp_path, {'cat': 8, 'dog': 8})
    limited = names(ImageFiles(root, labels='folder', limit=8))
    both = names(ImageFiles(root, labels='folder', limit=8, labels_per_class=3))
    assert len(both) == 6
    assert set(both) < set(limited)
    with pytest.raises(
        ValueError,
        match='labels_per_class=5, but class 0 .cat. has 4 training images: lower '
        'labels_per_class, raise limit or correct',
    ):
        ImageFiles(root, labels='folder', limit=8, labels_per_class=5)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (
            dict(labels='folder', labels_per_class=4),
            r'class 1 \(dog\) has 3 training images: lower labels_per_class or ',
        ),
        (dict(labels='folder', labels_per_class=1, classes=['cat', 'dog', 'eel']), r'class 2 \(eel\) has 0 training'),
        (dict(labels_per_class=2), "labels_per_class=2 needs labels, and labels=None: use labels='folder' or 'list'"),
        (dict(labels='folder', labels_per_class=0), 'labels_per_class=0 must be a positive integer'),
        (dict(labels='folder', labels_per_class=1, subset_seed=-1), 'subset_seed=-1 must be a whole number'),
        (dict(labels='folder', labels_per_class=1, split='val/'), "for training images, and split='val/': drop it"),
    ],
)
def test_faults_of_few_labels_are_named(tmp_path, kwargs, message):
    root = make_images(tmp_path, {'cat': 6, 'dog': 3})
    with pytest.raises(ValueError, match=message):
        ImageFiles(root, **kwargs)


def test_label_that_a_list_skips_is_named(tmp_path):
    """A list that counts from 1 skips 0."""
    path = tmp_path / 'list.txt'
    path.write_text('a.jpg 1\nb.jpg 1\nc.jpg 2\n')
    with pytest.raises(ValueError, match='class 0 has 0 training images: lower labels_per_class or correct .*list.txt'):
        ImageFiles(str(tmp_path), str(path), labels='list', check_files='none', labels_per_class=1)
