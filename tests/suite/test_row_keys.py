"""Rows of a suite: every task has rows of its own, under the name and label that the suite file gives now."""

from pathlib import Path

import pytest
import yaml
from test_spec import cells_of

from bootmae.evaluation.rows import labels_of, trained_columns
from bootmae.results.provenance import REPOSITORY
from bootmae.results.rows import ResultRow, read_rows, write_rows
from bootmae.suite import command, load_suite, make_cells
from bootmae.suite.cells import Cell
from bootmae.suite.collect import cell_config, data_name, repeated_rows, row_keys, write_results
from bootmae.suite.dry_run import plan_text
from bootmae.suite.job_state import begin_attempt, changed_cells, definition, is_same, read_job_state

PRETRAIN, FINETUNE = 'configs/pretrain/{method}_debug.py', 'configs/cls/bootmae_debug_finetune.py'
SEGMENT = 'configs/seg/upernet_debug.py'
TWO = {'short': {'config': PRETRAIN, 'options': {'train_cfg.max_epochs': 1}}, 'long': PRETRAIN}


def evaluations(folder: Path, **keys) -> list[Cell]:
    keys = {'methods': ['bootmae'], 'seeds': [0], 'gpus': 1, 'pretrain': PRETRAIN} | keys
    return [cell for cell in cells_of(folder, **keys) if cell.task]


def fault_of(cells: list[Cell]) -> str:
    return repeated_rows([(cell, row_keys(cell, cell_config(cell))) for cell in cells])


@pytest.mark.parametrize(
    ('tasks', 'lost'),
    [
        (
            {'one': {'kind': 'finetune'}, 'two': {'kind': 'finetune', 'options': {'optim_wrapper.optimizer.lr': 1e-4}}},
            'digits, finetune, 16, all weights trained, 2 epochs, 32 px',
        ),
        ({'one': {'kind': 'knn'}, 'two': {'kind': 'frozen', 'blocks': 'all'}}, 'digits, knn, 16, k=20, block 2 of 2'),
        ({'one': {'kind': 'frozen', 'labels': [2, 5]}, 'two': {'kind': 'knn', 'labels': 5}}, 'digits, knn, 5, k=20'),
    ],
)
def test_two_tasks_with_the_same_rows_are_refused(tmp_path, tasks, lost):
    tasks = {name: {'config': FINETUNE} | task for name, task in tasks.items()}
    cells = evaluations(tmp_path, tasks=tasks)
    message = f'one/bootmae-0 and two/bootmae-0 would write the same row ({lost}'
    assert fault_of(cells).startswith(message)
    assert message in plan_text(cells)[1], 'also by --dry-run'
    with pytest.raises(ValueError, match=r'toy.yaml: one/bootmae-0 and .*: give tasks.two a name of its own with "da'):
        command.define([], [*(cell.needs for cell in cells), *cells])
    tasks['two']['data'] = 'other digits'
    assert fault_of(evaluations(tmp_path, tasks=tasks)) == ''


def test_other_rows_are_no_repetition(tmp_path):
    base = {'config': FINETUNE, 'kind': 'finetune'}
    tasks = {
        'finetune': base,
        'longer': base | {'options': {'train_cfg.max_epochs': 3}},
        'fewer': base | {'options': {'train_dataloader.dataset.labels_per_class': 5}},
        'linear': base | {'kind': 'linear'},
        'frozen': base | {'kind': 'frozen', 'blocks': [2]},
        'first-block': base | {'kind': 'knn', 'blocks': [1]},
        'segmentation': {'config': SEGMENT, 'tta': True},
    }
    cells = evaluations(tmp_path, tasks=tasks, methods=['mae', 'bootmae'], seeds=[0, 1])
    assert fault_of(cells) == ''
    seeds = {'first': base | {'seeds': [0]}, 'second': base | {'seeds': [1]}}
    assert fault_of(evaluations(tmp_path, tasks=seeds, seeds=[0, 1])) == ''
    assert row_keys(cells[-1], cell_config(cells[-1])) == [
        ('digit scenes', 'segmentation', 'all', f'UperNet, 220 iterations, images as they are, whole, {how}')
        for how in ('single scale', 'multi-scale and flip')
    ]


def test_keys_of_frozen_features_need_a_classifier(tmp_path):
    def keys_of(config: str, **options) -> list:
        (cell,) = evaluations(tmp_path, tasks={'knn': {'config': config, 'kind': 'knn', 'options': options}})
        return row_keys(cell, cell_config(cell))

    with pytest.raises(ValueError, match='has the model BootMAE, but k-NN needs labeled images and an ImageClassifier'):
        keys_of('configs/pretrain/bootmae_debug.py')
    own = tmp_path / 'own.py'
    own.write_text(f"_base_ = '{REPOSITORY / FINETUNE}'\nmodel = dict(backbone=dict(_delete_=True, type='PlainViT'))\n")
    ((data, kind, labels, protocol),) = keys_of(str(own))
    assert (data, kind, labels, protocol) == ('digits', 'knn', '16', 'k=20, block 12 of 12'), "the default of 'arch'"


@pytest.mark.slow
@pytest.mark.parametrize('path', sorted((REPOSITORY / 'suites').glob('*.yaml')), ids=lambda path: path.stem)
def test_no_suite_of_the_repository_repeats_a_row(path):
    for size in (None, *(yaml.safe_load(path.read_text()).get('sizes') or {})):
        cells = make_cells(load_suite(path, size), Path('none'))
        method, seed = cells[-1].method, cells[-1].seed
        assert fault_of([cell for cell in cells if cell.task and cell.method is method and cell.seed == seed]) == ''


def test_tasks_of_several_pretrainings_name_theirs(tmp_path):
    """Only where a kind of task judges more than one, and never against a given name."""
    tasks = {
        'seg-short': {'kind': 'segmentation', 'from': 'short', 'config': SEGMENT},
        'seg-long': {'kind': 'segmentation', 'from': 'long', 'config': SEGMENT},
        'finetune': {'from': 'long', 'config': FINETUNE},
        'knn-short': {'kind': 'knn', 'from': 'short', 'config': FINETUNE, 'data': 'zeros'},
        'knn-long': {'kind': 'knn', 'from': 'long', 'config': FINETUNE},
    }
    cells = evaluations(tmp_path, pretrain=TWO, tasks=tasks)
    assert [data_name(cell) for cell in cells] == [
        'digit scenes (pretrained on short)',
        'digit scenes (pretrained on long)',
        'digits',
        'zeros',
        'digits (pretrained on long)',
    ]
    assert fault_of(cells) == ''
    assert [cell.task.data for cell in evaluations(tmp_path, tasks={'knn': {'config': FINETUNE}})] == [None]


def test_rows_get_the_names_that_the_suite_file_gives_now(tmp_path):
    """Data name and label belong to no definition, and each cell has its row in the end."""
    tasks = {
        name: {'kind': 'finetune', 'from': name, 'config': FINETUNE, 'data': data}
        for name, data in (('short', None), ('long', 'ImageNet-1k'))
    }
    model = 'configs/pretrain/bootmae_vitb.py'
    for value, cell in enumerate(evaluations(tmp_path, pretrain=TWO, tasks=tasks)):
        row = ResultRow('digits', 'bootmae', 'finetune', '16', 'accuracy', value, 0, config=model, label='demo')
        write_rows(cell.rows_file, [row])
    for label, labels in (('demo', ('demo', 'demo')), ('measured', ('measured', 'reproduced'))):
        cells = evaluations(tmp_path, pretrain=TWO, tasks=tasks, label=label)
        found = write_results(cells, tmp_path / 'results.csv')
        assert found == read_rows(tmp_path / 'results.csv')
        assert [(row.data, row.value) for row in found] == [('digits (pretrained on short)', 0), ('ImageNet-1k', 1)]
        assert tuple(row.label for row in found) == labels


@pytest.mark.parametrize(
    ('given', 'labels'), [(None, '16'), ('16', '16'), ('1 %', '1 %'), ('all', ''), ('5', '')], ids=str
)
@pytest.mark.parametrize('kind', ['finetune', 'knn'])
def test_labels_are_those_of_the_config(tmp_path, kind, given, labels):
    """A name may be anything, and k-NN may use fewer; other numbers would be wrong."""
    task = {'config': FINETUNE, 'kind': kind} | ({'labels': given} if given else {})
    (cell,) = evaluations(tmp_path, tasks={'t': task})
    if labels or (kind, given) == ('knn', '5'):
        assert [key[2] for key in row_keys(cell, cell_config(cell))] == [labels or given]
        return
    with pytest.raises(
        ValueError, match=rf'toy.yaml, tasks.t: labels={given}, but .*labels_per_class of .* is 16: leave'
    ):
        row_keys(cell, cell_config(cell))


def test_labels_of_a_training(tmp_path):
    """Of tools/train.py, with and without a suite."""
    (cell,) = evaluations(tmp_path, tasks={'finetune': FINETUNE})
    cfg = cell_config(cell)
    assert trained_columns(cfg, ['task=finetune'])['labels'] == '16'
    assert trained_columns(cfg, ['task=finetune', 'labels=few'])['labels'] == 'few'
    with pytest.raises(ValueError, match='labels=all, but .* leave labels out, or set labels_per_class=None'):
        trained_columns(cfg, ['task=finetune', 'labels=all'])
    with pytest.raises(ValueError, match='labels=5, but .* leave labels out, or set labels_per_class=5'):
        trained_columns(cfg, ['task=finetune', 'labels=5'])
    assert not any(word.startswith('labels=') for word in cell._row_options())
    cfg.train_dataloader.dataset.labels_per_class = None
    assert (labels_of(cfg), labels_of(cfg, '1 %')) == ('all', '1 %')
    with pytest.raises(ValueError, match='labels=500, but .* trains on all images: leave labels out, or set .*=500'):
        labels_of(cfg, '500')
    cfg.train_dataloader.dataset.limit = 5000
    assert labels_of(cfg, '500') == '500'


def test_a_name_of_data_has_no_slash(tmp_path):
    """Curves and per-class results are named data/method/seed."""
    with pytest.raises(ValueError, match=r'tasks.knn: .* neither it nor data may contain a slash'):
        evaluations(tmp_path, tasks={'knn': {'config': FINETUNE, 'data': 'my/digits'}})


def test_another_draw_of_the_labels_is_another_definition(tmp_path):
    """Cells that ran when the draw was not part of it stay done."""

    def cell(seed: int | str) -> Cell:
        options = {'train_dataloader.dataset.subset_seed': seed}
        return evaluations(tmp_path, seeds=[3], tasks={'finetune': {'config': FINETUNE, 'options': options}})[0]

    texts = {seed: definition(cell(seed), cell_config(cell(seed))) for seed in (0, 3, '{seed}')}
    assert texts[3] == texts['{seed}']
    assert texts[0].partition(' ')[0] == texts[3].partition(' ')[0]
    assert [text.partition(' ')[2] for text in texts.values()] == ['subset_seed=0', 'subset_seed=3', 'subset_seed=3']
    stored = cell(0)
    write_rows(stored.rows_file, [])
    job = read_job_state(stored)
    for job.definition, changed in ((texts[0], True), (texts[3], False), (texts[0].partition(' ')[0], False)):
        begin_attempt(stored, job)
        assert bool(changed_cells([stored], {stored.name: texts[3]})) == changed


def test_other_content_of_given_weights_is_another_definition(tmp_path):
    """For what evaluates them, and for a pretraining that starts from them."""
    path = tmp_path / 'weights-3.pth'

    def definitions(content: bytes | None) -> dict[str, str]:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        weights = str(tmp_path / 'weights-{seed}.pth')
        methods = {'given': {'weights': weights, 'configs': 'mae'}, 'mae': {'init': weights}, 'bootmae': None}
        cells = cells_of(tmp_path, methods=methods, seeds=[3], tasks={'knn': {'config': FINETUNE}})
        return command.define([], cells)[0]

    large = bytes(range(256)) * 50_000
    one, same, other, none = map(definitions, (large, large, large[:-9] + bytes(9), None))
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {'knn/given-3', 'pretrain/mae-3'}
    assert {name: text.partition(' weights=')[0] for name, text in one.items()} == none
    assert all(is_same(one[name], none[name]) for name in one), 'a file that is gone changes nothing'
    assert not is_same(one['knn/given-3'], other['knn/given-3'])
