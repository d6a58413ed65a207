"""All steps from a config file and options to a runnable config, in their order."""

import os
from collections.abc import Callable

from mmengine.config import Config

from ..checkpoints import read_checkpoint
from ..checkpoints.folders import checkpoint_file
from .batch import Batch, apply_batch
from .channels import warn_of_channels
from .checks import check_data, check_schedule, check_sizes
from .classes import CLASSES, apply_class_names, heads_with_classes, recorded_classes
from .images import check_classes
from .load import load_config
from .reader import apply_reader
from .run_defaults import apply_run_defaults, complete_hooks
from .weights import apply_init, check_files

TRAINED = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')  # what a training needs
TEST_PIPELINE = 'test_dataloader.dataset.pipeline'


def training_config(
    path: str,
    options: dict | None = None,
    gpus: int = 1,
    scale_lr: bool = False,
    init: str | None = None,
    source: str = 'online',
    resume: str | None = None,
    resume_changed: bool = False,
) -> tuple[Config, Batch]:
    """Build the config of a training run and its batch; ``tools/train.py`` explains the arguments.

    Each step is a function with one job, and its docstring says what it changes in the config.
    """
    cfg = load_config(path, options)  # the file, changed by --cfg-options
    require(cfg, *TRAINED)
    check_schedule(cfg)  # the warm-up fits into the run
    batch = apply_batch(cfg, gpus, scale_lr)  # the recipe's global batch on this number of GPUs
    apply_class_names(cfg)  # names of the classes of own COCO files
    check_training(cfg)  # data folders and image sizes
    if init and cfg.get('load_from') and not cfg.get('resume'):
        raise ValueError(
            f'--init {init} and load_from={cfg.load_from} of {cfg.filename}: both give start weights; leave one of '
            'them out'
        )
    if init:
        apply_init(cfg, init, source)  # start weights of the backbone
    if resume:
        apply_resume(cfg, resume, resume_changed)  # the checkpoint to resume from
    apply_reader(cfg)  # how training images are read
    apply_run_defaults(cfg)  # exact resuming and guards against lost work
    return cfg, batch


def evaluation_config(
    path: str,
    checkpoint: str,
    options: dict | None = None,
    tta: bool = False,
    source: str = 'online',
    tell: Callable[[str], object] = print,
) -> tuple[Config, dict]:
    """Build the config of a test, and read its checkpoint; ``tools/test.py`` explains the arguments."""
    cfg = load_config(path, options)
    require(cfg, 'model', 'test_dataloader', 'test_evaluator', 'test_cfg')
    check_data(cfg.test_dataloader.dataset)
    file = checkpoint_file(checkpoint, tell)
    content = read_checkpoint(file) if os.path.isfile(file) else {}  # if it is missing, the data are checked first
    recorded = recorded_classes(content)  # not the order of the annotations, which may be those of another place
    if recorded and cfg.get(CLASSES, recorded) is None and heads_with_classes(cfg):
        cfg = load_config(path, (options or {}) | {CLASSES: list(recorded)})
    apply_class_names(cfg, recorded)
    warn_of_channels(cfg, content, file)
    complete_hooks(cfg)
    cfg.load_from, cfg.load_source = file, source
    if tta:
        apply_tta(cfg, options)
    return cfg, content


def check_training(cfg: Config) -> None:
    """Check data folders, class folders, weights files and image sizes of a training config. Changes nothing."""
    for loader in ('train_dataloader', 'val_dataloader'):
        check_data((cfg.get(loader) or {}).get('dataset', {}))
    check_classes(cfg)
    check_files(cfg)
    check_sizes(cfg)


def require(cfg: Config, *keys: str) -> None:
    """Raise a ValueError for a config without one of these top-level settings, such as a part of one."""
    missing = [key for key in keys if cfg.get(key) is None]
    if missing:
        raise ValueError(
            f'{cfg.filename} has no {" and no ".join(missing)}, which this needs: give a whole config of '
            'configs/pretrain, cls, seg or det, of the right kind'
        )


def apply_resume(cfg: Config, resume: str, resume_changed: bool = False) -> None:
    """Resume the run from a file, or from the newest checkpoint for 'auto'.

    Changes ``resume``, ``resume_changed`` and ``load_from``. With 'auto', the ``load_from`` of the config moves to
    ``first_start``, from which a run starts that has no checkpoint yet; see :meth:`SuiteRunner.load_or_resume`.
    """
    if resume == 'auto' and cfg.get('load_from'):
        cfg.first_start = dict(load_from=cfg.load_from, resume=bool(cfg.get('resume')))
    cfg.resume, cfg.resume_changed = True, resume_changed
    cfg.load_from = None if resume == 'auto' else resume


def apply_tta(cfg: Config, options: dict | None = None) -> None:
    """Test with the config's test-time augmentation (``tta_pipeline``, ``tta_model``): scales and mirrored images.

    Changes the test pipeline, and wraps ``model``.

    Raises:
        ValueError: if the config has no test-time augmentation, or if options change only the pipeline that it
            replaces.
    """
    replaced = [key for key in options or {} if f'{key}.'.startswith(f'{TEST_PIPELINE}.')]
    if replaced and 'tta_pipeline' not in options:  # who gives both knows
        raise ValueError(
            f'{replaced[0]} has no effect with --tta, which replaces this pipeline by tta_pipeline: leave one of them '
            'out, or write a config with another tta_pipeline'
        )
    if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
        raise ValueError(f'{cfg.filename} has no tta_pipeline and tta_model: test without --tta')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in cfg.model:
        cfg.model.data_preprocessor = cfg.data_preprocessor
    cfg.model = dict(cfg.tta_model, module=cfg.model)
