"""Warns of an accuracy that guessing would reach too."""

import logging
import math
from collections.abc import Mapping

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from torch import nn
from torch.utils.data import Dataset

TOP1 = 'accuracy/top1'


def chance_limit(classes: int, images: int) -> float:
    """Accuracy in percent of guessing among equally frequent classes, plus two standard errors over the images."""
    chance = 1 / classes
    return 100 * (chance + 2 * math.sqrt(chance * (1 - chance) / images))


def chance_warning(accuracy: float, classes: int, images: int) -> str:
    """A warning if an accuracy in percent is no better than guessing, else an empty text."""
    if classes < 2 or accuracy > chance_limit(classes, images):
        return ''
    return (
        f'an accuracy of {accuracy:.2f} % on {images:,} images is at the chance level of {classes} classes '
        f'({100 / classes:.2f} %). Check the weights, the input statistics (mean, std) and the labels'
    )


def warn_of_trained(metrics: Mapping[str, float], model: nn.Module, dataset: Dataset) -> None:
    """Log that warning for the metrics of a trained classifier; nothing for other models."""
    classes = getattr(getattr(model, 'head', None), 'num_classes', 1)
    warning = chance_warning(float(metrics[TOP1]), classes, len(dataset)) if TOP1 in metrics else ''
    if warning and is_main_process():
        print_log(f'{TOP1}: {warning}', 'current', logging.WARNING)
