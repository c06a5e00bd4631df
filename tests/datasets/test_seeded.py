"""Augmentation depends on the run's seed, the rank and a sample's place, and on nothing else."""

import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader, Dataset

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
    sampler.skip(skip)
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
