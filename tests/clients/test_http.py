"""HTTP, start and stop, keys, models, health, metrics. Numbers are those of the conformance list."""

import json
import signal
import socket

import time

from conftest import CONTEXT, NAME, Server
from helpers import HELLO, chat, chat_body, error_of, events, eventually, metrics


def test_refused_until_ready_and_readiness_line_9_10():
    server = Server("--random-seed", "1", wait=False)
    refused = 0
    while "ready to roll" not in server.log():
        assert server.process.poll() is None, server.log()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", server.port)) == 0:
                break
        refused += 1
        time.sleep(0.01)
    server.wait_ready()
    assert refused > 0
    with server.http() as http:
        assert http.get("/health").status_code == 200
    server.stop()
    assert server.log().count("The server is fired up and ready to roll!") == 1


def test_port_in_use_11(server):
    second = Server(wait=False, port=server.port)
    assert second.process.wait(timeout=60) != 0
    assert str(server.port) in second.log() and "in use" in second.log()


def test_sigterm_finishes_streams_16():
    server = Server("--random-seed", "2", "--max-running-requests", "2")
    with server.http() as http, server.http() as other:
        # Work for some seconds, whatever the model's speed: the probes below must find the server draining.
        begin = time.monotonic()
        chat(http, max_tokens=64, ignore_eos=True)
        choices = min(64, 1 + int(4 / (time.monotonic() - begin)))
        with http.stream("POST", "/v1/chat/completions",
                         json=chat_body(stream=True, ignore_eos=True, max_tokens=256, n=choices)) as response:
            lines = response.iter_lines()
            first = [next(lines), next(lines)]
            server.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: other.get("/health").status_code == 503)
            refused = other.post("/v1/chat/completions", json=chat_body())
            assert refused.status_code == 503 and refused.headers["retry-after"]
            chunks = events(first + list(lines))
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert reasons == ["length"] * choices
    assert server.process.wait(timeout=30) == 0, server.log()


def test_second_sigterm_ends_at_once_17():
    server = Server("--random-seed", "3")
    with server.http() as http, http.stream("POST", "/v1/chat/completions",
                                            json=chat_body(stream=True, ignore_eos=True, n=64)) as response:
        lines = response.iter_lines()  # kept: httpx closes the stream when its iterator goes
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=10)


def test_sigterm_while_loading_17():
    server = Server("--random-seed", "4", wait=False)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(timeout=10)


def test_media_types_18_19(http):
    body = json.dumps(chat_body(max_tokens=1))
    post = lambda kind: http.post("/v1/chat/completions", content=body, headers={"Content-Type": kind})
    error_of(post("text/plain"))
    assert post("application/json; charset=utf-8").status_code == 200


def test_broken_json_20(http):
    error_of(http.post("/v1/chat/completions", content="{\"messages\": [", headers={"Content-Type": "application/json"}))


def test_preflight_21(servers):
    with servers("--api-key", "k", "--admin-api-key", "a", "--enable-metrics").http() as http:
        response = http.options("/v1/chat/completions", headers={
            "Origin": "http://ui.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "http://ui.example"
    assert response.headers["access-control-allow-headers"] == "authorization,content-type"


def test_large_body_with_expect_22(server):
    body = json.dumps(chat_body(max_tokens=1, metadata={"x": "y" * (5 << 20)})).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                  b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert s.recv(100).startswith(b"HTTP/1.1 100")
        s.sendall(body)
        assert s.recv(100).startswith(b"HTTP/1.1 200")


def test_unknown_path_and_method_23(http):
    error_of(http.get("/v1/unknown"), 404)
    response = http.get("/v1/chat/completions")
    error_of(response, 405)
    assert "POST" in response.headers["allow"]


def test_request_id_24(http):
    headers = {"X-Request-Id": "abc"}
    for response in (http.get("/v1/models", headers=headers), http.get("/nothing", headers=headers),
                     http.post("/v1/chat/completions", json=chat_body(max_tokens=1, stream=True), headers=headers)):
        assert response.headers["x-request-id"] == "abc"
    assert http.get("/v1/models").headers["x-request-id"]


def test_keys_25_to_28(servers):
    server = servers("--api-key", "k", "--admin-api-key", "a", "--enable-metrics")
    with server.http() as http:
        get = lambda path, key=None, scheme="Bearer": http.get(
            path, headers={"Authorization": f"{scheme} {key}"} if key else {}).status_code
        assert [get("/v1/models"), get("/v1/models", "wrong"), get("/v1/models", "k"),
                get("/v1/models", "k", "bearer")] == [401, 401, 200, 200]
        assert [get("/health"), get("/metrics"), get("/ping")] == [200, 200, 200]
        assert [get("/flush_cache", "k"), get("/flush_cache", "a")] == [401, 200]
        info = http.get("/server_info", headers={"Authorization": "Bearer k"}).json()
        assert info["api_key"] == "***" and info["admin_api_key"] == "***"


def test_models_29_30(http):
    listed = http.get("/v1/models").json()["data"]
    assert [m["id"] for m in listed] == [NAME] and listed[0]["max_model_len"] == CONTEXT
    assert http.get("/v1/models/" + NAME).status_code == 200
    assert error_of(http.get("/v1/models/other"), 404)["code"] == "model_not_found"


def test_model_names_31(http, servers):
    assert chat(http, max_tokens=1, model="gpt-4o")["model"] == "gpt-4o"
    with servers("--strict-model-name").http() as strict:
        response = strict.post("/v1/chat/completions", json=chat_body(max_tokens=1, model="gpt-4o"))
        assert error_of(response, 404)["code"] == "model_not_found"
        assert strict.post("/v1/chat/completions", json=chat_body(max_tokens=1)).status_code == 200


def test_flush_cache_101(servers):
    slow = servers("--max-running-requests", "2", "--enable-metrics")
    with slow.http() as http, slow.http() as other:
        assert eventually(lambda: other.get("/flush_cache").status_code == 200)
        with http.stream("POST", "/v1/chat/completions",
                         json=chat_body(stream=True, ignore_eos=True, n=64)) as response:
            lines = response.iter_lines()  # kept: httpx closes the stream when its iterator goes
            next(lines)
            assert other.post("/flush_cache").status_code == 400
        assert eventually(lambda: other.get("/flush_cache").status_code == 200)


def test_tokenize_102(http):
    text = "Hello, wörld! 日本語 🙂"
    tokens = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert tokens["count"] == len(tokens["tokens"]) and tokens["max_model_len"] == CONTEXT
    assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["text"] == text
    count = http.post("/tokenize", json={"messages": HELLO}).json()["count"]
    assert count == chat(http, max_tokens=1)["usage"]["prompt_tokens"]


def test_information_103(http):
    info = http.get("/model_info").json()
    assert info["model_path"] and info["is_generation"] is True and info["architectures"]
    server_info = http.get("/server_info").json()
    assert server_info["served_model_name"] == NAME and server_info["max_total_num_tokens"] > 0
    load = http.get("/v1/loads").json()["loads"][0]
    for key in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens", "max_total_num_tokens",
                "max_running_requests", "token_usage", "gen_throughput", "cache_hit_rate", "utilization"):
        assert key in load
    assert http.get("/v1/loads?include=nonsense").status_code == 400
    assert isinstance(http.get("/get_load").json(), list)


def test_health_idle_and_under_load_104(server, http):
    assert http.get("/health").status_code == 200 and http.get("/health_generate").content == b""
    with http.stream("POST", "/v1/chat/completions",
                     json=chat_body(stream=True, ignore_eos=True, n=64, temperature=1)) as response:
        lines = response.iter_lines()  # kept: httpx closes the stream when its iterator goes
        next(lines)
        with server.http() as other:
            for _ in range(5):
                assert other.get("/health", timeout=10).status_code == 200


def gauges(http):
    load = http.get("/v1/loads").json()["loads"][0]
    return load["num_running_reqs"], load["num_waiting_reqs"]


def test_disconnects_106(servers):
    """While streaming, while a whole answer is awaited, and in the queue. n = 64: more work than any model has done
    before the client leaves."""
    server = servers("--max-running-requests", "2", "--enable-metrics")
    with server.http() as http:
        aborted = lambda: metrics(http)["sglang:num_aborted_requests_total"]

        def open_request(**members):
            body = json.dumps(chat_body(ignore_eos=True, **members)).encode()
            s = socket.create_connection(("127.0.0.1", server.port))
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                      b"Content-Length: %d\r\n\r\n" % len(body) + body)
            return s

        before = aborted()
        streaming, seen = open_request(stream=True, n=64), b""
        while seen.count(b"data: ") < 3:
            seen += streaming.recv(4096)
        streaming.close()
        assert eventually(lambda: gauges(http) == (0, 0), seconds=2)
        assert eventually(lambda: aborted() > before)

        before = aborted()
        whole = open_request(n=64)
        assert eventually(lambda: gauges(http)[0] == 2)
        queued = open_request(max_tokens=5)
        assert eventually(lambda: gauges(http)[1] > 1)
        queued.close()
        assert eventually(lambda: aborted() == before + 1)
        whole.close()
        assert eventually(lambda: gauges(http) == (0, 0), seconds=2)
        assert eventually(lambda: aborted() > before + 1)


def test_queue_full_108(servers):
    import concurrent.futures

    server = servers("--max-running-requests", "1", "--max-queued-requests", "1")
    with server.http() as http, concurrent.futures.ThreadPoolExecutor(10) as pool:
        responses = list(pool.map(lambda _: http.post(
            "/v1/chat/completions", json=chat_body(max_tokens=64, ignore_eos=True)), range(10)))
    full = [r for r in responses if r.status_code == 503]
    assert full and len(full) < 10
    for response in full:
        assert "The request queue is full." in error_of(response, 503)["message"]
        assert response.headers["retry-after"]
    assert all(r.json()["usage"]["completion_tokens"] == 64 for r in responses if r.status_code != 503)


def test_thousand_streams_110(servers):
    """A thousand open at once; every one gets all its tokens."""
    import asyncio

    server = servers("--enable-metrics", "--enable-cache-report", "--random-seed", "7")
    body = json.dumps({"model": NAME, "prompt": "Hi", "max_tokens": 3, "ignore_eos": True, "stream": True}).encode()
    request = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
               b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async def run():
        opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", server.port) for _ in range(1000)))
        for _, writer in opened:
            writer.write(request)

        async def finish(reader, writer):
            data = await reader.read()
            writer.close()
            return data

        return await asyncio.gather(*(finish(*pair) for pair in opened))

    for data in asyncio.run(run()):
        assert data.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in data and b'"finish_reason":"length"' in data


P0_GAUGES = ["num_running_reqs", "num_queue_reqs", "token_usage", "num_used_tokens", "gen_throughput", "cache_hit_rate"]


def test_metrics_after_traffic_111(http):
    chat(http, max_tokens=4)
    text = http.get("/metrics").text
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    helps = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(set(types)) == len(types) and sorted(types) == sorted(helps)
    for name in P0_GAUGES + ["prompt_tokens_total", "generation_tokens_total", "num_requests_total",
                             "time_to_first_token_seconds", "inter_token_latency_seconds",
                             "e2e_request_latency_seconds"]:
        assert "sglang:" + name in types
    for line in text.splitlines():
        if line and not line.startswith("#"):
            assert f'model_name="{NAME}"' in line
    before = metrics(http)
    chat(http, max_tokens=4)
    after = metrics(http)
    for name, value in before.items():
        if name.split("{")[0].endswith(("_total", "_count", "_bucket")):
            assert after[name] >= value


def test_metrics_exact_112():
    server = Server("--enable-metrics", "--enable-cache-report", "--random-seed", "9")
    with server.http() as http:
        prompts = sum(chat(http, max_tokens=n, ignore_eos=True)["usage"]["prompt_tokens"] for n in (3, 5, 7))
        for _ in range(3):
            assert http.get("/health").status_code == 200
        m = metrics(http)
        assert m["sglang:num_requests_total"] == 3
        assert m["sglang:generation_tokens_total"] == 15
        assert m["sglang:prompt_tokens_total"] == prompts
        assert m["sglang:time_to_first_token_seconds_count"] == 3
        assert m["sglang:e2e_request_latency_seconds_count"] == 3
        assert m["sglang:inter_token_latency_seconds_count"] == 12
        assert eventually(lambda: metrics(http)["sglang:num_running_reqs"] == 0)
        assert metrics(http)["sglang:num_queue_reqs"] == 0
    server.stop()


def test_no_metrics_without_the_flag_113(servers):
    with servers("--strict-model-name").http() as http:
        error_of(http.get("/metrics"), 404)


def test_chat_page(http):
    page = http.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200 and "<html" in page.text
    assert http.get("/app.js").headers["content-type"].startswith("text/javascript")
    assert http.get("/app.js", headers={"If-None-Match": http.get("/app.js").headers["etag"]}).status_code == 304
