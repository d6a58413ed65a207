#!/usr/bin/env python3
"""Generate the tables of README.md and docs/, metafile.yml and model-index.yml from the result rows in results/.

    tools/zoo.py --write                        # after a change of the rows or of a full-size config
    tools/zoo.py --check                        # exit code 1 if a file is out of date
    tools/zoo.py --reports work_dirs/evidence   # one HTML report per suite of docs/evidence.md
    tools/zoo.py --watched healthy=work_dirs/healthy collapsed=work_dirs/collapsed   # results/watching.csv

A generated table stands between `<!-- zoo: NAME -->` and `<!-- /zoo -->`.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument('--write', action='store_true', help='rewrite the files that are out of date')
    action.add_argument('--check', action='store_true', help='list them and exit with 1 if there are any')
    action.add_argument(
        '--reports', type=Path, metavar='FOLDER', help='write the HTML reports of results/evidence/*.csv'
    )
    action.add_argument(
        '--watched',
        nargs='+',
        metavar='NAME=WORK_DIR',
        help='store the online probes of these runs in results/watching.csv, for the table of docs/watching.md',
    )
    parser.add_argument('--root', type=Path, default=ROOT, help='another copy of the repository')
    return parser.parse_args()


def command() -> int:
    args = parse_args()
    from bootmae.results.rows import replace_file
    from pages import watching
    from pages.evidence import write_reports
    from pages.zoo import behind

    if args.reports:
        print(*write_reports(args.root, args.reports), sep='\n')
        return 0
    if args.watched:
        replace_file(args.root / watching.FILE, watching.csv_text(dict(text.split('=', 1) for text in args.watched)))
        return 0
    files = behind(args.root)
    for path, text in files.items():
        print(f'{path.relative_to(args.root)}: {"rewritten" if args.write else "out of date"}')
        if args.write:
            replace_file(path, text)
    if args.check and files:
        print('run tools/zoo.py --write to update them')
    return int(args.check and bool(files))


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
