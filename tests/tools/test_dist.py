"""dist_train.sh, dist_test.sh and slurm_train.sh: what they start, and that two processes train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.plan import make_plan
from bootmae.commands.test import evaluate
from bootmae.commands.train import train
from bootmae.config.load import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / 'tools'
LAUNCH = str(REPOSITORY / 'bootmae' / 'distributed' / 'launch.py')
PRETRAIN = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'
FINETUNE = REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
# logged losses are those of one step, not means over a window
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


def shell(
    script: str, *args, cwd: Path | str = REPOSITORY, timeout: int = 240, **env: str
) -> subprocess.CompletedProcess:
    """Run a script of tools/ with this Python, no GPU, and no settings of a surrounding job."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('SLURM', 'MASTER_', 'NODE_'))}
    env = clean | dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='') | env
    return subprocess.run(
        [TOOLS / script, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )


def as_arguments(options: dict) -> list[str]:
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


# --- what is started: Python is replaced by a script that prints its arguments ---


@pytest.fixture
def echo(tmp_path) -> str:
    script = tmp_path / 'echo_python'
    script.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" "PYTHONPATH=$PYTHONPATH"\n')
    script.chmod(0o755)
    return str(script)


def started(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_one_machine_takes_a_free_port(echo, tmp_path):
    """From any folder, with paths relative to that folder."""
    arguments = started(shell('dist_train.sh', 'my.py', 2, '--work-dir', 'with space', cwd=tmp_path, PYTHON=echo))
    assert arguments == [
        LAUNCH,
        '--standalone',
        '--local_addr=127.0.0.1',
        '--nproc_per_node=2',
        str(TOOLS / 'train.py'),
        'my.py',
        '--launcher',
        'pytorch',
        '--work-dir',
        'with space',
        f'PYTHONPATH={REPOSITORY}' + (f':{path}' if (path := os.environ.get('PYTHONPATH')) else ''),
    ]


@pytest.mark.parametrize(
    'env, expected',
    [
        (dict(PORT='4321'), ['--master_addr=127.0.0.1', '--master_port=4321']),
        (
            dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='first'),
            ['--nnodes=2', '--node_rank=1', '--master_addr=first', '--master_port=29500'],
        ),
        (
            dict(NNODES='2', NODE_RANK='0', MASTER_ADDR='first', PORT='99'),
            ['--nnodes=2', '--node_rank=0', '--master_addr=first', '--master_port=99'],
        ),
    ],
)
def test_ports_and_machines(echo, env, expected):
    assert started(shell('dist_train.sh', 'my.py', 4, PYTHON=echo, **env))[1:-5] == [*expected, '--nproc_per_node=4']


def test_dist_test(echo):
    arguments = started(shell('dist_test.sh', 'my.py', 'my.pth', 2, '--work-dir', 'x', PYTHON=echo))
    assert arguments[1] == '--standalone'
    assert arguments[3:-1] == [
        '--nproc_per_node=2',
        str(TOOLS / 'test.py'),
        'my.py',
        '--launcher',
        'pytorch',
        'my.pth',
        '--work-dir',
        'x',
    ]


@pytest.mark.parametrize(
    'script, args, env, message',
    [
        ('dist_train.sh', [], {}, 'CONFIG and GPUS (the number of processes on this machine) are needed'),
        ('dist_train.sh', ['my.py'], {}, 'CONFIG and GPUS'),
        ('dist_train.sh', ['my.py', '--work-dir'], {}, 'GPUS=--work-dir is not a number of processes'),
        ('dist_train.sh', ['my.py', '0'], {}, 'GPUS=0 is not a number'),
        ('dist_train.sh', ['my.py', '2'], dict(NNODES='2'), 'NNODES=2 needs MASTER_ADDR'),
        ('dist_train.sh', ['my.py', '2'], dict(NNODES='2', MASTER_ADDR='first'), 'NNODES=2 needs NODE_RANK'),
        ('dist_train.sh', ['my.py', '2'], dict(NNODES='two'), 'NNODES=two is not a number'),
        ('dist_test.sh', ['my.py', 'my.pth'], {}, ''),
        ('slurm_train.sh', ['part', 'job', 'my.py'], {}, 'PARTITION, JOB_NAME, CONFIG and GPUS are needed'),
        ('slurm_train.sh', ['part', 'job', 'my.py', 'all'], {}, 'GPUS=all is not a number'),
        ('slurm_train.sh', ['part', 'job', 'my.py', '12'], {}, 'GPUS=12 is no multiple of GPUS_PER_NODE=8'),
        ('slurm_train.sh', ['part', 'job', 'my.py', '4'], dict(GPUS_PER_NODE='0'), 'GPUS_PER_NODE=0 is not a number'),
    ],
)
def test_usage_errors(echo, script, args, env, message):
    done = shell(script, *args, PYTHON=echo, **env)
    assert done.returncode == 2
    assert not done.stdout
    usage, *error = done.stderr.splitlines()
    assert usage.startswith('usage: ')
    assert script in usage
    assert [line for line in error if not line.startswith(f'error: {message}')] == []
    assert bool(error) == bool(message)


# --- Slurm ---


@pytest.mark.parametrize(
    'gpus, env, expected',
    [
        (16, {}, ['--nodes=2', '--ntasks=2', '--ntasks-per-node=1', '--gres=gpu:8', '--cpus-per-task=80']),
        (2, {}, ['--nodes=1', '--ntasks=1', '--ntasks-per-node=1', '--gres=gpu:2', '--cpus-per-task=20']),
        (
            8,
            dict(GPUS_PER_NODE='4', CPUS_PER_GPU='5', SRUN_ARGS='--time=1:00 --exclude=node7'),
            [
                '--nodes=2',
                '--ntasks=2',
                '--ntasks-per-node=1',
                '--gres=gpu:4',
                '--cpus-per-task=20',
                '--time=1:00',
                '--exclude=node7',
            ],
        ),
    ],
)
def test_slurm_dry_run(gpus, env, expected):
    done = shell('slurm_train.sh', 'part', 'job', 'my.py', gpus, '--resume', DRY_RUN='1', **env)
    command = started(done)[0]
    assert command.startswith('srun --partition=part --job-name=job ')
    assert [word for word in command.split() if word in expected] == expected
    assert command.split()[-4:] == [
        str(TOOLS / 'dist_train.sh'),
        'my.py',
        expected[3].removeprefix('--gres=gpu:'),
        '--resume',
    ]


@pytest.fixture
def cluster(tmp_path) -> str:
    """A PATH with an srun that runs two tasks here, as two nodes would."""
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'srun').write_text("""#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_ID=4711 SLURM_JOB_NODELIST='node[1-2]' SLURMD_NODENAME=127.0.0.1
SLURM_NODEID=1 "$@" &
SLURM_NODEID=0 "$@"
wait $!
""")
    (tmp_path / 'bin' / 'scontrol').write_text("""#!/usr/bin/env bash
[ "$*" = 'show hostnames node[1-2]' ] && printf '127.0.0.1\\n127.0.0.2\\n'
""")
    for script in (tmp_path / 'bin').iterdir():
        script.chmod(0o755)
    return f'{tmp_path / "bin"}:{os.environ["PATH"]}'


def test_slurm_asks_for_a_signal_ahead_of_the_time_limit():
    """All nodes may end by themselves: the first one's end must not kill those that are about to."""
    words = started(shell('slurm_train.sh', 'part', 'job', 'my.py', 8, DRY_RUN='1'))[0].split()
    assert {'--signal=USR1@120', '--kill-on-bad-exit=0', '--wait=150'} <= set(words)
    assert words[-1] == '8'  # nothing to resume
    words = started(
        shell('slurm_train.sh', 'part', 'job', 'my.py', 8, DRY_RUN='1', SIGNAL='TERM@60', SLURM_RESTART_COUNT='1')
    )[0].split()
    assert '--signal=TERM@60' in words
    assert words[-1] == '--resume'


@pytest.mark.parametrize(
    'code, state, env, requeued',
    [
        (75, 'RUNNING', {}, True),
        (75, 'RUNNING', dict(REQUEUE='0'), False),
        (75, 'COMPLETING', {}, False),
        (75, 'RUNNING', dict(SLURM_JOB_ID=''), False),
        (3, 'RUNNING', {}, False),
        (0, 'RUNNING', {}, False),
    ],
)
def test_slurm_requeues_a_run_that_a_signal_stopped(tmp_path, code, state, env, requeued):
    """Not one that was canceled, nor one that failed."""
    scripts = dict(srun=f'exit {code}', scontrol=f'echo "$*" >> {tmp_path}/calls; echo "  JobState={state} Why=x"')
    for name, body in scripts.items():
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{body}\n')
        (tmp_path / name).chmod(0o755)
    done = shell(
        'slurm_train.sh',
        'part',
        'job',
        'my.py',
        2,
        **dict(SLURM_JOB_ID='4711', PATH=f'{tmp_path}:{os.environ["PATH"]}') | env,
    )
    assert done.returncode == code
    calls = (tmp_path / 'calls').read_text() if (tmp_path / 'calls').exists() else ''
    assert ('requeue 4711' in calls) == requeued
    assert ('will resume' in done.stderr) == requeued


def test_slurm_hands_signals_on_and_waits(tmp_path):
    (tmp_path / 'srun').write_text(f"""#!/usr/bin/env bash
trap 'echo got >> {tmp_path}/calls; sleep 0.3; exit 75' USR1
kill -USR1 $PPID
while :; do sleep 0.1; done
""")
    (tmp_path / 'srun').chmod(0o755)
    done = shell('slurm_train.sh', 'part', 'job', 'my.py', 2, timeout=20, PATH=f'{tmp_path}:{os.environ["PATH"]}')
    assert done.returncode == 75
    assert (tmp_path / 'calls').read_text() == 'got\n'


def test_slurm_starts_torchrun_on_each_node(cluster, echo):
    done = shell('slurm_train.sh', 'part', 'job', 'my.py', 2, GPUS_PER_NODE='1', PATH=cluster, PYTHON=echo)
    lines = started(done)
    port = 20000 + 4711 % 12000
    for line in (
        '--nnodes=2',
        '--rdzv_id=4711',
        '--rdzv_backend=c10d',
        f'--rdzv_endpoint=127.0.0.1:{port}',
        '--nproc_per_node=1',
        'my.py',
    ):
        assert lines.count(line) == 2
    assert sorted(line for line in lines if 'is_host' in line) == [
        '--rdzv_conf=is_host=false',
        '--rdzv_conf=is_host=true',
    ]


# --- two processes train as one does ---


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
    orders = masks.flatten(0, 2)
    assert len(orders.unique(dim=0)) == len(orders)
    assert torch.equal(orders.sort().values, torch.arange(64).expand_as(orders))
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
