"""The number of attention heads of an encoder, which no shape of a plain ViT tells."""

from torch import nn

from ..models.vit import ARCHS
from ..text import count_of
from .identify import FileEncoder

HUGE = dict(embed_dims=1280, depth=32, num_heads=16)
HEAD_WIDTH = 64  # of all common ViTs except ViT-H


def recorded_heads(encoder: FileEncoder) -> int | None:
    """Return the number of attention heads that the file records or that its relative positions show."""
    for key, value in encoder.state.items() if not encoder.num_heads else ():
        if key.endswith('relative_position_bias_table'):
            return value.shape[1]
        if key.endswith('rel_pos_h'):
            return encoder.state['pos_embed'].shape[-1] // value.shape[1]
    return encoder.num_heads


def model_heads(backbone: nn.Module) -> int:
    """Return the number of attention heads of our ViT or mmpretrain's."""
    return backbone.num_heads if hasattr(backbone, 'num_heads') else backbone.layers[0].attn.num_heads


def heads_of(encoder: FileEncoder, num_heads: int | None = None) -> int:
    """Return the number of attention heads: recorded in the file, given, or that of the common ViT of this width.

    Raises:
        ValueError: If the number is unknown, or differs between the file and the argument.
    """
    recorded = recorded_heads(encoder)
    if None not in (recorded, num_heads) and recorded != num_heads:
        raise ValueError(f'--heads {num_heads}, but the file records {count_of(recorded, "head")}: leave --heads out')
    if recorded or num_heads:
        return recorded or num_heads
    width = encoder.state['pos_embed'].shape[-1]
    for arch in (*ARCHS.values(), HUGE):
        if (arch['embed_dims'], arch['depth']) == (width, encoder.depth):
            return arch['num_heads']
    if width % HEAD_WIDTH:
        raise ValueError(
            f'the file does not record the number of attention heads, and a width of {width} is unusual: give --heads '
            '(num_heads in Python)'
        )
    return width // HEAD_WIDTH
