"""Write the comparison report from a file of result rows, or take screenshots of a report."""

import argparse
import json
from pathlib import Path

from ..report import (
    class_results,
    find_verdicts,
    overview_text,
    read_curve,
    read_metrics,
    read_rows,
    summarize,
    text_table,
    write_page,
)
from ..report.screenshots import take_screenshots
from ..report.verdicts import headline, learned_headline


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for and print the paths written, after the tables of a report."""
    if args.screenshots:
        others = ('run', 'downstream', 'picture', 'prediction', 'provenance')
        if given := [f'--{name}' for name in others if getattr(args, name)]:
            raise ValueError(f'--screenshots shows a report that exists, so {given[0]} has no effect: leave it out')
        print(*take_screenshots(args.results, args.screenshots), sep='\n')
    else:
        write_report(args)


def write_report(args: argparse.Namespace) -> None:
    """Write the HTML page and print its tables and conclusions."""
    rows = read_rows(args.results)
    provenance = read_provenance(args.provenance)
    commands, notes = provenance.pop('commands', {}), provenance.pop('notes', [])
    curves = [read_curve(name, work_dir) for name, work_dir in args.run]
    metrics = [curve for given in (args.run, args.downstream) for run in given for curve in read_metrics(*run)]
    classes = [found for run in args.downstream for found in class_results(*run)]
    pictures, predictions = (read_pictures(given) for given in (args.picture, args.prediction))
    write_page(args.out, args.title, rows, curves, pictures, provenance, commands, notes, predictions, metrics, classes)
    found = find_verdicts(summarize(rows))
    texts = (overview_text(rows), text_table(rows), headline(found)[0], learned_headline(found), f'report: {args.out}')
    print('\n'.join(filter(None, texts)))


def read_pictures(given: list[tuple[str, str]]) -> dict[str, bytes]:
    """Read picture files by caption.

    Raises:
        ValueError: if two have the same caption.
    """
    pictures = {}
    for caption, file in given:
        if caption in pictures:
            raise ValueError(f'two pictures have the caption {caption!r}: give each its own')
        pictures[caption] = Path(file).read_bytes()
    return pictures


def read_provenance(path: str | None) -> dict:
    """Read the provenance file; without a path the result is empty.

    Raises:
        ValueError: if the file is not a JSON object, or its "commands" or "notes" have the wrong type.
    """
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ValueError(f'{path}: not JSON ({error}); write one JSON object') from None
    good = (
        isinstance(content, dict)
        and isinstance(content.get('commands', {}), dict)
        and isinstance(content.get('notes', []), list)
    )
    if not good:
        raise ValueError(f'{path}: not a JSON object with "commands" as an object and "notes" as a list')
    return content
