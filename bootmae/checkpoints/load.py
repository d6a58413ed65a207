"""Loads every weight of an encoder or raises an error, and reports what was loaded."""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ..models.positions import bias_table_size, resize_bias_table, resize_offsets, resize_positions
from ..models.vit import PlainViT
from ..text import count_of
from .averages import weights_of
from .checksum import add_tensors
from .finite import check_encoder, check_finite
from .heads import model_heads
from .identify import FileEncoder, find_encoder, recorded_facts
from .keys import State
from .read import read_checkpoint
from .statistics import Statistics, as_float, convert_statistics, same_statistics, statistics_text

Grid = tuple[int, int]  # rows and columns of patches

UNUSED_PARTS = ('norm.', 'fc_norm.', 'pyramid.')  # what follows the blocks; a backbone may replace it


@dataclass
class LoadReport:
    """What was loaded: ``str()`` is the line for the log, and ``hash`` identifies the encoder in result rows.

    The hash covers the file's encoder before interpolation, so it is the same for every model that starts from it.
    """

    path: str
    kind: str
    loaded: int
    wanted: int
    new: list[str]
    unused: list[str]
    hash: str
    resized: list[str] = field(default_factory=list)  # what was interpolated, with both grids
    parts: list[str] = field(default_factory=list)  # parts of the model that the file does not have
    note: str = ''  # what was taken from a file with raw and averaged weights
    adapted: list[str] = field(default_factory=list)  # the change of input channels, in words
    remarks: list[str] = field(default_factory=list)  # what else the reader of the log must know

    @classmethod
    def of(cls, path: str | Path, encoder: FileEncoder, found: 'Match', remarks: Sequence[str] = ()) -> 'LoadReport':
        """Report on an encoder of a file and its weights that were loaded."""
        number = len(found.state)
        digest = tensors_hash(encoder.state)
        fields = str(path), encoder.kind, number, number, found.new, found.unused, digest, found.resized, found.parts
        return cls(*fields, encoder.note, found.adapted, list(remarks))

    def __str__(self) -> str:
        why = f'new ({", ".join(self.parts)}: not in the file)'
        notes = (
            ('interpolated', self.resized),
            ('adapted', self.adapted),
            (why, families(self.new)),
            ('not used', self.unused),
        )
        return (
            f'loaded {self.loaded}/{self.wanted} encoder tensors of {self.path} [{self.kind}]'
            f'{"".join(f", {what}: " + ", ".join(names) for what, names in notes if names)}, sha256 {self.hash}'
            f'{"".join(f"; {remark}" for remark in (self.note, *self.remarks) if remark)}'
        )


def families(keys: list[str]) -> list[str]:
    """Shorten names of weights: one for all blocks (``blocks.*.gamma_1``), and one for a pyramid (``pyramid.*``)."""
    return list(
        dict.fromkeys(re.sub(r'^pyramid\..*', 'pyramid.*', re.sub(r'^blocks\.\d+', 'blocks.*', key)) for key in keys)
    )


def tensors_hash(state: State) -> str:
    """First 12 hex digits of the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    add_tensors(digest, state)
    return digest.hexdigest()[:12]


def fit_grids(encoder: FileEncoder, grids: dict[str, Grid]) -> tuple[State, list[str]]:
    """Interpolate absolute and relative positions of an encoder to the grids of a model.

    Args:
        encoder: the encoder of a file.
        grids: rows and columns for each tensor of positions; see :meth:`PlainViT.position_grids`.

    Returns:
        The weights, and what was interpolated with both grids.

    Raises:
        ValueError: if the file does not record its grid, and it is neither a square nor the wanted one.
    """
    state, resized = dict(encoder.state), []
    for name in (name for name in grids if name in state):
        value, new = as_float(state[name]), grids[name]
        if name.endswith(('rel_pos_h', 'rel_pos_w')):
            side, old_side = new[name.endswith('w')], (len(value) + 1) // 2
            state[name] = resize_offsets(value, side)
            if side != old_side:
                resized.append(f'{name.rpartition(".")[2]} from {old_side} to {side}')
            continue
        resize, old = (
            (resize_positions, position_grid(encoder, new))
            if name == 'pos_embed'
            else (resize_bias_table, table_grid(encoder, value, new))
        )
        state[name] = resize(value, old, new)
        if old != new:
            resized.append(f'{name.rpartition(".")[2]} from {old[0]}x{old[1]} to {new[0]}x{new[1]}')
    return state, list(dict.fromkeys(resized))


def position_grid(encoder: FileEncoder, wanted: Grid) -> Grid:
    """Grid of the position embedding: the recorded one, a square, or the wanted one."""
    grid, patches = encoder.grid or wanted, encoder.state['pos_embed'].shape[1] - 1
    if math.prod(grid) != patches:
        raise ValueError(f'its position embedding has {patches} patches, no square grid, and the model has {wanted}')
    return grid


def table_grid(encoder: FileEncoder, table: torch.Tensor, wanted: Grid) -> Grid:
    """Grid of a relative position bias table, from its rows: the encoder's, a square (a window), or the wanted one."""
    side = (math.isqrt(max(len(table) - 3, 0)) + 1) // 2
    whole = encoder.grid if 'pos_embed' in encoder.state else None
    for grid in (whole, (side, side), wanted):
        if grid and bias_table_size(grid) == len(table):
            return grid
    raise ValueError(f'its bias table has {count_of(len(table), "row")}, no square grid, and the model has {wanted}')


@dataclass
class Match:
    """The weights of a file that fit a backbone."""

    state: State
    new: list[str]  # tensors of the backbone that keep their initial values
    unused: list[str]  # parts of the file that are not loaded
    resized: list[str]  # what was interpolated, with both grids
    parts: list[str]  # parts of the backbone that keep their initial values
    adapted: list[str]  # the change of input channels, in words


def adapt_channels(weight: torch.Tensor, count: int, how: str) -> torch.Tensor:
    """Make the weight of a patch embedding one for another number of channels: (D, C, h, w) -> (D, count, h, w).

    Either way an image whose channels are all equal has the same embedding as before.

    Args:
        weight: the weight.
        count: the new number of channels.
        how: ``repeat`` gives channel k the filter of channel k modulo C, divided by the number of channels that share
            it. ``sum`` gives each channel the same filter, the sum of all divided by ``count``.

    Raises:
        ValueError: for ``repeat`` with fewer channels than before, which would lose filters.
    """
    if how == 'sum':
        return weight.sum(dim=1, keepdim=True).repeat(1, count, 1, 1) / count
    old = weight.shape[1]
    if count < old:
        raise ValueError(f'adapt_channels=repeat loses filters from {old} to {count_of(count, "channel")}: use sum')
    source = torch.arange(count) % old
    return weight[:, source] / source.bincount()[source].view(1, -1, 1, 1)


def fit_channels(state: State, count: int, how: str | None) -> list[str]:
    """Adapt the patch embedding in a state to a number of channels, and say so; see :func:`adapt_channels`.

    Raises:
        ValueError: if the number differs and ``how`` is None.
    """
    key = 'patch_embed.proj.weight'
    if key not in state or state[key].ndim != 4 or state[key].shape[1] == count:
        return []
    old = count_of(state[key].shape[1], 'input channel')
    if how is None:
        raise ValueError(
            f'it has {old}, the model has {count}; to adapt its patch embedding add --cfg-options '
            'adapt_channels=repeat or adapt_channels=sum (docs/channels.md)'
        )
    state[key] = adapt_channels(as_float(state[key]), count, how)
    return [f'patch embedding from {old} to {count} ({how}), with the input statistics of the config']


def match(backbone: PlainViT, encoder: FileEncoder, channels: str | None = None, new_norm: bool = False) -> Match:
    """Match the weights of an encoder with a backbone.

    Args:
        backbone: the model.
        encoder: the encoder of a file.
        channels: how to adapt it to another number of input channels, see :func:`adapt_channels`; None refuses it.
        new_norm: whether the final norm may be new.

    Raises:
        ValueError: if a weight is missing, unexpected or has another shape. Whole parts that the backbone declares as
            new may be missing, and parts after the blocks may be unused.
    """
    wanted = backbone.state_dict()
    if encoder.depth != backbone.arch_depth:
        raise ValueError(f"it has {count_of(encoder.depth, 'block')}, the model's arch has {backbone.arch_depth}")
    if encoder.num_heads not in (None, backbone.num_heads):
        heads = count_of(encoder.num_heads, 'attention head')
        raise ValueError(f"it has {heads}, the model's arch has {backbone.num_heads}")
    state, resized = fit_grids(encoder, backbone.position_grids)
    adapted = fit_channels(state, backbone.patch_embed.proj.in_channels, channels)
    inner = tuple(f'blocks.{k}.' for k in range(backbone.depth, backbone.arch_depth))
    declared = backbone.new_parts | (backbone.find_parts({'final norm': r'norm\.'}) if new_norm else {})
    parts = {part: keys for part, keys in declared.items() if not set(keys) & set(state)}
    new = [key for keys in parts.values() for key in keys]
    without_class_token = ('cls_token',) if backbone.cls_token is None else ()
    unused = [
        key for key in state if key not in wanted and key.startswith((*UNUSED_PARTS, *inner, *without_class_token))
    ]
    missing = [key for key in wanted if key not in state and key not in new]
    unexpected = [key for key in state if key not in wanted and key not in unused]
    shapes = [
        f'{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}'
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    faults = [
        f'{len(keys)} {what}: {", ".join(keys[:4])}'
        for what, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
        if keys
    ]
    if faults:
        raise ValueError('; '.join(faults))
    loaded = {key: state[key] for key in wanted if key in state}
    unused = sorted({'.'.join(key.split('.')[:2]) for key in unused})
    return Match(loaded, new, unused, resized, list(parts), adapted)


@contextmanager
def error_context(path: str | Path) -> Iterator[None]:
    """Extend a ValueError raised within the context by the file and a remedy."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f'{path} was not loaded into the backbone: {error}. Use the config of the method and size '
            'that wrote the file, or another file.'
        ) from error


def read_encoder(path: str | Path, source: str = 'online', content: dict | None = None) -> FileEncoder:
    """Read the encoder of a checkpoint that a backbone is to start from.

    Args:
        path: any file that :func:`find_encoder` knows.
        source: which encoder of a file with several, see :func:`find_encoder`.
        content: content of the file, if it was read before.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no such encoder, or one with NaN, infinity or nothing but zeros.
    """
    content = content or read_checkpoint(path)
    with error_context(path):
        encoder = find_encoder(content, source)
    check_encoder(encoder.state, path)
    return encoder


def converted(encoder: FileEncoder, statistics: Statistics | None) -> tuple[FileEncoder, list[str]]:
    """An encoder for images normalized with other statistics than its own, and a remark on it.

    ``statistics=None``, unknown ones of the file and equal ones change nothing.
    """
    if statistics is None or encoder.mean is None or same_statistics((encoder.mean, encoder.std), statistics):
        return encoder, []
    old = encoder.mean, encoder.std
    text = f'patch embedding converted from {statistics_text(old)} to {statistics_text(statistics)}'
    return replace(encoder, state=convert_statistics(encoder.state, old, statistics)), [text]


def heads_remark(backbone: PlainViT, encoder: FileEncoder) -> list[str]:
    """A remark that the number of heads, which no shape tells, is the config's, unless the file records it."""
    heads = count_of(backbone.num_heads, 'attention head')
    return [] if encoder.num_heads else [f'{heads} as in the config (the file does not tell)']


def unknown_statistics_remark(encoder: FileEncoder) -> list[str]:
    """A remark that images are normalized as the config says, unless the file records how its training did."""
    return [] if encoder.mean is not None else ['input statistics of the config (the file does not tell its own)']


def load_encoder_weights(
    backbone: PlainViT,
    path: str | Path,
    source: str = 'online',
    content: dict | None = None,
    channels: str | None = None,
    statistics: Statistics | None = None,
) -> LoadReport:
    """Load the encoder of a checkpoint into a backbone, completely or not at all.

    Args:
        backbone: the model to load into.
        path: any file that :func:`find_encoder` knows.
        source: which encoder of a file with several, see :func:`find_encoder`.
        content: content of the file, if it was read before.
        channels: how to adapt the encoder to another number of input channels, see :func:`adapt_channels`.
        statistics: mean and standard deviation to convert the encoder to, see :func:`convert_statistics`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the encoder does not fit the backbone, or is not finite. Nothing is loaded then.
    """
    encoder = read_encoder(path, source, content)
    with error_context(path):
        changed, remarks = converted(encoder, statistics)
        found = match(backbone, changed, channels)
    backbone.load_state_dict(found.state, strict=False)
    unknown = heads_remark(backbone, encoder) + unknown_statistics_remark(encoder)
    return LoadReport.of(path, encoder, found, unknown + remarks)


@WEIGHT_INITIALIZERS.register_module()
class EncoderWeights:
    """``init_cfg=dict(type='EncoderWeights', checkpoint=FILE)`` of a :class:`PlainViT`.

    Does the work of :func:`load_encoder_weights` and sets the module's ``load_report``.
    """

    def __init__(
        self, checkpoint: str, source: str = 'online', channels: str | None = None, statistics: Statistics | None = None
    ):
        self.checkpoint, self.source, self.channels, self.statistics = checkpoint, source, channels, statistics

    def __call__(self, module: nn.Module) -> None:
        module.load_report = load_encoder_weights(
            module, self.checkpoint, self.source, channels=self.channels, statistics=self.statistics
        )
        print_log(str(module.load_report), logger='current')


def load_run(model: nn.Module, content: dict, path: str | Path) -> None:
    """Load all weights of a run of this suite into its model, completely or not at all.

    Args:
        model: the model of the config that wrote the file.
        content: result of :func:`read_checkpoint`.
        path: the file, for messages.

    Raises:
        ValueError: if a weight is missing, unexpected, of another shape or not finite, or if the file records another
            number of heads or another image size, which no shape tells. Nothing is loaded then.
    """
    state, wanted = weights_of(content), model.state_dict()
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    shapes = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or unexpected or shapes:
        lost = any(key.startswith('momentum.') for key in missing)
        momentum = ' Its momentum encoder is missing, and with it the training target.' if lost else ''
        theirs = any(key.startswith('backbone.fpn1.') for key in unexpected)
        convert = " Convert the authors' segmentation file: tools/convert_checkpoint.py --to mmseg." if theirs else ''
        raise ValueError(
            f"{path} is not a checkpoint of this config's {type(model).__name__}: {count_of(len(missing), 'weight')} "
            f'missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} of '
            f'another shape {shapes[:3]}.{momentum}{convert} Use the config that wrote the file; to '
            'start a new run from its encoder use --init.'
        )
    _check_record(getattr(model, 'backbone', None), recorded_facts(content), path)
    check_finite(state, path)
    model.load_state_dict(state, strict=True)


def _check_record(backbone: nn.Module | None, recorded: dict, path: str | Path) -> None:
    """Raise a ValueError if the backbone differs from the recorded one in a way that no shape tells."""
    for key, read in (('num_heads', model_heads), ('img_size', lambda vit: list(vit.img_size))):
        if backbone is None or key not in recorded or (value := read(backbone)) == recorded[key]:
            continue
        raise ValueError(
            f'{path} was trained with model.backbone {key}={recorded[key]}, but this config has {value}: it would load '
            'and compute something else. Use the config and the options of the training'
        )


def check_resumable(content: dict, path: str | Path) -> None:
    """Raise a ValueError if a file lacks the counters or the optimizer that resuming a run needs."""
    meta = content.get('meta')
    counters = isinstance(meta, dict) and {'epoch', 'iter'} <= set(meta)
    if not counters or 'optimizer' not in content:
        raise ValueError(
            f'{path} holds weights, not a run that can be resumed (no optimizer, epoch and iteration): '
            'resume from an epoch_N.pth or iter_N.pth of the work directory, or start a new run from its '
            'encoder with --init'
        )
