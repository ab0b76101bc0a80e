"""An agent's use of MCP, by the SDK: `mcp_client.py URL KEY MODE`; one line of JSON for each thing that came of it: calls, one that
streams, one that is cancelled, and what becomes of who proves nobody."""

import json
import sys

import anyio
import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError


def told(*line) -> None:
    print(json.dumps(line), flush=True)


async def call(client: Client, name: str, arguments: dict | None = None) -> None:
    try:
        result = await client.call_tool(name, arguments)
        told(name, result.content[0].text, *([True] if result.is_error else []))
    except MCPError as error:
        told(name, error.error.code, error.error.data)


async def stream(client: Client) -> None:
    """The second step is taken once the first has been seen here: whoever waits for the end would wait in vain."""
    steps = []
    async with anyio.create_task_group() as tasks:
        async def step(progress: float, *_) -> None:
            steps.append(int(progress))
            if progress == 1:
                tasks.start_soon(client.call_tool, "go_on")
        result = await client.call_tool("count", progress_callback=step)
    told("count", steps, result.content[0].text)


async def cancel(client: Client) -> None:
    with anyio.CancelScope() as scope:
        async def begun(*_) -> None:
            scope.cancel()
        await client.call_tool("wait", progress_callback=begun)
    await call(client, "left")


async def main(url: str, key: str, mode: str) -> None:
    http = httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=15)
    async with http, Client(streamable_http_client(url, http_client=http), mode=mode, read_timeout_seconds=15) as client:
        tools = await client.list_tools()
        print(json.dumps(sorted(tool.name for tool in tools.tools)))
        await call(client, "read", {"page": 1})
        await call(client, "read", {"page": "one"})
        await call(client, "write", {"project": "OPS", "text": "héllo"})
        await call(client, "write", {"project": "DEV", "text": "hello"})
        await call(client, "erase", {"project": "OPS"})
        await call(client, "fail")
        await stream(client)
        await cancel(client)


anyio.run(main, *sys.argv[1:4])
