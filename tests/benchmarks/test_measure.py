"""benchmarks/measure.py: rows that are kept, clocks that alternate, facts beside each number."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'
sys.path.insert(0, str(BENCHMARKS))

import measure  # noqa: E402


def test_rows_are_kept_when_columns_are_added(tmp_path):
    measure.add_row('step', dict(device='a', images_per_s=123456.789, compile=True), tmp_path)
    measure.add_row('step', dict(images_per_s=0.00123456789, device='b, two "cores"', peak_gib=12.4), tmp_path)
    measure.add_row('step', dict(device='c'), tmp_path)
    assert measure.read_rows('step', tmp_path) == [
        dict(device='a', images_per_s='123460', compile='True', peak_gib=''),
        dict(device='b, two "cores"', images_per_s='0.0012346', compile='', peak_gib='12.4'),
        dict(device='c', images_per_s='', compile='', peak_gib=''),
    ]
    assert measure.read_rows('reading', tmp_path) == []


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    path = measure.add_row('step', dict(device='a'), tmp_path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.replace', full)
    with pytest.raises(OSError, match='No space'):
        measure.add_row('step', dict(device='b'), tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_row_cut_off_is_named(tmp_path):
    (tmp_path / 'step.csv').write_text('device,peak_gib\na,1\nb\n')
    with pytest.raises(ValueError, match=r'step\.csv, row 3: 1 cell under 2 headings'):
        measure.read_rows('step', tmp_path)


def test_turns_alternate_and_turn_round(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: clock[0])

    def work(name, seconds):
        calls.append(name)
        clock[0] += seconds * len(calls)  # a machine that becomes slower and slower

    times = measure.alternate({'a': lambda: work('a', 1.0), 'b': lambda: work('b', 1.0)}, 3, 'cpu')
    assert ''.join(calls) == 'abbaab'
    assert times == dict(a=[1.0, 4.0, 5.0], b=[2.0, 3.0, 6.0])
    assert measure.speed_ratio(times, 'a', 'b') == pytest.approx(1.2)


def test_timed_leaves_the_warm_up_out(monkeypatch):
    clock, durations = [0.0], iter((9.0, 9.0, 1.0, 2.0, 3.0))
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: clock[0])

    def run():
        clock[0] += next(durations)

    assert measure.timed(run, 2, 3, 'cpu') == [1.0, 2.0, 3.0]


def test_memory_and_matrix_peak_are_measured():
    measure.reset_peak_memory('cpu')
    before = measure.peak_memory('cpu')
    block = torch.ones(64, 2**20)
    assert measure.peak_memory('cpu') - before > 0.2
    del block
    assert 1e-4 < measure.matmul_peak('cpu') < 10


def test_facts_name_device_versions_and_commit():
    facts = measure.facts('cpu', ['onedl-mmsegmentation'])
    assert tuple(facts) == measure.FACTS
    assert 'cores' in facts['device']
    assert facts['threads'] == torch.get_num_threads()
    assert f'torch {torch.__version__.split("+")[0]}' in facts['versions']
    for name in ('mmengine', 'mmpretrain', 'mmsegmentation'):  # of the maintained builds or of the originals
        assert f', {name} ' in facts['versions']
    assert 'onedl' not in facts['versions']
