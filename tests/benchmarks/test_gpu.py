"""benchmarks/gpu.py: phases that fail or hang cost no other, claims are and claims are judged by their rows."""

import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / 'benchmarks'
sys.path.insert(0, str(BENCHMARKS))

import claims  # noqa: E402
import evidence  # noqa: E402
import gpu  # noqa: E402
import measure  # noqa: E402
from phases import Recorder, Settings, read_results, run_tests  # noqa: E402

SCRIPTS = dict(
    good='input(); print("fine")',
    bad='input(); raise SystemExit(3)',
    crashing='input(); import os; os.abort()',
    hanging='input(); import subprocess, time; subprocess.Popen(["sleep", "60"]); time.sleep(60)',
    broken='import no_such_module',
)


def fake(name: str) -> list[str]:
    return [sys.executable, '-c', SCRIPTS[name]]


def statuses(out: Path) -> dict[str, str]:
    return {r['phase']: r['status'] for r in read_results(out) if r['kind'] == 'phase'}


def test_a_phase_that_fails_or_hangs_costs_no_other(tmp_path, capsys):
    phases = [
        gpu.Phase(name, 0, 1.5 if name == 'hanging' else 30)
        for name in ('bad', 'hanging', 'crashing', 'broken', 'good')
    ]
    begin = time.monotonic()
    gpu.run_all(phases, 60, tmp_path, lambda phase: fake(phase.name))
    assert statuses(tmp_path) == dict(
        bad='failed (3)', hanging='hung', crashing='failed (-6)', broken='failed (1)', good='done'
    )
    assert time.monotonic() - begin < 30  # the child of the hanging one has been ended too, not waited for
    assert 'fine' in capsys.readouterr().out
    assert 'no_such_module' in (tmp_path / 'log.txt').read_text()


def test_a_hanging_phase_of_tests_is_not_given_its_time_again(tmp_path):
    begin = time.monotonic()
    gpu.run_all([gpu.Phase('tests', 0.5, 2)], 60, tmp_path, lambda phase: fake('hanging'))
    assert statuses(tmp_path) == dict(tests='hung')
    assert time.monotonic() - begin < 15


def test_nothing_begins_that_does_not_fit(tmp_path):
    phases = [gpu.Phase('good', 0, 30), gpu.Phase('bad', 500, 600), gpu.Phase('crashing', 0, 30)]
    gpu.run_all(phases, 60, tmp_path, lambda phase: fake(phase.name))
    assert statuses(tmp_path) == dict(good='done', bad='not begun', crashing='failed (-6)')


def test_tests_go_on_after_one_that_takes_the_process_with_it(tmp_path):
    file = tmp_path / 'test_some.py'
    file.write_text(
        '"""Some tests."""\nimport os\ndef test_a(): pass\ndef test_b(): os._exit(9)\n'
        'def test_c(): assert False, "as it is"\ndef test_d(): pass\n'
    )
    script = (
        f'import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); input(); from pathlib import Path; '
        'from phases import Recorder, Settings, run_tests; '
        f'out = Path({str(tmp_path)!r}); settings = Settings(9e9, rehearse=True); '
        f'run_tests(Recorder(out, "tests", settings), settings, [Path({str(file)!r})])'
    )
    gpu.run_all([gpu.Phase('tests', 0, 100)], 120, tmp_path, lambda phase: [sys.executable, '-c', script])
    last = {r['test'].partition('::')[2]: r for r in read_results(tmp_path) if r['kind'] == 'test'}
    assert {name: r['outcome'] for name, r in last.items()} == dict(
        test_a='passed', test_b='failed', test_c='failed', test_d='passed'
    )
    assert 'died' in last['test_b']['message']
    assert 'as it is' in last['test_c']['message']
    assert [r['status'] for r in read_results(tmp_path) if r['kind'] == 'phase'] == ['failed (9)', 'done']
    (claim,) = claims.of_tests(read_results(tmp_path), [file])
    assert (claim.claim, claim.measured, claim.verdict) == ('Some tests', '2 passed, 2 failed', 'failed')


def test_missing_tests_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='tests/gpu'):
        run_tests(Recorder(tmp_path, 'tests'), Settings(9e9), [])


def test_a_part_that_fails_or_has_no_time_is_recorded(tmp_path):
    record = Recorder(tmp_path, 'step', Settings(time.time() + 50, rehearse=True))
    assert record.attempt('a', 1, lambda x: x + 1, 2) == 3
    assert record.attempt('b', 1, lambda: 1 / 0) is None
    assert record.attempt('c', 100, lambda: 1) is None
    assert [(r['kind'], r['what']) for r in read_results(tmp_path)] == [
        ('part', 'a'),
        ('failed', 'b'),
        ('skipped', 'c'),
    ]
    assert 'ZeroDivisionError' in read_results(tmp_path)[1]['error']
    with (tmp_path / 'results.jsonl').open('a') as file:
        file.write('{"kind": "row", "pha')  # cut off
    assert len(read_results(tmp_path)) == 3


def step(variant: str, rate: float, turns: int = 3, **columns: float) -> dict:
    row = dict(variant=variant, turns=turns, images_per_s=rate, peak_gib=12.5, overhead_percent=1.0) | columns
    return dict(kind='row', table='step', phase='step', row=row)


def test_claims_are_judged_by_their_rows():
    records = [
        step('bootmae_vitb, 256, blocks', 3300.0),
        step('bootmae_vitb, 256, whole', 3500.0, peak_gib=13.5),
        step('bootmae_vitb, 256, whole', 9999.0, turns=1),  # the turns of all count, not the first one alone
        step('bootmae_vitb, 512, whole', 3599.0),
        dict(kind='row', table='downstream', row=dict(task='seg', ratio=1.25, memory_ratio=1.01)),
        dict(kind='number', name='idle share of the compiled step', value=4.0),
    ]
    found = {c.claim: c for c in claims.judge(records, [])}

    def said(claim: str) -> tuple[str, str]:
        return found[claim].measured, found[claim].verdict

    assert said('BootMAE-B, batch 256, the fastest compiled step') == ('3,500 images/s', 'met')
    assert found['BootMAE-B, batch 256, the fastest compiled step'].target == 'at least 3,400'
    assert said('memory of the fastest step') == ('13.5 GiB', 'missed')
    assert said('memory of BootMAE-L, batch 256') == ('', 'pending')
    assert said('BootMAE-B, batch 512, compiled') == ('3,599 images/s', 'missed')
    assert said('UperNet: speed over the stock configuration') == ('1.25 x', 'met')
    assert said('UperNet: memory over the stock configuration') == ('1.01 x', 'missed')
    assert said('ViTDet: speed over the stock configuration') == ('', 'pending')
    assert said('idle share of the GPU in the compiled step') == ('4 %', 'measured')


def test_rows_are_collected_once(tmp_path, monkeypatch, capsys):
    results = tmp_path / 'repository'
    results.mkdir()
    monkeypatch.setattr(measure, 'RESULTS', results)
    monkeypatch.setattr(measure, 'ROOT', tmp_path)
    monkeypatch.setattr(gpu, 'ROOT', tmp_path)
    monkeypatch.setattr('tables.pages', list)
    facts = dict(date='2026-01-02 03:04', commit='', device='NVIDIA H100', versions='torch 2', threads=8)
    records = [
        dict(kind='environment', phase='environment', **facts),
        *(step('bootmae_vitb, 256, whole', 3500.0, turns) for turns in (1, 3)),
    ]
    for record in records[1:]:
        record['row'] |= facts
    (tmp_path / 'results.jsonl').write_text('\n'.join(map(json.dumps, records)))
    gpu.collect(tmp_path)
    gpu.collect(tmp_path)
    (row,) = measure.read_rows('step', results)
    assert (row['images_per_s'], row['device'], row['commit']) == ('3500', 'NVIDIA H100', measure.git_commit())
    judged = measure.read_rows('gpu', results)
    assert len(judged) == sum(claim.verdict != 'pending' for claim in claims.judge(records, gpu.test_files())) > 0
    assert '0 rows added' in capsys.readouterr().out


def test_epochs_are_as_many_as_the_evaluation_leaves_time_for():
    rates = dict(bootmae=10_000.0, mae=25_000.0)  # side by side, 5 s an epoch of 50,000
    fixed = evidence.JUDGING_SECONDS + evidence.START_SECONDS
    assert evidence.epochs_that_fit(fixed + 50 / evidence.SHARE + 1, 50_000, rates) == 10
    assert evidence.epochs_that_fit(fixed, 50_000, rates) == 0


def test_the_ema_of_the_evidence_is_never_shorter_than_a_thousand_steps():
    for epochs, last in ((5, 1 - 1 / 1000), (100, 1 - 1 / 9700)):
        (hook,) = evidence.pretraining_options('bootmae', Path('x.tar'), 50_000, epochs, False)['custom_hooks']
        assert hook['ema'][0] == (0, 0.999)
        assert hook['ema'][1] == (epochs, pytest.approx(last))
