"""Result rows: the CSV file, the summaries and the verdicts, with expected values worked out by hand."""

import math
import os
from dataclasses import replace

import pytest

from bootmae.report import find_verdicts, markdown_table, published_rows, read_rows, summarize, text_table, write_rows
from bootmae.report.summary import Difference, paired_difference, spread_of
from bootmae.report.tables import cost_sentences
from bootmae.report.verdicts import best_method, headline, judge, learned_headline
from bootmae.results.rows import COLUMNS, ResultRow

ROW = ResultRow(
    'digits',
    'mae',
    'knn',
    'all',
    'accuracy',
    91.5,
    0,
    'k=20, "cosine"',
    'configs/a.py',
    'last.pth',
    'ab12',
    'c0ffee',
    '2 cores',
    'float32',
    12.25,
    60000,
    '2026-01-02',
    'demo',
)


def rows_of(task='knn', **values: list[float]) -> list[ResultRow]:
    """Rows with seeds 0, 1, ... for every method."""
    return [
        replace(ROW, method=method, task=task, value=value, seed=seed)
        for method, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]


def verdict_of(**values: list[float]):
    return find_verdicts(summarize(rows_of(**values)))[0]


# ---- the file


def test_round_trip_keeps_every_value(tmp_path):
    rows = [
        ROW,
        replace(ROW, seed=1, value=1 / 3, data='a,b\n"c"'),
        *published_rows(),
        replace(ROW, seed=2, value=math.nan, label='not run'),
    ]
    write_rows(tmp_path / 'new' / 'r.csv', rows)
    found = read_rows(tmp_path / 'new' / 'r.csv')
    assert found[:-1] == rows[:-1]
    assert math.isnan(found[-1].value)
    assert found[-1].label == 'not run'


def test_columns_are_the_contract(tmp_path):
    write_rows(tmp_path / 'r.csv', [ROW])
    assert (tmp_path / 'r.csv').read_text().splitlines()[0] == (
        'data,method,task,labels,metric,value,seed,protocol,config,checkpoint,checkpoint_hash,commit,device,precision,'
        'seconds,images,date,label,config_hash,data_hash,gpu_hours,memory'
    )


def test_same_identity_replaces_and_others_stay(tmp_path):
    path = tmp_path / 'r.csv'
    write_rows(path, [ROW, replace(ROW, seed=1), replace(ROW, protocol='k=5')])
    write_rows(path, [replace(ROW, value=92.0, commit='later'), replace(ROW, seed=2)])
    assert [(row.seed, row.protocol, row.value) for row in read_rows(path)] == [
        (0, ROW.protocol, 92.0),
        (1, ROW.protocol, 91.5),
        (0, 'k=5', 91.5),
        (2, ROW.protocol, 91.5),
    ]


def test_a_row_of_other_weights_is_replaced_with_a_warning(tmp_path, capsys):
    path = tmp_path / 'r.csv'
    write_rows(path, [ROW, replace(ROW, method='untrained', checkpoint_hash='')])
    write_rows(path, [replace(ROW, value=92.0)])
    assert capsys.readouterr().err == ''
    write_rows(path, [replace(ROW, checkpoint_hash='cd34')])
    assert capsys.readouterr().err == (
        f'warning: {path}: the row digits, mae, knn, all, accuracy, 0, k=20, "cosine" of the weights ab12 is replaced '
        'by one of the weights cd34; to keep both, use another file or another method name\n'
    )
    assert [row.checkpoint_hash for row in read_rows(path)] == ['cd34', '']


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_crash_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / 'r.csv'
    write_rows(path, [ROW])
    before = path.read_bytes()

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match='disk full'):
        write_rows(path, [replace(ROW, seed=1)])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ['r.csv']


def line_with(**cells: str) -> str:
    plain = ['digits', 'mae', 'knn', 'all', 'accuracy', '1', '0', *[''] * 7, '1', '1', '', 'demo', '', '', '0', '0']
    values = dict(zip(COLUMNS, plain))
    return ','.join({**values, **cells}.values())


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (line_with(value='high'), "line 2, column value: 'high' is not a number; repair or delete this line"),
        (line_with(seed='1.5'), "line 2, column seed: '1.5' is not a whole number"),
        (line_with(images=''), "line 2, column images: '' is not a whole number"),
        (line_with(label='mine'), "line 2, column label: 'mine' is none of reproduced, measured, demo, paper, not run"),
        (line_with(value='nan'), 'line 2, column value: nan is not a finite number'),
        (line_with(seconds='-1'), 'line 2, column seconds: -1.0 is not a duration'),
        ('digits,mae', 'line 2: 2 cells instead of 22'),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / 'r.csv'
    path.write_text(','.join(COLUMNS) + '\n' + line + '\n')
    with pytest.raises(ValueError) as error:
        read_rows(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ('header', 'message'),
    [
        ('data,method', 'missing columns task'),
        (','.join([*COLUMNS, 'mood']), 'unknown columns mood'),
        (','.join(reversed(COLUMNS)), 'another order'),
        ('', 'missing columns data'),
    ],
)
def test_wrong_columns_are_named(tmp_path, header, message):
    path = tmp_path / 'r.csv'
    path.write_text(header + '\n')
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_missing_file_and_bad_new_row(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such results file'):
        read_rows(tmp_path / 'none.csv')
    with pytest.raises(ValueError, match='column value'):
        write_rows(tmp_path / 'r.csv', [replace(ROW, value=math.inf)])
    assert not (tmp_path / 'r.csv').exists()


# ---- summaries


def test_summary_by_hand():
    (item,) = summarize(rows_of(mae=[90.0, 92.0, 91.0], bootmae=[92.0, 93.0, 95.0], untrained=[60.0]))
    assert (item.data, item.task, item.labels, item.metric, item.protocol) == (
        'digits',
        'knn',
        'all',
        'accuracy',
        ROW.protocol,
    )
    assert (item.methods['mae'].n, item.methods['mae'].mean, item.methods['mae'].std) == (3, 91.0, 1.0)
    assert item.methods['bootmae'].mean == pytest.approx(280 / 3)
    assert item.methods['bootmae'].std == pytest.approx(math.sqrt(7 / 3))  # deviations -4/3, -1/3, 5/3
    assert (item.methods['untrained'].n, item.methods['untrained'].std) == (1, None)
    # differences 2, 1, 4: mean 7/3, variance ((1/3)^2 + (4/3)^2 + (5/3)^2) / 2 = 7/3, error sqrt(7/9)
    difference = paired_difference(item.methods['bootmae'], item.methods['mae'])
    assert difference.n == 3
    assert difference.mean == pytest.approx(7 / 3)
    assert difference.standard_error == pytest.approx(math.sqrt(7) / 3)


def test_difference_pairs_by_seed_and_not_by_order():
    mae, bootmae = spread_of({3: 10.0, 1: 20.0, 7: 99.0}), spread_of({1: 21.0, 3: 11.0, 9: 0.0})
    assert paired_difference(bootmae, mae) == Difference(2, 1.0, 0.0)


def test_one_shared_seed_has_no_error_and_none_no_difference():
    assert paired_difference(spread_of({0: 92.0}), spread_of({0: 90.0})) == Difference(1, 2.0, None)
    assert paired_difference(spread_of({0: 92.0}), spread_of({1: 90.0})) is None


def test_groups_stay_apart_and_unmeasured_rows_stay_out():
    rows = [
        ROW,
        replace(ROW, labels='10'),
        replace(ROW, protocol='k=5'),
        replace(ROW, metric='recall'),
        replace(ROW, task='linear'),
        replace(ROW, data='photos'),
        *published_rows(),
        replace(ROW, seed=5, value=math.nan, label='not run'),
    ]
    found = summarize(rows)
    assert len(found) == 6
    assert all(item.methods['mae'].values == {0: 91.5} for item in found)


# ---- verdicts


def test_rule_at_its_margin():
    # differences 1, 3: mean 2, error 1; the spreads 0 and sqrt(2) are smaller: level at the very margin
    first, second = spread_of({0: 11.0, 1: 11.0}), spread_of({0: 10.0, 1: 8.0})
    found = judge(first, second)
    assert (found.outcome, found.difference.mean, found.margin) == ('level', 2.0, 2.0)
    # the same difference every time: no error, but both wander by sqrt(2) over seeds
    found = judge(spread_of({0: 11.5, 1: 13.5}), spread_of({0: 10.0, 1: 12.0}))
    assert found.outcome == 'above'
    assert found.margin == pytest.approx(math.sqrt(2))
    assert judge(spread_of({0: 11.4, 1: 13.4}), spread_of({0: 10.0, 1: 12.0})).outcome == 'level'
    assert judge(spread_of({0: 10.0, 1: 12.0}), spread_of({0: 11.5, 1: 13.5})).outcome == 'below'


def test_copies_of_one_result_are_no_seeds():
    """k-NN of given weights on all labels is the same for every seed, which no margin can judge."""
    found = verdict_of(untrained=[20.0, 21.0], mae=[60.1] * 3, bootmae=[60.12] * 3)
    assert (found.outcome, found.learned) == ('undecided', {'mae': 'above', 'bootmae': 'above'})
    assert found.sentences[0] == (
        'BootMAE against MAE is undecided: difference +0.02 points, all seeds gave the same number.'
    )
    assert headline([found])[1] == 'none'
    assert verdict_of(mae=[60.1] * 2, bootmae=[60.1] * 2).outcome == 'undecided', 'and not level'


def test_other_test_data_are_named():
    rows = rows_of(mae=[60.0, 61.0], bootmae=[70.0, 71.0])
    (one,), (two,), (drawn,) = (
        find_verdicts(summarize(replace(row, data_hash=by[row.method][row.seed]) for row in rows))
        for by in (
            dict(mae=('aa', ''), bootmae=('aa', '')),
            dict(mae=('aa', ''), bootmae=('bb', '')),
            dict(mae=('aa', 'bb'), bootmae=('aa', 'bb')),
        )
    )
    assert drawn == one, 'test data that are drawn for each seed are those of both methods'
    assert two.sentences == (
        *one.sentences,
        'These rows are of different test data (fingerprints aa, bb), which may be the reason of a difference.',
    )


def test_above_wording():
    found = verdict_of(untrained=[60.0, 60.4], mae=[90.0, 90.4], bootmae=[92.0, 92.2])
    assert found.outcome == 'above'
    assert found.learned == {'mae': 'above', 'bootmae': 'above'}
    assert found.sentences == (
        'BootMAE is above MAE: +1.90 ± 0.10 points (standard error; 2 shared seeds, margin 0.28).',
        'Both are above the untrained encoder (60.2) by more than the spread: MAE 90.2, BootMAE 92.1.',
    )
    assert headline([found]) == ('BootMAE is above MAE in the only comparison.', 'good')
    assert learned_headline([found]) == ('Every pretrained encoder is above the untrained one by more than the spread.')


def test_level_wording():
    found = verdict_of(untrained=[90.0, 90.4], mae=[90.0, 91.0], bootmae=[90.5, 90.9])
    assert found.outcome == 'level'
    assert found.sentences[0].startswith('BootMAE is level with MAE: +0.20 ± 0.30 points')
    assert found.sentences[1] == ('MAE is not above the untrained encoder by more than the spread: 90.5 against 90.2.')
    assert headline([found]) == ('BootMAE is not above MAE in the only comparison: level in 1.', 'bad')
    assert learned_headline([found]).endswith('in 1 of 2 cases; the others: level in 1.')


def test_below_wording():
    found = verdict_of(untrained=[95.0, 95.1], mae=[92.0, 92.2], bootmae=[90.0, 90.4])
    assert found.outcome == 'below'
    assert found.sentences == (
        'BootMAE is below MAE: −1.90 ± 0.10 points (standard error; 2 shared seeds, margin 0.28).',
        'MAE is below the untrained encoder by more than the spread: 92.1 against 95.0.',
        'BootMAE is below the untrained encoder by more than the spread: 90.2 against 95.0.',
    )
    assert headline([found])[1] == 'bad'


def test_undecided_wording():
    found = verdict_of(untrained=[60.0], mae=[90.0], bootmae=[92.0])
    assert found.outcome == 'undecided'
    assert found.sentences[0] == ('BootMAE against MAE is undecided: difference +2.00 points, one shared seed only.')
    assert headline([found]) == (
        'Whether BootMAE is above MAE is undecided: this needs two seeds of both, with different results.',
        'none',
    )
    assert found.sentences[1] == (
        'Against the untrained encoder (60.0) undecided, one shared seed only: MAE 90.0, BootMAE 92.0.'
    )
    assert learned_headline([found]) == (
        'Against the untrained encoder everything is undecided for lack of shared seeds or of a spread.'
    )
    assert headline([verdict_of(mae=[90.0])])[1] == 'none'


def test_headline_counts_every_outcome():
    above = verdict_of(mae=[1.0, 1.1], bootmae=[3.0, 3.1])
    level = verdict_of(mae=[1.0, 1.1], bootmae=[1.0, 1.1])
    below = verdict_of(mae=[1.0, 1.1], bootmae=[0.0, 0.1])
    assert headline([above, above]) == ('BootMAE is above MAE in all 2 comparisons.', 'good')
    sentence = 'BootMAE is above MAE in 1 of 4 comparisons, and not above it in the others: level in 2, below in 1.'
    assert headline([above, level, below, level]) == (sentence, 'mixed')
    assert headline([level, below]) == (
        'BootMAE is not above MAE in any of the 2 comparisons: level in 1, below in 1.',
        'bad',
    )


def test_best_needs_a_lead_over_every_other():
    def best(**values):
        return best_method(summarize(rows_of(**values))[0])

    assert best(untrained=[1.0, 1.0], mae=[5.0, 5.2], bootmae=[9.0, 9.2]) == 'bootmae'
    assert best(untrained=[1.0, 1.0], mae=[5.0, 5.2], bootmae=[5.1, 5.2]) is None
    assert best(mae=[5.0, 5.2]) is None


# ---- text


def test_text_and_markdown_tables():
    rows = rows_of(mae=[90.0, 92.0], bootmae=[93.0, 94.0]) + rows_of('linear', mae=[80.0], bootmae=[79.0])
    assert text_table(rows) == (
        'Data    Task          Labels             MAE         BootMAE     BootMAE − MAE\n'
        '------  ------------  ------  --------------  --------------  ----------------\n'
        'digits  k-NN             all  91.0 ± 1.4 (2)  93.5 ± 0.7 (2)  +2.50 ± 0.50 (2)\n'
        'digits  linear probe     all        80.0 (1)        79.0 (1)         −1.00 (1)\n'
    )
    assert markdown_table(rows) == (
        '| Data | Task | Labels | MAE | BootMAE | BootMAE − MAE |\n'
        '| --- | --- | ---: | ---: | ---: | ---: |\n'
        '| digits | k-NN | all | 91.0 ± 1.4 (2) | **93.5 ± 0.7 (2)** | +2.50 ± 0.50 (2) |\n'
        '| digits | linear probe | all | 80.0 (1) | 79.0 (1) | −1.00 (1) |\n'
    )
    assert text_table(published_rows()) == 'no measured rows\n'


def test_protocol_is_shown_where_it_tells_rows_apart():
    rows = [ROW, replace(ROW, protocol='k=5 | x')]
    assert 'k=5 \\| x' in markdown_table(rows)
    assert 'Protocol' in text_table(rows)


def test_cost_says_whether_the_budgets_agree():
    def run(method, seconds, images):
        return replace(ROW, method=method, checkpoint_hash=method, seconds=seconds, images=images)

    equal = [run('mae', 100.0, 1000), run('bootmae', 150.0, 1000)]
    equal.append(replace(equal[0], task='linear'))
    assert cost_sentences(equal) == [
        'digits: both methods saw the same number of images (1,000 a run); BootMAE took 1.50 times the '
        'time of MAE (150 s against 100 s, mean over runs).'
    ]
    unequal = cost_sentences([run('mae', 100.0, 1000), run('bootmae', 0.0, 2000)])
    assert unequal == [
        'digits: the budgets differ, BootMAE saw 2,000 images a run and MAE 1,000, so this is no equal comparison.'
    ]


def test_published_numbers():
    rows = published_rows()
    found = {(row.data, row.method, row.task, row.protocol, row.metric): row.value for row in rows}
    assert all(row.label == 'paper' for row in rows)
    assert len(found) == 10
    assert found['ImageNet-1k', 'mae', 'finetune', 'ViT-B, 800 epochs', 'accuracy'] == 83.4
    assert found['ImageNet-1k', 'bootmae', 'finetune', 'ViT-B, 800 epochs', 'accuracy'] == 84.2
    assert found['ImageNet-1k', 'bootmae', 'finetune', 'ViT-L', 'accuracy'] == 85.9
    assert found['ImageNet-1k', 'bootmae', 'linear', 'ViT-B', 'accuracy'] == 66.1
    assert found['ImageNet-1k', 'bootmae', 'linear', 'ViT-L', 'accuracy'] == 77.1
    assert found['ADE20K', 'mae', 'segmentation', 'ViT-B, UperNet, 1600 epochs', 'mIoU'] == 48.1, 'not of 800 epochs'
    assert found['ADE20K', 'bootmae', 'segmentation', 'ViT-B, UperNet', 'mIoU'] == 49.1
