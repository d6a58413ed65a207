"""Evaluation of frozen features: k-NN and logistic regression.

Shape letters: N reference images, Q query images, D feature width, K classes.
"""

from collections.abc import Callable, Sequence

import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.device import get_device
from mmengine.runner import set_random_seed
from mmpretrain.registry import DATASETS
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..checkpoints import load_encoder_weights, read_checkpoint
from ..config.model import build_model
from ..config.weights import apply_init
from ..data.samples import NamedSamples
from ..data.value_checks import check_values
from ..distributed.signals import shield_workers
from ..models.vit import PlainViT

LOADING = ('EncoderWeights', 'Pretrained')  # types of init_cfg that read a file
Features = tuple[torch.Tensor, torch.Tensor]  # (N, D) float32 and (N,) int64 labels


def build_encoder(
    cfg: Config, checkpoint: str | None, source: str = 'online', seed: int = 0, content: dict | None = None
) -> nn.Module:
    """The classifier of a downstream config in eval mode, with the encoder of a checkpoint or random weights.

    The backbone's ``load_report`` says what was loaded.

    Args:
        cfg: A classification config.
        checkpoint: File of the encoder; None for random weights.
        source: Which encoder of a file with several, see :func:`find_encoder`.
        seed: Seed of the random weights.
        content: Content of the checkpoint, if it was read before.

    Raises:
        FileNotFoundError, ValueError: The checkpoint is missing or does not fit; see :func:`apply_init`.
    """
    statistics = None
    if checkpoint:
        content = content or read_checkpoint(checkpoint)
        apply_init(cfg, checkpoint, source, content)
        statistics = cfg.model.backbone.pop('init_cfg').get('statistics')  # init_cfg would read the file again
        cfg.model.pop('init_cfg', None)  # weights of a whole model, which may be gone, would be overwritten
    else:
        for part in (cfg.model, cfg.model.backbone):
            if any(each.get('type') in LOADING for each in _init_cfgs(part)):
                del part['init_cfg']
    set_random_seed(seed)
    model = build_model(cfg)
    model.init_weights()
    if checkpoint:
        model.backbone.load_report = load_encoder_weights(
            model.backbone, checkpoint, source, content, cfg.get('adapt_channels'), statistics
        )
    return model.to(get_device()).eval()


def _init_cfgs(part: dict) -> list[dict]:
    init = part.get('init_cfg') or []
    return [init] if isinstance(init, dict) else list(init)


def evaluation_images(dataset: dict, pipeline: list) -> Dataset:
    """Build a data set without augmentation, and check the values of its images, see :func:`check_values`."""
    built = DATASETS.build(dict(dataset, pipeline=pipeline, test_mode=True))
    check_values(built)
    return built


def features_of(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Features:
    """Features (before the head) and labels of a dataset in its order; ``progress`` is called after each batch."""
    (features,), labels = _read(
        model, dataset, lambda images: model.backbone(images)[-1:], batch_size, workers, progress
    )
    return features, labels


def extract_blocks(
    model: nn.Module, loader: dict, pipeline: list, blocks: Sequence[int], batch_size: int = 256, workers: int = 0
) -> list[Features]:
    """Features after each of ``blocks`` (counted from 1), before the head, and labels of all images of a dataset.

    Args:
        model: A classifier.
        loader: Config of a dataloader; its dataset is read once, in order, without augmentation.
        pipeline: Transforms for evaluation.
        blocks: The blocks.
        batch_size: Images per batch.
        workers: Number of processes that read images.
    """
    dataset = evaluation_images(loader['dataset'], pipeline)
    features, labels = _read(
        model, dataset, lambda images: pooled_blocks(model.backbone, images, blocks), batch_size, workers
    )
    return [(found, labels) for found in features]


def pooled_blocks(backbone: PlainViT, images: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
    """Outputs (B, D) of the backbone if ``depth`` were each of these blocks (counted from 1), in one pass.

    Raises:
        ValueError: The backbone does not return one vector per image.
    """
    if backbone.out_type not in ('avg_featmap', 'cls_token'):
        raise ValueError(
            f'model.backbone.out_type {backbone.out_type!r} gives no vector for an image: frozen features '
            'need a config with avg_featmap or cls_token'
        )
    backbone.check_images(images)
    x = backbone.embed(backbone.patch_embed.patchify(images), backbone.pos_embed[:, 1:])
    outputs = map(backbone.norm, backbone.forward_blocks(x, taps=[block - 1 for block in blocks])[1])
    if backbone.out_type == 'cls_token':
        return [x[:, 0] for x in outputs]
    return [backbone.fc_norm(x[:, 1:].mean(dim=1)) for x in outputs]


@torch.no_grad()
def _read(
    model: nn.Module,
    dataset: Dataset,
    outputs: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    batch_size: int,
    workers: int,
    progress: Callable[[], None] = lambda: None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Results (N, D) of the function ``outputs`` over the whole dataset, on the CPU, and the labels (N,)."""
    batches = DataLoader(NamedSamples(dataset), batch_size, num_workers=workers, collate_fn=default_collate)
    if workers:
        shield_workers(batches)
    features, labels = [], []
    for batch in batches:
        data = model.data_preprocessor(batch, training=False)
        features.append([found.float().cpu() for found in outputs(data['inputs'])])
        labels.extend(int(sample.gt_label) for sample in data['data_samples'])
        progress()
    return [torch.cat(parts) for parts in zip(*features, strict=True)], torch.tensor(labels)


def knn_accuracy(
    reference: Features, query: Features, k: int = 20, temperature: float = 0.07, chunk: int = 1024
) -> float:
    """Accuracy in percent of k-NN with votes weighted by ``exp(cosine / temperature)`` (Wu et al. 2018).

    Args:
        reference: Labeled features.
        query: Features to classify.
        k: Number of neighbors; all if there are fewer.
        temperature: Temperature of the weights.
        chunk: Number of queries at a time.
    """
    device = get_device()
    bank, labels = F.normalize(reference[0], dim=1).to(device), reference[1].to(device)
    num_classes, right = int(labels.max()) + 1, 0
    for features, truth in zip(query[0].split(chunk), query[1].split(chunk), strict=True):
        similarity, index = (F.normalize(features, dim=1).to(device) @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = (similarity / temperature).softmax(dim=1)  # exp alone is infinite below a temperature of 0.012
        votes = weights.new_zeros(len(features), num_classes).scatter_add(1, labels[index], weights)
        right += int((votes.argmax(dim=1).cpu() == truth).sum())
    return 100 * right / len(query[1])


def linear_accuracy(reference: Features, query: Features, c: float = 1.0) -> float:
    """Accuracy in percent of logistic regression (L-BFGS, L2 penalty 1 / c) on standardized features."""
    from sklearn.linear_model import LogisticRegression  # slow to import, and no other task needs it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    probe.fit(reference[0].numpy(), reference[1].numpy())
    return 100 * float(probe.score(query[0].numpy(), query[1].numpy()))


def chosen_blocks(blocks: Sequence[int | str], depth: int) -> list[int]:
    """The requested blocks of an encoder with ``depth`` blocks, sorted and without repetition; ``all`` is all of them.

    Raises:
        ValueError: The encoder has no such block.
    """
    asked = range(1, depth + 1) if list(map(str, blocks)) == ['all'] else blocks
    for block in asked:
        if not (str(block).isdecimal() and 1 <= int(block) <= depth):
            raise ValueError(
                f'--blocks {block}: the encoder has the blocks 1..{depth}; give some of these, or "all" alone'
            )
    return sorted(set(map(int, asked)))
