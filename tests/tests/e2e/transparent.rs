//! The transparent path: clients whose only setting is the route.

use clawgress_api::{Ingress, Plane, Verdict};
use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::{API, INSPECT, SECRET, UPLINK, V6_ONLY, WEB};
use clawgress_e2e::scenario::CRAWLER;

use crate::support::{agent, codes, curl, denied, finish, pair, record, site, to_host};

#[test]
fn allowed_tls_needs_nothing_but_the_route() {
    let site = site();
    for family in ["-4", "-6"] {
        let output = curl(&site, Host::Known, &[family, "https://api.allowed.test/hello"]);
        assert_eq!(codes(&output).0, 200, "{output:?}");
    }
    let six = curl(&site, Host::Known, &["https://six.allowed.test/"]);
    assert_eq!(codes(&six).0, 200, "{six:?}");
    let (decision, outcome) = pair(&site, "the tunnel", |r| to_host(r, API));
    assert_eq!(agent(&decision), Some(CRAWLER));
    assert_eq!((decision.plane, decision.ingress), (Plane::L7, Some(Ingress::Transparent)));
    assert_eq!(decision.verdict, Some(Verdict::Allow));
    assert!(decision.policies.iter().any(|p| p == "saas-tls"), "{decision:?}");
    assert!(outcome.bytes_sent.unwrap() > 200 && outcome.bytes_received.unwrap() > 500, "{outcome:?}");
    assert!(outcome.latency_us.unwrap() > 0);
    pair(&site, "the tunnel over IPv6", |r| {
        to_host(r, V6_ONLY) && r.destination.ip.is_some_and(|ip| ip.is_ipv6())
    });
    // It was the gateway that dialled, from its own address.
    let seen = site.gateway.lab.world().unwrap().requests;
    assert!(seen.iter().filter(|r| r.host == API).count() == 2, "{seen:?}");
    assert!(seen.iter().all(|r| r.tls), "{seen:?}");
    assert!(
        seen.iter()
            .all(|r| r.peer.contains(&UPLINK.v4.to_string()) || r.peer.contains(&UPLINK.v6.to_string())),
        "{seen:?}"
    );
    finish(site);
}

#[test]
fn a_denied_name_at_a_permitted_address_gets_nothing_out() {
    let site = site();
    for family in ["-4", "-6"] {
        let output = curl(&site, Host::Known, &[family, "https://secret.denied.test/"]);
        assert!(!output.ok() && codes(&output).0 == 0, "{output:?}");
    }
    let decision = record(&site, "the denial", |r| to_host(r, SECRET) && denied(r, "policy_denied"));
    assert_eq!((agent(&decision), decision.plane), (Some(CRAWLER), Plane::L7));
    let plain = curl(&site, Host::Known, &["http://secret.denied.test/"]);
    assert_eq!(codes(&plain).0, 403, "{plain:?}");
    // A name that is allowed, at an address that is not that name's: we dial what we resolve.
    let output = curl(
        &site,
        Host::Known,
        &["--connect-to", "api.allowed.test:443:secret.denied.test:443", "https://api.allowed.test/"],
    );
    assert_eq!(codes(&output).0, 200, "dialled by name, never at the client's address: {output:?}");
    crate::segments::a_hello_whose_end_comes_first_is_read_as_one(&site);
    finish(site);
}

#[test]
fn tls_that_must_be_read_is_denied_while_it_cannot_be() {
    let site = site();
    let output = curl(&site, Host::Known, &["https://inspect.allowed.test/"]);
    assert!(!output.ok(), "{output:?}");
    record(&site, "the denial", |r| to_host(r, INSPECT) && denied(r, "inspection_required"));
    finish(site);
}

#[test]
fn plain_http_is_judged_by_method_and_path() {
    let site = site();
    let status = |args: &[&str]| codes(&curl(&site, Host::Known, args)).0;
    assert_eq!(status(&["http://web.allowed.test/public/a?q=1"]), 200);
    assert_eq!(status(&["-6", "http://web.allowed.test/public/a"]), 200);
    assert_eq!(status(&["http://web.allowed.test/private"]), 403);
    assert_eq!(status(&["-X", "DELETE", "http://web.allowed.test/public/a"]), 403);
    assert_eq!(status(&["http://api.allowed.test/admin/users"]), 403, "a forbid wins");
    let (decision, outcome) =
        pair(&site, "the page", |r| to_host(r, WEB) && r.destination.path.as_deref() == Some("/public/a"));
    assert_eq!(decision.destination.method.as_deref(), Some("GET"));
    assert_eq!(decision.policies, ["public-pages", "reach-web"], "of `http`, then of `connect`");
    assert_eq!(outcome.status, Some(200));
    record(&site, "the forbid", |r| denied(r, "policy_forbidden") && r.policies == ["no-admin"]);
    let targets = || -> Vec<String> {
        site.gateway.lab.world().unwrap().requests.into_iter().map(|r| r.target).collect()
    };
    assert!(targets().iter().all(|p| p.starts_with("/public/a")), "denied requests went on: {:?}", targets());
    // Whatever a path is made of: the bytes that were judged are the bytes that were sent.
    for path in
        ["/public/../private", "/public/%2e%2e/private", "/public//a", "/public/..;/a", "/public/%C0%AF"]
    {
        let url = format!("http://web.allowed.test{path}");
        let status = codes(&curl(&site, Host::Known, &["--path-as-is", &url])).0;
        let went_on = targets().iter().any(|t| t == path);
        assert!(if status == 200 { went_on } else { status >= 400 && !went_on }, "`{path}`: {status}");
    }
    assert!(targets().iter().all(|p| p.starts_with("/public/")), "{:?}", targets());
    finish(site);
}

#[test]
fn identity_headers_of_the_client_are_stripped() {
    let site = site();
    let headers = [
        "-H",
        "Proxy-Authorization: Basic eDp5",
        "-H",
        "X-Forwarded-For: 203.0.113.1",
        "-H",
        "X-Clawgress-Agent: root",
        "-H",
        "Forwarded: for=1.2.3.4",
    ];
    let args: Vec<&str> = headers.into_iter().chain(["http://api.allowed.test/headers"]).collect();
    let output = curl(&site, Host::Known, &args);
    assert_eq!(codes(&output).0, 200, "{output:?}");
    let seen = site.gateway.lab.world().unwrap().requests;
    let headers = &seen.last().unwrap().headers;
    for name in ["proxy-authorization", "x-forwarded-for", "x-clawgress-agent", "forwarded"] {
        assert!(!headers.contains_key(name), "`{name}` went on: {headers:?}");
    }
    finish(site);
}
