"""Samples depend on (seed, epoch, index) alone; unreadable ones are replaced and reported."""

import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from bootmae.data.samples import REPLACEMENTS, SLOTS, NamedSamples, SeededSamples, UnreadableSample


def draw(info):
    """A pipeline step that uses all three generators: (number, random, numpy, torch)."""
    values = [info['number'], random.random(), np.random.rand(), torch.rand(()).item()]
    return torch.tensor(values, dtype=torch.float64)


class Unreadable:
    """A pipeline step that fails for some numbers, as a broken file does."""

    def __init__(self, numbers, error=OSError):
        self.numbers, self.error = numbers, error

    def __call__(self, info):
        if info['number'] in self.numbers:
            raise self.error(f'broken: {info["img_path"]}')
        return info


class Numbers(BaseDataset):
    def __init__(self, length=8, start=0, pipeline=(draw,), **kwargs):
        self.length, self.start = length, start
        super().__init__(pipeline=list(pipeline), **kwargs)

    def load_data_list(self):
        return [dict(number=self.start + i, img_path=f'/images/{self.start + i}.jpg') for i in range(self.length)]

    def get_cat_ids(self, idx):
        return [0]


def broken(numbers, length=8, **kwargs) -> SeededSamples:
    return SeededSamples(Numbers(length, pipeline=[Unreadable(numbers), draw]), **kwargs)


def load(samples: SeededSamples, keys, **kwargs) -> torch.Tensor:
    return torch.stack(
        [
            item
            for batch in DataLoader(samples, batch_sampler=[[key] for key in keys], collate_fn=list, **kwargs)
            for item in batch
        ]
    )


def test_a_sample_follows_seed_epoch_and_index():
    samples = SeededSamples(Numbers(), seed=3)
    first = samples[8 + 2]
    random.random(), np.random.rand(), torch.rand(5)
    assert samples[8 + 2].equal(first)  # not the generators' history
    assert first[0] == 2
    others = [samples[2], samples[16 + 2], samples[8 + 3], SeededSamples(Numbers(), seed=4)[8 + 2]]
    assert all((other[1:] != first[1:]).all() for other in others)


@pytest.mark.parametrize('persistent', [True, False])
def test_workers_load_what_the_main_process_loads(persistent):
    keys = [3, 1, 8 + 3, 8 + 1, 16, 23]
    alone = load(SeededSamples(Numbers(), seed=1), keys)
    assert load(SeededSamples(Numbers(), seed=1), keys, num_workers=2, persistent_workers=persistent).equal(alone)


def test_the_seed_may_be_set_late():
    samples = SeededSamples(Numbers())
    samples.seed = 5
    assert load(samples, [4], num_workers=1).equal(load(SeededSamples(Numbers(), seed=5), [4]))


@pytest.mark.slow
def test_spawned_workers():
    samples = broken([1], seed=1)
    spawned = load(samples, [0, 1], num_workers=1, multiprocessing_context='spawn')
    assert spawned.equal(load(broken([1], seed=1), [0, 1]))
    assert samples.take_reports() == [('/images/1.jpg', 'OSError: broken: /images/1.jpg')]


def test_repeats_within_an_epoch_differ():
    samples = SeededSamples(RepeatDataset(Numbers(4), times=3))
    assert len(samples) == 12
    assert len({samples[key][1].item() for key in (1, 5, 9)}) == 3
    assert {samples[key][0].item() for key in (1, 5, 9)} == {1}
    assert len(SeededSamples(ClassBalancedDataset(Numbers(4), oversample_thr=1))) >= 4


def test_wrappers_give_infos_and_paths():
    samples = SeededSamples(ConcatDataset([Numbers(3), Numbers(3, start=10)]))
    assert samples.get_data_info(6 + 4)['number'] == 11
    assert samples.path(4) == '/images/11.jpg'
    assert samples.metainfo == {}
    assert SeededSamples(Numbers(metainfo=dict(classes=('a',)))).metainfo['classes'] == ('a',)


def test_a_broken_file_is_replaced_as_a_function_of_the_sample():
    samples = broken([2, 5])
    first = samples[2]
    assert first[0] not in (2, 5)
    np.random.rand()
    assert samples[2].equal(first)
    assert {int(samples[8 * epoch + 2][0]) for epoch in range(20)} == {0, 1, 3, 4, 6, 7}  # another one in each epoch
    assert load(broken([2, 5]), [2, 8 + 5], num_workers=2).equal(torch.stack([samples[2], samples[8 + 5]]))


def test_a_sample_that_turns_out_broken_later_is_replaced_in_the_same_way():
    """The bytes of a file can be read but not decoded."""

    def as_bytes(info):
        return dict(inputs=torch.tensor([info['number']]), data_samples=BaseDataElement(drawn=draw(info)))

    bad = [2, 5]
    first, later = (SeededSamples(Numbers(pipeline=[*steps, as_bytes])) for steps in ([Unreadable(bad)], []))
    for key in (2, 5, 8 + 2, 16 + 5, 24 + 2):
        item = later[key]
        while int(item['inputs']) in bad:
            sample = item['data_samples']
            item = later.replace(sample.sample_key, sample.sample_attempt, RuntimeError(f'no {int(item["inputs"])}'))
        assert item['data_samples'].drawn.equal(first[key]['data_samples'].drawn)
        assert item['data_samples'].sample_key == key
    assert sorted(later.take_reports()) == [(f'/images/{i}.jpg', f'RuntimeError: no {i}') for i in bad]
    strict = SeededSamples(later.dataset, bad='raise')
    with pytest.raises(UnreadableSample, match=r'/images/2.jpg cannot be read \(RuntimeError: no\)'):
        strict.replace(2, 1, RuntimeError('no'))
    with pytest.raises(UnreadableSample, match='cannot be read'):
        later.replace(2, REPLACEMENTS, RuntimeError('no'))


@pytest.mark.parametrize('workers', [0, 2])
def test_reports_name_path_and_reason_once(workers):
    samples = broken([2, 5])
    assert samples.take_reports() == []
    load(samples, [0, 2, 8 + 2, 5, 1], num_workers=workers)
    assert sorted(samples.take_reports()) == [
        ('/images/2.jpg', 'OSError: broken: /images/2.jpg'),
        ('/images/5.jpg', 'OSError: broken: /images/5.jpg'),
    ]
    assert samples.take_reports() == []
    load(samples, [16 + 5], num_workers=workers)
    assert [path for path, _ in samples.take_reports()] == ['/images/5.jpg']


def test_many_reports_do_not_block_a_worker():
    """There are more than a pipe would hold, and nobody reads them."""
    samples = broken([1], length=2)
    load(samples, [2 * epoch + 1 for epoch in range(SLOTS + 50)], num_workers=1)
    assert samples._bad[1, 0] > SLOTS
    assert [path for path, _ in samples.take_reports()] == ['/images/1.jpg']


def test_nothing_but_broken_files_ends():
    with pytest.raises(ValueError, match=r'/images/\d\.jpg cannot be read \(OSError: broken'):
        broken(range(8))[0]
    assert REPLACEMENTS == 16


def test_raise_names_the_file():
    samples = broken([2], bad='raise')
    assert samples[1][0] == 1
    with pytest.raises(ValueError, match='/images/2.jpg cannot be read .*: repair or remove it'):
        samples[2]
    with pytest.raises(ValueError, match="bad='ignore'"):
        broken([2], bad='ignore')


def test_errors_of_code_are_not_taken_for_broken_files():
    samples = SeededSamples(Numbers(pipeline=[Unreadable([2], TypeError), draw]))
    with pytest.raises(TypeError, match='broken'):
        samples[2]
    assert samples.take_reports() == []


def test_an_evaluation_refuses_files_that_are_cut_off_but_not_those_of_other_machines(tmp_path):
    data = Numbers(2)
    assert NamedSamples(data)[1][0] == 1  # /images/1.jpg, as if a backend of mmengine had read it
    data.load_data_list = lambda: [dict(number=1, img_path=str(tmp_path / '1.jpg'))]
    data._fully_initialized = False
    data.full_init()
    (tmp_path / '1.jpg').write_bytes(b'\xff\xd8\xff\xda without its end')
    with pytest.raises(UnreadableSample, match='1.jpg cannot be read .*is cut off.* an evaluation replaces no image'):
        NamedSamples(data)[0]


def test_paths_being_loaded():
    samples = SeededSamples(Numbers())
    assert samples.loading_paths() == []
    load(samples, [3, 4, 5, 6], num_workers=2)
    assert sorted(samples.loading_paths()) == ['/images/5.jpg', '/images/6.jpg']  # the last of each worker


def test_a_second_attempt_that_succeeds_is_said():
    samples = broken([2])
    samples[2]
    samples.dataset.pipeline.transforms[0].numbers = []
    assert samples.take_reports() == [('/images/2.jpg', 'could not be read once; a second attempt succeeded')]


def test_pickles():
    assert pickle.loads(pickle.dumps(Numbers()))[3][0] == 3
