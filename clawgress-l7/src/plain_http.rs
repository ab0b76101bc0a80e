//! Plain HTTP: each request judged on method, canonical host and path, then proxied by Pingora.
//!
//! Pingora never sees a byte that the [`Gate`] has not framed and rewritten. Must never send a request
//! whose decision was not recorded first.

use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::llm::answer::Counted;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode, Version};
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, Session, http_proxy};
use tokio::task::coop;
use tokio::time::Instant;

use crate::decide::Ruling;
use crate::enforce::enforce;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::page::Client;
use crate::{limit, page};

mod admit;
mod alarm;
mod alter;
mod answered;
mod came;
mod coming;
mod content;
mod context;
mod conversation;
mod credential;
mod duties;
mod fields;
mod front;
mod gate;
mod granted;
mod hold;
mod interim;
mod judge;
mod last_word;
mod model;
mod outgoing;
mod pace;
mod peer;
mod realtime;
mod receive;
mod renaming;
pub mod requests;
mod respond;
mod rewrite;
mod said;
pub mod tool;
mod web_socket;
mod withheld;

pub use admit::{Admitted, Place, Upgrade, admit};
use alter::change;
use coming::Coming;
pub use content::{Body, LOOK_BYTES};
pub use context::Context;
pub use fields::is_large;
use fields::keep_secret;
pub use front::Front;
pub use gate::Gate;
pub use granted::Granted;
use granted::rule;
pub use hold::{Held, Source};
pub use model::Calls;
use pace::Pace;
pub use pace::Taking;
use receive::Back;
pub use respond::is_stranger;
use respond::{
    Answered, has_ended, is_late, is_of_attempt, is_of_parent, is_untrusted, respond, reusable,
    status_answered, switch, takes_json,
};
pub use said::bodyless;
use tool::Addressed;
pub use tool::Tools;

/// An origin must not be able to ask for the credential of this hop, to speak in the gateway's name, or to send the client
/// round it (RFC 7838).
const OF_HOP: [&str; 4] = ["proxy-authenticate", "proxy-authentication-info", "proxy-connection", "alt-svc"];

/// Pingora's proxy with our application.
pub type Proxy = HttpProxy<App>;

/// The application: the decisions of plain HTTP.
#[derive(Debug)]
pub struct App {
    gateway: Arc<Gateway>,
    groups: RandomState,
}

/// The proxy, for a runtime of `threads` threads.
#[must_use]
pub fn proxy(gateway: &Arc<Gateway>, threads: Option<usize>) -> Arc<Proxy> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or_else(cores).max(1);
    let conf = ServerConf {
        threads,
        // Pingora keeps so many for each thread.
        upstream_keepalive_pool_size: limit::UPSTREAM_POOL.div_ceil(threads),
        // One try an address, and one more for a pooled connection that died.
        max_retries: limit::DIALS_MAX + 1,
        ..ServerConf::default()
    };
    Arc::new(http_proxy(&Arc::new(conf), App { gateway: Arc::clone(gateway), groups: RandomState::new() }))
}

// === impl App ===

impl App {
    /// Does what a ruling on a request obliges to. A client may leave while that waits, and the record tells of it all the same.
    async fn enforce(&self, ruling: Ruling, front: &Front, exchange: &mut Exchange) -> Ruling {
        exchange.obliged(&ruling);
        front.stay(ruling.quarantines());
        exchange.keep_pace(&ruling).await;
        enforce(&self.gateway, ruling, exchange.id()).await
    }

    /// What a request that was granted ends with, since it is denied by now.
    fn no_longer(&self, exchange: &mut Exchange, denied: Ruling) -> Box<Error> {
        let status = ErrorType::HTTPStatus(page::status(denied.reason()));
        if !exchange.is_decided() {
            exchange.under(&self.gateway.snapshots);
            exchange.deny(denied);
        }
        Error::explain(status, "no longer allowed")
    }

    /// Whether what streams may go on, in either direction.
    fn still_allowed(&self, context: &mut Context) -> Result<()> {
        let Some(granted) = &context.granted else { return Ok(()) };
        granted.judge_again(&self.gateway).map(drop).map_err(|denied| {
            let reason = denied.reason();
            context.reason = Some(reason);
            // As if the client had left: of anything else Pingora would wait for the answer of an upstream of HTTP/2.
            Error::explain(ErrorType::HTTPStatus(page::status(reason)), "no longer allowed").into_down()
        })
    }
}

#[async_trait]
impl ProxyHttp for App {
    // Boxed: Pingora's futures, which idle connections keep, would hold it several times.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Box<Context> {
        Box::default()
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Box<Context>) -> Result<bool> {
        let Some(front) = Front::of(session) else {
            return Error::e_explain(ErrorType::InternalError, "a session without its connection");
        };
        let keepalive = session.get_keepalive().map(|_| limit::KEEPALIVE_S);
        session.set_keepalive(keepalive);
        session.set_read_timeout(Some(limit::BODY_READ));
        session.set_write_timeout(Some(limit::CLIENT_WRITE));
        session.set_total_drain_timeout(Some(limit::DRAIN_BODY));
        let exchange = Exchange::new(&self.gateway, &front.connection);
        context.gateway = Some(Arc::clone(&self.gateway));
        let (front, exchange) = (context.front.insert(front), context.exchange.insert(exchange));
        let awaits_continue = front.awaits_continue();
        let judged = self.judge(session, (front, exchange), &mut context.content).await;
        let awaits_continue = awaits_continue && !context.content.continued;
        match judged {
            Ok(granted) => {
                let is_told = session.req_header().headers.contains_key(CONTENT_LENGTH);
                context.pace = is_told.then(|| Pace::new(Instant::now()));
                let is_judged = context.content.body.as_ref().is_some_and(|body| body.decides());
                let patience = pace::patience(granted.opens_web_socket(), is_told, is_judged);
                session.set_read_timeout(Some(patience));
                let granted = Arc::new(granted);
                front.serve(Arc::clone(&granted));
                context.granted = Some(granted);
                if awaits_continue {
                    session.write_continue_response().await.map_err(Error::into_down)?;
                    // Pingora takes the 100 for an answer before the end of the body, and would close.
                    session.set_keepalive(keepalive);
                }
                Ok(false)
            }
            Err(ruling) => {
                let reason = ruling.verdict.err().unwrap_or(DropReason::PolicyDenied);
                context.reason = Some(reason);
                let retry_after = ruling.retry_after;
                exchange.deny(ruling);
                let messages = context.content.said.as_ref().and_then(|said| said.messages());
                if is_stranger(reason) {
                    front.denies_nobody();
                }
                // A client that was told no instead of 100 may send its body or not. One that took its request back has left
                // the connection sound.
                let reusable =
                    reusable(reason) && !awaits_continue && (!is_stranger(reason) || front.stranger());
                if !reusable && !front.has_left() {
                    front.ending().cancel();
                }
                let takes_json = takes_json(session);
                let denial = messages.and_then(|messages| {
                    let message = page::message(front.client(), reason, exchange.id());
                    // Within its own protocol it is an answer like any other.
                    Some((200, messages.denial(takes_json, reason.name(), &message, exchange.id())?))
                });
                let mismatch =
                    context.content.body.as_ref().and_then(|body| body.mismatch()).filter(|_| takes_json);
                let mismatch = mismatch.map(|mismatch| (400, mismatch.denial(reason.name(), exchange.id())));
                let denial = denial.or(mismatch);
                let answer = Answered { reusable, retry_after, denial };
                let answered = respond(session, exchange.denial(reason), front.client(), answer);
                Box::pin(answered).await.map_err(Error::into_down)?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        context: &mut Box<Context>,
    ) -> Result<Box<HttpPeer>> {
        let context = &mut **context;
        // A body and a limit took time, perhaps: whoever may not by now doesn't have a server dialled.
        if let (Some(granted), Some(exchange)) = (&context.granted, &mut context.exchange) {
            let informed = granted.inform(&self.gateway).await;
            let informed = informed.map_err(|reason| Box::new(Ruling::deny("http", reason)));
            if let Err(denied) = informed.and_then(|()| granted.judge_again(&self.gateway)) {
                context.reason = Some(denied.reason());
                return Err(self.no_longer(exchange, *denied));
            }
        }
        peer::of(&self.gateway, &self.groups, context)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Box<Context>,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // What the last attempt failed of counts.
        context.reason = match &error {
            error if is_untrusted(error) => Some(DropReason::UpstreamUntrusted),
            error if is_of_parent(error) => Some(DropReason::ParentFailed),
            _ => context.reason.filter(|reason| !is_of_attempt(*reason)),
        };
        // Of a connection that others had, and that has ended meanwhile, nothing says that its address is no good.
        let is_next = || context.granted.as_ref().is_some_and(|granted| granted.try_next());
        error.set_retry(has_ended(&error) || is_next());
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        _context: &mut Box<Context>,
        client_reused: bool,
    ) -> Box<Error> {
        let is_idempotent = session.req_header().method.is_idempotent();
        if !is_idempotent || session.as_ref().retry_buffer_truncated() || status_answered(session).is_some() {
            error.set_retry(false);
        } else if client_reused && has_ended(&error) {
            // By the doing of another stream, perhaps: RFC 9110 section 9.2.2 lets it be asked again.
            error.set_retry(true);
        } else {
            error.retry.decide_reuse(client_reused);
        }
        error
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        is_reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&pingora_core::protocols::Digest>,
        context: &mut Box<Context>,
    ) -> Result<()> {
        // One that was kept has a place of its own.
        context.taken.take().filter(|_| is_reused).iter().for_each(|taken| taken.give_back());
        // INVARIANT: the decision is queued before the first byte goes on.
        let (Some(exchange), Some(granted)) = (&mut context.exchange, &context.granted) else {
            return Error::e_explain(ErrorType::InternalError, "a request that nobody granted");
        };
        if context.front.as_ref().is_some_and(|front| front.is_over()) {
            return Err(Error::explain(ErrorType::ConnectionClosed, "it was cut").into_down());
        }
        // Another address's may have been no proof.
        context.reason = context.reason.filter(|reason| !is_of_attempt(*reason));
        // Of a retry too, which may go to another address.
        granted.way().into_iter().for_each(|way| exchange.way(way));
        // Keys, names and dialling took time: what counts is what is in force now.
        let informed = granted.inform(&self.gateway).await;
        let informed = informed.map_err(|reason| Box::new(Ruling::deny("http", reason)));
        if let Err(denied) = informed.and_then(|()| granted.judge_again(&self.gateway)) {
            context.reason = Some(denied.reason());
            return Err(self.no_longer(exchange, *denied));
        }
        context.content.body.iter_mut().for_each(|body| body.attempt());
        context.opening.iter().for_each(|opening| opening.begin());
        if exchange.is_decided() {
            return Ok(());
        }
        if let Err(reason) = exchange.allow(&granted.ruling()) {
            context.reason = Some(reason);
            return Err(Error::explain(ErrorType::HTTPStatus(page::status(reason)), "not recorded"));
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Box<Context>,
    ) -> Result<()> {
        let Some(granted) = &context.granted else { return Ok(()) };
        granted.spoken(&self.gateway, request.version == Version::HTTP_2);
        if request.version == Version::HTTP_2 && granted.admitted().takes_trailers {
            // Of this hop, and asked for by servers of gRPC, whose status is a trailer.
            request.insert_header("te", "trailers")?;
        }
        if let Some(rewritten) = &mut context.content.rewritten {
            rewritten.head(request)?;
        }
        if let Some(asking) = &mut context.content.asking {
            asking.head(request)?;
        } else if receive::wants_plain(&self.gateway, granted, request) {
            request.insert_header("accept-encoding", "identity")?;
        }
        receive::ask_for_whole(&self.gateway, granted, request);
        if granted.reads().any() {
            // What an extension makes of frames is not read (RFC 6455 section 9).
            request.remove_header("sec-websocket-extensions");
        }
        let is_heard = |addressed: &Addressed| addressed.is_meant() || addressed.is_heard();
        if context.content.addressed.as_ref().is_some_and(is_heard) || granted.messages().is_some() {
            // What comes back may be a list, of which an agent gets to see a part; or ask something.
            request.insert_header("accept-encoding", "identity")?;
        }
        if let Err(reason) = self.set_fields(granted, request).await {
            context.reason = Some(reason);
            return Err(Error::explain(ErrorType::HTTPStatus(page::status(reason)), "a key is not there"));
        }
        if request.version == Version::HTTP_2 { keep_secret(request) } else { Ok(()) }
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Box<Context>,
    ) -> Result<()> {
        self.still_allowed(context)?;
        if end {
            context.opening.iter().for_each(|opening| opening.end());
        }
        if context.conversation.is_some() {
            return Box::pin(self.send_messages(session, body, end, context)).await;
        }
        if let (Some(pace), Some(piece), false) = (&mut context.pace, body.as_ref(), end)
            && !pace.keeps(Instant::now(), piece.len())
        {
            context.reason = Some(DropReason::Timeout);
            let status = ErrorType::HTTPStatus(page::status(DropReason::Timeout));
            return Err(Error::explain(status, "the body comes too slowly").into_down());
        }
        let (Some(granted), Some(exchange)) = (&context.granted, &mut context.exchange) else {
            return Ok(());
        };
        if let Some(content) = &mut context.content.body {
            let passed = content.pass(&self.gateway, granted, exchange, (body, end));
            if let Err(reason) = Box::pin(passed).await {
                context.reason = Some(reason);
                // The upstream's connection ends in the middle of the message.
                let status = ErrorType::HTTPStatus(page::status(reason));
                // As if the client had left, for an upstream of HTTP/2 to be told that this is not all.
                return Err(Error::explain(status, "the body may not go on").into_down());
            }
        }
        if let Some(rewritten) = &mut context.content.rewritten {
            rewritten.body(body, end);
        }
        if let Some(asking) = &mut context.content.asking {
            asking.body(body, end);
        }
        if end {
            granted.sent();
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Box<Context>,
    ) -> Result<()> {
        if is_large(&response.headers) {
            context.reason = Some(DropReason::UpstreamFailed);
            return Error::e_explain(ErrorType::HTTPStatus(502), "a head that is too large");
        }
        if fields::is_recoded(&response.headers) {
            context.reason = Some(DropReason::UpstreamFailed);
            return Error::e_explain(
                ErrorType::HTTPStatus(502),
                "a coding of the transfer besides `chunked`",
            );
        }
        // One look at each, and most answers have none.
        let is_ours = |name: &http::HeaderName| {
            OF_HOP.contains(&name.as_str()) || page::FIELDS.contains(&name.as_str())
        };
        let ours: Vec<_> = response.headers.keys().filter(|name| is_ours(name)).cloned().collect();
        for name in &ours {
            response.remove_header(name);
        }
        if context.front.as_ref().is_some_and(|front| front.is_endpoint()) {
            // All endpoints are one origin to a client: what one server sets, another would get.
            response.remove_header("set-cookie");
        }
        if context.granted.as_ref().is_some_and(|granted| !granted.admitted().takes_chunks) {
            // RFC 9112 section 6.1: what has no length ends with the connection.
            response.remove_header(&http::header::TRANSFER_ENCODING);
        }
        let is_switch = response.status == StatusCode::SWITCHING_PROTOCOLS;
        if response.status.is_informational() && !is_switch {
            self.inform(session, response, context);
            return Ok(());
        }
        context.status = Some(response.status.as_u16());
        if is_switch {
            return switch(session, response, context);
        }
        self.renames(session, response, context)?;
        self.answered(session, response, context)?;
        let text = |name| response.headers.get(name).and_then(|v| v.to_str().ok());
        let granted = context.granted.as_ref();
        let (is_read, is_model) = context.back.as_ref().map_or((false, false), Back::reads);
        let answers = |granted: &Granted| {
            let plan = self.gateway.snapshots.current();
            plan.is_ok_and(|plan| self.gateway.calls.answers(&plan, granted.who(), granted.admitted()))
        };
        let of_call = |granted: &Arc<Granted>| granted.call().is_some() || answers(granted);
        let is_call = is_read || granted.is_some_and(of_call);
        // What has a length can't become shorter.
        let is_edited = context.content.asking.is_some() && text("content-length").is_none();
        let agent = granted.map_or(0, |granted| granted.who().identity.agent.index);
        let said = (text("content-type").unwrap_or_default(), coming::coding_of(&response.headers));
        let memory = (&self.gateway.memory, agent);
        let answer = if is_model {
            Coming::of_model(said, memory, is_edited)
        } else {
            Coming::of(said, memory, is_call, is_edited)
        };
        let follows = context.back.as_ref().and_then(Back::follows);
        let answer = answer.map(|answer| answer.counted_by(Counted::of(Counted::FIELDS.map(text))));
        let answer = answer.map(|answer| if is_read { answer.keeping_texts() } else { answer });
        context.answer = answer.map(|answer| match follows {
            Some(follows) => answer.following_calls(follows),
            None => answer,
        });
        self.lists(session, response, context)
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        context: &mut Box<Context>,
    ) -> Result<Option<Bytes>> {
        context.answer.iter_mut().for_each(Coming::ends);
        // As of its head.
        for name in OF_HOP.into_iter().chain(page::FIELDS).chain(["set-cookie"]) {
            trailers.remove(name);
        }
        if context.back.as_ref().is_some_and(Back::strips_trailers) {
            fields::keep_status(trailers);
        }
        let rest = if is_large(trailers) {
            context.reason = Some(DropReason::UpstreamFailed);
            None
        } else {
            self.pass_end(context)
        };
        if context.reason.is_some() {
            // What this returned as an error would be told in a log, and the end would go on as that of a whole answer.
            context.front.iter().for_each(|front| front.shut());
        } else if let (Some(front), Some(_)) = (&context.front, &rest) {
            // In place of trailers Pingora has this go, as the end.
            front.trails(std::mem::take(trailers));
        }
        Ok(rest)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Box<Context>,
    ) -> Result<Option<Duration>> {
        self.still_allowed(context)?;
        if context.conversation.is_some() {
            self.receive_messages(body, end, context)?;
            // Of what came besides, Pingora would have all judged before it waits for anything: where much was, others run first.
            return Ok((!coop::has_budget_remaining()).then_some(Duration::ZERO));
        }
        self.rename(body, end, context)?;
        let bytes = body.as_deref().unwrap_or_default();
        let ended = context.answer.as_mut().map(|answer| answer.read(bytes, end));
        if ended == Some(None) {
            // What it cost so far is told.
            context.partial = context.answer.take().map(Coming::finish);
        }
        self.pass_back(body, end, ended.flatten().unwrap_or_default(), context).map_err(|reason| {
            context.reason = Some(reason);
            // As above.
            Error::explain(ErrorType::HTTPStatus(page::status(reason)), "the answer may not go on")
                .into_down()
        })?;
        if let (Some(listing), Some(granted), Some(exchange)) =
            (&mut context.listing, &context.granted, &mut context.exchange)
            && let Err(reason) = listing.push((granted, exchange), body, end)
        {
            context.reason = Some(reason);
            return Err(Error::explain(
                ErrorType::HTTPStatus(502),
                "an answer of a tool server that can't be read",
            ));
        }
        if let Some(answer) = &mut context.answer {
            answer.edit(body, end);
        }
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Box<Context>,
    ) -> FailToProxy {
        let violation = context.front.as_ref().and_then(|f| f.violation());
        let gone = matches!(
            error.etype(),
            ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed
        );
        let reason = context.reason.or(violation).or(match error.esource() {
            ErrorSource::Downstream if is_late(error) => Some(DropReason::Timeout),
            // The client left: nobody is there to be told, and nothing failed.
            ErrorSource::Downstream if gone => None,
            ErrorSource::Downstream => Some(DropReason::HttpMalformed),
            _ => Some(DropReason::UpstreamFailed),
        });
        context.reason = reason;
        let mut error_code = self.replace_withheld(session, context, true).await.unwrap_or_default();
        if let (0, Some(word)) = (error_code, self.last_word(session, context)) {
            // A client that does not take it has left.
            let write = session.write_response_body(Some(word), false);
            let _ = tokio::time::timeout(limit::CLIENT_WRITE, write).await;
        }
        if let (Some(reason), Some(exchange), None) = (reason, &context.exchange, status_answered(session)) {
            let of_proxy = || Client::of_proxy(false);
            let client = context.front.as_ref().map_or_else(of_proxy, |front| front.client());
            error_code = page::status_as(client, reason);
            let answer = respond(session, exchange.denial(reason), client, Answered::default());
            let _ = Box::pin(answer).await;
        }
        if error_code != 0 && !session.is_http2() {
            // Pingora closes at once, on what the client still sends: a reset, which the answer could be lost to.
            Box::pin(session.shutdown()).await;
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Box<Context>) {
        if error.is_none() {
            self.settle(session, context).await;
        }
        context.conclude(context.replaced.or(status_answered(session).map(|status| status.as_u16())));
    }

    fn suppress_error_log(&self, _session: &Session, _context: &Self::CTX, _error: &Error) -> bool {
        // The audit record tells it, without the client's bytes.
        true
    }
}
