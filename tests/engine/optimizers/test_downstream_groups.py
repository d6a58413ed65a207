"""Learning rate factor and weight decay of every parameter of segmentors and detectors, built from their configs."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from test_layer_decay import BLOCK

from bootmae.checkpoints.detectron2 import from_detectron2
from bootmae.checkpoints.keys import from_authors_finetuned
from bootmae.engine.optimizers.layer_decay import parameter_table

CONFIGS = Path(__file__).parents[3] / 'configs'
OFFSETS_BLOCK = BLOCK | {'attn.rel_pos_h': True, 'attn.rel_pos_w': True}
SEGMENTATION_BLOCK = BLOCK | {'gamma_1': False, 'gamma_2': False, 'attn.relative_position_bias_table': True}


def backbone_table(depth: int, block: dict[str, bool]) -> dict[str, tuple[float, bool]]:
    """Expected values for a layer decay of 2: the embedding is group 0, block k is group k + 1."""
    return {
        'backbone.cls_token': (2.0 ** (depth + 1), False),
        'backbone.pos_embed': (2.0 ** (depth + 1), False),
        'backbone.patch_embed.proj.weight': (2.0 ** (depth + 1), True),
        'backbone.patch_embed.proj.bias': (2.0 ** (depth + 1), False),
        **{
            f'backbone.blocks.{k}.{name}': (2.0 ** (depth - k), decay)
            for k in range(depth)
            for name, decay in block.items()
        },
    }


def convolution(name: str, bias: bool = True) -> dict[str, tuple[float, bool]]:
    """Kernels of convolutions and linear layers decay, biases do not; nothing after the blocks is scaled."""
    return {f'{name}.weight': (1.0, True)} | ({f'{name}.bias': (1.0, False)} if bias else {})


def norm(name: str) -> dict[str, tuple[float, bool]]:
    return {f'{name}.weight': (1.0, False), f'{name}.bias': (1.0, False)}


def with_norm(name: str, kind: str = 'bn') -> dict[str, tuple[float, bool]]:
    """Expected values of mmcv's ConvModule."""
    return convolution(f'{name}.conv', bias=False) | norm(f'{name}.{kind}')


def table(*parts: dict) -> dict[str, tuple[float, bool]]:
    merged = {}
    for part in parts:
        assert not set(merged) & set(part)
        merged |= part
    return merged


TAP_PYRAMID = table(
    *(convolution(f'backbone.pyramid.{part}') for part in ('up4.0', 'up4.3', 'up2.0')), norm('backbone.pyramid.up4.1')
)
SEGMENTOR = table(
    backbone_table(4, SEGMENTATION_BLOCK),
    TAP_PYRAMID,
    *(with_norm(f'decode_head.psp_modules.{k}.1') for k in range(4)),
    *(
        with_norm(f'decode_head.{part}')
        for part in (
            'bottleneck',
            'lateral_convs.0',
            'lateral_convs.1',
            'lateral_convs.2',
            'fpn_convs.0',
            'fpn_convs.1',
            'fpn_convs.2',
            'fpn_bottleneck',
        )
    ),
    convolution('decode_head.conv_seg'),
    with_norm('auxiliary_head.convs.0'),
    convolution('auxiliary_head.conv_seg'),
)

RPN = ('rpn_head.rpn_cls', 'rpn_head.rpn_reg')
BOX = ('roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg', 'roi_head.bbox_head.shared_fcs.0')
MASK = ('roi_head.mask_head.upsample', 'roi_head.mask_head.conv_logits')
ONE_X = table(
    backbone_table(4, BLOCK),
    TAP_PYRAMID,
    *(convolution(f'neck.{part}.{k}.conv') for part in ('lateral_convs', 'fpn_convs') for k in range(4)),
    *(convolution(part) for part in (*RPN, 'rpn_head.rpn_conv', *BOX, 'roi_head.bbox_head.shared_fcs.1', *MASK)),
    *(convolution(f'roi_head.mask_head.convs.{k}.conv') for k in range(4)),
)

LEVELS = 'backbone.pyramid.levels'
VITDET = table(
    {name: group for name, group in backbone_table(2, OFFSETS_BLOCK).items() if name != 'backbone.cls_token'},
    # each level: up, then 1 x 1 and 3 x 3 with a norm after each
    convolution(f'{LEVELS}.0.0'),
    norm(f'{LEVELS}.0.1.norm'),
    convolution(f'{LEVELS}.0.3'),
    convolution(f'{LEVELS}.1.0'),
    *(
        convolution(f'{LEVELS}.{level}.{first + 2 * k}', bias=False)
        | norm(f'{LEVELS}.{level}.{first + 2 * k + 1}.norm')
        for level, first in enumerate((4, 1, 0, 1))
        for k in range(2)
    ),
    *(convolution(f'rpn_head.rpn_conv.{k}.conv') for k in range(2)),
    *(convolution(part) for part in (*RPN, *BOX, *MASK)),
    *(with_norm(f'roi_head.bbox_head.shared_convs.{k}', 'ln') for k in range(4)),
    *(with_norm(f'roi_head.mask_head.convs.{k}', 'ln') for k in range(4)),
)


def build(config: str, arch: dict | None = None, taps: tuple[int, ...] | None = None) -> tuple[Config, torch.nn.Module]:
    """Build a config's model on the meta device, with another ViT if given (only names matter)."""
    cfg = Config.fromfile(CONFIGS / config)
    init_default_scope(cfg.default_scope)
    if arch:
        cfg.model.backbone.arch = arch
    if taps:
        cfg.model.backbone.out_indices = taps
    with torch.device('meta'):
        return cfg, MODELS.build(cfg.model)


def toy(depth: int) -> dict:
    return dict(embed_dims=8, depth=depth, num_heads=2)


@pytest.mark.parametrize(
    'config, depth, taps, expected',
    [
        ('seg/bootmae_vitb_upernet.py', 4, (0, 1, 2, 3), SEGMENTOR),
        ('det/bootmae_vitb_maskrcnn_1x.py', 4, (0, 1, 2, 3), ONE_X),
        ('det/bootmae_vitb_vitdet.py', 2, None, VITDET),
    ],
)
def test_toy_table(config, depth, taps, expected):
    _, model = build(config, toy(depth), taps)
    assert parameter_table(model, layer_decay=2.0) == expected


def split_bias(rates: dict[str, float]) -> dict[str, float]:
    """Return the rates under our names; a fused bias counts as two."""
    rates = dict(rates)
    for name in [name for name in rates if name.endswith('qkv.bias')]:
        rates[name.replace('qkv.bias', 'q_bias')] = rates[name.replace('qkv.bias', 'v_bias')] = rates.pop(name)
    return from_detectron2(rates)


def test_vitdet_equals_detectron2(golden):
    """The learning rates are the same, and weight decay applies to everything but norms and absolute positions."""
    stored = json.loads((golden / 'vitdet_lr_rates.json').read_text())
    cfg, model = build('det/bootmae_vitb_vitdet.py')
    options = cfg.optim_wrapper.paramwise_cfg
    assert (options.layer_decay, model.backbone.depth) == (stored['lr_decay'], stored['depth'])
    found = parameter_table(model, **options)
    theirs = {
        name.removeprefix('backbone.'): rate for name, rate in stored['rates'].items() if name.startswith('backbone.')
    }
    expected = {f'backbone.{name}': rate for name, rate in split_bias(theirs).items()}
    assert {name: rate for name, (rate, _) in found.items() if name.startswith('backbone.')} == pytest.approx(expected)
    assert {rate for name, (rate, _) in found.items() if not name.startswith('backbone.')} == {1.0}
    assert {rate for name, rate in stored['rates'].items() if not name.startswith('backbone.')} == {1.0}
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    assert len(norms) == 2 * 12 + 1 + 4 * 2 + 8
    for name, (_, decay) in found.items():
        assert decay is (name.rpartition('.')[0] not in norms and name != 'backbone.pos_embed'), name


def test_backbones_are_alike_in_all_libraries():
    """The shared parameters of classifier, segmentor and detector backbones have the same groups."""
    tables = {}
    for task, config in (
        ('cls', 'bootmae_vitb_finetune'),
        ('seg', 'bootmae_vitb_upernet'),
        ('det', 'bootmae_vitb_maskrcnn_1x'),
    ):
        _, model = build(f'{task}/{config}.py')
        tables[task] = parameter_table(model, layer_decay=0.75)
    shared = [name for name in tables['cls'] if name.startswith('backbone.') and 'fc_norm' not in name]
    assert len(shared) == 3 + 12 * 13, 'positions are not trained in classification'
    assert [
        name
        for name in tables['det']
        if '.pyramid.' not in name and name.startswith('backbone.') and name not in tables['cls']
    ] == ['backbone.pos_embed']
    for name in shared:
        assert tables['cls'][name] == tables['seg'][name] == tables['det'][name], name


@pytest.mark.parametrize('decay_positions', [False, True])
def test_vitb_segmentation_equals_the_release(golden, decay_positions):
    """Every parameter of the backbone equals the release.

    Groups and decay are those that its fine-tuning stores for the same name (0.6 per layer); for parameters that only
    segmentation has, they follow from docs/method.md.
    """
    cfg, model = build('seg/bootmae_vitb_upernet.py')
    settings = cfg.optim_wrapper.to_dict() | dict(type='OptimWrapper')
    settings['optimizer'].pop('fused')  # which needs real tensors
    settings['paramwise_cfg']['decay_positions'] = decay_positions
    optimizer = build_optim_wrapper(model, settings).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)]: (group['lr'], group['weight_decay']) for group in optimizer.param_groups for p in group['params']
    }
    assert set(found) == set(names.values())

    stored = from_authors_finetuned(json.loads((golden / 'schedules.json').read_text())['finetune_groups_base'])
    groups = {
        name: (13 - round(math.log(scale, 0.6)), decay)
        for name, (scale, decay) in stored.items()
        if name.startswith('backbone.') and 'fc_norm' not in name
    }
    groups |= {'backbone.pos_embed': (0, 0.0)}
    for k in range(12):
        groups |= {
            f'backbone.blocks.{k}.{name}': (k + 1, decay)
            for name, decay in (('gamma_1', 0.0), ('gamma_2', 0.0), ('attn.relative_position_bias_table', 0.05))
        }
    groups |= {name: (13, 0.05 if decay else 0.0) for name, (_, decay) in TAP_PYRAMID.items()}
    if decay_positions:
        groups |= {'backbone.pos_embed': (0, 0.05), 'backbone.cls_token': (0, 0.05)}
    assert {name for name in found if name.startswith('backbone.')} == set(groups)
    for name, (group, decay) in groups.items():
        assert found[name] == (pytest.approx(4e-4 * 0.65 ** (13 - group), rel=1e-12), decay), name
    heads = {found[name][0] for name in found if not name.startswith('backbone.')}
    assert heads == {4e-4}


def test_configs_take_the_intended_decay():
    """One option gives that of the release; see docs/recipes.md."""
    cfg, model = build('seg/bootmae_vitb_upernet.py', toy(4), (0, 1, 2, 3))
    settings = cfg.optim_wrapper.paramwise_cfg
    assert settings == dict(layer_decay=0.65)
    intended, released = parameter_table(model, **settings), parameter_table(model, **settings, decay_positions=True)
    assert {name for name in intended if intended[name] != released[name]} == {
        'backbone.pos_embed',
        'backbone.cls_token',
    }
