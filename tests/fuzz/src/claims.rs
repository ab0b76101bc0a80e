//! Targets of what is said of bodies, and of messages of tools that are read as they come.

use clawgress_inspect::payload::{Claims, Inspector, Limits, Readings, Unreadable};
use clawgress_inspect::tool::{Head, is_like, read};

use super::pieces;

/// Most bytes that a body may come to.
const DECODED_BYTES_MAX: u64 = 1 << 20;

/// A media type, another one, and a coding, a line each, an empty one for none; and the body, whatever it is: archives, tables and
/// letters of other charsets, too. What is said has one meaning, and what is read is the same in any pieces.
pub fn payload_claims(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let mut parts = whole.splitn(4, |b| *b == b'\n');
    let mut field = || parts.next().unwrap_or_default();
    let (kind, other, coding) = (field(), field(), field());
    let body = parts.next().unwrap_or_default();
    let types: Vec<&[u8]> = [kind, other].into_iter().filter(|value| !value.is_empty()).collect();
    let codings: Vec<&[u8]> = Some(coding).into_iter().filter(|value| !value.is_empty()).collect();
    let claims = Claims::new(&types, &codings);
    assert_eq!(claims, Claims::new(&types, &codings));
    let told = &claims.media_type;
    assert!(told.len() <= 255 && !told.bytes().any(|b| b.is_ascii_uppercase() || b == b';'), "{told:?}");
    assert!(!claims.is_type_unclear() || told.is_empty());
    assert!(!types.is_empty() || told.is_empty() && !claims.is_type_unclear());
    let read = |pieces: &[&[u8]]| {
        let limits = Limits { decoded_bytes_max: DECODED_BYTES_MAX, ratio_max: 250 };
        let mut inspector = Inspector::new(claims.clone(), limits);
        let fed: Result<(), Unreadable> = pieces.iter().try_for_each(|piece| inspector.push(piece));
        let done = fed.and_then(|()| inspector.finish());
        assert!(inspector.facts().decoded_bytes <= DECODED_BYTES_MAX + 16 * 1024);
        assert!(inspector.memory_bytes() < 64 << 20);
        (done, inspector.findings().collect::<Vec<_>>(), inspector.seen())
    };
    let cut: Vec<&[u8]> = body.chunks(pieces.first().map_or(1, |first| first.len())).collect();
    let (done, found, seen) = read(&[body]);
    let (done_cut, found_cut, seen_cut) = read(&cut);
    assert_eq!(done, done_cut);
    // Of what can't be read, nobody asks what was found before that.
    assert!(done.is_err() || (found, seen) == (found_cut, seen_cut));
}

/// What a client sends to a server of tools is the same messages as it streams by, in any pieces, as when it is read at once; and
/// what is none holds no more than it may.
pub fn tool_reader(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let stream = |pieces: &[&[u8]]| {
        let readings = Readings { messages: Some(true), ..Readings::default() };
        let claims = Claims::new(&[b"application/json"], &[]);
        let mut inspector = Inspector::reading(claims, Limits::default(), readings);
        let fed = pieces.iter().try_for_each(|piece| inspector.push(piece));
        let done = fed.and_then(|()| inspector.finish());
        let reader = inspector.messages().expect("it was asked for");
        assert!(reader.memory_bytes() <= (4 << 20) + 128 * whole.len());
        let told = (reader.read(&Head::default()), reader.id(), reader.document().map(|one| one.cloned()));
        (done, told, reader.is_like(), reader.is_doubtful())
    };
    let at_once = stream(&[whole]);
    assert_eq!(at_once, stream(&pieces));
    let (done, told, is_messages, _) = at_once;
    if let (Ok(()), Ok(messages)) = (&done, &told.0) {
        assert_eq!(read(whole, &Head::default()).as_ref(), Ok(messages));
        assert!(is_messages || messages.is_empty(), "they look like what they are");
    }
    // Of what is a document, whoever looks at it says the same.
    if done.is_ok() && is_messages {
        assert!(is_like(whole));
    }
}
