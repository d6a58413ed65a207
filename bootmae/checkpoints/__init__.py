from .identify import Encoder, find_encoder
from .load import Verdict, load_encoder, load_run
from .read import read_checkpoint

__all__ = ['Encoder', 'Verdict', 'find_encoder', 'load_encoder', 'load_run', 'read_checkpoint']
