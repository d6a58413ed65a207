"""Our models at the sizes of a golden file; ``meta`` holds the sizes."""

import torch
from mmengine.registry import MODELS

from .. import registry  # noqa: F401


def vit_config(meta: dict, **kwargs) -> dict:
    """Return the config of a ViT of the given sizes; ``kwargs`` override its values."""
    arch = dict(
        embed_dims=meta['embed_dim'],
        depth=meta['depth'],
        num_heads=meta['num_heads'],
        mlp_ratio=meta.get('mlp_ratio', 4),
    )
    return dict(type='PlainViT', img_size=meta['img_size'], patch_size=meta['patch_size'], arch=arch) | kwargs


def build_bootmae(meta: dict) -> torch.nn.Module:
    """Build BootMAE in float64."""
    decoder = dict(depth=meta.get('decoder_depth', 2), mlp_ratio=meta.get('mlp_ratio', 4))
    pixel_tap, feature_tap = meta['feature_layers']
    return MODELS.build(
        dict(
            type='BootMAE',
            backbone=vit_config(meta),
            pixel_decoder=decoder | dict(embed_dims=meta['decoder_dim'], tap=pixel_tap),
            feature_decoder=decoder | dict(tap=feature_tap),
            masking=dict(num_masked=meta['num_masked'], num_block=1),  # the golden file holds the masks
            weighted=meta['weight_mask'],
        )
    ).double()


def mae_config(meta: dict) -> dict:
    """Return the config of mmpretrain's MAE, as in ``configs/pretrain/mae_*.py``."""
    width, patch_size = meta['embed_dim'], meta['patch_size']
    return dict(
        type='MAE',
        backbone=dict(
            type='MAEViT',
            img_size=meta['img_size'],
            patch_size=patch_size,
            mask_ratio=meta['mask_ratio'],
            arch=dict(
                embed_dims=width,
                num_layers=meta['depth'],
                num_heads=meta['num_heads'],
                feedforward_channels=int(width * meta.get('mlp_ratio', 4)),
            ),
        ),
        neck=dict(
            type='MAEPretrainDecoder',
            num_patches=(meta['img_size'] // patch_size) ** 2,
            patch_size=patch_size,
            in_chans=3,
            embed_dim=width,
            decoder_embed_dim=meta['decoder_dim'],
            decoder_depth=meta['decoder_depth'],
            decoder_num_heads=meta['decoder_num_heads'],
            mlp_ratio=meta.get('mlp_ratio', 4),
        ),
        head=dict(
            type='MAEPretrainHead',
            norm_pix=meta['norm_pix_loss'],
            patch_size=patch_size,
            loss=dict(type='PixelReconstructionLoss', criterion='L2'),
        ),
    )


def build_segmentation_backbone(meta: dict) -> torch.nn.Module:
    """Build the segmentation backbone with its pyramid in float64."""
    return MODELS.build(
        vit_config(
            meta,
            type='TransferViT',
            out_indices=meta['out_indices'],
            pyramid=dict(type='TapPyramid'),
            relative_positions=meta['use_rel_pos_bias'],
            layer_scale=meta['init_values'],
            trainable_positions=True,
        )
    ).double()


def build_vitdet(meta: dict) -> torch.nn.Module:
    """Build ViTDet's backbone with its pyramid in float64."""
    sizes = meta | dict(img_size=meta['pretrain_img_size'])
    return MODELS.build(
        vit_config(
            sizes,
            type='TransferViT',
            class_token=False,
            input_size=meta['img_size'],
            window_size=meta['window_size'],
            global_blocks=[index for index in range(meta['depth']) if index not in meta['window_blocks']],
            relative_positions='decomposed' if meta['use_rel_pos'] else False,
            pyramid=dict(type='SimplePyramid', out_channels=meta['out_channels']),
        )
    ).double()
