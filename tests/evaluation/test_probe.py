"""Frozen features: k-NN against scikit-learn, and that the features are those of the encoder that was asked for."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import DATASETS, MODELS
from sklearn.neighbors import KNeighborsClassifier

from bootmae.checkpoints import load, read
from bootmae.commands.knn import evaluate_features
from bootmae.config.load import load_config
from bootmae.data.findings import DataFault
from bootmae.data.subsets import few_labels
from bootmae.evaluation import probe
from bootmae.evaluation.probe import (
    Features,
    build_encoder,
    chosen_blocks,
    extract_blocks,
    knn_accuracy,
    linear_accuracy,
    pooled_blocks,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FINETUNE = CONFIGS / 'cls' / 'bootmae_debug_finetune.py'


def clusters(count: int, noise: float, seed: int, classes: int = 5, width: int = 8) -> Features:
    """Features scattered about one center a class; the centers are the same for every seed."""
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return centers[labels] + noise * torch.randn(count, width, generator=generator), labels


# --- k-NN and logistic regression ---


@pytest.mark.parametrize('k', [1, 5, 20, 1000])
@pytest.mark.parametrize('noise', [0.3, 1.0, 2.0])
def test_knn_equals_scikit_learn(k, noise):
    """Also where k is more than there are reference images."""
    (bank, labels), (queries, truth) = clusters(120, noise, 0), clusters(300, noise, 1)
    judge = KNeighborsClassifier(
        min(k, 120), metric='cosine', algorithm='brute', weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    expected = 100 * judge.fit(bank.numpy(), labels.numpy()).score(queries.numpy(), truth.numpy())
    assert knn_accuracy((bank, labels), (queries, truth), k) == pytest.approx(expected)
    assert expected > 20, 'better than chance, and not a tie of everything'


def test_knn_weights_matter():
    """One near neighbor of a class outweighs three far ones of another at the default temperature."""
    bank = torch.tensor([[1.0, 0.05], [0.3, 1.0], [0.3, 1.0], [0.3, 1.0]]), torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert knn_accuracy(bank, query, k=4) == 100
    assert knn_accuracy(bank, query, k=4, temperature=100) == 0
    swapped, truth = (bank[0], 1 - bank[1]), (query[0], torch.tensor([1]))
    for temperature in (0.07, 0.01, 1e-6):  # exp(1 / 0.01) is beyond float32
        assert knn_accuracy(swapped, truth, k=4, temperature=temperature) == 100


def test_knn_in_chunks_and_at_any_length_of_the_features():
    bank, queries = clusters(50, 1.0, 0), clusters(70, 1.0, 1)
    expected = knn_accuracy(bank, queries)
    assert knn_accuracy(bank, queries, chunk=7) == expected
    stretched = bank[0] * torch.rand(50, 1).add(0.1), bank[1]
    assert knn_accuracy(stretched, (queries[0] * 3, queries[1])) == expected


def test_linear_probe():
    """Learns what can be separated, not what cannot, and does not depend on the scale of a feature."""
    bank, queries = clusters(200, 0.2, 0), clusters(100, 0.2, 1)
    assert linear_accuracy(bank, queries) == 100
    noise = torch.randn(400, 8), torch.arange(400) % 5
    assert linear_accuracy((noise[0][:200], noise[1][:200]), (noise[0][200:], noise[1][200:])) < 40
    bank, queries = clusters(200, 1.0, 0), clusters(100, 1.0, 1)
    scale, shift = torch.tensor([1e-3, 1e3] * 4), torch.arange(8.0)
    moved = [(features * scale + shift, labels) for features, labels in (bank, queries)]
    assert linear_accuracy(*moved) == pytest.approx(linear_accuracy(bank, queries), abs=1.01)


# --- features ---


@pytest.fixture
def finetune():
    return load_config(FINETUNE)


def extract(model, loader, pipeline, batch_size=256) -> Features:
    return extract_blocks(model, loader, pipeline, [model.backbone.depth], batch_size)[0]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> str:
    """A BootMAE run of the debug size whose online and momentum encoders differ; random weights."""
    cfg = load_config(CONFIGS / 'pretrain' / 'bootmae_debug.py')
    torch.manual_seed(7)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for parameter in model.momentum.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp('probe') / 'run.pth'
    facts = dict(
        method='BootMAE',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        config='some.py',
        precision='float32',
        seconds=12.5,
        images=320,
    )
    torch.save(dict(state_dict=model.state_dict(), meta=dict(bootmae=facts)), path)
    return str(path)


@pytest.mark.parametrize('loader', ['train_dataloader', 'test_dataloader'])
def test_extract_keeps_order_and_labels(finetune, loader):
    """By hand: each image of the dataset in order, normalized, through the backbone."""
    finetune[loader].dataset.indices = 30
    model, pipeline = build_encoder(finetune, None), finetune.test_dataloader.dataset.pipeline
    features, labels = extract(model, finetune[loader], pipeline, batch_size=7)
    dataset = DATASETS.build(dict(finetune[loader].dataset, pipeline=[]))
    assert len(dataset) == 30
    by_hand = []
    for sample in dataset:
        rgb = torch.from_numpy(np.ascontiguousarray(sample['img'][..., ::-1])).permute(2, 0, 1).float()
        with torch.no_grad():
            by_hand.append(model.backbone((rgb[None] - 127.5) / 127.5)[0][0])
    torch.testing.assert_close(features, torch.stack(by_hand), rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [sample['gt_label'] for sample in dataset]
    assert len(set(labels.tolist())) > 1
    assert (features.shape, features.dtype, labels.dtype) == ((30, 48), torch.float32, torch.int64)


def test_features_do_not_depend_on_augmentation_or_batch(finetune):
    """The training pipeline crops at random; features are those of the whole image, in eval mode."""
    finetune.train_dataloader.dataset.indices = 20
    finetune.model.backbone.drop_path_rate = 0.9
    model, pipeline = build_encoder(finetune, None), finetune.test_dataloader.dataset.pipeline
    first, second = (extract(model, finetune.train_dataloader, pipeline, batch_size)[0] for batch_size in (20, 3))
    torch.testing.assert_close(first, second)
    assert not model.training


def weights(model) -> torch.Tensor:
    return model.backbone.blocks[1].mlp.fc1.weight


def test_an_untrained_encoder_reads_no_weights(finetune, checkpoint):
    cfg = finetune.copy()
    cfg.model.backbone.init_cfg = dict(type='EncoderWeights', checkpoint=str(checkpoint))
    given, random = build_encoder(cfg, None, seed=1).backbone, build_encoder(finetune, None, seed=1).backbone
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), random.parameters(), strict=True))


def test_untrained_encoders_follow_their_seed(finetune):
    models = [build_encoder(finetune, None, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize('source, prefix', [('online', 'backbone'), ('momentum', 'momentum')])
def test_encoders_of_a_file(finetune, checkpoint, source, prefix):
    model = build_encoder(finetune, checkpoint, source)
    state = torch.load(checkpoint)['state_dict']
    assert torch.equal(weights(model), state[f'{prefix}.blocks.1.mlp.fc1.weight'])
    assert torch.equal(model.backbone.cls_token, state[f'{prefix}.cls_token'])


def test_a_file_of_other_statistics_is_refused(checkpoint):
    cfg = load_config(CONFIGS / 'cls' / 'mae_demo_finetune.py')
    with pytest.raises(ValueError, match='the config normalizes with mean'):
        build_encoder(cfg, checkpoint)


# --- rows ---

SMALL = {'train_dataloader.dataset.labels_per_class': 8, 'test_dataloader.dataset.indices': 40}


def test_few_labels_are_the_images_that_fine_tuning_takes(finetune, monkeypatch):
    """The same labels and the same seed: k-NN votes with the images of ``labels_per_class`` and ``subset_seed``."""
    voters = []
    monkeypatch.setattr('bootmae.commands.knn.knn_accuracy', lambda reference, *_: voters.append(reference) or 0.0)
    evaluate_features(
        str(FINETUNE), None, seed=3, labels=['2'], options={'train_dataloader.dataset.labels_per_class': None}
    )
    dataset = dict(finetune.train_dataloader.dataset, labels_per_class=2, subset_seed=3)
    model, pipeline = build_encoder(finetune, None, seed=3), finetune.test_dataloader.dataset.pipeline
    features, labels = extract(model, dict(dataset=dataset), pipeline)
    torch.testing.assert_close(voters[0][0], features)
    assert voters[0][1].tolist() == labels.tolist()


def test_judge(finetune, checkpoint):
    rows = evaluate_features(
        str(FINETUNE), checkpoint, seed=3, tasks=('knn', 'linear'), labels=('8', '2'), k=5, options=SMALL
    )
    assert [f'{row.task} {row.labels}' for row in rows] == ['knn 8', 'linear 8', 'knn 2', 'linear 2']
    cfg = load_config(FINETUNE, SMALL)
    model, pipeline = build_encoder(cfg, checkpoint), cfg.test_dataloader.dataset.pipeline
    reference, query = (extract(model, cfg[key], pipeline) for key in ('train_dataloader', 'test_dataloader'))
    index = few_labels(reference[1], 2, seed=3)
    few = reference[0][index], reference[1][index]
    assert [row.value for row in rows] == [
        knn_accuracy(reference, query, 5),
        linear_accuracy(reference, query),
        knn_accuracy(few, query, 5),
        linear_accuracy(few, query),
    ]
    assert {(row.data, row.method, row.seed, row.precision, row.seconds, row.images) for row in rows} == {
        ('digits', 'bootmae', 3, 'float32', 12.5, 320)
    }
    assert len(rows[0].checkpoint_hash) == 12
    assert rows[0].protocol == 'k=5, block 2 of 2'


def test_a_checkpoint_is_read_and_hashed_once(checkpoint, monkeypatch):
    """For all rows of an encoder together; six rows here."""
    calls, read_file, digest = [], read._read_torch, load.tensors_hash
    monkeypatch.setattr(read, '_read_torch', lambda path: calls.append('read') or read_file(path))
    monkeypatch.setattr(load, 'tensors_hash', lambda state: calls.append('hash') or digest(state))
    rows = evaluate_features(str(FINETUNE), checkpoint, tasks=('knn', 'linear'), labels=('8', '2', '4'), options=SMALL)
    assert len(rows) == 6
    assert calls == ['read', 'hash']


def test_judge_tells_encoders_apart(checkpoint):
    """Untrained, online and momentum encoders have hashes and methods of their own."""
    rows = [
        evaluate_features(str(FINETUNE), path, source=source, options=SMALL)[0]
        for path, source in ((None, 'online'), (checkpoint, 'online'), (checkpoint, 'momentum'))
    ]
    assert [row.method for row in rows] == ['untrained', 'bootmae', 'bootmae']
    assert len({row.checkpoint_hash for row in rows}) == 3
    assert rows[0].checkpoint_hash == rows[0].checkpoint == ''


@pytest.mark.parametrize('labels', ['0', '-1', 'many', '1.5'])
def test_judge_refuses_labels(labels):
    with pytest.raises(ValueError, match=f'--labels \'{labels}\': give "all" or a number'):
        evaluate_features(str(FINETUNE), None, labels=('all', labels))


@pytest.mark.parametrize(('limit', 'labels'), [(8, '8'), (None, 'all')])
def test_rows_have_the_number_of_labels_of_the_config(limit, labels):
    small = SMALL | {'train_dataloader.dataset.labels_per_class': limit, 'train_dataloader.dataset.indices': 80}
    assert evaluate_features(str(FINETUNE), None, options=small)[0].labels == labels
    if limit:
        with pytest.raises(ValueError, match=r'labels=all, but train_dataloader.dataset.labels_per_class of .* is 8: '):
            evaluate_features(str(FINETUNE), None, labels=('2', 'all'), options=small)


def test_images_that_would_be_read_as_black_are_refused(tmp_path):
    """As a training refuses them: 12 bits in files of 16."""
    for split, name in itertools.product(('train', 'val'), ('a', 'b')):
        (tmp_path / split / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.RandomState(index).randint(0, 4096, (64, 64, 3)).astype(np.uint16)
            cv2.imwrite(str(tmp_path / split / name / f'{index}.png'), pixels)
    config, options = CONFIGS / 'cls' / 'bootmae_small_data_cpu_finetune.py', {'images': [str(tmp_path)]}
    with pytest.raises(DataFault, match='scale the values to the whole range of their type'):
        evaluate_features(str(config), None, data='own', options=options)


# --- several blocks ---


@pytest.mark.parametrize('out_type', ['avg_featmap', 'cls_token'])
def test_blocks_are_those_of_shallower_encoders(finetune, checkpoint, out_type):
    """Bit for bit what encoders built with that depth give, in the order asked for."""
    finetune.model.backbone.out_type = out_type
    images, expected = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0)), []
    images = images[..., : finetune.model.backbone.img_size, : finetune.model.backbone.img_size]
    with torch.no_grad():
        for depth in (2, 1):
            finetune.model.backbone.depth = depth
            expected += build_encoder(finetune.copy(), checkpoint).backbone(images)
        finetune.model.backbone.depth = 2
        found = pooled_blocks(build_encoder(finetune, checkpoint).backbone, images, [2, 1])
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert not torch.equal(*found)


def test_features_of_patches_are_refused(finetune):
    finetune.model.backbone.out_type = 'raw'
    with pytest.raises(ValueError, match=r"out_type 'raw' gives no vector for an image: .* avg_featmap or cls_token"):
        pooled_blocks(build_encoder(finetune, None).backbone, torch.zeros(1, 3, 32, 32), [1])


def test_judge_blocks(checkpoint, monkeypatch):
    """Numbers of all blocks are those of runs with that depth, and each data set is built, so read, once."""
    args = dict(tasks=('knn', 'linear'), labels=('8', '2'))
    single = [
        evaluate_features(str(FINETUNE), checkpoint, **args, options=SMALL | {'model.backbone.depth': depth})
        for depth in (1, 2)
    ]
    built, build = [], DATASETS.build
    monkeypatch.setattr(probe.DATASETS, 'build', lambda cfg: built.append(cfg) or build(cfg))
    rows = evaluate_features(
        str(FINETUNE), checkpoint, **args, options=SMALL | {'model.backbone.depth': 1}, blocks=['all']
    )
    assert len(built) == 2
    assert [row.protocol for row in rows[:4]] == [
        'k=20, block 1 of 2',
        'logistic regression, block 1 of 2',
        'k=20, block 2 of 2',
        'logistic regression, block 2 of 2',
    ]
    assert {row.key: row.value for row in rows} == {row.key: row.value for found in single for row in found}
    assert len({row.value for row in rows}) > 2
    first = evaluate_features(str(FINETUNE), checkpoint, **args, options=SMALL, blocks=[1])
    assert [row.value for row in first] == [row.value for row in single[0]]


def test_chosen_blocks():
    assert chosen_blocks(['all'], 3) == [1, 2, 3]
    assert chosen_blocks(['9', 6, 9], 12) == [6, 9]
    for wrong in ('0', 13, '-1', 'last', '1.5'):
        with pytest.raises(ValueError, match=rf'--blocks {wrong}: the encoder has the blocks 1\.\.12; give some of'):
            chosen_blocks([1, wrong], 12)
    with pytest.raises(ValueError, match='--blocks all: .*"all" alone'):
        chosen_blocks(['all', 1], 12)
