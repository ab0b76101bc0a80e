//! What the application does with an answer that policy asks about: has it judged, and tells its client where it may not go on. Must
//! never let a head go that waits for what is in it.

use bytes::Bytes;
use clawgress_ebpf_common::DropReason;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::hold::{self, Below};
use super::receive::Back;
use super::respond::{Answered, page_as_bytes, respond, status_answered};
use super::{App, Context, last_word};
use crate::{limit, page};

// === impl App ===

impl App {
    /// Asks policy about the head of an answer.
    pub(super) fn answered(
        &self,
        session: &Session,
        response: &ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        let (Some(granted), Some(exchange)) = (&context.granted, &mut context.exchange) else {
            return Ok(());
        };
        let back = Back::of(&self.gateway, granted, (session.req_header(), response));
        let begun = back.and_then(|back| {
            let Some(mut back) = back else {
                granted.answers(None);
                return Ok(());
            };
            let begun = back.begin(&self.gateway, granted, exchange);
            if back.is_withheld() {
                context.front.iter().for_each(|front| front.withheld().begin());
            }
            context.back = Some(back);
            begun
        });
        begun.map_err(|reason| {
            context.reason = Some(reason);
            Error::explain(ErrorType::HTTPStatus(page::status(reason)), "the answer may not go on")
                .into_down()
        })
    }

    /// Has what comes next of an answer judged, where policy asks about it.
    pub(super) fn pass_back(
        &self,
        body: &mut Option<Bytes>,
        end: bool,
        ended: usize,
        context: &mut Context,
    ) -> Result<(), DropReason> {
        let (Some(granted), Some(exchange)) = (&context.granted, &mut context.exchange) else {
            return Ok(());
        };
        let Some(back) = &mut context.back else { return Ok(()) };
        let answer = context.answer.as_mut();
        back.pass(&self.gateway, (granted, exchange), (body, end), (answer, ended))?;
        if let Some(front) = context.front.as_ref().filter(|_| !back.is_withheld()) {
            front.withheld().release();
        }
        Ok(())
    }

    /// Has an answer judged whose end is its trailers, and gives what of it had to wait for that.
    pub(super) fn pass_end(&self, context: &mut Context) -> Option<Bytes> {
        let mut rest = None;
        // It notes why.
        self.rename(&mut rest, true, context).ok()?;
        let mut passed = self.pass_back(&mut rest, true, 0, context);
        if let (Ok(()), Some(listing), Some(granted), Some(exchange)) =
            (&passed, &mut context.listing, &context.granted, &mut context.exchange)
        {
            passed = listing.push((granted, exchange), &mut rest, true);
        }
        if let (Ok(()), Some(answer)) = (&passed, &mut context.answer) {
            answer.edit(&mut rest, true);
        }
        match passed {
            Ok(()) => rest.filter(|rest| !rest.is_empty()),
            Err(reason) => {
                context.reason = Some(reason);
                None
            }
        }
    }

    /// Has a page go in place of a head that waits; its status, if one does.
    pub(super) async fn replace_withheld(
        &self,
        session: &mut Session,
        context: &mut Context,
        is_last: bool,
    ) -> Option<u16> {
        let front = context.front.as_ref().filter(|front| front.withheld().is_waiting())?;
        let (Some(reason), Some(exchange), Some(_)) =
            (context.reason, &context.exchange, status_answered(session))
        else {
            // Nothing was written yet, so that it is answered as any other.
            front.withheld().release();
            return None;
        };
        let form = page::form(&session.req_header().headers);
        let page = page_as_bytes(front.client(), exchange.denial(reason), form, is_last);
        let Some(Below::Gate(gate)) = hold::below(session) else { return None };
        context.replaced = Some(page::status_as(front.client(), reason));
        // A client that does not take it has left.
        let _ = tokio::time::timeout(limit::CLIENT_WRITE, gate.answer(&page)).await;
        context.replaced
    }

    /// What a client is told within a model's stream that is cut, if what comes next of it may not go on.
    pub(super) fn last_word(&self, session: &Session, context: &Context) -> Option<Bytes> {
        let format = context.back.as_ref().and_then(Back::cut)?;
        let (reason, front) = (context.reason?, context.front.as_ref()?);
        let surface = self.gateway.calls.surface(context.granted.as_ref()?.admitted())?;
        // What has a length can't become longer.
        session.response_written().filter(|head| !head.headers.contains_key("content-length"))?;
        let message = page::message(front.client(), reason, context.exchange.as_ref()?.id());
        last_word::of(surface, format, (reason.name(), &message)).map(Bytes::from)
    }

    /// Judges an answer that turned out to have no body.
    pub(super) async fn settle(&self, session: &mut Session, context: &mut Context) {
        if context.back.as_ref().is_some_and(Back::is_withheld) {
            Box::pin(self.settle_withheld(session, context)).await;
        }
    }

    async fn settle_withheld(&self, session: &mut Session, context: &mut Context) {
        let Err(reason) = self.pass_back(&mut None, true, 0, context) else { return };
        context.reason = Some(reason);
        if self.replace_withheld(session, context, false).await.is_some() {
            return;
        }
        if let (Some(exchange), Some(front)) = (&context.exchange, &context.front) {
            let answer = Answered { reusable: true, ..Answered::default() };
            let _ = respond(session, exchange.denial(reason), front.client(), answer).await;
        }
    }
}
