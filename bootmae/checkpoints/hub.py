"""Weights named ``timm:NAME``, which every tool takes in place of a checkpoint file.

timm downloads the weights from the Hugging Face hub into its cache and loads them into its own model. We use the state
of that model, with the input statistics, size and heads that timm records.
"""

import difflib
import importlib
from types import ModuleType

import torch
from torch import nn

PREFIX = 'timm:'
NEAR = 5  # number of suggested names
EPS = 1e-6  # of our LayerNorms


def is_name(checkpoint: object) -> bool:
    """Whether this is ``timm:NAME`` and not a file."""
    return str(checkpoint).startswith(PREFIX)


def read_named(checkpoint: str) -> dict:
    """Read ``timm:NAME`` into the form of a file of this suite: ``state_dict`` and ``meta``.

    Args:
        checkpoint: ``timm:NAME`` with a name of ``timm.list_pretrained()``. Without a tag it is timm's default one.

    Raises:
        ValueError: if the name is unknown or is not a plain ViT.
        FileNotFoundError: if the weights cannot be downloaded.
    """
    timm = _timm()
    name = full_name(timm, checkpoint.removeprefix(PREFIX))
    with torch.device('meta'):  # check the model before anything is downloaded
        blank = timm.create_model(name, pretrained=False)
    if faults := plain_faults(blank):
        raise ValueError(
            f'{PREFIX}{name} is not a plain ViT: {"; ".join(faults)}. Use a vit_* or deit_* without '
            f'registers, e.g. {PREFIX}vit_base_patch16_224.mae'
        )
    model = download(timm, name)
    cfg = model.pretrained_cfg
    facts = dict(
        method=f'{PREFIX}{name}',
        mean=_of_255(cfg['mean']),
        std=_of_255(cfg['std']),
        img_size=list(model.patch_embed.img_size),
        num_heads=model.blocks[0].attn.num_heads,
    )
    return dict(state_dict=model.state_dict(), meta=dict(bootmae=facts))


def _timm() -> ModuleType:
    try:
        return importlib.import_module('timm')
    except ImportError:
        raise ValueError(f'{PREFIX}NAME needs the package timm: install it, or use a file') from None


def full_name(timm: ModuleType, name: str) -> str:
    """Complete a name with its tag, as in timm's list.

    Raises:
        ValueError: if timm has no weights of that name. The message suggests similar names.
    """
    known = timm.list_pretrained()
    if name in known:
        return name
    architecture = name.partition('.')[0]
    cfg = timm.get_pretrained_cfg(architecture, allow_unregistered=True) if name == architecture else None
    if cfg is not None and f'{architecture}.{cfg.tag}' in known:
        return f'{architecture}.{cfg.tag}'
    tags = [other for other in known if other.startswith(f'{architecture}.')]
    near = (
        difflib.get_close_matches(name, tags, NEAR, 0.0)
        or difflib.get_close_matches(name, known, NEAR, 0.6)
        or difflib.get_close_matches(architecture, {other.partition('.')[0] for other in known}, NEAR, 0.4)
    )
    shown = ', '.join(near)
    raise ValueError(
        f'timm {timm.__version__} has no weights named {name!r}; near names: {shown or "none"} (all of '
        'them: timm.list_pretrained())'
    )


def plain_faults(model: nn.Module) -> list[str]:
    """Reasons why :class:`PlainViT` with the weights of a timm model would not compute the same; empty if it would.

    Names of weights do not reveal all differences, for example the activation, epsilons or parallel blocks.
    """
    from timm.layers import Mlp
    from timm.models.vision_transformer import Attention, Block, VisionTransformer

    if type(model) is not VisionTransformer:
        return [f'it is a {type(model).__name__}']
    block, embed = model.blocks[0], model.patch_embed
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return [
            f'its blocks are {type(block).__name__} of {type(block.attn).__name__} and {type(block.mlp).__name__}'
            if hasattr(block, 'attn') and hasattr(block, 'mlp')
            else f'its blocks are {type(block).__name__}'
        ]
    attn, mlp = block.attn, block.mlp
    activation = type(mlp.act) is nn.GELU and mlp.act.approximate == 'none'
    extra = [
        (embed, 'norm'),
        (model, 'norm_pre'),
        (attn, 'q_norm'),
        (attn, 'k_norm'),
        (attn, 'norm'),
        (mlp, 'norm'),
        (block, 'ls1'),
        (block, 'ls2'),
    ]
    faults = [
        f'it has a {name}' for part, name in extra if not isinstance(getattr(part, name, nn.Identity()), nn.Identity)
    ]
    tests = {
        'it has no class token, or more tokens than that': model.num_prefix_tokens == 1 and model.has_class_token,
        'its class token has no position': not model.no_embed_class and model.pos_embed is not None,
        f'its activation is {mlp.act}': activation,
        f'its norms are {block.norm1}': isinstance(block.norm1, nn.LayerNorm) and block.norm1.eps == EPS,
        'its attention has no biases': attn.qkv.bias is not None,
    }
    return faults + [fault for fault, fine in tests.items() if not fine]


def download(timm: ModuleType, name: str) -> nn.Module:
    """Build timm's model with its weights, from the hub or from timm's cache.

    Raises:
        FileNotFoundError: if neither has them. The message explains how to fetch them by hand.
    """
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # errors of the hub, httpx, requests, ssl or a proxy
        reason = str(error).strip().partition('\n')[0].partition('. ')[0]
        raise FileNotFoundError(
            f'{PREFIX}{name} could not be downloaded ({type(error).__name__}: {reason}). On a machine that '
            f'reaches the hub: tools/convert_checkpoint.py {PREFIX}{name} --to timm {name}.safetensors, which writes '
            f'the input statistics too. Then give that file: --init {name}.safetensors'
        ) from error


def _of_255(values: tuple[float, ...]) -> list[float]:
    return [round(255 * value, 4) for value in values]
