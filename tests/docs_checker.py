"""Check Markdown pages: paths, links, commands, options and targets must exist, and tables must be generated."""

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

FOLDERS = ('bootmae', 'benchmarks', 'configs', 'docs', 'examples', 'results', 'suites', 'tests', 'tools')
GENERATED = ('speed', 'zoo')  # kinds of markers: benchmarks/tables.py, tools/zoo.py
FENCE = re.compile(r'^ *```(\w*)\n(.*?)^ *```$', re.DOTALL | re.MULTILINE)
SPAN = re.compile(r'`([^`\n]+(?:\n[^`\n]+)?)`')
LINK = re.compile(r'\[[^]]*\]\(([^)\s]+)\)|<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)="([^"\s]+)"')
NAMED = re.compile(rf'(?<![\w/.:~$-])(?:{"|".join(FOLDERS)})/(?:[\w./*<>-]|\{{[^}}\s]*\}})*')
BETWEEN = re.compile(rf'^<!-- ({"|".join(GENERATED)})(?:: *\S+)? -->\n.*?^<!-- /\1 -->$', re.DOTALL | re.MULTILINE)
PLACEHOLDER = re.compile(r'[A-Z][A-Z_]+|<.*>|\.\.\.')
# scripts, and the tools whose options they accept
SCRIPTS = {'dist_train.sh': 'train.py', 'slurm_train.sh': 'train.py', 'dist_test.sh': 'test.py'}
SHELL = ('bash', 'sh', 'shell', 'console', '')
NOT_OURS = ('-h', '--help')


class Captured(Exception):
    """Carries the parser of a tool to the caller."""


def problems(page: Path, text: str, root: Path) -> list[str]:
    """Return all problems in the text of a page; relative links start at ``page``."""
    prose = FENCE.sub('', text)
    found = [f'no file {name}' for name in paths_of(text) if not exists(name, root, page.parent)]
    found += [
        f'no file {name}'
        for name in modules_of(prose)
        if not any(list(root.glob(f'{folder}/**/{name}')) for folder in FOLDERS)
    ]
    found += [f'broken link {link}' for link in links_of(prose) if not link_holds(link, page, text)]
    for command in commands_of(text):
        found += command_problems(command, root)
    return found + [f'typed table: {line}' for line in typed_tables(text)]


# ---- paths and links


def paths_of(text: str) -> list[str]:
    """Return all paths of the repository in a text, without those that have placeholders."""
    names = (re.sub(r'(\.\w+)\*$', r'\1', name.rstrip('.-')) for name in NAMED.findall(text))  # a.py*: slow
    return sorted({name for name in names if not PLACEHOLDER.search(name)})


def exists(name: str, root: Path, here: Path) -> bool:
    """Whether a path, possibly with stars or braces, exists below the root or the folder of the page."""
    pattern = re.sub(r'\{[^}]*\}', '*', name).rstrip('/')
    return any(next(folder.glob(pattern), None) for folder in (root, here))


def modules_of(prose: str) -> list[str]:
    """Return Python files named without their folder; names with ``my_`` are chosen by the reader."""
    words = (word for span in SPAN.findall(prose) for word in span.split()[:1])
    return sorted({word for word in words if re.fullmatch(r'[a-z]\w*\.py', word) and not word.startswith('my_')})


def links_of(prose: str) -> list[str]:
    """Return the targets of all links and pictures, in Markdown and in HTML."""
    return [markdown or html for markdown, html in LINK.findall(prose)]


def link_holds(link: str, page: Path, text: str) -> bool:
    """Whether the file and the heading of a link exist; links to other hosts are not checked."""
    if re.match(r'[a-z]+:', link):
        return True
    file, _, anchor = link.partition('#')
    target = page.parent / file if file else page
    if file and not target.exists():
        return False
    return not anchor or anchor in anchors(target.read_text(encoding='utf-8') if file else text)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub generates them."""
    heads = re.findall(r'^#+ +(.*)$', FENCE.sub('', text), re.MULTILINE)
    return {
        re.sub(r'[^\w -]', '', re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', head).lower()).replace(' ', '-') for head in heads
    }


def typed_tables(text: str) -> list[str]:
    """Return the first lines of tables that are not generated; ``<!-- typed: REASON -->`` allows a table."""
    lines = BETWEEN.sub('', FENCE.sub('', text)).splitlines()
    return [
        line
        for before, line in zip(['', *lines], lines, strict=False)
        if re.match(r' *\||<table', line) and not re.match(r' *\||<!-- typed: .+ -->$', before)
    ]


def pages_named_in(text: str) -> list[str]:
    """Return the pages of docs/ that code names, each with its anchor if it has one."""
    return sorted(set(re.findall(r'(?<![\w/])docs/\w+\.md(?:#[\w-]+)?', text)))


# ---- commands


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the commands of shell blocks and inline code as words, without variables and prompts."""
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
    """Return the problems of one command; commands of other projects have none."""
    first, *rest = words
    if re.fullmatch(r'(\S*/)?python[\d.]*', first) and rest:
        if rest[0] != '-m':
            return command_problems(rest, root)
        return [] if known_module(rest[1:2], root) else [f'no module in {" ".join(words)}']
    if first == 'make':
        return make_problems(rest, root)
    if first == 'bootmae' and re.match(r'[a-z]', ' '.join(rest)):
        name = rest[0].replace('-', '_')
        files = [root / 'tools' / f'{name}{suffix}' for suffix in ('.py', '.sh')]
        file = next((file for file in files if file.is_file()), None)
        return option_problems(file, rest[1:]) if file else [f'no command {" ".join(words[:2])}']
    match = re.fullmatch(r'(?:\./)?((?:tools|benchmarks)/\w+\.(?:py|sh))', first)
    if not match or not (root / match[1]).is_file():  # a missing one is a path that does not exist
        return []
    return option_problems(root / match[1], rest)


def tool_of(words: list[str]) -> tuple[str, list[str]]:
    """Return the name of the tool that a command runs, and its arguments; no name for other commands."""
    first, *rest = words
    if re.fullmatch(r'(\S*/)?python[\d.]*', first) and rest:
        first, *rest = rest
    if first == 'bootmae' and rest:
        return SCRIPTS.get(f'{rest[0]}.sh', rest[0].replace('-', '_')).removesuffix('.py'), rest[1:]
    match = re.fullmatch(r'(?:\./)?tools/(\w+)\.(?:py|sh)', first)
    if not match:
        return '', rest
    name = SCRIPTS.get(f'{match[1]}.sh', match[1]).removesuffix('.py')
    return name, rest[2:] if match[1] == 'slurm_train' else rest  # after PARTITION and JOB


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
    """Return unknown options of a tool and values that an option does not allow."""
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
    """Yield the values that argparse would assign to an option."""
    for word in words[: None if nargs in ('+', '*') else 0 if nargs == 0 else nargs if isinstance(nargs, int) else 1]:
        if word.startswith('-'):
            return
        yield word


@lru_cache
def options_of(tool: Path) -> dict[str, argparse.Action] | None:
    """Return the options of a tool from its own parser, captured when it is about to parse the command line.

    A tool without a parser is not called; the result is then None, and every option is accepted.
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
            entry = next(names[name] for name in ('parse_args', 'command', 'main') if name in names)
            entry()
    except Captured as captured:
        return captured.args[0]._option_string_actions
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], '__file__', '')).startswith(str(tool.parent)):
                del sys.modules[name]
    return None
