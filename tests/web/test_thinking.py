"""Thinking on the chat page: folded away, counted while it lasts, opened by key."""

import pytest
from selenium.webdriver.common.keys import Keys

import scripted_model
from test_page import all_css, ask, css, idle, wait

# The page talks to a stream that the test feeds: say({reasoning_content: "..."}), end().
STREAM = """
  const real = window.fetch;
  window.fetch = (url, options) => {
    if (!String(url).endsWith("v1/chat/completions")) return real(url, options);
    window.request = JSON.parse(options.body);
    const body = new ReadableStream({ start(controller) { window.stream = controller; } });
    options.signal.addEventListener("abort", () => window.stream.error(new DOMException("stopped", "AbortError")));
    return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
  };
  const send = (text) => window.stream.enqueue(new TextEncoder().encode(`data: ${text}\\n\\n`));
  window.say = (delta, finish_reason = null) => send(JSON.stringify({ choices: [{ index: 0, delta, finish_reason }] }));
  window.end = () => { window.say({}, "stop"); send("[DONE]"); window.stream.close(); };
"""


@pytest.fixture
def scripted(page):
    page.execute_script(STREAM)
    return page


def say(page, **delta):
    page.execute_script("window.say(arguments[0])", delta)


def begin(page):
    ask(page, "Why?")
    wait(page, lambda: page.execute_script("return window.stream !== undefined"), "no request")
    say(page, role="assistant", content="")


def summary(page):
    return css(page, ".message.assistant .thinking summary")


def thoughts(page):
    return css(page, ".message.assistant .thoughts")


def focus_is_on_summary(page):
    return page.execute_script("return document.activeElement.matches('.thinking summary')")


def test_folded_and_counted_while_it_lasts(scripted):
    begin(scripted)
    assert not css(scripted, ".message.assistant .thinking").is_displayed(), "nothing was thought yet"
    say(scripted, reasoning_content="Let me ")
    wait(scripted, lambda: summary(scripted).text.startswith("Thinking… ") and summary(scripted).text.endswith(" s"),
         "no live line")
    assert not thoughts(scripted).is_displayed(), "thinking is folded"
    # The seconds go on without new text.
    wait(scripted, lambda: int(summary(scripted).text.split()[1]) >= 1, "the seconds stand still")
    say(scripted, content="Because.")
    wait(scripted, lambda: summary(scripted).text.startswith("Thought for "), "thinking never ended")
    wait(scripted, lambda: css(scripted, ".message.assistant .body").text == "Because.", "no answer")
    scripted.execute_script("window.end()")
    wait(scripted, lambda: idle(scripted), "generation never ended")
    scripted.refresh()
    assert summary(scripted).text.startswith("Thought for ") and not thoughts(scripted).is_displayed()


def test_opened_by_key_and_stays_open(scripted):
    begin(scripted)
    say(scripted, reasoning_content="Let me ")
    wait(scripted, lambda: summary(scripted).is_displayed(), "no line to open")
    # From the prompt backwards, as a keyboard user goes.
    for _ in range(20):
        if focus_is_on_summary(scripted):
            break
        scripted.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
    assert focus_is_on_summary(scripted), "the line cannot be reached by Tab"
    summary(scripted).send_keys(Keys.ENTER)
    wait(scripted, lambda: thoughts(scripted).is_displayed(), "Enter did not open it")
    say(scripted, reasoning_content="<b>think</b>.")
    wait(scripted, lambda: thoughts(scripted).text == "Let me <b>think</b>.", "the open thought does not grow")
    assert focus_is_on_summary(scripted)
    say(scripted, content="Because.")
    scripted.execute_script("window.end()")
    wait(scripted, lambda: idle(scripted), "generation never ended")
    assert thoughts(scripted).is_displayed(), "it closed by itself"
    assert focus_is_on_summary(scripted), "the focus was lost"
    summary(scripted).send_keys(Keys.SPACE)
    wait(scripted, lambda: not thoughts(scripted).is_displayed(), "Space did not close it")


def test_stop_while_thinking(scripted):
    begin(scripted)
    say(scripted, reasoning_content="Hm")
    wait(scripted, lambda: summary(scripted).is_displayed(), "no live line")
    css(scripted, "#prompt").send_keys(Keys.ESCAPE)
    wait(scripted, lambda: idle(scripted), "Escape did not stop it")
    assert summary(scripted).text.startswith("Thought for ")
    assert "stopped" in css(scripted, ".message.assistant .figures").text


def test_thinks_with_the_server(thinking_page):
    ask(thinking_page, "Why?")
    wait(thinking_page, lambda: all_css(thinking_page, ".message.assistant") and idle(thinking_page), "no answer")
    assert css(thinking_page, ".message.assistant .body").text == scripted_model.ANSWER_TEXT
    assert summary(thinking_page).text.startswith("Thought for ")
    assert thoughts(thinking_page).get_attribute("textContent") == scripted_model.THOUGHT_TEXT
    figures = css(thinking_page, ".message.assistant .figures").text
    assert f"{scripted_model.COMPLETION_TOKENS} tokens" in figures
    # What was thought is not sent with the next question.
    thinking_page.execute_script(STREAM)
    ask(thinking_page, "And?")
    wait(thinking_page, lambda: thinking_page.execute_script("return window.request !== undefined"), "no request")
    messages = thinking_page.execute_script("return window.request.messages")
    assert messages[1] == {"role": "assistant", "content": scripted_model.ANSWER_TEXT}
    css(thinking_page, "#prompt").send_keys(Keys.ESCAPE)
    wait(thinking_page, lambda: idle(thinking_page), "Escape did not stop it")
