"""DeepSeek's own serving library (PyPI deepseek-recipe) as second opinion on prompts, where the recorded cases of
tests/golden do not reach: the other two protocols, and chats that nobody wrote by hand."""

import json
import random

from server.common import LONG, SKIPPED, TOOL, eq, test

SCHEMA = TOOL["function"]["parameters"]
CALL = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
USE = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris", "n": [1, 2.5, None, True]}}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
MESSAGES_TOOLS = [{"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}]
RESPONSES_TOOLS = [{"type": "function", "name": "get_weather", "description": "Weather", "parameters": SCHEMA}]


def library():
    try:
        import deepseek_recipe
        return deepseek_recipe
    except ImportError:
        SKIPPED.append("the package deepseek-recipe is not there")
        return None


def prompt_ids(lib, kind, body, thinking):
    """The ids of the prompt that the library makes of a body; thinking: what holds where the body says nothing."""
    options = lib.ConversionOptions().with_model_alias("nano", lib.ModelVersion.DeepseekV41Flash)
    request = kind({**body, "model": "nano"}).convert(options.with_default_thinking_mode(thinking))
    tokenizer = lib.Tokenizer.from_file("models/nano/tokenizer.json")
    return lib.DeepseekV41Encoding().with_tokenizer(tokenizer).encode(request.conversation)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@test
def messages_as_deepseek(s):
    lib = library()
    budget = {"type": "enabled", "budget_tokens": 1024}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]}
    for m, more in (
            ([user("Hello")], {}), ([user("Hello")], {"system": "Be brief."}),
            ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
             {"system": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}),
            ([user("q"), assistant("a"), user("r")], {}), ([user("q")], {"tools": MESSAGES_TOOLS}),
            ([user("q")], {"tools": MESSAGES_TOOLS, "tool_choice": {"type": "none"}}),
            ([user("q"), assistant([{"type": "text", "text": "I look"}, USE]), user([result])],
             {"tools": MESSAGES_TOOLS}),
            ([user("q"), assistant([THOUGHT, USE]), user([result, {"type": "text", "text": "and?"}])],
             {"tools": MESSAGES_TOOLS, "thinking": budget}),
            ([user("q")], {"thinking": budget}),
            ([user("q"), assistant([THOUGHT, {"type": "text", "text": "a"}]), user("r")], {"thinking": budget})):
        if not lib:
            return
        body = {"messages": m, **more}
        ids = prompt_ids(lib, lib.MessagesRequest, {**body, "max_tokens": 1}, False)
        status, _, r = s.post("/v1/messages/count_tokens", body)
        eq((status, r), (200, {"input_tokens": len(ids)}))


@test
def responses_as_deepseek(s):
    lib = library()
    reasoning = {"type": "reasoning", "id": "r1", "summary": [], "content": [
        {"type": "reasoning_text", "text": "hm"}]}
    empty = {"type": "object", "properties": {}, "additionalProperties": False}
    for text, more in (
            ("Hello", {}), ("Hello", {"instructions": "Be brief."}),
            ([user("q"), assistant([{"type": "output_text", "text": "a"}]),
              user([{"type": "input_text", "text": "r"}])], {}),
            ("q", {"tools": RESPONSES_TOOLS}), ([user("q"), CALL, RESULT], {"tools": RESPONSES_TOOLS}),
            ([{"role": "developer", "content": "dev"}, user("q")], {"instructions": "i"}),
            ("q", {"reasoning": {"effort": "none"}}), ("q", {"reasoning": {"effort": "high"}}),
            ([user("q"), reasoning, CALL, RESULT], {"tools": RESPONSES_TOOLS}),
            ("json please", {"text": {"format": {"type": "json_object"}}}),
            ("q", {"text": {"format": {"type": "json_schema", "name": "x", "schema": empty}}})):
        if not lib:
            return
        body = {"input": text, "max_output_tokens": 1, **more}
        ids = prompt_ids(lib, lib.ResponsesRequest, body, True)
        status, _, r = s.post("/v1/responses", body)
        eq((status, r["usage"]["input_tokens"]), (200, len(ids)))


def random_chat(rng):
    """Any conversation that a client could have had: tools, calls answered, reasoning kept or not."""
    def text():
        return "".join(rng.choice(["Hello", " ", "\n\n", "<think>", "é", "日本", "🦀", "{\"a\": 1}", "<｜User｜>", "0123",
                                   "</think>", "｜DSML｜", "x" * 40]) for _ in range(rng.randrange(1, 6)))

    messages = [{"role": rng.choice(["system", "developer"]), "content": text()} for _ in range(rng.randrange(2))]
    tools = rng.random() < 0.5
    for turn in range(rng.randrange(1, 4)):
        parts = [{"type": "text", "text": text()} for _ in range(rng.randrange(1, 3))]
        messages.append(user(text() if rng.random() < 0.7 else parts))
        if turn and rng.random() < 0.3:
            break
        if tools and rng.random() < 0.6:
            calls = [{"id": "c%d" % i, "type": "function", "function": {
                "name": "get_weather", "arguments": json.dumps({"city": text(), "n": rng.random() < 0.5})}}
                for i in range(rng.randrange(1, 3))]
            messages.append({"role": "assistant", "content": text() if rng.random() < 0.5 else "",
                             "reasoning_content": text(), "tool_calls": calls})
            messages += [{"role": "tool", "tool_call_id": c["id"], "content": text()} for c in calls]
        messages.append({**assistant(text()), **({"reasoning_content": text()} if rng.random() < 0.5 else {})})
    if messages[-1]["role"] == "assistant":
        messages.append(user(text()))
    body = {"messages": messages}
    if tools:
        body["tools"] = [TOOL]
    if rng.random() < 0.5:
        body["thinking"] = {"type": rng.choice(["enabled", "disabled"])}
    return body


@test
def chats_as_deepseek(s):
    """Token by token: /tokenize shows the prompt."""
    lib = library()
    rng = random.Random(7)
    for i in range(1000 if LONG else 60):
        if not lib:
            return
        body = random_chat(rng)
        status, _, r = s.post("/tokenize", body)
        assert status == 200, (i, body, r)
        for m in body["messages"]:  # the library does not know OpenAI's other name for it
            m["role"] = m["role"].replace("developer", "system")
        ids = prompt_ids(lib, lib.ChatCompletionRequest, body, True)
        assert r["tokens"] == ids, (i, body, s.post("/detokenize", {"tokens": r["tokens"]})[2]["content"],
                                    s.post("/detokenize", {"tokens": ids})[2]["content"])
