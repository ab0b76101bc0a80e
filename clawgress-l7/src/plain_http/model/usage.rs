//! Usage that is asked for on the client's behalf, in streams that would tell none. Must never ask whoever does not take that.

use bytes::Bytes;
use clawgress_inspect::llm::change::asking_usage;
use clawgress_inspect::llm::{Call, Route, Surface};
use pingora_http::RequestHeader;

use super::super::rewrite::{instead, is_signed};
use super::{Calling, Calls};

/// What asks for usage at the end of a stream, as the first member of the request.
const ASKING: &[u8] = br#""stream_options":{"include_usage":true},"#;
/// Providers that are known to take it.
const ASKABLE: [&str; 17] = [
    "openai",
    "azure",
    "github",
    "groq",
    "together",
    "fireworks",
    "deepseek",
    "openrouter",
    "xai",
    "cerebras",
    "sambanova",
    "nvidia",
    "huggingface",
    "alibaba",
    "moonshot",
    "gemini",
    "vertex",
];
/// Why a call is refused that is changed, and was to ask for usage.
const UNASKED: &str = "its `stream_options` can't ask for usage";
/// Usage that is asked for on the client's behalf.
#[derive(Debug, Default)]
pub struct Asking {
    is_asked: bool,
    /// The body that asks, where the client says something of its stream itself.
    whole: Option<Bytes>,
    /// Whether what is sent asks already.
    is_done: bool,
}

/// Whether whoever is asked tells usage where a stream's request asks for it, and refuses none that does.
fn is_askable(calls: &Calls, route: &Route) -> bool {
    let is_known = || {
        let is_named = calls.servers.iter().any(|server| server.name == route.provider);
        is_named || ASKABLE.contains(&&*route.provider) && route.takes_openais()
    };
    matches!(route.surface, Surface::ChatCompletions | Surface::Completions) && is_known()
}

// === impl Asking ===

impl Asking {
    /// Whether usage may be asked for: of whom takes that.
    #[must_use]
    pub fn may_be(calls: &Calls, calling: &Calling) -> bool {
        calling.route.as_ref().is_some_and(|route| calls.asks_usage && is_askable(calls, route))
    }

    /// Whether it is to be: in a stream that would tell none, whose request, which is this `body`, may be changed.
    #[must_use]
    pub fn of(
        calls: &Calls,
        calling: &Calling,
        (call, body): (&Call, Option<&[u8]>),
        request: &RequestHeader,
    ) -> Option<Asking> {
        let tells = call.stream != Some(true) || call.include_usage == Some(true);
        let is_coded = request.headers.contains_key("content-encoding");
        if tells || is_coded || is_signed(request) || !Asking::may_be(calls, calling) {
            return None;
        }
        if !call.has_stream_options {
            return Some(Asking::default());
        }
        let surface = calling.route.as_ref()?.surface;
        let whole = body.and_then(|body| asking_usage(body, surface))?;
        Some(Asking { whole: Some(Bytes::from(whole)), ..Asking::default() })
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.whole.as_ref().map_or(0, Bytes::len)
    }

    /// The same call as it is rewritten, where it has to ask itself.
    ///
    /// # Errors
    /// If it can't.
    pub fn within(&mut self, rewritten: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
        // What is put before a body is before whatever it is.
        if self.whole.take().is_none() {
            return Ok(None);
        }
        self.is_done = true;
        asking_usage(rewritten, Surface::ChatCompletions).map(Some).ok_or(UNASKED)
    }

    /// Has the head of the request say so: its length, and that what comes back can be read.
    ///
    /// # Errors
    /// Never for what it sets.
    pub fn head(&mut self, request: &mut RequestHeader) -> pingora_error::Result<()> {
        self.is_asked = false;
        let length = request.headers.get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let more = length.map(|length| length + ASKING.len() as u64).filter(|_| !self.is_done);
        let length = self.whole.as_ref().map(|whole| whole.len() as u64).or(more);
        if self.whole.is_some() {
            request.remove_header("transfer-encoding");
        }
        if let Some(length) = length {
            request.insert_header("content-length", length.to_string())?;
        }
        request.insert_header("accept-encoding", "identity")
    }

    /// Has the body ask, once it begins.
    pub fn body(&mut self, piece: &mut Option<Bytes>, end: bool) {
        if let Some(whole) = &self.whole {
            let first = !std::mem::replace(&mut self.is_asked, true);
            return instead(whole, first, piece, end);
        }
        if self.is_done {
            return;
        }
        let Some(bytes) = piece.as_ref().filter(|_| !self.is_asked) else { return };
        let Some(at) = bytes.iter().position(|b| *b == b'{') else { return };
        let mut all = Vec::with_capacity(bytes.len() + ASKING.len());
        all.extend_from_slice(bytes.get(..=at).unwrap_or_default());
        all.extend_from_slice(ASKING);
        all.extend_from_slice(bytes.get(at + 1..).unwrap_or_default());
        (*piece, self.is_asked) = (Some(Bytes::from(all)), true);
    }
}

#[cfg(test)]
mod tests {
    use clawgress_api::config::{Content, Llm};
    use clawgress_inspect::llm::{Target, route};

    use super::*;

    #[test]
    fn only_who_takes_it_is_asked_for_usage() {
        let calls = Calls::new(&Llm::default(), &Content::default()).expect("calls");
        for (host, path, is_asked) in [
            ("api.openai.com", "/v1/chat/completions", true),
            ("api.openai.com", "/v1/responses", false),
            ("a.openai.azure.com", "/openai/deployments/d/chat/completions", true),
            ("a.services.ai.azure.com", "/openai/v1/chat/completions", true),
            // Refuses what it does not define.
            ("a.services.ai.azure.com", "/models/chat/completions", false),
            ("api.mistral.ai", "/v1/chat/completions", false),
        ] {
            let target = Target { host, port: 443, path, query: "", is_upgrade: false, has_body: true };
            let route = route(&[], &target).expect(host);
            assert_eq!(is_askable(&calls, &route), is_asked, "{host}{path}");
        }
    }
}
