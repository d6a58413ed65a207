"""benchmarks/protections.py compares turns, times all protections and adds a row for each run."""

import argparse
import csv
import importlib.util
from itertools import count
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
COSTS = ('step seeds_us', 'sample seeds_us', 'guard_us', 'non-finite_us', 'flags_us', 'histories_us', 'heartbeat_us')


@pytest.fixture(scope='module')
def protections():
    spec = importlib.util.spec_from_file_location('protections', ROOT / 'benchmarks' / 'protections.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_turn_is_compared_with_those_beside_it(protections):
    turns = protections.Turns(turns=4, size=5, warmup=5)
    turns.times['without'] = [(1.0, 2.0), (3.0, 2.0), (5.0, 4.0), (7.0, 4.0)]  # a machine that slows down
    turns.times['protected'] = [(9.0, 9.0), (2.2, 2.1), (4.4, 3.3), (6.6, 4.4)]
    row = turns.summary(batch=8)
    assert row['wall_percent'] == pytest.approx(10)
    assert row['wall_quartiles'] == '10.00..10.00'
    assert row['cpu_percent'] == pytest.approx(10)
    assert row['cpu_quartiles'] == '7.50..10.00'
    assert row['images_per_s_without'] == 8 * 5 / 4
    assert row['images_per_s_protected'] == 8 * 5 / 5.5


def test_the_time_of_what_is_within_a_part_is_not_its_own(protections, monkeypatch):
    watch, ticks = protections.Stopwatch(), count()
    monkeypatch.setattr(watch, 'now', lambda device: next(ticks))  # each look at the clock takes a second
    stock = watch.wrap(lambda: None, None, device=False)
    inner = watch.wrap(stock, 'inner', device=False)
    outer = watch.wrap(lambda: (inner(), stock()), 'outer', device=False)
    outer()
    assert dict(watch.seconds) == dict(inner=2, outer=3)  # stock: 1 each time; inner in all 3; outer in all 7


def test_rows_are_added_and_other_files_refused(protections, tmp_path):
    path, row = tmp_path / 'new' / 'rows.csv', dict.fromkeys(protections.COLUMNS, '')
    protections.add_row(path, row | dict(batch=8, wall_percent=0.123456))
    protections.add_row(path, row | dict(batch=16, options='a=[1, 2]'))
    with path.open(newline='') as file:
        first, second = csv.DictReader(file)
    assert (first['batch'], first['wall_percent']) == ('8', '0.1235')
    assert (second['batch'], second['options']) == ('16', 'a=[1, 2]')
    path.write_text('some,other,columns\n')
    with pytest.raises(ValueError, match=r'rows.csv has other columns.*--results'):
        protections.add_row(path, row)
    assert path.read_text() == 'some,other,columns\n'


@pytest.mark.slow
def test_two_runs_take_turns_and_each_part_is_timed(protections):
    # With autocast the run without protections needs a wrapper of its own, with image files both ready-made samples.
    pipeline = Config.fromfile(ROOT / 'configs' / 'pretrain' / 'bootmae_debug.py').train_dataloader.dataset.pipeline
    options = {
        'model.backbone.arch.embed_dims': 24,
        'model.feature_decoder.num_heads': 3,
        'train_dataloader.dataset': dict(_delete_=True, type='ImageFiles', roots='unread', pipeline=pipeline),
        'optim_wrapper.type': 'AutocastOptimWrapper',
    }
    protect = protections.steps.apply_run_defaults
    row = protections.measure(
        argparse.Namespace(
            config=str(ROOT / 'configs' / 'pretrain' / 'bootmae_debug.py'),
            cfg_options=options,
            batch=4,
            steps=8,
            turn=1,
            ranks=1,
            parts=True,
        )
    )
    assert (row['precision'], row['ranks'], row['batch'], row['steps']) == ('bf16 autocast', 1, 4, 8)
    assert [len(protections.TURNS.times[name]) for name in ('protected', 'parts')] == [0, 1]
    assert all(row[name] > 0 for name in COSTS), row
    assert row['parts_percent'] > 0
    assert row['save_percent'] > 0
    assert row['images_per_s_without'] > 0
    assert 'guard' in protections.report(row)
    assert '8 steps' in protections.report(row)
    assert protections.steps.apply_run_defaults is protect
