"""Screenshots of a report for the README, taken by a headless browser at desktop and phone width."""

import io
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from ..files import write_file

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
LARGEST = 250_000  # bytes per picture
FLAGS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--hide-scrollbars',
)
SMALLEST_WINDOW = 600  # pixels; browsers allow no narrower window, so the page is in a frame of its width


@dataclass(frozen=True)
class Screen:
    """One screenshot: page width and height in CSS pixels, picture pixels per CSS pixel, and the color theme."""

    width: int
    height: int
    scale: int
    theme: str


SCREENS = {'wide': Screen(1280, 960, 2, 'light'), 'narrow': Screen(390, 960, 2, 'dark')}


def find_browser() -> str:
    """Path of a Chromium.

    Raises:
        FileNotFoundError: There is none.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError(
            f'no browser for screenshots: none of {", ".join(BROWSERS)} is on the PATH; install Chromium'
        )
    return found


def take_screenshots(report: str | Path, folder: str | Path) -> list[Path]:
    """Write ``report-wide.png`` and ``report-narrow.png``: the top of the page, each below 250 kB.

    Raises:
        FileNotFoundError: No such report, or no browser.
        ValueError: The browser wrote no picture.
    """
    report, folder = Path(report).resolve(), Path(folder)
    if not report.is_file():
        raise FileNotFoundError(f'{report}: no such report; write it first')
    browser, paths = find_browser(), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, screen in SCREENS.items():
        path = folder / f'report-{name}.png'
        data = small_png(_shoot(browser, report, screen))
        write_file(path, lambda temporary, data=data: temporary.write_bytes(data))
        paths.append(path)
    return paths


def _shoot(browser: str, report: Path, screen: Screen) -> Image.Image:
    """The top of the page on this screen."""
    with tempfile.TemporaryDirectory() as temporary:
        frame, picture = Path(temporary, 'frame.html'), Path(temporary, 'picture.png')
        address = escape(f'{report.as_uri()}?theme={screen.theme}')
        frame.write_text(
            f'<body style="margin: 0"><iframe src="{address}" style="border: 0; width: {screen.width}px; '
            f'height: {screen.height}px"></iframe>',
            encoding='utf-8',
        )
        done = subprocess.run(
            [
                browser,
                *FLAGS,
                f'--user-data-dir={temporary}/profile',
                f'--screenshot={picture}',
                f'--force-device-scale-factor={screen.scale}',
                '--virtual-time-budget=3000',
                f'--window-size={max(screen.width, SMALLEST_WINDOW)},{screen.height}',
                frame.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        if not picture.is_file():
            raise ValueError(f'{browser} wrote no picture of {report}: {done.stderr.strip()[-300:]}')
        with Image.open(picture) as whole:
            return whole.convert('RGB').crop((0, 0, screen.width * screen.scale, screen.height * screen.scale))


def small_png(picture: Image.Image, largest: int = LARGEST) -> bytes:
    """PNG with a palette of as many colors as the size limit allows.

    Raises:
        ValueError: Even 16 colors are too many.
    """
    for colors in (256, 128, 64, 32, 16):
        buffer = io.BytesIO()
        picture.quantize(colors, dither=Image.Dither.NONE).save(buffer, 'PNG', optimize=True)
        if buffer.tell() <= largest:
            return buffer.getvalue()
    raise ValueError(f'a picture of {picture.width} x {picture.height} pixels does not fit {largest} bytes')
