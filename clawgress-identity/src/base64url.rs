//! Base64url as JOSE has it (RFC 7515 section 2): no padding, no white space, and bits behind the end are zero, so
//! that each value has one spelling.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The bytes, if `text` is their one spelling.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// `bytes` without padding.
pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_each() {
        assert_eq!(decode(""), Some(vec![]));
        assert_eq!(decode("_-8"), Some(vec![0xff, 0xef]));
        for other in ["_-9", "_-8=", "/+8", "_-8\n", " _-8", "_-8 ", "_", "_-8\0", "é"] {
            assert_eq!(decode(other), None, "`{other}`");
        }
    }

    proptest::proptest! {
        #[test]
        fn decoded_text_is_what_encoding_gives(text in "[A-Za-z0-9_=+/-]{0,40}") {
            if let Some(bytes) = decode(&text) {
                assert_eq!(encode(&bytes), text);
            }
        }
    }
}
