"""Pages: everything that they name exists, their commands and snippets are valid, and all tables are generated."""

from pathlib import Path

import pytest
from docs_checker import (
    FENCE,
    FOLDERS,
    anchors,
    commands_of,
    link_holds,
    options_of,
    pages_named_in,
    paths_of,
    problems,
    tool_of,
)
from docs_snippets import python_problems, snippet_problems

from pages.markers import pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*pages(ROOT), ROOT / 'tests' / 'golden' / 'README.md']
CODE = ('*.py', '*.yaml', '*.sh', '*.html', '*.j2')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_only_what_is_there(page):
    assert not problems(page, page.read_text(encoding='utf-8'), ROOT)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_snippets_and_settings_of_a_page_are_valid(page):
    assert not snippet_problems(page.read_text(encoding='utf-8'), ROOT)


def test_code_names_only_pages_that_are_there():
    files = [file for folder in FOLDERS for kind in CODE for file in (ROOT / folder).rglob(kind)]
    files += [ROOT / name for name in ('Makefile', 'Dockerfile', 'pyproject.toml', 'noxfile.py')]
    names = {
        (file, name)
        for file in files
        if file != Path(__file__)
        for name in pages_named_in(file.read_text(encoding='utf-8'))
    }
    assert len(names) > 20
    assert not [pair for pair in names if not link_holds(pair[1], ROOT / 'README.md', '')]
    assert pages_named_in('# see docs/a.md, docs/b.md#part-1 and /docs/c.md') == ['docs/a.md', 'docs/b.md#part-1']


def test_the_readme_leads_to_every_page():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert [page.name for page in PAGES if page.parent.name == 'docs' and f'(docs/{page.name})' not in text] == []


def test_code_of_the_readme_fits_its_column():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert [line for _, block in FENCE.findall(text) for line in block.splitlines() if len(line) > 95] == []


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
        '<a href="docs/reliability.md#slurm"><img alt="x" src="docs/images/report-wide.png"></a>',
        '`bootmae plan bootmae_vitb --gpus 8`, `bootmae verify-data /my/images`, `bootmae --help`',
        'See `examples/simmim.py`.',
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
        ('<a href="docs/none.md">it</a>', 'broken link docs/none.md'),
        ('<source media="x"\n  srcset="docs/images/none.svg">', 'broken link docs/images/none.svg'),
        ('`bootmae plan bootmae_vitb --gpu 8`', 'plan.py has no option --gpu'),
        ('`bootmae dist_train CONFIG 8 --innit FILE`', 'dist_train.sh has no option --innit'),
        ('`bootmae plam bootmae_vitb`', 'no command bootmae plam'),
        ('See `examples/none.py`.', 'no file examples/none.py'),
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


# ---- snippets


@pytest.mark.parametrize(
    'text',
    [
        '`tools/train.py CONFIG --cfg-options model.backbone.with_cp=True train_dataloader.batch_size=64 --resume`',
        '`bootmae train bootmae_debug --cfg-options "train_cfg.max_epochs=3" compile=True`, `track=[wandb,mlflow]`',
        '`tools/train.py my_config.py`, `tools/knn.py bootmae_debug_finetune --init FILE`, `tools/plan.py CONFIG`',
        "`train_dataloader.dataset.roots='/my/shards/*.tar'`, `default_hooks.checkpoint.minutes`, `model.safetensors`",
        "```yaml\nmethods: {mae: {weights: 'timm:vit_base_patch16_224.mae'}}\n```",
        "```python\nfrom bootmae.commands.train import train\n\nrow = train('a.py', work_dir='b').value\n```",
        '```python\nimport no_such_package as it\n\nfor x in it.all():\n    with open(x) as f:\n        f.read()\n```',
        '```python\nimport torch\n```\n```python\n>>> torch.ones(2)\ntensor([1., 1.])\n```',
        "```python\n_base_ = './bootmae_small_data_cpu.py'\nmodel = dict(backbone=dict(img_size=(64, 96)))\n```",
        "```python\n_base_ = 'configs/pretrain/bootmae_debug.py'\ntrain_cfg = dict(max_epochs=3)\n```",
    ],
)
def test_right_snippets_pass(text):
    assert snippet_problems(text, ROOT) == []


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('`tools/train.py bootmae_debog`', 'did you mean bootmae_debug'),
        ('`tools/train.py CONFIG --cfg-options compil=True`', 'compil=True has no effect'),
        ('`bootmae knn bootmae_debug_finetune --cfg-options model.bakbone.depth=1`', 'is backbone meant?'),
        ('```bash\ntools/slurm_train.sh P JOB CONFIG 8 --cfg-options optim_wrapper.optimizr.lr=1\n```', 'optimizr'),
        ('Set `train_dataloader.batchsize=4`.', 'batchsize'),
        ('Set `model.backbone.with_pc`.', 'with_pc'),
        ("Set `custom_hooks=[dict(type='BootMAEHook')]`.", 'give a list of dicts'),
        ('```yaml\nmethods: [mae\n```', 'not YAML'),
        ('```yaml\nmethods: {mae: {weightsx: FILE}}\n```', 'weightsx'),
        ('```yaml\nmethods: [mae]\npretrain: configs/pretrain/{method}_vitx.py\n```', 'vitx'),
        ('```python\nx = (\n```', 'not Python'),
        ('```python\nprint(images)\n```', 'images is not defined'),
        ('```python\nimport bootmae.nothing\n```', 'no module bootmae.nothing'),
        ('```python\nfrom bootmae.text import nothing\n```', 'no nothing in bootmae.text'),
        ('```python\nimport bootmae.text\n\nbootmae.text.nothing(1)\n```', 'no bootmae.text.nothing'),
        ("```python\nfrom bootmae.text import count_of\n\ncount_of(1, 'a', words=2)\n```", "argument 'words'"),
        ('```python\nfrom bootmae.suite.spec import load_suite\n\nload_suite().sedes\n```', 'no load_suite().sedes'),
        ("```python\n_base_ = './none.py'\n```", 'no base ./none.py'),
        ("```python\n_base_ = './bootmae_debug.py'\nmodel = dict(bakbone=1)\n```", 'bakbone'),
    ],
)
def test_wrong_snippets_are_found(text, found):
    assert any(found in problem for problem in snippet_problems(text, ROOT)), snippet_problems(text, ROOT)


def test_names_of_a_page_go_on_in_its_next_block():
    names = {'print': print}
    assert python_problems('import torch as t\nx, y = 1, t.ones(2)', names, ROOT) == []
    assert python_problems('print(x, y, t.zeros(1))', names, ROOT) == []
    assert python_problems('t.zeroos(1)', names, ROOT) == ['no t.zeroos']


@pytest.mark.parametrize(
    ('words', 'found'),
    [
        ('python tools/knn.py A --init B', ('knn', ['A', '--init', 'B'])),
        ('tools/slurm_train.sh P JOB A 8', ('train', ['A', '8'])),
        ('bootmae verify-data A', ('verify_data', ['A'])),
        ('bootmae dist_test A B', ('test', ['A', 'B'])),
        ('make test', ('', ['test'])),
    ],
)
def test_the_tool_of_a_command(words, found):
    assert tool_of(words.split()) == found
