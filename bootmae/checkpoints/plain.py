"""What the encoder of a plain ViT has, by name and shape; other ViTs compute something else with these weights."""

import math
import re

from .identify import FileEncoder

POOLED, UNPOOLED = ('fc_norm.',), ('norm.',)
OPTIONAL = (*POOLED, *UNPOOLED, 'pyramid.')
ENDS = {f'{part}{kind}' for part in (*POOLED, *UNPOOLED) for kind in ('weight', 'bias')}
TRANSFER = ('gamma_1', 'gamma_2', 'attn.relative_position_bias_table', 'attn.rel_pos_h', 'attn.rel_pos_w')
REASONS = {  # what a name or a shape of another ViT stands for
    r'\.ls\d\.|gamma|layer_scale|lambda': 'layer scale',
    r'reg_token|register': 'register tokens',
    r'[qk]_norm': 'norms of queries and keys',
    r'norm_pre|pre_norm|pre_ln|pre_layernorm': 'a norm before the blocks',
    r'dist_token|distillation': 'a distillation token',
    r'w12|w3|fc1_[gx]|mlp\.fc2\.weight \(': 'a gated MLP, such as SwiGLU',
    r'rope|rotary|rel_pos|relative_position': 'relative positions',
    r'cls_token$': 'a class token',
    r'attn\.[qv]_bias$': 'biases of the attention',
    r'pos_embed$': 'absolute positions',
}


def check_complete(encoder: FileEncoder) -> None:
    """Raise a ValueError if a tensor of our ViT is missing or of another shape, or if ours does not have a tensor."""
    state = encoder.state
    wanted = plain_shapes(encoder)
    known = {*wanted, *(f'blocks.{index}.{name}' for index in range(encoder.depth) for name in TRANSFER)}
    if unknown := [key for key in state if key not in known and not key.startswith(OPTIONAL)]:
        raise ValueError(
            f'its encoder has weights that a plain ViT does not have ({len(unknown)}): {reasoned(unknown)}. Without '
            'them it would compute something else; use them in the program that wrote the file'
        )
    if missing := [key for key in wanted if key not in state]:
        raise ValueError(
            f'its encoder lacks weights of a plain ViT ({len(missing)}): {reasoned(missing)}; use another copy of the '
            'file, or a plain ViT'
        )
    shapes = [
        f'{key} {tuple(state[key].shape)} for {shape}'
        for key, shape in wanted.items()
        if shape and tuple(state[key].shape) != shape
    ]
    if shapes:
        raise ValueError(
            f'its encoder has weights of another shape than a plain ViT ({len(shapes)}): {reasoned(shapes)}'
        )
    rows = state['pos_embed'].shape[1]
    if encoder.grid is None and math.isqrt(rows) ** 2 == rows and set(state) <= {*wanted, *ENDS}:
        raise ValueError(f'its pos_embed has {rows} rows, a square, and none for the class token')


def plain_shapes(encoder: FileEncoder) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a plain ViT of these sizes, without its final norm; () where the shape is free."""
    state = encoder.state

    def size(key: str, axis: int = 0) -> int:
        return state[key].shape[axis] if key in state and state[key].dim() > axis else 0

    width, hidden = size('patch_embed.proj.weight'), size('blocks.0.mlp.fc1.weight')
    heads = size('blocks.0.attn.qkv.weight') // 3  # all heads together
    block = {
        'norm1.weight': (width,),
        'norm1.bias': (width,),
        'attn.qkv.weight': (3 * heads, width),
        'attn.q_bias': (heads,),
        'attn.v_bias': (heads,),
        'attn.proj.weight': (width, heads),
        'attn.proj.bias': (width,),
        'norm2.weight': (width,),
        'norm2.bias': (width,),
        'mlp.fc1.weight': (hidden, width),
        'mlp.fc1.bias': (hidden,),
        'mlp.fc2.weight': (width, hidden),
        'mlp.fc2.bias': (width,),
    }
    token = {} if any('.rel_pos_' in key for key in state) else {'cls_token': (1, 1, width)}  # ViTDet has none
    embedding = {'pos_embed': (), 'patch_embed.proj.weight': (), 'patch_embed.proj.bias': (width,)}
    blocks = {f'blocks.{index}.{name}': shape for index in range(encoder.depth) for name, shape in block.items()}
    return token | embedding | blocks


def reasoned(keys: list[str]) -> str:
    """The first names of a list, with what they stand for."""
    why = next((words for pattern, words in REASONS.items() if re.search(pattern, keys[0])), '')
    return ', '.join(keys[:4]) + (f' ({why})' if why else '')
