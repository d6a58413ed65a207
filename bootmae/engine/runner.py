"""mmengine's runner with safe and whole loading."""

from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints import load_run, read_checkpoint
from .hooks import bare_model


@RUNNERS.register_module()
class SuiteRunner(Runner):
    """mmengine's ``Runner`` falls back to unsafe pickles and goes on with missing weights; this one refuses both."""

    def load_checkpoint(self, filename: str, map_location='cpu', strict: bool = True, revise_keys=()) -> dict:
        """Load all weights of a run, for ``load_from`` and for resuming; see :func:`load_run`.

        The arguments after the first are the base class's and have no effect: loading is strict, names are ours.
        """
        content = read_checkpoint(filename)
        if 'meta' not in content:
            raise ValueError(f'{filename} holds weights, not a run: start from it with --init')
        self.call_hook('after_load_checkpoint', checkpoint=content)
        load_run(bare_model(self), content, filename)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return content
