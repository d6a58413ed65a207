"""The only place for work-arounds of the OpenMMLab stack. `bootmae/registry.py` calls `apply()` before anything else.

Each one has its reason, the versions that need it, and the test in tests/test_compat.py that fails when it can go:

| work-around               | needed for                              | it can go when this test fails             |
|---------------------------|-----------------------------------------|--------------------------------------------|
| `_install_standin_ops`    | onedl-mmcv 2.3.6 without compiled ops   | test_mmcv_alone_still_needs_compiled_ops   |
| `_take_any_layout`        | onedl-mmcv 2.3.6 with compiled ops      | test_compiled_ops_still_ignore_strides     |
| `_switch_off_multimodal`  | onedl-mmpretrain 1.3.6, transformers 5  | test_mmpretrain_still_takes_transformers_5 |
| `_leave_out_mmdet`        | onedl-mmpretrain 1.3.6                  | test_mmpretrain_still_imports_mmdet        |
| `_hush_import_noise`      | onedl-mmengine 0.10.12, mmdetection 3.5 | test_the_stack_is_still_noisy              |
| `_format_configs_once`    | onedl-mmengine 0.10.12, mmengine 0.10.7 | test_a_config_is_formatted_once            |
| `_weigh_labeled_pixels`  | mmsegmentation 1.2.2                    | test_mmseg_still_weighs_ignored_pixels     |

The originals (mmengine 0.10.7, mmcv-lite 2.1.0, mmpretrain 1.2.0, mmdet 3.3.0, mmsegmentation 1.2.2) need the same ones
as the maintained builds (onedl-*).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

OPS = 'mmcv._ext'
COMPILE_HINT = (
    'Only nms and roi_align (average) work without the compiled part of mmcv. To compile it (about 15 minutes, '
    'needs a C++ compiler): MMCV_WITH_OPS=1 .venv/bin/python -m pip install --no-deps --no-build-isolation '
    '--no-cache-dir --force-reinstall onedl-mmcv==2.3.6'
)


def apply() -> None:
    """Puts every work-around in place; calling it again changes nothing."""
    _install_standin_ops()
    _switch_off_multimodal()
    _leave_out_mmdet()
    _hush_import_noise()
    _format_configs_once()
    _weigh_labeled_pixels()


# --- compiled ops of mmcv ---------------------------------------------------------------------------------------


def _install_standin_ops() -> None:
    """Where mmcv has no compiled ops, gives it the two that Mask R-CNN needs, from torchvision.

    The package on the registry comes as source and compiles nothing by default. Without `mmcv._ext` the import of
    `mmcv.ops`, and so of `mmdet.models`, fails. Where the compiled module exists and loads, it is used.
    """
    if OPS not in sys.modules:
        sys.modules[OPS] = _load_compiled_ops() or _make_standin_ops()
    _take_any_layout(sys.modules[OPS])


def _load_compiled_ops() -> types.ModuleType | None:
    """The compiled `mmcv._ext`, or None where there is none that loads. Does not import mmcv."""
    package = importlib.util.find_spec('mmcv')
    spec = package and PathFinder.find_spec(OPS, package.submodule_search_locations)
    if spec is None or spec.loader is None:
        return None
    import torch  # noqa: F401  the compiled module links against torch's libraries

    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        warnings.warn(
            f'{spec.origin} does not load ({error}): it was compiled for another torch. '
            "torchvision's nms and roi_align are used instead; reinstall mmcv to get its own.",
            stacklevel=2,
        )
        return None
    return module


def _take_any_layout(ops: types.ModuleType) -> None:
    """Lets the compiled RoIAlign take feature maps whose memory is not in the order of their dimensions.

    It reads them as if it were: maps in channels-last order, such as those of a ViT's tokens, are pooled from wrong
    places without a word.
    """
    roi_align_forward = ops.roi_align_forward
    if hasattr(roi_align_forward, '__wrapped__'):
        return

    @functools.wraps(roi_align_forward)
    def contiguous(input: Tensor, rois: Tensor, *args: object, **kwargs: object) -> None:
        roi_align_forward(input.contiguous(), rois.contiguous(), *args, **kwargs)

    ops.roi_align_forward = contiguous


def _make_standin_ops() -> types.ModuleType:
    """A module that has every op by name: nms and roi_align work, the others raise when they are called."""
    module = types.ModuleType(OPS, "torchvision's nms and roi_align in place of the compiled ops of mmcv")
    module.__spec__ = ModuleSpec(OPS, loader=None)  # mmengine asks find_spec() for it
    module.nms = nms
    module.roi_align_forward = roi_align_forward
    module.roi_align_backward = roi_align_backward
    # collect_env() of mmcv prints these two
    module.get_compiler_version = lambda: 'n/a (torchvision stand-in)'
    module.get_compiling_cuda_version = lambda: 'n/a (torchvision stand-in)'
    module.__getattr__ = _missing_op
    return module


def _missing_op(name: str) -> Callable[..., NoReturn]:
    # mmcv.ops checks at import that each op exists, so the error has to wait for the call
    if name.startswith('_'):
        raise AttributeError(f'module {OPS!r} has no attribute {name!r}')

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f'The mmcv op {name!r} is not compiled. {COMPILE_HINT}')

    return missing


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes (K, 4), best score first, as `mmcv._ext.nms`.

    `offset` 1 is the old pixel convention: a box from x1 to x2 is x2 - x1 + 1 wide.
    """
    import torch
    from torchvision.ops import nms as torchvision_nms

    boxes, scores = _at_least_float32(boxes), _at_least_float32(scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in single precision: an overlap of exactly 0.1 is then not above a threshold of 0.1
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torchvision_nms(boxes, scores, threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pools `input` (B, C, H, W) in each of `rois` (K, 5) into `output` (K, C, aligned_height, aligned_width)."""
    size = (aligned_height, aligned_width)
    output.copy_(_roi_align(_at_least_float32(input), rois, size, spatial_scale, sampling_ratio, pool_mode, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds the gradient of `roi_align_forward` for its input to `grad_input` (B, C, H, W)."""
    import torch

    grad_output = _at_least_float32(grad_output)
    # Average pooling is linear, so the gradient is the same at any input. torchvision's own backward op is not
    # called directly: unlike its public function it refuses torch.use_deterministic_algorithms on a GPU.
    with torch.enable_grad():
        image = grad_output.new_zeros(grad_input.shape, requires_grad=True)
        size = (aligned_height, aligned_width)
        pooled = _roi_align(image, rois, size, spatial_scale, sampling_ratio, pool_mode, aligned)
    (grad,) = torch.autograd.grad(pooled, image, grad_output)
    grad_input += grad


def _roi_align(
    image: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Tensor:
    from torchvision.ops import roi_align

    if pool_mode != 1:
        raise RuntimeError(f"RoIAlign with pool_mode='max' is not compiled. {COMPILE_HINT}")
    return roi_align(image, rois.to(image.dtype), size, spatial_scale, sampling_ratio, aligned)


def _at_least_float32(x: Tensor) -> Tensor:
    # torchvision has no bfloat16 kernels, and on the CPU none for half
    return x if x.element_size() >= 4 else x.float()


# --- transformers 5 ---------------------------------------------------------------------------------------------


def _switch_off_multimodal() -> None:
    """With transformers 5 or newer installed, tells mmpretrain to leave out its multimodal models.

    It takes any transformers from 4.28 on, but its models are written against version 4: with 5 the import of
    `mmpretrain.models` ends in `TypeError: NoneType takes no arguments`. Nothing here uses those models.
    """
    try:
        major = int(importlib.metadata.version('transformers').split('.')[0])
    except importlib.metadata.PackageNotFoundError:
        return
    if major >= 5:
        from mmpretrain.utils import dependency

        dependency.WITH_MULTIMODAL = False


# --- time to start ----------------------------------------------------------------------------------------------


def _leave_out_mmdet() -> None:
    """Keeps mmpretrain from importing all of mmdet (2 of 5 seconds of every start) for one class.

    `ResLayerExtraNorm` belongs to MoCo's detection recipes; it is None, as mmpretrain has it where mmdet is absent.
    """
    name = 'mmpretrain.models.utils.res_layer_extra_norm'
    if name not in sys.modules:
        module = types.ModuleType(name, 'left out: it imports mmdet')
        module.ResLayerExtraNorm = None
        sys.modules[name] = module


def _format_configs_once() -> None:
    """Keeps the last text that yapf made of a config: mmengine asks for it four times a run, and for each checkpoint.

    A detection config takes half a second each time.
    """
    from mmengine.config import config
    from yapf.yapflib import yapf_api

    format_code = yapf_api.FormatCode
    if hasattr(format_code, '__wrapped__'):
        return
    known: dict[tuple[str, str], object] = {}

    @functools.wraps(format_code)
    def format_once(text: str, *args: object, **settings: object) -> object:
        key = text, repr((args, settings))
        if key not in known:
            known.clear()
            known[key] = format_code(text, *args, **settings)
        return known[key]

    yapf_api.FormatCode = format_once
    if hasattr(config, 'FormatCode'):  # mmengine 0.10.7 took it under a name of its own
        config.FormatCode = format_once


# --- segmentation loss ------------------------------------------------------------------------------------------


def _weigh_labeled_pixels() -> None:
    """With class weights, lets mmseg's cross entropy divide by the weights of the labeled pixels.

    mmsegmentation 1.2.2 looks up a weight for ignored pixels too: IndexError, as there is no class 255. To import mmseg
    here would take seconds of every start, so the cure waits until someone does.
    """
    name = 'mmseg.models.losses.cross_entropy_loss'
    if name in sys.modules:
        _mend_cross_entropy(sys.modules[name])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(name, _mend_cross_entropy))


class _AfterImport(MetaPathFinder):
    """Calls ``then`` with one module as soon as that has been imported."""

    def __init__(self, name: str, then: Callable[[types.ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == self.name else None
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_then(module: types.ModuleType) -> None:
                execute(module)
                self.then(module)

            spec.loader.exec_module = execute_and_then
        return spec


def _mend_cross_entropy(module: types.ModuleType) -> None:
    cross_entropy = module.cross_entropy
    if hasattr(cross_entropy, '__wrapped__'):
        return

    @functools.wraps(cross_entropy)
    def mended(
        pred: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        class_weight: Tensor | None = None,
        reduction: str = 'mean',
        avg_factor: object = None,
        ignore_index: int = -100,
        **kwargs: object,
    ) -> Tensor:
        if class_weight is not None and avg_factor is None and reduction == 'mean':
            avg_factor = class_weight[label[label != ignore_index]].sum()
        return cross_entropy(pred, label, weight, class_weight, reduction, avg_factor, ignore_index, **kwargs)

    module.cross_entropy = mended


# --- noise ------------------------------------------------------------------------------------------------------


def _hush_import_noise() -> None:
    """Hides messages about optional packages that no user here has asked for.

    `print_log(message, level=DEBUG)` without a logger prints at any level, so each command would begin with five lines
    "Could not import OneDL". mmdet warns that it will compute no metrics, and means one metric that is not used here.
    """
    import mmengine.logging

    warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
    print_log = mmengine.logging.print_log
    if getattr(print_log, 'hushed', False):
        return

    @functools.wraps(print_log)
    def hushed(msg: object, logger: object = None, level: int = logging.INFO) -> None:
        if logger is not None or level > logging.DEBUG:
            print_log(msg, logger, level)

    hushed.hushed = True
    mmengine.logging.print_log = hushed
