"""Encoders: load one from any checkpoint, extract features of images, and measure their k-NN accuracy.

Shape letters: B images, C channels, H and W image size, h and w rows and columns of patches, D width.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from mmengine.device import get_device
from torch import nn

from .. import registry  # noqa: F401
from ..checkpoints.folders import checkpoint_file
from ..commands.knn import NEIGHBORS, check_apart
from ..config.encoder import read_model
from ..data.findings import DataFault
from ..data.images import ImageFiles
from ..data.roots import ARCHIVE
from ..data.scan import NO_CLASSES
from ..data.subsets import spread
from ..data.value_checks import NUM_SPOT_CHECKS, check_values, judge_ranges, read_ranges
from ..evaluation.probe import Features, knn_accuracy
from ..models.layers import layer_norm
from ..text import count_of
from ..transfer import TransferViT
from .arguments import height_and_width, path_text, whole_number
from .preprocessing import Picture, Preprocessing, as_array, as_list, described
from .quiet import undisturbed

Pictures: TypeAlias = Picture | Iterable[Picture] | torch.Tensor
FAR = 10  # times the largest normalized value of an image: a tensor of 0 to 255 is farther


class Encoder(nn.Module):
    """A pretrained ViT with its preprocessing; :func:`load_encoder` makes it.

    Attributes:
        vit: The ViT without a head, a :class:`bootmae.transfer.TransferViT`.
        fc_norm: LayerNorm of the pooled features: that of a fine-tuned classifier, otherwise without effect of its own.
        preprocessing: How images become its input.
        patch_size: Height and width of a patch in pixels.
        width: D, the length of a feature vector.
        kind: Format of the file that it came from.
        notes: Sentences about what the file does not record and had to be assumed; empty if nothing.
    """

    def __init__(
        self,
        vit: TransferViT,
        fc_norm: nn.LayerNorm,
        preprocessing: Preprocessing,
        kind: str = '',
        notes: Sequence[str] = (),
    ):
        super().__init__()
        self.vit, self.fc_norm, self.preprocessing = vit, fc_norm, preprocessing
        self.patch_size, self.width = vit.patch_size, vit.embed_dims
        self.kind, self.notes = kind, tuple(notes)

    def preprocess(self, images: Picture | Iterable[Picture]) -> torch.Tensor:
        """Convert images to one input tensor (B, 3, height, width), as :attr:`preprocessing` says."""
        return _stack(self.preprocessing, files_of(images))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of preprocessed images: (B, C, H, W) -> (B, D), with gradients where they are enabled.

        They are the mean of the patch tokens of the last block after a LayerNorm, the features of ``tools/knn.py``.

        Raises:
            ValueError: If it is not a tensor of such images, or their size is not a multiple of the patch size.
        """
        self._check_input(x)
        return self.fc_norm(self.vit(x)[-1].mean(dim=(2, 3)))

    @torch.no_grad()
    def feature_maps(
        self, images: Pictures, size: int | tuple[int, int] | None = None, batch_size: int = 64
    ) -> torch.Tensor:
        """Return the patch tokens of the last block as maps.

        Args:
            images: Images as for :func:`extract_features`. They keep their size, which must be the same for all and a
                multiple of the patch size; the positions are interpolated to it.
            size: Scale images to cover this size (pixels, or height and width) and crop them at the center. It is not
                for a tensor, which is taken as it is.
            batch_size: Images per batch.

        Returns:
            (B, D, h, w) float32 on the CPU.

        Raises:
            FileNotFoundError, ValueError: As :func:`extract_features`, and for a size that does not fit.

        >>> encoder = bootmae.load_encoder('work_dirs/bootmae_debug/epoch_2.pth')
        >>> encoder.feature_maps(numpy.zeros((64, 96, 3), 'uint8')).shape  # patches of 4 x 4 pixels
        torch.Size([1, 48, 16, 24])
        >>> encoder.feature_maps(['cat.jpg', 'dog.jpg'], size=64).shape
        torch.Size([2, 48, 16, 16])
        """
        convert = self._normalized
        if size is not None:
            if isinstance(images, torch.Tensor):
                raise ValueError(f'size={size!r} scales images, but a tensor is taken as it is: leave size out')
            sides = height_and_width(size, 'size')
            convert = replace(self.preprocessing, size=sides, resize=sides)
        return self._outputs(lambda x: self.vit(x)[-1], images, convert, batch_size)

    def _normalized(self, image: Picture) -> torch.Tensor:
        return self.preprocessing.normalize(as_array(image))

    @torch.no_grad()
    def _outputs(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        images: Pictures,
        convert: Callable[[Picture], torch.Tensor],
        batch_size: int,
    ) -> torch.Tensor:
        """Return the outputs of a function for all images, float32 on the CPU."""
        batch_size = whole_number(batch_size, 'batch_size')
        listed = images if isinstance(images, torch.Tensor) else files_of(images)
        results, weight = [], self.vit.pos_embed
        for first in range(0, len(listed), batch_size):
            batch = listed[first : first + batch_size]
            x = batch if isinstance(batch, torch.Tensor) else _stack(convert, batch)
            self._check_input(x)
            if x.abs().max() > FAR * (largest := self.preprocessing.largest):
                raise ValueError(
                    f'the tensor has values up to {x.abs().max():g}, normalized images up to {largest:.3g}: give '
                    'encoder.preprocess(images), or images as RGB uint8 arrays'
                )
            results.append(function(x.to(weight)).float().cpu())
            if not results[-1].isfinite().all():
                raise ValueError(
                    f'the features of images {first} to {first + len(x) - 1} are not all finite: give tensors without '
                    'NaN and infinity, and use encoder.float() if it was converted to half precision'
                )
        if not results:
            raise ValueError('no images were given: the tensor is empty')
        if len({result.shape[1:] for result in results}) > 1:
            raise ValueError('the images have different sizes: give size=... to bring all of them to one size')
        return torch.cat(results)

    def _check_input(self, x: torch.Tensor) -> None:
        channels = self.vit.patch_embed.proj.in_channels
        if not isinstance(x, torch.Tensor) or x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(
                f'{described(x)} is no input of this encoder: give floating point values of (images, {channels}, '
                'height, width), as encoder.preprocess(images) returns'
            )
        if any(side % patch or not side for side, patch in zip(x.shape[2:], self.patch_size)):
            raise ValueError(
                f'images of {x.shape[2]} x {x.shape[3]} pixels are not a multiple of the patch size '
                f'{self.patch_size[0]} x {self.patch_size[1]}: crop them, or give size=... to feature_maps'
            )

    def __repr__(self) -> str:
        size, patch = (' x '.join(map(str, sides)) for sides in (self.preprocessing.size, self.patch_size))
        return f'Encoder({self.kind}: {self.vit.depth} blocks, width {self.width}, patches {patch}, images {size})'


def load_encoder(
    checkpoint: str | os.PathLike,
    source: str = 'online',
    img_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    statistics: str | None = None,
    config: str | os.PathLike | None = None,
) -> Encoder:
    """Load an encoder, in eval mode, without gradients, and on the GPU if there is one.

    Args:
        checkpoint: A checkpoint of this package, of the authors, facebookresearch, mmpretrain, mmseg, mmdet,
            detectron2, timm or transformers; the folder of a run, whose newest checkpoint is taken; or ``timm:NAME``,
            which is downloaded.
        source: ``online`` or ``momentum`` encoder of a BootMAE file, ``raw`` or ``ema`` weights of other files.
        img_size: Size of the images (pixels, or height and width), by default that of the training. Positions are
            interpolated.
        num_heads: Number of attention heads, for a file of unusual width that does not record it.
        statistics: ``imagenet`` (default) or ``half`` (0.5), for a file that does not record how its images were
            normalized.
        config: Config of the run, for an encoder that attends within windows and does not record a config.

    Raises:
        FileNotFoundError: If there is no such file, or the weights cannot be downloaded.
        ValueError: If it has no ViT encoder, or one that is damaged or incomplete, or a size that does not fit.

    >>> bootmae.load_encoder('work_dirs/bootmae_debug/epoch_2.pth')
    Encoder(BootMAE run (online): 2 blocks, width 48, patches 4 x 4, images 32 x 32)
    """
    given = path_text(checkpoint, 'checkpoint')
    recipe = None if config is None else path_text(config, 'config')
    size = None if img_size is None else height_and_width(img_size, 'img_size')
    with undisturbed():
        path = checkpoint_file(given, tell=lambda line: None)
        found = read_model(path, source, size, None, num_heads, statistics, recipe)
        model, state = found.model, found.encoder.state
        norm = layer_norm(model.embed_dims)
        norm.load_state_dict({key: state.get(f'fc_norm.{key}', value) for key, value in norm.state_dict().items()})
        resize = tuple(
            max(side, side * 8 // 7 // patch * patch) for side, patch in zip(model.img_size, model.patch_size)
        )
        preprocessing = Preprocessing(model.img_size, found.mean, found.std, resize)
        encoder = Encoder(model, norm, preprocessing, found.encoder.kind, found.notes)
        return encoder.requires_grad_(False).eval().to(get_device())


def extract_features(encoder: Encoder, images: Pictures, batch_size: int = 64) -> torch.Tensor:
    """Extract one feature vector for each image.

    The features are those of ``tools/knn.py``: the mean of the patch tokens of the last block after a LayerNorm.

    Args:
        encoder: Result of :func:`load_encoder`.
        images: Paths, PIL images, RGB uint8 arrays (H, W, 3), or a list of them; a folder or tar archive, which stands
            for all images in it; or a tensor of preprocessed images.
        batch_size: Images per batch.

    Returns:
        (B, D) float32 on the CPU, in the order of the images. Those of a folder are sorted by path.

    Raises:
        FileNotFoundError: If a file is missing, or a folder has no images.
        ValueError: If something is not an image, or there is none.

    >>> encoder = bootmae.load_encoder('work_dirs/bootmae_debug')
    >>> features = bootmae.extract_features(encoder, ['cat.jpg', 'dog.jpg'])
    >>> features.shape, features.dtype
    (torch.Size([2, 48]), torch.float32)
    >>> torch.equal(features, bootmae.extract_features(encoder, encoder.preprocess(['cat.jpg', 'dog.jpg'])))
    True
    """
    check_encoder(encoder)
    return encoder._outputs(encoder, images, encoder.preprocessing, batch_size)


def evaluate_knn(
    encoder: Encoder,
    train: str | os.PathLike,
    test: str | os.PathLike,
    k: int | None = None,
    temperature: float = 0.07,
    batch_size: int = 64,
) -> float:
    """Classify images by their nearest neighbors among labeled images, as ``tools/knn.py`` does.

    Args:
        encoder: Result of :func:`load_encoder`.
        train: Folder of the labeled images, with one subfolder for each class.
        test: Folder of the images to classify, with the same subfolders.
        k: Number of neighbors. By default 20, or all labeled images if there are fewer.
        temperature: Neighbors vote with the weight ``exp(cosine / temperature)``.
        batch_size: Images per batch.

    Returns:
        The accuracy in percent.

    Raises:
        FileNotFoundError: If a folder is missing or has no images.
        ValueError: If the folders have different classes or share images, there are fewer than ``k`` labeled images, or
            an image cannot be read.

    >>> encoder = bootmae.load_encoder('work_dirs/bootmae_debug')
    >>> 0 <= bootmae.evaluate_knn(encoder, train='labeled/train', test='labeled/val') <= 100
    True
    """
    check_encoder(encoder)
    neighbors = NEIGHBORS if k is None else whole_number(k, 'k')
    if not temperature > 0:
        raise ValueError(f'temperature={temperature}: give a positive number')
    sets = [image_set(path_text(folder, name), labels='folder') for folder, name in ((train, 'train'), (test, 'test'))]
    check_apart(sets[0], sets[1], f'{train} and {test}')
    if k is not None and k > len(sets[0]):
        there = count_of(len(sets[0]), 'labeled image is', 'labeled images are')
        raise ValueError(f'k={k}: only {there} there; give at most that many neighbors')
    classes = [each.metainfo['classes'] for each in sets]
    for here, there, ours, theirs in ((train, test, *classes), (test, train, *classes[::-1])):
        if more := sorted(set(ours) - set(theirs)):
            raise ValueError(
                f'{here} has the class {more[0]} and {there} has not ({len(more)} of '
                f'{count_of(len(ours), "class", "classes")} differ): give folders with the same subfolders'
            )
    bank, queries = (_labeled_features(encoder, each, batch_size) for each in sets)
    return knn_accuracy(bank, queries, neighbors, temperature)


def check_encoder(encoder: object) -> None:
    """Raise a ValueError for anything but an :class:`Encoder`."""
    if not isinstance(encoder, Encoder):
        raise ValueError(f'encoder={encoder!r:.60}: give the result of bootmae.load_encoder')


def files_of(images: Picture | Iterable[Picture]) -> list[Picture]:
    """Return images as a list; a folder or a tar archive stands for the images in it.

    Raises:
        DataFault: If most files would be read as almost nothing, as a training says.
    """
    if isinstance(images, str | os.PathLike):
        path = os.path.expanduser(images)
        if os.path.isdir(path) or ARCHIVE.search(path):
            return _paths(image_set(path))
    listed = as_list(images)
    paths = [os.path.expanduser(os.fspath(each)) for each in listed if isinstance(each, str | os.PathLike)]
    some = [paths[index] for index in spread(len(paths), NUM_SPOT_CHECKS)]
    if faults := [finding for finding in judge_ranges(read_ranges(some)[0]) if finding.fault]:
        raise DataFault(faults)
    return listed


def image_set(folder: str | os.PathLike, labels: str | None = None) -> ImageFiles:
    """Find the images of a folder, and check the range of their values as a training does."""
    folder = os.fspath(folder)
    try:
        with undisturbed():
            found = ImageFiles(folder, labels=labels, pipeline=[dict(type='LoadImageFromFile')], test_mode=True)
            check_values(found)
    except DataFault as error:
        if error.findings[0].kind != NO_CLASSES:
            raise
        raise ValueError(
            f'{folder} holds splits and not classes: give two of them, such as train={folder}/train, test={folder}/val'
        ) from None
    return found


def _paths(images: ImageFiles) -> list[Picture]:
    return [images.get_data_info(index)['img_path'] for index in range(len(images))]


def _labeled_features(encoder: Encoder, images: ImageFiles, batch_size: int) -> Features:
    labels = torch.from_numpy(np.asarray(images.get_gt_labels(), dtype=np.int64))
    return extract_features(encoder, _paths(images), batch_size), labels


def _stack(convert: Callable[[Picture], torch.Tensor], images: Sequence[Picture]) -> torch.Tensor:
    """Convert images in parallel and stack them.

    Raises:
        ValueError: If they have different sizes.
    """
    with ThreadPoolExecutor() as pool:  # decoding and scaling release the lock of the interpreter
        tensors = list(pool.map(convert, images))
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        shown = ' and '.join(f'{height} x {width}' for height, width in sorted(shapes)[:2])
        raise ValueError(f'the images have different sizes, such as {shown}: give size=... to bring them to one size')
    return torch.stack(tensors)
