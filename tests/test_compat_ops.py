"""Tests of the torchvision stand-in for mmcv's compiled ops, against plain Python and against the compiled ops."""

import importlib.machinery
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bootmae import compat

# compat alone: importing bootmae would import the whole stack
LOAD_COMPAT = 'import sys\nfrom bootmae import compat'


def run_python(code: str, *flags: str, path: Path | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHONPATH': str(path or '')}
    return subprocess.run([sys.executable, *flags, '-c', code], env=env, capture_output=True, text=True)


def has_compiled_ops() -> bool:
    return hasattr(sys.modules[compat.OPS], '__file__')


@pytest.fixture
def standin(monkeypatch):
    """mmcv.ops with the stand-in, also where the compiled ops are installed."""
    import mmcv.ops  # noqa: F401

    module = compat._make_standin_ops()
    for name in ('mmcv.ops.nms', 'mmcv.ops.roi_align'):
        monkeypatch.setattr(sys.modules[name], 'ext_module', module)
    return module


# --- nms ---


def plain_nms(boxes: list, scores: list, threshold: float, offset: int) -> list[int]:
    def area(box):
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    def overlap(a, b):
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
        return width * height / (area(a) + area(b) - width * height)

    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def random_boxes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    size = 1 + torch.rand(count, 2, generator=generator) * 30
    return torch.cat([corner, corner + size], dim=1), torch.randperm(count, generator=generator) / count


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.6])
def test_nms_equals_plain_python(standin, threshold, offset):
    from mmcv.ops import nms

    for seed in range(5):
        boxes, scores = random_boxes(60, seed)
        dets, kept = nms(boxes, scores, threshold, offset=offset)
        expected = plain_nms(boxes.tolist(), scores.tolist(), threshold, offset)
        assert 0 < len(expected) < 60
        assert kept.tolist() == expected
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[expected])


def test_nms_keeps_an_overlap_equal_to_the_threshold(standin):
    boxes = torch.tensor([[0.0, 0, 10, 1], [9, 0, 10, 1]])  # 1 of 10
    scores = torch.tensor([0.9, 0.8])
    assert standin.nms(boxes, scores, iou_threshold=0.1, offset=0).tolist() == [0, 1]
    assert standin.nms(boxes, scores, iou_threshold=0.0999, offset=0).tolist() == [0]


def test_nms_takes_no_boxes_and_low_precision(standin):
    assert standin.nms(torch.zeros(0, 4), torch.zeros(0), iou_threshold=0.5, offset=0).tolist() == []
    boxes, scores = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 30, 30]]), torch.tensor([0.5, 0.75, 0.25])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        kept = standin.nms(boxes.to(dtype), scores.to(dtype), iou_threshold=0.5, offset=0)
        assert kept.tolist() == [1, 2]


def test_batched_nms_keeps_classes_apart(standin):
    from mmcv.ops import batched_nms

    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [0, 0, 8, 8]])
    _, kept = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), dict(iou_threshold=0.5))
    assert kept.tolist() == [0, 2]


# --- roi_align ---


def plain_roi_align(image, rois, size, scale, sampling_ratio, aligned):
    """Mean of bilinear samples on a regular grid in each bin; differentiable in image (B, C, H, W)."""
    pooled = []
    for index, *corners in rois.tolist():
        left, top, right, bottom = (corner * scale - 0.5 * aligned for corner in corners)
        width, height = right - left, bottom - top
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        step_x, step_y = width / size[1], height / size[0]
        grid_x = sampling_ratio or math.ceil(step_x)
        grid_y = sampling_ratio or math.ceil(step_y)
        for row in range(size[0]):
            for column in range(size[1]):
                samples = [
                    bilinear(
                        image[int(index)],
                        top + (row + (i + 0.5) / grid_y) * step_y,
                        left + (column + (j + 0.5) / grid_x) * step_x,
                    )
                    for i in range(grid_y)
                    for j in range(grid_x)
                ]
                pooled.append(sum(samples) / len(samples) if samples else image.new_zeros(image.shape[1]))
    return torch.stack(pooled).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def bilinear(plane, y, x):
    """Value of plane (C, H, W) at a point; 0 from one pixel outside on."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(plane.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    upper = plane[:, y0, x0] * (x0 + 1 - x) + plane[:, y0, x1] * (x - x0)
    lower = plane[:, y1, x0] * (x0 + 1 - x) + plane[:, y1, x1] * (x - x0)
    return upper * (y0 + 1 - y) + lower * (y - y0)


ROIS = torch.tensor(
    [
        [0, 2.3, 1.1, 13.7, 17.9],
        [1, 0.0, 0.0, 24.0, 20.0],
        [1, -6.0, -3.0, 8.0, 5.0],  # over the edge
        [0, 18.0, 12.0, 40.0, 30.0],
        [0, 5.2, 5.2, 5.2, 5.2],  # no size
    ]
)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('scale', [1.0, 0.25])
def test_roi_align_and_its_gradient_equal_plain_python(standin, scale, sampling_ratio, aligned):
    from mmcv.ops import roi_align

    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 20, 24, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = ROIS.double()
    pooled = roi_align(image, rois, (3, 2), scale, sampling_ratio, 'avg', aligned)
    expected = plain_roi_align(image, rois, (3, 2), scale, sampling_ratio, aligned)
    torch.testing.assert_close(pooled, expected, rtol=1e-10, atol=1e-10)

    weight = torch.randn(pooled.shape, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad((pooled * weight).sum(), image)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), image)
    assert expected_grad.abs().max() > 0
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)


def test_roi_align_gradient_equals_finite_differences(standin):
    from mmcv.ops import RoIAlign

    layer = RoIAlign(2, spatial_scale=0.5, sampling_ratio=2)
    image = torch.rand(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 1.0, 9.0, 7.0], [1, 0.0, 2.0, 11.0, 8.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda image: layer(image, rois), image)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_low_precision(standin, dtype):
    from mmcv.ops import roi_align

    image = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    pooled = roi_align(image, ROIS.to(dtype), (2, 2))
    assert pooled.dtype == dtype
    expected = roi_align(image.float(), ROIS.to(dtype).float(), (2, 2))
    torch.testing.assert_close(pooled, expected.to(dtype))
    pooled.sum().backward()
    assert image.grad.dtype == dtype
    assert image.grad.abs().max() > 0


def test_roi_align_without_rois(standin):
    from mmcv.ops import roi_align

    image = torch.randn(1, 3, 8, 8, requires_grad=True)
    pooled = roi_align(image, torch.zeros(0, 5), (2, 2))
    assert pooled.shape == (0, 3, 2, 2)
    pooled.sum().backward()
    assert torch.equal(image.grad, torch.zeros_like(image))


# --- the module ---


def test_standin_equals_the_compiled_ops():
    if not has_compiled_ops():
        pytest.skip('mmcv has no compiled ops here')
    compiled, standin = sys.modules[compat.OPS], compat._make_standin_ops()
    for seed in range(5):
        boxes, scores = random_boxes(200, seed)
        for offset in (0, 1):
            kept = [ops.nms(boxes, scores, iou_threshold=0.3, offset=offset) for ops in (compiled, standin)]
            assert torch.equal(*kept)

    image = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    for aligned in (True, False):
        for sampling_ratio in (0, 2):
            results = []
            for ops in (compiled, standin):
                options = dict(
                    aligned_height=3,
                    aligned_width=2,
                    spatial_scale=0.5,
                    sampling_ratio=sampling_ratio,
                    pool_mode=1,
                    aligned=aligned,
                )
                unused, pooled, grad = torch.zeros(0), torch.zeros(len(ROIS), 3, 3, 2), torch.zeros_like(image)
                ops.roi_align_forward(image, ROIS, pooled, unused, unused, **options)
                ops.roi_align_backward(pooled, ROIS, unused, unused, grad, **options)
                results.append((pooled, grad))
            torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def pool_channels_last(roi_align_forward) -> tuple[torch.Tensor, torch.Tensor]:
    """The same map in channels-last and in usual order through a RoIAlign."""
    maps = torch.randn(2, 6, 8, 3).permute(0, 3, 1, 2)
    rois = torch.tensor([[0, 1.0, 1.0, 5.0, 4.0], [1, 0.0, 2.0, 6.0, 6.0]])
    assert not maps.is_contiguous()
    pooled = []
    for input in (maps, maps.contiguous()):
        output, argmax = torch.zeros(2, 3, 4, 4), torch.zeros(0)
        roi_align_forward(input, rois, output, argmax, argmax, 4, 4, 1.0, 0, 1, True)
        pooled.append(output)
    return tuple(pooled)


def test_roi_align_takes_any_layout():
    assert torch.equal(*pool_channels_last(sys.modules[compat.OPS].roi_align_forward))


def test_compiled_ops_still_ignore_strides():
    """Without the work-around: silently wrong numbers. If this fails, `_take_any_layout` can go."""
    if not has_compiled_ops():
        pytest.skip('mmcv has no compiled ops here')
    first, second = pool_channels_last(sys.modules[compat.OPS].roi_align_forward.__wrapped__)
    assert not torch.allclose(first, second, atol=0.1)


def test_any_layout_also_where_mmcv_came_first():
    """A program that imports mmcv.ops before this package gets the work-around too."""
    code = (
        'import mmcv.ops, bootmae.registry, sys; '
        f'assert hasattr(sys.modules[{compat.OPS!r}].roi_align_forward, "__wrapped__")'
    )
    if has_compiled_ops():
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_other_ops_name_themselves_and_the_remedy(standin):
    from mmcv.ops import roi_align, soft_nms

    with pytest.raises(RuntimeError, match="'softnms' is not compiled.*MMCV_WITH_OPS=1"):
        soft_nms(*random_boxes(4, 0))
    with pytest.raises(RuntimeError, match="pool_mode='max' is not compiled.*MMCV_WITH_OPS=1"):
        roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), (2, 2), 1.0, 0, 'max')
    assert not hasattr(standin, '__path__')
    assert not hasattr(standin, '_anything')


def test_mmcv_alone_still_needs_compiled_ops():
    if has_compiled_ops():
        pytest.skip('mmcv has compiled ops here')
    assert "No module named 'mmcv._ext'" in run_python('import mmcv.ops').stderr


def test_compiled_ops_without_cuda_are_not_used_on_a_gpu(tmp_path):
    """They would end a detection at its first NMS."""
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text('class cuda:\n    is_available = staticmethod(lambda: True)\n')
    (tmp_path / 'mmcv' / '_ext').mkdir(parents=True)
    (tmp_path / 'mmcv' / '__init__.py').touch()
    (tmp_path / 'mmcv' / '_ext' / '__init__.py').touch()
    done = run_python(f'{LOAD_COMPAT}\nprint(compat._load_compiled_ops())', path=tmp_path)
    assert done.stdout == 'None\n', done.stderr
    assert 'was compiled for the CPU only' in done.stderr
    (tmp_path / 'mmcv' / '_ext' / '__init__.py').write_text('# .nv_fatbin: the section of code for GPUs')
    done = run_python(f'{LOAD_COMPAT}\nprint(compat._load_compiled_ops().__name__)', path=tmp_path)
    assert done.stdout == 'mmcv._ext\n', done.stderr


def test_compiled_ops_of_another_torch_are_replaced_with_a_warning(tmp_path):
    (tmp_path / 'torch.py').touch()
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    (tmp_path / ('mmcv/_ext' + importlib.machinery.EXTENSION_SUFFIXES[0])).write_bytes(b'not a library')
    done = run_python(f'{LOAD_COMPAT}\ncompat._install_standin_ops()\nprint(sys.modules[compat.OPS])', path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'it was compiled for another version of torch or of the system' in done.stderr
    assert done.stdout.startswith("<module 'mmcv._ext'")
