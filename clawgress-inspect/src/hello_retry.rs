//! A server's HelloRetryRequest, and the second ClientHello that follows it (RFC 8446 sections 4.1.2 and 4.1.4).
//!
//! The second hello names a server again, and a server may go by that. Must never take bytes for a second hello that a server could
//! read otherwise.

use crate::client_hello::{ClientHello, HELLO_BYTES_MAX, HelloError, Reassembler};

const CONTENT_CHANGE_CIPHER_SPEC: u8 = 20;
const CONTENT_ALERT: u8 = 21;
const CONTENT_HANDSHAKE: u8 = 22;
const CONTENT_APPLICATION_DATA: u8 = 23;
const HANDSHAKE_SERVER_HELLO: u8 = 2;
/// A HelloRequest (RFC 5246 section 7.4.1.1), which a client that is saying hello reads past.
const HELLO_REQUEST: [u8; 4] = [0; 4];
const RECORD_HEADER_BYTES: usize = 5;
/// What of a ServerHello tells: its header (4), its version (2), its random (32).
const TELLING_BYTES: usize = 38;
/// Most bytes of records and messages in front of it that tell nothing: a server has hardly any to send.
const SKIPPED_BYTES_MAX: usize = 4096;
/// The random of a HelloRetryRequest: SHA-256 of those words (RFC 8446 section 4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// What a server says first, in any segmentation and cut into any records: whether that is a HelloRetryRequest. Alerts, HelloRequests and the like in
/// front of it, which a client may read past, are. Of what is read, 38 bytes are kept.
#[derive(Debug, Default)]
pub struct Reply {
    header: Vec<u8>,
    fragment_left: usize,
    /// Whether the record is one that tells nothing.
    is_skipped: bool,
    /// Bytes of such records, and of such messages.
    skipped: usize,
    message: Vec<u8>,
}

/// What a client says after a HelloRetryRequest, up to its second hello.
#[derive(Debug)]
pub struct Second {
    first: Named,
    header: Vec<u8>,
    content: u8,
    record_left: usize,
    /// Whether a part of the hello was taken.
    is_begun: bool,
    reassembler: Reassembler,
    total: usize,
}

/// What both hellos say alike.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    server_name: Option<String>,
    alpn: Vec<String>,
    encrypted: bool,
}

/// Why what follows a HelloRetryRequest does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecondError {
    /// It is no acceptable hello.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// A hello is cut by other records (RFC 8446 section 5.1).
    #[error("a hello that other records stand in")]
    Interleaved,
    /// It names another server than the first, or another protocol, or hides what that did not: only key shares, cookies and the like
    /// may differ (RFC 8446 section 4.1.2).
    #[error("the second hello is for another server than the first")]
    Other,
}

// === impl Reply ===

impl Reply {
    /// Takes the next bytes of the server. `Some` once it is known; what follows is not looked at.
    pub fn push(&mut self, mut input: &[u8]) -> Option<bool> {
        loop {
            let told = self.message.get(6..TELLING_BYTES);
            if let Some(random) = told {
                return Some(random == RETRY_RANDOM);
            }
            if self.fragment_left == 0 {
                let wanted = RECORD_HEADER_BYTES - self.header.len();
                let (now, rest) = input.split_at_checked(wanted).unwrap_or((input, &[]));
                self.header.extend_from_slice(now);
                input = rest;
                // What is none at its beginning is not waited for.
                match self.header.first() {
                    None | Some(&(CONTENT_HANDSHAKE | CONTENT_CHANGE_CIPHER_SPEC | CONTENT_ALERT)) => {}
                    Some(_) => return Some(false),
                }
                let [content, _, _, high, low] = self.header[..] else { return None };
                self.fragment_left = usize::from(u16::from_be_bytes([high, low]));
                self.is_skipped = content != CONTENT_HANDSHAKE || self.fragment_left == 0;
                self.header.clear();
                if self.is_skipped {
                    self.skipped += RECORD_HEADER_BYTES + self.fragment_left;
                }
                if self.skipped > SKIPPED_BYTES_MAX {
                    return Some(false);
                }
                if self.fragment_left == 0 {
                    continue;
                }
            }
            if input.is_empty() {
                return None;
            }
            if self.is_skipped {
                let (now, rest) =
                    input.split_at_checked(self.fragment_left.min(input.len())).unwrap_or((input, &[]));
                self.fragment_left -= now.len();
                input = rest;
                continue;
            }
            let wanted = self.fragment_left.min(TELLING_BYTES.saturating_sub(self.message.len()));
            let (now, rest) = input.split_at_checked(wanted).unwrap_or((input, &[]));
            self.message.extend_from_slice(now);
            self.fragment_left -= now.len();
            input = rest;
            while self.message.starts_with(&HELLO_REQUEST) {
                self.message.drain(..HELLO_REQUEST.len());
                self.skipped += HELLO_REQUEST.len();
            }
            let may_be = match self.message.first() {
                None | Some(&HANDSHAKE_SERVER_HELLO) => true,
                Some(_) => HELLO_REQUEST.starts_with(&self.message),
            };
            if !may_be || self.skipped > SKIPPED_BYTES_MAX {
                return Some(false);
            }
        }
    }
}

// === impl Second ===

impl Second {
    /// After this hello.
    #[must_use]
    pub fn of(first: &ClientHello) -> Second {
        Second {
            first: Named::of(first),
            header: Vec::with_capacity(RECORD_HEADER_BYTES),
            content: 0,
            record_left: 0,
            is_begun: false,
            reassembler: Reassembler::default(),
            total: 0,
        }
    }

    /// Takes the next bytes of the client, in any segmentation. True once the second hello is whole and for the same server; what
    /// follows is not looked at. Early data is left to the server, which skips it (RFC 8446 section 4.2.10), and so are alerts.
    ///
    /// # Errors
    /// As soon as it may not go on.
    pub fn push(&mut self, mut input: &[u8]) -> Result<bool, SecondError> {
        while !input.is_empty() {
            if self.record_left == 0 {
                input = self.header_bytes(input)?;
                continue;
            }
            let (now, rest) =
                input.split_at_checked(self.record_left.min(input.len())).unwrap_or((input, &[]));
            self.record_left -= now.len();
            input = rest;
            if self.content != CONTENT_HANDSHAKE {
                continue;
            }
            if let Some(hello) = self.reassembler.push(now)? {
                return if Named::of(&hello) == self.first { Ok(true) } else { Err(SecondError::Other) };
            }
        }
        Ok(false)
    }

    /// Takes bytes of a record's header; returns the rest of `input`.
    fn header_bytes<'a>(&mut self, input: &'a [u8]) -> Result<&'a [u8], SecondError> {
        let wanted = RECORD_HEADER_BYTES - self.header.len();
        let (now, rest) = input.split_at_checked(wanted).unwrap_or((input, &[]));
        self.header.extend_from_slice(now);
        let [content, _, _, high, low] = self.header[..] else { return Ok(rest) };
        self.record_left = usize::from(u16::from_be_bytes([high, low]));
        self.total += RECORD_HEADER_BYTES + self.record_left;
        self.content = content;
        if self.total > HELLO_BYTES_MAX {
            return Err(HelloError::TooLarge.into());
        }
        match content {
            CONTENT_HANDSHAKE => {
                self.is_begun = true;
                // It refuses what is no record of TLS.
                self.reassembler.push(&self.header)?;
            }
            CONTENT_CHANGE_CIPHER_SPEC | CONTENT_ALERT | CONTENT_APPLICATION_DATA if self.is_begun => {
                return Err(SecondError::Interleaved);
            }
            CONTENT_CHANGE_CIPHER_SPEC | CONTENT_ALERT | CONTENT_APPLICATION_DATA => {}
            other => return Err(HelloError::ContentType(other).into()),
        }
        self.header.clear();
        Ok(rest)
    }
}

// === impl Named ===

impl Named {
    fn of(hello: &ClientHello) -> Named {
        Named {
            server_name: hello.server_name.as_ref().map(|name| name.to_ascii_lowercase()),
            alpn: hello.alpn.clone(),
            encrypted: hello.encrypted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record.
    fn record(content: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&[content, 3, 3][..], &length, bytes].concat()
    }

    fn server_hello(random: [u8; 32]) -> Vec<u8> {
        let body = [&[3, 3][..], &random, &[0, 0x13, 0x01, 0, 0, 0]].concat();
        [&[HANDSHAKE_SERVER_HELLO, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat()
    }

    /// A hello for this server.
    fn hello(name: &str, alpn: &str, is_encrypted: bool) -> Vec<u8> {
        let extension = |kind: u16, data: &[u8]| {
            [&kind.to_be_bytes()[..], &u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
        };
        let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let name = [&[0][..], &sized(name.as_bytes())].concat();
        let mut extensions = extension(0, &sized(&name));
        let alpn = [&[u8::try_from(alpn.len()).unwrap()][..], alpn.as_bytes()].concat();
        extensions.extend(extension(16, &sized(&alpn)));
        if is_encrypted {
            extensions.extend(extension(0xfe0d, &[0; 8]));
        }
        let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &sized(&extensions)].concat();
        [&[1, 0][..], &sized(&body)].concat()
    }

    fn first() -> ClientHello {
        let wire = record(CONTENT_HANDSHAKE, &hello("a.test", "h2", false));
        Reassembler::default().push(&wire).unwrap().unwrap()
    }

    /// What is said of the same bytes, whole and one by one.
    #[track_caller]
    fn check(wire: &[u8], wanted: Result<bool, SecondError>) {
        assert_eq!(Second::of(&first()).push(wire), wanted);
        let mut second = Second::of(&first());
        let mut told = Ok(false);
        for byte in wire {
            told = second.push(&[*byte]);
            if told != Ok(false) {
                break;
            }
        }
        assert_eq!(told, wanted, "byte by byte");
    }

    #[test]
    fn a_retry_is_known_however_it_is_cut() {
        let (retry, other) = (server_hello(RETRY_RANDOM), server_hello([9; 32]));
        for (message, wanted) in [(&retry, true), (&other, false)] {
            for cut in 1..message.len() {
                let (one, two) = message.split_at(cut);
                let wire = [record(CONTENT_HANDSHAKE, one), record(CONTENT_HANDSHAKE, two)].concat();
                assert_eq!(Reply::default().push(&wire), Some(wanted));
                let mut reply = Reply::default();
                assert_eq!(wire.iter().find_map(|byte| reply.push(&[*byte])), Some(wanted), "byte by byte");
            }
        }
        for (wire, wanted) in [
            (record(CONTENT_ALERT, &[2, 40]), None),
            (record(CONTENT_HANDSHAKE, &[0, 0, 0, 0]), None),
            (record(CONTENT_HANDSHAKE, &[0, 0, 0, 1]), Some(false)),
            (record(CONTENT_HANDSHAKE, &[0, 0, 2]), Some(false)),
            (record(CONTENT_HANDSHAKE, &[]), None),
            (b"220 mail".to_vec(), Some(false)),
            (record(CONTENT_HANDSHAKE, &retry)[..42].to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(Reply::default().push(&wire), wanted, "{wire:?}");
        }
    }

    /// What a client reads past does not hide it.
    #[test]
    fn a_retry_is_known_behind_what_a_client_skips() {
        let (retry, other) = (server_hello(RETRY_RANDOM), server_hello([9; 32]));
        let skipped = [
            record(CONTENT_ALERT, &[1, 112]),
            record(CONTENT_CHANGE_CIPHER_SPEC, &[1]),
            record(CONTENT_HANDSHAKE, &[]),
        ];
        for (message, wanted) in [(&retry, true), (&other, false)] {
            for before in &skipped {
                for cut in [0, 1, 4, 20] {
                    let (one, two) = message.split_at(cut);
                    let wire = [
                        &before[..],
                        &record(CONTENT_HANDSHAKE, one),
                        before,
                        &record(CONTENT_HANDSHAKE, two),
                    ]
                    .concat();
                    assert_eq!(Reply::default().push(&wire), Some(wanted), "{wire:?}");
                    let mut reply = Reply::default();
                    assert_eq!(
                        wire.iter().find_map(|byte| reply.push(&[*byte])),
                        Some(wanted),
                        "byte by byte"
                    );
                }
            }
        }
        let endless = skipped.concat().repeat(SKIPPED_BYTES_MAX / 8);
        assert_eq!(Reply::default().push(&endless), Some(false));
        // Of messages the same, each in records as anybody cuts them.
        for (message, wanted) in [(&retry, true), (&other, false)] {
            for requests in [1, 3, 100] {
                let all = [HELLO_REQUEST.repeat(requests), message.clone()].concat();
                for bytes in [1, 3, 5, 4096] {
                    let wire: Vec<u8> =
                        all.chunks(bytes).flat_map(|part| record(CONTENT_HANDSHAKE, part)).collect();
                    assert_eq!(Reply::default().push(&wire), Some(wanted), "{requests} in {bytes}");
                    let mut reply = Reply::default();
                    let told = wire.iter().find_map(|byte| reply.push(&[*byte]));
                    assert_eq!(told, Some(wanted), "{requests} in {bytes}, byte by byte");
                }
            }
        }
        let endless = record(CONTENT_HANDSHAKE, &HELLO_REQUEST.repeat(SKIPPED_BYTES_MAX));
        assert_eq!(Reply::default().push(&endless), Some(false));
    }

    #[test]
    fn a_second_hello_is_for_the_same_server() {
        let of = |name, alpn, encrypted| record(CONTENT_HANDSHAKE, &hello(name, alpn, encrypted));
        check(&of("a.test", "h2", false), Ok(true));
        check(&of("A.test", "h2", false), Ok(true));
        check(&of("b.test", "h2", false), Err(SecondError::Other));
        check(&of("a.test", "http/1.1", false), Err(SecondError::Other));
        check(&of("a.test", "h2", true), Err(SecondError::Other));
        let ccs = record(CONTENT_CHANGE_CIPHER_SPEC, &[1]);
        let early = record(CONTENT_APPLICATION_DATA, &[0; 500]);
        check(&[&ccs[..], &early, &of("a.test", "h2", false)].concat(), Ok(true));
        check(&[&ccs[..], &early, &of("b.test", "h2", false)].concat(), Err(SecondError::Other));
        check(
            &[&record(CONTENT_ALERT, &[1, 90])[..], &of("b.test", "h2", false)].concat(),
            Err(SecondError::Other),
        );
        check(&record(CONTENT_ALERT, &[2, 47]), Ok(false));
        let whole = hello("a.test", "h2", false);
        let (one, two) = whole.split_at(20);
        let cut = [record(CONTENT_HANDSHAKE, one), record(CONTENT_HANDSHAKE, two)].concat();
        check(&cut, Ok(true));
        let interleaved = [record(CONTENT_HANDSHAKE, one), ccs, record(CONTENT_HANDSHAKE, two)].concat();
        check(&interleaved, Err(SecondError::Interleaved));
        check(&record(CONTENT_HANDSHAKE, &[2, 0, 0, 0]), Err(SecondError::Hello(HelloError::NotHello(2))));
        check(b"GET / HTTP/1.1", Err(SecondError::Hello(HelloError::ContentType(b'G'))));
        let much = early.repeat(200);
        assert_eq!(Second::of(&first()).push(&much), Err(SecondError::Hello(HelloError::TooLarge)));
    }
}
