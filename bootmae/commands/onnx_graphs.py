"""What tools/export_onnx.py exports: modules from one batch of images to one tensor.

Shape letters: B batch, C channels, H and W image size, D width, h and w rows and columns of patches, K classes.
"""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..models.layers import layer_norm

if TYPE_CHECKING:
    import onnx

OPSET = 18  # the exporter's own, so that nothing is converted


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, which ONNX has for every size of the maps.

    Args:
        side: rows and columns of the result.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def weights(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """(side, length): row i averages the positions floor(i * length / side) to ceil((i + 1) * length / side)."""
        i = torch.arange(self.side, device=like.device).unsqueeze(1)
        place = torch.arange(length, device=like.device)
        inside = (place >= i * length // self.side) & (place < ((i + 1) * length + self.side - 1) // self.side)
        return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) -> (B, D, side, side)."""
        return self.weights(x.shape[2], x) @ x @ self.weights(x.shape[3], x).T


class Classifier(nn.Module):
    """Images (B, C, H, W) -> logits (B, K)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images, mode='tensor')


class Segmentor(Classifier):
    """Images (B, C, H, W) -> logits (B, K, H, W), without sliding windows."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode_decode(images, [dict(img_shape=images.shape[2:])])


class PooledEncoder(nn.Module):
    """Images (B, C, H, W) -> the features (B, D) that ``tools/knn.py`` evaluates."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(images)[-1]


class DenseEncoder(PooledEncoder):
    """Images (B, C, H, W) -> the map (B, D, h, w) of the last block, normalized as in pretraining if ``norm`` is given.

    Args:
        backbone: a :class:`TransferViT` without pyramid.
        norm: weights of the encoder's final LayerNorm; empty if it has none.
    """

    def __init__(self, backbone: nn.Module, norm: dict[str, torch.Tensor]):
        super().__init__(backbone)
        self.norm = layer_norm(backbone.embed_dims) if norm else nn.Identity()
        self.norm.load_state_dict(norm)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FromPixels(nn.Module):
    """A model of normalized images with the preprocessing before it: uint8 RGB of the given layout.

    Args:
        model: the model.
        preprocessor: its data preprocessor.
        layout: ``nhwc`` or ``nchw``.
    """

    def __init__(self, model: nn.Module, preprocessor: nn.Module, layout: str):
        super().__init__()
        self.model, self.layout = model, layout
        self.flips = not to_rgb(preprocessor)  # a model that takes channels as OpenCV reads them
        self.normalizes = preprocessor._enable_normalize
        if self.normalizes:
            self.register_buffer('mean', preprocessor.mean.clone())
            self.register_buffer('std', preprocessor.std.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = (images.permute(0, 3, 1, 2) if self.layout == 'nhwc' else images).float()
        images = images.flip(1) if self.flips else images
        return self.model((images - self.mean) / self.std if self.normalizes else images)


def to_rgb(preprocessor: nn.Module) -> bool:
    """Whether a data preprocessor of mmpretrain or mmseg converts images from BGR, as OpenCV reads them, to RGB."""
    return bool(getattr(preprocessor, 'to_rgb', False) or getattr(preprocessor, '_channel_conversion', False))


def exportable(module: nn.Module) -> nn.Module:
    """Replace the adaptive pools of a module by :class:`AdaptivePool`, which computes the same, and return it."""
    for parent in list(module.modules()):
        for name, pool in list(parent.named_children()):
            if isinstance(pool, nn.AdaptiveAvgPool2d) and isinstance(pool.output_size, int):
                parent.register_module(name, AdaptivePool(pool.output_size))
    return module.eval()


def to_onnx(module: nn.Module, example: torch.Tensor, output: str, dynamic: dict) -> 'onnx.ModelProto':
    """Export a module by torch.export.

    Args:
        module: takes and returns one tensor.
        example: an input. None of its dynamic sizes may be 1 or a size that the module treats specially.
        output: name of the output; the input is called ``images``.
        dynamic: a ``torch.export.Dim`` for each dynamic axis of the input.

    Raises:
        torch._dynamo.exc.UserError: if the module does not work for all these sizes.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # torch warns of its own code
        program = torch.export.export(module, (example,), dynamic_shapes=(dynamic,))
        proto = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=['images'],
            output_names=[output],
            dynamic_shapes=(dynamic,),
            verbose=False,
        ).model_proto
    for node in proto.graph.node:
        node.ClearField('metadata_props')  # traces with the paths of this machine
    return proto
