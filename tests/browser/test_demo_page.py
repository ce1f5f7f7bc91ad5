"""The page of demo in Debian's Chromium: drop, upload and draw a picture, choose an example, read the answer."""

import base64
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from resnet_jax import cli, load
from resnet_jax.cli.demo import free_port
from resnet_jax.cli.demo_answer import Answer, Explainer
from resnet_jax.cli.demo_examples import examples_of

pytestmark = pytest.mark.browser

COLOURS = {"apple": (200, 40, 40), "leaf": (40, 180, 60), "sky": (60, 90, 220)}
DROP = """
async ([selector, content]) => {
  const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
  const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", options));
}
"""


class Opened(NamedTuple):
    """The page, the network behind it, and what the browser has reported so far."""

    page: Any
    explainer: Explainer
    requests: list[str]
    faults: list[str]


def picture(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """A bright disc of that colour on a dark, noisy background, RGB."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 40, (24, 24, 3))
    rows, columns = np.mgrid[:24, :24] - rng.integers(8, 16, (2, 1, 1))
    pixels[rows**2 + columns**2 < 36] += np.array(colour)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run on a folder of colour pictures."""
    folder = tmp_path_factory.mktemp("demo")
    for number in range(60):
        name = list(COLOURS)[number % 3]
        path = folder / "pictures" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(COLOURS[name], number).save(path)
    flags = f"--data-folder {folder}/pictures --arch resnet20 --width 0.5 --image-size 24 --epochs 4 --batch-size 16"
    assert cli.main([*flags.split(), "--devices", "1", "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def address(run_dir) -> Iterator[str]:
    """The page of a process of its own. Ctrl-C ends it without a traceback."""
    port = free_port("127.0.0.1")
    words = [sys.executable, "-m", "resnet_jax", "demo", run_dir, "--port", str(port), "--no-browser"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as server:
        lines = []
        for line in server.stdout or ():
            lines.append(line)
            if line.startswith("the page is at"):
                break
        assert lines[-1] == f"the page is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n", "".join(lines)
        yield f"http://127.0.0.1:{port}/"
        server.send_signal(signal.SIGINT)
        rest, _ = server.communicate(timeout=60)
    assert (server.returncode, rest) == (0, "the page is closed\n")


@pytest.fixture
def opened(browser, address, run_dir) -> Iterator[Opened]:
    """A new tab. At the end: no error in the console, and no request to another host."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    held = Opened(page, Explainer(load(run_dir), run_dir), [], [])
    page.on("console", lambda message: held.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: held.faults.append(str(error)))
    page.on("request", lambda request: held.requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("#picture input[type=file]", state="attached")
    yield held
    page.close()
    assert held.faults == []
    assert len(held.requests) > 10
    assert [url for url in held.requests if not url.startswith((address, "data:", "blob:"))] == []


def wait_for_note(page: Any, start: str) -> str:
    """The note, once it starts with that text."""
    text = "start => document.querySelector('#note')?.innerText.startsWith(start)"
    page.wait_for_function(text, arg=start, timeout=30_000)
    return page.inner_text("#note").strip()


def check(opened: Opened, answer: Answer) -> None:
    """The page shows this answer: the note, class and percentages, and both pictures, pixel by pixel."""
    page = opened.page
    assert wait_for_note(page, answer.note) == answer.note
    assert answer.probabilities is not None
    ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    page.wait_for_function("name => document.querySelector('#classes h2')?.innerText.trim() === name", arg=ranked[0][0])
    words = page.inner_text("#classes").split()
    assert words[1::2] == [name for name, _ in ranked]
    shares = [float(word.rstrip("%")) / 100 for word in words[2::2]]
    np.testing.assert_allclose(shares, [share for _, share in ranked], atol=0.006)
    pictures: Any = (("seen", answer.seen), ("overlay", answer.overlay))
    for name, pixels in pictures:
        source = page.wait_for_selector(f"#{name} img").get_attribute("src")
        shown = np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"), int)
        assert pixels is not None
        np.testing.assert_allclose(shown, pixels, atol=2)


def test_a_picture_is_uploaded_and_one_is_dropped(opened, tmp_path):
    page, names = opened.page, list(COLOURS)
    paths = [tmp_path / f"{name}.png" for name in names]
    for path, name in zip(paths, names, strict=True):
        picture(COLOURS[name], 100).resize((90, 60)).save(path)
    page.set_input_files("#picture input[type=file]", paths[0])
    check(opened, opened.explainer.of_file(paths[0]))
    page.click("#picture button[aria-label='Remove Image']")
    page.wait_for_function("!document.querySelector('#note')?.innerText.trim()")
    assert page.query_selector("#overlay img") is None
    content = base64.b64encode(paths[1].read_bytes()).decode()
    page.evaluate(DROP, ["#picture button[aria-label^='Drop']", content])
    check(opened, opened.explainer.of_file(paths[1]))


def test_an_example(opened):
    page, example = opened.page, examples_of(opened.explainer.predictor)[2]
    page.get_by_role("tab", name="Draw").click()
    page.locator("#examples button:has(img)").nth(2).click()
    answer = opened.explainer.of_pixels(example.pixels)
    check(opened, answer._replace(note=f"Its class is sky. {answer.note}"))
    assert page.locator("#picture img").is_visible()  # the tab of pictures is open again
    assert page.locator("#examples .caption-label").all_inner_texts() == list(COLOURS)


def test_a_text_file_is_a_note(opened, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    opened.page.set_input_files("#picture input[type=file]", tmp_path / "text.png")
    assert "give a PNG, JPEG" in wait_for_note(opened.page, "text.png cannot be read as a picture")
    assert opened.page.query_selector("#overlay img") is None


def test_a_drawing(opened):
    page = opened.page
    page.get_by_role("tab", name="Draw").click()
    button = page.get_by_role("button", name="Classify the drawing")
    page.wait_for_selector("#sketch canvas")
    button.click()
    wait_for_note(page, "The drawing is empty.")
    page.click("#sketch button[aria-label='Brush']")
    box = page.locator("#sketch canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y - 80)
    page.mouse.down()
    page.mouse.move(x + 60, y + 80, steps=10)
    page.mouse.up()
    button.click()
    wait_for_note(page, "The picture was not inverted.")
    source = page.wait_for_selector("#seen img").get_attribute("src")
    seen = np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("L"), int)
    height, width = seen.shape
    assert seen[height // 2, width // 2] < 100  # the stroke, from the upper left to the lower right, on white
    assert seen[height // 4, 3 * width // 4] > 200
    assert page.inner_text("#classes h2").strip() in COLOURS
