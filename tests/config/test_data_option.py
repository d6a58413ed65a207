"""Other images for a config (--data), and the classes that they have."""

import tarfile
from pathlib import Path

import pytest
from mmengine.registry import DATASETS

from bootmae.config.images import check_class_number, check_classes
from bootmae.config.load import load_config
from bootmae.config.steps import check_training
from bootmae.data.images import ImageFiles
from bootmae.results.provenance import REPOSITORY

CONFIGS = REPOSITORY / 'configs'
PRETRAIN, IMAGENET = CONFIGS / 'pretrain/bootmae_small_data_cpu.py', CONFIGS / 'pretrain/bootmae_vitb.py'
TUNE = CONFIGS / 'cls/bootmae_small_data_cpu_finetune.py'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
TWO = {'model.head.num_classes': 2, 'data_preprocessor.num_classes': 2}


def folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / '1.jpg').touch()
    return str(root)


def read(config: Path, *paths, **options) -> list[tuple]:
    """Roots, split and classes of each loader."""
    cfg = load_config(config, {'images': list(map(str, paths)), **options})
    sets = [cfg[name].dataset for name in LOADERS if name in cfg]
    return [(found.roots, found.get('split'), found.get('classes')) for found in sets]


@pytest.mark.parametrize('config', [PRETRAIN, IMAGENET])
def test_pretraining_reads_all_paths_but_no_validation_images(config, tmp_path):
    labeled = folders(tmp_path / 'a b', 'train/x', 'val/x')
    plain = folders(tmp_path / '007', 'x')
    assert read(config, plain) == [(plain, None, None)]
    assert read(config, labeled, plain, 'x.tar') == [([f'{labeled}/train', plain, 'x.tar'], None, None)]


def test_classification_reads_a_folder_with_splits_or_two_folders(tmp_path):
    both = folders(tmp_path / 'both', 'train/x', 'test/x')
    assert read(TUNE, both) == [(both, 'train', None), (both, 'test', None), (both, 'test', None)]
    one, two = folders(tmp_path / 'one', 'cat', 'dog'), folders(tmp_path / 'two', 'dog')
    assert read(TUNE, one, two) == [(one, None, None), *[(two, None, ['cat', 'dog'])] * 2], 'dog stays class 1'
    with pytest.raises(ValueError, match=f'--data {one} has no folder train: give a folder with train/ and val/'):
        read(TUNE, one)
    with pytest.raises(ValueError, match='--data has 3 paths, but a classification config takes one'):
        read(TUNE, one, two, both)


def packed(file: Path, *names: str) -> str:
    with tarfile.open(file, 'w') as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f'./{name}'))
    return str(file)


def test_archives_have_the_classes_of_the_training(tmp_path):
    train, val = packed(tmp_path / 'train.tar', 'cat/1.jpg', 'dog/2.npy'), packed(tmp_path / 'val.tar', 'dog/1.jpg')
    assert read(TUNE, train, val) == [(train, None, None), *[(val, None, ['cat', 'dog'])] * 2], 'dog stays class 1'
    cfg = load_config(TUNE, {'images': [train, val]} | TWO)
    assert DATASETS.build(dict(cfg.val_dataloader.dataset, pipeline=[])).get_gt_labels().tolist() == [1]
    check_classes(cfg)
    assert read(TUNE, 'gone.tar', val)[1:] == [(val, None, None)] * 2, 'which the training reports'
    other = packed(tmp_path / 'other.tar', 'ant/1.jpg', 'cat/2.jpg')
    cfg = load_config(TUNE, {'images': [train, other]} | TWO)
    for loader in LOADERS[1:]:
        with pytest.raises(ValueError, match='1 folder not among the 2 classes: ant; remove what is no class'):
            DATASETS.build(dict(cfg[loader].dataset, pipeline=[]))
    for name in ('n01', 'n07'):  # one archive for each class, as those of ImageNet
        packed(tmp_path / f'{name}.tar', '1.jpg', 'features/1.npy')  # which are no images without image_channels
    assert read(TUNE, tmp_path / 'n0*.tar', val)[1][2] == ['n01', 'n07']
    cfg = load_config(TUNE, {'images': [str(tmp_path / 'n0*.tar')] * 2} | TWO)
    check_classes(cfg)
    assert tuple(DATASETS.build(dict(cfg.val_dataloader.dataset, pipeline=[])).metainfo['classes']) == ('n01', 'n07')
    arrays = packed(tmp_path / 'arrays.tar', 'x/1.npy', 'y/2.npy')
    assert read(TUNE, arrays, arrays)[1][2] == ['x', 'y'], 'also before an option sets image_channels'


def test_archives_that_the_config_names_have_one_set_of_classes(tmp_path):
    train, other = (packed(tmp_path / f'{name}.tar', f'{name}/1.jpg', 'cat/2.jpg') for name in ('dog', 'ant'))
    roots = {'train_dataloader.dataset.roots': train, 'val_dataloader.dataset.roots': other}
    splits = {f'{name}.dataset.split': None for name in LOADERS[:2]}
    with pytest.raises(ValueError, match='val_dataloader has the class folders ant, which train_dataloader has not'):
        check_training(load_config(TUNE, roots | splits | TWO))
    with pytest.raises(ValueError, match=r'dog.tar has 2 classes \(cat, dog\), but model.head.num_classes=10'):
        check_training(load_config(TUNE, roots | splits))


def test_segmentation_and_detection_read_a_data_root():
    cfg = load_config(CONFIGS / 'seg/bootmae_camvid.py', {'images': ['/my scenes']})
    assert {cfg[name].dataset.data_root for name in LOADERS} == {'/my scenes'}
    cfg = load_config(CONFIGS / 'det/bootmae_vitb_maskrcnn_1x.py', {'images': ['/my scenes']})
    assert {cfg[name].dataset.data_root for name in LOADERS} == {'/my scenes'}
    assert cfg.val_evaluator.ann_file == '/my scenes/annotations/instances_val2017.json'
    with pytest.raises(ValueError, match='one data_root to all data sets of .*: 2 paths are too many'):
        load_config(CONFIGS / 'seg/bootmae_camvid.py', {'images': ['/a', '/b']})


def test_images_that_a_config_cannot_read():
    with pytest.raises(ValueError, match='reads DigitImages, not image files; use a config for your own images'):
        load_config(CONFIGS / 'pretrain/bootmae_debug.py', {'images': ['/a']})
    with pytest.raises(ValueError, match='--data and train_dataloader.dataset.roots=/b both give the images'):
        load_config(PRETRAIN, {'images': ['/a'], 'train_dataloader.dataset.roots': '/b'})
    with pytest.raises(ValueError, match=r'\[7\]: give paths as texts'):
        load_config(PRETRAIN, {'images': 7})


def test_classes_are_those_of_the_folders(tmp_path):
    root = folders(tmp_path, 'train/cat', 'train/dog', 'val/cat')
    message = r'has 2 classes \(cat, dog\), but model.head.num_classes=10, data_preprocessor.num_classes=10: .*=2 .*=2'
    with pytest.raises(ValueError, match=message):
        check_classes(load_config(TUNE, {'images': [root]}))
    check_classes(load_config(TUNE, {'images': [root]} | TWO))
    one = {**TWO, 'model.head.num_classes': 1}
    with pytest.raises(ValueError, match=r'but model.head.num_classes=1: '):
        check_classes(load_config(TUNE, {'images': [root]} | one))
    other = folders(tmp_path / 'other', 'cat', 'cow')
    roots = {'train_dataloader.dataset.roots': f'{root}/train', 'val_dataloader.dataset.roots': other}
    splits = {f'{name}.dataset.split': None for name in LOADERS[:2]}
    with pytest.raises(ValueError, match='val_dataloader has the class folders cow, which train_dataloader has not'):
        check_training(load_config(TUNE, roots | splits | TWO))


def test_classes_of_a_list(tmp_path):
    """Also of data sets that only say their classes when they are built."""
    folders(tmp_path, 'x')
    (tmp_path / 'list.txt').write_text('x/1.jpg 0\nx/1.jpg 2\n')
    images = ImageFiles(str(tmp_path), list_file=str(tmp_path / 'list.txt'), labels='list', pipeline=[])
    with pytest.raises(ValueError, match=r'has 3 classes \(0, 1, 2\), but model.head.num_classes=2'):
        check_class_number(images, load_config(TUNE, TWO))
    check_class_number(images, load_config(TUNE, dict.fromkeys(TWO, 3)))
    check_class_number(images, load_config(PRETRAIN))
