"""Models' APIs as their providers have them: `mock.py HOST PORT`. Each answers 11 tokens of prompt with 7, in its own dialect:
Anthropic's messages, by themselves and as Bedrock's invoke has them, Gemini, Cohere's chat, Bedrock's converse, OpenAI's responses,
and its chat, which Mistral's is; OpenAI's embeddings by a vector of 11 tokens each time. What caches had and got, and what was
thought, each tells in its own way: within these numbers, or besides.

A prompt with `tool` in it is answered by a call of the tool `look_up`, in the chats of OpenAI and Cohere, Anthropic's messages and
Bedrock's converse one with `two tools` by two, the second of which looks up another thing; one with `fail`, `busy` or `broken`, by an error of 400, 429 or 500; one
with `slow` stops after its first text, until the client leaves."""

import base64
import json
import struct
import sys
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TEXT = ["Egress", " is", " governed."]
VECTOR = [0.5, -0.25]
ARGUMENTS = {"what": "egress"}
OTHERS = {"what": "rm -rf /"}
FAILURES = {"fail": 400, "be busy": 429, "be broken": 500}


def frame(event: str, payload: dict) -> bytes:
    """One message of Amazon's event stream."""
    headers = b""
    for name, value in [(":message-type", "event"), (":event-type", event), (":content-type", "application/json")]:
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 12 + len(headers) + len(body) + 4, len(headers))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    message = prelude + headers + body
    return message + struct.pack(">I", zlib.crc32(message))


def sse(payload: dict | str, event: str | None = None) -> bytes:
    data = payload if isinstance(payload, str) else json.dumps(payload)
    return (f"event: {event}\n" if event else "").encode() + f"data: {data}\n\n".encode()


def parts(arguments: dict) -> list[str]:
    """Arguments as a stream brings them: no part says what they are."""
    text = json.dumps(arguments)
    return [text[:11], text[11:16], text[16:]]


def chunk(event: dict) -> bytes:
    """An event of a model's own as Bedrock's invoke streams it; the last has counts besides."""
    if event["type"] == "message_stop":
        counts = {"inputTokenCount": 11, "outputTokenCount": 7, "cacheReadInputTokenCount": 4, "cacheWriteInputTokenCount": 2}
        event = event | {"amazon-bedrock-invocationMetrics": counts | {"invocationLatency": 2, "firstByteLatency": 1}}
    return frame("chunk", {"bytes": base64.b64encode(json.dumps(event).encode()).decode(), "p": "abcdefgh"})


def anthropic(calls: list[dict], stream: bool, said=lambda event: sse(event, event["type"])):
    # What caches had and got counts besides.
    prompt = {"input_tokens": 11, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "mock-1", "stop_sequence": None}
    blocks = [{"type": "tool_use", "id": f"toolu_{n}", "name": "look_up", "input": call} for n, call in enumerate(calls)]
    blocks = blocks or [{"type": "text", "text": "".join(TEXT)}]
    stop = "tool_use" if calls else "end_turn"
    if not stream:
        return message | {"content": blocks, "stop_reason": stop, "usage": prompt | {"output_tokens": 7}}
    begun = message | {"content": [], "stop_reason": None, "usage": prompt | {"output_tokens": 1}}
    events = [{"type": "message_start", "message": begun}]
    for n, block in enumerate(blocks):
        if calls:
            empty, deltas = {"input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts(block["input"])]
        else:
            empty, deltas = {"text": ""}, [{"type": "text_delta", "text": text} for text in TEXT]
        events += [{"type": "content_block_start", "index": n, "content_block": block | empty}]
        events += [{"type": "content_block_delta", "index": n, "delta": delta} for delta in deltas]
        events += [{"type": "content_block_stop", "index": n}]
    delta = {"stop_reason": stop, "stop_sequence": None}
    events += [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}, {"type": "message_stop"}]
    return [said(event) for event in events]


def gemini(tool: bool, stream: bool):
    # What was thought counts besides, what a cache had within.
    usage = {"promptTokenCount": 11, "candidatesTokenCount": 7, "thoughtsTokenCount": 3, "totalTokenCount": 21}
    usage |= {"cachedContentTokenCount": 4}
    def answer(parts: list, **more) -> dict:
        return {"candidates": [{"content": {"role": "model", "parts": parts}, "index": 0} | more], "modelVersion": "mock-1"}
    parts = [{"functionCall": {"name": "look_up", "args": ARGUMENTS}}] if tool else [{"text": text} for text in TEXT]
    if not stream:
        return answer(parts, finishReason="STOP") | {"usageMetadata": usage}
    answers = [answer([part]) for part in parts]
    answers[-1]["candidates"][0]["finishReason"] = "STOP"
    answers[-1]["usageMetadata"] = usage
    return [sse(one) for one in answers]


def cohere(calls: list[dict], stream: bool):
    counts = {"input_tokens": 11, "output_tokens": 7}
    usage = {"billed_units": counts, "tokens": counts}
    def call(n: int, arguments: str) -> dict:
        return {"id": f"call_{n}", "type": "function", "function": {"name": "look_up", "arguments": arguments}}
    whole = [call(n, json.dumps(arguments)) for n, arguments in enumerate(calls)]
    message = {"role": "assistant"} | ({"tool_calls": whole} if calls else {"content": [{"type": "text", "text": "".join(TEXT)}]})
    reason = "TOOL_CALL" if calls else "COMPLETE"
    if not stream:
        return {"id": "c1", "message": message, "finish_reason": reason, "usage": usage}
    def event(kind: str, n: int, message: dict) -> dict:
        return {"type": kind, "index": n, "delta": {"message": message}}
    events = [{"type": "message-start", "id": "c1", "delta": {"message": {"role": "assistant"}}}]
    for n, arguments in enumerate(calls):
        events += [event("tool-call-start", n, {"tool_calls": call(n, "")})]
        events += [event("tool-call-delta", n, {"tool_calls": {"function": {"arguments": part}}}) for part in parts(arguments)]
        events += [{"type": "tool-call-end", "index": n}]
    if not calls:
        events += [event("content-start", 0, {"content": {"type": "text", "text": ""}})]
        events += [event("content-delta", 0, {"content": {"text": text}}) for text in TEXT]
        events += [{"type": "content-end", "index": 0}]
    events += [{"type": "message-end", "delta": {"finish_reason": reason, "usage": usage}}]
    return [sse(event, event["type"]) for event in events]


def converse(calls: list[dict], stream: bool):
    # As Anthropic's.
    usage = {"inputTokens": 11, "outputTokens": 7, "totalTokens": 24, "cacheReadInputTokens": 4, "cacheWriteInputTokens": 2}
    uses = [{"toolUseId": f"t{n}", "name": "look_up"} for n in range(len(calls))]
    content = [{"toolUse": use | {"input": call}} for use, call in zip(uses, calls)] or [{"text": "".join(TEXT)}]
    stop = "tool_use" if calls else "end_turn"
    if not stream:
        message = {"role": "assistant", "content": content}
        return {"output": {"message": message}, "stopReason": stop, "usage": usage, "metrics": {"latencyMs": 1}}
    events = [("messageStart", {"role": "assistant"})]
    for n in range(len(content)):
        if calls:
            events += [("contentBlockStart", {"contentBlockIndex": n, "start": {"toolUse": uses[n]}})]
            deltas = [{"toolUse": {"input": part}} for part in parts(calls[n])]
        else:
            deltas = [{"text": text} for text in TEXT]
        events += [("contentBlockDelta", {"contentBlockIndex": n, "delta": delta}) for delta in deltas]
        events += [("contentBlockStop", {"contentBlockIndex": n})]
    events += [("messageStop", {"stopReason": stop}), ("metadata", {"usage": usage, "metrics": {"latencyMs": 1}})]
    return [frame(event, payload) for event, payload in events]


def openai(calls: list[dict], stream: bool, told: bool, at_end: bool):
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    usage |= {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 3}}
    about = {"id": "chatcmpl-1", "created": 1, "model": "mock-1"}
    def call(n: int, arguments: str) -> dict:
        return {"id": f"call_{n}", "type": "function", "function": {"name": "look_up", "arguments": arguments}}
    reason = "tool_calls" if calls else "stop"
    if not stream:
        message = {"role": "assistant", "content": None if calls else "".join(TEXT)}
        message |= {"tool_calls": [call(n, json.dumps(arguments)) for n, arguments in enumerate(calls)]} if calls else {}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return about | {"object": "chat.completion", "choices": [choice], "usage": usage}
    deltas = [{"content": text} for text in TEXT]
    if calls:
        begun = [[{"tool_calls": [{"index": n} | call(n, "")]}] for n in range(len(calls))]
        rest = [[{"tool_calls": [{"index": n, "function": {"arguments": part}}]} for part in parts(a)] for n, a in enumerate(calls)]
        deltas = [delta for n in range(len(calls)) for delta in begun[n] + rest[n]]
    if calls and at_end:
        # As Mistral has them: whole, all at once.
        deltas = [{"tool_calls": [{"index": n} | call(n, json.dumps(arguments)) for n, arguments in enumerate(calls)]}]
    about |= {"object": "chat.completion.chunk"}
    chunks = [about | {"choices": [{"index": 0, "delta": {"role": "assistant"} | delta, "finish_reason": None}]} for delta in deltas]
    chunks += [about | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}]
    if at_end:
        # As Mistral tells it, unasked.
        chunks[-1]["usage"] = usage
    elif told:
        chunks += [about | {"choices": [], "usage": usage}]
    return [sse(chunk) for chunk in chunks] + [sse("[DONE]")]


def responses(tool: bool, stream: bool):
    usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    usage |= {"input_tokens_details": {"cached_tokens": 4}, "output_tokens_details": {"reasoning_tokens": 3}}
    part = {"type": "output_text", "text": "".join(TEXT), "annotations": []}
    if tool:
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look_up"}
        whole, empty = item | {"arguments": json.dumps(ARGUMENTS)}, item | {"arguments": ""}
    else:
        item = {"type": "message", "id": "msg_1", "role": "assistant"}
        whole, empty = item | {"content": [part]}, item | {"content": []}
    about = {"id": "resp_1", "object": "response", "created_at": 1, "model": "mock-1", "tools": [], "tool_choice": "auto"}
    about |= {"parallel_tool_calls": True}
    done = about | {"status": "completed", "output": [whole | {"status": "completed"}], "usage": usage}
    if not stream:
        return done
    begun = about | {"status": "in_progress", "output": [], "usage": None}
    at = {"item_id": item["id"], "output_index": 0}
    events = [{"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}]
    events += [{"type": "response.output_item.added", "output_index": 0, "item": empty | {"status": "in_progress"}}]
    if tool:
        events += [at | {"type": "response.function_call_arguments.delta", "delta": json.dumps(ARGUMENTS)}]
        events += [at | {"type": "response.function_call_arguments.done", "arguments": json.dumps(ARGUMENTS)}]
    else:
        at |= {"content_index": 0}
        events += [at | {"type": "response.content_part.added", "part": part | {"text": ""}}]
        events += [at | {"type": "response.output_text.delta", "delta": text} for text in TEXT]
        events += [at | {"type": "response.output_text.done", "text": "".join(TEXT)}]
        events += [at | {"type": "response.content_part.done", "part": part}]
    events += [{"type": "response.output_item.done", "output_index": 0, "item": whole | {"status": "completed"}}]
    events += [{"type": "response.completed", "response": done}]
    return [sse(event | {"sequence_number": n}, event["type"]) for n, event in enumerate(events)]


def embeddings(asked: dict) -> dict:
    vector = base64.b64encode(struct.pack("<2f", *VECTOR)).decode() if asked.get("encoding_format") == "base64" else VECTOR
    inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(inputs))]
    return {"object": "list", "data": data, "model": "mock-1", "usage": {"prompt_tokens": 11, "total_tokens": 11}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, "application/json", b"{}")

    def reply(self, status: int, kind: str, body: bytes, more: dict = {}) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind} | more).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        path = self.path.split("?")[0]
        text = json.dumps(asked)
        calls = [ARGUMENTS, OTHERS] if "use two tools" in text else [ARGUMENTS] if "use a tool" in text else []
        tool, stream = bool(calls), asked.get("stream") is True or "tream" in path
        failing = [status for word, status in FAILURES.items() if f"please {word}" in text]
        if failing:
            error = {"type": "invalid_request_error", "message": "it fails"}
            return self.reply(failing[0], "application/json", json.dumps({"type": "error", "message": "it fails", "error": error}).encode())
        more = {}
        if path.endswith("/messages"):
            answer = anthropic(calls, stream)
        elif "/invoke" in path:
            answer = anthropic(calls, stream, chunk)
            # Without what caches had and got.
            more = {} if stream else {"x-amzn-bedrock-input-token-count": "11", "x-amzn-bedrock-output-token-count": "7"}
        elif path.endswith("/embeddings"):
            answer = embeddings(asked)
        elif path.endswith("/chat") and "/v2" in path:
            answer = cohere(calls, stream)
        elif "/converse" in path:
            answer = converse(calls, stream)
        elif "enerateContent" in path:
            answer = gemini(tool, stream)
        elif path.endswith("/responses"):
            answer = responses(tool, stream)
        else:
            told = asked.get("stream_options", {}).get("include_usage", False)
            answer = openai(calls, stream, told, "mistral" in self.headers.get("User-Agent", ""))
        if not stream:
            return self.reply(200, "application/json", json.dumps(answer).encode(), more)
        kind = "application/vnd.amazon.eventstream" if "/converse" in path or "/invoke" in path else "text/event-stream"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        # The piece that ends with the first text.
        first = 1 if "enerateContent" in path else 4 if path.endswith("/responses") else 2
        for n, piece in enumerate(answer):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
            # Gemini's answers are text from the first on, and the last of them tells usage.
            if "be slow" in text and n == first:
                # Until the client leaves, or whoever is between.
                self.connection.settimeout(30)
                self.connection.recv(1)
                self.close_connection = True
                return None
        self.wfile.write(b"0\r\n\r\n")
        return None


ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
