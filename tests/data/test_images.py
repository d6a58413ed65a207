"""ImageFiles: files, order, labels, and messages about errors."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmpretrain.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from bootmae.data import findings
from bootmae.data.images import ImageFiles
from bootmae.data.samples import SeededSamples

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=8), dict(type='PackInputs')]


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def write_list(tmp_path, text, encoding='utf-8'):
    path = tmp_path / 'list.txt'
    path.write_text(text, encoding=encoding)
    return str(path)


def found(dataset, root):
    """(path relative to root, label or None) of every sample."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(os.path.relpath(info['img_path'], root), info.get('gt_label')) for info in infos]


def paths(dataset, root):
    return [path for path, _ in found(dataset, root)]


@pytest.fixture
def messages(monkeypatch):
    seen = []
    monkeypatch.setattr(findings, 'print_log', lambda message, **kwargs: seen.append(message))
    return seen


# What is found


def test_folder_of_any_depth_in_name_order(tmp_path):
    root = touch(tmp_path, 'b.png', 'a/z.JPG', 'a/deep/er/x.jpeg', 'a.jpg', 'c/10.webp', 'c/9.tiff', 'a/notes.txt')
    dataset = ImageFiles(root)
    assert paths(dataset, root) == ['a/deep/er/x.jpeg', 'a/z.JPG', 'a.jpg', 'b.png', 'c/10.webp', 'c/9.tiff']
    assert 'gt_label' not in dataset.get_data_info(0)
    assert 'classes' not in dataset.metainfo
    assert dataset.describe() == f'6 images, no labels, roots {root}'


def test_hidden_files_and_mac_leftovers_are_skipped(tmp_path):
    root = touch(tmp_path, 'a.jpg', '.b.jpg', '._a.jpg', '.thumbs/c.jpg', '__MACOSX/d.jpg', 'e/.f.png', 'e/g.png')
    assert paths(ImageFiles(root), root) == ['a.jpg', 'e/g.png']


def test_file_names_may_be_awkward(tmp_path):
    names = ['a b  c.jpg', '#1.jpg', 'näh.jpg', 'x.y.jpg', '100%.png']
    root = touch(tmp_path, *names)
    assert paths(ImageFiles(root), root) == sorted(names)


def test_file_name_that_is_no_text_survives(tmp_path):
    raw = os.fsencode(tmp_path) + b'/caf\xe9.jpg'
    try:
        open(raw, 'w').close()
    except OSError:
        pytest.skip('the file system takes only UTF-8 names')
    assert os.fsencode(ImageFiles(str(tmp_path)).get_data_info(0)['img_path']) == raw


def test_links_are_followed_without_loops_or_doubles(tmp_path):
    root = tmp_path / 'root'
    touch(root, 'a/1.jpg', 'a/b/2.jpg')
    touch(tmp_path, 'elsewhere/3.jpg', 'file.jpg')
    (root / 'a/b/up').symlink_to(root)
    (root / 'again').symlink_to(root / 'a')
    (root / 'away').symlink_to(tmp_path / 'elsewhere')
    (root / 'linked.jpg').symlink_to(tmp_path / 'file.jpg')
    (root / 'broken.jpg').symlink_to(tmp_path / 'nothing.jpg')
    assert paths(ImageFiles(str(root)), root) == ['a/1.jpg', 'a/b/2.jpg', 'away/3.jpg', 'linked.jpg']


def test_several_roots_follow_each_other(tmp_path):
    touch(tmp_path, 'b/1.jpg', 'a/2.jpg', 'c/train/3.jpg')
    dataset = ImageFiles([str(tmp_path / 'b'), str(tmp_path / 'a')])
    assert paths(dataset, tmp_path) == ['b/1.jpg', 'a/2.jpg']
    assert dataset.describe() == f'2 images, no labels, roots {tmp_path}/b, {tmp_path}/a'


def test_home_and_trailing_slash(tmp_path, monkeypatch):
    touch(tmp_path, 'set/train/x/1.jpg')
    monkeypatch.setenv('HOME', str(tmp_path))
    dataset = ImageFiles('~/set/', split='train/', labels='folder')
    assert dataset.get_data_info(0)['img_path'] == f'{tmp_path}/set/train/x/1.jpg'


def test_extensions_may_be_chosen(tmp_path):
    root = touch(tmp_path, 'a.jpg', 'b.GIF', 'c.gif')
    assert paths(ImageFiles(root, extensions=['.gif']), root) == ['b.GIF', 'c.gif']
    assert paths(ImageFiles(root, extensions='gif'), root) == ['b.GIF', 'c.gif']


def test_limit_is_spread_over_the_classes(tmp_path):
    root = touch(tmp_path, *(f'{name}/{i}.jpg' for name in 'abcd' for i in range(5)))
    dataset = ImageFiles(root, labels='folder', limit=8)
    assert [label for _, label in found(dataset, root)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert dataset.metainfo['classes'] == ('a', 'b', 'c', 'd')
    assert len(ImageFiles(root, limit=100)) == 20


# Class folders


def test_classes_are_first_level_folders(tmp_path):
    root = touch(tmp_path, 'dog/2.jpg', 'dog/1.jpg', 'cat/deep/3.jpg', 'zebra/4.png', '.git/5.jpg', 'readme.txt')
    dataset = ImageFiles(root, labels='folder')
    assert found(dataset, root) == [('cat/deep/3.jpg', 0), ('dog/1.jpg', 1), ('dog/2.jpg', 1), ('zebra/4.png', 2)]
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'zebra')
    assert dataset.describe() == f'4 images, 3 classes, roots {root}'
    assert dataset.describe() in repr(dataset)


def test_validation_split_counts_classes_as_training_does(tmp_path, messages):
    root = touch(tmp_path, 'train/a/1.jpg', 'train/b/2.jpg', 'train/c/3.jpg', 'val/a/4.jpg', 'val/c/5.jpg')
    val = ImageFiles(root, labels='folder', split='val')
    assert found(val, root) == [('val/a/4.jpg', 0), ('val/c/5.jpg', 2)]
    assert val.metainfo['classes'] == ImageFiles(root, labels='folder', split='train').metainfo['classes']
    assert messages == [f'{root}/val: no folder for 1 of 3 classes: b']


def test_classes_may_be_fixed(tmp_path, messages):
    root = touch(tmp_path / 'set', 'a/1.jpg', 'b/2.jpg')
    dataset = ImageFiles(root, labels='folder', classes=['b', 'x', 'a'])
    assert found(dataset, root) == [('b/2.jpg', 0), ('a/1.jpg', 2)]
    (tmp_path / 'classes.txt').write_text('b\na\n')
    dataset = ImageFiles(root, labels='folder', classes=str(tmp_path / 'classes.txt'), num_classes=2)
    assert found(dataset, root) == [('b/2.jpg', 0), ('a/1.jpg', 1)]


# Lists


def test_list_without_labels(tmp_path):
    root = touch(tmp_path, 'b.jpg', 'a c.jpg', 'd/1.PNG')
    name = write_list(tmp_path, f'b.jpg\n\na c.jpg\r\n{root}/d/1.PNG', 'utf-8-sig')
    dataset = ImageFiles(root, list_file=name)
    assert found(dataset, root) == [('b.jpg', None), ('a c.jpg', None), ('d/1.PNG', None)]
    assert dataset.describe() == f'3 images, no labels, roots {root}, list {name}'


def test_list_with_labels(tmp_path):
    root = touch(tmp_path, 'b.jpg', 'a c 7.jpg', 'd/1.jpg')
    name = write_list(tmp_path, 'b.jpg 2\na c 7.jpg\t0\nd/1.jpg   2 \n')
    dataset = ImageFiles(root, list_file=name, labels='list')
    assert found(dataset, root) == [('b.jpg', 2), ('a c 7.jpg', 0), ('d/1.jpg', 2)]
    assert dataset.metainfo['classes'] == ('0', '1', '2')
    assert len(ImageFiles(root, list_file=name, labels='list', num_classes=5).metainfo['classes']) == 5
    named = ImageFiles(root, list_file=name, labels='list', classes=['x', 'y', 'z'])
    assert named.metainfo['classes'] == ('x', 'y', 'z')


def test_list_is_read_inside_the_split(tmp_path):
    root = touch(tmp_path, 'val/1.jpg')
    assert paths(ImageFiles(root, split='val', list_file=write_list(tmp_path, '1.jpg')), root) == ['val/1.jpg']


def test_files_of_a_list_are_spot_checked(tmp_path):
    names = [f'{i:04}.jpg' for i in range(1000)]
    root = touch(tmp_path, *names)
    listed = write_list(tmp_path, '\n'.join(names))
    (tmp_path / names[1]).unlink()  # not one of the 100 that are looked at
    assert len(ImageFiles(root, list_file=listed)) == 1000
    with pytest.raises(FileNotFoundError, match=r'0001.jpg \(image 2 of 1000\), which does not exist'):
        ImageFiles(root, list_file=listed, check_files='all')
    for missing in (names[-1], names[0]):
        (tmp_path / missing).unlink()
        with pytest.raises(FileNotFoundError, match=missing):
            ImageFiles(root, list_file=listed)
    assert len(ImageFiles(root, list_file=listed, check_files='none')) == 1000


# Mistakes: (files, arguments, error, what the message must name)

TREE = [
    'train/a/1.jpg',
    'train/b/2.jpg',
    'val/a/3.jpg',
    'val/new/4.jpg',
    'flat/5.jpg',
    'flat/a/6.jpg',
    'text/x.txt',
    'text/y.txt',
    'text/z.gif',
    'gap/a/7.jpg',
    'gap/b/notes.md',
    'empty/.hidden.jpg',
]
FAULTS = [
    (dict(roots='{root}/nope'), FileNotFoundError, ['roots={root}/nope does not exist', '{root} holds empty, flat']),
    (dict(roots='{root}/no/such/way'), FileNotFoundError, ['{root}/no/such/way', '{root} holds empty']),
    (dict(roots=['{root}/train', '{root}/nope']), FileNotFoundError, ['{root}/nope']),
    (dict(roots=''), ValueError, ["roots=''", 'give the folder']),
    (dict(roots=[]), ValueError, ['roots=[]', 'give the folder']),
    (dict(roots='{root}/train/a/1.jpg'), ValueError, ['1.jpg is a file, not a folder', 'list_file', 'unpacked']),
    (
        dict(roots='{root}/text'),
        FileNotFoundError,
        ['no images in {root}/text', '.jpeg .jpg', 'found 2 .txt, 1 .gif', 'extend `extensions`'],
    ),
    (dict(roots='{root}/empty'), FileNotFoundError, ['no images in {root}/empty', 'found 1 hidden file']),
    (dict(roots=['{root}/train', '{root}/text']), FileNotFoundError, ['no images in {root}/text']),
    (
        dict(roots='{root}', split='vall'),
        FileNotFoundError,
        ["split='vall'", '{root}/vall', '{root} holds empty, flat, gap, text, train, val', 'choose one of these'],
    ),
    (dict(roots=['{root}/train', '{root}/train/']), ValueError, ['overlap', 'remove one']),
    (dict(roots=['{root}/train/a', '{root}']), ValueError, ['{root}/train/a', 'overlap']),
    (dict(roots='{root}/train', labels='yes'), ValueError, ["labels='yes'", "None, 'folder', 'list'"]),
    (dict(roots='{root}/train', check_files='few'), ValueError, ["check_files='few'", "'some', 'all', 'none'"]),
    (dict(roots='{root}/train', limit=0), ValueError, ['limit=0', 'positive']),
    (dict(roots='{root}/train', limit=0.5), ValueError, ['limit=0.5', 'positive']),
    (dict(roots='{root}/train', extensions=[]), ValueError, ['extensions=[]', "('jpg', 'png')"]),
    (dict(roots='{root}/train', labels='list'), ValueError, ["labels='list'", 'list_file', "labels='folder'"]),
    (dict(roots='{root}', labels='folder', list_file='x.txt'), ValueError, ["list_file='x.txt'", "labels='list'"]),
    (dict(roots=['{root}/train', '{root}/val'], labels='folder'), ValueError, ['one root', 'ConcatDataset']),
    (
        dict(roots='{root}/flat', labels='folder'),
        ValueError,
        ['{root}/flat: 1 image outside class folders', '5.jpg', "labels='list'"],
    ),
    (
        dict(roots='{root}/gap', labels='folder'),
        FileNotFoundError,
        ['{root}/gap: no images in 1 class folder: b', '1 .md', 'fill or remove it'],
    ),
    (dict(roots='{root}/text', labels='folder'), FileNotFoundError, ['no images in {root}/text']),
    (
        dict(roots='{root}', split='val', labels='folder'),
        ValueError,
        ['{root}/val: 1 folder not among the 2 classes: new', 'ROOT/train'],
    ),
    (
        dict(roots='{root}/train', labels='folder', classes=['a']),
        ValueError,
        ['{root}/train: 1 folder not among the 1 class: b'],
    ),
    (dict(roots='{root}/train', labels='folder', num_classes=3), ValueError, ['2 classes', 'num_classes=3', 'a, b']),
    (
        dict(roots='{root}', list_file='{root}/lists.txt'),
        FileNotFoundError,
        ['list_file {root}/lists.txt is not a file', '{root} holds'],
    ),
]


@pytest.mark.parametrize('arguments, error, parts', FAULTS)
def test_mistakes_are_named(tmp_path, arguments, error, parts):
    root = touch(tmp_path, *TREE)

    def fill(value):
        if isinstance(value, list):
            return [fill(item) for item in value]
        return value.replace('{root}', root) if isinstance(value, str) else value

    with pytest.raises(error) as caught:
        ImageFiles(**{name: fill(value) for name, value in arguments.items()})
    for part in fill(parts):
        assert part in str(caught.value)


LIST_FAULTS = [
    ('', {}, ValueError, ['{list}: no image in it', 'one path per line']),
    ('a.jpg\nlost.jpg', {}, FileNotFoundError, ['{list}: names {root}/lost.jpg (image 2 of 2)', 'start at {root}']),
    ('a.jpg\n\na.jpg 3', {}, ValueError, ["{list}:3: 'a.jpg 3' has '3' after the file name", "labels='list'"]),
    ('a.jpg\nnotes.txt', {}, ValueError, ["{list}:2: 'notes.txt' does not end like an image", 'extensions']),
    ('a.jpg 1\na.jpg', dict(labels='list'), ValueError, ['{list}:2: no integer label', "'a.jpg'", 'labels=None']),
    ('a.jpg dog', dict(labels='list'), ValueError, ['{list}:1: no integer label', "'a.jpg dog'"]),
    ('a.jpg 1.5', dict(labels='list'), ValueError, ['{list}:1: no integer label']),
    ('a.jpg -1', dict(labels='list'), ValueError, ['{list}:1: label -1 is negative', 'count from 0']),
    (
        'a.jpg 1\na.jpg 10',
        dict(labels='list', num_classes=10),
        ValueError,
        ['{list}: label 10', '10 classes go from 0 to 9', 'subtract 1'],
    ),
    ('a.jpg 2', dict(labels='list', classes=['x', 'y']), ValueError, ['label 2', '2 classes go from 0 to 1']),
    ('a.jpg 0', dict(labels='list', classes=['x', 'y'], num_classes=3), ValueError, ['2 classes', 'num_classes=3']),
]


@pytest.mark.parametrize('text, arguments, error, parts', LIST_FAULTS)
def test_mistakes_in_lists_are_named(tmp_path, text, arguments, error, parts):
    root = touch(tmp_path, 'a.jpg')
    name = write_list(tmp_path, text)
    with pytest.raises(error) as caught:
        ImageFiles(root, list_file=name, **arguments)
    for part in parts:
        assert part.replace('{list}', name).replace('{root}', root) in str(caught.value)


def test_splits_are_not_classes(tmp_path, messages):
    root = touch(tmp_path, 'train/a/1.jpg', 'val/a/2.jpg')
    with pytest.raises(ValueError, match=r"look like splits, not classes: train, val; add split='train'"):
        ImageFiles(root, labels='folder')
    assert len(ImageFiles(root)) == 2
    assert messages == [
        f"{root}: the images of the splits train, val are all used; add split='train' to keep the others unseen"
    ]


def test_root_through_a_link_is_the_same_root(tmp_path):
    touch(tmp_path, 'set/1.jpg')
    (tmp_path / 'link').symlink_to(tmp_path / 'set')
    with pytest.raises(ValueError, match='overlap'):
        ImageFiles([str(tmp_path / 'set'), str(tmp_path / 'link')])


def test_root_of_links_into_another_is_reported(tmp_path):
    touch(tmp_path, 'set/sub/1.jpg', 'other/readme.txt')
    (tmp_path / 'other/link').symlink_to(tmp_path / 'set/sub')
    with pytest.raises(FileNotFoundError, match='1 folder already read under another name'):
        ImageFiles([str(tmp_path / 'set'), str(tmp_path / 'other')])


# Pictures, memory, seeds


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        (tmp_path / f'{i % 2}').mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f'{i % 2}/{i}.png')
    return str(tmp_path)


def test_pictures_for_a_report(pictures):
    dataset = ImageFiles(pictures, labels='folder')
    shown = dataset.images([0, 5], size=20)
    assert shown.shape == (2, 20, 20, 3)
    assert shown.dtype == np.uint8
    for i, image in zip([0, 5], shown):
        original = np.asarray(Image.open(dataset.get_data_info(i)['img_path']))
        assert (image == original[:, 5:25]).all()
    assert dataset.images(range(3)).shape == (3, 224, 224, 3)


def test_undecodable_picture_is_named(tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'bad.jpg cannot be decoded'):
        ImageFiles(str(tmp_path)).images([0])


def test_index_is_one_buffer(tmp_path):
    names = [f'{i:05}.jpg' for i in range(3000)]
    listed = write_list(tmp_path, '\n'.join(names))
    dataset = ImageFiles(str(tmp_path), list_file=listed, check_files='none')
    assert dataset.data_list == []
    assert len(pickle.dumps(dataset)) < 3000 * (len(str(tmp_path)) + 80)
    assert dataset.get_data_info(2999)['img_path'].endswith('/02999.jpg')


def test_registered_and_seeded_like_the_others(pictures):
    settings = dict(type='ImageFiles', roots=pictures, labels='folder', pipeline=PIPELINE)
    first, second = DATASETS.build(settings), DATASETS.build(settings)

    def run(dataset, **kwargs):
        samples = SeededSamples(dataset)
        epochs = []
        for epoch in range(2):
            keys = range(epoch * len(dataset), (epoch + 1) * len(dataset))
            loader = DataLoader(samples, batch_size=2, sampler=keys, collate_fn=list, **kwargs)
            epochs.append(torch.stack([sample['inputs'] for batch in loader for sample in batch]))
        return torch.stack(epochs)

    alone = run(first)
    assert alone.equal(run(second, num_workers=2))
    assert not alone[0].equal(alone[1])
    assert first.get_gt_labels().tolist() == [0, 0, 0, 1, 1, 1]
