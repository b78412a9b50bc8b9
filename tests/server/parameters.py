"""Every parameter, asked for as programs do: the packages openai and anthropic, now and later, whole and streamed.
Each changes the answer in the way it says, or is refused with its name."""

import asyncio
import collections
import functools
import json

from server.clients import clients, connect
from server.common import CUBA, OTHER_TOOL, TOOL, answer, eq, test

OFF = {"thinking": {"type": "disabled"}}
STORY = [{"role": "user", "content": "Tell me a story about a fox and a river."}]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


@functools.lru_cache(None)
def made(kind, later, url):
    """A client, one that does not wait, and what that one runs in: they take longer to make than to use."""
    return connect(kind, url), connect(later, url), asyncio.new_event_loop()


def all_equal(out):
    for other in out[1:]:
        eq(other, out[0])
    return out[0]


def four_ways(openai, s, ask, read, read_stream, one_way=False):
    """The same request of a client and of one that does not wait, whole and as a stream: four times the same."""
    c, a, loop = made(openai.OpenAI, openai.AsyncOpenAI, s.url("/v1"))
    if one_way:
        return read(ask(c))

    async def later():
        both = [read(await ask(a)), read_stream([e async for e in await ask(a, stream=True)])]
        await asyncio.sleep(0.01)  # the stream's generators end by themselves
        return both

    return all_equal([read(ask(c)), read_stream(list(ask(c, stream=True))), *loop.run_until_complete(later())])


def chat_four_ways(openai, s, messages=STORY, extra=None, one_way=False, **more):
    def ask(c, **how):
        return c.chat.completions.create(model="nano", messages=messages, extra_body={**OFF, **(extra or {})},
                                         **{"max_tokens": 24, **more}, **how)

    def read(r):
        return sorted((c.index, c.message.content or "", c.finish_reason, [
            (t.function.name, t.function.arguments) for t in c.message.tool_calls or []]) for c in r.choices)

    def read_stream(events):
        text, end = collections.defaultdict(str), {}
        calls = collections.defaultdict(dict)
        for e in events:
            for c in e.choices:
                text[c.index] += c.delta.content or ""
                end[c.index] = c.finish_reason or end.get(c.index)
                for t in c.delta.tool_calls or []:
                    name, arguments = calls[c.index].get(t.index, ("", ""))
                    calls[c.index][t.index] = (name + (t.function.name or ""), arguments + (t.function.arguments or ""))
        return sorted((i, text[i], end[i], [calls[i][k] for k in sorted(calls[i])]) for i in end)

    return four_ways(openai, s, ask, read, read_stream, one_way)


@test
def chat_parameters(s):
    openai, _ = clients()
    if not openai:
        return

    def text(**more):
        return chat_four_ways(openai, s, one_way=True, **more)[0][1]

    greedy, wild = chat_four_ways(openai, s, temperature=0)[0][1], chat_four_ways(openai, s, temperature=1.5, seed=7)[0][1]
    assert greedy != wild
    eq(text(temperature=1.5, seed=7), wild)
    assert text(temperature=1.5, seed=8) != wild
    for narrow in ({"top_p": 1e-6}, {"extra": {"top_k": 1}}, {"extra": {"min_p": 1.0}}):  # nothing but the likeliest
        eq(text(temperature=1.5, seed=7, **narrow), greedy)
    for other in ({"top_p": 0.5}, {"extra": {"top_k": 3}}, {"extra": {"min_p": 0.3}}, {"presence_penalty": 2},
                  {"frequency_penalty": 2}, {"extra": {"repetition_penalty": 1.5}}):
        assert text(temperature=1.5, seed=7, **other) != wild, other
    eq(text(temperature=0, stop=[greedy[5:9]]), greedy[:greedy.find(greedy[5:9])])
    eq(text(temperature=0, stop=greedy[5:9]), greedy[:greedy.find(greedy[5:9])])
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": openai.NOT_GIVEN}):
        r = chat_four_ways(openai, s, temperature=0, **limit)[0]
        assert r[2] == "length" and greedy.startswith(r[1]) and len(r[1]) < len(greedy), r
    r = chat_four_ways(openai, s, n=3, temperature=1.0, seed=5)
    assert [c[0] for c in r] == [0, 1, 2] and len({c[1] for c in r}) > 1, r
    for more in ({"user": "u"}, {"metadata": {"a": "b"}}, {"service_tier": "auto"}, {"store": False},
                 {"modalities": ["text"]}, {"prompt_cache_key": "k"}, {"safety_identifier": "i"},
                 {"extra": {"cache_prompt": False}}):
        eq(text(temperature=0, **more), greedy)
    v = json.loads(text(temperature=0, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}))
    eq(list(v), ["ok"])
    eq(text(temperature=0, extra={"grammar": 'root ::= "yes"'}), "yes")
    likely = s.post("/tokenize", {"content": "the"})[2]["tokens"][0]
    assert text(temperature=0, logit_bias={likely: 100}, max_tokens=3).count("the") == 3
    for choice, names in (("required", {"get_weather", "get_time"}), ("auto", None), ("none", set()),
                          ({"type": "function", "function": {"name": "get_time"}}, {"get_time"})):
        r = chat_four_ways(openai, s, tools=[TOOL, OTHER_TOOL], tool_choice=choice, parallel_tool_calls=False,
                           temperature=0, max_tokens=200)[0]
        if names is not None:
            eq((len(r[3]), r[2] == "tool_calls"), (1, True) if names else (0, False))
            assert {c[0] for c in r[3]} <= names, r
        for _, arguments in r[3]:
            json.loads(arguments)


@test
def chat_reasoning_parameters(s):
    openai, _ = clients()
    if not openai:
        return
    c = connect(openai.OpenAI, s.url("/v1"))

    def ask(**more):
        r = c.chat.completions.create(model="nano", messages=[{"role": "user", "content": "What is 3 + 4?"}],
                                      temperature=0, max_tokens=200, **more)
        return r.usage.completion_tokens_details.reasoning_tokens, r.usage.prompt_tokens

    eq(ask(reasoning_effort="none")[0], 0)
    prompts = {ask(reasoning_effort=e)[1] for e in ("low", "high", "max")}
    assert len(prompts) > 1, prompts  # an effort is written into the prompt
    assert ask(reasoning_effort="high")[0] > 0
    assert ask(extra_body={"thinking": {"type": "enabled", "budget_tokens": 4}})[0] <= 5


@test
def parameters_refused(s):
    """By the clients' own exceptions, with the parameter's name."""
    openai, anthropic = clients()
    if not openai:
        return
    c = connect(openai.OpenAI, s.url("/v1"))
    m = [{"role": "user", "content": CUBA}]

    def refused(call, name, **more):
        try:
            call(**{"model": "nano", **more})
        except (openai.BadRequestError, anthropic.BadRequestError) as e:
            body = e.body["error"] if "error" in e.body else e.body
            eq(body["type"], "invalid_request_error")
            assert name in "%s %s" % (body.get("param"), body["message"]), (name, body)
            return
        raise AssertionError("%s was taken" % name)

    for name, value in (("audio", {"voice": "alloy", "format": "mp3"}), ("prediction", {"type": "content", "content": "x"}),
                        ("functions", [{"name": "f"}]), ("function_call", "auto"), ("store", True),
                        ("modalities", ["audio"]), ("verbosity", "low"), ("service_tier", "flex"),
                        ("web_search_options", {}), ("top_logprobs", 3), ("n", 1000), ("temperature", 3)):
        refused(c.chat.completions.create, name, messages=m, **{name: value})
    for name, value in (("best_of", 5), ("suffix", "x"), ("max_tokens", -1)):
        refused(c.completions.create, name, prompt="x", **{name: value})
    for name, value in (("previous_response_id", "r"), ("background", True), ("truncation", "auto"), ("max_tool_calls", 3),
                        ("include", ["file_search_call.results"]), ("top_logprobs", 2), ("conversation", "c"),
                        ("verbosity", {"verbosity": "low"}), ("odd", {"odd": 1})):
        refused(c.responses.create, name, input="x", **{"text" if name in ("verbosity", "odd") else name: value})
    refused(c.responses.create, "odd", input="x", reasoning={"odd": 1})
    a = connect(anthropic.Anthropic, s.url())
    for name, value in (("container", "c"), ("mcp_servers", [{"type": "url"}]), ("service_tier", "x"),
                        ("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}),
                        ("output_config", {"effort": "none"}), ("output_config", {"format": {"type": "xml"}}),
                        ("odd", {"thinking": {"type": "enabled", "odd": 1}}), ("display", {
                            "thinking": {"type": "enabled", "display": "loud"}})):
        body = value if name in ("odd", "display") else {name: value}
        refused(a.messages.create, name, max_tokens=5, messages=m, extra_body=body)


@test
def responses_parameters(s):
    openai, _ = clients()
    if not openai:
        return

    def four(**more):
        def ask(c, **how):
            return c.responses.create(model="nano", input=CUBA, **{
                "reasoning": {"effort": "none"}, "temperature": 0, **more}, **how)

        def read(r):
            return r.status, r.output_text, [(i.name, i.arguments) for i in r.output if i.type == "function_call"]

        return four_ways(openai, s, ask, read, lambda events: read(events[-1].response))

    eq(four()[:2], ("completed", answer()))
    r = four(max_output_tokens=3)
    assert r[0] == "incomplete" and answer().startswith(r[1]), r
    assert four(instructions="Talk like a sailor, and at length.")[0]
    assert four(temperature=0, top_p=0.5, user="u", metadata={"a": "b"}, store=False, truncation="disabled",
                include=["reasoning.encrypted_content"], prompt_cache_key="k", parallel_tool_calls=True,
                service_tier="auto") == four()
    form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    eq(list(json.loads(four(text=form)[1])), ["ok"])
    tools = [{"type": "function", **TOOL["function"]}, {"type": "function", **OTHER_TOOL["function"]}]
    call = {"type": "function", "name": "get_time"}
    r = four(tools=tools, tool_choice=call, parallel_tool_calls=False, max_output_tokens=200)
    eq([name for name, _ in r[2]], ["get_time"])
    c = connect(openai.OpenAI, s.url("/v1"))
    r = c.responses.create(model="nano", input=CUBA, max_output_tokens=100, text=form, reasoning={
        "effort": "high", "summary": "auto"}, metadata={"a": "b"})  # what was asked for is said again
    eq((r.text.format.type, r.reasoning.effort, r.metadata), ("json_schema", "high", {"a": "b"}))
    eq(c.responses.create(model="nano", input="x", tools=tools, tool_choice="required", max_output_tokens=1,
                          reasoning={"effort": "none"}).tool_choice, "required")


@test
def messages_parameters(s):
    _, anthropic = clients()
    if not anthropic:
        return
    m = [{"role": "user", "content": CUBA}]

    def four(**more):
        def read(r):
            return r.stop_reason, r.stop_sequence, [
                (b.type, getattr(b, "text", getattr(b, "thinking", getattr(b, "input", None)))) for b in r.content]

        extra = more.get("extra", {})

        def body():
            return {"model": "nano", "messages": m, "max_tokens": 60,
                    **{k: v for k, v in more.items() if k != "extra"}, "extra_body": {"temperature": 0, **extra}}

        c, a, loop = made(anthropic.Anthropic, anthropic.AsyncAnthropic, s.url())
        out = [read(c.messages.create(**body()))]
        with c.messages.stream(**body()) as st:
            out.append(read(st.get_final_message()))

        async def later():
            whole = read(await a.messages.create(**body()))
            async with a.messages.stream(**body()) as st:
                return [whole, read(await st.get_final_message())]

        return all_equal(out + loop.run_until_complete(later()))

    plain = four()
    eq(plain, ("end_turn", None, [("text", answer())]))
    part = answer()[3:8]
    eq(four(stop_sequences=[part])[:2], ("stop_sequence", part))
    eq(four(max_tokens=2)[0], "max_tokens")
    eq(four(extra={"top_k": 1, "temperature": 1.5}), plain)
    eq(four(extra={"top_p": 1e-6, "temperature": 1.5}), plain)
    eq(four(extra={"metadata": {"user_id": "u"}, "service_tier": "auto", "context_management": {
        "edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}), plain)
    assert four(system="Talk like a sailor.")[0]
    for extra in ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"thinking": {"type": "adaptive"}},
                  {"output_config": {"effort": "max"}}):
        eq(four(max_tokens=300, extra=extra)[2][0][0], "thinking")
    for extra in ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}},
                  {"thinking": {"type": "enabled", "display": "omitted"}}):
        assert four(max_tokens=300, extra=extra)[2][0][0] == "text", extra
    form = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    eq(list(json.loads(four(extra=form)[2][0][1])), ["ok"])
    tools = [{"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in (TOOL, OTHER_TOOL)]
    for choice, expected in (({"type": "any"}, "tool_use"), ({"type": "none"}, "text"), ({
            "type": "tool", "name": "get_time"}, "tool_use")):
        r = four(tools=tools, tool_choice={**choice, "disable_parallel_tool_use": True} if expected == "tool_use" else
                 choice, max_tokens=200)
        eq(r[2][-1][0], expected)


@test
def bodies_as_recorded(s):
    """The recorded bodies of the official library: taken and refused as there, but where docs/server.md says more."""
    with open("tests/golden/chat/request_v41.json", encoding="utf-8") as f:
        cases = json.load(f)["cases"]
    ours = {"choice-required", "choice-named", "n-two",  # taken here
            "json-schema-tools", "json-schema-tools-off",  # one grammar an answer
            "choice-required-no-tools", "choice-required-no-tools-off", "unknown-field-ignored",  # ignored there
            "image", "image-tool", "image-off", "image-tool-off"}
    for case in cases:
        body = {"max_tokens": 1, **case["request"], "stream": False}
        for name in ("model", "stream_options"):
            body.pop(name, None)
        if "max_completion_tokens" in body:
            body.pop("max_tokens")
        elif isinstance(body["max_tokens"], int) and body["max_tokens"] > 1:
            body["max_tokens"] = 1
        status, _, r = s.post("/v1/chat/completions", body)
        expected = 400 if ("error" in case) != (case["name"] in ours) else 200
        assert status == expected, (case["name"], status, r)
        assert status == 200 or r["error"]["message"], case["name"]
