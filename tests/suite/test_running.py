"""Cells are run in order, once, and after any interruption; with stand-ins for their commands."""

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_spec import cells_of

from bootmae.results.rows import COLUMNS
from bootmae.suite import running
from bootmae.suite.cells import Cell
from bootmae.suite.command import cells_to_redo, delete_results
from bootmae.suite.job_state import (
    BLOCKED,
    DONE,
    ELSEWHERE,
    FAILED,
    KILLED,
    RUNNING,
    STOPPED,
    WAITING,
    CellLock,
    begin_attempt,
    check_definitions,
    read_job_state,
    state_of,
    write_job_state,
)
from bootmae.suite.machine import find_machine
from bootmae.suite.running import Machine, Run, SuiteRun, in_turn
from bootmae.suite.status import Status, interrupted, progress, time_left

NOTE = 'import os; open({file!r}, "a").write({name!r} + " on " + os.environ.get("CUDA_VISIBLE_DEVICES", "-") + chr(10))'
SAVES = 'import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(75)); print("up", flush=True); '


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Cells of a small suite whose commands note their name; ``scripts`` replaces that of a cell."""
    (tmp_path / 'suite').mkdir()
    cells = cells_of(tmp_path / 'suite', seeds=[0], tasks={'knn': {'config': 'configs/cls/bootmae_debug_finetune.py'}})
    scripts, notes = {}, tmp_path / 'notes.txt'

    def commands(cell, gpus, slurm=None):
        note = NOTE.format(file=str(notes), name=cell.name)
        rows = f'open({str(cell.rows_file)!r}, "w").write({",".join(COLUMNS)!r})' if cell.task else ''
        return [[sys.executable, '-c', f'{scripts.get(cell.name, "")}\n{rows}\n{note}']]

    monkeypatch.setattr(Cell, 'commands', commands)
    return cells, scripts, notes


def start(cells, lanes=2, gpu=False, events=None) -> SuiteRun:
    machine = Machine([str(index) for index in range(lanes)], lanes, gpu)
    events = [] if events is None else events
    return SuiteRun(
        cells,
        {cell.name: f'd-{cell.name}' for cell in cells},
        {},
        machine,
        lambda cell, state, text: events.append((cell.name, state, text)),
    )


def test_all_once(suite):
    cells, _, notes = suite
    assert start(cells).run()
    lines = notes.read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(cell.name for cell in cells)
    order = [line.split()[0] for line in lines]
    assert order.index('pretrain/mae-0') < order.index('knn/mae-0')
    assert order.index('pretrain/bootmae-0') < order.index('knn/bootmae-0')
    assert {state_of(cell) for cell in cells} == {DONE}
    assert start(cells).run()
    assert notes.read_text().splitlines() == lines, 'nothing is repeated'
    assert read_job_state(cells[0]).attempts[0]['code'] == 0


def test_one_cell_of_each_kind_comes_first(tmp_path):
    """The first ones need no pretraining, and the times of all kinds are known when they are done."""
    cells = cells_of(tmp_path, seeds=[0, 1])
    assert [cell.name for cell in in_turn(cells)] == [
        'knn/untrained-0',
        'finetune/untrained-0',
        'pretrain/mae-0',
        'knn/mae-0',
        'finetune/mae-0',
        'pretrain/bootmae-0',
        'knn/bootmae-0',
        'finetune/bootmae-0',
        'pretrain/mae-1',
        'knn/untrained-1',
        'finetune/untrained-1',
        'pretrain/bootmae-1',
        *['knn/mae-1', 'finetune/mae-1', 'knn/bootmae-1', 'finetune/bootmae-1'],
    ]


def test_devices(suite):
    """Two GPUs of three for a training, one for k-NN."""
    cells, _, notes = suite
    assert start(cells, lanes=3, gpu=True).run()
    used = dict(line.split(' on ') for line in notes.read_text().splitlines())
    assert all(len(used[name].split(',')) == (2 if name.startswith('pretrain') else 1) for name in used)


def test_cells_that_share_a_gpu(suite, monkeypatch):
    """Two lanes on each of two GPUs; a training on two GPUs cannot share them."""
    cells, _, notes = suite
    wide = {'pretrain/mae-0': 2, 'pretrain/bootmae-0': 2, 'knn/mae-0': 1, 'knn/bootmae-0': 1}
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    assert find_machine(None).devices == ['5', '7']
    machine = find_machine(None, lanes=2)
    assert (machine.devices, machine.total) == (['5', '7', '5', '7'], 4)
    assert {cell.name: machine.share(cell) for cell in cells if 'mae-0' in cell.name} == wide
    with pytest.raises(ValueError, match='^--lanes 2: cells can share one GPU, but pretrain/mae-0 trains on 2: leave'):
        find_machine(None, 2, cells)
    machine = find_machine(1, 3, cells)
    assert {machine.share(cell) for cell in cells} == {1}
    states = {cell.name: 'd' for cell in cells}
    run = SuiteRun(cells, states, {}, machine, lambda *args: None)
    most = []
    assert run.run(lambda suite: most.append(len(suite.running)))
    assert max(most) == 3
    assert {line.split(' on ')[1] for line in notes.read_text().splitlines()} == {'5'}


def test_a_failed_pretraining_blocks_only_its_own(suite):
    cells, scripts, _ = suite
    scripts['pretrain/mae-0'] = 'print("loss is nan"); raise SystemExit(3)'
    events = []
    assert not start(cells, events=events).run()
    states = {cell.name: state_of(cell) for cell in cells}
    assert states['pretrain/mae-0'] == FAILED
    assert states['knn/mae-0'] == WAITING
    assert ('knn/mae-0', BLOCKED, 'pretrain/mae-0 failed') in events
    assert states['knn/bootmae-0'] == states['knn/untrained-0'] == DONE
    assert read_job_state(cells[0]).detail == 'exit code 3: loss is nan'
    del scripts['pretrain/mae-0']
    assert interrupted(cells)[0].startswith('failed: pretrain/mae-0, started 20')
    assert start(cells).run(), 'the same command tries it again'


def test_no_rows_no_success(suite, monkeypatch):
    cells, _, _ = suite
    monkeypatch.setattr(Cell, 'commands', lambda *_: [[sys.executable, '-c', '']])
    assert not start(cells).run()
    assert state_of(cells[-1]) == FAILED
    assert read_job_state(cells[-1]).detail.startswith(f'no result: {cells[-1].rows_file}: no such results file')


def interrupt_when_up(log) -> None:
    while not (log.exists() and 'up' in log.read_text()):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_stops_all_and_they_go_on(suite):
    cells, scripts, notes = suite
    scripts['pretrain/mae-0'] = SAVES + 'time.sleep(30)'
    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt_when_up, args=[cells[0].folder / 'log.txt']).start()
    run = start(cells, lanes=1)
    begin = time.monotonic()
    assert not run.run()
    assert time.monotonic() - begin < 10
    assert run.stopping == signal.SIGINT
    assert state_of(cells[0]) == STOPPED
    assert read_job_state(cells[0]).detail == 'SIGINT: saved'
    assert notes.read_text().splitlines() == ['knn/untrained-0 on '], 'what came before; nothing else was begun'
    assert signal.getsignal(signal.SIGINT) is before
    del scripts['pretrain/mae-0']
    assert start(cells).run()


LAUNCHER = """
import os, signal, subprocess, sys, time
asked = []
def ask(*_):
    asked.append(time.monotonic())
    if {obeys} and asked[-1] - asked[0] > 0.5:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        sys.exit(143)
signal.signal(signal.SIGTERM, ask)
worker = subprocess.Popen(['sleep', '60'], start_new_session=True)
print(worker.pid, 'up', flush=True)
while True:
    time.sleep(0.1)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(('end', 'obeys'), [('.sh', True), ('.sh', False), ('.py', False)])
def test_a_second_signal_ends_the_processes_of_a_launcher(suite, monkeypatch, tmp_path, end, obeys):
    """They have sessions of their own, so that only the launcher can kill them; it has some seconds to do so."""
    cells, _, _ = suite
    path, log = tmp_path / f'launch{end}', cells[0].folder / 'log.txt'
    path.write_text(f'#!{sys.executable}\n{LAUNCHER.format(obeys=obeys)}')
    path.chmod(0o755)
    monkeypatch.setattr(Cell, 'commands', lambda *_: [[*([] if end == '.sh' else [sys.executable]), str(path)]])
    monkeypatch.setattr(running, 'HASTE', 1.5 if not obeys else 20)

    def press_twice() -> None:
        interrupt_when_up(log)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_twice).start()
    begin = time.monotonic()
    assert not start(cells[:1]).run()
    took, worker = time.monotonic() - begin, int(log.read_text().split()[0])
    assert is_alive(worker) != obeys
    assert took < 10
    assert obeys or (took > 1.5) == (end == '.sh'), 'a single process is killed at once'
    assert (state_of(cells[0]), read_job_state(cells[0]).attempts[0]['code']) == (STOPPED, 143 if obeys else -9)
    if not obeys:
        os.killpg(worker, signal.SIGKILL)


def test_killed_cells_are_named(suite):
    cells, _, _ = suite
    cells[1].folder.mkdir(parents=True)
    begin_attempt(cells[1], read_job_state(cells[1]))
    assert state_of(cells[1]) == KILLED
    (line,) = interrupted(cells)
    assert line.startswith('killed: pretrain/bootmae-0, started 20')
    assert line.endswith('it starts over')
    assert start(cells).run()


def test_a_command_that_outlives_its_suite_is_not_started_twice(suite):
    """The lock is the command's as well: who comes later waits for it."""
    cells, _, notes = suite
    lock = CellLock(cells[0])
    assert lock.take()
    orphan = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1.5)'], pass_fds=[lock.file])
    begin_attempt(cells[0], read_job_state(cells[0]))
    lock.release()
    assert state_of(cells[0]) == ELSEWHERE
    assert interrupted(cells)[0].startswith('still running: pretrain/mae-0')
    with pytest.raises(ValueError, match='pretrain/mae-0 is running'):
        cells_to_redo(['pretrain/mae-0'], cells, cells)
    with pytest.raises(ValueError, match='pretrain/mae-0 is running'):
        delete_results(cells[:1])
    begin = time.monotonic()
    assert start(cells).run()
    assert orphan.poll() is not None
    assert time.monotonic() - begin > 0.5
    assert notes.read_text().count('pretrain/mae-0') == 1


def test_a_lock_without_an_attempt_is_no_interruption(suite):
    """Another call has just taken it, or has failed before it noted anything."""
    cells, _, _ = suite
    lock = CellLock(cells[0])
    assert lock.take()
    assert state_of(cells[0]) == ELSEWHERE
    assert interrupted(cells) == []
    lock.release()


def test_a_file_system_without_locks(suite, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', flock)
    path = suite[0][0].folder / 'lock'
    with pytest.raises(OSError, match=f'not implemented: put --out on a file system with locks: .*{path}'):
        CellLock(suite[0][0]).take()


@pytest.mark.parametrize(('name', 'value', 'least'), [('lanes', 0, 1), ('lanes', -1, 1), ('gpus', -1, 0)], ids=str)
def test_devices_that_would_wait_forever_are_refused(name, value, least):
    with pytest.raises(ValueError, match=f'^--{name} {value}: give at least {least}$'):
        find_machine(**(dict(gpus=0) | {name: value}))
    assert find_machine(0, 3).devices == ['0', '1', '2']


def test_redo(suite):
    """What was judged from a pretraining goes with it."""
    cells, _, notes = suite
    assert start(cells).run()
    delete_results(cells_to_redo(['pretrain/mae-0'], cells, cells))
    assert [cell.name for cell in cells if state_of(cell) != DONE] == ['pretrain/mae-0', 'knn/mae-0']
    assert start(cells).run()
    assert len(notes.read_text().splitlines()) == len(cells) + 2


def test_cells_of_another_definition_are_listed_with_one_command(suite):
    """A changed pretraining stands for the evaluations that need it."""
    cells, _, _ = suite
    assert start(cells).run()
    now = {cell.name: f'd-{cell.name}' for cell in cells}
    check_definitions(cells, now)
    changed = ('pretrain/mae-0', 'knn/mae-0', 'knn/untrained-0')
    with pytest.raises(ValueError) as refused:
        check_definitions(cells, now | dict.fromkeys(changed, 'other'))
    first, command, _ = str(refused.value).splitlines()
    assert first.startswith('3 of 5 cells have results of another config')
    assert all(name in first for name in changed)
    assert 'bootmae-0' not in first
    assert command.endswith(f'--out {cells[0].root} --redo pretrain/mae-0 knn/untrained-0')


def test_a_failed_cell_without_results_runs_again_with_the_corrected_file(suite):
    cells, scripts, _ = suite
    for cell in cells:
        scripts[cell.name] = 'raise SystemExit("error: no such folder")'
    assert not start(cells).run()
    changed = dict.fromkeys([cell.name for cell in cells], 'other')
    check_definitions(cells, changed)
    cells[0].run.mkdir()
    (cells[0].run / 'step_5.pth').touch()
    with pytest.raises(ValueError, match='1 of 5 cells .*: pretrain/mae-0[.]'):
        check_definitions(cells, changed)


def test_damaged_notes(suite):
    cells, _, _ = suite
    cells[0].folder.mkdir(parents=True)
    (cells[0].folder / 'cell.json').write_text('{"state": ')
    with pytest.raises(ValueError, match='cell.json is damaged .*delete the folder'):
        state_of(cells[0])


def test_the_bar(suite):
    """Cells that ended, time left by the pace of finished ones, and how far a running training is."""
    cells, _, _ = suite
    assert start(cells).run()
    run = start(cells, lanes=1)
    for name, seconds in (('pretrain/mae-0', 100), ('pretrain/bootmae-0', 140)):
        cell = next(cell for cell in cells if cell.name == name)
        job = read_job_state(cell)
        job.attempts = [dict(begin=1000.0, end=1000.0 + seconds)]
        write_job_state(cell, job)
    for cell in cells[2:]:
        run.states[cell.name] = WAITING
    assert time_left(run) == pytest.approx(3 * 120)
    job, folder = read_job_state(cells[0]), cells[0].run / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('{"epoch": 1, "step": 5}\n{"epoch": 3, "step": 15}\n')
    job.length = dict(max_epochs=12)
    assert progress(cells[0], job) == 0.25
    job.length = dict(max_iters=30)
    assert progress(cells[0], job) == 0.5
    assert progress(cells[1], job) == 0.0
    line = Status(cells, io.StringIO()).line(run)
    assert line.startswith('[########............] 2/5 about 0:06:00 left')
    run.states = dict.fromkeys(run.states, WAITING)
    assert 'time left unknown' in Status(cells, io.StringIO()).line(run)
    # a quarter of a pretraining took 30 s; there is another one, and three cells of a kind without times
    job.length = dict(max_epochs=12)
    run.running = [Run(cells[0], job, CellLock(cells[0]), ['0'], [], begin=time.monotonic() - 30)]
    run.states[cells[0].name] = RUNNING
    assert time_left(run) == pytest.approx(90 + 4 * 120, abs=1)
    assert Status(cells, io.StringIO()).line(run).endswith('about 0:09:30 left  pretrain/mae-0 25 %')


def test_progress_in_a_file_is_a_line_now_and_then(suite, monkeypatch):
    """Every 20 s at first, and every 50th of the time that has passed later."""
    cells, _, _ = suite
    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    out = io.StringIO()
    status, run = Status(cells, out), start(cells)
    for now[0] in (110.0, 121.0, 130.0, 142.0, 20000.0, 20300.0, 20500.0):
        status.tick(run)
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ['0:00:21', '0:00:42', '5:31:40', '5:40:00']
    assert out.getvalue().startswith(' 0:00:21 [....................] 0/5 time left unknown')


def test_events_are_lines_of_a_file(suite):
    cells, _, _ = suite
    out = io.StringIO()
    status = Status(cells, out)
    status.tell(cells[0], RUNNING, '')
    status.tell(cells[0], RUNNING, 'resumes from its newest checkpoint')
    status.tell(cells[0], DONE, '')
    status.tell(cells[1], FAILED, 'exit code 3: loss is nan')
    assert [' '.join(line.split()[1:]) for line in out.getvalue().splitlines()] == [
        'start pretrain/mae-0: resumes from its newest checkpoint',
        '1/5 done pretrain/mae-0',
        '2/5 FAILED pretrain/bootmae-0: exit code 3: loss is nan',
    ]
