"""BootMAE for the OpenMMLab stack: pretrain vision transformers, load encoders of any project, and compare them.

>>> import bootmae
>>> encoder = bootmae.load_encoder('work_dirs/bootmae_debug/epoch_2.pth')
>>> bootmae.extract_features(encoder, ['cat.jpg', 'dog.jpg']).shape
torch.Size([2, 48])

Importing the package is quick and changes no other package. The first use of one of the names below imports
:mod:`bootmae.registry`, which registers all classes with mmpretrain, mmseg and mmdet.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .places import ensure_home

if TYPE_CHECKING:
    from .api.encoder import Encoder, evaluate_knn, extract_features, load_encoder
    from .api.preprocessing import Preprocessing
    from .api.training import build, train
    from .models.bootmae import BootMAE

__version__ = '0.1.0'
__all__ = ['BootMAE', 'Encoder', 'Preprocessing', 'build', 'evaluate_knn', 'extract_features', 'load_encoder', 'train']
_MODULES = {
    'BootMAE': 'models.bootmae',
    'Preprocessing': 'api.preprocessing',
    'build': 'api.training',
    'train': 'api.training',
}

ensure_home()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    importlib.import_module('.registry', __name__)
    value = getattr(importlib.import_module(f'.{_MODULES.get(name, "api.encoder")}', __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
