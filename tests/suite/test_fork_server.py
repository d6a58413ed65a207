"""Commands run in forked processes as they would in new ones, and crash or stop alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_running import interrupt_when_up, start
from test_spec import cells_of

from bootmae.checkpoints import read_checkpoint
from bootmae.places import REPOSITORY
from bootmae.suite.cells import Cell
from bootmae.suite.fork_server import ForkServer, serve
from bootmae.suite.job_state import DONE, ELSEWHERE, FAILED, STOPPED, CellLock, read_job_state, state_of
from bootmae.suite.running import Machine

ENVIRONMENT = Machine(['0'], 1, gpu=False).environment([])
FACTS = """
import json, os, sys, torch
print(json.dumps(dict(
    name=__name__, file=__file__, argv=sys.argv, path=sys.path[0], folder=os.getcwd(), stdin=sys.stdin.read(),
    leader=os.getsid(0) == os.getpid(), threads=torch.get_num_threads(), cuda=os.environ['CUDA_VISIBLE_DEVICES'])))
"""


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    server = ForkServer(['bootmae.commands.train'], tmp_path_factory.mktemp('folder'), ENVIRONMENT)
    yield server
    server.close()


@pytest.fixture
def run(server, tmp_path):
    """``run(code, *arguments)``: exit code and output of a script."""

    def run(code: str, *arguments: str) -> tuple[int, str]:
        script, log, lock = tmp_path / 'script.py', tmp_path / 'log.txt', os.open(os.devnull, os.O_RDONLY)
        script.write_text(code)
        with log.open('w') as file:
            process = server.start([sys.executable, str(script), *arguments], file.fileno(), lock)
        os.close(lock)
        return process.wait(), log.read_text()

    return run


def test_a_process_has_what_a_new_one_has(run, server, tmp_path):
    code, output = run(FACTS, '--option', 'a value')
    assert code == 0
    script = str(tmp_path / 'script.py')
    facts = json.loads(output)
    assert Path(facts.pop('folder')).name.startswith('folder')
    assert facts == dict(
        name='__main__',
        file=script,
        argv=[script, '--option', 'a value'],
        path=str(tmp_path),
        leader=True,
        stdin='',
        threads=1,
        cuda='',
    )
    tasks = Path(f'/proc/{server._server.pid}/task')
    if tasks.exists():
        assert len(list(tasks.iterdir())) == 1, 'a thread would be missing in the forked processes'


def test_output_is_that_of_all_libraries_until_the_end(run):
    code, output = run(
        'import atexit, os, sys\natexit.register(print, "exit handler")\nos.write(1, b"C library\\n")\n'
        'print("error", file=sys.stderr)\nos.system("echo child")\nprint("end")'
    )
    assert (code, sorted(output.splitlines())) == (0, ['C library', 'child', 'end', 'error', 'exit handler'])


@pytest.mark.parametrize(
    'code, expected',
    [
        ('raise SystemExit(75)', 75),
        ('raise SystemExit("a message")', 1),
        ('import os; os._exit(7)', 7),
        ('import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', -signal.SIGSEGV),
        ('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', -signal.SIGKILL),
        ('import os, signal; os.kill(os.getpid(), signal.SIGTERM)', -signal.SIGTERM),
        ('import os, signal; os.kill(os.getpid(), signal.SIGINT)', 130),
    ],
)
def test_exit_codes(run, code, expected):
    found, output = run(code + '\nimport time; time.sleep(5)')
    assert found == expected or (expected == 130 and found == -signal.SIGINT), output


def test_an_exception_ends_with_its_traceback(run):
    code, output = run('def f():\n    raise RuntimeError("reason")\nf()')
    assert code == 1
    assert output.splitlines()[-1] == 'RuntimeError: reason'
    assert 'script.py", line 2, in f' in output


def test_processes_draw_other_random_numbers(run):
    """A forked process has the generators of the server, whose state no one chose."""
    code = 'import random, numpy as np; print(random.random(), np.random.rand())'
    first, second = (run(code)[1].split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Cells whose commands are scripts; ``scripts`` holds the code of those that do more than write their rows."""
    (tmp_path / 'suite').mkdir()
    cells = cells_of(tmp_path / 'suite', seeds=[0], tasks={'knn': {'config': 'configs/cls/bootmae_debug_finetune.py'}})
    scripts = {}

    def commands(cell, gpus, slurm=None):
        script = tmp_path / f'{cell.name.replace("/", "-")}.py'
        script.write_text(scripts.get(cell.name, 'print("fine")'))
        return [[sys.executable, str(script)]]

    monkeypatch.setattr(Cell, 'commands', commands)
    return [cell for cell in cells if not cell.task], scripts


def test_a_cell_that_crashes_costs_only_itself(server, cells):
    cells, scripts = cells
    scripts[cells[0].name] = 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)'
    run = start(cells)
    run.server = server
    assert not run.run()
    assert [state_of(cell) for cell in cells] == [FAILED, DONE]
    assert read_job_state(cells[0]).attempts[0]['code'] == -signal.SIGSEGV
    assert (cells[1].folder / 'log.txt').read_text() == 'fine\n'


def test_ctrl_c_lets_cells_save(server, cells):
    cells, scripts = cells
    scripts[cells[0].name] = (
        'import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(75)); print("up", flush=True)\n'
        'time.sleep(30)'
    )
    scripts[cells[1].name] = 'import time; time.sleep(30)'
    threading.Thread(target=interrupt_when_up, args=[cells[0].folder / 'log.txt']).start()
    run = start(cells)
    run.server = server
    begin = time.monotonic()
    assert not run.run()
    assert time.monotonic() - begin < 10
    assert [state_of(cell) for cell in cells] == [STOPPED, STOPPED]
    assert [read_job_state(cell).attempts[0]['code'] for cell in cells] == [75, -signal.SIGTERM]


def test_a_process_outlives_a_killed_suite_and_keeps_its_lock(cells, tmp_path):
    """The end of the connection is all that the server sees of a suite that is killed. SIGTERM does not end it."""
    (cell, _), _ = cells
    server, script, go = ForkServer([], tmp_path, ENVIRONMENT), tmp_path / 'script.py', tmp_path / 'go'
    lock = CellLock(cell)
    assert lock.take()
    script.write_text(f'import os, time\nfor _ in range(600): os.path.exists({str(go)!r}) or time.sleep(0.05)')
    server.start([sys.executable, str(script)], 2, lock.file)
    os.kill(server._server.pid, signal.SIGTERM)
    lock.release()
    server._socket.close()
    assert server._server.wait(30) == 0
    assert state_of(cell) == ELSEWHERE
    go.touch()
    end = time.monotonic() + 30
    while state_of(cell) == ELSEWHERE:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_that_cannot_import_says_why_in_one_line(tmp_path, monkeypatch):
    def in_this_process(words, pass_fds, **kwargs):
        with socket.socket(fileno=os.dup(pass_fds[0])) as connection, pytest.raises(SystemExit) as end:
            serve(connection, words[4:])
        assert end.value.code == 1

    monkeypatch.setattr(subprocess, 'Popen', in_this_process)
    with pytest.raises(ChildProcessError) as error:
        ForkServer(['bootmae.text', 'no_such_module'], tmp_path, ENVIRONMENT)
    assert "(ModuleNotFoundError: No module named 'no_such_module')" in str(error.value)
    assert '\n' not in str(error.value)


def test_a_killed_server_takes_its_processes_along(tmp_path):
    server = ForkServer([], tmp_path, ENVIRONMENT)
    (tmp_path / 'script.py').write_text('import time; time.sleep(60)')
    alive, inherited = os.pipe()
    process = server.start([sys.executable, str(tmp_path / 'script.py')], 2, inherited)
    os.close(inherited)
    assert process.poll() is None
    server._server.kill()
    server._server.wait()
    assert process.poll() == -signal.SIGKILL
    begin = time.monotonic()
    assert os.read(alive, 1) == b'', 'its end of the pipe is closed'
    assert time.monotonic() - begin < 30
    os.close(alive)
    with pytest.raises(ChildProcessError, match='has ended .exit code -9.*run the same command again'):
        server.start([sys.executable, 'script.py'], 2, 2)


@pytest.mark.slow
def test_a_training_is_bit_identical_to_that_of_a_new_process(server, tmp_path):
    """After another training in the same server, of the other method."""
    train = [sys.executable, str(REPOSITORY / 'tools' / 'train.py')]

    def words(method: str, folder: str) -> list[str]:
        few = ['--cfg-options', 'train_dataloader.dataset.labels_per_class=16']
        return [*train, f'configs/pretrain/{method}_debug.py', '--work-dir', str(tmp_path / folder), *few]

    subprocess.run(
        words('bootmae', 'new'), cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with (tmp_path / 'log.txt').open('w') as log:
        for method, folder in (('mae', 'other'), ('bootmae', 'forked')):
            command = [word.replace('configs/', f'{REPOSITORY}/configs/') for word in words(method, folder)]
            assert server.start(command, log.fileno(), log.fileno()).wait() == 0, (tmp_path / 'log.txt').read_text()
    new, forked = (read_checkpoint(tmp_path / folder / 'epoch_2.pth') for folder in ('new', 'forked'))
    assert new['state_dict'].keys() == forked['state_dict'].keys()
    assert all(value.equal(forked['state_dict'][name]) for name, value in new['state_dict'].items())
