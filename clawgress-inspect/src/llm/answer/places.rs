//! Members of answers, in all dialects at once, that lead to the tools that a model asks for: one list for whoever reads answers and for
//! whoever changes names in them. Must never lead into what a tool is asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Whether a member of this name holds what a model says, or a part of it.
pub(in crate::llm) fn is_turn(name: &str) -> bool {
    matches!(
        name,
        "choices"
            | "candidates"
            | "content"
            | "parts"
            | "output"
            | "outputs"
            | "item"
            | "content_block"
            | "message"
            | "delta"
            | "start"
            | "contentBlock"
            | "generations"
            | "step"
            | "steps"
            // Of a run of OpenAI's that waits for tools, and of an agent of Bedrock's.
            | "required_action"
            | "submit_tool_outputs"
            | "returnControl"
            | "invocationInputs"
    )
}

/// Whether a member of this name holds the tools that a model asks for.
pub(in crate::llm) fn is_calls(name: &str) -> bool {
    matches!(
        name,
        "tool_calls"
            | "tool_call_delta"
            | "toolUse"
            | "functionCall"
            | "function_call"
            | "functionInvocationInput"
            | "apiInvocationInput"
    )
}

/// Whether a member of this name wraps a document.
pub(in crate::llm) fn is_wrap(name: &str) -> bool {
    matches!(name, "response" | "message" | "delta" | "x_groq" | "interaction")
}

/// Whether what says that it is of this type asks for a tool by its name.
pub(in crate::llm) fn is_call(kind: &str) -> bool {
    matches!(kind, "tool_use" | "server_tool_use" | "mcp_tool_use" | "mcp_approval_request" | "function.call")
        || kind.ends_with("_call")
}

/// Whether it is one that the provider makes itself: its name is none that an agent gave.
pub(in crate::llm) fn is_providers_call(kind: &str) -> bool {
    matches!(kind, "server_tool_use" | "mcp_tool_use" | "mcp_call" | "mcp_approval_request")
}

/// What the provider's own tool is called that an item of this type without a name asks for: `web_search` of `web_search_call`.
pub(in crate::llm) fn own_tool(kind: &str) -> Option<&str> {
    if kind == "program" { Some(kind) } else { kind.strip_suffix("_call").filter(|name| !name.is_empty()) }
}

/// Whether a member of this name holds a document in base64, of Bedrock: in a document, or in what wraps one, but in no other that
/// came so.
pub(in crate::llm) fn is_packed(name: &str) -> bool {
    name == "bytes"
}

/// What is in such a text, or in whole groups of four letters of it; `None` if it is no base64 (RFC 4648 section 4).
pub(in crate::llm) fn unpacked(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}
