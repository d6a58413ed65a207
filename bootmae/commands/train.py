"""What ``tools/train.py`` does."""

from mmengine.logging import print_log
from mmengine.runner import Runner

from .. import registry  # noqa: F401
from ..config.batch import norm_note
from ..config.steps import training_config
from ..engine.runner.build import await_processes, build_runner, processes


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
    """What ``tools/train.py`` does; see there for the arguments."""
    cfg, batch = training_config(
        config, options, processes(launcher), auto_scale_lr, init, source, resume, resume_changed
    )
    runner = build_runner(cfg, config, work_dir, launcher)
    print_log(f'global batch: {batch}{norm_note(batch, runner.model)}', logger='current')
    try:
        runner.train()
    finally:  # also after an exception: restore the signal handlers and end the heartbeat's threads
        for hook in runner.hooks:
            getattr(hook, 'close', lambda: None)()
    await_processes()
    return runner
