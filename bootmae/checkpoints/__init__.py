from .export import convert
from .identify import Encoder, find_encoder
from .load import Verdict, check_resumable, load_encoder, load_run, match, refusing
from .read import read_checkpoint

__all__ = ['Encoder', 'Verdict', 'check_resumable', 'convert', 'find_encoder', 'load_encoder', 'load_run', 'match',
           'read_checkpoint', 'refusing']
