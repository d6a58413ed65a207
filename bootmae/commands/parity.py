"""Proof of equality: the product's own classes against numbers that the authors' release computed.

A golden file (``.npz``) holds weights, inputs, and results of the release; its ``meta`` holds the sizes. The weights go
through our key map into our classes, in float64, and every result is compared.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch._inductor.config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import registry  # noqa: F401
from ..checkpoints.detectron2 import from_detectron2
from ..checkpoints.identify import under
from ..checkpoints.keys import (
    authors_key,
    from_authors,
    from_authors_finetuned,
    from_authors_segmentation,
    mae_to_mmpretrain,
)
from ..engine.optimizers.layer_decay import ViTOptimWrapperConstructor
from ..engine.runner.compile import compile_model, compile_settings
from ..models.layers import LAYER_NORM_EPS
from ..models.objectives import token_weights

TOLERANCE = 1e-6  # results are stored in float32, which alone costs about 5e-8
EMA_DECAY = 0.999
ADAMW = dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)

KINDS = {
    'online/': 'pretraining',
    'model/': 'fine-tuning',
    'backbone/': 'segmentation',
    'mae/': 'MAE',
    'vitdet/': 'ViTDet',
}

Errors = dict[str, float]


class How(NamedTuple):
    """How our side is computed."""

    compile: str | bool = False
    device: str = 'cpu'


class Golden:
    """One golden file. Errors of format are ValueErrors that name the file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f'no golden file {path}')
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                self.arrays = dict(archive)
            self.meta = dict(json.loads(str(self.arrays['meta'])))
        except Exception as error:  # damage shows in many ways: BadZipFile, EOFError, zlib.error, TypeError
            raise ValueError(
                f'{path} is no golden file (an .npz with a JSON text `meta`), or is damaged: '
                f'{type(error).__name__}: {error}'
            ) from error
        if self.meta.get('layer_norm_eps', LAYER_NORM_EPS) != LAYER_NORM_EPS:
            raise ValueError(f'{path} has layer_norm_eps={self.meta["layer_norm_eps"]}, BootMAE uses {LAYER_NORM_EPS}')

    def tensor(self, key: str) -> torch.Tensor:
        if key not in self.arrays:
            raise ValueError(f'{self.path} lacks {key!r}')
        value = torch.from_numpy(self.arrays[key])
        return value.double() if value.is_floating_point() else value

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        group = {key.removeprefix(prefix): self.tensor(key) for key in self.arrays if key.startswith(prefix)}
        if not group:
            raise ValueError(f'{self.path} lacks {prefix!r}')
        return group

    def orders(self) -> torch.Tensor:
        orders, num_images = self.tensor('ids_shuffle'), len(self.tensor('images'))
        if not torch.equal(orders.sort(dim=1).values, torch.arange(orders.shape[1]).repeat(num_images, 1)):
            raise ValueError(f'{self.path}: ids_shuffle holds no permutation of the patches for each image')
        return orders

    def fill(self, model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
        """Load the file's weights, every one of them, into a model of its sizes."""
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = ' '.join(str(error).split())
            raise ValueError(f'{self.path}: its weights do not fit its sizes. {reason}') from error

    @property
    def kind(self) -> str:
        for prefix, kind in KINDS.items():
            if any(key.startswith(prefix) for key in self.arrays):
                return kind
        raise ValueError(f'{self.path} is of no known kind: no {", ".join(KINDS)} weights')


def relative_error(ours: torch.Tensor | float, theirs: torch.Tensor | float) -> float:
    """||ours - theirs|| / ||theirs||; infinite if a shape differs or a value is not finite."""
    ours, theirs = (torch.as_tensor(x).detach().to('cpu', torch.float64) for x in (ours, theirs))
    if ours.shape != theirs.shape:
        return float('inf')
    error = float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(torch.float64).tiny))
    return error if np.isfinite(error) else float('inf')


def build_vit(meta: dict, **kwargs) -> dict:
    arch = dict(
        embed_dims=meta['embed_dim'],
        depth=meta['depth'],
        num_heads=meta['num_heads'],
        mlp_ratio=meta.get('mlp_ratio', 4),
    )
    return dict(type='PlainViT', img_size=meta['img_size'], patch_size=meta['patch_size'], arch=arch) | kwargs


def build_bootmae(meta: dict) -> torch.nn.Module:
    """The algorithm at a golden file's size, in float64."""
    decoder = dict(depth=meta.get('decoder_depth', 2), mlp_ratio=meta.get('mlp_ratio', 4))
    pixel_tap, feature_tap = meta['feature_layers']
    return MODELS.build(
        dict(
            type='BootMAE',
            backbone=build_vit(meta),
            pixel_decoder=decoder | dict(embed_dims=meta['decoder_dim'], tap=pixel_tap),
            feature_decoder=decoder | dict(tap=feature_tap),
            masking=dict(num_masked=meta['num_masked'], num_block=1),  # masks come from the file
            weighted=meta['weight_mask'],
        )
    ).double()


def prepare(model: torch.nn.Module, how: How) -> torch.nn.Module:
    """Put a model where it is to be compared, and compile it if asked for."""
    options = compile_settings(how.compile, model)
    if options:
        compile_model(model, **options)
    return model.to(how.device)


def compare_pretraining(golden: Golden, how: How) -> Errors:
    """All results of a pretraining file: forward, losses, gradients, one optimizer step, one EMA update."""
    model = build_bootmae(golden.meta)
    golden.fill(model, from_authors(golden.group('online/'), golden.group('momentum/')))
    model.feature_weight.fill_(golden.meta['feature_weight'])
    prepare(model.train(), how)
    wrapper = ViTOptimWrapperConstructor(dict(optimizer=ADAMW))(model)
    images, orders = golden.tensor('images').to(how.device), golden.orders()

    out = model.predict(images, orders.to(how.device))
    ids_masked, weights = out.ids_masked.cpu(), token_weights(out.ids_masked, model.masking.grid, model.weighted)
    patchify, masked = model.backbone.patch_embed.patchify, partial(pick, ids=ids_masked, num_patches=orders.shape[1])
    errors = {
        'pixel prediction': relative_error(out.pixels, masked(patchify(golden.tensor('pixel_pred')))),
        'feature prediction': relative_error(out.features, masked(golden.tensor('feature_pred'))),
        'momentum features': relative_error(out.targets, masked(golden.tensor('feature_target'))),
        'token weights': relative_error(weights, golden.tensor('token_weight')),
    }
    samples = [DataSample(ids_shuffle=order.numpy()) for order in orders]
    losses = model.loss(images, samples)
    total, _ = model.parse_losses(losses)
    errors |= {
        'pixel loss': relative_error(losses['loss_pixel'], golden.tensor('loss_pixel')),
        'feature loss': relative_error(losses['feature_error'], golden.tensor('loss_feature')),
        'loss': relative_error(total, golden.tensor('loss')),
    }
    wrapper.zero_grad()
    wrapper.backward(total)
    errors['gradient norms'] = gradient_error(model, renamed(golden.group('gradnorm/')))
    wrapper.step()
    errors['after one step'] = largest_error(dict(model.named_parameters()), renamed(golden.group('after_step/')))
    model.update_momentum(EMA_DECAY)
    errors['momentum after it'] = largest_error(dict(model.momentum.named_parameters()), golden.group('after_ema/'))
    return errors


def renamed(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {authors_key(name): value for name, value in values.items()}


def pick(x: torch.Tensor, ids: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Some patches of each image: (B, N, width), (B, M) -> (B, M, width)."""
    if x.shape[:2] != (len(ids), num_patches):
        return x  # whose shape is an infinite error
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def largest_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest relative error of a value of theirs; infinite if we lack one."""
    return max(relative_error(ours[name], value) if name in ours else float('inf') for name, value in theirs.items())


def gradient_error(model: torch.nn.Module, norms: dict[str, torch.Tensor]) -> float:
    """Largest error of a gradient's norm; infinite unless exactly the same parameters get one."""
    ours = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    return largest_error(ours, norms) if set(ours) == set(norms) else float('inf')


def mae_config(meta: dict) -> dict:
    """Config of mmpretrain's MAE at a golden file's size, as in ``configs/pretrain/mae_*.py``."""
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


@contextmanager
def drawn(orders: torch.Tensor) -> Iterator[None]:
    """mmpretrain's MAE draws its masks by sorting random numbers: within, they are such that these orders come out."""
    rand, noise = torch.rand, orders.argsort(dim=1) / orders.shape[1]
    torch.rand = lambda *size, **kwargs: noise
    try:
        yield
    finally:
        torch.rand = rand


def compare_mae(golden: Golden, how: How) -> Errors:
    """All results of an MAE file: masks, prediction of the masked patches, loss, gradients, one optimizer step."""
    model = MODELS.build(mae_config(golden.meta)).double()
    golden.fill(model, mae_to_mmpretrain(golden.group('mae/')))
    prepare(model.train(), how)
    wrapper = ViTOptimWrapperConstructor(dict(optimizer=ADAMW), dict(decay_class_token=True))(model)
    images, orders = golden.tensor('images').to(how.device), golden.orders()
    num_patches = orders.shape[1]
    masked = partial(pick, ids=orders[:, num_patches - golden.meta['num_masked'] :], num_patches=num_patches)
    with drawn(orders.to(how.device)):
        latent, mask, ids_restore = model.backbone(images)
        prediction = model.neck(latent, ids_restore)
        losses = model.loss(images, None)
    errors = {
        'mask': relative_error(mask, golden.tensor('mask')),
        'pixel prediction': relative_error(masked(prediction.cpu()), masked(golden.tensor('pixel_pred'))),
        'loss': relative_error(losses['loss'], golden.tensor('loss')),
    }
    wrapper.zero_grad()
    wrapper.backward(losses['loss'])
    errors['gradient norms'] = gradient_error(model, mae_to_mmpretrain(golden.group('gradnorm/')))
    wrapper.step()
    errors['after one step'] = largest_error(
        dict(model.named_parameters()), mae_to_mmpretrain(golden.group('after_step/'))
    )
    return errors


def compare_finetuning(golden: Golden, how: How) -> Errors:
    """Logits of a fine-tuned classifier in evaluation mode."""
    meta = golden.meta
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=build_vit(meta, out_type='avg_featmap'),
            head=dict(type='LinearClsHead', num_classes=meta['num_classes'], in_channels=meta['embed_dim']),
        )
    ).double()
    golden.fill(model, from_authors_finetuned(golden.group('model/')))
    prepare(model.eval(), how)
    with torch.no_grad():
        logits = model(golden.tensor('images').to(how.device), mode='tensor')
    return {'logits': relative_error(logits, golden.tensor('logits'))}


def build_segmentation_backbone(meta: dict) -> torch.nn.Module:
    """The backbone with pyramid at a golden file's size, in float64."""
    return MODELS.build(
        build_vit(
            meta,
            type='TransferViT',
            out_indices=meta['out_indices'],
            pyramid=dict(type='TapPyramid'),
            relative_positions=meta['use_rel_pos_bias'],
            layer_scale=meta['init_values'],
            trainable_positions=True,
        )
    ).double()


def compare_segmentation(golden: Golden, how: How) -> Errors:
    """The four levels of the segmentation backbone in evaluation mode."""
    model = build_segmentation_backbone(golden.meta)
    weights = {f'backbone.{name}': value for name, value in golden.group('backbone/').items()}
    golden.fill(model, under(from_authors_segmentation(weights), 'backbone.'))
    prepare(model.eval(), how)
    with torch.no_grad():
        levels = model(golden.tensor('images').to(how.device))
    return {
        f'level {index}': relative_error(level, golden.tensor(f'level{index}')) for index, level in enumerate(levels)
    }


def build_vitdet(meta: dict) -> torch.nn.Module:
    """ViTDet's backbone with its pyramid at a golden file's size, in float64."""
    sizes = meta | dict(img_size=meta['pretrain_img_size'])
    return MODELS.build(
        build_vit(
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


def compare_vitdet(golden: Golden, how: How) -> Errors:
    """The last map and the four levels of ViTDet's backbone in evaluation mode."""
    model = build_vitdet(golden.meta)
    golden.fill(model, from_detectron2(golden.group('vitdet/')))
    prepare(model.eval(), how)
    with torch.no_grad():
        maps = model.maps(golden.tensor('images').to(how.device))
        levels = model.pyramid(maps)
    return {'last map': relative_error(maps[-1], golden.tensor('last_feat'))} | {
        f'level {index}': relative_error(level, golden.tensor(f'level{index}')) for index, level in enumerate(levels)
    }


@contextmanager
def compiled_exactly() -> Iterator[None]:
    """Compile anew, and with the plain attention.

    Compiled, the CPU's fused one fails in float64 (torch 2.11): "expected scalar type Double but found Float". torch's
    cache of generated code does not tell the two apart.
    """
    with sdpa_kernel(SDPBackend.MATH), torch._inductor.config.patch(force_disable_caches=True):
        yield


def compare(path: str | Path, compile: str | bool = False, device: str = 'cpu') -> tuple[str, Errors]:
    """Kind of a golden file, and the largest relative error of each result.

    Args:
        path: of the golden file.
        compile: True, ``whole`` or ``blocks``: with the training compiled (:mod:`bootmae.engine.runner.compile`).
        device: to compute on.

    Raises:
        FileNotFoundError, ValueError: if the file is missing, damaged, or of a kind that cannot be compared.
    """
    init_default_scope('mmpretrain')
    golden = Golden(path)
    comparisons = {
        'pretraining': compare_pretraining,
        'fine-tuning': compare_finetuning,
        'segmentation': compare_segmentation,
        'MAE': compare_mae,
        'ViTDet': compare_vitdet,
    }
    try:
        with compiled_exactly() if compile else nullcontext():
            return golden.kind, comparisons[golden.kind](golden, How(compile, device))
    except KeyError as error:
        raise ValueError(f'{path} lacks {error} in its meta') from error
