//! What an agent did before, where policy asks for it.

use clawgress_policy::history::{Counts, History};

use crate::harness::{Gateway, Options, PATIENCE, POLICY};
use crate::upstream::Upstream;

const BUSY: &str = r#"@id("busy") forbid (principal, action == Action::"http", resource)
when { context.path like "/counted*" && context.history.requests_last_minute >= 3 };"#;

fn get(host: &str, path: &str, auth: &str) -> String {
    format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n")
}

fn counted(minute: u64) -> History {
    History { requests: Counts { minute, hour: minute, day: minute }, ..History::QUIET }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_asked_for_each_request_and_only_where_policy_asks() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let mut client = gateway.client().await;
    let asked = || gateway.control.asked.lock().len();
    client.send(get(&host, "/counted", &gateway.web())).await;
    assert_eq!((client.answer().await.status, asked()), (200, 0), "nobody wants to know");
    assert_eq!(gateway.publish_policy(&format!("{POLICY}{BUSY}")).await, "");
    for (minute, status) in [(0, 200), (2, 200), (3, 403), (2, 200)] {
        *gateway.control.history.lock() = counted(minute);
        client.send(get(&host, "/counted", &gateway.web())).await;
        assert_eq!(client.answer().await.status, status, "after {minute} requests");
    }
    let questions = gateway.control.asked.lock().clone();
    assert_eq!(questions.len(), 4);
    assert!(questions.iter().all(|q| q.host == "api.allowed.test"), "{questions:?}");
    // Inside a tunnel too, each anew.
    let (mut tunnel, answer) = gateway.connect(&host).await;
    assert_eq!(answer.status, 200);
    for (minute, status) in [(2, 200), (3, 403)] {
        *gateway.control.history.lock() = counted(minute);
        tunnel.send(format!("GET /counted HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(tunnel.answer().await.status, status, "after {minute} requests");
    }
    // Who can't be asked permits nothing that depends on it; what doesn't goes on, and what only logs denies nothing.
    let logged = r#"@id("logged") @mode("log-only") forbid (principal, action == Action::"http", resource)
        when { context.path == "/logged" && context.history.first_seen };"#;
    assert_eq!(gateway.publish_policy(&format!("{POLICY}{BUSY}{logged}")).await, "");
    let questions = gateway.control.asked.lock().len();
    client.send(get(&host, "/other", &gateway.web())).await;
    assert_eq!((client.answer().await.status, gateway.control.asked.lock().len()), (200, questions));
    client.send(get(&host, "/logged", &gateway.web())).await;
    assert_eq!((client.answer().await.status, gateway.control.asked.lock().len()), (200, questions + 1));
    gateway.kill_control();
    for path in ["/other", "/logged"] {
        client.send(get(&host, path, &gateway.web())).await;
        assert_eq!(client.answer().await.status, 200, "{path}");
    }
    client.send(get(&host, "/counted", &gateway.web())).await;
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.reason()), (503, "history_unavailable"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_judged_by_it_once_policy_asks() {
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::teller("127.1.0.1").await;
    let target = format!("api.allowed.test:{}", upstream.address.port());
    let first = |id: &str| {
        format!(
            "{POLICY}@id(\"{id}\") forbid (principal, action == Action::\"tunnel\", resource) when {{ context.history.first_seen }};"
        )
    };
    let (mut tunnel, answer) = gateway.connect(&target).await;
    assert_eq!(answer.status, 200);
    tunnel.send(crate::tunnels::hello("api.allowed.test")).await;
    gateway.decisions(1).await;
    // It has been there before: it goes on.
    assert_eq!(gateway.publish_policy(&first("one")).await, "");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while gateway.control.asked.lock().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "control is asked");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // What it was judged by it is judged by again, whatever happened since.
    *gateway.control.history.lock() = History { first_seen: true, ..History::QUIET };
    assert_eq!(gateway.publish_policy(&first("two")).await, "");
    let before = upstream.seen.bytes.lock().len();
    tunnel.send("more").await;
    while upstream.seen.bytes.lock().len() == before {
        assert!(tokio::time::Instant::now() < deadline, "it goes on");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // One that was never there is refused.
    let (_, refused) = gateway.connect(&target).await;
    assert_eq!((refused.status, refused.reason()), (403, "inspection_required"));
}
