"""`evaluate human` as a rater meets it: the real server and a real browser."""

import functools
import http.server
import threading

import numpy as np
import pytest
from browser import needs_browser, open_browser, requested
from human_server import Server

from dollar_jax.data.video import write_video
from dollar_jax.evaluate.human_study import CHOICES, QUESTIONS, Pair, Study, agenda, read_answers

pytestmark = needs_browser


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def browser(tmp_path):
    with open_browser(tmp_path / "profile") as browser:
        yield browser


class Rater:
    """Somebody at the browser's present tab."""

    def __init__(self, browser, url, name):
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.name = browser, name
        self._wait = WebDriverWait(browser, 20)
        self._tab = browser.current_window_handle
        browser.get(url)
        self.find("#rater").send_keys(name)
        self.find("button.go").click()

    def come(self):
        self.browser.switch_to.window(self._tab)

    def find(self, selector):
        return self._wait.until(lambda browser: browser.find_elements("css selector", selector))[0]

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def script(self, code, *arguments):
        return self.browser.execute_script(f"return {code}", *arguments)

    def until(self, condition):
        return self._wait.until(lambda browser: condition())

    def click(self, question, choice):
        box = self.find(f"input[name={question}][value={choice}]").find_element("xpath", "..")
        self.script("arguments[0].scrollIntoView({block: 'center'})", box)
        box.click()

    def press(self, keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(keys).perform()

    def next(self):
        button = self.find("button.go")
        self.script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def place(self):
        """What the page's head says when all of it is there, in one step: pages are exchanged meanwhile."""
        return self.script("document.readyState === 'loading' ? '' : document.querySelector('header')?.innerText ?? ''")

    def at(self, number):
        """Waits until the page of pair `number` is there."""
        self.until(lambda: self.place().startswith(f"Pair {number} of 6"))


def choices(i):
    """The choice for each question, another one for each pair."""
    return {question.key: CHOICES[(i + k) % 3] for k, question in enumerate(QUESTIONS)}


def test_two_raters_a_refusal_the_keyboard_and_a_killed_server(server, browser):
    ann = Rater(browser, server.url, "Ann")
    ann.at(1)
    ann.until(lambda: ann.script("[...document.querySelectorAll('video')].every(v => v.played.length > 0)"))
    assert ann.script("[...document.querySelectorAll('video')].every(v => !v.error && v.videoWidth === 48)")

    for question, choice in choices(0).items():
        if question != "motion":
            ann.click(question, choice)
    ann.next()
    assert ann.find(".alert").text == "Still open: Motion."
    assert ann.script("document.activeElement.name") == "motion"
    assert ann.place().startswith("Pair 1 of 6")
    assert not read_answers(server.answers)
    ann.click("motion", choices(0)["motion"])
    ann.next()
    ann.at(2)

    browser.switch_to.new_window("tab")
    bob = Rater(browser, server.url, "bob")
    bob.at(1)
    ann.come()
    ann.press("".join(str(CHOICES.index(choice) + 1) for choice in choices(1).values()))
    ann.press("\ue007")  # Enter
    ann.at(3)
    bob.come()
    bob.press("\ue007")
    assert bob.find(".alert").text.startswith("Still open: Visual quality, Text-video alignment, Motion, General")
    bob.press("2222\ue007")
    bob.at(2)

    ann.come()
    server.kill()
    before = read_answers(server.answers)
    assert [answer["rater"] for answer in before] == ["ann", "ann", "bob"]
    server.start()
    browser.get(f"{server.url}?rater=%20ANN")
    ann.at(3)
    for i in range(2, 6):
        ann.at(i + 1)
        for question, choice in choices(i).items():
            ann.click(question, choice)
        ann.next()
    ann.until(lambda: ann.script("document.querySelector('h1').innerText === 'Thank you, ann.'"))
    bob.come()
    bob.press("1111\ue007")  # a page from before the kill
    bob.at(3)

    answers = read_answers(server.answers)
    assert answers[:3] == before
    pairs = [Pair(f"{i:05d}-0", prompt, {}) for i, prompt in enumerate(server.prompts)]
    tasks = agenda(Study(("student", "teacher"), pairs, 50, server.answers), "ann")
    by_ann = [answer for answer in answers if answer["rater"] == "ann"]
    for i, (task, answer) in enumerate(zip(tasks, by_ann, strict=True)):
        assert (answer["pair"], answer["left"], answer["right"]) == (task.pair.name, task.left, task.right)
        assert {question.key: answer[question.key] for question in QUESTIONS} == choices(i)
    assert len(answers) == 8


def test_nothing_is_wider_than_a_phone_and_all_requests_stay_here(server, tmp_path):
    with open_browser(tmp_path / "phone", width=375, height=812, phone=True) as browser:
        rater = Rater(browser, server.url, "Eve")
        rater.at(1)
        assert rater.script("document.documentElement.scrollWidth") == 375
        left, right = (video.rect for video in rater.all("video"))
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]
        assert min(label.rect["height"] for label in rater.all(".choices label")) >= 44  # for fingers
        assert all(address.startswith(server.url) for address in requested(browser))
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_filled_up_videos_play_and_can_be_sought_in(server, browser):
    for model in ("student", "teacher"):  # as long as a pair of the paper's, one much larger than the other
        frames = np.random.default_rng(0).integers(0, 256 if model == "student" else 2, (128, 96, 160, 3), np.uint8)
        for path in (server.answers.parent / model).iterdir():
            write_video(path, frames, fps=16)
    ann = Rater(browser, server.url, "Ann")
    ann.at(1)
    videos = "[...document.querySelectorAll('video')]"
    ann.until(lambda: ann.script(f"{videos}.every(v => v.played.length > 0)"))
    assert ann.script(f"{videos}.map(v => v.duration)") == [8, 8]
    ann.script(f"{videos}.forEach(v => {{ v.pause(); v.currentTime = 7.5; }})")
    ann.until(lambda: ann.script(f"{videos}.every(v => !v.seeking && v.readyState >= 2 && v.currentTime === 7.5)"))
    ann.press("r")
    ann.until(lambda: ann.script(f"{videos}.every(v => v.currentTime > 0.2 && v.currentTime < 7)"))
    assert ann.script(f"{videos}.every(v => !v.error)")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_other_machines_can_answer_too(tmp_path, browser):
    """Without https and beyond loopback a browser says less of where a form comes from."""
    server = Server(tmp_path)
    server.start("--host=0.0.0.0")
    try:
        ann = Rater(browser, server.url, "Ann")
        ann.at(1)
        ann.press("1111\ue007")
        ann.at(2)
        assert len(read_answers(server.answers)) == 1
    finally:
        server.kill()


@pytest.fixture
def elsewhere(tmp_path):
    """The folder and the address of somebody else's site."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{site.server_port}/"
    site.shutdown()
    thread.join()
    site.server_close()


def test_a_page_from_elsewhere_can_neither_answer_nor_show_the_page(server, browser, elsewhere):
    from selenium.webdriver.support.ui import WebDriverWait

    folder, address = elsewhere
    pairs = [Pair(f"{i:05d}-0", prompt, {}) for i, prompt in enumerate(server.prompts)]
    task = agenda(Study(("student", "teacher"), pairs, 50, server.answers), "ann")[0]
    fields = choices(0) | {"rater": "ann", "pair": task.pair.name}
    inputs = "".join(f'<input name="{name}" value="{value}">' for name, value in fields.items())
    form = f'<form id="f" method="post" action="{server.url}">{inputs}</form><script>f.submit()</script>'
    (folder / "form.html").write_text(form)
    (folder / "quiet.html").write_text(f'<meta name="referrer" content="no-referrer">{form}')
    (folder / "frame.html").write_text(f'<iframe src="{server.url}?rater=ann"></iframe>')
    for name in ("form.html", "quiet.html"):
        browser.get(address + name)
        WebDriverWait(browser, 20).until(lambda browser: browser.current_url.startswith(server.url))
        assert "not sent by the page itself" in browser.find_element("css selector", "body").text
        assert not read_answers(server.answers)
    browser.get(address + "frame.html")
    browser.switch_to.frame(0)
    assert not browser.find_elements("css selector", "header")
