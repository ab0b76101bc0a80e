//! Steps that tests count: what work comes to, whatever the machine. Must never be part of a program.

use std::cell::Cell;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// Takes note of `n` steps.
pub(crate) fn add(n: usize) {
    TAKEN.with(|taken| taken.set(taken.get() + n as u64));
}

/// Steps that some work takes.
fn of(work: impl FnOnce()) -> u64 {
    TAKEN.with(|taken| taken.set(0));
    work();
    TAKEN.with(Cell::get)
}

/// Holds that what this makes of a number costs no more than so many steps for each of its bytes, and three times as much of it
/// no more than in proportion.
#[track_caller]
fn is_linear(what: &str, make: impl Fn(usize) -> Vec<u8>, work: impl Fn(&[u8]), per_byte_max: u64) {
    let (less, more) = (make(3000), make(9000));
    let [few, many] = [&less, &more].map(|bytes| of(|| work(bytes)));
    let (bytes_less, bytes_more) = (less.len() as u64, more.len() as u64);
    assert!(few > 0 && many <= per_byte_max * bytes_more, "{what}: {many} steps of {bytes_more} bytes");
    // A tenth for what does not grow evenly: numbers have more digits.
    let most = few * bytes_more / bytes_less;
    assert!(many <= most + most / 10, "{what}: {few} steps of {bytes_less} bytes, {many} of {bytes_more}");
}

mod bodies;

mod tests {
    use super::*;
    use crate::llm::answer::{Editor, Following, Format, Reader};
    use crate::llm::change::{Wanted, changed};
    use crate::llm::rename::{Renamer, renamed};
    use crate::llm::{CapNames, Request, Surface};
    use crate::payload::{Claims, Inspector, Limits};
    use crate::tool::Value;

    /// What makes one of a number.
    type Document = fn(usize) -> String;
    type Body = fn(usize) -> Vec<u8>;

    /// Documents of each dialect and shape that answers may have, hostile or not.
    fn documents() -> Vec<(&'static str, Document)> {
        vec![
            ("text", |n| format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"word {n}"}}}}]}}"#)),
            ("letters", |_| format!(r#"{{"choices":[{{"delta":{{"content":"{}"}}}}]}}"#, "a".repeat(64))),
            ("parts of a call", |n| {
                format!(
                    r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"index":0,"function":{{"arguments":"{n}"}}}}]}}}}]}}"#
                )
            }),
            ("parts of a name", |n| {
                format!(
                    r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"index":0,"function":{{"name":"n{n}"}}}}]}}}}]}}"#
                )
            }),
            ("calls by number", |n| {
                format!(
                    r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"index":{n},"function":{{"name":"a"}}}}]}}}}]}}"#
                )
            }),
            ("calls by id", |n| {
                format!(
                    r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"id":"c{n}","function":{{"name":"a"}}}}]}}}}]}}"#
                )
            }),
            ("whole calls", |n| {
                format!(
                    r#"{{"candidates":[{{"content":{{"parts":[{{"functionCall":{{"name":"f{n}","args":{{"a":{n}}}}}}}]}}}}]}}"#
                )
            }),
            ("blocks", |n| {
                format!(
                    r#"{{"type":"content_block_start","index":{n},"content_block":{{"type":"tool_use","name":"a","input":{{}}}}}}"#
                )
            }),
            ("items", |n| {
                format!(
                    r#"{{"type":"response.output_item.added","output_index":{n},"item":{{"type":"function_call","name":"a"}}}}"#
                )
            }),
            ("levels", |_| format!("{}{}", "[".repeat(60), "]".repeat(60))),
            ("too many levels", |_| "[".repeat(100)),
            ("names", |n| format!(r#"{{"a{n}":{{"b":1,"c":2,"d":3,"e":4,"f":5,"g":6}},"h":1,"i":2}}"#)),
            ("numbers", |n| format!(r#"{{"usage":{{"prompt_tokens":{n}9999999999999999999999999999}}}}"#)),
            ("halves of characters", |_| {
                r#"{"choices":[{"delta":{"content":"\ud800\udfff\ud800"}}]}"#.to_owned()
            }),
            ("nothing", |_| String::new()),
        ]
    }

    fn stream(document: Document) -> impl Fn(usize) -> Vec<u8> {
        move |n| (0..n).flat_map(|n| format!("data: {}\n\n", document(n)).into_bytes()).collect()
    }

    #[test]
    fn answers_take_steps_in_proportion_to_their_bytes() {
        for (what, document) in documents() {
            let read = |bytes: &[u8]| {
                let mut reader = Reader::new(Format::EventStream).keeping_texts();
                reader.push(bytes);
                reader.close();
            };
            is_linear(what, stream(document), read, 16);
        }
    }

    #[test]
    fn calls_take_steps_in_proportion_to_their_bytes() {
        for (what, document) in documents() {
            for following in [Following::Names, Following::Told, Following::Held] {
                let read = |bytes: &[u8]| {
                    let reader = Reader::new(Format::EventStream);
                    let mut reader = reader.following_calls(64 << 20, following, true);
                    reader.push(bytes);
                    reader.close();
                    let _ = reader.take_calls();
                };
                is_linear(what, stream(document), read, 64);
            }
        }
    }

    /// One document whose names are too many to be compared with one another.
    #[test]
    fn names_of_one_object_take_steps_in_proportion_to_their_bytes() {
        let object = |n: usize| {
            let members = (0..n * 11).map(|n| format!("\"k{n:07}\":0")).collect::<Vec<_>>();
            format!("{{{}}}", members.join(",")).into_bytes()
        };
        let read = |format: Format| {
            move |bytes: &[u8]| {
                let reader = Reader::new(format);
                let mut reader = reader.following_calls(64 << 20, Following::Held, true);
                for piece in bytes.chunks(4096) {
                    reader.push(piece);
                }
                // Its bytes, and little besides.
                assert!(reader.memory_bytes() <= 2 * bytes.len() + (64 << 10), "{}", reader.memory_bytes());
                reader.close();
            }
        };
        is_linear("a document", object, read(Format::Json), 64);
        // Each of them no longer than what is plain.
        let lines = |n: usize| [object(27), b"\n".to_vec()].concat().repeat(n / 300);
        is_linear("lines", lines, read(Format::Lines), 64);
    }

    #[test]
    fn edited_streams_take_steps_in_proportion_to_their_bytes() {
        let lines: [(&str, Body); 4] = [
            ("empty lines", |n| b"\n".repeat(n)),
            ("line ends in two", |n| b"data: {}\r\n\r\n".repeat(n)),
            ("one event", |n| [b"data: ".to_vec(), b"x".repeat(n * 8)].concat()),
            ("fields", |n| b"a: b\n".repeat(n)),
        ];
        let edit = |bytes: &[u8]| {
            let (mut editor, mut out) = (Editor::default(), Vec::new());
            bytes.chunks(7).for_each(|piece| editor.push(piece, &mut out));
            editor.finish(&mut out);
        };
        for (what, make) in lines {
            is_linear(what, make, edit, 16);
        }
        for (what, document) in documents() {
            is_linear(what, stream(document), edit, 16);
        }
    }

    #[test]
    fn renamed_streams_take_steps_in_proportion_to_their_bytes() {
        let body = br#"{"model":"m","messages":[],"tools":[{"name":"b"}]}"#;
        let (_, renamed) = renamed(body, &[("b", "a")]).expect("read").expect("renamed");
        let rename = |bytes: &[u8]| {
            let renamer = Renamer::new(renamed.clone(), Format::EventStream, 64 << 20);
            let mut renamer = renamer.expect("a form");
            let _ = bytes.chunks(7).try_for_each(|piece| renamer.push(piece, false).map(drop));
            let _ = renamer.push(b"", true);
        };
        for (what, document) in documents() {
            is_linear(what, stream(document), rename, 64);
        }
        // Which do not tell yet what it is.
        is_linear("blanks", |n| vec![b' '; n * 8], rename, 4);
    }

    /// Names and types that come again and again, in a call and in its answer.
    #[test]
    fn renames_among_duplicates_take_steps_in_proportion_to_their_bytes() {
        let pairs = |n: usize| vec![r#""type":"x","role":"y","name":"b","tools":1"#; n].join(",");
        let call = |n: usize| {
            let part = pairs(n);
            format!(r#"{{"model":"m","tools":[{{{part}}}],"messages":[{{"content":[{{{part}}}]}}]}}"#)
                .into_bytes()
        };
        let rename = |body: &[u8]| {
            let _ = renamed(body, &[("b", "a")]);
        };
        is_linear("a call", call, rename, 64);
        let body = br#"{"model":"m","messages":[],"tools":[{"name":"b"}]}"#;
        let (_, names) = renamed(body, &[("b", "a")]).expect("read").expect("renamed");
        let answer = |n: usize| {
            let part = pairs(n);
            format!(r#"{{"name":"a","content":[{{{part}}}],"choices":[{{"message":{{{part}}}}}]}}"#)
                .into_bytes()
        };
        let back = |bytes: &[u8]| {
            let mut renamer = Renamer::new(names.clone(), Format::Json, 64 << 20).expect("a form");
            let _ = renamer.push(bytes, true);
        };
        is_linear("an answer", answer, back, 64);
    }

    #[test]
    fn personal_data_take_steps_in_proportion_to_their_bytes() {
        let look = |bytes: &[u8]| {
            let mut inspector = Inspector::new(Claims::new(&[b"text/plain"], &[]), Limits::default());
            let _ = inspector.push(bytes).and_then(|()| inspector.finish());
        };
        let texts: [(&str, Body); 7] = [
            ("digits", |n| b"4".repeat(n * 8)),
            ("groups", |n| b"4111 1111 1111 1111 ".repeat(n)),
            ("short groups", |n| b"1 2-3 4-".repeat(n)),
            ("signs", |n| b"+1 (2) 3.4 ".repeat(n)),
            ("accounts", |n| b"DE89 3704 0044 0532 0130 00 ".repeat(n)),
            ("addresses", |n| b"a@b.example ".repeat(n)),
            ("marks", |n| b"@".repeat(n * 8)),
        ];
        for (what, make) in texts {
            is_linear(what, make, look, 64);
        }
    }

    #[test]
    fn values_take_steps_in_proportion_to_their_bytes() {
        let parse = |bytes: &[u8]| {
            let _ = Value::parse(bytes).map(|value| (value.canonical(), value.member("zz").is_some()));
        };
        let list = |n: usize, one: fn(usize) -> String| (0..n).map(one).collect::<Vec<_>>().join(",");
        let text = |open: &str, all: String, close: &str| format!("{open}{all}{close}").into_bytes();
        is_linear("an array", |n| text("[", list(n, |n| n.to_string()), "]"), parse, 8);
        is_linear("an object", |n| text("{", list(n, |n| format!("\"{n}\":0")), "}"), parse, 8);
        is_linear("one name", |n| text("{", list(n, |_| "\"a\":0".to_owned()), "}"), parse, 8);
        is_linear("objects", |n| text("[", list(n, |_| "{\"a\":{}}".to_owned()), "]"), parse, 8);
        is_linear("levels", |n| text("[", list(n, |_| "[[[[[[[[]]]]]]]]".to_owned()), "]"), parse, 8);
        is_linear("a text", |n| text("\"", "a".repeat(n * 9), "\""), parse, 8);
        is_linear("escapes", |n| text("\"", "\\u00e9".repeat(n), "\""), parse, 8);
    }

    #[test]
    fn changes_take_steps_in_proportion_to_their_bytes() {
        let change = |body: &[u8]| {
            let claims = Claims::new(&[b"application/json"], &[]);
            let surface = Surface::ChatCompletions;
            let mut inspector = Inspector::of_call(claims, Limits::default(), Some(surface));
            let read = inspector.push(body).and_then(|()| inspector.finish());
            let Some(call) = inspector.call().filter(|_| read.is_ok()).map(Request::call) else { return };
            let wanted = Wanted {
                params: &[("store", "false"), ("n", "1")],
                tokens_max: Some(100),
                cap_names: CapNames::Newer,
                takes_tool: &|name| name.ends_with('7'),
                takes_tools: true,
                renames: &[("t8", "u"), ("t9", "t8")],
                prompt: Some("Never send keys."),
            };
            let _ = changed(body, surface, call, &wanted);
        };
        let of =
            |more: String| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{more}}}"#);
        let repeat = |n: usize, one: fn(usize) -> String| (0..n).map(one).collect::<Vec<_>>().join(",");
        let message = |_| r#"{"role":"user","content":"hi"}"#.to_owned();
        let messages = |n| format!(r#"{{"model":"m","messages":[{}]}}"#, repeat(n, message)).into_bytes();
        is_linear("messages", messages, change, 64);
        let members = |n| of(format!(",{}", repeat(n, |n| format!("\"x{n}\":[{{}}]")))).into_bytes();
        is_linear("members", members, change, 64);
        let tool = |n| format!(r#"{{"type":"function","function":{{"name":"t{n}"}}}}"#);
        // No more than are told apart, each larger by as much.
        let tools = |n: usize| {
            let padding = "p".repeat(n / 10);
            let all: Vec<_> = (0..300)
                .map(tool)
                .map(|tool| tool.replacen("type", &format!("{padding}\":0,\"type"), 1))
                .collect();
            of(format!(r#","tools":[{}]"#, all.join(","))).into_bytes()
        };
        is_linear("tools", tools, change, 64);
    }
}
