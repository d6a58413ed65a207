"""Export an encoder, a classifier or a segmentor to ONNX, checked against torch in ONNX Runtime."""

import argparse
import copy
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from .. import registry  # noqa: F401
from ..checkpoints import load_run, read_checkpoint
from ..checkpoints.export import whole_model
from ..checkpoints.folders import checkpoint_file
from ..checkpoints.identify import FileEncoder, recorded_facts
from ..checkpoints.load import read_encoder, tensors_hash
from ..checkpoints.write import check_target
from ..config.load import load_config
from ..config.model import build_model
from ..config.weights import follow_statistics
from ..data.embedded import photo
from ..evaluation.probe import build_encoder
from ..files import write_file
from ..models.vit import PlainViT, patch_grid
from ..places import portable
from ..results.provenance import git_commit
from ..text import count_of
from .onnx_graphs import (
    OPSET,
    Classifier,
    DenseEncoder,
    FromPixels,
    PooledEncoder,
    Segmentor,
    exportable,
    to_onnx,
    to_rgb,
)

if TYPE_CHECKING:
    import onnx

PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
TOLERANCE = 1e-4
HEADS = dict(ImageClassifier='head.', EncoderDecoder='decode_head.')
SHARED = ('arch', 'img_size', 'patch_size', 'depth', 'in_channels')  # settings of PlainViT and TransferViT
PHOTOS = ('astronaut', 'chelsea', 'coffee')  # of scikit-image
DETECTORS = (
    'detectors cannot be exported, because torch.export stops at branches of mmdet that depend on the boxes (RPNHead). '
    'The encoder of a Mask R-CNN run can: give the configs/cls config of its method and size, and --output dense'
)


def check_packages() -> None:
    """Raise a ValueError if the packages of the extra ``onnx`` are not installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f'the export needs {" and ".join(missing)}: pip install {" ".join(missing)}')


def check_kind(cfg: Config) -> str:
    """Return the type of a config's model, or raise a ValueError if it cannot be exported."""
    model = cfg.get('model', {})
    kind, backbone = model.get('type'), model.get('backbone', {}).get('type')
    if kind in HEADS and backbone in ('PlainViT', 'TransferViT'):
        return kind
    if 'rpn_head' in model or 'roi_head' in model:
        raise ValueError(f'{cfg.filename} has the model {kind}: {DETECTORS}')
    raise ValueError(
        f'{cfg.filename} has the model {kind} with the backbone {backbone}, but only our ViT in an ImageClassifier '
        '(configs/cls) or EncoderDecoder (configs/seg) can be exported: for a pretrained encoder give the configs/cls '
        'config of its method and size'
    )


def choose_output(output: str | None, kind: str, encoder: FileEncoder, checkpoint: str) -> str:
    """Return the output to export; default: logits if the file has the head of the model, otherwise pooled features.

    Raises:
        ValueError: if the file or the model does not have this output.
    """
    headed = encoder.whole and any(key.startswith(HEADS[kind]) for key in encoder.rest)
    output = output or ('logits' if headed or kind == 'EncoderDecoder' else 'pooled')
    if kind == 'EncoderDecoder' and output != 'logits':
        raise ValueError(f'--output {output} of a segmentor: give a config of configs/cls for features of its encoder')
    if output == 'logits' and not headed:
        raise ValueError(
            f'{checkpoint} [{encoder.kind}] has no weights {HEADS[kind]}* of a trained {kind}: give a file that was '
            'trained with this config, or export features with a config of configs/cls and --output pooled or dense'
        )
    return output


def build(
    cfg: Config, output: str, encoder: FileEncoder, content: dict, checkpoint: str, source: str
) -> tuple[nn.Module, PlainViT, nn.Module]:
    """Return the module to export, its backbone and its data preprocessor, in eval mode on the CPU.

    Raises:
        ValueError: if the checkpoint does not fit the config.
    """
    if output == 'logits':
        model = build_model(cfg).eval()
        known = {} if encoder.mean is None else dict(mean=list(encoder.mean), std=list(encoder.std))
        follow_statistics(model, known, checkpoint, cfg.get('adopt_statistics', False))
        load_run(model, dict(state_dict=whole_model(encoder), meta=content.get('meta')), checkpoint)
        kind = Classifier if cfg.model.type == 'ImageClassifier' else Segmentor
        return kind(model).eval(), model.backbone, model.data_preprocessor
    if output == 'dense':
        settings = {key: cfg.model.backbone[key] for key in SHARED if key in cfg.model.backbone}
        cfg.model.backbone = dict(type='TransferViT', **settings)
    model = build_encoder(cfg, checkpoint, source, content=content).cpu()
    norm = {key.removeprefix('norm.'): value for key, value in encoder.state.items() if key.startswith('norm.')}
    module = PooledEncoder(model.backbone) if output == 'pooled' else DenseEncoder(model.backbone, norm)
    return module.eval(), model.backbone, model.data_preprocessor


def image_size(size: Sequence[str] | None, backbone: PlainViT) -> tuple[int, int] | None:
    """Return height and width from ``--size``; None for a dynamic size.

    Raises:
        ValueError: if the model does not take images of this size.
    """
    if not size:
        return backbone.img_size
    dense = hasattr(backbone, 'windowed')
    if list(size) == ['dynamic']:
        if not dense:
            raise ValueError(
                f'--size dynamic: the classifier and its pooled features take images of {backbone.img_size} only; '
                'dense features and segmentors take any size'
            )
        if any(backbone.windowed) or backbone.cls_token is None or backbone.pad:
            raise ValueError(
                '--size dynamic: attention windows, decomposed relative positions and pad=True need a fixed size: give '
                'HEIGHT WIDTH'
            )
        return None
    if len(size) != 2 or not all(text.isdecimal() and int(text) > 0 for text in size):
        raise ValueError(f'--size {" ".join(size)}: give HEIGHT WIDTH in pixels, or dynamic')
    height, width = map(int, size)
    if not dense and (height, width) != backbone.img_size:
        raise ValueError(
            f'--size {height} {width}: this model takes images of {backbone.img_size}. For features of a pretrained '
            'encoder, --cfg-options model.backbone.img_size=SIZE interpolates its positions'
        )
    patch_grid((height, width), backbone.patch_size)
    return height, width


def sizes_to_check(size: tuple[int, int] | None, backbone: PlainViT) -> list[tuple[int, int]]:
    """Return the image sizes for the check. The first one is also the example for the export.

    With a dynamic size, its rows and columns differ from one another and from those of the stored positions, so that
    none of them is taken for a constant.
    """
    if size:
        return [size]
    rows, columns = backbone.grid
    grids = ((rows + 1, columns + 3), (rows, columns), (max(rows // 2, 2) + 2, max(columns // 2, 2)))
    return [(h * backbone.patch_size[0], w * backbone.patch_size[1]) for h, w in grids]


def dynamic_axes(layout: str | None, size: tuple[int, int] | None, patch_size: tuple[int, int]) -> dict:
    """Return the dynamic axes of the input: the batch, and height and width unless the size is fixed."""
    axes = {0: torch.export.Dim('batch', min=1)}
    if size is None:
        first = 1 if layout == 'nhwc' else 2
        for axis, (name, patch) in enumerate(zip(('rows', 'columns'), patch_size), first):
            axes[axis] = patch * torch.export.Dim(name, min=2)
    return axes


def photographs(size: tuple[int, int], channels: int) -> np.ndarray:
    """Return photographs of scikit-image at this size, RGB uint8 (3, H, W, C); other channels repeat these three."""
    resized = [cv2.resize(photo(name), size[::-1], interpolation=cv2.INTER_AREA) for name in PHOTOS]
    return np.stack(resized)[..., np.arange(channels) % 3]


def arranged(images: np.ndarray, layout: str) -> torch.Tensor:
    """Return images (B, H, W, C) in the layout ``nhwc`` or ``nchw``."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2) if layout == 'nchw' else images))


def preprocessed(images: np.ndarray, preprocessor: nn.Module, as_stored: bool = False) -> torch.Tensor:
    """Normalize RGB images (B, H, W, C) by the model's own preprocessor, which gets BGR: (B, C, H, W), not padded.

    With ``as_stored`` it gets the channels in the order of ``images``, as under the setting ``image_channels``.
    """
    height, width, channels = images.shape[1:]
    read = images if as_stored or channels != 3 else images[..., ::-1]
    without_padding = copy.copy(preprocessor)
    without_padding.test_cfg = None
    return without_padding(dict(inputs=list(arranged(read, 'nchw'))), training=False)['inputs'][..., :height, :width]


def compare(path: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Run a file in ONNX Runtime on the CPU, and return the largest difference from torch and the largest value.

    Args:
        path: the ONNX file.
        pairs: inputs and the outputs of torch, both for three images. The first one is also run alone.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    differences, values = [], []
    for images, wanted in ((x[:count], y[:count]) for x, y in pairs for count in (1, len(x))):
        (found,) = session.run(None, dict(images=images))
        differences.append(np.abs(found - wanted).max() if found.shape == wanted.shape else np.inf)
        values.append(np.abs(wanted).max())
    return float(np.max(differences)), float(np.max(values))  # NaN stays NaN


def export_onnx(
    config: str,
    checkpoint: str,
    path: str | Path,
    output: str | None = None,
    uint8: str | None = None,
    size: Sequence[str] | None = None,
    source: str = 'online',
    options: dict | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> str:
    """Export a checkpoint to ONNX and compare the file with torch on photographs.

    Args:
        config: config of configs/cls or configs/seg.
        checkpoint: file of a trained model of this config, or for features any file with an encoder that fits.
        path: the file to write. It is there only if the check has passed.
        output: ``logits``, ``pooled`` or ``dense``, see :func:`choose_output`.
        uint8: ``nhwc`` or ``nchw``: the file takes RGB images of 0..255 in this layout and normalizes them. None: it
            takes what the network takes.
        size: height and width, or ``['dynamic']``; default: the size of the config.
        source: which encoder of a file with several, see :func:`find_encoder`.
        options: config values to override.
        tolerance: largest difference between ONNX Runtime and torch.
        force: overwrite ``path``.

    Returns:
        Lines that describe the file and the check.

    Raises:
        FileNotFoundError: if a file or folder is missing.
        FileExistsError: if ``path`` exists and ``force`` is not set.
        ValueError: if a package is missing, the model cannot be exported, the checkpoint does not fit, or the results
            differ by more than the tolerance.
    """
    check_packages()
    path = Path(path)
    if path.suffix != '.onnx':
        raise ValueError(f'{path}: give a name that ends in .onnx')
    check_target(path, force)
    cfg = load_config(config, options)
    kind, content = check_kind(cfg), read_checkpoint(checkpoint)
    encoder = read_encoder(checkpoint, source, content)
    output = choose_output(output, kind, encoder, checkpoint)
    module, backbone, preprocessor = build(cfg, output, encoder, content, checkpoint, source)
    channels, fixed = backbone.patch_embed.proj.in_channels, image_size(size, backbone)
    settings = cfg.get('image_channels')
    if uint8 and (settings or channels != 3):
        what = f'the setting image_channels={dict(settings)}' if settings else count_of(channels, 'input channel')
        raise ValueError(f'--uint8 {uint8} is for 8-bit RGB images, but the model has {what}: leave --uint8 out')

    images = [photographs(each, channels) for each in sizes_to_check(fixed, backbone)]
    inputs = [preprocessed(each, preprocessor, bool(settings)) for each in images]
    with torch.no_grad():
        wanted = [module(each).numpy() for each in inputs]
    given = inputs if not uint8 else [arranged(each, uint8) for each in images]
    facts = describe(module, preprocessor, encoder, content, uint8)
    if settings:
        facts['channels'] = f'as image_channels={dict(settings)} reads them, scaled to 0..255'
    del content, encoder  # as large as the model
    graph = exportable(FromPixels(module, preprocessor, uint8) if uint8 else module)
    proto = to_onnx(graph, given[0], output, dynamic_axes(uint8, fixed, backbone.patch_size))
    facts |= dict(output=output, config=portable(cfg.filename), checkpoint=portable(checkpoint))
    facts |= dict(image_size=list(fixed) if fixed else f'multiples of {list(backbone.patch_size)}')
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    pairs = [(x.numpy(), y) for x, y in zip(given, wanted, strict=True)]
    found = []

    def save(temporary: Path) -> None:
        temporary.write_bytes(proto.SerializeToString())
        difference, largest = compare(temporary, pairs)
        found.append(f'largest difference {difference:.1e}, largest value {largest:.2f}')
        if not difference <= tolerance:
            raise ValueError(
                f'{path} was not written: ONNX Runtime differs from torch by more than {tolerance:g}: {found[0]} '
                f'(output {output}). Large values have large rounding errors: --tolerance allows more'
            )

    write_file(path, save)
    text = f'{path}: {output} of {kind}, encoder sha256 {facts["encoder_sha256"]}, opset {OPSET}, {axes_of(proto)}'
    windows = 'whole' if kind == 'ImageClassifier' else cfg.model.get('test_cfg', {}).get('mode', 'whole')
    note = '\nsliding windows of the config are not part of the file: it computes one window' * (windows == 'slide')
    loaded = f'{backbone.load_report}\n' if hasattr(backbone, 'load_report') else ''
    return f'{loaded}{text}\nONNX Runtime and torch on {count_of(len(PHOTOS), "photograph")}: {found[0]}{note}'


def describe(
    module: nn.Module, preprocessor: nn.Module, encoder: FileEncoder, content: dict, uint8: str | None
) -> dict:
    """Return what the metadata of the file says about the model, its input and the weights."""
    meta, recorded = content.get('meta') or {}, recorded_facts(content)
    facts = dict(
        input=f'uint8 RGB, 0..255, {uint8}' if uint8 else 'float32, normalized by mean and std, nchw',
        channels='RGB' if uint8 or to_rgb(preprocessor) else 'not converted: BGR as read by OpenCV',
        classes=(meta.get('dataset_meta') or {}).get('classes'),
        encoder_sha256=tensors_hash(encoder.state),
        encoder_file=encoder.kind,
        final_norm=isinstance(module.norm, nn.LayerNorm) if isinstance(module, DenseEncoder) else None,
        trained_by=recorded.get('config'),
        started_from=recorded.get('init_hash'),
        commit=git_commit(),
        torch=torch.__version__,
        opset=OPSET,
    )
    if preprocessor._enable_normalize:
        facts |= dict(mean=preprocessor.mean.flatten().tolist(), std=preprocessor.std.flatten().tolist())
    return {key: value for key, value in facts.items() if value is not None}


def axes_of(proto: 'onnx.ModelProto') -> str:
    """Return the inputs and outputs of a model with their axes, such as ``images (batch, 3, 32, 32)``."""
    values = {value.name: value.type.tensor_type.shape.dim for value in (*proto.graph.input, *proto.graph.output)}
    return ' -> '.join(
        f'{name} ({", ".join(str(axis.dim_param or axis.dim_value) for axis in axes)})' for name, axes in values.items()
    )


def run(args: argparse.Namespace) -> None:
    """Export a model and print what was written."""
    print(
        export_onnx(
            args.config,
            checkpoint_file(args.checkpoint),
            args.out,
            args.output,
            args.uint8,
            args.size,
            args.source,
            args.cfg_options,
            args.tolerance,
            args.force,
        )
    )
