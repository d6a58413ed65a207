"""Tests of the work-arounds in compat.py; those for mmcv's compiled ops are in test_compat_ops.py."""

import importlib.metadata
import importlib.util
import inspect
import logging
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmengine.logging
import mmengine.model
import pytest
import torch
from mmengine.config import Config, utils
from mmengine.model import ImgDataPreprocessor
from yapf.yapflib import yapf_api

from bootmae import compat
from bootmae.results.provenance import REPOSITORY


def test_apply_twice_changes_nothing():
    before = sys.modules[compat.OPS], mmengine.logging.print_log
    compat.apply()
    assert (sys.modules[compat.OPS], mmengine.logging.print_log) == before


def test_all_three_libraries_import_and_are_quiet():
    imports = 'bootmae.registry, mmcv.ops, mmpretrain.datasets, mmseg.models, mmdet.models, mmdet.evaluation'
    done = subprocess.run([sys.executable, '-c', f'import {imports}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ('', '')


# --- input channels ---


def test_any_number_of_channels_is_normalized():
    mean, std = [1.0, 2, 3, 4, 5], [2.0, 4, 6, 8, 10]
    images = torch.arange(5.0).view(1, 5, 1, 1).expand(2, 5, 4, 4)
    found = ImgDataPreprocessor(mean, std)(dict(inputs=images))['inputs']
    assert torch.equal(found[0, :, 0, 0], (torch.arange(5.0) - torch.tensor(mean)) / torch.tensor(std))
    assert not ImgDataPreprocessor(mean, std).state_dict()


def test_mmengine_still_takes_1_or_3_channels():
    with pytest.raises(AssertionError, match='should have 1 or 3 values'):
        inspect.unwrap(ImgDataPreprocessor.__init__)(ImgDataPreprocessor(), [1.0] * 5, [1.0] * 5)


# --- transformers ---


@pytest.mark.parametrize('version, kept', [('4.57.1', True), ('5.0.0', False), ('5.23.0.dev0', False), (None, True)])
def test_multimodal_models_are_left_out_from_transformers_5_on(monkeypatch, version, kept):
    from mmpretrain.utils import dependency

    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, 'version', installed)
    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    compat._switch_off_multimodal()
    assert dependency.WITH_MULTIMODAL is kept


def test_mmpretrain_still_takes_transformers_5(monkeypatch):
    from mmpretrain.utils import dependency

    monkeypatch.setattr(dependency, 'distribution', lambda name: SimpleNamespace(version='5.0.0'))
    assert dependency.satisfy_requirement('transformers>=4.28.0')
    assert "'transformers>=4.28.0'" in inspect.getsource(dependency)


# --- noise ---


def test_debug_messages_are_not_printed(capsys):
    mmengine.logging.print_log('debug', level=logging.DEBUG)
    mmengine.logging.print_log('info')
    assert capsys.readouterr().out == 'info\n'


def test_the_stack_is_still_noisy(capsys):
    mmengine.logging.print_log.__wrapped__('debug', level=logging.DEBUG)
    assert capsys.readouterr().out == 'debug\n'
    metric = Path(importlib.util.find_spec('mmdet').origin).parent / 'evaluation/metrics/faster_coco_metric.py'
    if metric.exists():  # the original mmdet has no such metric
        assert 'faster_coco_eval is not installed' in metric.read_text()


def initialize(capsys) -> str:
    capsys.readouterr()
    mmengine.model.Sequential(torch.nn.Linear(2, 3)).init_weights()
    told = capsys.readouterr()
    return told.out + told.err


def test_parameters_are_not_printed(capsys, tmp_path):
    mmengine.logging.MMLogger.get_instance('console')
    assert initialize(capsys) == ''
    mmengine.logging.MMLogger.get_instance('run', log_file=tmp_path / 'run.log')
    assert initialize(capsys) == ''
    assert '0.weight - torch.Size([3, 2])' in (tmp_path / 'run.log').read_text()


def test_mmengine_still_prints_parameters(capsys, monkeypatch):
    owner = mmengine.model.BaseModule
    monkeypatch.setattr(owner, '_dump_init_info', owner._dump_init_info.__wrapped__)
    mmengine.logging.MMLogger.get_instance('another console')
    assert '0.weight - torch.Size([3, 2])' in initialize(capsys)


# --- time to start ---


def test_the_package_imports_neither_mmdet_nor_mmseg():
    """Each takes a second, and only its own task needs it."""
    code = (
        'import sys, bootmae.registry; '
        'assert "bootmae.transfer" in sys.modules; '
        'print([name for name in sys.modules if name.split(".")[0] in ("mmdet", "mmseg")])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == '[]', done.stderr


def test_mmpretrain_still_imports_mmdet():
    source = Path(importlib.util.find_spec('mmpretrain').origin).parent / 'models/utils/res_layer_extra_norm.py'
    assert 'from mmdet.models' in source.read_text()


# --- configs ---


def count_calls(monkeypatch, module, name: str) -> list:
    """Count calls of a function that compat.py has wrapped, without the wrapper."""
    calls, function = [], getattr(module, name).__wrapped__
    monkeypatch.setattr(module, name, lambda *args, **kwargs: (calls.append(args), function(*args, **kwargs))[1])
    return calls


def test_mmengine_still_repeats_config_work(monkeypatch):
    formatted, read = (count_calls(monkeypatch, *wrapped) for wrapped in ((yapf_api, 'FormatCode'), (utils, 'load')))
    config = Config.fromfile(REPOSITORY / 'configs' / 'cls' / 'bootmae_vitb_finetune.py')
    assert len(read) > len(set(read))
    assert config.pretty_text == config.pretty_text
    assert len(formatted) == 2


def test_config_work_is_done_once():
    config = Config(dict(a=dict(b=1)))
    hits = utils.load.cache_info().hits
    assert config.pretty_text is config.pretty_text
    assert config.pretty_text == yapf_api.FormatCode.__wrapped__('a = dict(b=1)\n')[0]
    for _ in range(2):
        Config.fromfile(REPOSITORY / 'configs' / 'cls' / 'bootmae_vitb_finetune.py')
    assert utils.load.cache_info().hits > hits


# --- configs of other projects ---


def test_mmengine_still_knows_few_packages():
    find = Config._get_cfg_path.__wrapped__
    with pytest.raises(AssertionError, match='does not support to load bootmae config'):
        find('bootmae::seg/upernet_debug.py', 'my.py')
    # an entry in mmengine's table would not do: the scope is the package, and mmseg's classes are not in it
    assert find('mmpretrain::_base_/default_runtime.py', 'my.py')[1] == 'mmpretrain'


def test_a_base_of_ours_in_another_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bases = "['bootmae::seg/upernet_debug.py', 'mine.py']"
    (tmp_path / 'my.py').write_text(f'_base_ = {bases}\ntrain_cfg = dict(max_iters=7)\n')
    (tmp_path / 'mine.py').write_text('answer = 42\n')
    mine, ours = Config.fromfile('my.py'), Config.fromfile(REPOSITORY / 'configs' / 'seg' / 'upernet_debug.py')
    assert mine.model == ours.model, 'and no _scope_ is added'
    assert (mine.train_cfg, mine.answer) == (ours.train_cfg | dict(max_iters=7), 42)


# --- segmentation loss ---


@pytest.fixture
def weighed():
    """Keywords of mmseg's cross entropy: two images, half of one ignored, and a weight for each class."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (2, 4, 6), generator=generator)
    label[1, :2] = 255
    return dict(
        pred=torch.randn(2, 3, 4, 6, generator=generator),
        label=label,
        ignore_index=255,
        class_weight=torch.tensor([0.25, 1.0, 2.0]),
    )


def test_ignored_pixels_have_no_weight(weighed):
    from mmseg.models.losses import CrossEntropyLoss

    loss = CrossEntropyLoss(class_weight=weighed['class_weight'].tolist(), loss_weight=2.0)(
        weighed['pred'], weighed['label'], ignore_index=255
    )
    expected = torch.nn.functional.cross_entropy(
        weighed['pred'], weighed['label'], weight=weighed['class_weight'], ignore_index=255
    )
    torch.testing.assert_close(loss, 2 * expected)


def test_losses_without_class_weights_are_as_they_were(weighed):
    from mmseg.models.losses.cross_entropy_loss import cross_entropy

    for change in (dict(class_weight=None), dict(reduction='sum'), dict(avg_factor=7.0)):
        assert torch.equal(cross_entropy(**weighed | change), cross_entropy.__wrapped__(**weighed | change))


def test_mmseg_still_weighs_ignored_pixels(weighed):
    """mmsegmentation 1.2.2 fails; onedl-mmsegmentation 1.4.2 only where it is to average over labeled pixels."""
    from mmseg.models.losses.cross_entropy_loss import cross_entropy

    with pytest.raises(IndexError):
        cross_entropy.__wrapped__(**weighed, avg_non_ignore=True)
    assert math.isfinite(cross_entropy(**weighed))
