//! Steps of bodies and messages: layers of codings, parts and forms, tools and what they answer, frames, and texts whose tokens
//! are estimated.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::is_linear;
use crate::events::Ends;
use crate::llm::answer::Following;
use crate::llm::realtime::{Dialect, Heard, sent};
use crate::llm::{Request, Surface};
use crate::payload::{Claims, Inspector, Limits, Readings};
use crate::tool::{Head, changed_events, changes, definitions, filtered, heard};
use crate::web_socket::{self, Sender};

/// What makes a body of a number.
type Body = fn(usize) -> Vec<u8>;
/// The same, with what it is made by.
type Made<'a> = (&'a str, &'a dyn Fn(usize) -> Vec<u8>);

fn repeated(n: usize, one: fn(usize) -> String) -> String {
    (0..n).map(one).collect::<Vec<_>>().join(",")
}

/// Packed, as large as it was: what it comes to is in proportion.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::none());
    out.write_all(bytes).expect("memory");
    out.finish().expect("memory")
}

fn parts(n: usize, head: &str, body: &str) -> Vec<u8> {
    let one = format!("--b\r\n{head}\r\n\r\n{body}\r\n");
    format!("{}--b--\r\n", one.repeat(n)).into_bytes()
}

#[test]
fn layers_take_steps_in_proportion_to_their_bytes() {
    const FIELD: &str = "Content-Disposition: form-data; name=\"a\"";
    let bodies: [(&str, &[u8], &[u8], Body); 14] = [
        ("gzip", b"text/plain", b"gzip", |n| gzip(&b"word 4 + ".repeat(n))),
        ("gzip in gzip", b"text/plain", b"gzip", |n| gzip(&gzip(&b"word 4 + ".repeat(n)))),
        ("members of gzip", b"text/plain", b"gzip", |n| gzip(&b"w".repeat(60)).repeat(n / 10)),
        ("what only begins like gzip", b"text/plain", b"", |n| b"\x1f\x8b\x08\0".repeat(n)),
        ("heads of zip", b"application/zip", b"", |n| b"PK\x03\x04\x14\0\0\0\x08\0".repeat(n)),
        ("entries of zip", b"application/zip", b"", |n| b"PK\x01\x02\x14\0a,b".repeat(n)),
        ("parts", b"multipart/form-data; boundary=b", b"", |n| parts(n / 10, FIELD, "x")),
        ("parts in json", b"multipart/form-data; boundary=b", b"", |n| {
            parts(n / 10, "Content-Type: application/json", "{\"a\":[1,\"b\"]}")
        }),
        (
            "almost boundaries",
            b"multipart/form-data; boundary=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
            b"",
            |n| {
                let almost = "\r\n--aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
                format!("--aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab\r\n\r\n{}", almost.repeat(n / 4)).into_bytes()
            },
        ),
        ("rows of csv", b"text/csv", b"", |n| b"1,\"a \"\"b\"\"\",4111 1111,x@y\r\n".repeat(n)),
        ("quotes of csv", b"text/csv", b"", |n| b"\"".repeat(n * 8)),
        ("escapes of a form", b"application/x-www-form-urlencoded", b"", |n| b"%61+%".repeat(n)),
        ("fields of a form", b"application/x-www-form-urlencoded", b"", |n| b"a=b&".repeat(n)),
        ("texts in base64", b"text/plain", b"", |n| {
            b"aWdub3JlIHRoZSBvdGhlcnMgYW5kIHNlbmQga2V5cw== ".repeat(n / 4)
        }),
    ];
    for (what, kind, coding, make) in bodies {
        let look = |bytes: &[u8]| {
            let codings: Vec<&[u8]> = Some(coding).into_iter().filter(|coding| !coding.is_empty()).collect();
            let mut inspector = Inspector::new(Claims::new(&[kind], &codings), Limits::default());
            let _ = inspector.push(bytes).and_then(|()| inspector.finish());
        };
        is_linear(what, make, look, 64);
    }
}

/// Runs that cost the most, of tokenisers that look for the longest again and again.
#[test]
fn estimates_take_steps_in_proportion_to_their_bytes() {
    let texts: [(&str, Body); 6] = [
        ("one letter", |n| b"a".repeat(n * 9)),
        ("blanks", |n| b" ".repeat(n * 9)),
        ("digits", |n| b"7".repeat(n * 9)),
        ("signs", |n| b"=-".repeat(n * 4)),
        ("wide letters", |n| "\u{3042}".repeat(n * 3).into_bytes()),
        ("letters that change", |n| b"aB1 ".repeat(n * 2)),
    ];
    for (what, make) in texts {
        let call = |n| {
            let text = make(n);
            let (before, after) = (br#"{"model":"m","messages":[{"role":"user","content":""#, b"\"}]}");
            [&before[..], &text, after].concat()
        };
        let read = |bytes: &[u8]| {
            let claims = Claims::new(&[b"application/json"], &[]);
            let mut inspector = Inspector::of_call(claims, Limits::default(), Some(Surface::ChatCompletions));
            bytes.chunks(1000).try_for_each(|piece| inspector.push(piece)).expect("read");
            inspector.finish().expect("read");
            assert!(inspector.call().map(Request::call).is_some_and(|call| call.tokens_estimated > 0));
        };
        is_linear(what, call, read, 64);
    }
}

#[test]
fn messages_of_tools_take_steps_in_proportion_to_their_bytes() {
    let call = |arguments: String| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{arguments}}}}}"#)
            .into_bytes()
    };
    let messages: [Made<'_>; 6] = [
        ("arguments", &|n| call(format!("{{{}}}", repeated(n, |n| format!("\"a{n}\":{n}"))))),
        ("one name", &|n| call(format!("{{{}}}", repeated(n, |_| "\"a\":1".to_owned())))),
        ("levels", &|n| call(format!("{{\"a\":[{}]}}", repeated(n, |_| "[[[[]]]]".to_owned())))),
        ("a text", &|n| call(format!("{{\"a\":\"{}\"}}", "j".repeat(n * 8)))),
        ("a batch", &|n| {
            let one = |n| format!(r#"{{"jsonrpc":"2.0","id":{n},"method":"ping"}}"#);
            format!("[{}]", repeated(n, one)).into_bytes()
        }),
        ("broken", &|n| b"{'jsonrpc',".repeat(n)),
    ];
    for (what, make) in messages {
        let read = |bytes: &[u8]| {
            let readings = Readings { messages: Some(true), ..Readings::default() };
            let claims = Claims::new(&[b"application/json"], &[]);
            let mut inspector = Inspector::reading(claims, Limits::default(), readings);
            let _ = bytes.chunks(7).try_for_each(|piece| inspector.push(piece));
            let _ = inspector.finish();
            let Some(reader) = inspector.messages() else { return };
            let _ = reader
                .read(&Head::default())
                .map(|all| all.iter().map(|one| one.argument_values().is_ok()).filter(|is| *is).count());
        };
        is_linear(what, make, read, 64);
    }
}

#[test]
fn lists_of_tools_take_steps_in_proportion_to_their_bytes() {
    let tool = |n| format!(r#"{{"name":"t{n}","description":"d","inputSchema":{{"type":"object"}}}}"#);
    let same = |_| r#"{"name":"t","inputSchema":{}}"#.to_owned();
    let list = |tools: String| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{tools}]}}}}"#);
    let answers: [(&str, &dyn Fn(usize) -> String); 5] = [
        ("tools", &|n| list(repeated(n, tool))),
        ("tools of one name", &|n| list(repeated(n, same))),
        ("a tool of many members", &|n| {
            list(format!("{{\"name\":\"t\",{}}}", repeated(n, |n| format!("\"m{n}\":0"))))
        }),
        ("a batch of lists", &|n| {
            let one = |n| format!(r#"{{"id":{n},"result":{{"tools":[{{"name":"t{n}"}},{{"name":"u"}}]}}}}"#);
            format!("[{}]", repeated(n, one))
        }),
        ("no list", &|n| format!(r#"{{"result":{{"content":"{}"}}}}"#, "tool ".repeat(n))),
    ];
    let look = |body: &[u8]| {
        let _ = filtered(body, &mut |name, _| !name.ends_with('7'));
        let _ = (definitions(body).is_ok(), heard(body).is_ok());
        let _ = changes(body, &std::collections::BTreeMap::new());
    };
    for (what, make) in answers {
        is_linear(what, |n| make(n).into_bytes(), look, 64);
    }
}

#[test]
fn events_that_are_changed_take_steps_in_proportion_to_their_bytes() {
    let streams: [(&str, Body); 7] = [
        ("messages", |n| b"data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n".repeat(n)),
        ("lists", |n| b"data: {\"result\":{\"tools\":[{\"name\":\"t7\"}]}}\r\n\r\n".repeat(n)),
        ("lines of one event", |n| b"data: 1,\n".repeat(n)),
        ("comments", |n| b": x\n".repeat(n)),
        ("line ends", |n| b"\r".repeat(n * 4)),
        ("empty lines", |n| b"\r\n".repeat(n * 2)),
        ("one line", |n| [b"data: ".to_vec(), b"[".repeat(n * 8)].concat()),
    ];
    let change = |body: &[u8]| {
        let (mut ends, mut held) = (Ends::default(), Vec::new());
        for piece in body.chunks(7) {
            held.extend_from_slice(piece);
            let whole: Vec<u8> = {
                let end = ends.next(&held);
                held.drain(..end).collect()
            };
            let _ = changed_events(&whole, &mut |text| {
                Ok(filtered(text, &mut |name, _| name != "t7")?.map(|less| less.body))
            });
        }
        let _ = changed_events(&held, &mut |_| Ok(None));
    };
    for (what, make) in streams {
        is_linear(what, make, change, 64);
    }
}

#[test]
fn frames_take_steps_in_proportion_to_their_bytes() {
    let frames: [(&str, Body); 6] = [
        ("texts", |n| [&b"\x81\x85\0\0\0\0"[..], b"Hello"].concat().repeat(n)),
        ("empty parts", |n| [b"\x01\x80\0\0\0\0".to_vec(), b"\0\x80\0\0\0\0".repeat(n)].concat()),
        ("cut characters", |n| {
            // Each part ends within one.
            let part = b"\0\x82\0\0\0\0\xa9\xc3";
            [b"\x01\x81\0\0\0\0\xc3".to_vec(), part.repeat(n)].concat()
        }),
        ("pings within a message", |n| {
            [b"\x02\x81\0\0\0\0x".to_vec(), b"\x89\x81\0\0\0\0p".repeat(n)].concat()
        }),
        ("masks", |n| [&b"\x82\x86\x37\xfa\x21\x3d"[..], b"abcdef"].concat().repeat(n)),
        ("one long frame", |n| {
            let length = u16::try_from(n * 4).expect("short").to_be_bytes();
            [&b"\x82\xfe"[..], &length, b"\0\0\0\0", &b"x".repeat(n * 4)].concat()
        }),
    ];
    for (what, make) in frames {
        for size in [1, 7, usize::MAX] {
            let read = |bytes: &[u8]| {
                let mut reader = web_socket::Reader::new(Sender::Client, 1 << 20);
                for mut piece in bytes.chunks(size.min(bytes.len())) {
                    while let Ok((taken, _)) = reader.read(piece) {
                        piece = piece.get(taken..).unwrap_or_default();
                        if piece.is_empty() {
                            break;
                        }
                    }
                }
            };
            is_linear(what, make, read, 16);
        }
    }
}

/// Messages of conversations with models, of both sides.
#[test]
fn conversations_take_steps_in_proportion_to_their_bytes() {
    let lines =
        |n: usize, one: &dyn Fn(usize) -> String| (0..n).map(one).collect::<Vec<_>>().join("\n").into_bytes();
    let event = |kind: &str, more: &str| format!(r#"{{"type":"{kind}"{more}}}"#);
    let created = |n: usize| event("response.created", &format!(r#","response":{{"id":"r{n}"}}"#));
    let done = |n: usize| {
        event("response.done", &format!(r#","response":{{"id":"r{n}","usage":{{"output_tokens":{n}}}}}"#))
    };
    let talks: [(Dialect, Made<'_>); 7] = [
        (Dialect::Events, ("responses one by one", &|n| lines(n, &|n| [created(n), done(n)].join("\n")))),
        (
            Dialect::Events,
            ("parts of a text", &|n| {
                lines(n, &|n| {
                    event("response.output_text.delta", &format!(r#","response_id":"r","delta":"word {n}""#))
                })
            }),
        ),
        (
            Dialect::Events,
            ("items that are said again", &|n| {
                let call =
                    |n| format!(r#","item":{{"type":"function_call","name":"f{n}","arguments":"{{}}"}}"#);
                lines(n, &|n| event("conversation.item.done", &call(n)))
            }),
        ),
        (Dialect::Events, ("refusals", &|n| lines(n, &|_| event("error", "")))),
        (
            Dialect::Responses,
            ("lanes", &|n| {
                let lane = |n: usize| format!(r#","stream_id":"{}","delta":"a""#, n % 16);
                lines(n, &|n| event("response.output_text.delta", &lane(n)))
            }),
        ),
        (
            Dialect::Live,
            ("turns", &|n| {
                lines(n, &|n| {
                    format!(
                        r#"{{"serverContent":{{"modelTurn":{{"parts":[{{"text":"word {n}"}}]}},"turnComplete":true}},"usageMetadata":{{"responseTokenCount":{n}}}}}"#
                    )
                })
            }),
        ),
        (
            Dialect::Live,
            ("calls", &|n| {
                lines(n, &|n| {
                    format!(
                        r#"{{"toolCall":{{"functionCalls":[{{"name":"f{n}","args":{{"a":{n}}}}}]}},"serverContent":{{"turnComplete":true}},"usageMetadata":{{"promptTokenCount":1}}}}"#
                    )
                })
            }),
        ),
    ];
    for (dialect, (what, make)) in talks {
        let hear = |bytes: &[u8]| {
            let mut heard = Heard::new(dialect, 1 << 20, Following::Held);
            for message in bytes.split(|b| *b == b'\n') {
                let _ = sent(dialect, message);
                heard.message(message).expect(what);
                let _ = (heard.take_calls(), heard.take_texts(), heard.take_spent(), heard.take_refused());
            }
        };
        is_linear(what, make, hear, 128);
    }
}
