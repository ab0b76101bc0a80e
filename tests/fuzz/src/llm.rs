//! Targets of calls of models: requests and answers.

use clawgress_inspect::llm::answer::{Answer, Asked, CallsError, Editor, Following, Format, Reader};
use clawgress_inspect::llm::{BLOCK_BYTES, Call, Piece, Request, Surface};
use clawgress_inspect::payload::json::{Json, JsonError};
use clawgress_inspect::payload::{Claims, Inspector, Limits, Readings, Unreadable};

use super::pieces;

/// The second byte says whether it is a form: what it asks for, and whether it can be known, is the same in any pieces; and
/// names are what policy may take for names.
pub fn llm_request(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let Some((said, body)) = whole.split_first() else { return };
    let kinds: [&[u8]; 2] = [b"application/json", b"multipart/form-data; boundary=b"];
    let read = |pieces: &[&[u8]], (is, has_parts): (bool, bool)| -> (Result<(), Unreadable>, Option<Call>) {
        let claims = Claims::new(&[kinds[usize::from(said % 2)]], &[]);
        let call = Some(is.then_some(Surface::Audio));
        let readings = Readings { call, has_parts, ..Readings::default() };
        let mut inspector = Inspector::reading(claims, Limits::default(), readings);
        let fed = pieces.iter().try_for_each(|piece| inspector.push(piece));
        let done = fed.and_then(|()| inspector.finish());
        assert!(inspector.memory_bytes() < 1 << 20);
        let call = inspector.call().filter(|_| done.is_ok()).map(|request| request.call().clone());
        (done, call)
    };
    let cut: Vec<&[u8]> = body.chunks(pieces.first().map_or(1, |first| first.len())).collect();
    for is in [(true, false), (false, false), (false, true)] {
        let found = read(&[body], is);
        assert_eq!(found, read(&cut, is));
        let call = found.1.unwrap_or_default();
        for name in call.model.iter().chain(&call.tools) {
            assert!(name.len() <= 256 && !name.chars().any(char::is_control), "{name}");
        }
    }
    texts(body, &cut);
}

/// The same texts, each whole, in any pieces.
fn texts(body: &[u8], cut: &[&[u8]]) {
    let read = |pieces: &[&[u8]]| {
        let (mut json, mut request, mut all) = (Json::new(false), Request::default(), Vec::new());
        let mut sink = |piece: &Piece<'_>| {
            assert!(piece.text.len() <= 3 * BLOCK_BYTES);
            all.push((
                piece.role,
                piece.provenance,
                piece.number,
                piece.begins,
                piece.ends,
                piece.text.to_owned(),
            ));
        };
        for piece in pieces {
            let read = json.push::<JsonError>(piece, &mut |event| {
                let _ = request.event(event, &mut sink);
                Ok(())
            });
            if read.is_err() {
                return None;
            }
        }
        request.finish(&mut sink);
        Some(all)
    };
    assert_eq!(read(&[body]), read(cut));
}

/// The same answer, whole or in pieces; and what is edited is what came, but for whole events.
pub fn llm_answer(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    for format in [Format::Json, Format::EventStream, Format::Lines, Format::Amazon] {
        let read = |pieces: &[&[u8]]| -> Answer {
            let mut reader = Reader::new(format);
            for piece in pieces {
                reader.push(piece);
            }
            reader.finish()
        };
        let found = read(&[whole]);
        assert_eq!(found, read(&pieces));
        assert!(found.model.is_none_or(|m| !m.is_empty() && m.len() <= 128));
    }
    let edit = |pieces: &[&[u8]]| {
        let (mut editor, mut out) = (Editor::default(), Vec::new());
        pieces.iter().for_each(|piece| editor.push(piece, &mut out));
        editor.finish(&mut out);
        (editor.taken(), out)
    };
    let (taken, out) = edit(&[whole]);
    assert_eq!((taken, &out), (edit(&pieces).0, &edit(&pieces).1));
    assert!(if taken == 0 { out == whole } else { out.len() < whole.len() });
}

/// The same calls, whole or in pieces; and what goes on has none but those that were told, and keeps no more than it may.
pub fn llm_calls(data: &[u8]) {
    const BYTES_MAX: usize = 1 << 12;
    let (whole, pieces) = pieces(data);
    for format in [Format::Json, Format::EventStream, Format::Lines, Format::Amazon] {
        let reader = || Reader::new(format).following_calls(BYTES_MAX, Following::Held, true);
        let read = |pieces: &[&[u8]], closes: bool| -> (usize, Result<Vec<Asked>, CallsError>) {
            let (mut reader, mut all, mut seen, mut gone) = (reader(), Vec::new(), 0, 0);
            let mut take = |reader: &mut Reader| {
                for call in reader.take_calls()? {
                    if !all.contains(&call) {
                        all.push(call);
                    }
                }
                Ok(())
            };
            for piece in pieces {
                let ended = reader.push(piece);
                assert!(ended <= piece.len());
                if ended > 0 {
                    gone = seen + ended;
                }
                seen += piece.len();
                if let Err(why) = take(&mut reader) {
                    return (0, Err(why));
                }
            }
            if closes {
                reader.close();
            }
            let last = take(&mut reader);
            (gone, last.map(|()| all))
        };
        let (gone, told) = read(&[whole], false);
        assert_eq!((gone, &told), (read(&pieces, false).0, &read(&pieces, false).1));
        assert_eq!(read(&[whole], true), read(&pieces, true));
        let Ok(told) = told else { continue };
        let (_, of_gone) = read(&[&whole[..gone]], true);
        assert!(of_gone.is_ok_and(|calls| calls.iter().all(|call| told.contains(call))), "of what went on");
    }
}
