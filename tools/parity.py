#!/usr/bin/env python3
"""Compare this implementation with numbers that the authors' release computed (golden files, .npz)."""

import argparse
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('files', nargs='+', metavar='FILE.npz', help='e.g. tests/golden/*.npz')
    parser.add_argument(
        '--compile',
        nargs='?',
        const=True,
        default=False,
        choices=('whole', 'blocks'),
        help='with torch.compile, of the whole training graph or of each block',
    )
    parser.add_argument('--device', default='cpu', help='default: cpu')
    return parser.parse_args()


def command() -> int:
    args = parse_args()
    from bootmae.commands.cli import USER_ERRORS
    from bootmae.commands.parity import TOLERANCE, compare

    passed, failed = True, 0
    for path in args.files:
        try:
            kind, errors = compare(path, args.compile, args.device)
        except USER_ERRORS as error:
            print(f'{path}: error: {error}', file=sys.stderr)
            failed = 2
            continue
        good = all(error <= TOLERANCE for error in errors.values())
        passed &= good
        print(f'{path} ({kind}): {"equal" if good else "NOT EQUAL"}')
        for name, error in errors.items():
            print(f'  {name:<20} {error:9.2e}{"" if error <= TOLERANCE else f"  > {TOLERANCE:g}"}')
    print(f'{"all" if passed and not failed else "NOT all"} relative errors are <= {TOLERANCE:g}')
    return failed or (0 if passed else 1)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
