//! The beginning of a connection that goes on before it is known what it is: of a client who begins with a word that has no end,
//! and waits for its server's.
//!
//! INVARIANT: nothing of TLS goes on, nor the piece by which what goes on would come to be a request: who reads lines never has
//! a request's whole, and no version of one.

use super::{PROXY_1, PROXY_2, Protocol, VERSION, blank, classify, lines, token};

/// Bytes of a first word by which it is told apart.
const WORD_BYTES: usize = PROXY_1.len();

/// By which a target in absolute form begins.
const SCHEME: &[u8] = b"http";

/// What has gone on so far, as much of it as tells what follows.
#[derive(Debug, Default)]
pub struct Opening(Vec<u8>);

/// What becomes of what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on, and what comes next is asked about.
    GoesOn,
    /// It waits for what comes next.
    Waits,
    /// It is known what it is, and is no longer asked about.
    Is(Protocol),
}

// === impl Opening ===

impl Opening {
    /// Whether a client may be one that waits for its server, who began with this and says no more for a while. Who has begun with a
    /// method and a target is rather one whose request comes slowly: that would be cut.
    #[must_use]
    pub fn is_of(bytes: &[u8]) -> bool {
        !is_target_begun(bytes) && Opening::default().next(bytes) == Step::GoesOn
    }

    /// What becomes of `held`, which came behind what has gone on. It costs what `held` does, however much has gone on. At the client's
    /// end, what waits may go on: it can come to be nothing any more.
    #[must_use]
    pub fn next(&mut self, held: &[u8]) -> Step {
        let all = [&self.0, held].concat();
        match classify(&all) {
            Some(protocol) => Step::Is(protocol),
            None if held.is_empty() || waits(&all) => Step::Waits,
            None => {
                self.0 = shortened(&all);
                Step::GoesOn
            }
        }
    }
}

/// Whether these may be the first of TLS, or their last of a version.
fn waits(all: &[u8]) -> bool {
    let (leading, line) = lines(all);
    let Some(last) = line.iter().rposition(|b| blank(*b)) else {
        return leading.is_empty() && line == [0x16];
    };
    let behind = line.get(last + 1..).unwrap_or_default();
    !behind.is_empty() && VERSION.get(..behind.len()).is_some_and(|v| v.eq_ignore_ascii_case(behind))
}

/// Whether a target that HTTP may have is begun behind a first word. None of it has control bytes.
fn is_target_begun(bytes: &[u8]) -> bool {
    let (_, line) = lines(bytes);
    let is_clear = line.iter().all(|b| blank(*b) || !b.is_ascii_control());
    let mut target = line.iter().skip_while(|b| token(**b)).skip_while(|b| blank(**b)).peekable();
    let is_path = target.peek() == Some(&&b'/');
    is_clear && (is_path || target.take(SCHEME.len()).map(u8::to_ascii_lowercase).eq(SCHEME.iter().copied()))
}

/// What the same follows from as from `all`, of which it is not known what it is: the first of the word that it begins with, with the
/// blank that ends a short one, and where a version may be, if one may.
fn shortened(all: &[u8]) -> Vec<u8> {
    let (leading, line) = lines(all);
    let leading = if PROXY_2.starts_with(leading) { leading } else { b" " };
    let word = line.iter().take_while(|b| token(**b)).count();
    let first = line.iter().take(WORD_BYTES.min(word + 1));
    let last = line.iter().rposition(|b| blank(*b)).map(|last| last.max(first.len()));
    let behind = last.and_then(|last| line.get(last..)).unwrap_or_default();
    leading.iter().chain(first).chain(behind.iter().take(1 + VERSION.len())).copied().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What goes on of these pieces before it is known what they are, and what they are, if that is known.
    fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Option<Protocol>) {
        let (mut opening, mut gone, mut held) = (Opening::default(), vec![], vec![]);
        for piece in pieces {
            held.extend_from_slice(piece);
            match opening.next(&held) {
                Step::GoesOn => gone.append(&mut held),
                Step::Waits => {}
                Step::Is(protocol) => return (gone, Some(protocol)),
            }
        }
        (gone, None)
    }

    #[test]
    fn words_without_an_end_go_on() {
        for (pieces, gone, is) in [
            (&["JDWP-Handshake", "\0\0\0\x0b"][..], "JDWP-Handshake", Some(Protocol::Unknown)),
            (&["PING", "PING", "PING"], "PINGPINGPING", None),
            (&["%1POWR ?\r", "%1POWR 1\r"], "%1POWR ?\r%1POWR 1\r", None),
            (&["\r\n", "\r\n", "help\n"], "\r\n\r\n", Some(Protocol::Unknown)),
            (&["say h", "i"], "say hi", None),
            (&["\x16"], "", None),
            (&["\x16", "\x03"], "", Some(Protocol::Tls)),
            (&["\x16", "x"], "", Some(Protocol::Unknown)),
            (&["G", "E", "T", " "], "GET", Some(Protocol::Http1)),
            (&["GET", "\r", "/"], "GET\r", Some(Protocol::Http1)),
            (&["\r\n", "GE", "T /"], "\r\nGE", Some(Protocol::Http1)),
            (&["GETS", " /"], "GETS /", None),
            (&["PR", "I", " * HTTP/2.0\r\n"], "PRI", Some(Protocol::Http2)),
            (&["PRI\x0b", " *", " HTTP/2.0\r\n"], "PRI\x0b *", Some(Protocol::Http1)),
            (&["PRI\t", " ", " "], "PRI\t  ", None),
            (&["POST /a", " ", "h", "ttp", "/1.1\r\n"], "POST /a ", Some(Protocol::Http1)),
            (&["POST /a H", "TML", " HTTP/1.1\r\n"], "POST /a HTML", Some(Protocol::Http1)),
            (&["POST /a\r", "HTTP/"], "POST /a\r", Some(Protocol::Http1)),
            (&["POST /\x01", "\0", " ", "HTTP/1.1\r\n"], "POST /\x01\0 ", Some(Protocol::Http1)),
            (
                &["003egit-upload-pack /p\0host=h\0", "0000\n"],
                "003egit-upload-pack /p\0host=h\0",
                Some(Protocol::Unknown),
            ),
            (&["PROXY", " ", "TCP4"], "PROXY", Some(Protocol::Proxied)),
            (&["\r", "\n", "\r\n", "\0\r\nQUIT\n"], "\r\n\r\n", Some(Protocol::Proxied)),
            (&["\r\r\r", "\n\r\n\0\r\nQUIT\n"], "\r\r\r", Some(Protocol::Unknown)),
        ] {
            let run = run(pieces.iter().map(|piece| piece.as_bytes()));
            assert_eq!(run, (gone.as_bytes().to_vec(), is), "{pieces:?}");
        }
        for (bytes, is_of) in [
            (&b"PING"[..], true),
            (b"", false),
            (b"\x16", false),
            (b"say hi", true),
            (b"%1POWR ?\r", true),
            (b"POST", true),
            (b"POST ", true),
            (b"POST /", false),
            (b"\r\nPOST\t /a ", false),
            (b"POST h", false),
            (b"POST HTTP", false),
            (b"POST http://a/", false),
            (b"003egit-upload-pack /p\0host=h\0", true),
        ] {
            assert_eq!(Opening::is_of(bytes), is_of, "{:?}", bytes.escape_ascii().to_string());
        }
    }

    /// However large the pieces are in which it comes.
    #[test]
    fn no_piece_is_too_large_to_be_looked_at() {
        for piece in [1, 64, 65, 4096] {
            for (bytes, is) in [
                ([&b" ".repeat(200)[..], &b"A".repeat(5000), b" /\0 "].concat(), None),
                (
                    [&b"\r".repeat(200)[..], b"\n", &b"A".repeat(5000), b"\n"].concat(),
                    Some(Protocol::Unknown),
                ),
                ([&b"A ".repeat(5000)[..], b"HTTP/"].concat(), Some(Protocol::Http1)),
            ] {
                let (gone, told) = run(bytes.chunks(piece));
                assert_eq!((told, told.is_none()), (is, gone == bytes), "{piece}");
            }
        }
    }

    /// However long it is, and however much of it went on.
    #[test]
    fn a_word_is_remembered_by_its_beginning() {
        let mut opening = Opening::default();
        for _ in 0..10_000 {
            assert_eq!(opening.next(b"PING"), Step::GoesOn);
            assert!(opening.0.len() <= WORD_BYTES);
        }
        assert_eq!(opening.next(b" / HTTP/1.1\r\n"), Step::Is(Protocol::Http1));
        for _ in 0..10_000 {
            assert_eq!(opening.next(b" a /"), Step::GoesOn);
            assert!(opening.0.len() <= WORD_BYTES + 1 + VERSION.len());
        }
        assert_eq!(opening.next(b" HTT"), Step::Waits);
        assert_eq!(opening.next(b" HTTP/"), Step::Is(Protocol::Http1));
    }

    /// A request, or the beginning of one, that begins as one may.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        let blank = prop::sample::select(&[" ", "\t", "  ", "\x0b", "\r", "\x1c", " \r"][..]);
        let method = prop_oneof![Just("GET".to_owned()), Just("PRI".to_owned()), "[A-Za-z-]{1,9}"];
        let leading = prop::sample::select(&["", "\r\n", "\n", " ", "\r\n\r\n"][..]);
        let version = prop::sample::select(&["HTTP/1.1", "http/1.0", "HTTP/2.0"][..]);
        let target = "/[a-zH/T\0\x01\x7f]{0,9}( H| HT| HTTP|)";
        (leading, method, blank.clone(), target, blank, version)
            .prop_map(|(a, b, c, d, e, f)| format!("{a}{b}{c}{d}{e}{f}\r\nHost: a\r\n\r\n").into_bytes())
    }

    /// `bytes` in pieces that end at these.
    fn cut(bytes: &[u8], mut ends: Vec<usize>) -> Vec<&[u8]> {
        ends.extend([0, bytes.len()]);
        ends.iter_mut().for_each(|end| *end = (*end).min(bytes.len()));
        ends.sort_unstable();
        ends.windows(2).map(|two| &bytes[two[0]..two[1]]).filter(|piece| !piece.is_empty()).collect()
    }

    proptest! {
        #[test]
        fn of_a_request_nothing_of_its_version_goes_on_however_it_is_cut(
            bytes in request(),
            ends in prop::collection::vec(0usize..40, 0..12),
        ) {
            let (gone, is) = run(cut(&bytes, ends));
            prop_assert!(matches!(is, Some(Protocol::Http1 | Protocol::Http2)), "{is:?}");
            prop_assert!(bytes.starts_with(&gone));
            let text = String::from_utf8_lossy(&gone).into_owned();
            let line = text.trim_start();
            // A target may hold the word as well.
            let is_version = |w: &[u8]| blank(w[0]) && w[1..].eq_ignore_ascii_case(VERSION);
            let has_version = line.as_bytes().windows(1 + VERSION.len()).any(is_version);
            prop_assert!(!line.contains('\n') && !has_version, "{line:?}");
            prop_assert!(!line.starts_with("GET ") && !text.starts_with("PRI "), "{line:?}");
        }

        #[test]
        fn of_tls_nothing_goes_on_however_it_is_cut(
            rest in prop::collection::vec(any::<u8>(), 0..40),
            ends in prop::collection::vec(0usize..40, 0..12),
        ) {
            let bytes = [&[0x16, 3][..], &rest].concat();
            prop_assert_eq!(run(cut(&bytes, ends)), (vec![], Some(Protocol::Tls)));
        }

        /// What is cut is what is whole: one is told the other.
        #[test]
        fn what_is_cut_is_taken_for_what_it_is(
            bytes in "(PRI|PROXY|\r\n\r\n|[ \r]{0,80}|[A-Z]{1,99} |)[GETPRI \t\rHTP/0-9a-z\x16\x03\x1c\0\x01\x7f]{1,57}(\n|)( HTTP/|)",
            ends in prop::collection::vec(0usize..150, 0..12),
        ) {
            let whole = classify(bytes.as_bytes());
            prop_assert_eq!(run(cut(bytes.as_bytes(), ends)).1, whole);
        }
    }
}
