"""tools/convert_checkpoint.py succeeds only if the target's own model takes all weights."""

from pathlib import Path

import pytest
import torch
from calling import call_tool
from timm.layers import RmsNorm, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

from bootmae.checkpoints import export as module
from bootmae.checkpoints import find_encoder, read_checkpoint
from bootmae.checkpoints.export import FORMATS
from bootmae.checkpoints.targets import LISTS, Sizes

SIZE = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=4, num_classes=0)
UNKNOWN, MISSING = 'its encoder has weights that a plain ViT does not have', 'its encoder lacks weights of a plain ViT'
CLASS_TOKEN = f'{MISSING} (1): cls_token (a class token)'
# What a plain ViT does not have: options of timm's class, and the reason in the message.
OTHER_VITS = {
    'layer scale': (dict(init_values=0.1), f'{UNKNOWN} (4): blocks.0.ls1.gamma, blocks.0.ls2.gamma, '),
    'register tokens': (dict(reg_tokens=4), f'{UNKNOWN} (1): reg_token (register tokens)'),
    'norms of q and k': (dict(qk_norm=True), f'{UNKNOWN} (8): blocks.0.attn.q_norm.weight, '),
    'SwiGLU': (
        dict(mlp_layer=SwiGLUPacked),
        'its encoder has weights of another shape than a plain ViT (2): blocks.0.mlp.fc2.weight (24, 48) for (24, 96), '
        'blocks.1.mlp.fc2.weight (24, 48) for (24, 96) (a gated MLP, such as SwiGLU)',
    ),
    'norm before the blocks': (dict(pre_norm=True), f'{UNKNOWN} (2): norm_pre.weight, norm_pre.bias (a norm before'),
    'no class token': (dict(class_token=False, global_pool='avg'), CLASS_TOKEN),
    'no class token, no fc_norm': (dict(class_token=False, global_pool='avg', fc_norm=False), CLASS_TOKEN),
    'no biases': (dict(qkv_bias=False), f'{MISSING} (4): blocks.0.attn.q_bias, blocks.0.attn.v_bias, '),
    'no positions': (dict(pos_embed='none'), f'{MISSING} (1): pos_embed (absolute positions)'),
    'class token without position': (
        dict(no_embed_class=True),
        'its pos_embed has 16 rows, a square, and none for the class token',
    ),
    'RMS norm': (dict(norm_layer=RmsNorm), f'{MISSING} (4): blocks.0.norm1.bias, blocks.0.norm2.bias, '),
}
ANY_SIZE = [
    dict(),
    dict(patch_size=4),
    dict(img_size=(32, 64)),
    dict(patch_size=(8, 16), img_size=(32, 64)),
    dict(in_chans=1, mlp_ratio=2),
    dict(mlp_ratio=2.5),
    dict(global_pool='avg', num_classes=5),
]


def save(folder: Path, **options) -> Path:
    torch.manual_seed(0)
    torch.save(VisionTransformer(**SIZE | options).state_dict(), folder / 'vit.pth')
    return folder / 'vit.pth'


def name_of(to: str) -> str:
    return 'new.safetensors' if to in ('hf', 'safetensors') else 'new.pth'


def export(capsys, path: Path, to: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = call_tool('convert_checkpoint', path, '--to', to, path.with_name(name_of(to)), '--force')
    return code, *capsys.readouterr()


@pytest.mark.parametrize('kind', OTHER_VITS)
def test_another_vit_is_exported_to_no_format(tmp_path, capsys, kind):
    options, reason = OTHER_VITS[kind]
    path = save(tmp_path, **options)
    for to in FORMATS:
        code, _, error = export(capsys, path, to)
        assert code == 2, to
        assert error.startswith(f'error: {path} was not exported: {reason}'), error
    assert [each.name for each in tmp_path.iterdir()] == ['vit.pth']


@pytest.mark.parametrize('options', ANY_SIZE)
def test_exports_of_any_size_load_into_the_target(tmp_path, capsys, options):
    """All weights, strictly; refused where the target has no such size."""
    path = save(tmp_path, **options)
    oblong, whole = options.get('img_size') == (32, 64), options.get('mlp_ratio') != 2.5
    refused = dict(
        mmdet=oblong
        and "mmdet's ViTDet takes square patches in a square, and the positions of this encoder are others",
        mmseg=(('patch_size' in options and oblong) or not whole)
        and "mmseg's ViT takes square patches and a whole mlp_ratio, and this encoder has others",
    )
    for to in FORMATS:
        code, _, error = export(capsys, path, to)
        reason = refused.get(to)
        assert (code, error) == ((2, f'error: {path} was not exported: {reason}\n') if reason else (0, '')), to


@pytest.mark.parametrize('to', ['timm', 'mmpretrain', 'mmseg', 'hf', 'mmdet'])
def test_a_wrong_name_is_no_success(tmp_path, capsys, monkeypatch, to):
    """If a map of names forgot a weight, or renamed one, the target's model or list would show it."""
    rename, path = getattr(module, f'to_{to}'), save(tmp_path)

    def wrong(state: dict) -> dict:
        out = rename(state)
        first = next(key for key in out if 'pos' in key)
        return {key if key != first else 'positions': value for key, value in out.items()}

    monkeypatch.setattr(module, f'to_{to}', wrong)
    code, _, error = export(capsys, path, to)
    assert code == 2
    assert (
        f'the model of {to} would not take these weights completely (1 without a place: positions; 1 missing: ' in error
    )
    assert not path.with_name(name_of(to)).exists()


def test_the_list_of_transformers_is_complete(tmp_path):
    """Weights of ``ViTModel(ViTConfig(...), add_pooling_layer=False)``, written down from version 5.23."""
    path = save(tmp_path)
    encoder = find_encoder(read_checkpoint(path))
    names = LISTS['hf'](Sizes(encoder, 'hf'))
    block = [
        'attention.attention.query',
        'attention.attention.key',
        'attention.attention.value',
        'attention.output.dense',
    ]
    block += ['intermediate.dense', 'output.dense', 'layernorm_before', 'layernorm_after']
    wanted = {'embeddings.cls_token', 'embeddings.position_embeddings'}
    parts = [f'encoder.layer.{k}.{part}' for k in range(2) for part in block]
    for part in ('embeddings.patch_embeddings.projection', 'layernorm', *parts):
        wanted |= {f'{part}.weight', f'{part}.bias'}
    assert set(names) == wanted
    assert names['encoder.layer.1.intermediate.dense.weight'] == (96, 24)
    assert names['encoder.layer.1.output.dense.weight'] == (24, 96)
    assert names['embeddings.position_embeddings'] == (1, 17, 24)
