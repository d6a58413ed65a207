"""A hook that breaks chosen steps of a run, and a small regression that needs no run."""

import os
from copy import deepcopy

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmpretrain.engine.optimizers import LARS
from torch import nn

from bootmae.engine.unwrap import bare_model

NAN, INF = float('nan'), float('inf')
OPTIMIZERS = dict(
    fused_adamw=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    adamw=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    fused_sgd=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    sgd=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    lars=lambda p: LARS(p, lr=0.1, momentum=0.9, weight_decay=0.1),
)  # of linear probes


@HOOKS.register_module()
class BreakHook(Hook):
    """Breaks iterations in all processes or in one.

    The kind ``loss`` breaks the pixels that BootMAE predicts, ``autocast`` only those predicted under autocast, and
    ``gradient`` the gradient of the class token.
    """

    def __init__(self, iterations, kind: str = 'loss', rank: int | None = None):
        self.iterations, self.kind, self.handles = iterations, kind, []
        self.here = rank is None or rank == int(os.environ.get('RANK', 0))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.here and runner.iter in self.iterations:
            model = bare_model(runner)
            self.handles.append(
                model.backbone.cls_token.register_hook(lambda gradient: gradient * INF)
                if self.kind == 'gradient'
                else model.pixel_decoder.register_forward_hook(self.break_pixels)
            )

    def break_pixels(self, module, inputs, output):
        return output * NAN if self.kind == 'loss' or torch.is_autocast_enabled('cpu') else output

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        while self.handles:
            self.handles.pop().remove()


class Toy:
    """A small regression with an optimizer wrapper; ``bad`` says what to break in a batch."""

    def __init__(self, wrapper: str = 'GuardedOptimWrapper', optimizer: str = 'fused_adamw', **settings):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.wrapper = OPTIM_WRAPPERS.build(
            dict(type=wrapper, optimizer=OPTIMIZERS[optimizer](self.model.parameters()), **deepcopy(settings))
        )

    def batch(self, seed: int, bad: tuple[str, float] | None = None) -> None:
        kind, value = bad or ('', 0.0)
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        handle = (
            self.model[2].weight.register_hook(lambda g: g.index_fill(1, torch.tensor([3]), value))
            if (kind == 'gradient')
            else None
        )
        with self.wrapper.optim_context(self.model):
            loss = self.model(x).square().mean()
            if kind == 'loss':
                loss = loss + value  # a constant: the gradients of the loss as it is are finite
        self.wrapper.update_params(loss)
        if handle:
            handle.remove()

    def state(self) -> list[torch.Tensor]:
        """Return copies of weights, moments and step counters."""
        moments = self.wrapper.optimizer.state_dict()['state'].values()
        return [p.detach().clone() for p in self.model.parameters()] + [
            torch.as_tensor(value).clone() for state in moments for value in state.values() if value is not None
        ]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))
