"""Rows, pictures and checks that the tests of the page share."""

import re
from html import unescape
from html.parser import HTMLParser

import numpy as np

from bootmae.report import Curve, ResultRow, build_page, reconstruction_grid

HOSTILE = '<img src=x onerror="alert(1)">&\'"'


def rows_of(better=2.0, data='digits', label='demo'):
    means = {'untrained': 60.0, 'mae': 90.0, 'bootmae': 90.0 + better}
    cost = {'untrained': (0.0, 0), 'mae': (100.0, 5000), 'bootmae': (150.0, 5000)}
    return [
        ResultRow(
            data,
            method,
            task,
            'all',
            'accuracy',
            mean + 0.2 * seed,
            seed,
            'k=20',
            f'configs/{method}.py',
            f'{method}_{seed}.pth',
            f'{method}{seed}' * 6,
            'c0ffee',
            '2 cores',
            'float32',
            *cost[method],
            '2026-01-02',
            label,
        )
        for method, mean in means.items()
        for task in ('knn', 'linear')
        for seed in (0, 1)
    ]


def curve():
    return Curve('digits/bootmae/0', np.arange(4), {'loss_pixel': np.ones(4), 'loss_feature': np.ones(4)})


def picture(height=16):
    image = np.random.default_rng(0).integers(0, 256, (2, height, height, 3), dtype=np.uint8)
    return reconstruction_grid({'original': image, 'masked': image, 'MAE': image, 'BootMAE': image})


def full_page(rows):
    provenance = {'versions': {'torch': '2.11'}, 'host': ['a', 'b']}
    return build_page(
        'Title',
        rows,
        [curve()],
        {'Digits': picture()},
        provenance,
        {'Run': 'make demo'},
        ['A last note.'],
        {'Digit scenes': picture()},
    )


def words(page):
    """Text of the page as a reader sees it."""
    body = re.sub(r'<(style|script).*?</\1>', '', page, flags=re.S)
    return re.sub(r'\s+', ' ', unescape(re.sub(r'<[^>]+>', ' ', body))).replace('\u2011', '-')


class Checker(HTMLParser):
    """Collects addresses and ids, and checks that tags close in order."""

    VOID = ('meta', 'link', 'img', 'br', 'path', 'use', 'rect', 'input')
    ADDRESSES = ('src', 'href', 'xlink:href', 'action', 'srcset', 'poster', 'data')

    def __init__(self):
        super().__init__()
        self.addresses, self.ids, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in self.ADDRESSES]
        self.ids += [value for name, value in attrs if name == 'id']
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker
