"""Scans of whole data sets of mmpretrain, mmseg and mmdet, tiny and in files, with faults put in."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from bootmae.commands import verify_data
from bootmae.commands.verify_data import duplicates, scan, write_list
from bootmae.commands.verify_sources import sources_of_config, sources_of_path
from bootmae.config import checks as guards
from bootmae.data.annotated import allowed_labels
from bootmae.data.findings import CLASS_ABSENT
from bootmae.data.images import ImageFiles

CLASSES = ('sky', 'road', 'tree')
SEGMENTOR = SimpleNamespace(named_modules=lambda: [('decode_head', SimpleNamespace(num_classes=3))])


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


def kinds(report: verify_data.Report) -> list[tuple[str, str, str]]:
    """(split, kind, file name) of all findings."""
    return [(finding.split, finding.kind, Path(finding.path).name) for finding in report.findings]


# --- folders and lists ---


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images in two classes, one of them broken, one empty, one a copy."""
    root = tmp_path / 'images'
    for index in range(5):
        draw(root / 'ab'[index % 2] / f'{index}.jpg', index)
    (root / 'a/2.jpg').write_bytes((root / 'a/2.jpg').read_bytes()[:300])
    (root / 'b/3.jpg').write_bytes(b'')
    shutil.copy(root / 'a/0.jpg', root / 'b/copy.jpg')
    return root


@pytest.mark.parametrize('workers', [0, 2])
def test_a_folder(folder, workers):
    report = verify_data.verify(sources_of_path(str(folder)), workers)
    assert kinds(report) == [
        ('images', 'truncated', '2.jpg'),
        ('images', 'empty file', '3.jpg'),
        ('images', 'duplicate within a split', 'copy.jpg'),
    ]
    assert report.findings[2].detail == f'same bytes as {folder / "a/0.jpg"}'
    assert (report.images, report.masks, len(report.faults)) == (6, 0, 2)


def test_the_list_of_good_images_is_one_for_image_files(folder, tmp_path):
    draw(folder / 'a' / ' blank at the start.jpg', 9)
    draw(folder / 'blank at the end of the folder ' / 'x.jpg', 10)
    sources = sources_of_path(str(folder))
    report = verify_data.verify(sources)
    file = tmp_path / 'good.txt'
    assert write_list(file, str(folder), sources, report) == 6
    dataset = ImageFiles(roots=str(folder), list_file=str(file), pipeline=[], check_files='all')
    names = [os.path.relpath(dataset.get_data_info(index)['img_path'], folder) for index in range(len(dataset))]
    assert sorted(names) == sorted(
        [
            'a/0.jpg',
            'a/4.jpg',
            'b/1.jpg',
            'b/copy.jpg',
            'a/ blank at the start.jpg',
            'blank at the end of the folder /x.jpg',
        ]
    )


def test_splits_of_a_folder(tmp_path):
    for split, seed in (('train', 0), ('train', 1), ('val', 2)):
        draw(tmp_path / split / f'{seed}.png', seed)
    shutil.copy(tmp_path / 'train/1.png', tmp_path / 'val/leaked.png')
    report = verify_data.verify(sources_of_path(str(tmp_path)))
    assert kinds(report) == [('train, val', 'in train and val', 'leaked.png')]
    assert report.findings[0].detail == f'same bytes as {tmp_path / "train/1.png"}'
    assert report.findings[0].fault
    sources = sources_of_path(str(tmp_path))
    assert write_list(tmp_path / 'good.txt', str(tmp_path), sources, report) == 4, 'the file itself is good'


@pytest.mark.parametrize('lines', ['0.jpg\nb/1.jpg\nmissing.jpg\n', '0.jpg 4\nb/1.jpg 0\nmissing.jpg 1\n'])
def test_lists(tmp_path, lines):
    draw(tmp_path / '0.jpg', 0)
    draw(tmp_path / 'b/1.jpg', 1)
    (tmp_path / 'list.txt').write_text(lines)
    assert kinds(verify_data.verify(sources_of_path(str(tmp_path / 'list.txt')))) == [
        ('list', 'missing image', 'missing.jpg')
    ]


def test_what_is_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing does not exist: give a config, a folder'):
        sources_of_path(str(tmp_path / 'nothing'))
    with pytest.raises(FileNotFoundError, match='no images in'):
        sources_of_path(str(tmp_path))
    with pytest.raises(ValueError, match='has no data set in train_dataloader, val_dataloader'):
        sources_of_config(Config(dict(model={})), ['train', 'val'])


def test_duplicates_by_hash():
    splits = [
        ('train', [('a', b'1'), ('b', b'2'), ('c', None), ('d', b'1')]),
        ('val', [('e', b'2'), ('a', b'1')]),
        ('test', [('e', b'2'), ('f', b'3'), ('g', None)]),
    ]
    found = {(f.kind, f.path, f.detail) for f in duplicates(splits)}
    assert found == {
        ('duplicate within a split', 'd', 'same bytes as a'),
        ('in train and val', 'e', 'same bytes as b'),
        ('in train and val', 'a', 'the same file'),
        ('in train and test', 'e', 'same bytes as b'),
    }


# --- processes ---


@pytest.mark.parametrize('chunk', [16, 1])
def test_a_crashing_decoder_is_named_and_the_scan_goes_on(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(verify_data, 'CHUNK', chunk)
    jobs = [verify_data.Job(str(draw(tmp_path / f'{index}.png', index, (20, 20)))) for index in range(40)]
    inspect_files = verify_data.inspect_files

    def crash(job):
        if job.image.endswith('/17.png'):
            os.kill(os.getpid(), 9)
        if int(Path(job.image).stem) > 17:
            time.sleep(0.02)  # so that the crash is noticed while there are jobs to hand out
        return inspect_files(job)

    monkeypatch.setattr(verify_data, 'inspect_files', crash)
    outcomes = {outcome.job: outcome for outcome in scan(jobs, 2)}
    assert set(outcomes) == set(jobs)
    assert [(f.kind, f.path) for job in jobs for f in outcomes[job].findings] == [
        ('crashes the decoder', jobs[17].image)
    ]
    assert sum(outcome.digest is not None for outcome in outcomes.values()) == 39


# --- mmseg ---


@pytest.fixture
def make_seg(tmp_path):
    """``make_seg(values, ...)``: a config whose training set has one mask of each list of values."""

    def make(*values, zero: bool = False, **changes) -> Config:
        for index, row in enumerate(values):
            draw(tmp_path / f'images/{index}.jpg', index, (16, 16))
            mask = np.resize(np.array(row, np.uint8), (16, 16))
            (tmp_path / 'masks').mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / f'masks/{index}.png')
        dataset = dict(
            type='mmseg.BaseSegDataset',
            data_root=str(tmp_path),
            reduce_zero_label=zero,
            pipeline=[],
            data_prefix=dict(img_path='images', seg_map_path='masks'),
            metainfo=dict(classes=CLASSES),
        )
        return Config(
            dict(
                train_dataloader=dict(dataset=dataset | changes),
                val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[dataset | changes])),
                test_dataloader=dict(dataset=dataset | changes),
            )
        )

    return make


def scanned(cfg: Config, *splits: str) -> verify_data.Report:
    import mmdet.datasets  # noqa: F401
    import mmseg.datasets  # noqa: F401

    return verify_data.verify(sources_of_config(cfg, splits or ['train']))


def test_sound_masks(make_seg):
    report = scanned(make_seg([0, 1, 2], [1, 255]))
    assert report.findings == []
    assert (report.images, report.masks) == (2, 2)
    assert scanned(make_seg([0, 1, 2, 3], [1, 255], zero=True)).findings == []


def test_faults_of_masks_are_found_in_all_of_them(make_seg, tmp_path, monkeypatch):
    cfg = make_seg([0, 1], [1, 7], [1, 255], [0, 9])
    monkeypatch.setattr(guards, 'NUM_MASKS', 1)
    (tmp_path / 'masks/2.png').unlink()
    Image.new('L', (16, 16)).save(tmp_path / 'masks/extra.png')
    assert kinds(scanned(cfg)) == [
        ('train', 'missing mask', '2.png'),
        ('train', 'mask without image', 'extra.png'),
        ('train', 'label outside the classes', '1.png'),
        ('train', 'label outside the classes', '3.png'),
        ('train', 'class absent', 'masks'),
    ]


def test_masks_of_a_part_of_the_images_are_not_missed(make_seg, tmp_path):
    cfg = make_seg([0, 1, 2], [1, 2], indices=1)
    assert scanned(cfg).findings == []
    (tmp_path / 'names.txt').write_text('0\n')
    assert scanned(make_seg([0, 1, 2], [1, 2], ann_file=str(tmp_path / 'names.txt'))).findings == []


@pytest.mark.parametrize('zero, values', [(False, [0, 1, 2, 3]), (True, [0, 1, 2])])
def test_reduce_zero_label_that_does_not_fit(make_seg, zero, values):
    cfg = make_seg(values, zero=zero)
    faults = {kind for _, kind, _ in kinds(scanned(cfg)) if kind != CLASS_ABSENT}
    assert 'reduce_zero_label does not fit' in faults
    cfg.train_dataloader.dataset.metainfo['unlabeled'] = 0
    assert zero == (not scanned(cfg).faults), 'if 0 does mean unlabeled, the last class just never occurs'


@pytest.mark.parametrize('zero', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 1, 1: 255, 2: 0, 3: 255}])
def test_allowed_labels_are_those_of_the_guards(make_seg, zero, label_map):
    import mmseg.datasets  # noqa: F401

    accepted = set()
    for value in range(8):
        dataset = DATASETS.build(make_seg([0 + zero, 2 + zero, value], zero=zero).train_dataloader.dataset)
        dataset.label_map, dataset._metainfo['unlabeled'] = label_map, 0
        with contextlib.suppress(ValueError):
            guards.check_dataset(dataset, SEGMENTOR)
            accepted.add(value)
    assert allowed_labels(dataset) == accepted | {255}
    assert max(accepted) == 2 + zero + bool(label_map)


def test_a_data_set_in_two_splits(make_seg):
    """The same files through another wrapper are a leak; the same config is scanned once."""
    cfg = make_seg([0, 1, 2], [1, 2])
    report = scanned(cfg, 'train', 'val', 'test')
    assert kinds(report) == [('train, val', 'in train and val', '0.jpg'), ('train, val', 'in train and val', '1.jpg')]
    assert report.images == 2, 'each file is read once'
    assert len(report.titles) == 2


# --- mmdet, and data sets without files ---


def test_coco(tmp_path):
    images = [dict(id=index, file_name=f'{index}.jpg', height=32, width=40) for index in range(3)]
    for image in images[:2]:
        draw(tmp_path / 'train' / image['file_name'], image['id'])
    draw(tmp_path / 'train/unused.jpg', 9)
    images[1]['width'] = 41
    polygon = [[2, 3, 12, 3, 12, 11]]
    annotations = [
        dict(id=index, image_id=0, category_id=1, bbox=box, area=80, iscrowd=0, segmentation=polygon)
        for index, box in enumerate(([2, 3, 10, 8], [2, 3, 0, 8]))
    ]
    (tmp_path / 'a.json').write_text(
        json.dumps(
            dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])
        )
    )
    dataset = dict(
        type='mmdet.CocoDataset',
        data_root=str(tmp_path),
        ann_file='a.json',
        pipeline=[],
        data_prefix=dict(img='train'),
        metainfo=dict(classes=('cat', 'dog')),
        filter_cfg=dict(filter_empty_gt=True, min_size=8),
    )
    expected = [
        ('train', 'box empty', 'a.json'),
        ('train', 'size differs from the annotation', '1.jpg'),
        ('train', 'missing image', '2.jpg'),
        ('train', 'class absent', 'a.json'),
        ('train', 'left out by the loader', 'a.json'),
        ('train', 'image not in the annotation file', 'unused.jpg'),
    ]
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset))))
    assert kinds(scanned(cfg)) == expected, 'also of images that mmdet leaves out, since they have no instance'
    cfg.train_dataloader.dataset.dataset.indices = 1
    assert kinds(scanned(cfg)) == [expected[0], *expected[3:]]
    del annotations[0]['segmentation']
    (tmp_path / 'a.json').write_text(
        json.dumps(
            dict(
                images=images, annotations=annotations[:1], categories=[dict(id=1, name='cat'), dict(id=2, name='dog')]
            )
        )
    )
    cfg.train_dataloader.dataset.dataset.pipeline = [dict(type='mmdet.LoadAnnotations', with_mask=True)]
    assert kinds(scanned(cfg))[0] == ('train', 'annotation without mask', 'a.json')


def test_data_sets_that_are_no_files():
    dataset = dict(type='mmpretrain.DigitImages', split='train', pipeline=[])
    report = scanned(Config(dict(train_dataloader=dict(dataset=dataset))))
    assert kinds(report) == [('train', 'not image files', 'DigitImages')]
    assert (report.images, report.faults) == (0, [])


# --- reports ---


def test_reports(tmp_path):
    found = [verify_data.FileFinding('truncated', f'{index}.jpg', 'cut', 'train') for index in range(12)]
    report = verify_data.Report(
        ['train: 20 images'], found + [verify_data.FileFinding('CMYK', 'c.jpg', '', 'val')], 20, 5, 2.0
    )
    lines = report.text(10).splitlines()
    assert lines[0] == 'train: 20 images'
    assert lines[2:4] == ['FAULT: train: truncated: 12', '  0.jpg: cut']
    assert lines[13:17] == ['  ... and 2 more', '', 'note: val: CMYK: 1', '  c.jpg']
    assert lines[-1] == '20 images and 5 masks in 2.0 s (10 images/s): 12 faults, 1 note'
    report.write(tmp_path / 'r.txt')
    assert (tmp_path / 'r.txt').read_text().count('.jpg: cut') == 12
    report.write(tmp_path / 'r.json')
    content = json.loads((tmp_path / 'r.json').read_text())
    assert content['faults'] == 12
    assert content['findings'][12] == dict(kind='CMYK', path='c.jpg', detail='', split='val', fault=False)
