#!/usr/bin/env python3
"""Estimate the GPU memory of every full-size recipe, without a GPU: what autograd keeps, counted on fake tensors.

    benchmarks/gpu_memory.py                    # all recipes; writes benchmarks/results/gpu_memory.csv
    benchmarks/gpu_memory.py configs/pretrain/bootmae_vitb.py

The forward pass of the config's model runs under bf16 autocast on tensors without content. Every tensor that the
backward pass needs is counted once; attention keeps queries, keys, values and its output, as the fused kernels do.
Weights, gradients, the two moments of AdamW and the momentum encoder are added. For BootMAE ViT-B at 256 images it
gives 12.8 GiB, where an H100 measured 13.1 for the same step of a prototype (docs/recipes.md).

Not counted: workspaces and fragments of the allocator, for which a tenth of the memory is left free; the copy of the
gradients that several GPUs exchange; and the heads on boxes of a detector, whose proposals depend on the image. Linear
probing keeps nothing of its frozen encoder.

A measured number, once there is one, stands in benchmarks/results/step.csv and downstream.csv.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import measure
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from bootmae.config.load import load_config
from bootmae.models import BootMAE
from bootmae.models.layers import Block
from bootmae.models.vit import resolve_arch

GIB = 2**30
CARDS = (24, 40, 80)  # GB, of which a tenth is left free
RECIPES = [
    *(f'pretrain/{method}_{size}' for method in ('bootmae', 'mae') for size in ('vitb', 'vitl')),
    *(f'cls/bootmae_{size}_finetune' for size in ('vitb', 'vitl')),
    *(f'seg/bootmae_{size}_upernet' for size in ('vitb', 'vitl')),
    *(f'det/bootmae_{size}_{task}' for task in ('maskrcnn_1x', 'vitdet') for size in ('vitb', 'vitl')),
]
IMAGES = dict(pretrain=(224, 224), cls=(224, 224), seg=(512, 512), det=(800, 1344), vitdet=(1024, 1024))


class FusedAttention(torch.autograd.Function):
    """What the fused kernels keep for the backward pass; computes nothing."""

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
    return FusedAttention.apply(*(x.bfloat16() for x in (q, k, v)))


@contextmanager
def counted(model: nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Collects the memory that autograd keeps of a forward pass, without the model's own weights."""
    own = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its number is not given to another one
        return x

    # torch.autocast switches itself off where there is no GPU.
    torch.set_autocast_dtype('cuda', torch.bfloat16)
    torch.set_autocast_enabled('cuda', True)
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
            mock.patch.object(F, 'scaled_dot_product_attention', fused),
        ):
            yield kept
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.clear_autocast_cache()


def forward_of(model: nn.Module, task: str) -> Callable[[torch.Tensor], object]:
    """The forward pass of training, as far as it does not depend on the content of images."""
    if isinstance(model, BootMAE):
        patches = torch.randperm(model.masking.num_patches, device='cuda')
        return lambda images: model.losses(images, patches.expand(len(images), -1))
    if task == 'pretrain':
        return lambda images: model.loss(images, None)
    if task == 'cls':
        return lambda images: model.head(model.extract_feat(images))
    if task == 'seg':
        return lambda images: [head(model.extract_feat(images)) for head in (model.decode_head, model.auxiliary_head)]
    return lambda images: model.rpn_head(model.extract_feat(images))


def kept_bytes(cfg: Config, task: str, image: tuple[int, int], batch: int) -> tuple[int, int]:
    """Bytes of activations of a batch, and of weights, gradients and moments."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device('cuda'):
            model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
        images = torch.empty(batch, 3, *image, device='cuda')
        forward = forward_of(model, task)
        with counted(model) as kept:
            forward(images)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        weights = 4 * sum(p.numel() for p in model.parameters()) + 12 * trained
        return sum(storage.nbytes() for storage in kept.values()), weights


def line(path: str, checkpointing: bool) -> tuple[Config, tuple[int, int], float, float]:
    """Config, image size, bytes of an image, and bytes that do not depend on the batch."""
    task = path.split('/')[-2]
    cfg = load_config(path, {'model.backbone.with_cp': True} if checkpointing else {})
    image = IMAGES['vitdet' if 'vitdet' in path else task]
    one, weights = kept_bytes(cfg, task, image, 2)
    two, _ = kept_bytes(cfg, task, image, 4)
    return cfg, image, (two - one) / 2, weights + 2 * one - two


def estimate(path: str, checkpointing: bool = False) -> dict:
    """A row: GiB at the recipe's images per GPU, and how many images fit on usual cards."""
    cfg, image, each, fixed = line(path, checkpointing)
    if checkpointing:  # one block at a time is computed again, and keeps everything while it is
        each += (line(path, False)[2] - each) / resolve_arch(cfg.model.backbone.arch)['depth']
    batch = cfg.train_dataloader.batch_size
    fits = {f'images_{card}_gb': max(int((0.9 * card * 1e9 - fixed) // each), 0) for card in CARDS}
    return (
        dict(
            config=path,
            img_size='x'.join(map(str, image)),
            checkpointing=checkpointing,
            batch=batch,
            gib=(fixed + batch * each) / GIB,
            gib_fixed=fixed / GIB,
            mib_per_image=each / 2**20,
        )
        | fits
    )


def can_checkpoint(path: str) -> bool:
    """Whether the model has blocks that can be computed twice instead of being kept."""
    with torch.device('meta'):
        model = MODELS.build(load_config(path).model)
    return any(isinstance(module, Block) for module in model.modules())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='*', help='of configs/ (default: all full-size recipes)')
    args = parser.parse_args()
    for path in args.config or [f'configs/{name}.py' for name in RECIPES]:
        for checkpointing in (False, True) if can_checkpoint(path) else (False,):
            row = estimate(path, checkpointing)
            print('  '.join(f'{k}={v:.4g}' if isinstance(v, float) else f'{k}={v}' for k, v in row.items()), flush=True)
            if not args.config:
                measure.add_row('gpu_memory', measure.facts('cpu') | row)


if __name__ == '__main__':
    main()
