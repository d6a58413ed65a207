"""Tables of classes by hand, the suite's progress in words, and the size of screenshots."""

import io

import numpy as np
import pytest
from PIL import Image

from bootmae.report.classes import class_results, class_tables
from bootmae.report.progress import progress_of
from bootmae.report.screenshots import small_png, take_screenshots
from bootmae.suite.job_state import DONE, ELSEWHERE, FAILED, KILLED, STOPPED, WAITING


def results():
    numbers = {
        'mae': [{'sky': 50, 'sea': 20}, {'sky': 52, 'sea': 20, 'fog': 7}],
        'bootmae': [{'sky': 53, 'sea': 19}, {'sky': 57, 'sea': 19}],
    }
    return [
        ('ADE20K', 'segmentation', method, seed, 'IoU', values)
        for method, seeds in numbers.items()
        for seed, values in enumerate(seeds)
    ]


def test_means_and_paired_differences_by_hand():
    (found,) = class_tables(results())
    assert found.title == 'ADE20K, segmentation IoU'
    assert [name for name, _ in found.table.columns] == ['Class', 'MAE', 'BootMAE', 'BootMAE − MAE']
    assert [[cell.text for cell in line] for line in found.table.rows] == [
        ['sky', '51.0', '55.0', '+4.00 ± 1.00 (2)'],
        ['sea', '20.0', '19.0', '−1.00 ± 0.00 (2)'],
        ['fog', '7.0', '–', '–'],
    ]
    assert [line[3].sort for line in found.table.rows] == [4.0, -1.0, None]
    assert found.summary == (
        'The mean of BootMAE is higher than that of MAE in 1 of 2 classes and lower in 1; it '
        'gains most in sky (+4.0); loses most in sea (−1.0).'
    )


def test_a_table_for_each_metric_and_one_method_alone():
    found = class_tables([*results()[:1], ('ADE20K', 'segmentation', 'mae', 0, 'Acc', {'sky': 1.0})])
    assert [(item.title, item.summary) for item in found] == [
        ('ADE20K, segmentation IoU', ''),
        ('ADE20K, segmentation Acc', ''),
    ]
    assert [name for name, _ in found[0].table.columns] == ['Class', 'MAE']


def test_results_of_a_training(tmp_path):
    (tmp_path / 'classes.json').write_text('{"box AP": {"cat": 1}, "mask AP": {"cat": 2}, "Acc": {"cat": 3}}')
    assert class_results('COCO/mae/2', tmp_path) == [
        ('COCO', 'detection', 'mae', 2, 'box AP', {'cat': 1.0}),
        ('COCO', 'detection', 'mae', 2, 'mask AP', {'cat': 2.0}),
    ]
    with pytest.raises(ValueError, match="'COCO/mae' is not data/method/seed"):
        class_results('COCO/mae', tmp_path)
    assert class_results('COCO/mae', tmp_path / 'none') == []


def test_progress():
    cells = [('a', DONE, ''), ('b', ELSEWHERE, ''), ('c', FAILED, 'why'), ('d', KILLED, ''), ('e', STOPPED, 'saved')]
    found = progress_of(cells + [(f'n{i}', WAITING, '') for i in range(14)])
    assert found.sentence == (
        'Not finished: 1 of 19 cells are done; 1 failed, 1 killed, 1 stopped, 1 running elsewhere, 14 waiting.'
    )
    assert found.lines == (
        ('failed', 'c', 'why'),
        ('killed', 'd', ''),
        ('stopped', 'e', 'saved'),
        ('running elsewhere', 'b', ''),
    )
    assert found.waiting == ', '.join(f'n{i}' for i in range(12)) + ' and 2 more'
    many = progress_of([(f'n{i}', 'failed', 'x') for i in range(30)]).lines
    assert (len(many), many[-2:]) == (13, (('failed', 'n11', 'x'), ('failed', '18 more', '')))
    assert progress_of(cells[:1]) is None
    assert progress_of([]) is None


def test_screenshots_are_small_or_refused(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = small_png(noise, 4000)
    assert len(data) <= 4000 < len(small_png(noise))
    assert Image.open(io.BytesIO(data)).size == (64, 64)
    with pytest.raises(ValueError, match='64 x 64 pixels does not fit 100 bytes'):
        small_png(noise, 100)
    with pytest.raises(FileNotFoundError, match='none.html: no such report'):
        take_screenshots(tmp_path / 'none.html', tmp_path)
