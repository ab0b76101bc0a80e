// Clients of Node: `clients.mjs MODULES openai BASE KEY`, `clients.mjs MODULES mcp URL KEY`. One line of JSON for each thing
// that came of it, as `sdks/models.py` and `sdks/mcp_client.py` print them.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, what, url, key] = process.argv.slice(2);
const require = createRequire(`${modules}/x.mjs`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const told = (...line) => console.log(JSON.stringify(line));

async function openai() {
  const { default: OpenAI } = await load("openai");
  const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0, timeout: 15000 });
  const tools = [{ type: "function", function: { name: "look_up", parameters: { type: "object", properties: {} } } }];
  const asked = (text, model = "mock-1") => ({ model, messages: [{ role: "user", content: text }] });
  const usage = (of) => [of.prompt_tokens, of.completion_tokens];
  const tried = async (name, ask) => {
    try {
      await ask();
      told(name, "passed", null);
    } catch (error) {
      told(name, error.status ?? String(error), null);
    }
  };
  const whole = await client.chat.completions.create(asked("What is it?"));
  told("whole", whole.choices[0].message.content, usage(whole.usage));
  let text = "";
  let tokens = null;
  const stream = { ...asked("What is it?"), stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create(stream)) {
    text += chunk.choices[0]?.delta.content ?? "";
    if (chunk.usage) tokens = usage(chunk.usage);
  }
  told("stream", text, tokens);
  const call = await client.chat.completions.create({ ...asked("Please use a tool."), tools });
  const { name, arguments: given } = call.choices[0].message.tool_calls[0].function;
  told("tool", [name, JSON.parse(given)], usage(call.usage));
  for (const [name, how] of [["fail", "fail"], ["busy", "be busy"], ["broken", "be broken"]]) {
    await tried(name, () => client.chat.completions.create(asked(`It should please ${how}.`)));
  }
  await tried("denied", () => client.chat.completions.create(asked("What is it?", "mock-2")));
  // Leaves it at its first text.
  for await (const _ of await client.chat.completions.create({ ...asked("Please be slow."), stream: true })) break;
  told("cancel", "left", null);
}

async function mcp() {
  const { Client } = await load("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = await load("@modelcontextprotocol/sdk/client/streamableHttp.js");
  const connected = async (secret) => {
    const client = new Client({ name: "lab", version: "1" });
    const requestInit = { headers: { authorization: `Bearer ${secret}` } };
    await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
    return client;
  };
  const client = await connected(key);
  const { tools } = await client.listTools();
  console.log(JSON.stringify(tools.map((tool) => tool.name).sort()));
  const call = (name, args, options) => client.callTool({ name, arguments: args }, undefined, { timeout: 15000, ...options });
  const tried = async (name, args) => {
    try {
      const result = await call(name, args);
      told(name, result.content[0].text, ...(result.isError ? [true] : []));
    } catch (error) {
      told(name, error.code, error.data);
    }
  };
  await tried("read", { page: 1 });
  await tried("read", { page: "one" });
  await tried("erase", { project: "OPS" });
  await tried("fail");
  // The second step is taken once the first has been seen here: whoever waits for the end would wait in vain.
  const steps = [];
  const onprogress = ({ progress }) => {
    steps.push(progress);
    if (progress === 1) call("go_on");
  };
  const counted = await call("count", {}, { onprogress });
  told("count", steps, counted.content[0].text);
  const leaving = new AbortController();
  try {
    await call("wait", {}, { signal: leaving.signal, onprogress: () => leaving.abort("enough") });
  } catch {
    await tried("left");
  }
  await client.close();
  try {
    await connected("claw_000000000000_wrong");
  } catch (error) {
    told("stranger", error.code);
  }
}

await { openai, mcp }[what]();
