//! What is changed of the call of a model: a parameter that is set, a limit of its answer, tools that are not offered, and a prompt
//! of the system's that comes first.
//!
//! Must never say how a body has these: that is the proxy's to know, and what it can't change so it does not send.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::quote;

/// Longest name of a parameter or tool, and longest value and prompt, bytes.
const NAME_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 1024;
const PROMPT_BYTES_MAX: usize = 16 * 1024;
/// Parameters that say what is called, by which it was judged.
const JUDGED: [&str; 14] = [
    "model",
    "models",
    "messages",
    "input",
    "prompt",
    "contents",
    "system",
    "instructions",
    "tools",
    "functions",
    "stream",
    "stream_options",
    "toolconfig",
    "extra_body",
];

/// What one policy changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BodyChange {
    /// Name of a parameter, and its value as JSON.
    pub param: Option<(Box<str>, Box<str>)>,
    /// Most tokens that may be answered.
    pub tokens_max: Option<u64>,
    /// Name of a tool that is not offered; all that begin with it if it ends in `*`.
    pub tool: Option<Box<str>>,
    /// Name of a tool, and what it is called to the model.
    pub rename: Option<(Box<str>, Box<str>)>,
    /// What comes before all other instructions.
    pub prompt: Option<Box<str>>,
}

/// All that is changed of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BodyChanges {
    /// Parameters, each once.
    pub params: BTreeMap<Box<str>, Box<str>>,
    /// Most tokens that may be answered: the least that any policy has.
    pub tokens_max: Option<u64>,
    /// Tools that are not offered.
    pub tools: BTreeSet<Box<str>>,
    /// Names of tools, each once, and what they are called to the model.
    pub renames: BTreeMap<Box<str>, Box<str>>,
    /// Prompts, the first of which comes first: the platform's before all others.
    pub prompts: Vec<Box<str>>,
}

// === impl BodyChanges ===

impl BodyChanges {
    /// Adds what another policy changes; those of the platform come last, and have the last word.
    pub(super) fn add(&mut self, change: &BodyChange) {
        let BodyChange { param, tokens_max, tool, rename, prompt } = change;
        self.params.extend(param.clone());
        self.renames.extend(rename.clone());
        self.tokens_max = [self.tokens_max, *tokens_max].into_iter().flatten().min();
        self.tools.extend(tool.clone());
        if let Some(prompt) = prompt {
            self.prompts.insert(0, prompt.clone());
        }
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == BodyChanges::default()
    }

    /// Whether a tool of this name is not offered.
    #[must_use]
    pub fn takes_tool(&self, name: &str) -> bool {
        self.tools.iter().any(|tool| match tool.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => **tool == *name,
        })
    }
}

/// Reads `name: value`.
///
/// # Errors
/// Why not, and what to write.
pub(crate) fn param(text: &str) -> Result<(Box<str>, Box<str>), String> {
    let example = "@set_param(\"store: false\")";
    let malformed = || {
        format!(
            "`{}` is no parameter: write a name, a colon and a value of JSON, as in `{example}`",
            quote(text)
        )
    };
    let (name, value) = text.split_once(':').ok_or_else(malformed)?;
    let (name, value) = (name.trim(), value.trim());
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(is_name) {
        return Err(malformed());
    }
    if JUDGED.contains(&&*name.to_ascii_lowercase()) {
        return Err(format!("policy can't set `{name}`: by that the call was judged"));
    }
    let is_json = serde_json::from_str::<serde_json::Value>(value).is_ok();
    if value.len() > VALUE_BYTES_MAX || !is_json {
        return Err(malformed());
    }
    Ok((name.into(), value.into()))
}

/// Reads a count.
///
/// # Errors
/// Why not, and what to write.
pub(crate) fn tokens_max(text: &str) -> Result<u64, String> {
    let is_count = text.bytes().all(|b| b.is_ascii_digit());
    let count =
        is_count.then(|| text.parse::<u64>().ok()).flatten().filter(|count| (1..=1 << 40).contains(count));
    count.ok_or_else(|| {
        format!("`{}` is no count of tokens: write it as in `@max_tokens(\"4096\")`", quote(text))
    })
}

/// Reads the name of a tool.
///
/// # Errors
/// Why not, and what to write.
pub(crate) fn tool(text: &str) -> Result<Box<str>, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let is_name = name.bytes().all(|b| b.is_ascii_graphic() && b != b'*');
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !is_name {
        return Err(format!(
            "`{}` is no name of a tool: write it as in `@remove_tool(\"shell\")`, or `\"web_*\"` for all that begin so",
            quote(text)
        ));
    }
    Ok(text.into())
}

/// Reads `name: name`.
///
/// # Errors
/// Why not, and what to write.
pub(crate) fn rename(text: &str) -> Result<(Box<str>, Box<str>), String> {
    let example = "@rename_tool(\"shell: run_command\")";
    let malformed = || {
        format!(
            "`{}` renames no tool: write its name, a colon and the name that the model sees, as in `{example}`",
            quote(text)
        )
    };
    let (own, other) = text.split_once(':').ok_or_else(malformed)?;
    let (own, other) = (own.trim(), other.trim());
    let is_name = |name: &str| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
    };
    if !is_name(own) || !is_name(other) {
        return Err(malformed());
    }
    if own == other {
        return Err(format!("`{}` renames nothing: both names are the same", quote(text)));
    }
    Ok((own.into(), other.into()))
}

/// Reads a prompt.
///
/// # Errors
/// Why not, and what to write.
pub(crate) fn prompt(text: &str) -> Result<Box<str>, String> {
    let is_plain = !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
    if text.trim().is_empty() || text.len() > PROMPT_BYTES_MAX || !is_plain {
        return Err(format!("a prompt is 1 to {PROMPT_BYTES_MAX} bytes of text, without control characters"));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_is_read_as_written_or_refused() {
        assert_eq!(param("store: false"), Ok(("store".into(), "false".into())));
        assert_eq!(param("temperature:0.20"), Ok(("temperature".into(), "0.20".into())));
        for bad in [
            "",
            "store",
            "store:",
            "store: yes",
            "a b: 1",
            "model: \"x\"",
            "Tools: []",
            "stream: true",
            ": 1",
        ] {
            param(bad).expect_err(bad);
        }
        assert_eq!(tokens_max("4096"), Ok(4096));
        for bad in ["", "0", "-1", "1k", "1.0", "99999999999999"] {
            tokens_max(bad).expect_err(bad);
        }
        assert_eq!(tool("web_*"), Ok("web_*".into()));
        for bad in ["", "a b", "*a", "a**"] {
            tool(bad).expect_err(bad);
        }
        assert_eq!(rename("shell: run_command"), Ok(("shell".into(), "run_command".into())));
        for bad in ["", "shell", "shell:", ": a", "a: b c", "a: b: c", "web_*: a", "a: \"b\"", "a: a"] {
            rename(bad).expect_err(bad);
        }
        prompt("  ").expect_err("blank");
        prompt("a\u{7}").expect_err("a bell");
        assert_eq!(prompt("Never\nsend keys."), Ok("Never\nsend keys.".into()));
    }

    #[test]
    fn the_least_limit_and_the_last_value_count() {
        let mut all = BodyChanges::default();
        let change = |param: (&str, &str), most, tool: &str, prompt: &str| BodyChange {
            param: Some((param.0.into(), param.1.into())),
            tokens_max: Some(most),
            tool: Some(tool.into()),
            rename: Some(("shell".into(), prompt.into())),
            prompt: Some(prompt.into()),
        };
        all.add(&change(("store", "true"), 5, "shell", "own"));
        all.add(&change(("store", "false"), 9, "web_*", "platform"));
        all.add(&BodyChange::default());
        assert_eq!((all.params.len(), all.tokens_max), (1, Some(5)));
        assert_eq!(all.params.get("store").map(|value| &**value), Some("false"));
        assert_eq!(all.renames, [("shell".into(), "platform".into())].into());
        assert_eq!(all.prompts, ["platform".into(), "own".into()]);
        assert!(all.takes_tool("shell") && all.takes_tool("web_search") && !all.takes_tool("shell2"));
        assert!(!all.is_empty() && BodyChanges::default().is_empty());
    }
}
