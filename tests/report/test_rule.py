"""What the rule of the verdicts says about itself, and which seeds, blocks and rows a verdict counts."""

import re
from dataclasses import replace

import numpy as np
import pytest

from bootmae.report import ResultRow, build_page, find_verdicts, read_rows, summarize, text_table, write_rows
from bootmae.report.figures import OTHER_COLORS
from bootmae.report.summary import spread_of
from bootmae.report.verdicts import RULE, judge

ROW = ResultRow('digits', 'mae', 'knn', 'all', 'accuracy', 50.0, 0, 'k=20, block 4 of 4')


def rows_of(protocol=ROW.protocol, **values: dict[int, float]) -> list[ResultRow]:
    """Rows of each method by seed."""
    return [
        replace(ROW, method=method, protocol=protocol, seed=seed, value=value)
        for method, by_seed in values.items()
        for seed, value in by_seed.items()
    ]


@pytest.mark.parametrize('seeds', [2, 3, 5])
def test_the_rule_states_how_often_it_is_wrong(seeds):
    """Two equally good methods, 4,000 times: the stated percentage reads “above” or “below”."""
    stated = dict(zip((2, 3, 5), map(int, re.findall(r'(\d+) %', RULE)), strict=True))
    draws = np.random.default_rng(0).normal(60.0, 1.0, (4000, 2, seeds))
    outcomes = [judge(*(spread_of(dict(enumerate(map(float, values)))) for values in pair)).outcome for pair in draws]
    wrong = 100 * (outcomes.count('above') + outcomes.count('below')) / len(outcomes)
    assert wrong == pytest.approx(stated[seeds], abs=1.5)  # standard error: 0.7 at most


def test_a_difference_says_over_how_many_seeds_it_is():
    """Else 60.0 (3) and 62.0 (2) with the difference +2.00 ± 0.00 would look like a mean over three seeds."""
    rows = rows_of(mae={0: 50.0, 1: 70.0, 2: 60.0}, bootmae={0: 52.0, 1: 72.0})
    assert text_table(rows).splitlines()[-1].split('  ')[-3:] == [
        '60.0 ± 10.0 (3)',
        '62.0 ± 14.1 (2)',
        '+2.00 ± 0.00 (2)',
    ]
    assert '2 shared seeds, margin 14.14' in find_verdicts(summarize(rows))[0].sentences[0]


def test_the_margin_has_the_deviation_over_all_seeds_of_a_method():
    """Over the shared seeds 0 and 1 it would be 0.14; seed 2 makes it 5.8."""
    mae, bootmae = spread_of({0: 50.0, 1: 50.2, 2: 60.1}), spread_of({0: 52.0, 1: 52.2})
    assert judge(bootmae, mae).margin == pytest.approx(np.std([50.0, 50.2, 60.1], ddof=1))
    assert 'of each of the two methods over all of its seeds' in RULE


def test_inner_blocks_have_no_verdict():
    """The terminal and the page count the same comparisons."""
    last = rows_of(mae={0: 50.0, 1: 50.2}, bootmae={0: 40.0, 1: 40.2})
    inner = rows_of('k=20, block 2 of 4', mae={0: 30.0, 1: 30.2}, bootmae={0: 40.0, 1: 40.2})
    (found,) = find_verdicts(summarize(inner + last))
    assert (found.place, found.outcome) == ('k-NN, all labels', 'below')


def test_a_measurement_that_occurs_twice_is_an_error(tmp_path):
    """A table would show the last one as if there were no other."""
    path = tmp_path / 'r.csv'
    write_rows(path, [ROW, replace(ROW, seed=1)])
    text = path.read_text()
    path.write_text(text + text.splitlines()[1].replace(',50.0,', ',10.0,') + '\n')
    message = (
        'line 4: data, method, task, labels, metric, seed, protocol are those of line 2; delete one of the two lines'
    )
    with pytest.raises(ValueError, match=re.escape(f'{path}, {message}')):
        read_rows(path)


def test_the_page_explains_only_what_it_shows():
    alone = build_page('Title', rows_of(mae={0: 50.0}))
    both = build_page('Title', rows_of(mae={0: 50.0}, bootmae={0: 51.0}))
    assert ['Last row: mean paired difference' in page for page in (alone, both)] == [False, True]
    many = [f'method-{number}' for number in range(len(OTHER_COLORS) + 1)]
    pages = [build_page('Title', rows_of(**{name: {0: 50.0} for name in names})) for names in (many, many[1:])]
    assert ['several share one' in page for page in pages] == [True, False]
