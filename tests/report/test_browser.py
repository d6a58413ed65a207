"""The page in a real browser, where one is installed: no errors, no requests, and it fits a desk and a phone."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import numpy as np
import pytest
from PIL import Image

from bootmae.report import Curve, ResultRow, build_page, published_rows, reconstruction_grid, segmentation_grid
from bootmae.report.screenshots import LARGEST, take_screenshots

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason='no Chromium here')]

# Runs inside the page once everything is loaded; what it measures becomes the title of the page around it.
PROBE = """
addEventListener('load', async () => {
  const one = selector => document.querySelector(selector), box = element => element.getBoundingClientRect();
  const shade = () => getComputedStyle(document.body).backgroundColor;
  const overview = one('#overview .scroll'), method = one('#overview tbody th');
  overview.scrollLeft = 10000;
  const found = {
    width: innerWidth, sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    scrolls: overview.scrollLeft > 0, sticks: Math.abs(box(method).left - box(overview).left) < 1,
    end: Math.abs(box(one('#overview tbody td:last-child')).right - box(overview).right) < 1,
    heading: [...document.querySelectorAll('#overview thead tr:last-child th')].map(head => head.innerText),
    dot: getComputedStyle(one('#overview tr:nth-child(3) i')).backgroundColor,
    prediction: box(one('#predictions img')).width, reconstruction: box(one('#reconstructions img')).width,
    requests: performance.getEntriesByType('resource').filter(entry => !entry.name.startsWith('data:')).length,
  };
  one('#predictions .zoom').click();
  found.open = one('dialog').open;
  found.larger = box(one('dialog img')).width;
  found.name = one('#larger-name').textContent;
  one('dialog form button').click();
  one('.comparison th.number:nth-child(6) button').click();
  found.sorted = [...document.querySelectorAll('.comparison tbody td:nth-child(6)')].map(cell => cell.dataset.sort);
  found.closed = !one('dialog').open;
  const column = (table, index) => [...document.querySelectorAll(`${table} tbody tr`)].map(
    row => row.cells[index].textContent);
  const classes = one('details.classes'), head = index => document.querySelectorAll('.classes th button')[index];
  found.folded = !classes.open && !one('.classes table').checkVisibility();
  classes.open = true;
  found.classes = column('.classes', 0);
  head(3).click();
  found.gains = column('.classes', 3);
  head(0).click();
  found.names = column('.classes', 0);
  found.order = document.querySelector('.classes th').getAttribute('aria-sort');
  found.opened = [...document.querySelectorAll('.zoom')].filter(zoom => {
    zoom.click();
    const shown = one('dialog').open && box(one('#larger-body > *')).width > 0;
    one('dialog form button').click();
    return shown && !one('dialog').open;
  }).length;
  found.pictures = document.querySelectorAll('.zoom').length;
  one('details.commands').open = true;
  found.fits = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const before = shade(), theme = one('#theme').textContent;
  one('#theme').click();
  found.theme = [theme, one('#theme').textContent, before !== shade()];
  const copied = [];  // the clipboard of a headless browser is closed, so the page falls back to selecting
  document.execCommand = kind => { copied.push([kind, document.activeElement.value]); return true; };
  const copies = [...document.querySelectorAll('.copy')];
  copies.forEach(copy => copy.click());
  await new Promise(done => setTimeout(done, 300));
  found.copied = copied;
  found.commands = [...document.querySelectorAll('.command code')].map(code => ['copy', code.textContent]);
  found.said = copies.map(copy => copy.textContent);
  parent.document.title = JSON.stringify(found);
});
"""

NAMES = ('sky', 'Sea', 'ant')


def page():
    rows = [
        ResultRow(data, method, task, 'all', metric, mean + offset + seed, seed, label='demo')
        for mean, (data, task, metric) in enumerate(
            [
                ('photos', 'knn', 'accuracy'),
                ('photos', 'linear', 'accuracy'),
                ('photos', 'finetune', 'accuracy'),
                ('digits', 'knn', 'accuracy'),
                ('digits', 'linear', 'accuracy'),
                ('digits', 'finetune', 'accuracy'),
                ('digit scenes', 'segmentation', 'mIoU'),
                ('digit scenes', 'detection', 'box AP'),
                ('digit scenes', 'detection', 'mask AP'),
            ]
        )
        for offset, method in ((10, 'untrained'), (30, 'mae'), (20, 'bootmae'))
        for seed in (0, 1)
    ]
    # whose data has published numbers
    missing = ResultRow('ADE20K', 'mae', 'segmentation', 'all', 'mIoU', float('nan'), 0, 'ViT-B', label='not run')
    images = np.random.default_rng(0).integers(0, 256, (2, 80, 112, 3), dtype=np.uint8)
    labels = (images[..., 0] > 128).astype(int)
    panels = dict.fromkeys(('truth', 'untrained', 'mae', 'bootmae'), labels)
    curves = [Curve(f'photos/{method}/0', np.arange(3), {'probe/knn': np.arange(3.0)}) for method in ('mae', 'bootmae')]
    classes = [
        ('digit scenes', 'segmentation', method, 0, 'IoU', dict(zip(NAMES, numbers)))
        for method, numbers in (('mae', (9, 20, 30)), ('bootmae', (19, 18, 100)))
    ]
    return build_page(
        'Title',
        [*rows, missing],
        metrics=curves,
        classes=classes,
        cells=[('knn/mae-0', 'failed', 'why')],
        commands={'Run': 'make demo', 'Again': 'tools/suite.py "a b.yaml" ' + '--option ' * 30},
        pictures={'R': reconstruction_grid({'original': images, 'masked': images})},
        predictions={'P': segmentation_grid(images, panels, [(40, 40, 40), (230, 20, 0)], ['a', 'b'])},
    )


def look(folder, width, theme):
    """What the probe found with the page in a frame of this width, and what the browser complained of."""
    # The whole page is an attribute of its frame: one process and one origin, so the outer page loads after the probe.
    inner = page().replace('</body>', f'<script>{PROBE}</script></body>').replace('<html', f'<html data-theme={theme}')
    (folder / 'frame.html').write_text(
        f'<title></title><iframe srcdoc="{escape(inner)}" style="border: 0; width: {width}px; height: 900px"></iframe>'
    )
    done = subprocess.run(
        [
            BROWSER,
            '--headless=new',
            '--no-sandbox',
            '--disable-gpu',
            '--disable-dev-shm-usage',
            '--no-first-run',
            '--hide-scrollbars',
            '--enable-logging=stderr',
            f'--user-data-dir={folder / "profile"}',
            f'--window-size={max(width, 600)},900',
            '--virtual-time-budget=5000',
            '--dump-dom',
            (folder / 'frame.html').as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search(r'<title>(.+?)</title>', done.stdout)
    assert title, done.stderr[-2000:]
    return json.loads(unescape(title[1])), [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def works(found):
    """What a click does, on any screen."""
    assert found['folded']
    assert (found['classes'], found['gains']) == (['sky', 'Sea', 'ant'], ['+70.00 (1)', '+10.00 (1)', '−2.00 (1)'])
    assert (found['names'], found['order']) == (['ant', 'Sea', 'sky'], 'ascending')
    assert found['opened'] == found['pictures'] == 9  # two plots of each data set, a curve, prediction, reconstruction
    assert found['fits'] == 0
    assert found['theme'][2]
    assert found['copied'] == found['commands']
    assert len(found['commands']) == 2 + sum(row.data == 'ADE20K' for row in published_rows())
    assert set(found['said']) == {'Copied'}


def test_desk(tmp_path):
    found, complaints = look(tmp_path, 1280, 'light')
    assert complaints == []
    works(found)
    assert found['theme'][:2] == ['Dark', 'Light']
    assert (found['width'], found['sideways'], found['requests']) == (1280, 0, 0)
    assert not found['scrolls']  # nine tasks fit
    assert found['end']
    assert [text.split('\n')[0].replace('\u2011', '-') for text in found['heading']] == [
        'k-NN',
        'linear probe',
        'fine-tuning',
    ] * 2 + ['segmentation mIoU', 'detection box AP', 'detection mask AP']
    assert found['dot'] == 'rgb(194, 65, 12)'
    assert (found['open'], found['name'], found['closed']) == (True, 'P', True)
    assert found['larger'] > found['prediction'] + 100
    assert found['sorted'] == sorted(found['sorted'], key=float, reverse=True)
    assert len(set(found['sorted'])) == 9


def test_phone(tmp_path):
    found, complaints = look(tmp_path, 390, 'dark')
    assert complaints == []
    works(found)
    assert found['theme'][:2] == ['Light', 'Dark']
    assert (found['width'], found['sideways'], found['requests']) == (390, 0, 0)
    assert found['scrolls']
    assert found['sticks']
    assert found['end']
    assert found['dot'] == 'rgb(255, 154, 92)'
    assert found['prediction'] > 600  # scrolls instead of shrinking
    assert found['reconstruction'] <= 390
    assert found['larger'] > found['prediction'] + 100


def test_screenshots(tmp_path):
    (tmp_path / 'a b.html').write_text(page())
    wide, narrow = take_screenshots(tmp_path / 'a b.html', tmp_path / 'images')
    assert (wide.name, narrow.name) == ('report-wide.png', 'report-narrow.png')
    for path, size, paper in ((wide, (2560, 1920), (255, 255, 255)), (narrow, (780, 1920), (21, 23, 26))):
        assert path.stat().st_size <= LARGEST
        with Image.open(path) as picture:
            assert picture.size == size
            pixels = picture.convert('RGB')
            assert pixels.getpixel((4, 4)) == paper  # light and dark
            assert len(pixels.crop((40, 60, 600, 200)).getcolors(1 << 20)) > 8  # the title, smoothed
