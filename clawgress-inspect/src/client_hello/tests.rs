//! Tables and properties of the ClientHello parser.

use proptest::prelude::*;

use super::*;

fn vector16(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).expect("fits").to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vector16(data)].concat()
}

fn sni(name: &str) -> Vec<u8> {
    extension(0, &vector16(&[vec![0], vector16(name.as_bytes())].concat()))
}

fn alpn_of(names: &[&str]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|n| [vec![u8::try_from(n.len()).expect("short")], n.as_bytes().to_vec()].concat())
        .collect();
    extension(16, &vector16(&list))
}

/// A handshake message with these extensions.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(vector16(&extensions.concat()));
    let length = u32::try_from(body.len()).expect("fits").to_be_bytes();
    [vec![1], length[1..].to_vec(), body].concat()
}

/// Records of at most `fragment` bytes each.
fn records(message: &[u8], fragment: usize) -> Vec<u8> {
    message.chunks(fragment).flat_map(|c| [vec![22, 3, 1], vector16(c)].concat()).collect()
}

fn read(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    Reassembler::default().push(bytes)
}

#[track_caller]
fn check(extensions: &[Vec<u8>], want: Result<Option<&str>, HelloError>) {
    let got = read(&records(&message(extensions), 1 << 14)).map(|h| h.expect("whole").server_name);
    assert_eq!(got.as_ref().map(Option::as_deref), want.as_ref().map(|n| *n));
}

#[test]
fn server_names_are_taken_or_refused() {
    check(&[sni("api.Example.test")], Ok(Some("api.Example.test")));
    check(&[sni("a_b.test")], Ok(Some("a_b.test")));
    check(&[], Ok(None));
    check(&[sni("example.test.")], Err(HelloError::ServerNameInvalid));
    check(&[sni("")], Err(HelloError::ServerNameInvalid));
    check(&[sni("a..b")], Err(HelloError::ServerNameInvalid));
    check(&[sni("a b")], Err(HelloError::ServerNameInvalid));
    check(&[sni("a\0.test")], Err(HelloError::ServerNameInvalid));
    check(&[sni("bücher.test")], Err(HelloError::ServerNameInvalid));
    check(&[sni(&"a".repeat(64))], Err(HelloError::ServerNameInvalid));
    check(&[sni(&"abc.".repeat(70))], Err(HelloError::ServerNameInvalid));
    for address in ["10.0.0.1", "::1", "2130706433", "0x7f.1", "127.0x1", "1.2.3"] {
        check(&[sni(address)], Err(HelloError::ServerNameAddress));
    }
}

#[test]
fn ambiguity_is_an_error() {
    check(&[sni("a.test"), sni("b.test")], Err(HelloError::DuplicateExtension(0)));
    check(&[extension(99, b""), extension(99, b"")], Err(HelloError::DuplicateExtension(99)));
    let two = [vec![0], vector16(b"a.test"), vec![0], vector16(b"b.test")].concat();
    check(&[extension(0, &vector16(&two))], Err(HelloError::ServerNameCount));
    check(&[extension(0, &vector16(&[1, 0, 1, b'a']))], Err(HelloError::ServerNameCount));
    check(&[extension(0, b"")], Err(HelloError::Truncated("server_name list")));
    let long = [vector16(&[vec![0], vector16(b"a.test")].concat()), vec![9]].concat();
    check(&[extension(0, &long)], Err(HelloError::Trailing("the server_name list")));
    check(&[extension(16, &vector16(b""))], Err(HelloError::Length("ALPN list")));
    check(&[extension(16, &vector16(&[0]))], Err(HelloError::Length("ALPN name")));
    let many: Vec<Vec<u8>> = (100..=228).map(|k| extension(k, b"")).collect();
    check(&many, Err(HelloError::TooMany("extensions")));
}

#[test]
fn alpn_and_ech_are_read() {
    let extensions = [sni("a.test"), alpn_of(&["h2", "http/1.1", "\n\n"]), extension(EXTENSION_ECH, b"\0")];
    let hello = read(&records(&message(&extensions), 100)).expect("valid").expect("whole");
    assert_eq!(hello.alpn, ["h2", "http/1.1", "\\n\\n"]);
    assert!(hello.encrypted);
}

#[test]
fn records_that_are_no_hello_are_refused_at_once() {
    assert_eq!(read(b"\x17"), Err(HelloError::ContentType(0x17)));
    assert_eq!(read(b"\x16\x02"), Err(HelloError::Version(2, 0)));
    assert_eq!(read(b"\x16\x03\x09"), Err(HelloError::Version(3, 9)));
    assert_eq!(read(b"\x16\x03\x01\0\0"), Err(HelloError::RecordLength(0)));
    assert_eq!(read(b"\x16\x03\x01\x40\x01"), Err(HelloError::RecordLength(0x4001)));
    assert_eq!(read(b"\x16\x03\x01\0\x04\x02\0\0\0"), Err(HelloError::NotHello(2)));
    assert_eq!(read(b"\x16\x03\x01\0\x04\x01\xff\0\0"), Err(HelloError::TooLarge));
    let mut trailing = message(&[sni("a.test")]);
    trailing.push(0);
    assert_eq!(read(&records(&trailing, 1 << 14)), Err(HelloError::Trailing("the hello")));
}

#[test]
fn memory_is_bounded_however_the_hello_is_cut() {
    // One byte a record costs six on the wire: the bound is on what is sent, not on what is kept.
    let mut reassembler = Reassembler::default();
    let huge = [vec![1, 0, 0xff, 0xff], vec![0; 70_000]].concat();
    let mut refused = None;
    for (n, record) in huge.iter().map(|b| [22, 3, 1, 0, 1, *b]).enumerate() {
        match reassembler.push(&record) {
            Ok(None) => {}
            other => {
                refused = Some((n, other));
                break;
            }
        }
    }
    let (n, error) = refused.expect("must be refused");
    assert_eq!(error, Err(HelloError::TooLarge));
    assert!(n <= HELLO_BYTES_MAX / 6 + 1, "refused after {n} records");
}

#[test]
fn every_truncation_waits_and_never_panics() {
    let whole = records(&message(&[sni("a.test"), alpn_of(&["h2"])]), 20);
    for n in 0..whole.len() {
        assert_eq!(read(&whole[..n]), Ok(None), "at {n}");
    }
    // Inside the message, a field that ends early is an error, not a wait.
    let body = &message(&[sni("a.test")])[4..];
    for n in 0..body.len() {
        // Ending right before the extensions is a hello without extensions.
        assert_eq!(parse(&body[..n]).is_ok(), n == 41, "at {n}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The same message gives the same answer however it is cut into records and segments.
    #[test]
    fn segmentation_changes_nothing(
        name in "[a-z]{1,20}(\\.[a-z]{1,9}){1,3}",
        padding in 0usize..3000,
        fragment in 1usize..4000,
        cuts in proptest::collection::vec(1usize..700, 1..40),
    ) {
        let message = message(&[sni(&name), alpn_of(&["h2"]), extension(21, &vec![0; padding])]);
        let whole = read(&records(&message, 1 << 14)).expect("valid").expect("whole");
        let wire = records(&message, fragment);
        let mut reassembler = Reassembler::default();
        let (mut rest, mut cuts, mut got) = (&wire[..], cuts.iter().cycle(), None);
        while !rest.is_empty() {
            prop_assert!(got.is_none(), "answered before the end");
            let (now, later) = rest.split_at((*cuts.next().expect("cycle")).min(rest.len()));
            got = reassembler.push(now).expect("valid");
            rest = later;
        }
        prop_assert_eq!(got, Some(whole));
    }

    /// Any change of any byte never panics and never reads beyond the input.
    #[test]
    fn mutations_never_panic(at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut wire = records(&message(&[sni("api.example.test"), alpn_of(&["h2"])]), 50);
        let at = at.index(wire.len());
        wire[at] = value;
        let (a, b) = wire.split_at(cut.index(wire.len()));
        let mut reassembler = Reassembler::default();
        if let Ok(None) = reassembler.push(a) {
            let _ = reassembler.push(b);
        }
    }
}
