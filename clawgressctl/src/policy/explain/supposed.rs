//! What is supposed of a request besides its target: the model or tool that it calls, and what comes back. Must never be taken
//! for what the proxy would make of a real one.

use clap::Args;
use clawgress_policy::study::call::{CaseCall, CaseTool};
use clawgress_policy::study::{CaseAnswer, CaseAsked};
use serde_json::Value;

const OF_MODEL: &str = "Where it calls a model";
const OF_TOOL: &str = "Where it calls a tool";
const OF_ANSWER: &str = "Of what comes back";

#[derive(Args)]
pub struct Supposing {
    /// Whose model it calls, by the name that policy has for it: `openai`.
    #[arg(long, value_name = "NAME", help_heading = OF_MODEL)]
    provider: Option<String>,
    /// The model; none if absent.
    #[arg(long, value_name = "NAME", requires = "provider", help_heading = OF_MODEL)]
    model: Option<String>,
    /// Its family: the name without vendor, region, version and date. The model if absent.
    #[arg(long, value_name = "NAME", requires = "provider", help_heading = OF_MODEL)]
    family: Option<String>,
    /// What is asked of the provider; `chat_completions` if absent.
    #[arg(long, value_name = "NAME", requires = "provider", help_heading = OF_MODEL)]
    surface: Option<String>,
    /// Tokens of the prompt, as they are estimated.
    #[arg(long, value_name = "NUMBER", requires = "provider", help_heading = OF_MODEL)]
    tokens: Option<u64>,
    /// Most tokens that may be answered; no limit if absent.
    #[arg(long, value_name = "NUMBER", requires = "provider", help_heading = OF_MODEL)]
    tokens_max: Option<u64>,
    /// Whether its answer is to be streamed; as of a client that says nothing of it if absent.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", requires = "provider", help_heading = OF_MODEL)]
    wants_stream: Option<bool>,
    /// A tool that the model may ask for; as often as there is one.
    #[arg(long = "offers", value_name = "TOOL", requires = "provider", help_heading = OF_MODEL)]
    offers: Vec<String>,
    /// How much is attached.
    #[arg(long, value_name = "NUMBER", requires = "provider", help_heading = OF_MODEL)]
    attachments: Option<u32>,
    /// Of that, images.
    #[arg(long, value_name = "NUMBER", requires = "provider", help_heading = OF_MODEL)]
    images: Option<u32>,
    /// Bytes of what is attached.
    #[arg(long, value_name = "BYTES", requires = "provider", help_heading = OF_MODEL)]
    attachment_bytes: Option<u64>,
    /// What signs of somebody who steers the model weigh together, of 100.
    #[arg(long, value_name = "NUMBER", requires = "provider", help_heading = OF_MODEL)]
    prompt_score: Option<u32>,
    /// No price is known of the model.
    #[arg(long, requires = "provider", help_heading = OF_MODEL)]
    unpriced: bool,
    /// What is to be done about the tools: `auto`, `required`, or the name of one.
    #[arg(long, value_name = "CHOICE", requires = "provider", help_heading = OF_MODEL)]
    tool_choice: Option<String>,
    /// Who it is for, as the client says.
    #[arg(long, value_name = "ID", requires = "provider", help_heading = OF_MODEL)]
    end_user: Option<String>,
    /// Whether the provider may keep it; as of a client that says nothing of it if absent: `responses` are kept then.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", requires = "provider", help_heading = OF_MODEL)]
    store: Option<bool>,
    /// The model is shown what only the provider has: an earlier answer, a conversation, a file.
    #[arg(long, requires = "provider", help_heading = OF_MODEL)]
    partial: bool,
    /// Whose tool it calls, by the name that policy has for the server.
    #[arg(long, value_name = "NAME", help_heading = OF_TOOL)]
    server: Option<String>,
    /// The tool, prompt or resource; none if absent.
    #[arg(long, value_name = "NAME", requires = "server", help_heading = OF_TOOL)]
    tool: Option<String>,
    /// The method of the message; `tools/call` if absent.
    #[arg(long, value_name = "METHOD", requires = "server", help_heading = OF_TOOL)]
    tool_method: Option<String>,
    /// What it is called with, as JSON: `{"project":"OPS"}`.
    #[arg(long, value_name = "JSON", requires = "server", help_heading = OF_TOOL)]
    arguments: Option<String>,
    /// Status of the answer; 200 if absent.
    #[arg(long, value_name = "STATUS", help_heading = OF_ANSWER)]
    status: Option<u16>,
    /// Bytes of it.
    #[arg(long, value_name = "BYTES", help_heading = OF_ANSWER)]
    answer_bytes: Option<u64>,
    /// Its media type.
    #[arg(long, value_name = "TYPE", help_heading = OF_ANSWER)]
    answer_media_type: Option<String>,
    /// What is found in it; as often as there is something.
    #[arg(long = "answer-finding", value_name = "NAME", help_heading = OF_ANSWER)]
    answer_findings: Vec<String>,
    /// It streams, and not all of it was seen.
    #[arg(long, help_heading = OF_ANSWER)]
    answer_streams: bool,
    /// Tokens of the prompt, as the model's provider counts them.
    #[arg(long, value_name = "NUMBER", help_heading = OF_ANSWER)]
    input_tokens: Option<u64>,
    /// Tokens of the answer.
    #[arg(long, value_name = "NUMBER", help_heading = OF_ANSWER)]
    output_tokens: Option<u64>,
    /// A tool that the model asks for, with `=` and its arguments as JSON if each call is to be asked about; as often as there is one.
    #[arg(long = "asks-for", value_name = "TOOL[=JSON]", help_heading = OF_ANSWER)]
    asks_for: Vec<String>,
}

/// What is supposed.
#[derive(Debug, Default)]
pub struct Cases {
    pub call: Option<CaseCall>,
    pub tool: Option<CaseTool>,
    pub answer: Option<CaseAnswer>,
}

/// What a tool is called with, in the terms of policy.
#[derive(Debug, Default, PartialEq, Eq)]
struct With {
    argument_names: Vec<String>,
    values: Vec<String>,
    arguments: String,
}

// === impl Supposing ===

impl Supposing {
    /// What is supposed of a request in whose body this is found.
    ///
    /// # Errors
    /// If arguments of a tool are no JSON.
    pub fn cases(&self, findings: &[String]) -> Result<Cases, String> {
        Ok(Cases { call: self.call(findings), tool: self.tool(findings)?, answer: self.answer()? })
    }

    /// Whether the body is said to be a call.
    pub fn is_of_call(&self) -> bool {
        self.provider.is_some() || self.server.is_some()
    }

    fn call(&self, findings: &[String]) -> Option<CaseCall> {
        let provider = self.provider.clone()?;
        Some(CaseCall {
            provider,
            model: self.model.clone().unwrap_or_default(),
            family: self.family.clone(),
            surface: self.surface.clone(),
            tokens_estimated: self.tokens.unwrap_or(0),
            tokens_max: self.tokens_max,
            stream: self.wants_stream,
            tools: self.offers.clone(),
            attachments: self.attachments.unwrap_or(0),
            images: self.images.unwrap_or(0),
            attachment_bytes: self.attachment_bytes.unwrap_or(0),
            prompt_score: self.prompt_score.unwrap_or(0),
            unpriced: self.unpriced,
            tool_choice: self.tool_choice.clone().unwrap_or_default(),
            end_user: self.end_user.clone().unwrap_or_default(),
            store: self.store,
            partial: self.partial,
            findings: findings.to_vec(),
        })
    }

    fn tool(&self, findings: &[String]) -> Result<Option<CaseTool>, String> {
        let Some(server) = self.server.clone() else { return Ok(None) };
        let with = self.arguments.as_deref().map(With::parse).transpose()?.unwrap_or_default();
        let With { argument_names, values, arguments } = with;
        Ok(Some(CaseTool {
            server,
            method: self.tool_method.clone(),
            name: self.tool.clone().unwrap_or_default(),
            arguments,
            argument_names,
            values,
            findings: findings.to_vec(),
        }))
    }

    fn answer(&self) -> Result<Option<CaseAnswer>, String> {
        let Supposing { status, answer_bytes, answer_media_type, input_tokens, output_tokens, .. } = self;
        let is_said = status.is_some()
            || answer_bytes.is_some()
            || answer_media_type.is_some()
            || input_tokens.is_some()
            || output_tokens.is_some()
            || self.answer_streams
            || !self.answer_findings.is_empty()
            || !self.asks_for.is_empty();
        if !is_said {
            return Ok(None);
        }
        let (mut tools, mut calls) = (Vec::new(), Vec::new());
        for asked in &self.asks_for {
            let (name, with) = match asked.split_once('=') {
                Some((name, json)) => (name, Some(With::parse(json)?)),
                None => (asked.as_str(), None),
            };
            tools.push(name.to_owned());
            calls.extend(with.map(|With { argument_names, values, arguments }| CaseAsked {
                name: name.to_owned(),
                argument_names,
                values,
                arguments,
            }));
        }
        Ok(Some(CaseAnswer {
            status: status.unwrap_or(200),
            bytes: answer_bytes.unwrap_or(0),
            streams: self.answer_streams,
            media_type: answer_media_type.clone().unwrap_or_default(),
            findings: self.answer_findings.clone(),
            input_tokens: input_tokens.unwrap_or(0),
            output_tokens: output_tokens.unwrap_or(0),
            tools,
            calls,
        }))
    }
}

// === impl Cases ===

impl Cases {
    /// Whether nothing is supposed.
    pub fn is_empty(&self) -> bool {
        self.call.is_none() && self.tool.is_none() && self.answer.is_none()
    }
}

// === impl With ===

impl With {
    fn parse(json: &str) -> Result<With, String> {
        let mut value: Value = serde_json::from_str(json).map_err(|error| {
            format!("`{json}` is not JSON ({error}): write such as `{{\"project\":\"OPS\"}}`")
        })?;
        // As the proxy has them, in whatever order they are written.
        value.sort_all_objects();
        let argument_names =
            value.as_object().into_iter().flat_map(|members| members.keys().cloned()).collect();
        let mut values = Vec::new();
        tell(&value, &mut String::new(), &mut values);
        Ok(With { argument_names, values, arguments: value.to_string() })
    }
}

/// Each value that is no object or array: a JSON pointer (RFC 6901), in which a `=` of a name is `~2`, `=` and the value.
fn tell(value: &Value, at: &mut String, told: &mut Vec<String>) {
    let length = at.len();
    let mut below = |name: &str, value: &Value| {
        at.push('/');
        at.push_str(&name.replace('~', "~0").replace('/', "~1").replace('=', "~2"));
        tell(value, at, told);
        at.truncate(length);
    };
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| below(name, value)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, value)| below(&n.to_string(), value));
        }
        Value::String(text) => told.push(format!("{at}={text}")),
        leaf => told.push(format!("{at}={leaf}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_as_policy_has_them() {
        let with = With::parse(r#"{"b=c": [1, {"x/y": "z"}], "a": null}"#).expect("JSON");
        assert_eq!(with.argument_names, ["a", "b=c"]);
        assert_eq!(with.values, ["/a=null", "/b~2c/0=1", "/b~2c/1/x~1y=z"]);
        assert_eq!(with.arguments, r#"{"a":null,"b=c":[1,{"x/y":"z"}]}"#);
        let error = With::parse("project=OPS").expect_err("no JSON");
        assert!(error.contains("is not JSON") && error.contains("write such as"), "{error}");
    }
}
