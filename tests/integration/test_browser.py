"""What people do in a browser, done in one: a resumable upload, a wrong form, a look at the dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from browser import choose_file, running_browser, send_form, site
from double_engine import document
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from web_instance import WebInstance, running_instance

SECONDS = 30.0
VIDEO = b'{"frames": 5}'.ljust(3_000_001)  # orders for the stand-in engine, which passes over the spaces
TUS_JS = Path(__file__).with_name("tus_js") / "node_modules" / "tus-js-client" / "dist" / "tus.min.js"

RESUMABLE = """<!doctype html><script src="/tus.js"></script><input type="file">
<script>
document.querySelector("input").addEventListener("change", event => {{
  let job = null
  const upload = new tus.Upload(event.target.files[0], {{
    endpoint: "{url}/v1/uploads",
    chunkSize: 1000000,
    metadata: {{filename: "clip.mp4", detect: ""}},
    onAfterResponse: (_request, response) => {{ job = response.getHeader("Framebox-Job") ?? job }},
    onError: error => {{ document.title = `failed: ${{error}}` }},
    onSuccess: () => {{ document.title = `sent: ${{job}}` }},
  }})
  upload.start()
}})
</script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(VIDEO)
    return path


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    with running_instance(tmp_path_factory.mktemp("browser"), CORS_ORIGINS="*") as instance:
        yield instance


def test_a_wrong_form_shows_what_is_wrong(instance: WebInstance, browser: Chrome, video: Path):
    problem = json.loads(send_form(browser, f"{instance.url}/v1/detections", video, field="film"))
    assert (problem["code"], problem["parameter"], problem["allowed"]) == (
        "invalid_option",
        "film",
        ["video"],
    )


def test_a_page_of_another_site_uploads_in_pieces(instance: WebInstance, browser: Chrome, video: Path):
    pages = {"/": RESUMABLE.format(url=instance.url).encode(), "/tus.js": TUS_JS.read_bytes()}
    with site(pages) as page:
        browser.get(page.url)
        choose_file(browser, video)
        WebDriverWait(browser, SECONDS).until(lambda _: browser.title)
        told = browser.title
    assert told.startswith("sent: "), told
    result = f"{instance.url}/v1/jobs/{told.removeprefix('sent: ')}/result"
    WebDriverWait(browser, SECONDS).until(lambda _: requests.get(result, timeout=SECONDS).ok)
    assert requests.get(result, timeout=SECONDS).content == b"".join(document(5))


def test_the_dashboard_shows_jobs_and_leads_to_their_reports(
    instance: WebInstance, browser: Chrome, video: Path
):
    name = '<script>document.title = "not escaped"</script>.mp4'
    files = {"video": (name, video.read_bytes())}
    answer = requests.post(f"{instance.url}/v1/detections", files=files, timeout=SECONDS)
    job_id = answer.headers["Framebox-Job"]
    browser.get(instance.url)
    assert browser.title == "Framebox: jobs"
    row = browser.find_element(By.XPATH, f"//tr[contains(., '{job_id[:12]}')]")
    assert "succeeded" in row.text
    assert name in row.text
    row.find_element(By.TAG_NAME, "a").click()
    assert json.loads(browser.find_element(By.TAG_NAME, "body").text)["id"] == job_id


@pytest.mark.parametrize("page", ["/", "/docs", "/docs/errors"])
def test_pages_load_without_a_fault(instance: WebInstance, browser: Chrome, page: str):
    browser.get_log("browser")  # which takes what earlier pages left there
    browser.get(f"{instance.url}{page}")
    faults = [line for line in browser.get_log("browser") if "favicon" not in line["message"]]
    assert faults == []
