"""Files that must be refused where an encoder is wanted, each with the reason that the message gives.

``WRONG_FILES[name] = (make, message)``: ``make(folder, size)`` writes the file into a folder and gives its path;
``message`` is a pattern of the reason. All files are wrong for a backbone of ``size``, with or without a pyramid, and
right but for one thing. Those in ``MOMENTUM`` are wrong only if the momentum encoder is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


@dataclass
class Size:
    """The backbone that the files do not fit."""

    embed_dims: int = 24
    depth: int = 4
    num_heads: int = 4
    img_size: int = 32
    patch_size: int = 8


def encoder(size: Size, **changes) -> State:
    """Weights of a plain encoder under our names, all random."""
    size = Size(**(vars(size) | {key: value for key, value in changes.items() if key != 'channels'}))
    d, patches = size.embed_dims, (size.img_size // size.patch_size) ** 2
    shapes = {
        'cls_token': (1, 1, d),
        'pos_embed': (1, 1 + patches, d),
        'patch_embed.proj.bias': (d,),
        'patch_embed.proj.weight': (d, changes.get('channels', 3), size.patch_size, size.patch_size),
        'norm.weight': (d,),
        'norm.bias': (d,),
    }
    block = {
        'attn.qkv.weight': (3 * d, d),
        'attn.q_bias': (d,),
        'attn.v_bias': (d,),
        'attn.proj.weight': (d, d),
        'mlp.fc1.weight': (4 * d, d),
        'mlp.fc1.bias': (4 * d,),
        'mlp.fc2.weight': (d, 4 * d),
    }
    block |= {f'{part}.bias': (d,) for part in ('norm1', 'norm2', 'attn.proj', 'mlp.fc2')}
    block |= {f'{part}.weight': (d,) for part in ('norm1', 'norm2')}
    shapes |= {f'blocks.{k}.{name}': shape for k in range(size.depth) for name, shape in block.items()}
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def below(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def fused(state: State) -> State:
    """The same weights with timm's fused biases."""
    out = {key: value for key, value in state.items() if not key.endswith(('.q_bias', '.v_bias'))}
    return out | {
        key.replace('q_bias', 'qkv.bias'): value.repeat(3) for key, value in state.items() if key.endswith('.q_bias')
    }


def facts(size: Size, **changes) -> dict:
    """The facts that a run of this suite records."""
    return dict(
        bootmae=dict(mean=[127.5] * 3, std=[127.5] * 3, img_size=[size.img_size] * 2, num_heads=size.num_heads)
        | changes
    )


def saved(content: Callable[[Size], object], name: str = 'wrong.pth') -> Callable[[Path, Size], Path]:
    """A function that saves some content."""

    def make(folder: Path, size: Size | None = None) -> Path:
        torch.save(content(size or Size()), folder / name)
        return folder / name

    return make


def run(
    change: Callable[[State, Size], State] | None = None, meta: dict | None = None, **sizes
) -> Callable[[Path, Size], Path]:
    """A function that saves a run of this suite with a change of weights, record or size."""

    def content(size: Size) -> dict:
        own = {key: value(size) for key, value in sizes.items()}
        state = encoder(size, **own)
        state = change(state, size) if change else state
        own.pop('channels', None)
        return dict(state_dict=below('backbone.', state), meta=facts(Size(**(vars(size) | own)), **(meta or {})))

    return saved(content)


def without(*beginnings: str) -> Callable[[State, Size], State]:
    return lambda state, size: {key: value for key, value in state.items() if not key.startswith(beginnings)}


def text(folder: Path, size: Size | None = None) -> Path:
    (folder / 'wrong.pth').write_text('<!DOCTYPE html><html>404: Not Found</html>\n' * 20)
    return folder / 'wrong.pth'


def truncated(folder: Path, size: Size | None = None) -> Path:
    path = run()(folder, size)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def truncated_safetensors(folder: Path, size: Size | None = None) -> Path:
    path = folder / 'wrong.safetensors'
    save_file(below('backbone.', encoder(size or Size())), path)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def resnet(size: Size) -> dict:
    state = {
        'backbone.conv1.weight': torch.ones(8, 3, 7, 7),
        'backbone.layer1.0.conv1.weight': torch.ones(8, 8, 1, 1),
        'backbone.layer1.0.bn1.weight': torch.ones(8),
        'head.fc.weight': torch.ones(10, 8),
    }
    return dict(state_dict=state, meta=dict(epoch=100))


def mixed(size: Size) -> dict:
    """MAE without decoder, with mmpretrain's names in its first block."""
    return dict(model={key.replace('blocks.0.', 'layers.0.'): value for key, value in fused(encoder(size)).items()})


def two_encoders(first: str, second: str) -> Callable[[Size], dict]:
    return lambda size: dict(state_dict=below(first, encoder(size)) | below(second, encoder(size)))


def mmpretrain_swin(size: Size) -> dict:
    return dict(
        state_dict={
            'backbone.patch_embed.projection.weight': torch.ones(8, 3, 4, 4),
            'backbone.stages.0.blocks.0.attn.w_msa.qkv.weight': torch.ones(24, 8),
        }
    )


def lost(gone: str) -> Callable[[Size], dict]:
    """A pretraining run without one of its encoders."""

    def content(size: Size) -> dict:
        parts = {prefix: encoder(size) for prefix in ('backbone.', 'momentum.')}
        parts['pixel_decoder.'] = {'mask_token': torch.ones(1)}
        return dict(
            state_dict={
                key: value for name, state in parts.items() if name != gone for key, value in below(name, state).items()
            }
        )

    return content


WRONG_FILES: dict[str, tuple[Callable[[Path, Size], Path], str]] = {
    # one thing of the architecture
    'width': (
        run(embed_dims=lambda size: 2 * size.embed_dims, num_heads=lambda size: size.num_heads),
        r'of another shape: .*cls_token \(1, 1, \d+\) for \(1, 1, \d+\)',
    ),
    'depth': (run(depth=lambda size: size.depth + 1), r'it has \d+ blocks, the model.s arch has \d+'),
    'heads': (run(num_heads=lambda size: 2 * size.num_heads), r'it has \d+ attention heads, the model.s arch has \d+'),
    'patch size': (run(patch_size=lambda size: size.patch_size // 2), r'1 of another shape: patch_embed.proj.weight'),
    'channels': (run(channels=lambda size: 1), r'it has 1 input channel, the model has 3'),
    'MLP': (
        run(lambda s, size: {k: v[: len(v) // 2] if '.mlp.fc1.' in k else v for k, v in s.items()}),
        r'of another shape: blocks.0.mlp.fc1.weight',
    ),
    # one thing of the weights
    'block missing': (run(without('blocks.1.')), r'13 missing: blocks.1.norm1.weight'),
    'first block missing': (run(without('blocks.0.')), r'13 missing: blocks.0.norm1.weight'),
    'last block missing': (
        run(lambda s, size: without(f'blocks.{size.depth - 1}.')(s, size)),
        r'it has \d+ blocks, the model.s arch has \d+',
    ),
    'tensor missing': (run(without('blocks.1.attn.v_bias')), '1 missing: blocks.1.attn.v_bias'),
    'positions missing': (run(without('pos_embed')), '1 missing: pos_embed'),
    'tensor of another shape': (
        run(lambda s, size: s | {'blocks.1.norm2.bias': torch.ones(5)}),
        r'1 of another shape: blocks.1.norm2.bias \(5,\)',
    ),
    'half of a layer scale': (
        run(lambda s, size: s | {f'blocks.{k}.gamma_1': torch.ones(size.embed_dims) for k in range(size.depth)}),
        'gamma_[12]',
    ),
    'relative positions of other heads': (
        run(
            lambda s, size: (
                s
                | {
                    f'blocks.{k}.attn.relative_position_bias_table': torch.ones(52, 2 * size.num_heads)
                    for k in range(size.depth)
                }
            )
        ),
        'relative_position_bias_table',
    ),
    'ViTDet positions': (
        run(lambda s, size: fused(s) | {'blocks.0.attn.rel_pos_h': torch.ones(7, 6)}),
        'unexpected: .*blocks.0.attn.rel_pos_h',
    ),
    'register tokens': (
        run(lambda s, size: s | {'reg_token': torch.ones(1, 4, size.embed_dims)}),
        '1 unexpected: reg_token',
    ),
    'mixed names': (saved(mixed), r'13 missing: blocks.0.*unexpected: layers.0.'),
    'damaged record': (run(meta=dict(num_heads='many')), r"meta.bootmae.num_heads='many' is damaged"),
    # no encoder, or several
    'ResNet': (saved(resnet), r"no ViT encoder in this file: its weights are named \['backbone.conv1.weight'"),
    'Swin': (saved(mmpretrain_swin), 'no ViT encoder in this file'),
    'empty': (saved(lambda size: dict(state_dict={}, meta=facts(size))), 'no ViT encoder in this file.*not at all'),
    'empty dict': (saved(lambda size: {}), 'no ViT encoder in this file.*not at all'),
    'optimizer only': (
        saved(lambda size: dict(optimizer=dict(state={0: dict(exp_avg=torch.ones(3))}))),
        'no ViT encoder in this file.*not at all',
    ),
    'decoders only': (
        saved(lambda size: dict(state_dict=below('pixel_decoder.', without('cls', 'patch')(encoder(size), size)))),
        'no ViT encoder in this file: its weights are named .*pixel_decoder',
    ),
    'online encoder lost': (saved(lost('backbone.')), r'the online encoder \(backbone.\*\) is missing'),
    'ambiguous prefix': (
        saved(two_encoders('backbone.', 'ema.')),
        r"several ViT encoders in this file, below 'backbone.' and 'ema.'",
    ),
    'teacher and student': (
        saved(two_encoders('student.backbone.', 'teacher.backbone.')),
        r"below 'student.backbone.' and 'teacher.backbone.'",
    ),
    'with and without prefix': (saved(two_encoders('', 'encoder.')), "below no prefix and 'encoder.'"),
    # no readable checkpoint
    'text': (text, 'is an HTML page, not a checkpoint: the link leads to a page'),
    'truncated': (truncated, 'is damaged: it ends too early, after [0-9,]+ bytes'),
    'truncated safetensors': (
        truncated_safetensors,
        'is damaged: it has [0-9,]+ bytes, and [0-9,]+ according to its header',
    ),
    'list': (saved(lambda size: list(encoder(size).values())), 'holds a list, not a dict of weights'),
    'whole model': (saved(lambda size: torch.nn.Linear(2, 2)), 'holds more than tensors and plain types'),
    # the momentum encoder
    'no momentum encoder': (run(), 'no momentum encoder in this file'),
    'momentum encoder lost': (saved(lost('momentum.')), r'the momentum encoder \(momentum.\*\) is missing'),
}
MOMENTUM = ('no momentum encoder', 'momentum encoder lost')
