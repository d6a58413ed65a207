"""Compiles a model for training with ``torch.compile``."""

import os
import shutil
from typing import Any

import torch
from mmengine import dist
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import nn

from ...models.bootmae import BootMAE
from ...models.decoder import DecoderBlock
from ...models.layers import Block

SCOPES = ('whole', 'blocks')
CUDA_GRAPHS = ('reduce-overhead', 'max-autotune')
BLOCKS = (Block, DecoderBlock, TransformerEncoderLayer)


def compile_settings(value: Any, model: nn.Module) -> dict:
    """Expand ``compile`` of a config to ``dict(scope=..., **arguments of torch.compile)``; empty for no compilation.

    Args:
        value: True, 'whole', 'blocks', or a dict with ``scope`` and arguments of ``torch.compile``, such as
            ``dict(scope='whole', mode='reduce-overhead')``; None or False for no compilation.
        model: the model to train. True means ``whole`` for a BootMAE in one process, otherwise ``blocks``: a whole
            graph gives all gradients at once, so that their all-reduce cannot overlap with the backward pass.

    Raises:
        ValueError: for any other value, or ``whole`` for another model than BootMAE.
    """
    if not value:
        return {}
    options = dict(value) if isinstance(value, dict) else {} if value is True else dict(scope=value)
    whole = isinstance(model, BootMAE)
    options.setdefault('scope', 'whole' if whole and dist.get_world_size() == 1 else 'blocks')
    if options['scope'] not in SCOPES:
        raise ValueError(
            f'compile={value!r}: give True, {" or ".join(map(repr, SCOPES))}, or a dict with scope=... '
            'and arguments of torch.compile'
        )
    if options['scope'] == 'whole' and not whole:
        raise ValueError(
            f"compile={value!r}: {type(model).__name__} cannot be compiled as a whole; give compile='blocks'"
        )
    return options


def check_accumulation(options: dict, accumulation: int) -> None:
    """Raise a ValueError for CUDA graphs with gradient accumulation, whose gradients the next step would overwrite."""
    if options.get('mode') in CUDA_GRAPHS and accumulation > 1 and torch.cuda.is_available():
        raise ValueError(
            f'compile.mode={options["mode"]} uses CUDA graphs, which do not keep gradients over {accumulation} steps '
            "of accumulation: use compile='whole', or a train_dataloader.batch_size that needs no accumulation"
        )


def compile_model(model: nn.Module, scope: str, **options) -> int:
    """Compile a model in place for training. Weights, names and results do not change.

    Args:
        model: the model without wrappers.
        scope: ``whole`` compiles BootMAE from images and masks to its losses, with the momentum encoder, as one graph.
            ``blocks`` compiles each transformer block; equal blocks share a graph, which takes much less time.
        options: arguments of ``torch.compile``.

    Returns:
        The number of compiled parts.

    Raises:
        ValueError: if the model has no transformer block of this package or mmpretrain, or without a C++ compiler.
    """
    if options.get('backend', 'inductor') == 'inductor':
        check_compiler()
    if scope == 'whole':
        model.losses = torch.compile(model.losses, fullgraph=True, dynamic=False, **options)
        return 1
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise ValueError(f'compile: {type(model).__name__} has no transformer block of this package or mmpretrain')
    for block in blocks:
        block.compile(**options)
    return len(blocks)


def check_compiler() -> None:
    """Raise a ValueError without a C++ compiler, which torch needs for CPU kernels and GPU launchers."""
    compilers = [os.environ.get('CXX'), 'c++', 'g++', 'clang++']
    if not any(shutil.which(name) for name in compilers if name):
        raise ValueError(
            'compile: torch.compile needs a C++ compiler and found none: install one (Debian: sudo '
            'apt-get install g++), or remove compile from the config'
        )
