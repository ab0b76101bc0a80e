//! Requests that two parsers take for different ones, of a client that is steered here, to a server that counts them: each is
//! refused, or is the one request that was judged.

use clawgress_inspect::http1::HEAD_BYTES_MAX;

use super::*;

#[path = "../../../../tests/tests/corpora/desync.rs"]
mod corpus;
#[expect(dead_code, reason = "the tests of the whole process need servers of other kinds")]
#[path = "../../../tests/proxy/upstream.rs"]
mod upstream;

/// What may be taken for a request behind the first; by itself it is denied.
const BEHIND: &str = "0\r\n\r\nGET /denied/behind HTTP/1.1\r\nHost: ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_two_requests_of_a_steered_client_is_one_or_none() {
    let forbidding = SNAPSHOT.replace(
        "@id(\\\"net\\\")",
        "@id(\\\"no\\\") forbid (principal, action == Action::\\\"http\\\", resource) when { context.path like \\\"/denied*\\\" }; @id(\\\"net\\\")",
    );
    assert_ne!(forbidding, SNAPSHOT);
    let mut steered = Steered::with(Path::new("/nonexistent/clawgress.sock"), &forbidding).await;
    let server = upstream::Upstream::http("127.1.0.1").await;
    let port = server.address.port();
    let host = format!("api.allowed.test:{port}");
    // Enough for any body; and no head, whose end never comes.
    let behind = format!("{BEHIND}{host}\r\n\r\n{}", "x".repeat(2 * HEAD_BYTES_MAX));
    let cases = corpus::cases(&host);
    assert!(cases.len() > 100, "{}", cases.len());
    let (mut passed, mut refused) = (0, 0);
    for case in &cases {
        let before = server.requests().len();
        let bytes = [&case.head, behind.as_bytes()].concat();
        let (said, records) = steered.say(Ok(1), dialled(port), &bytes).await;
        let (said, seen) = (String::from_utf8_lossy(&said), server.requests().split_off(before));
        let name = (&case.name, String::from_utf8_lossy(&case.head));
        // What the server got was judged, and nothing else was allowed.
        let is_allowed =
            |r: &&AuditRecord| r.kind == RecordKind::Decision && r.verdict == Some(Verdict::Allow);
        assert!(seen.len() <= 1, "{name:?}: {seen:?}");
        assert_eq!(records.iter().filter(is_allowed).count(), seen.len(), "{name:?}: {records:?}");
        match seen.first() {
            Some(request) => {
                passed += 1;
                assert_ne!(case.tier, "Severe", "{name:?}");
                assert_eq!(request.lines().next(), name.1.lines().next(), "{name:?}");
            }
            None => {
                refused += 1;
                // What is no HTTP at all gets no answer.
                assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{name:?}: {said}");
            }
        }
    }
    println!("{passed} passed, {refused} refused");
    assert!(passed >= 15 && refused > 50, "{passed} {refused}");
    assert!(!server.requests().iter().any(|request| request.contains("/denied")));
}
