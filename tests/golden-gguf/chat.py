"""The chat template of a GGUF file against the prompts of the releases.   chat.py FILE PROMPTS (golden/chat/encode_v4.json)
Messages of text alone: no tools, tasks, efforts. Prints how many."""
import json, sys
import gguf, jinja2

template = jinja2.Environment().from_string(gguf.GGUFReader(sys.argv[1]).fields["tokenizer.chat_template"].contents())
tried = 0
for case in json.load(open(sys.argv[2]))["cases"]:
    messages, options = case["messages"], case["options"]
    if "prompt" not in case or "context" in case or options.keys() - {"thinking_mode"}:
        continue
    if any(m.keys() - {"role", "content", "reasoning_content"} or m["role"] not in ("system", "user", "assistant")
           or isinstance(m.get("content"), list) for m in messages):
        continue
    prompt = template.render(messages=messages, enable_thinking=options["thinking_mode"] == "thinking", add_generation_prompt=True)
    assert prompt == case["prompt"], (case["name"], prompt, case["prompt"])
    tried += 1
print(tried)
