"""Compare our models with numbers computed by the releases of BootMAE, MAE and ViTDet.

A golden file (``.npz``) holds weights, inputs and results of the release; its ``meta`` holds the model sizes. Our
models load the weights in float64 through our key map, and every result is compared.
"""

import argparse
import json
import sys
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
from .cli import USER_ERRORS
from .parity_models import build_bootmae, build_segmentation_backbone, build_vitdet, mae_config, vit_config

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


class Execution(NamedTuple):
    """Execution our results are computed."""

    compile: str | bool = False
    device: str = 'cpu'


class Golden:
    """A golden file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or lacks a value that is asked for.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f'no golden file {path}')
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                self.arrays = dict(archive)
            self.meta = dict(json.loads(str(self.arrays['meta'])))
        except Exception as error:  # BadZipFile, EOFError, zlib.error, TypeError and others
            raise ValueError(
                f'{path} is damaged or not a golden file (an .npz with a JSON text `meta`): '
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

    def ids_shuffle(self) -> torch.Tensor:
        ids_shuffle, num_images = self.tensor('ids_shuffle'), len(self.tensor('images'))
        if not torch.equal(ids_shuffle.sort(dim=1).values, torch.arange(ids_shuffle.shape[1]).repeat(num_images, 1)):
            raise ValueError(f'{self.path}: ids_shuffle must hold one permutation of the patches per image')
        return ids_shuffle

    def fill(self, model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
        """Load all weights of the file into a model; every one must fit."""
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = ' '.join(str(error).split())
            raise ValueError(f'{self.path}: the weights do not match the sizes in meta. {reason}') from error

    @property
    def kind(self) -> str:
        for prefix, kind in KINDS.items():
            if any(key.startswith(prefix) for key in self.arrays):
                return kind
        raise ValueError(f'{self.path} is of unknown kind: it has no {", ".join(KINDS)} weights')


def relative_error(ours: torch.Tensor | float, theirs: torch.Tensor | float) -> float:
    """Return ||ours - theirs|| / ||theirs||, or infinity if the shapes differ or a value is not finite."""
    ours, theirs = (torch.as_tensor(x).detach().to('cpu', torch.float64) for x in (ours, theirs))
    if ours.shape != theirs.shape:
        return float('inf')
    error = float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(torch.float64).tiny))
    return error if np.isfinite(error) else float('inf')


def prepare(model: torch.nn.Module, execution: Execution) -> torch.nn.Module:
    """Move a model to the device, and compile it if requested."""
    options = compile_settings(execution.compile, model)
    if options:
        compile_model(model, **options)
    return model.to(execution.device)


def compare_pretraining(golden: Golden, execution: Execution) -> Errors:
    """Compare the results of a pretraining file: forward, losses, gradients, one optimizer step, one EMA update."""
    model = build_bootmae(golden.meta)
    golden.fill(model, from_authors(golden.group('online/'), golden.group('momentum/')))
    model.feature_weight.fill_(golden.meta['feature_weight'])
    prepare(model.train(), execution)
    wrapper = ViTOptimWrapperConstructor(dict(optimizer=ADAMW))(model)
    images, ids_shuffle = golden.tensor('images').to(execution.device), golden.ids_shuffle()

    out = model.predict(images, ids_shuffle.to(execution.device))
    ids_masked, weights = out.ids_masked.cpu(), token_weights(out.ids_masked, model.masking.grid, model.weighted)
    patchify, masked = (
        model.backbone.patch_embed.patchify,
        partial(pick, ids=ids_masked, num_patches=ids_shuffle.shape[1]),
    )
    errors = {
        'pixel prediction': relative_error(out.pixels, masked(patchify(golden.tensor('pixel_pred')))),
        'feature prediction': relative_error(out.features, masked(golden.tensor('feature_pred'))),
        'momentum features': relative_error(out.targets, masked(golden.tensor('feature_target'))),
        'token weights': relative_error(weights, golden.tensor('token_weight')),
    }
    samples = [DataSample(ids_shuffle=ids.numpy()) for ids in ids_shuffle]
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
    """Select patches of each image: (B, N, width), (B, M) -> (B, M, width)."""
    if x.shape[:2] != (len(ids), num_patches):
        return x  # the wrong shape becomes an infinite error
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def largest_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest relative error over their values, or infinity if we lack one of them."""
    return max(relative_error(ours[name], value) if name in ours else float('inf') for name, value in theirs.items())


def gradient_error(model: torch.nn.Module, norms: dict[str, torch.Tensor]) -> float:
    """Return the largest error of a gradient norm, or infinity unless the same parameters have gradients."""
    ours = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    return largest_error(ours, norms) if set(ours) == set(norms) else float('inf')


@contextmanager
def fixed_masks(ids_shuffle: torch.Tensor) -> Iterator[None]:
    """Make mmpretrain's MAE, which sorts random numbers to draw masks, use these patch orders."""
    rand, noise = torch.rand, ids_shuffle.argsort(dim=1) / ids_shuffle.shape[1]
    torch.rand = lambda *size, **kwargs: noise
    try:
        yield
    finally:
        torch.rand = rand


def compare_mae(golden: Golden, execution: Execution) -> Errors:
    """Compare the results of an MAE file: masks, predictions, loss, gradients, one optimizer step."""
    model = MODELS.build(mae_config(golden.meta)).double()
    golden.fill(model, mae_to_mmpretrain(golden.group('mae/')))
    prepare(model.train(), execution)
    wrapper = ViTOptimWrapperConstructor(dict(optimizer=ADAMW), dict(decay_class_token=True))(model)
    images, ids_shuffle = golden.tensor('images').to(execution.device), golden.ids_shuffle()
    num_patches = ids_shuffle.shape[1]
    masked = partial(pick, ids=ids_shuffle[:, num_patches - golden.meta['num_masked'] :], num_patches=num_patches)
    with fixed_masks(ids_shuffle.to(execution.device)):
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


def compare_finetuning(golden: Golden, execution: Execution) -> Errors:
    """Compare the logits of a fine-tuned classifier in evaluation mode."""
    meta = golden.meta
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=vit_config(meta, out_type='avg_featmap'),
            head=dict(type='LinearClsHead', num_classes=meta['num_classes'], in_channels=meta['embed_dim']),
        )
    ).double()
    golden.fill(model, from_authors_finetuned(golden.group('model/')))
    prepare(model.eval(), execution)
    with torch.no_grad():
        logits = model(golden.tensor('images').to(execution.device), mode='tensor')
    return {'logits': relative_error(logits, golden.tensor('logits'))}


def compare_segmentation(golden: Golden, execution: Execution) -> Errors:
    """Compare the four levels of the segmentation backbone in evaluation mode."""
    model = build_segmentation_backbone(golden.meta)
    weights = {f'backbone.{name}': value for name, value in golden.group('backbone/').items()}
    golden.fill(model, under(from_authors_segmentation(weights), 'backbone.'))
    prepare(model.eval(), execution)
    with torch.no_grad():
        levels = model(golden.tensor('images').to(execution.device))
    return {
        f'level {index}': relative_error(level, golden.tensor(f'level{index}')) for index, level in enumerate(levels)
    }


def compare_vitdet(golden: Golden, execution: Execution) -> Errors:
    """Compare the last feature map and the four levels of ViTDet's backbone in evaluation mode."""
    model = build_vitdet(golden.meta)
    golden.fill(model, from_detectron2(golden.group('vitdet/')))
    prepare(model.eval(), execution)
    with torch.no_grad():
        maps = model.maps(golden.tensor('images').to(execution.device))
        levels = model.pyramid(maps)
    return {'last map': relative_error(maps[-1], golden.tensor('last_feat'))} | {
        f'level {index}': relative_error(level, golden.tensor(f'level{index}')) for index, level in enumerate(levels)
    }


@contextmanager
def compiled_exactly() -> Iterator[None]:
    """Compile without the cache and with the math implementation of attention.

    The compiled fused attention fails in float64 on the CPU (torch 2.11: "expected scalar type Double but found
    Float"), and torch's cache of generated code does not distinguish the two implementations.
    """
    with sdpa_kernel(SDPBackend.MATH), torch._inductor.config.patch(force_disable_caches=True):
        yield


def compare(path: str | Path, compile: str | bool = False, device: str = 'cpu') -> tuple[str, Errors]:
    """Compare all results of a golden file.

    Args:
        path: golden file.
        compile: True, ``whole`` or ``blocks`` to compile the model (:mod:`bootmae.engine.runner.compile`).
        device: device to compute on.

    Returns:
        The kind of the file, and the largest relative error of each result.

    Raises:
        FileNotFoundError, ValueError: if the file is missing, damaged, or of an unknown kind.
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
            return golden.kind, comparisons[golden.kind](golden, Execution(compile, device))
    except KeyError as error:
        raise ValueError(f'{path} lacks {error} in its meta') from error


def run(args: argparse.Namespace) -> int:
    """Print the errors of each file; return 0 if all results are equal, 1 if not, 2 if a file cannot be compared."""
    code = 0
    for path in args.files:
        try:
            kind, errors = compare(path, args.compile, args.device)
        except USER_ERRORS as error:
            print(f'{path}: error: {error}', file=sys.stderr)
            code = 2
            continue
        equal = all(error <= TOLERANCE for error in errors.values())
        code = max(code, int(not equal))
        print(f'{path} ({kind}): {"equal" if equal else "NOT EQUAL"}')
        for name, error in errors.items():
            print(f'  {name:<20} {error:9.2e}{"" if error <= TOLERANCE else f"  > {TOLERANCE:g}"}')
    print(f'{"NOT all" if code else "all"} relative errors are <= {TOLERANCE:g}')
    return code
