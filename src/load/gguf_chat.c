/* The chat template of files whose source has none, as the releases: the prompts of messages without tools, for
 * programs that read nothing else (Jinja; `enable_thinking` false: without thinking). dsv4 does not use it. */
#include "gguf.h"

/* clang-format off */
const char gguf_chat_template[] =
    "{%- set thinking = enable_thinking is not defined or enable_thinking -%}\n"
    "{%- set ns = namespace(last=-1, user=false) -%}\n"
    "{%- for m in messages -%}\n"
    "{%- if m.role == 'user' or m.role == 'tool' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{{- '<｜begin▁of▁sentence｜>' -}}\n"
    "{%- for m in messages -%}\n"
    "{%- set content = m.content if m.content is string else '' -%}\n"
    "{%- if m.role == 'user' or m.role == 'tool' -%}\n"
    "{{- '\\n\\n' if ns.user else '<｜User｜>' -}}\n"
    "{{- content if m.role == 'user' else '<tool_result>' + content + '</tool_result>' -}}\n"
    "{%- set ns.user = true -%}\n"
    "{%- elif m.role == 'assistant' -%}\n"
    "{%- if ns.user -%}{{- '<｜Assistant｜>' + ('<think>' if thinking and loop.index0 > ns.last else '</think>') -}}{%- endif -%}\n"
    "{%- set ns.user = false -%}\n"
    "{%- if thinking and loop.index0 > ns.last -%}{{- (m.reasoning_content or '') + '</think>' -}}{%- endif -%}\n"
    "{{- content + '<｜end▁of▁sentence｜>' -}}\n"
    "{%- else -%}\n"
    "{{- content -}}\n"
    "{%- set ns.user = false -%}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt and ns.user -%}{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') -}}{%- endif -%}\n";
/* clang-format on */
