"""Export for other programs: their weight names, and our facts (input statistics, size, heads, hash) in ``meta``."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..text import count_of
from .identify import Encoder, find_encoder, recorded_facts, split
from .keys import (
    State,
    to_authors,
    to_authors_finetuned,
    to_authors_segmentation,
    to_hf,
    to_mmdet,
    to_mmpretrain,
    to_mmseg,
    to_timm,
)
from .load import tensors_hash
from .read import read_checkpoint
from .write import check_target, write_checkpoint

FORMATS = ('mmpretrain', 'timm', 'mmseg', 'mmdet', 'hf', 'authors', 'safetensors')
TRAINING_STATE = ('optimizer', 'param_schedulers', 'message_hub', 'scaler', 'ema_state_dict')
WHY = dict(
    backbone='--source online exports it',
    momentum='--source momentum exports it',
    pixel_decoder='pretraining only',
    feature_decoder='pretraining only',
)
EMBEDDING = ('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'patch_embed.proj.bias')
BLOCK = (
    'attn.qkv.weight',
    'attn.q_bias',
    'attn.v_bias',
    *(
        f'{part}.{kind}'
        for part in ('norm1', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
        for kind in ('weight', 'bias')
    ),
)
POOLED, UNPOOLED = ('fc_norm.',), ('norm.',)


@dataclass
class Export:
    """An exported checkpoint and its description."""

    kind: str  # of the source file
    weights: dict[str, State]  # a state for each key of the file
    encoder: State  # the exported part of the encoder, under our names
    left_out: dict[str, str] = field(default_factory=dict)  # part -> why
    facts: dict = field(default_factory=dict)

    @property
    def content(self) -> dict:
        return self.weights | dict(meta=dict(bootmae=self.facts))

    def __str__(self) -> str:
        number = sum(map(len, self.weights.values())) // (2 if self.facts['format'] == 'mmdet' else 1)  # see _mmdet
        lost = ', '.join(f'{part} ({why})' for part, why in self.left_out.items())
        return (
            f'[{self.kind}, sha256 {self.facts["hash"]}] as {self.facts["format"]}: {count_of(number, "tensor")}'
            f'{"; left out: " + lost if lost else ""}'
        )


def export(content: dict, to: str, source: str = 'online') -> Export:
    """Convert the content of a checkpoint to another format.

    Args:
        content: result of :func:`read_checkpoint` for any file that :func:`find_encoder` knows.
        to: one of ``FORMATS``.
        source: ``online`` or ``momentum`` encoder, if the file has both.

    Raises:
        ValueError: if the file is unknown, or if the format has no place for parts that the encoder needs.
    """
    if to not in FORMATS:
        raise ValueError(f'format {to!r}: use one of {", ".join(FORMATS)}')
    encoder, recorded = find_encoder(content, source), recorded_facts(content)
    check_complete(encoder)
    out = _MAKE[to](encoder)
    out.facts = describe(encoder, recorded) | dict(format=to, hash=tensors_hash(out.encoder))
    if any(key in content for key in TRAINING_STATE):
        out.left_out['training state'] = 'not needed to use the weights'
    return out


def check_complete(encoder: Encoder) -> None:
    """Raise a ValueError if the encoder lacks a tensor of a ViT of its depth."""
    without = 'cls_token' if any('.rel_pos_' in key for key in encoder.state) else None  # ViTDet has none
    wanted = [
        *(key for key in EMBEDDING if key != without),
        *(f'blocks.{index}.{name}' for index in range(encoder.depth) for name in BLOCK),
    ]
    if missing := [key for key in wanted if key not in encoder.state]:
        raise ValueError(
            f'{count_of(len(missing), "weight is", "weights are")} missing in its encoder: {", ".join(missing[:4])}; '
            'use another copy of the file'
        )


def describe(encoder: Encoder, recorded: dict) -> dict:
    """Facts about an encoder in plain types: those recorded in its file, and those known from its kind.

    An export of an export keeps the kind of the first file, unless it takes another encoder.
    """
    known = dict(mean=encoder.mean, std=encoder.std, img_size=encoder.img_size, num_heads=encoder.num_heads)
    facts = recorded | {key: value for key, value in known.items() if value is not None}
    if 'kind' not in recorded or encoder.source not in (None, recorded.get('source')):
        facts |= dict(kind=encoder.kind, source=encoder.source or 'online')
    return json.loads(json.dumps(facts, default=str))


def whole_model(encoder: Encoder) -> State:
    """All weights under our names if the file is a model of ours, otherwise only its encoder as the backbone."""
    return {f'backbone.{key}': value for key, value in encoder.state.items()} | (encoder.rest if encoder.whole else {})


def plain_encoder(encoder: Encoder, to: str, unused: tuple[str, ...]) -> tuple[State, dict[str, str]]:
    """Reduce an encoder to a plain ViT, without its pyramid and unused norm.

    Returns:
        The state, and the parts left out with the reason.

    Raises:
        ValueError: if a plain ViT would compute something else.
    """
    state, dropped = split(encoder.state, 'pyramid.', *unused)
    width = state['pos_embed'].shape[-1]
    if strange := [key for key in state if '.gamma_' in key or '.relative_position' in key or '.rel_pos_' in key]:
        raise ValueError(
            f'{to} has no place for {strange[0]} (layer scale and relative positions change what the '
            'encoder computes): export the pretrained encoder, or use --to safetensors'
        )
    odd = [key for key in state if key.endswith('.q_bias') and state[key].shape[0] != width]
    if odd and to != 'authors':
        raise ValueError(
            f'{odd[0]} has {state[odd[0]].shape[0]} channels for a width of {width}: heads must divide '
            f'the width in {to}'
        )
    return state, {part: f'{to} does not use it here' for part in parts_of(dropped)}


def parts_of(state: State) -> list[str]:
    """First components of the names, without duplicates."""
    return list(dict.fromkeys(key.partition('.')[0] for key in state))


def left_parts(rest: State) -> dict[str, str]:
    return {part: WHY.get(part, 'not part of the encoder') for part in parts_of(rest)}


def pooled(encoder: Encoder) -> bool:
    """Whether the encoder normalizes the mean of the tokens (``fc_norm``), so that a final norm is unused."""
    return any(key.startswith(POOLED) for key in encoder.state)


def classifier_head(encoder: Encoder) -> State:
    """The linear classifier, if it reads the pooled features directly."""
    simple = encoder.whole and pooled(encoder) and not any(key.startswith('neck.') for key in encoder.rest)
    return {key: value for key, value in encoder.rest.items() if simple and key.startswith('head.fc.')}


def without(state: State, used: State) -> State:
    return {key: value for key, value in state.items() if key not in used}


def _timm(encoder: Encoder) -> Export:
    state, left = plain_encoder(encoder, 'timm', UNPOOLED if pooled(encoder) else ())
    head = classifier_head(encoder)
    weights = to_timm(state) | {key.replace('head.fc.', 'head.'): value for key, value in head.items()}
    return Export(encoder.kind, dict(state_dict=weights), state, left | left_parts(without(encoder.rest, head)))


def _mmpretrain(encoder: Encoder) -> Export:
    state, left = plain_encoder(encoder, 'mmpretrain', UNPOOLED if pooled(encoder) else ())
    head = {
        key: value
        for key, value in encoder.rest.items()
        if encoder.whole and pooled(encoder) and key.startswith(('neck.', 'head.'))
    }
    weights = {f'backbone.{key}': value for key, value in to_mmpretrain(state).items()} | head
    left |= left_parts(without(encoder.rest, head))
    return Export(encoder.kind, dict(state_dict=weights), state, left)


def _mmseg(encoder: Encoder) -> Export:
    if encoder.whole and 'decode_head' in parts_of(encoder.rest):
        return Export(encoder.kind, dict(state_dict=whole_model(encoder)), encoder.state)
    state, left = plain_encoder(encoder, 'mmseg', POOLED)
    weights = {f'backbone.{key}': value for key, value in to_mmseg(state).items()}
    return Export(encoder.kind, dict(state_dict=weights), state, left | left_parts(encoder.rest))


def _mmdet(encoder: Encoder) -> Export:
    """Write the weights twice: below ``backbone.`` for ``load_from``, and as ``model`` for ViTDet's ``init_cfg``."""
    state, left = plain_encoder(encoder, 'mmdet', POOLED)
    model = to_mmdet(state)
    weights = dict(state_dict={f'backbone.{key}': value for key, value in model.items()}, model=model)
    return Export(encoder.kind, weights, state, left | left_parts(encoder.rest))


def _hf(encoder: Encoder) -> Export:
    state, left = plain_encoder(encoder, 'hf', POOLED)
    if not any(key.startswith(UNPOOLED) for key in state):
        left['layernorm'] = 'the file has no final norm: transformers will initialize a new one'
    return Export(encoder.kind, dict(state_dict=to_hf(state)), state, left | left_parts(encoder.rest))


def _authors(encoder: Encoder) -> Export:
    parts = parts_of(encoder.rest) if encoder.whole else []
    if 'pixel_decoder' in parts:
        online, momentum = to_authors(whole_model(encoder))
        weights = dict(model=online) | (dict(model_ema=momentum) if momentum else {})
        return Export(encoder.kind, weights, encoder.state)
    if 'decode_head' in parts:
        weights = to_authors_segmentation(whole_model(encoder), encoder.grid)
        return Export(encoder.kind, dict(state_dict=weights), encoder.state)
    state, left = plain_encoder(encoder, 'authors', ())
    head = classifier_head(encoder)
    weights = to_authors_finetuned({f'backbone.{key}': value for key, value in state.items()} | head)
    left |= left_parts(without(encoder.rest, head))
    return Export(encoder.kind, dict(model=weights), state, left)


def _safetensors(encoder: Encoder) -> Export:
    left = {} if encoder.whole else left_parts(encoder.rest)
    return Export(encoder.kind, dict(state_dict=whole_model(encoder)), encoder.state, left)


_MAKE: dict[str, Callable[[Encoder], Export]] = dict(
    mmpretrain=_mmpretrain, timm=_timm, mmseg=_mmseg, mmdet=_mmdet, hf=_hf, authors=_authors, safetensors=_safetensors
)


def convert(src: str | Path, to: str, dst: str | Path, source: str = 'online', force: bool = False) -> str:
    """Convert a checkpoint file, as ``tools/convert_checkpoint.py`` does.

    Args:
        src: the file to read.
        to: one of ``FORMATS``.
        dst: the file to write.
        source: ``online`` or ``momentum`` encoder, if ``src`` has both.
        force: overwrite ``dst``.

    Returns:
        One line that describes the result.

    Raises:
        FileNotFoundError: if ``src`` or the folder of ``dst`` does not exist.
        FileExistsError: if ``dst`` exists and ``force`` is not set.
        ValueError: if ``src`` cannot be read or does not fit the format, or if the name of ``dst`` does not.
    """
    src, dst = Path(src), Path(dst)
    if to in ('safetensors', 'hf') and dst.suffix != '.safetensors':
        hint = ' (transformers looks for model.safetensors in a folder)' if to == 'hf' else ''
        raise ValueError(f'{dst}: for --to {to} give a name that ends in .safetensors{hint}')
    if dst.exists() and src.exists() and dst.samefile(src):
        raise ValueError(f'{dst} is the file to read: give the new file another name')
    check_target(dst, force)
    content = read_checkpoint(src)
    try:
        out = export(content, to, source)
    except ValueError as error:
        raise ValueError(f'{src} was not exported: {error}') from error
    write_checkpoint(dst, out.content)
    return f'{src} {out} -> {dst}'
