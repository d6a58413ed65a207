"""Two processes train and evaluate as one does, through dist_train.sh, dist_test.sh and slurm_train.sh."""

import json
import socket
from pathlib import Path

import pytest
import torch
from scripts import REPOSITORY, as_arguments, shell

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.plan import make_plan
from bootmae.commands.test import evaluate
from bootmae.commands.train import train
from bootmae.config.load import load_config

PRETRAIN = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'
FINETUNE = REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
# Logged losses are those of one step, not means over a window.
EACH_STEP = {'log_processor.window_size': 1, 'log_level': 'WARNING'}
RECORDER = '''
import os
import torch
from mmengine.registry import HOOKS
from bootmae.engine.hooks.logging import AsyncLoggingHook


@HOOKS.register_module()
class DistTestRecorder(AsyncLoggingHook):
    """Keeps the masks and images of this rank, and its losses before and after they are averaged."""

    steps = []

    def flush_logs(self, runner):
        self.latest = (self.pending or [self.latest])[-1]
        super().flush_logs(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        own = {key: float(value.detach()) for key, value in outputs.items()}
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        samples = data_batch['data_samples']
        names, means = self.latest
        self.steps.append(dict(
            own=own, mean=dict(zip(names, means.tolist(), strict=True)), inputs=data_batch['inputs'],
            masks=torch.stack([torch.as_tensor(sample.ids_shuffle) for sample in samples])))

    def after_train(self, runner):
        super().after_train(runner)
        torch.save(list(self.steps), f'{runner.work_dir}/rank{os.environ.get("RANK", 0)}.pth')
        self.steps.clear()
'''


def curve(work_dir: Path) -> list[dict]:
    path = next(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_curve(ours: list[dict], theirs: list[dict], steps: int = 10) -> None:
    assert [step['step'] for step in ours] == [step['step'] for step in theirs] == list(range(1, steps + 1))
    for key in ('loss', 'loss_pixel', 'loss_feature', 'feature_error', 'lr', 'ema_decay', 'feature_weight'):
        assert [step[key] for step in ours] == pytest.approx([step[key] for step in theirs], rel=1e-5), key


def assert_same_weights(ours: Path, theirs: Path) -> None:
    """Everything in state_dict, momentum encoder included."""
    ours, theirs = (read_checkpoint(path / 'epoch_2.pth')['state_dict'] for path in (ours, theirs))
    assert any(key.startswith('momentum.') for key in ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope='module')
def recorder(tmp_path_factory) -> Path:
    """Folder of a user's config, recorded.py, with a module that it imports."""
    folder = tmp_path_factory.mktemp('recorder')
    (folder / 'dist_test_recorder.py').write_text(RECORDER)
    (folder / 'recorded.py').write_text(f"""_base_ = {str(PRETRAIN)!r}
custom_imports = dict(imports=['bootmae.registry', 'dist_test_recorder'], allow_failed_imports=False)
default_hooks = dict(runtime_info=dict(type='DistTestRecorder'))
""")
    return folder


@pytest.fixture(scope='module')
def one(tmp_path_factory, recorder) -> Path:
    """The debug config on one process, batch 32."""
    work_dir = tmp_path_factory.mktemp('one')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(recorder)
        train(str(recorder / 'recorded.py'), str(work_dir), EACH_STEP | {'experiment_name': 'dist_one'})
    return work_dir


@pytest.fixture(scope='module')
def two(tmp_path_factory, recorder) -> Path:
    """The same on two processes of batch 16, through dist_train.sh, from another folder with a relative path."""
    work_dir = tmp_path_factory.mktemp('two')
    done = shell(
        'dist_train.sh',
        'recorded.py',
        2,
        '--work-dir',
        work_dir,
        *as_arguments(EACH_STEP | {'train_dataloader.batch_size': 16}),
        cwd=recorder,
        PYTHONPATH=str(recorder),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return work_dir


@pytest.mark.slow
def test_two_processes_train_as_one(one, two):
    assert_same_curve(curve(two), curve(one))
    assert_same_weights(two, one)


@pytest.mark.slow
def test_ranks_and_steps_have_masks_of_their_own(one, two):
    """The two ranks share out the images and masks of the one process; none of the masks appears twice."""
    ranks, whole = [torch.load(two / f'rank{rank}.pth') for rank in (0, 1)], torch.load(one / 'rank0.pth')
    masks = torch.stack([torch.stack([step['masks'] for step in rank]) for rank in ranks])  # rank, step, image, patch
    assert masks.shape == (2, 10, 16, 64)
    ids_shuffle = masks.flatten(0, 2)
    assert len(ids_shuffle.unique(dim=0)) == len(ids_shuffle)
    assert torch.equal(ids_shuffle.sort().values, torch.arange(64).expand_as(ids_shuffle))
    for step, expected in enumerate(whole):
        for key in ('masks', 'inputs'):
            # the sampler deals images in turn: the first to rank 0, the second to rank 1
            dealt = torch.stack([rank[step][key] for rank in ranks], dim=1).flatten(0, 1)
            assert torch.equal(dealt, expected[key]), (step, key)


@pytest.mark.slow
def test_logged_losses_are_means_over_the_ranks(two):
    first, second = (torch.load(two / f'rank{rank}.pth') for rank in (0, 1))
    for a, b, logged in zip(first, second, curve(two), strict=True):
        assert a['own']['loss'] != b['own']['loss']
        assert a['mean'] == b['mean']
        for key, mean in a['mean'].items():
            assert mean == pytest.approx((a['own'][key] + b['own'][key]) / 2, rel=1e-6)
            assert logged[key] == pytest.approx(mean, rel=1e-6)


@pytest.mark.slow
def test_accumulation_trains_as_a_whole_batch(one, tmp_path):
    """Two iterations of 16 to an update: the same updates; losses, averaged in pairs, are those of the batch of 32."""
    train(
        str(PRETRAIN),
        str(tmp_path),
        EACH_STEP | {'train_dataloader.batch_size': 16, 'experiment_name': 'dist_accumulated'},
    )
    assert_same_weights(tmp_path, one)
    halves, whole = curve(tmp_path), curve(one)
    assert len(halves) == 20
    for key in ('loss', 'loss_pixel', 'loss_feature', 'lr'):
        pairs = [(a[key] + b[key]) / 2 for a, b in zip(halves[::2], halves[1::2], strict=True)]
        assert pairs == pytest.approx([step[key] for step in whole], rel=1e-5), key


@pytest.mark.slow
def test_the_plan_knows_two_processes(two):
    plan = make_plan(load_config(PRETRAIN, {'train_dataloader.batch_size': 16}), '', gpus=2)
    meta = read_checkpoint(two / 'epoch_2.pth')['meta']
    assert (plan.iterations, plan.images) == (meta['iter'], meta['bootmae']['images']) == (10, 320)


@pytest.mark.slow
def test_slurm_trains_as_one_process(one, cluster, tmp_path):
    """Two 'nodes' of one process each, which meet through c10d on the first."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    done = shell(
        'slurm_train.sh',
        'part',
        'job',
        PRETRAIN,
        2,
        '--work-dir',
        tmp_path / 'work',
        *as_arguments(EACH_STEP | {'train_dataloader.batch_size': 16}),
        PATH=cluster,
        PORT=str(port),
        GPUS_PER_NODE='1',
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_curve(curve(tmp_path / 'work'), curve(one))
    assert_same_weights(tmp_path / 'work', one)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path):
    """On 51 images, which two processes cannot share evenly; a random head gives each image a class of its own."""
    options = EACH_STEP | {'test_dataloader.dataset.indices': 51, 'test_dataloader.batch_size': 8}
    train(
        str(FINETUNE),
        str(tmp_path),
        EACH_STEP
        | {
            'experiment_name': 'dist_finetune',
            'train_cfg.max_epochs': 1,
            'train_cfg.val_begin': 2,
            'train_dataloader.dataset.indices': 32,
            'model.head.init_cfg.std': 1.0,
        },
    )
    expected = evaluate(
        str(FINETUNE),
        str(tmp_path / 'epoch_1.pth'),
        str(tmp_path / 'one'),
        options | {'experiment_name': 'dist_test_one'},
    )
    done = shell('dist_test.sh', FINETUNE, 'epoch_1.pth', 2, '--work-dir', 'two', *as_arguments(options), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next((tmp_path / 'two').glob('*/[0-9]*.json')).read_text())
    assert found['accuracy/top1'] == pytest.approx(expected['accuracy/top1'])
    assert 0 < expected['accuracy/top1'] < 100
