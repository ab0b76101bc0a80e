//! An answer that is supposed, so that what policy says of it can be told without one. Must never be taken for what a server
//! says.

use serde::Deserialize;

use super::call::{CaseCall, CaseTool};
use super::explain::{Explanation, Target, ask, opening};
use super::sent::streamed;
use crate::content::{AskedCall, Payload, Usage};
use crate::{Operation, PolicySet};
use clawgress_identity::Agent;

/// What is supposed of a request besides its target.
#[derive(Clone, Copy, Debug, Default)]
pub struct Supposed<'a> {
    /// The call of a model that it makes.
    pub call: Option<&'a CaseCall>,
    /// What it sends to a tool server.
    pub tool: Option<&'a CaseTool>,
    /// What comes back of it.
    pub answer: Option<&'a CaseAnswer>,
}

/// An answer, as a case has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaseAnswer {
    /// Status; 200 if absent.
    pub status: u16,
    /// Bytes.
    pub bytes: u64,
    /// Whether it is one that streams, of which not all was seen.
    pub streams: bool,
    /// Its media type, in lowercase and without parameters; empty for none.
    pub media_type: String,
    /// What is found in it.
    pub findings: Vec<String>,
    /// Tokens of the prompt, where a model answers.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Names of the tools that the model asks for.
    pub tools: Vec<String>,
    /// Calls that it asks for, each asked about by itself.
    pub calls: Vec<CaseAsked>,
}

/// A call of a tool that a model asks for, as a case has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaseAsked {
    /// The tool.
    pub name: String,
    /// Names of its arguments.
    pub argument_names: Vec<String>,
    /// Their values: a JSON pointer, `=` and the value.
    pub values: Vec<String>,
    /// The arguments, as canonical JSON.
    pub arguments: String,
}

// === impl CaseAnswer ===

impl Default for CaseAnswer {
    fn default() -> CaseAnswer {
        CaseAnswer {
            status: 200,
            bytes: 0,
            streams: false,
            media_type: String::new(),
            findings: Vec::new(),
            input_tokens: 0,
            output_tokens: 0,
            tools: Vec::new(),
            calls: Vec::new(),
        }
    }
}

// === impl Explanation ===

impl Explanation {
    /// The same of a request to `target` that gets this answer; of none that is given, what is not known.
    pub(super) fn with_answer(
        mut self,
        set: &PolicySet,
        agent: &Agent,
        target: &Target,
        answer: Option<&CaseAnswer>,
    ) -> Explanation {
        let Target::Url { host, port, opens, .. } = target else { return self };
        let is_read = self.phases.iter().any(|phase| phase.action == "http");
        let Some(answer) = answer else {
            if is_read && *opens {
                opening::received(&mut self, set, agent, (host, *port));
            } else if is_read && set.asks_receive() {
                self.unasked.push("receive".to_owned());
                let note = "`receive` is asked of what comes back, and nothing is said of that: `--status`, `--answer-bytes`, `--asks-for` and others do, in cases `answer`";
                self.notes.push(note.to_owned());
            }
            return self;
        };
        if !is_read || !set.names_receive() {
            let why = if is_read { "no policy names `receive`" } else { "what comes back passes unread" };
            self.notes.push(format!("{why}, so that nothing is asked about it"));
            return self;
        }
        let receive = |complete: bool, call: AskedCall<'_>| {
            let CaseAnswer {
                status, bytes, media_type, findings, input_tokens, output_tokens, tools, ..
            } = answer;
            let payload = Payload { bytes: *bytes, complete, media_type, findings };
            let usage = Usage { input_tokens: *input_tokens, output_tokens: *output_tokens, tools, call };
            ask(set, agent, Operation::Receive { host, port: *port, status: *status, payload, usage })
        };
        let of = |call: AskedCall<'_>| {
            let whole = || receive(true, call);
            if answer.streams { streamed(receive(false, call), whole) } else { whole() }
        };
        let asked = |call: &CaseAsked| {
            let CaseAsked { name, argument_names, values, arguments } = call;
            of(AskedCall { name, argument_names, values, arguments })
        };
        let answered = of(AskedCall::default());
        let denied = || answer.calls.iter().map(asked).find(|phase| !phase.allowed);
        let phase = if answered.allowed { denied() } else { None }.unwrap_or(answered);
        self.push(phase);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Supposed, Texts};
    use super::*;
    use crate::study::explain::{TlsReading, explain};
    use crate::{PolicyBundle, PolicyInForceRef, Surroundings};

    #[test]
    fn an_answer_is_asked_about_where_it_is_read() {
        let text = "@id(\"h\") permit (principal, action in [Action::\"http\", Action::\"receive\"], resource); @id(\"t\") permit (principal, action == Action::\"tls\", resource);
            @id(\"r\") forbid (principal, action == Action::\"receive\", resource) when { context.usage.tools.contains(\"shell\") };
            @id(\"c\") forbid (principal, action == Action::\"receive\", resource) when { context.call.name == \"sh\" && context.call.arguments like \"*rm*\" };
            @id(\"w\") forbid (principal, action == Action::\"receive\", resource) when { !context.complete && context.bytes > 100 };";
        let bundle = PolicyBundle { text: text.to_owned(), sets: crate::NamedSets::default() };
        let (set, surroundings) = (PolicySet::parse(&bundle).unwrap(), Surroundings::default());
        let agent = crate::set::tests::agent("a");
        let of = |answer: &str| {
            let target = Target::parse("http://a.test/", Some("GET"), None, None).unwrap();
            let answer: Option<CaseAnswer> = (!answer.is_empty()).then(|| toml::from_str(answer).unwrap());
            let supposed = Supposed { answer: answer.as_ref(), ..Supposed::default() };
            let own =
                PolicyInForceRef { text: &bundle.text, sets: &bundle.sets, surroundings: &surroundings };
            let texts = Texts { own, platform: None };
            explain(&set, texts, &agent, (&target, supposed), TlsReading::Off)
        };
        let said = |answer: &str| {
            let explanation = of(answer);
            (
                explanation.allowed,
                explanation.decided.clone(),
                explanation.policies().into_iter().collect::<Vec<_>>(),
            )
        };
        let by = |id: &str| vec![id.to_owned()];
        assert!(of("").unasked.contains(&"receive".to_owned()));
        assert!(said("status = 404").0);
        assert_eq!(said("tools = [\"shell\"]"), (false, "receive".to_owned(), by("r")));
        assert_eq!(said("streams = true\nbytes = 101"), (false, "receive".to_owned(), by("w")));
        assert!(said("streams = true\nbytes = 100").0 && said("bytes = 101").0);
        assert!(toml::from_str::<CaseAnswer>("tool = 1").is_err());
        let call = "calls = [{ name = \"sh\", arguments = '{\"c\":\"rm\"}' }]";
        assert_eq!(said(call), (false, "receive".to_owned(), by("c")));
        assert!(said("calls = [{ name = \"sh\" }]").0);
    }
}
