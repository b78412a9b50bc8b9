"""What coding agents send, as their requests look on the wire: names of models that are not here, hints for caches, reasoning
of earlier turns, results of tools in all their forms."""

import json

from server.common import Server, eq, test

BASH = {"type": "object", "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}}, "required": ["command"],
        "additionalProperties": False}
KEPT = {"cache_control": {"type": "ephemeral"}}


def post(s, path, body, status=200, **headers):
    got, _, answer = s.post(path, body, headers=headers)
    eq((got, answer if got != status else None), (status, None))
    return answer


def claude_code(s):
    head = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
            "x-api-key": "none", "x-app": "cli"}
    ask = lambda status=200, path="/v1/messages?beta=true", **more: post(s, path, {
        "model": "claude-sonnet-4-5", "max_tokens": 2000, "temperature": 0, "metadata": {"user_id": "user_1_account__session_2"},
        "system": [{"type": "text", "text": "You are an agent.", **KEPT}, {"type": "text", "text": "Be short.", "cache_control": {
            "type": "ephemeral", "ttl": "1h"}}],
        "messages": hi, "tools": [{"name": "Bash", "description": "Runs a command.", "input_schema": {
            "$schema": "http://json-schema.org/draft-07/schema#", **BASH}}], **more}, status, **head)
    hi = [{"role": "user", "content": [{"type": "text", "text": "<system-reminder>none</system-reminder>"}, {"type": "text", "text": "Hi", **KEPT}]}]
    said = ask(thinking={"type": "enabled", "budget_tokens": 1024})["content"]
    eq([b["type"] for b in said], ["thinking", "text"])
    off = {"thinking": {"type": "disabled"}}
    ask(**off, context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]})
    for effort in ("low", "high"):
        ask(thinking={"type": "adaptive"}, output_config={"effort": effort})
    asked = hi + [{"role": "assistant", "content": [*said, {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}]}]
    for result in ({"content": [{"type": "text", "text": "a.c", **KEPT}], "is_error": False}, {"content": "no such file", "is_error": True}, {}):
        back = [{"type": "tool_result", "tool_use_id": "toolu_1", **result, **KEPT}]
        ask(**off, messages=asked + [{"role": "user", "content": back}], max_tokens=8)
        ask(**off, messages=asked + [{"role": "user", "content": [*back, {"type": "text", "text": "go on"}]}], max_tokens=8)
    ask(model="claude-haiku-4-5", messages=[{"role": "user", "content": "quota"}], max_tokens=1, tools=[], **off)
    assert ask(path="/v1/messages/count_tokens?beta=true")["input_tokens"] > 20
    assert "web_search" in ask(400, tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}])["error"]["message"]


def codex(s):
    shell = {"type": "function", "name": "shell", "description": "Runs a command.", "strict": False, "parameters": BASH}
    said = [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be short."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
    ask = lambda items, status=200, **more: post(s, "/v1/responses", {
        "model": "gpt-5-codex", "instructions": "You are an agent.", "input": items, "tools": [shell], "tool_choice": "auto",
        "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"}, "store": False, "stream": False, "temperature": 0,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "a", "text": {"verbosity": "medium"}, **more}, status)
    first = ask(said)
    eq(first["status"], "completed")
    call = [{"type": "function_call", "name": "shell", "arguments": '{"command":"ls"}', "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": "a.c"}]
    ask(said + first["output"] + [{"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"}, *call])
    assert "custom" in ask(said, 400, tools=[shell, {"type": "custom", "name": "apply_patch"}])["error"]["message"]


def chats(s):
    tool = {"type": "function", "function": {"name": "run", "description": "Runs a command.", "strict": False, "parameters": BASH}}
    ask = lambda status=200, **more: post(s, "/v1/chat/completions", {
        "model": "gpt-4o", "max_tokens": 40, "temperature": 0, "messages": [{"role": "developer", "content": "Be short."}, {
            "role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "bob"}], **more}, status)
    none = dict.fromkeys(("stream_options", "prediction", "logit_bias", "web_search_options", "audio", "functions", "seed", "n", "stop"))
    ask(store=False, service_tier="auto", prompt_cache_key="k", prompt_cache_retention="24h", safety_identifier="s", user="u",
        parallel_tool_calls=True, tools=[tool], tool_choice="auto", reasoning_effort="minimal", metadata={"a": "b"}, modalities=["text"],
        response_format={"type": "text"}, **none)
    thought = lambda **words: bool(ask(**words)["choices"][0]["message"].get("reasoning_content"))
    for name in ("thinking", "enable_thinking"):
        eq([thought(chat_template_kwargs={name: on}) for on in (True, False)], [True, False])
    for bad in ({"thinking": 1}, {"add_vision_id": True}):
        assert "chat_template_kwargs" in ask(400, chat_template_kwargs=bad)["error"]["message"]
    ask(400, chat_template_kwargs={"thinking": True}, thinking={"type": "enabled"})
    past = lambda content: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content, "refusal": None, "annotations": [
    ], "audio": None, "function_call": None, "reasoning_content": "I run it.", "tool_calls": [{"id": "c", "type": "function", "index": 0, "function": {
        "name": "run", "arguments": '{"command": "ls"}'}}]}, {"role": "tool", "tool_call_id": "c", "name": "run", "content": [{
            "type": "text", "text": "a.c", **KEPT}]}]
    for content in (None, "", "I run it."):
        ask(tools=[tool], messages=past(content))


@test
def agents(_):
    s = Server("--alias", "*", "--alias", "shown")
    try:
        claude_code(s)
        codex(s)
        chats(s)
        eq(json.loads(s.get("/v1/models")[2])["data"][0]["id"], "shown")
    finally:
        eq(s.stop(), 0)
    s = Server("--alias", "big", "--alias", "small")
    try:
        for name, status in (("big", 200), ("small", 200), ("default", 200), ("nano", 404)):
            post(s, "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}, status)
    finally:
        eq(s.stop(), 0)
