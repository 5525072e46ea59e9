"""Drives the chat page in headless Chromium against the real server and model."""

import json
import urllib.request

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

TIMEOUT = 30  # a bound for a slow machine, not a measurement


def wait(page, condition, message):
    return WebDriverWait(page, TIMEOUT, poll_frequency=0.05).until(lambda _: condition(), message)


def css(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def all_css(page, selector):
    return page.find_elements(By.CSS_SELECTOR, selector)


def configure(page, **settings):
    page.execute_script("localStorage.setItem('capstan.settings', arguments[0])", json.dumps(settings))
    page.refresh()
    wait(page, lambda: css(page, "#model").text not in ("", "Capstan"), "the model's name never appeared")


def idle(page):
    return css(page, "#send").is_displayed() and not css(page, "#stop").is_displayed()


def ask(page, text):
    css(page, "#prompt").send_keys(text, Keys.ENTER)


def api_answer(server):
    """What the API says to the same question, without streaming."""
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0,
            "max_tokens": 48}
    request = urllib.request.Request(server + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def test_shows_model_and_live_line(page):
    wait(page, lambda: "SmolLM2" in css(page, "#model").text, "no model name")
    wait(page, lambda: "running" in css(page, "#live").text and "queued" in css(page, "#live").text
         and "cache hits" in css(page, "#live").text, "no live line")


def test_everything_comes_from_this_server(page, server):
    urls = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert urls and all(url.startswith((server, "data:")) for url in urls)


def test_streams_an_answer_with_figures(page, server):
    configure(page, temperature=0, max_tokens=48)
    ask(page, "What is the capital of France?")
    assert all_css(page, ".message.user .body")[0].text == "What is the capital of France?"
    wait(page, lambda: all_css(page, ".message.assistant .figures")[0].text, "generation never began")
    wait(page, lambda: idle(page), "generation never ended")
    assert css(page, ".message.assistant .body").text.split() == api_answer(server).split()
    figures = css(page, ".message.assistant .figures").text
    assert "tok/s" in figures and "first token" in figures and "tokens" in figures


def test_keeps_the_conversation_over_a_reload_and_starts_anew(page):
    configure(page, temperature=0, max_tokens=8)
    ask(page, "Hello")
    wait(page, lambda: len(all_css(page, ".message.assistant")) == 1 and idle(page), "no answer")
    before = css(page, ".message.assistant .body").text
    page.refresh()
    wait(page, lambda: len(all_css(page, ".message")) == 2, "the conversation is gone")
    assert css(page, ".message.assistant .body").text == before
    css(page, "#new-chat").click()
    assert all_css(page, ".message") == []


def test_stop_and_regenerate(page):
    configure(page, temperature=0.8, max_tokens=1500, seed=1)
    ask(page, "Write a very long story about a ship.")
    wait(page, lambda: len(css(page, ".message.assistant .body").text) > 20, "nothing streamed")
    css(page, "#prompt").send_keys(Keys.ESCAPE)
    wait(page, lambda: idle(page), "Escape did not stop it")
    assert "stopped" in css(page, ".message.assistant .figures").text
    wait(page, lambda: css(page, "#live").text.startswith("0 running"), "the server went on after the stop")
    configure(page, temperature=0, max_tokens=6)
    css(page, ".message.assistant .regenerate").click()
    wait(page, lambda: idle(page) and "6 tokens" in css(page, ".message.assistant .figures").text, "no new answer")
    assert len(all_css(page, ".message")) == 2


def test_markdown_code_is_rendered_and_nothing_hostile_runs(page):
    rendered = page.execute_async_script("""
      const done = arguments[0];
      import('./render.js').then(({ renderMarkdown, decorateCode }) => {
        const div = document.createElement('div');
        renderMarkdown(div, '# T\\n\\n```python\\nprint(1 < 2)\\n```\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |\\n\\n' +
          '<img src=x onerror="window.hacked=1"><script>window.hacked=1</' + 'script>[l](javascript:alert(1))');
        decorateCode(div);
        document.body.append(div);
        setTimeout(() => { const html = div.innerHTML; div.remove(); done([html, div.querySelector('code').textContent,
          div.querySelectorAll('img, script, a').length]); }, 100);
      });""")
    html, code, dangerous = rendered
    assert "<h1" in html and "<table>" in html and 'class="copy-code"' in html and "python" in html
    assert code == "print(1 < 2)\n"
    assert dangerous == 0 and "&lt;img" in html, "HTML in an answer must be shown as text"
    assert page.execute_script("return window.hacked") is None


def test_settings_by_keyboard_and_system_prompt(page):
    wait(page, lambda: "SmolLM2" in css(page, "#model").text, "no model name")
    css(page, "#prompt").send_keys(Keys.CONTROL, ",")
    wait(page, lambda: css(page, "#settings").is_displayed(), "Ctrl+, did not open the settings")
    css(page, "#settings [name=system]").send_keys("Answer in French.")
    css(page, "#settings [name=temperature]").send_keys("0")
    css(page, "#settings [name=max_tokens]").send_keys("4", Keys.ENTER)
    wait(page, lambda: not css(page, "#settings").is_displayed(), "Enter did not close the settings")
    stored = page.execute_script("return JSON.parse(localStorage.getItem('capstan.settings'))")
    assert stored == {"system": "Answer in French.", "temperature": 0, "max_tokens": 4}
    ask(page, "Hello")
    wait(page, lambda: idle(page) and "4 tokens" in css(page, ".message.assistant .figures").text, "settings not used")


def test_shows_the_servers_error_message(page):
    configure(page, max_tokens=100000)
    ask(page, "Hello")
    wait(page, lambda: all_css(page, ".error"), "no error shown")
    assert "100000" in css(page, ".error").text
    assert idle(page)


def test_dark_and_light(page):
    background = lambda: page.execute_script("return getComputedStyle(document.body).backgroundColor")
    first = background()
    css(page, "#theme").click()
    assert background() != first
    page.refresh()
    assert background() != first, "the choice is not remembered"


def test_fits_a_phone(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                         {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True})
    try:
        page.refresh()
        width = page.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360, "the page scrolls sideways on a phone"
        box = css(page, "#send").rect
        assert box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 700
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
