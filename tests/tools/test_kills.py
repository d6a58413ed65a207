"""benchmarks/kills.py: killed runs go on bit for bit, and with mmengine's own loops and checkpoints they do not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).resolve().parents[2] / 'benchmarks' / 'kills.py'


def kills(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    return subprocess.run([sys.executable, KILLS, *args], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize('ranks, setting', [('1', '2 workers'), ('2', 'accumulation 2, bf16')])
def test_killed_runs_go_on_bit_for_bit(ranks, setting):
    done = kills('--kills', '1', '--ranks', ranks, '--settings', setting)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(': same') == 2
    assert '2 kills: 2 resumed bit for bit, 0 not' in done.stdout


@pytest.mark.slow
def test_the_stock_loops_and_checkpoints_fail():
    done = kills('--kills', '2', '--ranks', '1', '--settings', 'plain', '--stock')
    assert done.returncode == 1
    assert re.search(r'killed during saving .*: \d+ iterations of \d+ lost', done.stdout)
