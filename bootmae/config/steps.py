"""From a config file and options to a runnable config: every step, in its order."""

from mmengine.config import Config

from .batch import Batch, apply_batch
from .checks import check_data, check_sizes
from .load import load_config
from .reader import apply_reader
from .run_defaults import apply_run_defaults
from .weights import apply_init


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
    """The config of a training run and its batch; ``tools/train.py`` explains the arguments."""
    cfg = load_config(path, options)
    batch = apply_batch(cfg, gpus, scale_lr)
    for loader in ('train_dataloader', 'val_dataloader'):
        check_data((cfg.get(loader) or {}).get('dataset', {}))
    check_sizes(cfg)
    if init:
        apply_init(cfg, init, source)
    if resume:
        cfg.resume, cfg.resume_changed = True, resume_changed
        cfg.load_from = None if resume == 'auto' else resume
    apply_reader(cfg)
    apply_run_defaults(cfg)
    return cfg, batch


def evaluation_config(path: str, checkpoint: str, options: dict | None = None, tta: bool = False) -> Config:
    """The config of a test; ``tools/test.py`` explains the arguments."""
    cfg = load_config(path, options)
    check_data(cfg.test_dataloader.dataset)
    if tta:
        apply_tta(cfg)
    cfg.load_from = checkpoint
    return cfg


def apply_tta(cfg: Config) -> None:
    """Test with the config's augmentation (``tta_pipeline``, ``tta_model``): several scales and mirrored images."""
    if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
        raise ValueError(f'{cfg.filename} has no tta_pipeline and tta_model: test without --tta')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in cfg.model:
        cfg.model.data_preprocessor = cfg.data_preprocessor
    cfg.model = dict(cfg.tta_model, module=cfg.model)
