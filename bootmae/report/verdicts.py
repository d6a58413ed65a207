"""Verdicts in words, computed from the summaries by one stated rule."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..results.names import method_name, ordered_methods
from ..results.rows import ResultRow
from ..text import count_of
from .summary import Comparison, Difference, Spread, last_blocks, paired_difference

RULE = (
    'Two methods are compared over the seeds that both have. The difference is the mean of the paired differences. The '
    'margin is the largest of three numbers: twice the standard error of that mean, and the standard deviation of each '
    'of the two methods over all of its seeds. A difference beyond the margin reads “above” or “below”, within it '
    '“level”, which does not mean equal. It is “undecided” with fewer than two shared seeds, or if neither method '
    'varies over its seeds. This is a rule of thumb and not a significance test: two equally good methods, whose seeds '
    'vary alike and independently, read “above” or “below” in about 22 % of comparisons over two seeds, 13 % over '
    'three and 7 % over five. So of many comparisons some are by chance.'
)

FEW = 2  # with at most this many pretrained methods each has its own sentence
MINUS_MAE = '{} − MAE'  # heading of a difference
LOGISTIC = 'logistic regression'  # start of the protocol of frozen features whose rows have the task "linear"
TASK_NAMES = {
    'knn': 'k-NN',
    'linear': 'linear probe',
    'finetune': 'fine-tuning',
    'segmentation': 'segmentation',
    'detection': 'detection',
}  # in report order
DENSE_TASKS = ('segmentation', 'detection')  # their labels are counted in images


@dataclass(frozen=True)
class Judgment:
    """Outcome of comparing one method with another.

    Attributes:
        outcome: ``above``, ``level``, ``below`` or ``undecided``.
        difference: Paired difference in points; None without a shared seed.
        margin: Points that the difference must exceed; None with fewer than two shared seeds. If it is zero, the seeds
            are copies of one result and the outcome is undecided.
    """

    outcome: str
    difference: Difference | None
    margin: float | None


@dataclass(frozen=True)
class Verdict:
    """One comparison in words.

    Attributes:
        data: Data set.
        place: Task and labels, as a short title.
        learned: Outcome of each pretrained method against the untrained encoder.
        outcome: Outcome of BootMAE against MAE; None if one of them is missing.
        sentences: The verdict with numbers.
    """

    data: str
    place: str
    learned: dict[str, str]
    outcome: str | None
    sentences: tuple[str, ...]


def judge(first: Spread, second: Spread) -> Judgment:
    """Compare two methods by the rule."""
    difference = paired_difference(first, second)
    if difference is None or difference.standard_error is None:
        return Judgment('undecided', difference, None)
    margin = max(2 * difference.standard_error, first.std or 0.0, second.std or 0.0)
    if margin == 0:
        return Judgment('undecided', difference, margin)
    if abs(difference.mean) <= margin:
        return Judgment('level', difference, margin)
    return Judgment('above' if difference.mean > 0 else 'below', difference, margin)


def best_method(comparison: Comparison) -> str | None:
    """The method that is above all others by the rule; None if there is none."""
    for name, spread in comparison.methods.items():
        others = [other for key, other in comparison.methods.items() if key != name]
        if others and all(judge(spread, other).outcome == 'above' for other in others):
            return name
    return None


def method_order(rows_or_comparisons: Sequence[ResultRow] | Sequence[Comparison]) -> list[str]:
    """Methods in the given items: untrained, MAE, BootMAE, then others in order of appearance."""
    found: dict[str, None] = {}
    for item in rows_or_comparisons:
        found.update(dict.fromkeys(item.methods if isinstance(item, Comparison) else [item.method]))
    return ordered_methods(found)


def rivals(methods: Sequence[str]) -> list[str]:
    """Methods that are compared with MAE: all other pretrained ones; none if MAE is missing."""
    return [name for name in methods if name not in ('untrained', 'mae')] if 'mae' in methods else []


def against_mae(item: Comparison, method: str) -> Judgment | None:
    """Outcome of a method against MAE; None if one of them is missing or they share no seed."""
    if method not in item.methods or 'mae' not in item.methods:
        return None
    found = judge(item.methods[method], item.methods['mae'])
    return found if found.difference else None


def plain_task_name(item: Comparison | ResultRow) -> str:
    """Display name of the task.

    Stored rows use the task ``linear`` both for a linear probe, which is a layer trained by SGD or LARS, and for
    logistic regression on frozen features; the protocol tells them apart.
    """
    if item.task == 'linear' and item.protocol.startswith(LOGISTIC):
        return LOGISTIC
    return TASK_NAMES.get(item.task, item.task)


def task_name(item: Comparison | ResultRow) -> str:
    """Display name of the task, with the metric unless it is the accuracy."""
    name = plain_task_name(item)
    return name if item.metric == 'accuracy' else f'{name} {item.metric}'


def protocol_name(item: Comparison | ResultRow) -> str:
    """The protocol without what the task's name says already."""
    return item.protocol.removeprefix(f'{LOGISTIC}, ')


def labels_name(item: Comparison | ResultRow) -> str:
    """Number of labels, or its name, for display; empty for all images of segmentation and detection."""
    dense = item.task in DENSE_TASKS
    if not item.labels.isdecimal():
        return '' if dense and item.labels == 'all' else item.labels
    return count_of(int(item.labels), 'image') if dense else f'{item.labels} per class'


def labels_phrase(item: Comparison | ResultRow) -> str:
    """Number of labels with its noun, such as ``5 labels per class``, or its name."""
    dense = item.task in DENSE_TASKS
    if not item.labels.isdecimal():
        return 'all labels' if item.labels == 'all' and not dense else labels_name(item)
    number = int(item.labels)
    return count_of(number, 'labeled image') if dense else f'{count_of(number, "label")} per class'


def labels_amount(labels: str) -> float:
    """Number of labels as a sort key: ``all`` is infinite, other text is NaN."""
    return math.inf if labels == 'all' else float(labels) if labels.isdecimal() else math.nan


def in_order(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons sorted by data set, task and number of labels; data sets sort by their first task."""
    tasks = [*TASK_NAMES, *dict.fromkeys(item.task for item in comparisons if item.task not in TASK_NAMES)]
    first: dict[str, int] = {}
    for item in comparisons:
        first[item.data] = min(tasks.index(item.task), first.get(item.data, len(tasks)))
    data = sorted(first, key=first.__getitem__)

    def place(item: Comparison) -> tuple:
        amount = labels_amount(item.labels)
        return data.index(item.data), tasks.index(item.task), -1.0 if math.isnan(amount) else amount

    return sorted(comparisons, key=place)


def signed(value: float, digits: int = 2) -> str:
    """Number with its sign, using the minus character; zero has no sign."""
    text = f'{abs(value):.{digits}f}'
    if float(text) == 0:
        return text
    return ('+' if value > 0 else '−') + text


def spread_text(spread: Spread) -> str:
    """``mean ± std (n)`` in percent, where n is the number of seeds."""
    std = '' if spread.std is None else f' ± {spread.std:.1f}'
    return f'{spread.mean:.1f}{std} ({spread.n})'


def difference_text(difference: Difference | None) -> str:
    """``difference ± standard error (n)`` in points, where n is the number of shared seeds."""
    if difference is None:
        return '–'
    error = '' if difference.standard_error is None else f' ± {difference.standard_error:.2f}'
    return f'{signed(difference.mean)}{error} ({difference.n})'


def find_verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """A verdict for every comparison, but of several blocks for the last one only; several protocols are named."""
    comparisons = last_blocks(comparisons)
    places = Counter(_place(item) for item in comparisons)
    return [_verdict(item, with_protocol=places[_place(item)] > 1) for item in comparisons]


def _place(item: Comparison) -> tuple[str, str]:
    return item.data, ', '.join(filter(None, [task_name(item), labels_phrase(item)]))


def _verdict(item: Comparison, with_protocol: bool) -> Verdict:
    data, place = _place(item)
    if with_protocol:
        place = f'{place} ({item.protocol})'
    untrained = item.methods.get('untrained')
    pretrained = [name for name in method_order([item]) if name != 'untrained']
    learned = {name: judge(item.methods[name], untrained) for name in pretrained} if untrained else {}
    outcome, sentences = None, []
    if 'mae' in item.methods and 'bootmae' in item.methods:
        found = judge(item.methods['bootmae'], item.methods['mae'])
        outcome = found.outcome
        sentences.append(_pair_sentence(found))
    others = {name: against_mae(item, name) for name in rivals(method_order([item])) if name != 'bootmae'}
    if any(others.values()):
        sentences.append(_others_sentence({name: found for name, found in others.items() if found}))
    if untrained:
        sentences += _learned_sentences(item, learned)
    if item.fingerprints:
        sentences.append(
            f'These rows are of different test data (fingerprints {", ".join(item.fingerprints)}), which may be the '
            'reason of a difference.'
        )
    outcomes = {name: found.outcome for name, found in learned.items()}
    return Verdict(data, place, outcomes, outcome, tuple(sentences))


def _learned_sentences(item: Comparison, learned: dict[str, Judgment]) -> list[str]:
    untrained = item.methods['untrained']
    floor = f'the untrained encoder ({untrained.mean:.1f})'
    means = ', '.join(f'{method_name(name)} {item.methods[name].mean:.1f}' for name in learned)
    outcomes = [found.outcome for found in learned.values()]
    if len(learned) > 1 and set(outcomes) == {'above'}:
        who = 'Both' if len(learned) == 2 else 'All pretrained encoders'
        return [f'{who} are above {floor} by more than the spread: {means}.']
    if len(learned) > 1 and set(outcomes) == {'undecided'}:
        reasons = ' or '.join(dict.fromkeys(_why_undecided(found) for found in learned.values()))
        return [f'Against {floor} undecided, {reasons}: {means}.']
    if len(learned) > FEW:
        return [_learned_in_short(item, learned, floor)]
    return [_learned_sentence(name, item.methods[name], untrained, found) for name, found in learned.items()]


def _learned_in_short(item: Comparison, learned: dict[str, Judgment], floor: str) -> str:
    """Many methods against the untrained encoder, grouped by outcome."""
    parts = []
    for outcome in ('above', 'level', 'below', 'undecided'):
        means = [
            f'{method_name(name)} {item.methods[name].mean:.1f}'
            for name, found in learned.items()
            if found.outcome == outcome
        ]
        parts += [f'{outcome} {", ".join(means)}'] if means else []
    return f'Against {floor}: {"; ".join(parts)}.'


def _learned_sentence(name: str, spread: Spread, untrained: Spread, found: Judgment) -> str:
    who, numbers = method_name(name), f'{spread.mean:.1f} against {untrained.mean:.1f}'
    if found.outcome == 'undecided':
        return f'{who} against the untrained encoder is undecided: {numbers}, {_why_undecided(found)}.'
    words = {
        'above': 'is above the untrained encoder by more than the spread',
        'level': 'is not above the untrained encoder by more than the spread',
        'below': 'is below the untrained encoder by more than the spread',
    }
    return f'{who} {words[found.outcome]}: {numbers}.'


def _others_sentence(found: dict[str, Judgment]) -> str:
    """Further methods against MAE in one sentence."""
    parts = [
        f'{method_name(name)} {outcome.outcome}, {difference_text(outcome.difference)}'
        for name, outcome in found.items()
    ]
    return f'Others against MAE: {"; ".join(parts)}.'


def _pair_sentence(found: Judgment) -> str:
    if found.difference is None:
        return 'BootMAE against MAE is undecided: they share no seed.'
    if found.outcome == 'undecided':
        points = signed(found.difference.mean)
        return f'BootMAE against MAE is undecided: difference {points} points, {_why_undecided(found)}.'
    words = {'above': 'is above', 'level': 'is level with', 'below': 'is below'}[found.outcome]
    return (
        f'BootMAE {words} MAE: {signed(found.difference.mean)} ± {found.difference.standard_error:.2f} points '
        f'(standard error; {found.difference.n} shared seeds, margin {found.margin:.2f}).'
    )


def _why_undecided(found: Judgment) -> str:
    if found.difference is None:
        return 'no shared seed'
    return 'one shared seed only' if found.margin is None else 'all seeds gave the same number'


def headline(found: Sequence[Verdict]) -> tuple[str, str]:
    """One sentence on BootMAE against MAE over all comparisons, and its tone: good, mixed, bad or none."""
    outcomes = [verdict.outcome for verdict in found if verdict.outcome]
    if not outcomes:
        return 'BootMAE and MAE were not both measured, so this page does not compare them.', 'none'
    count, total = Counter(outcomes), len(outcomes)
    above, rest = count['above'], _counts(count, ('level', 'below', 'undecided'))
    if above == total:
        where = 'the only comparison' if total == 1 else f'all {total} comparisons'
        return f'BootMAE is above MAE in {where}.', 'good'
    if count['undecided'] == total:
        return (
            'Whether BootMAE is above MAE is undecided: this needs two seeds of both, with different results.',
            'none',
        )
    if above == 0:
        where = 'the only comparison' if total == 1 else f'any of the {total} comparisons'
        return f'BootMAE is not above MAE in {where}: {rest}.', 'bad'
    return (f'BootMAE is above MAE in {above} of {total} comparisons, and not above it in the others: {rest}.'), 'mixed'


def learned_headline(found: Sequence[Verdict]) -> str:
    """One sentence on the pretrained encoders against the untrained one; empty if nothing was measured."""
    count = Counter(outcome for verdict in found for outcome in verdict.learned.values())
    total = count.total()
    if not total:
        return ''
    if count['above'] == total:
        return 'Every pretrained encoder is above the untrained one by more than the spread.'
    if count['undecided'] == total:
        return 'Against the untrained encoder everything is undecided for lack of shared seeds or of a spread.'
    rest = _counts(count, ('level', 'below', 'undecided'))
    return (
        f'Pretrained encoders are above the untrained one by more than the spread in {count["above"]} '
        f'of {count_of(total, "case")}; the others: {rest}.'
    )


def _counts(count: Counter, names: Sequence[str]) -> str:
    return ', '.join(f'{name} in {count[name]}' for name in names if count[name])
