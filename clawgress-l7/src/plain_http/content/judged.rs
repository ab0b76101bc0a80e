//! The ruling on a request, once what it sends is judged: before the upstream is dialled, where that can be held so long.

use std::time::Duration;

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1;
use clawgress_policy::{Look, PayloadNeed};
use pingora_proxy::Session;
use tokio::time::Instant;

use super::{Body, CALL_TOO_LARGE};
use crate::carries;
use crate::decide::{self, Ruling};
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::identify::Who;
use crate::plain_http::Admitted;
use crate::plain_http::hold::{self, Held};
use crate::plain_http::model::{Asking, Calling};
use crate::plain_http::rewrite::Rewritten;
use crate::plain_http::said::Said;
use crate::plain_http::tool::Addressed;
use crate::snapshot::Plan;

/// After what time there may be memory again.
const MEMORY_WAIT: Duration = Duration::from_secs(1);

/// What judging a body came to, besides the ruling.
#[derive(Debug, Default)]
pub struct Judged {
    /// What is known of the body, if anything was asked about it.
    pub said: Option<Said>,
    /// The body, if it is looked at. Boxed: most requests have none that is.
    pub body: Option<Box<Body>>,
    /// Whether the client was told to send it.
    pub continued: bool,
    /// Whether usage is asked for on the client's behalf.
    pub asking: Option<Asking>,
    /// How policy asks about what is sent to a tool server, if it does.
    pub addressed: Option<Addressed>,
    /// What is sent instead of a call that policy changes.
    pub rewritten: Option<Rewritten>,
}

/// The ruling on a request that `http` says `ruling` of, once its body is judged.
pub async fn judge(
    gateway: &Gateway,
    session: &mut Session,
    (plan, who, admitted): (&Plan, &Who, &Admitted),
    ruling: Ruling,
    exchange: &mut Exchange,
) -> (Ruling, Judged) {
    let calling = gateway.calls.calling(plan, who, admitted, gateway.audit.now());
    let asks_send = admitted.body != http1::Body::Length(0) && decide::asks_send(plan, who);
    let head = carries::of_bodyless(gateway, session, (plan, who, admitted));
    let addressed = gateway.tools.addressed(plan, who, admitted, &session.req_header().headers);
    note_asked(plan, who, exchange);
    if !asks_send && calling.is_none() && addressed.is_none() && head.is_none() {
        return (ruling, Judged::default());
    }
    // Boxed: most requests end above.
    let asked = (plan, who, admitted);
    Box::pin(judge_body(gateway, session, asked, ruling, exchange, (calling, addressed, head))).await
}

async fn judge_body(
    gateway: &Gateway,
    session: &mut Session,
    (plan, who, admitted): (&Plan, &Who, &Admitted),
    ruling: Ruling,
    exchange: &mut Exchange,
    (calling, addressed, head): (Option<Calling>, Option<Addressed>, Option<Vec<String>>),
) -> (Ruling, Judged) {
    let mut body = Body::of(gateway, session, (plan, who, admitted), (calling, addressed.clone()));
    if let Some(findings) = head {
        (body.said.carries, body.said.looked, body.said.complete) = (true, Look::Content, true);
        body.said.findings = findings;
    }
    let look = body.need.look();
    let continued = look != Look::Nothing && admitted.awaits_continue;
    let mut judged = Judged { continued, addressed, ..Judged::default() };
    if look != Look::Nothing
        && let Err(reason) = hold(gateway, session, judged.continued, &mut body, exchange).await
    {
        body.tell(exchange);
        // What is held of it stays until it is thrown away, and so does what it takes.
        judged.body = Some(Box::new(body));
        let is_full = matches!(reason, DropReason::ContentMemoryFull | DropReason::ContentShareFull);
        let retry_after = is_full.then_some(MEMORY_WAIT);
        return (Ruling { retry_after, ..Ruling::deny("send", reason) }.obliged_by(&ruling), judged);
    }
    body.tell(exchange);
    let said = match look {
        // It took no time.
        Look::Nothing => body.said.rule(gateway, plan, who, admitted),
        _ => match gateway.snapshots.current().and_then(|now| Ok((who.under(&now, gateway.now_s())?, now))) {
            Ok((who, now)) => {
                if now.generation != plan.generation {
                    exchange.under(&gateway.snapshots);
                }
                body.said.rule(gateway, &now, &who, admitted)
            }
            Err(reason) => Ruling::deny("send", reason),
        },
    };
    if let (Err(DropReason::ContentUnreadable), Some(why)) = (said.verdict, body.said.unknown()) {
        exchange.detail(&why);
    }
    let (action, policies) = match said.verdict {
        Ok(()) => (ruling.action, &ruling.policies[..]),
        Err(_) => (said.action, &[][..]),
    };
    let ruling = Ruling { action, ..said }.with(policies).obliged_by(&ruling);
    body.kept = ruling.duties.iter().flat_map(|duties| duties.obligations.iter().cloned()).collect();
    judged.asking = body.asking(gateway, session);
    judged.said = Some(body.said.clone());
    judged.body = (look != Look::Nothing).then(|| Box::new(body));
    (ruling, judged)
}

/// Notes what policy asks about, so that what is not told of a request is known not to have been there. Not what it has only told: a
/// body that can't be read may have been a call all the same.
fn note_asked(plan: &Plan, who: &Who, exchange: &mut Exchange) {
    let decides = |need: PayloadNeed| need.decided != Look::Nothing;
    for (action, is_asked) in [
        ("send", decide::asks_send(plan, who)),
        ("llm", decides(decide::call_need(plan, who))),
        ("tool", decides(decide::tool_need(plan, who))),
        ("receive", decide::asks_receive(plan, who).0),
    ] {
        if is_asked {
            exchange.asks(action);
        }
    }
}

/// Holds a body, up to the bound, or its end.
async fn hold(
    gateway: &Gateway,
    session: &mut Session,
    awaits_continue: bool,
    body: &mut Body,
    exchange: &mut Exchange,
) -> Result<(), DropReason> {
    if awaits_continue {
        let keepalive = session.get_keepalive();
        session.write_continue_response().await.map_err(|_| DropReason::HttpMalformed)?;
        // Pingora takes the 100 for an answer before the end of the body, and would close.
        session.set_keepalive(keepalive);
    }
    let Some(below) = hold::below(session) else { return Err(DropReason::Overloaded) };
    let bytes_max = body.hold_bytes_max(gateway);
    let began = Instant::now();
    let deadline = began + Duration::from_secs(gateway.memory.content.hold_s_max.get().into());
    let held = below.hold((bytes_max, deadline), body).await;
    exchange.waited(began.elapsed());
    if held? == Held::Whole {
        return body.finish(gateway);
    }
    if body.is_call_in_part() {
        exchange.detail(CALL_TOO_LARGE);
        return Err(DropReason::ContentUnreadable);
    }
    Ok(())
}
