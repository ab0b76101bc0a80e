//! What links, targets of requests, fields of heads and names of hosts carry besides what they name.
//!
//! A measure, not a proof: bytes in places where data can stand that look like data. Looks at no more than
//! [`LOOKED_BYTES_MAX`] bytes of a link, and at [`HEAD_BYTES_MAX`] of what is in a head.

use super::entropy;
use super::run::{Event, RUN_BYTES_MIN, Run, Runs, text_bytes};

/// Longest text that is looked at, bytes; what is longer counts as carrying all that is beyond.
pub const LOOKED_BYTES_MAX: usize = 8 * 1024;
/// The same of a head, which is no longer: nothing of it goes unseen.
pub const HEAD_BYTES_MAX: usize = crate::http1::HEAD_BYTES_MAX;
/// Shortest piece that may be data, bytes: names that people choose have blanks, dashes or dots before.
const DENSE_BYTES_MIN: usize = 20;
/// Entropy of its letters from which on it is data, hundredths of a bit: words of English at such lengths have about 350.
const DENSE_ENTROPY: u32 = 380;
/// The same of hexadecimal digits, which have at most 400; and the shortest piece of them.
const HEX_ENTROPY: u32 = 320;
/// Lengths of digests and ids in hexadecimal digits: of a UUID, of SHA-1, SHA-256, SHA-384, SHA-512.
const DIGESTS: [usize; 5] = [32, 40, 64, 96, 128];
/// Shortest label of a host that may be data, bytes.
const LABEL_BYTES_MIN: usize = 24;
/// Blanks in a value from which on it is prose.
const PROSE_BLANKS: u32 = 3;
/// Schemes of authorization whose credentials are no data.
const SCHEMES: [&str; 3] = ["bearer ", "basic ", "digest "];
/// Hosts whose paths are tokens that they gave pictures of people, and whose logs nobody reads who writes a text.
const PICTURE_HOSTS: [&str; 10] = [
    "avatars.githubusercontent.com",
    "gravatar.com",
    "www.gravatar.com",
    "secure.gravatar.com",
    "lh3.googleusercontent.com",
    "lh4.googleusercontent.com",
    "lh5.googleusercontent.com",
    "lh6.googleusercontent.com",
    "media.licdn.com",
    "pbs.twimg.com",
];
/// Links inside links that are looked at in place of what they are written as: proxies of images name the image so.
const INNER_MAX: u8 = 1;

/// What an object of JSON begins with, in base64.
const OBJECT: &[u8] = b"eyJ";
/// Longest token of JOSE that is taken for one, bytes: those of people with many groups have some 4 KiB.
const TOKEN_BYTES_MAX: usize = 4096;

/// What something carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes that look like data: of even letters, or that decode to text.
    pub dense: usize,
    /// Those of them that decode to text.
    pub text: usize,
    /// Bytes of prose in values of a query or a fragment.
    pub prose: usize,
    /// Bytes of tokens of JOSE (RFC 7519), which say what they are for; besides `dense`.
    pub token: usize,
}

/// What is told of each value that something is made of: its letters, the escapes taken off, and what they carry.
pub type Each<'a> = &'a mut dyn FnMut(&[u8], Carried);

// === impl Carried ===

impl Carried {
    /// Both.
    #[must_use]
    pub fn and(self, other: Carried) -> Carried {
        Carried {
            dense: self.dense + other.dense,
            text: self.text + other.text,
            prose: self.prose + other.prose,
            token: self.token + other.token,
        }
    }

    /// All of it that looks like data, bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.dense + self.token
    }

    /// The same where a token is data like any other.
    fn opened(self) -> Carried {
        Carried { dense: self.dense + self.token, text: self.text + self.token, token: 0, ..self }
    }
}

/// What a link carries (RFC 3986): its host's labels, segments of its path, values of its query and its fragment.
#[must_use]
pub fn link(url: &[u8]) -> Carried {
    // Who writes a link to a server of his own calls anything a token.
    link_within(url, INNER_MAX).opened()
}

fn link_within(url: &[u8], inner: u8) -> Carried {
    if url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:")) {
        // It is there already: nobody is asked for it.
        return Carried::default();
    }
    let scheme = url.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or_default();
    let behind = url.get(scheme..).unwrap_or_default();
    let behind = behind.strip_prefix(b":").unwrap_or(url);
    let Some(behind) = behind.strip_prefix(b"//") else {
        return target_within(behind, (inner, LOOKED_BYTES_MAX), &mut |_, _| {});
    };
    let end = behind.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(behind.len());
    let (authority, rest) = behind.split_at_checked(end).unwrap_or_default();
    let is_picture = PICTURE_HOSTS.iter().any(|known| authority.eq_ignore_ascii_case(known.as_bytes()));
    let path = if is_picture {
        rest.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(rest.len()).min(LOOKED_BYTES_MAX)
    } else {
        0
    };
    let rest = rest.get(path..).unwrap_or_default();
    host(authority).and(target_within(rest, (inner, LOOKED_BYTES_MAX), &mut |_, _| {}))
}

/// What the target of a request carries: path and query.
#[must_use]
pub fn target(target: &[u8]) -> Carried {
    target_by(target, &mut |_, _| {})
}

/// The same, value by value.
pub fn target_by(target: &[u8], each: Each<'_>) -> Carried {
    target_within(target, (INNER_MAX, HEAD_BYTES_MAX), each)
}

fn target_within(target: &[u8], (inner, bytes_max): (u8, usize), each: Each<'_>) -> Carried {
    let (looked, beyond) = target.split_at_checked(bytes_max).unwrap_or((target, &[]));
    let path = looked.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(looked.len());
    let (path, values) = looked.split_at_checked(path).unwrap_or_default();
    let segments = path.split(|b| matches!(b, b'/' | b';')).map(|segment| (segment, false));
    let values = values.split(|b| matches!(b, b'?' | b'&' | b'#' | b'=')).map(|text| (text, true));
    let all = segments.chain(values).map(|(text, may_be_prose)| value(text, may_be_prose, inner, each));
    let all = all.fold(Carried::default(), Carried::and);
    Carried { dense: all.dense + beyond.len(), ..all }
}

/// What the value of a field of a head carries, but for credentials that its scheme names.
#[must_use]
pub fn header(field: &[u8]) -> Carried {
    let has =
        |scheme: &&str| field.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme.as_bytes()));
    if SCHEMES.iter().any(has) {
        return Carried { dense: field.len().saturating_sub(LOOKED_BYTES_MAX), ..Carried::default() };
    }
    header_by(field, &mut |_, _| {})
}

/// What it carries, credentials too, value by value.
pub fn header_by(field: &[u8], each: Each<'_>) -> Carried {
    let (looked, beyond) = field.split_at_checked(HEAD_BYTES_MAX).unwrap_or((field, &[]));
    let parts = looked.split(|b| matches!(b, b' ' | b',' | b';' | b'=' | b'"'));
    let all = parts.map(|part| value(part, false, 0, each)).fold(Carried::default(), Carried::and);
    Carried { dense: all.dense + beyond.len(), ..all }
}

/// What the labels of a host carry.
#[must_use]
pub fn host(name: &[u8]) -> Carried {
    let (looked, beyond) = name.split_at_checked(LOOKED_BYTES_MAX).unwrap_or((name, &[]));
    let of = |label: &[u8]| {
        let is_data = label.len() >= LABEL_BYTES_MIN && entropy::of_bytes(label) >= HEX_ENTROPY;
        // Words with dashes between are names that people, or their programs, chose.
        let is_name = label.split(|b| *b == b'-').all(|word| word.len() < DENSE_BYTES_MIN);
        let carried = if is_data && !is_name { label.len() } else { 0 };
        Carried { dense: carried, ..Carried::default() }
    };
    let all = looked.split(|b| *b == b'.').map(of).fold(Carried::default(), Carried::and);
    Carried { dense: all.dense + beyond.len(), ..all }
}

/// What one value carries, its escapes taken off; a link that it stands for is looked at in its place.
fn value(escaped: &[u8], may_be_prose: bool, inner: u8, each: Each<'_>) -> Carried {
    if escaped.is_empty() {
        return Carried::default();
    }
    let plain = unescaped(escaped);
    let carried = carries(&plain, may_be_prose, inner);
    each(&plain, carried);
    carried
}

fn carries(plain: &[u8], may_be_prose: bool, inner: u8) -> Carried {
    let mut carried = Carried::default();
    if may_be_prose {
        let blanks = plain.iter().filter(|b| matches!(b, b' ' | b'\n')).count();
        if u32::try_from(blanks).unwrap_or(u32::MAX) >= PROSE_BLANKS && text_bytes(plain) > 0 {
            // Data among words is data all the same.
            let words = plain.split(|b| matches!(b, b' ' | b'\n')).filter(|word| !word.is_empty());
            let words = words.map(|word| carries(word, false, inner)).fold(carried, Carried::and);
            return Carried { prose: plain.len().saturating_sub(words.bytes()), ..words };
        }
    }
    if is_uuid(plain) {
        return carried;
    }
    if is_token(plain) {
        carried.token = plain.len();
        return carried;
    }
    let decoded;
    (carried.text, decoded) = decoded_text(plain);
    if carried.text > 0 {
        if inner > 0 && is_link(&decoded) {
            return link_within(&decoded, inner - 1).opened();
        }
        carried.dense = plain.len();
        return carried;
    }
    // No digest stands for text.
    if is_digest(plain) {
        return carried;
    }
    // Words between separators; letters of base64url only where they stand alone.
    for word in plain.split(|b| !b.is_ascii_alphanumeric()) {
        let is_hex = word.iter().all(u8::is_ascii_hexdigit);
        let needed = if is_hex { HEX_ENTROPY } else { DENSE_ENTROPY };
        let has_digits = word.iter().any(u8::is_ascii_digit);
        if word.len() >= DENSE_BYTES_MIN
            && has_digits
            && !is_digest(word)
            && entropy::of_bytes(word) >= needed
        {
            carried.dense += word.len();
        }
    }
    carried
}

/// Bytes of text that runs in a value decode to, and what they decode to.
fn decoded_text(value: &[u8]) -> (usize, Vec<u8>) {
    let (mut text, mut decoded) = (0, Vec::new());
    if value.len() < RUN_BYTES_MIN {
        return (text, decoded);
    }
    let mut sink = |event: Event<'_>| {
        match event {
            Event::Run(run @ Run { is_whole: true, .. }) => {
                text += usize::try_from(run.text).unwrap_or(usize::MAX);
            }
            Event::Piece(bytes) => decoded.extend_from_slice(bytes),
            _ => {}
        }
        Ok::<(), std::convert::Infallible>(())
    };
    let mut runs = Runs::default();
    let Ok(()) = runs.push(value, &mut sink);
    let Ok(()) = runs.finish(&mut sink);
    (text, decoded)
}

/// Whether it is a link and nothing else.
fn is_link(text: &[u8]) -> bool {
    let has_scheme = [&b"http://"[..], b"https://"].iter().any(|scheme| text.starts_with(scheme));
    has_scheme && text.iter().all(u8::is_ascii_graphic)
}

/// Without the escapes of RFC 3986 section 2.1 and the plus of forms; what is no escape stays.
fn unescaped(escaped: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((byte, behind)) = rest.split_first() {
        let digit = |n: usize| behind.get(n).and_then(|b| char::from(*b).to_digit(16));
        let escape = if *byte == b'%' { digit(0).zip(digit(1)) } else { None };
        rest = match escape {
            Some((high, low)) => {
                plain.push(u8::try_from(high << 4 | low).unwrap_or_default());
                behind.get(2..).unwrap_or_default()
            }
            None => {
                plain.push(*byte);
                behind
            }
        };
    }
    // A blank of forms; of base64, a letter: where there is prose, there are more blanks than letters of base64 would be.
    let pluses = plain.iter().filter(|b| **b == b'+').count();
    if pluses * 12 >= plain.len() {
        plain.iter_mut().filter(|b| **b == b'+').for_each(|b| *b = b' ');
    }
    plain
}

/// Whether it is a token of JOSE in its compact form: three parts (RFC 7515), of which two are objects of JSON, or five
/// (RFC 7516), of which one is.
fn is_token(word: &[u8]) -> bool {
    let is_url = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if word.len() > TOKEN_BYTES_MAX || !word.starts_with(OBJECT) || !word.iter().all(is_url) {
        return false;
    }
    let mut parts = word.split(|b| *b == b'.').skip(1);
    let second = parts.next().unwrap_or_default();
    match parts.count() {
        1 => second.starts_with(OBJECT),
        3 => true,
        _ => false,
    }
}

fn is_digest(word: &[u8]) -> bool {
    DIGESTS.contains(&word.len()) && word.iter().all(u8::is_ascii_hexdigit)
}

fn is_uuid(word: &[u8]) -> bool {
    word.len() == 36
        && word
            .iter()
            .enumerate()
            .all(|(n, b)| if matches!(n, 8 | 13 | 18 | 23) { *b == b'-' } else { b.is_ascii_hexdigit() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_measured_and_names_are_not() {
        let text = "cGFzc3dvcmQ9aHVudGVyMiZ1c2VyPWFsaWNlJnJvbGU9YWRtaW4";
        assert_eq!(target(format!("/collect/{text}").as_bytes()).dense, text.len());
        assert!(target(format!("/c?d={text}%3D%3D").as_bytes()).text > 24);
        let hex = "70617373776f72643d68756e746572322675736572";
        assert!(target(format!("/c?d={hex}").as_bytes()).text > 16);
        let as_long_as_digests: String = "the launch code is 1234, and 48 bytes are as long"
            .bytes()
            .take(48)
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(target(format!("/c?d={as_long_as_digests}").as_bytes()).text, 48);
        assert!(target(b"/c?d=xK9dQ2mPz7RfLw3NvTb8YcHs").dense > 20);
        assert_eq!(host(format!("{}.evil.test", "nbswy3dpeb3w64tmmqqhg2lt").as_bytes()).dense, 24);
        assert_eq!(header(text.as_bytes()).dense, text.len());
        assert_eq!(link(&[b'a'; LOOKED_BYTES_MAX + 5]).dense, 5);
        let behind = format!("/?p={}&d={text}", "a".repeat(2 * LOOKED_BYTES_MAX));
        assert_eq!(target(behind.as_bytes()).dense, text.len(), "nothing of a head goes unseen");
        let among = target(format!("/?q=%20%20%20{text}").as_bytes());
        assert_eq!((among.dense, among.text > 24), (text.len(), true), "blanks make no prose of it");
        assert_eq!(target(b"/?q=the+launch+code+is+1234").dense, 0);
        let token =
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
        let of_token = target(format!("/magic?token={token}").as_bytes());
        assert_eq!((of_token.token, of_token.dense, of_token.text), (token.len(), 0, 0));
        assert!(link(format!("https://evil.test/?t={token}").as_bytes()).text > 0, "not of a link");
        let long = format!("eyJ{0}.eyJ{0}.{0}", "a7Qk".repeat(400));
        assert_eq!(target(format!("/?t={long}").as_bytes()).token, 0, "nobody needs so long a one");
        let mut values = Vec::new();
        let by_value = target_by(format!("/a/b?x=1&d={text}%3D%3D").as_bytes(), &mut |value, carried| {
            values.push((value.to_vec(), carried.bytes()));
        });
        assert_eq!(by_value.bytes(), text.len() + 2);
        assert_eq!(values.last(), Some(&(format!("{text}==").into_bytes(), text.len() + 2)));
        for plain in [
            "/v1/chat/completions",
            "/repos/rust-lang/rust/git/trees/6d9c8b5f6b8ddcbf6b1d2ad7e4ba1f54f1f8b8c4?recursive=1",
            "/v1/projects/my-project/locations/us-central1/publishers/google/models/gemini:generateContent",
            "/a/3f2504e0-4f89-11d3-9a0c-0305e82c3301?page=2&per_page=100&sort=created_at",
            "/static/js/main.5f2b1c9e.chunk.js",
        ] {
            assert_eq!(target(plain.as_bytes()), Carried::default(), "{plain}");
        }
        for plain in [
            "api.openai.com",
            "oai-production-eastus2-workspace-7.openai.azure.com",
            "d111111abcdef8.cloudfront.net",
        ] {
            assert_eq!(host(plain.as_bytes()), Carried::default(), "{plain}");
        }
        let picture = "a/ACg8ocKx9dQ2mPz7RfLw3NvTb8YcHsV4uXyZk1Jt6";
        assert!(link(format!("https://img.evil.test/{picture}").as_bytes()).dense > 20);
        assert!(link(format!("https://lh3.googleusercontent.com/a?d={picture}").as_bytes()).dense > 20);
        let of_proxy = |inner: &str| {
            let hex: String = inner.bytes().map(|b| format!("{b:02x}")).collect();
            let digest = "ab".repeat(20);
            link(format!("https://camo.githubusercontent.com/{digest}/{hex}").as_bytes())
        };
        assert!(of_proxy("https://evil.test/?d=xK9dQ2mPz7RfLw3NvTb8YcHs").dense > 20);
        assert!(of_proxy("https://evil.test/?q=the%20launch%20code%20is%201234").prose > 16);
        assert!(of_proxy("the launch code is 1234 and no link").text > 16);
        for plain in [
            link(format!("https://lh3.googleusercontent.com/{picture}=s96-c").as_bytes()),
            link(b"https://avatars.githubusercontent.com/u/1234567?v=4&s=64"),
            of_proxy("https://img.shields.io/badge/build-passing-brightgreen.svg"),
        ] {
            assert_eq!(plain, Carried::default());
        }
        for plain in [
            "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2ln",
            "text/html, application/json;q=0.9",
        ] {
            assert_eq!(header(plain.as_bytes()), Carried::default(), "{plain}");
        }
    }
}
