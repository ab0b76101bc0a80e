//! The examples of the specification, and what it says about the edges.

use super::*;

/// The ciphers of the specification's example, with a GREASE value before them.
const CIPHERS: [u16; 16] = [
    0x2a2a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c,
    0x009d, 0x002f, 0x0035,
];
const EXTENSIONS: [u16; 18] = [
    0x1a1a, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b,
    0xff01, 0x000b, 0x000a, 0x0015, 0xfafa,
];
const SIGNATURES: [u16; 8] = [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601];

fn example() -> ClientHello {
    ClientHello {
        server_name: Some("a.test".to_owned()),
        alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        alpn_first: b"h2".to_vec(),
        encrypted: false,
        legacy_version: 0x0303,
        cipher_suites: CIPHERS.to_vec(),
        extensions: EXTENSIONS.to_vec(),
        supported_versions: vec![0x7a7a, 0x0303, 0x0304],
        signature_algorithms: SIGNATURES.to_vec(),
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut ClientHello), want: &str) {
    let mut hello = example();
    change(&mut hello);
    assert_eq!(Ja4::of(&hello).to_string(), want);
}

#[test]
fn the_specification_s_examples_hold() {
    check(|_| {}, "t13d1516h2_8daaf6152771_e5627efa2ab1");
    check(|h| h.signature_algorithms.clear(), "t13d1516h2_8daaf6152771_6d807ffa2a79");
    check(|h| h.cipher_suites.reverse(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    check(|h| h.extensions.reverse(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
}

#[test]
fn nothing_is_not_hashed() {
    let nothing = |h: &mut ClientHello| {
        h.cipher_suites.clear();
        h.extensions.clear();
        h.alpn_first.clear();
        h.supported_versions.clear();
    };
    check(nothing, "t12i000000_000000000000_000000000000");
    check(
        |h| {
            nothing(h);
            h.extensions = vec![0x0000, 0x0010];
        },
        "t12d000200_000000000000_000000000000",
    );
}

#[test]
fn versions_are_the_highest_that_is_offered() {
    for (offered, legacy, want) in [
        (&[][..], 0x0303, "12"),
        (&[], 0x0302, "11"),
        (&[], 0x0301, "10"),
        (&[], 0x0300, "s3"),
        (&[], 0x9999, "00"),
        (&[0x0302, 0x0303], 0x0301, "12"),
        (&[0x0a0a], 0x0303, "12"),
        (&[0xfafa, 0x0304], 0x0303, "13"),
    ] {
        let hello = ClientHello { legacy_version: legacy, supported_versions: offered.to_vec(), ..example() };
        assert_eq!(&Ja4::of(&hello).as_str()[1..3], want, "{offered:x?} {legacy:x}");
    }
}

#[test]
fn alpn_names_are_told_by_their_ends() {
    for (name, want) in [
        (&b"http/1.1"[..], "h1"),
        (b"h", "hh"),
        (b"", "00"),
        (b"\xab", "ab"),
        (b"\xab\xcd", "ad"),
        (b"\x30\xab", "3b"),
        (b"\x30\x31\xab\xcd", "3d"),
        (b"\x30\xab\xcd\x31", "01"),
    ] {
        let hello = ClientHello { alpn_first: name.to_vec(), ..example() };
        assert_eq!(&Ja4::of(&hello).as_str()[8..10], want, "{name:x?}");
    }
}

#[test]
fn counts_have_two_digits() {
    let many: Vec<u16> = (0x0100..0x0200).collect();
    let hello = ClientHello { cipher_suites: many.clone(), extensions: many, ..example() };
    assert_eq!(&Ja4::of(&hello).as_str()[..10], "t13i9999h2");
}
