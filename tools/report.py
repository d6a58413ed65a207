#!/usr/bin/env python3
r"""Write the comparison report from a results file, or take screenshots of one.

    python tools/report.py RESULTS.csv --run digits/mae/0=WORK_DIR --picture "Digits=grid.png" \
        --downstream "ADE20K/mae/0=WORK_DIR" --prediction "Scenes=boxes.png"
    python tools/report.py REPORT.html --screenshots docs/images
"""

import argparse
import json
import sys
from pathlib import Path

from bootmae.report import (
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
from bootmae.report.screenshots import take_screenshots
from bootmae.report.verdicts import headline, learned_headline


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write the comparison report from a results file.')
    parser.add_argument('results', help='CSV file of result rows; with --screenshots an HTML report')
    parser.add_argument('--out', default='report.html', help='HTML file to write')
    parser.add_argument(
        '--run',
        action='append',
        default=[],
        metavar='NAME=WORK_DIR',
        type=named,
        help='pretraining whose losses and online probe are drawn; NAME is data/method or data/method/seed',
    )
    parser.add_argument(
        '--downstream',
        action='append',
        default=[],
        metavar='NAME=WORK_DIR',
        type=named,
        help='downstream training whose validations and per-class results are shown; NAME is data/method/seed',
    )
    parser.add_argument(
        '--picture', action='append', default=[], metavar='CAPTION=FILE', type=named, help='picture of reconstructions'
    )
    parser.add_argument(
        '--prediction',
        action='append',
        default=[],
        metavar='CAPTION=FILE',
        type=named,
        help='picture of predictions beside the annotation',
    )
    parser.add_argument('--title', default='BootMAE and MAE compared')
    parser.add_argument(
        '--provenance',
        metavar='FILE',
        help='JSON object with versions, device and so on; "commands" (an object: command by purpose) and "notes" (a '
        'list) are shown in sections of their own',
    )
    parser.add_argument(
        '--screenshots', metavar='FOLDER', help='write report-wide.png and report-narrow.png of the HTML report'
    )
    return parser.parse_args(arguments)


def named(text: str) -> tuple[str, str]:
    """``NAME=VALUE`` as a pair, split at the last equals sign because captions may contain one."""
    name, sign, value = text.rpartition('=')
    if not (sign and name and value):
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=VALUE')
    return name, value


def read_provenance(path: str | None) -> dict:
    """Content of the provenance file; empty without one."""
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
        raise ValueError(f'{path}: not a JSON object whose "commands" are an object and "notes" a list')
    return content


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        if args.screenshots:
            print(*take_screenshots(args.results, args.screenshots), sep='\n')
            return 0
        rows = read_rows(args.results)
        provenance = read_provenance(args.provenance)
        commands, notes = provenance.pop('commands', {}), provenance.pop('notes', [])
        curves = [read_curve(name, work_dir) for name, work_dir in args.run]
        metrics = [curve for given in (args.run, args.downstream) for run in given for curve in read_metrics(*run)]
        classes = [found for run in args.downstream for found in class_results(*run)]
        pictures, predictions = (
            {caption: Path(file).read_bytes() for caption, file in given} for given in (args.picture, args.prediction)
        )
        write_page(
            args.out, args.title, rows, curves, pictures, provenance, commands, notes, predictions, metrics, classes
        )
    except (OSError, ValueError) as error:
        print(f'report: {error}', file=sys.stderr)
        return 2
    found = find_verdicts(summarize(rows))
    print('\n'.join(filter(None, [overview_text(rows), text_table(rows)])))
    print('\n'.join(filter(None, [headline(found)[0], learned_headline(found)])))
    print(f'report: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
