"""An agent's use of MCP, by the SDK: `mcp_client.py URL KEY MODE`; one line of JSON for each thing that came of it."""

import json
import sys

import anyio
import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError


async def main(url: str, key: str, mode: str) -> None:
    http = httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=15)
    async with http, Client(streamable_http_client(url, http_client=http), mode=mode, read_timeout_seconds=15) as client:
        tools = await client.list_tools()
        print(json.dumps(sorted(tool.name for tool in tools.tools)))
        for name, arguments in [
            ("read", {"page": 1}),
            ("read", {"page": "one"}),
            ("write", {"project": "OPS", "text": "héllo"}),
            ("write", {"project": "DEV", "text": "hello"}),
            ("erase", {"project": "OPS"}),
        ]:
            try:
                result = await client.call_tool(name, arguments)
                print(json.dumps([name, result.content[0].text]))
            except MCPError as error:
                print(json.dumps([name, error.error.code, error.error.data]))


anyio.run(main, *sys.argv[1:4])
