"""Two optimizer steps of full-size segmentation and detection configs at toy size, from a pretrained file.

Of each recipe BootMAE's ViT-B and MAE's ViT-L. The other two differ from these in numbers alone, which
test_downstream_recipes.py checks.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.registry import MODELS

from bootmae.checkpoints import convert
from bootmae.commands.test import evaluate
from bootmae.commands.train import train
from bootmae.config.load import load_config
from bootmae.models.vit import ARCHS

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {
    path.stem: path
    for task in ('seg', 'det')
    for path in sorted((REPOSITORY / 'configs' / task).glob('*_vit[bl]_*.py'))
    if path.stem.startswith(('bootmae_vitb', 'mae_vitl'))
}
WIDTH, HEIGHT, WIDE = 8, 64, 80  # of the model; of the images
SMALLER = dict(upernet=8, vitdet=16, maskrcnn=10)  # of the sizes in pixels

pytestmark = pytest.mark.slow


def arch_of(name: str) -> dict:
    depth = ARCHS['base' if 'vitb' in name else 'large']['depth']
    return dict(embed_dims=WIDTH, depth=depth, num_heads=2)


def pretraining_model(method: str, size: str) -> torch.nn.Module:
    """A toy model as the pretraining configs build it, for 224 pixels."""
    arch = arch_of(size)
    if method == 'bootmae':
        return MODELS.build(
            dict(
                type='BootMAE',
                backbone=dict(type='PlainViT', arch=arch, img_size=224),
                pixel_decoder=dict(embed_dims=8, num_heads=2),
                feature_decoder=dict(num_heads=2),
                masking=dict(num_masked=147, num_block=120, block_area=(16, 60)),
            )
        )
    vit = dict(embed_dims=WIDTH, num_layers=arch['depth'], num_heads=2, feedforward_channels=4 * WIDTH)
    return MODELS.build(
        dict(
            type='MAE',
            backbone=dict(type='MAEViT', arch=vit, patch_size=16, mask_ratio=0.75),
            neck=dict(
                type='MAEPretrainDecoder',
                embed_dim=WIDTH,
                decoder_embed_dim=WIDTH,
                decoder_depth=1,
                decoder_num_heads=2,
            ),
            head=dict(
                type='MAEPretrainHead',
                norm_pix=True,
                patch_size=16,
                loss=dict(type='PixelReconstructionLoss', criterion='L2'),
            ),
        )
    )


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """Pretrained checkpoints by 'method_size'."""
    files = {}
    for key in ('bootmae_vitb', 'mae_vitl'):
        files[key] = tmp_path_factory.mktemp(key) / 'pretrained.pth'
        torch.save(dict(state_dict=pretraining_model(*key.split('_')).state_dict()), files[key])
    return files


def draw_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        image = np.random.default_rng(len(name)).integers(0, 256, (HEIGHT, WIDE, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{name}.jpg'), image)


@pytest.fixture(scope='module')
def ade(tmp_path_factory) -> Path:
    """ADE20K's layout: four images for training and two for validation, labels 0 (nothing) to 150 in stripes."""
    root = tmp_path_factory.mktemp('ade')
    labels = np.repeat(np.linspace(0, 150, HEIGHT).astype(np.uint8)[:, None], WIDE, axis=1)
    for split, count in (('training', 4), ('validation', 2)):
        names = [f'ADE_{split}_{i}' for i in range(count)]
        draw_images(root / 'images' / split, names)
        (root / 'annotations' / split).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(root / 'annotations' / split / f'{name}.png'), labels)
    return root


@pytest.fixture(scope='module')
def coco(tmp_path_factory) -> Path:
    """COCO's layout and categories: four images for training and two for validation, two boxes in each."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'])]
    for split, count in (('train2017', 4), ('val2017', 2)):
        draw_images(root / split, [f'{i:012d}' for i in range(count)])
        images = [dict(id=i, file_name=f'{i:012d}.jpg', height=HEIGHT, width=WIDE) for i in range(count)]
        boxes = [(i, *box) for i in range(count) for box in ((1, (4, 4, 40, 36)), (80, (36, 20, 40, 40)))]
        annotations = [
            dict(
                id=n + 1,
                image_id=i,
                category_id=category,
                bbox=[x, y, w, h],
                area=w * h,
                iscrowd=0,
                segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
            )
            for n, (i, category, (x, y, w, h)) in enumerate(boxes)
        ]
        (root / 'annotations' / f'instances_{split}.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )
    return root


@HOOKS.register_module()
class DownstreamTestObserver(Hook):
    """Keeps the starting weights and all losses."""

    def before_train(self, runner):
        self.before = {key: value.clone() for key, value in runner.model.state_dict().items()}
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: value.item() for key, value in outputs.items()})


def shrink_sizes(value, divisor: int):
    """Divide the sizes in a pipeline, which are pairs with a number above 255."""
    if isinstance(value, dict):
        return {key: shrink_sizes(inner, divisor) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and all(isinstance(n, int) for n in value) and max(value) > 255:
            return tuple(n // divisor for n in value)
        return [shrink_sizes(inner, divisor) for inner in value]
    return value


def toy_segmentor() -> dict:
    return {
        'backbone.img_size': 64,
        'decode_head.in_channels': [WIDTH] * 4,
        'decode_head.channels': WIDTH,
        'auxiliary_head.in_channels': WIDTH,
        'auxiliary_head.channels': WIDTH,
        'data_preprocessor.size': (64, 64),
        'data_preprocessor.test_cfg.size': (64, 64),
        'test_cfg.crop_size': (64, 64),
        'test_cfg.stride': (42, 42),
    }


def toy_detector(cfg: Config) -> dict:
    heads = ('roi_head.bbox_head', 'roi_head.mask_head')
    small = {
        f'{part}.{key}': WIDTH
        for part, key in (
            ('rpn_head', 'in_channels'),
            ('rpn_head', 'feat_channels'),
            (heads[0], 'in_channels'),
            (heads[0], 'fc_out_channels'),
            (heads[1], 'in_channels'),
            (heads[1], 'conv_out_channels'),
            ('roi_head.bbox_roi_extractor', 'out_channels'),
            ('roi_head.mask_roi_extractor', 'out_channels'),
        )
    }
    small['test_cfg.rcnn.score_thr'] = 0.0  # so that an untrained model finds something
    if cfg.model.neck is None:
        return small | {
            'backbone.pyramid.out_channels': WIDTH,
            'backbone.window_size': 2,
            f'{heads[0]}.conv_out_channels': WIDTH,
            'data_preprocessor.pad_size_divisor': 64,
        }
    return small | {'neck.in_channels': [WIDTH] * 4, 'neck.out_channels': WIDTH}


def shrink(name: str, data: Path) -> dict:
    """Options that make a config small and keep the rest: depth, taps, transforms, heads, and the full rate at once."""
    cfg = Config.fromfile(FILES[name])
    divisor = SMALLER[name.rpartition('_')[2] if '1x' not in name else 'maskrcnn']
    model = toy_segmentor() if 'decode_head' in cfg.model else toy_detector(cfg)
    options = {f'model.{key}': value for key, value in model.items()}
    options |= {
        'model.backbone.arch': dict(_delete_=True, **arch_of(name)),
        'train_dataloader.batch_size': 2,
        'param_scheduler.0.start_factor': 1.0,
        'auto_scale_lr.base_batch_size': 4 if 'vitdet' in name else 2,
        'log_level': 'ERROR',
        'custom_hooks': [dict(type='DownstreamTestObserver')],
        'experiment_name': f'downstream_{name}',
    }
    options |= {'train_cfg.max_epochs': 1} if 'max_epochs' in cfg.train_cfg else {'train_cfg.max_iters': 2}
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options |= {
            f'{loader}.num_workers': 0,
            f'{loader}.persistent_workers': False,
            f'{loader}.dataset.data_root': f'{data}/',
            f'{loader}.dataset.pipeline': shrink_sizes(cfg[loader].dataset.pipeline, divisor),
        }
    if 'ann_file' in cfg.val_evaluator:
        for evaluator in ('val_evaluator', 'test_evaluator'):
            options[f'{evaluator}.ann_file'] = str(data / 'annotations/instances_val2017.json')
    return options


@pytest.mark.parametrize('name', FILES)
def test_steps(name, tmp_path, pretrained, request, monkeypatch):
    """From a pretrained encoder all parts train, the losses are finite, and the metrics are computed."""
    task = FILES[name].parent.name
    data = request.getfixturevalue('ade' if task == 'seg' else 'coco')
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path / 'empty')
    init = pretrained['_'.join(name.split('_')[:2])]
    runner = train(str(FILES[name]), str(tmp_path / 'work'), shrink(name, data), init=str(init))
    assert not list((tmp_path / 'empty').iterdir())
    observer = next(hook for hook in runner.hooks if isinstance(hook, DownstreamTestObserver))
    accumulation = 2 if 'vitdet' in name else 1
    assert len(observer.losses) == 2 * accumulation
    expected = (
        {'loss', 'decode.loss_ce', 'aux.loss_ce'}
        if task == 'seg'
        else {'loss', 'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'}
    )
    assert all(expected <= set(losses) and np.isfinite(list(losses.values())).all() for losses in observer.losses)
    check_start(runner.model.backbone, observer.before, init)
    check_change(runner.model, observer.before)
    metric = runner.message_hub.get_scalar('val/mIoU' if task == 'seg' else 'val/coco/segm_mAP').current()
    assert 0 <= metric <= 100
    assert list((tmp_path / 'work').glob('*.pth'))


def check_start(backbone, before: dict, init: Path) -> None:
    """The run started from the weights of the file."""
    state = torch.load(init)['state_dict']
    assert backbone.load_report.path == str(init)
    ours, mmpretrains = 'backbone.blocks.{}.mlp.fc1.weight', 'backbone.layers.{}.ffn.layers.0.0.weight'
    theirs = mmpretrains if mmpretrains.format(0) in state else ours
    for index in (0, backbone.depth - 1):
        assert torch.equal(before[ours.format(index)], state[theirs.format(index)])


def check_change(model, before: dict) -> None:
    """Every part has changed, positions included."""
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    last = model.backbone.depth - 1
    token = 'cls_token' if model.backbone.cls_token is not None else f'blocks.{last}.attn.rel_pos_w'
    parts = [
        'backbone.pos_embed',
        f'backbone.{token}',
        'backbone.patch_embed.',
        'backbone.blocks.0.',
        f'backbone.blocks.{last}.',
        'backbone.pyramid.',
    ]
    parts += (
        [
            'decode_head.',
            'auxiliary_head.',
            'backbone.blocks.0.gamma_1',
            f'backbone.blocks.{last}.attn.relative_position_bias_table',
        ]
        if hasattr(model, 'decode_head')
        else ['rpn_head.', 'roi_head.bbox_head.', 'roi_head.mask_head.']
    )
    for part in parts:
        assert any(key.startswith(part) for key in changed), part


def test_the_authors_segmentor_is_evaluated(tmp_path, ade, monkeypatch):
    """A file with the release's names, converted to ours, gives the same result with one scale and with several."""
    monkeypatch.chdir(tmp_path)
    config, options = str(FILES['bootmae_vitb_upernet']), shrink('bootmae_vitb_upernet', ade)
    cfg = load_config(config, options)
    for resize in cfg.tta_pipeline[1].transforms[0]:
        resize.scale //= SMALLER['upernet']
    options['tta_pipeline'] = cfg.tta_pipeline
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for value in model.parameters():
        value.data.add_(0.2 * torch.randn_like(value))
    facts = dict(mean=[127.5] * 3, std=[127.5] * 3, img_size=[64, 64], num_heads=2)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(bootmae=facts)), 'run.pth')
    convert('run.pth', 'authors', 'authors.pth')
    theirs = torch.load('authors.pth')['state_dict']
    assert {
        'backbone.fpn1.3.bias',
        'backbone.blocks.11.attn.relative_position_index',
        'decode_head.conv_seg.weight',
        'auxiliary_head.convs.0.conv.weight',
    } <= set(theirs)
    torch.save(dict(state_dict=theirs), 'released.pth')  # a released file says nothing of itself
    assert "authors' BootMAE segmentation" in convert('released.pth', 'mmseg', 'ours.pth')
    assert len(torch.load('ours.pth')['state_dict']) == len(model.state_dict())
    results = {
        (file, tta): evaluate(
            config, file, str(tmp_path / 'work'), options | dict(experiment_name=f'authors_{file}_{tta}'), tta=tta
        )
        for file in ('run.pth', 'ours.pth')
        for tta in (False, True)
    }
    for tta in (False, True):
        assert results['run.pth', tta] == pytest.approx(results['ours.pth', tta], abs=1e-9, nan_ok=True)
    assert results['run.pth', True] != pytest.approx(results['run.pth', False], abs=1e-9, nan_ok=True)
