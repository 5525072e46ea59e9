"""Reasoning apart from content, with a model that thinks (tests/scripted_model.py).

Numbers are those of the conformance list.
"""

import subprocess

import pytest
from conftest import BINARY, MODEL, NAME, Server
from helpers import error_of, stream

import scripted_model
from scripted_model import ANSWER_TEXT, COMPLETION_TOKENS, REASONING_TOKENS, THOUGHT_TEXT

ASK = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return scripted_model.write(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def thinker(model):
    """The template forces thinking, as R1's and the distills' do."""
    server = Server("--reasoning-parser", "deepseek-r1", model=model)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def unforced(model):
    """The model itself writes the opening tag, as R1-0528 does."""
    template = model / "unforced.jinja"
    template.write_text(scripted_model.UNFORCED_TEMPLATE, encoding="utf-8")
    server = Server("--reasoning-parser", "auto", "--chat-template", str(template), model=model)
    yield server
    server.stop()


@pytest.fixture
def client(thinker):
    return thinker.client()


def ask(client, **members):
    return client.chat.completions.create(model=NAME, messages=ASK, **members)


def parts(message):
    return getattr(message, "reasoning_content", None), message.content


def gather(chunks, index=0):
    """Concatenated deltas, their number, the finish reason; no delta has both texts."""
    thought, answer, counts, finish = "", "", [0, 0], None
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            reasoning, content = getattr(choice.delta, "reasoning_content", None), choice.delta.content
            assert not (reasoning and content)
            assert not (reasoning and answer), "thinking after the answer began"
            thought += reasoning or ""
            answer += content or ""
            counts[0] += bool(reasoning)
            counts[1] += bool(content)
            finish = choice.finish_reason or finish
    return thought, answer, counts, finish


def test_separated_89(client):
    answer = ask(client, temperature=1)
    assert parts(answer.choices[0].message) == (THOUGHT_TEXT, ANSWER_TEXT)
    assert answer.choices[0].finish_reason == "stop"


def test_usage_94(client):
    usage = ask(client).usage
    assert usage.completion_tokens == COMPLETION_TOKENS
    assert usage.reasoning_tokens == usage.completion_tokens_details.reasoning_tokens == REASONING_TOKENS
    *_, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.usage.reasoning_tokens == REASONING_TOKENS


def test_streamed_91(client):
    thought, answer, counts, finish = gather(ask(client, stream=True))
    assert (thought, answer, finish) == (THOUGHT_TEXT, ANSWER_TEXT, "stop")
    assert counts[0] > 3 and counts[1] > 3, "it is streamed"


def test_opening_tag_and_no_closing_tag_90(unforced, client):
    other = unforced.client()
    assert parts(ask(other).choices[0].message) == (THOUGHT_TEXT, ANSWER_TEXT)
    assert gather(ask(other, stream=True))[:2] == (THOUGHT_TEXT, ANSWER_TEXT)
    assert ask(other).usage.reasoning_tokens == REASONING_TOKENS + 2  # tag and line end
    cut = ask(client, max_tokens=5).choices[0]
    assert parts(cut.message) == (THOUGHT_TEXT[:len("Hello world</th")], "") and cut.finish_reason == "length"
    assert gather(ask(client, max_tokens=5, stream=True))[:2] == parts(cut.message)


def test_requests_that_want_it_otherwise_92(client):
    raw = ask(client, extra_body={"separate_reasoning": False})
    assert parts(raw.choices[0].message) == (None, THOUGHT_TEXT + "</think>\n\n" + ANSWER_TEXT)
    chunks = ask(client, stream=True, extra_body={"separate_reasoning": False})
    assert gather(chunks)[:2] == ("", THOUGHT_TEXT + "</think>\n\n" + ANSWER_TEXT)
    thought, answer, counts, _ = gather(ask(client, stream=True, extra_body={"stream_reasoning": False}))
    assert (thought, answer) == (THOUGHT_TEXT, ANSWER_TEXT)
    assert counts[0] == 1 and counts[1] > 3


def test_stop_in_thinking_93(client):
    for stream_it in (False, True):
        answer = ask(client, stop=["Hello", "\n\n"], stream=stream_it)
        if stream_it:
            assert gather(answer)[:2] == (THOUGHT_TEXT, ANSWER_TEXT.split("Hello")[0])
        else:
            assert parts(answer.choices[0].message) == (THOUGHT_TEXT, ANSWER_TEXT.split("Hello")[0])
            assert answer.choices[0].matched_stop == "Hello"


def test_choices(client):
    answer = ask(client, n=3, temperature=1)
    assert [parts(c.message) for c in answer.choices] == [(THOUGHT_TEXT, ANSWER_TEXT)] * 3
    assert answer.usage.reasoning_tokens == 3 * REASONING_TOKENS
    chunks = list(ask(client, n=3, temperature=1, stream=True))
    for index in range(3):
        assert gather(chunks, index)[:2] == (THOUGHT_TEXT, ANSWER_TEXT)


def test_logprobs_cover_thinking(client):
    raw = THOUGHT_TEXT + "</think>\n\n" + ANSWER_TEXT
    content = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(content) == COMPLETION_TOKENS
    assert b"".join(bytes(t.bytes) for t in content[:-1]).decode() == raw
    streamed = [t for chunk in ask(client, logprobs=True, stream=True) for c in chunk.choices if c.logprobs
                for t in c.logprobs.content]
    assert b"".join(bytes(t.bytes) for t in streamed[:-1]).decode() == raw


def test_earlier_thinking_is_not_in_the_prompt(thinker):
    def prompt(**message):
        with thinker.http() as http:
            messages = ASK + [{"role": "assistant", **message}] + ASK
            return http.post("/tokenize", json={"messages": messages}).json()["tokens"]

    plain = prompt(content="Because.")
    assert prompt(content="<think>\nHello\n</think>Because.") == plain
    assert prompt(content="Because.", reasoning_content="Hello") == plain
    assert prompt(content="Hello</think>Hello</think>Because.") == plain


def test_raw_stream_has_no_tag(thinker):
    with thinker.http() as http:
        events = stream(http, messages=ASK)
    deltas = [c["delta"] for e in events for c in e["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "think>" not in str(deltas)
    order = [next(iter(d)) for d in deltas[1:-1]]
    assert order == sorted(order, reverse=True) and set(order) == {"reasoning_content", "content"}


def test_without_a_parser(model):
    server = Server(model=model)
    try:
        assert "--reasoning-parser" in server.log()
        answer = ask(server.client())
        assert parts(answer.choices[0].message) == (None, THOUGHT_TEXT + "</think>\n\n" + ANSWER_TEXT)
        assert answer.usage.reasoning_tokens == 0
    finally:
        server.stop()


def test_request_log_shows_thinking(model):
    server = Server("--reasoning-parser", "deepseek-r1", "--log-requests", "--log-requests-level", "3", model=model)
    try:
        ask(server.client())
    finally:
        server.stop()
    finished = next(line for line in server.log().splitlines() if "Finish: " in line)
    assert THOUGHT_TEXT in finished and ANSWER_TEXT in finished and f"reasoning_tokens={REASONING_TOKENS}" in finished


def test_separate_reasoning(thinker):
    with thinker.http() as http:
        body = {"text": "a</think>\n\nb", "reasoning_parser": "deepseek-r1"}
        assert http.post("/separate_reasoning", json=body).json() == {"reasoning_text": "a", "text": "b"}
        error = error_of(http.post("/separate_reasoning", json={**body, "reasoning_parser": "r2"}))
        assert "r2" in error["message"] and "qwen3" in error["message"]


def test_unknown_parser_ends_the_start():
    result = subprocess.run([BINARY, "serve", "--model-path", MODEL, "--reasoning-parser", "r2"],
                            capture_output=True, text=True)
    assert result.returncode == 2
    assert "'r2'" in result.stderr and "deepseek-r1, deepseek-v3, qwen3" in result.stderr
