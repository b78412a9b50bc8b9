#!/usr/bin/env python3
"""Writes src/server/page/openapi.json from the tables of parameters in src/server/api_*.c and api.h, so that the
description says what the server checks. usage: tools/make-openapi.py [--check] (from the top of the tree)"""

import json
import re
import sys

OUT = "src/server/page/openapi.json"
UNSUPPORTED = {  # known by name, to say why not
    "functions", "function_call", "audio", "prediction", "web_search_options", "suffix", "container",
    "mcp_servers", "previous_response_id", "conversation",
    "prompt_template", "max_tool_calls"}
TEXT_OR_LIST = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
SPECIAL = {
    ("stop",): {**TEXT_OR_LIST, "description": "At most 64 texts of 1 to 1024 bytes"},
    ("prompt", "api_completions.c"): {"oneOf": [
        {"type": "string"}, {"type": "array", "items": {"oneOf": [
            {"type": "string"}, {"type": "integer"},
            {"type": "array", "items": {"type": "integer"}}]}}]},
    ("tool_choice",): {"oneOf": [{"type": "string", "enum": ["none", "auto", "required"]},
                                 {"type": "object"}]},
    ("input",): {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
    ("system",): {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
    ("logit_bias",): {"type": "object", "additionalProperties": {
        "type": "number", "minimum": -100, "maximum": 100}},
}
MESSAGES = {"type": "array", "minItems": 1, "items": {
    "type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}}}
SPECIAL["messages",] = MESSAGES
TYPES = {"P_BOOL": "boolean", "P_INT": "integer", "P_NUMBER": "number", "P_TEXT": "string",
         "P_LIST": "array", "P_OBJECT": "object", "P_ANY": None}
ROUTES = [  # path, method, summary, file and table of its body, names that are needed
    ("/v1/chat/completions", "post", "A chat, in OpenAI's words", ("api_openai.c", "table"), ["messages"]),
    ("/v1/completions", "post", "Text that is continued", ("api_completions.c", "table"), ["prompt"]),
    ("/v1/responses", "post", "A chat, in the words of OpenAI's responses", ("api_responses.c", "table"),
     ["input"]),
    ("/v1/messages", "post", "A chat, in Anthropic's words", ("api_anthropic.c", "table"),
     ["messages", "max_tokens"]),
    ("/v1/messages/count_tokens", "post", "Tokens of such a chat", ("api_anthropic.c", "table"), ["messages"]),
    ("/tokenize", "post", "Token ids of a text or a chat", ("api_misc.c", "tokenize_table"), []),
    ("/detokenize", "post", "The text of token ids", ("api_misc.c", "table"), ["tokens"]),
    ("/v1/models", "get", "The model that is served", None, []),
    ("/v1/models/{model}", "get", "The model of that name", None, []),
    ("/health", "get", "Whether requests are taken", None, []),
    ("/metrics", "get", "Counters for Prometheus", None, []),
    ("/props", "get", "What the server is made of, its limits", None, []),
    ("/slots", "get", "Requests in work and waiting", None, []),
    ("/openapi.json", "get", "This description", None, []),
    ("/", "get", "The chat page", None, []),
    ("/chat.js", "get", "Its program", None, []),
    ("/markdown.js", "get", "The part of it that shows Markdown", None, []),
    ("/repo.js", "get", "The part of it that makes prompts of folders", None, []),
    ("/chat.css", "get", "Its style", None, []),
]




def needs(**members):
    """An object that has these members, of these types."""
    types = {"text": {"type": "string"}, "number": {"type": "number"}, "list": {"type": "array"},
             "object": {"type": "object"}, "nullable": {"type": "string", "nullable": True}}
    return {"type": "object", "required": sorted(members),
            "properties": {k: v if isinstance(v, dict) else types[v] for k, v in members.items()}}


ANSWERS = {  # what comes back with status 200: media type -> schema
    "/v1/chat/completions": {
        "application/json": needs(id="text", object="text", created="number", model="text", choices={
            "type": "array", "minItems": 1, "items": needs(index="number", message=needs(role="text"))},
            usage=needs(prompt_tokens="number", completion_tokens="number", total_tokens="number")),
        "text/event-stream": {"type": "string"}},
    "/v1/completions": {
        "application/json": needs(id="text", object="text", created="number", model="text", choices={
            "type": "array", "minItems": 1, "items": needs(index="number", text="text")},
            usage=needs(prompt_tokens="number", completion_tokens="number", total_tokens="number")),
        "text/event-stream": {"type": "string"}},
    "/v1/responses": {
        "application/json": needs(id="text", object="text", status="text", output="list",
                                  usage=needs(input_tokens="number", output_tokens="number")),
        "text/event-stream": {"type": "string"}},
    "/v1/messages": {
        "application/json": needs(id="text", type="text", role="text", content="list", stop_reason="text",
                                  usage=needs(input_tokens="number", output_tokens="number")),
        "text/event-stream": {"type": "string"}},
    "/v1/messages/count_tokens": {"application/json": needs(input_tokens="number")},
    "/tokenize": {"application/json": needs(count="number", tokens="list")},
    "/detokenize": {"application/json": needs(content="text")},
    "/v1/models": {"application/json": needs(object="text", data={
        "type": "array", "items": needs(id="text", object="text", created="number")})},
    "/v1/models/{model}": {"application/json": needs(id="text", object="text", created="number")},
    "/health": {"application/json": needs(status="text")},
    "/metrics": {"text/plain": {"type": "string"}},
    "/props": {"application/json": needs(version="text", model="text", limits="object")},
    "/slots": {"application/json": needs(slots={"type": "array", "items": needs(
        id="number", state={"enum": ["queued", "prompt", "generating"]}, prompt_tokens="number",
        prompt_done="number", tokens="number", seconds="number")})},
    "/openapi.json": {"application/json": needs(openapi="text", paths="object")},
    "/": {"text/html": {"type": "string"}},
    "/chat.js": {"text/javascript": {"type": "string"}},
    "/markdown.js": {"text/javascript": {"type": "string"}},
    "/repo.js": {"text/javascript": {"type": "string"}},
    "/chat.css": {"text/css": {"type": "string"}},
}
FAILURES = {
    "openai": needs(error=needs(message="text", type="text", param="nullable", code="nullable")),
    "anthropic": needs(type={"enum": ["error"]}, error=needs(type="text", message="text"), request_id="text"),
}


def number(text):
    m = re.fullmatch(r"(\d+) << (\d+)", text)
    if m:
        return int(m[1]) << int(m[2])
    if text == "INT32_MAX":
        return 2 ** 31 - 1
    v = float(text)
    return int(v) if v == int(v) and abs(v) < 1e18 else v


def properties(file, table, needed):
    text = open("src/server/" + file).read()
    body = re.search(r"struct param %s\[\] = \{(.*?)\};" % table, text, re.S)[1]
    shared = re.search(r"#define OPENAI_PARAMS\(AT\)(.*?)\n\n", open("src/server/api.h").read(), re.S)[1]
    body = body.replace("OPENAI_PARAMS(AT_O)", shared)
    out = {}
    for name, kind, low, high in re.findall(
            r'\{"(\w+)",\s*(P_\w+),\s*([^,]+),\s*([^,]+),\s*\w+\([^)]*\)\}', body):
        low, high = number(low), number(high)
        v = SPECIAL.get((name, file)) or SPECIAL.get((name,))
        if not v:
            v = {"type": TYPES[kind]} if TYPES[kind] else {}
            if kind in ("P_INT", "P_NUMBER"):
                v["minimum"], v["maximum"] = low, high
            elif kind in ("P_TEXT", "P_LIST") and high:
                unit = "Length" if kind == "P_TEXT" else "Items"
                v["min" + unit], v["max" + unit] = low, high
            if kind == "P_LIST":
                v["items"] = {}
        if name not in needed:
            v = {**v, "nullable": True}
        if name in UNSUPPORTED:
            v["description"] = "Not supported: refused with status 400"
        out[name] = v
    return out


def main():
    paths = {}
    for path, method, summary, table, needed in ROUTES:
        family = "anthropic" if path.startswith("/v1/messages") else "openai"
        error = {"description": "A failure, in the shape of the route's protocol", "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/%s_failure" % family}}}}
        answer = {"description": "As asked", "content": {
            kind: {"schema": schema} for kind, schema in ANSWERS[path].items()}}
        op = {"summary": summary, "responses": {"200": answer, "4XX": error, "5XX": error}}
        if table:
            schema = {"type": "object", "properties": properties(*table, needed), "additionalProperties": False}
            if needed:
                schema["required"] = needed
            op["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if "{model}" in path:
            op["parameters"] = [{"name": "model", "in": "path", "required": True,
                                 "schema": {"type": "string"}}]
        if path in ("/", "/chat.js", "/markdown.js", "/repo.js", "/chat.css", "/health"):
            op["security"] = []
        paths.setdefault(path, {})[method] = op
    text = json.dumps({
        "openapi": "3.0.3",
        "info": {"title": "dsv4-server", "version": "1", "description":
                 "Limits and what each parameter does: docs/server.md"},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
                       "schemas": {k + "_failure": v for k, v in FAILURES.items()}},
        "security": [{"key": []}],
        "paths": paths}, indent=1) + "\n"
    if "--check" in sys.argv:
        if open(OUT).read() != text:
            sys.exit("%s is not what tools/make-openapi.py writes" % OUT)
    else:
        open(OUT, "w").write(text)


main()
