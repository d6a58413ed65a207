"""What a Markdown page names and the repository lacks: paths, links, commands, options, targets; and typed tables."""

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from unittest import mock

FOLDERS = ('bootmae', 'benchmarks', 'configs', 'docs', 'results', 'suites', 'tests', 'tools')
GENERATED = ('speed', 'zoo')  # kinds of markers: benchmarks/tables.py, tools/zoo.py
FENCE = re.compile(r'^ *```(\w*)\n(.*?)^ *```$', re.DOTALL | re.MULTILINE)
SPAN = re.compile(r'`([^`\n]+(?:\n[^`\n]+)?)`')
LINK = re.compile(r'\[[^]]*\]\(([^)\s]+)\)')
NAMED = re.compile(rf'(?<![\w/.:~$-])(?:{"|".join(FOLDERS)})/(?:[\w./*<>-]|\{{[^}}\s]*\}})*')
BETWEEN = re.compile(rf'^<!-- ({"|".join(GENERATED)})(?:: *\S+)? -->\n.*?^<!-- /\1 -->$', re.DOTALL | re.MULTILINE)
PLACEHOLDER = re.compile(r'[A-Z][A-Z_]+|<.*>|\.\.\.')
# whose options the scripts take
SCRIPTS = {'dist_train.sh': 'train.py', 'slurm_train.sh': 'train.py', 'dist_test.sh': 'test.py'}
SHELL = ('bash', 'sh', 'shell', 'console', '')
NOT_OURS = ('-h', '--help')


class Captured(Exception):
    """Carries a parser out of the tool that made it."""


def problems(page: Path, text: str, root: Path) -> list[str]:
    """All that is wrong in a page's text; ``page`` says where relative links start."""
    prose = FENCE.sub('', text)
    found = [f'no file {name}' for name in paths_of(text) if not exists(name, root, page.parent)]
    found += [
        f'no file {name}'
        for name in modules_of(prose)
        if not any(list(root.glob(f'{folder}/**/{name}')) for folder in FOLDERS)
    ]
    found += [f'broken link {link}' for link in LINK.findall(prose) if not link_holds(link, page, text)]
    for command in commands_of(text):
        found += command_problems(command, root)
    return found + [f'typed table: {line}' for line in typed_tables(text)]


# ---- paths and links


def paths_of(text: str) -> list[str]:
    """Paths of the repository that stand anywhere in a text, those with placeholders left out."""
    names = (re.sub(r'(\.\w+)\*$', r'\1', name.rstrip('.-')) for name in NAMED.findall(text))  # a.py*: slow
    return sorted({name for name in names if not PLACEHOLDER.search(name)})


def exists(name: str, root: Path, here: Path) -> bool:
    """Whether a path, with stars or braces, names something below the root or the page's folder."""
    pattern = re.sub(r'\{[^}]*\}', '*', name).rstrip('/')
    return any(next(folder.glob(pattern), None) for folder in (root, here))


def modules_of(prose: str) -> list[str]:
    """Python files that are named without their folder; ``my_`` begins a name that the reader chooses."""
    words = (word for span in SPAN.findall(prose) for word in span.split()[:1])
    return sorted({word for word in words if re.fullmatch(r'[a-z]\w*\.py', word) and not word.startswith('my_')})


def link_holds(link: str, page: Path, text: str) -> bool:
    """Whether a link's file is there and has the heading it names; addresses of other hosts are taken for good."""
    if re.match(r'[a-z]+:', link):
        return True
    file, _, anchor = link.partition('#')
    target = page.parent / file if file else page
    if file and not target.exists():
        return False
    return not anchor or anchor in anchors(target.read_text(encoding='utf-8') if file else text)


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r'^#+ +(.*)$', FENCE.sub('', text), re.MULTILINE)
    return {
        re.sub(r'[^\w -]', '', re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', head).lower()).replace(' ', '-') for head in heads
    }


def typed_tables(text: str) -> list[str]:
    """First lines of tables that no command writes; one below ``<!-- typed: REASON -->`` is meant to be."""
    lines = BETWEEN.sub('', FENCE.sub('', text)).splitlines()
    return [
        line
        for before, line in zip(['', *lines], lines, strict=False)
        if re.match(r' *\||<table', line) and not re.match(r' *\||<!-- typed: .+ -->$', before)
    ]


# ---- commands


def commands_of(text: str) -> Iterator[list[str]]:
    """Commands of shell blocks and of code in the text, as words; variables, prompts and python itself taken off."""
    blocks = [block for language, block in FENCE.findall(text) if language in SHELL]
    lines = [line for block in blocks for line in re.sub(r'\\\n', ' ', block).splitlines()]
    spans = [' '.join(span.split()) for span in SPAN.findall(FENCE.sub('', text))]
    for line in [*lines, *spans]:
        for part in re.split(r'&&|\|\||[;|]', re.sub(r'(^|\s)#.*', '', line)):
            words = split(part)
            while words and (words[0] in ('$', 'exec', 'sudo', 'nohup') or re.fullmatch(r'[A-Z_]+=.*', words[0])):
                words = words[1:]
            if words:
                yield words


def split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that is an apostrophe
        return line.split()


def command_problems(words: list[str], root: Path) -> list[str]:
    """What is wrong with one command; none for a command of others."""
    first, *rest = words
    if re.fullmatch(r'(\S*/)?python[\d.]*', first) and rest:
        if rest[0] != '-m':
            return command_problems(rest, root)
        return [] if known_module(rest[1:2], root) else [f'no module in {" ".join(words)}']
    if first == 'make':
        return make_problems(rest, root)
    match = re.fullmatch(r'(?:\./)?((?:tools|benchmarks)/\w+\.(?:py|sh))', first)
    if not match or not (root / match[1]).is_file():  # a missing one is a path that does not exist
        return []
    return option_problems(root / match[1], rest)


def known_module(name: list[str], root: Path) -> bool:
    try:
        return bool(name) and importlib.util.find_spec(name[0]) is not None
    except ModuleNotFoundError:
        return False


def make_problems(words: list[str], root: Path) -> list[str]:
    makefile = (root / 'Makefile').read_text(encoding='utf-8')
    targets = re.findall(r'^([a-z][\w-]*):', makefile, re.MULTILINE)
    found = []
    for word in words:
        name, assigned, _ = word.partition('=')
        if assigned and f'$({name})' not in makefile:
            found.append(f'make knows no {name}')
        elif not assigned and re.fullmatch(r'[a-z][\w-]*', word) and word not in targets:
            found.append(f'no target {word} in the Makefile')
    return found


def option_problems(tool: Path, words: list[str]) -> list[str]:
    """Options that a tool does not have, and values that one of them does not allow."""
    file = tool.with_name(SCRIPTS.get(tool.name, tool.name))
    options = options_of(file)
    if options is None:
        return []
    found = []
    for number, word in enumerate(words):
        name, _, value = word.partition('=')
        if not re.fullmatch(r'--?[a-zA-Z][\w-]*', name) or name in NOT_OURS:
            continue
        if name not in options:
            found.append(f'{tool.name} has no option {name}')
            continue
        given = [value] if value else list(values_after(words[number + 1 :], options[name].nargs))
        choices = options[name].choices
        found += [
            f'{tool.name} {name} does not take {value}'
            for value in given
            if choices and value not in map(str, choices) and not PLACEHOLDER.search(value)
        ]
    return found


def values_after(words: list[str], nargs: int | str | None) -> Iterator[str]:
    """The values that argparse would take."""
    for word in words[: None if nargs in ('+', '*') else 0 if nargs == 0 else nargs if isinstance(nargs, int) else 1]:
        if word.startswith('-'):
            return
        yield word


@lru_cache
def options_of(tool: Path) -> dict[str, argparse.Action] | None:
    """A tool's options, from its own parser, which is taken as it is about to read the command line.

    None where a tool has no parser: it is not called then, and any word is taken for good.
    """
    if 'ArgumentParser(' not in tool.read_text(encoding='utf-8'):
        return None

    def capture(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Captured(parser)

    modules, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(tool.parent))
    try:
        with mock.patch.object(argparse.ArgumentParser, 'parse_known_args', capture):  # parse_args calls it too
            names = runpy.run_path(str(tool), run_name='tool')
            entry = next(names[name] for name in ('parse_args', 'parse_arguments', 'command', 'main') if name in names)
            entry()
    except Captured as captured:
        return captured.args[0]._option_string_actions
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], '__file__', '')).startswith(str(tool.parent)):
                del sys.modules[name]
    return None
