"""The setting ``image_channels``: what it changes in a config, and what it refuses."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from bootmae.config import channels
from bootmae.config.channels import channels_record, warn_of_channels
from bootmae.config.load import load_config
from bootmae.config.model import model_config
from bootmae.config.options import OptionText
from bootmae.config.reader import apply_reader
from bootmae.config.weights import check_statistics, preprocessor_of

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FIVE = {'image_channels.number': 5, 'image_channels.ranges': [0, 4095]}
LOAD = dict(type='LoadChannels', number=5, ranges=[0, 4095])
MOMENTS = {'image_channels.mean': [10, 20, 30, 40, 50], 'image_channels.std': [1, 2, 3, 4, 5]}


def changed(name: str, **options) -> Config:
    return load_config(CONFIGS / f'{name}.py', FIVE | options)


def names(pipeline) -> list[str]:
    return [step['type'] for step in pipeline]


def test_pretraining():
    cfg = changed('pretrain/bootmae_small_data_cpu')
    dataset, preprocessor = cfg.train_dataloader.dataset, preprocessor_of(cfg)
    assert dataset.pipeline[0] == LOAD
    assert {'npy', 'tif', 'png'} <= set(dataset.extensions)
    assert (preprocessor['mean'], preprocessor['std'], preprocessor['to_rgb']) == ([127.5] * 5, [127.5] * 5, False)
    apply_reader(cfg)
    first, *rest = cfg.train_dataloader.dataset.pipeline
    assert (first['type'], first['planes']) == ('ReadCrop', True)
    assert first['channels'] == dict(number=5, ranges=[0, 4095])
    assert names(rest) == ['DrawMask', 'PackInputs']
    model = MODELS.build(model_config(cfg))
    assert model.backbone.patch_embed.proj.in_channels == model.momentum.patch_embed.proj.in_channels == 5
    assert model.target_groups == 5
    assert model.data_preprocessor.mean.shape == (5, 1, 1)


def test_mae():
    cfg = changed('pretrain/mae_small_data_cpu', **MOMENTS)
    model = MODELS.build(model_config(cfg))
    assert model.backbone.patch_embed.projection.in_channels == model.head.in_channels == 5
    assert model.neck.decoder_pred.out_features == 5 * 8**2
    assert model.data_preprocessor.mean.flatten().tolist() == [10, 20, 30, 40, 50]


def test_classification_without_augmentation_of_colors():
    cfg = changed('cls/bootmae_small_data_finetune')
    assert names(cfg.train_dataloader.dataset.pipeline) == [
        'LoadChannels',
        'RandomResizedCrop',
        'RandomFlip',
        'PackInputs',
    ]
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert names(loader.dataset.pipeline) == ['LoadChannels', 'ResizeEdgeOfFloats', 'CenterCrop', 'PackInputs']
    assert cfg.model.backbone.in_channels == 5
    load_config(CONFIGS / 'cls/bootmae_small_data_finetune.py', dict(image_channels=dict(cfg.image_channels)))


def test_segmentation():
    cfg = changed('seg/upernet_quick')
    assert names(cfg.train_dataloader.dataset.pipeline) == [
        *('LoadChannels', 'LoadAnnotations', 'RandomResize', 'RandomCrop', 'RandomFlip', 'PackSegInputs')
    ]
    assert cfg.val_dataloader.dataset.pipeline[0] == LOAD
    preprocessor = preprocessor_of(cfg)
    assert (preprocessor['mean'], preprocessor['bgr_to_rgb']) == ([127.5] * 5, False)
    assert cfg.model.backbone.in_channels == 5


def test_selected_channels_and_a_loaded_config(tmp_path):
    cfg = changed('pretrain/bootmae_small_data_cpu', **{'image_channels.select': OptionText('[3,1]')})
    assert cfg.model.backbone.in_channels == len(preprocessor_of(cfg)['mean']) == 2
    cfg.dump(tmp_path / 'again.py')
    again = load_config(tmp_path / 'again.py')
    assert again.train_dataloader == cfg.train_dataloader
    assert again.model == cfg.model


def test_without_it_nothing_changes():
    cfg = load_config(CONFIGS / 'pretrain/bootmae_small_data_cpu.py')
    assert cfg.train_dataloader.dataset.pipeline[0] == dict(type='LoadImageFromFile')
    assert 'in_channels' not in cfg.model.backbone
    assert 'extensions' not in cfg.train_dataloader.dataset


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('pretrain/mae_small_data_cpu', {}, 'image_channels.mean is missing, .*channel_statistics'),
        ('pretrain/bootmae_small_data_cpu', {'image_channels.mean': [1, 2]}, 'mean has 2 values for 5 used channels'),
        ('pretrain/bootmae_small_data_cpu', {'image_channels.number': None}, 'number is missing'),
        ('pretrain/bootmae_small_data_cpu', {'image_channels.axes': 'first'}, 'is axis meant'),
        ('pretrain/bootmae_debug', {}, 'DigitImages .*reads no image files'),
        ('det/mask_rcnn_debug', {}, 'is a detection config'),
        (
            'seg/upernet_quick',
            {'train_dataloader.dataset.pipeline.2.backend': 'pillow'},
            "RandomResize with backend='pillow' resizes 8-bit images",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        changed(name, **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(reader='gpu', reader_device='cpu'), 'reader=gpu reads 8-bit color images'),
        (dict(reader='stock'), 'reader=stock reads 8-bit color images'),
        ({'train_dataloader.dataset.pipeline.1.interpolation': 'bilinear'}, 'interpolation=bicubic and backend=pillow'),
    ],
)
def test_readers_that_cannot_read_channels(options, message):
    cfg = changed('pretrain/bootmae_small_data_cpu', **options)
    with pytest.raises(ValueError, match=message):
        apply_reader(cfg)


def test_statistics_of_weights_are_compared_for_every_channel():
    cfg = changed('cls/bootmae_small_data_cpu_finetune', **MOMENTS)
    mean, std = MOMENTS.values()
    check_statistics(cfg, 'weights.pth', mean, std)
    for other in ([10, 20, 30, 40, 51], mean[:3]):
        with pytest.raises(ValueError, match='weights.pth was made with mean'):
            check_statistics(cfg, 'weights.pth', other, std[: len(other)])


def test_other_channels_than_in_training_get_a_warning(monkeypatch):
    """Their meaning and scale show neither in the weights nor in the statistics."""

    lines = []
    monkeypatch.setattr(channels, 'print_log', lambda text, **options: lines.append(text))

    def said(cfg: Config, record: dict) -> str:
        lines.clear()
        warn_of_channels(cfg, dict(meta=dict(bootmae=record)), 'run.pth')
        return ''.join(lines)

    name = 'cls/bootmae_small_data_cpu_finetune'
    cfg = changed(name)
    record = channels_record(cfg)
    assert record == dict(image_channels=dict(select=[0, 1, 2, 3, 4], ranges=[[0, 4095]] * 5, percentiles=None))
    assert said(cfg, record) == said(cfg, {}) == said(cfg, channels_record(load_config(CONFIGS / f'{name}.py'))) == ''
    assert said(changed(name, **{'image_channels.select': [0, 1, 2, 3, 4]}), record) == ''
    other = changed(name, **{'image_channels.select': [4, 3, 2, 1, 0], 'image_channels.ranges': [0, 255]})
    text = said(other, record)
    assert 'run.pth was trained with other image_channels: select=[0, 1, 2, 3, 4] (here [4, 3, 2, 1, 0])' in text
    assert 'ranges=[[0, 4095], [0, 4095], [0, 4095], [0, 4095], [0, 4095]] (here [[0, 255], ' in text
    assert 'percentiles' not in text
    color = load_config(CONFIGS / f'{name}.py')
    assert said(color, dict(image_channels=dict(select=[0, 1, 2], ranges=None, percentiles=None))) == ''
    assert 'select=[2, 1, 0] (here [0, 1, 2])' in said(color, dict(image_channels=dict(select=[2, 1, 0])))
