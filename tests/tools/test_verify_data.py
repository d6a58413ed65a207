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
