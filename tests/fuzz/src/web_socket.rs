//! The fuzz target of WebSockets' frames: the second byte says whose they are, and pieces don't matter.

use clawgress_inspect::web_socket::{CONTROL_BYTES_MAX, FrameError, Message, Reader, Sender, close_frame};

const MESSAGE_BYTES_MAX: usize = 1024;

fn read(sender: Sender, pieces: &[&[u8]]) -> (Vec<Message>, Option<FrameError>) {
    let (mut reader, mut messages) = (Reader::new(sender, MESSAGE_BYTES_MAX), vec![]);
    for piece in pieces {
        let mut left = *piece;
        while !left.is_empty() {
            match reader.read(left) {
                Ok((taken, message)) => {
                    assert!(taken > 0 && taken <= left.len());
                    left = &left[taken..];
                    messages.extend(message);
                }
                Err(error) => return (messages, Some(error)),
            }
            assert!(reader.held() <= MESSAGE_BYTES_MAX + CONTROL_BYTES_MAX + 14);
        }
    }
    (messages, None)
}

/// Whoever reads for ends alone finds each where it is, while the bytes are sound; and what a close carries is read from it again.
fn check_ends(sender: Sender, whole: &[u8]) {
    let (mut reader, mut ends) = (Reader::new(sender, MESSAGE_BYTES_MAX), Reader::of_ends(sender));
    let mut left = whole;
    while !left.is_empty() {
        let Ok((taken, message)) = reader.read(left) else { return };
        let (also_taken, also_message) = ends.read(left).expect("sound bytes");
        assert_eq!((also_taken, also_message.is_some()), (taken, message.is_some()));
        assert_eq!(ends.is_between_messages(), reader.is_between_messages());
        assert_eq!(
            (ends.is_between_frames(), ends.is_closed()),
            (reader.is_between_frames(), reader.is_closed())
        );
        if let Some(Message::Close { code: Some(code), reason }) = message {
            let again = close_frame(sender, code, &reason, [1, 2, 3, 4]);
            assert_eq!(read(sender, &[&again]), (vec![Message::Close { code: Some(code), reason }], None));
        }
        left = &left[taken..];
    }
}

/// The same messages, whole or in pieces; each within its bound, and texts are texts.
pub fn web_socket(data: &[u8]) {
    let (rest, _) = super::pieces(data);
    let Some((side, whole)) = rest.split_first() else { return };
    let sender = if side & 1 == 0 { Sender::Client } else { Sender::Server };
    let step = usize::from(data[0]).max(1);
    let read_whole = read(sender, &[whole]);
    assert_eq!(read_whole, read(sender, &whole.chunks(step).collect::<Vec<_>>()));
    check_ends(sender, whole);
    for message in &read_whole.0 {
        match message {
            Message::Text(text) => {
                assert!(text.len() <= MESSAGE_BYTES_MAX && std::str::from_utf8(text).is_ok())
            }
            Message::Binary(bytes) => assert!(bytes.len() <= MESSAGE_BYTES_MAX),
            Message::Ping(bytes) | Message::Pong(bytes) => assert!(bytes.len() <= CONTROL_BYTES_MAX),
            Message::Close { code, reason } => assert!(code.is_some() || reason.is_empty()),
        }
    }
}
