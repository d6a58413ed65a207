"""Train a config."""

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from .. import registry  # noqa: F401
from ..config.batch import norm_note
from ..config.steps import training_config
from ..engine.runner.build import await_processes, build_runner, processes
from ..engine.runner.ladder import ladder


def train(
    config: str,
    work_dir: str | None = None,
    options: dict | None = None,
    init: str | None = None,
    source: str = 'online',
    resume: str | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    resume_changed: bool = False,
) -> Runner:
    """Train a config; ``tools/train.py --help`` explains the arguments."""
    cfg, batch = training_config(
        config, options, processes(launcher), auto_scale_lr, init, source, resume, resume_changed
    )

    def run_once(cfg: Config) -> Runner:
        runner = build_runner(cfg, config, work_dir, launcher)
        print_log(f'global batch: {batch}{norm_note(batch, runner.model)}', logger='current')
        try:
            runner.train()
        finally:  # also after an error: restore signal handlers and end the heartbeat thread
            for hook in runner.hooks:
                getattr(hook, 'close', lambda: None)()
        return runner

    runner = ladder(run_once, cfg)
    await_processes()
    return runner
