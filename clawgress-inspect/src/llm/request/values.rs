//! Values that ask for something. Must never take one for another that a server would take it for.

use crate::llm::CallError;

/// A name that asks for what it says, and nothing that is written like it.
pub(super) fn name(text: Option<&str>) -> Result<String, CallError> {
    let is_plain = |text: &&str| !text.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER);
    text.filter(is_plain).map(str::to_owned).ok_or(CallError::Name)
}

pub(super) fn truth(word: Option<&str>) -> Result<bool, CallError> {
    match word {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(CallError::Type),
    }
}

/// How many tokens a number allows: what is none, or negative, allows any.
pub(super) fn most(word: &str) -> u64 {
    if let Ok(count) = word.parse() {
        return count;
    }
    match word.parse::<f64>() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and is positive"
        )]
        Ok(count) if count >= 0.0 => count.ceil() as u64,
        _ => u64::MAX,
    }
}
