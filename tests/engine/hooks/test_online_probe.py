"""The online probe: choice of images, sharing between processes, and refused arguments."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS

from bootmae.config.load import load_config
from bootmae.engine.hooks import online_probe as online
from bootmae.engine.hooks.online_probe import OnlineProbeHook, data_sets, select_images, shared_features

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
FINETUNE = str(CONFIGS / 'cls' / 'bootmae_debug_finetune.py')


class Labeled(list):
    """Numbers in place of images, sorted by three classes."""

    def get_gt_labels(self) -> np.ndarray:
        return np.arange(len(self)) * 3 // len(self)


def test_select_images():
    data = Labeled(range(30))
    assert list(select_images(data, 'all', None, 0)) == list(data)
    assert list(select_images(data, 'all', 6, 0)) == [0, 5, 10, 15, 20, 25]
    few = list(select_images(data, '2', 15, seed=3))
    assert [number // 10 for number in few] == [0, 0, 1, 1, 2, 2]
    assert all(number % 2 == 0 for number in few)
    assert few == list(select_images(data, '2', 15, seed=3)) != list(select_images(data, '2', 15, seed=4))
    with pytest.raises(ValueError, match='class 0 has 5 training images: lower labels or raise max_images'):
        select_images(data, '6', 15, 0)


@pytest.mark.parametrize('count, world', [(10, 1), (10, 2), (11, 4), (2, 3)])
def test_processes_share_the_images(monkeypatch, count, world):
    """Each process computes a part, and all get all features in order."""

    def extract(images):
        numbers = torch.tensor([float(image) for image in images])
        seen.append(len(numbers))
        return torch.stack([numbers, -numbers], dim=1), numbers.long()

    images, seen, gathered = select_images(Labeled(range(100, 100 + count)), 'all', None, 0), [], {}
    monkeypatch.setattr(online.dist, 'get_world_size', lambda: world)
    for ours in range(world):
        monkeypatch.setattr(online.dist, 'get_rank', lambda rank=ours: rank)
        calls = iter(range(2))
        monkeypatch.setattr(
            online.dist,
            'all_gather',
            lambda values, rank=ours, calls=calls: [gathered.setdefault((next(calls), rank), values)],
        )
        shared_features(extract, images)
    calls = iter(range(2))
    monkeypatch.setattr(
        online.dist,
        'all_gather',
        lambda values, calls=calls: (lambda which: [gathered[which, rank] for rank in range(world)])(next(calls)),
    )
    features, labels = shared_features(extract, images)
    assert labels.tolist() == list(range(100, 100 + count))
    assert features[:, 1].tolist() == [-float(label) for label in labels]
    assert max(seen) == -(-count // world)


def write_images(folder: Path, count: int) -> None:
    for name in ('cat', 'dog'):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(folder / name / f'{number:02}.png'), np.full((8, 8, 3), number, np.uint8))


def names(dataset) -> list[str]:
    return ['/'.join(Path(dataset.get_data_info(k)['img_path']).parts[-3:]) for k in range(len(dataset))]


def test_a_folder_of_labeled_images(tmp_path):
    """Every fifth image is a query, unless there are splits."""
    cfg = load_config(FINETUNE)
    write_images(tmp_path / 'plain', 10)
    reference, query = data_sets(cfg, str(tmp_path / 'plain'))
    assert names(query) == ['plain/cat/04.png', 'plain/cat/09.png', 'plain/dog/04.png', 'plain/dog/09.png']
    assert len(reference) == 16
    assert not set(names(reference)) & set(names(query))
    assert list(query.get_gt_labels()) == [0, 0, 1, 1]
    write_images(tmp_path / 'split' / 'train', 3)
    write_images(tmp_path / 'split' / 'test', 1)
    reference, query = data_sets(cfg, str(tmp_path / 'split'))
    assert (len(reference), names(query)) == (6, ['test/cat/00.png', 'test/dog/00.png'])
    with pytest.raises(FileNotFoundError, match='nowhere'):
        data_sets(cfg, str(tmp_path / 'nowhere'))


@pytest.fixture(scope='module')
def model():
    cfg = load_config(CONFIGS / 'pretrain' / 'bootmae_debug.py')
    return MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))


def test_the_encoder_must_fit(model):
    """It is refused before the first step."""
    with pytest.raises(ValueError, match=r'the encoder in training was made with mean \[127.5.*123.6'):
        OnlineProbeHook(FINETUNE, options={'data_preprocessor.mean': [123.675, 116.28, 103.53]}).prepare(model)
    options = {'data_preprocessor.mean': [123.675, 116.28, 103.53], 'adopt_statistics': True}
    hook = OnlineProbeHook(FINETUNE, options=options)
    hook.prepare(model)
    assert hook.classifier.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
    with pytest.raises(ValueError, match="the encoder in training was not loaded .* 2 blocks, the model's arch has 3"):
        OnlineProbeHook(FINETUNE, options={'model.backbone.arch.depth': 3}).prepare(model)
    with pytest.raises(ValueError, match='is not an ImageClassifier; give a config of configs/cls'):
        OnlineProbeHook(str(CONFIGS / 'pretrain' / 'bootmae_debug.py')).prepare(model)
    with pytest.raises(FileNotFoundError, match='no config nothing.py'):
        OnlineProbeHook('nothing.py').prepare(model)


@pytest.mark.parametrize(
    'wrong, message',
    [
        (dict(tasks=['knn', 'svm']), "tasks='svm': choose from knn, linear"),
        (dict(labels=0), 'labels=0: give "all"'),
        (dict(labels='few'), "labels='few'"),
        (dict(interval=0), 'interval=0: give a number'),
        (dict(max_images=0), 'max_images=0'),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        OnlineProbeHook(FINETUNE, **wrong)


def test_without_a_folder_it_rests():
    """The config for small data names the probe without a folder, which turns it off."""
    hook = OnlineProbeHook(FINETUNE, folder='')
    hook.before_train(None)
    hook.after_train_epoch(None)
    assert hook.classifier is None
