from .export import convert
from .identify import Encoder, find_encoder
from .load import Verdict, check_resumable, fit_encoder, load_encoder, load_run
from .read import read_checkpoint

__all__ = ['Encoder', 'Verdict', 'check_resumable', 'convert', 'find_encoder', 'fit_encoder', 'load_encoder',
           'load_run', 'read_checkpoint']
