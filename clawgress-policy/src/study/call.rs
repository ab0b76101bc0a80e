//! A call of a model that is supposed, so that what policy says of it can be told without one. Must never be taken for what a
//! request says.

use serde::Deserialize;

use super::explain::{Explanation, Target, ask};
use crate::content::ModelCall;
use crate::{Look, Operation, PolicySet};
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
    /// Whether the answer is to be streamed.
    #[serde(default)]
    pub stream: bool,
    /// Names of the tools that are offered.
    #[serde(default)]
    pub tools: Vec<String>,
    /// How much is attached.
    #[serde(default)]
    pub attachments: u32,
    /// What signs of somebody who steers the model weigh together, of 100.
    #[serde(default)]
    pub prompt_score: u32,
    /// Whether no price is known of the model.
    #[serde(default)]
    pub unpriced: bool,
    /// What is found in it.
    #[serde(default)]
    pub findings: Vec<String>,
}

impl Explanation {
    /// The same of a request to `target` that makes this call; of none that is given, what is not known.
    pub(super) fn with_call(
        mut self,
        set: &PolicySet,
        agent: &Agent,
        target: &Target,
        call: Option<&CaseCall>,
    ) -> Explanation {
        let Target::Url { host, port, method, .. } = target else { return self };
        let has_none = ["GET", "HEAD", "OPTIONS"].contains(&&**method);
        let is_asked = set.needs_call().decided != Look::Nothing && !has_none;
        if self.opaque.is_some() || !is_asked && call.is_none() {
            // Nobody reads it, or nobody asks.
            return self;
        }
        let Some(call) = call else {
            self.unasked.push("llm".to_owned());
            self.notes
                .push("`llm` is asked if it calls a model: say in a case which, and with what".to_owned());
            return self;
        };
        let operation = Operation::Llm(ModelCall {
            host,
            port: *port,
            provider: &call.provider,
            model: &call.model,
            family: call.family.as_ref().unwrap_or(&call.model),
            surface: call.surface.as_deref().unwrap_or("chat_completions"),
            tokens_estimated: call.tokens_estimated,
            tokens_max: call.tokens_max,
            stream: call.stream,
            tools: &call.tools,
            attachments: call.attachments,
            prompt_score: call.prompt_score,
            unpriced: call.unpriced,
            findings: &call.findings,
        });
        self.phases.push(ask(set, agent, operation));
        let decided = self.phases.iter().find(|phase| !phase.allowed).or(self.phases.last());
        if let Some(phase) = decided {
            (self.decided, self.reason) = (phase.action.clone(), phase.reason.clone());
        }
        self.allowed = self.phases.iter().all(|phase| phase.allowed);
        self
    }
}
