"""Suite files: what they mean, and what is refused before anything runs."""

import re
from pathlib import Path

import pytest
import yaml

from bootmae.results.provenance import REPOSITORY
from bootmae.suite import load_suite, make_cells
from bootmae.suite.cells import as_options, select, shell, suite_command
from bootmae.suite.collect import cell_config
from bootmae.suite.dry_run import plan_text
from bootmae.suite.job_state import definition
from bootmae.suite.spec import merge

PLAIN = yaml.safe_load("""
methods: [untrained, mae, bootmae]
seeds: [0, 4]
gpus: 2
pretrain: configs/pretrain/{method}_debug.py
tasks:
  knn: {config: "configs/cls/bootmae_debug_finetune.py", labels: [5, 16], data: digits}
  finetune: configs/cls/bootmae_debug_finetune.py
sizes:
  tiny: {seeds: [1], tasks: {knn: {labels: 16}}}
""")


def write(folder: Path, change: dict | None = None, **keys) -> Path:
    path = folder / 'toy.yaml'
    path.write_text(yaml.safe_dump(merge(PLAIN, change or {}) | keys, sort_keys=False))
    return path


def cells_of(folder: Path, size: str | None = None, **keys):
    return make_cells(load_suite(write(folder, **keys), size), folder)


def test_cells(tmp_path):
    cells = cells_of(tmp_path)
    names = [cell.name for cell in cells]
    assert names[:4] == ['pretrain/mae-0', 'pretrain/bootmae-0', 'pretrain/mae-4', 'pretrain/bootmae-4']
    assert names[4:7] == ['knn/untrained-0', 'knn/mae-0', 'knn/bootmae-0']
    assert len(names) == 4 + 2 * 6
    by_name = {cell.name: cell for cell in cells}
    assert by_name['knn/mae-4'].needs is by_name['pretrain/mae-4']
    assert by_name['knn/untrained-4'].needs is None
    assert by_name['pretrain/mae-0'].config == 'configs/pretrain/mae_debug.py'
    assert (by_name['knn/mae-0'].training.gpus, by_name['finetune/mae-0'].training.gpus) == (1, 2)
    assert [cell.name for cell in cells_of(tmp_path, 'tiny')][-1] == 'finetune/bootmae-1'
    assert cells_of(tmp_path, 'tiny')[2].task.labels == ('16',)


def test_a_task_may_have_fewer_seeds(tmp_path):
    knn = PLAIN['tasks']['knn'] | {'seeds': [4]}
    names = [cell.name for cell in cells_of(tmp_path, change={'tasks': {'knn': knn}})]
    assert [name for name in names if name.startswith('knn')] == ['knn/untrained-4', 'knn/mae-4', 'knn/bootmae-4']
    assert 'finetune/mae-0' in names


def test_commands(tmp_path):
    by_name = {
        cell.name: cell
        for cell in cells_of(
            tmp_path,
            change={
                'tasks': {
                    'finetune': {
                        'config': 'configs/cls/bootmae_debug_finetune.py',
                        'options': {'train_dataloader.dataset.subset_seed': '{seed}', 'model.backbone': {'depth': 2}},
                    }
                }
            },
        )
    }
    pretrain, finetune = by_name['pretrain/bootmae-4'], by_name['finetune/bootmae-4']
    run = tmp_path / 'pretrain' / 'bootmae-4' / 'run'
    assert shell(pretrain.commands(1)[0]) == (
        f'tools/train.py configs/pretrain/bootmae_debug.py --work-dir {run} --cfg-options randomness.seed=4'
    )
    assert shell(pretrain.commands(2)[0]).startswith(
        'tools/dist_train.sh configs/pretrain/bootmae_debug.py 2 --work-dir'
    )
    assert shell(pretrain.commands(16, 'gpu')[0]).startswith(
        'tools/slurm_train.sh gpu pretrain.bootmae-4 configs/pretrain/bootmae_debug.py 16 --work-dir'
    )
    run.mkdir(parents=True)
    (run / 'epoch_3.pth').write_bytes(b'')
    (run / 'last_checkpoint').write_text(str(run / 'epoch_3.pth'))
    assert '--resume' in pretrain.commands(1)[0]
    words = finetune.commands(1)[0]
    assert words[words.index('--init') + 1] == str(run / 'epoch_3.pth')
    assert words[-3:] == ['randomness.seed=4', 'train_dataloader.dataset.subset_seed=4', 'model.backbone.depth=2']
    knn = by_name['knn/untrained-4'].commands(1)[0]
    assert shell(knn).startswith(
        'tools/knn.py configs/cls/bootmae_debug_finetune.py --untrained 1 --seed 4 '
        '--method untrained --label measured --data-name digits --tasks knn --labels 5 16 --rows '
    )


def test_weights_from_elsewhere(tmp_path):
    other = {'weights': 'timm:vit_tiny_{seed}', 'configs': 'mae', 'source': 'momentum'}
    methods = {'bootmae': None, 'supervised': other}
    by_name = {cell.name: cell for cell in cells_of(tmp_path, methods=methods)}
    assert 'pretrain/supervised-0' not in by_name
    words = by_name['knn/supervised-4'].commands(1)[0]
    assert words[words.index('--init') + 1] == 'timm:vit_tiny_4'
    assert words[words.index('--source') + 1] == 'momentum'


def test_pretrainings_that_start_from_weights(tmp_path):
    """Their evaluations take the last checkpoint, by default its online encoder."""
    given = {'init': 'given_{seed}.pth', 'init_source': 'momentum', 'configs': 'mae'}
    methods = {'bootmae': None, 'continued': given}
    by_name = {cell.name: cell for cell in cells_of(tmp_path, methods=methods)}
    pretrain = by_name['pretrain/continued-4']
    words = pretrain.commands(1)[0]
    assert words[words.index('--init') :][:4] == ['--init', 'given_4.pth', '--source', 'momentum']
    assert '--init' not in by_name['pretrain/bootmae-4'].commands(1)[0]
    pretrain.run.mkdir(parents=True)
    (pretrain.run / 'last_checkpoint').write_text(str(pretrain.run / 'epoch_1.pth'))
    words = by_name['finetune/continued-4'].commands(1)[0]
    assert words[words.index('--init') + 1] == str(pretrain.run / 'epoch_1.pth')
    assert '--source' not in words


def test_other_given_weights_are_another_definition(tmp_path):
    definitions = set()
    for given in (None, 'a.pth', 'b.pth'):
        cell = cells_of(tmp_path, methods={'bootmae': {'init': given} if given else None})[0]
        definitions.add(definition(cell, cell_config(cell)))
    assert len(definitions) == 3


def test_missing_given_weights_are_found_by_a_dry_run(tmp_path):
    cells = cells_of(tmp_path, methods={'bootmae': {'init': str(tmp_path / 'none_{seed}.pth')}}, tasks=None, gpus=1)
    faults = plan_text(cells)[1].splitlines()
    assert faults == [
        f'pretrain/bootmae-{seed}: methods.bootmae.init: there is no {tmp_path}/none_{seed}.pth' for seed in (0, 4)
    ]


def test_options_of_a_method(tmp_path):
    """Only its pretrainings have them, over the pretraining's own, however deep those are written."""
    methods = {
        'mae': None,
        'mae-longer': {
            'configs': 'mae',
            'options': {'train_cfg': {'max_epochs': 330}, 'train_dataloader': {'dataset': {'subset_seed': '{seed}'}}},
        },
    }
    pretrain = {'config': 'configs/pretrain/{method}_debug.py', 'options': {'train_cfg.max_epochs': 2, 'a': [1]}}
    by_name = {cell.name: cell for cell in cells_of(tmp_path, methods=methods, pretrain=pretrain)}
    assert by_name['pretrain/mae-4'].options == {'randomness.seed': 4, 'train_cfg.max_epochs': 2, 'a': [1]}
    longer = by_name['pretrain/mae-longer-4']
    assert longer.config == 'configs/pretrain/mae_debug.py'
    assert longer.options == {
        'randomness.seed': 4,
        'train_cfg.max_epochs': 330,
        'a': [1],
        'train_dataloader.dataset.subset_seed': 4,
    }
    assert longer.commands(1)[0][-5:] == [
        '--cfg-options',
        'randomness.seed=4',
        'train_cfg.max_epochs=330',
        'a=[1]',
        'train_dataloader.dataset.subset_seed=4',
    ]
    assert by_name['finetune/mae-longer-4'].options == by_name['finetune/mae-4'].options == {'randomness.seed': 4}
    assert by_name['finetune/mae-longer-4'].needs is longer


@pytest.mark.parametrize(('blocks', 'words'), [('all', ['all']), ([1, 2], ['1', '2']), (None, None)])
def test_blocks(tmp_path, blocks, words):
    task = {'config': 'configs/cls/bootmae_debug_finetune.py', 'kind': 'frozen'}
    cell = cells_of(tmp_path, tasks={'frozen': task | ({'blocks': blocks} if blocks else {})})[4]
    command = cell.commands(1)[0]
    assert ('--blocks' in command) == bool(blocks)
    if words:
        place = command.index('--blocks') + 1
        assert command[place : place + len(words) + 1] == [*words, '--rows']


@pytest.mark.parametrize(
    ('patterns', 'names'),
    [
        (['knn/mae-0'], ['pretrain/mae-0', 'knn/mae-0']),
        (['*/untrained-4'], ['knn/untrained-4', 'finetune/untrained-4']),
        (['pretrain'], ['pretrain/mae-0', 'pretrain/bootmae-0', 'pretrain/mae-4', 'pretrain/bootmae-4']),
    ],
)
def test_only(tmp_path, patterns, names):
    assert [cell.name for cell in select(cells_of(tmp_path), patterns)] == names


def test_only_what_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"no cell is called 'linear'; there are pretrain/mae-0, "):
        select(cells_of(tmp_path), ['linear'])


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        (dict(method=['mae']), r'toy.yaml, method: unknown key; is methods meant\?'),
        (dict(methods=[]), 'methods: {} is invalid: Dictionary should have at least 1 item'),
        (dict(seeds=[0, 0]), r'seeds: \[0, 0\] repeats a seed'),
        (dict(seeds=[0, -1]), 'seeds.1: -1 is invalid: Input should be greater than or equal to 0'),
        (dict(gpus=0), 'gpus: 0 is invalid: Input should be greater than or equal to 1'),
        (dict(gpus=True), 'gpus: True is invalid: Input should be a valid integer'),
        (dict(label='mine'), "label: 'mine' is invalid: Input should be 'measured' or 'demo'"),
        (dict(methods={'untrained': {'weights': 'x.pth'}}), 'methods.untrained: an untrained encoder has no weights'),
        (
            dict(methods={'mae': {'source': 'teacher'}}),
            "methods.mae.source: 'teacher' is invalid: Input should be 'online', 'momentum', 'raw' or 'ema'",
        ),
        (dict(methods={'untrained': {'options': {'a': 1}}}), 'methods.untrained: options belong to the pretraining'),
        (dict(methods={'mine': {'weights': 'x.pth', 'options': {'a': 1}}}), 'methods.mine: options .* remove them'),
        (dict(methods={'mine': {'weights': 'x.pth', 'init': 'y.pth'}}), 'methods.mine: init .* use weights'),
        (dict(methods={'untrained': {'source': 'ema'}}), 'methods.untrained: .* source has no effect; remove it'),
        (
            dict(methods={'mae': {'init_source': 'momentum'}}),
            'toy.yaml, methods.mae: init_source chooses the encoder of the file init, which is missing; add init, or',
        ),
        (
            dict(methods={'mine': {'weights': 'x.pth', 'init_source': 'momentum'}}),
            'methods.mine: init_source .*; use source for weights',
        ),
        (dict(methods={'mae': {'options': [1]}}), r'methods.mae.options: \[1\] is invalid: .* valid dictionary'),
        (dict(methods={'a/b': {}}), 'methods.a/b: a name must not contain a slash'),
        (dict(pretrain=None), 'pretrain: is missing'),
        (dict(pretrain={'config': 3}), 'pretrain.config: 3 is invalid: Input should be a valid string'),
        (dict(pretrain={'config': 'x.py', 'gpu': 2}), r'pretrain.gpu: unknown key; is gpus meant\?'),
        (dict(tasks={'knn': {'labels': 5}}), 'tasks.knn.config: Field required'),
        (dict(tasks={'probe': 'x.py'}), "tasks.probe.kind: 'probe' is invalid: Input should be 'knn', 'frozen'"),
        (
            dict(tasks={'knn': {'config': 'x.py', 'seeds': [4, 5]}}),
            'tasks.knn.seeds: 5 is none of the seeds of the suite, 0, 4',
        ),
        (dict(tasks={'knn': {'config': 'x.py', True: 'photos'}}), 'tasks.knn.True: unknown key; known are config'),
        (dict(tasks={'knn': {'config': 'x.py', 'name': 'k'}}), 'tasks.knn.name: unknown key; known are config'),
        (
            dict(tasks={'knn': {'config': 'x.py', 'from': 'photos'}}),
            "tasks.knn.from: 'photos' is none of the pretrainings",
        ),
        (dict(tasks={'knn': {'config': 'x.py', 'tta': True}}), 'tasks.knn: tta is for segmentation'),
        (dict(tasks={'knn': {'config': 'x.py', 'test': True}}), 'tasks.knn: test is for trained models'),
        (dict(tasks={'linear': {'config': 'x.py', 'blocks': 'all'}}), 'tasks.linear: blocks is for knn and frozen'),
        (
            dict(tasks={'knn': {'config': 'x.py', 'blocks': [0]}}),
            r"tasks.knn.blocks: \['0'\] is neither all nor a list",
        ),
        (dict(tasks={'linear': {'config': 'x.py', 'labels': [1, 2]}}), 'tasks.linear: several values of labels'),
        (
            dict(tasks={'pretrain2': {'config': 'x.py', 'kind': 'knn'}}),
            "tasks.pretrain2: the name of a task must not start with 'pretrain'",
        ),
    ],
)
def test_wrong_files(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        load_suite(write(tmp_path, **keys))


def test_missing_things(tmp_path):
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match='no suite file .*none.yaml: there are .*toy.yaml'):
        load_suite(tmp_path / 'none.yaml')
    with pytest.raises(
        FileNotFoundError,
        match='pretrain.config: there is no configs/pretrain/simmim_debug.py, which method simmim needs',
    ):
        load_suite(write(tmp_path, methods=['simmim']))
    with pytest.raises(ValueError, match="there is no size 'large'; there are tiny"):
        load_suite(write(tmp_path), 'large')
    (tmp_path / 'toy.yaml').write_text('title: [')
    with pytest.raises(ValueError, match='toy.yaml is not YAML'):
        load_suite(tmp_path / 'toy.yaml')


def test_options_as_a_command_line():
    pairs = ['a=None', "b=[1, 'x']", 'c.d=0.5', "e='/my, images'", "f='7'"]
    values = {'a': None, 'b': [1, 'x'], 'c': {'d': 0.5}, 'e': '/my, images', 'f': '7'}
    assert as_options(values) == ['--cfg-options', *pairs]
    assert as_options({'images': ['/my images', '007'], 'a': 1}) == [
        '--data',
        '/my images',
        '007',
        '--cfg-options',
        'a=1',
    ]
    assert as_options({}) == []
    with pytest.raises(ValueError, match='option e: .* cannot be given on a command line'):
        as_options({'e': "','" + '","'})


def test_what_is_no_suite_file_is_named(tmp_path):
    for text, found in (
        ('', 'empty'),
        ('# nothing\n', 'empty'),
        ('pretrain', "only 'pretrain'"),
        ('[1]', r'only \[1\]'),
    ):
        (tmp_path / 'toy.yaml').write_text(text)
        for size in (None, 'tiny'):
            with pytest.raises(ValueError, match=f'toy.yaml is no suite file, it is {found}: it needs methods'):
                load_suite(tmp_path / 'toy.yaml', size)
    (tmp_path / 'toy.yaml').write_bytes('title: Größe'.encode('latin-1'))
    with pytest.raises(ValueError, match='toy.yaml is not YAML in UTF-8'):
        load_suite(tmp_path / 'toy.yaml')


def test_images_for_all_pretrainings(tmp_path):
    suite = load_suite(write(tmp_path), None, ['/my images', '/more'])
    cells = {cell.name: cell for cell in make_cells(suite, tmp_path)}
    words = cells['pretrain/mae-0'].commands(1)[0]
    assert words[words.index('--data') + 1 :][:2] == ['/my images', '/more']
    assert '--data' not in cells['finetune/untrained-0'].commands(1)[0]
    assert suite_command(cells['pretrain/mae-0']).split(' --out')[0].endswith("toy.yaml --data '/my images' /more")
    with pytest.raises(ValueError, match='toy.yaml pretrains nothing, so --data has no effect'):
        load_suite(write(tmp_path, methods=['untrained'], pretrain=None), None, ['/my images'])


@pytest.mark.parametrize(
    ('methods', 'message'),
    [
        ({'untrained': None, 'mine': {'configs': 'mae', 'weights': 'x.pth'}}, 'toy.yaml pretrains nothing, so --data'),
        (
            {'mae': None, 'other': {'configs': 'mae', 'options': {'images': 'photos'}}},
            "toy.yaml, methods.other.options.images: 'photos' overrides --data for this method: remove it, or leave",
        ),
    ],
)
def test_images_that_a_method_would_not_read(tmp_path, methods, message):
    path = write(tmp_path, methods=methods)
    assert load_suite(path)
    with pytest.raises(ValueError, match=message):
        load_suite(path, None, ['/my images'])


@pytest.mark.parametrize('path', sorted((REPOSITORY / 'suites').glob('*.yaml')), ids=lambda path: path.name)
def test_the_suites_of_this_repository(path):
    content = yaml.safe_load(path.read_text())
    for size in (None, *(content.get('sizes') or ())):
        assert make_cells(load_suite(path, size), Path('x'))


def test_pages_and_configs_name_cells_that_the_demo_has():
    """``work_dirs/demo/pretrain-digits/bootmae-0``, of the whole demo or the small one."""
    cells = {
        folder: {cell.name for cell in make_cells(load_suite(REPOSITORY / 'suites/demo.yaml', size), Path(folder))}
        for folder, size in (('demo', None), ('demo_small', 'small'))
    }
    files = [*REPOSITORY.glob('docs/*.md'), *REPOSITORY.glob('*.md'), *REPOSITORY.glob('configs/*/*.py')]
    files += REPOSITORY.glob('tools/*.py')
    named = {
        (file.name, *found)
        for file in files
        for found in re.findall(r'work_dirs/(demo|demo_small)/([\w-]+/\w+-\d+)', file.read_text(encoding='utf-8'))
    }
    assert {'visualize.md', 'suite.md'} <= {file for file, _, _ in named}
    assert not [name for name in named if name[2] not in cells[name[1]]]
