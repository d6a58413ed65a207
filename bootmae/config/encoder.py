"""The encoder of any checkpoint as a model.

What the file does not record is read from the config of its run, given by the caller, or assumed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..checkpoints import FileEncoder, find_encoder, match, read_checkpoint
from ..checkpoints.finite import check_encoder
from ..checkpoints.heads import heads_of, recorded_heads
from ..checkpoints.identify import HALF, IMAGENET_MEAN, IMAGENET_STD, recorded_facts
from ..checkpoints.plain import check_complete
from ..data.channels import ChannelFormat
from ..models.positions import bias_table_size
from ..places import REPOSITORY
from ..transfer import TransferViT
from .channels import format_of_config
from .load import load_config

STATISTICS = dict(imagenet=(IMAGENET_MEAN, IMAGENET_STD), half=(HALF, HALF))


@dataclass
class FileModel:
    """The encoder of a checkpoint as a model.

    Attributes:
        model: The ViT, in eval mode and without gradients. It has no head.
        encoder: The encoder as it was found in the file.
        mean: Input mean (RGB, of 0..255).
        std: Input standard deviation.
        notes: Sentences about what had to be assumed or chosen.
        channels: How image files are read if not as 8-bit color.
    """

    model: TransferViT
    encoder: FileEncoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: list[str]
    channels: ChannelFormat | None = None


def read_model(
    checkpoint: str | Path,
    source: str = 'online',
    size: tuple[int, int] | None = None,
    block: int | None = None,
    num_heads: int | None = None,
    statistics: str | None = None,
    config: str | Path | None = None,
    options: dict | None = None,
) -> FileModel:
    """Read the encoder of a checkpoint and build it.

    Args:
        checkpoint: Any file that ``--init`` takes, or ``timm:NAME``.
        source: Which encoder of a file with several, see :func:`find_encoder`.
        size: Height and width of the images, by default those of the training.
        block: Last block, see :func:`fit_encoder`.
        num_heads: Number of heads for files that do not record it, see :func:`heads_of`.
        statistics: ``imagenet`` or ``half``, for files that do not record mean and standard deviation.
        config: Config of the run, by default the one that the file records. Attention windows and
            ``image_channels`` are read from it.
        options: Overrides of the config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has no encoder that can be built, or the weights are not finite.
    """
    content = read_checkpoint(checkpoint)
    try:
        encoder = find_encoder(content, source)
        check_complete(encoder)
        patch = encoder.state['patch_embed.proj.weight'].shape[2:]
        size = size or (encoder.grid and (encoder.grid[0] * patch[0], encoder.grid[1] * patch[1]))
        if size is None:
            raise ValueError(
                'its grid of positions is not square, and the file does not record the image size: give --size '
                '(img_size in Python)'
            )
        config = config or recorded_config(content)
        if options and not config:
            raise ValueError('--cfg-options change a config, and the file records none that exists here: give --config')
        cfg = load_config(config, options) if config else None
        channels = format_of_config(cfg) if cfg else None
        model = fit_encoder(encoder, size, block, num_heads, windows_of(cfg) if cfg else None)
        (mean, std), assumed = statistics_of(encoder, statistics)
    except ValueError as error:
        raise ValueError(f'{checkpoint} was not loaded: {error}') from error
    check_encoder(encoder.state, checkpoint)
    notes = [f'Of this file {encoder.note}.'] if encoder.note else []
    if assumed:
        notes.append(f'The file does not record its input statistics: {assumed}.')
    if not num_heads and recorded_heads(encoder) is None:
        notes.append(f'The file does not record the number of heads: {model.num_heads} assumed.')
    return FileModel(model, encoder, tuple(mean), tuple(std), notes, channels)


def recorded_config(content: dict) -> str | None:
    """Return the config that a run of this suite records, if it exists here."""
    name = recorded_facts(content).get('config')
    places = [REPOSITORY / name, Path(name)] if name else []
    return next((str(place) for place in places if place.is_file()), None)


def windows_of(cfg: Config) -> dict:
    """Return the attention windows of the backbone in a config; many files do not record them."""
    backbone = cfg.model.get('backbone', {})
    return {key: backbone.get(key) for key in ('window_size', 'global_blocks')}


def statistics_of(encoder: FileEncoder, asked: str | None = None) -> tuple[tuple, str]:
    """Return the mean and standard deviation of the input, and a note if they had to be assumed.

    Raises:
        ValueError: If the requested statistics are unknown, or differ from those in the file.
    """
    if asked not in (None, *STATISTICS):
        raise ValueError(f'statistics {asked!r}: use {" or ".join(STATISTICS)}')
    given = STATISTICS[asked] if asked else None
    if encoder.mean is None:
        return given or STATISTICS['imagenet'], '' if asked else "ImageNet's assumed (--statistics half for 0.5)"
    known = encoder.mean, encoder.std
    if given and not np.allclose(given, known, atol=0.01):
        raise ValueError(
            f'--statistics {asked}, but the run normalized with mean {list(known[0])}, std {list(known[1])}: '
            'omit --statistics'
        )
    return known, ''


def fit_encoder(
    encoder: FileEncoder,
    img_size: tuple[int, int],
    block: int | None = None,
    num_heads: int | None = None,
    windows: dict | None = None,
) -> TransferViT:
    """Build the encoder of a file up to one block, in eval mode.

    Args:
        encoder: Result of :func:`find_encoder` for a file of any project.
        img_size: Height and width of the images. Position embeddings are interpolated.
        block: Last block, counted from 0, or from the end if negative. By default the last block of the encoder.
        num_heads: Number of heads for files that do not record it, see :func:`heads_of`.
        windows: ``window_size`` and ``global_blocks`` of :class:`TransferViT`, which no file records.

    Raises:
        ValueError: If there is no such block, or the encoder is no plain ViT.
    """
    state = encoder.state
    last = encoder.depth - 1 if block is None else block + encoder.depth * (block < 0)
    if not 0 <= last < encoder.depth:
        raise ValueError(f'--block {block}: the encoder has the blocks 0 to {encoder.depth - 1}')
    width, channels, *patch = (*state['patch_embed.proj.weight'].shape,)
    hidden = state['blocks.0.mlp.fc1.weight'].shape[0] if 'blocks.0.mlp.fc1.weight' in state else 4 * width
    arch = dict(embed_dims=width, depth=encoder.depth, num_heads=heads_of(encoder, num_heads), mlp_ratio=hidden / width)
    shared = dict(
        patch_size=tuple(patch),
        in_channels=channels,
        arch=arch,
        depth=last + 1,
        relative_positions=any(key.endswith('relative_position_bias_table') for key in state),
        layer_scale=1.0 if any(re.search(r'\.gamma_1$', key) for key in state) else None,
    )
    sides = offset_sides(encoder)
    if sides:
        shared |= offset_options(sides, tuple(patch))
    shared |= window_options(encoder, last, windows_in(sides) or windows or {})
    model = TransferViT(img_size=img_size, **shared)
    found = match(model, encoder)
    model.load_state_dict(found.state, strict=False)
    return model.requires_grad_(False).eval()


def offset_sides(encoder: FileEncoder) -> list[tuple[int, int]]:
    """Return rows and columns of patches that the decomposed relative positions of each block are for; [] without."""

    def side(index: int, axis: str) -> int:
        return (len(encoder.state[f'blocks.{index}.attn.rel_pos_{axis}']) + 1) // 2

    if not any(key.endswith('rel_pos_h') for key in encoder.state):
        return []
    try:
        return [(side(index, 'h'), side(index, 'w')) for index in range(encoder.depth)]
    except KeyError as error:
        raise ValueError(f'its weight {error} is missing: use another copy of the file') from error


def offset_options(sides: list[tuple[int, int]], patch: tuple[int, int]) -> dict:
    """Return the arguments of :class:`TransferViT` for a ViTDet, whose positions are not interpolated when loading."""
    rows, columns = max(sides)
    return dict(relative_positions='decomposed', class_token=False, input_size=(rows * patch[0], columns * patch[1]))


def windows_in(sides: list[tuple[int, int]]) -> dict:
    """Return the attention windows that decomposed relative positions show; {} if all blocks are alike."""
    if len(set(sides)) < 2:
        return {}
    side = min(sides)
    return dict(window_size=side[0], global_blocks=[index for index, each in enumerate(sides) if each != side])


def window_options(encoder: FileEncoder, last: int, windows: dict) -> dict:
    """Return the window arguments of :class:`TransferViT` for a model that ends with block ``last``.

    Raises:
        ValueError: If the windows of the encoder are unknown, or all of these blocks attend within windows.
    """
    if not windows.get('window_size'):
        tables = [value for key, value in encoder.state.items() if key.endswith('relative_position_bias_table')]
        if encoder.grid and any(len(table) < bias_table_size(encoder.grid) for table in tables):
            raise ValueError(
                'the encoder attends within windows, and the file does not record their size: give its config, --config'
            )
        return {}
    blocks = windows.get('global_blocks') or [quarter * encoder.depth // 4 - 1 for quarter in range(1, 5)]
    seen = [index + encoder.depth * (index < 0) for index in blocks]
    if not (kept := [index for index in seen if index <= last]):
        raise ValueError(f'all blocks up to {last} attend within windows: choose --block from {seen}')
    return dict(window_size=windows['window_size'], global_blocks=kept)
