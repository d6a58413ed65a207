#!/usr/bin/env python3
"""Write what the repository says of its results: tables of README.md and docs/, metafile.yml and model-index.yml.

    tools/zoo.py --write     # after any change of results/*.csv or of a full-size config
    tools/zoo.py --check     # exit code 1 where a file says something else than the rows

All of it comes from results/*.csv. A table of a page stands between `<!-- zoo: NAME -->` and `<!-- /zoo -->`.
"""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument('--write', action='store_true', help='rewrite the files that are behind the rows')
    action.add_argument('--check', action='store_true', help='name them, and exit with 1 if there are any')
    parser.add_argument('--root', type=Path, default=ROOT, help='another copy of the repository')
    return parser.parse_args()


def command() -> int:
    args = parse_args()
    from bootmae.results.rows import replace_file
    from pages.zoo import behind

    files = behind(args.root)
    for path, text in files.items():
        print(f'{path.relative_to(args.root)}: {"rewritten" if args.write else "is behind results/*.csv"}')
        if args.write:
            replace_file(path, text)
    if args.check and files:
        print('tools/zoo.py --write brings them up to date')
    return int(args.check and bool(files))


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
