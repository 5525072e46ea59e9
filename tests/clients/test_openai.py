"""The official OpenAI package against a running server. Numbers are those of the conformance list."""

import json

import openai
import pytest
from helpers import HELLO, NAME, chat, chat_body, joined, stream


def test_chat_118(client):
    answer = client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=8, extra_body={"ignore_eos": True})
    assert answer.object == "chat.completion" and answer.id
    assert answer.choices[0].message.role == "assistant"
    assert isinstance(answer.choices[0].message.content, str)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer._request_id


def test_stream_helper_118(client):
    # The helper raises on finish reason "length" by design, so the generation is made to stop.
    whole = client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=30, temperature=0)
    text = whole.choices[0].message.content
    stop = text[len(text) // 2: len(text) // 2 + 4]
    with client.beta.chat.completions.stream(model=NAME, messages=HELLO, max_tokens=40, temperature=0, stop=stop,
                                             stream_options={"include_usage": True}) as helper:
        seen = [event.delta for event in helper if event.type == "content.delta"]
        final = helper.get_final_completion()
    assert final.choices[0].message.content == "".join(seen) == text[: text.index(stop)]
    assert final.choices[0].finish_reason == "stop" and final.usage.completion_tokens > 0


def test_stream_iterator_46(client):
    chunks = list(client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=6, stream=True,
                                                 extra_body={"ignore_eos": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert sum(1 for c in chunks if c.choices[0].delta.role) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1


def test_completions_118(client):
    answer = client.completions.create(model=NAME, prompt="The capital of France is", max_tokens=4, temperature=0,
                                       extra_body={"ignore_eos": True})
    assert answer.object == "text_completion" and answer.usage.completion_tokens == 4
    text = "".join(c.choices[0].text for c in client.completions.create(
        model=NAME, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True,
        extra_body={"ignore_eos": True}))
    assert text == answer.choices[0].text


def test_models_118(client):
    models = client.models.list().data
    assert [m.id for m in models] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody/knows")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_errors_are_the_sdks_own_118(client, server):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=HELLO, temperature=-1)
    assert caught.value.param == "temperature" and "got -1" in str(caught.value)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=NAME, input="x")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=HELLO, tools=[tool])
    assert caught.value.param == "tools"
    with pytest.raises(openai.NotFoundError):
        server.client().with_options(base_url=server.url + "/v2").models.list()


def test_structured_output_is_refused_by_name_118(client):
    import pydantic

    class Answer(pydantic.BaseModel):
        value: int

    with pytest.raises(openai.BadRequestError) as caught:
        client.beta.chat.completions.parse(model=NAME, messages=HELLO, response_format=Answer)
    assert caught.value.param == "response_format"


def test_abort_by_rid_107(servers):
    server = servers("--random-seed", "8")
    client = server.client()
    iterator = iter(client.chat.completions.create(
        model=NAME, messages=HELLO, stream=True, extra_body={"ignore_eos": True, "rid": "victim"}))
    next(iterator)
    with server.http() as http:
        assert http.post("/abort_request", json={"rid": "victim"}).status_code == 200
    finish = [c.choices[0].finish_reason for c in iterator if c.choices[0].finish_reason]
    assert finish == ["abort"]


def test_logprobs_of_the_sdk_56(client):
    answer = client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=6, temperature=0, logprobs=True,
                                            top_logprobs=5, extra_body={"ignore_eos": True})
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 6
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 5
        assert entry.token == entry.top_logprobs[0].token  # greedy: case 58
        values = [t.logprob for t in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
    raw = b"".join(bytes(e.bytes) for e in entries)
    # Special tokens are not shown in the content; all others are.
    assert answer.choices[0].message.content.encode() in raw or "\ufffd" in answer.choices[0].message.content


def test_retries_503_until_it_works_118(servers):
    """A burst on a server with one slot and a queue of one: the SDK's own retries get everybody through."""
    import concurrent.futures

    server = servers("--max-running-requests", "1", "--max-queued-requests", "1")
    patient = server.client(max_retries=20)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: patient.chat.completions.create(
            model=NAME, messages=HELLO, max_tokens=4, extra_body={"ignore_eos": True}), range(6)))
    assert all(a.usage.completion_tokens == 4 for a in answers)


def test_async_client_118(server):
    import asyncio

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            async def one(i):
                text = ""
                async for chunk in await client.chat.completions.create(
                        model=NAME, messages=HELLO, max_tokens=8, seed=i, stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text
            return await asyncio.gather(*(one(i) for i in range(8)))

    first, second = asyncio.run(run()), asyncio.run(run())
    assert first == second  # seeds hold whatever the batch


def test_every_optional_field_41(http):
    chat(http, max_tokens=2, user="u", metadata={"a": "b"}, store=False, service_tier="auto", modalities=["text"],
         verbosity="low", prompt_cache_key="k", safety_identifier="s", unknown={"x": [1]}, tools=[], tool_choice="auto",
         parallel_tool_calls=True, response_format={"type": "text"}, logit_bias={}, stop=None, presence_penalty=0,
         frequency_penalty=0, top_logprobs=None, logprobs=False, seed=1, n=1, reasoning_effort="low",
         web_search_options={}, stream_options=None, functions=[], function_call="none", prediction=None)


def test_raw_stream_53(server):
    with server.http() as http, http.stream("POST", "/v1/chat/completions",
                                            json=chat_body(stream=True, max_tokens=5)) as response:
        raw = b"".join(response.iter_raw())
    assert raw.endswith(b"data: [DONE]\n\n")
    for event in raw.decode().split("\n\n")[:-1]:
        assert event.startswith("data: ") and "\n" not in event
        if event != "data: [DONE]":
            json.loads(event[6:])


@pytest.mark.parametrize("extra, empties", [({}, 0), ({"stream_options": {"include_usage": True}}, 1),
                                            ({"stream_options": {"include_usage": False}}, 0)])
def test_usage_chunk_48_98(http, extra, empties):
    for body in ({"max_tokens": 3}, {"max_tokens": 3, "model": NAME, "prompt": "Hi"}):
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        chunks = stream(http, path, **body, **extra)
        assert sum(1 for c in chunks if not c["choices"]) == empties
        if empties:
            assert chunks[-1]["usage"]["total_tokens"] > 0


def test_continuous_usage_49(http):
    chunks = stream(http, max_tokens=6, ignore_eos=True,
                    stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [c["usage"]["completion_tokens"] for c in chunks]
    assert counts == sorted(counts) and counts[-1] == 6


def test_streamed_equals_whole_47(http):
    whole = chat(http, max_tokens=40, temperature=0)["choices"][0]["message"]["content"]
    assert joined(stream(http, max_tokens=40, temperature=0)) == whole


def test_two_choices_50(http):
    chunks = stream(http, max_tokens=5, n=2, temperature=1, ignore_eos=True)
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert sum(1 for c in own if "role" in c["delta"]) == 1
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == ["length"]
