"""Annotations that look right and are wrong: what tools/train.py, tools/test.py and tools/verify_data.py say."""

import functools
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from calling import call_tool
from mmengine.logging import MMLogger
from PIL import Image
from test_train import scalars
from toy_runs import DEBUG

from bootmae.config.load import load_config
from bootmae.config.steps import training_config
from bootmae.data.coco import forget_files
from bootmae.data.scenes import SceneSpec, write_scenes

COUNT = itertools.count()
SCHEDULE = """
val_dataloader = test_dataloader = dict(dataset={val})
train_dataloader = dict(batch_size=2, drop_last=False, dataset={train})
val_evaluator = test_evaluator = {evaluator}
auto_scale_lr = dict(base_batch_size=2)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
default_hooks = dict(logger=dict(interval=1))
"""
DET = (
    '_base_ = {base!r}'
    + SCHEDULE
    + """
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1, val_begin=9)
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0)))
"""
)
SEG = (
    '_base_ = {base!r}'
    + SCHEDULE
    + """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1, val_begin=9)
model = dict(decode_head=dict(num_classes={classes}), auxiliary_head=dict(num_classes={classes}))
"""
)
VALUES = (0, 1, 4, 7)
SPLITS = dict(train='training', val='validation')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp('drawn') / 'scenes', SceneSpec(train=6, val=3, values=VALUES))


@functools.cache
def pipeline_of(task: str, split: str) -> list[dict]:
    return load_config(DEBUG[task]).to_dict()['train_pipeline' if split == 'train' else 'test_pipeline']


class Data:
    """Copies of annotated scenes that a test changes, and a config of a run on them."""

    def __init__(self, root: Path, drawn: Path) -> None:
        self.root = root
        shutil.copytree(drawn, root, dirs_exist_ok=True, copy_function=os.link)

    def write_config(self, train: dict, val: dict) -> None:
        text = dict(det=DET, seg=SEG)[self.task].format(
            base=str(DEBUG[self.task]), train=train, val=val, evaluator=self.evaluator, classes=len(self.classes)
        )
        (self.root / 'config.py').write_text(text)

    def call(self, tool: str, *args, options=()) -> int:
        forget_files()
        self.write()
        run = ['--workers', 0] if tool == 'verify_data' else ['--work-dir', self.root / 'run']
        options = ['--cfg-options', f'experiment_name=annotated_{next(COUNT)}', *options]
        return call_tool(tool, self.root / 'config.py', *args, *run, *options)

    def image(self, split: str, number: int) -> Path:
        return self.root / f'images/{SPLITS[split]}/{number:06}.jpg'

    def replace(self, path: Path, image: Image.Image, **options) -> None:
        path.unlink()  # it is a link
        image.save(path, **options)


class Instances(Data):
    """``content`` is that of the annotation files."""

    task, classes = 'det', ('0', '1', '4', '7')

    def __init__(self, root: Path, drawn: Path) -> None:
        super().__init__(root, drawn)
        self.evaluator = dict(type='CocoByClass', metric='bbox', ann_file=str(root / 'val.json'))
        files = {split: drawn / f'annotations/instances_{split}2017.json' for split in SPLITS}
        self.content = {split: json.loads(file.read_text()) for split, file in files.items()}

    def write(self) -> None:
        for split, content in self.content.items():
            (self.root / f'{split}.json').write_text(json.dumps(content))
        parts = {
            split: dict(
                _delete_=True,
                type='CocoDataset',
                data_root=str(self.root),
                ann_file=f'{split}.json',
                data_prefix=dict(img=f'images/{folder}'),
                pipeline=pipeline_of('det', split),
                test_mode=split == 'val',
                **(dict(metainfo=dict(classes=self.classes)) if self.classes else {}),
            )
            for split, folder in SPLITS.items()
        }
        self.write_config(**parts)

    def change(self, **changes) -> None:
        for content in self.content.values():
            for annotation in content['annotations']:
                annotation.update(changes)


class Masks(Data):
    task, evaluator = 'seg', dict(type='bootmae.evaluation.metrics_seg.IoUByClass', iou_metrics=['mIoU'])
    zero, classes = True, ('background', '0', '1', '4', '7')

    def write(self) -> None:
        parts = {
            split: dict(
                _delete_=True,
                type='BaseSegDataset',
                data_root=str(self.root),
                data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
                reduce_zero_label=self.zero,
                metainfo=dict(classes=self.classes),
                pipeline=pipeline_of('seg', split),
            )
            for split, folder in SPLITS.items()
        }
        self.write_config(**parts)

    def mask(self, split: str, number: int) -> Path:
        return self.root / f'annotations/{SPLITS[split]}/{number:06}.png'


@pytest.fixture
def coco(tmp_path, drawn) -> Instances:
    yield Instances(tmp_path / 'data', drawn)
    forget_files()


@pytest.fixture
def masks(tmp_path, drawn) -> Masks:
    return Masks(tmp_path / 'data', drawn)


def refused(data: Data, capsys, kind: str, detail: str, test: bool = False) -> None:
    """Training and evaluation end with this fault before a step, and verify_data reports the same one."""
    calls = [('train', 'train')] + ([('test', 'val')] if test else [])
    for tool, split in calls:
        assert data.call(tool, *(['no.pth'] if tool == 'test' else [])) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        found = re.fullmatch(rf'error: (\S+): {re.escape(kind)}: (.*?)(?: \(and \d+ more faults?: .*)?', error)
        assert found, error
        assert re.search(detail, found[2]), error
        assert data.call('verify_data', '--split', split) == 1
        report = capsys.readouterr().out
        assert f'FAULT: {split}: {kind}: ' in report
        assert f'  {found[1]}: {found[2]}\n' in report
    assert not list(data.root.glob('run/*.pth'))


# --- COCO ---


@pytest.mark.slow
def test_the_order_of_categories_does_not_matter(coco, capsys):
    """A run on files with their categories in another order, with other ids, has the same losses and metrics."""
    evaluate = ['train_cfg.val_begin=1']
    assert coco.call('train', options=evaluate) == 0
    expected = [{key: value for key, value in step.items() if 'time' not in key} for step in scalars(coco.root / 'run')]
    shutil.rmtree(coco.root / 'run')
    for ids, content in zip(({1: 9, 2: 0, 3: 4, 4: 7}, {1: 2, 2: 3, 3: 4, 4: 1}), coco.content.values()):
        content['categories'] = [dict(one, id=ids[one['id']]) for one in reversed(content['categories'])]
        for annotation in content['annotations']:
            annotation['category_id'] = ids[annotation['category_id']]
    assert coco.call('train', options=evaluate) == 0
    for step, other in zip(scalars(coco.root / 'run'), expected, strict=True):
        for key in ('loss', 'loss_cls', 'coco/bbox_mAP', 'coco/bbox_mAP_50'):
            assert step.get(key) == other.get(key)
    assert 'coco/bbox_mAP' in other
    assert -1 not in other.values()
    assert 'without a result, since nothing of the kind is annotated: coco/bbox_mAP_l' in capsys.readouterr().out


def test_an_evaluator_with_other_annotations_is_a_fault(coco, capsys):
    coco.evaluator['ann_file'] = str(coco.root / 'train.json')
    assert coco.call('verify_data', '--split', 'val') == 1
    report = capsys.readouterr().out
    assert 'FAULT: val: annotation file of the evaluator: ' in report
    assert coco.call('train') == 2
    error = capsys.readouterr().err.splitlines()[-1].removeprefix('error: ')
    assert 'the same ann_file' in error
    assert f'{coco.evaluator["ann_file"]}: {error}' in report


def lack_iscrowd(coco: Instances) -> None:
    for content in coco.content.values():
        for annotation in content['annotations']:
            del annotation['iscrowd'], annotation['area']


def lack_width(coco: Instances) -> None:
    for content in coco.content.values():
        del content['images'][1]['width']


FAULTS_OF_COCO = {
    'structure': (lack_width, 'annotation file invalid', r'images\[1\] \(id 2\): width is missing: give the width'),
    'area': (lambda coco: coco.change(area=0), 'all annotations of a class are left out', "remove the key 'area'"),
}


@pytest.mark.parametrize('case', FAULTS_OF_COCO)
def test_faults_of_coco_files(coco, capsys, case):
    change, kind, detail = FAULTS_OF_COCO[case]
    change(coco)
    refused(coco, capsys, kind, detail, test=True)


def test_a_fault_of_the_validation_file_ends_a_training_before_its_first_step(coco, capsys):
    coco.content['val']['annotations'][2]['id'] = 'a7'
    assert coco.call('train') == 2
    message = "val.json: annotation file invalid: annotations[2]: id is 'a7': number the entries with whole numbers"
    assert message in capsys.readouterr().err
    assert not (coco.root / 'run').exists()


def test_keys_that_may_be_missing(coco, capsys):
    lack_iscrowd(coco)
    assert coco.call('train', options=['train_cfg.val_begin=1']) == 0
    lines = capsys.readouterr().out
    assert 'note: keys that the annotations lack: 2: ' in lines
    assert 'iscrowd is 0 there: ' in lines
    assert coco.call('verify_data', '--split', 'train') == 0
    assert 'note: train: keys that the annotations lack: 2' in capsys.readouterr().out


def test_names_of_the_training_file(coco, capsys, monkeypatch):
    """Without metainfo, the classes are the categories of the training file, for all loaders."""
    monkeypatch.setattr(MMLogger, '_instance_dict', type(MMLogger._instance_dict)())  # as in a process of its own
    coco.classes = ()
    for content in coco.content.values():
        for category in content['categories']:
            category['name'] = 'abcd'[category['id'] - 1]
    coco.content['val']['categories'].reverse()
    assert coco.call('train') == 0
    output = capsys.readouterr()
    path = coco.root / 'train.json'
    assert f'class names of data sets without metainfo=dict(classes=...): a, b, c, d (the categories of {path})' in (
        output.out + output.err
    )
    cfg, _ = training_config(str(coco.root / 'config.py'))
    assert cfg.val_dataloader.dataset.metainfo == dict(classes=('a', 'b', 'c', 'd'))
    shutil.rmtree(coco.root / 'run')
    assert coco.call('train', options=['model.roi_head.bbox_head.num_classes=80']) == 2
    assert 'CocoDataset has 4 classes, but num_classes is 80 in roi_head.bbox_head' in capsys.readouterr().err
    path.unlink()
    coco.write = lambda: None
    assert coco.call('test', 'no.pth') == 2
    assert (
        'val.json has categories that are not classes of CocoDataset, d, c, b, a, and there' in capsys.readouterr().err
    )


def test_names_that_the_file_does_not_have(coco, capsys):
    """No image is left, and the message was about data_root."""
    coco.classes = ('w', 'x', 'y', 'z')
    detail = r"'w'; it has \['0', '1', '4', '7'\]: give the data set metainfo=dict\(classes=...\) with the names"
    refused(coco, capsys, 'class unknown to the annotation file', detail)


def test_other_names_in_two_loaders(coco, capsys):
    coco.classes = tuple('dcba')
    other = "val_dataloader.dataset.metainfo.classes=('a','b','c','d')"
    assert coco.call('train', options=[other]) == 2
    message = "val_dataloader has metainfo classes=('a', 'b', 'c', 'd') and train_dataloader ('d', 'c', 'b', 'a')"
    assert message in capsys.readouterr().err


def test_a_file_with_nothing_to_evaluate(coco, capsys):
    coco.content['val']['annotations'] = []
    assert coco.call('test', 'no.pth') == 2
    assert "the evaluator's ann_file has no annotations, so nothing can be evaluated" in capsys.readouterr().err


# --- orientation ---


def turn(data: Data, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for split in SPLITS:
        with Image.open(data.image(split, 2)) as image:
            data.replace(data.image(split, 2), image.convert('RGB'), exif=exif)


@pytest.mark.parametrize('kind, orientation', [('coco', 6), ('masks', 3)])
def test_orientation(request, capsys, kind, orientation):
    data = request.getfixturevalue(kind)
    turn(data, orientation)
    detail = f'orientation {orientation}, stored as 144 x 96: the image is turned on reading, but its annotation seems'
    refused(data, capsys, 'EXIF orientation of an annotated image', detail, test=kind == 'masks')


def test_annotations_of_the_turned_image_pass(masks, capsys):
    turn(masks, 6)
    for split in SPLITS:
        with Image.open(masks.mask(split, 2)) as mask:
            masks.replace(masks.mask(split, 2), mask.rotate(-90, expand=True))
    assert masks.call('verify_data', '--split', 'train') == 0
    assert 'the annotation has the size of the turned image' in capsys.readouterr().out


# --- masks ---


def map_values(masks: Masks, values: dict[int, int]) -> None:
    table = np.zeros(256, np.uint8)
    table[list(values)] = list(values.values())
    for split in SPLITS:
        for path in sorted(masks.mask(split, 1).parent.iterdir()):
            masks.replace(path, Image.fromarray(table[np.array(Image.open(path))]))


def binary(masks: Masks) -> None:
    """0 is the background, 255 the objects."""
    map_values(masks, {value: 255 for value in range(2, 6)})
    masks.zero, masks.classes = False, ('background', 'object')


def half_size(masks: Masks) -> None:
    for split in SPLITS:
        with Image.open(masks.mask(split, 2)) as mask:
            masks.replace(masks.mask(split, 2), mask.resize((72, 48), Image.Resampling.NEAREST))


@pytest.mark.parametrize(
    'change, kind, detail',
    [
        (binary, 'fewer than two classes', r"only \['background'\] of 2 classes occurs \(the masks hold 0, 255\): 255"),
        (half_size, 'mask of another size', '72 x 48, its image is 144 x 96'),
    ],
)
def test_faults_of_masks(masks, capsys, change, kind, detail):
    """The others are in tests/config/test_checks.py."""
    change(masks)
    refused(masks, capsys, kind, detail, test=change is binary)
