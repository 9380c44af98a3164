"""docs/page.png: the first half of a running service's page, on posts that are made up. `make picture` runs it."""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from PIL import Image

from support.browser import chromium
from support.frames import tid
from support.led import Led, did_of, led_relay
from support.told_model import told_model
from support.watched import SECOND, seed, shows, some, watched
from support.words import english, foreign

POSTS = 10_400
"""There before: the page holds 10,000."""
SECONDS = 75
"""Of traffic before the picture: the rates' curves have a minute then."""
ENGLISH, OTHERS, ELSE = 12, 6, 25
"""Frames a second: posts in English and not, and what is no post."""
WIDTH = 1280
END = "document.querySelector('#shares').getBoundingClientRect().bottom + scrollY + 18"
COLOURS = 128
LATER = 10_000_000
"""The names of posts go on far above those that are there."""


def main(file: Path) -> None:
    """Take it."""
    with tempfile.TemporaryDirectory(prefix="civicsky-picture-") as made, led_relay() as relay:
        folder = Path(made)
        seed(folder / "data", some(POSTS, now=int(time.time() * SECOND)))
        with (
            told_model(folder / "model", "--delay", "0.3") as model,
            watched(folder / "data", relay, model.url) as service,
            chromium(folder) as browser,
        ):
            page = browser.open(service.url + "/")
            page.resize(WIDTH)
            with _traffic(relay):
                time.sleep(SECONDS)
                shows(page.evaluate, "document.querySelector('#shares-hero').textContent.includes('n = ')", "shares")
                page.screenshot(folder / "page.png", height=int(page.evaluate(END)))
        # An interface has few colours, and a picture in a repository stays there for ever.
        Image.open(folder / "page.png").convert("RGB").quantize(COLOURS).save(file, optimize=True)


@contextmanager
def _traffic(relay: Led) -> Iterator[None]:
    ended = threading.Event()

    def send() -> None:
        chance, number, began = Random(1), 0, time.time()
        gap = 1 / (ENGLISH + OTHERS + ELSE)
        while not ended.wait(gap):
            number += 1
            at, which = int(time.time() * SECOND), chance.random() * (ENGLISH + OTHERS + ELSE)
            if which > ENGLISH + OTHERS:
                relay.account("active", did=did_of(chance.randrange(400)), at=at)
                continue
            text = english(chance, number) if which < ENGLISH else foreign(chance, number)[1]
            relay.post(tid(int(began) + LATER + number), text, did=did_of(chance.randrange(400)), at=at)

    thread = threading.Thread(target=send, name="traffic")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
