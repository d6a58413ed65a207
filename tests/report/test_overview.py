"""The tasks side by side: which comparison stands for a task, cells by hand, and the order of everything."""

from dataclasses import replace

import pytest

from bootmae.report import ResultRow, overview_markdown, overview_text, summarize, text_table
from bootmae.report.overview import overview, representative_comparisons
from bootmae.report.tables import checkpoint_table, cost_table
from bootmae.report.verdicts import find_verdicts, in_order, labels_name, labels_phrase, task_name

ROW = ResultRow('digits', 'mae', 'knn', 'all', 'accuracy', 50.0, 0)


def rows_of(data='digits', task='knn', labels='all', metric='accuracy', protocol='', **values):
    """Rows with seeds 0, 1, ... for every method."""
    return [
        ResultRow(data, method, task, labels, metric, value, seed, protocol)
        for method, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]


def four_tasks():
    scenes = dict(data='digit scenes', untrained=[5.0, 7.0], mae=[20.0, 22.0], bootmae=[30.0, 34.0])
    return [
        *rows_of(task='detection', metric='box AP', **scenes),
        *rows_of(task='detection', metric='mask AP', **scenes),
        *rows_of(task='segmentation', metric='mIoU', **{**scenes, 'mae': [29.0, 31.0]}),
        *rows_of(task='finetune', labels='5', mae=[60.0], bootmae=[61.0]),
        *rows_of(labels='20', mae=[1.0], bootmae=[2.0]),
        *rows_of(mae=[91.0, 93.0], bootmae=[88.0, 89.0]),
    ]


def test_columns_in_the_order_of_the_tasks_with_the_most_labels():
    table = overview(summarize(four_tasks()))
    assert table.columns == (
        ('digits', 'k-NN', 'all labels'),
        ('digits', 'fine-tuning', '5 labels per class'),
        ('digit scenes', 'segmentation mIoU', ''),
        ('digit scenes', 'detection box AP', ''),
        ('digit scenes', 'detection mask AP', ''),
    )
    assert table.groups == [('digits', 2), ('digit scenes', 3)]
    assert [name for name, _ in table.rows] == ['Untrained', 'MAE', 'BootMAE', 'BootMAE − MAE']


def test_cells_by_hand():
    table = overview(summarize(four_tasks()))
    texts = {name: [entry.text for entry in entries] for name, entries in table.rows}
    assert texts['Untrained'] == ['–', '–'] + ['6.0 ± 1.4 (2)'] * 3
    assert texts['MAE'] == ['92.0 ± 1.4 (2)', '60.0 (1)', '30.0 ± 1.4 (2)'] + ['21.0 ± 1.4 (2)'] * 2
    # differences of the seeds: -3, -4; then one seed; 1, 3; 10, 12
    assert texts['BootMAE − MAE'] == ['−3.50 ± 0.50 (2)', '+1.00 (1)', '+2.00 ± 1.00 (2)', *['+11.00 ± 1.00 (2)'] * 2]
    outcomes = [entry.outcome for entry in table.rows[-1][1]]
    assert outcomes == ['below', 'undecided', 'level', 'above', 'above']  # 2.00 against the margin of 2.83
    strong = {name: [entry.strong for entry in entries] for name, entries in table.rows}
    assert strong['MAE'] == [True, False, False, False, False]
    assert strong['BootMAE'] == [False, False, False, True, True]
    assert table.rows[1][1][0].parts == ('92.0', '± 1.4 (2)')
    assert table.rows[0][1][0].parts == ('–', '')


def test_of_several_protocols_the_most_measured_one_is_chosen_and_named():
    few, more = rows_of(protocol='k=5', mae=[1.0]), rows_of(protocol='k=20', mae=[2.0, 3.0])
    assert [item.protocol for item in representative_comparisons(summarize(few + more))] == ['k=20']
    assert overview(summarize(few + more)).columns == (('digits', 'k-NN', 'all labels, k=20'),)
    assert [
        item.protocol for item in representative_comparisons(summarize(few + rows_of(protocol='k=9', mae=[1.0])))
    ] == ['k=5']
    apart = few + rows_of(labels='5', protocol='k=20', mae=[2.0])
    assert overview(summarize(apart)).columns == (('digits', 'k-NN', 'all labels'),)


def test_no_difference_row_without_both_methods():
    assert [name for name, _ in overview(summarize(rows_of(mae=[1.0]))).rows] == ['MAE']
    assert overview([]).columns == ()


def test_text():
    rows = [
        *rows_of('scenes', 'segmentation', metric='mIoU', mae=[20.0], bootmae=[30.0]),
        *rows_of(mae=[91.0, 93.0], bootmae=[88.0, 89.0]),
    ]
    assert overview_text(rows) == (
        '               ---- digits ----  ----- scenes ----\n'
        '                           k-NN  segmentation mIoU\n'
        '                     all labels\n'
        'MAE              92.0 ± 1.4 (2)           20.0 (1)\n'
        'BootMAE          88.5 ± 0.7 (2)           30.0 (1)\n'
        'BootMAE − MAE  −3.50 ± 0.50 (2)         +10.00 (1)\n'
    )
    assert overview_text([]) == ''


def test_text_wraps_between_data_sets_only():
    text = overview_text(four_tasks(), width=80)
    blocks = text.split('\n\n')
    assert len(blocks) == 2
    assert ['digit scenes' in block for block in blocks] == [False, True]
    assert all('BootMAE − MAE' in block for block in blocks)
    assert len(overview_text(four_tasks(), width=120).split('\n\n')) == 1
    narrow = [
        *rows_of('a data set with a very long name', mae=[1.0]),
        *rows_of('scenes', 'segmentation', metric='mIoU', mae=[20.0]),
    ]
    assert overview_text(narrow) == (
        '      a data set with a very long name   ----- scenes ----\n'
        '                                   k-NN  segmentation mIoU\n'
        '                             all labels\n'
        'MAE                             1.0 (1)           20.0 (1)\n'
    )


def test_markdown():
    rows = [
        *rows_of('a|b', mae=[91.0, 93.0], bootmae=[88.0, 89.0]),
        *rows_of('scenes', 'segmentation', metric='mIoU', mae=[20.0]),
    ]
    assert overview_markdown(rows) == (
        '| Method | a\\|b<br>k-NN<br>all labels | scenes<br>segmentation mIoU |\n'
        '| --- | ---: | ---: |\n'
        '| MAE | **92.0 ± 1.4 (2)** | 20.0 (1) |\n'
        '| BootMAE | 88.5 ± 0.7 (2) | – |\n'
        '| BootMAE − MAE | −3.50 ± 0.50 (2) | – |\n'
    )
    assert overview_markdown([]) == ''


# ---- names and order


@pytest.mark.parametrize(
    ('task', 'metric', 'labels', 'names'),
    [
        ('knn', 'accuracy', 'all', ('k-NN', 'all', 'all labels')),
        ('linear', 'accuracy', '5', ('linear probe', '5 per class', '5 labels per class')),
        ('segmentation', 'mIoU', 'all', ('segmentation mIoU', '', '')),
        ('detection', 'mask AP', '20', ('detection mask AP', '20 images', '20 labeled images')),
        ('depth', 'accuracy', 'all', ('depth', 'all', 'all labels')),
        ('finetune', 'accuracy', '10 %', ('fine-tuning', '10 %', '10 %')),
        ('segmentation', 'mIoU', '1/8', ('segmentation mIoU', '1/8', '1/8')),
    ],
)
def test_names_for_readers(task, metric, labels, names):
    row = replace(ROW, task=task, metric=metric, labels=labels)
    assert (task_name(row), labels_name(row), labels_phrase(row)) == names


def test_logistic_regression_and_linear_probe_are_two_tasks():
    """Both have the task ``linear`` in stored rows; with the same labels, each has its column."""
    probe = rows_of(task='linear', protocol='linear layer trained, 90 epochs, 224 px', mae=[60.0], bootmae=[61.0])
    frozen = rows_of(task='linear', protocol='logistic regression, block 12 of 12', mae=[50.0], bootmae=[52.0])
    names = ['linear probe', 'logistic regression']
    assert [task for _, task, _ in overview(summarize(probe + frozen)).columns] == names
    assert [verdict.place for verdict in find_verdicts(summarize(probe + frozen))] == [
        f'{name}, all labels' for name in names
    ]


def test_place_of_a_verdict_has_no_labels_where_they_go_without_saying():
    found = find_verdicts(in_order(summarize(four_tasks())))
    assert [verdict.place for verdict in found] == [
        'k-NN, 20 labels per class',
        'k-NN, all labels',
        'fine-tuning, 5 labels per class',
        'segmentation mIoU',
        'detection box AP',
        'detection mask AP',
    ]
    assert found[3].sentences == (
        'BootMAE is level with MAE: +2.00 ± 1.00 points (standard error; 2 shared seeds, margin 2.83).',
        'Both are above the untrained encoder (6.0) by more than the spread: MAE 30.0, BootMAE 32.0.',
    )


def test_tables_are_in_the_same_order_with_blank_labels():
    lines = [line[:45].split('  ') for line in text_table(four_tasks()).splitlines()[2:]]
    lines = [[text.strip() for text in line if text.strip()][:3] for line in lines]
    assert [line[:2] for line in lines] == [
        ['digits', 'k-NN'],
        ['digits', 'k-NN'],
        ['digits', 'fine-tuning'],
        ['digit scenes', 'segmentation mIoU'],
        ['digit scenes', 'detection box AP'],
        ['digit scenes', 'detection mask AP'],
    ]
    assert [line[2] for line in lines[:3]] == ['20 per class', 'all', '5 per class']


def test_amounts_ascend_and_unknown_tasks_come_in_order_of_appearance():
    rows = [
        replace(ROW, data=data, task=task, labels=labels)
        for data, task, labels in (
            ('b', 'zeta', 'all'),
            ('b', 'alpha', 'few'),
            ('b', 'alpha', '5'),
            ('a', 'alpha', 'all'),
            ('a', 'alpha', '20'),
            ('a', 'alpha', '5'),
        )
    ]
    assert [(item.data, item.task, item.labels) for item in in_order(summarize(rows))] == [
        ('b', 'zeta', 'all'),
        ('b', 'alpha', 'few'),
        ('b', 'alpha', '5'),
        ('a', 'alpha', '5'),
        ('a', 'alpha', '20'),
        ('a', 'alpha', 'all'),
    ]


# ---- one pretraining, judged on several data sets


def run(data, task, **changes):
    return replace(
        ROW,
        **dict(data=data, task=task, checkpoint='a.pth', checkpoint_hash='ab', seconds=9.0, images=90, config='c.py')
        | changes,
    )


def test_a_pretraining_is_counted_once_and_names_what_judged_it():
    rows = [run('scenes', 'segmentation'), run('digits', 'knn'), run('digits', 'linear'), run('scenes', 'detection')]
    for table in (cost_table(rows), checkpoint_table(rows)):
        assert [cells[0].text for cells in table.rows] == ['digits, scenes']
        assert table.columns[0] == ('Judged on', False)


def test_rows_without_a_hash_are_one_run_only_within_a_data_set():
    rows = [
        run('digits', 'knn', checkpoint_hash=''),
        run('digits', 'linear', checkpoint_hash=''),
        run('photos', 'knn', checkpoint_hash=''),
    ]
    assert [cells[0].text for cells in cost_table(rows).rows] == ['digits', 'photos']
