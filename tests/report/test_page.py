"""The page: its content, and that it needs nothing from elsewhere."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
from page_parts import HOSTILE, check, full_page, picture, rows_of, words

from bootmae.report import Curve, build_page, published_rows, write_page
from bootmae.report.verdicts import RULE


def test_page_needs_nothing_from_elsewhere():
    page = full_page(rows_of())
    checker = check(page)
    assert 'http://' not in page
    assert 'https://' not in page
    assert all(address.startswith(('#', 'data:')) for address in checker.addresses)
    assert '@import' not in page
    assert 'url(#' in page or 'url(' not in page
    assert "default-src 'none'" in page
    assert len(checker.ids) == len(set(checker.ids))
    inside = {address[1:] for address in checker.addresses if address.startswith('#')}
    assert inside <= set(checker.ids)


def test_every_section_is_there():
    page = full_page(rows_of())
    text = words(page)
    for anchor in (
        'overview',
        'verdicts',
        'results',
        'predictions',
        'losses',
        'reconstructions',
        'cost',
        'rows',
        'provenance',
        'reading',
    ):
        assert f'<section id="{anchor}"' in page
    assert RULE in text
    assert (
        'Encoders pretrained with MAE and BootMAE, and untrained ones, judged by k-NN and linear probe on '
        'digits; 2 seeds each.'
    ) in text
    assert 'BootMAE is above MAE in all 2 comparisons.' in text
    assert 'BootMAE is above MAE: +2.00 ± 0.00 points (standard error; 2 shared seeds, margin 0.14).' in text
    assert 'The losses of the two methods are not comparable' in text
    assert 'with the mean and variance of the original patch' in text
    assert 'the visible patches are copied' in text
    assert 'Predictions never use the annotation.' in text
    assert 'both methods saw the same number of images (5,000 a run)' in text
    assert 'They do not show which method is better' in text
    for given in ('torch 2.11', 'make demo', 'A last note.', 'c0ffee', 'configs/mae.py', 'mae0' * 6):
        assert given in text


@pytest.mark.parametrize(
    ('better', 'tone', 'sentence'),
    [
        (2.0, 'good', 'BootMAE is above MAE in all 2 comparisons.'),
        (0.0, 'bad', 'BootMAE is not above MAE in any of the 2 comparisons: level in 2.'),
        (-2.0, 'bad', 'BootMAE is not above MAE in any of the 2 comparisons: below in 2.'),
    ],
)
def test_the_answer_is_prominent_either_way(better, tone, sentence):
    page = build_page('Title', rows_of(better))
    assert f'<section class="answer {tone}"' in page
    assert f'<p class="first">{sentence}</p>' in page
    assert page.index('class="answer') < page.index('<main>')


def test_bold_only_where_it_leads():
    leads = build_page('Title', rows_of(2.0))
    assert leads.count('<strong>92.1 ± 0.1 (2)</strong>') == 2
    assert leads.count('<strong>92.1</strong> <small>± 0.1 (2)</small>') == 2  # the overview
    assert leads.count('<strong>') == 4
    assert '<strong>' not in build_page('Title', rows_of(0.0))


def test_published_numbers_are_not_mixed_with_measured_ones():
    rows = rows_of()
    assert build_page('Title', [*rows, *published_rows()]) == build_page('Title', rows)


def test_a_measured_number_stands_beside_the_published_one():
    rows = [
        replace(
            row,
            data='ImageNet-1k',
            task='finetune',
            config=f'configs/pretrain/{row.method}_vitb.py',
            label='reproduced',
        )
        for row in rows_of()
        if row.task == 'knn'
    ]
    text = words(build_page('Title', rows))
    assert 'ViT-B, 800 epochs MAE 83.4 90.1 ± 0.1 (2) +6.70 ± 0.10 (2) k=20 abstract of the paper' in text
    assert 'What says “not run” was not measured here.' in text
    assert 'tools/dist_train.sh configs/cls/bootmae_vitl_finetune.py 8 --init' in text
    assert 'tools/dist_train.sh configs/cls/bootmae_vitb_finetune.py 8 --init' not in text


def test_published_numbers_are_those_of_the_data_in_the_report():
    rows = [replace(row, data='ADE20K', label='measured') for row in rows_of()]
    page = build_page('Title', rows)
    check(page)
    assert 'Not measured here.' in words(page)
    section = words(page[page.index('<section id="published">') :].partition('</section>')[0])
    assert '49.1' in section
    assert not [text for text in ('ImageNet-1k fine-tuning', '84.2', 'COCO') if text in section]
    assert not [text for text in ('#published', 'id="published"', 'not run') if text in build_page('T', rows_of())]


def test_an_unfinished_suite_says_so_on_top():
    cells = [
        ('pretrain/mae-0', 'done', ''),
        ('knn/mae-0', 'failed', 'exit code 1, see log.txt'),
        ('linear/mae-0', 'waiting', ''),
        ('finetune/mae-0', 'waiting', ''),
    ]
    page = build_page('Title', rows_of(), cells=cells)
    check(page)
    text = words(page)
    assert 'Not finished: 1 of 4 cells are done; 1 failed, 2 waiting.' in text
    assert 'failed knn/mae-0 : exit code 1, see log.txt' in text
    assert 'Waiting: linear/mae-0, finetune/mae-0.' in text
    assert page.index('class="progress"') < page.index('class="answer')
    assert 'class="progress"' not in build_page('Title', rows_of(), cells=cells[:1])


SIX = ('untrained', 'mae', 'bootmae', 'supervised', 'mae (1600 epochs)', 'mine')


def six_methods():
    better = {'supervised': 4.0, 'mae (1600 epochs)': 1.0, 'mine': -7.0}
    rows = rows_of()
    return rows + [
        replace(row, method=method, value=row.value + gain, checkpoint_hash=method)
        for row in rows
        if row.method == 'bootmae'
        for method, gain in better.items()
    ]


def test_six_methods():
    page = build_page('Title', six_methods())
    check(page)
    table = re.search(r'<table class="overview many">.*?</table>', page, re.S)[0]
    lines = [words(line).strip() for line in table.split('</tr>')][2:-1]
    assert [re.split(r' [▲▼=\d]', line)[0] for line in lines] == [
        'Untrained',
        'MAE',
        'BootMAE',
        'Supervised',
        'MAE (1600 epochs)',
        'mine',
        'BootMAE − MAE',
        'Supervised − MAE',
        'MAE (1600 epochs) − MAE',
        'mine − MAE',
    ]
    assert lines[7] == 'Supervised − MAE' + ' ▲ above: +6.00 ± 0.00 (2)' * 2
    dots = re.findall(r'background: var\(--(\w+)\)', table)
    assert dots == ['untrained', 'mae', 'bootmae', 'other1', 'other2', 'other3']
    text = words(page)
    assert (
        'Others against MAE: Supervised above, +6.00 ± 0.00 (2); MAE (1600 epochs) above, +3.00 ± 0.00 (2); '
        'mine below, −5.00 ± 0.00 (2).'
    ) in text
    assert 'Against the untrained' not in text  # all are above it, which one sentence says
    worse = [replace(row, value=row.value - 60) if row.method == 'mine' else row for row in six_methods()]
    assert (
        'Against the untrained encoder (60.1): above MAE 90.1, BootMAE 92.1, Supervised 96.1, MAE (1600 epochs) '
        '93.1; below mine 25.1.'
    ) in words(build_page('Title', worse))


def test_curves_and_classes_have_their_places():
    curves = [
        Curve(f'digits/{method}/0', np.arange(3), {'probe/knn': np.array([1.0, 2.0, 3.0])}, 'epoch')
        for method in ('mae', 'bootmae')
    ]
    classes = [
        ('scenes', 'segmentation', method, 0, 'IoU', {'sky': 50.0 + gain, 'sea': 20.0 - gain})
        for method, gain in (('mae', 0), ('bootmae', 5))
    ]
    page = build_page('Title', rows_of(), metrics=curves, classes=classes)
    check(page)
    assert '<h3>digits, online k-NN</h3>' in page
    section = page[page.index('<section id="classes">') : page.index('<section id="curves">')]
    assert '<details class="classes"><summary>scenes, segmentation IoU: 2 classes</summary>' in section
    assert 'Class MAE BootMAE BootMAE − MAE sky 50.0 55.0 +5.00 (1) sea 20.0 15.0 −5.00 (1)' in words(section)
    assert 'id="classes"' not in build_page('Title', rows_of())
    assert 'id="curves"' not in build_page('Title', rows_of())


def test_cost_and_provenance_tell_what_the_rows_know():
    rows = [
        replace(row, memory=12.5, gpu_hours=3.0 if row.task == 'knn' else 40.0, data_hash='da7a', config_hash='c0f1')
        for row in rows_of()
        if row.method != 'untrained'
    ]
    text = words(build_page('Title', rows))
    assert 'Memory, GiB GPU-hours Precision' in text
    assert '12.5 3.0 to 40.0 float32' in text
    assert 'fingerprints of the judged data digits: da7a' in text
    assert 'hashes of the evaluation settings digits, k-NN: c0f1 digits, linear probe: c0f1' in text
    assert 'Memory, GiB' not in words(build_page('Title', rows_of()))


def test_columns_that_never_change_are_said_once():
    text = words(build_page('Title', rows_of()))
    assert '12 rows.' in text
    assert 'protocol k=20 , commit c0ffee , device 2 cores , precision float32 , date 2026-01-02 , label demo .' in text
    table = build_page('Title', rows_of())
    table = table[table.index('aria-label="Table: all rows"') : table.index('<section id="provenance">')]
    assert words(table).split('data method task')[1].startswith(' metric value seed config checkpoint')
    assert '2 cores' not in table


def test_names_are_escaped_everywhere():
    rows = [
        replace(row, data=HOSTILE, protocol=HOSTILE, config=HOSTILE, checkpoint=HOSTILE, device=HOSTILE)
        for row in rows_of()
    ]
    page = build_page(
        HOSTILE,
        rows,
        [Curve(f'{HOSTILE}/mae/0', np.arange(4), {'loss': np.ones(4)})],
        {HOSTILE: picture()},
        {HOSTILE: {HOSTILE: HOSTILE}},
        {HOSTILE: HOSTILE},
        [HOSTILE],
        {HOSTILE: picture()},
    )
    assert '<img src=x' not in page
    assert 'onerror="' not in page
    assert words(page).count('<img src=x onerror="alert(1)">') > 20
    check(page)


def test_numbers_sort_by_value_and_labels_with_all_last():
    rows = [replace(row, labels=labels) for row in rows_of() for labels in ('all', '100', '5')]
    page = build_page('Title', rows)
    assert 'data-sort="1000000000000.0">all</td>' in page
    assert 'data-sort="5.0">5 per class</td>' in page
    assert 'data-sort="100.0">100 per class</td>' in page
    assert 'data-sort="90.1">90.1 ± 0.1 (2)</td>' in page


def dense_rows():
    """Segmentation and detection, first in the file, by the encoders of the other rows."""
    metrics = {'segmentation': ['mIoU'], 'detection': ['box AP', 'mask AP']}
    return [
        replace(row, data='digit scenes', task=task, metric=metric, protocol='')
        for row in rows_of()
        if row.task == 'knn'
        for task in metrics
        for metric in metrics[task]
    ]


def test_four_tasks_stand_side_by_side():
    page = build_page('Title', [*dense_rows(), *rows_of()])
    check(page)
    table = re.search(r'<table class="overview">.*?</table>', page, re.S)[0]
    lines = [words(line).strip() for line in table.split('</tr>')]
    assert lines[0] == 'digits digit scenes'
    assert re.findall(r'colspan="(\d)"', table) == ['2', '3']
    assert lines[1] == ('k-NN all labels linear probe all labels segmentation mIoU detection box AP detection mask AP')
    assert lines[2] == 'Untrained' + ' 60.1 ± 0.1 (2)' * 5
    assert lines[5] == 'BootMAE − MAE' + ' ▲ above: +2.00 ± 0.00 (2)' * 5
    assert page.index('id="overview"') < page.index('id="verdicts"')


def test_segmentation_and_detection_read_well():
    text = words(build_page('Title', [*dense_rows(), *rows_of()]))
    assert (
        'judged by k-NN and linear probe on digits, and by segmentation and detection on digit scenes; 2 seeds each.'
    ) in text
    assert 'none is an accuracy' in text
    assert 'segmentation mIoU ▲ above MAE' in text
    assert 'all labels' not in text[text.index('segmentation mIoU ▲') : text.index('Rule.')]
    assert 'none is an accuracy' not in words(build_page('Title', rows_of()))
    assert 'digits: both methods saw the same number of images (5,000 a run)' in text
    assert 'digit scenes: both' not in text  # the same pretrainings
    assert words(build_page('Title', dense_rows())).count('digit scenes: both methods saw the same number') == 1


def test_predictions_have_a_section_of_their_own():
    page = build_page('Title', rows_of(), pictures={'P': picture()}, predictions={'Q': picture(17)})
    section = page[page.index('<section id="predictions">') : page.index('<section id="reconstructions">')]
    assert 'alt="Q"' in section
    assert 'Open larger: Q' in section
    assert 'normalized patches' not in section
    assert 'alt="P"' in page[page.index('<section id="reconstructions">') :]
    assert 'id="predictions"' not in build_page('Title', rows_of(), pictures={'P': picture()})
    with pytest.raises(ValueError, match="picture 'x' cannot be read"):
        build_page('Title', rows_of(), predictions={'x': b'no picture'})


NOT_RUN = replace(rows_of()[0], value=float('nan'), label='not run')


@pytest.mark.parametrize('rows', [[], [NOT_RUN], rows_of()[:1]])
def test_little_to_show_is_still_a_page(rows):
    page = build_page('Title', rows)
    check(page)
    assert 'BootMAE and MAE were not both measured, so this page does not compare them.' in words(page)


def test_demo_is_named_and_full_runs_are_not_called_demo():
    assert 'What a demo can and cannot show' in build_page('Title', rows_of(label='demo'))
    assert 'What a demo can and cannot show' not in build_page('Title', rows_of(label='reproduced'))


def test_page_is_the_same_every_time():
    assert full_page(rows_of()) == full_page(rows_of())


def test_large_pictures_are_made_smaller_and_small_ones_kept():
    small, large = picture(), picture(256)
    assert len(large) > 400_000
    page = build_page('Title', rows_of(), pictures={'small': small, 'large': large})
    assert len(page) < 1_000_000
    uris = re.findall(r'<img src="data:(image/\w+);base64,', page)
    assert uris == ['image/png', 'image/webp']
    with pytest.raises(ValueError, match=r"picture 'x' cannot be read .* give a PNG, JPEG or WebP file"):
        build_page('Title', rows_of(), pictures={'x': b'no picture'})


def test_crash_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / 'report.html'
    write_page(path, 'Old', rows_of())
    before = path.read_text()

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_page(path, 'New', rows_of())
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
