//! A user's own input in a message: escaped and shortened, so that it can neither break a log line nor
//! fill it. Must never be used for secrets.

/// Most characters of refused input that a message quotes.
const QUOTE_CHARS_MAX: usize = 80;

pub(crate) fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(QUOTE_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTE_CHARS_MAX).is_some() {
        quoted.push('…');
    }
    quoted
}
