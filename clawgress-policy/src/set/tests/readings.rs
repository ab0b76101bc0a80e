//! Paths with an encoded slash: each way to take one counts.

use super::*;
use crate::Look;
use crate::content::Payload;
use crate::history::History;

const SET: &str = r#"
@id("scoped") permit (principal, action == Action::"http", resource) when { context.path like "/@own*" };
@id("named") permit (principal, action == Action::"http", resource)
when { ["/@other/one", "/@other%2Fone"].contains(context.path) };
@id("encoded") permit (principal, action == Action::"http", resource) when { context.path == "/@third%2Fone" };
@id("plain") permit (principal, action == Action::"http", resource) when { context.path == "/@fourth/one" };
@id("no-secrets") forbid (principal, action == Action::"http", resource) when { context.path like "*/secret*" };
@id("no-encoded") forbid (principal, action == Action::"http", resource) when { context.path like "*%2Fodd" };
"#;

fn request<'a>(agent: &'a Agent, host: &'a Host, path: &'a str) -> Request<'a> {
    let (port, head) = (443, Head::none());
    let operation = Operation::Http { host, port, scheme: crate::Scheme::Https, method: "GET", path, head };
    Request { agent, operation }
}

#[test]
fn both_have_to_be_permitted() {
    let (set, agent, host) = (set(SET), agent("web"), Host::parse("registry.test").expect("host"));
    for (path, verdict, policies) in [
        ("/@own/one", Ok(()), &["scoped"][..]),
        ("/@own%2Fone", Ok(()), &["scoped"]),
        ("/@other%2Fone", Ok(()), &["named"]),
        // A part of a name to one server is the path of another.
        ("/@third%2Fone", Err(DropReason::PolicyDenied), &[]),
        ("/@fourth%2Fone", Err(DropReason::PolicyDenied), &[]),
        // A forbid of either counts.
        ("/@own%2Fsecret", Err(DropReason::PolicyForbidden), &["no-secrets"]),
        ("/@own/secret", Err(DropReason::PolicyForbidden), &["no-secrets"]),
        ("/@own%2Fodd", Err(DropReason::PolicyForbidden), &["no-encoded"]),
        ("/@own/odd", Ok(()), &["scoped"]),
        ("/@own%252Fsecret", Ok(()), &["scoped"]),
    ] {
        let request = request(&agent, &host, path);
        let decision = set.decide(&request);
        let by: Vec<_> = decision.policies.iter().map(String::as_str).collect();
        assert_eq!((decision.verdict, &by[..]), (verdict, policies), "{path}");
        assert_eq!(set.decide_by_oracle(&request), decision, "{path}");
        assert_eq!(set.may_permit(&request), verdict.is_ok(), "{path}");
    }
    // Under the platform's, which may know either.
    let above = r#"
@id("all") permit (principal, action, resource);
@id("no") forbid (principal, action == Action::"http", resource) when { context.path like "/@own/*" };
"#;
    let owner = "platform".parse().expect("an owner");
    let above = PolicySet::parse_for(&owner, above, &NamedSets::default(), &Surroundings::default());
    let set = set.under(&above.expect("parsed"));
    let decision = set.decide(&request(&agent, &host, "/@own%2Fone"));
    assert_eq!(decision.verdict, Err(DropReason::PolicyForbidden), "{decision:?}");
}

#[test]
fn what_either_obliges_to_counts_once() {
    let set = set(r#"
@id("all") @effect("rate-limit") @limit("5 requests/minute") permit (principal, action == Action::"http", resource);
@id("named") @effect("alert") permit (principal, action == Action::"http", resource) when { context.path like "*%2F*" };
@id("parted") @effect("alert") permit (principal, action == Action::"http", resource) when { context.path like "/*/*" };
@id("would") @mode("log-only") permit (principal, action == Action::"http", resource) when { context.path like "/a*" };
"#);
    let (agent, host) = (agent("web"), Host::parse("registry.test").expect("host"));
    let ids = |path: &str| {
        let request = request(&agent, &host, path);
        let obligations = set.obligations(&request).expect("evaluated");
        assert_eq!(set.obligations_by_oracle(&request).expect("evaluated"), obligations, "{path}");
        obligations.iter().map(|o| o.policy.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids("/a%2Fb"), ["all", "named", "parted", "would"]);
    assert_eq!(ids("/a/b"), ["all", "parted", "would"]);
    assert_eq!(ids("/a"), ["all", "would"]);
}

/// A key goes along where policy says so, however the server takes the path; and what is taken away is.
#[test]
fn what_only_one_way_changes_is_refused() {
    let set = set(r#"
@id("all") permit (principal, action == Action::"http", resource);
@id("keyed") @effect("transform") @inject("PRIVATE-TOKEN: {gitlab}")
permit (principal, action == Action::"http", resource) when { context.path like "/projects/7/*" };
@id("marked") @effect("transform") @set_header("x-team: own") permit (principal, action == Action::"http", resource);
"#);
    let (agent, host) = (agent("web"), Host::parse("gitlab.test").expect("host"));
    let ids = |path: &str| {
        let request = request(&agent, &host, path);
        let obligations = set.obligations(&request);
        assert_eq!(set.obligations_by_oracle(&request), obligations, "{path}");
        obligations.map(|all| all.iter().map(|o| o.policy.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(ids("/projects/7/variables").expect("evaluated"), ["keyed", "marked"]);
    assert_eq!(ids("/projects/7/own%2Fvariables").expect("evaluated"), ["keyed", "marked"]);
    assert_eq!(ids("/projects/own%2Fvariables").expect("evaluated"), ["marked"]);
    let refused = ids("/projects/7%2Fother/variables").expect_err("whose key goes along?");
    assert_eq!(
        (refused.verdict, &refused.policies[..]),
        (Err(DropReason::PolicyError), &["keyed".to_owned()][..])
    );
    assert!(refused.errors.iter().all(|error| error.ends_with(crate::path::APART)), "{refused:?}");
}

/// Also of who needs to know more before it is decided, and of bodies.
#[test]
fn what_has_to_be_known_for_either_is_needed() {
    let set = set(r#"
@id("net") permit (principal, action == Action::"http", resource);
@id("new") forbid (principal, action == Action::"http", resource) when { context.path == "/a/b" && context.history.first_seen };
@id("send") permit (principal, action == Action::"send", resource);
@id("no-keys") forbid (principal, action == Action::"send", resource)
when { context.path == "/a/b" && context.findings.contains("private_key") };
"#);
    let (agent, host) = (agent("web"), Host::parse("registry.test").expect("host"));
    let needs = |path| {
        let http = set.needs_history(&request(&agent, &host, path));
        let payload = Payload { bytes: 1, complete: false, media_type: "", findings: &[] };
        let operation = Operation::Send { host: &host, port: 443, method: "PUT", path, payload };
        let send = set.needs_payload(&Request { agent: &agent, operation }, true);
        (http, send.decided)
    };
    assert_eq!(needs("/a%2Fb"), (Need::Decided, Look::Content));
    assert_eq!(needs("/a/b"), (Need::Decided, Look::Content));
    assert_eq!(needs("/a%2Fc"), (Need::None, Look::Nothing));
    assert!(set.knowing(History::QUIET).decide(&request(&agent, &host, "/a%2Fc")).is_allow());
}
