"""What a suite would do, as a plan and as Slurm jobs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_spec import cells_of

from bootmae.checkpoints.write import write_checkpoint
from bootmae.config.load import load_config
from bootmae.evaluation.rows import config_hash
from bootmae.results.provenance import REPOSITORY
from bootmae.results.rows import ResultRow
from bootmae.suite import command, load_suite, make_cells
from bootmae.suite.cells import Cell
from bootmae.suite.collect import cell_config
from bootmae.suite.dry_run import detection_size, estimate, fault_of_weights, hours_text, plan_text
from bootmae.suite.job_state import definition
from bootmae.suite.slurm import script

PAPER = REPOSITORY / 'suites' / 'paper_vitb.yaml'


def test_estimate_of_the_papers_pretraining():
    """Images and arithmetic are those of tools/plan.py: 1,023,639,552 images of 89.1 GFLOP."""
    cell = next(cell for cell in make_cells(load_suite(PAPER), Path('x')) if cell.name == 'pretrain/bootmae-0')
    found = estimate(cell, {}, gpus=8)
    assert (found.images, found.batch) == (1_023_639_552, '8 GPUs x 512 x accumulation 1 = 4096')
    assert found.gflop == pytest.approx(89.1, abs=0.1)
    assert found.gpu_hours(120) == pytest.approx(1_023_639_552 * found.gflop / 120e3 / 3600)
    assert found.gpu_hours(240) == pytest.approx(found.gpu_hours(120) / 2)
    assert (hours_text(None), hours_text(0.01), hours_text(1234.56)) == ('?', '< 0.1', '1,234.6')


def test_size_of_photographs_in_detection():
    cfg = load_config('configs/det/bootmae_vitb_maskrcnn_1x.py')
    assert detection_size(cfg) == (800, 1088)


def test_a_plan_for_the_cpu_is_one_of_a_single_process(tmp_path):
    pretrain = {'config': 'configs/pretrain/mae_debug.py', 'options': {'train_dataloader.batch_size': 16}}
    cells = cells_of(tmp_path, methods=['mae'], seeds=[0], tasks=None, pretrain=pretrain)
    for gpus, batch in ((0, '1 GPU x 16'), (1, '1 GPU x 16'), (2, '2 GPUs x 16'), (None, '2 GPUs x 16')):
        assert batch in plan_text(cells, gpus=gpus)[0]


@pytest.mark.slow
def test_plan(tmp_path):
    cells = [cell for cell in cells_of(tmp_path, seeds=[0]) if 'untrained' not in cell.name]
    text, faults = plan_text(cells)
    assert 'finetune/bootmae-0: 2 GPUs x 32' in faults, 'and the other cells are planned all the same'
    text, faults = plan_text(cells, gpus=1)
    assert faults == ''
    lines = text.splitlines()
    assert lines[0].split() == ['cell', 'state', 'config', 'images', 'batch', 'GPU-hours']
    assert lines[1].split()[:3] == ['pretrain/mae-0', 'waiting', 'configs/pretrain/mae_debug.py']
    assert lines[len(cells) + 1].startswith('6 cells, about 0 GPU-hours left')


def test_jobs_wait_for_their_pretraining(tmp_path):
    """The script runs, with a stand-in for sbatch that counts its jobs."""
    sbatch = tmp_path / 'bin' / 'sbatch'
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/bash\necho "$@" >> "$JOBS"\nwc -l < "$JOBS"\n')
    sbatch.chmod(0o755)
    cells, jobs = cells_of(tmp_path, seeds=[0]), tmp_path / 'jobs.txt'
    text = script(cells, ['toy.yaml', '--out', str(tmp_path)], 'gpu', tmp_path)
    env = os.environ | dict(PATH=f'{sbatch.parent}:{os.environ["PATH"]}', JOBS=str(jobs))
    subprocess.run(['bash', '-c', text], env=env, check=True, capture_output=True)
    lines = jobs.read_text().splitlines()
    assert len(lines) == len(cells) + 1
    by_name = {cell.name: number for number, cell in enumerate(cells, 1)}
    for cell, line in zip(cells, lines, strict=False):
        assert f'--only {cell.name} --in-slurm gpu' in line
        assert f'--gres=gpu:{cell.training.gpus}' in line
        assert ('--dependency' in line) == ('--kill-on-invalid-dep=yes' in line) == (cell.needs is not None)
        if cell.needs:
            assert f'--dependency=afterok:{by_name[cell.needs.name]} ' in line
    assert f'--dependency=afterany:{":".join(map(str, by_name.values()))} ' in lines[-1]
    assert '--report-only' in lines[-1]


def test_gpus_that_do_not_fill_their_nodes_are_refused(tmp_path):
    cells = cells_of(tmp_path, seeds=[0], gpus=12)[:1]
    with pytest.raises(
        ValueError, match=r'toy.yaml, gpus of pretrain: 12 GPUs do not fill nodes of 8: give at most 8 '
    ):
        script(cells, ['toy.yaml'], 'gpu', tmp_path)
    text = script(cells_of(tmp_path, seeds=[0], gpus=16)[:1], ['toy.yaml'], 'gpu', tmp_path)
    assert '--nodes=2 --ntasks-per-node=1 --gres=gpu:8 ' in text


def test_nothing_is_left_to_submit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, 'state_of', lambda cell: 'done')
    assert command.to_slurm(None, cells_of(tmp_path, seeds=[0]), tmp_path) == 0
    assert capsys.readouterr().out.startswith('# nothing is left to submit: all cells are done')


def test_a_definition_knows_its_config_but_not_its_place(tmp_path):
    one, other = (cells_of(tmp_path, seeds=[seed])[0] for seed in (0, 1))
    cfg = [load_config(cell.config, cell.options) for cell in (one, other)]
    assert config_hash(cfg[0]) == config_hash(cfg[1]), 'seeds are left out'
    assert definition(one, cfg[0]) != definition(other, cfg[1])
    assert definition(one, cfg[0]) != definition(one, cfg[0], 'another pretraining')
    longer = load_config(one.config, one.options | {'train_cfg.max_epochs': 3, 'work_dir': 'elsewhere'})
    assert config_hash(longer) != config_hash(cfg[0])
    longer.train_cfg.max_epochs = cfg[0].train_cfg.max_epochs
    assert config_hash(longer) == config_hash(cfg[0])


def test_a_definition_and_an_estimate_know_options_of_a_method(tmp_path):
    methods = {'mae': None, 'mae-longer': {'configs': 'mae', 'options': {'train_cfg.max_epochs': 7}}}
    cells = cells_of(tmp_path, methods=methods, seeds=[0])[:2]
    first, longer = (definition(cell, cell_config(cell)) for cell in cells)
    assert first != longer
    known: dict = {}
    images = [estimate(cell, known, gpus=1).images for cell in cells]
    assert images[1] == images[0] / cell_config(cells[0]).train_cfg.max_epochs * 7
    text = script(cells, ['toy.yaml'], 'gpu', tmp_path)
    assert '--only pretrain/mae-longer-0' in text


def test_a_definition_knows_its_blocks(tmp_path):
    """Features of other blocks are other results, and a block that is not there is refused before anything runs."""

    def cell(blocks):
        task = {'config': 'configs/cls/bootmae_debug_finetune.py', **({'blocks': blocks} if blocks else {})}
        return cells_of(tmp_path, tasks={'knn': task}, seeds=[0])[2]

    found = [definition(cell(blocks), cell_config(cell(blocks))) for blocks in (None, [1], [2], [1, 2], 'all')]
    assert len(set(found)) == 4
    assert found[3] == found[4]
    assert [cell_config(cell(blocks)).model.backbone.get('depth') for blocks in ([1], 'all')] == [1, 2]
    with pytest.raises(ValueError, match=r'toy.yaml, tasks.knn: --blocks 3: the encoder has the blocks 1\.\.2; give'):
        cell_config(cell([2, 3]))


def test_weights_from_a_folder(tmp_path):
    """The newest checkpoint of a run: another one is another definition."""

    def write(epoch: int) -> str:
        (tmp_path / 'x-0').mkdir(exist_ok=True)
        meta = dict(epoch=epoch, iter=epoch, seed=0)
        write_checkpoint(path := tmp_path / f'x-0/epoch_{epoch}.pth', dict(meta=meta, state_dict={}, optimizer={}))
        return str(path)

    def knn(weights: str) -> Cell:
        methods = {'mae': {'weights': f'{tmp_path}/{weights}'}}
        return next(cell for cell in cells_of(tmp_path, methods=methods, seeds=[0]) if cell.training.name == 'knn')

    first, cell = write(1), knn('x-{seed}')
    assert cell.weights == first
    assert cell.commands(0)[0][3:5] == ['--init', first]
    before, second = definition(cell, cell_config(cell)), write(2)
    assert cell.weights == second
    assert definition(cell, cell_config(cell)) != before
    (tmp_path / 'none').mkdir()
    assert fault_of_weights(knn('none')) == f'{tmp_path}/none is a folder without a checkpoint'
    assert fault_of_weights(knn('x-1')) == f'there is no {tmp_path}/x-1'
    for seed in (3, 4):
        shutil.copytree(tmp_path / 'x-0', tmp_path / f'suite/pretrain/mae-{seed}/run')
    assert fault_of_weights(knn('suite')).startswith(f'{tmp_path}/suite holds 2 runs, pretrain/{{mae-3,mae-4}}: ')


def test_the_tables_come_before_the_report(tmp_path, capsys, monkeypatch):
    """They are all of the result if the report fails."""
    row = ResultRow('digits', 'bootmae', 'knn', '16', 'accuracy', 81.25, 0)
    monkeypatch.setattr(command, 'write_results', lambda *_: [row])
    monkeypatch.setattr(command, 'write_report', lambda *_: 1 / 0)
    monkeypatch.setattr(command, 'state_of', lambda cell: 'done')
    with pytest.raises(ZeroDivisionError):
        command.finish(cells_of(tmp_path, seeds=[0]), tmp_path)
    out = capsys.readouterr().out
    assert '81.2 (1)' in out
    assert out.splitlines()[-1].startswith('rows: ')


def test_the_end_names_the_encoders(tmp_path, capsys, monkeypatch):
    cells = cells_of(tmp_path, seeds=[0, 1])
    monkeypatch.setattr(command, 'write_results', lambda *_: [])
    monkeypatch.setattr(command, 'write_report', lambda *_: tmp_path / 'report.html')
    monkeypatch.setattr(command, 'state_of', lambda cell: 'done' if cell.name.endswith('-0') else 'waiting')
    command.finish(cells, tmp_path)
    runs = f'{tmp_path}/pretrain/{{mae-0,bootmae-0}}'
    assert capsys.readouterr().out.splitlines() == [
        f'report: {tmp_path}/report.html',
        f'encoders: {runs}; any of these folders stands for its checkpoint',
    ]
