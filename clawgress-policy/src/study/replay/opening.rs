//! WebSockets of which it was decided before whether they are opened. What is asked about their messages without looking at any is
//! asked when they are opened, and so here; what was in messages no record tells.

use clawgress_ebpf_common::DropReason;

use super::answer::{Answer, ask};
use super::{Content, Recorded};
use crate::content::{Payload, Usage};
use crate::{CallsLook, Host, Look, Operation, PolicySet, Request, TunnelProtocol};

/// What is known of a message that was not read.
const UNREAD: Payload<'static> = Payload { bytes: 0, complete: false, media_type: "", findings: &[] };
/// Switching Protocols: what `receive` is told of what comes on a WebSocket.
const SWITCHING: u16 = 101;

const MESSAGES: &str = "the messages of its WebSocket";
const CALLS: &str = "whether the messages of its WebSocket were read as calls of a model";
const NAMED: &str = "whether a tool server is configured where it was opened";

impl Recorded<'_> {
    /// What follows `http` of a request that opens a WebSocket: `tunnel`, where its messages stay unread, then what is asked about
    /// them before there are any, in the proxy's order.
    pub(super) fn web_socket(
        &self,
        set: &PolicySet,
        (host, port): (&Host, u16),
        http: Answer,
    ) -> Result<Answer, &'static str> {
        if http.ends() {
            return Ok(http);
        }
        let operation = Operation::Tunnel { host, port, protocol: TunnelProtocol::WebSocket };
        let mut tunnel = ask(set, self.agent, operation)?;
        let is_unread = tunnel.denied.is_none() && tunnel.reads.is_empty();
        let opened = match tunnel.denied {
            // They are read, and each needs a permit of its own: what it is obliged to is told with them.
            None | Some(DropReason::PolicyDenied) if !is_unread && set.asks_send() => http.blind(true),
            Some(DropReason::PolicyDenied | DropReason::PolicyForbidden) => {
                tunnel.denied = Some(DropReason::InspectionRequired);
                http.then(tunnel)
            }
            None if !is_unread => {
                tunnel.policies = std::mem::take(&mut tunnel.reads);
                tunnel.denied = Some(DropReason::InspectionRequired);
                http.then(tunnel)
            }
            _ => http.then(tunnel),
        };
        if opened.ends() {
            return Ok(opened);
        }
        let opened = opened.then(self.tools_unread(set)?);
        if opened.ends() {
            return Ok(opened);
        }
        self.calls_unread(set, (host, port))?;
        let opened = opened.then(self.send_unread(set, (host, port))?);
        if opened.ends() { Ok(opened) } else { Ok(opened.then(self.receive_unread(set, (host, port))?)) }
    }

    /// Messages to a tool server that is configured are not read, so that none is opened where policy asks about them.
    fn tools_unread(&self, set: &PolicySet) -> Result<Answer, &'static str> {
        if set.needs_tool().decided == Look::Nothing || self.contents.asked("tool") {
            return Ok(Answer::nothing());
        }
        // No other denial is told of `tool`.
        if self.action == "tool" { Ok(Answer::deny(DropReason::InspectionRequired)) } else { Err(NAMED) }
    }

    /// Nothing, but of a conversation with a model of which it is not told whether its messages are read, where that decides.
    ///
    /// # Errors
    /// Of such a one.
    fn calls_unread(&self, set: &PolicySet, (host, port): (&Host, u16)) -> Result<(), &'static str> {
        if set.needs_call().decided == Look::Nothing {
            return Ok(());
        }
        if self.action == "llm" && self.verdict == Err(DropReason::InspectionRequired.name()) {
            // Whose model it would have been is not told.
            return Err(CALLS);
        }
        // Those that name a model are read, or each of their messages is a call by itself.
        let call = self.contents.said.call.as_ref();
        let Some(call) = call.filter(|call| call.surface == "realtime" && call.model.is_empty()) else {
            return Ok(());
        };
        let request = Request { agent: self.agent, operation: call.operation(host, port) };
        let decides = set.decide(&request).verdict.is_ok() && set.needs_call_read(&request);
        if decides { Err(CALLS) } else { Ok(()) }
    }

    /// `send`, where no answer depends on a message.
    fn send_unread(&self, set: &PolicySet, (host, port): (&Host, u16)) -> Result<Answer, &'static str> {
        if !set.names_send() {
            return Ok(Answer::nothing());
        }
        let (method, path) = (self.method.unwrap_or_default(), self.path.unwrap_or_default());
        let operation = Operation::Send { host, port, method, path, payload: UNREAD };
        let need = set.needs_payload(&Request { agent: self.agent, operation }, false);
        if need.decided != Look::Nothing {
            return Ok(Answer::nothing());
        }
        Ok(ask(set, self.agent, operation)?.blind(need.logged != Look::Nothing))
    }

    /// `receive`, likewise: where no guard asks, it needs no permission.
    fn receive_unread(&self, set: &PolicySet, (host, port): (&Host, u16)) -> Result<Answer, &'static str> {
        if !set.names_receive() {
            return Ok(Answer::nothing());
        }
        let operation = came(host, port);
        let request = Request { agent: self.agent, operation };
        let need = set.needs_payload(&request, false);
        if need.decided != Look::Nothing {
            let calls = set.needs_calls(&request).decided;
            let is_followed = calls == CallsLook::Nothing;
            // What a model says and asks for is not put together of messages.
            return Ok(if is_followed {
                Answer::nothing()
            } else {
                Answer::deny(DropReason::InspectionRequired)
            });
        }
        let is_blind = need.logged != Look::Nothing;
        if !set.asks_receive() {
            return Ok(Answer::nothing().blind(is_blind));
        }
        Ok(ask(set, self.agent, operation)?.blind(is_blind))
    }

    /// Whether a WebSocket was opened, rather than that its server answered otherwise: of that, `receive` is told.
    pub(super) fn has_switched(&self) -> bool {
        let Some(end) = self.contents.end.as_ref().filter(|_| self.content == Content::WebSocket) else {
            return false;
        };
        end.answer.map_or(self.contents.asked("receive"), |answer| answer.status == SWITCHING)
    }

    /// Nothing, of a WebSocket no answer on which depends on what is in its messages.
    ///
    /// # Errors
    /// Of any other.
    pub(super) fn messages_decide(
        &self,
        set: &PolicySet,
        (host, port): (&Host, u16),
    ) -> Result<(), &'static str> {
        if self.content != Content::WebSocket {
            return Ok(());
        }
        let operation = Operation::Tunnel { host, port, protocol: TunnelProtocol::WebSocket };
        let tunnel = ask(set, self.agent, operation)?;
        let is_unread = tunnel.denied.is_none() && tunnel.reads.is_empty();
        let (method, path) = (self.method.unwrap_or_default(), self.path.unwrap_or_default());
        let sent = Operation::Send { host, port, method, path, payload: UNREAD };
        let decides = |operation| {
            set.needs_payload(&Request { agent: self.agent, operation }, false).decided != Look::Nothing
        };
        let sent = set.names_send() && (!is_unread || decides(sent));
        if sent || set.names_receive() && decides(came(host, port)) { Err(MESSAGES) } else { Ok(()) }
    }
}

/// What `receive` is asked about what comes on a WebSocket.
fn came<'a>(host: &'a Host, port: u16) -> Operation<'a> {
    Operation::Receive { host, port, status: SWITCHING, payload: UNREAD, usage: Usage::default() }
}
