#!/usr/bin/env python3
r"""Write the comparison report from a file of result rows, or take screenshots of a report.

    tools/report.py RESULTS.csv --run digits/mae/0=WORK_DIR --picture "Digits=grid.png" \
        --downstream "ADE20K/mae/0=WORK_DIR" --prediction "Scenes=boxes.png"
    tools/report.py REPORT.html --screenshots docs/images
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse


def named(text: str) -> tuple[str, str]:
    """Split ``NAME=VALUE`` at the last equals sign, since a caption may have one."""
    name, sign, value = text.rpartition('=')
    if not (sign and name and value):
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=VALUE')
    return name, value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', help='CSV file of result rows; with --screenshots, an HTML report')
    parser.add_argument('--out', default='report.html', help='HTML file to write')
    parser.add_argument(
        '--run',
        action='append',
        default=[],
        metavar='NAME=WORK_DIR',
        type=named,
        help='pretraining run whose losses and online probe are drawn; NAME is data/method or data/method/seed',
    )
    parser.add_argument(
        '--downstream',
        action='append',
        default=[],
        metavar='NAME=WORK_DIR',
        type=named,
        help='downstream run whose validation curves and class results are drawn; NAME is data/method/seed',
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
        help='picture of predictions beside the annotations',
    )
    parser.add_argument('--title', default='BootMAE and MAE compared')
    parser.add_argument(
        '--provenance',
        metavar='FILE',
        help='JSON object with versions, device and so on; its "commands" (an object from purpose to command) and '
        '"notes" (a list) get their own sections of the page',
    )
    parser.add_argument(
        '--screenshots',
        metavar='FOLDER',
        help='write report-wide.png and report-narrow.png of the given HTML report to this folder',
    )
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.report import run

    run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
