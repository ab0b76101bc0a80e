//! What agents send to models and what comes back, to be measured: one sentence again and again, and a chat as programs hold it,
//! with tools, their answers, source, tables and other alphabets.
#![allow(dead_code, clippy::allow_attributes, reason = "each benchmark takes what it needs")]

/// A chat request of about so many bytes, of one turn again and again; of one at least.
pub fn sentences(bytes: usize, more: &str) -> Vec<u8> {
    let mut body = format!(r#"{{"model":"gpt-5-mini","stream":true,{more}"messages":["#).into_bytes();
    let turn = r#"{"role":"user","content":"Please read the report below - all of it - and tell me \"what changed\"\nsince last week: revenue \u2013 costs \u2013 people. Then write a summary."},"#;
    loop {
        body.extend_from_slice(turn.as_bytes());
        if body.len() >= bytes {
            break;
        }
    }
    body.pop();
    body.extend_from_slice(b"]}");
    body
}

/// Tools of an agent that writes programs, with their schemas.
pub const TOOLS: &str = r#""tools":[{"type":"function","function":{"name":"read_file","description":"Reads a file of the workspace and returns its lines, each with its number.","parameters":{"type":"object","properties":{"path":{"type":"string","description":"Path, relative to the workspace."},"from":{"type":"integer","minimum":1},"lines":{"type":"integer","maximum":2000}},"required":["path"],"additionalProperties":false},"strict":true}},{"type":"function","function":{"name":"run_command","description":"Runs a command in a sandbox without network. Prefer `rg` to `grep`.","parameters":{"type":"object","properties":{"command":{"type":"array","items":{"type":"string"}},"timeout_s":{"type":"number","default":60}},"required":["command"]}}},{"type":"function","function":{"name":"search_issues","description":"Finds issues by words, labels and state.","parameters":{"type":"object","properties":{"query":{"type":"string"},"state":{"type":"string","enum":["open","closed","all"]}},"required":["query"]}}}],"#;

/// Turns of such an agent, one after the other: what it is told, what it asks tools for, and what those answer.
const TURNS: [&str; 8] = [
    r#"{"role":"system","content":"You are a careful engineer. Work in small steps, run the tests after each change, and never touch files outside of the workspace. If something is unclear, ask one short question. Answer in Markdown."},"#,
    r##"{"role":"user","content":[{"type":"text","text":"The nightly job fails since Tuesday:\n\n```\nthread 'sync' panicked at src/sync.rs:118:22:\nindex out of bounds: the len is 3 but the index is 3\n```\n\nSee https://ci.example.com/jobs/48213?tab=log#L118 - can you find out *why*, and fix it?"}]},"##,
    r#"{"role":"assistant","content":null,"tool_calls":[{"id":"call_8Xk2mPqR7vTn","type":"function","function":{"name":"read_file","arguments":"{\"path\":\"src/sync.rs\",\"from\":96,\"lines\":40}"}}]},"#,
    r#"{"role":"tool","tool_call_id":"call_8Xk2mPqR7vTn","content":" 96  /// Takes over what is newer.\n 97  pub fn merge(&mut self, other: &[Entry]) -> usize {\n 98      let mut taken = 0;\n 99      for n in 0..=other.len() {\n100          if self.get(other[n].key).is_none_or(|own| own.at < other[n].at) {\n101              self.insert(other[n].clone());\n102              taken += 1;\n103          }\n104      }\n105      taken\n106  }\n"},"#,
    r#"{"role":"assistant","content":"The loop runs to `other.len()` *inclusive* (line 99), so the last index is one too far. I\u2019ll iterate over the entries instead \u2013 no index, no panic \u2013 and add a test with an empty and a full list."},"#,
    r#"{"role":"assistant","content":"","tool_calls":[{"id":"call_Zt5wLd0QyHc1","type":"function","function":{"name":"run_command","arguments":"{\"command\":[\"cargo\",\"test\",\"-p\",\"sync\",\"--locked\"],\"timeout_s\":120}"}}]},"#,
    r#"{"role":"tool","tool_call_id":"call_Zt5wLd0QyHc1","content":"{\"exit\":0,\"ms\":8412,\"out\":\"running 14 tests\\ntest merge::empty ... ok\\ntest merge::full ... ok\\n\\ntest result: ok. 14 passed; 0 failed; 0 ignored\\n\",\"digest\":\"9b74c9897bac770ffc029102a200c5de\"}"},"#,
    r#"{"role":"user","content":"Danke, das sieht gut aus! Bitte noch eine Zeile f\u00fcr das \u00c4nderungsprotokoll; Frau M\u00fcller (anna.mueller@example.com, +49 30 901820) liest das bis 17:30. Спасибо, до завтра."},"#,
];

/// A chat request of about so many bytes, of an agent with tools.
pub fn agent(bytes: usize) -> Vec<u8> {
    let head = r#"{"model":"gpt-5-mini","stream":true,"stream_options":{"include_usage":true},"temperature":0.2,"max_completion_tokens":4096,"#;
    let mut body =
        [head, TOOLS, r#""tool_choice":"auto","user":"agent-7","messages":["#].concat().into_bytes();
    for turn in TURNS.iter().cycle() {
        body.extend_from_slice(turn.as_bytes());
        if body.len() >= bytes {
            break;
        }
    }
    body.pop();
    body.extend_from_slice(b"]}");
    body
}

/// Events of streams that say some of a text, of each dialect.
pub const CHAT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"gpt-5-mini\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}],\"usage\":null}\n\n";
pub const MESSAGES: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" word\"}}\n\n";
pub const RESPONSES: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":7,\"item_id\":\"msg_68af4030592c81938ec0a5fbab4a3e9f05438e46b5f69a3b\",\"output_index\":0,\"content_index\":0,\"delta\":\" word\",\"logprobs\":[],\"obfuscation\":\"aBc\"}\n\n";
/// A call of a tool, and some of its arguments.
pub const CALL: &str = "data: {\"model\":\"gpt-5-mini\",\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"find\",\"arguments\":\"\"}}]},\"finish_reason\":null}]}\n\n";
pub const PART: &str = "data: {\"model\":\"gpt-5-mini\",\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"name\":null,\"arguments\":\"word \"}}]},\"finish_reason\":null}]}\n\n";
