"""Tests of reports in a browser: they load from a file without requests or errors, and fit a phone."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from report_records import EVIL, records, scored

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not BROWSER or not DRIVER:
    pytest.skip("needs chromium and chromedriver (apt install chromium chromium-driver)", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")

from sft_jax.report.classification import report_page  # noqa: E402
from sft_jax.report.comparison import comparison_page  # noqa: E402

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE, DESKTOP = 360, 1200


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    many = [f"a class with a rather long name, {label}" for label in range(100)]
    evil = scored(3, size=80, names=[f"{'long' * 60}/{row}{EVIL}.png" for row in range(200)])
    texts = {
        "ten": report_page(records(), list("0123456789"), scored(10), 1.25),
        "evil": report_page(records(EVIL), [EVIL, "x" * 200, "<img src=http://localhost:1/>"], evil, 1.0),
        "hundred": report_page(records(), many, scored(100, n=2000), 1.0),
        "compared": comparison_page([records(f"run {name}", seed=name) for name in range(10)]),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


def show(browser, page, *, width=DESKTOP, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())


@pytest.mark.parametrize("name", ["ten", "evil", "hundred", "compared"])
def test_a_page_loads_without_requests(browser, pages, name):
    page = pages / f"{name}.html"
    show(browser, page)
    assert browser.get_log("browser") == [], "the console is empty: no error, nothing refused by the policy"
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    sizes = browser.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.width, i.height, i.alt.length])"
        ".concat([...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().width,"
        " s.getBoundingClientRect().height, s.getAttribute('aria-label').length]))"
    )
    assert len(sizes) >= 5
    assert all(min(size) > 0 for size in sizes), "every image has a size and an alternative text"


@pytest.mark.parametrize("name", ["ten", "evil", "hundred", "compared"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_overflows_the_page(browser, pages, name, width):
    show(browser, pages / f"{name}.html", width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll > *') && "
        f"e.getBoundingClientRect().right > {width} + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_names_stay_text(browser, pages):
    show(browser, pages / "evil.html")
    assert browser.execute_script("return document.scripts.length") == 0
    assert EVIL in browser.execute_script("return document.body.textContent")


def background(browser):
    shot = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"])
    with Image.open(io.BytesIO(shot)) as image:
        return np.asarray(image.convert("L"))


def test_dark_mode_is_dark(browser, pages):
    means = {}
    for scheme in ("light", "dark"):
        show(browser, pages / "ten.html", scheme=scheme)
        means[scheme] = background(browser).mean()
    assert means["dark"] < 60 < 200 < means["light"]


def test_text_has_enough_contrast_in_both_modes(browser, pages):
    """The contrast between text and background is at least 4.5 (WCAG 2.1, 1.4.3)."""
    script = """
      const style = getComputedStyle(document.documentElement);
      const probe = document.body.appendChild(document.createElement('i'));
      return Object.fromEntries(['page', 'card', 'ink', 'soft', 'bad'].map(name => {
        probe.style.color = style.getPropertyValue('--' + name);
        return [name, getComputedStyle(probe).color.match(/\\d+/g).map(Number)];
      }));
    """
    for scheme in ("light", "dark"):
        show(browser, pages / "ten.html", scheme=scheme)
        light = {name: luminance(colour) for name, colour in browser.execute_script(script).items()}
        for text in ("ink", "soft", "bad"):
            for behind in ("page", "card"):
                low, high = sorted((light[text], light[behind]))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, text, behind)


def luminance(colour):
    parts = (value / 255 for value in colour)
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
