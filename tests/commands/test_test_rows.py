"""Result rows of a trained model say where its encoder comes from, as the checkpoint records it."""

import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from calling import call_tool

from bootmae.checkpoints import read_checkpoint
from bootmae.checkpoints.write import write_checkpoint
from bootmae.places import REPOSITORY
from bootmae.results.rows import ResultRow, read_rows

PRETRAIN = REPOSITORY / 'configs' / 'pretrain' / 'bootmae_debug.py'
TUNE = REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
SEGMENT = REPOSITORY / 'configs' / 'seg' / 'bootmae_vitb_upernet.py'
COUNT = itertools.count()
SMALL = ['log_level=ERROR', 'train_dataloader.dataset.indices=32']
PARTS = [f'{part}_dataloader.dataset.indices=32' for part in ('val', 'test')]
FINETUNE = ['task=finetune', 'label=demo']


def call(tool: str, *args, options=()) -> int:
    return call_tool(tool, *args, '--cfg-options', f'experiment_name=rows_{next(COUNT)}', *SMALL, *options)


def tune(work_dir: Path, *args, options=()) -> int:
    options = [*PARTS, 'train_cfg.max_epochs=2', 'randomness.seed=3', *options]
    return call('train', TUNE, '--work-dir', work_dir, *args, options=options)


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    """The encoders A.pth and B.pth, a fine-tuning run from A.pth in ``a``, and one from random weights in ``none``."""
    folder = tmp_path_factory.mktemp('runs')
    assert call('train', PRETRAIN, '--work-dir', folder / 'pretrained', options=['train_cfg.max_epochs=1']) == 0
    content = read_checkpoint(folder / 'pretrained' / 'epoch_1.pth')
    for name in 'AB':
        content['meta']['bootmae']['config'] = f'{name}.py'
        write_checkpoint(folder / f'{name}.pth', content)
        content['state_dict'] = {key: value + 0.01 for key, value in content['state_dict'].items()}
    assert tune(folder / 'a', '--init', folder / 'A.pth') == 0
    assert tune(folder / 'none') == 0
    return folder


@pytest.fixture
def judge(tmp_path, capsys):
    """``judge(checkpoint, *args)``: the row of a test, or its error."""

    def make(checkpoint: Path, *args) -> ResultRow | str:
        rows = tmp_path / f'{next(COUNT)}.csv'
        settings = ['--work-dir', tmp_path / 'test', '--rows', rows, '--row', *FINETUNE]
        code = call('test', TUNE, checkpoint, *settings, *args, options=[*PARTS, 'train_cfg.max_epochs=1'])
        error = capsys.readouterr().err
        return read_rows(rows)[0] if code == 0 else error.splitlines()[-1]

    return make


def recorded(path: Path) -> str:
    return read_checkpoint(path)['meta']['bootmae']['init_hash']


def test_the_encoder_seed_and_length_are_those_of_the_checkpoint(runs, judge):
    """And not of the config, whose seed is 0 and which trains for one epoch."""
    row = judge(runs / 'a' / 'epoch_2.pth', '--init', runs / 'A.pth')
    assert (row.method, row.config, row.checkpoint_hash) == ('bootmae', 'A.py', recorded(runs / 'a' / 'epoch_2.pth'))
    assert (row.checkpoint, row.seed) == ('A.pth', 3)
    assert row.protocol == 'all weights trained, 2 epochs, 32 px'
    again = judge(runs / 'a' / 'epoch_2.pth')
    assert again == replace(row, config_hash=again.config_hash), 'the recorded file is still there'
    half = judge(runs / 'a' / 'epoch_1.pth', '--init', runs / 'A.pth')
    assert half.protocol == 'all weights trained, 1 of 2 epochs, 32 px'


def test_another_encoder_is_refused(runs, judge, tmp_path):
    line = judge(runs / 'a' / 'epoch_2.pth', '--init', runs / 'B.pth')
    ours = recorded(runs / 'a' / 'epoch_2.pth')
    found = re.fullmatch(
        rf'error: --init \S+/B.pth has the encoder \[(.*)\], but \S+/epoch_2.pth started from \S+/A.pth \[{ours}\]: '
        'give the file of that encoder with --init, or leave out --rows',
        line,
    )
    assert found
    assert ours not in found[1]
    content = read_checkpoint(runs / 'a' / 'epoch_2.pth')
    content['meta']['identity']['init'] = content['meta']['bootmae']['init'] = 'gone.pth'
    write_checkpoint(tmp_path / 'epoch_2.pth', content)
    assert re.match(
        rf'error: \S+ started from the encoder gone.pth \[{ours}\], and this file is not there: give it with --init',
        judge(tmp_path / 'epoch_2.pth'),
    )
    assert judge(tmp_path / 'epoch_2.pth', '--init', runs / 'A.pth').checkpoint_hash == ours


def test_any_encoder_of_a_file_counts(runs, judge, tmp_path):
    """A suite gives ``--init`` to the test, but not which encoder of the file the training took."""
    assert tune(tmp_path / 'run', '--init', runs / 'A.pth', '--source', 'momentum') == 0
    row = judge(tmp_path / 'run' / 'epoch_2.pth', '--init', runs / 'A.pth')
    assert row.checkpoint_hash == recorded(tmp_path / 'run' / 'epoch_2.pth') != recorded(runs / 'a' / 'epoch_2.pth')


def test_random_weights(runs, judge):
    row = judge(runs / 'none' / 'epoch_2.pth')
    assert (row.method, row.checkpoint, row.checkpoint_hash, row.seed) == ('untrained', '', '', 3)
    line = judge(runs / 'none' / 'epoch_2.pth', '--init', runs / 'A.pth')
    assert line.endswith('records that its training started from random weights: leave out --init')


def test_another_number_of_labels(runs, judge):
    line = judge(runs / 'a' / 'epoch_2.pth', '--cfg-options', 'train_dataloader.dataset.labels_per_class=2')
    assert re.search(
        r'epoch_2.pth was trained with train_dataloader.dataset.labels_per_class=(None|\d+), but \S+ has 2: give the '
        'config and options of its training, or leave out --rows$',
        line,
    )


def test_a_checkpoint_that_records_nothing(runs, judge, tmp_path):
    content = read_checkpoint(runs / 'a' / 'epoch_2.pth')
    for key in ('bootmae', 'identity', 'seed'):
        del content['meta'][key]
    write_checkpoint(tmp_path / 'epoch_2.pth', content)
    assert 'was saved after 2 epochs, but' in judge(tmp_path / 'epoch_2.pth', '--init', runs / 'A.pth')
    content['meta']['epoch'] = 1
    write_checkpoint(tmp_path / 'epoch_2.pth', content)
    assert 'does not record the encoder that its training started from: give it with' in judge(tmp_path / 'epoch_2.pth')
    assert judge(tmp_path / 'epoch_2.pth', '--row', 'method=mine').method == 'mine', '--row accumulates'
    row = judge(tmp_path / 'epoch_2.pth', '--init', runs / 'A.pth')
    assert (row.method, row.config, row.seed) == ('bootmae', 'A.py', 0)


def row_of_training(folder: Path, *args, options=()) -> ResultRow:
    assert tune(folder, *args, '--rows', folder / 'rows.csv', '--row', *FINETUNE, options=options) == 0
    return read_rows(folder / 'rows.csv')[0]


def test_rows_of_a_training_whose_encoder_the_config_names(runs, judge, tmp_path):
    start = ['model.backbone.init_cfg.type=EncoderWeights', f'model.backbone.init_cfg.checkpoint={runs / "A.pth"}']
    row = row_of_training(tmp_path / 'run', options=start)
    assert (row.method, row.config, row.seed) == ('bootmae', 'A.py', 3)
    assert row.checkpoint_hash == recorded(runs / 'a' / 'epoch_2.pth')


def test_rows_of_a_training_that_is_resumed_without_its_encoder(runs, tmp_path):
    shutil.copytree(runs / 'a', tmp_path / 'run')
    row = row_of_training(tmp_path / 'run', '--resume', '--resume-changed')
    assert (row.method, row.checkpoint, row.config) == ('bootmae', 'A.pth', 'A.py')
    assert row.checkpoint_hash == recorded(runs / 'a' / 'epoch_2.pth')


def test_rows_of_a_training_from_a_whole_model(runs, judge, tmp_path):
    """If the model started from an encoder, that is the encoder; if not, the row has at least the model's file."""
    row = row_of_training(tmp_path / 'one', options=[f'load_from={runs / "a" / "epoch_2.pth"}'])
    assert (row.method, row.config, row.checkpoint_hash) == ('bootmae', 'A.py', recorded(runs / 'a' / 'epoch_2.pth'))
    row = row_of_training(tmp_path / 'two', options=[f'load_from={runs / "none" / "epoch_2.pth"}'])
    assert (row.method, row.checkpoint, row.checkpoint_hash) == ('epoch_2', 'epoch_2.pth', '')
    assert judge(tmp_path / 'two' / 'epoch_2.pth').method == 'epoch_2'
    assert 'started from load_from=' in judge(tmp_path / 'two' / 'epoch_2.pth', '--init', runs / 'A.pth')


@pytest.mark.parametrize(
    ('config', 'args', 'message'),
    [
        (TUNE, ['--row', 'task=finetune'], '--row task=finetune needs --rows FILE.csv'),
        (TUNE, ['--init', 'a.pth'], '--init a.pth is only for the rows: add --rows FILE.csv'),
        (
            TUNE,
            ['--work-dir', 'a', '--cfg-options', 'work_dir=b'],
            '--work-dir a and --cfg-options work_dir=b: leave one of them out',
        ),
        (
            SEGMENT,
            ['--tta', '--cfg-options', 'test_dataloader.dataset.pipeline.1.keep_ratio=False'],
            'test_dataloader.dataset.pipeline.1.keep_ratio has no effect with --tta, which replaces this pipeline',
        ),
    ],
)
def test_arguments_without_effect(config, args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('bootmae.config.steps.check_data', lambda dataset: None)
    assert call_tool('test', config, 'missing.pth', *args) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
