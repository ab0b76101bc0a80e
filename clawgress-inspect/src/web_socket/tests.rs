//! Frames of RFC 6455's own examples, each rule that a reader has to fail a connection for, and that pieces don't matter.

use proptest::prelude::*;

use super::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A client's frame.
fn frame(first: u8, carried: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match carried.len() {
        short @ 0..126 => out.push(MASKED | u8::try_from(short).expect("short")),
        long @ 126..65536 => {
            out.push(MASKED | 126);
            out.extend(u16::try_from(long).expect("long").to_be_bytes());
        }
        longer => {
            out.push(MASKED | 127);
            out.extend(u64::try_from(longer).expect("longer").to_be_bytes());
        }
    }
    out.extend(MASK);
    out.extend(carried.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

/// All messages of `bytes`, which come in pieces of so many; and how it ended.
fn read(sender: Sender, bytes: &[u8], cuts: &[usize]) -> (Vec<Message>, Option<FrameError>) {
    let (mut reader, mut messages, mut cuts) = (Reader::new(sender, 100_000), vec![], cuts.iter().cycle());
    let mut left = bytes;
    while !left.is_empty() {
        let (mut piece, rest) = left.split_at((*cuts.next().expect("a cut")).clamp(1, left.len()));
        left = rest;
        while !piece.is_empty() {
            match reader.read(piece) {
                Ok((taken, message)) => {
                    assert!(taken > 0, "bytes are taken");
                    piece = &piece[taken..];
                    messages.extend(message);
                }
                Err(error) => {
                    assert_eq!((reader.read(b"\x81"), reader.held()), (Err(error), 0));
                    return (messages, Some(error));
                }
            }
        }
    }
    (messages, None)
}

fn client(bytes: &[u8]) -> (Vec<Message>, Option<FrameError>) {
    read(Sender::Client, bytes, &[bytes.len().max(1)])
}

#[test]
fn the_examples_of_the_rfc() {
    let hello = || Message::Text(b"Hello".to_vec());
    let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(client(&masked), (vec![hello()], None));
    let server = |bytes: &[u8]| read(Sender::Server, bytes, &[1]);
    assert_eq!(server(b"\x81\x05Hello"), (vec![hello()], None));
    assert_eq!(server(b"\x01\x03Hel\x80\x02lo"), (vec![hello()], None));
    assert_eq!(server(b"\x89\x05Hello"), (vec![Message::Ping(b"Hello".to_vec())], None));
    let mut long = vec![0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0];
    long.extend([7; 65536]);
    assert_eq!(server(&long), (vec![Message::Binary(vec![7; 65536])], None));
}

#[test]
fn what_came_of_a_message_is_there_before_its_end() {
    let mut reader = Reader::new(Sender::Client, 100_000);
    let bytes =
        [frame(0x01, b"be"), frame(FIN | 0x9, b"there?"), frame(0x00, b"g"), frame(0x80, b"in")].concat();
    let (mut left, mut so_far) = (&bytes[..], Vec::new());
    while !left.is_empty() {
        let (taken, message) = reader.read(&left[..1]).expect("frames");
        left = &left[taken..];
        match reader.under_way() {
            Some((came, is_text)) => {
                assert!(is_text && b"begin".starts_with(came) && came.len() >= so_far.len());
                so_far = came.to_vec();
            }
            None => assert!(so_far.is_empty() || message == Some(Message::Text(b"begin".to_vec()))),
        }
    }
    assert_eq!(so_far, b"begi");
    let _ = reader.read(&frame(0x02, b"\xff"));
    assert_eq!(reader.under_way(), Some((&b"\xff"[..], false)));
}

#[test]
fn control_frames_come_between_parts() {
    let bytes =
        [frame(0x01, b"a\xc3"), frame(0x8a, b"p"), frame(0x00, b""), frame(0x80, b"\xa9"), frame(0x88, b"")];
    let close = Message::Close { code: None, reason: String::new() };
    let expected = vec![Message::Pong(b"p".to_vec()), Message::Text("aé".into()), close];
    assert_eq!(client(&bytes.concat()), (expected, None));
    let bytes = frame(0x88, b"\x03\xe8bye");
    assert_eq!(client(&bytes).0, [Message::Close { code: Some(1000), reason: "bye".to_owned() }]);
}

#[test]
fn what_is_no_frame_is_refused() {
    let refused = [
        (frame(0xc1, b"a"), FrameError::Reserved),
        (frame(0xa1, b"a"), FrameError::Reserved),
        (frame(0x91, b"a"), FrameError::Reserved),
        (frame(0x83, b"a"), FrameError::Opcode(3)),
        (frame(0x8b, b"a"), FrameError::Opcode(11)),
        (b"\x81\x01a".to_vec(), FrameError::Mask),
        (b"\x81\xfe\x00\x7d".to_vec(), FrameError::Length),
        (b"\x82\xff\0\0\0\0\0\0\xff\xff".to_vec(), FrameError::Length),
        (b"\x82\xff\x80\0\0\0\0\0\0\0".to_vec(), FrameError::Length),
        (b"\x82\xff\x7f\0\0\0\0\0\0\0".to_vec(), FrameError::TooLong),
        (b"\x82\xff\0\0\0\0\0\x01\x86\xa1".to_vec(), FrameError::TooLong),
        (frame(0x09, b""), FrameError::Control),
        (b"\x89\xfe".to_vec(), FrameError::Control),
        (frame(0x80, b"a"), FrameError::Order),
        ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), FrameError::Order),
        (frame(0x81, b"\xff"), FrameError::Text),
        (frame(0x81, b"\xc3"), FrameError::Text),
        ([frame(0x01, b"\xc3"), frame(0x80, b"a")].concat(), FrameError::Text),
        (frame(0x81, b"\xed\xa0\x80"), FrameError::Text),
        (frame(0x88, b"\x03"), FrameError::Close),
        (frame(0x88, b"\x03\xed"), FrameError::Close),
        (frame(0x88, b"\x13\x88"), FrameError::Close),
        (frame(0x88, b"\x03\xe8\xff"), FrameError::Text),
        ([frame(0x88, b""), frame(0x81, b"a")].concat(), FrameError::Closed),
    ];
    for (bytes, error) in refused {
        assert_eq!(client(&bytes).1, Some(error), "{bytes:x?}");
    }
    assert_eq!(read(Sender::Server, &frame(0x81, b"a"), &[1]).1, Some(FrameError::Mask));
    let statuses = [FrameError::Order, FrameError::Text, FrameError::TooLong].map(FrameError::status);
    assert_eq!(statuses, [1002, 1007, 1009]);
}

#[test]
fn parts_of_a_message_are_bounded_together() {
    let (part, mut reader) = (frame(0x02, &[0; 60]), Reader::new(Sender::Client, 100));
    assert_eq!(reader.read(&part), Ok((part.len(), None)));
    assert!(!reader.is_between_messages() && reader.held() == 60);
    assert_eq!(reader.read(&frame(0x80, &[0; 41])), Err(FrameError::TooLong));
    let (mut reader, bytes) = (Reader::new(Sender::Client, 100), frame(0x81, b"a"));
    assert_eq!(reader.read(&bytes), Ok((7, Some(Message::Text(b"a".to_vec())))));
    assert!(reader.is_between_messages());
}

#[test]
fn ends_are_found_without_what_is_between() {
    let mut reader = Reader::of_ends(Sender::Server);
    let read = |reader: &mut Reader, bytes: &[u8]| {
        let told = reader.read(bytes);
        (told.map(|(taken, message)| (taken, message.map(Message::carried))), reader.is_between_frames())
    };
    let mut long = vec![0x02, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0];
    assert_eq!(read(&mut reader, &long), (Ok((10, None)), false));
    long.resize(65546, 7);
    assert_eq!(read(&mut reader, &long[10..]), (Ok((65536, None)), true));
    assert!(reader.held() == 0 && !reader.is_between_messages());
    assert_eq!(read(&mut reader, b"\x80\x02ab"), (Ok((4, Some(vec![]))), true));
    assert!(reader.is_between_messages() && !reader.is_closed());
    assert_eq!(read(&mut reader, b"\x88\x02\x03\xe8"), (Ok((4, Some(vec![]))), true));
    assert!(reader.is_closed());
    assert_eq!(read(&mut reader, b"\x81"), (Err(FrameError::Closed), false));
}

#[test]
fn a_close_is_read_as_it_was_written() {
    let long = "é".repeat(100);
    for (sender, reason, kept) in [
        (Sender::Client, "why", "why"),
        (Sender::Server, long.as_str(), &long[..122]),
        (Sender::Client, "", ""),
    ] {
        let bytes = close_frame(sender, 1008, reason, MASK);
        let expected = Message::Close { code: Some(1008), reason: kept.to_owned() };
        assert_eq!(read(sender, &bytes, &[1]), (vec![expected], None));
    }
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![8 => prop::sample::select(vec![0x01, 0x02, 0x00, 0x80, 0x81, 0x82, 0x89, 0x8a]), 1 => any::<u8>()];
    let carried = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..8),
        4 => "[a-zé€𝄞]{0,60}".prop_map(String::into_bytes),
        1 => prop::collection::vec(32u8..127, 120..400),
    ];
    prop::collection::vec((first, carried).prop_map(|(first, carried)| frame(first, &carried)), 0..8)
        .prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// What is read, and what is refused, is the same in any pieces.
    #[test]
    fn pieces_do_not_matter(
        bytes in prop_oneof![frames(), prop::collection::vec(any::<u8>(), 0..200)],
        cuts in prop::collection::vec(1usize..40, 1..20),
    ) {
        prop_assert_eq!(client(&bytes), read(Sender::Client, &bytes, &cuts));
    }

    /// A message comes out as it went in, however many frames it was sent by.
    #[test]
    fn a_message_is_put_together(text in "[a-zé€𝄞]{0,400}", cuts in prop::collection::vec(1usize..60, 1..10)) {
        let (mut left, mut cuts, mut bytes, mut opcode) = (text.as_bytes(), cuts.iter().cycle(), vec![], 1);
        loop {
            let (part, rest) = left.split_at((*cuts.next().unwrap()).min(left.len()));
            left = rest;
            bytes.extend(frame(if left.is_empty() { FIN | opcode } else { opcode }, part));
            bytes.extend(frame(0x89, b"between"));
            opcode = 0;
            if left.is_empty() {
                break;
            }
        }
        let (messages, error) = client(&bytes);
        prop_assert_eq!(error, None);
        let whole: Vec<_> = messages.into_iter().filter(|m| !matches!(m, Message::Ping(_))).collect();
        prop_assert_eq!(whole, vec![Message::Text(text.into_bytes())]);
    }
}
