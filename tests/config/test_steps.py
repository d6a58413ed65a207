"""The steps from a config to a runner: batch, start weights, checks, devices."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.test import evaluate
from bootmae.commands.train import train
from bootmae.config.batch import Batch, apply_batch
from bootmae.config.checks import check_data, check_model
from bootmae.config.load import UNSET, find_config, load_config, names_config
from bootmae.config.options import OptionText
from bootmae.config.steps import training_config
from bootmae.config.weights import apply_init, check_statistics, input_statistics
from bootmae.data.images import ImageFiles
from bootmae.engine.runner.build import apply_devices, build_runner, processes
from bootmae.engine.runner.runner import SuiteRunner

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PRETRAIN, FINETUNE = CONFIGS / 'pretrain' / 'bootmae_debug.py', CONFIGS / 'cls' / 'bootmae_debug_finetune.py'
HALF, IMAGENET = ([127.5] * 3,) * 2, ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


@pytest.fixture
def pretrain():
    return load_config(PRETRAIN)


@pytest.fixture
def finetune():
    return load_config(FINETUNE)


# --- config ---


def test_load_config_takes_options(tmp_path):
    cfg = load_config(str(PRETRAIN), {'train_dataloader.batch_size': 5, 'model.backbone.arch.depth': 1})
    assert cfg.train_dataloader.batch_size == 5
    assert cfg.model.backbone.arch == dict(embed_dims=48, depth=1, num_heads=3)
    assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'


@pytest.mark.parametrize('given', [None, OptionText('None')])
def test_settings_that_are_unset(given):
    """They are left out, as if the config had none."""
    cfg = load_config(PRETRAIN.with_name('mae_debug.py'), dict.fromkeys(UNSET, given))
    assert not set(UNSET) & set(cfg)
    assert apply_batch(cfg, 2) == Batch(2, cfg.train_dataloader.batch_size, 1)
    cfg = load_config(PRETRAIN.with_name('mae_debug.py'), {'default_hooks.checkpoint': given})
    cfg.train_dataloader.batch_size = 8
    assert apply_batch(cfg, 1).accumulation == 4


def test_names_of_configs_and_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('bootmae_debug', 'bootmae_debug.py', 'bootmae::pretrain/bootmae_debug.py', 'nothing.py', PRETRAIN):
        assert names_config(str(name))
    for name in ('nothing', 'bootmae_debug.tar', 'README.md', '.'):
        assert not names_config(name)
    Path('bootmae_debug').mkdir()
    assert not names_config('bootmae_debug'), 'a folder of the user comes first'


def test_find_config(tmp_path, monkeypatch):
    assert find_config(PRETRAIN) == PRETRAIN
    monkeypatch.chdir(tmp_path)
    for name in (
        'bootmae_debug',
        'bootmae_debug.py',
        'configs/pretrain/bootmae_debug.py',
        'bootmae::pretrain/bootmae_debug.py',
    ):
        assert find_config(name) == PRETRAIN
    Path('bootmae_debug.py').touch()  # a file of the user comes first
    assert find_config('bootmae_debug.py') == Path('bootmae_debug.py')


def test_load_config_names_the_neighbors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no config .*bootmae_vitg\.py: did you mean .*bootmae_vitb'):
        load_config(PRETRAIN.with_name('bootmae_vitg.py'))
    with pytest.raises(FileNotFoundError, match=r'no config .*zz\.py: there are .*bootmae_vitb\.py'):
        load_config(PRETRAIN.with_name('zz.py'))
    with pytest.raises(FileNotFoundError, match=f'see {CONFIGS}'):
        load_config(tmp_path / 'nowhere' / 'x.py')


# --- batch ---


@pytest.mark.parametrize('gpus, per_gpu, accumulation', [(1, 32, 1), (2, 16, 1), (1, 16, 2), (2, 4, 4)])
def test_apply_batch_keeps_the_recipe(pretrain, gpus, per_gpu, accumulation):
    pretrain.train_dataloader.batch_size = per_gpu
    assert apply_batch(pretrain, gpus) == Batch(gpus, per_gpu, accumulation)
    assert pretrain.optim_wrapper.accumulative_counts == accumulation
    assert pretrain.param_scheduler.accumulation == accumulation
    assert pretrain.optim_wrapper.optimizer.lr == 1e-3


def test_apply_batch_slows_the_average_of_weights(finetune):
    """EMAHook averages once per optimizer step, which its decay is meant for."""
    finetune.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    finetune.train_dataloader.batch_size = 8
    apply_batch(finetune, 1)
    assert finetune.custom_hooks[0].interval == 4
    finetune.custom_hooks = [dict(type='EMAHook', momentum=0.1, interval=10, begin_iter=100)]
    assert apply_batch(finetune, 1).accumulation == 4
    hook = finetune.custom_hooks[0]
    assert (hook.interval, hook.begin_iter) == (40, 400), 'both count optimizer steps'


def test_scaling_the_learning_rate_instead(pretrain):
    pretrain.train_dataloader.batch_size = 8
    assert apply_batch(pretrain, 2, scale_lr=True) == Batch(2, 8, 1)
    assert pretrain.optim_wrapper.optimizer.lr == pytest.approx(0.5e-3)
    assert pretrain.param_scheduler.min_lr == 1e-5, 'the floor stays'


def test_scaling_needs_the_recipes_batch(pretrain):
    pretrain.pop('auto_scale_lr')
    with pytest.raises(ValueError, match='--auto-scale-lr needs auto_scale_lr.base_batch_size'):
        apply_batch(pretrain, 1, scale_lr=True)
    assert apply_batch(pretrain, 3) == Batch(3, 32, 1)


def test_number_of_processes(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '6')
    monkeypatch.setenv('SLURM_NTASKS', '4')
    assert [processes(launcher) for launcher in ('none', 'pytorch', 'slurm')] == [1, 6, 4]
    monkeypatch.delenv('WORLD_SIZE')
    assert processes('pytorch') == 1


# --- starting weights ---


@pytest.fixture
def make_file(tmp_path, pretrain):
    """``make_file(name, prefix, **content)`` writes a file with an encoder of the debug size."""
    state = MODELS.build(pretrain.model.backbone).state_dict()

    def make(name: str = 'run.pth', prefix: str = 'backbone.', **content) -> str:
        torch.save(dict(state_dict={prefix + key: value for key, value in state.items()}) | content, tmp_path / name)
        return str(tmp_path / name)

    return make


def stated(mean, std) -> dict:
    return dict(bootmae=dict(method='BootMAE', mean=mean, std=std))


def test_apply_init(finetune, make_file):
    path = make_file(meta=stated(*HALF))
    apply_init(finetune, path)
    assert finetune.model.backbone.init_cfg == dict(type='EncoderWeights', checkpoint=path, source='online')


def test_apply_init_refuses_other_statistics(finetune, make_file):
    path = make_file(meta=stated(*IMAGENET))
    with pytest.raises(
        ValueError,
        match=r'was made with mean \[123\.675, .*, but the config normalizes with mean '
        r'\[127\.5, .*: use the config of the method that made the weights',
    ):
        apply_init(finetune, path)
    assert 'init_cfg' not in finetune.model.backbone


@pytest.mark.parametrize(
    'mean, std, good',
    [
        ([127.5] * 3, [127.5] * 3, True),
        ([127.501] * 3, [127.499] * 3, True),  # rounding
        ([127, 127, 127], [128, 128, 128], False),  # integers
        ([127.5] * 3, [58.395, 57.12, 57.375], False),  # the mean alone is not enough
        (None, None, True),  # unknown
    ],
)
def test_statistics(finetune, mean, std, good):
    if good:
        return check_statistics(finetune, 'file.pth', mean, std)
    with pytest.raises(ValueError, match=r'file\.pth was made with'):
        check_statistics(finetune, 'file.pth', mean, std)


def test_statistics_of_a_config_with_integers(finetune):
    finetune.data_preprocessor.update(mean=[0, 0, 0], std=[255, 255, 255])
    check_statistics(finetune, 'file.pth', (0.0,) * 3, (255.0,) * 3)


def test_input_statistics_of_model_and_config(pretrain):
    assert input_statistics(pretrain) == HALF
    pretrain.model.data_preprocessor = dict(mean=IMAGENET[0], std=IMAGENET[1])
    assert input_statistics(pretrain) == IMAGENET


def test_apply_init_refuses_other_backbones(finetune, make_file):
    finetune.model.backbone = dict(type='ResNet', depth=18)
    with pytest.raises(ValueError, match='--init needs a backbone PlainViT, TransferViT or MAEViT, .* has ResNet'):
        apply_init(finetune, make_file())


def test_apply_init_names_the_file(finetune, make_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*missing\.pth'):
        apply_init(finetune, str(tmp_path / 'missing.pth'))
    torch.save({'conv1.weight': torch.zeros(8, 3, 7, 7)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other\.pth was not loaded .*: no ViT encoder in this file'):
        apply_init(finetune, str(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match=r'run\.pth was not loaded .*: no momentum encoder in this file'):
        apply_init(finetune, make_file(), source='momentum')


# --- data ---


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'images' / 'train').mkdir(parents=True)
    return tmp_path / 'images'


def test_check_data_lists_nothing(folder, monkeypatch):
    monkeypatch.setattr(ImageFiles, 'load_data_list', lambda self: pytest.fail('images were listed'))
    dataset = dict(type='ImageFiles', roots=str(folder), split='train', pipeline=[dict(type='NoSuchTransform')])
    check_data(dataset)
    check_data(dict(type='DigitImages', split='train'))
    check_data({})


def test_check_data_looks_into_wrappers(folder):
    good, bad = (dict(type='ImageFiles', roots=str(root)) for root in (folder, folder / 'missing'))
    check_data(dict(type='ConcatDataset', datasets=[good, dict(type='RepeatDataset', times=2, dataset=good)]))
    with pytest.raises(FileNotFoundError, match='missing does not exist'):
        check_data(dict(type='ConcatDataset', datasets=[good, dict(type='RepeatDataset', times=2, dataset=bad)]))


@pytest.mark.parametrize(
    'split, message',
    [
        ('train', r'roots=.*missing does not exist'),
        ('val', r"split='val': there is no folder .*images/val; .* holds train"),
    ],
)
def test_data_are_checked_before_the_runner_is_built(folder, monkeypatch, split, message):
    for module in ('train', 'test'):
        monkeypatch.setattr(
            f'bootmae.commands.{module}.build_runner', lambda *args: pytest.fail('the runner was built')
        )
    roots = folder if split == 'val' else folder.with_name('missing')
    options = {
        'train_dataloader.dataset.roots': str(roots),
        'val_dataloader.dataset.roots': str(roots),
        'test_dataloader.dataset.roots': str(roots),
        'train_dataloader.batch_size': 2048,
    }
    config = str(CONFIGS / 'cls' / 'bootmae_vitb_finetune.py')
    with pytest.raises(FileNotFoundError, match=message):
        train(config, options=options)
    if split == 'val':
        with pytest.raises(FileNotFoundError, match=message):
            evaluate(config, 'checkpoint.pth', options=options)


# --- model, devices, runner ---


def test_bootmae_needs_its_hook(pretrain):
    check_model(pretrain)
    pretrain.custom_hooks = [dict(type='EMAHook')]
    with pytest.raises(ValueError, match='the momentum encoder never moves'):
        check_model(pretrain)
    pretrain.pop('custom_hooks')
    with pytest.raises(ValueError, match='the momentum encoder never moves'):
        build_runner(pretrain, PRETRAIN)
    check_model(load_config(CONFIGS / 'pretrain' / 'mae_debug.py'))


@pytest.mark.parametrize('loop', [dict(by_epoch=False), dict(type='IterBasedTrainLoop'), dict(type='IterLoop')])
def test_bootmae_needs_epochs(pretrain, loop):
    """Its EMA decay and feature weight would keep their first values."""
    pretrain.train_cfg = loop | dict(max_iters=12)
    with pytest.raises(ValueError, match=r'train_cfg.max_iters=12: BootMAE needs epochs.*by_epoch=True, max_epochs=N'):
        check_model(pretrain)
    mae = load_config(CONFIGS / 'pretrain' / 'mae_debug.py')
    mae.train_cfg = pretrain.train_cfg
    check_model(mae)


def test_processes_without_gpus_use_gloo(pretrain, monkeypatch):
    started, pretrain.default_hooks.heartbeat = [], dict(type='HeartbeatHook')
    monkeypatch.setattr(
        torch.distributed, 'init_process_group', lambda backend, timeout: started.append((backend, timeout))
    )
    for cuda, launcher, expected in ((False, 'none', 'nccl'), (True, 'pytorch', 'nccl'), (False, 'pytorch', 'gloo')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda cuda=cuda: cuda)
        apply_devices(pretrain, launcher)
        assert pretrain.env_cfg.dist_cfg.backend == expected
        assert ('model_wrapper_cfg' in pretrain) == (expected == 'gloo')
    assert started == [('gloo', timedelta(minutes=31))]
    assert pretrain.model_wrapper_cfg.device_ids is None, 'mmengine would name a GPU'


@pytest.mark.parametrize(
    ('options', 'seconds'),
    [
        ({}, 1860),
        ({'default_hooks.heartbeat': dict(type='HeartbeatHook', patience=7200)}, 7260),
        ({'default_hooks.heartbeat': dict(type='HeartbeatHook', patience=float('inf'))}, None),
        ({'default_hooks.heartbeat': None}, None),  # the backend's own limit
        ({'env_cfg.dist_cfg.timeout': 99}, 99),
    ],
)
def test_collectives_wait_for_longer_than_the_heartbeat(options, seconds, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for env in ('as configured', 'none'):
        cfg, _ = training_config(str(PRETRAIN), options)
        if env == 'none' and 'env_cfg.dist_cfg.timeout' not in options:
            cfg.pop('env_cfg')
        apply_devices(cfg, 'pytorch')
        assert (cfg.env_cfg.dist_cfg.backend, cfg.env_cfg.dist_cfg.get('timeout')) == ('nccl', seconds)


@pytest.mark.parametrize('work_dir, expected', [(None, 'work_dirs/bootmae_debug'), ('elsewhere', 'elsewhere')])
def test_build_runner(pretrain, monkeypatch, tmp_path, work_dir, expected):
    monkeypatch.chdir(tmp_path)
    pretrain.update(experiment_name=f'run_{expected}', log_level='ERROR')
    runner = build_runner(pretrain, PRETRAIN, work_dir)
    assert isinstance(runner, SuiteRunner)
    assert Path(runner.work_dir) == tmp_path / expected
    assert (tmp_path / expected / 'bootmae_debug.py').is_file(), 'the config is kept with the run'


@pytest.mark.parametrize('given, expected', [(None, ':4096:8'), (':16:8', ':16:8')])
def test_deterministic_runs_can_use_cublas(pretrain, monkeypatch, tmp_path, given, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', given or '')
    if given is None:
        monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    pretrain.update(experiment_name=f'deterministic_{given}', log_level='ERROR')
    pretrain.randomness.deterministic = True
    build_runner(pretrain, PRETRAIN)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == expected


def test_training_moves_all_and_the_loss_falls(tmp_path):
    options = dict(experiment_name='run_train', log_level='ERROR')
    runner = train(str(PRETRAIN), str(tmp_path), options | {'log_processor.window_size': 1})
    assert (runner.epoch, runner.iter) == (2, 10)
    losses = [value for value, _ in zip(*runner.message_hub.get_scalar('train/loss').data, strict=True)]
    assert losses[-1] < 0.7 * losses[0]
    state = read_checkpoint(tmp_path / 'epoch_2.pth')['state_dict']
    untrained = {key for key in state if key.endswith('pos_embed')}
    same = {
        key
        for key in state
        if key.startswith('momentum.') and torch.equal(state[key], state[key.replace('momentum.', 'backbone.')])
    }
    assert same <= untrained, 'the momentum encoder lags behind the online one everywhere else'


@pytest.mark.slow
def test_average_of_weights_under_accumulation(tmp_path):
    """EMAHook averages after optimizer steps, not after accumulation only; its last average is one behind."""
    files = []
    for batch in (32, 16):
        train(
            str(FINETUNE),
            str(tmp_path / str(batch)),
            {
                'experiment_name': f'run_ema_{batch}',
                'log_level': 'ERROR',
                'train_dataloader.batch_size': batch,
                'val_dataloader.dataset.indices': 32,
                'train_cfg.max_epochs': 3,
                'train_dataloader.dataset.indices': 128,
                'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
            },
        )
        files.append(read_checkpoint(tmp_path / str(batch) / 'epoch_3.pth'))
    # such a file holds the average as state_dict, and what was trained as ema_state_dict
    trained = [file['ema_state_dict']['module.head.fc.weight'] for file in files]
    average = [file['state_dict']['head.fc.weight'] for file in files]
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-6)
    behind = average[0] - 0.1 / 0.9 * (trained[0] - average[0])
    torch.testing.assert_close(average[1], behind, rtol=1e-4, atol=1e-6)
