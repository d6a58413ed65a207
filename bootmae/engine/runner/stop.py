"""Saving a run that stops before its end."""

from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from ...distributed.exits import RunStopped


def save_now(runner: Runner, counted: bool = False) -> tuple[str, str]:
    """Save the run with the checkpoint hook's ``save_now``.

    Args:
        runner: the run.
        counted: ``runner.iter`` already counts the last iteration, as it does during validation.

    Returns:
        The path of the checkpoint and the error; an empty string stands for none of either.
    """
    for hook in runner.hooks:
        if hasattr(hook, 'save_now'):
            try:
                return hook.save_now(runner, counted=counted), ''
            except OSError as error:
                return '', str(error)
    return '', ''


def take_back_weights(runner: Runner) -> None:
    """Give the model the weights in training: during a validation, EMAHook has put their averages there."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and getattr(hook, 'evaluate_on_ema', True):  # mmpretrain's hook has the option
            hook._swap_ema_parameters()


def save_before_stop(runner: Runner, cause: str, validating: bool = False) -> str:
    """Save the run before it stops; return the path of the checkpoint, '' if the run has no checkpoint hook.

    Call it after a whole optimizer step, on all ranks in the same step.

    Args:
        runner: the run.
        cause: why the run stops, for the error message.
        validating: the run is in a validation, where this rank may be the only one that stops now. Then only rank 0
            saves, and no rank waits for another.

    Raises:
        RunStopped: if the run could not be saved.
    """
    if runner.averaged:
        take_back_weights(runner)
    saved = save_now(runner, counted=validating) if runner.rank == 0 or not validating else ('', '')
    path, error = saved if validating else runner.counters.broadcast(saved)  # no rank leaves before the file is written
    if error:
        raise RunStopped(
            f'{cause}\nThe run could not be saved: {error}. Older checkpoints are unchanged; free some space and '
            'continue with --resume'
        )
    return path
