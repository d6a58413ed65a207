"""Equality with the authors' release, and the command that shows it."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from bootmae.checkpoints.detectron2 import from_detectron2
from bootmae.commands import parity
from bootmae.commands.parity import TOLERANCE, compare

CONFIGS = Path(__file__).parents[2] / 'configs'
COMMAND = Path(__file__).parents[2] / 'tools' / 'parity.py'
SQUARE, ODD_HEADS, PLAIN_LOSS, FINETUNE, SEGMENTATION, MAE, MAE_PIXELS, VITDET, VITDET_SIZE = (
    f'compact_{name}.npz'
    for name in (
        'square',
        'odd_heads',
        'plain_loss',
        'finetune',
        'segmentation',
        'mae_square',
        'mae_plain_pixels',
        'vitdet',
        'vitdet_other_size',
    )
)
FORWARD = ['pixel prediction', 'feature prediction', 'momentum features', 'token weights']
LOSSES = ['pixel loss', 'feature loss', 'loss']
UPDATES = ['gradient norms', 'after one step', 'momentum after it']


# Equality


@pytest.mark.parametrize('name', [SQUARE, ODD_HEADS, PLAIN_LOSS])
def test_pretraining_equals_the_release(golden, name):
    kind, errors = compare(golden / name)
    assert kind == 'pretraining'
    assert list(errors) == FORWARD + LOSSES + UPDATES
    assert {key: error for key, error in errors.items() if error > 1e-6} == {}


def test_finetuning_equals_the_release(golden):
    kind, errors = compare(golden / FINETUNE)
    assert kind == 'fine-tuning'
    assert list(errors) == ['logits']
    assert errors['logits'] <= 1e-6


def test_segmentation_equals_the_release(golden):
    kind, errors = compare(golden / SEGMENTATION)
    assert kind == 'segmentation'
    assert list(errors) == ['level 0', 'level 1', 'level 2', 'level 3']
    assert {key: error for key, error in errors.items() if error > 1e-6} == {}


@pytest.mark.parametrize('name', [MAE, MAE_PIXELS])
def test_mae_equals_facebookresearch(golden, name):
    kind, errors = compare(golden / name)
    assert kind == 'MAE'
    assert list(errors) == ['mask', 'pixel prediction', 'loss', 'gradient norms', 'after one step']
    assert {key: error for key, error in errors.items() if error > 1e-6} == {}


def test_mae_is_compared_as_the_configs_build_it():
    """The model equals that of the full-size config in every number."""
    init_default_scope('mmpretrain')
    sizes = dict(
        img_size=224,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        decoder_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    cfg = Config.fromfile(CONFIGS / 'pretrain/mae_vitb.py')
    with torch.device('meta'):
        compared, ours = MODELS.build(parity.mae_config(sizes)), MODELS.build(cfg.model)
    assert str(compared.backbone) == str(ours.backbone)
    assert str(compared.neck) == str(ours.neck)
    assert str(compared.head) == str(ours.head)
    assert [(name, p.shape, p.requires_grad) for name, p in compared.named_parameters()] == [
        (name, p.shape, p.requires_grad) for name, p in ours.named_parameters()
    ]
    assert (ours.backbone.mask_ratio, ours.head.norm_pix) == (0.75, True)
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_class_token=True)


@pytest.mark.parametrize('name', [VITDET, VITDET_SIZE])
def test_vitdet_equals_detectron2(golden, name):
    kind, errors = compare(golden / name)
    assert kind == 'ViTDet'
    assert list(errors) == ['last map', 'level 0', 'level 1', 'level 2', 'level 3']
    assert {key: error for key, error in errors.items() if error > 1e-6} == {}


def test_vitdet_without_relative_positions(golden, tmp_path):
    """A file without tables gives a model without relative positions."""
    with np.load(golden / VITDET) as archive:
        arrays = {key: 0 * value if '.rel_pos_' in key else value for key, value in archive.items()}
    np.savez(tmp_path / 'zero.npz', **arrays)
    zero = parity.build_vitdet(parity.Golden(tmp_path / 'zero.npz').meta)
    state = {
        key.removeprefix('vitdet/'): torch.from_numpy(value).double()
        for key, value in arrays.items()
        if key.startswith('vitdet/')
    }
    zero.load_state_dict(from_detectron2(state))
    plain = parity.build_vitdet(parity.Golden(tmp_path / 'zero.npz').meta | dict(use_rel_pos=False))
    plain.load_state_dict(from_detectron2({key: value for key, value in state.items() if '.rel_pos_' not in key}))
    images = torch.from_numpy(arrays['images']).double()
    torch.testing.assert_close(plain(images), zero(images))


def test_tolerance_is_one_in_a_million():
    assert TOLERANCE == 1e-6


@pytest.mark.parametrize(
    'ours, theirs, error',
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        (2.0, 1.0, 1.0),
        ([0.0], [0.0], 0.0),
        ([1.0, 1.0], [[1.0, 1.0]], float('inf')),
        ([1.0], [1.0, 1.0], float('inf')),
        ([float('nan')], [1.0], float('inf')),
        ([1.0], [float('nan')], float('inf')),
        ([float('inf')], [1.0], float('inf')),
    ],
)
def test_relative_error(ours, theirs, error):
    assert parity.relative_error(torch.tensor(ours), torch.tensor(theirs)) == pytest.approx(error)


# The command


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*files):
        monkeypatch.setattr(sys, 'argv', [str(COMMAND), *map(str, files)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(COMMAND), run_name='__main__')
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return run


@pytest.fixture
def doctored(golden, tmp_path):
    """``doctored(name, key=value)``: a copy of a golden file with some arrays replaced, or removed where None."""

    def make(name, **changes):
        with np.load(golden / name) as archive:
            arrays = dict(archive)
        for key, value in changes.items():
            if value is None:
                arrays = {k: v for k, v in arrays.items() if not k.startswith(key)}
            else:
                arrays[key] = value(arrays[key]) if callable(value) else value
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return make


def meta(**changes):
    def changed(old):
        merged = json.loads(str(old)) | changes
        return np.array(json.dumps({key: value for key, value in merged.items() if value is not None}))

    return changed


def test_command_prints_a_table(command, golden):
    code, out, err = command(golden / SQUARE, golden / FINETUNE)
    assert (code, err) == (0, '')
    lines = out.splitlines()
    assert lines[0] == f'{golden / SQUARE} (pretraining): equal'
    assert [line[2:23].strip() for line in lines[1:11]] == FORWARD + LOSSES + UPDATES
    assert all(float(line[23:]) <= 1e-6 for line in lines[1:11])
    assert lines[11] == f'{golden / FINETUNE} (fine-tuning): equal'
    assert lines[-1] == 'all relative errors are <= 1e-06'


def test_command_tells_what_differs(command, golden, doctored):
    file = doctored(SQUARE, loss=lambda value: value * (1 + 3e-6))
    code, out, err = command(golden / FINETUNE, file)
    assert (code, err) == (1, '')
    assert f'{golden / FINETUNE} (fine-tuning): equal' in out
    assert f'{file} (pretraining): NOT EQUAL' in out
    marked = [line.split()[0] for line in out.splitlines() if line.endswith('> 1e-06')]
    assert marked == ['loss']
    assert out.splitlines()[-1] == 'NOT all relative errors are <= 1e-06'


@pytest.mark.parametrize(
    'name, key, result',
    [
        (SQUARE, 'pixel_pred', 'pixel'),
        (SQUARE, 'feature_target', 'momentum'),
        (SQUARE, 'token_weight', 'token'),
        (SQUARE, 'gradnorm/blocks.0.attn.q_bias', 'gradient'),
        (SQUARE, 'after_step/mask_token', 'after'),
        (MAE, 'mask', 'mask'),
        (MAE, 'pixel_pred', 'pixel'),
        (MAE, 'gradnorm/cls_token', 'gradient'),
        (VITDET, 'last_feat', 'last'),
        (SQUARE, 'after_ema/blocks.0.attn.qkv.weight', 'momentum'),
        (FINETUNE, 'logits', 'logits'),
        (SEGMENTATION, 'level3', 'level'),
    ],
)
def test_command_notices_a_doctored_value(command, doctored, name, key, result):
    code, out, _ = command(doctored(name, **{key: lambda value: value * 1.00001}))
    assert code == 1
    assert [line.split()[0] for line in out.splitlines() if line.endswith('> 1e-06')] == [result]


@pytest.mark.parametrize('key', ['feature_pred', 'loss_pixel'])
def test_command_notices_a_wrong_shape_and_a_nan(command, doctored, key):
    code, out, _ = command(doctored(SQUARE, **{key: lambda value: value[:, :-1] if value.ndim else value * np.nan}))
    assert code == 1
    assert ' inf ' in out


@pytest.mark.parametrize(
    'name, changes, message',
    [
        (SEGMENTATION, dict(level1=None), "lacks 'level1'"),
        (SEGMENTATION, {'backbone/fpn3': np.zeros(3)}, "unknown weights .'backbone.fpn3'"),
        (
            SEGMENTATION,
            {'backbone/blocks.1.gamma_1': None},
            'do not match the sizes in meta.*Missing key.*blocks.1.gamma_1',
        ),
        (
            SEGMENTATION,
            {'backbone/blocks.1.attn.relative_position_index': lambda index: index.T},
            'blocks.1.attn.relative_position_index orders relative positions differently',
        ),
        (
            SEGMENTATION,
            {'backbone/blocks.1.attn.relative_position_bias_table': lambda table: table[:-3]},
            'blocks.1.attn.relative_position_index .*does not fit its table',
        ),
        (SQUARE, dict(loss_pixel=None), "lacks 'loss_pixel'"),
        (SQUARE, dict(images=None), "lacks 'images'"),
        (SQUARE, {'momentum/': None}, "lacks 'momentum/'"),
        (SQUARE, {'after_ema/': None}, "lacks 'after_ema/'"),
        (SQUARE, {'online/norm.bias': None}, 'do not match the sizes in meta.*Missing key.*backbone.norm.bias'),
        (SQUARE, {'online/norm.bias': np.zeros(3)}, 'do not match the sizes in meta.*size mismatch'),
        (SQUARE, {'online/extra': np.zeros(3)}, "unknown weights .'extra'"),
        (SQUARE, dict(meta=None), 'not a golden file'),
        (SQUARE, dict(meta=np.array('[1, 2]')), 'not a golden file'),
        (SQUARE, dict(meta=meta(decoder_dim=None)), "lacks 'decoder_dim' in its meta"),
        (SQUARE, dict(meta=meta(layer_norm_eps=1e-5)), 'layer_norm_eps=1e-05, BootMAE uses 1e-06'),
        (SQUARE, dict(ids_shuffle=lambda ids: ids + 1), 'ids_shuffle must hold one permutation'),
        (SQUARE, dict(ids_shuffle=lambda ids: ids[:1]), 'ids_shuffle must hold one permutation'),
        (FINETUNE, {'model/': None}, 'of unknown kind: it has no online/, model/, backbone/, mae/, vitdet/ weights'),
        (MAE, {'mae/decoder_blocks.0.mlp.fc1.bias': None}, 'Missing key.*neck.decoder_blocks.0.ffn.layers.0.0.bias'),
        (MAE, dict(mask=None), "lacks 'mask'"),
        (VITDET, {'vitdet/net.extra': np.zeros(3)}, 'do not match the sizes in meta.*Unexpected key.*extra'),
        (VITDET, {'vitdet/fpn': np.zeros(3)}, "fpn is not a weight of ViTDet's backbone"),
        (VITDET, {'vitdet/simfp_3.1.norm.bias': None}, 'Missing key.*pyramid.levels.2.3.norm.bias'),
        (VITDET, dict(meta=meta(window_size=None)), "lacks 'window_size' in its meta"),
        (MAE, dict(meta=meta(decoder_num_heads=None)), "lacks 'decoder_num_heads' in its meta"),
        (FINETUNE, dict(logits=None), "lacks 'logits'"),
        (FINETUNE, {'model/head.bias': None}, 'do not match the sizes in meta.*head.fc.bias'),
    ],
)
def test_command_refuses_a_file(command, golden, doctored, name, changes, message):
    file = doctored(name, **changes)
    code, out, err = command(file, golden / FINETUNE)
    assert code == 2
    assert err.startswith(f'{file}: error: ')
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert f'{golden / FINETUNE} (fine-tuning): equal' in out, 'the other files are compared all the same'
    assert out.splitlines()[-1] == 'NOT all relative errors are <= 1e-06'


def damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        'empty': b'',
        'text': b'not a zip file',
        'truncated': content[:middle],
        'bit flipped': content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }[how]


@pytest.mark.parametrize('how', ['empty', 'text', 'truncated', 'bit flipped'])
def test_command_refuses_a_damaged_file(command, golden, tmp_path, how):
    file = tmp_path / 'file.npz'
    file.write_bytes(damage((golden / SQUARE).read_bytes(), how))
    code, _, err = command(file)
    assert code == 2
    assert f'{file} is damaged or not a golden file (an .npz with a JSON text `meta`)' in err


def test_command_refuses_a_missing_file(command, tmp_path):
    code, _, err = command(tmp_path / 'missing.npz')
    assert code == 2
    assert f'no golden file {tmp_path / "missing.npz"}' in err
