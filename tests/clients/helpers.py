"""Small things the client tests share."""

import json
import time

NAME = "test/model"
HELLO = [{"role": "user", "content": "Write one sentence about the sea."}]


def chat_body(**members):
    return {"model": NAME, "messages": HELLO, **members}


def chat(http, **members):
    response = http.post("/v1/chat/completions", json=chat_body(**members))
    assert response.status_code == 200, response.text
    return response.json()


def text_of(result):
    choice = result["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def events(lines):
    """The JSON of each event; fails on anything but `data: ...` and blank lines and on a missing [DONE]."""
    out, done = [], False
    for line in lines:
        if not line:
            continue
        assert line.startswith("data: "), line
        assert not done, "an event after [DONE]"
        if line == "data: [DONE]":
            done = True
        else:
            out.append(json.loads(line[6:]))
    assert done, "no [DONE]"
    return out


def stream(http, path="/v1/chat/completions", **body):
    body = body if "prompt" in body else chat_body(**body)
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return events(response.iter_lines())


def joined(chunks, index=0):
    text = ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                text += (choice["delta"].get("content") or "") if "delta" in choice else choice["text"]
    return text


def error_of(response, status=400):
    assert response.status_code == status, response.text
    body = response.json()
    assert body["object"] == "error" and body["error"]["message"] == body["message"]
    return body["error"]


def metrics(http):
    """{series with labels: value}"""
    from prometheus_client.parser import text_string_to_metric_families

    out = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "model_name")
            out[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return out


def eventually(predicate, seconds=20):
    """Waits for something that must come; the bound ends a test that has failed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = predicate()
        if value:
            return value
        time.sleep(0.02)
    return predicate()
