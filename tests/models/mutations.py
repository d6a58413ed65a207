"""Mistakes to make on purpose, for tests that the proof of equality notices them."""

from torch.nn import functional as F


def mutated(module, name, wrap):
    """A mutation: replace ``module.name`` by ``wrap(the original)``."""
    return lambda monkeypatch: monkeypatch.setattr(module, name, wrap(getattr(module, name)))


def with_kwargs(**kwargs):
    return lambda original: lambda *args, **given: original(*args, **(given | kwargs))


def normed_outputs(forward_blocks):
    def forward(self, *args, **kwargs):
        x, outputs = forward_blocks(self, *args, **kwargs)
        return x, [F.layer_norm(output, output.shape[-1:], eps=1e-6) for output in outputs]

    return forward
