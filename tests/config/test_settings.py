"""Every setting of a config is one that its class, the runner or a step knows."""

import copy
import time
from functools import cache
from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import pytest
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import init_default_scope
from mmpretrain.models import TIMMBackbone

from bootmae.config.load import load_config, read_file
from bootmae.config.schema import arguments, kinds
from bootmae.config.settings import apply_options, check_settings
from bootmae.results.provenance import REPOSITORY

PRETRAIN = 'configs/pretrain/bootmae_small_data.py'
TUNE = 'configs/cls/bootmae_small_data_finetune.py'
SEG = 'configs/seg/bootmae_vitb_upernet.py'
DET = 'configs/det/bootmae_vitb_maskrcnn_1x.py'
OURS = sorted(REPOSITORY.glob('configs/[!_]*/*.py'))
STOCK = {
    mmpretrain: ('mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py', 'beit/*_8xb*-100e_in1k.py', 'swin_*/swin-*.py'),
    mmseg: ('mae/*.py', 'upernet/*512x512.py', 'deeplabv3plus/*.py'),
    mmdet: ('mask_rcnn/*.py', 'vfnet/*.py', 'detr/*.py', 'rtmdet/rtmdet_t*.py'),
}


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@cache
def read(path: str) -> Config:
    return read_file(path)


def config(path: str, **options) -> Config:
    cfg = copy.deepcopy(read(path))
    init_default_scope(cfg.default_scope)
    apply_options(cfg, {key.replace('__', '.'): value for key, value in options.items()})
    return cfg


@pytest.mark.parametrize(
    ('path', 'key', 'message'),
    [
        (
            PRETRAIN,
            'train_dataloader__batchsize',
            r'train_dataloader.batchsize=1: no such setting .* is batch_size meant',
        ),
        (PRETRAIN, 'default_hooks__preemption__budget', 'default_hooks.preemption.budget=1: no such setting'),
        (PRETRAIN, 'default_hooks__preemptoin__x', 'default_hooks.preemptoin has no type; is preemption meant'),
        (PRETRAIN, 'default_hooks__logger__intrval', 'no such setting of LoggerHook; is interval meant'),
        (PRETRAIN, 'default_hooks__checkpoint__intervall', 'is interval meant'),
        (PRETRAIN, 'train_cfg__max_epoch', 'train_cfg.max_epoch=1: .* is max_epochs meant'),
        (PRETRAIN, 'model__backbon__depth', 'model.backbon=.* no such setting of BootMAE; is backbone meant'),
        (PRETRAIN, 'model__masking__num_maskd', 'is num_masked meant'),
        (PRETRAIN, 'model__pixel_decoder__dept', 'is depth meant'),
        (PRETRAIN, 'custom_hooks__0__emaa', 'custom_hooks.0.emaa=1: no such setting of BootMAEHook; is ema meant'),
        (PRETRAIN, 'optim_wrapper__optimizer__lrr', 'no such setting of AdamW; is lr meant'),
        (PRETRAIN, 'optim_wrapper__paramwise_cfg__layer_decya', 'is layer_decay meant'),
        (PRETRAIN, 'optim_wrapper__acumulative_counts', 'is accumulative_counts meant'),
        (PRETRAIN, 'param_scheduler__warmpu', 'no such setting of WarmupCosineLR; is warmup meant'),
        (PRETRAIN, 'train_dataloader__dataset__root', 'no such setting of ImageFiles; is roots meant'),
        (PRETRAIN, 'train_dataloader__dataset__pipeline__1__crop_ratio_rang', 'is crop_ratio_range meant'),
        (PRETRAIN, 'randomness__sed', 'is seed meant'),
        (PRETRAIN, 'env_cfg__cudnn_bench', 'is cudnn_benchmark meant'),
        (PRETRAIN, 'auto_scale_lr__base_batchsize', 'is base_batch_size meant'),
        (PRETRAIN, 'visualizer__vis_backend', 'is vis_backends meant'),
        (PRETRAIN, 'compile__scop', 'is scope meant'),
        (TUNE, 'val_evaluator__top', 'is topk meant'),
        (TUNE, 'model__head__loss__label_smoth', 'no such setting of LabelSmoothLoss'),
        (
            'configs/cls/bootmae_vitb_finetune.py',
            'custom_hooks__0__momentun',
            'no such setting of EMAHook; is momentum meant',
        ),
        (SEG, 'model__decode_head__num_classe', 'no such setting of UPerHead; is num_classes meant'),
        (DET, 'model__rpn_head__anchor_generator__scale', 'no such setting of AnchorGenerator; is scales meant'),
        (DET, 'val_evaluator__metrics', 'no such setting of CocoByClass; is metric meant'),
    ],
)
def test_misspelt_settings(path, key, message):
    with pytest.raises(ValueError, match=f'{path}: .*{message}'):
        check_settings(config(path, **{key: 1}))


def test_groups_without_a_class_are_compared_with_their_settings():
    with pytest.raises(ValueError, match="nothing is called 'stirde' there; is stride meant"):
        config(SEG, model__test_cfg__stirde=1)


@pytest.mark.parametrize(
    ('key', 'kind', 'meant'),
    [
        ('model__type', 'BootMEA', '; is BootMAE meant'),
        ('model__backbone__type', 'Nothing', ': correct it, or list its module in custom_imports'),
        ('train_dataloader__dataset__type', 'ImageFile', '; is ImageFiles meant'),
        ('train_dataloader__dataset__pipeline__1__type', 'RandomResizeCrop', '; is RandomResizedCrop meant'),
        ('optim_wrapper__optimizer__type', 'AdamWW', '; is AdamW meant'),
        ('custom_hooks__0__type', 'my.own.Hook', ''),
    ],
)
def test_misspelt_types(key, kind, meant):
    with pytest.raises(
        ValueError, match=f"{key.replace('__', '.')}='{kind}': no class of this name is registered{meant}"
    ):
        check_settings(config(PRETRAIN, **{key: kind}))


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ValueError) as found:
        check_settings(config(PRETRAIN, train_dataloader__batchsize=1, randomness__sed=1))
    assert len(str(found.value).splitlines()) == 2


def test_files_may_have_variables_but_no_misspelt_settings(tmp_path):
    file = tmp_path / 'mine.py'
    variables = "my_size, lr, norm_cfg, num_classes = 3, dict(a=1), dict(type='BN', x=1), 5"
    text = f"_base_ = '{REPOSITORY / PRETRAIN}'\n{variables}\n"
    file.write_text(text)
    assert load_config(file).my_size == 3
    with pytest.raises(ValueError, match=r'my_size=4 has no effect: my_size is a variable of .*mine.py, which used it'):
        load_config(file, {'my_size': 4})
    file.write_text(text + 'train_dataloader = dict(batchsize=4)\n')
    with pytest.raises(ValueError, match=r'mine.py: train_dataloader.batchsize=4: no such setting'):
        load_config(file)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = (', r'bad.py cannot be read as a config: SyntaxError: .*was never closed'),
        ("_base_ = './none.py'\n", r'bad.py cannot be read as a config: FileNotFoundError: .*none.py'),
        ('a = b\n', "bad.py cannot be read as a config: NameError: name 'b' is not defined"),
        ("custom_imports = dict(imports=['no_such_module'])\n", 'bad.py cannot be read as a config: ImportError'),
    ],
)
def test_files_that_are_no_configs(tmp_path, text, message):
    (tmp_path / 'bad.py').write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / 'bad.py')


@pytest.mark.parametrize('path', OURS, ids=lambda path: path.stem)
def test_our_configs_have_no_fault(path):
    load_config(path)


@pytest.mark.slow
@pytest.mark.parametrize('package', STOCK, ids=lambda package: package.__name__)
def test_stock_configs_have_no_fault(package):
    folder = Path(package.__file__).parent / '.mim' / 'configs'
    files = [file for pattern in STOCK[package] for file in sorted(folder.glob(pattern))]
    assert len(files) > 7
    for file in files:
        cfg = read_file(file)
        if 'model' not in cfg:  # part of a config
            continue
        init_default_scope(cfg.get('default_scope', package.__name__))
        check_settings(cfg)


def test_the_check_is_quick():
    cfg = config(DET)
    begin = time.process_time()
    check_settings(cfg)
    assert time.process_time() - begin < 0.3


def test_arguments_of_classes():
    class Base:
        def __init__(self, a, b: int = 1):
            pass

    class Child(Base):
        def __init__(self, c: str | None = None, **kwargs):
            self.d = kwargs.pop('d', 1)
            super().__init__(**kwargs)

    class Other(Base):
        def __init__(self, **kwargs):
            super().__init__(1)
            self.kwargs = kwargs

    assert {'a', 'b', 'c', 'd'} <= set(arguments(Child))
    assert arguments(Other) is None, 'what it does with them is not known'
    assert arguments(TIMMBackbone) is None
    assert {'momentum', 'interval', 'begin_iter'} <= set(arguments(EMAHook))


def test_kinds_of_annotations():
    assert kinds(int) == {'int'}
    assert kinds('str | Sequence[str]') == {'str', 'Sequence'}
    assert kinds('typing.Optional[typing.Union[int, typing.List[str]]]') == {'int', 'List'}
    assert kinds(list[str] | None) == {'list', 'None'}
