"""What dist_train.sh, dist_test.sh and slurm_train.sh start: a script that prints its arguments replaces Python."""

import os
import subprocess

import pytest
from scripts import REPOSITORY, TOOLS, shell

LAUNCH = str(REPOSITORY / 'bootmae' / 'distributed' / 'launch.py')
MACHINES = dict(NNODES='2', MASTER_ADDR='first')


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
        ('dist_train.sh', ['my.py', '2'], dict(NODE_RANK='1'), 'NODE_RANK=1 needs NNODES, the number of machines'),
        ('dist_train.sh', ['my.py', '2'], dict(NODE_RANK='1', NNODES='1', PORT='99'), 'NODE_RANK=1 needs NNODES'),
        ('dist_train.sh', ['my.py', '2'], dict(PORT='99999'), 'PORT=99999 is not a port: give 1 to 65535'),
        ('dist_train.sh', ['my.py', '2'], dict(PORT='a'), 'PORT=a is not a port'),
        ('dist_train.sh', ['my.py', '2'], MACHINES | dict(NODE_RANK='2'), 'NODE_RANK=2 is none of NNODES=2 machines'),
        ('dist_train.sh', ['my.py', '2'], MACHINES | dict(NODE_RANK='x'), 'NODE_RANK=x is none of NNODES=2 machines'),
        ('dist_test.sh', ['my.py', 'my.pth'], {}, ''),
        ('slurm_train.sh', ['part', 'job', 'my.py'], {}, 'PARTITION, JOB_NAME, CONFIG and GPUS are needed'),
        ('slurm_train.sh', ['part', 'job', 'my.py', 'all'], {}, 'GPUS=all is not a number'),
        ('slurm_train.sh', ['part', 'job', 'my.py', '12'], {}, 'GPUS=12 is not a multiple of GPUS_PER_NODE=8'),
        ('slurm_train.sh', ['part', 'job', 'my.py', '4'], dict(GPUS_PER_NODE='0'), 'GPUS_PER_NODE=0 is not a number'),
        ('slurm_train.sh', ['part', 'job', 'my.py', '4'], dict(CPUS_PER_GPU='x'), 'CPUS_PER_GPU=x is not a number'),
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


@pytest.mark.parametrize('flag', ['--move-aside', '--move', '--m'])
def test_a_requeued_slurm_job_moves_nothing_aside(flag):
    """It resumes what its first start has saved, and --move-aside would refuse that."""
    given = ['slurm_train.sh', 'part', 'job', 'my.py', 8, '--work-dir', 'my run', flag, '--auto-scale-lr']
    for restarts, expected in (('0', [flag, '--auto-scale-lr']), ('1', ['--auto-scale-lr', '--resume'])):
        words = started(shell(*given, DRY_RUN='1', SLURM_RESTART_COUNT=restarts))[0].split()
        assert words[words.index('--work-dir') :] == ['--work-dir', 'my\\', 'run', *expected]


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
