"""Tables of docs/evidence.md: rows that must come out as written."""

from dataclasses import replace

import pytest

from bootmae.results.rows import ResultRow, write_rows
from pages.curves import IMAGE, description, draw, figure_behind, lines_of, title
from pages.evidence import FOLDER, MISSING, comparison_table, cost_table, curve_files, makers, methods_table


def row(method: str, value: float, seed: int, task: str = 'knn', **values) -> ResultRow:
    known = dict(
        data='CIFAR-10',
        labels='all',
        metric='accuracy',
        protocol='k=20, block 4 of 4',
        commit='abc',
        device='CPU, 2 cores',
        precision='float32',
        date='2026-11-24',
        label='demo',
    )
    if method != 'untrained':
        known |= dict(seconds=60.0 * (1 + seed), images=6000, memory=0.5 + seed)
    return ResultRow(method=method, value=value, seed=seed, task=task, **known | values)


ROWS = [
    row('untrained', 20.0, 0),
    row('untrained', 22.0, 1),
    row('mae', 30.0, 0),
    row('mae', 32.0, 1),
    row('bootmae', 35.0, 0),
    row('bootmae', 38.0, 1),
    row('bootmae', 50.0, 0, 'finetune', labels='5', protocol='10 epochs'),
]


def lines(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]


def test_comparison():
    heads, _, *body = lines(comparison_table(ROWS))
    assert heads == ['task', 'labels', 'protocol', 'Untrained', 'MAE', 'BootMAE', 'BootMAE − MAE']
    assert body == [
        [
            'k-NN',
            'all',
            'k=20, block 4 of 4',
            '21.0 ± 1.4 (2)',
            '31.0 ± 1.4 (2)',
            '**36.5 ± 2.1 (2)**',
            '+5.50 ± 0.50 (2), above',
        ],
        ['fine-tuning', '5 per class', '10 epochs', '–', '–', '50.0 (1)', '–'],
    ]


def test_methods_as_lines():
    heads, _, *body = lines(methods_table(ROWS))
    assert heads == ['method', 'k-NN, k=20, block 4 of 4', 'fine-tuning, 10 epochs']
    assert body[1:] == [['MAE', '31.0 ± 1.4 (2)', '–'], ['BootMAE', '36.5 ± 2.1 (2)', '50.0 (1)']]
    few = [replace(row, labels='5') for row in ROWS if row.task == 'knn']
    heads = lines(methods_table([*ROWS, *few]))[0]
    assert heads[1:3] == ['k-NN, k=20, block 4 of 4, 5 per class', 'k-NN, k=20, block 4 of 4, all']
    assert heads[3] == 'fine-tuning, 10 epochs'


def test_cost():
    """A run counts once, however many numbers were judged from it."""
    _, _, *body = lines(cost_table(ROWS))
    assert body[0] == ['Untrained', '0, 1', *'––––', 'abc', 'CPU, 2 cores', 'float32', '2026-11-24']
    assert body[2] == ['BootMAE', '0, 1', '6,000', '1.5', '67', '1.5', 'abc', 'CPU, 2 cores', 'float32', '2026-11-24']


def test_suites_that_were_not_run_say_so(tmp_path):
    (tmp_path / FOLDER).mkdir(parents=True)
    write_rows(tmp_path / FOLDER / 'ablations_cpu.csv', ROWS)
    found = {name: make() for name, make in makers(tmp_path).items()}
    assert found.pop('evidence/ablations_cpu') == comparison_table(ROWS)
    assert found.pop('result/ablations_cpu') == comparison_table(ROWS)
    assert found.pop('trials/ablations_cpu') == methods_table(ROWS)
    assert found.pop('methods/ablations_cpu') == methods_table(ROWS)
    assert found.pop('cost/ablations_cpu') == cost_table(ROWS)
    assert set(found.values()) == {MISSING}
    (tmp_path / FOLDER / 'camvid.csv').write_text('a,b\n')
    with pytest.raises(ValueError, match='camvid.csv, line 1'):
        makers(tmp_path)['cost/camvid']()


# ---- the figure

LAST, INNER = 'k=20, block 12 of 12', 'k=20, block 2 of 12'
END = [
    row('untrained', 20.0, 0, protocol=LAST),
    row('mae', 30.0, 0, protocol=LAST, images=2000),
    row('mae', 32.0, 1, protocol=LAST, images=2000),
    row('mae', 99.0, 0, protocol=INNER, images=2000),
    row('bootmae', 35.0, 0, protocol=LAST, images=2000),
    row('mae-equal-time', 33.0, 0, protocol=LAST, images=2600),
    row('bootmae', 60.0, 0, 'finetune', labels='50', protocol='100 epochs', images=2000),
]
ON_THE_WAY = [
    row('mae-epoch-5', 25.0, 0, protocol=LAST, images=250),
    row('bootmae-epoch-5', 21.0, 0, protocol=LAST, images=250),
]


@pytest.fixture
def evidence(tmp_path):
    """A folder with the rows of the figure."""
    for name, rows in (('evidence', END), ('evidence_epochs', ON_THE_WAY)):
        write_rows(tmp_path / FOLDER / f'{name}.csv', rows)
    return tmp_path


def test_curves_join_the_rows_of_both_suites():
    (knn, lines), (tuned, others) = lines_of(END + ON_THE_WAY)
    assert {m: {n: s.mean for n, s in points.items()} for m, points in lines.items()} == {
        'untrained': {0: 20.0},
        'mae': {250: 25.0, 2000: 31.0},
        'bootmae': {250: 21.0, 2000: 35.0},
        'mae-equal-time': {2600: 33.0},
    }
    assert (title(knn), title(tuned)) == ('k-NN, all labels', 'fine-tuning, 50 labels per class')
    assert list(others) == ['bootmae']
    assert 'k-NN, all labels, MAE: 25.0 (1) at 250, 31.0 ± 1.4 (2) at 2,000.' in description(lines_of(END + ON_THE_WAY))


def test_a_figure_that_is_out_of_date_is_seen(evidence):
    files, path = curve_files(evidence), evidence / IMAGE
    (text,) = figure_behind(evidence, files).values()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert figure_behind(evidence, files) == {}
    assert makers(evidence)['curves/evidence']().startswith('![Accuracy in percent')
    write_rows(files[1], [replace(ON_THE_WAY[0], value=26.0)])
    assert list(figure_behind(evidence, files)) == [path]
    path.unlink()
    for file in files:
        file.unlink()
    assert figure_behind(evidence, files) == {}
    assert makers(evidence)['curves/evidence']() == MISSING


def test_the_key_has_the_methods_of_all_panels():
    """Fine-tuning of a method whose k-NN is missing has its name, too."""
    rows = [row('mae', 30.0, 0, protocol=LAST, images=10), row('simmim', 60.0, 0, 'finetune', images=10)]
    text = draw(lines_of(rows))
    assert ['>MAE<' in text, '>SimMIM<' in text] == [True, True]


def test_rows_of_different_test_images_make_no_table():
    """The difference of two methods on two test sets says nothing."""
    other = [replace(item, data_hash='bb' if item.method == 'mae' else 'aa') for item in ROWS]
    for table in (comparison_table, methods_table, lines_of):
        with pytest.raises(ValueError, match=r'rows of different test data \(data_hash aa, bb\) in one comparison'):
            table(other)
