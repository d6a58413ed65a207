"""Frozen features: what is refused before an encoder is read, and rows that an error does not lose."""

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from calling import call_tool
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from bootmae.commands import knn
from bootmae.commands.knn import check_sets
from bootmae.config.load import load_config
from bootmae.results.rows import read_rows

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DIGITS, FILES = CONFIGS / 'cls' / 'bootmae_debug_finetune.py', CONFIGS / 'cls' / 'bootmae_small_data_cpu_finetune.py'
FEW = ['train_dataloader.dataset.labels_per_class=2', 'test_dataloader.dataset.indices=40']


@DATASETS.register_module()
class Tiles(BaseDataset):
    """Two of the four corners of one picture: (top, left)."""

    def load_data_list(self) -> list[dict]:
        return [dict(img_path=self.ann_file, tile=(self.metainfo['top'], left), gt_label=left) for left in (0, 1)]


@DATASETS.register_module()
class PlainData(Dataset):
    """A data set of torch."""

    def __init__(self, n: int, pipeline: list, test_mode: bool):
        self.n = n

    def __len__(self) -> int:
        return self.n


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    """Three folders with an image of each class: two of them have the same classes."""
    root = tmp_path_factory.mktemp('images')
    for part, names in dict(train='abc', val='abc', other='bc').items():
        for name in names:
            (root / part / name).mkdir(parents=True)
            cv2.imwrite(str(root / part / name / '0.png'), np.full((72, 72, 3), ord(name), np.uint8))
    return root


def sets(train: Path, test: Path, **options):
    places = {
        f'{loader}_dataloader.dataset.{key}': value
        for loader, root in (('train', train), ('test', test))
        for key, value in dict(roots=str(root), split=None).items()
    }
    return load_config(FILES, places | options)


def test_both_data_sets_number_the_classes_alike(images):
    check_sets(sets(images / 'train', images / 'val'))
    check_sets(load_config(DIGITS))
    with pytest.raises(ValueError, match=r'train_dataloader has the classes a, b, c, and .*other has b, c: label 0 is '
                       'a there and b here. .* set classes of ImageFiles, or rename its folders'):  # fmt: skip
        check_sets(sets(images / 'train', images / 'other'))
    check_sets(sets(images / 'train', images / 'other', **{'test_dataloader.dataset.classes': ['a', 'b', 'c']}))


def test_no_image_is_its_own_neighbor(images, tmp_path):
    (tmp_path / 'link').symlink_to(images / 'train')
    with pytest.raises(ValueError, match=r'share 3 images \(.*a/0.png, .*\), and each would be its own neighbor'):
        check_sets(sets(images / 'train', tmp_path / 'link'))
    for path in sorted((images / 'train').glob('*/0.png')):  # as tools/hold_out.py makes them
        (tmp_path / 'files' / path.parent.name).mkdir(parents=True)
        (tmp_path / 'files' / path.parent.name / f'new{path.name}').symlink_to(path)
    with pytest.raises(ValueError, match=r'share 3 images \(.*train/a/0.png, .*\), and each would be its own neighbor'):
        check_sets(sets(images / 'train', tmp_path / 'files'))
    few = {'test_dataloader.dataset.limit': 1}
    with pytest.raises(ValueError, match=r'share 1 image \(.*train/a/0.png\)'):
        check_sets(sets(images / 'train', images / 'train', **few))


def test_lists_in_one_folder(images, tmp_path):
    lists = {}
    for loader, lines in dict(train='a/0.png 0\nb/0.png 1\n', test='c/0.png 2\n').items():
        lists[f'{loader}_dataloader.dataset.list_file'] = str(tmp_path / f'{loader}.txt')
        lists[f'{loader}_dataloader.dataset.labels'] = 'list'
        (tmp_path / f'{loader}.txt').write_text(lines)
    check_sets(sets(images / 'train', images / 'train', **lists))
    (tmp_path / 'test.txt').write_text('b/0.png 1\nc/0.png 2\n')
    with pytest.raises(ValueError, match=r'share 1 image \(.*train/b/0.png\)'):
        check_sets(sets(images / 'train', images / 'train', **lists))


def test_two_splits_of_one_archive(images, tmp_path):
    with tarfile.open(tmp_path / 'images.tar', 'w') as archive:
        for part in ('train', 'val'):
            archive.add(images / part, part)
    (tmp_path / 'link.tar').symlink_to(tmp_path / 'images.tar')
    split = {f'{loader}_dataloader.dataset.split': name for loader, name in (('train', 'train'), ('test', 'val'))}
    check_sets(sets(tmp_path / 'images.tar', tmp_path / 'link.tar', **split))
    split['test_dataloader.dataset.split'] = 'train'
    with pytest.raises(ValueError, match=r'share 3 images \(.*images.tar/train/a/0.png'):
        check_sets(sets(tmp_path / 'images.tar', tmp_path / 'link.tar', **split))


def test_tiles_of_one_picture_and_other_data_sets():
    def of(top: int) -> dict:
        return dict(dataset=dict(type='Tiles', ann_file='scene.png', metainfo=dict(top=top)))

    check_sets(Config(dict(train_dataloader=of(0), test_dataloader=of(1))))
    with pytest.raises(ValueError, match=r'share 1 image \(.*scene.png\)'):
        check_sets(Config(dict(train_dataloader=of(1), test_dataloader=of(1))))
    plain = dict(dataset=dict(type='PlainData', n=3))
    check_sets(Config(dict(train_dataloader=plain, test_dataloader=plain)))  # nothing is known about its images


def test_wrong_numbers(capsys):
    for options, message in (
        (['--untrained', 0], '--untrained 0: give at least one encoder'),
        (['--untrained', 1, '--k', 0], '--k 0: give at least one neighbor'),
        (['--untrained', 1, '--k', 3, '--tasks', 'linear'], '--k 3 is for k-NN, which is not among the tasks: add knn'),
        (
            ['--untrained', 1, '--source', 'momentum'],
            '--source momentum chooses an encoder of a file: give --init, too',
        ),
        (['--untrained', 1, '--cfg-options', 'randomness.seed=5'], 'randomness.seed has no effect here: give --seed'),
        (
            ['--untrained', 1, '--k', 21, '--cfg-options', *FEW],
            '--k 21: only 20 labeled images are there; give at most that many neighbors',
        ),
    ):
        assert call_tool('knn', DIGITS, *options) == 2
        assert message in capsys.readouterr().err


def test_options_that_are_given_twice(monkeypatch):
    """Their values accumulate."""
    calls = []

    def noted(config, checkpoint, seed, tasks, labels, blocks, **others):
        calls.append((checkpoint, seed, tasks, labels, blocks))
        return []

    monkeypatch.setattr(knn, 'evaluate_features', noted)
    twice = ['--init', 'a.pth', '--labels', 1, '--blocks', 1, '--tasks', 'knn']
    twice += ['--init', 'b.pth', '--labels', 2, '--blocks', 2, '--tasks', 'linear']
    assert call_tool('knn', DIGITS, *twice) == 0
    assert calls == [
        (name, seed, ['knn', 'linear'], ['1', '2'], ['1', '2']) for seed, name in enumerate(('a.pth', 'b.pth'))
    ]


def test_rows_of_the_encoders_before_an_error(tmp_path, capsys, monkeypatch):
    rows = tmp_path / 'rows.csv'
    call = ['--rows', rows, '--data-name', 'digits', '--cfg-options', *FEW, 'model.backbone.depth=1']
    assert call_tool('knn', DIGITS, '--untrained', 1, *call) == 0
    (row,) = read_rows(rows)
    rows.write_text(rows.read_text().replace('data,method', 'method,data'))
    assert call_tool('knn', DIGITS, '--untrained', 1, *call) == 2
    captured = capsys.readouterr()
    assert 'rows.csv, line 1: columns repeated or in another order' in captured.err
    assert captured.out.count('k-NN') == 1, 'of the first call'
    rows.unlink()
    results = iter([knn.evaluate_features])

    def fail_second(*args, **kwargs):
        evaluate = next(results, None)
        if evaluate is None:
            raise ValueError('the second encoder')
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(knn, 'evaluate_features', fail_second)
    assert call_tool('knn', DIGITS, '--untrained', 2, *call) == 2
    assert [(found.seed, found.value) for found in read_rows(rows)] == [(0, row.value)]
