"""Files with the names and formats of MAE-Lite's release, with random weights: 12 heads, which no weight tells."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from timm.models.vision_transformer import VisionTransformer

from bootmae.checkpoints import load_encoder_weights
from bootmae.checkpoints.keys import MAE_DECODER, MMPRETRAIN, rename, to_authors
from bootmae.commands.train import train
from bootmae.config.load import load_config
from bootmae.config.weights import apply_init
from bootmae.places import REPOSITORY
from bootmae.suite.cells import make_cells
from bootmae.suite.dry_run import plan_text
from bootmae.suite.spec import load_suite

FILES = dict(bootmae='bootmae_tiny_400e.pth.tar', mae='mae_tiny_400e.pth.tar')
ARCH = dict(embed_dims=192, depth=12, num_heads=12)
KINDS = dict(bootmae="authors' BootMAE (online)", mae="facebookresearch MAE below 'model.'")
HEADS = '12 attention heads as in the config (the file does not tell)'


def randomized(model: torch.nn.Module) -> dict:
    """Random weights; norms near one, positions as they are."""
    generator = torch.Generator().manual_seed(1)
    state = model.state_dict()
    return {
        key: value
        if key.endswith('pos_embed')
        else float('norm' in key and key.endswith('weight')) + 0.2 * torch.randn(value.shape, generator=generator)
        for key, value in state.items()
    }


def bootmae_weights() -> dict:
    """BootMAE-Tiny under the names of the authors."""
    decoders = dict(pixel_decoder=dict(embed_dims=96, num_heads=12), feature_decoder=dict(num_heads=12))
    model = MODELS.build(dict(type='BootMAE', backbone=dict(type='PlainViT', arch=ARCH), **decoders))
    return to_authors(randomized(model))[0]


def mae_weights() -> dict:
    """MAE-Tiny under the names of facebookresearch."""
    arch = dict(embed_dims=192, num_layers=12, num_heads=12, feedforward_channels=768)
    neck = dict(type='MAEPretrainDecoder', embed_dim=192, decoder_embed_dim=96, decoder_depth=1, decoder_num_heads=12)
    model = MODELS.build(dict(type='MAE', backbone=dict(type='MAEViT', arch=arch), neck=neck))
    model.backbone.pos_embed.data.normal_(std=0.1)
    state = randomized(model)
    encoder, decoder = (
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for prefix in ('backbone.', 'neck.')
    )
    return rename(encoder, MMPRETRAIN, back=True) | rename(decoder, MAE_DECODER)


@pytest.fixture(scope='module')
def released(tmp_path_factory) -> Path:
    """A folder with both files."""
    folder = tmp_path_factory.mktemp('mae_lite')
    torch.save(dict(model=bootmae_weights(), epoch=399), folder / FILES['bootmae'])
    wrapped = {f'module.model.{key}': value for key, value in mae_weights().items()}
    torch.save(dict(model=wrapped, start_epoch=400), folder / FILES['mae'])
    return folder


def their_features(path: Path) -> torch.Tensor:
    """Patch tokens after the last block, by timm's ViT with 12 heads."""
    model = VisionTransformer(embed_dim=192, depth=12, num_heads=12, num_classes=0, class_token=True).eval()
    state = {
        key.removeprefix('module.').removeprefix('model.'): value for key, value in torch.load(path)['model'].items()
    }
    for index in range(12) if 'blocks.0.attn.q_bias' in state else ():
        q, v = (state.pop(f'blocks.{index}.attn.{part}_bias') for part in 'qv')
        state[f'blocks.{index}.attn.qkv.bias'] = torch.cat((q, torch.zeros_like(q), v))
    names = model.state_dict()
    model.load_state_dict({key: value for key, value in state.items() if key in names}, strict=True)
    model.norm = torch.nn.Identity()
    with torch.no_grad():
        return model.forward_features(images())[:, 1:]


def images() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def our_features(model) -> torch.Tensor:
    with torch.no_grad():
        tokens = model.embed(model.patch_embed.patchify(images()), model.pos_embed[:, 1:])
        return model.forward_blocks(tokens)[0][:, 1:]


@pytest.mark.parametrize('method', FILES)
def test_the_released_files(released, method):
    """The config gives the 12 heads; with the usual 3 the same weights compute something else, and the log tells."""
    cfg = load_config(f'{method}_lite_finetune')
    path = released / FILES[method]
    apply_init(cfg, str(path))
    model = MODELS.build(cfg.model.backbone).eval()
    report = load_encoder_weights(model, path)
    assert (report.kind, report.loaded, report.remarks) == (KINDS[method], 3 + 1 + 12 * 13, [HEADS])
    wanted = their_features(path)
    largest = wanted.abs().max()
    assert (our_features(model) - wanted).abs().max() < 1e-3 * largest
    other = MODELS.build(dict(cfg.model.backbone, arch='tiny', init_cfg=None)).eval()
    assert load_encoder_weights(other, path).remarks == [HEADS.replace('12', '3')]
    assert (our_features(other) - wanted).abs().max() > 0.02 * largest


def test_names_without_the_wrapper_of_several_gpus(released, tmp_path):
    content = torch.load(released / FILES['mae'])
    content['model'] = {key.removeprefix('module.'): value for key, value in content['model'].items()}
    torch.save(content, tmp_path / FILES['mae'])
    backbone = load_config('mae_lite_finetune').model.backbone
    reports = [load_encoder_weights(MODELS.build(backbone), folder / FILES['mae']) for folder in (tmp_path, released)]
    assert reports[0].hash == reports[1].hash
    assert reports[0].kind == reports[1].kind == KINDS['mae']


def test_files_for_the_other_config(released):
    """Their input statistics differ."""
    with pytest.raises(ValueError, match=r'mae_tiny_400e.pth.tar was made with mean \[123.675'):
        apply_init(load_config('bootmae_lite_finetune'), str(released / FILES['mae']))


@pytest.fixture(scope='module')
def flowers(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp('flowers'), np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('rose', 'tulip'):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                cv2.imwrite(
                    str(root / split / name / f'{number}.jpg'), rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                )
    return root


@pytest.mark.parametrize('method', FILES)
def test_training_from_a_folder(released, flowers, tmp_path, method):
    """A step of the recipe with small images: SGD with clipping, and layer-wise rates for 12 blocks."""
    test = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]
    small = dict(batch_size=4, num_workers=0, persistent_workers=False)
    options = {
        'images': str(flowers),
        'model.head.num_classes': 2,
        'data_preprocessor.num_classes': 2,
        'model.backbone.img_size': 32,
        'val_evaluator.topk': (1,),
        'train_dataloader': small,
        'val_dataloader': small | dict(dataset=dict(pipeline=test)),
        'auto_scale_lr.base_batch_size': 4,
        'train_cfg': dict(max_epochs=1, val_interval=1),
        'param_scheduler.warmup': 0.5,
        'log_level': 'ERROR',
        'experiment_name': f'{method}_lite',
    }
    runner = train(f'{method}_lite_finetune', str(tmp_path), options, str(released / FILES[method]))
    assert runner.model.backbone.load_report.resized == ['pos_embed from 14x14 to 2x2']
    groups = runner.optim_wrapper.optimizer.param_groups
    assert {round(group['initial_lr'], 8) for group in groups} == {round(0.1 * 0.75**k, 8) for k in range(14)}
    assert {(group['momentum'], group['weight_decay']) for group in groups} == {(0.9, 0.0)}
    assert runner.optim_wrapper.clip_grad_kwargs == dict(max_norm=1.0)


def test_the_suite():
    """Five data sets, from folders; what is missing is named before anything runs."""
    suite = load_suite(REPOSITORY / 'suites' / 'mae_lite.yaml')
    cells = [cell for cell in make_cells(suite, Path('none')) if cell.seed == 0]
    assert {cell.training.name for cell in cells} == {'cifar100', 'pets', 'flowers', 'aircraft', 'cars'}
    assert len(cells) == 15
    for cell in cells:
        cfg = load_config(cell.config, {key: value for key, value in cell.options.items() if key != 'images'})
        classes = dict(cifar100=100, pets=37, flowers=102, aircraft=100, cars=196)[cell.training.name]
        assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
        assert cell.options.get('images', 'data/cifar100') == f'data/{cell.training.name}'
    assert 'roots=data/cifar100 does not exist' in plan_text(cells[:1])[1]
