"""All tools with a matrix of wrong configs, checkpoints, options and data: one line that says what is wrong."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from calling import call_tool

from bootmae.distributed.exits import Progress
from bootmae.results.provenance import REPOSITORY

CONFIGS = REPOSITORY / 'configs'
PRETRAIN, TUNE = CONFIGS / 'pretrain' / 'bootmae_debug.py', CONFIGS / 'cls' / 'bootmae_debug_finetune.py'
OWN = CONFIGS / 'pretrain' / 'bootmae_small_data_cpu.py'
OF_A_LIBRARY = re.compile(r'error: \w+: .* \(\S+, line \d+\)\. Check the settings that it is about; BOOTMAE_')


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """``refused(tool, *args)`` checks that a tool ends with code 2 and one error, and returns it."""
    monkeypatch.chdir(tmp_path)

    def check(tool: str, *args: object) -> str:
        Progress.trained = False
        called = f'{tool} {" ".join(map(str, args))}'
        assert call_tool(tool, *args) == 2, called
        out, err = capsys.readouterr()
        assert 'Traceback' not in out + err, called
        assert err.count('error: ') == 1, f'{called}: {err}'
        return err[err.index('error: ') :].strip()

    yield check
    Progress.trained = False


# --- configs ---

TEXTS = dict(
    empty='',
    syntax='a = (',
    fails='a = 1 / 0',
    no_base="_base_ = 'no_such.py'",
    no_package="_base_ = 'nopackage::nothing.py'",
    no_module="custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)",
    yaml='model: x',
    no_type='model = dict(backbone=dict())',
    unknown_model="model = dict(type='NoSuchModel')",
    model_is_text="model = 'x'",
    only_a_model="model = dict(type='BootMAE')",
)
CHANGES = dict(
    no_loop='train_cfg = None',
    dataset_is_text="train_dataloader = dict(_delete_=True, dataset='x')",
    loader_is_a_list='train_dataloader = []',
    unknown_dataset="train_dataloader = dict(dataset=dict(_delete_=True, type='NoSuchData'))",
    unknown_transform="train_dataloader = dict(dataset=dict(pipeline=[dict(type='NoSuchTransform')]))",
    unknown_hook="custom_hooks = [dict(type='NoSuchHook')]",
    hooks_are_text="custom_hooks = 'x'",
    unknown_optimizer="optim_wrapper = dict(optimizer=dict(type='NoOptimizer'))",
    unknown_schedule="param_scheduler = dict(_delete_=True, type='NoSchedule')",
    no_scope="default_scope = 'nowhere'",
)


def write_configs(folder: Path) -> list[Path]:
    texts = TEXTS | {name: f'_base_ = {str(PRETRAIN)!r}\n{text}' for name, text in CHANGES.items()}
    for name, text in texts.items():
        (folder / f'{name}.py').write_text(text)
    (folder / 'binary.py').write_bytes(bytes(range(256)))
    (folder / 'latin.py').write_bytes('a = "é"'.encode('latin-1'))
    (folder / 'folder.py').mkdir()
    return [folder / f'{name}.py' for name in ('missing', 'binary', 'latin', 'folder', *texts)]


@pytest.mark.parametrize(
    'tool, args',
    [
        ('train', ('--work-dir', 'run')),
        ('train', ('--dry-run',)),
        ('plan', ()),
        ('knn', ('--untrained', 1)),
        ('test', ('missing.pth',)),
    ],
    ids=str,
)
def test_configs(refused, tmp_path, tool, args):
    """Every line names the config or the setting."""
    for config in write_configs(tmp_path):
        line = refused(tool, config, *args)
        assert not OF_A_LIBRARY.match(line), f'{config.name}: {line}'


# --- checkpoints ---


def write_checkpoints(folder: Path) -> list[Path | str]:
    contents = dict(
        empty=b'',
        html=b'<!DOCTYPE html><html><title>404</title></html>',
        lfs=b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n',
        text=b'hello',
        zeros=b'\0' * 1000,
        cut=b'PK\x03\x04' + b'x' * 100,
        index=b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
    )
    for name, content in contents.items():
        (folder / f'{name}.pth').write_bytes(content)
    objects = dict(
        a_list=[1],
        a_tensor=torch.zeros(3),
        nothing={},
        none=None,
        numbers={1: torch.zeros(2)},
        texts={'state_dict': 'x'},
        others={'state_dict': {'backbone.x': torch.zeros(3)}},
        odd_meta=dict(state_dict={}, meta=3),
    )
    for name, content in objects.items():
        torch.save(content, folder / f'{name}.pth')
    np.savez(folder / 'arrays.npz', a=np.zeros(3))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / 'script.pt'))
    return [folder / 'missing.pth', *sorted(folder.glob('*.*')), 'timm:no_such_model', 'timm:', 'timm:resnet50']


@pytest.mark.slow
@pytest.mark.parametrize(
    'tool, args',
    [
        ('train', (TUNE, '--work-dir', 'run', '--init', '{}')),
        ('train', (PRETRAIN, '--work-dir', 'run', '--resume', '{}')),
        ('test', (TUNE, '{}', '--work-dir', 'run')),
        ('knn', (TUNE, '--init', '{}')),
        ('convert_checkpoint', ('{}', '--to', 'timm', 'out.pth')),
        ('visualize', ('{}', '--out', 'pictures')),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_checkpoints(refused, tmp_path, tool, args):
    """Every line names the file, and none repeats torch's advice to switch off safe loading."""
    folder = tmp_path / 'files'
    folder.mkdir()
    for checkpoint in write_checkpoints(folder):
        line = refused(tool, *(checkpoint if arg == '{}' else arg for arg in args))
        assert Path(checkpoint).name.removeprefix('timm:') in line, line
        assert not OF_A_LIBRARY.match(line), line
        assert 'weights_only' not in line


# --- options ---

OPTIONS = [
    *('a', '=1', 'a==1', 'model=3', 'model.backbone=3', 'model.backbone.arch=huge', 'model.backbone.img_size=33'),
    *('model.type=Foo', 'train_dataloader.batch_size=0', 'train_dataloader.batch_size=abc', 'model.masking=3'),
    *('train_dataloader.batch_size=1.5', 'train_dataloader.num_workers=x', 'train_dataloader.dataset=3'),
    *('train_dataloader.sampler.type=Foo', 'train_cfg.max_epochs=x', 'train_cfg.max_epochs=', 'train_cfg=3'),
    *('train_cfg.max_epoch=3', 'optim_wrapper.optimizer.lr=abc', 'optim_wrapper.optimizer.type=Foo', 'lr=1', 'seed=3'),
    *('optim_wrapper.type=Foo', 'randomness.seed=x', 'randomness=3', 'compil=True', 'data_root=/x', 'launcher=foo'),
    *('default_hooks.logger.interval=x', 'default_hooks.nothing.type=Foo', 'default_hooks.probes=None'),
    *('default_hooks=3', 'custom_hooks=3', 'custom_hooks.9.x=3', 'param_scheduler=3', 'param_scheduler.type=Foo'),
    *('auto_scale_lr.base_batch_size=0', 'auto_scale_lr=3', 'visualizer=3', 'env_cfg=3', 'train_pipeline=3'),
    *('model.masking.num_masked=999', 'model.feature_weights=2', 'default_hooks.preemption.budget=3'),
    *('train_dataloader.dataset.pipeline.0.type=Foo', 'train_dataloader.dataset.indices=0', 'compile=foo'),
    *('optim_wrapper.accumulative_counts=0', 'reader=foo', 'bad_images=foo', 'load_from=/nothing.pth'),
]
# What only the library that gets the value can judge
LEFT_TO_LIBRARIES = [
    *('train_cfg.max_epochs=1.5', 'optim_wrapper.optimizer.betas=3', 'model.init_cfg=3'),
    *('model.data_preprocessor.mean=3', 'optim_wrapper.clip_grad=3', 'train_dataloader.dataset.pipeline=3'),
    'model.backbone.patch_size=0',
]


@pytest.mark.slow
def test_a_config_that_is_its_own_base(refused, tmp_path):
    (tmp_path / 'circular.py').write_text("_base_ = 'circular.py'")
    assert 'circular.py cannot be read as a config: RecursionError' in refused('plan', 'circular.py')


def test_options(refused):
    for option in OPTIONS:
        line = refused('train', PRETRAIN, '--work-dir', 'run', '--cfg-options', option)
        assert not OF_A_LIBRARY.match(line), f'{option}: {line}'


def test_values_that_a_library_refuses(refused):
    for option in LEFT_TO_LIBRARIES:
        line = refused('train', PRETRAIN, '--work-dir', 'run', '--cfg-options', option)
        assert OF_A_LIBRARY.match(line), f'{option}: {line}'


def test_an_error_after_the_first_step_keeps_its_traceback(refused, monkeypatch):
    monkeypatch.setattr('bootmae.engine.runner.loops.EpochLoop.validate', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call_tool('train', PRETRAIN, '--work-dir', 'run', '--cfg-options', 'train_cfg.max_epochs=1')


# --- data ---


def write_data(folder: Path) -> list[Path | str]:
    rng = np.random.default_rng(0)
    for name in ('few', 'none', 'texts', 'broken'):
        (folder / name).mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / 'few' / f'{number}.jpg'), rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    (folder / 'texts' / 'a.txt').write_text('x')
    for number in range(40):
        (folder / 'broken' / f'{number}.jpg').write_bytes(b'x' * number)
    contents = {
        'bad.tar': b'x' * 100,
        'empty.tar': b'',
        'list.txt': b'a.jpg\nb.jpg\n',
        'binary.txt': bytes(range(256)),
        'empty.txt': b'',
        'a.json': b'{}',
        'b.yaml': b'[',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / 'missing', *sorted(folder.iterdir()), '/dev/null', '']


@pytest.mark.slow
@pytest.mark.parametrize(
    'tool, args',
    [
        ('train', (OWN, '--work-dir', 'run', '--data', '{}')),
        ('train', (OWN, '--dry-run', '--data', '{}')),
        ('hold_out', ('{}', 'held')),
        ('report', ('{}', '--out', 'report.html')),
        ('suite', ('{}', '--dry-run')),
        ('replay', ('{}',)),
        ('parity', ('{}',)),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_data(refused, tmp_path, tool, args):
    folder = tmp_path / 'files'
    folder.mkdir()
    for data in write_data(folder):
        refused(tool, *(data if arg == '{}' else arg for arg in args))


def test_verify_data_finds_faults_or_could_not_look(refused, tmp_path, capsys):
    folder = tmp_path / 'files'
    folder.mkdir()
    codes = {}
    for data in write_data(folder):
        codes[Path(data).name] = call_tool('verify_data', data, '--workers', 0)
        assert 'Traceback' not in ''.join(capsys.readouterr())
    assert {name for name, code in codes.items() if code == 0} == {'few'}
    assert {name for name, code in codes.items() if code == 1} == {
        *('broken', 'list.txt', 'binary.txt', 'empty.txt', 'a.json', 'b.yaml')
    }
