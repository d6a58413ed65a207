"""Calls the shell scripts of tools/."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / 'tools'


def shell(
    script: str, *args, cwd: Path | str = REPOSITORY, timeout: int = 240, **env: str
) -> subprocess.CompletedProcess:
    """Run a script of tools/ with this Python, no GPU, and no settings of a surrounding job."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('SLURM', 'MASTER_', 'NODE_'))}
    env = clean | dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='') | env
    return subprocess.run(
        [TOOLS / script, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )


def as_arguments(options: dict) -> list[str]:
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
