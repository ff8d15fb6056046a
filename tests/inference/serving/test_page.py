"""The page in a real browser: a file, its text, a jump, a question, a recording from a microphone, the keyboard."""

import re
import shutil
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest

import fastslm.serving

PAGE = Path(fastslm.serving.__file__).with_name("page.html").read_text()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def tags():
    parser = Tags()
    parser.feed(PAGE)
    return parser.found


def test_the_page_asks_no_other_host():
    for tag, attributes in tags():
        assert not {"src", "srcset", "action"} & attributes.keys(), tag
        assert attributes.get("href", "data:,") == "data:,"
    assert not re.findall(r"https?://|//[\w.]+\.\w+|@import|url\(", PAGE)
    assert "innerHTML" not in PAGE


def test_every_control_has_a_name_for_screen_readers():
    labelled = {attributes["for"] for tag, attributes in tags() if tag == "label"}
    for tag, attributes in tags():
        if tag == "input":
            assert attributes["id"] in labelled
        if tag in ("audio", "ol"):
            assert attributes["aria-label"]


def test_the_page_comes_with_a_policy_that_lets_nothing_else_run(server):
    with urllib.request.urlopen(server.url + "/") as response:  # without a key
        policy = response.headers["Content-Security-Policy"]
        assert response.read().decode() == PAGE
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/", "/health"])
def test_probes_that_ask_for_the_head_alone_are_answered(server, path):
    with urllib.request.urlopen(urllib.request.Request(server.url + path, method="HEAD")) as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 0
        assert response.read() == b""


@pytest.fixture
def browser(tmp_path, noise, write_audio):
    """Return a headless Chromium whose microphone is a file."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    microphone = write_audio(tmp_path / "microphone.wav", noise(4))
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}", f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.mark.slow
def test_a_person_transcribes_jumps_asks_and_records(browser, serve, run_folder, model, tmp_path, noise, write_audio):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    talk = write_audio(tmp_path / "talk.wav", noise(5, seed=3))
    wait = WebDriverWait(browser, 60)

    def at(name):
        return browser.find_element(By.ID, name)

    def says(text):
        wait.until(lambda _: text in at("status").text, f"{text!r} is not said, but {at('status').text!r}")

    with serve(run_folder, "--name", "tiny") as server:
        browser.get(server.url)
        wait.until(lambda _: at("model").text == "by tiny")
        at("file").send_keys(str(talk))
        says("The API key is missing")
        assert browser.switch_to.active_element == at("key")
        browser.switch_to.active_element.send_keys("a-key-for-tests", Keys.ENTER)
        says("Done.")
        expected = model.transcribe(talk, segments=True).segments
        shown = browser.find_elements(By.CSS_SELECTOR, "#segments button")
        words = ["".join(button.text.split()) for button in shown]
        assert words == ["".join(f"0:00:{int(s.start):02}{s.text}".split()) for s in expected]

        # By keyboard: on to the second segment, and into it.
        shown[0].send_keys(Keys.TAB)
        assert browser.switch_to.active_element == shown[1]
        shown[1].send_keys(Keys.ENTER)
        wait.until(lambda _: browser.execute_script("return document.getElementById('player').currentTime") >= 2)
        wait.until(lambda _: shown[1].get_attribute("aria-current") == "true" or at("player").get_property("ended"))

        at("question").send_keys("Who?", Keys.ENTER)
        answer = model.ask(talk, "Who?").text
        wait.until(lambda _: "".join(at("answers").text.split()) == "".join(f"Who?{answer}".split()))

        at("record").send_keys(Keys.ENTER)
        says("Recording")
        assert at("record").get_attribute("aria-pressed") == "true"
        wait.until(lambda _: browser.execute_script("return recorder !== null && recorder.state === 'recording'"))
        browser.execute_async_script("setTimeout(arguments[0], 2500)")
        at("record").send_keys(Keys.SPACE)
        says("Done.")
        assert browser.find_elements(By.CSS_SELECTOR, "#segments button")

        # Every control has a name, as the browser tells it to a screen reader.
        for control in browser.find_elements(By.CSS_SELECTOR, "button, input, audio"):
            assert control.accessible_name or not control.is_displayed(), control.get_attribute("outerHTML")
    refused = [entry["message"] for entry in browser.get_log("browser") if "Content Security" in entry["message"]]
    assert not refused
