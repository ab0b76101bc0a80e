//! Tool servers, where policy asks about what is sent to them.

use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Content;
use super::check::CONTENT_READER_BYTES;
use super::llm::{self, UNLISTED};

/// Arguments with some files.
const HELD_BYTES: u32 = 4 << 20;
/// Most servers: those of one's own, by name.
const SERVERS_MAX: usize = 256;

/// Tool servers, where policy asks about what is sent to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Bytes of a message that are held until it is judged: a larger one is refused. 4 MiB if absent, or what an agent's share of
    /// memory leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_bytes_max: Option<NonZeroU32>,
    /// Servers that policy has names for.
    #[serde(default, rename = "server", skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ToolServer>,
}

/// A server of MCP or A2A.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolServer {
    /// Its name, as policy has it.
    pub name: String,
    /// Where it is: `https://HOST[:PORT][/PATH]`, or `http://`. What is sent below that are messages to it.
    pub url: String,
    /// A file with the definitions of its tools that were approved, as it listed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<PathBuf>,
}

impl Tool {
    /// Bytes of a message that are held.
    #[must_use]
    pub fn held_bytes_max(&self, content: &Content) -> u32 {
        let share = content.agent_memory_bytes_max.get().saturating_sub(CONTENT_READER_BYTES) / 2;
        let own = u32::try_from(share).unwrap_or(u32::MAX).min(HELD_BYTES);
        self.hold_bytes_max.map_or(own, NonZeroU32::get).max(content.hold_bytes_max.get())
    }
}

/// Checks bounds, names and what can be said of a server without parsing its host.
pub(super) fn check(tool: &Tool, content: &Content) -> Result<(), super::check::Refused> {
    let least = tool.hold_bytes_max.map_or(0, |most| u64::from(most.get()) * 2 + CONTENT_READER_BYTES);
    if content.agent_memory_bytes_max.get() < least {
        return Err((
            "[tool] hold_bytes_max",
            format!(
                "an agent's share of memory is too small for one message: `agent_memory_bytes_max` in [content] must be at least {least}"
            ),
        ));
    }
    let refused = |why: String| Err(("[[tool.server]]", why));
    if tool.servers.len() > SERVERS_MAX {
        return refused(format!("at most {SERVERS_MAX} servers"));
    }
    for (n, ToolServer { name, url, .. }) in tool.servers.iter().enumerate() {
        if !llm::is_name(name) {
            return refused(format!("`{}` is no name of a server: {}", name.escape_debug(), llm::NAMES));
        }
        if name == UNLISTED {
            return refused(format!(
                "`{UNLISTED}` is what policy calls whoever is not listed: take another name"
            ));
        }
        if tool.servers.iter().take(n).any(|other| other.url == *url || other.name == *name) {
            return refused(format!("`{name}` or `{url}` is there twice"));
        }
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return refused(format!("the `url` of server `{name}` begins with `https://` or `http://`"));
        }
    }
    Ok(())
}
