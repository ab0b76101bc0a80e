//! Targets of streams that are changed as they come, of what is heard in bodies, and of what many requests carry.

use std::sync::{Arc, LazyLock};

use clawgress_inspect::encoded::split::{Piece, Window};
use clawgress_inspect::llm::answer::Format;
use clawgress_inspect::llm::change::{Wanted, changed};
use clawgress_inspect::llm::rename::{Renamed, Renamer};
use clawgress_inspect::llm::{CapNames, Provenance, Request, Surface};
use clawgress_inspect::payload::{Claims, Inspector, Limits};
use clawgress_inspect::prompt::{BUILT_IN, Rules};
use clawgress_inspect::tool::{Ends, changed_events, filtered};

use super::pieces;

/// Read once: it takes longer than a text does.
static RULES: LazyLock<Arc<Rules>> =
    LazyLock::new(|| Arc::new(Rules::parse(BUILT_IN).expect("the rules that come with the program")));

/// The names of a call whose tool `read` is `fetch` to its model.
static RENAMED: LazyLock<Renamed> = LazyLock::new(|| {
    let body = br#"{"model":"m","messages":[],"tools":[{"type":"function","function":{"name":"read"}}]}"#;
    let surface = Surface::ChatCompletions;
    let mut inspector =
        Inspector::of_call(Claims::new(&[b"application/json"], &[]), Limits::default(), Some(surface));
    inspector.push(body).and_then(|()| inspector.finish()).expect("a call");
    let call = inspector.call().map(Request::call).expect("a call");
    let wanted = Wanted {
        params: &[],
        tokens_max: None,
        cap_names: CapNames::Newer,
        takes_tool: &|_| false,
        takes_tools: false,
        renames: &[("read", "fetch")],
        prompt: None,
    };
    changed(body, surface, call, &wanted).expect("a call").renamed.expect("a tool")
});

/// The second byte says which format: an answer is given back its names, or refused, alike in any pieces; and what was given
/// back is not changed again.
pub fn llm_rename(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let Some((which, body)) = whole.split_first() else { return };
    let format = [Format::EventStream, Format::Json, Format::Lines][usize::from(which % 3)];
    let read = |pieces: &[&[u8]]| {
        let mut renamer = Renamer::new(RENAMED.clone(), format, 1 << 30).expect("a form");
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(renamer.push(piece, false).ok()?);
        }
        out.extend(renamer.push(b"", true).ok()?);
        Some((out, renamer.is_changed()))
    };
    let back = read(&[body]);
    let cut: Vec<&[u8]> = body.chunks(pieces.first().map_or(1, |first| first.len())).collect();
    assert_eq!(back, read(&cut));
    if let Some((back, is_changed)) = back {
        assert!(is_changed || back == body);
        assert_eq!(read(&[&back]), Some((back.clone(), false)));
    }
}

/// Lists in a stream are filtered alike in any pieces, each cut where its events end.
pub fn tool_events(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let less = |part: &[u8]| {
        let less = changed_events(part, &mut |data| {
            let less = filtered(data, &mut |name, _| name.len() % 2 == 0)?;
            Ok(less.map(|less| less.body))
        });
        less.map(|less| less.map_or(part.to_vec(), String::into_bytes))
    };
    let at_once = less(whole).ok();
    let (mut ends, mut held, mut out) = (Ends::default(), Vec::new(), Some(Vec::new()));
    let mut parts = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        let end = ends.next(&held);
        let rest = held.split_off(end);
        parts.push(std::mem::replace(&mut held, rest));
    }
    parts.push(held);
    assert_eq!(parts.concat(), whole);
    for part in &parts {
        let now = less(part).ok();
        out = out.zip(now).map(|(out, now)| [out, now].concat());
    }
    assert_eq!(out, at_once);
}

/// Three bytes are a request: when, whither, and with what. What was found is found again, what went on is no news, and
/// nothing is told of nothing.
pub fn split_window(data: &[u8]) {
    let (mut window, mut now_s) = (Window::default(), 0);
    for request in data.chunks_exact(3) {
        now_s += i64::from(request[0]) * 7;
        let destination = format!("{}.test", request[1] % 70);
        let bytes = usize::from(request[2]) << (request[1] / 70 * 4);
        let piece = Piece::of(&request[2..], bytes);
        let piece = if request[0] % 2 == 0 { piece } else { piece.untold() };
        assert!(!window.noted(now_s, &destination, &[]));
        let is_found = window.noted(now_s, &destination, &[piece]);
        assert!(!is_found || bytes > 0);
        assert_eq!(window.noted(now_s, &destination, &[piece, piece]), is_found);
    }
}

/// The second byte says what is said of the body, and where it comes from: what is heard in it is the same in any pieces.
pub fn hearing(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let Some((said, body)) = whole.split_first() else { return };
    let types: [&[u8]; 4] = [b"text/plain", b"application/json", b"application/x-ndjson", b"text/html"];
    let from =
        [Provenance::ToolOutput, Provenance::Retrieved, Provenance::Unknown][usize::from(said / 4 % 3)];
    let read = |pieces: &[&[u8]]| {
        let limits = Limits { decoded_bytes_max: 4 << 20, ratio_max: 250 };
        let claims = Claims::new(&[types[usize::from(said % 4)]], &[]);
        let mut inspector = Inspector::new(claims, limits).hearing(&RULES, from);
        let fed = pieces.iter().try_for_each(|piece| inspector.push(piece));
        let done = fed.and_then(|()| inspector.finish());
        assert!(inspector.memory_bytes() < 64 << 20);
        (done, inspector.assessment())
    };
    let (done, heard) = read(&[body]);
    let cut: Vec<&[u8]> = body.chunks(pieces.first().map_or(1, |first| first.len())).collect();
    assert_eq!((done, heard.clone()), read(&cut));
    assert_eq!(heard.is_some(), done.is_ok());
    assert!(heard.is_none_or(|heard| heard.score <= 100));
}
