"""Inputs of toy size for tests of the algorithm."""

import torch
from mmpretrain.structures import DataSample


def images(batch=2, size=(32, 32), seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples(ids_shuffle):
    return [DataSample(ids_shuffle=row.numpy()) for row in ids_shuffle]
