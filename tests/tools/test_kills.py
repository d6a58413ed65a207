"""benchmarks/kills.py: killed runs resume bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).resolve().parents[2] / 'benchmarks' / 'kills.py'


def kills(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    return subprocess.run([sys.executable, KILLS, *args], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_killed_runs_go_on_bit_for_bit():
    done = kills('--kills', '1', '--ranks', '2', '--settings', 'accumulation 2, bf16')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(': same') == 2
    assert '2 kills: 2 resumed bit for bit, 0 not' in done.stdout
