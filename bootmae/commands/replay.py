"""Repeat a training step that was not finite, and find the first module whose output is not finite."""

import json
import math
from contextlib import nullcontext
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.data import DataLoader

from .. import registry  # noqa: F401
from ..checkpoints.folders import checkpoint_file
from ..config.load import read_file
from ..config.model import build_model
from ..data.seeding import seed_step
from ..engine.hooks.nonfinite import FOLDER, sample_name
from ..engine.hooks.provenance import precision_of
from ..engine.runner.loops import device_stage
from ..engine.runner.runner import SuiteRunner

PRECISIONS = dict(float32=None, bf16=torch.bfloat16, fp16=torch.float16)
SHOWN = 20  # number of parameter names to print


def read_dump(path: str | Path) -> dict:
    """Read the file that a run wrote for a bad step.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another kind.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(map(str, path.parent.glob('step_*_rank*.json'))) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f'no file {path}: '
            + (
                f'the folder has {", ".join(near)}'
                if near
                else f'bad steps are written to {FOLDER}/step_*_rank*.json in the work directory'
            )
        )
    try:
        dump = json.loads(path.read_text())
        if {'batches', 'seed', 'rank', 'config'} <= set(dump):
            return dump
    except (ValueError, TypeError):
        pass
    raise ValueError(f'{path} does not describe a bad step: give a {FOLDER}/step_*_rank*.json')


def beside(path: str | Path, dump_path: str | Path) -> Path:
    """Return the path recorded in a dump, or the file of that name beside the dump if the work directory has moved."""
    return Path(path) if Path(path).is_file() else Path(dump_path).with_name(Path(path).name)


def weights_for(dump: dict, dump_path: str | Path, checkpoint: str | None) -> Path:
    """Choose the weights: the given checkpoint, the weights that the run stopped with, or its last checkpoint.

    Raises:
        FileNotFoundError: if none of them exists.
    """
    if checkpoint:
        return Path(checkpoint_file(checkpoint))
    if (ended := beside(dump['weights'], dump_path)).is_file():
        return ended
    if dump['checkpoint'] and Path(dump['checkpoint']).is_file():
        return Path(dump['checkpoint'])
    raise FileNotFoundError(
        f'{dump_path}: there are no weights of a stopped run beside it and no last checkpoint '
        f'{dump["checkpoint"]}: give --checkpoint FILE of about iteration {dump["iteration"]}'
    )


def training_model(cfg: Config, weights: Path, buffers: dict[str, float]) -> nn.Module:
    """Build the model of a run in training mode, with the weights of a checkpoint and buffers that are not saved."""
    model = build_model(cfg, weights, 'raw')  # EMAHook saves the average in their place
    for name, buffer in model.named_buffers():
        if name in buffers:
            buffer.fill_(buffers[name])
    return model.to(get_device()).train()


def build_loader(cfg: Config, dump: dict) -> DataLoader:
    """Build the training loader of one process of the run, at the first batch of the step.

    Raises:
        ValueError: if the sampler of the run cannot start at any batch.
    """
    settings = cfg.train_dataloader.to_dict() | dict(num_workers=0, persistent_workers=False)
    settings.pop('prefetch_factor', None)
    loader = SuiteRunner.build_dataloader(settings, seed=dump['seed'])
    sampler, batches = getattr(loader.batch_sampler, 'sampler', None), loader.batch_sampler
    if not hasattr(batches, 'skip') or not hasattr(sampler, 'infinite'):
        raise ValueError(
            f'{cfg.filename} uses {type(sampler).__name__}, which cannot start at any batch: only runs with '
            'DefaultSampler or InfiniteSampler can be repeated'
        )
    loader.dataset.seed = sampler.seed = dump['seed']
    sampler.rank, sampler.world_size = dump['rank'], dump['world_size']
    first = dump['batches'][0]
    if sampler.infinite:
        batches.skip = first['iteration']
    else:
        sampler.set_epoch(first['epoch'])
        batches.skip = first['iteration'] - first['epoch'] * len(loader)
    return loader


def image_ranges(inputs, samples: list) -> list[tuple[str, float, float]]:
    """Return (file, minimum, maximum) of each image in the input of the data preprocessor."""
    images = inputs[0] if isinstance(inputs, (list, tuple)) and isinstance(inputs[0], (list, tuple)) else inputs
    return [
        (sample_name(sample), float(image.float().min()), float(image.float().max()))
        for sample, image in zip(samples, images)
    ]


class FirstBad:
    """Context manager that records the first module whose output is not finite."""

    def __init__(self, model: nn.Module):
        self.model, self.handles = model, []
        self.name: str | None = None

    def __enter__(self) -> 'FirstBad':
        for name, module in self.model.named_modules():
            if name:
                self.handles.append(module.register_forward_hook(self._hook(name, module)))
        return self

    def __exit__(self, *error) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str, module: nn.Module):
        def look(_, inputs, output) -> None:
            if self.name is None and not finite(output):
                came = '' if finite(inputs) else ', whose input is not finite either'
                self.name = f'{name} ({type(module).__name__}){came}'

        return look


def finite(value) -> bool:
    """Whether all tensors in nested containers are finite."""
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        value = value.values()
    return all(map(finite, value)) if isinstance(value, (list, tuple, type({}.values()))) else True


def run_once(model: nn.Module, batch: dict, key: tuple[int, int, int], precision: str) -> dict:
    """Run the forward and backward pass of one batch.

    Args:
        model: model in training mode; its buffers are restored afterwards.
        batch: batch of the data loader.
        key: seed, iteration and rank, which seed the random numbers of the step.
        precision: ``float32``, ``bf16`` or ``fp16``.

    Returns:
        ``losses`` by name and their ``sum``; ``first``, the first bad module or None; ``gradients``, the names of the
        parameters whose gradients are not finite.
    """
    dtype, kind = PRECISIONS[precision], next(model.parameters()).device.type
    model.zero_grad(set_to_none=True)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    seed_step(*key)
    with torch.autocast(kind, dtype) if dtype else nullcontext(), FirstBad(model) as bad:
        data = model.data_preprocessor(batch, True)
        losses = model(**data, mode='loss') if isinstance(data, dict) else model(*data, mode='loss')
        total, logged = model.parse_losses(losses)
    total.backward()
    gradients = [name for name, p in model.named_parameters() if p.grad is not None and not finite(p.grad)]
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return dict(
        losses={name: float(value.detach()) for name, value in logged.items()},
        sum=float(total.detach()),
        first=bad.name,
        gradients=gradients,
    )


def describe(result: dict, precision: str, parameters: int) -> list[str]:
    """Format the result of :func:`run_once`."""
    losses = ', '.join(f'{name} {value:.6g}' for name, value in result['losses'].items())
    gradients = result['gradients']
    names = ', '.join(gradients[:SHOWN]) + (' ...' if len(gradients) > SHOWN else '')
    return [
        f'  {precision}: {losses}',
        f'    first module whose output is not finite: {result["first"] or "none"}',
        f'    parameters whose gradients are not finite: {len(gradients)} of {parameters}'
        + (f': {names}' if names else ''),
    ]


def replay(dump_path: str | Path, checkpoint: str | None = None, precision: str | None = None) -> list[dict]:
    """Repeat a bad step of one process in its own precision and in float32, and print the results.

    Args:
        dump_path: ``nonfinite/step_*_rank*.json`` of a run.
        checkpoint: weights to use; :func:`weights_for` describes the default.
        precision: ``float32``, ``bf16`` or ``fp16``; default: the precision of the run.

    Returns:
        For each batch its ``iteration``, ``files``, ``images``, and ``passes`` (:func:`run_once` by precision).

    Raises:
        FileNotFoundError: if the dump, its config or its weights are missing.
        ValueError: if the batches differ from those of the run.
    """
    dump = read_dump(dump_path)
    config = beside(dump['config'], dump_path)
    if not config.is_file():
        raise FileNotFoundError(f'{config}, the config of the run, is missing beside {dump_path}: copy it there')
    cfg, weights = read_file(config), weights_for(dump, dump_path, checkpoint)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model = training_model(cfg, weights, dump['buffers'])
    own = precision or precision_of(cfg).partition(' ')[0]  # that of a wrapper of the user is not known
    precisions = [each for each in dict.fromkeys((own, 'float32')) if each in PRECISIONS]
    print(f'{dump_path}: rank {dump["rank"]} of {dump["world_size"]}, seed {dump["seed"]}, weights {weights}')
    results, parameters = [], sum(p.requires_grad for p in model.parameters())
    loader = build_loader(cfg, dump)
    stage = device_stage(cfg, loader.dataset)
    staged = loader if stage is None else map(stage, loader)
    for recorded, batch in zip(dump['batches'], staged):
        result = dict(
            iteration=recorded['iteration'], passes={}, images=image_ranges(batch['inputs'], batch['data_samples'])
        )
        result['files'] = [name for name, _, _ in result['images']]
        if result['files'] != recorded['files']:
            raise ValueError(
                f'iteration {recorded["iteration"]}: the loader yields {result["files"][:3]} ..., but the run had '
                f'{recorded["files"][:3]} ...: has the data set changed since?'
            )
        print(f'iteration {recorded["iteration"]}, epoch {recorded["epoch"]}: recorded loss {recorded["loss"]:.6g}')
        key = dump['seed'], recorded['iteration'], dump['rank']
        for kind in precisions:
            result['passes'][kind] = run_once(model, batch, key, kind)
            print('\n'.join(describe(result['passes'][kind], kind, parameters)))
        results.append(result)
    print_images(results)
    return results


def print_images(results: list[dict]) -> None:
    print('images (minimum and maximum of the model input):')
    for result in results:
        for name, low, high in result['images']:
            mark = '' if math.isfinite(low) and math.isfinite(high) else '  <- not finite'
            mark = mark or ('  <- constant' if low == high else '')
            print(f'  {low:10.4g} {high:10.4g}  {name}{mark}')
