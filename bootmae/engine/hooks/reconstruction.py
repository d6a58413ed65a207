"""Draws reconstructed training images during pretraining.

Shape letters: n images, N patches, M masked.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import MLflowVisBackend
from mmpretrain.models.selfsup import MAE
from PIL import Image
from torch import nn

from ...config.model import build_model
from ...data.subsets import spread
from ...models.bootmae import BootMAE
from ...visualization.grids import reconstruction_grid
from ...visualization.reconstruct import as_colors, brightness, draw_masks, hide, reconstruct, shown_channels, to_pixels
from ..unwrap import bare_model
from .between_epochs import is_due, kept_random_state

NAME = 'reconstructions'


def first_images(runner: Runner, count: int) -> tuple[torch.Tensor, list]:
    """Load evenly spaced training images as the first epoch sees them.

    Returns:
        The normalized images (n, 3, H, W) on the CPU, and their data samples.
    """
    loader, stage = runner.train_dataloader, getattr(runner.train_loop, 'stage', None)
    dataset = loader.dataset
    batch = loader.collate_fn([dataset[int(index)] for index in spread(len(dataset), count)])
    batch = batch if stage is None else stage(batch)
    inputs = dict(inputs=batch['inputs'], data_samples=None)
    return bare_model(runner).data_preprocessor(inputs, training=False)['inputs'].cpu(), batch.get('data_samples')


def masks_of(model: nn.Module, samples: list | None, count: int) -> tuple[np.ndarray, int]:
    """Return the masks of the data samples if they have any, else draw some.

    Returns:
        The masks as ids_shuffle (n, N), and the number of masked patches M.
    """
    ids_shuffle, num_masked = draw_masks(model, count)
    if isinstance(model, BootMAE) and samples is not None and 'ids_shuffle' in samples[0]:
        ids_shuffle = np.stack([sample.ids_shuffle for sample in samples])
    return ids_shuffle, num_masked


def patch_of(backbone: nn.Module) -> tuple[int, int]:
    """Return height and width of a patch in pixels, for our ViT and mmpretrain's."""
    grid = backbone.grid if hasattr(backbone, 'grid') else backbone.patch_resolution
    return backbone.img_size[0] // grid[0], backbone.img_size[1] // grid[1]


def on_white(png: bytes) -> np.ndarray:
    """Convert a PNG with transparency to RGB uint8 (H, W, 3) on white, as log viewers expect."""
    picture = Image.open(io.BytesIO(png)).convert('RGBA')
    white = Image.new('RGBA', picture.size, 'white')
    return np.asarray(Image.alpha_composite(white, picture).convert('RGB'))


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draws original, masked and predicted training images before the first epoch, every few epochs, after the last.

    The run's visualizer gets the pictures as ``reconstructions`` with the epoch as step (by default
    ``vis_data/vis_image/`` and TensorBoard). Images, crops and masks are the same each time. Rank 0 draws with a copy
    of the model on the CPU. The training itself does not change.

    The model predicts normalized patches; each gets the mean and standard deviation of its original back, see
    :mod:`bootmae.visualization.reconstruct`.

    Args:
        interval: number of epochs between two pictures.
        count: number of images n.
        channels: channels that are drawn, see :func:`shown_channels`. With ``image_channels`` their brightness is
            stretched.

    Raises:
        ValueError: for a wrong argument, and before the first step for a model that predicts no patches.
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 10, count: int = 6, channels: Sequence[int] | None = None):
        if interval < 1 or count < 1:
            raise ValueError(f'ReconstructionHook interval={interval}, count={count}: give numbers of at least 1')
        self.interval, self.count, self.channels = interval, count, channels
        self.copy: nn.Module | None = None

    def before_train(self, runner: Runner) -> None:
        model = bare_model(runner)
        if not isinstance(model, BootMAE | MAE):
            raise ValueError(f'ReconstructionHook: {type(model).__name__} predicts no patches; remove the hook')
        if runner.rank:
            return
        with kept_random_state():
            self.copy = build_model(runner.cfg).eval()
            x, samples = first_images(runner, self.count)
        self.images = to_pixels(self.copy, x)
        self.chosen = shown_channels(self.images, self.channels)
        self.limits = brightness(self.images, self.chosen) if runner.cfg.get('image_channels') else None
        self.ids_shuffle, self.num_masked = masks_of(self.copy, samples, len(x))
        if runner.iter == 0:
            self.draw(runner, 0)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.copy is not None and is_due(self, runner):
            runner.call_hook('report_progress', phase='val')
            self.draw(runner, runner.epoch + 1)

    def draw(self, runner: Runner, epoch: int) -> None:
        """Draw the picture of an epoch and give it to the visualizer."""
        image = self.picture(bare_model(runner))
        for backend in runner.visualizer._vis_backends.values():
            # mlflow stores a file: its suffix gives the format, and it has no step
            name = f'{NAME}/epoch_{epoch}.png' if isinstance(backend, MLflowVisBackend) else NAME
            backend.add_image(name, image, epoch)

    def picture(self, model: nn.Module) -> np.ndarray:
        """Return the picture, RGB uint8 (H, W, 3), with one row per image."""
        self.copy.load_state_dict(model.state_dict())
        patch = patch_of(self.copy.backbone)
        predicted = reconstruct(self.copy, self.images, self.ids_shuffle, self.num_masked, patch)
        original, predicted = (as_colors(images, self.chosen, self.limits) for images in (self.images, predicted))
        masked = hide(original, self.ids_shuffle, self.num_masked, patch)
        return on_white(reconstruction_grid(dict(original=original, masked=masked, reconstruction=predicted)))
