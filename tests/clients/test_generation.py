"""Chat, completions, log-probabilities, stopping and sampling. Numbers are those of the conformance list.

Holds for any model: where a text is needed, it is generated first.
"""

import concurrent.futures

import pytest
from conftest import CONTEXT
from helpers import HELLO, NAME, chat, chat_body, error_of, joined, stream, text_of


def refused(http, **members):
    return error_of(http.post("/v1/chat/completions", json=chat_body(**members)))


def greedy(http, **members):
    return chat(http, **{"temperature": 0, "max_tokens": 24, "ignore_eos": True, **members})


def complete(http, **members):
    response = http.post("/v1/completions", json={"model": NAME, **members})
    assert response.status_code == 200, response.text
    return response.json()


def test_minimal_32(http):
    answer = chat(http, max_tokens=4)
    assert answer["object"] == "chat.completion" and answer["id"] and isinstance(answer["created"], int)
    choice = answer["choices"][0]
    assert set(choice) >= {"index", "message", "logprobs", "finish_reason", "matched_stop"}
    assert choice["message"]["role"] == "assistant" and isinstance(choice["message"]["content"], str)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["metadata"]["weight_version"] == "default"


def test_limits_33(http):
    assert greedy(http, max_tokens=5)["usage"]["completion_tokens"] == 5
    answer = greedy(http, max_completion_tokens=3, max_tokens=9)
    assert answer["usage"]["completion_tokens"] == 3 and answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("messages", [[], "x", None, [1], [{"role": "sorcerer", "content": "x"}]])
def test_bad_messages_34(http, messages):
    error = refused(http, messages=messages)
    assert error["param"].startswith("messages")
    if messages == []:
        assert "Messages cannot be empty." in error["message"]


def test_content_parts_35(http):
    whole = greedy(http, messages=[{"role": "user", "content": "Say hello"}])
    parts = greedy(http, messages=[{"role": "user", "content": [{"type": "text", "text": "Say "},
                                                               {"type": "text", "text": "hello"}]}])
    assert whole["usage"]["prompt_tokens"] == parts["usage"]["prompt_tokens"] and text_of(whole) == text_of(parts)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chat(http, max_tokens=1, messages=[{"role": "user", "content": "x"},
                                       {"role": "assistant", "content": None, "tool_calls": [call]},
                                       {"role": "user", "content": "y"}])


def test_image_36(http):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    assert "image_url" in refused(http, messages=[{"role": "user", "content": [image]}])["message"]


def test_context_37_38(http, servers):
    long = [{"role": "user", "content": "word " * CONTEXT}]
    assert "is longer than the model's context length" in refused(http, messages=long)["message"]
    assert str(CONTEXT) in refused(http, max_tokens=CONTEXT - 1)["message"]
    with servers("--allow-auto-truncate").http() as clipping:
        assert chat(clipping, max_tokens=CONTEXT - 1)["usage"]["total_tokens"] <= CONTEXT
        assert chat(clipping, messages=long)["usage"]["total_tokens"] <= CONTEXT


def test_to_the_end_of_the_context_39(http):
    answer = chat(http, ignore_eos=True)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] in (CONTEXT - 1, CONTEXT)


def test_choices_40(http):
    one = chat(http, max_tokens=3)["usage"]["prompt_tokens"]
    answer = chat(http, n=3, temperature=1, max_tokens=6, ignore_eos=True)
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == one and answer["usage"]["completion_tokens"] == 18


def test_continue_final_message_42(http):
    base = text_of(greedy(http))
    prefix = base[: len(base) // 2]
    answer = greedy(http, continue_final_message=True, messages=HELLO + [{"role": "assistant", "content": prefix}])
    assert not text_of(answer).startswith(prefix) or not prefix
    # The prefix costs its tokens and opens no new turn.
    plain = chat(http, max_tokens=1)["usage"]["prompt_tokens"]
    count = http.post("/tokenize", json={"prompt": prefix, "add_special_tokens": False}).json()["count"]
    assert plain <= answer["usage"]["prompt_tokens"] <= plain + count + 1


def test_rid_45(http, servers):
    assert chat(http, max_tokens=1, rid="my-id")["id"] == "my-id"
    slow = servers("--max-running-requests", "2", "--enable-metrics")
    with slow.http() as http, slow.http() as other:
        with http.stream("POST", "/v1/chat/completions",
                         json=chat_body(rid="busy", stream=True, ignore_eos=True, n=64)) as response:
            lines = response.iter_lines()  # kept: httpx closes the stream when its iterator goes
            next(lines)
            twice = other.post("/v1/chat/completions", json=chat_body(rid="busy", max_tokens=1))
    assert error_of(twice)["param"] == "rid"


def test_basic_stream_46(http):
    chunks = stream(http, max_tokens=6, ignore_eos=True)
    choices = [c["choices"][0] for c in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in c["delta"] for c in choices[1:])
    assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == "length"
    assert all(c["finish_reason"] is None for c in choices[:-1])


def test_error_before_the_stream_51(http):
    assert refused(http, stream=True, temperature=-1)["param"] == "temperature"


def test_stream_interval_54(servers):
    with servers("--stream-interval", "4").http() as http:
        body = dict(model=NAME, prompt="One two three", max_tokens=10, ignore_eos=True, temperature=0, logprobs=0)
        chunks = stream(http, "/v1/completions", **body)
        groups = [len(c["choices"][0]["logprobs"]["tokens"]) for c in chunks if c["choices"][0]["logprobs"]]
        assert sum(groups) == 10 and groups[0] == 1 and max(groups) >= 4
        assert joined(chunks) == text_of(complete(http, **body))


def test_logprobs_56_57_58(http):
    members = dict(logprobs=True, top_logprobs=5, max_tokens=10, temperature=0, ignore_eos=True)
    entries = chat(http, **members)["choices"][0]["logprobs"]["content"]
    assert len(entries) == 10
    for entry in entries:
        values = [t["logprob"] for t in entry["top_logprobs"]]
        assert len(values) == 5 and values == sorted(values, reverse=True) and entry["logprob"] <= 0
        assert entry["token"] == entry["top_logprobs"][0]["token"]
    streamed = [e for c in stream(http, **members) if c["choices"][0]["logprobs"]
                for e in c["choices"][0]["logprobs"]["content"]]
    assert [e["token"] for e in streamed] == [e["token"] for e in entries]
    assert [e["logprob"] for e in streamed] == pytest.approx([e["logprob"] for e in entries], abs=1e-3)


def test_stop_string_61_62(http):
    base = text_of(greedy(http, max_tokens=40))
    # A string that begins inside one token and ends inside another.
    start = len(base) // 3
    stop = base[start: start + 7]
    cut = base[: base.index(stop)]
    answer = greedy(http, max_tokens=40, stop=stop)["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"], answer["matched_stop"]) == (cut, "stop", stop)
    assert joined(stream(http, max_tokens=40, temperature=0, ignore_eos=True, stop=[stop, "\u0000never"])) == cut
    kept = greedy(http, max_tokens=40, stop=stop, no_stop_trim=True)
    assert text_of(kept) == cut + stop
    # The end of the text is a beginning of this one, which never completes.
    assert joined(stream(http, max_tokens=40, temperature=0, ignore_eos=True, stop=base[-3:] + "\u0001")) == base


def test_ignore_eos_64(http):
    for body in ({}, {"stop": None}):
        assert chat(http, ignore_eos=True, max_tokens=50, **body)["usage"]["completion_tokens"] == 50


def test_greedy_repeats_66(http):
    http.get("/flush_cache")
    texts = [text_of(greedy(http)) for _ in range(5)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts += list(pool.map(lambda _: text_of(greedy(http)), range(8)))
    assert len(set(texts)) == 1


def test_seeds_67(http):
    say = lambda seed: text_of(chat(http, seed=seed, temperature=1, max_tokens=20, ignore_eos=True))
    alone = say(1)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        crowd = list(pool.map(say, [1, 2, 3, 4, 5, -(2**62)]))
    assert crowd[0] == alone == say(1) and len(set(crowd)) == 6
    with_choices = chat(http, seed=1, n=2, temperature=1, max_tokens=20, ignore_eos=True)["choices"]
    assert with_choices[0]["message"]["content"] == alone != with_choices[1]["message"]["content"]


def test_logit_bias_68(http):
    members = dict(prompt="The sea is", max_tokens=8, temperature=0, ignore_eos=True, logprobs=0)
    first = complete(http, **members)["choices"][0]
    # What it would say first is forbidden; something else is forced.
    ids = http.post("/tokenize", json={"prompt": first["text"], "add_special_tokens": False}).json()["tokens"]
    banned = complete(http, **members, logit_bias={str(ids[0]): -100})["choices"][0]
    assert first["logprobs"]["tokens"][0] not in banned["logprobs"]["tokens"]
    forced = complete(http, **members, logit_bias={str(ids[-1]): 100})["choices"][0]
    assert len(set(forced["logprobs"]["tokens"])) == 1


def test_narrow_sampling_equals_greedy_69(http):
    base = text_of(greedy(http))
    assert text_of(greedy(http, temperature=1, top_k=1)) == base
    assert text_of(greedy(http, temperature=1, top_p=1e-9)) == base


@pytest.mark.parametrize("field, value", [
    ("top_p", 0), ("top_p", 1.1), ("top_k", 0), ("temperature", -1), ("presence_penalty", 3), ("frequency_penalty", -3),
    ("min_p", 2), ("n", 0), ("repetition_penalty", 0), ("temperature", "0.5"), ("max_tokens", 0),
    ("logit_bias", {"999999999": 1}), ("stop_token_ids", [999999999]), ("top_logprobs", 21)])
def test_ranges_72(http, field, value):
    assert refused(http, **{field: value})["param"] == field


def test_nan_72(http):
    response = http.post("/v1/chat/completions", headers={"Content-Type": "application/json"},
                         content='{"messages":[{"role":"user","content":"x"}],"temperature":NaN}')
    assert error_of(response)["param"] == "temperature"


def test_prompt_kinds_95(http):
    ids = http.post("/tokenize", json={"prompt": "Hello"}).json()["tokens"]
    for prompt, n in (("Hello", 1), (["Hello", "Bye"], 2), (ids, 1), ([ids, ids, ids], 3)):
        answer = complete(http, prompt=prompt, max_tokens=3, temperature=0, ignore_eos=True)
        assert [c["index"] for c in answer["choices"]] == list(range(n))
        if prompt in ("Hello", ids):
            text = answer["choices"][0]["text"]
    assert {c["text"] for c in answer["choices"]} == {text}


def test_completion_defaults_and_echo_96(http):
    answer = complete(http, prompt="Hello", ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 16
    assert complete(http, prompt="Hello", echo=True, max_tokens=2)["choices"][0]["text"].startswith("Hello")
    scored = complete(http, prompt="Hello there, friend", echo=True, logprobs=1, max_tokens=2, ignore_eos=True)
    lp = scored["choices"][0]["logprobs"]
    assert lp["token_logprobs"][0] is None and all(v <= 0 for v in lp["token_logprobs"][1:])
    assert len(lp["tokens"]) == scored["usage"]["total_tokens"] == len(lp["text_offset"])
    assert lp["text_offset"] == sorted(lp["text_offset"])


def test_completion_refusals_97(http):
    post = lambda **body: http.post("/v1/completions", json={"model": NAME, **body})
    for body in ({"prompt": ""}, {"prompt": []}, {"prompt": "x", "max_tokens": 0}):
        error_of(post(**body))
    assert post(prompt="x", max_tokens=1, best_of=1).status_code == 200
