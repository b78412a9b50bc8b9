"""What comes back, whole and as a stream, in each protocol."""

import json

from server.common import CUBA, OTHER_TOOL, TOOL, Server, answer, chat, content, eq, events, test


@test
def chat_whole_and_stream(s):
    status, head, r = s.post("/v1/chat/completions", chat())
    eq(status, 200)
    c = r["choices"][0]
    eq(c["message"]["content"], answer())
    eq(c["finish_reason"], "stop")
    u = r["usage"]
    eq(u["total_tokens"], u["prompt_tokens"] + u["completion_tokens"])
    assert head["request-id"].startswith("req_")
    status, head, body = s.request("POST", "/v1/chat/completions", json.dumps(
        chat(stream=True, stream_options={"include_usage": True})).encode())
    eq(head["content-type"], "text/event-stream")
    ev = events(body)
    eq(ev[-1], "[DONE]")
    eq(ev[-2]["usage"]["completion_tokens"], u["completion_tokens"])
    eq(content(ev), answer())
    eq(ev[-3]["choices"][0]["finish_reason"], "stop")
    eq([e["usage"] for e in ev[:-2]], [None] * (len(ev) - 2))
    for path, body in (("chat/completions", chat()), ("completions", {"prompt": "Hello", "max_tokens": 9})):
        _, _, text = s.request("POST", "/v1/" + path, json.dumps({**body, "stream": True, "stream_options": {
            "include_usage": True, "continuous_usage_stats": True}}).encode())
        n = [e["usage"]["completion_tokens"] for e in events(text)[:-1]]
        assert n == sorted(n) and n[0] < n[-1] and n[-2] == n[-1], n


@test
def reasoning(s):
    body = chat("What is 3 + 4?", max_tokens=200)
    body["thinking"] = {"type": "enabled"}
    r = s.post("/v1/chat/completions", body)[2]
    m = r["choices"][0]["message"]
    assert m["reasoning_content"] and "think>" not in json.dumps(m), m
    n = r["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < n < r["usage"]["completion_tokens"]
    hidden = s.post("/v1/chat/completions", {**body, "reasoning": "hidden"})[2]
    m = hidden["choices"][0]["message"]
    assert "reasoning_content" not in m
    eq(hidden["usage"]["completion_tokens_details"]["reasoning_tokens"], n)
    eq(m["content"], r["choices"][0]["message"]["content"])
    body["thinking"]["budget_tokens"] = 3
    short = s.post("/v1/chat/completions", body)[2]
    assert short["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 4
    assert "think>" not in json.dumps(short)
    ev = events(s.request("POST", "/v1/chat/completions",
                          json.dumps({**body, "stream": True, "reasoning": "hidden"}).encode())[2])
    assert not any("reasoning_content" in e["choices"][0]["delta"] for e in ev[:-1])


@test
def stops_and_limits(s):
    text = answer()
    for begin, end in ((len(text) // 2, len(text) // 2 + 1), (3, 8), (len(text) - 2, len(text))):
        stop = text[begin:end]  # anywhere, also across tokens
        r = s.post("/v1/chat/completions", chat(stop=["never said", stop]))[2]
        eq(r["choices"][0]["message"]["content"], text[:text.find(stop)])
        eq(r["choices"][0]["finish_reason"], "stop")
    r = s.post("/v1/chat/completions", chat(max_tokens=3))[2]
    eq(r["choices"][0]["finish_reason"], "length")
    eq(r["usage"]["completion_tokens"], 3)
    r = s.post("/v1/messages", {"messages": [{"role": "user", "content": CUBA}],
                                "temperature": 0, "max_tokens": 50, "stop_sequences": [text[3:8]]})[2]
    eq((r["stop_reason"], r["stop_sequence"]), ("stop_sequence", text[3:8]))


@test
def choices_and_seeds(s):
    body = {**chat("Tell me a story.", n=3, temperature=1.0, max_tokens=20), "seed": 7}
    a, b = s.post("/v1/chat/completions", body)[2], s.post("/v1/chat/completions", body)[2]
    texts = [c["message"]["content"] for c in a["choices"]]
    eq(len(texts), 3)
    eq(texts, [c["message"]["content"] for c in b["choices"]])
    assert len(set(texts)) > 1, texts
    r = s.post("/v1/completions", {"prompt": ["Once upon", "The capital"], "n": 2, "max_tokens": 4,
                                   "echo": True})[2]
    eq([c["index"] for c in r["choices"]], [0, 1, 2, 3])
    assert r["choices"][2]["text"].startswith("The capital")


@test
def logprobs_and_bias(s):
    r = s.post("/v1/chat/completions", chat(logprobs=True, top_logprobs=3))[2]
    c = r["choices"][0]
    content = c["logprobs"]["content"]
    eq("".join(t["token"] for t in content), c["message"]["content"])
    for t in content:
        eq(len(t["top_logprobs"]), 3)
        eq(t["top_logprobs"][0]["logprob"], t["logprob"])
        eq(bytes(t["bytes"]).decode(), t["token"])
    first = s.post("/tokenize", {"content": content[0]["token"]})[2]["tokens"][0]
    r = s.post("/v1/chat/completions", chat(logit_bias={str(first): -100}))[2]
    assert not r["choices"][0]["message"]["content"].startswith(content[0]["token"])
    r = s.post("/v1/chat/completions", chat(logit_bias={str(first): 100}, max_tokens=3))[2]
    eq(r["choices"][0]["message"]["content"], content[0]["token"] * 3)


@test
def constrained(s):
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 10},
                                               "ok": {"type": "boolean"}},
              "required": ["city", "ok"], "additionalProperties": False}
    for thinking in ("disabled", "enabled"):
        body = chat("Answer with json.", max_tokens=300, temperature=1.0, seed=3, response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        body["thinking"] = {"type": thinking, "budget_tokens": 10}
        for seed in range(3):
            r = s.post("/v1/chat/completions", {**body, "seed": seed})[2]
            c = r["choices"][0]
            v = json.loads(c["message"]["content"])
            eq(sorted(v), ["city", "ok"])
            eq(c["finish_reason"], "stop")
    r = s.post("/v1/chat/completions", chat("yes or no?", grammar='root ::= "yes" | "no"'))[2]
    assert r["choices"][0]["message"]["content"] in ("yes", "no")
    status, _, r = s.post("/v1/chat/completions", chat(response_format={
        "type": "json_schema", "json_schema": {"schema": {"type": "object", "unevaluatedItems": False}}}))
    eq(status, 400)
    assert "unevaluatedItems" in r["error"]["message"], r


@test
def tools(s):
    for choice, names in (("required", {"get_weather", "get_time"}),
                          ({"type": "function", "function": {"name": "get_time"}}, {"get_time"})):
        for seed in range(3):
            body = chat("What is the weather?", tools=[TOOL, OTHER_TOOL], tool_choice=choice,
                        parallel_tool_calls=False, temperature=1.0, seed=seed, max_tokens=200)
            r = s.post("/v1/chat/completions", body)[2]
            c = r["choices"][0]
            eq(c["finish_reason"], "tool_calls")
            eq(len(c["message"]["tool_calls"]), 1)
            call = c["message"]["tool_calls"][0]["function"]
            assert call["name"] in names
            args = json.loads(call["arguments"])
            eq(list(args), ["city"] if call["name"] == "get_weather" else ["zone"])
            assert "DSML" not in json.dumps(c)
            ev = events(s.request("POST", "/v1/chat/completions",
                                  json.dumps({**body, "stream": True}).encode())[2])
            got = [t for e in ev[:-1] for t in e["choices"][0]["delta"].get("tool_calls", [])]
            eq(got[0]["function"]["name"], call["name"])
            eq("".join(t["function"].get("arguments", "") for t in got), call["arguments"])
    for seed in range(8):  # whatever the model does, no tags are shown
        r = s.post("/v1/chat/completions", chat("What is the weather in Paris?", tools=[TOOL],
                                                temperature=1.0, seed=seed, max_tokens=150))[2]
        assert "DSML" not in json.dumps(r), r
        r = s.post("/v1/chat/completions", chat("What is the weather in Paris?", tools=[TOOL],
                                                tool_choice="none", seed=seed, max_tokens=60))[2]
        assert "tool_calls" not in r["choices"][0]["message"]
    turn = s.post("/v1/chat/completions", chat(
        "What is the weather in Paris?", tools=[TOOL], tool_choice="required",
        parallel_tool_calls=False, max_tokens=200))[2]["choices"][0]["message"]
    call = turn["tool_calls"][0]
    r = s.post("/v1/chat/completions", {
        "tools": [TOOL], "thinking": {"type": "disabled"}, "max_tokens": 30, "temperature": 0, "messages": [
            {"role": "user", "content": "What is the weather in Paris?"}, turn,
            {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]})
    eq(r[0], 200)
    # what was generated is found again, though it comes back as text
    assert r[2]["usage"]["prompt_tokens_details"]["cached_tokens"] > 100, r[2]["usage"]


@test
def anthropic_shapes(s):
    body = {"max_tokens": 60, "temperature": 0, "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]}
    status, _, r = s.post("/v1/messages", body)
    eq((status, r["type"], r["role"]), (200, "message", "assistant"))
    eq(r["content"][0]["type"], "text")
    n = s.post("/v1/messages/count_tokens", {k: body[k] for k in ("system", "messages")})[2]
    eq(n["input_tokens"], r["usage"]["input_tokens"] + r["usage"]["cache_read_input_tokens"])
    status, _, r = s.post("/v1/messages", {**body, "max_tokens": 0})
    eq((status, r["type"], r["error"]["type"]), (400, "error", "invalid_request_error"))
    status, _, r = s.post("/v1/messages", {
        "max_tokens": 200, "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [{"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True}})
    eq((status, r["stop_reason"]), (200, "tool_use"))
    use = r["content"][-1]
    eq((use["type"], list(use["input"])), ("tool_use", ["city"]))
    status, _, r = s.post("/v1/messages", {
        "max_tokens": 20, "messages": [
            {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": [use]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use["id"],
                                          "content": [{"type": "text", "text": "sunny"}]}]}],
        "tools": [{"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}]})
    eq(status, 200)


@test
def responses_shapes(s):
    body = {"input": CUBA, "temperature": 0, "reasoning": {"effort": "none"}}
    status, _, r = s.post("/v1/responses", body)
    eq((status, r["object"], r["status"]), (200, "response", "completed"))
    eq(r["output"][0]["content"][0]["text"], answer())
    ev = events(s.request("POST", "/v1/responses", json.dumps({**body, "stream": True}).encode())[2])
    eq([e["sequence_number"] for e in ev], list(range(len(ev))))
    eq(ev[0]["type"], "response.created")
    eq(ev[-1]["type"], "response.completed")
    eq("".join(e["delta"] for e in ev if e["type"] == "response.output_text.delta"),
       answer())
    eq(ev[-1]["response"]["output"][0]["content"], r["output"][0]["content"])


@test
def endless(_):
    """A model that does not stop: a block of calls, and a text that only repeats itself, have an end."""
    s = Server("--block-limit", "24", "--loop-limit", "64")
    try:
        letter = s.post("/tokenize", {"content": "a"})[2]["tokens"][0]
        tool = {"type": "function", "function": {"name": "write", "parameters": {
            "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}}}
        r = s.post("/v1/chat/completions", chat("Write.", tools=[tool], tool_choice="required", max_tokens=2000,
                                                logit_bias={str(letter): 90}))[2]
        assert r["usage"]["completion_tokens"] < 60, r["usage"]
        assert "DSML" not in json.dumps(r), r
        r = s.post("/v1/completions", {"prompt": "Once", "max_tokens": 5000, "ignore_eos": True,
                                       "logit_bias": {str(letter): 100}})[2]
        assert r["usage"]["completion_tokens"] < 200, r["usage"]
        eq(s.metric("loops_total"), 1)
    finally:
        eq(s.stop(), 0)
