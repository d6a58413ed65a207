"""Which pipelines ReadCrop replaces, which stay as they are, and which are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmpretrain.registry import DATASETS
from PIL import Image

from bootmae.config.load import load_config
from bootmae.config.reader import apply_reader
from bootmae.data.embedded import photo

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LOAD = dict(type='LoadImageFromFile')
CROP = dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic')
FLIP = dict(type='RandomFlip', prob=0.5)
PACK = dict(type='PackInputs')


def config(*pipeline: dict, wrap=lambda dataset: dataset, **options) -> Config:
    dataset = dict(type='ImageFiles', roots='r', pipeline=list(pipeline))
    return Config(
        dict(
            train_dataloader=dict(dataset=wrap(dataset), pin_memory=True, collate_fn=dict(type='default_collate')),
            **options,
        )
    )


def read(cfg: Config) -> list:
    apply_reader(cfg)
    return cfg.train_dataloader.dataset.pipeline


def names(pipeline) -> list[str]:
    return [step['type'] for step in pipeline]


def merged(name: str, **options) -> Config:
    cfg = load_config(str(CONFIGS / name), options)
    apply_reader(cfg)
    return cfg


@pytest.mark.parametrize(
    'name, rest, planes, scale',
    [
        ('pretrain/bootmae_vitb.py', ['DrawMask', 'PackInputs'], True, (0.2, 1.0)),
        ('pretrain/mae_vitb.py', ['PackInputs'], True, (0.2, 1.0)),
        ('cls/bootmae_vitb_linear.py', ['PackInputs'], True, None),
        ('cls/bootmae_vitb_finetune.py', ['RandAugment', 'PackInputs'], False, None),
    ],
)
def test_the_configs_of_this_suite(name, rest, planes, scale):
    before = load_config(str(CONFIGS / name)).train_dataloader.dataset.pipeline
    first, *others = merged(name).train_dataloader.dataset.pipeline
    assert first['type'] == 'ReadCrop'
    assert (first['mode'], first.get('planes', False)) == ('cpu', planes)
    assert first['crop']['scale'] == 224
    assert first['crop'].get('crop_ratio_range') == scale
    assert first['flip']['prob'] == 0.5
    assert names(others) == rest
    assert others == before[3:]


@pytest.mark.parametrize(
    'name', ['pretrain/bootmae_demo.py', 'cls/bootmae_demo_finetune.py', 'seg/bootmae_vitb_upernet.py']
)
def test_other_pipelines_stay_as_they_are(name):
    before = load_config(str(CONFIGS / name)).to_dict()
    assert merged(name).to_dict() == before


@pytest.mark.parametrize(
    'pipeline',
    [
        [],
        [LOAD],
        [LOAD, PACK],
        [LOAD, FLIP, CROP, PACK],
        [LOAD, dict(CROP, backend='cv2'), PACK],
        [LOAD, dict(type='RandomResizedCrop', scale=224), PACK],
        [LOAD, dict(CROP, interpolation='bilinear'), PACK],
        [dict(LOAD, color_type='grayscale'), CROP, PACK],
        [dict(LOAD, imdecode_backend='pillow'), CROP, PACK],
        [dict(LOAD, ignore_empty=True), CROP, PACK],
        [LOAD, dict(CROP, type='EfficientNetRandomCrop'), PACK],
    ],
)
def test_a_beginning_that_it_does_not_know(pipeline):
    assert read(config(*pipeline)) == pipeline
    with pytest.raises(ValueError, match='reader=cpu'):
        read(config(*pipeline, reader='gpu', reader_device='cpu'))


def test_parts_of_the_beginning_and_wrapped_data_sets():
    assert names(read(config(LOAD, CROP))) == ['ReadCrop']
    assert read(config(LOAD, CROP, PACK))[0]['flip'] is None
    vertical = dict(FLIP, direction='vertical')
    assert read(config(LOAD, CROP, vertical, PACK))[1:] == [vertical, PACK]  # sees the finished image
    first = read(config(dict(LOAD, type='mmcv.LoadImageFromFile', backend_args=dict(backend='local')), CROP, FLIP))[0]
    assert first['backend_args'] == dict(backend='local')
    assert read(config(LOAD, CROP, PACK, reader='stock')) == [LOAD, CROP, PACK]
    cfg = config(
        LOAD,
        CROP,
        FLIP,
        PACK,
        wrap=lambda each: dict(
            type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[each, dict(each, roots='s')])
        ),
    )
    apply_reader(cfg)
    inner = cfg.train_dataloader.dataset.dataset.datasets
    assert [names(each.pipeline) for each in inner] == [['ReadCrop', 'PackInputs']] * 2


def test_what_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="reader='tpu' must be one of 'stock', 'cpu', 'gpu'"):
        read(config(LOAD, CROP, reader='tpu'))
    with pytest.raises(ValueError, match='no.* here: use reader=cpu'):  # tests see no GPU
        read(config(LOAD, CROP, PACK, reader='gpu'))
    gpu = dict(reader='gpu', reader_device='cpu')
    with pytest.raises(ValueError, match='RandAugment .*reader=cpu'):
        merged('cls/bootmae_vitb_finetune.py', **gpu)
    with pytest.raises(ValueError, match='PackInputs as the last transform, not DrawMask'):
        read(config(LOAD, CROP, PACK, dict(type='DrawMask'), **gpu))
    with pytest.raises(ValueError, match='no pipeline'):
        read(config(wrap=lambda each: dict(type='Synthetic'), **gpu))
    small = dict(type='ImageFiles', roots='s', pipeline=[LOAD, dict(CROP, scale=(96, 64)), PACK])
    with pytest.raises(ValueError, match=r'\(96, 64\), \(224, 224\)'):
        read(config(LOAD, CROP, PACK, wrap=lambda each: dict(type='ConcatDataset', datasets=[each, small]), **gpu))


def test_the_gpu_route_gives_the_loop_what_it_needs(tmp_path):
    """The stage on a CPU turns the bytes and boxes of a batch into the batch of reader=cpu."""
    from bootmae.data.device import DeviceStage

    Image.fromarray(photo('flower')[:200, :300]).save(tmp_path / 'a.jpg', subsampling=0, quality=95)
    Image.fromarray(photo('flower')[:200, :300]).save(tmp_path / 'b.png')
    batches = {}
    for reader in ('cpu', 'gpu'):
        cfg = merged(
            'pretrain/bootmae_vitb.py',
            reader=reader,
            reader_device='cpu',
            **{'train_dataloader.dataset.roots': str(tmp_path), 'train_dataloader.dataset.split': None},
        )
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        np.random.seed(0)
        batches[reader] = pseudo_collate([dataset[0], dataset[1]])
    assert cfg.device_stage == dict(size=224, device='cpu')
    assert (cfg.train_dataloader.collate_fn.type, cfg.train_dataloader.pin_memory) == ('collate_encoded', False)
    assert batches['gpu']['inputs'][0].ndim == 1
    out = DeviceStage(**cfg.device_stage)(batches['gpu'])
    error = (out['inputs'].int() - torch.stack(batches['cpu']['inputs']).int()).abs()
    assert error[0].max() <= 2
    assert error[1].max() == 0
    for ours, theirs in zip(out['data_samples'], batches['cpu']['data_samples']):
        assert np.array_equal(ours.ids_shuffle, theirs.ids_shuffle)
