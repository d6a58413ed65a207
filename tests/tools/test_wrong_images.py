"""Folders and images that look right: ``tools/verify_data.py``, training and evaluation say the same about them."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from calling import call_tool
from mmpretrain.registry import DATASETS
from toy_images import COUNT, call, draw, make_folder, write_config

from bootmae.config.load import load_config
from bootmae.config.model import build_model
from bootmae.data.findings import DataFault
from bootmae.data.images import ImageFiles
from bootmae.data.samples import UnreadableSample
from bootmae.data.value_checks import check_values
from bootmae.engine.hooks.online_probe import OnlineProbeHook
from bootmae.engine.runner.build import build_runner

REPOSITORY = Path(__file__).resolve().parents[2]
DENSE = dict(seg=REPOSITORY / 'configs/seg/upernet_debug.py', det=REPOSITORY / 'configs/det/mask_rcnn_debug.py')
PRETRAIN = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_folder(tmp_path / 'images')


@pytest.fixture
def config(tmp_path, folder) -> Path:
    return write_config(tmp_path / 'config.py', folder)


def loose(root: Path):
    draw(root / 'train' / '9.png')


def only_in_val(root: Path):
    draw(root / 'val' / 'emu' / '9.png')


def only_in_train(root: Path):
    shutil.rmtree(root / 'val' / 'dog')


def empty_class(root: Path):
    (root / 'train' / 'emu').mkdir()
    (root / 'train' / 'emu' / 'notes.md').touch()


def clutter(root: Path):
    for name in ('Thumbs.db', '.DS_Store', 'cat/a.heic', 'cat/b.HEIC', 'cat/.old/c.png', '.cache/x/d.png'):
        path = root / 'train' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def others_of_the_decoder(root: Path):
    for number, ending in enumerate(('jfif', 'JPE', 'jpeg')):
        draw(root / 'train' / 'cat' / f'other_{number}.{ending}')


def refill(low: int, high: int, dtype: type) -> Callable[[Path], None]:
    def change(root: Path):
        for path in root.rglob('*.png'):
            draw(path, low, high, dtype)

    return change


# what is done to a good folder: (exit code of verify_data, findings besides those of single files, images in train)
CASES = {
    'good': (lambda root: None, 0, [], 8),
    'loose': (loose, 1, ['train: 1 image outside class folders, such as 9.png: sort them'], None),
    'only_in_val': (only_in_val, 1, ['val: 1 folder not among the 2 classes: emu; remove'], None),
    'only_in_train': (only_in_train, 0, ['val: no folder for 1 of 2 classes: dog'], 8),
    'empty_class': (empty_class, 1, ['train: no images in 1 class folder: emu; fill or remove it (other'], None),
    'clutter': (clutter, 0, ['train: not used: 2 .heic, 2 hidden folders, 1 .db, 1 hidden file'], 8),
    'others_of_the_decoder': (others_of_the_decoder, 0, [], 11),
    'all of 16 bits': (refill(0, 65535, np.uint16), 0, [], 8),
    '12 of 16 bits': (
        refill(0, 4095, np.uint16),
        1,
        ['uint16 values 0 to 4,095 are read as 0 to 15 of 255, and so or similarly in 8 of 8 images: scale'],
        None,
    ),
    '10 of 16 bits': (refill(5, 1023, np.uint16), 1, ['uint16 values 5 to 1,023 are read as 0 to 3 of 255'], None),
    '14 of 16 bits': (refill(0, 16383, np.uint16), 1, ['uint16 values 0 to 16,383 are read as 0 to 63 of 255'], None),
    'class numbers': (
        refill(0, 12, np.uint8),
        0,
        ['values 0 to 12 of 255, and so or similarly in 8 of 8 images: almost black; are they masks'],
        8,
    ),
}


def start(config: Path) -> None:
    """How a run builds and checks its data sets; :func:`test_a_run_and_its_log` shows that tools/train.py does so."""
    cfg = load_config(config)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        check_values(DATASETS.build(loader.dataset))


def of_sets(file: Path) -> dict[str, bool]:
    """Lines of the findings in a report that are not about a single file, and whether they are faults."""
    findings = json.loads(file.read_text())['findings']
    return {f'{one["path"]}: {one["detail"]}': one['fault'] for one in findings if one['kind'][:6] != '16-bit'}


@pytest.mark.parametrize('case', CASES)
def test_verify_data_and_training_say_the_same(case, folder, config, tmp_path, monkeypatch):
    change, code, findings, images = CASES[case]
    change(folder)
    said: list[str] = []
    monkeypatch.setattr('bootmae.data.findings.print_log', lambda message, **kwargs: said.append(message))
    report = tmp_path / 'report.json'
    assert call_tool('verify_data', folder, '--workers', 0, '--out', report) == code
    found = of_sets(report)
    assert images in (None, json.loads(report.read_text())['images'] - len(list((folder / 'val').rglob('*.*'))))
    assert call('verify_data', config, '--split', 'train', 'val', '--workers', 0, '--out', report) == code
    assert of_sets(report) == found
    assert bool(found) == bool(findings)
    assert all(any(part in line for line in found) for part in findings)
    said.clear()
    if not code:
        start(config)
        assert set(said) == set(found)
        return
    with pytest.raises(DataFault) as refused:
        start(config)
    assert found[str(refused.value)], 'the first fault'


@pytest.mark.parametrize('case', ['clutter', '12 of 16 bits'])
def test_a_run_and_its_log(case, folder, config, tmp_path, capsys):
    change, code, findings, _ = CASES[case]
    change(folder)
    assert call('train', config, '--work-dir', tmp_path / 'run') == 2 * code
    logged = capsys.readouterr()
    if code:
        assert logged.err.splitlines()[-1].startswith(f'error: {folder}/train/')
        assert findings[0] in logged.err
    else:
        (log,) = (tmp_path / 'run').glob('*/*.log')
        assert log.read_text().count(f'{folder}/{findings[0]}') == 1


def test_the_note_of_a_file_says_how_its_values_are_read(folder, capsys):
    draw(folder / 'train/cat/full.png', 0, 65535, np.uint16)
    draw(folder / 'train/cat/part.png', 0, 4095, np.uint16)
    cv2.imwrite(str(folder / 'train/cat/float.tif'), np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60))
    assert call_tool('verify_data', folder, '--workers', 0) == 1
    said = capsys.readouterr().out.splitlines()
    place = f'  {folder}/train/cat'
    assert said[said.index('note: train: 16-bit: 1') + 1] == (
        f'{place}/full.png: uint16 values 0 to 65,535 are read as 0 to 255 of 255'
    )
    assert said[said.index('note: train: 16-bit, mostly unused: 1') + 1] == (
        f'{place}/part.png: uint16 values 0 to 4,095 are read as 0 to 15 of 255'
    )
    assert said[said.index('FAULT: train: unreadable: 1') + 1] == (
        f'{place}/float.tif: OpenCV cannot decode float32 values as an image: convert the file to 8 bits'
    )


def packed(folder: Path) -> Path:
    """The training images in an archive."""
    path = folder.with_name('images.tar')
    with tarfile.open(path, 'w') as archive:
        archive.add(folder / 'train', arcname='')
    return path


@pytest.mark.parametrize('case', ['good', 'loose', 'empty_class', 'clutter', '12 of 16 bits'])
def test_archives_are_judged_as_folders(case, folder, tmp_path, capsys):
    change, code, findings, images = CASES[case]
    change(folder)
    archive = packed(folder)
    assert call_tool('verify_data', archive, '--workers', 0) == code
    said = capsys.readouterr().out
    assert all(part.removeprefix('train: ') in said for part in findings)
    if code:
        with pytest.raises(DataFault) as refused:
            check_values(ImageFiles(str(archive), labels='folder', pipeline=[dict(type='LoadImageFromFile')]))
        assert f'\n  {refused.value}\n' in said
    else:
        assert len(ImageFiles(str(archive), labels='folder', pipeline=[])) == images


def test_what_is_neither_folder_nor_list(folder, capsys):
    assert call_tool('verify_data', folder / 'val/cat/val_0.png') == 2
    assert (
        capsys.readouterr().err
        == f'error: {folder}/val/cat/val_0.png is an image: give its folder, or a list of images\n'
    )
    with tarfile.open(folder / 'a.tar.gz', 'w:gz') as archive:
        archive.add(folder / 'val', arcname='')
    assert call_tool('verify_data', folder / 'a.tar.gz') == 2
    assert f'error: {folder}/a.tar.gz is compressed (gzip)' in capsys.readouterr().err


def test_plain_images_need_no_class_folders(folder, capsys):
    """Unlabeled images may lie anywhere: if few are in folders, or with --labels none."""
    loose(folder)
    empty_class(folder)
    assert call_tool('verify_data', folder / 'train', '--workers', 0, '--labels', 'none') == 0
    for number in range(20, 40):
        draw(folder / 'train' / f'{number}.png')
    assert call_tool('verify_data', folder / 'train', '--workers', 0) == 0
    assert call_tool('verify_data', folder / 'train', '--workers', 0, '--labels', 'folder') == 1
    assert '21 images outside class folders' in capsys.readouterr().out


def test_what_lies_beside_the_splits(folder, capsys):
    draw(folder / 'more' / '1.png')
    draw(folder / '2.png')
    (folder / 'notes.txt').touch()
    shutil.rmtree(folder / 'val')
    (folder / 'val').mkdir()
    assert call_tool('verify_data', folder, '--workers', 0) == 1
    said = capsys.readouterr().out
    assert f'FAULT: val: split without images: 1\n  {folder}/val: no images in {folder}/val: looked for .' in said
    assert f'  {folder}: 2 images outside train, val, which `split` leaves out' in said
    assert f'  {folder}: not used: 1 .txt' in said


def test_splits_among_other_folders_are_no_classes(folder):
    draw(folder / 'more' / '1.png')
    with pytest.raises(DataFault, match=f"{folder}: labels='folder', but these folders look like splits.*: train, val"):
        ImageFiles(str(folder), labels='folder', pipeline=[])
    assert len(ImageFiles(str(folder), labels='folder', pipeline=[], classes=['more', 'train', 'val'])) == 11


# --- evaluations replace no image ---


@pytest.fixture
def broken(folder) -> Path:
    """A validation image that is cut off."""
    path = folder / 'val' / 'dog' / 'val_0.png'
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize('workers', [0, 2])
def test_knn_names_the_broken_image(broken, config, capsys, workers):
    assert call('knn', config, '--untrained', 1, '--data-name', 'mine', '--workers', workers) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f'error: {broken} cannot be read (')


def test_training_replaces_an_image_but_its_validation_does_not(broken, folder, config, tmp_path, capsys):
    (folder / 'train' / 'dog' / 'train_0.png').write_bytes(b'')
    assert call('train', config, '--work-dir', tmp_path / 'run') == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: {broken} cannot be read (AssertionError: failed to load image')
    assert error.endswith('repair or remove it; tools/verify_data.py finds all such files')
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file(), 'the epoch with the empty file came to its end'
    assert call('test', config, tmp_path / 'run' / 'epoch_1.pth', '--work-dir', tmp_path / 'test') == 2
    assert capsys.readouterr().err.splitlines()[-1] == error


def test_the_online_probe_names_the_broken_image(broken, config):
    hook = OnlineProbeHook(str(config))
    model = build_model(load_config(PRETRAIN))
    hook.prepare(model)
    with pytest.raises(UnreadableSample, match=rf'^{broken} cannot be read .*, and an evaluation replaces no image'):
        hook.scores(model)


@pytest.mark.parametrize('task, scenes', [('seg', 'images/validation'), ('det', 'val2017')])
def test_dense_evaluations_name_the_broken_file(task, scenes, tmp_path):
    """Also a JPEG whose end is zeros, which OpenCV and Pillow accept."""
    options = {f'{part}_dataloader.dataset.data_root': str(tmp_path / 'scenes') for part in ('train', 'val', 'test')}
    cfg = load_config(DENSE[task], options | dict(experiment_name=f'images_{next(COUNT)}', log_level='ERROR'))
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.scenes.update(train=1, val=2)
        cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False, batch_size=1)
    if task == 'det':
        cfg.test_evaluator.ann_file = cfg.val_evaluator.ann_file = str(
            tmp_path / 'scenes/annotations/instances_val2017.json'
        )
    runner = build_runner(cfg, DENSE[task], str(tmp_path / 'run'))
    loop = runner.build_test_loop(runner._test_loop)
    assert len(list(loop.dataloader)) == 2
    path = tmp_path / 'scenes' / scenes / '000002.jpg'
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-900] + bytes(900))
    with pytest.raises(UnreadableSample, match=rf'^{path} .*cannot be read \(ValueError: .*is cut off'):
        list(loop.dataloader)
    path.write_bytes(whole)
    if task == 'seg':
        mask = tmp_path / 'scenes/annotations/validation/000002.png'
        mask.write_bytes(b'nothing')
        with pytest.raises(UnreadableSample, match=f'^{path} or its mask {mask} cannot be read'):
            list(loop.dataloader)
