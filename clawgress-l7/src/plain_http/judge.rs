//! A request judged in every respect: who asks, what `http` says, where it goes, and what is in its body; last what it is obliged to.

use std::sync::Arc;

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::http1;
use clawgress_policy::TunnelProtocol;
use pingora_proxy::Session;

use super::{Admitted, App, Front, Granted, Place, Upgrade, change, content, granted, rule};
use crate::decide::{self, Ruling};
use crate::dial;
use crate::exchange::Exchange;
use crate::identify::{self, Who};
use crate::snapshot::Plan;

/// Why a request is refused that has a sound form.
const UNCLEAR: &str =
    "policy asks for a header field or a parameter of the query that comes twice or can't be read";
/// Why one is whose path has an encoded slash.
const AMBIGUOUS: &str = "what the path asks for is one call, or another where `%2F` is taken for a slash";

// === impl App ===

impl App {
    /// Finds out what is asked, and by whom.
    async fn recognise(
        &self,
        front: &Front,
        exchange: &mut Exchange,
    ) -> Result<(Admitted, Who, Arc<Plan>), Ruling> {
        let gateway = &self.gateway;
        let deny = |reason| Ruling::deny("http", reason);
        front.note_read(exchange);
        let mut admitted = front.take().map_err(deny)?;
        front.serves_endpoint(admitted.upstream.is_some());
        exchange.host(&admitted.host, admitted.port);
        exchange.request(&admitted.method, &admitted.path);
        exchange.has_body(&admitted.method, admitted.body != http1::Body::Length(0));
        exchange.scheme(admitted.scheme());
        if admitted.upgrade == Upgrade::WebSocket {
            exchange.carries(TunnelProtocol::WebSocket);
        }
        let plan = gateway.snapshots.current().map_err(deny)?;
        let who = match &front.place {
            Place::Tunnel { who, .. } => {
                front.presents(who.has_presented());
                who.under(&plan, gateway.now_s()).map_err(deny)?
            }
            Place::Read(opened) => opened.who.under(&plan, gateway.now_s()).map_err(deny)?,
            Place::Explicit { .. } | Place::Transparent { .. } => {
                let bound = front.bound(&plan).map_err(deny)?;
                let credential = admitted.credential.take();
                let credential = credential.as_ref().map(|c| c.as_slice());
                let has_presented = credential.is_some() || front.connection.certificate.is_some();
                front.presents(has_presented);
                // Whose source it is, also where that is not who it turns out to be.
                if let (Some(bound), true) = (&bound, has_presented) {
                    exchange.agent(bound, &plan);
                }
                let who = identify::identify(gateway, &plan, &front.connection, bound, credential).await;
                who.map_err(|stranger| deny(exchange.stranger(*stranger)))?
            }
        };
        // Of each request in a tunnel anew, and recorded as what it is judged by.
        let who = who.later();
        front.identified();
        exchange.agent(&who, &plan);
        if plan.asks_head(&who.identity.agent) {
            exchange.said(admitted.said());
        }
        exchange.occupy(gateway, &who).map_err(deny)?;
        let may_be_two = admitted.path.contains("%2F");
        if may_be_two && (gateway.calls.is_ambiguous(&admitted) || gateway.tools.is_ambiguous(&admitted)) {
            exchange.detail(AMBIGUOUS);
            return Err(deny(DropReason::HttpMalformed));
        }
        let need = granted::needs_history(&plan, &who, &admitted);
        gateway.histories.inform(need, &who, &admitted.host).await.map_err(deny)?;
        Ok((admitted, who, plan))
    }

    /// Judges a request in every respect.
    pub(super) async fn judge(
        &self,
        session: &mut Session,
        (front, exchange): (&Front, &mut Exchange),
        content: &mut content::Judged,
    ) -> Result<Granted, Ruling> {
        let gateway = &self.gateway;
        let (admitted, who, plan) = self.recognise(front, exchange).await?;
        let (mut ruling, reads) = rule(gateway, &plan, &who, &admitted);
        if ruling.verdict.is_ok() && admitted.upgrade == Upgrade::Other {
            // After policy, whose denials and obligations count for this as for any other request.
            ruling = Ruling::deny("http", DropReason::UpgradeUnsupported).obliged_by(&ruling);
        }
        if ruling.verdict.is_err() {
            if ruling.verdict == Err(DropReason::HttpMalformed) {
                exchange.detail(UNCLEAR);
            }
            return Err(self.enforce(ruling, front, exchange).await);
        }
        exchange.obliged(&ruling);
        front.stay(ruling.quarantines());
        let (to, mut noted) = ((&admitted.host, admitted.port), Vec::new());
        let ways = gateway.ways(who.identity.agent.index, to, &mut noted).await;
        exchange.names(&noted);
        let ways = match ways {
            Ok(ways) => ways,
            // Asked for all the same.
            Err(reason) => {
                let refused = Ruling::deny("connect", reason).obliged_by(&ruling);
                return Err(self.enforce(refused, front, exchange).await);
            }
        };
        let (to, steered_to) = ((&ways[..], admitted.port), front.connection.steered_to());
        match decide::connect(&plan, &who.identity.agent, &gateway.own, to, steered_to) {
            Ok(reach) => {
                let ways = dial::order(&reach.ways, steered_to.map(|to| to.ip()), false);
                let asked = (&*plan, &who, &admitted);
                // What is found in a body has its consequences.
                front.stay(true);
                let ruling = content::judge(gateway, session, asked, ruling, exchange);
                let (ruling, judged) = ruling.await;
                *content = judged;
                // Last, so that nothing is spent on what is denied.
                let ruling = self.enforce(ruling, front, exchange).await;
                if ruling.verdict.is_err() {
                    return Err(ruling);
                }
                let ruling = change(content, ruling, exchange)?;
                self.brokers(&ruling, &plan, (&who, &admitted), exchange).await?;
                let (ways, generation) = ((ways, reach.by_way), plan.generation);
                let granted = Granted::new(admitted, who, ways, steered_to, ruling, generation);
                granted.will_read(reads);
                content.said.take().into_iter().for_each(|said| granted.says(said));
                Ok(granted)
            }
            Err(refused) => {
                exchange.refused(&refused);
                Err(self.enforce(refused.ruling.obliged_by(&ruling), front, exchange).await)
            }
        }
    }
}
