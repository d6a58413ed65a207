"""The global batch of a recipe on any number of GPUs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """``global_size = gpus * per_gpu * accumulation``."""

    gpus: int
    per_gpu: int
    accumulation: int

    @property
    def global_size(self) -> int:
        return self.gpus * self.per_gpu * self.accumulation

    def __str__(self) -> str:
        return f'{self.gpus} GPUs x {self.per_gpu} x accumulation {self.accumulation} = {self.global_size}'


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def settle_batch(gpus: int, per_gpu: int, recipe: int | None, accumulation: int | None = None) -> Batch:
    """The batch to run with, so that it equals the recipe's.

    Args:
        gpus: number of processes.
        per_gpu: images of one process in one iteration.
        recipe: global batch that the learning rate is meant for; None: whatever comes out.
        accumulation: iterations to an optimiser step; None: worked out from the recipe.

    Raises:
        ValueError: if no whole accumulation gives the recipe's batch, with the settings that would.
    """
    if gpus < 1 or per_gpu < 1 or (accumulation is not None and accumulation < 1):
        raise ValueError(f'gpus={gpus}, batch_size={per_gpu}, accumulation={accumulation}: all must be at least 1')
    if recipe is None:
        return Batch(gpus, per_gpu, accumulation or 1)
    if accumulation is None:
        accumulation = max(recipe // (gpus * per_gpu), 1)
    batch = Batch(gpus, per_gpu, accumulation)
    if batch.global_size != recipe:
        raise ValueError(f'{batch}, but the recipe\'s batch is {recipe}. {remedy(gpus, per_gpu, recipe)}')
    return batch


def remedy(gpus: int, per_gpu: int, recipe: int) -> str:
    other = ('to train with the batch as it is and scale the learning rate with it, add --auto-scale-lr')
    if recipe % gpus:
        fitting = [n for n in divisors(recipe) if n <= 64]
        return f'{gpus} GPUs do not divide it: use one of {fitting} GPUs; or, {other}.'
    share = recipe // gpus
    size = max(d for d in divisors(share) if d <= per_gpu)
    return (f'Add --cfg-options train_dataloader.batch_size={size} '
            f'(accumulation {share // size} follows); or, {other}.')
