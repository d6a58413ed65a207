"""Checks of the doctor that import packages. They run in a child process, which may crash or hang.

Like :mod:`doctor`, this module is loaded without the package around it and imports only the standard library on top.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from .doctor import COMPILE, FAULT, MARK, NOTE, OK, PIP, REPAIR, Check, Context, Finding, first_line, run_check


def check_torch(context: Context) -> list[Finding]:
    import torch
    import torchvision

    torchvision.ops.nms(
        torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5
    )  # fails if torchvision was built for another torch
    return [
        Finding(OK, 'torch', f'{torch.__version__} (CUDA {torch.version.cuda}), torchvision {torchvision.__version__}')
    ]


def check_gpu(context: Context) -> Finding:
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        found = context.gpu and torch.cuda.is_available()
    driver = driver_version()
    if found:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding(OK, 'GPU', f'{len(names)} x {names[0]}, {memory:.0f} GiB; driver {driver or "unknown"}')
    if not driver or not context.gpu or os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return Finding(OK, 'GPU', 'none in use: everything runs on the CPU')
    if torch.version.cuda is None:
        return Finding(FAULT, 'GPU', f'driver {driver}, but torch {torch.__version__} was built without CUDA', REPAIR)
    why = f': {told[0].message}'.splitlines()[0][:160] if told else ''
    return Finding(
        FAULT,
        'GPU',
        f'torch (CUDA {torch.version.cuda}) does not work with driver {driver}{why}',
        f'nvidia-smi; install a driver for CUDA {torch.version.cuda} or newer',
    )


def driver_version() -> str:
    """Return the version of the NVIDIA driver, or '' without one."""
    try:
        done = subprocess.run(
            ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.split('\n')[0].strip() if done.returncode == 0 else ''


def check_nvjpeg(context: Context) -> Finding:
    import torch
    from torchvision.io import decode_jpeg, encode_jpeg

    code = encode_jpeg(torch.full((3, 16, 16), 99, dtype=torch.uint8))
    if not context.gpu or not torch.cuda.is_available():
        return Finding(OK, 'nvJPEG', 'not checked: no GPU')
    try:
        pixels = decode_jpeg(code, device='cuda')
        error = '' if (pixels.float() - 99).abs().max() < 4 else 'wrong pixels'
    except RuntimeError as failure:
        error = first_line(failure)
    return (
        Finding(
            NOTE,
            'nvJPEG',
            f'{error}: the CPU decodes JPEGs',
            f'{PIP} install --force-reinstall --no-deps torchvision==0.26.0',
        )
        if error
        else Finding(OK, 'nvJPEG', 'decodes JPEGs on the GPU')
    )


def check_compiled_ops(context: Context) -> Finding:
    import importlib.util
    from importlib.machinery import PathFinder

    package = importlib.util.find_spec('mmcv')
    if package is None:
        return Finding(FAULT, 'mmcv ops', 'mmcv is not installed', REPAIR)
    spec = PathFinder.find_spec('mmcv._ext', package.submodule_search_locations)
    if spec is None:
        return Finding(
            NOTE,
            'mmcv ops',
            "not compiled: torchvision's nms and roi_align are used, which is all that Mask R-CNN needs",
            f'nothing to do; to compile all ops (about 15 minutes): {COMPILE}',
        )
    import torch

    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return Finding(
            FAULT,
            'mmcv ops',
            f'compiled for another torch than {torch.__version__}: {first_line(error)}',
            f'{COMPILE}  (without MMCV_WITH_OPS=1: no compiled ops, torchvision is used)',
        )
    # mmcv's get_compiling_cuda_version() would tell, but it crashes if the module brings its own libstdc++
    if torch.cuda.is_available() and b'_fatbin' not in Path(spec.origin or '').read_bytes():
        return Finding(
            NOTE,
            'mmcv ops',
            "compiled for the CPU only: on this GPU torchvision's nms and roi_align are used, which is all that Mask "
            'R-CNN needs',
            f'nothing to do; to compile all ops for GPUs (about 15 minutes): FORCE_CUDA=1 {COMPILE}',
        )
    return Finding(OK, 'mmcv ops', 'compiled, and they load without errors')


def check_imports(context: Context) -> list[Finding]:
    """Import each package that the commands need."""
    import importlib

    findings, seconds = [], {}
    for name in ('numpy', 'scipy', 'cv2', 'PIL', 'pycocotools.mask', 'mmengine', 'mmcv', 'bootmae.registry'):
        start = time.perf_counter()
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken package may raise anything
            findings.append(Finding(FAULT, f'import {name}', first_line(error), REPAIR))
        seconds[name] = time.perf_counter() - start
    slow = ', '.join(f'{name} {taken:.1f} s' for name, taken in seconds.items() if taken > 0.3)
    return findings or [Finding(OK, 'imports', f'all succeed ({slow})' if slow else 'all succeed')]


def smoke(device: str) -> Finding:
    """Run one training step of a tiny BootMAE: forward, backward, optimizer, momentum encoder."""
    import numpy as np
    import torch
    from mmpretrain.registry import MODELS

    import bootmae.registry  # noqa: F401  registers the model

    np.random.seed(0)  # masks
    torch.manual_seed(0)
    model = (
        MODELS.build(
            dict(
                type='BootMAE',
                pixel_decoder=dict(embed_dims=16, depth=1),
                feature_decoder=dict(depth=1),
                backbone=dict(
                    type='PlainViT', arch=dict(embed_dims=24, depth=2, num_heads=2), img_size=32, patch_size=8
                ),
                masking=dict(num_masked=11, num_block=8, block_area=(2, 4)),
            )
        )
        .to(device)
        .train()
    )
    model.init_weights()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    before = torch.cat([p.detach().flatten() for p in model.momentum.parameters()])
    losses = model.loss(torch.randn(4, 3, 32, 32).to(device))
    loss = losses['loss_pixel'] + losses['loss_feature']
    loss.backward()
    optimizer.step()
    model.update_momentum(0.9)
    after = torch.cat([p.detach().flatten() for p in model.momentum.parameters()])
    name = f'training step on {device}'
    if not torch.isfinite(loss) or not torch.isfinite(after).all() or torch.equal(before, after):
        return Finding(
            FAULT, name, f'loss {loss.item()}, momentum encoder moved: {not torch.equal(before, after)}', REPAIR
        )
    return Finding(OK, name, f'loss {loss.item():.4f}')


def check_smoke(context: Context) -> Finding:
    return smoke('cpu')


def check_smoke_on_gpu(context: Context) -> list[Finding]:
    import torch

    return [smoke('cuda')] if context.gpu and torch.cuda.is_available() else []


IN_CHILD: tuple[Check, ...] = (
    check_torch,
    check_gpu,
    check_nvjpeg,
    check_compiled_ops,
    check_imports,
    check_smoke,
    check_smoke_on_gpu,
)


def child(gpu: bool) -> None:
    """Run all checks in the child process; print the name of each check before it and its findings after it."""
    levels = {}
    for check in IN_CHILD:
        if levels.get(check_torch) == FAULT and check is not check_imports:
            continue  # the other checks would fail for the same reason
        print('\n' + MARK + json.dumps(check.__name__), flush=True)
        findings = run_check(check, Context(gpu=gpu))
        levels[check] = findings[0].level if findings else OK
        print('\n' + MARK + json.dumps([asdict(finding) for finding in findings]), flush=True)
    os._exit(0)  # skip the shutdown, in which a broken library may crash
