import pytest
import torch
from toys import FACTS, classifier, scramble, segmentor


@pytest.fixture
def sources(tmp_path, make_bootmae):
    """``sources(name)``: the file of a run of this suite, and its state."""
    models = dict(run=lambda: make_bootmae().float(), classifier=classifier, segmentor=segmentor)

    def make(name: str) -> tuple:
        state = scramble(models[name]())
        path = tmp_path / f'{name}.pth'
        torch.save(
            dict(
                state_dict=state,
                optimizer=dict(state={}),
                meta=dict(epoch=3, bootmae=FACTS | dict(method='BootMAE', seconds=1.5)),
            ),
            path,
        )
        return path, state

    return make
