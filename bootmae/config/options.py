"""Options of the command line: ``--cfg-options KEY=VALUE ...`` and ``--data PATH ...``.

A value stays a text until its config is read, because what it means depends on what the config holds at its key: in
place of a text, ``007`` is a name. The tools import this module before they parse, so it imports nothing heavy.
"""

import argparse
import ast
import json
import re
from collections.abc import Sequence
from typing import Any

IMAGES = 'images'  # the option that --data sets, see images.py
WORDS = {'true': True, 'false': False, 'none': None, 'null': None}
PLAIN = (int, float, str, list, tuple, dict)  # what a literal may be; no set, bytes or complex number
HELP = (
    'override config values. A value is a Python literal or JSON (3, 1e-4, True, None, [1,2], "text"), numbers with '
    'commas (1,2,3), or a text, which stays as it is; quote it for the shell if it has blanks'
)


class OptionText(str):
    """A value as it was written on a command line; :func:`parse_value` gives its meaning."""


class OptionsAction(argparse.Action):
    """Collects ``KEY=VALUE`` arguments in a dict."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for argument in values:
            key, equals, text = argument.partition('=')
            if not equals or not all(key.split('.')):
                parser.error(f'{option_string} {argument!r}: give KEY=VALUE, such as train_dataloader.batch_size=256')
            options[key] = OptionText(text)
        setattr(namespace, self.dest, options)


class ImagesAction(argparse.Action):
    """Puts paths into the dict of options."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        before = dict(getattr(namespace, self.dest) or {})
        setattr(namespace, self.dest, before | {IMAGES: [*before.get(IMAGES, ()), *values]})


def add_config_options(parser: argparse.ArgumentParser, images: bool = True, dest: str = 'cfg_options') -> None:
    """Add ``--cfg-options`` and, with ``images``, ``--data`` to a parser; both end in one dict of options."""
    if images:
        parser.add_argument(
            '--data',
            nargs='+',
            action=ImagesAction,
            dest=dest,
            default={},
            metavar='PATH',
            help='images to use instead of those of the config. Pretraining: folders of any depth or .tar archives. '
            'Classification: a folder with train/ and val/, in both a folder per class; or two such folders of '
            'classes, for training and evaluation. Segmentation, detection: the data_root',
        )
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, dest=dest, default={}, metavar='KEY=VALUE', help=HELP
    )


def parse_value(text: str, wants_text: bool = False, wants_list: bool = False) -> Any:
    """The meaning of a value on the command line.

    - A Python literal or JSON is taken as such; ``true``, ``false``, ``none`` and ``null`` in any case.
    - ``1,2,3`` is a list, as are ``a,b`` where the config holds a list, and ``[a,b]`` with words that are no literals.
    - Everything else is the text itself, with its blanks, quotes, commas and backslashes. A text in quotes is what is
      between them.

    Args:
        text: The value.
        wants_text: Its setting holds a text, so that numbers and commas are parts of a name.
        wants_list: Its setting holds a list.
    """
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    value = _literal(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"' and not isinstance(value, tuple):
        return text[1:-1]
    bracketed = _bracketed(text)
    if wants_text and not isinstance(value, dict) and not (bracketed and (value is not None or ',' in text)):
        return text
    if isinstance(value, tuple) and not bracketed:
        return list(value)
    if value is not None:
        return value
    if bracketed or (wants_list and ',' in text):
        parts = [parse_value(part.strip()) for part in _split(text[1:-1] if bracketed else text)]
        return tuple(parts) if text[0] == '(' and bracketed else parts
    if re.fullmatch(r'[+-]?(inf|nan)', text, re.IGNORECASE):
        return float(text)
    return str(text)


def format_value(value: Any) -> str:
    """The text of a value on a command line, such that :func:`parse_value` returns the value again.

    Raises:
        ValueError: There is no such text.
    """
    if not isinstance(value, str):
        return repr(value)
    for text in (*([value] if value else []), f"'{value}'", f'"{value}"'):
        if all(parse_value(text, *wants) == value for wants in ((False, False), (True, False), (False, True))):
            return text
    raise ValueError(f'{value!r} cannot be given on a command line; write a config of your own with this value')


def _literal(text: str) -> Any:
    """The literal that a text is; None if it is none."""
    for parse in (ast.literal_eval, json.loads):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(value, PLAIN) and text == text.strip():
            return value
    return None


def _bracketed(text: str) -> bool:
    """Whether one pair of brackets encloses a text."""
    if len(text) < 2 or text[0] + text[-1] not in ('[]', '()'):
        return False
    return len(_split(text, cut_after_bracket=True)) == 1


def _split(text: str, cut_after_bracket: bool = False) -> Sequence[str]:
    """The parts of a text between commas outside of brackets.

    Args:
        text: The text.
        cut_after_bracket: Cut where the outermost bracket closes instead.
    """
    parts, depth = [''], 0
    for character in text:
        if cut_after_bracket and parts[-1] and not depth:
            parts.append('')
        depth += (character in '[(') - (character in '])')
        if character == ',' and depth <= 0 and not cut_after_bracket:
            parts.append('')
        else:
            parts[-1] += character
    return parts if parts[-1].strip() or len(parts) == 1 else parts[:-1]
