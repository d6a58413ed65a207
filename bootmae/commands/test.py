"""What ``tools/test.py`` does."""

from .. import registry  # noqa: F401
from ..config.steps import evaluation_config
from ..engine.runner.build import await_processes, build_runner


def evaluate(config: str, checkpoint: str, work_dir: str | None = None, options: dict | None = None,
             launcher: str = 'none', tta: bool = False) -> dict[str, float]:
    """What ``tools/test.py`` does; gives the metrics."""
    cfg = evaluation_config(config, checkpoint, options, tta)
    metrics = build_runner(cfg, config, work_dir, launcher).test()
    await_processes()
    return metrics
