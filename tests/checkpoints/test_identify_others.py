"""Files of other projects: the encoder computes what the model of the file computes."""

import torch
from encoders import MMPRETRAIN_ARCH, SIZES, double, features, image, timm_model
from mmpretrain.registry import MODELS

from bootmae.checkpoints import find_encoder
from bootmae.checkpoints.identify import IMAGENET_MEAN, IMAGENET_STD


def test_mmpretrain_mae(make_vit, randomize):
    model = double(
        randomize(
            MODELS.build(
                dict(
                    type='MAE',
                    backbone=dict(type='MAEViT', arch=MMPRETRAIN_ARCH, **SIZES),
                    neck=dict(
                        type='MAEPretrainDecoder',
                        num_patches=16,
                        patch_size=8,
                        embed_dim=24,
                        decoder_embed_dim=16,
                        decoder_depth=2,
                        decoder_num_heads=4,
                    ),
                    head=dict(
                        type='MAEPretrainHead', patch_size=8, loss=dict(type='PixelReconstructionLoss', criterion='L2')
                    ),
                )
            )
        )
    )
    encoder = find_encoder(dict(state_dict=model.state_dict()))
    assert (encoder.kind, encoder.mean, encoder.std, encoder.depth) == (
        'mmpretrain MAE',
        IMAGENET_MEAN,
        IMAGENET_STD,
        3,
    )
    theirs = model.backbone(image(), mask=None)[0]
    torch.testing.assert_close(features(make_vit, encoder), theirs, rtol=1e-6, atol=1e-9)


def test_mmpretrain_classifier(make_vit, randomize):
    model = double(
        randomize(
            MODELS.build(
                dict(
                    type='ImageClassifier',
                    backbone=dict(type='VisionTransformer', arch=MMPRETRAIN_ARCH, **SIZES),
                    head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=24),
                )
            )
        )
    )
    encoder = find_encoder(dict(state_dict=model.state_dict()))
    assert (encoder.kind, encoder.mean, encoder.std, encoder.depth) == ('mmpretrain ViT', None, None, 3)
    theirs = model.backbone(image())[0]
    torch.testing.assert_close(features(make_vit, encoder, 'cls_token'), theirs, rtol=1e-6, atol=1e-9)


def test_timm(make_vit, randomize):
    model = timm_model(randomize)
    encoder = find_encoder(model.state_dict())
    assert (encoder.kind, encoder.mean, encoder.std, encoder.depth) == ('timm ViT', None, None, 3)
    theirs = model.forward_features(image())
    torch.testing.assert_close(features(make_vit, encoder), theirs, rtol=1e-6, atol=1e-9)


def test_timm_pooled(make_vit, randomize):
    """Fine-tuned files of facebookresearch MAE have this form too."""
    model = timm_model(randomize, global_pool='avg', fc_norm=True)
    encoder = find_encoder(dict(model=model.state_dict()))
    assert encoder.kind == 'timm ViT'
    theirs = model.forward_head(model.forward_features(image()), pre_logits=True)
    torch.testing.assert_close(features(make_vit, encoder, 'avg_featmap'), theirs, rtol=1e-6, atol=1e-9)


def test_facebookresearch_mae(make_vit, randomize):
    model = timm_model(randomize)
    decoder = {
        key: torch.ones(1)
        for key in (
            'mask_token',
            'decoder_pos_embed',
            'decoder_embed.weight',
            'decoder_blocks.0.norm1.weight',
            'decoder_blocks.0.attn.qkv.bias',
            'decoder_norm.bias',
            'decoder_pred.weight',
        )
    }
    encoder_weights = {key: value for key, value in model.state_dict().items() if not key.startswith('head.')}
    encoder = find_encoder(dict(model=encoder_weights | decoder))
    assert (encoder.kind, encoder.mean, encoder.std, encoder.depth) == (
        'facebookresearch MAE',
        IMAGENET_MEAN,
        IMAGENET_STD,
        3,
    )
    theirs = model.forward_features(image())
    torch.testing.assert_close(features(make_vit, encoder), theirs, rtol=1e-6, atol=1e-9)


# Files of mmseg and mmdet


def mmseg_run(backbone, randomize):
    """A segmentor's weights and its backbone."""
    from mmseg.models import backbones

    model = double(
        randomize(
            getattr(backbones, backbone.pop('type'))(patch_size=8, embed_dims=24, num_layers=3, num_heads=4, **backbone)
        )
    )
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    return state | {'decode_head.conv_seg.weight': torch.ones(3)}, model


def test_mmseg_vit(make_vit, randomize):
    state, model = mmseg_run(
        dict(
            type='VisionTransformer', img_size=32, patch_bias=True, final_norm=True, norm_cfg=dict(type='LN', eps=1e-6)
        ),
        randomize,
    )
    encoder = find_encoder(dict(state_dict=state, meta=dict(iter=3)))
    assert (encoder.kind, encoder.mean, encoder.depth) == ('mmseg ViT', None, 3)
    torch.testing.assert_close(features(make_vit, encoder, 'featmap'), model(image())[0], rtol=1e-6, atol=1e-9)


def test_mmseg_mae(randomize):
    """Relative positions and layer scale are loaded by our downstream backbone."""
    state, model = mmseg_run(dict(type='MAE', img_size=(32, 32), norm_cfg=dict(type='LN', eps=1e-6)), randomize)
    encoder = find_encoder(dict(state_dict=state))
    assert encoder.kind == 'mmseg MAE or BEiT'
    ours = double(
        MODELS.build(
            dict(
                type='TransferViT',
                arch=dict(embed_dims=24, depth=3, num_heads=4),
                img_size=32,
                patch_size=8,
                relative_positions=True,
                layer_scale=1.0,
            )
        )
    )
    ours.load_state_dict(encoder.state)
    torch.testing.assert_close(ours(image())[0], model(image())[0], rtol=1e-6, atol=1e-9)


def test_mmpretrain_vit_in_a_detector(make_vit, randomize):
    model = double(randomize(MODELS.build(dict(type='VisionTransformer', arch=MMPRETRAIN_ARCH, **SIZES))))
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    encoder = find_encoder(dict(state_dict=state | {'roi_head.bbox_head.fc_cls.weight': torch.ones(3)}))
    assert encoder.kind == 'mmpretrain ViT'
    torch.testing.assert_close(features(make_vit, encoder, 'cls_token'), model(image())[0], rtol=1e-6, atol=1e-9)
