"""Values of the command line keep what the user wrote, and options that have no effect are errors."""

import argparse
import copy
import math
from functools import cache

import pytest

from bootmae.config.load import load_config, read_file
from bootmae.config.options import IMAGES, OptionText, add_config_options, format_value, parse_value
from bootmae.config.settings import apply_options
from bootmae.results.provenance import REPOSITORY

SMALL = 'configs/pretrain/bootmae_small_data.py'
TUNE = 'configs/cls/bootmae_small_data_finetune.py'
ROOTS = 'train_dataloader.dataset.roots'
NAMES = [
    *(
        '/data/my images',
        ' lead and trail ',
        'a,b',
        '/x/a, b',
        "it's",
        '/x/"quoted" name',
        'a[1]',
        '[a]',
        '[1] x',
        '(a)',
    ),
    *('007', '2024', '1e3', 'größe/猫', 'a=b', r'C:\new\images', '{000..146}', '{1}', '1,2', 'yes', '...'),
]


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def parse(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    return parser.parse_args([*words]).cfg_options


@cache
def read(path: str):
    return read_file(path)


def load(path: str, *pairs: str):
    cfg = copy.deepcopy(read(path))
    apply_options(cfg, parse('--cfg-options', *pairs))
    return cfg


@pytest.mark.parametrize('name', NAMES)
def test_names_are_kept(name):
    """In place of a text, a value is that text, whatever it looks like; also through the commands of a suite."""
    assert load(SMALL, f'{ROOTS}={name}').train_dataloader.dataset.roots == name
    assert parse_value(format_value(name), True) == parse_value(format_value(name)) == name
    assert parse('--data', name)['images'] == [name]


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        *(
            ('3', 3),
            ('1e-4', 1e-4),
            ('1_000', 1000),
            ('-inf', -math.inf),
            ('True', True),
            ('false', False),
            ('null', None),
        ),
        *(('1,2,3', [1, 2, 3]), ('(0.6,1.0)', (0.6, 1.0)), ('[1, [2, "a, b"]]', [1, [2, 'a, b']]), ('1,x', '1,x')),
        *(
            ('[wandb,mlflow]', ['wandb', 'mlflow']),
            ('[(0,a),(1,b)]', [(0, 'a'), (1, 'b')]),
            ('()', ()),
            ('a)(b', 'a)(b'),
        ),
        *(('{"a": true}', {'a': True}), ("{'a': 1}", {'a': 1}), ('"my text"', 'my text'), ("'7'", '7'), ('1j', '1j')),
        *(('(a)(b)', '(a)(b)'), ('[a', '[a'), ('007', '007'), ('b"x"', 'b"x"'), ("'a','b'", ['a', 'b'])),
    ],
)
def test_meaning_without_a_text_in_its_place(text, value):
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))


def test_meaning_in_place_of_a_text():
    assert parse_value('None', True) is None
    assert parse_value('False', True) is False
    assert parse_value('["/a", "/b c"]', True) == parse_value('[/a,/b c]', True) == ['/a', '/b c']
    assert parse_value('a,b', wants_list=True) == ['a', 'b']


def test_annotations_tell_names_from_numbers():
    """`labels: str | int` of a hook holds 'all'; `list_file: str` and `tasks: Sequence[str]` are not in the config."""
    cfg = load(
        SMALL,
        'default_hooks.probe.labels=5',
        'default_hooks.probe.tasks=knn,linear',
        'train_dataloader.dataset.list_file=2024',
        'model.backbone.arch={"embed_dims": 64, "depth": 3, "num_heads": 2}',
    )
    assert cfg.default_hooks.probe.labels == 5
    assert cfg.default_hooks.probe.tasks == ['knn', 'linear']
    assert cfg.train_dataloader.dataset.list_file == '2024'
    assert cfg.model.backbone.arch == dict(embed_dims=64, depth=3, num_heads=2)


def test_values_of_other_kinds_than_their_setting():
    for pair, message in {
        'train_cfg.max_epochs=ten': r'=ten: give a number \(in configs/pretrain/bootmae_small_data.py it is 400\)',
        'train_cfg.max_epochs=': r'max_epochs= has no value; give train_cfg.max_epochs=None to unset it',
        'optim_wrapper.optimizer.lr=fast': 'lr=fast: give a number',
        'train_dataloader.persistent_workers=no': 'persistent_workers=no: give True or False',
        'model.backbone=3': r'it is a group of settings; give model.backbone.NAME=VALUE',
        'model.backbone.arch.depth=3': "model.backbone.arch is 'small' in .*, not a group of settings",
        'custom_hooks.7.ramp=0': '7 is no item of a list of 1',
        'load_from.x=3': 'load_from is None in .*, so it has no settings',
    }.items():
        with pytest.raises(ValueError, match=message):
            load(SMALL, pair)


@pytest.mark.parametrize('words', [['lr'], ['=3'], ['model..depth=3']])
def test_what_is_no_option(words, capsys):
    with pytest.raises(SystemExit):
        parse('--cfg-options', *words)
    assert f'--cfg-options {words[0]!r}: give KEY=VALUE' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('path', 'pair', 'message'),
    [
        (SMALL, 'compil=True', "compil=True has no effect: nothing reads 'compil'; set compile"),
        (SMALL, 'optimizer.lr=1e-2', "nothing reads 'optimizer'; set optim_wrapper.optimizer.lr"),
        (SMALL, 'lr=1', 'set optim_wrapper.optimizer.lr'),
        (SMALL, 'seed=3', 'set randomness.seed'),
        (SMALL, 'max_epochs=3', 'set train_cfg.max_epochs'),
        (SMALL, 'batchsize=3', 'set train_dataloader.batch_size'),
        (SMALL, 'data_root=/x', 'data_root is a variable of .*; give the images by --data PATH'),
        (TUNE, 'num_classes=3', 'set data_preprocessor.num_classes, model.head.num_classes'),
        (TUNE, 'train_pipeline.2.prob=0', 'set train_dataloader.dataset.pipeline.2.prob'),
        (SMALL, 'default_hooks.prob=None', "there is no hook 'prob'; is probe meant"),
    ],
)
def test_options_without_effect(path, pair, message):
    with pytest.raises(ValueError, match=message):
        load(path, pair)


def test_options_are_kept_apart_from_texts_of_python():
    """Values of the API and of suite files have their types; only texts of a command line are interpreted."""
    assert load_config(SMALL, {ROOTS: "'7'"}).train_dataloader.dataset.roots == "'7'"
    assert load_config(SMALL, {ROOTS: OptionText("'7'")}).train_dataloader.dataset.roots == '7'


def test_images_that_are_given_twice_accumulate():
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    words = ['--data', 'a', 'b', '--cfg-options', 'x=1', '--data', 'c', '--cfg-options', 'y=2']
    found = parser.parse_args(words).cfg_options
    assert found == {IMAGES: ['a', 'b', 'c'], 'x': '1', 'y': '2'}


@pytest.mark.parametrize('nothing', [[], '', OptionText('[]'), OptionText('')])
def test_images_that_are_none(nothing):
    """The config's own images would be used instead."""
    with pytest.raises(ValueError, match=r'--data \(images=.*\) is empty: give at least one path'):
        load_config(SMALL, {IMAGES: nothing})
