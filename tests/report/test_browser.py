"""The page in a real browser, where one is installed: no errors, no requests, and it fits a desk and a phone."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import numpy as np
import pytest

from bootmae.report import ResultRow, build_page, reconstruction_grid, segmentation_grid

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason='no Chromium here')]

# Runs inside the page once everything is loaded; what it measures becomes the title of the page around it.
PROBE = """
addEventListener('load', () => {
  const one = selector => document.querySelector(selector), box = element => element.getBoundingClientRect();
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
  parent.document.title = JSON.stringify(found);
});
"""


def page():
    rows = [ResultRow(data, method, task, 'all', metric, mean + offset + seed, seed, label='demo')
            for mean, (data, task, metric) in enumerate([
                ('photos', 'knn', 'accuracy'), ('photos', 'linear', 'accuracy'), ('photos', 'finetune', 'accuracy'),
                ('digits', 'knn', 'accuracy'), ('digits', 'linear', 'accuracy'), ('digits', 'finetune', 'accuracy'),
                ('digit scenes', 'segmentation', 'mIoU'), ('digit scenes', 'detection', 'box AP'),
                ('digit scenes', 'detection', 'mask AP')])
            for offset, method in ((10, 'untrained'), (30, 'mae'), (20, 'bootmae')) for seed in (0, 1)]
    images = np.random.default_rng(0).integers(0, 256, (2, 80, 112, 3), dtype=np.uint8)
    labels = (images[..., 0] > 128).astype(int)
    panels = dict.fromkeys(('truth', 'untrained', 'mae', 'bootmae'), labels)
    return build_page('Title', rows, pictures={'R': reconstruction_grid({'original': images, 'masked': images})},
                      predictions={'P': segmentation_grid(images, panels, [(40, 40, 40), (230, 20, 0)], ['a', 'b'])})


def look(folder, width, theme):
    """What the probe found with the page in a frame of this width, and what the browser complained of."""
    # The whole page is an attribute of its frame: one process and one origin, so the outer page loads after the probe.
    inner = page().replace('</body>', f'<script>{PROBE}</script></body>').replace('<html', f'<html data-theme={theme}')
    (folder / 'frame.html').write_text(f'<title></title><iframe srcdoc="{escape(inner)}" '
                                       f'style="border: 0; width: {width}px; height: 900px"></iframe>')
    done = subprocess.run(
        [BROWSER, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
         '--hide-scrollbars', '--enable-logging=stderr', f'--user-data-dir={folder / "profile"}',
         f'--window-size={max(width, 600)},900', '--dump-dom', (folder / 'frame.html').as_uri()],
        capture_output=True, text=True, timeout=120)
    title = re.search(r'<title>(.+?)</title>', done.stdout)
    assert title, done.stderr[-2000:]
    return json.loads(unescape(title[1])), [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def test_desk(tmp_path):
    found, complaints = look(tmp_path, 1280, 'light')
    assert complaints == []
    assert (found['width'], found['sideways'], found['requests']) == (1280, 0, 0)
    assert not found['scrolls']  # nine tasks fit
    assert found['end']
    assert [text.split('\n')[0].replace('\u2011', '-') for text in found['heading']] == [
        'k-NN', 'linear probe', 'fine-tuning'] * 2 + ['segmentation mIoU', 'detection box AP', 'detection mask AP']
    assert found['dot'] == 'rgb(194, 65, 12)'
    assert (found['open'], found['name'], found['closed']) == (True, 'P', True)
    assert found['larger'] > found['prediction'] + 100
    assert found['sorted'] == sorted(found['sorted'], key=float, reverse=True)
    assert len(set(found['sorted'])) == 9


def test_phone(tmp_path):
    found, complaints = look(tmp_path, 390, 'dark')
    assert complaints == []
    assert (found['width'], found['sideways'], found['requests']) == (390, 0, 0)
    assert found['scrolls']
    assert found['sticks']
    assert found['end']
    assert found['dot'] == 'rgb(255, 154, 92)'
    assert found['prediction'] > 600  # scrolls instead of shrinking
    assert found['reconstruction'] <= 390
    assert found['larger'] > found['prediction'] + 100
