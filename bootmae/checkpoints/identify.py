"""Detects the format of a checkpoint and maps its encoder to our names."""

import math
import re
from dataclasses import dataclass, field

from .averages import SOURCES, WHAT, places, taken, weights_of
from .detectron2 import from_detectron2
from .keys import (
    State,
    authors_key,
    from_authors,
    from_authors_segmentation,
    from_hf,
    from_mmpretrain,
    from_mmseg,
    from_timm,
)

HALF = (127.5, 127.5, 127.5)  # BootMAE: [0, 1] images with mean = std = 0.5
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
REMEDY = (
    'give a BootMAE, MAE or ViT checkpoint: of this suite, the authors, facebookresearch, mmpretrain, mmseg, '
    'ViTDet, timm or transformers'
)
# Prefixes of an encoder and its average: DINO, MoCo v3, BYOL.
PAIRS = (('student.', 'teacher.'), ('base_encoder.', 'momentum_encoder.'), ('online_encoder.', 'target_encoder.'))
DETECTRON2 = 'backbone.net.'  # prefix of ViTDet's encoder in detectron2


@dataclass
class FileEncoder:
    """The encoder of a checkpoint file.

    Attributes:
        kind: description of the file's format.
        state: weights under the names of :class:`bootmae.models.PlainViT`.
        mean: input mean (RGB, of 0..255) in training, or None if unknown.
        std: input standard deviation in training, or None if unknown.
        img_size: (height, width) in training, or None if unknown.
        num_heads: number of attention heads, or None if unknown.
        source: one of ``SOURCES`` if the file has several encoders.
        rest: the other weights of the file's model: heads, decoders, the other encoder.
        whole: whether ``rest`` and ``state`` (below ``backbone.``) are a model of ours under our names.
        note: what was taken from a file with raw and averaged weights, and how to take the others; else empty.
    """

    kind: str
    state: State
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    img_size: tuple[int, int] | None = None
    num_heads: int | None = None
    source: str | None = None
    rest: State = field(default_factory=dict)
    whole: bool = False
    note: str = ''

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the position embedding: from the recorded size, else a square, else None."""
        if 'pos_embed' not in self.state:
            return None
        patches = self.state['pos_embed'].shape[1] - 1
        if self.img_size:
            height, width = self.state['patch_embed.proj.weight'].shape[2:]
            return self.img_size[0] // height, self.img_size[1] // width
        side = math.isqrt(patches)
        return (side, side) if side * side == patches else None

    @property
    def depth(self) -> int:
        return 1 + max((int(m[1]) for key in self.state if (m := re.match(r'blocks\.(\d+)\.', key))), default=-1)


def under(state: State, prefix: str) -> State:
    """The part of a state below a prefix, with the prefix removed."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def has(state: State, *prefixes: str) -> bool:
    """Whether the state has a weight below each prefix."""
    return all(any(key.startswith(prefix) for key in state) for prefix in prefixes)


def split(state: State, *prefixes: str) -> tuple[State, State]:
    """Split a state into the weights outside and below some prefixes."""
    rest = {key: value for key, value in state.items() if key.startswith(prefixes)}
    return {key: value for key, value in state.items() if key not in rest}, rest


_EMBEDDING = re.compile(r'((?:.*\.)?)(?:patch_embed\.|cls_token$|embeddings\.patch_embeddings\.)')
_BLOCKS = ('blocks.', 'layers.', 'encoder.layer.')


def encoder_prefixes(state: State) -> list[str]:
    """Prefixes of all ViT encoders in a state: those with an embedding and blocks."""
    found = {match[1] for key in state if (match := _EMBEDDING.match(key))}
    return sorted(prefix for prefix in found if any(has(state, prefix + blocks) for blocks in _BLOCKS))


def recorded_facts(content: dict) -> dict:
    """Facts that a file of this suite records (``meta['bootmae']``); empty for other files.

    Raises:
        ValueError: if a recorded number is damaged.
    """
    meta = content.get('meta')
    facts = meta.get('bootmae') if isinstance(meta, dict) else None
    if not isinstance(facts, dict):
        return {}
    for key, count in (('mean', None), ('std', None), ('img_size', 2), ('num_heads', 1)):
        if key not in facts:
            continue
        values = facts[key] if isinstance(facts[key], list | tuple) else [facts[key]]
        if not all(type(value) in (int, float) for value in values) or count not in (None, len(values)):
            raise ValueError(f'its record meta.bootmae.{key}={facts[key]!r} is damaged: use another copy of the file')
    return facts


def find_encoder(content: dict, source: str = 'online') -> FileEncoder:
    """Detect the format of a checkpoint and return its encoder.

    An encoder below an unknown prefix is returned if it is the only one. Its ``kind`` then names the prefix.

    Args:
        content: result of :func:`read_checkpoint`.
        source: which encoder of a file with several: ``online`` or ``momentum`` of a pretraining, ``raw`` or ``ema``
            of a file with raw and averaged weights. ``momentum`` and ``ema`` mean the same if a file has one of them.

    Raises:
        ValueError: if the file has no known encoder, several encoders, or not the wanted one.
    """
    if source not in SOURCES:
        raise ValueError(f'source={source!r}: use {", ".join(SOURCES[:-1])} or {SOURCES[-1]}')
    facts = recorded_facts(content)
    encoder = _choose(content, source, facts.get('source'))
    if facts:
        if 'kind' in facts:  # an export: its names tell the target format, and only its record tells the origin
            encoder.kind, encoder.mean, encoder.std = f'{encoder.kind}, exported from {facts["kind"]}', None, None
        for key in ('mean', 'std', 'img_size'):
            if key in facts:
                setattr(encoder, key, tuple(facts[key]))
        encoder.num_heads = facts.get('num_heads')
    return encoder


def _choose(content: dict, source: str, recorded_source: str | None) -> FileEncoder:
    """The encoder of the wanted weights of a file: the raw ones or their average."""
    state, found = weights_of(content), places(content)
    pretraining = has(state, 'momentum.') or has(state, 'pixel_decoder.')
    release = has(state, 'decode_blocks.', 'decode_blocks_1.')  # its average is the momentum encoder
    if release or (pretraining and len(found) < 2):
        return _find(content, state, dict(raw='online', ema='momentum').get(source, source))
    if source in ('ema', 'momentum') and recorded_source in ('ema', 'momentum'):  # the only one in an export
        return _find(content, state, 'online')
    if source == 'momentum' and pretraining:
        return _find(content, state, source)
    wanted = 'ema' if source == 'momentum' else source
    pair = _pair(state) if wanted != 'online' else {}
    if pair:
        state, taken_from = {key: value for key, value in state.items() if key.startswith(pair[wanted])}, wanted
    elif source == 'momentum' and 'ema' not in found:
        raise ValueError('no momentum encoder in this file: only BootMAE pretraining files have one; use source=online')
    else:
        state, taken_from = weights_of(content, wanted), wanted if wanted in found else next(iter(found), 'raw')
    encoder = _find(content, state, 'online')
    if pair or 'ema' in found:
        encoder.kind, encoder.note = f'{encoder.kind}, {WHAT[taken_from]}', taken(content, wanted)
        encoder.source = encoder.source or taken_from
    return encoder


def _pair(state: State) -> dict[str, str]:
    """Prefixes of an encoder and its average in one state, such as student and teacher; empty without them."""
    return next((dict(raw=raw, ema=ema) for raw, ema in PAIRS if has(state, raw, ema)), {})


def _find(content: dict, state: State, source: str) -> FileEncoder:
    prefixes = encoder_prefixes(state)
    if not prefixes:
        raise ValueError(
            f'no ViT encoder in this file: its weights are named {sorted(state)[:4] or "not at all"} ...; {REMEDY}'
        )
    if has(state, 'pixel_decoder.') and set(prefixes) <= {'backbone.', 'momentum.'}:
        return _pretraining(state, source, prefixes)
    if prefixes == ['backbone.', 'momentum.'] and has(state, 'backbone.blocks.0.attn.q_bias'):
        encoder = _pretraining(state, source, prefixes)  # another method with a target encoder, on our ViT
        encoder.kind, encoder.mean, encoder.std = f'run of this suite ({source})', None, None
        return encoder
    if len(prefixes) > 1:
        names = ' and '.join(repr(prefix) if prefix else 'no prefix' for prefix in prefixes)
        remedy = 'save the weights of the one that you want into a file of its own'
        if pair := _pair(state):
            remedy = f"--source raw takes '{pair['raw']}' and --source ema '{pair['ema']}', its average"
        raise ValueError(f'several ViT encoders in this file, below {names}: {remedy}')
    if has(state, 'decode_blocks.', 'decode_blocks_1.') and prefixes == ['']:
        return _authors_pretraining(content, state, source)
    (prefix,) = prefixes
    outside, inside = split(state, prefix) if prefix else ({}, state)
    encoder = _single(under(inside, prefix), outside, prefix)
    if prefix not in ('', 'backbone.', DETECTRON2):
        encoder.kind += f' below {prefix!r}'
    return encoder


def _pretraining(state: State, source: str, prefixes: list[str]) -> FileEncoder:
    """The online or momentum encoder of a BootMAE run of this suite."""
    prefix = 'momentum.' if source == 'momentum' else 'backbone.'
    if prefix not in prefixes:
        raise ValueError(f'the {source} encoder ({prefix}*) is missing in this BootMAE run: use another of its files')
    rest = split(state, prefix)[0]
    return FileEncoder(
        f'BootMAE run ({source})', under(state, prefix), HALF, HALF, source=source, rest=rest, whole=source == 'online'
    )


def _authors_pretraining(content: dict, state: State, source: str) -> FileEncoder:
    """The online or momentum encoder of a pretraining file of the authors."""
    momentum = weights_of({'model': content.get('model_ema')})
    if source == 'momentum':
        state = momentum
        if not state:
            raise ValueError('no momentum encoder (model_ema) in this file of the authors: use source=online')
    encoder = {key: value for key, value in state.items() if (authors_key(key) or '').startswith('backbone.')}
    kind = f"authors' BootMAE ({source})"
    whole = source == 'online' and all(map(authors_key, state))
    rest = (
        split(from_authors(state, momentum), 'backbone.')[0]
        if whole
        else {key: state[key] for key in state if key not in encoder}
    )
    return FileEncoder(kind, encoder, HALF, HALF, source=source, rest=rest, whole=whole)


def _single(state: State, outside: State, prefix: str) -> FileEncoder:
    """The encoder of a file with a single encoder.

    Args:
        state: weights below the prefix, with the prefix removed. It may hold heads and decoders too.
        outside: the other weights of the file.
        prefix: prefix of the encoder.
    """

    def any_block(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in state)

    if any_block(r'layers\.\d+\.attn\.attn\.in_proj_weight'):
        return FileEncoder('mmseg ViT', from_mmseg(state), rest=outside)
    if any_block(r'(encoder\.layer|layers)\.\d+\.(attention|layernorm_before)\.'):
        state, head = split(state, 'pooler.', 'classifier.')
        if has(outside, 'decoder.decoder_layers.'):
            return FileEncoder('transformers MAE', from_hf(state), IMAGENET_MEAN, IMAGENET_STD, rest=outside)
        return FileEncoder('transformers ViT', from_hf(state), rest=outside | head)
    if any_block(r'layers\.\d+\.attn\.relative_position_bias_table'):
        return FileEncoder('mmseg MAE or BEiT', from_mmpretrain(state), rest=outside)
    if any_block(r'layers\.\d+\.ln1\.'):
        if has(outside, 'neck.decoder_blocks.'):
            return FileEncoder('mmpretrain MAE', from_mmpretrain(state), IMAGENET_MEAN, IMAGENET_STD, rest=outside)
        whole = prefix == 'backbone.' and _pooled_alone(state, 'ln2.', 'ln1.')
        return FileEncoder('mmpretrain ViT', from_mmpretrain(state), rest=outside, whole=whole)
    if any_block(r'blocks\.\d+\.attn\.qkv\.bias'):
        return _timm_names(state, outside, prefix)
    if prefix == 'backbone.' and has(state, 'blocks.'):
        return _ours(state, outside)
    if any_block(r'blocks\.\d+\.attn\.q_bias'):
        state, head = split(state, 'head.')
        whole = not (prefix or outside)
        rest = {f'head.fc.{key.removeprefix("head.")}': value for key, value in head.items()} if whole else outside
        return FileEncoder("authors' fine-tuned BootMAE", state, HALF, HALF, rest=rest, whole=whole)
    if any_block(r'blocks\.\d+\.attn\.qkv\.weight'):  # a ViT without these biases; what reads it says so
        return _timm_names(state, outside, prefix)
    raise ValueError(
        f'no ViT encoder of known names in this file: its weights are named {sorted(state)[:4]} ...; {REMEDY}'
    )


def _ours(state: State, outside: State) -> FileEncoder:
    """A downstream run of this suite, or a segmentation file of the authors."""
    if not (has(state, 'fpn1.') or any(key.endswith('.relative_position_index') for key in state)):
        return FileEncoder('run of this suite', state, rest=outside, whole=True)
    renamed = from_authors_segmentation({f'backbone.{key}': value for key, value in state.items()} | outside)
    rest, state = split(renamed, 'backbone.')
    return FileEncoder("authors' BootMAE segmentation", under(state, 'backbone.'), HALF, HALF, rest=rest, whole=True)


def _timm_names(state: State, outside: State, prefix: str) -> FileEncoder:
    """A file with timm's names, which facebookresearch MAE and ViTDet use too."""
    if has(state, 'decoder_blocks.'):
        state, decoder = split(state, 'decoder_', 'mask_token')
        return FileEncoder(
            'facebookresearch MAE', from_timm(state), IMAGENET_MEAN, IMAGENET_STD, rest=outside | decoder
        )
    if prefix == 'backbone.' and 'cls_token' not in state:
        return FileEncoder('mmdetection ViTDet', from_timm(state), rest=outside)
    if prefix == DETECTRON2:
        rest, pyramid = split(outside, 'backbone.simfp_')
        state = {f'net.{key}': value for key, value in state.items()} | under(pyramid, 'backbone.')
        return FileEncoder('detectron2 ViTDet', from_detectron2(state), IMAGENET_MEAN, IMAGENET_STD, rest=rest)
    kind = "timm ViT below 'backbone.'" if prefix == 'backbone.' else 'timm ViT'
    state, head = split(state, 'head.')
    if _pooled_alone(state, 'fc_norm.', 'norm.') and not outside:
        head = {f'head.fc.{key.removeprefix("head.")}': value for key, value in head.items()}
        return FileEncoder(kind, from_timm(state), rest=head, whole=True)
    return FileEncoder(kind, from_timm(state), rest=outside | head)


def _pooled_alone(state: State, pooled: str, final: str) -> bool:
    """Whether there is a norm of the pooled features and no final norm, as in our classifiers."""
    return has(state, pooled) and not has(state, final)
