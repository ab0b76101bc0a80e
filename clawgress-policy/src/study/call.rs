//! A call of a model, or of a tool, that is supposed, so that what policy says of it can be told without one. Must never be taken
//! for what a request says.

use serde::Deserialize;

use super::explain::{Explanation, Target, ask};
use crate::content::{ModelCall, ToolCall, stores_by_default, streams_by_default};
use crate::{Host, Look, Operation, PayloadNeed, PolicySet, may_have_body};
use clawgress_identity::Agent;

/// A call, as a case has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseCall {
    /// Whose model.
    pub provider: String,
    /// The model; none if absent.
    #[serde(default)]
    pub model: String,
    /// Its family; the model if absent.
    pub family: Option<String>,
    /// What is asked of the provider; `chat_completions` if absent.
    pub surface: Option<String>,
    /// Tokens of the prompt.
    #[serde(default)]
    pub tokens_estimated: u64,
    /// Most that may be answered; no limit if absent.
    pub tokens_max: Option<u64>,
    /// Whether the answer is to be streamed; as of a client that says nothing of it if absent.
    pub stream: Option<bool>,
    /// Names of the tools that are offered.
    #[serde(default)]
    pub tools: Vec<String>,
    /// How much is attached.
    #[serde(default)]
    pub attachments: u32,
    /// Of that, images.
    #[serde(default)]
    pub images: u32,
    /// Bytes of what is attached.
    #[serde(default)]
    pub attachment_bytes: u64,
    /// What signs of somebody who steers the model weigh together, of 100.
    #[serde(default)]
    pub prompt_score: u32,
    /// Whether no price is known of the model.
    #[serde(default)]
    pub unpriced: bool,
    /// What is to be done about the tools; nothing is said if absent.
    #[serde(default)]
    pub tool_choice: String,
    /// Who it is for; nobody is named if absent.
    #[serde(default)]
    pub end_user: String,
    /// Whether the server may keep it; as of a client that says nothing of it if absent.
    pub store: Option<bool>,
    /// Whether the model is shown what only the server has.
    #[serde(default)]
    pub partial: bool,
    /// What is found in it.
    #[serde(default)]
    pub findings: Vec<String>,
}

/// A message to a tool server, as a case has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseTool {
    /// The server.
    pub server: String,
    /// The method; `tools/call` if absent.
    pub method: Option<String>,
    /// The tool; none if absent.
    #[serde(default)]
    pub name: String,
    /// What it is called with, as JSON; nothing if absent.
    #[serde(default)]
    pub arguments: String,
    /// Names of the arguments.
    #[serde(default)]
    pub argument_names: Vec<String>,
    /// Their values: `/project=OPS`.
    #[serde(default)]
    pub values: Vec<String>,
    /// What is found in it.
    #[serde(default)]
    pub findings: Vec<String>,
}

// === impl CaseCall ===

impl CaseCall {
    fn operation<'a>(&'a self, host: &'a Host, port: u16) -> Operation<'a> {
        let surface = self.surface.as_deref().unwrap_or("chat_completions");
        Operation::Llm(ModelCall {
            host,
            port,
            provider: &self.provider,
            model: &self.model,
            family: self.family.as_ref().unwrap_or(&self.model),
            surface,
            tokens_estimated: self.tokens_estimated,
            tokens_max: self.tokens_max,
            stream: self.stream.unwrap_or_else(|| streams_by_default(surface)),
            tools: &self.tools,
            attachments: self.attachments,
            images: self.images,
            attachment_bytes: self.attachment_bytes,
            prompt_score: self.prompt_score,
            unpriced: self.unpriced,
            tool_choice: &self.tool_choice,
            end_user: &self.end_user,
            store: self.store.unwrap_or_else(|| stores_by_default(surface)),
            partial: self.partial,
            findings: &self.findings,
        })
    }
}

// === impl CaseTool ===

impl CaseTool {
    fn operation<'a>(&'a self, host: &'a Host, port: u16) -> Operation<'a> {
        Operation::Tool(ToolCall {
            host,
            port,
            server: &self.server,
            method: self.method.as_deref().unwrap_or("tools/call"),
            name: &self.name,
            argument_names: &self.argument_names,
            values: &self.values,
            arguments: &self.arguments,
            findings: &self.findings,
        })
    }
}

// === impl Explanation ===

impl Explanation {
    /// The same of a request to `target` that makes these calls; of those that are not given, what is not known.
    pub(super) fn with_calls(
        mut self,
        set: &PolicySet,
        agent: &Agent,
        target: &Target,
        (llm, tool): (Option<&CaseCall>, Option<&CaseTool>),
    ) -> Explanation {
        let Target::Url { host, port, method, .. } = target else { return self };
        if self.opaque.is_some() {
            // Nobody reads it.
            if llm.is_some() || tool.is_some() {
                let note = "what it calls passes unread, so that `llm` and `tool` are not asked";
                self.notes.push(note.to_owned());
            }
            return self;
        }
        let model = llm.map(|call| call.operation(host, *port));
        let message = tool.map(|call| call.operation(host, *port));
        // What is one is not the other.
        let is_said = llm.is_some() || tool.is_some();
        let asks = |need: PayloadNeed| need.decided != Look::Nothing && may_have_body(method) && !is_said;
        for (name, is_asked, operation, (what, by)) in [
            ("llm", asks(set.needs_call()), model, ("a model", "`--provider` and `--model`")),
            ("tool", asks(set.needs_tool()), message, ("a tool", "`--server` and `--tool`")),
        ] {
            match operation {
                Some(operation) => self.phases.push(ask(set, agent, operation)),
                None if is_asked => {
                    self.unasked.push(name.to_owned());
                    self.notes.push(format!(
                        "`{name}` is asked if it calls {what}: {by} say which, and more with what; in cases `{name}`"
                    ));
                }
                None => {}
            }
        }
        if llm.is_none() && tool.is_none() {
            return self;
        }
        let decided = self.phases.iter().find(|phase| !phase.allowed).or(self.phases.last());
        if let Some(phase) = decided {
            (self.decided, self.reason) = (phase.action.clone(), phase.reason.clone());
        }
        self.allowed = self.phases.iter().all(|phase| phase.allowed);
        self
    }
}
