"""Per-class results of each evaluation, written beside the log."""

import json
from collections.abc import Iterable
from pathlib import Path

from mmengine.dist import master_only
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...evaluation.by_class import take_class_results
from ...files import write_file
from ...results.names import CLASSES_FILE, RAW_WEIGHTS
from ..runner.records import optional


@HOOKS.register_module()
class ClassResultsHook(Hook):
    """Writes the per-class results of the newest evaluation to ``classes.json`` in the run's log directory.

    mmpretrain's ``EMAHook`` can evaluate twice: first the EMA weights, whose result is logged under the metric's name,
    then the raw weights, logged as ``NAME_origin``. The file uses the same two names.
    """

    priority = 'VERY_HIGH'  # reads the first evaluation before EMAHook starts the second

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        write_class_results(runner.log_dir, runner.val_loop.evaluator)

    def after_val(self, runner: Runner) -> None:
        write_class_results(runner.log_dir, runner.val_loop.evaluator, RAW_WEIGHTS)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        write_class_results(runner.log_dir, runner.test_loop.evaluator)

    def after_test(self, runner: Runner) -> None:
        write_class_results(runner.log_dir, runner.test_loop.evaluator, RAW_WEIGHTS)


@master_only
def write_class_results(log_dir: str | Path, evaluator: Evaluator, suffix: str = '') -> None:
    """Add the evaluator's per-class results to the file; a metric of the same name is replaced."""
    found = {f'{name}{suffix}': values for name, values in take_class_results(evaluator.metrics).items()}
    if not found:
        return
    file = Path(log_dir) / CLASSES_FILE
    with optional(file):
        earlier = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
        text = json.dumps(earlier | found, ensure_ascii=False, indent=1)
        write_file(file, lambda temporary: temporary.write_bytes(text.encode()))


def has_class_results(metrics: Iterable) -> bool:
    """Whether any of these metrics keeps per-class results."""
    return any(hasattr(metric, 'by_class') for metric in metrics)
