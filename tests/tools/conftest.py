"""A Slurm cluster of two nodes on this machine."""

import os

import pytest


@pytest.fixture
def cluster(tmp_path) -> str:
    """A PATH with an srun that runs two tasks here, as two nodes would."""
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'srun').write_text("""#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_ID=4711 SLURM_JOB_NODELIST='node[1-2]' SLURMD_NODENAME=127.0.0.1
SLURM_NODEID=1 "$@" &
SLURM_NODEID=0 "$@"
wait $!
""")
    (tmp_path / 'bin' / 'scontrol').write_text("""#!/usr/bin/env bash
[ "$*" = 'show hostnames node[1-2]' ] && printf '127.0.0.1\\n127.0.0.2\\n'
""")
    for script in (tmp_path / 'bin').iterdir():
        script.chmod(0o755)
    return f'{tmp_path / "bin"}:{os.environ["PATH"]}'
