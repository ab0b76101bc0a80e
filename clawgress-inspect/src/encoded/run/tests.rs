//! Runs, what they decode to, and independence of segmentation.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::*;

/// What came out: decoded pieces between a beginning and an end, joined; and runs.
type Seen = (Vec<Vec<u8>>, Vec<Run>);

fn seen<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Seen {
    let (mut runs, mut seen) = (Runs::default(), Seen::default());
    let mut sink = |event: Event<'_>| {
        match event {
            Event::Begin(_) => seen.0.push(Vec::new()),
            Event::Piece(bytes) => seen.0.last_mut().unwrap().extend_from_slice(bytes),
            Event::End => {}
            Event::Run(run) => seen.1.push(run),
        }
        Ok::<(), ()>(())
    };
    pieces.for_each(|piece| runs.push(piece, &mut sink).unwrap());
    runs.finish(&mut sink).unwrap();
    seen
}

fn of(text: &[u8]) -> Seen {
    let whole = seen(std::iter::once(text));
    for size in [1, 2, 5, 31, 32, 33, 255, 256, 257] {
        assert_eq!(whole, seen(text.chunks(size)), "{size}");
    }
    whole
}

const TEXT: &str = "the launch code is 1234567890, and the door is at the back";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn text_in_other_clothes_is_decoded() {
    let wide: Vec<u8> = TEXT.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (written, code) in [
        (STANDARD.encode(TEXT), Code::Base64),
        (URL_SAFE_NO_PAD.encode(TEXT), Code::Base64),
        (STANDARD.encode(&wide), Code::Base64),
        (hex(TEXT.as_bytes()), Code::Hex),
        (hex(TEXT.as_bytes()).to_uppercase(), Code::Hex),
        (format!("0x{}", hex(TEXT.as_bytes())), Code::Hex),
    ] {
        for around in
            [format!("see: {written} ."), written.clone(), format!("a={written}&b"), format!("\"{written}\"")]
        {
            let (pieces, runs) = of(around.as_bytes());
            assert_eq!(pieces, [TEXT.as_bytes()], "{around}");
            assert_eq!(runs.len(), 1);
            assert_eq!((runs[0].code, runs[0].text), (code, TEXT.len() as u64), "{around}");
        }
    }
    let base32 = "ORUGKIDMMF2W4Y3IEBRW6ZDFEBUXGIBRGIZTINJWG44DSMBMEBQW4ZBAORUGK";
    let (pieces, runs) = of(base32.as_bytes());
    assert_eq!(pieces, [TEXT.get(..38).unwrap().as_bytes()]);
    assert_eq!(runs[0].code, Code::Base32);
    assert_eq!(of(base32.to_lowercase().as_bytes()).0, pieces);
}

#[test]
fn what_stands_before_it_hides_nothing() {
    for prefix in ["/a", "/ab", "/abc", "path/to/something/that/is/long/", "key-", "x_y_z_"] {
        let (pieces, runs) = of(format!("{prefix}{}", STANDARD.encode(TEXT.repeat(5))).as_bytes());
        let joined = pieces.concat();
        let tail = joined.get(joined.len() - 200..).unwrap();
        assert_eq!(
            std::str::from_utf8(tail),
            Ok(TEXT.repeat(5).get(TEXT.len() * 5 - 200..).unwrap()),
            "{prefix}"
        );
        assert!(runs[0].text >= 200, "{prefix}");
    }
    // Lines of MIME, whichever their ends are.
    let lines: Vec<String> = STANDARD
        .encode(TEXT.repeat(9))
        .as_bytes()
        .chunks(76)
        .map(|l| String::from_utf8(l.to_vec()).unwrap())
        .collect();
    for end in ["\n", "\r\n"] {
        assert_eq!(of(lines.join(end).as_bytes()).0.concat(), TEXT.repeat(9).as_bytes());
    }
}

#[test]
fn escapes_are_taken_off() {
    let written = format!("{}%2B%2f%3D%3d%zz%4", "a".repeat(40));
    let (pieces, runs) = of(written.as_bytes());
    assert_eq!(pieces, [format!("{}+/==%zz%4", "a".repeat(40)).as_bytes()]);
    assert_eq!(runs[0].code, Code::Percent);
}

#[test]
fn ordinary_text_is_none() {
    let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    for text in [
        digest,
        "6d9c8b5f6b8ddcbf6b1d2ad7e4ba1f54f1f8b8c4 src/main.rs",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "node_modules/@types/node/dist/internal/streams/duplex/from_web_stream_reader",
        "com_example_application_settings_ConfigurationPropertiesBindingPostProcessor",
        "00000000000000000000000000000000000000000000000000000000000000000000",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "sha512-9rUIpW1G4mS3lF0m5zWqvQ2h1mYkzE4Fj8vFhP3bZ4Xc9nO1t0LwQK7YtV6jD2aRyUeBsGiNHfJxCpMoAlTk+g==",
    ] {
        let (pieces, runs) = of(text.as_bytes());
        assert!(pieces.is_empty(), "{text}: {:?}", String::from_utf8_lossy(&pieces.concat()));
        assert!(runs.iter().all(|run| run.text == 0), "{text}: {runs:?}");
    }
    assert_eq!(of("word ".repeat(1000).as_bytes()), Seen::default());
}

#[test]
fn files_are_told_by_their_first_bytes() {
    let run = |bytes: &[u8]| of(STANDARD.encode(bytes).as_bytes()).1[0];
    let noise: Vec<u8> = (0..600_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert!(run(&[b"\x89PNG\r\n\x1a\n", &noise[..]].concat()).is_media);
    assert!(run(&[&[0x30, 0x82, 4, 0xbd, 2, 1, 0, 0x30, 13, 6, 9, 0x2a][..], &noise].concat()).is_key);
    let plain = run(&noise);
    assert!(!plain.is_media && !plain.is_key && plain.entropy > 500, "{plain:?}");
    assert!(of(STANDARD.encode(b"{\"alg\":\"HS256\",\"typ\":\"JWT\"}").as_bytes()).1[0].is_object);
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0.x";
    assert!(of(token.as_bytes()).1.iter().all(|run| run.is_dotted));
}

#[test]
fn an_escape_that_is_none_hides_nothing() {
    let written = STANDARD.encode(TEXT);
    for around in
        [format!("%{written}"), format!("100%{written}"), format!("%%{written}%"), format!("%4%{written}%z")]
    {
        let (pieces, runs) = of(around.as_bytes());
        assert_eq!(pieces.concat(), TEXT.as_bytes(), "{around}");
        assert_eq!(runs.len(), 1, "{around}");
    }
    let long = STANDARD.encode(TEXT.repeat(6));
    let (pieces, _) = of(format!("{long}%{long}").as_bytes());
    let joined = String::from_utf8_lossy(&pieces.concat()).into_owned();
    assert_eq!(joined.matches("launch code").count(), 12, "{joined}");
}
