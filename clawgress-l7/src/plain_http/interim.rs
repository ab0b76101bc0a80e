//! What a server says before its answer (RFC 9110 section 15.2). Must never go on without a bound, nor where policy asks about
//! answers: nobody looks at it.

use http::{StatusCode, Version};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::{App, Context};
use crate::{decide, limit};

// === impl App ===

impl App {
    /// Sees to an interim answer: whether it goes on.
    pub(super) fn inform(&self, session: &mut Session, response: &mut ResponseHeader, context: &mut Context) {
        context.interims = context.interims.saturating_add(1);
        // RFC 9110 section 15.2: clients of HTTP/1.0 know none.
        let is_known = session.req_header().version >= Version::HTTP_11;
        if is_known && context.interims <= limit::INTERIMS_MAX && !self.asks_answers(context) {
            return;
        }
        // A 100 Pingora lets go to whoever asked for one.
        let _ = response.set_status(StatusCode::EARLY_HINTS);
        session.set_ignore_info_resp(true);
        context.front.iter().for_each(|front| front.hush());
    }

    /// Whether policy asks about answers, as far as that is known.
    fn asks_answers(&self, context: &Context) -> bool {
        let Some(granted) = &context.granted else { return true };
        let plan = self.gateway.snapshots.current();
        plan.map_or(true, |plan| decide::asks_receive(&plan, granted.who()).0)
    }
}
