//! Tables of smuggling attempts, and independence of segmentation.

use proptest::prelude::*;

use super::*;

/// Runs `segments` through a framer as the proxy does. Returns what went on, a request at a time, or
/// the error.
fn run<'a>(segments: impl IntoIterator<Item = &'a [u8]>) -> Result<(Vec<Vec<u8>>, Vec<u8>), HttpError> {
    let (mut framer, mut held, mut done, mut now) = (Framer::default(), vec![], vec![], vec![]);
    for segment in segments {
        held.extend_from_slice(segment);
        loop {
            match framer.advance(&held)? {
                Step::More => break,
                Step::Head(n) => {
                    let body = parse(&held[..n])?.body;
                    now.extend(held.drain(..n));
                    if framer.body(body) {
                        done.push(std::mem::take(&mut now));
                    }
                }
                Step::Pass(n) => now.extend(held.drain(..n)),
                Step::Drop(n) => drop(held.drain(..n)),
                Step::End(n) => {
                    now.extend(held.drain(..n));
                    done.push(std::mem::take(&mut now));
                }
            }
            if held.is_empty() {
                break;
            }
        }
    }
    Ok((done, now))
}

#[track_caller]
fn refused(raw: &str, want: HttpError) {
    assert_eq!(run([raw.as_bytes()]).map(|(d, _)| d.len()), Err(want), "{raw:?}");
    // Byte by byte the answer is the same.
    assert_eq!(run(raw.as_bytes().chunks(1)).map(|(d, _)| d.len()), Err(want), "{raw:?} by bytes");
}

#[test]
fn ambiguous_heads_are_refused() {
    for (fields, want) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", HttpError::LengthAmbiguous),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", HttpError::LengthAmbiguous),
        ("Content-Length: 5\r\nContent-Length: 5", HttpError::LengthAmbiguous),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", HttpError::LengthAmbiguous),
        ("Transfer_Encoding: chunked", HttpError::LengthAmbiguous),
        ("Content-Length: 5\r\nTransfer--Encoding: chunked", HttpError::LengthAmbiguous),
        ("content_length: 5", HttpError::LengthAmbiguous),
        ("Content-Length: +5", HttpError::Length),
        ("Content-Length: 0x5", HttpError::Length),
        ("Content-Length: 5, 5", HttpError::Length),
        ("Content-Length: -1", HttpError::Length),
        ("Content-Length:", HttpError::Length),
        ("Content-Length: 9999999999999999999", HttpError::Length),
        ("Transfer-Encoding: gzip, chunked", HttpError::TransferEncoding),
        ("Transfer-Encoding: identity", HttpError::TransferEncoding),
        ("Transfer-Encoding: xchunked", HttpError::TransferEncoding),
        ("Transfer-Encoding: chunked;q=1", HttpError::TransferEncoding),
        ("Transfer-Encoding: \x0bchunked", HttpError::Control),
        ("Transfer-Encoding : chunked", HttpError::Field),
        ("Transfer-Encoding\t: chunked", HttpError::Field),
        (" Transfer-Encoding: chunked", HttpError::Field),
        ("X: a\r\n b", HttpError::Field),
        ("X: a\rContent-Length: 5", HttpError::Control),
        ("X: a\nContent-Length: 5", HttpError::Control),
        ("X: a\0b", HttpError::Control),
        ("no colon", HttpError::Field),
        (": empty", HttpError::Field),
        ("Host: b.test", HttpError::HostCount),
        ("Connection: close, Host", HttpError::Connection),
        ("Connection: content-length", HttpError::Connection),
        ("Expect: 200-ok", HttpError::Expectation),
    ] {
        refused(&format!("POST / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n\r\n"), want);
    }
    refused("GET / HTTP/1.1\r\nX: y\r\n\r\n", HttpError::HostCount);
    refused("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", HttpError::TransferEncoding);
    for line in [
        "GET /",
        "GET / HTTP/2.0",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        " GET / HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET / http/1.1",
        "GET /\u{fc} HTTP/1.1",
    ] {
        refused(&format!("{line}\r\nHost: a.test\r\n\r\n"), HttpError::RequestLine);
    }
    for method in ["delete", "Get", "pOST", "version-control", "connect", "Propfind"] {
        refused(&format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n"), HttpError::MethodCase);
    }
    // What nobody knows may be written as anybody likes.
    for method in ["own", "Own-Method", "GETS", "g"] {
        let raw = format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert_eq!(run([raw.as_bytes()]).map(|(done, _)| done.len()), Ok(1), "{method}");
    }
    refused("\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n", HttpError::RequestLine);
    refused("GET / HTTP/1.1\nHost: a.test\n\n", HttpError::Control);
}

#[test]
fn chunk_tricks_are_refused() {
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n",
        "+5\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "-1\r\n",
        "\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n",
        "5\r\nhello\n0\r\n",
        "fffffffffffffffff\r\n",
        "0;x\r\n\r\n",
    ] {
        refused(&format!("{head}{body}"), HttpError::Chunk);
    }
    refused(&format!("{head}0\r\nX: a\n\r\n"), HttpError::Control);
    refused(&format!("{head}0\r\nbad\r\n\r\n"), HttpError::Field);
    refused(&format!("{head}0\r\nX: {}\r\n\r\n", "a".repeat(TRAILER_BYTES_MAX)), HttpError::TrailerTooLarge);
}

#[test]
fn requests_are_told_apart_and_trailers_dropped() {
    let raw = "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Admin: 1\r\n\r\n\
               POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
               GET /3 HTTP/1.1\r\nHost: a\r\n\r\n";
    let (requests, rest) = run([raw.as_bytes()]).expect("sound");
    assert_eq!(requests.len(), 3);
    assert!(requests[0].ends_with(b"5\r\nhello\r\n0\r\n\r\n"), "the trailer is gone");
    assert!(requests[1].ends_with(b"\r\n\r\nabc"));
    assert!(requests[2].starts_with(b"GET /3 "));
    assert!(rest.is_empty());
}

#[test]
fn heads_are_bounded() {
    refused(
        &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(HEAD_BYTES_MAX)),
        HttpError::HeadTooLarge,
    );
    let many: String = (0..FIELDS_MAX).map(|n| format!("X{n}: y\r\n")).collect();
    refused(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), HttpError::FieldsTooMany);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Any bytes, in any segmentation: the same requests or the same error.
    #[test]
    fn segmentation_changes_nothing(
        raw in "(POST /[a-z]{0,9} HTTP/1\\.[01]\r\n(Host: a\r\n)?(Content-Length: [0-9]\r\n|Transfer-Encoding: chunked\r\n)?\r\n([0-5]\r\n[a-z]{0,6}\r\n){0,3}){1,3}",
        cuts in proptest::collection::vec(1usize..30, 1..30),
    ) {
        let raw = raw.as_bytes();
        let mut segments = vec![];
        let (mut rest, mut cuts) = (raw, cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().expect("cycle")).min(rest.len()));
            segments.push(now);
            rest = later;
        }
        prop_assert_eq!(run(segments), run([raw]));
    }
}
