"""Pages: everything that they name exists, their commands are valid, and all tables are generated."""

from pathlib import Path

import pytest
from docs_checker import anchors, commands_of, options_of, paths_of, problems

from pages.markers import pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = pages(ROOT)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_only_what_is_there(page):
    assert not problems(page, page.read_text(encoding='utf-8'), ROOT)


def test_the_names_are_found():
    names = paths_of((ROOT / 'docs' / 'reliability.md').read_text(encoding='utf-8'))
    assert 'tests/engine/runner/test_loops.py' in names
    assert len(names) > 20
    commands = list(commands_of((ROOT / 'README.md').read_text(encoding='utf-8')))
    assert ['make', 'demo'] in commands
    assert ['tools/parity.py', 'tests/golden/*.npz'] in commands


@pytest.mark.parametrize(
    'text',
    [
        'See [the method](bootmae/models/bootmae.py), [promises](docs/reliability.md#slurm), [it](#head).\n## Head\n',
        'Set `configs/pretrain/{method}_vitb.py`, `configs/{cls,seg}/*.py`, tests/checkpoints/release_*.pth.xz.',
        'Write `configs/pretrain/METHOD.py` or `my_config.py`, data in data/imagenet/, runs in work_dirs/x/epoch_1.pth',
        '`tools/train.py CONFIG --cfg-options a=1 b=-2 --resume FILE`, `tools/dist_train.sh CONFIG 8 --init FILE`',
        '```bash\nX=1 make demo DEMO=small  # --nothing\n.venv/bin/python -m pytest \\\n  -q && make test\n```',
        '```text\nmake nothing\n| no | table |\n```',
        '<!-- speed: step -->\n| a | b |\n| --- | --- |\n<!-- /speed -->\n',
        '`make bench`, `python -m bootmae.results.rows`, `tools/knn.py CONFIG --init FILE --tasks knn linear --k 5`',
        'https://host/tools/none.py and /my/configs/none.py are not ours',
        '<!-- typed: facts of the paper -->\n| a | b |\n| --- | --- |\n',
    ],
)
def test_what_is_right_passes(text):
    assert problems(ROOT / 'README.md', text, ROOT) == []


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('`tools/train.py CONFIG --cfg-option a=1`', 'train.py has no option --cfg-option'),
        ('```bash\ntools/dist_train.sh CONFIG \\\n    8 --innit FILE\n```', 'dist_train.sh has no option --innit'),
        ('```bash\nX=1 tools/test.py CONFIG FILE; tools/plan.py CONFIG --gpu 8\n```', 'plan.py has no option --gpu'),
        ('`tools/knn.py CONFIG --init FILE --tasks knn lineer`', 'knn.py --tasks does not take lineer'),
        ('`tools/knn.py CONFIG --source=teacher`', 'knn.py --source does not take teacher'),
        ('`benchmarks/step.py --profil`', 'step.py has no option --profil'),
        ('`tools/train.py configs/pretrain/bootmae_vitx.py`', 'no file configs/pretrain/bootmae_vitx.py'),
        ('`tools/tran.py CONFIG`', 'no file tools/tran.py'),
        ('`suites/none.yaml`', 'no file suites/none.yaml'),
        ('`measuree.py` holds clocks', 'no file measuree.py'),
        ('```bash\nmake tset\n```', 'no target tset in the Makefile'),
        ('`make demo DEMMO=small`', 'make knows no DEMMO'),
        ('`python -m bootmae.nothing`', 'no module in python -m bootmae.nothing'),
        ('```\npython tools/knn.py CONFIG --label demos\n```', 'knn.py --label does not take demos'),
        ('[here](docs/nothing.md)', 'broken link docs/nothing.md'),
        ('[here](docs/reliability.md#nothing)', 'broken link docs/reliability.md#nothing'),
        ('| a | b |\n|---|---|\n| 1 | 2 |\n', 'typed table: | a | b |'),
        ('<!-- typed: -->\n| a | b |\n', 'typed table: | a | b |'),
        ('<!-- other: x -->\n| a | b |\n<!-- /other -->\n', 'typed table: | a | b |'),
    ],
)
def test_what_is_wrong_is_found(text, found):
    assert found in problems(ROOT / 'README.md', text, ROOT)


def test_anchors():
    assert anchors('# A, b: `c.d`\n## Losses that are not finite\n```bash\n# no heading\n```\n') == {
        'a-b-cd',
        'losses-that-are-not-finite',
    }


def test_options_are_those_of_the_tools_parsers():
    options = options_of(ROOT / 'tools' / 'plan.py')
    assert {'--gpus', '--images-per-second', '--cfg-options'} <= set(options)
    assert '--gpu' not in options
