"""Two processes, one with a bad loss: both stop with exit code 3, and tools/replay.py repeats the batch."""

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = """
_base_ = '{base}'
custom_imports = dict(imports=['bootmae.registry', 'bootmae.engine.hooks.nonfinite', 'breaking'])
custom_hooks = [
    dict(type='BootMAEHook', ema=((0, 0.9), )),
    dict(type='BreakHook', iterations={iterations}, kind='{kind}', rank=1)]
train_dataloader = dict(batch_size=8, dataset=dict(labels_per_class=None, indices=64))
auto_scale_lr = dict(base_batch_size=16)
log_level = 'WARNING'
"""


def train_two(folder: Path, iterations: list[int], kind: str) -> list[subprocess.CompletedProcess]:
    """Run tools/train.py in two processes; return how each ended."""
    config = folder / 'broken.py'
    config.write_text(
        CONFIG.format(base=REPOSITORY / 'configs/pretrain/bootmae_debug.py', iterations=iterations, kind=kind)
    )
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(REPOSITORY / 'tools' / 'train.py'),
                str(config),
                '--work-dir',
                str(folder / 'run'),
                '--launcher',
                'pytorch',
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
            env=os.environ
            | dict(
                OMP_NUM_THREADS='1',
                CUDA_VISIBLE_DEVICES='',
                PYTHONPATH=f'{REPOSITORY}:{REPOSITORY / "tests"}',
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE='2',
                MASTER_ADDR='127.0.0.1',
                MASTER_PORT=port,
            ),
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, output)
        for process, output in zip(processes, outputs)
    ]


@pytest.mark.slow
def test_two_processes_stop_alike(tmp_path, capsys):
    done = train_two(tmp_path, [4, 5, 6], 'loss')
    assert [process.returncode for process in done] == [3, 3], done[0].stdout + done[1].stdout
    assert all(
        'stopped: loss or gradients were not finite 3 times in a row, in iterations 4, 5, 6.' in process.stdout
        for process in done
    )
    assert 'iteration 5: the loss of rank 1 is not finite. The step was skipped, 2 in a row' in done[0].stdout
    folder = tmp_path / 'run' / 'nonfinite'
    dumps = [json.loads((folder / f'step_5_rank{rank}.json').read_text()) for rank in range(2)]
    assert [math.isnan(dump['batches'][0]['loss']) for dump in dumps] == [False, True]
    files = [set(dump['batches'][0]['files']) for dump in dumps]
    assert len(files[0]) == len(files[1]) == 8
    assert files[0].isdisjoint(files[1])
    weights, before = (
        read_checkpoint(path)['state_dict'] for path in (folder / 'stopped_4.pth', tmp_path / 'run' / 'epoch_1.pth')
    )
    assert all(torch.equal(weights[name], before[name]) for name in before if not name.startswith('momentum.'))

    dump = folder / 'step_5_rank1.json'  # the second process's batch, in a single process
    assert call_replay(dump) == 0
    printed = capsys.readouterr().out
    assert f'{dump}: rank 1 of 2, seed 0, weights {folder / "stopped_4.pth"}' in printed
    assert all(f'  {name}\n' in printed for name in files[1])
    assert 'first module whose output is not finite: none' in printed
    assert call_replay(folder / 'step_9_rank1.json') == 2
    assert capsys.readouterr().err.startswith('error: no file ')


def call_replay(dump: Path) -> int:
    """Run tools/replay.py in this process; return its exit code."""
    spec = importlib.util.spec_from_file_location('tool_replay', REPOSITORY / 'tools' / 'replay.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['replay.py', str(dump)])
        patch.syspath_prepend(str(REPOSITORY / 'tests'))  # the run's config imports the breaking hook
        with pytest.raises(SystemExit) as end:
            main(module.command)
    return end.value.code
