"""Pictures of what a pretraining predicts, drawn while it trains.

Shape letters: n images, N patches, M masked.
"""

import io

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.visualization import MLflowVisBackend
from mmpretrain.models.selfsup import MAE
from PIL import Image
from torch import nn

from ...config.model import build_model
from ...data.subsets import spread
from ...models.bootmae import BootMAE
from ...visualization.grids import reconstruction_grid
from ...visualization.reconstruct import draw_masks, hide, reconstruct, to_pixels
from ..unwrap import bare_model
from .online_probe import beat, is_due, kept_random_state

NAME = 'reconstructions'


def first_images(runner, count: int) -> tuple[torch.Tensor, list]:
    """Training images, evenly spread over the data set, as the first epoch shows them: normalized (n, 3, H, W), on the
    CPU, and their data samples."""
    loader, stage = runner.train_dataloader, getattr(runner.train_loop, 'stage', None)
    dataset = loader.dataset
    batch = loader.collate_fn([dataset[int(index)] for index in spread(len(dataset), count)])
    batch = batch if stage is None else stage(batch)
    inputs = dict(inputs=batch['inputs'], data_samples=None)
    return bare_model(runner).data_preprocessor(inputs, training=False)['inputs'].cpu(), batch.get('data_samples')


def masks_of(model: nn.Module, samples: list | None, count: int) -> tuple[np.ndarray, int]:
    """Mask orders (n, N), those of the images' data samples where they have any, and M."""
    ids_shuffle, num_masked = draw_masks(model, count)
    if isinstance(model, BootMAE) and samples is not None and 'ids_shuffle' in samples[0]:
        ids_shuffle = np.stack([sample.ids_shuffle for sample in samples])
    return ids_shuffle, num_masked


def patch_of(backbone: nn.Module) -> tuple[int, int]:
    """Height and width of a patch, of our ViT or of mmpretrain's."""
    grid = backbone.grid if hasattr(backbone, 'grid') else backbone.patch_resolution
    return backbone.img_size[0] // grid[0], backbone.img_size[1] // grid[1]


def on_white(png: bytes) -> np.ndarray:
    """A PNG with transparency as RGB uint8 (H, W, 3) on white, which tools that show logs take for granted."""
    picture = Image.open(io.BytesIO(png)).convert('RGBA')
    white = Image.new('RGBA', picture.size, 'white')
    return np.asarray(Image.alpha_composite(white, picture).convert('RGB'))


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draws original, masked and predicted training images every few epochs, before the first and after the last.

    The pictures go wherever the run's visualizer writes to, as ``reconstructions`` with the epoch as step:
    ``vis_data/vis_image/`` and TensorBoard by default. Images, crops and masks are the same each time. Rank 0 draws,
    with a copy of the model on the CPU; nothing of the training changes.

    Predictions are of normalized patches: each gets the mean and deviation of its original back, see
    :mod:`bootmae.visualization.reconstruct`.

    Args:
        interval: epochs from one time to the next.
        count: n.

    Raises:
        ValueError: for wrong values, and before the first step for a model that predicts no patches.
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 10, count: int = 6):
        if interval < 1 or count < 1:
            raise ValueError(f'ReconstructionHook interval={interval}, count={count}: give numbers from 1 on')
        self.interval, self.count = interval, count
        self.copy: nn.Module | None = None

    def before_train(self, runner) -> None:
        model = bare_model(runner)
        if not isinstance(model, BootMAE | MAE):
            raise ValueError(f'ReconstructionHook: {type(model).__name__} predicts no patches; take the hook away')
        if runner.rank:
            return
        with kept_random_state():
            self.copy = build_model(runner.cfg).eval()
            x, samples = first_images(runner, self.count)
        self.images = to_pixels(self.copy, x)
        self.ids_shuffle, self.num_masked = masks_of(self.copy, samples, len(x))
        if runner.iter == 0:
            self.draw(runner, 0)

    def after_train_epoch(self, runner) -> None:
        if self.copy is not None and is_due(self, runner):
            beat(runner, 'val')
            self.draw(runner, runner.epoch + 1)

    def draw(self, runner, epoch: int) -> None:
        """Draw and hand over the picture of an epoch."""
        image = self.picture(bare_model(runner))
        for backend in runner.visualizer._vis_backends.values():
            # mlflow's picture is a file: its ending is the format, and it has no step
            name = f'{NAME}/epoch_{epoch}.png' if isinstance(backend, MLflowVisBackend) else NAME
            backend.add_image(name, image, epoch)

    def picture(self, model: nn.Module) -> np.ndarray:
        """RGB uint8 (H, W, 3): an image a row."""
        self.copy.load_state_dict(model.state_dict())
        patch = patch_of(self.copy.backbone)
        panels = dict(original=self.images, masked=hide(self.images, self.ids_shuffle, self.num_masked, patch))
        panels['reconstruction'] = reconstruct(self.copy, self.images, self.ids_shuffle, self.num_masked, patch)
        return on_white(reconstruction_grid(panels))
