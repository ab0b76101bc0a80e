//! Spellings and what they are.

use super::*;

fn check(text: &str, expected: Option<&str>) {
    let parsed = Host::parse(text).ok().map(|h| h.to_string());
    assert_eq!(parsed.as_deref(), expected, "`{text}`");
    if let Ok(host) = Host::parse(text) {
        assert!(host.is_canonical(), "`{text}` gives {host:?}");
        assert_eq!(Host::parse(&host.to_string()), Ok(host), "`{text}`: the printed form is a fixed point");
    }
}

#[test]
fn names() {
    for (text, expected) in [
        ("API.Allowed.test.", "api.allowed.test"),
        ("api.allowed.test", "api.allowed.test"),
        ("localhost", "localhost"),
        ("a_b.example", "a_b.example"),
        ("r3---sn-abc.example", "r3---sn-abc.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("faß.de", "xn--fa-hia.de"),
        ("ａｐｉ.example", "api.example"),
        ("a。b", "a.b"),
        ("a\u{ad}b.example", "ab.example"),
        ("a\u{200b}.example", "a.example"),
        ("1.2.3.com", "1.2.3.com"),
        ("0x.example", "0x.example"),
    ] {
        check(text, Some(expected));
    }
}

#[test]
fn addresses() {
    for (text, expected) in [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1.", "192.0.2.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("0x7f.0x", "127.0.0.0"),
        ("0x.0x.0", "0.0.0.0"),
        ("4294967295", "255.255.255.255"),
        ("0xffffffff", "255.255.255.255"),
        ("00000000000000000000000000000000000177.1", "127.0.0.1"),
        ("１２７.1", "127.0.0.1"),
        ("127。0。0。1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("[::ffff:10.0.0.1]", "10.0.0.1"),
        ("[::ffff:a00:1]", "10.0.0.1"),
        ("[64:ff9b::10.0.0.1]", "64:ff9b::a00:1"),
        ("[2002:a00:1::]", "2002:a00:1::"),
        ("[::127.0.0.1]", "::7f00:1"),
    ] {
        check(text, Some(expected));
        assert!(Host::parse(text).is_ok_and(|h| h.address().is_some()), "`{text}`");
    }
}

#[test]
fn refused() {
    for text in [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a..",
        "[denied.test]",
        "[::1",
        "::1]",
        "[::1]:443",
        "[fe80::1%eth0]",
        "fe80::1%25eth0",
        "host:443",
        "allowed@evil",
        "a\\b",
        "a/b",
        "a?b",
        "a#b",
        "a b",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "a\0b",
        " a",
        "a%2eb",
        "%31",
        "a<b",
        "a|b",
        "a^b",
        "a\"b",
        "a*b",
        "*.example",
        "a,b",
        "a;b",
        "256.256.256.256",
        "1.2.3.4.5",
        "1.2.3.256",
        "256.1",
        "4294967296",
        "0x100000000",
        "99999999999999999999999999",
        "09",
        "1.2.3.08",
        "foo.1",
        "foo.0x4",
        "1..2",
        "127.0.0.1..",
        "xn--a",
        "xn--",
        "a\u{202e}b",
        "\u{ad}",
        "[::ffff:010.0.0.1]",
        "[1:2:3:4:5:6:7:8:9]",
        "[]",
    ] {
        check(text, None);
    }
    check(&"a".repeat(64), None);
    check(&format!("{}.{}", "a.".repeat(126), "ab"), None);
    check(&"é".repeat(600), None);
    check(&"a".repeat(63), Some(&"a".repeat(63)));
}

#[test]
fn messages_are_bounded_and_escaped() {
    let error = Host::parse(&format!("\u{1b}[31m{}", "x".repeat(900))).unwrap_err().to_string();
    assert!(!error.contains('\u{1b}') && error.len() < 200, "{error}");
    assert_eq!(
        Host::parse("a%41").unwrap_err().to_string(),
        "`a%41` has a percent sign: write the host without percent-encoding"
    );
}

/// Characters and pieces that make hosts interesting.
const PIECES: &str = "(0x|0X|0|[0-9]{1,12}|[0-9a-fA-F]{1,8}|[a-zA-Z]{1,6}|xn--[a-z0-9-]{0,12}|\\.|\\.\\.|:|::|\\[|\\]|%[0-9a-f]{2}|[-_@/\\\\ ]|\\PC){0,10}";

/// What the WHATWG host parser of the `url` crate says, in canonical form.
fn whatwg(text: &str) -> Option<Host> {
    match url::Host::parse(text).ok()? {
        url::Host::Domain(name) => Some(Host::Name(name.strip_suffix('.').unwrap_or(&name).to_owned())),
        url::Host::Ipv4(ip) => Some(Host::Address(ip.into())),
        url::Host::Ipv6(ip) => Some(Host::from_address(ip.into())),
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(1_024))]

    #[test]
    fn never_panics_and_is_idempotent(text in PIECES) {
        if let Ok(host) = Host::parse(&text) {
            assert!(host.is_canonical());
            assert_eq!(Host::parse(&host.to_string()), Ok(host));
        }
    }

    /// What is accepted is what a WHATWG parser reads; what it reads as an address is never a name.
    #[test]
    fn agrees_with_whatwg(text in PIECES) {
        let bare_v6 = text.parse::<Ipv6Addr>().is_ok();
        let theirs = whatwg(&if bare_v6 { format!("[{text}]") } else { text.clone() });
        match (Host::parse(&text), theirs) {
            (Ok(ours), theirs) => assert_eq!(Some(ours), theirs, "`{text}`"),
            (Err(_), Some(Host::Address(ip))) => assert!(text.contains('%'), "`{text}` is {ip} and was refused"),
            (Err(_), _) => {}
        }
    }
}
