"""Loading with a verdict: every weight of the encoder is found, or the run does not start."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ..models.positions import resize_positions
from ..models.vit import PlainViT
from .identify import Encoder, find_encoder, weights_of
from .keys import State
from .read import read_checkpoint

NEW_PARTS = ('fc_norm.', )  # a pooled backbone's own LayerNorm starts fresh
UNUSED_PARTS = ('norm.', 'fc_norm.')  # a final norm that the backbone does not have


@dataclass
class Verdict:
    """What was loaded, in one line for the log and one hash for the result row."""

    path: str
    kind: str
    loaded: int
    wanted: int
    new: list[str]
    unused: list[str]
    hash: str

    def __str__(self) -> str:
        new = f', new: {", ".join(self.new)}' if self.new else ''
        unused = f', not used: {", ".join(self.unused)}' if self.unused else ''
        return (f'loaded {self.loaded}/{self.wanted} encoder tensors of {self.path} [{self.kind}]{new}{unused}, '
                f'sha256 {self.hash}')


def tensors_hash(state: State) -> str:
    """First 12 hex digits of a SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f'{key}{value.dtype}{tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def fit_positions(encoder: Encoder, grid: tuple[int, int]) -> State:
    """The encoder's weights with the position embedding interpolated to the grid, if it is for another one.

    Raises:
        ValueError: if the file does not tell what grid it is for, and it can be neither a square nor the wanted one.
    """
    positions = encoder.state.get('pos_embed')
    if positions is None or encoder.grid == tuple(grid):
        return encoder.state
    patches = positions.shape[1] - 1
    if encoder.grid is None and patches == grid[0] * grid[1]:
        return encoder.state
    if encoder.grid is None or encoder.grid[0] * encoder.grid[1] != patches:
        raise ValueError(f'its position embedding has {patches} patches, no square grid, and the model has {grid}')
    return encoder.state | {'pos_embed': resize_positions(positions, encoder.grid, grid)}


def match(backbone: PlainViT, encoder: Encoder) -> tuple[State, list[str], list[str]]:
    """The weights to load, the names of new ones, and of the file's unused parts.

    Raises:
        ValueError: if anything is missing, unexpected or of another shape, beyond what the recipe declares.
    """
    wanted = backbone.state_dict()
    state = fit_positions(encoder, backbone.grid)
    if encoder.depth != backbone.arch_depth:
        raise ValueError(f'it has {encoder.depth} blocks, the model\'s arch has {backbone.arch_depth}')
    inner = tuple(f'blocks.{k}.' for k in range(backbone.depth, backbone.arch_depth))
    new = [key for key in wanted if key not in state and key.startswith(NEW_PARTS)]
    unused = [key for key in state if key not in wanted and key.startswith((*UNUSED_PARTS, *inner))]
    missing = [key for key in wanted if key not in state and key not in new]
    unexpected = [key for key in state if key not in wanted and key not in unused]
    shapes = [f'{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}'
              for key in wanted if key in state and state[key].shape != wanted[key].shape]
    faults = [f'{len(keys)} {what}: {", ".join(keys[:4])}' for what, keys in
              (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes)) if keys]
    if faults:
        raise ValueError('; '.join(faults))
    loaded = {key: state[key] for key in wanted if key in state}
    return loaded, new, sorted({'.'.join(key.split('.')[:2]) for key in unused})


def load_encoder(backbone: PlainViT, path: str | Path, source: str = 'online') -> Verdict:
    """Load a checkpoint's encoder into a backbone, whole or not at all.

    Args:
        backbone: the model to fill.
        path: any file that :func:`find_encoder` knows.
        source: ``online`` or ``momentum``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its encoder does not fit the backbone; nothing is loaded then.
    """
    content = read_checkpoint(path)
    try:
        encoder = find_encoder(content, source)
        state, new, unused = match(backbone, encoder)
    except ValueError as error:
        raise ValueError(f'{path} was not loaded into the backbone: {error}. Use the config of the method and size '
                         'that made the file, or another file.') from error
    backbone.load_state_dict(state, strict=False)
    return Verdict(str(path), encoder.kind, len(state), len(state), new, unused, tensors_hash(state))


@WEIGHT_INITIALIZERS.register_module()
class EncoderWeights:
    """``init_cfg=dict(type='EncoderWeights', checkpoint=FILE)`` of a :class:`PlainViT`; see :func:`load_encoder`.

    The module's ``verdict`` tells what was loaded.
    """

    def __init__(self, checkpoint: str, source: str = 'online'):
        self.checkpoint, self.source = checkpoint, source

    def __call__(self, module: nn.Module) -> None:
        module.verdict = load_encoder(module, self.checkpoint, self.source)
        print_log(str(module.verdict), logger='current')


def load_run(model: nn.Module, content: dict, path: str | Path) -> None:
    """Load all weights of one of our runs into its model, whole or not at all.

    Args:
        model: of the config that wrote the file.
        content: of :func:`read_checkpoint`.
        path: its file, for the message.

    Raises:
        ValueError: if a weight is missing, unexpected or of another shape; nothing is loaded then.
    """
    state, wanted = weights_of(content), model.state_dict()
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    shapes = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or unexpected or shapes:
        lost = any(key.startswith('momentum.') for key in missing)
        momentum = ' Its momentum encoder is lost, and with it the training target.' if lost else ''
        raise ValueError(f'{path} is no checkpoint of this config\'s {type(model).__name__}: {len(missing)} weights '
                         f'missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} of '
                         f'another shape {shapes[:3]}.{momentum} Give the config that wrote the file; to start a new '
                         'run from its encoder use --init.')
    model.load_state_dict(state, strict=True)
