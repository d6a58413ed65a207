"""Starts a pretraining from the weights of a file: its encoder completely, and what else of the file fits the model."""

from dataclasses import replace
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmpretrain.models import VisionTransformer
from torch import nn

from ..models.bootmae import BootMAE
from ..models.positions import resize_positions
from ..models.vit import PlainViT
from .finite import check_finite
from .identify import FileEncoder, has, under
from .keys import State, mae_to_mmpretrain, to_mmpretrain
from .load import LoadReport, converted, error_context, heads_remark, match, position_grid, read_encoder
from .statistics import Statistics, statistics_text

MOMENTUM = 'momentum.'
COPIED = 'momentum encoder: a copy of the online encoder'


def as_plain(backbone: nn.Module) -> PlainViT:
    """Our ViT of the sizes of a backbone: itself, or for mmpretrain's ViT one without values.

    Raises:
        ValueError: for another backbone.
    """
    if isinstance(backbone, PlainViT):
        return backbone
    if not isinstance(backbone, VisionTransformer):
        raise ValueError(f"the model's backbone is a {type(backbone).__name__}, no plain ViT")
    arch, embedding = backbone.arch_settings, backbone.patch_embed.projection
    width, hidden = arch['embed_dims'], arch['feedforward_channels']
    with torch.device('meta'):
        return PlainViT(
            dict(embed_dims=width, depth=arch['num_layers'], num_heads=arch['num_heads'], mlp_ratio=hidden / width),
            backbone.img_size,
            embedding.kernel_size,
            in_channels=embedding.in_channels,
        )


def with_final_norm(encoder: FileEncoder) -> tuple[FileEncoder, list[str]]:
    """A momentum encoder of this suite with the final norm of the online encoder, which it lacks; and a remark."""
    norm = under(encoder.rest, 'backbone.')
    norm = {key: value for key, value in norm.items() if key.startswith('norm.')}
    if encoder.source != 'momentum' or has(encoder.state, 'norm.') or not norm:
        return encoder, []
    return replace(encoder, state=encoder.state | norm), ['final norm: that of the online encoder']


def other_weights(encoder: FileEncoder, model: nn.Module) -> tuple[State, str]:
    """The weights of a file beside its encoder under the names of the model, if they fit it.

    Args:
        encoder: the encoder of the file, converted to the statistics of the model.
        model: a pretraining.

    Returns:
        The weights, empty if they do not fit; and what is said about it.
    """
    wanted = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    parts = {key.partition('.')[0] for key in wanted}
    rest = mae_to_mmpretrain(encoder.rest) if has(encoder.rest, 'decoder_embed.') else encoder.rest
    theirs = {key: value for key, value in rest.items() if key.partition('.')[0] in parts}
    if encoder.source == 'momentum':
        return {}, 'decoders: new, because those of the file belong to its online encoder'
    if not any(not key.startswith(MOMENTUM) for key in theirs):
        return {}, 'decoders: new (the file has none of this kind)'
    vit = as_plain(model.backbone)
    for key in (key for key in theirs if key.endswith('pos_embed')):
        theirs[key] = resize_positions(theirs[key], position_grid(encoder, vit.grid), vit.grid)
    if not has(theirs, MOMENTUM):
        wanted = {key: value for key, value in wanted.items() if not key.startswith(MOMENTUM)}
    if set(wanted) != set(theirs):
        return {}, f'decoders: new, because those of the file do not fit: {sorted(set(wanted) ^ set(theirs))[0]}'
    for key, value in wanted.items():
        if value.shape != theirs[key].shape:
            shapes = f'{key} {tuple(theirs[key].shape)} for {tuple(value.shape)}'
            return {}, f'decoders: new, because those of the file do not fit: {shapes}'
    return theirs, f'decoders{" and momentum encoder" if has(theirs, MOMENTUM) else ""}: those of the file'


def statistics_remark(encoder: FileEncoder, model: nn.Module) -> list[str]:
    """A remark on the normalization of images, if the model has one."""
    mean, std = (getattr(model.data_preprocessor, name, None) for name in ('mean', 'std'))
    if mean is None:
        return []
    if encoder.mean is None:
        which = 'those of the config (the file does not tell its own)'
    else:
        which = 'as for the file' if len(encoder.mean) == mean.numel() else 'those of the config'
    return [f'input {statistics_text((mean.flatten(), std.flatten()))}, {which}']


def start_pretraining(
    model: nn.Module,
    checkpoint: str | Path,
    source: str = 'online',
    channels: str | None = None,
    statistics: Statistics | None = None,
) -> LoadReport:
    """Start an initialized pretraining from the weights of a file.

    The online encoder is loaded completely or not at all, with its positions interpolated. The momentum encoder starts
    as a copy. If the file is a pretraining of the same kind, and its decoders fit, the decoders and its momentum
    encoder are taken too; otherwise the decoders keep their initial weights.

    Args:
        model: BootMAE, mmpretrain's MAE, or another pretraining of a plain ViT.
        checkpoint: any file that :func:`find_encoder` knows.
        source: which encoder of a file with several, see :func:`find_encoder`. Both encoders start from it.
        channels: how to adapt the encoder to another number of input channels, see :func:`adapt_channels`.
        statistics: mean and standard deviation to convert the encoders to, see :func:`convert_statistics`.

    Returns:
        The report, also the backbone's ``load_report``; its remarks say what happened to the decoders.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the encoder does not fit the model, or is not finite. Nothing is loaded then.
    """
    original = read_encoder(checkpoint, source)
    encoder, remarks = with_final_norm(original)
    with error_context(checkpoint):
        vit = as_plain(model.backbone)
        encoder, changed = converted(encoder, statistics)
        found = match(vit, encoder, channels, new_norm=True)
        others, said = other_weights(encoder, model)
        if changed and has(others, MOMENTUM):
            momentum = replace(original, state=under(others, MOMENTUM))
            others |= {MOMENTUM + key: value for key, value in converted(momentum, statistics)[0].state.items()}
    check_finite(others, checkpoint, 'decoder weights')
    state = found.state if vit is model.backbone else to_mmpretrain(found.state)
    unexpected = model.backbone.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, unexpected
    remarks += heads_remark(vit, encoder) + [said]
    if isinstance(model, BootMAE):
        model.update_momentum(0.0)
        model.feature_decoder.pos_embed.data.copy_(model.backbone.pos_embed)  # the encoder's, as in the release
        remarks += [] if has(others, MOMENTUM) else [COPIED]
    model.load_state_dict(others, strict=False)
    remarks += changed or statistics_remark(encoder, model)
    model.backbone.load_report = LoadReport.of(checkpoint, original, found, remarks)
    print_log(str(model.backbone.load_report), logger='current')
    return model.backbone.load_report
