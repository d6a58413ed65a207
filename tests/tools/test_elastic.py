"""A killed run that resumes on other numbers of processes has the same global batches and losses."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / 'benchmarks' / 'kills.py'


@pytest.fixture(scope='module')
def kills():
    spec = importlib.util.spec_from_file_location('kills', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(kills, work_dir: Path) -> dict[int, float]:
    """Return the losses averaged over the ranks by iteration; the last attempt counts."""
    return {line['iter']: line['mean_loss'] for line in kills.records(work_dir, 0)}


@pytest.mark.slow
def test_one_two_and_four_processes(kills, tmp_path):
    whole, chain = tmp_path / 'whole', tmp_path / 'chain'
    whole.mkdir(), chain.mkdir()
    cases = [kills.Case(ranks, 'plain', drop_path=0.0) for ranks in (1, 2, 4)]
    assert kills.finish(kills.start(cases[0], whole))
    for case, line in zip(cases[:2], (5, 11)):
        pids = kills.start(case, chain)
        kills.kill_when(chain, pids, line, 0)
        kills.finish(pids)
    assert len(losses(kills, chain)) < kills.STEPS
    assert kills.finish(kills.start(cases[2], chain)), (chain / 'log_0.txt').read_text()[-2000:]
    expected, seen = losses(kills, whole), losses(kills, chain)
    assert sorted(seen) == list(range(kills.STEPS))
    assert [seen[k] for k in sorted(seen)] == pytest.approx([expected[k] for k in sorted(seen)], rel=1e-5)
    assert (chain / 'record_3.jsonl').exists()  # the fourth process took part
