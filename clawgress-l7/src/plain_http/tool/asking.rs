//! What a server of tools asks of its client (sampling, elicitation, roots), as policy has it: asked `tool` as a message of its own.
//!
//! INVARIANT: what is denied the client never sees, and what waits for it is answered: the client's own call, with an error.

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::tool::{Ask, Heard, ToolError, heard};
use clawgress_policy::Operation;
use clawgress_policy::content::ToolCall;
use clawgress_policy::effect::{Effect, Obligation};

use super::super::{Granted, duties};
use super::{Addressed, DENIED, Messages, error};
use crate::decide::{self, Ruling};
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::page::{self, Client};

/// What is found of a message by which a server asks something of its client.
const SERVER_ASKS: &str = "server_asks";
/// Questions of one answer that did not go on and that a record tells.
const DENIED_TOLD: usize = 16;

/// What is made of a server's questions in one answer.
#[derive(Debug)]
pub(super) struct Asking {
    gateway: Arc<Gateway>,
    addressed: Addressed,
    messages: Option<Arc<Messages>>,
    client: Client,
    /// Ids of the client's messages that were answered in the server's place.
    answered: Vec<String>,
    /// What was enforced.
    kept: Vec<Arc<Obligation>>,
    told: usize,
}

// === impl Asking ===

impl Asking {
    pub(super) fn new(
        gateway: &Arc<Gateway>,
        addressed: &Addressed,
        messages: Option<Arc<Messages>>,
        client: Client,
    ) -> Asking {
        let (gateway, addressed) = (Arc::clone(gateway), addressed.clone());
        Asking { gateway, addressed, messages, client, answered: Vec::new(), kept: Vec::new(), told: 0 }
    }

    /// What goes on in the place of a message, which may be nothing; `None` if that is itself.
    ///
    /// # Errors
    /// If what it asks can't be known.
    pub(super) fn hear(
        &mut self,
        (granted, exchange): (&Granted, &mut Exchange),
        text: &[u8],
    ) -> Result<Option<String>, ToolError> {
        let Heard { asks, answers } = heard(text)?;
        if answers.iter().any(|id| self.answered.contains(id)) {
            // It comes too late.
            return Ok(Some(String::new()));
        }
        if !asks.is_empty() {
            exchange.found([SERVER_ASKS.to_owned()].iter());
        }
        for ask in asks {
            let ruling = self.judge((granted, &mut *exchange), &ask)?;
            let Err(reason) = ruling.verdict else { continue };
            self.tell(exchange, &ask, &ruling, reason);
            return Ok(Some(self.instead(exchange, reason, answers)));
        }
        Ok(None)
    }

    fn judge(
        &mut self,
        (granted, exchange): (&Granted, &mut Exchange),
        ask: &Ask,
    ) -> Result<Ruling, ToolError> {
        let asked = self.gateway.snapshots.current().and_then(|plan| {
            let who = granted.who().under(&plan, self.gateway.now_s())?;
            Ok((plan, who))
        });
        let (plan, who) = match asked {
            Ok(asked) => asked,
            Err(reason) => return Ok(Ruling::deny("tool", reason)),
        };
        let names: Vec<String> = ask.argument_names().map(str::to_owned).collect();
        let (values, arguments) = (ask.argument_values()?, ask.arguments_text());
        let mut ruling = decide::tool(
            &plan,
            &who,
            Operation::Tool(ToolCall {
                host: &granted.admitted().host,
                port: granted.admitted().port,
                server: self.addressed.server(),
                method: &ask.method,
                name: "",
                argument_names: &names,
                values: &values,
                arguments: &arguments,
                findings: &[SERVER_ASKS.to_owned()],
            }),
        );
        // What an agent may send in a time, its server does not spend.
        ruling.keep_duties(|obligation| !matches!(obligation.effect, Effect::Limit(_)));
        Ok(duties::begin(&self.gateway, exchange, &mut self.kept, ruling))
    }

    /// What the client gets in the place of what its server asks.
    fn instead(&mut self, exchange: &Exchange, reason: DropReason, answers: Vec<String>) -> String {
        let message = page::message(self.client, reason, exchange.id());
        let (code, request) = (reason.name(), exchange.id());
        if !answers.is_empty() {
            let all: Vec<String> =
                answers.iter().map(|id| error(id, (DENIED, code), &message, request)).collect();
            // Of its own messages alone: a server may make up as many as it likes.
            let own = |id: &String| self.messages.iter().any(|messages| messages.ids().any(|own| own == id));
            let answers: Vec<String> = answers.into_iter().filter(own).collect();
            self.answered.extend(answers);
            return if let [one] = &all[..] { one.clone() } else { format!("[{}]", all.join(",")) };
        }
        // Its server waits for an answer before it goes on with the client's call, which nobody else would end.
        let Some(messages) = self.messages.take() else { return String::new() };
        self.answered.extend(messages.ids().cloned());
        messages.denial(true, code, &message, request).unwrap_or_default()
    }

    fn tell(&mut self, exchange: &mut Exchange, ask: &Ask, ruling: &Ruling, reason: DropReason) {
        self.told += 1;
        if self.told > DENIED_TOLD {
            return;
        }
        let by = ruling.policies.iter().map(|policy| format!("`{policy}`")).collect::<Vec<_>>().join(", ");
        let by = if by.is_empty() { by } else { format!(" by {by}") };
        exchange.changed(format!("`{}` of the server does not go on: {}{by}", ask.method, reason.name()));
    }
}
