"""Augmentation depends on the run's seed, the rank and a sample's place, and on nothing else."""

import copy
import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, DefaultSampler, pseudo_collate
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from mmseg_repvgg.datasets import seeded
from mmseg_repvgg.datasets.seeded import SeededDataset, SeededIndex, SeededSampler, seed_of

INFINITE = dict(type='InfiniteSampler', shuffle=True)
DEFAULT = dict(type='DefaultSampler', shuffle=True)


class Drawing(Dataset):
    """Random numbers of all three kinds as samples."""

    metainfo = dict(classes=('a',))

    def __len__(self):
        return 5

    def __getitem__(self, index):
        assert type(index) is int
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


def samples(workers: int, skip: int = 0) -> list:
    sampler = SeededSampler(Drawing(), INFINITE, seed=3)
    if skip:
        sampler.skip_batches(skip // 2, 2)
    loader = DataLoader(
        SeededDataset(Drawing()), 2, sampler=sampler, num_workers=workers, collate_fn=list
    )
    return list(itertools.chain(*itertools.islice(loader, 6 - skip // 2)))


def test_samples_are_those_of_the_sampler_and_drawn_anew():
    found = samples(0)
    plain = SeededSampler(Drawing(), INFINITE, seed=3).sampler
    assert [s[0] for s in found] == list(itertools.islice(plain, 12))
    for kind in (1, 2, 3):
        assert len({s[kind] for s in found}) == 12  # a sample that comes again is drawn anew
    assert pseudo_collate(found)


def test_workers_and_a_resumed_sampler_give_the_same():
    found = samples(0)
    torch.rand(7), np.random.rand(7)  # what else is drawn makes no difference
    assert samples(2) == found
    assert samples(0, skip=8) == found[8:]
    assert samples(2, skip=8) == found[8:]


def test_epochs_ranks_and_seeds_draw_differently(monkeypatch):
    sampler = SeededSampler(Drawing(), DEFAULT, seed=3)
    assert len(sampler) == 5
    seeds = []
    for rank, epoch in itertools.product((0, 1), (0, 1)):
        monkeypatch.setattr(seeded, 'get_dist_info', lambda rank=rank: (rank, 2))
        sampler.set_epoch(epoch)
        seeds += [index.seed for index in sampler]
    monkeypatch.undo()
    seeds += [index.seed for index in SeededSampler(Drawing(), DEFAULT, seed=4)]
    assert len(set(seeds)) == 25
    assert seed_of(1, 2) != seed_of(2, 1)


def test_the_states_of_the_process_are_left_alone():
    dataset = SeededDataset(Drawing())
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = Drawing()[0]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    assert dataset[SeededIndex.of(0, 9)] != expected
    assert dataset[0] == expected  # the state is that before the sample
    assert dataset.metainfo == dict(classes=('a',))
    assert pickle.loads(pickle.dumps(SeededIndex.of(4, 9))).seed == 9
    assert pickle.loads(pickle.dumps(dataset)).metainfo
    with pytest.raises(AttributeError, match='nothing'):
        _ = dataset.nothing


@DATA_SAMPLERS.register_module(force=True)
class OwnOrder(Sampler):
    """It has no seed, epoch or ``set_epoch``: each epoch is drawn from its own generator."""

    def __init__(self, dataset, seed=None):
        self.size, self.generator = len(dataset), torch.Generator().manual_seed(2)

    def __iter__(self):
        yield from torch.randperm(self.size, generator=self.generator).tolist()

    def __len__(self):
        return self.size


def batches(settings: dict, drop_last: bool, skip: int = 0) -> list:
    """Indices and seeds as mmengine's iteration-based loop takes them: epoch by epoch."""
    sampler = SeededSampler(Drawing(), settings, seed=3)
    loader = DataLoader(Drawing(), 2, sampler=sampler, drop_last=drop_last)
    if skip:
        sampler.skip_batches(skip, 2, drop_last)
    found, epoch = [], 0
    while len(found) < 9 - skip:
        found += [[(int(i), i.seed) for i in batch] for batch in loader.batch_sampler]
        epoch += 1
        sampler.set_epoch(epoch)
    return found[: 9 - skip]


@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('sampler', [DEFAULT, dict(type='OwnOrder')], ids=['default', 'own order'])
def test_samplers_that_end_are_resumed_within_and_past_an_epoch(sampler, drop_last):
    """Five samples in batches of two: three steps an epoch, or two without the last."""
    whole = batches(sampler, drop_last)
    assert len({seed for batch in whole for _, seed in batch}) == sum(map(len, whole))
    in_order = [index for batch in whole[: 2 if drop_last else 3] for index, _ in batch]
    assert len(set(in_order)) == len(in_order)  # an epoch has no sample twice
    for skip in range(1, 9):
        assert batches(sampler, drop_last, skip) == whole[skip:], skip


def test_epochs_after_resuming_are_those_of_the_sampler():
    """By hand: behind 4 batches of 2 of 5 samples the second epoch has begun."""
    sampler = SeededSampler(Drawing(), DEFAULT, seed=3)
    sampler.skip_batches(4, 2)
    plain = DefaultSampler(Drawing(), seed=3)
    plain.set_epoch(1)
    assert list(sampler) == list(plain)[2:]
    sampler.set_epoch(1)
    plain.set_epoch(2)
    assert list(sampler) == list(plain)


class WithPipeline(Drawing):
    def __init__(self):
        self.pipeline = Compose([])

    def __getitem__(self, index):
        return self.pipeline(dict(index=index))

    def __getitems__(self, indices):  # PyTorch prefers it, and it knows no seeds
        raise AssertionError

    def __getstate__(self):
        return vars(self)

    def __deepcopy__(self, memo):
        return WithPipeline()


def test_what_is_set_on_it_acts_on_the_data_set():
    """As hooks that switch augmentation do: ``dataset.pipeline = ...``."""
    dataset = SeededDataset(WithPipeline())
    dataset.pipeline = Compose([lambda sample: dict(sample, switched=True)])
    assert dataset[SeededIndex.of(1, 9)] == dict(index=1, switched=True)
    assert 'pipeline' in vars(dataset.dataset) and list(vars(dataset)) == ['dataset']
    assert next(iter(DataLoader(dataset, 5, collate_fn=list)))[0]['switched']
    for copied in (copy.deepcopy(dataset), copy.copy(dataset)):
        assert type(copied) is SeededDataset and type(copied.dataset) is WithPipeline
    several = SeededDataset(ConcatDataset([WithPipeline(), WithPipeline()]))
    assert not hasattr(several, 'pipeline')  # a hook then looks into its datasets
    assert len(several.datasets) == 2
