"""RankMe: exact values, and the features that it is computed from."""

import math
from pathlib import Path

import pytest
import torch

from bootmae.commands.knn import evaluate_features
from bootmae.config.load import load_config
from bootmae.evaluation.probe import build_encoder, extract_blocks
from bootmae.evaluation.rankme import BLOCK, EPSILON, RankMe, before_norm, rank_me

FINETUNE = Path(__file__).resolve().parents[2] / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
FEW = {'train_dataloader.dataset.labels_per_class': 2, 'test_dataloader.dataset.indices': 20}


def spectrum(*sizes: float) -> torch.Tensor:
    """Random features (9, number of sizes) with these singular values."""
    generator = torch.Generator().manual_seed(3)
    left, right = (
        torch.linalg.qr(torch.randn(n, len(sizes), generator=generator, dtype=torch.float64))[0]
        for n in (9, len(sizes))
    )
    return left @ torch.diag(torch.tensor(sizes, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(
    'features, rank',
    [
        (torch.eye(16), 16),
        (torch.eye(16)[:5], 5),
        (torch.ones(10, 6), 1),
        (torch.outer(torch.arange(1.0, 8.0), torch.tensor([1.0, -2.0, 0.5])), 1),
        (spectrum(2, 1, 1), 2**1.5),  # entropy of 1/2, 1/4, 1/4: 1.5 bits
        (spectrum(8, 2), math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))),
        (1000 * spectrum(2, 1, 1).float(), 2**1.5),
    ],
)
def test_exact_values(features, rank):
    assert rank_me(features) == pytest.approx(rank, rel=3e-5)
    assert rank_me(features, epsilon=1e-12) == pytest.approx(rank, rel=1e-6)


@pytest.mark.parametrize('rank', [1, 5, 24])
def test_batches_give_the_singular_values_of_all_features(rank):
    """Also of rank-deficient features, whose small singular values a Gram matrix would get wrong."""
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (500, 24))
    features, found = left @ right.T, RankMe()
    for batch in features.split(37):
        found.add(batch)
    shares = torch.linalg.svdvals(features)
    shares = shares / shares.sum() + EPSILON
    expected = math.exp(-float((shares * shares.log()).sum()))
    assert found.value() == pytest.approx(expected, rel=1e-9)
    assert rank_me(features) == pytest.approx(expected, rel=1e-9)
    assert (found.count, found.width) == (500, 24)
    assert sum(map(len, found.parts)) <= BLOCK * 24 < 500, 'and not all features are kept'
    found.add(torch.full((1, 24), torch.nan))
    assert math.isnan(found.value())


def test_the_papers_epsilon():
    """Each of D equal shares is 1 / D + epsilon."""
    assert EPSILON == 1e-7
    share = 1 / 16 + 1e-3
    assert rank_me(torch.eye(16), epsilon=1e-3) == pytest.approx(math.exp(-16 * share * math.log(share)))


def test_features_are_neither_centered_nor_normalized():
    features = spectrum(2, 1, 1)
    assert rank_me(features + 5) < 2
    assert rank_me(features * torch.linspace(0.01, 1, 9).unsqueeze(1)) != pytest.approx(rank_me(features), rel=0.01)


@pytest.mark.parametrize('features', [torch.zeros(4, 3), torch.full((4, 3), torch.nan), torch.full((2, 2), torch.inf)])
def test_no_number_for_features_without_one(features):
    assert math.isnan(rank_me(features))


@pytest.mark.parametrize('out_type', ['avg_featmap', 'cls_token'])
def test_features_are_kept_before_their_norm(make_vit, out_type):
    vit, images = make_vit(out_type=out_type), torch.randn(5, 3, 32, 32, dtype=torch.float64)
    kept: list[torch.Tensor] = []
    with torch.no_grad(), before_norm(vit, kept.append):
        features = torch.cat([vit(part)[0] for part in images.split(2)])
    assert [len(part) for part in kept] == [2, 2, 1]
    norm = vit.fc_norm if out_type == 'avg_featmap' else vit.norm
    kept = torch.cat(kept)
    torch.testing.assert_close(norm(kept.double()), features, rtol=1e-4, atol=1e-5)
    assert kept.std(dim=1).sub(1).abs().min() > 0.01, 'not normalized'
    vit(images)
    assert len(kept) == 5, 'nothing is kept later'


def test_knn_tells_the_rank_of_each_block():
    lines = []
    with_rank, without = (
        evaluate_features(str(FINETUNE), None, seed=3, options=FEW, blocks=['all'], tell=tell)
        for tell in (lines.append, None)
    )
    assert [row.value for row in with_rank] == [row.value for row in without]
    expected = []
    for depth in (1, 2):
        cfg = load_config(FINETUNE, FEW)
        model = build_encoder(cfg, None, seed=3)
        model.backbone.blocks = model.backbone.blocks[:depth]
        model.backbone.fc_norm = torch.nn.Identity()
        pipeline = cfg.test_dataloader.dataset.pipeline
        ((features, _),) = extract_blocks(model, cfg.train_dataloader, pipeline, [depth], batch_size=7)
        expected.append(f'RankMe {rank_me(features):.2f} of 48 features, block {depth} of 2, 20 labeled images')
    assert lines == expected
    assert lines[0].split()[1] != lines[1].split()[1]
