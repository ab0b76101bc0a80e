//! Signals: what agents seem to be, and what they did before, from real clients to policy.

use std::time::Duration;

use clawgress_api::{EffectRef, KnownFingerprint, Plane, RecordKind, Verdict};
use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::API;
use clawgress_e2e::scenario::{CRAWLER, POLICY, SETS};

use crate::support::{admin, agent, codes, curl, denied, finish, record, site, to_host};

/// Time for control to have what L7 recorded.
const COUNT_TIME: Duration = Duration::from_secs(15);
const PAGE: &str = "https://api.allowed.test/hello";

#[test]
fn programs_are_known_by_their_hellos_and_places_by_who_was_there() {
    let mut site = site();
    assert!(curl(&site, Host::Known, &["-4", PAGE]).ok());
    let first = record(&site, "the tunnel", |r| r.kind == RecordKind::Decision && to_host(r, API));
    let mac = first.source.mac.expect("the binding's, which the kernel plane has checked");
    let ja4 = first.fingerprint.and_then(|f| f.ja4).expect("a fingerprint");
    assert!(ja4.starts_with("t13d"), "{ja4}");
    // Policy may hold an agent to the program it is known by, and tell of places that are new.
    let text = format!(
        "{POLICY}
        @id(\"known-program\") forbid (principal, action == Action::\"tls\", resource)
        when {{ context.ja4 != \"{ja4}\" }};
        @id(\"known-card\") forbid (principal, action == Action::\"tls\", resource)
        unless {{ context has mac && context.mac == \"{mac}\" }};
        @id(\"new-place\") @effect(\"alert\") @severity(\"low\")
        permit (principal, action == Action::\"tls\", resource) when {{ context.history.first_seen }};
        @id(\"denied-often\") forbid (principal, action == Action::\"http\", resource)
        when {{ context.history.denied_last_hour >= 3 && context.history.requests_last_hour > 3 }};
        "
    );
    site.gateway.apply_policy(&text, SETS).unwrap();
    let other = curl(&site, Host::Known, &["-4", "--tls-max", "1.2", PAGE]);
    assert!(!other.ok(), "{other:?}");
    let refused = record(&site, "the other program", |r| to_host(r, API) && denied(r, "policy_forbidden"));
    assert_eq!(
        (agent(&refused), refused.policies.as_slice()),
        (Some(CRAWLER), &["known-program".to_owned()][..])
    );
    let seen = refused.fingerprint.as_ref().and_then(|f| f.ja4.clone()).expect("a fingerprint");
    assert!(seen.starts_with("t12d"), "{seen}");
    let change = record(&site, "the change", |r| {
        r.kind == RecordKind::Change && r.detail.as_deref().is_some_and(|d| d.contains(&seen))
    });
    assert_eq!((agent(&change), change.plane), (Some(CRAWLER), Plane::Control));
    let listed =
        admin(&site).ctl(&["--output", "json", "agent", "fingerprints", CRAWLER]).unwrap().check().unwrap();
    let listed: Vec<KnownFingerprint> = serde_json::from_str(&listed.stdout).unwrap();
    let values: Vec<&str> = listed.iter().map(|known| known.value.as_str()).collect();
    assert!(values.contains(&ja4.as_str()) && values.contains(&seen.as_str()), "{listed:?}");

    // It has been at the one, and never at the other.
    let allowed = |host: &'static str| {
        move |r: &clawgress_api::AuditRecord| {
            r.kind == RecordKind::Decision
                && r.plane == Plane::L7
                && to_host(r, host)
                && r.verdict == Some(Verdict::Allow)
        }
    };
    assert!(curl(&site, Host::Known, &["-4", "https://llm.allowed.test/"]).ok());
    let new = record(&site, "the new place", allowed("llm.allowed.test"));
    let alert =
        EffectRef { policy: "new-place".into(), effect: "alert".into(), severity: Some("low".into()) };
    assert_eq!(new.effects, [alert]);
    assert!(curl(&site, Host::Known, &["-4", "https://llm.allowed.test/again"]).ok());
    record(&site, "the known place", |r| allowed("llm.allowed.test")(r) && r.effects.is_empty());

    // Control counts what is recorded: one was denied so far.
    let get = |path: &str| codes(&curl(&site, Host::Known, &["-4", &format!("http://{API}{path}")])).0;
    assert_eq!((get("/hello"), get("/admin"), get("/admin")), (200, 403, 403));
    let is_counted = || Ok(get("/hello") == 403);
    site.gateway.lab.wait("what was denied to count", COUNT_TIME, is_counted).unwrap();
    record(&site, "who is denied often", |r| {
        denied(r, "policy_forbidden") && r.policies == ["denied-often"] && agent(r) == Some(CRAWLER)
    });
    site.gateway.apply_policy(POLICY, SETS).unwrap();
    finish(site);
}
