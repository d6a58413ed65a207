"""tools/convert_checkpoint.py: one line, a file that other commands take, and one line for each error."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calling import call_tool

from bootmae.checkpoints import find_encoder, read_checkpoint
from bootmae.checkpoints.load import tensors_hash
from bootmae.config.load import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
FINETUNE = REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
PRETRAIN = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'
FACTS = dict(mean=[127.5] * 3, std=[127.5] * 3, img_size=[32, 32], num_heads=3, method='BootMAE')


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    """A folder with the file of a pretraining run, pretrain.pth, and of a classifier, cls.pth, of the debug configs."""
    from mmpretrain.registry import MODELS

    folder = tmp_path_factory.mktemp('runs')
    for name, config in (('pretrain', PRETRAIN), ('cls', FINETUNE)):
        cfg = load_config(config)
        torch.manual_seed(1)
        model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.get('data_preprocessor')))
        model.init_weights()
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        state = model.state_dict()
        if name == 'pretrain':
            state['feature_decoder.pos_embed'] = state['backbone.pos_embed']
        torch.save(
            dict(
                state_dict=state, optimizer=dict(state={}, param_groups=[]), meta=dict(epoch=2, iter=4, bootmae=FACTS)
            ),
            folder / f'{name}.pth',
        )
    return folder


def test_one_line(runs, tmp_path, capsys):
    assert call_tool('convert_checkpoint', runs / 'pretrain.pth', '--to', 'timm', tmp_path / 'a.pth') == 0
    captured = capsys.readouterr()
    found = find_encoder(read_checkpoint(runs / 'pretrain.pth')).state
    assert captured.out == (
        f'{runs}/pretrain.pth [BootMAE run (online), sha256 {tensors_hash(found)}] as timm: {len(found) - 2} tensors; '
        'left out: pixel_decoder (pretraining only), feature_decoder (pretraining only), momentum (--source momentum '
        f'exports it), training state (not needed to use the weights) -> {tmp_path}/a.pth\n'
    )
    assert not captured.err


def test_momentum(runs, tmp_path, capsys):
    assert (
        call_tool(
            'convert_checkpoint',
            runs / 'pretrain.pth',
            '--to',
            'hf',
            tmp_path / 'model.safetensors',
            '--source',
            'momentum',
        )
        == 0
    )
    assert 'layernorm (the file has no final norm: transformers will initialize a new one)' in capsys.readouterr().out
    state = read_checkpoint(runs / 'pretrain.pth')['state_dict']
    theirs = read_checkpoint(tmp_path / 'model.safetensors')['state_dict']
    assert torch.equal(theirs['encoder.layer.1.intermediate.dense.weight'], state['momentum.blocks.1.mlp.fc1.weight'])


@pytest.mark.parametrize(
    'name, args, message',
    [
        ('exists', ['pretrain.pth', '--to', 'timm', 'old.pth'], r'old\.pth exists: use another name, or --force'),
        ('itself', ['pretrain.pth', '--to', 'timm', 'pretrain.pth', '--force'], 'pretrain.pth is the file to read'),
        ('missing', ['missing.pth', '--to', 'timm', 'new.pth'], r'no checkpoint missing\.pth'),
        ('no folder', ['pretrain.pth', '--to', 'timm', 'no/new.pth'], r'no folder no for new\.pth: create it first'),
        ('a folder', ['pretrain.pth', '--to', 'timm', '.'], r'\. is a folder'),
        (
            'no momentum',
            ['cls.pth', '--to', 'timm', 'new.pth', '--source', 'momentum'],
            r'cls\.pth was not exported: no momentum encoder in this file',
        ),
        (
            'no encoder',
            ['resnet.pth', '--to', 'timm', 'new.pth'],
            r'resnet\.pth was not exported: no ViT encoder in this file: .*; give a BootMAE, MAE or ViT checkpoint',
        ),
        (
            'suffix',
            ['pretrain.pth', '--to', 'hf', 'new.pth'],
            r'new\.pth: for --to hf give a name that ends in \.safetensors',
        ),
        (
            'two states',
            ['pretrain.pth', '--to', 'authors', 'new.safetensors'],
            r'new\.safetensors: a \.safetensors file has no place for model, model_ema: use a name that ends in \.pth',
        ),
    ],
)
def test_user_errors_are_one_line(runs, tmp_path, monkeypatch, capsys, name, args, message):
    monkeypatch.chdir(tmp_path)
    for file in ('pretrain.pth', 'cls.pth'):
        Path(file).write_bytes((runs / file).read_bytes())
    Path('old.pth').write_text('old')
    torch.save(dict(state_dict={'conv1.weight': torch.ones(1)}), 'resnet.pth')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert call_tool('convert_checkpoint', *args) == 2
    captured = capsys.readouterr()
    assert re.match(f'error: {message}', captured.err), captured.err
    assert (captured.out, captured.err.count('\n')) == ('', 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_force_replaces(runs, tmp_path):
    (tmp_path / 'old.pth').write_text('old')
    assert call_tool('convert_checkpoint', runs / 'pretrain.pth', '--to', 'timm', tmp_path / 'old.pth', '--force') == 0
    assert find_encoder(read_checkpoint(tmp_path / 'old.pth')).kind.startswith('timm ViT')
    assert [path.name for path in tmp_path.iterdir()] == ['old.pth']


def test_an_unknown_format_is_explained(capsys):
    assert call_tool('convert_checkpoint', 'a.pth', '--to', 'onnx', 'b.pth') == 2
    assert "invalid choice: 'onnx'" in capsys.readouterr().err


def test_a_converted_classifier_is_evaluated_alike(runs, tmp_path):
    """tools/test.py takes whole models under our names, through the authors' names and back as well."""
    assert call_tool('convert_checkpoint', runs / 'cls.pth', '--to', 'authors', tmp_path / 'theirs.pth') == 0
    assert (
        call_tool('convert_checkpoint', tmp_path / 'theirs.pth', '--to', 'safetensors', tmp_path / 'b.safetensors') == 0
    )
    metrics = []
    for name, path in (('first', runs / 'cls.pth'), ('second', tmp_path / 'b.safetensors')):
        assert (
            call_tool(
                'test',
                FINETUNE,
                path,
                '--work-dir',
                tmp_path / name,
                '--cfg-options',
                'log_level=ERROR',
                f'experiment_name=convert_{name}',
                'test_dataloader.dataset.indices=64',
            )
            == 0
        )
        metrics.append(json.loads(next((tmp_path / name).glob('*/[0-9]*.json')).read_text())['accuracy/top1'])
    assert metrics[0] == metrics[1]


def test_an_exported_encoder_is_no_run(runs, tmp_path, capsys):
    assert call_tool('convert_checkpoint', runs / 'pretrain.pth', '--to', 'timm', tmp_path / 'vit.pth') == 0
    capsys.readouterr()
    assert (
        call_tool(
            'test',
            FINETUNE,
            tmp_path / 'vit.pth',
            '--work-dir',
            tmp_path,
            '--cfg-options',
            'log_level=ERROR',
            'experiment_name=convert_encoder',
        )
        == 2
    )
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r'error: .*vit\.pth is not a checkpoint of this config.s ImageClassifier: .* use --init', line), (
        line
    )


@pytest.mark.parametrize('to', ['timm', 'mmpretrain', 'mmseg', 'mmdet', 'authors', 'hf', 'safetensors'])
def test_exports_are_starting_weights(runs, tmp_path, to):
    """``--init`` takes them all, and knows the input statistics."""
    from mmengine.config import ConfigDict
    from mmpretrain.registry import MODELS

    from bootmae.config.weights import apply_init

    path = tmp_path / ('a.safetensors' if to in ('hf', 'safetensors') else 'a.pth')
    assert call_tool('convert_checkpoint', runs / 'pretrain.pth', '--to', to, path) == 0
    cfg = load_config(FINETUNE)
    apply_init(cfg, str(path))
    model = MODELS.build(dict(cfg.model, data_preprocessor=None))
    model.init_weights()
    state = read_checkpoint(runs / 'pretrain.pth')['state_dict']
    assert torch.equal(model.backbone.blocks[1].attn.qkv.weight, state['backbone.blocks.1.attn.qkv.weight'])
    assert 'BootMAE run (online)' in str(model.backbone.load_report)
    wrong = ConfigDict(
        model=cfg.model, data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    )
    with pytest.raises(ValueError, match=r'was made with mean \[127.5'):
        apply_init(wrong, str(path))


@pytest.mark.slow
def test_as_a_command(tmp_path):
    """From another folder, as a user calls it."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / 'tools' / 'convert_checkpoint.py', 'a.pth', '--to', 'timm', 'b.pth'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith('error: no checkpoint a.pth')
