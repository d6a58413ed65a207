"""All work-arounds for the OpenMMLab stack. `bootmae/registry.py` calls `apply()` before it imports anything else.

Each work-around states its reason. The test named beside it, in tests/test_compat*.py or tests/data, fails once it can
go:

| work-around               | needed for                              | remove it when this test fails             |
|---------------------------|-----------------------------------------|--------------------------------------------|
| `_install_standin_ops`    | onedl-mmcv 2.3.6 without compiled ops   | test_mmcv_alone_still_needs_compiled_ops   |
| `_take_any_layout`        | onedl-mmcv 2.3.6 with compiled ops      | test_compiled_ops_still_ignore_strides     |
| `_switch_off_multimodal`  | onedl-mmpretrain 1.3.6, transformers 5  | test_mmpretrain_still_takes_transformers_5 |
| `_leave_out_mmdet`        | onedl-mmpretrain 1.3.6                  | test_mmpretrain_still_imports_mmdet        |
| `_silence_import_noise`   | onedl-mmengine 0.10.12, mmdetection 3.5 | test_the_stack_is_still_noisy              |
| `_weigh_labeled_pixels`   | mmsegmentation 1.2.2                    | test_mmseg_still_weighs_ignored_pixels     |
| `runner/console.py`       | onedl-mmengine 0.10.12                  | test_mmengine_still_prints_parameters      |
| `data/coco_api.py`        | onedl-mmdetection 3.5.1                 | test_mmdet_still_follows_the_file          |
| `models/preprocessor.py`  | onedl-mmengine 0.10.12                  | test_mmengine_still_takes_1_or_3_channels  |
| `_cache_config_work`      | onedl-mmengine 0.10.12                  | test_mmengine_still_repeats_config_work    |
| `_find_our_bases`         | onedl-mmengine 0.10.12                  | test_mmengine_still_knows_few_packages     |

The original packages (mmengine 0.10.7, mmcv-lite 2.1.0, mmpretrain 1.2.0, mmdet 3.3.0, mmseg 1.2.2) need them, too.
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
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .places import OURS, our_config

if TYPE_CHECKING:
    from torch import Tensor

OPS = 'mmcv._ext'
COMPILE_HINT = (
    'Only nms and roi_align (average) work without the compiled part of mmcv. To compile it (about 15 minutes, '
    f'needs a C++ compiler): MMCV_WITH_OPS=1 {sys.executable} -m pip install --no-deps --no-build-isolation '
    '--no-cache-dir --force-reinstall onedl-mmcv==2.3.6'
)


def apply() -> None:
    """Install every work-around. A second call changes nothing."""
    _install_standin_ops()
    _switch_off_multimodal()
    _leave_out_mmdet()
    _silence_import_noise()
    _weigh_labeled_pixels()
    _cache_config_work()
    _find_our_bases()


# --- compiled ops of mmcv ---------------------------------------------------------------------------------------


def _install_standin_ops() -> None:
    """Supply the two ops that Mask R-CNN needs from torchvision if mmcv has no compiled ops.

    The PyPI package is a source package that compiles nothing by default. Without `mmcv._ext`, importing `mmcv.ops`
    fails, and so does importing `mmdet.models`. The compiled module is used if it exists and loads.
    """
    if OPS not in sys.modules:
        sys.modules[OPS] = _load_compiled_ops() or _make_standin_ops()
    _take_any_layout(sys.modules[OPS])


def _load_compiled_ops() -> types.ModuleType | None:
    """Load the compiled `mmcv._ext` without importing mmcv; return None if it is missing or does not fit."""
    package = importlib.util.find_spec('mmcv')
    spec = package and PathFinder.find_spec(OPS, package.submodule_search_locations)
    if spec is None or spec.loader is None:
        return None
    import torch  # the compiled module links against its libraries

    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        warnings.warn(
            f'{spec.origin} does not load ({error}): it was compiled for another version of torch or of the system. '
            "torchvision's nms and roi_align are used instead; reinstall mmcv to use its own.",
            stacklevel=2,
        )
        return None
    # mmcv's get_compiling_cuda_version() would tell, but it crashes if the module brings its own libstdc++
    if torch.cuda.is_available() and b'_fatbin' not in Path(spec.origin or '').read_bytes():
        warnings.warn(
            f'{spec.origin} was compiled for the CPU only, where no GPU was visible, and would fail on this GPU. '
            "torchvision's nms and roi_align are used instead; to compile it for GPUs set FORCE_CUDA=1, too.",
            stacklevel=2,
        )
        return None
    return module


def _take_any_layout(ops: types.ModuleType) -> None:
    """Pass only contiguous feature maps to the compiled RoIAlign.

    The compiled op ignores strides. It silently pools channels-last maps, such as those made from a ViT's tokens, from
    the wrong locations.
    """
    roi_align_forward = ops.roi_align_forward
    if hasattr(roi_align_forward, '__wrapped__'):
        return

    @functools.wraps(roi_align_forward)
    def contiguous(input: Tensor, rois: Tensor, *args: object, **kwargs: object) -> None:
        roi_align_forward(input.contiguous(), rois.contiguous(), *args, **kwargs)

    vars(ops)['roi_align_forward'] = contiguous


def _make_standin_ops() -> types.ModuleType:
    """Create a module with every op by name: nms and roi_align work, the others raise an error when called."""
    module = types.ModuleType(OPS, "torchvision's nms and roi_align in place of the compiled ops of mmcv")
    module.__spec__ = ModuleSpec(OPS, loader=None)  # mmengine calls find_spec() on it
    vars(module).update(
        nms=nms,
        roi_align_forward=roi_align_forward,
        roi_align_backward=roi_align_backward,
        # mmcv's collect_env() prints these two values
        get_compiler_version=lambda: 'n/a (torchvision stand-in)',
        get_compiling_cuda_version=lambda: 'n/a (torchvision stand-in)',
        __getattr__=_missing_op,
    )
    return module


def _missing_op(name: str) -> Callable[..., NoReturn]:
    # mmcv.ops checks at import that each op exists, so the error must be raised by the call
    if name.startswith('_'):
        raise AttributeError(f'module {OPS!r} has no attribute {name!r}')

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f'The mmcv op {name!r} is not compiled. {COMPILE_HINT}')

    return missing


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the kept boxes, best score first, as `mmcv._ext.nms` does.

    Args:
        boxes: corners (K, 4).
        scores: scores (K,).
        iou_threshold: boxes that overlap a better one by more than this are dropped.
        offset: 1 for the old pixel convention, in which a box from x1 to x2 is x2 - x1 + 1 wide; else 0.
    """
    import torch
    from torchvision.ops import nms as torchvision_nms

    boxes, scores = _at_least_float32(boxes), _at_least_float32(scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in single precision, where an overlap of exactly 0.1 does not exceed a threshold of 0.1
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
    """Pool `input` (B, C, H, W) in each of `rois` (K, 5) into `output` (K, C, aligned_height, aligned_width)."""
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
    """Add the gradient of `roi_align_forward` with respect to its input to `grad_input` (B, C, H, W)."""
    import torch

    grad_output = _at_least_float32(grad_output)
    # Average pooling is linear, so the gradient does not depend on the input. torchvision's backward op is not called
    # directly because, unlike the public function, it rejects torch.use_deterministic_algorithms on a GPU.
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
    # torchvision has no bfloat16 kernels, and no float16 kernels on the CPU
    return x if x.element_size() >= 4 else x.float()


# --- transformers 5 ---------------------------------------------------------------------------------------------


def _switch_off_multimodal() -> None:
    """Disable mmpretrain's multimodal models if transformers 5 or newer is installed.

    mmpretrain accepts any transformers from 4.28 on, but its models need version 4: with version 5, importing
    `mmpretrain.models` fails with `TypeError: NoneType takes no arguments`. This package does not use those models.
    """
    try:
        major = int(importlib.metadata.version('transformers').split('.')[0])
    except importlib.metadata.PackageNotFoundError:
        return
    if major >= 5:
        from mmpretrain.utils import dependency

        dependency.WITH_MULTIMODAL = False


# --- start-up time ----------------------------------------------------------------------------------------------


def _leave_out_mmdet() -> None:
    """Keep mmpretrain from importing all of mmdet for one class, which adds 2 s of CPU time to every process.

    `ResLayerExtraNorm` belongs to MoCo's detection recipes. It becomes None, as in mmpretrain without mmdet.
    """
    name = 'mmpretrain.models.utils.res_layer_extra_norm'
    if name not in sys.modules:
        module = types.ModuleType(name, 'left out: it imports mmdet')
        vars(module)['ResLayerExtraNorm'] = None
        sys.modules[name] = module


# --- segmentation loss ------------------------------------------------------------------------------------------


def _weigh_labeled_pixels() -> None:
    """Make mmseg's cross entropy with class weights divide by the weights of the labeled pixels.

    mmsegmentation 1.2.2 looks up a weight for ignored pixels too and raises IndexError, because there is no class 255.
    The patch waits until mmseg is imported, since importing it at this point would add seconds to every start.
    """
    after_import('mmseg.models.losses.cross_entropy_loss', _patch_cross_entropy)


def after_import(name: str, then: Callable[[types.ModuleType], None]) -> None:
    """Call ``then`` with the module ``name``: now if it is imported, else right after its import."""
    if name in sys.modules:
        then(sys.modules[name])
    elif not any(isinstance(finder, _AfterImport) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(name, then))


class _AfterImport(MetaPathFinder):
    """Import hook that calls ``then`` with the module ``name`` right after its import."""

    def __init__(self, name: str, then: Callable[[types.ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == self.name else None
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_then(module: types.ModuleType) -> None:
                execute(module)
                self.then(module)

            vars(spec.loader)['exec_module'] = execute_and_then
        return spec


def _patch_cross_entropy(module: types.ModuleType) -> None:
    cross_entropy = module.cross_entropy
    if hasattr(cross_entropy, '__wrapped__'):
        return

    @functools.wraps(cross_entropy)
    def patched(
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

    vars(module)['cross_entropy'] = patched


# --- noise ------------------------------------------------------------------------------------------------------


def _silence_import_noise() -> None:
    """Hide import messages about optional packages.

    `print_log(message, level=DEBUG)` without a logger prints at any level. Importing the stack therefore prints "Could
    not import OneDL" up to five times to stdout, where it breaks `tools/plan.py --json`. mmdet warns that it cannot
    compute metrics but means one metric, which this package does not use.
    """
    import mmengine.logging

    warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
    print_log = mmengine.logging.print_log
    if hasattr(print_log, '__wrapped__'):
        return

    @functools.wraps(print_log)
    def print_unless_debug(msg: object, logger: object = None, level: int = logging.INFO) -> None:
        if logger is not None or level > logging.DEBUG:
            print_log(msg, logger, level)

    mmengine.logging.print_log = print_unless_debug


# --- configs ----------------------------------------------------------------------------------------------------


def _cache_config_work() -> None:
    """Format a config once and read each metafile of the stack once in a process.

    A run formats its config six times (1.5 s with yapf). Each base file such as ``mmpretrain::_base_/...`` makes
    mmengine parse all metafiles of that package (0.2 s).
    """
    from mmengine.config import utils
    from yapf.yapflib import yapf_api

    format_code = yapf_api.FormatCode
    if hasattr(format_code, '__wrapped__'):
        return

    @functools.lru_cache
    def formatted(text: str, style: tuple, options: tuple) -> tuple[str, bool]:
        return format_code(text, style_config=dict(style), **dict(options))

    @functools.wraps(format_code)
    def cached(text: str, style_config: dict, **options: object) -> tuple[str, bool]:
        return formatted(text, tuple(style_config.items()), tuple(options.items()))

    vars(yapf_api)['FormatCode'] = cached
    vars(utils)['load'] = functools.lru_cache(utils.load)


def _find_our_bases() -> None:
    """Resolve ``_base_ = 'bootmae::seg/bootmae_vitb_upernet.py'`` in the configs of other projects.

    mmengine accepts only packages of a table of its own. It would also build what comes from such a base in the scope
    ``bootmae``, where neither mmseg's nor mmdet's classes are found. Ours are registered in the scopes of the stack.
    """
    from mmengine.config import Config

    find = Config._get_cfg_path
    if hasattr(find, '__wrapped__'):
        return

    @functools.wraps(find)
    def find_ours_too(path: str, filename: str) -> tuple[str, str | None]:
        return (str(our_config(path)), None) if path.startswith(OURS) else find(path, filename)

    Config._get_cfg_path = staticmethod(find_ours_too)
