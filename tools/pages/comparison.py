"""Tables of docs/comparison.md, from docs/comparison.csv: one line per claim, with its source."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from .markers import Makers, markdown

FILE = Path('docs', 'comparison.csv')
HERE = 'here'
PROJECTS = {  # by name in the file: name in the tables
    HERE: 'here',
    'mmpretrain': 'mmpretrain',
    'mae': 'MAE',
    'bootmae': 'the authors',
    'lightly': 'lightly',
    'lightly-train': 'lightly-train',
    'stable-pretraining': 'stable-pretraining',
    'timm': 'timm',
}
UNKNOWN = 'not looked at'  # the only answer without a source
TOPICS = ('methods', 'tasks', 'training', 'faults', 'following')

Claims = dict[str, dict[str, dict[str, tuple[str, str]]]]  # by topic, question and project: answer and source


def read_claims(path: Path) -> Claims:
    """Read the file.

    Raises:
        ValueError: A claim is incomplete or occurs twice; names the line.
    """
    claims: Claims = {topic: {} for topic in TOPICS}
    with path.open(encoding='utf-8', newline='') as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            topic, question, project, answer, source = (
                row[name] for name in ('topic', 'question', 'project', 'answer', 'source')
            )
            of_question = claims.get(topic, {}).setdefault(question, {})
            if topic not in claims or project not in PROJECTS or project in of_question:
                raise ValueError(f'{path}, line {number}: {topic}, {question}, {project} is unknown or occurs twice')
            if not answer or bool(source) == (answer == UNKNOWN):
                raise ValueError(f'{path}, line {number}: give an answer and its source, or {UNKNOWN!r} without one')
            of_question[project] = (answer, source)
    for questions in claims.values():
        for question, answers in questions.items():
            if missing := [name for name in PROJECTS if name not in answers]:
                raise ValueError(f'{path}: {question} has no answer for {", ".join(missing)}')
    return claims


def table(questions: dict[str, dict[str, tuple[str, str]]]) -> str:
    """One line per question: our answer, and those of the others with the projects that share them."""
    lines = []
    for question, answers in questions.items():
        shared: dict[str, list[str]] = {}
        for name, title in PROJECTS.items():
            if name != HERE:
                shared.setdefault(answers[name][0], []).append(title)
        shared |= {UNKNOWN: shared.pop(UNKNOWN)} if UNKNOWN in shared else {}  # last
        others = '<br>'.join(f'*{", ".join(names)}*: {answer}' for answer, names in shared.items())
        lines.append([f'**{question}**', answers[HERE][0], others])
    return markdown(['', 'here', 'elsewhere'], lines)


def sources(claims: Claims) -> str:
    """A list of the source of every claim."""
    lines = []
    for question, answers in _all(claims):
        places = [f'{PROJECTS[name]}: {_linked(name, source)}' for name, (_, source) in answers.items() if source]
        lines.append(f'- **{question}**: {"; ".join(places)}\n')
    return ''.join(lines)


def _all(claims: Claims) -> Iterable[tuple[str, dict[str, tuple[str, str]]]]:
    return [item for questions in claims.values() for item in questions.items()]


def _linked(project: str, source: str) -> str:
    """A source; files of this repository are links from docs/."""
    if project != HERE:
        return source
    return ', '.join(
        f'[{place.partition("#")[0]}]({re.sub("^docs/", "", place) if place.startswith("docs/") else f"../{place}"})'
        for place in source.split(', ')
    )


def makers(root: Path) -> Makers:
    """Generators of the parts of docs/comparison.md by marker."""
    return {
        **{f'comparison/{topic}': lambda topic=topic: table(read_claims(root / FILE)[topic]) for topic in TOPICS},
        'comparison/sources': lambda: sources(read_claims(root / FILE)),
    }
