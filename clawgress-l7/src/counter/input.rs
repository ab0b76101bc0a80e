//! Tokens of a request, by the texts that it shows. Must never be told of what a model is shown in another way, since nobody knows that.

use bpe_openai::Tokenizer;
use clawgress_inspect::llm::Surface;
use clawgress_inspect::llm::vocabulary::{around, each_text};

/// Tokens of a request that has texts alone; `None` of any other, and of what can't be read.
pub(super) fn tokens(tokenizer: &Tokenizer, surface: Surface, body: &[u8]) -> Option<u64> {
    let mut tokens = 0;
    let call = each_text(body, &mut |text| tokens += tokenizer.count(text) as u64)?;
    // How others are shown is not told by whom they are shown.
    let is_bare = call.tools.is_empty() && !call.has_definitions && call.attachments.count == 0;
    let is_text = is_bare && !call.is_partial;
    is_text.then(|| tokens + around(&call, surface))
}
