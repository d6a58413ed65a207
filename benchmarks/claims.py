"""Compare the claims of the project about GPUs with the records of `benchmarks/gpu.py`.

Targets are for one H100 (80 GB); docs/speed.md has the published speeds behind them.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PENDING = 'pending'  # verdict of a claim without measurements
GRAPHS = 'whole:reduce-overhead'


@dataclass(frozen=True)
class Claim:
    """A claim and its result. ``verdict`` is met, missed, failed, measured (no target) or pending."""

    claim: str
    target: str
    measured: str = ''
    verdict: str = PENDING


@dataclass(frozen=True)
class Number:
    """A number to measure. ``value`` finds it in the records and returns None if it is missing."""

    claim: str
    value: Callable[['Records'], float | None]
    unit: str = 'images/s'
    least: float | None = None
    most: float | None = None

    def judge(self, records: 'Records') -> Claim:
        target = ' '.join(
            [
                *([f'at least {self.least:,g}'] if self.least is not None else []),
                *([f'at most {self.most:,g}'] if self.most is not None else []),
            ]
        )
        value = self.value(records)
        if value is None:
            return Claim(self.claim, target)
        good = (self.least is None or value >= self.least) and (self.most is None or value <= self.most)
        verdict = 'measured' if not target else 'met' if good else 'missed'
        return Claim(
            self.claim, target, f'{value:,.4g} {self.unit}' if value < 1000 else f'{value:,.0f} {self.unit}', verdict
        )


class Records:
    """Records of a run, with lookups for the claims."""

    def __init__(self, records: Iterable[dict]):
        self.records = list(records)

    def rows(self, table: str) -> list[dict]:
        return [r['row'] for r in self.records if r['kind'] == 'row' and r['table'] == table]

    def step(self, variant: str, column: str = 'images_per_s') -> float | None:
        """Return a column of a step: of the turns of all variants if there are any, else of the first turn."""
        rows = [row for row in self.rows('step') if row.get('variant') == variant]
        return max(rows, key=lambda row: row['turns'])[column] if rows else None

    def reading(self, route: str, column: str = 'images_per_s') -> float | None:
        rows = [row for row in self.rows('reading') if row['route'] == route]
        return rows[-1][column] if rows else None

    def downstream(self, task: str, column: str) -> float | None:
        rows = [row for row in self.rows('downstream') if row['task'] == task]
        return rows[-1][column] if rows else None

    def number(self, name: str) -> float | None:
        found = [r['value'] for r in self.records if r['kind'] == 'number' and r['name'] == name]
        return found[-1] if found else None


def fastest(column: str = 'images_per_s') -> Callable[[Records], float | None]:
    """Return a column of the fastest compiled variant of BootMAE-B at batch 256."""

    def value(records: Records) -> float | None:
        names = [f'bootmae_vitb, 256, {compile}' for compile in ('blocks', 'whole', GRAPHS)]
        measured = [name for name in names if records.step(name) is not None]
        return records.step(max(measured, key=records.step), column) if measured else None

    return value


def of_step(variant: str, column: str = 'images_per_s') -> Callable[[Records], float | None]:
    return lambda records: records.step(variant, column)


def over(first: str, second: str) -> Callable[[Records], float | None]:
    """Return the speed ratio of two variants."""

    def value(records: Records) -> float | None:
        a, b = records.step(first), records.step(second)
        return None if a is None or b is None else a / b

    return value


NUMBERS = (
    Number('BootMAE-B, batch 256, the fastest compiled step', fastest(), least=3400),
    Number('memory of the fastest step', fastest('peak_gib'), 'GiB', most=13),
    Number('what the training loop adds to it', fastest('overhead_percent'), '%', most=3),
    Number('BootMAE-B, batch 512, compiled', of_step('bootmae_vitb, 512, whole'), least=3600),
    Number('BootMAE-B, batch 256, eager', of_step('bootmae_vitb, 256, none'), least=2400),
    Number('BootMAE-B, batch 256, blocks compiled', of_step('bootmae_vitb, 256, blocks')),
    Number('BootMAE-B, batch 256, whole step compiled', of_step('bootmae_vitb, 256, whole')),
    Number('the same with CUDA graphs', of_step(f'bootmae_vitb, 256, {GRAPHS}')),
    Number(
        'CUDA graphs over the plain compiled step',
        over(f'bootmae_vitb, 256, {GRAPHS}', 'bootmae_vitb, 256, whole'),
        'x',
    ),
    Number('MAE-B, batch 256, eager', of_step('mae_vitb, 256, none')),
    Number('MAE-B, batch 256, blocks compiled', of_step('mae_vitb, 256, blocks')),
    Number('BootMAE-L, batch 256, blocks compiled', of_step('bootmae_vitl, 256, blocks')),
    Number('memory of BootMAE-L, batch 256', of_step('bootmae_vitl, 256, blocks', 'peak_gib'), 'GiB', most=80),
    Number('BootMAE-L, batch 128, whole step compiled', of_step('bootmae_vitl, 128, whole')),
    Number('JPEG files decoded on the device', lambda r: r.reading('decoded on the device'), least=3400),
    Number(
        'training from JPEG files (gpu reader, 4 workers) over training on noise',
        lambda r: r.reading('training loop, gpu', 'share_of_noise'),
        'x',
        least=0.9,
    ),
    Number(
        'training from JPEG files (cpu reader, 4 workers) over training on noise',
        lambda r: r.reading('training loop, cpu', 'share_of_noise'),
        'x',
    ),
    *(
        Number(
            f'{name}: {what} over the stock configuration',
            lambda r, task=task, column=column: r.downstream(task, column),
            'x',
            **limit,
        )
        for task, name in dict(cls='fine-tuning', seg='UperNet', det='Mask R-CNN', vitdet='ViTDet').items()
        for what, column, limit in (('speed', 'ratio', dict(least=1.0)), ('memory', 'memory_ratio', dict(most=1.0)))
    ),
    Number('idle share of the GPU in the compiled step', lambda r: r.number('idle share of the compiled step'), '%'),
)


def of_tests(records: Iterable[dict], files: Iterable[Path]) -> Iterator[Claim]:
    """Make one claim per test file, named by the first line of its docstring: all of its tests pass."""
    last = {r['test']: r for r in records if r['kind'] == 'test'}
    for path in files:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or path.stem
        title = docstring.splitlines()[0].rstrip('.')
        outcomes = [r['outcome'] for name, r in last.items() if Path(name.partition('::')[0]).name == path.name]
        counts = {outcome: outcomes.count(outcome) for outcome in ('passed', 'failed', 'skipped', 'begun')}
        if not outcomes:
            yield Claim(title, 'all tests pass')
            continue
        text = ', '.join(f'{count} {outcome}' for outcome, count in counts.items() if count)
        bad = counts['failed'] + counts['begun']
        yield Claim(title, 'all tests pass', text, 'failed' if bad else 'met' if counts['passed'] else PENDING)


def judge(records: list[dict], files: Iterable[Path]) -> list[Claim]:
    """Return all claims in the order of the phases."""
    return [*of_tests(records, files), *(number.judge(Records(records)) for number in NUMBERS)]


def table(claims: Iterable[Claim]) -> str:
    """Format the claims as a Markdown table."""
    lines = ['| claim | target | measured | verdict |', '| --- | --- | --- | --- |']
    return '\n'.join(lines + [f'| {c.claim} | {c.target} | {c.measured} | {c.verdict} |' for c in claims])
