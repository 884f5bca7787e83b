"""A real browser: Debian's Chromium, driven by Selenium, with pages that a test writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from origin import Exchange, Origin, running_origin
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # which Chromium cannot set up for root
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-gpu",
    "--no-proxy-server",
)
_SECONDS = 60

FORM = """<!doctype html><form action="{url}" method="post" enctype="multipart/form-data">
<input type="file" name="{field}"><button>Send</button></form>"""


@contextmanager
def running_browser() -> Iterator[Chrome]:
    """Yield it. Skips the test where there is none, unless FRAMEBOX_REQUIRE_BROWSER demands one."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        reason = "no Chromium, or no driver for it"
        if os.environ.get("FRAMEBOX_REQUIRE_BROWSER", "") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = ChromeOptions()
    options.binary_location = program
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    browser = Chrome(options, Service(driver))
    browser.set_page_load_timeout(_SECONDS)
    browser.set_script_timeout(_SECONDS)
    try:
        yield browser
    finally:
        browser.quit()


@contextmanager
def site(pages: dict[str, bytes]) -> Iterator[Origin]:
    """Yield a server of somebody else's that has these files, by their paths."""

    def serve(exchange: Exchange) -> None:
        body = pages.get(exchange.request.path)
        kind = "text/javascript" if exchange.request.path.endswith(".js") else "text/html; charset=utf-8"
        exchange.send(404 if body is None else 200, body or b"", Content_Type=kind)

    with running_origin() as origin:
        origin.usual = serve
        yield origin


def choose_file(browser: Chrome, file: Path) -> None:
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))


def send_form(browser: Chrome, url: str, file: Path, *, field: str = "video") -> str:
    """Send a form with one file to `url`, from a page of another site; return the text that is shown then."""
    with site({"/": FORM.format(url=url, field=field).encode()}) as page:
        browser.get(page.url)
        choose_file(browser, file)
        browser.find_element(By.TAG_NAME, "button").click()
        WebDriverWait(browser, _SECONDS).until(lambda _: browser.current_url == url)
        return str(browser.find_element(By.TAG_NAME, "pre").get_attribute("textContent"))
