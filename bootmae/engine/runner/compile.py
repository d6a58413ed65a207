"""``torch.compile`` of a model in training: what of it, how, and what it cost."""

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
BLOCKS = (Block, DecoderBlock, TransformerEncoderLayer)


def settings(value: Any, model: nn.Module) -> dict:
    """The config's ``compile`` as ``dict(scope=..., **arguments of torch.compile)``; empty for no compilation.

    Args:
        value: True, 'whole', 'blocks', or a dict with ``scope`` and arguments of ``torch.compile``, such as
            ``dict(scope='whole', mode='max-autotune')``; None or False for none.
        model: to be trained. True stands for its ``whole``, where it is a BootMAE in one process, else for ``blocks``:
            the gradients of a whole graph come all at once, so that nothing of their exchange between processes would
            overlap with the backward pass.

    Raises:
        ValueError: for anything else.
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
            f"compile={value!r}: the whole of a {type(model).__name__} cannot be compiled, give compile='blocks'"
        )
    return options


def compile_model(model: nn.Module, scope: str, **options) -> int:
    """Compile a model's training in place; gives the number of parts. Weights, names and results stay as they are.

    Args:
        model: without wrappers.
        scope: ``whole``: BootMAE from images and masks to its two losses, momentum encoder included, in one graph.
            ``blocks``: each transformer block by itself; equal ones share a graph, so that it takes a fraction of the
            time to compile.
        options: of ``torch.compile``.

    Raises:
        ValueError: if the model has no transformer block of ours or of mmpretrain, or if there is no compiler.
    """
    if options.get('backend', 'inductor') == 'inductor':
        check_compiler()
    if scope == 'whole':
        model.losses = torch.compile(model.losses, fullgraph=True, dynamic=False, **options)
        return 1
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise ValueError(f'compile: {type(model).__name__} has no transformer block of ours or of mmpretrain')
    for block in blocks:
        block.compile(**options)
    return len(blocks)


def check_compiler() -> None:
    """Raise a ValueError without a C++ compiler, which torch calls for its kernels on a CPU and launchers on a GPU."""
    compilers = [os.environ.get('CXX'), 'c++', 'g++', 'clang++']
    if not any(shutil.which(name) for name in compilers if name):
        raise ValueError(
            'compile: torch.compile needs a C++ compiler, and there is none: install one (Debian: sudo '
            'apt-get install g++), or leave compile out'
        )
