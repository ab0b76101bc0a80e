"""Models by their providers' SDKs: `models.py SDK BASE KEY`. Prints one line of JSON for each thing that came of it: what was
asked, what came, and the tokens that the SDK was told. `SDK calls` has it ask for streams with calls of tools in them alone, and
tell what came of each: texts, calls, and whether it was whole, the SDK was told that it was denied, or found it cut off."""

import json
import os
import sys

sdk, base, key = sys.argv[1:4]
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
ASK, TOOL, FAIL, SLOW = "What is it?", "Please use a tool.", "It should please fail.", "Please be slow."
TWO = "Please use two tools."
# What fails, and by which prompt.
FAILS = [("fail", FAIL), ("busy", "It should please be busy."), ("broken", "It should please be broken.")]
LOOK_UP = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}


def told(what: str, text, tokens) -> None:
    print(json.dumps([what, text, list(tokens) if tokens else None]), flush=True)


def status(error: Exception) -> int | None:
    for name in ("status_code", "code"):
        if isinstance(getattr(error, name, None), int):
            return getattr(error, name)
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response["ResponseMetadata"]["HTTPStatusCode"]
    return getattr(getattr(error, "raw_response", response), "status_code", None)


def tried(what: str, ask) -> None:
    try:
        ask()
        told(what, "passed", None)
    except Exception as error:
        told(what, status(error), None)


def failed(ask) -> None:
    for what, text in FAILS:
        tried(what, lambda: ask(text))


def left(events, is_text=lambda event: True) -> None:
    """Leaves a stream at its first text; what is under way ends with the process."""
    for event in events:
        if is_text(event):
            break
    told("cancel", "left", None)


def streamed(ask) -> None:
    """What comes of streams with calls in them, of which one is denied, and of one behind that."""
    for what, text in [("one", TOOL), ("two", TWO), ("after", ASK)]:
        said, calls, end = [], {}, "whole"
        try:
            for kind, n, part in ask(text):
                if kind == "text":
                    said.append(part)
                else:
                    calls.setdefault(n, {"name": "", "arguments": ""})[kind] += part
        except Exception as error:
            known = {"(policy_forbidden)": "denied", "incomplete chunked read": "cut", "ended prematurely": "cut"}
            end = next((end for text, end in known.items() if text in f"{error} {error!r}"), repr(error))
        print(json.dumps([what, "".join(said), [[call["name"], call["arguments"]] for call in calls.values()], end]), flush=True)


def anthropic_asked(text: str, model: str = "mock-1") -> dict:
    tools = [{"name": "look_up", "description": "looks", "input_schema": LOOK_UP}] if text in (TOOL, TWO) else []
    return {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": text}]} | ({"tools": tools} if tools else {})


def anthropic() -> None:
    from anthropic import Anthropic

    client = Anthropic(base_url=base, api_key=key, max_retries=0, timeout=15)
    asked = anthropic_asked
    whole = client.messages.create(**asked(ASK))
    told("whole", whole.content[0].text, (whole.usage.input_tokens, whole.usage.output_tokens))
    for what, text in [("stream", ASK), ("tool", TOOL)]:
        with client.messages.stream(**asked(text)) as stream:
            last = stream.get_final_message()
        block = last.content[0]
        told(what, block.text if block.type == "text" else [block.name, block.input], (last.usage.input_tokens, last.usage.output_tokens))
    failed(lambda text: client.messages.create(**asked(text)))
    tried("denied", lambda: client.messages.create(**asked(ASK, "mock-2")))
    left(client.messages.create(**asked(SLOW), stream=True), lambda event: event.type == "content_block_delta")


def anthropic_calls() -> None:
    from anthropic import Anthropic

    client = Anthropic(base_url=base, api_key=key, max_retries=0, timeout=15)
    def ask(text: str):
        for event in client.messages.create(**anthropic_asked(text), stream=True):
            if event.type == "content_block_start" and event.content_block.type == "tool_use":
                yield "name", event.index, event.content_block.name
            if event.type == "content_block_delta":
                part = getattr(event.delta, "text", None)
                yield ("text", event.index, part) if part else ("arguments", event.index, event.delta.partial_json)
    streamed(ask)
    tried("whole", lambda: client.messages.create(**anthropic_asked(TWO)))


def google() -> None:
    from google import genai
    from google.genai import types

    client = genai.Client(api_key=key, http_options=types.HttpOptions(base_url=base, timeout=15000))
    declared = types.Tool(function_declarations=[types.FunctionDeclaration(name="look_up", parameters_json_schema=LOOK_UP)])
    config = types.GenerateContentConfig(tools=[declared], automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True))
    def usage(answer) -> tuple:
        return (answer.usage_metadata.prompt_token_count, answer.usage_metadata.candidates_token_count)
    whole = client.models.generate_content(model="mock-1", contents=ASK)
    told("whole", whole.text, usage(whole))
    answers = list(client.models.generate_content_stream(model="mock-1", contents=ASK))
    told("stream", "".join(answer.text for answer in answers), usage(answers[-1]))
    answers = list(client.models.generate_content_stream(model="mock-1", contents=TOOL, config=config))
    call = answers[-1].function_calls[0]
    told("tool", [call.name, call.args], usage(answers[-1]))
    failed(lambda text: client.models.generate_content(model="mock-1", contents=text))
    tried("denied", lambda: client.models.generate_content(model="mock-2", contents=ASK))
    left(client.models.generate_content_stream(model="mock-1", contents=SLOW))


def called(parts) -> list:
    """The one call that a stream has: its name, and its arguments put together."""
    name, arguments = "", ""
    for kind, _, part in parts:
        name, arguments = (name + part, arguments) if kind == "name" else (name, arguments + (part if kind == "arguments" else ""))
    return [name, json.loads(arguments)]


def cohere_client():
    from cohere import ClientV2

    return ClientV2(api_key=key, base_url=base, timeout=15)


def cohere_parts(events):
    for event in events:
        if event.type == "content-delta":
            yield "text", 0, event.delta.message.content.text
        elif event.type == "tool-call-start":
            yield "name", event.index, event.delta.message.tool_calls.function.name
        elif event.type == "tool-call-delta":
            yield "arguments", event.index, event.delta.message.tool_calls.function.arguments
        elif event.type == "message-end":
            yield "tokens", 0, event.delta.usage


def cohere() -> None:
    client, asked = cohere_client(), chat_asked
    def usage(of) -> tuple:
        return (int(of.tokens.input_tokens), int(of.tokens.output_tokens))
    whole = client.chat(**asked(ASK))
    told("whole", whole.message.content[0].text, usage(whole.usage))
    for what, prompt in [("stream", ASK), ("tool", TOOL)]:
        parts = list(cohere_parts(client.chat_stream(**asked(prompt))))
        text = "".join(part for kind, _, part in parts if kind == "text")
        told(what, text or called(parts[:-1]), usage(parts[-1][2]))
    failed(lambda text: client.chat(**asked(text), request_options={"max_retries": 0}))
    tried("denied", lambda: client.chat(**asked(ASK, "mock-2")))
    left(client.chat_stream(**asked(SLOW)), lambda event: event.type == "content-delta")


def cohere_calls() -> None:
    client = cohere_client()
    streamed(lambda text: (part for part in cohere_parts(client.chat_stream(**chat_asked(text))) if part[0] != "tokens"))
    tried("whole", lambda: client.chat(**chat_asked(TWO)))


def mistral_client():
    try:
        from mistralai.client import Mistral
    except ImportError:
        from mistralai import Mistral

    return Mistral(api_key=key, server_url=base, timeout_ms=15000)


def delta_parts(chunks):
    """What chunks in OpenAI's words say and call."""
    for chunk in chunks:
        for choice in chunk.choices:
            yield "text", 0, choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                if call.function.name:
                    yield "name", call.index, call.function.name
                yield "arguments", call.index, call.function.arguments or ""


def mistral_calls() -> None:
    client = mistral_client()
    streamed(lambda text: delta_parts(event.data for event in client.chat.stream(**chat_asked(text))))
    tried("whole", lambda: client.chat.complete(**chat_asked(TWO)))


def mistral() -> None:
    client, asked = mistral_client(), chat_asked
    def usage(of) -> tuple:
        return (of.prompt_tokens, of.completion_tokens)
    whole = client.chat.complete(**asked(ASK))
    told("whole", whole.choices[0].message.content, usage(whole.usage))
    for what, prompt in [("stream", ASK), ("tool", TOOL)]:
        chunks = [event.data for event in client.chat.stream(**asked(prompt))]
        text = "".join(part for kind, _, part in delta_parts(chunks) if kind == "text")
        told(what, text or called(delta_parts(chunks)), next((usage(chunk.usage) for chunk in chunks if chunk.usage), None))
    failed(lambda text: client.chat.complete(**asked(text)))
    tried("denied", lambda: client.chat.complete(**asked(ASK, "mock-2")))
    left(client.chat.stream(**asked(SLOW)))


def bedrock_client():
    import boto3
    from botocore.config import Config

    config = Config(retries={"max_attempts": 1, "mode": "standard"}, read_timeout=15)
    amazons = {"aws_access_key_id": "AKIALAB", "aws_secret_access_key": "of-the-lab"}
    client = boto3.client("bedrock-runtime", region_name="eu-central-1", endpoint_url=base, config=config, **amazons)
    # What is signed for Amazon is in Authorization, so the agent's own key has a field of its own.
    def add(request, **_) -> None:
        request.headers["x-clawgress-key"] = key
    client.meta.events.register("before-send.bedrock-runtime", add)
    return client


def conversed(text: str, model: str = "mock-1") -> dict:
    spec = {"toolSpec": {"name": "look_up", "inputSchema": {"json": LOOK_UP}}}
    more = {"toolConfig": {"tools": [spec]}} if text in (TOOL, TWO) else {}
    return {"modelId": model, "messages": [{"role": "user", "content": [{"text": text}]}]} | more


def bedrock_calls() -> None:
    client = bedrock_client()
    def ask(text: str):
        for event in client.converse_stream(**conversed(text))["stream"]:
            start, block = event.get("contentBlockStart"), event.get("contentBlockDelta")
            if start:
                yield "name", start["contentBlockIndex"], start["start"]["toolUse"]["name"]
            if block:
                n, delta = block["contentBlockIndex"], block["delta"]
                yield ("text", n, delta["text"]) if "text" in delta else ("arguments", n, delta["toolUse"]["input"])
    streamed(ask)
    tried("whole", lambda: client.converse(**conversed(TWO)))


def bedrock() -> None:
    client, asked = bedrock_client(), conversed
    def usage(of: dict) -> tuple:
        return (of["inputTokens"], of["outputTokens"])
    whole = client.converse(**asked(ASK))
    told("whole", whole["output"]["message"]["content"][0]["text"], usage(whole["usage"]))
    for what, prompt in [("stream", ASK), ("tool", TOOL)]:
        text, tokens, name = "", None, None
        for event in client.converse_stream(**asked(prompt))["stream"]:
            if "contentBlockStart" in event:
                name = event["contentBlockStart"]["start"]["toolUse"]["name"]
            if "contentBlockDelta" in event:
                delta = event["contentBlockDelta"]["delta"]
                text += delta["text"] if "text" in delta else delta["toolUse"]["input"]
            if "metadata" in event:
                tokens = usage(event["metadata"]["usage"])
        told(what, [name, json.loads(text)] if name else text, tokens)
    failed(lambda text: client.converse(**asked(text)))
    tried("denied", lambda: client.converse(**asked(ASK, "mock-2")))
    left(client.converse_stream(**asked(SLOW))["stream"], lambda event: "contentBlockDelta" in event)


def invoked(text: str, model: str = "mock-1") -> dict:
    """What Anthropic's models take by `invoke`: their own body, but for the model and whether it streams, which the path has."""
    body = anthropic_asked(text) | {"anthropic_version": "bedrock-2023-05-31"}
    body.pop("model")
    return {"modelId": model, "body": json.dumps(body), "contentType": "application/json", "accept": "application/json"}


def invoke_events(client, text: str):
    for event in client.invoke_model_with_response_stream(**invoked(text))["body"]:
        yield json.loads(event["chunk"]["bytes"])


def bedrock_invoke() -> None:
    client = bedrock_client()
    whole = json.loads(client.invoke_model(**invoked(ASK))["body"].read())
    told("whole", whole["content"][0]["text"], (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]))
    for what, prompt in [("stream", ASK), ("tool", TOOL)]:
        text, tokens, name = "", [0, 0], None
        for event in invoke_events(client, prompt):
            if event["type"] == "message_start":
                tokens[0] = event["message"]["usage"]["input_tokens"]
            if event["type"] == "content_block_start":
                name = event["content_block"].get("name")
            if event["type"] == "content_block_delta":
                text += event["delta"].get("text") or event["delta"].get("partial_json", "")
            if event["type"] == "message_delta":
                tokens[1] = event["usage"]["output_tokens"]
        told(what, [name, json.loads(text)] if name else text, tokens)
    failed(lambda text: client.invoke_model(**invoked(text)))
    tried("denied", lambda: client.invoke_model(**invoked(ASK, "mock-2")))
    left(invoke_events(client, SLOW), lambda event: event["type"] == "content_block_delta")


def bedrock_invoke_calls() -> None:
    client = bedrock_client()
    def ask(text: str):
        for event in invoke_events(client, text):
            if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
                yield "name", event["index"], event["content_block"]["name"]
            if event["type"] == "content_block_delta":
                part = event["delta"].get("text")
                yield ("text", event["index"], part) if part else ("arguments", event["index"], event["delta"]["partial_json"])
    streamed(ask)
    tried("whole", lambda: client.invoke_model(**invoked(TWO)))


def litellm_asked(text: str, model: str = "mock-1", **more) -> dict:
    about = {"api_base": base, "api_key": key, "num_retries": 0, "max_retries": 0, "timeout": 15}
    return chat_asked(text, f"openai/{model}", **more) | about


def litellm_calls() -> None:
    import litellm

    streamed(lambda text: delta_parts(litellm.completion(**litellm_asked(text, stream=True))))
    tried("whole", lambda: litellm.completion(**litellm_asked(TWO)))


def litellm() -> None:
    import litellm

    asked = litellm_asked
    def usage(of) -> tuple:
        return (of.prompt_tokens, of.completion_tokens)
    whole = litellm.completion(**asked(ASK))
    told("whole", whole.choices[0].message.content, usage(whole.usage))
    for what, prompt in [("stream", ASK), ("tool", TOOL)]:
        chunks = list(litellm.completion(**asked(prompt, stream=True, stream_options={"include_usage": True})))
        text = "".join(part for kind, _, part in delta_parts(chunks) if kind == "text")
        tokens = next((usage(chunk.usage) for chunk in chunks if getattr(chunk, "usage", None)), None)
        told(what, text or called(delta_parts(chunks)), tokens)
    failed(lambda text: litellm.completion(**asked(text)))
    tried("denied", lambda: litellm.completion(**asked(ASK, "mock-2")))
    left(litellm.completion(**asked(SLOW, stream=True)))


def langchain_model(name: str = "mock-1"):
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=name, base_url=base, api_key=key, max_retries=0, timeout=15, stream_usage=True)


def langchain_bound():
    from langchain_core.utils.function_calling import convert_to_openai_tool

    return langchain_model().bind_tools([convert_to_openai_tool({"title": "look_up", "description": "looks"} | LOOK_UP)])


def langchain_calls() -> None:
    def ask(text: str):
        for chunk in (langchain_model() if text == ASK else langchain_bound()).stream(text):
            yield "text", 0, chunk.content
            for call in chunk.tool_call_chunks:
                yield "name", call["index"], call["name"] or ""
                yield "arguments", call["index"], call["args"] or ""
    streamed(ask)
    tried("whole", lambda: langchain_bound().invoke(TWO))


def langchain() -> None:
    model = langchain_model
    def usage(of: dict) -> tuple:
        return (of["input_tokens"], of["output_tokens"])
    whole = model().invoke(ASK)
    told("whole", whole.content, usage(whole.usage_metadata))
    for what, of, prompt in [("stream", model(), ASK), ("tool", langchain_bound(), TOOL)]:
        all = None
        for chunk in of.stream(prompt):
            all = chunk if all is None else all + chunk
        text = all.content or [all.tool_calls[0]["name"], all.tool_calls[0]["args"]]
        told(what, text, usage(all.usage_metadata))
    failed(lambda text: model().invoke(text))
    tried("denied", lambda: model("mock-2").invoke(ASK))
    left(model().stream(SLOW))


def openai_client():
    from openai import OpenAI

    return OpenAI(base_url=base, api_key=key, max_retries=0, timeout=15)


def chat_asked(text: str, model: str = "mock-1", **more) -> dict:
    tools = [{"type": "function", "function": {"name": "look_up", "description": "looks", "parameters": LOOK_UP}}]
    more |= {"tools": tools} if text in (TOOL, TWO) else {}
    return {"model": model, "messages": [{"role": "user", "content": text}]} | more


def chat() -> None:
    client, asked = openai_client(), chat_asked
    def usage(of) -> tuple:
        return (of.prompt_tokens, of.completion_tokens)
    whole = client.chat.completions.create(**asked(ASK))
    told("whole", whole.choices[0].message.content, usage(whole.usage))
    for what, prompt in [("stream", ASK), ("tool", TOOL)]:
        text, tokens, name = "", None, None
        for chunk in client.chat.completions.create(**asked(prompt, stream=True, stream_options={"include_usage": True})):
            tokens = usage(chunk.usage) if chunk.usage else tokens
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for call in choice.delta.tool_calls or []:
                    name = name or call.function.name
                    text += call.function.arguments or ""
        told(what, [name, json.loads(text)] if name else text, tokens)
    failed(lambda text: client.chat.completions.create(**asked(text)))
    tried("denied", lambda: client.chat.completions.create(**asked(ASK, "mock-2")))
    left(client.chat.completions.create(**asked(SLOW, stream=True)))


def chat_calls() -> None:
    client = openai_client()
    def ask(text: str):
        for chunk in client.chat.completions.create(**chat_asked(text, stream=True)):
            for choice in chunk.choices:
                yield "text", 0, choice.delta.content or ""
                for call in choice.delta.tool_calls or []:
                    yield "name", call.index, call.function.name or ""
                    yield "arguments", call.index, call.function.arguments or ""
    streamed(ask)
    tried("whole", lambda: client.chat.completions.create(**chat_asked(TWO)))


def responses() -> None:
    client = openai_client()
    tools = [{"type": "function", "name": "look_up", "description": "looks", "parameters": LOOK_UP, "strict": False}]
    def asked(text: str, model: str = "mock-1", **more) -> dict:
        more |= {"tools": tools} if text == TOOL else {}
        return {"model": model, "input": text} | more
    def usage(of) -> tuple:
        return (of.input_tokens, of.output_tokens)
    whole = client.responses.create(**asked(ASK))
    told("whole", whole.output_text, usage(whole.usage))
    for what, prompt in [("stream", ASK), ("tool", TOOL)]:
        text, last = "", None
        for event in client.responses.create(**asked(prompt, stream=True)):
            text += event.delta if event.type.endswith(".delta") else ""
            last = event.response if event.type == "response.completed" else last
        call = last.output[0] if last.output[0].type == "function_call" else None
        told(what, [call.name, json.loads(text)] if call else text, usage(last.usage))
    failed(lambda text: client.responses.create(**asked(text)))
    tried("denied", lambda: client.responses.create(**asked(ASK, "mock-2")))
    left(client.responses.create(**asked(SLOW, stream=True)), lambda event: event.type.endswith(".delta"))


def embeddings() -> None:
    client = openai_client()
    def usage(of) -> tuple:
        return (of.prompt_tokens, of.total_tokens)
    # The SDK asks for base64, and reads it, unless it is told what to ask for.
    one = client.embeddings.create(model="mock-1", input=ASK)
    told("whole", [one.data[0].embedding], usage(one.usage))
    two = client.embeddings.create(model="mock-1", input=[ASK, TOOL], encoding_format="float")
    told("two", [each.embedding for each in two.data], usage(two.usage))
    failed(lambda text: client.embeddings.create(model="mock-1", input=text))
    tried("denied", lambda: client.embeddings.create(model="mock-2", input=ASK))


{
    "openai": chat,
    "openai-responses": responses,
    "openai-embeddings": embeddings,
    "anthropic": anthropic,
    "google-genai": google,
    "cohere": cohere,
    "mistralai": mistral,
    "boto3": bedrock,
    "boto3-invoke": bedrock_invoke,
    "litellm": litellm,
    "langchain-openai": langchain,
    "openai calls": chat_calls,
    "anthropic calls": anthropic_calls,
    "boto3 calls": bedrock_calls,
    "boto3-invoke calls": bedrock_invoke_calls,
    "cohere calls": cohere_calls,
    "mistralai calls": mistral_calls,
    "litellm calls": litellm_calls,
    "langchain-openai calls": langchain_calls,
}[sdk]()
