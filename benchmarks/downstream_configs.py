"""Our configs and the stock configs that downstream.py compares, at full size or shrunk."""

from pathlib import Path

import measure
import mmpretrain
import mmseg
from mmengine.config import Config

from bootmae.config.load import load_config
from bootmae.models.vit import resolve_arch

CONFIGS = dict(
    cls='cls/bootmae_vitb_finetune',
    seg='seg/bootmae_vitb_upernet',
    det='det/bootmae_vitb_maskrcnn_1x',
    vitdet='det/bootmae_vitb_vitdet',
)
BATCHES = dict(full=dict(cls=128, seg=2, det=2, vitdet=4), tiny=dict(cls=8, seg=2, det=2, vitdet=2))
IMAGES = dict(
    full=dict(cls=(224, 224), seg=(512, 512), det=(800, 1216), vitdet=(1024, 1024)),
    tiny=dict(cls=(224, 224), seg=(256, 256), det=(256, 320), vitdet=(448, 448)),
)
TINY = 192  # width of a shrunk ViT
HEADS = 64  # width of its heads


def packaged(package, path: str) -> Config:
    """Load a config of an installed package, since the prefix `mmseg::` does not resolve."""
    return Config.fromfile(Path(package.__path__[0], '.mim', 'configs', path))


def our_config(task: str, size: str, options: dict) -> Config:
    return load_config(
        measure.ROOT / 'configs' / f'{CONFIGS[task]}.py', (shrunk(task) if size == 'tiny' else {}) | options
    )


def shrunk(task: str) -> dict:
    """Return the options that shrink our config."""
    options: dict[str, object] = {'backbone.arch': 'tiny'}
    height = IMAGES['tiny'][task][0]
    if task == 'cls':
        options |= {'head.in_channels': TINY}
    elif task == 'seg':
        options |= {'backbone.img_size': height, **small_upernet()}
    else:
        box, mask = 'roi_head.bbox_head', 'roi_head.mask_head'
        options |= dict.fromkeys(
            (
                'rpn_head.in_channels',
                'rpn_head.feat_channels',
                f'{box}.in_channels',
                f'{box}.fc_out_channels',
                f'{mask}.in_channels',
                f'{mask}.conv_out_channels',
                'roi_head.bbox_roi_extractor.out_channels',
                'roi_head.mask_roi_extractor.out_channels',
                'train_cfg.rcnn.sampler.num',
            ),
            HEADS,
        )
        options |= (
            {'neck.in_channels': [TINY] * 4, 'neck.out_channels': HEADS}
            if task == 'det'
            else {
                'backbone.pyramid.out_channels': HEADS,
                f'{box}.conv_out_channels': HEADS,
                'data_preprocessor.pad_size_divisor': height,
            }
        )
    return {f'model.{key}': value for key, value in options.items()}


def small_upernet() -> dict:
    return {
        'decode_head.in_channels': [TINY] * 4,
        'decode_head.channels': HEADS,
        'auxiliary_head.in_channels': TINY,
        'auxiliary_head.channels': HEADS,
        'data_preprocessor.size': IMAGES['tiny']['seg'],
    }


def stock_config(task: str, size: str) -> Config:
    """Return the config that a user of the stock libraries would train, with random weights."""
    if task == 'cls':
        cfg = packaged(mmpretrain, 'mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py')
        cfg.model.backbone.init_cfg = None
        small = {'backbone.arch': 'deit-tiny', 'head.in_channels': TINY}
    elif task == 'seg':
        cfg = packaged(mmseg, 'mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py')
        cfg.model.pretrained = None
        small = {
            'backbone.embed_dims': TINY,
            'backbone.num_heads': 3,
            'backbone.img_size': IMAGES[size][task],
            'neck.embed_dim': TINY,
            **small_upernet(),
        }
    else:
        return stock_detector(our_config(task, size, {}), task, IMAGES[size][task])
    cfg.merge_from_dict({f'model.{key}': value for key, value in small.items()} if size == 'tiny' else {})
    return cfg


def stock_detector(cfg: Config, task: str, image: tuple[int, int]) -> Config:
    """Replace backbone, pyramid, proposals, pooling and optimizer of our detector by those of the libraries."""
    model, ours = cfg.model, cfg.model.backbone
    arch = resolve_arch(ours.arch)
    width, depth = arch['embed_dims'], arch['depth']
    arch = dict(embed_dims=width, num_layers=depth, num_heads=arch['num_heads'], feedforward_channels=4 * width)
    shared = dict(patch_size=16, drop_path_rate=ours.drop_path_rate, out_type='featmap')
    if task == 'det':
        model.backbone = dict(
            type='mmpretrain.VisionTransformer',
            arch=arch,
            img_size=224,
            final_norm=False,
            out_indices=list(ours.out_indices),
            **shared,
        )
        model.neck = [dict(type='mmseg.Feature2Pyramid', embed_dim=width), model.neck]
    else:
        arch['global_attn_indexes'] = [quarter * depth // 4 - 1 for quarter in range(1, 5)]
        model.backbone = dict(
            type='mmpretrain.ViTSAM',
            arch=arch,
            img_size=image,
            out_channels=0,
            use_rel_pos=True,
            window_size=ours.window_size,
            **shared,
        )
        model.neck = dict(ours.pyramid, in_channels=width)
    model.rpn_head.type = 'RPNHead'
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.type = 'SingleRoIExtractor'
    optimizer = cfg.optim_wrapper.optimizer
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=optimizer.lr, betas=(0.9, 0.999), weight_decay=optimizer.weight_decay),
    )
    return cfg
