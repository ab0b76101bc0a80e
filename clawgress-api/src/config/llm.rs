//! Calls of models, where policy asks about them.

use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Content;
use super::check::CONTENT_READER_BYTES;

/// A conversation with some images.
const HELD_BYTES: u32 = 6 << 20;
/// Most servers: those of one's own, by name.
const SERVERS_MAX: usize = 256;
/// Longest name: policy has it as an id.
const NAME_BYTES_MAX: usize = 63;

/// Calls of models, where policy asks about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llm {
    /// Bytes of a call that are held until it is judged: a larger one is refused. 6 MiB if absent, or what an agent's share of
    /// memory leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_bytes_max: Option<NonZeroU32>,
    /// Whether usage is asked for on the client's behalf where a stream would tell none (`stream_options`).
    #[serde(default = "ask_usage")]
    pub ask_usage: bool,
    /// Whether the tokens of requests are counted besides, where their vocabulary is one of OpenAI's: each that is used takes
    /// some tens of MiB.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub count_tokens: bool,
    /// Prices of one's own, before those of the table that comes with the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<PathBuf>,
    /// What prompts are held against, in place of the rules that come with the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_rules: Option<PathBuf>,
    /// Servers of one's own: vLLM, Ollama, llama.cpp, gateways.
    #[serde(default, rename = "server", skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<LlmServer>,
}

/// A server of one's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmServer {
    /// The provider, as policy has it.
    pub name: String,
    /// Where it is: `https://HOST[:PORT][/PATH]`, or `http://`. What is asked below that is a call.
    pub url: String,
}

impl Default for Llm {
    fn default() -> Self {
        Llm {
            hold_bytes_max: None,
            ask_usage: ask_usage(),
            count_tokens: false,
            prices: None,
            prompt_rules: None,
            servers: Vec::new(),
        }
    }
}

impl Llm {
    /// Bytes of a call that are held.
    #[must_use]
    pub fn held_bytes_max(&self, content: &Content) -> u32 {
        let share = content.agent_memory_bytes_max.get().saturating_sub(CONTENT_READER_BYTES) / 2;
        let own = u32::try_from(share).unwrap_or(u32::MAX).min(HELD_BYTES);
        self.hold_bytes_max.map_or(own, NonZeroU32::get).max(content.hold_bytes_max.get())
    }
}

fn ask_usage() -> bool {
    true
}

/// Checks names and what can be said of a server without parsing its host.
pub(super) fn check(llm: &Llm) -> Result<(), super::check::Refused> {
    let refused = |why: String| Err(("[[llm.server]]", why));
    if llm.servers.len() > SERVERS_MAX {
        return refused(format!("at most {SERVERS_MAX} servers"));
    }
    for (n, LlmServer { name, url }) in llm.servers.iter().enumerate() {
        if !is_name(name) {
            return refused(format!("`{}` is no name of a provider: {NAMES}", name.escape_debug()));
        }
        if name == UNLISTED {
            return refused(format!(
                "`{UNLISTED}` is what policy calls whoever is not listed: take another name"
            ));
        }
        if llm.servers.iter().take(n).any(|other| other.url == *url) {
            return refused(format!("`{url}` is there twice"));
        }
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return refused(format!("the `url` of server `{name}` begins with `https://` or `http://`"));
        }
    }
    Ok(())
}

/// What a name is made of.
pub(super) const NAMES: &str = "1 to 63 of a-z, 0-9, `-` and `_`";

/// Whether policy may have it as the name of a provider or server.
pub(super) fn is_name(name: &str) -> bool {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_letter)
}

/// What policy calls the provider of a call that goes to nobody who is listed.
pub const UNLISTED: &str = "unlisted";
