"""The model index of OpenMMLab (``metafile.yml``, ``model-index.yml``), from the configs and the result rows.

Published numbers are never written there, because readers take the numbers for the model's own. A model has results
once they are reproduced here, and weights once a row has their URL.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from bootmae.report.model_results import ModelResult, model_results, variant_of
from bootmae.results.names import model_of
from bootmae.results.rows import ResultRow

COLLECTIONS = {
    'BootMAE': ('Bootstrapped Masked Autoencoders for Vision BERT Pretraining', 'https://arxiv.org/abs/2207.07116'),
    'MAE': ('Masked Autoencoders Are Scalable Vision Learners', 'https://arxiv.org/abs/2111.06377'),
}
FOLDERS = ('pretrain', 'cls', 'seg', 'det')
DATA = {'pretrain': 'ImageNet-1k', 'cls': 'ImageNet-1k', 'seg': 'ADE20K', 'det': 'COCO'}
TASKS = {
    'pretrain': 'Image Classification',
    'cls': 'Image Classification',
    'seg': 'Semantic Segmentation',
    'det': 'Object Detection',
}
TASK_OF_METRIC = {'mask AP': 'Instance Segmentation'}
METRICS = {'accuracy': 'Top 1 Accuracy'}
HEAD = '# Written by tools/zoo.py from configs/ and results/: change those, then run tools/zoo.py --write.\n'


def read_config(path: Path) -> Config:
    """A config without its custom imports, because only its values are needed."""
    return _read_config(path.resolve())


@lru_cache
def _read_config(path: Path) -> Config:
    return Config.fromfile(path, import_custom_modules=False)


def full_size_configs(root: str | Path) -> list[str]:
    """Configs of the papers' models, relative to the repository, pretraining first."""
    return [
        path.relative_to(root).as_posix()
        for folder in FOLDERS
        for path in sorted((Path(root) / 'configs' / folder).glob('*.py'))
        if model_of(path.name)
    ]


def commands(config: str, task: str, multi_scale: bool, root: str | Path) -> list[str]:
    """Commands that produce the number of a full-size config on 8 GPUs; empty for other configs."""
    model, root = model_of(config), Path(root)
    pretraining = root / 'configs' / 'pretrain' / f'{model}.py'
    if not (model and pretraining.is_file() and (root / config).is_file()):
        return []
    weights = f'work_dirs/{model}/epoch_{read_config(pretraining).train_cfg.max_epochs}.pth'
    if multi_scale:
        iterations = read_config(root / config).train_cfg.max_iters
        return [f'tools/dist_test.sh {config} work_dirs/{Path(config).stem}/iter_{iterations}.pth 8 --tta']
    if task == 'knn':
        return [f'tools/dist_train.sh {config} 8', f'tools/knn.py configs/cls/{model}_finetune.py --init {weights}']
    return [f'tools/dist_train.sh {config} 8 --init {weights}']


def metafile(rows: Iterable[ResultRow], root: str | Path) -> str:
    """Content of ``metafile.yml``: both methods and all full-size configs."""
    configs = full_size_configs(root)
    measured = [entry for entry in model_results(rows) if any(row.label == 'reproduced' for row in entry.rows)]
    collections = [
        {
            'Name': name,
            'Metadata': {'Training Data': 'ImageNet-1k', 'Training Techniques': ['AdamW'], 'Architecture': ['ViT']},
            'Paper': {'Title': title, 'URL': url},
            'README': 'README.md',
        }
        for name, (title, url) in COLLECTIONS.items()
    ]
    models = [
        _model(config, configs, [entry for entry in measured if entry.config == config], Path(root))
        for config in configs
    ]
    return HEAD + yaml.safe_dump({'Collections': collections, 'Models': models}, sort_keys=False, width=120)


def model_index() -> str:
    """Content of ``model-index.yml``: the path of the metafile."""
    return HEAD + yaml.safe_dump({'Import': ['metafile.yml']})


def _model(config: str, configs: Sequence[str], measured: Sequence[ModelResult], root: Path) -> dict[str, Any]:
    cfg = read_config(root / config)
    folder, model = Path(config).parent.name, model_of(config)
    length = (
        ('Epochs', cfg.train_cfg.max_epochs)
        if 'max_epochs' in cfg.train_cfg
        else ('Iterations', cfg.train_cfg.max_iters)
    )
    found = {
        'Name': Path(config).stem,
        'In Collection': 'BootMAE' if model.startswith('bootmae') else 'MAE',
        'Metadata': {
            'Training Data': DATA[folder],
            length[0]: length[1],
            'Batch Size': cfg.auto_scale_lr.base_batch_size,
        },
        'Config': config,
        'Results': [_result(entry, folder) for entry in measured] or None,
    }
    if folder == 'pretrain':
        found['Downstream'] = [Path(other).stem for other in configs if model_of(other) == model and other != config]
    urls = [row.checkpoint for entry in measured for row in entry.rows if row.checkpoint.startswith('https://')]
    return found | ({'Weights': urls[0]} if urls else {})


def _result(entry: ModelResult, folder: str) -> dict[str, Any]:
    row = entry.sample
    values = [row.value for row in entry.rows if row.label == 'reproduced']
    name = ', '.join(filter(None, [METRICS.get(row.metric, row.metric), variant_of(row) if folder == 'seg' else '']))
    return {
        'Task': TASK_OF_METRIC.get(row.metric, TASKS[folder]),
        'Dataset': row.data,
        'Metrics': {f'k-NN {name}' if row.task == 'knn' else name: round(sum(values) / len(values), 2)},
    }
