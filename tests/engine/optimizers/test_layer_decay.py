"""Weight decay and learning rate of parameter groups, and mixed precision on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from bootmae.checkpoints.keys import authors_key, from_authors_finetuned, mae_to_mmpretrain
from bootmae.engine.optimizers.layer_decay import ViTOptimWrapperConstructor, parameter_table
from bootmae.engine.optimizers.wrappers import AutocastOptimWrapper

CONFIGS = Path(__file__).parents[3] / 'configs'
WEIGHT_DECAY = 0.05


@pytest.fixture(scope='module')
def release(golden):
    return json.loads((golden / 'schedules.json').read_text())


def build_on_meta(config):
    """Return a config and its full-size model on the meta device."""
    cfg = Config.fromfile(CONFIGS / config)
    with torch.device('meta'):
        return cfg, MODELS.build(cfg.model)


def groups_of(cfg, model):
    """Return (lr, weight decay) by name in a built optimizer, with each parameter exactly once."""
    settings = cfg.optim_wrapper.to_dict()
    settings['optimizer'].pop('fused', None)  # which needs real tensors
    wrapper = build_optim_wrapper(model, settings)
    names, found = {id(parameter): name for name, parameter in model.named_parameters()}, {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group['lr'], group['weight_decay']
    return found, wrapper.optimizer


def test_pretraining_decay_equals_the_release(release):
    cfg, model = build_on_meta('pretrain/bootmae_vitb.py')
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == release['num_params_pretrain_base'] == 115_373_251
    found, optimizer = groups_of(cfg, model)
    expected = {
        authors_key(name): (cfg.optim_wrapper.optimizer.lr, decay)
        for key, decay in (('pretrain_decay_base', WEIGHT_DECAY), ('pretrain_no_decay_base', 0.0))
        for name in release[key]
    }
    assert found == expected
    assert len(optimizer.param_groups) == 2
    assert optimizer.defaults['betas'] == (0.9, 0.95)


@pytest.mark.parametrize(
    'config, key, layer_decay',
    [
        ('cls/bootmae_vitb_finetune.py', 'finetune_groups_base', 0.6),
        ('cls/bootmae_vitl_finetune.py', 'finetune_groups_large', 0.75),
    ],
)
def test_finetuning_groups_equal_the_release(release, config, key, layer_decay):
    cfg, model = build_on_meta(config)
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay == layer_decay
    found, optimizer = groups_of(cfg, model)
    expected = from_authors_finetuned(release[key])  # renames keys, whatever the values are
    assert set(found) == set(expected)
    peak = cfg.optim_wrapper.optimizer.lr
    for name, (scale, decay) in expected.items():
        assert found[name] == (pytest.approx(peak * scale, rel=1e-12), decay), name
    assert len(optimizer.param_groups) == 2 * (model.backbone.depth + 2), 'parameters alike share a group'


def test_mae_pretraining_decay_equals_facebookresearch(golden):
    """Class and mask token of mmpretrain's model decay."""
    stored = json.loads((golden / 'mae_schedules.json').read_text())
    cfg, model = build_on_meta('pretrain/mae_vitb.py')
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == stored['num_params_pretrain_base']
    found, optimizer = groups_of(cfg, model)
    expected = {
        name: decay
        for key, decay in (('pretrain_decay_base', WEIGHT_DECAY), ('pretrain_no_decay_base', 0.0))
        for name, decay in mae_to_mmpretrain(dict.fromkeys(stored[key], decay)).items()
    }
    assert found == {name: (2.4e-3, decay) for name, decay in expected.items()}
    assert optimizer.defaults['betas'] == (0.9, 0.95)


@pytest.mark.parametrize(
    'config, key',
    [('cls/mae_vitb_finetune.py', 'finetune_groups_base'), ('cls/mae_vitl_finetune.py', 'finetune_groups_large')],
)
def test_mae_finetuning_groups_equal_facebookresearch(golden, config, key):
    """The positions are trained at the rate of the embedding; a fused bias counts as two."""
    stored = json.loads((golden / 'mae_schedules.json').read_text())[key]
    for name in [name for name in stored if name.endswith('.qkv.bias')]:
        values = stored.pop(name)
        stored |= {name.replace('qkv.bias', part): values for part in ('q_bias', 'v_bias')}
    cfg, model = build_on_meta(config)
    found, _ = groups_of(cfg, model)
    expected = from_authors_finetuned(stored)
    assert set(found) == set(expected)
    assert 'backbone.pos_embed' in found
    peak = cfg.optim_wrapper.optimizer.lr
    for name, (scale, decay) in expected.items():
        assert found[name] == (pytest.approx(peak * scale, rel=1e-12), decay), name


def test_lars_leaves_the_bias_of_a_probe_alone():
    """The bias moves by learning rate times gradient, the weight by a fraction of its norm."""
    init_default_scope('mmpretrain')
    settings = Config.fromfile(CONFIGS / 'cls/bootmae_vitb_linear.py').optim_wrapper.to_dict()
    settings['optimizer'] |= dict(lr=0.5)
    head = torch.nn.Linear(2, 3)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    wrapper = build_optim_wrapper(head, settings)
    head.weight.grad, head.bias.grad = torch.full((3, 2), 4.0), torch.tensor([1.0, -2.0, 3.0])
    wrapper.step()
    assert torch.allclose(head.bias, bias - 0.5 * head.bias.grad)
    trust = 0.001 * weight.norm() / head.weight.grad.norm()
    assert torch.allclose(head.weight, weight - 0.5 * trust * head.weight.grad)


# A toy, in full


def toy_classifier(**changes):
    backbone = dict(
        type='PlainViT', arch=dict(embed_dims=8, depth=2, num_heads=2), img_size=8, patch_size=4, out_type='avg_featmap'
    )
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=backbone | changes,
            head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
        )
    )


BLOCK = {
    'norm1.weight': False,
    'norm1.bias': False,
    'attn.q_bias': False,
    'attn.v_bias': False,
    'attn.qkv.weight': True,
    'attn.proj.weight': True,
    'attn.proj.bias': False,
    'norm2.weight': False,
    'norm2.bias': False,
    'mlp.fc1.weight': True,
    'mlp.fc1.bias': False,
    'mlp.fc2.weight': True,
    'mlp.fc2.bias': False,
}
TOY = {
    'backbone.cls_token': (8.0, False),
    'backbone.patch_embed.proj.weight': (8.0, True),
    'backbone.patch_embed.proj.bias': (8.0, False),
    **{f'backbone.blocks.0.{name}': (4.0, decay) for name, decay in BLOCK.items()},
    **{f'backbone.blocks.1.{name}': (2.0, decay) for name, decay in BLOCK.items()},
    'backbone.fc_norm.weight': (1.0, False),
    'backbone.fc_norm.bias': (1.0, False),
    'head.fc.weight': (1.0, True),
    'head.fc.bias': (1.0, False),
}


def test_toy_table():
    assert parameter_table(toy_classifier(), layer_decay=2.0) == TOY


def test_toy_groups():
    model = toy_classifier()
    wrapper = ViTOptimWrapperConstructor(
        dict(type='OptimWrapper', accumulative_counts=3, optimizer=dict(type='AdamW', lr=0.5, weight_decay=0.1)),
        dict(layer_decay=2.0),
    )(model)
    assert wrapper._accumulative_counts == 3
    groups = [(group['lr'], group['weight_decay'], len(group['params'])) for group in wrapper.optimizer.param_groups]
    assert sorted(groups) == [
        (0.5, 0.0, 3),
        (0.5, 0.1, 1),
        (1.0, 0.0, 9),
        (1.0, 0.1, 4),
        (2.0, 0.0, 9),
        (2.0, 0.1, 4),
        (4.0, 0.0, 2),
        (4.0, 0.1, 1),
    ]


def test_without_layer_decay():
    model = toy_classifier()
    wrapper = ViTOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=0.5)))(model)
    assert [(g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups] == [(0.5, 0.0), (0.5, 0.0)]
    assert {scale for scale, _ in parameter_table(model).values()} == {1.0}


@pytest.mark.parametrize(
    'options, expected',
    [
        (dict(decay_class_token=True), {'cls_token'}),
        (dict(decay_positions=True), {'cls_token', 'pos_embed'}),
        (dict(), set()),
    ],
)
def test_what_may_decay(options, expected):
    model = toy_classifier()
    model.backbone.pos_embed.requires_grad_(True)
    plain, chosen = parameter_table(model), parameter_table(model, **options)
    assert {name.rpartition('.')[2] for name in plain if plain[name] != chosen[name]} == expected
    decaying = sum(p.numel() for name, p in model.named_parameters() if chosen[name][1])
    wrapper = ViTOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1)), options)(model)
    assert decaying == sum(
        p.numel() for group in wrapper.optimizer.param_groups if group['weight_decay'] for p in group['params']
    )


def test_frozen_backbone_is_in_no_group():
    assert set(parameter_table(toy_classifier(frozen=True), 2.0)) == {'head.fc.weight', 'head.fc.bias'}


def test_fixed_positions_and_momentum_are_in_no_group(make_bootmae):
    model = make_bootmae()
    expected = {
        name
        for name, parameter in model.named_parameters()
        if not name.startswith('momentum.') and not name.endswith('pos_embed')
    }
    assert set(parameter_table(model)) == expected


def test_a_wrapped_model_is_unwrapped():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    wrapper = ViTOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=1.0)), dict(layer_decay=2.0))(
        Wrapper(toy_classifier())
    )
    assert max(group['lr'] for group in wrapper.optimizer.param_groups) == 8.0


def test_unknown_settings():
    unknown = dict(layer_decay=0.75, custom_keys={}, bias_decay_mult=0.0)
    with pytest.raises(ValueError, match=r"unknown paramwise_cfg \['bias_decay_mult', 'custom_keys'\]"):
        ViTOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=1.0)), unknown)


@pytest.mark.parametrize('backbone', [None, torch.nn.Linear(2, 2)])
def test_layer_decay_needs_layers(backbone):
    model = torch.nn.Module()
    model.head = torch.nn.Linear(2, 2)
    if backbone is not None:
        model.backbone = backbone
    constructor = ViTOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=1.0)), dict(layer_decay=0.5))
    with pytest.raises(ValueError, match=r'layer_decay=0.5 needs a model whose backbone has get_layer_depth'):
        constructor(model)


# Precision


def test_bf16_on_the_cpu():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    wrapper = ViTOptimWrapperConstructor(dict(type='AutocastOptimWrapper', optimizer=dict(type='SGD', lr=0.1)))(model)
    assert type(wrapper) is AutocastOptimWrapper
    x, before = torch.randn(2, 4), model[0].weight.detach().clone()
    with wrapper.optim_context(model):
        hidden = model[0](x)
        loss = model[1](hidden).square().sum() + hidden.float().sum()
    assert hidden.dtype == torch.bfloat16
    assert model[0](x).dtype == torch.float32, 'outside the context nothing changes'
    wrapper.update_params(loss)
    assert model[0].weight.dtype == torch.float32
    assert torch.allclose(model[0].weight, before - 0.1 * x.sum(dim=0), atol=0.1)
    assert not torch.equal(model[0].weight, before)
    assert not hasattr(wrapper, 'loss_scaler')
    assert set(wrapper.state_dict()) - {'base_param_settings'} == {'state', 'param_groups'}
