"""Checks of downstream runs: sizes, masks of mmseg and heads, on tiny files."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS as MMSEG_DATASETS
from PIL import Image
from torch import nn

import bootmae.evaluation.metrics_det  # noqa: F401  registers SubsetCocoMetric
from bootmae.commands.plan import build_on_meta
from bootmae.config import checks
from bootmae.config.checks import check_dataset, check_sizes, class_of, head_classes
from bootmae.config.load import load_config
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


# --- sizes ---


def changed(path: Path, **options) -> Config:
    return load_config(path, {key.replace('__', '.'): value for key, value in options.items()})


@pytest.mark.parametrize(
    'path', [p for task in ('seg', 'det') for p in sorted((CONFIGS / task).glob('*.py'))], ids=lambda path: path.stem
)
def test_our_configs_have_whole_patches(path):
    check_sizes(load_config(path))


@pytest.mark.parametrize(
    'path, options, message',
    [
        (
            SEG,
            dict(train_dataloader__dataset__pipeline=[dict(type='RandomCrop', crop_size=(80, 108))]),
            r'RandomCrop crop_size=\(80, 108\) is not a multiple of the backbone.s patch, \(8, 8\) pixels: '
            r'use e.g. \(80, 112\)',
        ),
        (
            SEG,
            dict(train_dataloader__dataset__pipeline=[dict(type='RandomCrop', crop_size=100)]),
            r'RandomCrop crop_size=100 is not a multiple .*use e.g. \(96, 96\)',
        ),
        (SEG, dict(model__data_preprocessor__size=(81, 112)), r'data_preprocessor.size=\(81, 112\) is not a multiple'),
        (
            SEG,
            dict(model__data_preprocessor__test_cfg=dict(_delete_=True, size_divisor=12)),
            r'data_preprocessor.test_cfg.size_divisor=12 is not a multiple .*\(16, 16\)',
        ),
        (
            SEG,
            dict(model__data_preprocessor__test_cfg=None),
            r'data_preprocessor.test_cfg.size_divisor is not set, .* set data_preprocessor.test_cfg.size_divisor=8',
        ),
        (SEG, dict(model__data_preprocessor__size=None), 'set data_preprocessor.size_divisor=8 .*or pad=True'),
        (
            SEG,
            dict(model__test_cfg=dict(mode='slide', crop_size=(80, 100), stride=(40, 50))),
            r'test_cfg.crop_size=\(80, 100\) is not a multiple',
        ),
        (
            DET,
            dict(model__data_preprocessor__pad_size_divisor=20),
            r'data_preprocessor.pad_size_divisor=20 is not a multiple .*\(16, 16\)',
        ),
        (DET, dict(model__data_preprocessor__pad_size_divisor=1), 'pad_size_divisor=1 is not a multiple'),
        (DET, dict(model__backbone__patch_size=(8, 32)), r'pad_size_divisor=16 is not a multiple .*\(8, 32\)'),
    ],
)
def test_sizes_that_are_no_whole_patches(path, options, message):
    cfg = changed(path, **options)
    with pytest.raises(ValueError, match=message):
        check_sizes(cfg)
    cfg.model.backbone.pad = True  # then the backbone pads
    check_sizes(cfg)


def test_sizes_that_are_fine():
    check_sizes(
        changed(
            SEG,
            model__data_preprocessor__size=None,
            model__data_preprocessor__size_divisor=8,
            model__test_cfg=dict(mode='slide', crop_size=(80, 96), stride=(3, 5)),
        )
    )
    crop = [dict(type='RandomCrop', crop_size=(50, 50))]  # mmdet pads what it crops
    check_sizes(changed(DET, train_dataloader__dataset__pipeline=crop))
    for cls in ('bootmae_debug_finetune', 'mae_vitb_linear'):
        check_sizes(load_config(CONFIGS / 'cls' / f'{cls}.py'))


# --- masks ---


@pytest.fixture
def make_masks(tmp_path):
    """``make_masks(values, ...)`` makes an mmseg data set with one mask per list of values."""

    def make(*values, zero: bool = False, classes=CLASSES, folder: str = 'a', **changes):
        for kind in ('images', 'masks'):
            (tmp_path / folder / kind).mkdir(parents=True)
        for index, row in enumerate(values):
            Image.new('RGB', (4, 4)).save(tmp_path / folder / 'images' / f'{index}.jpg')
            mask = row if isinstance(row, Image.Image) else Image.fromarray(np.array([row] * 2, dtype=np.uint8))
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
            r'1.png has the label 7, outside 0..2 of BaseSegDataset with 3 classes and '
            r'reduce_zero_label=False: set the data set.s classes, or convert',
        ),
        (
            False,
            ([0, 1], [2, 3]),
            r'1.png has the label 3, outside 0..2 .* count classes from 1, .*: set '
            'reduce_zero_label=True',
        ),
        (
            True,
            ([0, 1, 2, 3], [4, 5]),
            r'1.png has the label 4, outside 0..3 .* reduce_zero_label=True: set the data set',
        ),
        (
            True,
            ([0, 1], [2, 255]),
            r'with reduce_zero_label=True label 0 counts as unlabeled, but the masks \(.*0.png, '
            r'...\) hold 0..2 and never 3, .* set reduce_zero_label=False; or,.*metainfo=dict\(unlabeled=0\)',
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
        (True, ([0, 3],), '2 of its classes do not occur in its masks: sky, road'),
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
    with pytest.raises(ValueError, match=r'rgb/masks/1.png has 3 channels: a mask needs one class number per pixel'):
        check_dataset(rgb, SEGMENTOR)
    palette = Image.fromarray(np.array([[0, 1], [2, 2]], dtype=np.uint8), mode='P')
    palette.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    check_dataset(make_masks(palette, folder='palette'), SEGMENTOR)
    lost = make_masks([0, 1, 2], [0], folder='lost')
    (tmp_path / 'lost' / 'masks' / '1.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'no mask .*lost/masks/1.png: every image needs a mask of'):
        check_dataset(lost, SEGMENTOR)


def test_a_choice_of_classes_is_made_as_mmseg_does(make_masks, told):
    """Two of ADE20K's 150 classes: the map applies after reduce_zero_label, and other classes are no error."""
    from mmseg.datasets import ADE20KDataset

    names = ADE20KDataset.METAINFO['classes']
    dataset = make_masks([0, 5, 150], zero=True, type='ADE20KDataset', classes=(names[4], names[7]))
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
    assert read == [class_of(value, True, dataset.label_map) for value in (0, 5, 150)] == [255, 0, 255]
    check_dataset(dataset, Model(decode_head=2))
    assert told == [f'ADE20KDataset: 1 of its classes do not occur in its masks: {names[7]}']
    with pytest.raises(ValueError, match='has the label 151, outside 0..150 of ADE20KDataset with 150 classes'):
        check_dataset(
            make_masks([151], zero=True, type='ADE20KDataset', classes=(names[4], names[7]), folder='b'),
            Model(decode_head=2),
        )


def test_a_large_data_set_is_sampled(make_masks, told, monkeypatch):
    """Evenly spaced masks are read."""
    monkeypatch.setattr(checks, 'NUM_MASKS', 3)
    check_dataset(make_masks([0], [2], [9], [2], [9], folder='large'), SEGMENTOR)
    assert told == ['BaseSegDataset: 1 of its classes do not occur in its 3 masks that were read: road']
    with pytest.raises(ValueError, match='3.png has the label 9'):
        check_dataset(make_masks([0], [1], [2], [9], [1], folder='last'), SEGMENTOR)


def test_wrapped_data_sets_are_checked(make_masks):
    good, bad = make_masks([0, 1, 2]), make_masks([0, 8], folder='bad')
    assert list(leaves(good)) == [good]
    for wrapped, inner in ((ConcatDataset([good, bad]), [good, bad]), (RepeatDataset(bad, times=2), [bad])):
        assert list(leaves(wrapped)) == inner
        with pytest.raises(ValueError, match='bad/masks/0.png has the label 8'):
            check_dataset(wrapped, SEGMENTOR)


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
    seg = changed(SEG, model__decode_head__num_classes=3, model__auxiliary_head__num_classes=4)
    assert head_classes(build_on_meta(seg)) == dict(decode_head=3, auxiliary_head=4)
    det = changed(DET, model__roi_head__bbox_head__num_classes=3, model__roi_head__mask_head__num_classes=4)
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
