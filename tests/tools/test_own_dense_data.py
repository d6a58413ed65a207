"""docs/own_segmentation.md and docs/own_detection.md on a few drawn images: from their snippets to a number."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from calling import call_tool
from mmengine.config import Config

from bootmae.commands.plan import build_on_meta
from bootmae.config.classes import apply_class_names, check_same_classes, recorded_classes
from bootmae.config.load import load_config
from bootmae.config.steps import evaluation_config
from bootmae.data.coco import forget_files
from bootmae.evaluation.rows import data_name
from bootmae.results.provenance import REPOSITORY
from bootmae.suite import load_suite, make_cells

COUNT = itertools.count()
NAMES = ('background', 'road', 'car')
SPLIT, CONFIG = 0, 1  # Python blocks of both pages; what follows is optional
SHORT = {'seg': dict(max_iters=2, val_interval=2), 'det': dict(max_epochs=1, val_interval=1)}
PAGES = dict(seg='own_segmentation', det='own_detection')
SIZES = dict(seg='configs/seg/upernet_own', det='configs/det/mask_rcnn_own')


def blocks(task: str) -> list[str]:
    """The Python snippets of a page."""
    page = (REPOSITORY / 'docs' / f'{PAGES[task]}.md').read_text(encoding='utf-8')
    return re.findall(r'^```python\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory) -> Path:
    """A folder with images, masks and one COCO file: roads, and cars on some of them."""
    folder, rng = tmp_path_factory.mktemp('drawn'), np.random.default_rng(0)
    (folder / 'images').mkdir()
    (folder / 'masks').mkdir()
    images, annotations = [], []
    for number in range(10):
        image, mask = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8), np.zeros((48, 64), np.uint8)
        for label, (x, y, w, h) in ((1, (0, 30, 64, 18)), (2, (4 + 4 * number, 24, 14, 12))):
            image[y : y + h, x : x + w] += np.uint8(60 * label)
            mask[y : y + h, x : x + w] = label
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=number, category_id=label, bbox=[x, y, w, h], area=w * h,
                    iscrowd=0, segmentation=[polygon],
                )
            )  # fmt: skip
        cv2.imwrite(str(folder / f'images/{number}.jpg'), image)
        cv2.imwrite(str(folder / f'masks/{number}.png'), mask)
        images.append(dict(id=number, file_name=f'{number}.jpg', height=48, width=64))
    categories = [dict(id=number, name=name) for number, name in ((1, 'road'), (2, 'car'))]
    (folder / 'instances.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory, drawn) -> dict[str, Path]:
    """The layouts of both pages, by their own scripts."""
    folders = {}
    for task in PAGES:
        folders[task] = tmp_path_factory.mktemp(task)
        script = blocks(task)[SPLIT]
        for given, ours in (('/my/scenes', drawn), ('/my/export', drawn), ('/my/data', folders[task])):
            script = script.replace(f"'{given}'", f"'{ours}'")
        exec(script, {})
    yield folders
    forget_files()


def write_config(folder: Path, data: dict[str, Path], task: str, more: str = '', size: str = '_cpu') -> Path:
    """The config of a page in a folder, with the model of another size."""
    path, text = folder / f'my_{task}.py', blocks(task)[CONFIG]
    assert len(text.splitlines()) <= 8
    base = SIZES[task].replace('configs/', 'bootmae::')
    assert f"_base_ = '{base}.py'" in text
    text = text.replace(f"'{base}.py'", f"'{base}{size}.py'")
    path.write_text(text.replace("'/my/data'", f"'{data[task]}'") + more)
    return path


def train(config: Path, work_dir: Path, task: str, *args) -> int:
    interval = next(iter(SHORT[task].values()))
    options = {f'train_cfg.{key}': value for key, value in SHORT[task].items()} | {
        'default_hooks.checkpoint.interval': interval,
        'param_scheduler.0.warmup': 0 if task == 'det' else 1,
        'train_dataloader.batch_size': 4,
        'auto_scale_lr.base_batch_size': 4,
        'experiment_name': f'own_{next(COUNT)}',
    }
    pairs = [f'{key}={value}' for key, value in options.items()]
    return call_tool('train', config, '--work-dir', work_dir, '--cfg-options', *pairs, *args)


@pytest.mark.parametrize('task', PAGES)
def test_from_files_to_a_number(tmp_path, data, task):
    config, work = write_config(tmp_path, data, task), tmp_path / 'work'
    assert len(list((data[task] / 'images/val').iterdir())) == 2
    assert len(list((data[task] / 'images/train').iterdir())) == 8
    assert call_tool('verify_data', config) == 0
    assert train(config, work, task) == 0
    score = 'model.test_cfg.rcnn.score_thr=0.0' if task == 'det' else 'log_level=INFO'
    call = ['--out', tmp_path / 'a.json', '--cfg-options', score, f'experiment_name=own_{next(COUNT)}']
    assert call_tool('test', config, work, '--work-dir', tmp_path / 'test', *call) == 0
    found = json.loads((tmp_path / 'a.json').read_text())
    if task == 'seg':
        assert 0 < found['mIoU'] <= 100
    else:
        assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(found)
        assert all(0 <= value <= 1 for value in found.values())
    heads = Config.fromfile(next(work.glob('*.py'))).model
    number = heads.decode_head.num_classes if task == 'seg' else heads.roi_head.mask_head.num_classes
    assert number == (3 if task == 'seg' else 2)


@pytest.mark.parametrize('size', ['', '_cpu'])
@pytest.mark.parametrize('task', PAGES)
def test_all_places_follow_from_one(tmp_path, data, task, size):
    cfg = load_config(write_config(tmp_path, data, task, size=size))
    apply_class_names(cfg)
    model = cfg.model
    heads = (
        [model.decode_head, model.auxiliary_head]
        if task == 'seg'
        else [model.roi_head.bbox_head, model.roi_head.mask_head]
    )
    names = NAMES if task == 'seg' else NAMES[1:]
    assert [head.num_classes for head in heads] == [len(names)] * 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == names
        assert loader.dataset.data_root == str(data[task])
    if task == 'det':
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == f'{data[task]}/annotations/val.json'
    with pytest.raises(ValueError, match='has no name for result rows: give one'):  # it is not COCO
        data_name(cfg)


def test_some_categories_in_another_order(tmp_path, data):
    cfg = load_config(write_config(tmp_path, data, 'det', "classes = ('car',)\n"))
    assert cfg.train_dataloader.dataset.metainfo.classes == ('car',)
    assert cfg.model.roi_head.bbox_head.num_classes == 1
    cfg = load_config(write_config(tmp_path, data, 'det'), {'classes': ['car', 'road']})
    assert cfg.val_dataloader.dataset.metainfo.classes == ('car', 'road')


@pytest.mark.parametrize(
    ('task', 'options', 'message'),
    [
        ('seg', ['classes=background,road'], r'masks/train/\d.png: .* label 2 of 2 classes .* or name all 3 classes'),
        ('seg', ['classes=()'], r'classes names no class; give the names of the labels 0, 1, \.\.\. in the config'),
        ('seg', ['classes=3'], r'classes=3: give a list of names, such as classes=\("background", "road"\)'),
        ('seg', ['classes=a,a,b'], "metainfo classes of BaseSegDataset has 'a' twice"),
        ('seg', ['model.decode_head.num_classes=4'], r'states the classes as classes; give classes=NAME,NAME instead'),
        ('det', ['classes=road,truck'], 'class unknown to the annotation file.*truck'),
    ],
)
def test_wrong_classes(tmp_path, data, capsys, task, options, message):
    config = write_config(tmp_path, data, task)
    assert train(config, tmp_path / 'work', task, *options) == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_classes_of_another_model():
    with pytest.raises(ValueError, match='bootmae_debug.py is no segmentor or detector'):
        load_config('bootmae_debug', {'classes': ['a']})


def test_the_command_line_alone(tmp_path, data):
    """``--data`` and ``classes`` as options, in place of a config."""
    seg = load_config(f'{SIZES["seg"]}_cpu.py', {'images': [str(data['seg'])], 'classes': list(NAMES)})
    assert seg.train_dataloader.dataset.data_root == str(data['seg'])
    assert seg.model.auxiliary_head.num_classes == 3
    det = load_config(f'{SIZES["det"]}_cpu.py', {'images': [str(data['det'])]})
    assert det.model.roi_head.bbox_head.num_classes == 2
    missing = load_config(f'{SIZES["det"]}_cpu.py', {'images': [str(tmp_path)]})
    with pytest.raises(FileNotFoundError, match='annotations/val.json: check'):
        apply_class_names(missing)


@pytest.mark.parametrize('task', PAGES)
def test_what_to_change(tmp_path, data, task):
    """A ViT-S and images with another suffix; each of them, with the config, in at most eight lines."""
    first, *others = blocks(task)[CONFIG + 1 :]
    whole = blocks(task)[CONFIG] + first
    assert len([line for line in whole.splitlines() if line]) <= 8
    cfg = load_config(write_config(tmp_path, data, task, '\n'.join([first, *others]), size=''))
    model = build_on_meta(cfg)
    assert model.backbone.embed_dims == 384
    if task == 'seg':
        assert cfg.train_dataloader.dataset.img_suffix == cfg.test_dataloader.dataset.img_suffix == '.png'
        assert model.decode_head.conv_seg.in_channels == 384
    else:
        assert model.neck.in_channels == [384] * 4


@pytest.mark.parametrize('task', PAGES)
def test_the_suite(tmp_path, data, task):
    page = (REPOSITORY / 'docs' / f'{PAGES[task]}.md').read_text(encoding='utf-8')
    tasks, mae = (
        yaml.safe_load(re.search(f'`((?:{start}): {{.*?}})`', page)[1]) for start in (r'\w+ction|\w+tation', 'mae')
    )
    (entry,) = tasks.values()
    entry['config'] = str(write_config(tmp_path, data, task))
    (tmp_path / 'my.yaml').write_text(
        yaml.safe_dump(dict(methods={'untrained': None} | mae, tasks=tasks, seeds=[0, 1]))
    )
    cells = make_cells(load_suite(tmp_path / 'my.yaml'), tmp_path)
    assert len(cells) == 4
    assert {cell.task.data for cell in cells} == {entry['data']}


@pytest.mark.parametrize('more', ['', "classes = ('road', 'car')\n"])
def test_a_test_numbers_the_classes_as_the_training_did(tmp_path, data, more):
    """COCO files of another place may list the categories in another order."""
    config = write_config(tmp_path, data, 'det', more)
    torch.save(dict(state_dict={}, meta=dict(dataset_meta=dict(classes=('car', 'road')))), tmp_path / 'a.pth')
    cfg, content = evaluation_config(str(config), str(tmp_path / 'a.pth'))
    names = cfg.test_dataloader.dataset.metainfo.classes
    assert tuple(names) == (('road', 'car') if more else ('car', 'road')), 'given names stay'
    found = SimpleNamespace(metainfo=dict(classes=names))
    if not more:
        return check_same_classes(recorded_classes(content), found, 'the training')
    with pytest.raises(ValueError, match='the training has the classes car, road, and .* has road, car: label 0 is '
                       'car there and road here. .* set metainfo=dict'):  # fmt: skip
        check_same_classes(recorded_classes(content), found, 'the training')


def test_a_variable_of_a_classifier_is_free(tmp_path):
    config = tmp_path / 'own.py'
    config.write_text(f"_base_ = '{REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'}'\nclasses = None\n")
    torch.save(dict(state_dict={}, meta=dict(dataset_meta=dict(classes=('a', 'b')))), tmp_path / 'a.pth')
    cfg, _ = evaluation_config(str(config), str(tmp_path / 'a.pth'))
    assert cfg.classes is None


@pytest.mark.parametrize(
    ('ours', 'theirs', 'same'),
    [
        ('abc', 'abc', True),
        ('abc', 'ab', True),  # the last one does not occur
        ('abc', 'bc', False),
        ('012', 'abc', True),  # a list with numbers in place of names
        ('abc', '01', True),
        ('012', '12', False),  # folders of digits
        (('00', '01', '02'), '012', True),
        (('1', '10', '2'), '012', False),
        ('', 'abc', True),  # not recorded
    ],
)
def test_classes_of_a_data_set_and_of_a_checkpoint(ours, theirs, same):
    found = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=list(theirs))))
    numbers = SimpleNamespace(metainfo=dict(classes=['0', '1']), labels='list')
    check_same_classes(tuple(ours), numbers, 'labels of a list without names')
    if same:
        return check_same_classes(tuple(ours), found, 'a.pth')
    with pytest.raises(ValueError, match=f'label 0 is {ours[0]} there and {theirs[0]} here'):
        check_same_classes(tuple(ours), found, 'a.pth')
