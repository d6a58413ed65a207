"""What an evaluator found for each class, kept beside the log for the report."""

import json
import math
from collections.abc import Mapping, Sequence
from logging import FileHandler
from pathlib import Path

import torch
from mmengine.logging import MMLogger, print_log
from mmpretrain.evaluation import Accuracy
from mmpretrain.registry import METRICS

from ..files import write_file

FILE = 'classes.json'  # in the folder of the log; bootmae.report.classes reads it


def log_folder() -> Path | None:
    """Folder of this run's log; None without one, as on ranks that write no log."""
    handlers = MMLogger.get_current_instance().handlers
    folders = [Path(handler.baseFilename).parent for handler in handlers if isinstance(handler, FileHandler)]
    return next((folder for folder in folders if folder.is_dir()), None)


def keep_classes(found: Mapping[str, Mapping[str, float]]) -> None:
    """Write percent by class, by metric, into the log's folder; a class without a number (NaN) is left out.

    Beside the log and not into it: with 150 classes each line of a validation, and TensorBoard, would be of no use.
    A metric of the same name is replaced, so that the file is of the newest validation. Without a log none is written.
    """
    folder = log_folder()
    if folder is None or not found:
        return
    finite = {
        metric: {name: round(float(value), 4) for name, value in values.items() if math.isfinite(value)}
        for metric, values in found.items()
    }
    file = folder / FILE
    try:
        earlier = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
        text = json.dumps(earlier | finite, ensure_ascii=False, indent=1)
        write_file(file, lambda temporary: temporary.write_bytes(text.encode()))
    except (OSError, ValueError) as error:  # a nicety of the report: no reason to end a training
        print_log(f'{file}: what each class got is not kept ({error})', logger='current')


@METRICS.register_module()
class AccuracyByClass(Accuracy):
    """mmpretrain's ``Accuracy``, which also keeps the top-1 accuracy of each class."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        truth = torch.cat([result['gt_label'] for result in results])
        guessed = torch.cat([top_label(result) for result in results])
        count = int(max(truth.max(), guessed.max())) + 1
        images = torch.bincount(truth, minlength=count)
        right = torch.bincount(truth[guessed == truth], minlength=count)
        names = class_names(self.dataset_meta, count)
        keep_classes({'accuracy': dict(zip(names, (100 * right.double() / images).tolist()))})
        return super().compute_metrics(results)


def top_label(result: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Predicted class of one image, (1, ): of scores the largest."""
    return result['pred_score'].topk(1).indices if 'pred_score' in result else result['pred_label'].reshape(1)


def class_names(meta: Mapping | None, count: int) -> Sequence[str]:
    """Names of the classes in label order; their numbers where the data set has none."""
    names = (meta or {}).get('classes') or ()
    return [names[label] if label < len(names) else str(label) for label in range(count)]
