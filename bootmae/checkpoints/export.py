"""Export for other programs: their weight names, and our facts (input statistics, size, heads, hash) in ``meta``."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..results.rows import replace_file
from ..text import count_of
from .finite import check_encoder, check_finite
from .folders import WEIGHTS as SUFFIXES
from .heads import heads_of
from .hf_files import CONFIG, PREPROCESSOR, WEIGHTS, hf_files
from .identify import FileEncoder, find_encoder, recorded_facts, split
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
from .plain import POOLED, UNPOOLED, check_complete
from .read import read_checkpoint
from .targets import check_fits
from .write import check_target, write_checkpoint

FORMATS = ('mmpretrain', 'timm', 'mmseg', 'mmdet', 'hf', 'authors', 'safetensors')
TRAINING_STATE = ('optimizer', 'param_schedulers', 'message_hub', 'scaler')
WHY = dict(
    backbone='--source online exports it',
    momentum='--source momentum exports it',
    pixel_decoder='pretraining only',
    feature_decoder='pretraining only',
)


@dataclass
class Export:
    """An exported checkpoint and its description."""

    kind: str  # of the source file
    weights: dict[str, State]  # a state for each key of the file
    encoder: State  # the exported part of the encoder, under our names
    left_out: dict[str, str] = field(default_factory=dict)  # part -> why
    facts: dict = field(default_factory=dict)
    note: str = ''  # what was taken from a file with raw and averaged weights
    beside: dict[str, dict] = field(default_factory=dict)  # content of JSON files beside the weights, by name

    @property
    def content(self) -> dict:
        return self.weights | dict(meta=dict(bootmae=self.facts))

    def __str__(self) -> str:
        number = sum(map(len, self.weights.values())) // (2 if self.facts['format'] == 'mmdet' else 1)  # see _mmdet
        lost = ', '.join(f'{part} ({why})' for part, why in self.left_out.items())
        return (
            f'[{self.kind}, sha256 {self.facts["hash"]}] as {self.facts["format"]}: {count_of(number, "tensor")}'
            f'{"; left out: " + lost if lost else ""}{self.note and f"; {self.note}"}'
        )


def export(content: dict, to: str, source: str = 'online', num_heads: int | None = None) -> Export:
    """Convert the content of a checkpoint to another format.

    Args:
        content: result of :func:`read_checkpoint` for any file that :func:`find_encoder` knows.
        to: one of ``FORMATS``.
        source: which encoder of a file with several, see :func:`find_encoder`.
        num_heads: number of attention heads, for files that do not record it.

    Raises:
        ValueError: if the file is unknown, if it records another number of heads, or if the format has no place for
            parts that the encoder needs. The target's own class must take all weights, see :func:`check_fits`.
    """
    if to not in FORMATS:
        raise ValueError(f'format {to!r}: use one of {", ".join(FORMATS)}')
    encoder, recorded = find_encoder(content, source), recorded_facts(content)
    check_complete(encoder)
    if num_heads:
        encoder.num_heads = heads_of(encoder, num_heads)
    windows = recorded.get('window_size')
    if (
        windows
        and to not in ('mmdet', 'safetensors')
        and not (to == 'mmseg' and 'decode_head' in parts_of(encoder.rest))
    ):
        raise ValueError(
            f'its blocks attend within windows of {windows} patches, and {to} has no place for them, so that it would '
            'compute something else: export the pretrained encoder, or use --to mmdet or --to safetensors'
        )
    out = _MAKE[to](encoder)
    out.note = encoder.note
    out.facts = describe(encoder, recorded) | dict(format=to, hash=tensors_hash(out.encoder))
    if any(key in content for key in TRAINING_STATE):
        out.left_out['training state'] = 'not needed to use the weights'
    return out


def describe(encoder: FileEncoder, recorded: dict) -> dict:
    """Facts about an encoder in plain types: those recorded in its file, and those known from its kind.

    An export of an export keeps the kind of the first file, unless it takes another encoder.
    """
    known = dict(mean=encoder.mean, std=encoder.std, img_size=encoder.img_size, num_heads=encoder.num_heads)
    facts = recorded | {key: value for key, value in known.items() if value is not None}
    if 'kind' not in recorded or encoder.source not in (None, recorded.get('source')):
        facts |= dict(kind=encoder.kind, source=encoder.source or 'online')
    return json.loads(json.dumps(facts, default=str))


def whole_model(encoder: FileEncoder) -> State:
    """All weights under our names if the file is a model of ours, otherwise only its encoder as the backbone."""
    return {f'backbone.{key}': value for key, value in encoder.state.items()} | (encoder.rest if encoder.whole else {})


def plain_encoder(encoder: FileEncoder, to: str, unused: tuple[str, ...]) -> tuple[State, dict[str, str]]:
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


def pooled(encoder: FileEncoder) -> bool:
    """Whether the encoder normalizes the mean of the tokens (``fc_norm``), so that a final norm is unused."""
    return any(key.startswith(POOLED) for key in encoder.state)


def classifier_head(encoder: FileEncoder) -> State:
    """The linear classifier, if it reads the pooled features directly."""
    simple = encoder.whole and pooled(encoder) and not any(key.startswith('neck.') for key in encoder.rest)
    return {key: value for key, value in encoder.rest.items() if simple and key.startswith('head.fc.')}


def without(state: State, used: State) -> State:
    return {key: value for key, value in state.items() if key not in used}


def _timm(encoder: FileEncoder) -> Export:
    state, left = plain_encoder(encoder, 'timm', UNPOOLED if pooled(encoder) else ())
    head = classifier_head(encoder)
    weights = to_timm(state) | {key.replace('head.fc.', 'head.'): value for key, value in head.items()}
    check_fits('timm', encoder, weights)
    return Export(encoder.kind, dict(state_dict=weights), state, left | left_parts(without(encoder.rest, head)))


def _mmpretrain(encoder: FileEncoder) -> Export:
    state, left = plain_encoder(encoder, 'mmpretrain', UNPOOLED if pooled(encoder) else ())
    head = {
        key: value
        for key, value in encoder.rest.items()
        if encoder.whole and pooled(encoder) and key.startswith(('neck.', 'head.'))
    }
    renamed = to_mmpretrain(state)
    check_fits('mmpretrain', encoder, renamed)
    weights = {f'backbone.{key}': value for key, value in renamed.items()} | head
    left |= left_parts(without(encoder.rest, head))
    return Export(encoder.kind, dict(state_dict=weights), state, left)


def _mmseg(encoder: FileEncoder) -> Export:
    if encoder.whole and 'decode_head' in parts_of(encoder.rest):
        return Export(encoder.kind, dict(state_dict=whole_model(encoder)), encoder.state)
    state, left = plain_encoder(encoder, 'mmseg', POOLED)
    renamed = to_mmseg(state)
    check_fits('mmseg', encoder, renamed)
    weights = {f'backbone.{key}': value for key, value in renamed.items()}
    return Export(encoder.kind, dict(state_dict=weights), state, left | left_parts(encoder.rest))


def _mmdet(encoder: FileEncoder) -> Export:
    """Export the weights twice: below ``backbone.`` for ``load_from``, and as ``model`` for ViTDet's ``init_cfg``."""
    state, left = plain_encoder(encoder, 'mmdet', POOLED)
    model = to_mmdet(state)
    check_fits('mmdet', encoder, split(model, 'cls_token', *UNPOOLED)[0])  # its loader passes over these
    weights = dict(state_dict={f'backbone.{key}': value for key, value in model.items()}, model=model)
    return Export(encoder.kind, weights, state, left | left_parts(encoder.rest))


def _hf(encoder: FileEncoder) -> Export:
    state, left = plain_encoder(encoder, 'hf', POOLED)
    weights = to_hf(state)
    new = {}
    if not any(key.startswith(UNPOOLED) for key in state):
        left['layernorm'] = 'the file has no final norm: transformers will initialize a new one'
        new = {f'layernorm.{kind}': state['cls_token'].flatten() for kind in ('weight', 'bias')}  # for the shapes
    check_fits('hf', encoder, weights | new)
    out = Export(encoder.kind, dict(state_dict=weights), state, left | left_parts(encoder.rest))
    out.beside = hf_files(encoder)
    return out


def _authors(encoder: FileEncoder) -> Export:
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


def _safetensors(encoder: FileEncoder) -> Export:
    left = {} if encoder.whole else left_parts(encoder.rest)
    return Export(encoder.kind, dict(state_dict=whole_model(encoder)), encoder.state, left)


_MAKE: dict[str, Callable[[FileEncoder], Export]] = dict(
    mmpretrain=_mmpretrain, timm=_timm, mmseg=_mmseg, mmdet=_mmdet, hf=_hf, authors=_authors, safetensors=_safetensors
)


def convert(
    src: str | Path, to: str, dst: str | Path, source: str = 'online', force: bool = False, num_heads: int | None = None
) -> str:
    """Convert a checkpoint file, as ``tools/convert_checkpoint.py`` does.

    Args:
        src: the file to read.
        to: one of ``FORMATS``.
        dst: the file to write. For transformers, files with the settings of the model and of its images are written
            beside it, and it may be a folder.
        source: which encoder of ``src``, if it has several; see :func:`find_encoder`.
        force: overwrite ``dst``.
        num_heads: number of attention heads, for files that do not record it; see :func:`recorded_heads`.

    Returns:
        One line that describes the result.

    Raises:
        FileNotFoundError: if ``src`` or the folder of ``dst`` does not exist.
        FileExistsError: if ``dst``, or a file beside it, exists and ``force`` is not set.
        ValueError: if ``src`` cannot be read, is not finite or does not fit the format, or if the name of ``dst`` does
            not.
    """
    src, dst = Path(src), Path(dst)
    folder = dst if to == 'hf' and (dst.is_dir() or dst.suffix not in SUFFIXES) else None
    if folder is None and to in ('safetensors', 'hf') and dst.suffix != '.safetensors':
        hint = ', or a folder for from_pretrained' if to == 'hf' else ''
        raise ValueError(f'{dst}: for --to {to} give a name that ends in .safetensors{hint}')
    if folder is not None:
        if not folder.parent.is_dir():
            raise FileNotFoundError(f'no folder {folder.parent} for {folder.name}: create it first')
        dst = folder / WEIGHTS
    if dst.exists() and src.exists() and dst.samefile(src):
        raise ValueError(f'{dst} is the file to read: give the new file another name')
    for path in (dst, *(dst.with_name(name) for name in (CONFIG, PREPROCESSOR) if to == 'hf')):
        if folder is None or folder.is_dir():
            check_target(path, force)
    content = read_checkpoint(src)
    try:
        out = export(content, to, source, num_heads)
    except ValueError as error:
        raise ValueError(f'{src} was not exported: {error}') from error
    check_encoder(out.encoder, src)
    for state in out.weights.values():
        check_finite(state, src)
    if to == 'hf' and CONFIG not in out.beside and (folder is not None or dst.with_name(CONFIG).exists()):
        kind = 'with another folder for' if folder is None else 'that ends in .safetensors for'
        raise ValueError(
            f'{src} does not record its number of attention heads, which {dst.with_name(CONFIG)} needs: give --heads, '
            f'or a name {kind} the weights alone'
        )
    if folder is not None:
        folder.mkdir(exist_ok=True)
    write_checkpoint(dst, out.content)
    for name, settings in out.beside.items():
        replace_file(dst.with_name(name), json.dumps(settings, indent=2) + '\n')
    result = f'{src} {out} -> {", ".join([str(dst), *out.beside])}'
    old = dst.with_name(PREPROCESSOR)  # of the weights that were overwritten
    if to == 'hf' and PREPROCESSOR not in out.beside and old.exists():
        old.unlink()
        result += f'; removed {PREPROCESSOR}, since {src.name} does not record its input statistics'
    return result
