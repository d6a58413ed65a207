"""Compiled parts, equal results, and log lines of torch.compile; tools/parity.py --compile tests the real backend."""

import itertools
import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from bootmae.commands.parity import TOLERANCE, compare
from bootmae.commands.train import train as run_training
from bootmae.config.load import load_config
from bootmae.engine.hooks.compile import CompileHook
from bootmae.engine.runner import compile as compiling
from bootmae.engine.runner.compile import check_accumulation, compile_model, compile_settings
from bootmae.text import count_of

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = str(REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py')
MAE = str(REPOSITORY / 'configs' / 'pretrain' / 'mae_debug.py')
TRACED = dict(backend='aot_eager')  # the graphs of forward and backward pass, without generated code
COUNT = itertools.count()


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build(config: str = CONFIG) -> torch.nn.Module:
    return MODELS.build(load_config(config).model)


def test_settings_of_a_model():
    model = build()
    assert compile_settings(None, model) == compile_settings(False, model) == {}
    assert compile_settings(True, model) == dict(scope='whole')
    assert compile_settings('blocks', model) == dict(scope='blocks')
    assert compile_settings(dict(mode='max-autotune'), model) == dict(scope='whole', mode='max-autotune')
    assert compile_settings(True, build(MAE)) == dict(scope='blocks')


def test_several_processes_compile_blocks(monkeypatch):
    """The all-reduce of gradients then overlaps with the backward pass."""
    monkeypatch.setattr(compiling.dist, 'get_world_size', lambda: 2)
    assert compile_settings(True, build()) == dict(scope='blocks')


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="compile='half': give True, 'whole' or 'blocks'"):
        compile_settings('half', build())
    with pytest.raises(ValueError, match='MAE cannot be compiled as a whole'):
        compile_settings('whole', build(MAE))
    with pytest.raises(ValueError, match='Sequential has no transformer block'):
        compile_model(torch.nn.Sequential(), 'blocks', **TRACED)


def test_a_missing_compiler_is_named(monkeypatch):
    model = build()
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', '')
    with pytest.raises(ValueError, match='needs a C.. compiler and found none: install one'):
        compile_model(model, 'whole')
    compile_model(model, 'whole', **TRACED)  # another backend may do without


def test_cuda_graphs_do_not_accumulate(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    check_accumulation(dict(mode='max-autotune'), 8)  # a CPU has none
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    check_accumulation(dict(mode='reduce-overhead'), 1)
    check_accumulation(dict(scope='whole'), 8)
    with pytest.raises(ValueError, match='compile.mode=reduce-overhead uses CUDA graphs, .* over 8 steps'):
        check_accumulation(dict(mode='reduce-overhead'), 8)


def test_drop_path_rates_share_a_graph():
    """One graph without and one with drop path, and not one for each rate until the compiler gives up."""
    arch = dict(embed_dims=16, depth=4, num_heads=2)
    model = MODELS.build(dict(type='mmpretrain.PlainViT', arch=arch, img_size=16, patch_size=8, drop_path_rate=0.1))
    compile_model(model.train(), 'blocks', **TRACED)
    model(torch.rand(2, 3, 16, 16))[0].sum().backward()
    assert counters['stats']['unique_graphs'] == 2


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_drop_path_in_parallel_blocks(process_group):
    """The graphs of blocks with more weights than DDP's first bucket, 1 MiB, are split, where no float may cross."""
    arch = dict(embed_dims=192, depth=3, num_heads=3)
    model = MODELS.build(dict(type='mmpretrain.PlainViT', arch=arch, img_size=16, patch_size=8, drop_path_rate=0.1))
    compile_model(model.train(), 'blocks', **TRACED)
    DistributedDataParallel(model)(torch.rand(2, 3, 16, 16))[0].sum().backward()
    assert model.blocks[1].mlp.fc1.weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize('scope, name', [('whole', 'square'), ('blocks', 'segmentation'), ('blocks', 'mae_square')])
def test_compiled_training_equals_the_release(golden, monkeypatch, scope, name):
    """Losses, gradients, an update and features are equal, in one graph without breaks or block by block."""
    monkeypatch.setattr('bootmae.commands.parity.compile_settings', lambda value, model: dict(scope=value, **TRACED))
    _, errors = compare(golden / f'compact_{name}.npz', compile=scope)
    assert {key: error for key, error in errors.items() if error > TOLERANCE} == {}
    assert counters['stats']['unique_graphs'] > 0


def train(work_dir: Path, config: str = CONFIG, **options):
    return run_training(
        config,
        str(work_dir),
        options
        | {'experiment_name': f'compiled_{next(COUNT)}', 'train_cfg.max_epochs': 1, 'visualizer.vis_backends': []},
    )


@pytest.mark.slow
@pytest.mark.parametrize('config, scope, parts', [(CONFIG, 'whole', 1), (MAE, 'blocks', 4)])
def test_a_compiled_run_is_the_same_run(tmp_path, config, scope, parts):
    """The weights after five steps agree, in float32 (with the momentum encoder) and bf16, and the log names it."""
    wrapper = {'optim_wrapper.type': 'AutocastOptimWrapper'} if config is MAE else {}
    plain = train(tmp_path / 'plain', config, log_level='ERROR', **wrapper).model.state_dict()
    runner = train(tmp_path / 'compiled', config, compile=dict(scope=scope, **TRACED), **wrapper)
    for key, value in runner.model.state_dict().items():
        torch.testing.assert_close(value, plain[key], rtol=1e-4, atol=1e-6, msg=key)
    log = next((tmp_path / 'compiled').glob('*/*.log')).read_text()
    assert f'{count_of(parts, "part is", "parts are")} compiled in the first step' in log
    assert 'compiled: the first step took ' in log
    assert 'compiled again' not in log


def test_another_compilation_is_logged(caplog):
    """A compilation after the first step is a warning."""
    hook, runner = CompileHook(), type('Runner', (), dict(iter=7, logger=logging.getLogger('compile')))
    with caplog.at_level(logging.INFO, 'compile'):
        for graphs in (2, 2, 3):
            hook.before_train_iter(runner, 0)
            counters['stats']['unique_graphs'] = graphs
            hook.after_train_iter(runner, 0)
    first, again = caplog.messages
    assert first.startswith('compiled: the first step took ')
    assert first.endswith('(2 graphs)')
    assert again.startswith('iteration 8: compiled again (1 graph)')
