"""Maps the weight names of other projects to ours and back.

Our names are those of :class:`bootmae.models.BootMAE` (``backbone.``, ``momentum.``, ``pixel_decoder.``,
``feature_decoder.``), and of :class:`bootmae.models.PlainViT` without prefix. All functions are pure: they take and
return dicts of tensors.
"""

import re

import torch

from ..models.positions import bias_table_size, relative_index
from ..text import count_of

State = dict[str, torch.Tensor]

# Decoder names of the release (docs/method.md, section 9). The feature decoder has the suffix _1.
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
    """Our name for a decoder weight of the release, or None for any other name."""
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
    """Our name for a weight of the release's pretraining file, or None for any other name."""
    if key == 'de_pos_embed':
        return 'pixel_decoder.pos_embed'
    if _ENCODER.match(key):
        return f'backbone.{key}'
    return _decoder_key(key)


def from_authors(online: State, momentum: State | None = None) -> State:
    """Convert the release's pretraining weights to a state of :class:`bootmae.models.BootMAE`.

    Our feature decoder gets a copy of the encoder's positions, which the release shares. Only the encoder of the
    momentum model is kept, because its decoders and final norm are never used.

    Raises:
        ValueError: for an unknown name.
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
    """Convert a state of :class:`bootmae.models.BootMAE` to the release's online and momentum weights.

    This is the inverse of :func:`from_authors`.

    Raises:
        ValueError: if the positions of the feature decoder differ from the encoder's, because the release shares them;
            or for a part that the release does not have.
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
        elif part not in ('pixel_decoder', 'feature_decoder'):
            raise ValueError(f'the release has no place for {part}: use --to safetensors')
        else:
            online[_release_decoder_key(part, name)] = value
    return online, momentum


def _release_decoder_key(decoder: str, name: str) -> str:
    """The release's name for a decoder weight of ours, the inverse of ``_decoder_key``."""
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
    """Query and value part of a fused [query, key, value] bias. The key bias cancels in the softmax."""
    q, _, v = qkv_bias.chunk(3)
    return q, v


def split_qkv_bias(state: State) -> State:
    """Split fused biases ``...attn.qkv.bias`` into ``...attn.q_bias`` and ``...attn.v_bias``."""
    out = {}
    for key, value in state.items():
        if key.endswith('.attn.qkv.bias'):
            stem = key.removesuffix('qkv.bias')
            out[f'{stem}q_bias'], out[f'{stem}v_bias'] = drop_key_bias(value)
        else:
            out[key] = value
    return out


def fuse_qkv_bias(state: State) -> State:
    """Fuse biases ``...attn.q_bias`` and ``...attn.v_bias`` into ``...attn.qkv.bias`` with a zero key bias."""
    out = {}
    for key, value in state.items():
        if key.endswith('.attn.q_bias'):
            v_bias = state[key.replace('.q_bias', '.v_bias')]
            out[key.replace('.q_bias', '.qkv.bias')] = torch.cat((value, torch.zeros_like(value), v_bias))
        elif not key.endswith('.attn.v_bias'):
            out[key] = value
    return out


# Pairs of name prefixes, ours and theirs. # stands for the number of a block. The first match applies.
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
# MAE's decoder: names of mmpretrain and of facebookresearch.
MAE_DECODER: Table = (
    ('decoder_blocks.#.ln1.', 'decoder_blocks.#.norm1.'),
    ('decoder_blocks.#.ln2.', 'decoder_blocks.#.norm2.'),
    ('decoder_blocks.#.ffn.layers.0.0.', 'decoder_blocks.#.mlp.fc1.'),
    ('decoder_blocks.#.ffn.layers.1.', 'decoder_blocks.#.mlp.fc2.'),
    ('ln1.', 'decoder_norm.'),
)
# transformers 5 keeps the names of version 4 in files, but uses other names in memory.
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
    """Rename a state by a table from our names to theirs, or ``back``. Names without a match stay."""
    pairs = [pair[::-1] if back else pair for pair in table]
    rules = [(re.compile(re.escape(old).replace(r'\#', r'(\d+)')), new.replace('#', r'\1')) for old, new in pairs]

    def name(key: str) -> str:
        for pattern, new in rules:
            if match := pattern.match(key):
                return match.expand(new) + key[match.end() :]
        return key

    return {name(key): value for key, value in state.items()}


def from_mmpretrain(state: State) -> State:
    """Convert mmpretrain's ViT, or mmseg's MAE and BEiT, without prefix, to our encoder.

    Raises:
        ValueError: if relative position indices differ from ours; see :func:`check_relative_index`.
    """
    return split_qkv_bias(rename(drop_relative_index(state), MMPRETRAIN, back=True))


def to_mmpretrain(state: State) -> State:
    """Convert our encoder to mmpretrain's ``VisionTransformer``."""
    return rename(fuse_qkv_bias(state), MMPRETRAIN)


def mae_to_mmpretrain(state: State) -> State:
    """Convert all weights of facebookresearch's MAE to mmpretrain's ``MAE``; only names differ."""
    decoder = {key: value for key, value in state.items() if key.startswith(('decoder_', 'mask_token'))}
    encoder = {key: value for key, value in state.items() if key not in decoder}
    return {f'backbone.{key}': value for key, value in rename(encoder, MMPRETRAIN).items()} | {
        f'neck.{key}': value for key, value in rename(decoder, MAE_DECODER, back=True).items()
    }


def from_mmseg(state: State) -> State:
    """Convert mmseg's ``VisionTransformer``, without prefix, to our encoder."""
    return split_qkv_bias(rename(state, MMSEG, back=True))


def to_mmseg(state: State) -> State:
    """Convert our encoder to mmseg's ``VisionTransformer``, which uses torch's attention."""
    return rename(fuse_qkv_bias(state), MMSEG)


def from_timm(state: State) -> State:
    """Convert timm's ViT, or that of facebookresearch MAE or ViTDet, to our encoder: only the fused biases differ."""
    return split_qkv_bias(state)


def to_timm(state: State) -> State:
    """Convert our encoder to timm's ``VisionTransformer``."""
    return fuse_qkv_bias(state)


def to_mmdet(state: State) -> State:
    """Convert our encoder to the ``ViT`` of mmdetection's projects/ViTDet, which uses detectron2's names.

    That model has no class token and no final norm, and its loader ignores them.
    """
    return fuse_qkv_bias(state)


def from_hf(state: State) -> State:
    """Convert transformers' ``ViTModel``, without prefix, from a file or from memory, to our encoder."""
    state, out = rename(rename(state, _HF_IN_MEMORY, back=True), HF, back=True), {}
    for key, value in state.items():
        match = re.fullmatch(r'(.*\.attn\.)[qkv]\.(weight|bias)', key)
        stem, kind = match.groups() if match else ('', '')
        if not match:
            out[key] = value
        elif f'{stem}qkv.{kind}' not in out:
            parts = [state.get(f'{stem}{part}.{kind}') for part in 'qkv']
            if any(part is None for part in parts):
                raise ValueError(f'{stem}{kind}: query, key or value is missing')
            out[f'{stem}qkv.{kind}'] = torch.cat(parts)
    return split_qkv_bias(out)


def to_hf(state: State) -> State:
    """Convert our encoder to a file of transformers' ``ViTModel``, with separate query, key and value."""
    out = {}
    for key, value in fuse_qkv_bias(state).items():
        if match := re.fullmatch(r'(.*\.attn\.)qkv\.(weight|bias)', key):
            stem, kind = match.groups()
            out |= {f'{stem}{part}.{kind}': piece.clone() for part, piece in zip('qkv', value.chunk(3))}
        else:
            out[key] = value
    return rename(out, HF)


def from_authors_finetuned(state: State) -> State:
    """Convert the release's fine-tuned weights to an ``ImageClassifier`` with our encoder."""
    return {
        f'head.fc.{key.removeprefix("head.")}' if key.startswith('head.') else f'backbone.{key}': value
        for key, value in state.items()
    }


def to_authors_finetuned(state: State) -> State:
    """Convert our encoder and classifier (``backbone.``, ``head.fc.``) to the release's fine-tuned weights."""
    return {key.removeprefix('backbone.').replace('head.fc.', 'head.', 1): value for key, value in state.items()}


_SEGMENTATION_HEADS = ('decode_head.', 'auxiliary_head.')
_SEGMENTATION_PYRAMID: Table = (
    ('backbone.pyramid.up4.', 'backbone.fpn1.'),
    ('backbone.pyramid.up2.', 'backbone.fpn2.'),
)
_INDEX, _TABLE = '.relative_position_index', '.relative_position_bias_table'


def from_authors_segmentation(state: State) -> State:
    """Convert the release's segmentation weights to mmseg's ``EncoderDecoder`` with our ``TransferViT``.

    Relative position indices follow from the grid. They are compared with ours and left out.

    Raises:
        ValueError: for an unknown name, or an index that differs from ours.
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
    """Convert ``EncoderDecoder`` with our ``TransferViT`` to the release's segmentation weights.

    Args:
        state: state of the segmentor.
        grid: rows and columns of patches of the relative positions.

    Raises:
        ValueError: if the pyramid is not the release's, or if there are relative positions within windows.
    """
    if strange := [key for key in state if re.match(r'backbone\.pyramid\.(?!up[24]\.)', key)]:
        raise ValueError(f'{strange[0]} is not a weight of the pyramid of the release (up4, up2)')
    out = {}
    for key, value in rename(state, _SEGMENTATION_PYRAMID).items():
        out[key] = value
        if key.endswith(_TABLE):
            if grid is None or bias_table_size(grid) != len(value):
                raise ValueError(
                    f'{key} has {count_of(len(value), "row")}, which do not cover all pairs of {grid} patches: the '
                    'release has no attention within windows'
                )
            out[key.replace(_TABLE, _INDEX)] = relative_index(grid)
    return out


def drop_relative_index(state: State) -> State:
    """Remove relative position indices after checking them; see :func:`check_relative_index`."""
    for key in (key for key in state if key.endswith(_INDEX)):
        check_relative_index(key, state[key], state.get(key.replace(_INDEX, _TABLE)))
    return {key: value for key, value in state.items() if not key.endswith(_INDEX)}


def check_relative_index(key: str, index: torch.Tensor, table: torch.Tensor | None) -> None:
    """Raise a ValueError unless a stored index equals ours for a grid that fits the table."""
    patches, rows = len(index) - 1, -1 if table is None else len(table)
    grids = ((n, patches // n) for n in range(1, patches + 1) if patches % n == 0)
    if not any(torch.equal(index, relative_index(grid)) for grid in grids if bias_table_size(grid) == rows):
        raise ValueError(f'{key} orders relative positions differently from the release, or does not fit its table')
