"""The command that writes the page."""

import base64
import io
import json
import re

import pytest
from calling import call_tool
from page_parts import picture, rows_of, words
from PIL import Image

from bootmae.report import build_page, write_rows


@pytest.fixture
def command():
    return lambda arguments: call_tool('report', *arguments)


@pytest.fixture
def files(tmp_path):
    write_rows(tmp_path / 'r.csv', rows_of())
    folder = tmp_path / 'work' / '20260101_100000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('{"loss": 1.0, "step": 10}\n{"loss": 0.5, "step": 20}\n')
    Image.new('RGB', (8, 8)).save(tmp_path / 'grid.png')
    provenance = {'torch': '2.11', 'commands': {'Run': 'make demo'}, 'notes': ['Note.']}
    (tmp_path / 'p.json').write_text(json.dumps(provenance))
    return tmp_path


def test_command_writes_the_page_and_prints_the_table(command, files, capsys):
    code = command(
        [
            str(files / 'r.csv'),
            '--out',
            str(files / 'a.html'),
            '--title',
            'My title',
            '--run',
            f'digits/mae/0={files / "work"}',
            '--picture',
            f'a=b={files / "grid.png"}',
            '--provenance',
            str(files / 'p.json'),
            '--prediction',
            f'Scenes={files / "grid.png"}',
        ]
    )
    assert code == 0
    out = capsys.readouterr().out
    assert '---- digits ----' in out
    assert 'linear probe     all  60.1 ± 0.1 (2)  90.1 ± 0.1 (2)  92.1 ± 0.1 (2)  +2.00 ± 0.00 (2)\n' in out
    assert 'BootMAE is above MAE in all 2 comparisons.' in out
    assert str(files / 'a.html') in out
    text = words((files / 'a.html').read_text())
    for given in ('My title', 'digits, MAE', 'a=b', 'torch', 'make demo', 'Note.', 'Predictions Scenes'):
        assert given in text


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (['--run', 'digits/mae=nowhere'], 'nowhere: no scalars.json'),
        (['--picture', 'a=nowhere.png'], 'nowhere.png'),
        (['--prediction', 'a=nowhere.png'], 'nowhere.png'),
        (['--prediction', 'a=r.csv'], "picture 'a' cannot be read"),
        (['--picture', 'a=r.csv'], "picture 'a' cannot be read"),
        (['--provenance', 'r.csv'], 'r.csv: not JSON'),
        (
            ['--picture', 'a=grid.png', '--picture', 'a=grid.png'],
            "two pictures have the caption 'a': give each its own",
        ),
        (['--screenshots', 'shots', '--run', 'digits/mae=work'], '--screenshots shows a report that exists, so --run'),
    ],
)
def test_command_errors_are_one_line(command, files, capsys, monkeypatch, extra, message):
    monkeypatch.chdir(files)
    assert command(['r.csv', '--out', 'a.html', *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not (files / 'a.html').exists()


def test_command_draws_a_downstream_training(command, files):
    folder = files / 'seg' / '20260101_100000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(
        '{"loss": 1.0, "iter": 9, "step": 9}\n{"mIoU": 10.0, "step": 10}\n{"mIoU": 30.0, "step": 20}\n'
    )
    (folder.parent / 'classes.json').write_text('{"IoU": {"sky": 61.5}, "Acc": {"sky": 9}}')
    code = command(
        [str(files / 'r.csv'), '--out', str(files / 'a.html'), '--downstream', f'scenes/mae/0={files / "seg"}']
    )
    assert code == 0
    page = (files / 'a.html').read_text()
    assert '<h3>scenes, mIoU</h3>' in page
    assert 'Class MAE sky 61.5' in words(page)
    assert 'segmentation Acc' not in page


def test_command_without_results(command, tmp_path, capsys):
    assert command([str(tmp_path / 'none.csv')]) == 2
    assert 'no such results file' in capsys.readouterr().err


def test_decoded_picture_is_the_given_one():
    data = picture()
    page = build_page('Title', rows_of(), pictures={'a': data})
    uri = re.search(r'<img src="data:image/png;base64,([^"]+)"', page)[1]
    assert base64.b64decode(uri) == data
    width, height = Image.open(io.BytesIO(data)).size
    assert f'width="{width}" height="{height}"' in page
