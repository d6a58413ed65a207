"""Checks of downstream runs: masks of mmseg and heads, on tiny files."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import ConfigDict
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS as MMSEG_DATASETS
from PIL import Image
from torch import nn

import bootmae.evaluation.metrics_det  # noqa: F401  registers SubsetCocoMetric
from bootmae.commands.plan import build_on_meta
from bootmae.config import checks
from bootmae.config.checks import check_dataset, check_sizes, head_classes
from bootmae.config.load import load_config
from bootmae.data.annotated import class_of, explain_empty
from bootmae.data.subsets import leaves

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SEG, DET = CONFIGS / 'seg' / 'upernet_debug.py', CONFIGS / 'det' / 'mask_rcnn_debug.py'
CLASSES = ('sky', 'road', 'tree')


class Model(nn.Module):
    """A model with heads for these numbers of classes."""

    def __init__(self, **heads: int):
        super().__init__()
        for name, number in heads.items():
            head = nn.Identity()
            head.num_classes = number
            self.add_module(name, head)


# --- masks ---


@pytest.fixture
def make_masks(tmp_path):
    """``make_masks(values, ...)`` makes an mmseg data set with one mask per list of values."""

    def make(*values, zero: bool = False, classes=CLASSES, folder: str = 'a', **changes):
        for kind in ('images', 'masks'):
            (tmp_path / folder / kind).mkdir(parents=True)
        for index, row in enumerate(values):
            mask = row if isinstance(row, Image.Image) else Image.fromarray(np.array([row] * 2, dtype=np.uint8))
            Image.new('RGB', mask.size).save(tmp_path / folder / 'images' / f'{index}.jpg')
            mask.save(tmp_path / folder / 'masks' / f'{index}.png')
        return MMSEG_DATASETS.build(
            dict(
                type='BaseSegDataset',
                data_root=str(tmp_path / folder),
                reduce_zero_label=zero,
                pipeline=[],
                data_prefix=dict(img_path='images', seg_map_path='masks'),
                metainfo=dict(classes=classes),
            )
            | changes
        )

    return make


SEGMENTOR = Model(decode_head=3)


@pytest.mark.parametrize(
    'zero, values, message',
    [
        (
            False,
            ([0, 1, 2], [1, 7, 255]),
            r'1.png: label outside the classes: 7 \(2 pixels\): the data set has 0..2: set its classes, or convert',
        ),
        (
            False,
            ([0, 1], [2, 3]),
            r'1.png: reduce_zero_label does not fit: label 3 of 3 classes 0..2: its files seem to count classes '
            'from 1, .*: set reduce_zero_label=True',
        ),
        (
            True,
            ([0, 1, 2, 3], [4, 5]),
            r'1.png: label outside the classes: 4 \(2 pixels\), 5 \(2 pixels\): the data set has 0..3: set its classes',
        ),
        (
            True,
            ([0, 1], [2, 255]),
            r'0.png: reduce_zero_label does not fit: label 0 counts as unlabeled, but the masks hold 0..2 and never 3, '
            r'.* set reduce_zero_label=False; or,.*metainfo=dict\(unlabeled=0\)',
        ),
    ],
)
def test_wrong_labels(make_masks, zero, values, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(make_masks(*values, zero=zero), SEGMENTOR)


@pytest.mark.parametrize(
    'zero, values, absent',
    [
        (False, ([0, 1], [2, 255]), None),
        (True, ([0, 1], [2, 3, 255]), None),
        (True, ([1, 2], [3]), None),
        (False, ([0, 255], [2]), '1 of its classes do not occur in its masks: road'),
        (True, ([0, 2, 3],), '1 of its classes do not occur in its masks: sky'),
    ],
)
def test_right_labels_and_absent_classes(make_masks, told, zero, values, absent):
    check_dataset(make_masks(*values, zero=zero), SEGMENTOR)
    assert told == ([f'BaseSegDataset: {absent}'] if absent else [])


def test_an_absent_last_class_can_be_stated(make_masks, told):
    dataset = make_masks([0, 1, 2], zero=True, metainfo=dict(classes=CLASSES, unlabeled=0))
    check_dataset(dataset, SEGMENTOR)
    assert told == ['BaseSegDataset: 1 of its classes do not occur in its masks: tree']


def test_channels_and_missing_masks(make_masks, tmp_path):
    rgb = make_masks([0, 1], Image.new('RGB', (4, 4)), folder='rgb')
    with pytest.raises(ValueError, match=r'rgb/masks/1.png: mask with several channels: 3 channels: a mask needs one'):
        check_dataset(rgb, SEGMENTOR)
    palette = Image.fromarray(np.array([[0, 1], [2, 2]], dtype=np.uint8), mode='P')
    palette.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    check_dataset(make_masks(palette, folder='palette'), SEGMENTOR)
    lost = make_masks([0, 1, 2], [0], folder='lost')
    (tmp_path / 'lost' / 'masks' / '1.png').unlink()
    with pytest.raises(ValueError, match=r'lost/masks/1.png: missing mask: of .*1.jpg; every image needs one'):
        check_dataset(lost, SEGMENTOR)


def test_a_choice_of_classes_is_made_as_mmseg_does(make_masks, told):
    """Two of ADE20K's 150 classes: the map applies after reduce_zero_label, and other classes are no error."""
    from mmseg.datasets import ADE20KDataset

    names = ADE20KDataset.METAINFO['classes']
    dataset = make_masks([0, 5, 8, 150], zero=True, type='ADE20KDataset', metainfo=dict(classes=(names[4], names[7])))
    init_default_scope('mmseg')
    item = MMSEG_DATASETS.build(
        dict(
            type='ADE20KDataset',
            data_root=dataset.data_root,
            metainfo=dict(classes=(names[4], names[7])),
            data_prefix=dict(img_path='images', seg_map_path='masks'),
            pipeline=[dict(type='LoadAnnotations')],
        )
    )[0]
    read = item['gt_seg_map'][0].tolist()
    assert read == [class_of(value, True, dataset.label_map) for value in (0, 5, 8, 150)] == [255, 0, 1, 255]
    check_dataset(dataset, Model(decode_head=2))
    assert told == []
    with pytest.raises(ValueError, match=r'label outside the classes: 151 \(2 pixels\): the data set has 0..150'):
        check_dataset(
            make_masks([151], zero=True, type='ADE20KDataset', metainfo=dict(classes=(names[4], names[7])), folder='b'),
            Model(decode_head=2),
        )


def test_a_large_data_set_is_sampled(make_masks, told, monkeypatch):
    """Evenly spaced masks are read."""
    monkeypatch.setattr(checks, 'NUM_MASKS', 3)
    check_dataset(make_masks([0], [2], [9], [2], [9], folder='large'), SEGMENTOR)
    assert told == ['BaseSegDataset: 1 of its classes do not occur in its 3 masks that were read: road']
    with pytest.raises(ValueError, match='3.png: label outside the classes: 9'):
        check_dataset(make_masks([0], [1], [2], [9], [1], folder='last'), SEGMENTOR)


def test_wrapped_data_sets_are_checked(make_masks):
    good, bad = make_masks([0, 1, 2]), make_masks([0, 8], folder='bad')
    assert list(leaves(good)) == [good]
    for wrapped, inner in ((ConcatDataset([good, bad]), [good, bad]), (RepeatDataset(bad, times=2), [bad])):
        assert list(leaves(wrapped)) == inner
        with pytest.raises(ValueError, match='bad/masks/0.png: label outside the classes: 8'):
            check_dataset(wrapped, SEGMENTOR)


def test_a_data_set_of_one_class_is_refused(make_masks):
    """Its mIoU would be 100. Other masks than those of the sample are read before it is said."""
    for zero, values in ((False, [0, 255]), (False, [1]), (True, [0, 2]), (False, [255])):
        dataset = make_masks(values, values, zero=zero, folder=f'{zero}{values}')
        with pytest.raises(ValueError, match=r'masks: fewer than two classes: only .* of 3 classes occurs'):
            check_dataset(dataset, SEGMENTOR)
    with pytest.raises(ValueError, match='255 is ignored in training and evaluation; .* with the numbers 0..2'):
        check_dataset(make_masks([0, 255], folder='binary'), SEGMENTOR)


def test_one_class_in_the_sample_is_not_one_class(make_masks, told, monkeypatch):
    monkeypatch.setattr(checks, 'NUM_MASKS', 2)
    check_dataset(make_masks(*[[0]] * 6, [1], [0]), SEGMENTOR)
    assert told == ['BaseSegDataset: 1 of its classes do not occur in its masks: tree']


def test_a_foreground_that_is_mostly_ignored(make_masks):
    values = [0, 0, 0, 0, 1, 255, 255]
    message = r'masks: most of the foreground is ignored: 67% of the pixels that are not 0 hold 255: .*sparse_labels='
    with pytest.raises(ValueError, match=message):
        check_dataset(make_masks(values), SEGMENTOR)
    stated = dict(classes=CLASSES, sparse_labels=True)
    check_dataset(make_masks(values, folder='stated', metainfo=stated), SEGMENTOR)
    check_dataset(make_masks([0, 1, 1, 255, 255], folder='half'), SEGMENTOR)


def test_masks_of_another_size(make_masks, tmp_path):
    dataset = make_masks([0, 1, 2], [0, 1])
    Image.new('RGB', (3, 2)).save(tmp_path / 'a/images/1.jpg')
    with pytest.raises(ValueError, match=r'masks/1.png: mask of another size: 2 x 2, its image is 3 x 2'):
        check_dataset(dataset, SEGMENTOR)


@pytest.mark.parametrize(
    'file, message',
    [
        (
            'images/1.JPG',
            "1.JPG: image with another suffix: not read, since img_suffix='.jpg': give all images one suffix",
        ),
        ('images/1.jpeg', 'images/1.jpeg: image with another suffix'),
        ('images/1.png', 'images/1.png: image with another suffix'),
        ('masks/1.PNG', 'masks/1.png: missing mask: of .*1.jpg; there is 1.PNG: rename it, or set seg_map_suffix'),
    ],
)
def test_suffixes(make_masks, tmp_path, file, message):
    """Images of another suffix are left out by mmseg."""
    first = make_masks([0, 1, 2], [0, 1])
    check_dataset(first, SEGMENTOR)
    before = next(path for path in (tmp_path / 'a' / file).parent.iterdir() if path.stem == '1')
    before.rename(tmp_path / 'a' / file)
    (tmp_path / 'a' / 'images' / 'preview.png').write_bytes(b'')  # without a mask: not an image of the data set
    with pytest.raises(ValueError, match=message):
        check_dataset(MMSEG_DATASETS.build(settings_of(first)), SEGMENTOR)


def test_a_sample_whose_two_files_are_in_another_case(make_masks, tmp_path):
    dataset = make_masks([0, 1, 2], [0, 1])
    (tmp_path / 'a/images/1.jpg').rename(tmp_path / 'a/images/1.JPG')
    (tmp_path / 'a/masks/1.png').rename(tmp_path / 'a/masks/1.PNG')
    with pytest.raises(ValueError, match='images/1.JPG: image with another suffix'):
        check_dataset(MMSEG_DATASETS.build(settings_of(dataset)), SEGMENTOR)


def test_all_images_in_another_case(make_masks, tmp_path):
    """Then no image is found at all."""
    dataset = make_masks([0, 1, 2])
    (tmp_path / 'a/images/0.jpg').rename(tmp_path / 'a/images/0.JPG')
    with pytest.raises(ValueError, match=r"0.JPG: image with another suffix: not read, since img_suffix='.jpg'"):
        raise explain_empty(settings_of(dataset) | dict(type='mmseg.BaseSegDataset'))


def test_stored_pixels_can_be_asked_for(make_masks, tmp_path, told):
    """The remedy in the message about an orientation works: the image is read as its mask was made."""
    dataset = make_masks([0, 1, 2])
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.RandomState(0).randint(0, 255, (2, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a/images/0.jpg', exif=exif, quality=100, subsampling=0)
    with pytest.raises(ValueError, match='EXIF orientation of an annotated image: orientation 6, stored as 3 x 2'):
        check_dataset(dataset, SEGMENTOR)
    load = dict(type='LoadImageFromFile', color_type='color_ignore_orientation')
    stored = MMSEG_DATASETS.build(settings_of(dataset) | dict(pipeline=[load]))
    check_dataset(stored, SEGMENTOR)
    assert np.abs(stored[0]['img'][..., ::-1].astype(int) - pixels).max() < 12
    assert told == []


def test_images_of_an_own_format_pass(make_masks, tmp_path, told):
    """A pipeline may read files that are no images for us."""
    dataset = make_masks([0, 1, 2])
    (tmp_path / 'a/images/0.jpg').rename(tmp_path / 'a/images/0.npy')
    check_dataset(MMSEG_DATASETS.build(settings_of(dataset) | dict(img_suffix='.npy')), SEGMENTOR)
    assert told == []


def test_a_test_without_masks_passes(make_masks, told):
    dataset = make_masks([0, 1, 2], data_prefix=dict(img_path='images'))
    check_dataset(dataset, SEGMENTOR)
    assert told == []


def settings_of(dataset) -> dict:
    return dict(
        type='BaseSegDataset',
        data_root=dataset.data_root,
        pipeline=[],
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=CLASSES),
    )


def test_names_that_are_one_text_or_not_unique(make_masks):
    dataset = make_masks([0, 1, 2])
    for classes, message in (('sky', r"is one text: .* a comma, \('sky',\)"), (('a', 'b', 'a'), "has 'a' twice")):
        dataset._metainfo['classes'] = classes
        with pytest.raises(ValueError, match=message):
            check_dataset(dataset, SEGMENTOR)


# --- heads ---


@pytest.mark.parametrize(
    'heads, message',
    [
        (
            dict(decode_head=150),
            'has 3 classes, but num_classes is 150 in decode_head: set num_classes=3 in every head',
        ),
        (dict(decode_head=3, auxiliary_head=19), 'num_classes is 19 in auxiliary_head'),
    ],
)
def test_heads_for_another_number_of_classes(make_masks, heads, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(make_masks([0, 1, 2]), Model(**heads))


def test_heads_of_real_models():
    seg = load_config(SEG, {'model.decode_head.num_classes': 3, 'model.auxiliary_head.num_classes': 4})
    assert head_classes(build_on_meta(seg)) == dict(decode_head=3, auxiliary_head=4)
    det = load_config(DET, {f'model.roi_head.{name}_head.num_classes': n for name, n in (('bbox', 3), ('mask', 4))})
    assert head_classes(build_on_meta(det)) == {'roi_head.bbox_head': 3, 'roi_head.mask_head': 4}
    assert head_classes(build_on_meta(load_config(CONFIGS / 'cls' / 'bootmae_debug_finetune.py'))) == {}


def test_other_models_and_data_are_none_of_our_business(make_masks):
    check_dataset(make_masks([77]), Model())
    check_dataset([1, 2, 3], SEGMENTOR)


def test_config_dicts_are_left_alone():
    """The checks read a config and change nothing."""
    for path in (SEG, DET):
        cfg = load_config(path)
        before = ConfigDict(cfg.to_dict())
        check_sizes(cfg)
        assert cfg.to_dict() == before.to_dict()
