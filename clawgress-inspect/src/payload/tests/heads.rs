//! What heads say of bodies, and hide nothing by.

use super::*;

/// Servers of models that don't look at what is said of a body take it for a document.
#[test]
fn a_head_that_lies_hides_no_call_where_the_path_tells_of_one() {
    let body = br#"{"model":"llama3","messages":[{"role":"user","content":"hi"}]}"#;
    for (is_told, is_call) in [(true, true), (false, false)] {
        let readings = Readings { call: Some(None), is_told, ..Readings::default() };
        let claims = Claims::new(&[b"application/x-ndjson"], &[]);
        let mut inspector = Inspector::reading(claims, Limits::default(), readings);
        inspector.push(body).and_then(|()| inspector.finish()).expect("read");
        assert_eq!(inspector.call().is_some_and(|call| call.is_call()), is_call, "{is_told}");
        // Several are read as before.
        let claims = Claims::new(&[b"application/x-ndjson"], &[]);
        let mut inspector = Inspector::reading(claims, Limits::default(), readings);
        inspector.push(b"{\"a\":1}\n{\"b\":2}\n").and_then(|()| inspector.finish()).expect("read");
        assert!(inspector.call().is_none_or(|call| !call.is_call()), "{is_told}");
    }
}

#[test]
fn a_head_that_lies_hides_no_messages() {
    let body = r#" {"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"sh"}}"#.as_bytes();
    let wide: Vec<u8> = body.iter().flat_map(|byte| [*byte, 0]).collect();
    let big: Vec<u8> = [0xfe, 0xff].into_iter().chain(body.iter().flat_map(|byte| [0, *byte])).collect();
    for (kind, coding, body) in [
        ("", "gzip", body),
        ("text/plain", "gzip", body),
        ("text/plain", "foo", body),
        ("", "gzip, gzip", body),
        ("multipart/form-data; boundary=b", "", body),
        ("", "", &wide),
        ("application/octet-stream", "", &wide),
        ("application/octet-stream", "", &big),
        ("text/plain; charset=utf-16", "", &wide),
    ] {
        for size in [2, 5, body.len()] {
            let fields = |text: &'static str| if text.is_empty() { vec![] } else { vec![text.as_bytes()] };
            let claims = Claims::new(&fields(kind), &fields(coding));
            let readings = Readings { messages: Some(false), ..Readings::default() };
            let mut inspector = Inspector::reading(claims, Limits::default(), readings);
            let _ = body.chunks(size).try_for_each(|piece| inspector.push(piece));
            let _ = inspector.finish();
            let messages = inspector.messages().expect("read");
            assert!(messages.is_doubtful() || messages.is_like(), "{kind} {coding} by {size}");
        }
    }
    // What is no JSON by its first byte is none.
    let claims = Claims::new(&[b"application/octet-stream"], &[]);
    let readings = Readings { messages: Some(false), ..Readings::default() };
    let mut inspector = Inspector::reading(claims, Limits::default(), readings);
    assert_eq!((inspector.push(b"\x00\x01\x00\x02{"), inspector.finish()), (Ok(()), Ok(())));
    assert!(!inspector.messages().expect("read").is_doubtful());
}

/// Parts of a form that a server takes for documents are read as members of a call.
#[test]
fn documents_in_parts_of_a_form_are_members_of_a_call() {
    const SESSION: &str = r#"{"instructions":"Speak.","tools":[{"type":"function","name":"shell"}]}"#;
    let json = "Content-Type: application/json\r\n";
    let read = |parts: &[(&str, &str, &str)], size: usize, has_parts: bool| {
        let mut body = String::new();
        for (name, head, value) in parts {
            body +=
                &format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"{head}\r\n\r\n{value}\r\n");
        }
        body += "--b--\r\n";
        let claims = Claims::new(&[b"multipart/form-data; boundary=b"], &[]);
        let readings = Readings { call: Some(None), has_parts, ..Readings::default() };
        let mut inspector = Inspector::reading(claims, Limits::default(), readings);
        let mut pieces = body.as_bytes().chunks(size);
        let looked = pieces.try_for_each(|piece| inspector.push(piece)).and_then(|()| inspector.finish());
        let call = inspector.call().expect("read");
        looked.map(|()| (call.call().tools.clone(), call.error()))
    };
    let shell = || vec!["shell".to_owned()];
    let head = format!("\r\n{}", json.trim_end());
    let file = format!("; filename=\"blob\"{head}");
    let marked = format!("\u{feff} {SESSION}");
    let many = format!("[{}] see there", "1,".repeat(40));
    for (parts, wanted) in [
        (&[("sdp", "", "v=0"), ("session", &*head, SESSION)][..], Ok((shell(), None))),
        // Whatever is said of it: servers look at the name.
        (&[("session", "", SESSION)], Ok((shell(), None))),
        (&[("session", &file, SESSION)], Ok((shell(), None))),
        (&[("session", &head, &marked)], Ok((shell(), None))),
        (&[("tools", "", r#"[{"type":"function","name":"shell"}]"#)], Ok((shell(), None))),
        // A text may begin like a document.
        (&[("prompt", "", "[slow] {a} cat")], Ok((vec![], None))),
        // Also where documents are taken, of what can be none.
        (&[("documents", "", "[1] see the appendix")], Ok((vec![], None))),
        (&[("options", "", "{a}"), ("messages", "", "[x] \"tools\"")], Ok((vec![], None))),
        (&[("options", "", "{}"), ("documents", "", "[1, 2]"), ("messages", "", "[]")], Ok((vec![], None))),
        (&[("options", "", "{ "), ("documents", "", "[1")], Ok((vec![], None))),
        // But not of what a server may read to where it breaks, nor of what is said to be one.
        (
            &[("tools", "", r#"[{"type":"function","name":"shell"}] see there"#)],
            Err(Unreadable::JsonMalformed),
        ),
        (&[("documents", &head, "[1] see the appendix")], Err(Unreadable::JsonMalformed)),
        (&[("documents", "", &many)], Err(Unreadable::JsonMalformed)),
        // Whatever a document is called.
        (&[("payload", &head, SESSION)], Ok((shell(), None))),
        (&[("payload", &file, SESSION)], Ok((shell(), None))),
        (&[("payload", "", SESSION)], Ok((vec![], None))),
        (&[("payload", &head, r#"{"model":"a","model":"b"}"#)], Ok((vec![], Some(CallError::Twice)))),
        (&[("session", &head, "none")], Ok((vec![], None))),
        (&[("session", &head, "")], Ok((vec![], None))),
        // What can't be read, or not in one way.
        (&[("session", &head, r#"{"a":"#)], Err(Unreadable::JsonMalformed)),
        (&[("session", "", r#"{"a":"#)], Err(Unreadable::JsonMalformed)),
        (&[("session", &head, "{} {}")], Err(Unreadable::JsonMalformed)),
        (&[("session[tools][][name]", "", "shell")], Ok((vec![], Some(CallError::Name)))),
        (&[("metadata[a]", "", "b")], Ok((vec![], None))),
    ] {
        for size in [1, 3, 7, 4096] {
            assert_eq!(read(parts, size, true), wanted, "{parts:?} by {size}");
        }
    }
    // Of what goes to nobody who is listed, nothing is sure.
    assert_eq!(read(&[("session", "", r#"{"a":"#)], 4096, false).map(|read| read.1), Ok(None));
}

/// What no JSON is may be a document to readers that are lenient.
#[test]
fn a_text_of_a_form_is_none_that_any_reader_goes_on_in() {
    const TOOL: &str = r#"{type:'function',name:'shell'}"#;
    let read = |value: &str, size: usize| {
        let body =
            format!("--b\r\nContent-Disposition: form-data; name=\"session\"\r\n\r\n{value}\r\n--b--\r\n");
        let claims = Claims::new(&[b"multipart/form-data; boundary=b"], &[]);
        let readings = Readings { call: Some(None), has_parts: true, ..Readings::default() };
        let mut inspector = Inspector::reading(claims, Limits::default(), readings);
        let mut pieces = body.as_bytes().chunks(size);
        pieces.try_for_each(|piece| inspector.push(piece)).and_then(|()| inspector.finish())
    };
    let (long, longer) = ("word ".repeat(20), "word ".repeat(200));
    for (value, is_text) in [
        (&*format!("{{/**/\"tools\":[{TOOL}]}}"), false),
        (&format!("{{//x\n\"tools\":[{TOOL}]}}"), false),
        (&format!("{{#x\n\"tools\":[{TOOL}]}}"), false),
        (&format!("{{'tools':[{TOOL}]}}"), false),
        (&format!("{{`tools`:[{TOOL}]}}"), false),
        (&format!("{{tools:[{TOOL}]}}"), false),
        (&format!("{{tools = [{TOOL}]}}"), false),
        (&format!("{{tools=>[{TOOL}]}}"), false),
        (&format!("{{1:2,\"tools\":[{TOOL}]}}"), false),
        (&format!("{{{long}:1,tools:[{TOOL}]}}"), false),
        (&format!("{{{longer}:1,tools:[{TOOL}]}}"), false),
        (&format!("{{\u{a0}\"tools\":[{TOOL}]}}"), false),
        (&format!("{{\u{c}\"tools\":[{TOOL}]}}"), false),
        (&format!("[x, {TOOL}]"), false),
        (&format!("[, {TOOL}]"), false),
        (&format!("[[1,], {TOOL}]"), false),
        (&format!("[x #]\n, {TOOL}]"), false),
        (&format!("[x /*]*/, {TOOL}]"), false),
        (&format!("[\"]\", {TOOL}]"), false),
        (&format!("['x', {TOOL}]"), false),
        ("[1] see the appendix", true),
        ("[slow] {a} cat", true),
        ("[slow, sad; and/or don't] x", true),
        ("[Verse 1: sad] x", true),
        (&format!("[{long}] x"), true),
        ("{a}", true),
        ("{a", true),
        ("{\u{e9}} x", true),
        ("{}x: {y: 1}", true),
    ] {
        let wanted = if is_text { Ok(()) } else { Err(Unreadable::JsonMalformed) };
        for size in [1, 3, 7, 64, 4096] {
            assert_eq!(read(value, size), wanted, "{value} by {size}");
        }
    }
}

/// Frames begin with their length, and short ones as text in UTF-32 does.
#[test]
fn frames_are_no_text_in_another_charset() {
    let key = b"{\"a\":\"-----BEGIN PRIVATE KEY-----\"}";
    for (media_type, head) in [
        ("application/vnd.amazon.eventstream", &b"\0\0\0\x76\0\0\0\x52\x96\xd5\xfa\xde"[..]),
        ("application/grpc", b"\0\0\0\x01\x2c"),
        ("application/grpc+proto", b"\0\0\0\x01\x2c"),
    ] {
        let frame = [head, key].concat();
        finds(media_type, "", &frame, &["private_key"]);
        refuses("text/plain", "", &frame, Unreadable::Charset);
        refuses("", "", &frame, Unreadable::Charset);
    }
}

/// What is said to be frames and is text is read as what it is.
#[test]
fn text_in_another_charset_is_refused_also_where_frames_are_said() {
    let key = "{\"a\":\"-----BEGIN PRIVATE KEY-----\"}";
    let units = |swap: bool| {
        key.encode_utf16().flat_map(move |unit| if swap { unit.to_be_bytes() } else { unit.to_le_bytes() })
    };
    let points = |swap: bool| {
        let point = move |c: char| if swap { u32::from(c).to_be_bytes() } else { u32::from(c).to_le_bytes() };
        key.chars().flat_map(point)
    };
    let texts: [Vec<u8>; 8] = [
        units(false).collect(),
        units(true).collect(),
        points(false).collect(),
        points(true).collect(),
        [0xff, 0xfe].into_iter().chain(units(false)).collect(),
        [0xfe, 0xff].into_iter().chain(units(true)).collect(),
        [0, 0, 0xfe, 0xff].into_iter().chain(points(true)).collect(),
        // Another character in the place of a message's first byte.
        b"\0\0\0a\0\x01\xf6\x00".iter().copied().chain(points(true)).collect(),
    ];
    for media_type in ["application/vnd.amazon.eventstream", "application/grpc", "application/grpc-web+proto"]
    {
        for text in &texts {
            refuses(media_type, "", text, Unreadable::Charset);
            let form = [
                &b"--b\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Type: "[..],
                media_type.as_bytes(),
                b"\r\n\r\n",
                text,
                b"\r\n--b--\r\n",
            ];
            refuses("multipart/form-data; boundary=b", "", &form.concat(), Unreadable::Charset);
        }
    }
    // Lengths without their checksum.
    let head = b"\0\0\0\x76\0\0\0\x52\x96\xd5\xfa\xdf";
    refuses("application/vnd.amazon.eventstream", "", &[head, key.as_bytes()].concat(), Unreadable::Charset);
    // Messages of gRPC of 256 bytes up to 65,535, and short ones that are packed.
    for length in [256_u16, 300, 4096, 65_535] {
        let [high, low] = length.to_be_bytes();
        let frame = [&[0, 0, 0, high, low, 0x0a], key.as_bytes()].concat();
        finds("application/grpc", "", &frame, &["private_key"]);
    }
    let packed = [&[1, 0, 0, 0, 40, 0x78], key.as_bytes()].concat();
    finds("application/grpc", "", &packed, &["private_key"]);
}

#[test]
fn documents_a_line_are_as_many_as_there_are() {
    let lines = b"{\"a\":1}\n{\"a\":\"-----BEGIN PRIVATE KEY-----\"}\n";
    for media_type in ["application/x-ndjson", "application/stream+json"] {
        finds(media_type, "", lines, &["private_key"]);
    }
    refuses("application/json", "", lines, Unreadable::JsonMalformed);
}
