//! Targets of bodies: decoders of codings, JSON and multipart, and the inspector that puts them together.

use clawgress_inspect::payload::coding::{Caps, Coding, Decoder};
use clawgress_inspect::payload::json::{Event, Json, JsonError, Kind};
use clawgress_inspect::payload::multipart::{Event as PartEvent, Multipart, MultipartError};
use clawgress_inspect::payload::{Claims, Inspector, Limits, Unreadable};

use super::pieces;

/// Few enough for a fuzzer to get there.
const DECODED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The second byte says which coding it is: what comes out, and how it ends, is the same in any pieces, and bounded.
pub fn payload_coding(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let Some((which, body)) = whole.split_first() else { return };
    let coding = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd][usize::from(which % 4)];
    let read = |pieces: &[&[u8]]| {
        let caps = Caps { bytes_max: DECODED_BYTES_MAX, ratio_max: 250 };
        let (mut decoder, mut out) = (Decoder::new(coding, caps), Vec::new());
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        let fed = pieces.iter().try_for_each(|piece| decoder.push(piece, &mut sink));
        let done = fed.and_then(|()| decoder.finish(&mut sink));
        assert!(out.len() as u64 <= DECODED_BYTES_MAX && decoder.memory_bytes() < 20 << 20);
        (done, out)
    };
    let cut: Vec<&[u8]> = body.chunks(pieces.first().map_or(1, |first| first.len())).collect();
    assert_eq!(read(&[body]), read(&cut));
}

/// The same fields, whole or in pieces; what is a document to `serde_json` is one here, with the same texts.
pub fn payload_json(data: &[u8]) {
    type Fields = Vec<(Kind, Vec<u8>)>;
    let (whole, pieces) = pieces(data);
    let read = |pieces: &[&[u8]], is_sequence: bool| -> Result<Fields, JsonError> {
        let (mut json, mut fields) = (Json::new(is_sequence), Fields::new());
        let mut sink = |event: Event<'_>| {
            match event {
                Event::Begin(kind) => fields.push((kind, Vec::new())),
                Event::Piece(bytes) => fields.last_mut().expect("begun").1.extend_from_slice(bytes),
                Event::Open { .. } | Event::Close | Event::End => {}
            }
            Ok::<(), JsonError>(())
        };
        pieces.iter().try_for_each(|piece| json.push(piece, &mut sink))?;
        json.finish(&mut sink)?;
        Ok(fields)
    };
    let fields = read(&[whole], false);
    assert_eq!(fields, read(&pieces, false));
    assert_eq!(read(&[whole], true), read(&pieces, true));
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(whole)
        && fields != Err(JsonError::TooDeep)
    {
        let fields = fields.expect("a document");
        let texts: Vec<&[u8]> =
            fields.iter().filter(|(kind, _)| *kind == Kind::Text).map(|(_, bytes)| &bytes[..]).collect();
        // Of names that come twice, it keeps one.
        texts_of(&value).iter().for_each(|text| assert!(texts.contains(&text.as_bytes()), "{text}"));
    }
}

fn texts_of(value: &serde_json::Value) -> Vec<&str> {
    match value {
        serde_json::Value::String(text) => vec![text],
        serde_json::Value::Array(all) => all.iter().flat_map(texts_of).collect(),
        serde_json::Value::Object(all) => all.values().flat_map(texts_of).collect(),
        _ => Vec::new(),
    }
}

/// The same parts, whole or in pieces; and what is a part can be written again.
pub fn payload_multipart(data: &[u8]) {
    type Parts = Vec<(Vec<u8>, Vec<u8>)>;
    let read = |pieces: &[&[u8]]| -> Result<Parts, MultipartError> {
        let (mut multipart, mut parts) = (Multipart::new(b"b")?, Parts::new());
        let mut sink = |event: PartEvent<'_>| {
            match event {
                PartEvent::Begin(head) => parts.push((head.to_vec(), Vec::new())),
                PartEvent::Piece(bytes) => parts.last_mut().expect("begun").1.extend_from_slice(bytes),
                PartEvent::End => {}
            }
            Ok::<(), MultipartError>(())
        };
        pieces.iter().try_for_each(|piece| multipart.push(piece, &mut sink))?;
        multipart.finish()?;
        Ok(parts)
    };
    let (whole, pieces) = pieces(data);
    let parts = read(&[whole]);
    assert_eq!(parts, read(&pieces));
    if let Ok(parts) = parts {
        let mut again = Vec::new();
        for (head, bytes) in &parts {
            again.extend([b"\r\n--b\r\n", &head[..], b"\r\n", bytes].concat());
        }
        again.extend(b"\r\n--b--");
        assert_eq!(read(&[&again]), Ok(parts));
    }
}

/// The second byte says what is said of the body: what is found, and whether it can be read, is the same in any pieces.
pub fn payload_body(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let Some((said, body)) = whole.split_first() else { return };
    let types: [&[u8]; 6] = [
        b"",
        b"application/json",
        b"multipart/form-data; boundary=b",
        b"application/x-www-form-urlencoded",
        b"application/x-ndjson",
        b"image/png",
    ];
    let codings: [&[u8]; 5] = [b"", b"gzip", b"deflate", b"br", b"zstd"];
    let claims = Claims::new(
        &[types[usize::from(said % 6)]].map(|kind| if kind.is_empty() { b"a/b" } else { kind }),
        &[codings[usize::from(said / 6 % 5)]],
    );
    let read = |pieces: &[&[u8]]| {
        let limits = Limits { decoded_bytes_max: DECODED_BYTES_MAX, ratio_max: 250 };
        let mut inspector = Inspector::new(claims.clone(), limits);
        let fed: Result<(), Unreadable> = pieces.iter().try_for_each(|piece| inspector.push(piece));
        let done = fed.and_then(|()| inspector.finish());
        assert!(inspector.facts().decoded_bytes <= DECODED_BYTES_MAX + 16 * 1024);
        assert!(inspector.memory_bytes() < 64 << 20);
        assert!(done.is_ok() || inspector.findings().next().is_none());
        (done, inspector.findings().collect::<Vec<_>>(), done.ok().map(|()| inspector.facts()))
    };
    let cut: Vec<&[u8]> = body.chunks(pieces.first().map_or(1, |first| first.len())).collect();
    assert_eq!(read(&[body]), read(&cut));
}
