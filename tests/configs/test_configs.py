"""Files of configs/pretrain and configs/cls: recipes, opening comments, sizes and imports."""

import re
import subprocess
import sys

import pytest
from config_files import CLS, FILES, PRETRAIN, REPOSITORY, header, init_of
from mmengine.config import Config
from mmengine.utils import to_2tuple
from mmpretrain.registry import TRANSFORMS

from bootmae.config.batch import settle_batch
from bootmae.config.load import load_config
from bootmae.models.masking import BlockMasking
from bootmae.models.vit import patch_grid


@pytest.fixture(params=FILES)
def name(request):
    return request.param


def test_the_files_are_there():
    assert len(PRETRAIN) >= 7
    assert len(CLS) >= 9


@pytest.mark.slow
def test_configs_bring_their_imports(tmp_path):
    """Every file loads from an empty folder without importing bootmae first, and its names are registered."""
    code = f"""
from mmengine.config import Config
from mmpretrain.registry import DATASETS, HOOKS, MODELS
for path in {[str(path) for path in FILES.values()]!r}:
    cfg = Config.fromfile(path)
    assert cfg.custom_imports.imports[0] == 'bootmae.registry', path
    assert MODELS.get(cfg.model.type) and MODELS.get(cfg.model.backbone.type), path
    assert DATASETS.get(cfg.train_dataloader.dataset.type), path
    for hook in list(cfg.default_hooks.values()) + list(cfg.get('custom_hooks', [])):
        assert HOOKS.get(hook['type']), (path, hook)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_opening_comment(name):
    """It states the command with an existing tool and this file, the hardware, and whether it was run."""
    text = header(name)
    command = re.search(r'(tools/\w+\.\w+) (configs/\S+\.py)( \d+)?', text)
    assert (REPOSITORY / command[1]).is_file()
    assert REPOSITORY / command[2] == FILES[name]
    assert bool(command[3]) == (command[1] == 'tools/dist_train.sh')
    assert 'Hardware: ' in text
    assert 'Run here: ' in text
    for path in re.findall(r'tools/\w+\.\w+', text):
        assert (REPOSITORY / path).is_file(), path
    if name in CLS and 'data/mae_lite/' not in text:  # files of others
        pretrained, epoch = init_of(name)
        assert epoch == Config.fromfile(FILES[pretrained]).train_cfg.max_epochs


def test_batch(name):
    """GPUs x batch x accumulation in the opening comment equals the batch of the learning rate."""
    cfg = Config.fromfile(FILES[name])
    stated = re.search(r'(\d+) GPUs? x (\d+)(?: x accumulation (\d+))?(?: = (\d+))?', header(name))
    gpus, per_gpu, accumulation, product = (
        (int(n) if n else None for n in stated.groups())
        if stated
        else (1,) + (cfg.train_dataloader.batch_size, None, None)
    )
    batch = settle_batch(gpus, cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size)
    assert (batch.per_gpu, batch.accumulation) == (per_gpu, accumulation or 1)
    assert batch.global_size == gpus * per_gpu * (accumulation or 1)
    assert product in (None, batch.global_size)
    assert stated or 'CPU core' in header(name), 'full-size configs state their GPUs'


@pytest.mark.parametrize('name', [name for name in PRETRAIN if name.startswith('bootmae')])
def test_masks_fit_the_model(name):
    """The pipeline follows the model's image size and masks, also when options change them."""
    size = load_config(FILES[name]).model.backbone.img_size
    for options in ({}, {'model.backbone.img_size': (size, 2 * size), 'model.masking.num_block': 0}):
        cfg = load_config(FILES[name], options)
        backbone = cfg.model.backbone
        steps = {step['type']: step for step in cfg.train_dataloader.dataset.pipeline}
        grid = patch_grid(to_2tuple(backbone.img_size), to_2tuple(backbone.patch_size))
        assert TRANSFORMS.build(steps['DrawMask']).masking == BlockMasking(grid=grid, **cfg.model.masking)
        assert steps['RandomResizedCrop'].scale == backbone.img_size


def test_a_pipeline_keeps_the_sizes_that_it_states():
    first = 'train_dataloader.dataset.pipeline.0'
    cfg = load_config(FILES['bootmae_debug'], {f'{first}.scale': 40, 'train_dataloader.dataset.pipeline.1.max_roll': 0})
    crop, draw, _ = cfg.train_dataloader.dataset.pipeline
    assert crop.scale == 40
    assert (draw.img_size, draw.max_roll, draw.num_block) == (32, 0, 39)


HALF, IMAGENET = [127.5] * 3 * 2, [123.675, 116.28, 103.53, 58.395, 57.12, 57.375]
BOOT = dict(
    epochs=801, warmup=40, decay=0.05, betas=(0.9, 0.95), stats=HALF, crop=(0.2, 1.0), masks=(147, 120, (16, 60))
)
BOOT_TUNE = dict(
    min_lr=1e-6,
    decay=0.05,
    betas=(0.9, 0.999),
    eps=1e-8,
    stats=HALF,
    ema=0.9998,
    out='avg_featmap',
    positions=None,
    endpoint=None,
    erased=0.25,
)
LINEAR = dict(
    optimizer='LARS',
    momentum=0.9,
    trust=0.001,
    batch=16384,
    min_lr=0.0,
    decay=0.0,
    warmup=10,
    frozen=True,
    endpoint=False,
    crop=(0.08, 1.0),
    plain='bias',
)
MAE = dict(
    epochs=800,
    warmup=40,
    endpoint=False,
    lr=2.4e-3,
    min_lr=0.0,
    batch=4096,
    decay=0.05,
    betas=(0.9, 0.95),
    stats=IMAGENET,
)
MAE_TUNE = dict(
    min_lr=1e-6,
    batch=1024,
    decay=0.05,
    betas=(0.9, 0.999),
    stats=IMAGENET,
    warmup=5,
    ema=None,
    positions=True,
    endpoint=False,
    erased=0.25,
)
RECIPES = dict(
    bootmae_vitb=BOOT
    | dict(
        arch='base',
        lr=2.4e-3,
        min_lr=1e-4,
        batch=4096,
        pixel=(512, 2, 12, 0),
        feature=(2, 12, 11),
        ema=((0, 0.999), (100, 0.9999), (400, 0.99999)),
    ),
    bootmae_vitl=BOOT
    | dict(
        arch='large',
        lr=1.2e-3,
        min_lr=1e-5,
        batch=2048,
        pixel=(512, 2, 16, 0),
        feature=(2, 16, 23),
        ema=((0, 0.999), (100, 0.9999)),
    ),
    bootmae_vitb_finetune=BOOT_TUNE
    | dict(arch='base', epochs=100, warmup=20, lr=5e-3, batch=2048, layer_decay=0.6, drop_path=0.1, head=768),
    bootmae_vitl_finetune=BOOT_TUNE
    | dict(arch='large', epochs=50, warmup=5, lr=1.5e-3, batch=1024, layer_decay=0.75, drop_path=0.1, head=1024),
    bootmae_vitb_linear=LINEAR | dict(arch='base', epochs=90, lr=6.4, stats=HALF, depth=9, out='avg_featmap'),
    bootmae_vitl_linear=LINEAR | dict(arch='large', epochs=50, lr=4.48, stats=HALF, depth=18, out='avg_featmap'),
    mae_vitb=MAE,
    mae_vitl=MAE,
    mae_vitb_finetune=MAE_TUNE | dict(arch='base', epochs=100, lr=2e-3, layer_decay=0.65, drop_path=0.1),
    mae_vitl_finetune=MAE_TUNE | dict(arch='large', epochs=50, lr=4e-3, layer_decay=0.75, drop_path=0.2),
    mae_vitb_linear=LINEAR | dict(arch='base', epochs=90, lr=6.4, stats=IMAGENET, depth=12, out='cls_token'),
    mae_vitl_linear=LINEAR | dict(arch='large', epochs=90, lr=6.4, stats=IMAGENET, depth=24, out='cls_token'),
)


def recipe(cfg: Config) -> dict:
    """The values of a config under the names of the table above; missing ones are None."""
    model, wrapper = cfg.model, cfg.optim_wrapper
    backbone, optimizer = model.backbone, wrapper.optimizer
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    stats = model.get('data_preprocessor') or cfg.data_preprocessor
    hooks = {hook['type']: hook for hook in cfg.get('custom_hooks', [])}
    pixel, feature, masks = (model.get(key, {}) for key in ('pixel_decoder', 'feature_decoder', 'masking'))
    crop = next(t for t in cfg.train_dataloader.dataset.pipeline if t['type'].endswith('ResizedCrop'))
    assert (crop['type'] == 'ClampedResizedCrop') == (optimizer.type == 'LARS')
    ema = hooks['BootMAEHook'].ema if 'BootMAEHook' in hooks else None
    return dict(
        arch=backbone.arch,
        epochs=cfg.train_cfg.max_epochs,
        optimizer=optimizer.type,
        lr=optimizer.lr,
        batch=cfg.auto_scale_lr.base_batch_size,
        warmup=schedulers[0].get('warmup', schedulers[0].get('end')),
        min_lr=schedulers[-1].get('min_lr', schedulers[-1].get('eta_min', 0.0)),
        decay=optimizer.weight_decay,
        betas=optimizer.get('betas'),
        eps=optimizer.get('eps'),
        momentum=optimizer.get('momentum'),
        trust=optimizer.get('eta'),
        layer_decay=wrapper.get('paramwise_cfg', {}).get('layer_decay'),
        drop_path=backbone.get('drop_path_rate'),
        stats=list(stats.mean) + list(stats.std),
        crop=tuple(crop.get('crop_ratio_range', (0.08, 1.0))),
        masks=(masks.get('num_masked'), masks.get('num_block'), tuple(masks.get('block_area', ()))),
        pixel=tuple(pixel.get(key) for key in ('embed_dims', 'depth', 'num_heads', 'tap')),
        feature=tuple(feature.get(key) for key in ('depth', 'num_heads', 'tap')),
        ema=tuple(map(tuple, ema)) if ema else 1 - hooks['EMAHook'].momentum if 'EMAHook' in hooks else None,
        depth=backbone.get('depth'),
        out=backbone.get('out_type'),
        frozen=backbone.get('frozen', False),
        head=model.get('head', {}).get('in_channels'),
        positions=backbone.get('trainable_positions'),
        endpoint=schedulers[0].get('endpoint'),
        erased=stats.get('erase_prob'),
        plain=''.join(wrapper.get('paramwise_cfg', {}).get('custom_keys', {})),
    )


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name):
    said = recipe(Config.fromfile(FILES[name]))
    for key, value in RECIPES[name].items():
        assert said[key] == (pytest.approx(value) if isinstance(value, float) else value), key


@pytest.mark.parametrize('path', sorted((REPOSITORY / 'configs').glob('*/mae_*.py')), ids=lambda path: path.stem)
def test_no_baseline_inherits_from_the_method(path):
    """Edits of BootMAE's configs do not change MAE's."""
    bases, seen = [path], set()
    while bases:
        found = re.search(r'^_base_ = (.*)$', (file := bases.pop()).read_text(), re.MULTILINE)
        for base in re.findall(r"'(\.[^']+)'", found[1] if found else ''):
            seen.add(base)
            bases.append(file.parent / base)
    assert seen
    assert not [base for base in seen if 'bootmae' in base]


def test_every_full_size_config_has_its_recipe_checked():
    full = {name for name in FILES if re.search('vit[bl]', name)}
    assert full == set(RECIPES)
