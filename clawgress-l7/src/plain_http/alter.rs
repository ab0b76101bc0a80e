//! What is changed of a request before it goes on, and of its answer: fields, keys that no agent holds, calls of models, lists
//! of tools.
//!
//! Must never send a request without what policy has it sent with.

use clawgress_ebpf_common::DropReason;
use http::Version;
use http::header::SEC_WEBSOCKET_PROTOCOL as PROTOCOLS;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::rewrite::UNCHANGEABLE;
use super::tool::Listing;
use super::{Admitted, App, Context, Granted, Upgrade, content};
use crate::decide::Ruling;
use crate::exchange::Exchange;
use crate::identify::Who;
use crate::page::Client;
use crate::snapshot::Plan;

// === impl App ===

impl App {
    /// Whether a request can be sent with the keys that policy has it sent with.
    pub(super) async fn brokers(
        &self,
        ruling: &Ruling,
        plan: &Plan,
        (who, admitted): (&Who, &Admitted),
        exchange: &mut Exchange,
    ) -> Result<(), Ruling> {
        let Some(changes) = &ruling.changes else { return Ok(()) };
        if admitted.method == "TRACE" && !changes.inject.is_empty() {
            // RFC 9110 section 9.3.8: its answer is the request as it came, with the key in it.
            exchange.detail("TRACE has fields sent back: no key of a provider is sent with it");
            return Err(Ruling { verdict: Err(DropReason::ProviderKeyUnavailable), ..ruling.clone() });
        }
        for (name, injected) in &changes.inject {
            let to = (&admitted.host, admitted.scheme());
            let field = Box::pin(self.gateway.vault.field(plan, &who.identity.agent, injected, to)).await;
            let (_, version) = field.map_err(|reason| Ruling { verdict: Err(reason), ..ruling.clone() })?;
            exchange.changed(format!("`{name}` is the key `{}`, version {version}", injected.key));
        }
        if changes.without_keys(&admitted.query).is_some() {
            exchange.changed("a key of the client's own in the query stays behind".to_owned());
        }
        if admitted.upgrade == Upgrade::WebSocket
            && changes.without_key_protocols(&admitted.offers()).is_some()
        {
            exchange.changed("a key of the client's own among the offered protocols stays behind".to_owned());
        }
        Ok(())
    }

    /// Sets the fields of a request that policy sets, to what it says or to keys.
    pub(super) async fn set_fields(
        &self,
        granted: &Granted,
        request: &mut RequestHeader,
    ) -> Result<(), DropReason> {
        let Some(changes) = granted.changes() else { return Ok(()) };
        let names = request.headers.keys().filter(|name| changes.takes(name.as_str()));
        for name in names.cloned().collect::<Vec<_>>() {
            request.remove_header(&name);
        }
        let failed = |_| DropReason::ProviderKeyUnavailable;
        for (name, value) in &changes.set {
            request.insert_header(name.to_string(), &**value).map_err(failed)?;
        }
        if changes.inject.is_empty() {
            return Ok(());
        }
        let plan = self.gateway.snapshots.current()?;
        let admitted = granted.admitted();
        if let Some(query) = changes.without_keys(&admitted.query) {
            let target = request.raw_path().to_vec();
            let path = target.split(|b| *b == b'?').next().unwrap_or_default();
            let mark: &[u8] = if query.is_empty() { b"" } else { b"?" };
            request
                .set_raw_path(&[path, mark, query.as_bytes()].concat())
                .map_err(|_| DropReason::ProviderKeyUnavailable)?;
        }
        match changes.without_key_protocols(&admitted.offers()) {
            None => {}
            Some(left) if left.is_empty() => drop(request.remove_header(&PROTOCOLS)),
            Some(left) => request.insert_header(PROTOCOLS, left).map_err(failed)?,
        }
        for (name, injected) in &changes.inject {
            let agent = &granted.who().identity.agent;
            let to = (&admitted.host, admitted.scheme());
            let (value, _) = Box::pin(self.gateway.vault.field(&plan, agent, injected, to)).await?;
            request.insert_header(name.to_string(), value).map_err(failed)?;
        }
        Ok(())
    }

    /// Has what a tool server answers looked at, where there may be a list of tools in it, or a question.
    pub(super) fn lists(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        let (Some(addressed), Some(granted)) = (&context.content.addressed, &context.granted) else {
            return Ok(());
        };
        let text = |name| response.headers.get(name).and_then(|v| v.to_str().ok());
        let messages = granted.messages();
        let agent = granted.who().identity.agent.index;
        let media_type = text("content-type").unwrap_or_default();
        let of_proxy = || Client::of_proxy(false);
        let client = context.front.as_ref().map_or_else(of_proxy, |front| front.client());
        let listing = Listing::of(&self.gateway, addressed, messages, media_type, (agent, client));
        // Clients read messages in the answers to what was wrong with theirs, too.
        let is_heard = response.status.is_success() || response.status.is_client_error();
        let Some(listing) = listing.filter(|_| is_heard) else { return Ok(()) };
        let coded = |coding: &http::HeaderValue| !coding.as_bytes().eq_ignore_ascii_case(b"identity");
        let types = response.headers.get_all("content-type").iter().count();
        if types > 1 || response.headers.get_all("content-encoding").iter().any(coded) {
            context.reason = Some(DropReason::ContentUnreadable);
            return Error::e_explain(
                ErrorType::HTTPStatus(502),
                "an answer of a tool server in a coding, or of two types",
            );
        }
        context.listing = Some(Box::new(listing));
        unmeasured(session, response)
    }
}

/// Has the head of an answer that is changed say neither how long it is nor what names its bytes, or a part of them: those would be
/// others.
///
/// # Errors
/// Never for what it sets.
pub(super) fn unmeasured(session: &Session, response: &mut ResponseHeader) -> Result<()> {
    for name in ["content-length", "etag", "accept-ranges", "content-md5", "digest", "content-digest"] {
        response.remove_header(name);
    }
    if session.req_header().version == Version::HTTP_11 {
        response.insert_header("transfer-encoding", "chunked")?;
    }
    Ok(())
}

/// Changes the call of a model as its ruling has it.
pub(super) fn change(
    content: &mut content::Judged,
    ruling: Ruling,
    exchange: &mut Exchange,
) -> Result<Ruling, Ruling> {
    if content.asking.is_some() {
        exchange.changed("llm: `stream_options` asks for usage".to_owned());
    }
    let Some(changes) = ruling.changes.as_ref().filter(|changes| !changes.body.is_empty()) else {
        return Ok(ruling);
    };
    let body = content.body.as_mut().ok_or_else(|| "it has no body that is read".to_owned());
    match body.and_then(|body| body.rewritten(&changes.body)) {
        Ok(mut rewritten) => {
            if let Some(asking) = &mut content.asking
                && !rewritten.told.is_empty()
                && let Err(why) = rewritten.asks(asking)
            {
                exchange.detail(&format!("{UNCHANGEABLE}: {why}"));
                return Err(Ruling { action: "llm", verdict: Err(DropReason::ContentUnreadable), ..ruling });
            }
            rewritten.told.iter().for_each(|told| exchange.changed(format!("llm: {told}")));
            content.rewritten = (!rewritten.told.is_empty()).then_some(rewritten);
            Ok(ruling)
        }
        Err(why) => {
            exchange.detail(&format!("{UNCHANGEABLE}: {why}"));
            Err(Ruling { action: "llm", verdict: Err(DropReason::ContentUnreadable), ..ruling })
        }
    }
}
