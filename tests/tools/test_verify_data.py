"""tools/verify_data.py: exit codes and files."""

import json
from pathlib import Path

from calling import call_tool
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]


def call(*args) -> int:
    return call_tool('verify_data', *args, '--workers', 0)


def test_a_folder_and_a_config_of_it(tmp_path, capsys):
    folder = tmp_path / 'images'
    folder.mkdir()
    for value in range(3):
        Image.new('RGB', (40, 30), (value, 0, 0)).save(folder / f'{value}.png')
    assert call(folder) == 0
    assert '3 images in' in capsys.readouterr().out
    (folder / '1.png').write_bytes(b'nothing')
    assert call(folder, '--out', tmp_path / 'r.json', '--write-list', tmp_path / 'good.txt') == 1
    assert f'FAULT: images: not an image: 1\n  {folder / "1.png"}: starts with' in capsys.readouterr().out
    assert json.loads((tmp_path / 'r.json').read_text())['faults'] == 1
    assert (tmp_path / 'good.txt').read_text() == '0.png\n2.png\n'
    config = (
        REPOSITORY / 'configs/pretrain/bootmae_small_data.py',
        '--split',
        'train',
        '--cfg-options',
        f'train_dataloader.dataset.roots={folder}',
    )
    assert call(*config) == 1
    assert 'train: ImageFiles: 3 images' in capsys.readouterr().out
    assert call(*config, f'train_dataloader.dataset.list_file={tmp_path / "good.txt"}') == 0


def test_user_errors(tmp_path, capsys):
    assert call(tmp_path / 'nothing') == 2
    assert 'does not exist: give a config, a folder' in capsys.readouterr().err
    assert call(tmp_path / 'nothing.py') == 2
    (tmp_path / 'list.txt').write_text('a.jpg\n')
    assert call(tmp_path / 'list.txt', '--write-list', tmp_path / 'good.txt') == 2
    assert 'lists the good images of a folder' in capsys.readouterr().err
    for split in ('train', 'val'):
        (tmp_path / 'both' / split).mkdir(parents=True)
    for data, option, message in (
        (tmp_path / 'list.txt', ('--split', 'val'), '--split is for the data loaders of a config'),
        (tmp_path / 'list.txt', ('--labels', 'folder'), '--labels is for a folder or a tar'),
        (tmp_path / 'both', ('--root', tmp_path), '--root is for a list of images'),
        ('configs/pretrain/bootmae_debug.py', ('--root', tmp_path), '--root is for a list of images'),
        ('configs/pretrain/bootmae_debug.py', ('--labels', 'none'), '--labels is for a folder or a tar'),
    ):
        assert call(data, *option) == 2
        assert message in capsys.readouterr().err
    assert call(tmp_path / 'both', '--write-list', tmp_path / 'good.txt') == 2
    assert f'the images of train, val into one list: give one of these folders, such as {tmp_path}/both/train' in (
        capsys.readouterr().err
    )


def test_a_list_of_the_training_images_for_the_whole_folder(tmp_path, capsys):
    """``--data FOLDER`` trains on FOLDER/train, whose list it takes."""
    for split, count in (('train', 4), ('val', 2)):
        (tmp_path / 'set' / split).mkdir(parents=True)
        for value in range(count):
            Image.new('RGB', (40, 30), (value, len(split), 0)).save(tmp_path / 'set' / split / f'{value}.png')
    names = tmp_path / 'new' / 'good.txt'
    assert call(tmp_path / 'set' / 'train', '--write-list', names) == 0
    assert names.read_text() == '0.png\n1.png\n2.png\n3.png\n'
    config = REPOSITORY / 'configs/pretrain/bootmae_small_data_cpu.py'
    options = ['batch_size=4', f'dataset.list_file={names}']
    options = [f'train_dataloader.{option}' for option in options] + ['auto_scale_lr.base_batch_size=4']
    dry = ['--dry-run', '--cfg-options', *options, 'default_hooks.probe=None']
    assert call_tool('train', config, '--data', tmp_path / 'set', *dry) == 0
    assert 'train_images       4\n' in capsys.readouterr().out


def test_the_name_of_a_config(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'set').mkdir()
    Image.new('RGB', (40, 30)).save(tmp_path / 'set' / '0.png')
    assert call('bootmae_small_data_cpu', '--data', 'set') == 0
    assert 'train: ImageFiles: 1 image' in capsys.readouterr().out
    assert call_tool('channel_statistics', 'configs/pretrain/bootmae_small_data_cpu.py', '--data', 'set') == 0
    assert 'image_channels = dict(' in capsys.readouterr().out
