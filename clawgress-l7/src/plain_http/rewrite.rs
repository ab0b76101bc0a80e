//! Calls of models that policy changes before they go on: the body that is sent instead of the one that was held.
//!
//! Must never send a call unchanged that was to be changed.

use bytes::Bytes;
use clawgress_inspect::llm::change::{Changed, Wanted, changed};
use clawgress_inspect::llm::rename::Renamed;
use clawgress_inspect::llm::{Call, CapNames, Surface};
use clawgress_policy::transform::body::BodyChanges;
use pingora_http::RequestHeader;

use super::model::Asking;

/// What is said of a call that can't be changed.
pub const UNCHANGEABLE: &str = "policy changes this call, and it can't be changed";

/// The body that is sent.
#[derive(Debug)]
pub struct Rewritten {
    body: Bytes,
    is_sent: bool,
    /// What was changed, in words.
    pub told: Vec<String>,
    /// What its tools are called otherwise, so that the answer has to be changed back.
    renamed: Option<Renamed>,
}

// === impl Rewritten ===

impl Rewritten {
    /// The call that `body` is, with these changes.
    ///
    /// # Errors
    /// Why it can't be changed, in words.
    pub fn of(
        body: &[u8],
        (surface, cap_names): (Surface, CapNames),
        call: &Call,
        changes: &BodyChanges,
    ) -> Result<Rewritten, String> {
        let params: Vec<(&str, &str)> =
            changes.params.iter().map(|(name, value)| (&**name, &**value)).collect();
        let renames: Vec<(&str, &str)> =
            changes.renames.iter().map(|(own, other)| (&**own, &**other)).collect();
        let prompt = changes.prompts.join("\n\n");
        let wanted = Wanted {
            params: &params,
            tokens_max: changes.tokens_max,
            cap_names,
            takes_tool: &|name| changes.takes_tool(name),
            takes_tools: !changes.tools.is_empty(),
            renames: &renames,
            prompt: (!changes.prompts.is_empty()).then_some(&*prompt),
        };
        let changed = changed(body, surface, call, &wanted).map_err(|why| why.to_string())?;
        let Changed { body, told, renamed } = changed;
        Ok(Rewritten { body: Bytes::from(body), is_sent: false, told, renamed })
    }

    /// What its tools are called otherwise.
    #[must_use]
    pub fn renamed(&self) -> Option<&Renamed> {
        self.renamed.as_ref()
    }

    /// Has the head say how long it is, once for each attempt to send it.
    ///
    /// # Errors
    /// Never for what it sets.
    pub fn head(&mut self, request: &mut RequestHeader) -> pingora_error::Result<()> {
        self.is_sent = false;
        request.remove_header("transfer-encoding");
        if self.renamed.is_some() {
            // What comes back has to be changed.
            request.insert_header("accept-encoding", "identity")?;
        }
        request.insert_header("content-length", self.body.len().to_string())
    }

    /// Puts it in the place of what goes by.
    pub fn body(&mut self, piece: &mut Option<Bytes>, end: bool) {
        // It was held whole, so that what goes by is all there is of it.
        let first = !std::mem::replace(&mut self.is_sent, true);
        instead(&self.body, first, piece, end);
    }

    /// Has it ask for usage as well.
    ///
    /// # Errors
    /// Why it can't.
    pub fn asks(&mut self, asking: &mut Asking) -> Result<(), &'static str> {
        if let Some(body) = asking.within(&self.body)? {
            self.body = Bytes::from(body);
        }
        Ok(())
    }
}

/// Puts a body that is whole in the place of what goes by, of which this is the first piece or not.
pub fn instead(whole: &Bytes, first: bool, piece: &mut Option<Bytes>, end: bool) {
    *piece = match (first, end) {
        (true, _) => Some(whole.clone()),
        (false, true) => None,
        // Pingora takes none at all for the end, and sends nothing of one that is empty.
        (false, false) => Some(Bytes::new()),
    };
}

/// Whether somebody has signed the request with its body, so that no byte of it may change.
#[must_use]
pub fn is_signed(request: &RequestHeader) -> bool {
    let has = |name: &str| request.headers.contains_key(name);
    ["content-digest", "repr-digest", "content-md5", "digest", "signature"].iter().any(|name| has(name))
        || request.headers.get("authorization").is_some_and(|v| v.as_bytes().starts_with(b"AWS4-"))
}
