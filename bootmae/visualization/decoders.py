"""Loading a pretraining model with its decoder from any checkpoint that has one, for images of any size."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from mmpretrain.registry import MODELS
from torch import nn

from ..checkpoints import FileEncoder, find_encoder, load_run, read_checkpoint
from ..checkpoints.heads import heads_of
from ..checkpoints.identify import IMAGENET_MEAN, IMAGENET_STD, recorded_facts
from ..checkpoints.keys import MAE_DECODER, State, rename, to_mmpretrain
from ..config.channels import format_of_config
from ..config.encoder import recorded_config, statistics_of
from ..config.load import load_config
from ..config.model import model_config
from ..data.channels import ChannelFormat
from ..models import BootMAE
from ..models.positions import resize_positions
from ..models.vit import patch_grid
from ..places import REPOSITORY

MASK_RATIO, DECODER_HEADS = 0.75, 16  # of all published MAEs
AUTHORS = {768: 'bootmae_vitb', 1024: 'bootmae_vitl'}  # width of the encoder -> config of this suite
REMEDY = (
    "Reconstructions need a pretraining file: a run of configs/pretrain, mmpretrain's MAE, facebookresearch's "
    "mae_visualize_*.pth (its mae_pretrain_*.pth contain only the encoder), or the authors' BootMAE. Attention and "
    'components work with any encoder: --what attention pca'
)


@dataclass
class Pretrained:
    """A model that predicts masked patches.

    Attributes:
        model: A BootMAE, or mmpretrain's MAE, in eval mode.
        kind: Format of its file, see :class:`FileEncoder`.
        img_size: Height and width of the images.
        patch_size: Height and width of a patch.
        normalized: Whether it predicts normalized patches and not pixels.
        channels: How its image files are read if not as 8-bit color.
    """

    model: nn.Module
    kind: str
    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    normalized: bool
    channels: ChannelFormat | None = None


def load_decoder(
    path: str | Path,
    config: str | None = None,
    size: tuple[int, int] | None = None,
    target: str | None = None,
    num_heads: int | None = None,
    options: dict | None = None,
    statistics: str | None = None,
) -> Pretrained:
    """Load the model of a pretraining file.

    Args:
        path: A BootMAE or MAE run of this suite, an MAE of mmpretrain or facebookresearch, or the authors' BootMAE.
        config: Config of the pretraining, by default the one that the file records.
        size: Height and width of the images, by default those of the training. Position embeddings are interpolated.
        target: ``normalized`` or ``pixels``, for an MAE whose file does not record what it predicts.
        num_heads: Number of heads of the encoder if the file does not record it, see :func:`heads_of`.
        options: Overrides of the config.
        statistics: ``imagenet`` or ``half``, for files that do not record mean and standard deviation.

    Raises:
        FileNotFoundError: If the file or the config is missing.
        ValueError: If the file has no decoder, does not fit the config, or records something else than was given.
    """
    content = read_checkpoint(path)
    try:
        encoder = find_encoder(content)
        (mean, std), _ = statistics_of(encoder, statistics)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    kind = decoder_kind(encoder)
    if kind is None:
        raise ValueError(f'{path} is a {describe(encoder, content)} and has no decoder to reconstruct with. {REMEDY}')
    state, channels, recorded = whole_state(encoder, kind), None, None
    if found := config or recorded_config(content) or authors_config(encoder):
        cfg = load_config(found, options)
        model_cfg, channels = model_config(cfg), format_of_config(cfg)
    elif options:
        raise ValueError(f'--cfg-options change a config, but {path} records none that exists here: give --config')
    elif kind == 'MAE':
        recorded = norm_pix_loss(content)
        model_cfg = infer_mae(encoder, state, target or recorded_target(content, path), num_heads)
    else:
        raise ValueError(f'{path} [{encoder.kind}] does not record a config that exists here: give --config')
    if encoder.mean is not None or statistics:
        model_cfg['data_preprocessor'] |= dict(mean=list(mean), std=list(std))
    built = build(model_cfg, state, encoder, path, size)
    if found:
        recorded = built.normalized
        heads = heads_of_model(built.model)
        if num_heads and num_heads != heads:
            raise ValueError(f'--heads {num_heads}, but the encoder of {path} has {heads}: leave --heads out')
    if target and recorded not in (None, target == 'normalized'):
        raise ValueError(f'--target {target}, but {path} was trained with the other target: leave --target out')
    return replace(built, channels=channels)


def heads_of_model(model: nn.Module) -> int:
    """Return the number of attention heads of the encoder of a BootMAE, or of mmpretrain's MAE."""
    blocks = model.backbone.blocks if isinstance(model, BootMAE) else model.backbone.layers
    return blocks[0].attn.num_heads


def decoder_kind(encoder: FileEncoder) -> str | None:
    """Return ``BootMAE`` or ``MAE`` for the decoder in a file; None without a decoder."""

    def any_key(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in encoder.rest)

    if any_key(r'pixel_decoder\.') and encoder.whole:
        return 'BootMAE'
    return 'MAE' if any_key(r'(neck\.)?decoder_blocks\.') else None


def describe(encoder: FileEncoder, content: dict) -> str:
    """Describe a file without decoder: its kind, and the method of its run."""
    method = recorded_facts(content).get('method')
    return f'file of kind [{encoder.kind}]' + (f', made by {method},' if method else '')


def whole_state(encoder: FileEncoder, kind: str) -> State:
    """Return all weights of a pretraining file under the names of our class or mmpretrain's."""
    if kind == 'BootMAE':
        state = {f'backbone.{key}': value for key, value in encoder.state.items()} | encoder.rest
        momentum = {
            key.replace('backbone.', 'momentum.', 1): value
            for key, value in state.items()
            if key.startswith('backbone.') and not key.startswith('backbone.norm.')
        }
        return momentum | state  # the momentum encoder may be missing: no picture shows its features
    rest = (
        encoder.rest
        if any(key.startswith('neck.') for key in encoder.rest)
        else {f'neck.{key}': value for key, value in rename(encoder.rest, MAE_DECODER, back=True).items()}
    )
    return {f'backbone.{key}': value for key, value in to_mmpretrain(encoder.state).items()} | {
        key: value for key, value in rest.items() if key.startswith('neck.')
    }


def authors_config(encoder: FileEncoder) -> str | None:
    """Return our config for a pretraining file of BootMAE's authors, chosen by the width."""
    name = AUTHORS.get(encoder.state['cls_token'].shape[-1]) if encoder.kind.startswith('authors') else None
    return name and str(REPOSITORY / 'configs' / 'pretrain' / f'{name}.py')


def norm_pix_loss(content: dict) -> bool | None:
    """Return whether an MAE of another project predicts normalized patches, if its file says so."""
    return getattr(content.get('args'), 'norm_pix_loss', None)


def recorded_target(content: dict, path: str | Path) -> str:
    """Return what an MAE of another project predicts, as recorded in the arguments of its training.

    Raises:
        ValueError: If nothing is recorded. The weights do not show it, and a wrong guess draws noise.
    """
    told = norm_pix_loss(content)
    if told is None:
        raise ValueError(
            f'{path} does not record whether its decoder predicts normalized patches or pixels: give '
            '--target normalized (norm_pix_loss, the published recipe) or --target pixels '
            "(facebookresearch's mae_visualize_*.pth)"
        )
    return 'normalized' if told else 'pixels'


def infer_mae(encoder: FileEncoder, state: State, target: str, num_heads: int | None) -> dict:
    """Return the config of mmpretrain's MAE for weights of another project."""
    width, _, *patch = state['backbone.patch_embed.projection.weight'].shape
    wide = state['neck.mask_token'].shape[-1]
    depth = 1 + max(int(m[1]) for key in state if (m := re.match(r'neck\.decoder_blocks\.(\d+)\.', key)))
    hidden = state['backbone.layers.0.ffn.layers.0.0.weight'].shape[0]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if encoder.mean is None else (encoder.mean, encoder.std)
    return dict(
        type='MAE',
        data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=list(mean), std=list(std), to_rgb=True),
        backbone=dict(
            type='MAEViT',
            patch_size=patch[0],
            mask_ratio=MASK_RATIO,
            arch=dict(
                embed_dims=width,
                num_layers=encoder.depth,
                num_heads=heads_of(encoder, num_heads),
                feedforward_channels=hidden,
            ),
        ),
        neck=dict(
            type='MAEPretrainDecoder',
            patch_size=patch[0],
            embed_dim=width,
            decoder_embed_dim=wide,
            decoder_depth=depth,
            decoder_num_heads=DECODER_HEADS,
            mlp_ratio=state['neck.decoder_blocks.0.ffn.layers.0.0.weight'].shape[0] / wide,
        ),
        head=dict(
            type='MAEPretrainHead',
            norm_pix=target == 'normalized',
            patch_size=patch[0],
            loss=dict(type='PixelReconstructionLoss', criterion='L2'),
        ),
    )


def build(
    model_cfg: dict, state: State, encoder: FileEncoder, path: str | Path, size: tuple[int, int] | None
) -> Pretrained:
    """Build the model for images of one size and load all weights of a state."""
    backbone = model_cfg['backbone']
    patch = backbone.get('patch_size', 16)
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    old = encoder.grid
    if old is None:
        raise ValueError(f'{path}: its position embeddings fit no square grid, and it does not record the grid')
    size = size or (old[0] * patch[0], old[1] * patch[1])
    grid = patch_grid(size, patch)
    backbone['img_size'] = size
    if model_cfg['type'] == 'BootMAE' and old != grid:
        scale_masking(model_cfg.get('masking') or {}, grid[0] * grid[1] / (old[0] * old[1]))
    state = {
        key: resize_positions(value, old, grid) if key.endswith('pos_embed') else value for key, value in state.items()
    }
    if model_cfg['type'] == 'MAE':
        model_cfg['neck']['num_patches'] = grid[0] * grid[1]
    model = MODELS.build(model_cfg)
    load_run(model, dict(state_dict=state), path)
    normalized = isinstance(model, BootMAE) or model.head.norm_pix
    return Pretrained(model.requires_grad_(False).eval(), encoder.kind, size, patch, normalized)


def scale_masking(masking: dict, factor: float) -> None:
    """Scale the settings of BootMAE's masks to a grid with ``factor`` times as many patches."""
    for key in ('num_masked', 'num_block'):
        if key in masking:
            masking[key] = round(masking[key] * factor)
    if masking.get('block_area'):  # None stands for areas that follow from the grid
        masking['block_area'] = [area * factor for area in masking['block_area']]
