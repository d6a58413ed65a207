"""Generated parts of Markdown pages, each between two comments on their own lines.

<!-- KIND: NAME -->
generated text
<!-- /KIND -->
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Makers = Mapping[str, Callable[[], str]]


def filled(page: str, name: str, kind: str, makers: Makers) -> str:
    """Text of a page with all parts of one kind generated.

    Args:
        page: Text of the page; parts of other kinds stay unchanged.
        name: Name of the page, for errors.
        kind: First word of the markers, such as ``speed``.
        makers: Generators of the text between the markers, by name of the part.

    Raises:
        ValueError: A marker names no part or is not closed.
    """
    end = f'<!-- /{kind} -->'
    opened = re.compile(rf'^<!-- {kind}:.*$', re.MULTILINE)
    marked = re.compile(
        rf'^<!-- {kind}: *(\S*?) *-->\n(.*?)^<!-- (/{kind}|{kind}: *\S*?) -->$', re.DOTALL | re.MULTILINE
    )

    def replace(match: re.Match) -> str:
        part, _, closing = match.groups()
        begin = f'<!-- {kind}: {part} -->'
        if part not in makers:
            raise ValueError(f'{name}: no table {part!r} in {begin}; there are {", ".join(makers)}')
        if closing != f'/{kind}':
            raise ValueError(f'{name}: {begin} is not closed; put {end} on a line of its own after it')
        return f'{begin}\n{makers[part]()}{end}'

    if len(opened.findall(page)) != len(marked.findall(page)):
        raise ValueError(
            f'{name}: a table is not closed; put {end} on a line of its own after each <!-- {kind}: NAME -->'
        )
    return marked.sub(replace, page)


def stale(paths: Iterable[str | Path], kind: str, makers: Makers) -> dict[Path, str]:
    """Pages that are out of date, with their new text."""
    texts = {path: path.read_text(encoding='utf-8') for path in map(Path, paths)}
    right = {path: filled(page, path.name, kind, makers) for path, page in texts.items()}
    return {path: page for path, page in right.items() if page != texts[path]}


def pages(root: str | Path) -> list[Path]:
    """The Markdown pages of the repository: those in its root, docs and benchmarks."""
    return [page for folder in ('.', 'docs', 'benchmarks') for page in sorted(Path(root, folder).glob('*.md'))]


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    heads = list(heads)
    lines = [heads, ['---'] * len(heads), *([cell.replace('|', r'\|') for cell in row] for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)
