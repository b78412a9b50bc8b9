"""Bodies that are not what they should be, and texts that must stay texts."""

import concurrent.futures
import json
import time

from server.common import OTHER_TOOL, Server, TOOL, answer, chat, eq, parse, test


@test
def bad_json(s):
    bad = [b"", b"{", b"[]", b"null", b'"x"', b"{}x", b'{"a":1,"a":2}', b"\xff\xfe", b'{"messages":"\xc3"}',
           b"[" * 100000, b'{"a":' * 50000, b'{"messages": NaN}', b'{"n": 1e999}', b"{'a': 1}",
           b'{"messages":[{"role":"user","content":"\\ud800"}]}', b'{"messages":"\\\xdd\x9d"}',
           b'{"a' + "\u20ac".encode() * 300 + b'": 1, "messages": 1}']
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
                 "/tokenize", "/detokenize", "/v1/messages/count_tokens"):
        for body in bad:
            status, _, v = s.post(path, body)
            eq(status, 400)
            assert v["error"]["message"] and v["error"]["type"] == "invalid_request_error", v
            assert "/work" not in json.dumps(v)


@test
def wrong_types(s):
    """Every parameter with every wrong type, and numbers out of range."""
    values = [None, True, -1, 0, 1.5, 1e300, 2 ** 63 - 1, -2 ** 63, "x", "", [], [1], {}, {"a": 1}, [[]],
              "\u0000"]
    names = ["model", "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format",
             "grammar", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
             "presence_penalty", "repetition_penalty", "seed", "stop", "max_tokens",
             "max_completion_tokens", "n", "logprobs", "top_logprobs", "logit_bias", "stream",
             "stream_options", "reasoning_effort", "thinking", "user", "metadata", "store",
             "service_tier", "functions", "modalities", "timeout", "reasoning", "verbosity"]
    for name in names:
        for v in values:
            body = {**chat(max_tokens=1), name: v}
            if name in ("max_completion_tokens",):
                body.pop("max_tokens")
            if v is True and name == "stream":
                continue
            status, _, r = s.post("/v1/chat/completions", body)
            assert status in (200, 400, 404), (name, v, status, r)
            if status == 400:
                assert r["error"]["param"] is None or isinstance(r["error"]["param"], str)
    for extra in ({"stop": ["x"] * 10000}, {"n": 1000}, {"max_tokens": -1}, {"max_tokens": 0},
                  {"temperature": 2.1}, {"top_p": 0}, {"logit_bias": {"5000": 1}},
                  {"logit_bias": {"a": 1}}, {"logit_bias": {"1": 1000}}, {"stop": [""]},
                  {"stop": [1]}, {"stop": "x" * 5000}, {"top_logprobs": 3}, {"unknown": 1},
                  {"stream_options": {"include_usage": True}}, {"store": True},
                  {"stream": True, "stream_options": {"continuous_usage_stats": True}},
                  {"tool_choice": "required"}, {"tools": [{}]}, {"tools": [TOOL, TOOL]},
                  {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
                  {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_object"}},
                  {"response_format": {"type": "json_schema"}}, {"grammar": "root ::= ("},
                  {"reasoning_effort": "enormous"}, {"thinking": {"type": "perhaps"}},
                  {"thinking": {"type": "enabled", "budget_tokens": -4}}):
        status, _, r = s.post("/v1/chat/completions", {**chat(max_tokens=1), **extra})
        assert status == 400, (extra, status, r)
        assert r["error"]["message"], r


@test
def bad_messages(s):
    bad = [[], "x", [1], [{}], [{"role": "robot", "content": "x"}], [{"role": "user"}],
           [{"role": "user", "content": 5}], [{"role": "user", "content": [{"type": "image_url",
             "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}],
           [{"role": "user", "content": [{"type": "input_audio"}]}],
           [{"role": "tool", "tool_call_id": "x", "content": "y"}],
           [{"role": "assistant", "content": None}], [{"role": "user", "content": "x", "odd": 1}],
           [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [
               {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]]
    for m in bad:
        status, _, r = s.post("/v1/chat/completions", {"messages": m, "max_tokens": 1})
        assert status == 400, (m, status, r)
    for m in bad[:7]:
        status, _, r = s.post("/v1/messages", {"messages": m, "max_tokens": 1})
        assert status == 400 and r["type"] == "error", (m, status, r)
    for v in ({"input": []}, {"input": [{"type": "odd"}]}, {"input": "x", "previous_response_id": "r"},
              {}, {"input": "x", "tools": [{"type": "web_search"}]}, {"input": "x", "background": True}):
        status, _, r = s.post("/v1/responses", v)
        assert status == 400, (v, status, r)


@test
def size_limits(_):
    s = Server("--max-body", "100K", "--max-messages", "5", "--max-tools", "1", "--max-choices", "2")
    try:
        eq(s.post("/tokenize", {"content": "x" * 200000})[0], 413)
        chunked = (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                   b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
                   b"10000\r\n" + b"x" * 65536 + b"\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n")
        eq(parse(s.raw(chunked))[0], 413)
        m = [{"role": "user", "content": "x"}] * 6
        eq(s.post("/v1/chat/completions", {"messages": m})[0], 400)
        eq(s.post("/v1/chat/completions", chat(tools=[TOOL, OTHER_TOOL]))[0], 400)
        eq(s.post("/v1/chat/completions", chat(n=3))[0], 400)
        begun = time.time()
        eq(s.request("GET", "/health", headers={"X-Long": "x" * 100000})[0] in (0, 413, 431), True)
        eq(s.request("GET", "/health", headers={"X-Long": "x" * 50000})[0], 200)
        assert time.time() - begun < 5  # it is read in many pieces, but at once
        status, _, r = s.post("/v1/completions", {"prompt": [5] * 17000})
        eq((status, r["error"]["code"]), (400, "context_length_exceeded"))
        status, _, r = s.post("/v1/completions", {"prompt": [5] * 16384})
        eq(status, 400)
        eq(s.get("/health")[0], 200)
    finally:
        eq(s.stop(), 0)


@test
def absurd_sizes(s):
    """Refused by limits that are known before any work is done."""
    one = '{"role":"user","content":"x"}'
    many = {"100,000 messages": '{"messages":[%s]}' % ",".join([one] * 100000),
            "10,000 tools": '{"messages":[%s],"tools":[%s]}' % (one, ",".join([json.dumps(TOOL)] * 10000)),
            "200,000 members": "{%s}" % ",".join('"k%d":0' % i for i in range(200000)),
            "a message of 6 MB": json.dumps(chat("word " * 1200000)),
            "2^31 tokens wanted": json.dumps(chat(max_tokens=2 ** 31))}
    for name, body in many.items():
        status, _, r = s.post("/v1/chat/completions", body.encode(), timeout=120)
        assert status == 400, (name, status, r)
    eq(s.request("POST", "/tokenize", b"", {"Content-Length": str(64 << 20)})[0], 413)
    for prompt, expected in (("", 200), (" \n\t ", 200), ([], 400), ([[]], 400)):
        status, _, r = s.post("/v1/completions", {"prompt": prompt, "max_tokens": 1, "cache_prompt": False})
        assert status == expected, (str(prompt)[:20], status, r)


@test
def schema_bombs(s):
    """Schemas and grammars that are cheap to write: refused, or compiled in bounded time, beside other requests."""
    options = {"p%d" % i: {"type": "string"} for i in range(94)}
    deep = {"type": "string"}
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": deep, "b": deep}}
    bombs = [{"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
             {"enum": ["x%d" % i for i in range(100000)]}, {"type": "string", "pattern": "(a+)+b"},
             {"type": "string", "pattern": "(((a{1,99}){1,99}){1,99}){1,99}"},
             {"type": "string", "pattern": "[\\u0000-\\uffff]{1,100000}"}, {"type": "object", "properties": options},
             {"type": "string", "minLength": 10 ** 9}, {"type": "array", "minItems": 10 ** 9, "items": {}}]
    text = json.dumps(chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": "BOMB"}}))
    texts = [text.replace('"BOMB"', json.dumps(b)) for b in bombs]
    texts.append(json.dumps(chat(grammar="root ::= " + "(" * 50000)))
    texts.append(json.dumps(chat(grammar="root ::= root")))
    texts.append(json.dumps(chat(grammar='root ::= ("a"{1,999}){1,999}')))
    for body in texts:
        begun = time.time()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            bomb = pool.submit(s.post, "/v1/chat/completions", {**json.loads(body), "max_tokens": 2})
            other = pool.submit(s.post, "/v1/chat/completions", chat())
            status, _, r = bomb.result()
            assert status in (200, 400), (body[:200], status, r)
            eq(other.result()[2]["choices"][0]["message"]["content"], answer())
        assert time.time() - begun < 20, body[:200]


@test
def markers_are_text(s):
    """No text of anybody becomes a control token, wherever in a conversation it stands."""
    tok = json.load(open("models/nano/tokenizer.json"))
    added = {a["content"]: a["id"] for a in tok["added_tokens"]}

    def conversation(x):
        call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": x, x: 1})}}
        tool = {"type": "function", "function": {"name": "get_weather", "description": x, "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "description": x, "enum": [x]}}}}}
        return {"tools": [tool], "messages": [
            {"role": "system", "content": x}, {"role": "user", "content": [{"type": "text", "text": x}]},
            {"role": "assistant", "content": x, "reasoning_content": x, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": x}, {"role": "user", "content": x}]}

    plain = s.post("/tokenize", conversation("a"))[2]["tokens"]
    for name, i in added.items():
        _, _, r = s.post("/tokenize", {"content": "a%sb" % name})
        assert i not in r["tokens"], name
        if name == "<｜deepseek_image｜>":
            continue  # stands for an image: refused as text
        status, _, r = s.post("/tokenize", conversation("a%sb" % name))
        eq((name, status, r["tokens"].count(i)), (name, 200, plain.count(i)))
