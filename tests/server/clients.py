"""The packages openai and anthropic as clients."""

import json

from server.common import CUBA, SKIPPED, TOOL, answer, eq, test


def clients():
    try:
        import anthropic
        import openai
        return openai, anthropic
    except ImportError:
        SKIPPED.append("the packages openai and anthropic are not there")
        return None, None


def connect(kind, url):
    return kind(base_url=url, api_key="none", max_retries=0)


@test
def openai_client(s):
    openai, _ = clients()
    if not openai:
        return
    c = connect(openai.OpenAI, s.url("/v1"))
    eq([m.id for m in c.models.list()], ["nano"])
    off = {"thinking": {"type": "disabled"}}
    m = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    r = c.chat.completions.create(model="nano", messages=m, temperature=0, extra_body=off)
    assert r.choices[0].message.content and r.usage.total_tokens > 0
    text = ""
    for e in c.chat.completions.create(model="nano", messages=m, temperature=0, stream=True,
                                       stream_options={"include_usage": True}, extra_body=off):
        if e.choices:
            text += e.choices[0].delta.content or ""
        else:
            eq(e.usage.completion_tokens, r.usage.completion_tokens)
    eq(text, r.choices[0].message.content)
    with c.chat.completions.stream(model="nano", messages=m, temperature=0, extra_body=off,
                                   tools=[TOOL], tool_choice="required",
                                   parallel_tool_calls=False, max_tokens=200) as st:
        for _ in st:
            pass
        final = st.get_final_completion()
    eq(final.choices[0].finish_reason, "tool_calls")
    eq(list(json.loads(final.choices[0].message.tool_calls[0].function.arguments)), ["city"])
    r = c.completions.create(model="nano", prompt="Once upon a time", max_tokens=5, logprobs=2)
    eq(len(r.choices[0].logprobs.tokens), 5)
    r = c.responses.create(model="nano", input="Hello!", reasoning={"effort": "none"}, temperature=0)
    assert r.output_text
    text = ""
    with c.responses.stream(model="nano", input="Hello!", reasoning={"effort": "none"},
                            temperature=0) as st:
        for e in st:
            if e.type == "response.output_text.delta":
                text += e.delta
        eq(st.get_final_response().output_text, text)
    eq(text, r.output_text)
    r = c.responses.create(model="nano", input="Weather?", temperature=0, max_output_tokens=200,
                           reasoning={"effort": "none"}, parallel_tool_calls=False, tools=[{
                               "type": "function", **TOOL["function"]}], tool_choice="required")
    call = r.output[-1]
    eq((call.type, call.name), ("function_call", "get_weather"))
    r = c.responses.create(model="nano", temperature=0, reasoning={"effort": "none"},
                           max_output_tokens=20, input=[
        {"role": "user", "content": "Weather?"}, call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}])
    eq(r.object, "response")
    try:
        c.chat.completions.create(model="nano", messages=[])
        raise AssertionError("an empty list was taken")
    except openai.BadRequestError as e:
        eq(e.param, "messages")
    try:
        c.chat.completions.create(model="other", messages=m)
        raise AssertionError("another model was taken")
    except openai.NotFoundError:
        pass


@test
def openai_async(s):
    openai, _ = clients()
    if not openai:
        return
    import asyncio

    async def one(c, i):
        text = ""
        st = await c.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": CUBA}],
            temperature=0, stream=True, extra_body={"thinking": {"type": "disabled"}})
        async for e in st:
            text += e.choices[0].delta.content or ""
        return text

    async def many():
        async with connect(openai.AsyncOpenAI, s.url("/v1")) as c:
            return await asyncio.gather(*(one(c, i) for i in range(24)))

    eq(set(asyncio.run(many())), {answer()})


@test
def anthropic_client(s):
    _, anthropic = clients()
    if not anthropic:
        return
    c = connect(anthropic.Anthropic, s.url())
    m = [{"role": "user", "content": CUBA}]
    cold = {"temperature": 0}
    r = c.messages.create(model="nano", max_tokens=50, messages=m, extra_body=cold)
    eq(r.content[0].text, answer())
    with c.messages.stream(model="nano", max_tokens=50, messages=m, extra_body=cold) as st:
        eq("".join(st.text_stream), r.content[0].text)
        eq(st.get_final_message().stop_reason, "end_turn")
    n = c.messages.count_tokens(model="nano", messages=m)
    eq(n.input_tokens, r.usage.input_tokens + r.usage.cache_read_input_tokens)
    with c.messages.stream(model="nano", max_tokens=300, messages=m, extra_body=cold,
                           thinking={"type": "enabled", "budget_tokens": 1024}) as st:
        for _ in st:
            pass
        final = st.get_final_message()
    eq(final.content[0].type, "thinking")
    tool = [{"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}]
    with c.messages.stream(model="nano", max_tokens=200, messages=m, tools=tool, extra_body=cold,
                           tool_choice={"type": "any", "disable_parallel_tool_use": True}) as st:
        for _ in st:
            pass
        final = st.get_final_message()
    eq(final.stop_reason, "tool_use")
    eq(list(final.content[-1].input), ["city"])
    try:
        c.messages.create(model="nano", max_tokens=5, messages=[])
        raise AssertionError("an empty list was taken")
    except anthropic.BadRequestError as e:
        eq(e.body["error"]["type"], "invalid_request_error")
    import asyncio

    async def many():
        async with connect(anthropic.AsyncAnthropic, s.url()) as a:
            return await asyncio.gather(*(a.messages.create(
                model="nano", max_tokens=50, messages=m, extra_body=cold) for _ in range(8)))

    eq({x.content[0].text for x in asyncio.run(many())}, {answer()})
