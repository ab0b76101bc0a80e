//! Answers to calls whose tools the model knows by other names, as their client gets to see them: by its own.
//!
//! INVARIANT: what policy is asked of an answer, and what its record tells, has the client's names.

use bytes::Bytes;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::llm::answer::Format;
use clawgress_inspect::llm::rename::Renamer;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::alter::unmeasured;
use super::coming::coding_of;
use super::{App, Context};
use crate::decide::Ruling;
use crate::memory::Charge;
use crate::page;

/// An answer that is changed back.
#[derive(Debug)]
pub struct Renaming {
    renamer: Renamer,
    charge: Charge,
}

// === impl Renaming ===

impl Renaming {
    /// Whether any name was changed.
    pub fn is_changed(&self) -> bool {
        self.renamer.is_changed()
    }

    /// Takes what comes next, and leaves what goes on.
    ///
    /// # Errors
    /// Why it must not go on, and that in words.
    fn push(&mut self, body: &mut Option<Bytes>, end: bool) -> Result<(), (DropReason, Option<String>)> {
        let unreadable = |why| (DropReason::ContentUnreadable, Some(format!("{NOT_BACK}: {why}")));
        let bytes = body.take().unwrap_or_default();
        let out = self.renamer.push(&bytes, end).map_err(|why| unreadable(why.to_string()))?;
        // What it is changed to takes about as much again.
        self.charge.set(self.renamer.memory_bytes() * 2).map_err(|reason| (reason, None))?;
        // Pingora takes none at all for the end, and sends nothing of one that is empty.
        *body = (!end || !out.is_empty()).then(|| Bytes::from(out));
        Ok(())
    }
}

// === impl App ===

impl App {
    /// Has an answer changed back, where the call that it answers was given other names.
    pub(super) fn renames(
        &self,
        session: &Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        let rewritten = context.content.rewritten.as_ref();
        let (Some(renamed), Some(granted)) =
            (rewritten.and_then(|rewritten| rewritten.renamed()), &context.granted)
        else {
            return Ok(());
        };
        let text = |name| response.headers.get(name).and_then(|v| v.to_str().ok());
        let types = response.headers.get_all("content-type").iter().count();
        let format = Format::of(text("content-type").unwrap_or_default()).filter(|_| types == 1);
        let memory = &self.gateway.memory;
        let bytes_max = usize::try_from(memory.content.hold_bytes_max.get()).unwrap_or(usize::MAX);
        let renamer = format.and_then(|format| Renamer::new(renamed.clone(), format, bytes_max));
        let is_coded = coding_of(&response.headers).is_some();
        let Some(renamer) = renamer.filter(|_| !is_coded) else {
            if !response.status.is_success() {
                // A page: clients look for what a model asks in what succeeds.
                return Ok(());
            }
            let why = (DropReason::ContentUnreadable, Some(format!("{NOT_BACK}: {FORM}")));
            return Err(stop(context, why));
        };
        let charge = memory.charge(granted.who().identity.agent.index);
        context.renaming = Some(Box::new(Renaming { renamer, charge }));
        unmeasured(session, response)
    }

    /// Changes back what comes next of an answer.
    pub(super) fn rename(&self, body: &mut Option<Bytes>, end: bool, context: &mut Context) -> Result<()> {
        let Some(renaming) = &mut context.renaming else { return Ok(()) };
        renaming.push(body, end).map_err(|why| stop(context, why))
    }
}

/// Notes why an answer does not go on.
fn stop(context: &mut Context, (reason, detail): (DropReason, Option<String>)) -> Box<Error> {
    context.reason = Some(reason);
    if let Some(exchange) = &mut context.exchange {
        exchange.stopped(&Ruling::deny("llm", reason));
        detail.iter().for_each(|detail| exchange.detail(detail));
    }
    Error::explain(ErrorType::HTTPStatus(page::status(reason)), "the answer may not go on").into_down()
}

/// What is said of an answer that can't be changed back.
const NOT_BACK: &str = "policy renames tools of this call, and the answer can't be changed back";
/// Why.
const FORM: &str = "it is coded, or of no type that is read";
