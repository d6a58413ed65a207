"""What a run would find is found before it: tools/train.py --dry-run, tools/plan.py and tools/suite.py --dry-run."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from calling import call_tool

from bootmae.results.provenance import REPOSITORY

PRETRAIN = REPOSITORY / 'configs/pretrain/bootmae_small_data_cpu.py'
TUNE = REPOSITORY / 'configs/cls/bootmae_small_data_cpu_finetune.py'
BATCH = ['train_dataloader.batch_size=4', 'auto_scale_lr.base_batch_size=4']
TWO = ['model.head.num_classes=2', 'data_preprocessor.num_classes=2']


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    """A folder with blanks and commas in its name, with 8 images for training and 2 for validation."""
    root, rng = tmp_path_factory.mktemp('data') / "my images, it's [1]", np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 1)):
        for name in ('cat', 'dog'):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(root / split / name / f'{i}.jpg'), rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    return root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize('tool', [('train', '--dry-run'), ('plan',)], ids=['train', 'plan'])
@pytest.mark.parametrize(
    ('config', 'options', 'message'),
    [
        (PRETRAIN, [], '8 training samples are too few...so an epoch would have 0 updates...lower both '
         'train_dataloader.batch_size and auto_scale_lr.base_batch_size...batch_size=8 auto_scale_lr.base_batch'),
        (PRETRAIN, ['compil=True'], 'compil=True has no effect'),
        (PRETRAIN, ['train_dataloader.batchsize=4'], 'is batch_size meant?'),
        (PRETRAIN, [*BATCH, 'load_from=none.pth'], 'load_from=none.pth: there is no such file'),
        (TUNE, BATCH, 'has 2 classes (cat, dog), but model.head.num_classes=10, data_preprocessor.num_classes=10'),
        (TUNE, [*BATCH, 'model.head.num_classes=1', TWO[1]], 'has 2 classes (cat, dog), but model.head.num_classes=1:'),
    ],
)  # fmt: skip
def test_faults(images, capsys, tool, config, options, message):
    flags = ['--cfg-options', *options] if options else []
    assert call_tool(tool[0], config, '--data', images, *tool[1:], *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert all(part in error for part in message.split('...'))


def test_a_training_refuses_what_its_rehearsal_refuses(images, capsys):
    for options in (BATCH, [*BATCH, 'model.head.num_classes=1', TWO[1]]):
        assert call_tool('train', TUNE, '--data', images, '--cfg-options', *options) == 2
        assert 'has 2 classes (cat, dog), but model.head.num_classes=' in capsys.readouterr().err


def test_missing_folders_and_files(images, capsys):
    for tool in (('plan',), ('train', '--dry-run')):
        assert call_tool(tool[0], PRETRAIN, '--data', 'no where', *tool[1:]) == 2
        assert 'roots=no where does not exist' in capsys.readouterr().err
    assert call_tool('train', PRETRAIN, '--dry-run') == 2, 'also those of the config'
    assert 'roots=data/images does not exist' in capsys.readouterr().err
    given = ['--data', images, '--dry-run', '--cfg-options', *BATCH]
    assert call_tool('train', TUNE, '--init', 'none.pth', *given, *TWO) == 2
    assert 'none.pth' in capsys.readouterr().err
    assert call_tool('train', PRETRAIN, '--resume', 'none.pth', *given) == 2
    assert '--resume none.pth: there is no such file' in capsys.readouterr().err
    assert call_tool('train', PRETRAIN, *given, 'default_hooks.probe.folder=my labels') == 2
    assert 'roots=my labels does not exist' in capsys.readouterr().err


def test_a_plan_says_what_is_a_guess(images, capsys):
    assert call_tool('plan', PRETRAIN) == 0
    told = capsys.readouterr().out
    assert 'train_images       1,000' in told
    assert "train_images is the config's guess, since no image was found: roots=data/images does not exist" in told
    assert call_tool('plan', PRETRAIN, '--data', images, '--cfg-options', *BATCH) == 0
    told = capsys.readouterr().out
    assert 'train_images       8\n' in told
    assert 'note' not in told


def test_a_rehearsal_trains_nothing(images, capsys, tmp_path):
    assert call_tool('train', TUNE, '--data', images, '--dry-run', '--cfg-options', *BATCH, *TWO) == 0
    assert capsys.readouterr().out.endswith('no fault was found; nothing was trained\n')
    assert not list(tmp_path.iterdir())


def test_knn_and_verification_read_given_images(images, capsys):
    assert call_tool('knn', TUNE, '--untrained', 1, '--data', images, '--data-name', 'mine') == 0
    assert 'mine untrained seed 0 k-NN, all labels: ' in capsys.readouterr().out
    assert call_tool('verify_data', TUNE, '--data', images, '--workers', 0) == 0
    assert '10 images' in capsys.readouterr().out
    assert call_tool('verify_data', images, '--data', images) == 2
    assert '--data and --cfg-options change a config, but' in capsys.readouterr().err


def test_knn_of_a_config_of_another_kind(capsys):
    assert call_tool('knn', PRETRAIN, '--untrained', 1) == 2
    assert (
        'bootmae_small_data_cpu.py has the model BootMAE, but k-NN needs labeled images and an ImageClassifier: give a '
        'config of configs/cls, such as configs/cls/bootmae_small_data_cpu_finetune.py'
    ) in capsys.readouterr().err


def test_parts_of_configs(capsys):
    for tool in (['train'], ['plan'], ['test', 'x.pth'], ['knn', '--untrained', 1]):
        assert call_tool(tool[0], REPOSITORY / 'configs/_base_/camvid.py', *tool[1:]) == 2
        assert 'camvid.py has ' in capsys.readouterr().err


def test_a_suite_names_the_faults_of_all_cells(images, capsys, tmp_path):
    suite = yaml.safe_load((REPOSITORY / 'suites/own_images.yaml').read_text())
    size = suite['sizes']['cpu']
    size['pretrain']['options'] = {'compil': True}
    size['tasks']['frozen']['options'] |= {'model.backbone.dept': 2}
    suite['tasks']['finetune'] = dict(suite['tasks']['finetune'], options={'images': 'no where'})
    suite['methods'] = {'untrained': None, 'mae': None, 'mine': {'configs': 'mae', 'weights': 'none.pth'}}
    suite['tasks']['knn'] = dict(config='configs/cls/bootmae_debug_finetune.py', data='digits')
    (tmp_path / 'my.yaml').write_text(yaml.safe_dump(suite))
    call = ['suite', tmp_path / 'my.yaml', '--size', 'cpu', '--out', tmp_path / 'out', '--dry-run', '--gpus', 1]
    assert call_tool(*call) == 2
    told = capsys.readouterr()
    assert 'pretrain/mae-0' in told.out, 'the plan'
    lines = told.err.splitlines()
    assert lines[0] == 'error: these cells would fail:'
    assert any(line.startswith('pretrain/mae-0: compil=True has no effect') for line in lines)
    assert any('model.backbone.dept=2: no such setting of PlainViT; is depth meant?' in line for line in lines)
    assert any(
        line.startswith('finetune/mae-0, finetune/mine-0') and 'roots=no where does not exist' in line for line in lines
    )
    assert any('methods.mine.weights: there is no none.pth' in line for line in lines)


def test_a_suite_with_other_images(images, capsys, tmp_path):
    suite = yaml.safe_load((REPOSITORY / 'suites/own_images.yaml').read_text())
    suite['pretrain']['options'] |= {'train_dataloader.batch_size': 4, 'auto_scale_lr.base_batch_size': 4}
    for part in (suite, suite['sizes']['cpu']):
        del part['tasks']
    (tmp_path / 'my.yaml').write_text(yaml.safe_dump(suite))
    call = [
        'suite',
        tmp_path / 'my.yaml',
        '--size',
        'cpu',
        '--out',
        tmp_path / 'out',
        '--dry-run',
        '--gpus',
        1,
        '--data',
    ]
    assert call_tool(*call, images / 'train') == 0
    assert f'{8 * 60:,}' in capsys.readouterr().out
    assert call_tool(*call, tmp_path / 'no where') == 2
    assert f'pretrain/mae-0, pretrain/bootmae-0: roots={tmp_path}/no where does not exist' in capsys.readouterr().err


def test_labels_outside_the_classes(tmp_path, capsys):
    """A rehearsal reads the masks of both loaders, and the annotations of the evaluator, as a run does."""
    for split in ('train', 'val'):
        for kind, ending in (('images', 'jpg'), ('masks', 'png')):
            (tmp_path / 'set' / kind / split).mkdir(parents=True)
            for i in range(4):
                shape = (64, 80, 3) if kind == 'images' else (64, 80)
                labels = np.arange(64 * 80 * (3 if kind == 'images' else 1)) % (4 if split == 'val' else 3)
                cv2.imwrite(
                    str(tmp_path / 'set' / kind / split / f'{i}.{ending}'), labels.reshape(shape).astype(np.uint8)
                )
    config = REPOSITORY / 'configs/seg/upernet_own_cpu.py'
    options = ['classes=background,road,car', *BATCH]
    assert call_tool('train', config, '--data', tmp_path / 'set', '--dry-run', '--cfg-options', *options) == 2
    assert 'masks/val/0.png: ' in (error := capsys.readouterr().err)
    assert 'label 3 of 3 classes 0..2' in error


def test_the_first_process_rehearses_for_all(capsys, monkeypatch):
    digits = REPOSITORY / 'configs/pretrain/mae_debug.py'
    for rank, lines in (('0', 1), ('1', 0)):
        monkeypatch.setenv('RANK', rank)
        monkeypatch.setenv('WORLD_SIZE', '2')
        options = ['train_dataloader.batch_size=16']
        assert call_tool('train', digits, '--dry-run', '--launcher', 'pytorch', '--cfg-options', *options) == 0
        out = capsys.readouterr().out
        assert out.count('no fault was found') == out.count('gpus               2\n') == lines
