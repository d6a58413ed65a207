"""Imported before torch looks for a GPU: hides it from all tests but those of tests/gpu.

The others expect the values of a CPU. A GPU stays visible if all paths among pytest's arguments lie in tests/gpu, or if
``BOOTMAE_TEST_GPU`` is 1, which is also how xdist's workers learn of it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def only_gpu_tests(arguments: Sequence[str]) -> bool:
    """Whether all paths among pytest's arguments lie in tests/gpu."""
    values = [value for option, value in zip(['', *arguments], arguments) if option not in ('--ignore', '--deselect')]
    paths = [Path(value.split('::')[0]).resolve() for value in values if not value.startswith('-')]
    given = [path for path in paths if path.exists() and (path.is_relative_to(TESTS) or TESTS.is_relative_to(path))]
    return bool(given) and all(path.is_relative_to(TESTS / 'gpu') for path in given)


if only_gpu_tests(sys.argv[1:]):
    os.environ.setdefault('BOOTMAE_TEST_GPU', '1')
if os.environ.get('BOOTMAE_TEST_GPU') != '1':
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
