"""Names of weights: other projects' files to ours, and back.

Ours are those of :class:`bootmae.models.BootMAE` (``backbone.``, ``momentum.``, ``pixel_decoder.``,
``feature_decoder.``) and of :class:`bootmae.models.PlainViT` without prefix. All functions are pure: dicts of tensors
in, dicts of tensors out.
"""

import re

import torch

from ..models.positions import bias_table_size, relative_index

State = dict[str, torch.Tensor]

# The release's decoder names (bootmae.md, section 9), in front of an optional suffix _1 for the feature branch.
_DECODER_PARTS = {
    'down': 'embed',
    'mask_token': 'mask_token',
    'decode_norm': 'norm',
    'lm_head': 'head',
}
_DECODER_BLOCK_PARTS = {
    'norm1': 'self_norm',
    'attn': 'self_attn',
    'norm3': 'cross_norm',
    'norm4': 'context_norm',
    'c_attn': 'cross_attn',
    'norm2': 'mlp_norm',
    'mlp': 'mlp',
}
_ENCODER = re.compile(r'(cls_token|pos_embed|patch_embed\.|blocks\.|norm\.|fc_norm\.)')
_DECODER_BLOCK = re.compile(r'decode_blocks(_1)?\.(\d+)\.(\w+)(.*)')
_DECODER_PART = re.compile(r'(down|mask_token|decode_norm|lm_head)(_1)?(\.proj)?(\.weight|\.bias)?')


def _decoder_key(key: str) -> str | None:
    """The release's name of a decoder weight as ours, or None for any other name."""
    if match := _DECODER_BLOCK.fullmatch(key):
        suffix, index, part, rest = match.groups()
        if part not in _DECODER_BLOCK_PARTS:
            return None
        decoder = 'feature_decoder' if suffix else 'pixel_decoder'
        return f'{decoder}.blocks.{index}.{_DECODER_BLOCK_PARTS[part]}{rest}'
    if match := _DECODER_PART.fullmatch(key):
        part, suffix, _, rest = match.groups()
        decoder = 'feature_decoder' if suffix else 'pixel_decoder'
        return f'{decoder}.{_DECODER_PARTS[part]}{rest or ""}'
    return None


def authors_key(key: str) -> str | None:
    """Our name in the algorithm for a name in the release's pretraining file; None if it is not a weight of it."""
    if key == 'de_pos_embed':
        return 'pixel_decoder.pos_embed'
    if _ENCODER.match(key):
        return f'backbone.{key}'
    return _decoder_key(key)


def from_authors(online: State, momentum: State | None = None) -> State:
    """The release's pretraining weights as a state of our algorithm.

    The feature branch reuses the encoder's positions there and has its own copy here. Of the momentum copy only the
    encoder is kept: its decoders and its final norm are never used.

    Raises:
        ValueError: for a name that is none of the release's.
    """
    names = {key: authors_key(key) for key in online}
    if unknown := sorted(key for key, name in names.items() if name is None):
        raise ValueError(f'not a BootMAE pretraining file: unknown weights {unknown[:5]}')
    state = {name: online[key] for key, name in names.items()}
    if 'pos_embed' in online:
        state['feature_decoder.pos_embed'] = online['pos_embed']
    for key, value in (momentum or {}).items():
        name = authors_key(key) or ''
        if name.startswith('backbone.') and not name.startswith('backbone.norm.'):
            state[name.replace('backbone.', 'momentum.', 1)] = value
    return state


def drop_key_bias(qkv_bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and value part of a fused [query, key, value] bias. The key bias cancels in the softmax: no loss."""
    q, _, v = qkv_bias.chunk(3)
    return q, v


def split_qkv_bias(state: State) -> State:
    """Fused biases ``...attn.qkv.bias`` as ``...attn.q_bias`` and ``...attn.v_bias``."""
    out = {}
    for key, value in state.items():
        if key.endswith('.attn.qkv.bias'):
            stem = key.removesuffix('qkv.bias')
            out[f'{stem}q_bias'], out[f'{stem}v_bias'] = drop_key_bias(value)
        else:
            out[key] = value
    return out


_MMPRETRAIN = (
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^layers\.(\d+)\.ln(\d)\.', r'blocks.\1.norm\2.'),
    (r'^layers\.(\d+)\.ffn\.layers\.0\.0\.', r'blocks.\1.mlp.fc1.'),
    (r'^layers\.(\d+)\.ffn\.layers\.1\.', r'blocks.\1.mlp.fc2.'),
    (r'^layers\.', 'blocks.'),
    (r'^ln1\.', 'norm.'),
    (r'^ln2\.', 'fc_norm.'),
)


def from_mmpretrain(state: State) -> State:
    """mmpretrain's ViT (prefix removed) as our encoder."""
    def rename(key: str) -> str:
        for pattern, new in _MMPRETRAIN:
            key = re.sub(pattern, new, key)
        return key
    return split_qkv_bias({rename(key): value for key, value in state.items()})


def from_timm(state: State) -> State:
    """timm's ViT, also facebookresearch MAE's encoder, as our encoder: only the fused biases differ."""
    return split_qkv_bias(state)


def from_authors_finetuned(state: State) -> State:
    """The release's fine-tuned weights as a state of an ``ImageClassifier`` with our encoder."""
    return {f'head.fc.{key.removeprefix("head.")}' if key.startswith('head.') else f'backbone.{key}': value
            for key, value in state.items()}


_SEGMENTATION_HEADS = ('decode_head.', 'auxiliary_head.')
_SEGMENTATION_PYRAMID = (('fpn1.', 'pyramid.up4.'), ('fpn2.', 'pyramid.up2.'))
_INDEX, _TABLE = '.relative_position_index', '.relative_position_bias_table'


def from_authors_segmentation(state: State) -> State:
    """The release's segmentation weights as a state of mmseg's ``EncoderDecoder`` with our ``TransferViT``.

    The relative position indices, which follow from the grid, are compared with ours and left out.

    Raises:
        ValueError: for a name that is none of the release's, or an index that is not ours.
    """
    renamed, unknown = {}, []
    for key, value in state.items():
        if key.endswith(_INDEX):
            check_relative_index(key, value, state.get(key.replace(_INDEX, _TABLE)))
            continue
        name = key.removeprefix('backbone.')
        for old, new in _SEGMENTATION_PYRAMID:
            name = name.replace(old, new, 1) if name.startswith(old) else name
        if key.startswith('backbone.') and (_ENCODER.match(name) or name.startswith('pyramid.')):
            renamed[f'backbone.{name}'] = value
        elif key.startswith(_SEGMENTATION_HEADS):
            renamed[key] = value
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f'not a BootMAE segmentation file: unknown weights {unknown[:5]}')
    return renamed


def check_relative_index(key: str, index: torch.Tensor, table: torch.Tensor | None) -> None:
    """Raise a ValueError unless a stored index says what ours says, for a grid that fits the table."""
    patches, rows = len(index) - 1, -1 if table is None else len(table)
    grids = ((n, patches // n) for n in range(1, patches + 1) if patches % n == 0)
    if not any(torch.equal(index, relative_index(grid)) for grid in grids if bias_table_size(grid) == rows):
        raise ValueError(f'{key} orders the relative positions otherwise than the release, or does not fit its table')
