//! What a record holds of what was sent, and of what came back: facts, and how much of each is known. Nothing here is a payload.

use crate::Look;

/// What a record holds of what was sent, and of what came back.
#[derive(Clone, Debug, Default)]
pub struct Contents<'a> {
    /// The actions that policy asked about then, of those that are asked by name: what nothing is told of was none.
    pub asked: &'a [String],
    /// Whether the request has a body, if that is told.
    pub has_body: Option<bool>,
    /// What was known of what was sent when it was decided.
    pub said: Said<'a>,
    /// How it ended, if it has, and that is known.
    pub end: Option<End<'a>>,
}

/// What is known of what was sent.
#[derive(Clone, Debug, Default)]
pub struct Said<'a> {
    /// The body.
    pub body: Option<HeldPayload<'a>>,
    /// The call of a model.
    pub call: Option<HeldCall<'a>>,
    /// Messages to a tool server.
    pub messages: Vec<HeldMessage<'a>>,
    /// Whether there were more.
    pub has_more_messages: bool,
}

/// How an exchange ended that was allowed.
#[derive(Clone, Debug, Default)]
pub struct End<'a> {
    /// What stopped it, if something did.
    pub stopped: Option<Stopped<'a>>,
    /// Whether it failed.
    pub has_failed: bool,
    /// Whether conditions on time answered the same until then as when it was decided.
    pub is_time_known: bool,
    /// What was known of what was sent, as far as that is more than when it was decided.
    pub said: Said<'a>,
    /// What came back.
    pub answer: Option<HeldAnswer<'a>>,
}

/// What stopped an exchange: by what its agent turned out to send, or was to get.
#[derive(Clone, Copy, Debug)]
pub struct Stopped<'a> {
    /// The action.
    pub action: &'a str,
    /// Name of the reason.
    pub reason: &'a str,
    /// Ids of the policies that determined it.
    pub policies: &'a [String],
}

/// What is known of a payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldPayload<'a> {
    /// Bytes: those declared, or those seen.
    pub bytes: u64,
    /// Whether these are declared.
    pub is_declared: bool,
    /// Whether all of it was seen.
    pub complete: bool,
    /// How much of it was looked at.
    pub looked: Look,
    /// Its media type.
    pub media_type: &'a str,
    /// Whether that is not known.
    pub is_media_type_unclear: bool,
    /// What was found in it.
    pub findings: &'a [String],
}

/// What is known of a call of a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldCall<'a> {
    /// Whose model.
    pub provider: &'a str,
    /// The model.
    pub model: &'a str,
    /// Its family.
    pub family: &'a str,
    /// What was asked of it.
    pub surface: &'a str,
    /// Tokens of the prompt.
    pub tokens_estimated: u64,
    /// Most that may be answered.
    pub tokens_max: Option<u64>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Names of the tools that are offered.
    pub tools: &'a [String],
    /// Whether there are more.
    pub has_more_tools: bool,
    /// How much is attached.
    pub attachments: u32,
    /// Of that, images, if that is told.
    pub images: Option<u32>,
    /// Bytes of what is attached, likewise.
    pub attachment_bytes: Option<u64>,
    /// What signs of somebody who steers the model weigh.
    pub prompt_score: u32,
    /// Whether no price is known.
    pub unpriced: bool,
    /// What is to be done about the tools, if that is told.
    pub tool_choice: Option<&'a str>,
    /// Who it is for, likewise.
    pub end_user: Option<&'a str>,
    /// Whether the server may keep it, likewise.
    pub store: Option<bool>,
    /// Whether the model was shown what only the server has, likewise.
    pub partial: Option<bool>,
    /// What was found in it, if that is told.
    pub findings: Option<&'a [String]>,
}

/// What is known of a message to a tool server: never what a tool is called with.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldMessage<'a> {
    /// The server.
    pub server: &'a str,
    /// The method.
    pub method: &'a str,
    /// The tool.
    pub name: &'a str,
    /// Names of the arguments.
    pub argument_names: &'a [String],
    /// Whether some of these was cut.
    pub is_cut: bool,
    /// What was found in it, if that is told.
    pub findings: Option<&'a [String]>,
    /// Whether some of that may be missing.
    pub is_forgotten: bool,
}

/// What is known of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldAnswer<'a> {
    /// Its status.
    pub status: u16,
    /// What it is, at its end.
    pub payload: HeldPayload<'a>,
    /// Whether it was judged once, all of it, and not as it came.
    pub at_once: bool,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Names of the tools that the model asks for.
    pub tools: &'a [String],
    /// Whether there are more.
    pub has_more_tools: bool,
    /// Whether none of them is missing otherwise.
    pub are_tools_known: bool,
}

// === impl Contents ===

impl<'a> Contents<'a> {
    /// What stopped it after it was allowed, if something did.
    pub(super) fn stopped(&self) -> Option<Stopped<'a>> {
        self.end.as_ref()?.stopped
    }

    /// Whether policy asked about an action then, so that what is not told of it was none.
    pub(super) fn asked(&self, action: &str) -> bool {
        self.asked.iter().any(|asked| asked == action)
    }
}
