"""The table of docs/watching.md: from the scalars of runs to results/watching.csv and Markdown."""

import json

import pytest

from pages import watching


@pytest.fixture
def run(tmp_path):
    """A work directory of two attempts, the last one with probes before the first epoch and after the second."""
    target = dict(target_variance_images=0.25, feature_error=0.5, momentum_distance=0.125)
    logged = [
        {'probe/knn': 20.0, 'probe/rankme': 12.3456, 'step': 0},
        dict(target, epoch=1, step=24),
        dict(target, epoch=2, step=48),
        dict(target, feature_error=0.2, epoch=2, step=72),
        {'probe/knn': 30.5, 'probe/rankme': 9.0, 'step': 2},
        {'accuracy/top1': 50.0, 'step': 2},
    ]
    for attempt, lines in (('20260101_000000', logged[:1]), ('20260102_000000', logged)):
        folder = tmp_path / 'run' / attempt / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return tmp_path / 'run'


def test_numbers_of_an_epoch_come_together(run, tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / watching.FILE).write_text(watching.csv_text(dict(good=run)))
    assert watching.table(tmp_path).splitlines()[2:] == [
        '| good | 0 | 20.0 | 12.3 |  |  |  |',
        '| good | 2 | 30.5 | 9.0 | 0.25 | 0.20 | 0.12 |',
    ]


def test_runs_without_a_probe(run, tmp_path):
    with pytest.raises(FileNotFoundError, match='none: no .*scalars.json; give the work directory'):
        watching.csv_text(dict(good=tmp_path / 'none'))
    (scalars,) = run.glob('20260102*/vis_data/scalars.json')
    scalars.write_text('{"loss": 1.0, "step": 1}\n')
    with pytest.raises(ValueError, match='no probe/rankme; train with default_hooks.probe'):
        watching.csv_text(dict(good=run))
