#!/usr/bin/env python3
"""Prove every claim on one GPU in nine minutes: equality, tests, step, reading, downstream, compiled code.

    benchmarks/gpu.py --budget 540 --out gpu_results --images imagenet_part.tar   # everything that fits, in this order
    benchmarks/gpu.py --phase step reading --out gpu_again                        # some phases
    benchmarks/gpu.py --evidence --budget 420 --data cifar10.npz --out evidence   # BootMAE against MAE on CIFAR-10
    benchmarks/gpu.py --rehearse --out rehearsal                                  # all of it on the CPU at toy size
    benchmarks/gpu.py --collect gpu_results    # rows of another machine into benchmarks/results and the pages

Each phase is a child process with a time limit. What it finds is printed and added to OUT/results.jsonl the moment it
exists; a phase that fails or hangs costs no other one, and nothing begins that does not fit into the budget. At the end
stand OUT/claims.md and OUT/claims.json: claim, target, measured, verdict. Nothing is read from a network.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import claims
import phases
from phases import ROOT, Recorder, Settings, read_results, test_files

TESTS = ('golden', 'tests', 'compiled')  # phases that continue in a new process after a crash
RESTARTS = 3
ENDING = 5  # seconds reserved for the tables


@dataclass(frozen=True)
class Phase:
    """A phase: a function of this name in phases.py.

    Attributes:
        needs: seconds that it takes at least; it does not begin with less.
        limit: seconds after which it is ended.
    """

    name: str
    needs: float
    limit: float


# Most valuable first, since the budget may end anywhere.
PHASES = (
    Phase('environment', 10, 100),
    Phase('golden', 30, 120),
    Phase('tests', 40, 240),
    Phase('step', 60, 260),
    Phase('reading', 60, 120),
    Phase('downstream', 40, 130),
    Phase('compiled', 60, 400),
    Phase('step_large', 60, 130),
    Phase('profile', 40, 90),
    Phase('ideas', 90, 300),
)
EVIDENCE = (PHASES[0], Phase('evidence', 280, 3600))


class Child:
    """Process of a phase. It imports everything immediately and starts when it is told how much time it has.

    Args:
        command: reads the seconds, a line, from its standard input.
        log: file that its output is added to, line by line.
    """

    def __init__(self, command: Sequence[str], log: Path):
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,
            env=os.environ | {'PYTHONUNBUFFERED': '1', 'PYTHONFAULTHANDLER': '1'},  # shows where it crashes
        )
        self.printer = threading.Thread(target=copy_lines, args=(self.process.stdout, log), daemon=True)
        self.printer.start()

    def run(self, limit: float) -> str:
        """Start the phase and return how it ended: ``done``, ``failed (CODE)`` or ``hung`` (time limit exceeded)."""
        with suppress(BrokenPipeError):  # it has already failed
            self.process.stdin.write(f'{limit}\n')
            self.process.stdin.close()
        try:
            code = self.process.wait(limit)
            return 'done' if code == 0 else f'failed ({code})'
        except subprocess.TimeoutExpired:
            return 'hung'
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and all its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.printer.join(5)


def copy_lines(stream, log: Path) -> None:
    with log.open('a', encoding='utf-8') as file:
        for line in stream:
            print(line, end='', flush=True)
            file.write(line)
            file.flush()


def run_all(chosen: Sequence[Phase], budget: float, out: Path, command: Callable[[Phase], list[str]]) -> None:
    """Run phases within a budget of seconds, and record the result of each.

    The process of the next phase imports its packages while one runs: that takes ten seconds or more.

    Args:
        command: gives the command of a phase; see :class:`Child`.
    """
    end = time.monotonic() + budget - ENDING
    log = out / 'log.txt'
    prepared = {phase.name: Child(command(phase), log) for phase in chosen[:1]}
    for phase, following in zip(chosen, [*chosen[1:], None], strict=True):
        record, spent = Recorder(out, phase.name), 0.0
        for _ in range(RESTARTS + 1):
            process = prepared.pop(phase.name, None) or Child(command(phase), log)
            if following and following.name not in prepared:
                prepared[following.name] = Child(command(following), log)
            left = min(end - time.monotonic(), phase.limit - spent)
            if left < phase.needs:
                process.kill()
                if not spent:
                    why = f'needs {phase.needs:g} s, {max(left, 0):.0f} s are left'
                    record.write('phase', status='not begun', seconds=0.0, why=why)
                break
            begin, before = time.monotonic(), len(read_results(out))
            status = process.run(left)
            spent += time.monotonic() - begin
            record.write('phase', status=status, seconds=round(time.monotonic() - begin, 1))
            # The tests continue after a test that crashed the process; other phases would start again.
            if status == 'done' or phase.name not in TESTS or len(read_results(out)) <= before + 1:
                break


def child(name: str, out: Path, args: argparse.Namespace) -> int:
    """Run one phase in a child process."""
    import faulthandler

    import evidence

    phases.preload(name)
    seconds = float(sys.stdin.readline() or 'nan')
    settings = Settings(time.time() + seconds, args.rehearse, args.images, args.data)
    faulthandler.dump_traceback_later(max(seconds - 3, 1))  # show where it hangs before it is killed
    record = Recorder(out, name, settings)
    try:
        work = evidence.evidence if name == 'evidence' else getattr(phases, name)
        work(record, settings)
    except Exception as error:
        import traceback

        traceback.print_exc()
        record.write('failed', what=name, error=f'{type(error).__name__}: {str(error)[:300]}')
        phases.leave_if_dead(settings.device)
        return 1
    return 0


def summarize(out: Path, rehearse: bool, begun: set[str]) -> int:
    """Write and print the claims; return 1 if anything failed or a rehearsal left a claim without a number."""
    records = read_results(out)
    judged = claims.judge(records, test_files())
    if rehearse:  # numbers of a toy model on a CPU are neither met nor missed
        judged = [
            claims.Claim(
                c.claim, c.target, c.measured, 'rehearsed' if c.verdict in ('met', 'missed', 'measured') else c.verdict
            )
            for c in judged
        ]
    statuses = [r for r in records if r['kind'] == 'phase']
    failures = [f'{r["phase"]}: {r["what"]}: {r["error"]}' for r in records if r['kind'] == 'failed']
    last = {r['test']: r for r in records if r['kind'] == 'test'}
    failures += [f'{name}: {r.get("message", "")}' for name, r in last.items() if r['outcome'] in ('failed', 'begun')]
    failures += [f'{r["phase"]}: {r["status"]}' for r in statuses if r['status'].startswith(('failed', 'hung'))]
    (out / 'claims.md').write_text(claims.table(judged) + '\n', encoding='utf-8')
    (out / 'claims.json').write_text(
        json.dumps(dict(claims=[asdict(c) for c in judged], phases=statuses, failures=failures), indent=1),
        encoding='utf-8',
    )
    print('\n' + claims.table(judged) + '\n')
    for status in statuses:
        print(f'{status["phase"]:12} {status["status"]:12} {status["seconds"]:6.1f} s  {status.get("why", "")}')
    print('\n'.join(f'FAILED {failure}' for failure in failures))
    missing = [c.claim for c in judged if c.verdict == claims.PENDING]
    if missing:
        print(f'pending: {"; ".join(missing)}')
    whole_rehearsal = rehearse and begun >= {phase.name for phase in PHASES if phase.name != 'ideas'}
    return 1 if failures or (whole_rehearsal and missing) else 0


def collect(folder: Path) -> None:
    """Add the rows and claims of a run to benchmarks/results once, and update the tables of the pages."""
    import measure
    import tables

    records = read_results(folder)
    if not records:
        raise SystemExit(f'{folder} holds no {phases.RESULTS}: give the folder that --out named')
    rows = [(r['table'], dict(r['row'])) for r in records if r['kind'] == 'row']
    turns = {
        row['variant']: max(other['turns'] for _, other in rows if other.get('variant') == row['variant'])
        for _, row in rows
        if 'variant' in row
    }
    facts = next((r for r in records if r['kind'] == 'environment'), None)
    if facts is None:
        raise SystemExit(f'{folder} does not say where it was measured: run it with --phase environment ...')
    known = {name: facts[name] for name in measure.FACTS} | {'commit': facts['commit'] or measure.git_commit()}
    final = [
        (table, {key: value for key, value in row.items() if key not in ('variant', 'turns')})
        for table, row in rows
        if row.get('turns') == turns.get(row.get('variant'))
    ]
    judged = claims.judge(records, test_files())
    final += [('gpu', known | asdict(claim)) for claim in judged if claim.verdict != claims.PENDING]
    added = 0
    for table, row in final:
        row['commit'] = row['commit'] or known['commit']
        cells = {name: measure.cell_of(value) for name, value in row.items()}
        if not any(all(old.get(name, '') == cell for name, cell in cells.items()) for old in measure.read_rows(table)):
            measure.add_row(table, row)
            added += 1
    for path, page in tables.stale(tables.pages()).items():
        measure.replace_file(path, page)
    print(f'{added} rows added to {measure.RESULTS.relative_to(ROOT)}; the pages are written again')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [phase.name for phase in (*PHASES, *EVIDENCE)]
    parser.add_argument('--budget', type=float, default=540, metavar='SECONDS', help='total time (default: 540)')
    parser.add_argument('--out', type=Path, help='new or empty folder for the results')
    parser.add_argument('--phase', nargs='+', choices=names, help='phases to run (default: all but the evidence)')
    parser.add_argument('--images', help='folder or .tar of JPEG files (default: photographs from installed packages)')
    parser.add_argument('--data', help='cifar10.npz for --evidence: arrays jpeg, offsets, label, split, classes')
    parser.add_argument('--evidence', action='store_true', help='train BootMAE and MAE on CIFAR-10 and compare them')
    parser.add_argument(
        '--rehearse', action='store_true', help='run everything on the CPU at toy size; rows are not kept'
    )
    parser.add_argument('--collect', type=Path, metavar='DIR', help='add the rows of an earlier run to this repository')
    parser.add_argument('--child', choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.collect is None and args.out is None:
        parser.error('--out is needed: a folder for the results')
    for name in ('images', 'data'):
        if path := getattr(args, name):
            if not Path(path).exists():
                parser.error(f'--{name} {path} does not exist')
            setattr(args, name, str(Path(path).resolve()))  # the phases run in another folder
    if args.evidence and not args.data and not args.rehearse:
        parser.error('--evidence needs --data cifar10.npz')
    return args


def chosen_phases(args: argparse.Namespace) -> list[Phase]:
    """Return the requested phases in order; a rehearsal has no time limits."""
    if args.phase:
        wanted = {'environment', *args.phase}  # says where the rows were measured
        found = [phase for phase in dict.fromkeys((*PHASES, *EVIDENCE)) if phase.name in wanted]
    else:
        found = list(EVIDENCE if args.evidence else (*PHASES, EVIDENCE[-1]) if args.rehearse else PHASES)
    return [Phase(phase.name, 0, phase.limit) for phase in found] if args.rehearse else found


def main() -> int:
    args = parse_args()
    if args.collect:
        collect(args.collect)
        return 0
    out = args.out.resolve()
    if args.child:
        return child(args.child, out, args)
    if (out / phases.RESULTS).exists():
        raise SystemExit(f'{out} holds results of an earlier run: give --out another folder')
    out.mkdir(parents=True, exist_ok=True)
    if args.rehearse:
        os.environ |= dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')

    def command(phase: Phase) -> list[str]:
        options = [
            *(['--rehearse'] if args.rehearse else []),
            *(['--images', args.images] if args.images else []),
            *(['--data', args.data] if args.data else []),
        ]
        return [sys.executable, str(Path(__file__).resolve()), '--child', phase.name, '--out', str(out), *options]

    chosen = chosen_phases(args)
    run_all(chosen, args.budget, out, command)
    return summarize(out, args.rehearse, {phase.name for phase in chosen})


if __name__ == '__main__':
    sys.exit(main())
