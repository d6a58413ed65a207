"""The whole command: killed in the middle, started again, finished, and nothing repeated."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bootmae.results.provenance import REPOSITORY
from bootmae.results.rows import read_rows

SUITE = """
title: toy
label: demo
methods: [bootmae]
seeds: [0, 1]
pretrain:
  config: "configs/pretrain/{method}_debug.py"
  options: {train_cfg.max_epochs: 1, param_scheduler.warmup: 0.5}
tasks:
  knn: {config: "configs/cls/bootmae_debug_finetune.py", labels: [5]}
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tmp_path):
    """Starts ``tools/suite.py``, from elsewhere than the repository."""
    path = tmp_path / 'toy.yaml'
    path.write_text(SUITE)

    def begin(*args: str) -> subprocess.Popen:
        tool = str(REPOSITORY / 'tools' / 'suite.py')
        words = [sys.executable, tool, path.name, '--out', 'out', '--gpus', '0', *args]
        return subprocess.Popen(
            words,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {'OMP_NUM_THREADS': '1'},
        )

    return begin


def wait_for(path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


def test_killed_and_started_again(command, tmp_path):
    out = tmp_path / 'out'
    suite = command('--lanes', '1')
    wait_for(out / 'pretrain' / 'bootmae-1' / 'log.txt')  # the first pretraining and its k-NN are done
    suite.send_signal(signal.SIGKILL)
    suite.communicate()
    weights = out / 'pretrain' / 'bootmae-0' / 'run' / 'epoch_1.pth'
    before = weights.stat().st_mtime_ns
    text, errors = command().communicate(timeout=200)
    assert 'toy.yaml: 4 cells, 2 done before; up to 2 at a time on the CPU' in text
    assert 'pretrain/bootmae-1, started 20' in text, 'the killed cell is named'
    assert weights.stat().st_mtime_ns == before, 'the finished cell was not repeated'
    rows = read_rows(out / 'results.csv')
    assert [(row.method, row.task, row.labels, row.seed, row.label) for row in rows] == [
        ('bootmae', 'knn', '5', 0, 'demo'),
        ('bootmae', 'knn', '5', 1, 'demo'),
    ], errors
    assert all(len(row.data_hash) == 12 and row.memory > 0 and 5 < row.value < 100 for row in rows)
    assert rows[0].data_hash == rows[1].data_hash
    page = (out / 'report.html').read_text()
    assert '<title>toy' in page
    assert 'tools/suite.py' in page


def test_an_output_that_nobody_reads_does_not_end_a_suite(command, tmp_path):
    """``| head -1``, or a full disk under the output."""
    suite = command('--no-pictures')
    suite.stdout.readline()
    suite.stdout.close()
    assert suite.wait(200) == 0
    said = suite.stderr.read()
    suite.stderr.close()
    assert said.count('the output was not written: [Errno 32] Broken pipe. The suite continues\n') == 1
    assert len(read_rows(tmp_path / 'out' / 'results.csv')) == 2
    assert (tmp_path / 'out' / 'report.html').exists()
