from .export import convert
from .identify import FileEncoder, find_encoder
from .load import LoadReport, check_resumable, error_context, load_encoder_weights, load_run, match, read_encoder
from .read import read_checkpoint

__all__ = [
    'FileEncoder',
    'LoadReport',
    'check_resumable',
    'convert',
    'error_context',
    'find_encoder',
    'load_encoder_weights',
    'load_run',
    'match',
    'read_checkpoint',
    'read_encoder',
]
