"""Names of weights: other projects' files to ours, and back.

Ours are those of :class:`bootmae.models.BootMAE` (``backbone.``, ``momentum.``, ``pixel_decoder.``,
``feature_decoder.``) and of :class:`bootmae.models.PlainViT` without prefix. All functions are pure: dicts of tensors
in, dicts of tensors out.
"""

import re

import torch

from ..models.positions import bias_table_size, relative_index

State = dict[str, torch.Tensor]

# The release's decoder names (docs/method.md, section 9), in front of an optional suffix _1 for the feature branch.
_DECODER_PARTS = {'down': 'embed', 'mask_token': 'mask_token', 'decode_norm': 'norm', 'lm_head': 'head'}
_DECODER_BLOCK_PARTS = {
    'norm1': 'self_norm',
    'attn': 'self_attn',
    'norm3': 'cross_norm',
    'norm4': 'context_norm',
    'c_attn': 'cross_attn',
    'norm2': 'mlp_norm',
    'mlp': 'mlp',
}
_OUR_DECODER_PARTS = {ours: theirs for theirs, ours in _DECODER_PARTS.items()}
_OUR_DECODER_BLOCK_PARTS = {ours: theirs for theirs, ours in _DECODER_BLOCK_PARTS.items()}
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


def to_authors(state: State) -> tuple[State, State]:
    """A state of our algorithm as the release's pretraining weights, online and momentum: undoes from_authors.

    Raises:
        ValueError: if the feature decoder has other positions than the encoder, whose the release takes there.
    """
    online, momentum = {}, {}
    for key, value in state.items():
        part, _, name = key.partition('.')
        if part == 'backbone':
            online[name] = value
        elif part == 'momentum':
            momentum[name] = value
        elif key == 'feature_decoder.pos_embed':
            if not torch.equal(value, state['backbone.pos_embed']):
                raise ValueError(f'{key} differs from backbone.pos_embed, and the release has no place for it')
        else:
            online[_release_decoder_key(part, name)] = value
    return online, momentum


def _release_decoder_key(decoder: str, name: str) -> str:
    """Our name of a decoder weight as the release's; undoes _decoder_key."""
    suffix = {'pixel_decoder': '', 'feature_decoder': '_1'}[decoder]
    if name == 'pos_embed':
        return 'de_pos_embed'
    if match := re.fullmatch(r'blocks\.(\d+)\.(\w+)(.*)', name):
        index, part, rest = match.groups()
        return f'decode_blocks{suffix}.{index}.{_OUR_DECODER_BLOCK_PARTS[part]}{rest}'
    part, dot, rest = name.partition('.')
    projection = '.proj' if name.startswith('head.') and not suffix else ''  # the release's pixel head is a module
    return f'{_OUR_DECODER_PARTS[part]}{suffix}{projection}{dot}{rest}'


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


def fuse_qkv_bias(state: State) -> State:
    """Biases ``...attn.q_bias`` and ``...attn.v_bias`` as one ``...attn.qkv.bias``, the key's part zero."""
    out = {}
    for key, value in state.items():
        if key.endswith('.attn.q_bias'):
            v_bias = state[key.replace('.q_bias', '.v_bias')]
            out[key.replace('.q_bias', '.qkv.bias')] = torch.cat((value, torch.zeros_like(value), v_bias))
        elif not key.endswith('.attn.v_bias'):
            out[key] = value
    return out


# Beginnings of names: ours, theirs; # stands for the number of a block. The first that fits counts.
Table = tuple[tuple[str, str], ...]
MMPRETRAIN: Table = (
    ('patch_embed.proj.', 'patch_embed.projection.'),
    ('blocks.#.norm1.', 'layers.#.ln1.'),
    ('blocks.#.norm2.', 'layers.#.ln2.'),
    ('blocks.#.mlp.fc1.', 'layers.#.ffn.layers.0.0.'),
    ('blocks.#.mlp.fc2.', 'layers.#.ffn.layers.1.'),
    ('blocks.#.', 'layers.#.'),
    ('norm.', 'ln1.'),
    ('fc_norm.', 'ln2.'),
)
MMSEG: Table = (
    ('blocks.#.attn.qkv.weight', 'layers.#.attn.attn.in_proj_weight'),
    ('blocks.#.attn.qkv.bias', 'layers.#.attn.attn.in_proj_bias'),
    ('blocks.#.attn.proj.', 'layers.#.attn.attn.out_proj.'),
    *MMPRETRAIN,
)
HF: Table = (
    ('cls_token', 'embeddings.cls_token'),
    ('pos_embed', 'embeddings.position_embeddings'),
    ('patch_embed.proj.', 'embeddings.patch_embeddings.projection.'),
    ('blocks.#.norm1.', 'encoder.layer.#.layernorm_before.'),
    ('blocks.#.norm2.', 'encoder.layer.#.layernorm_after.'),
    ('blocks.#.attn.q.', 'encoder.layer.#.attention.attention.query.'),
    ('blocks.#.attn.k.', 'encoder.layer.#.attention.attention.key.'),
    ('blocks.#.attn.v.', 'encoder.layer.#.attention.attention.value.'),
    ('blocks.#.attn.proj.', 'encoder.layer.#.attention.output.dense.'),
    ('blocks.#.mlp.fc1.', 'encoder.layer.#.intermediate.dense.'),
    ('blocks.#.mlp.fc2.', 'encoder.layer.#.output.dense.'),
    ('norm.', 'layernorm.'),
)
# MAE's decoder: mmpretrain's names, facebookresearch's.
MAE_DECODER: Table = (
    ('decoder_blocks.#.ln1.', 'decoder_blocks.#.norm1.'),
    ('decoder_blocks.#.ln2.', 'decoder_blocks.#.norm2.'),
    ('decoder_blocks.#.ffn.layers.0.0.', 'decoder_blocks.#.mlp.fc1.'),
    ('decoder_blocks.#.ffn.layers.1.', 'decoder_blocks.#.mlp.fc2.'),
    ('ln1.', 'decoder_norm.'),
)
# transformers 5 has other names in memory than in its files, which keep those of version 4.
_HF_IN_MEMORY: Table = (
    ('encoder.layer.#.attention.attention.query.', 'layers.#.attention.q_proj.'),
    ('encoder.layer.#.attention.attention.key.', 'layers.#.attention.k_proj.'),
    ('encoder.layer.#.attention.attention.value.', 'layers.#.attention.v_proj.'),
    ('encoder.layer.#.attention.output.dense.', 'layers.#.attention.o_proj.'),
    ('encoder.layer.#.intermediate.dense.', 'layers.#.mlp.fc1.'),
    ('encoder.layer.#.output.dense.', 'layers.#.mlp.fc2.'),
    ('encoder.layer.#.', 'layers.#.'),
)


def rename(state: State, table: Table, back: bool = False) -> State:
    """The names of a state as a table says, from ours to theirs, or back; names that fit no row stay."""
    pairs = [pair[::-1] if back else pair for pair in table]
    rules = [(re.compile(re.escape(old).replace(r'\#', r'(\d+)')), new.replace('#', r'\1')) for old, new in pairs]

    def name(key: str) -> str:
        for pattern, new in rules:
            if match := pattern.match(key):
                return match.expand(new) + key[match.end() :]
        return key

    return {name(key): value for key, value in state.items()}


def from_mmpretrain(state: State) -> State:
    """mmpretrain's ViT, also mmseg's MAE and BEiT (prefix removed), as our encoder.

    Raises:
        ValueError: for relative position indices other than ours; see :func:`check_relative_index`.
    """
    return split_qkv_bias(rename(drop_relative_index(state), MMPRETRAIN, back=True))


def to_mmpretrain(state: State) -> State:
    """Our encoder as mmpretrain's ``VisionTransformer``."""
    return rename(fuse_qkv_bias(state), MMPRETRAIN)


def mae_to_mmpretrain(state: State) -> State:
    """All weights of facebookresearch's MAE as a state of mmpretrain's ``MAE``, which has the same values."""
    decoder = {key: value for key, value in state.items() if key.startswith(('decoder_', 'mask_token'))}
    encoder = {key: value for key, value in state.items() if key not in decoder}
    return {f'backbone.{key}': value for key, value in rename(encoder, MMPRETRAIN).items()} | {
        f'neck.{key}': value for key, value in rename(decoder, MAE_DECODER, back=True).items()
    }


def from_mmseg(state: State) -> State:
    """mmseg's ``VisionTransformer`` (prefix removed) as our encoder."""
    return split_qkv_bias(rename(state, MMSEG, back=True))


def to_mmseg(state: State) -> State:
    """Our encoder as mmseg's ``VisionTransformer``, whose attention is torch's."""
    return rename(fuse_qkv_bias(state), MMSEG)


def from_timm(state: State) -> State:
    """timm's ViT, also facebookresearch MAE's and ViTDet's, as our encoder: only the fused biases differ."""
    return split_qkv_bias(state)


def to_timm(state: State) -> State:
    """Our encoder as timm's ``VisionTransformer``."""
    return fuse_qkv_bias(state)


def to_mmdet(state: State) -> State:
    """Our encoder as the ``ViT`` of mmdetection's projects/ViTDet, whose names are detectron2's.

    It has no class token and no final norm; its loader passes over them.
    """
    return fuse_qkv_bias(state)


def from_hf(state: State) -> State:
    """transformers' ``ViTModel`` (prefix removed), as in its files or in memory, as our encoder."""
    state, out = rename(rename(state, _HF_IN_MEMORY, back=True), HF, back=True), {}
    for key, value in state.items():
        match = re.fullmatch(r'(.*\.attn\.)[qkv]\.(weight|bias)', key)
        stem, kind = match.groups() if match else ('', '')
        if not match:
            out[key] = value
        elif f'{stem}qkv.{kind}' not in out:
            parts = [state.get(f'{stem}{part}.{kind}') for part in 'qkv']
            if any(part is None for part in parts):
                raise ValueError(f'{stem}{kind}: query, key and value are not all there')
            out[f'{stem}qkv.{kind}'] = torch.cat(parts)
    return split_qkv_bias(out)


def to_hf(state: State) -> State:
    """Our encoder under the names of transformers' ``ViTModel`` files: query, key and value apart."""
    out = {}
    for key, value in fuse_qkv_bias(state).items():
        if match := re.fullmatch(r'(.*\.attn\.)qkv\.(weight|bias)', key):
            stem, kind = match.groups()
            out |= {f'{stem}{part}.{kind}': piece.clone() for part, piece in zip('qkv', value.chunk(3))}
        else:
            out[key] = value
    return rename(out, HF)


def from_authors_finetuned(state: State) -> State:
    """The release's fine-tuned weights as a state of an ``ImageClassifier`` with our encoder."""
    return {
        f'head.fc.{key.removeprefix("head.")}' if key.startswith('head.') else f'backbone.{key}': value
        for key, value in state.items()
    }


def to_authors_finetuned(state: State) -> State:
    """Our encoder and classifier (``backbone.``, ``head.fc.``) as the release's fine-tuned weights."""
    return {key.removeprefix('backbone.').replace('head.fc.', 'head.', 1): value for key, value in state.items()}


_SEGMENTATION_HEADS = ('decode_head.', 'auxiliary_head.')
_SEGMENTATION_PYRAMID: Table = (
    ('backbone.pyramid.up4.', 'backbone.fpn1.'),
    ('backbone.pyramid.up2.', 'backbone.fpn2.'),
)
_INDEX, _TABLE = '.relative_position_index', '.relative_position_bias_table'


def from_authors_segmentation(state: State) -> State:
    """The release's segmentation weights as a state of mmseg's ``EncoderDecoder`` with our ``TransferViT``.

    The relative position indices, which follow from the grid, are compared with ours and left out.

    Raises:
        ValueError: for a name that is none of the release's, or an index that is not ours.
    """
    renamed = rename(drop_relative_index(state), _SEGMENTATION_PYRAMID, back=True)
    unknown = [
        key
        for key in renamed
        if not key.startswith(('backbone.pyramid.', *_SEGMENTATION_HEADS))
        and not (key.startswith('backbone.') and _ENCODER.match(key.removeprefix('backbone.')))
    ]
    if unknown:
        raise ValueError(f'not a BootMAE segmentation file: unknown weights {unknown[:5]}')
    return renamed


def to_authors_segmentation(state: State, grid: tuple[int, int] | None) -> State:
    """A state of ``EncoderDecoder`` with our ``TransferViT`` as the release's segmentation weights.

    Args:
        state: of the segmentor.
        grid: rows and columns of the patches that the relative positions are for.

    Raises:
        ValueError: for a pyramid that is not the release's, or relative positions of windows.
    """
    if strange := [key for key in state if re.match(r'backbone\.pyramid\.(?!up[24]\.)', key)]:
        raise ValueError(f'the release has no such pyramid: {strange[0]}')
    out = {}
    for key, value in rename(state, _SEGMENTATION_PYRAMID).items():
        out[key] = value
        if key.endswith(_TABLE):
            if grid is None or bias_table_size(grid) != len(value):
                raise ValueError(
                    f'{key} has {len(value)} rows, which are not for all pairs of {grid} patches: the '
                    'release has no attention within windows'
                )
            out[key.replace(_TABLE, _INDEX)] = relative_index(grid)
    return out


def drop_relative_index(state: State) -> State:
    """A state without relative position indices, each of which must be ours; see :func:`check_relative_index`."""
    for key in (key for key in state if key.endswith(_INDEX)):
        check_relative_index(key, state[key], state.get(key.replace(_INDEX, _TABLE)))
    return {key: value for key, value in state.items() if not key.endswith(_INDEX)}


def check_relative_index(key: str, index: torch.Tensor, table: torch.Tensor | None) -> None:
    """Raise a ValueError unless a stored index says what ours says, for a grid that fits the table."""
    patches, rows = len(index) - 1, -1 if table is None else len(table)
    grids = ((n, patches // n) for n in range(1, patches + 1) if patches % n == 0)
    if not any(torch.equal(index, relative_index(grid)) for grid in grids if bias_table_size(grid) == rows):
        raise ValueError(f'{key} orders the relative positions otherwise than the release, or does not fit its table')
