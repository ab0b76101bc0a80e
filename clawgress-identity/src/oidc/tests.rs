//! The state machine: what is fetched when, and how long keys count.

use super::*;
use crate::AnchorsError;
use crate::testing::{Signer, jwks};

const START_S: i64 = 1_000_000;
const ISSUER: &str = "https://idp.test/realm";

fn record() -> ProviderRecord {
    serde_json::from_str(r#"{"stale_s_max":3600}"#).unwrap()
}

fn provider() -> Provider {
    Provider::new(ISSUER, &record(), 0).unwrap()
}

fn discovery() -> String {
    format!(
        r#"{{"issuer":"{ISSUER}","jwks_uri":"https://idp.test/keys","id_token_signing_alg_values_supported":["none"]}}"#
    )
}

fn fetch(provider: &mut Provider, now_s: i64) -> Fetch {
    match provider.next(now_s) {
        Next::Fetch(fetch) => fetch,
        Next::Wait(until_s) => panic!("waits for {} s", until_s - now_s),
    }
}

fn wait_s(provider: &mut Provider, now_s: i64) -> i64 {
    match provider.next(now_s) {
        Next::Wait(until_s) => until_s - now_s,
        Next::Fetch(fetch) => panic!("{fetch:?}"),
    }
}

/// A provider whose keys were fetched at the start.
fn ready() -> Provider {
    let mut provider = provider();
    let first = fetch(&mut provider, START_S);
    assert_eq!(
        (first.url.as_str(), first.what),
        ("https://idp.test/realm/.well-known/openid-configuration", What::Discovery)
    );
    assert_eq!(provider.answered(&first, discovery().as_bytes(), None, START_S), Ok(false));
    let second = fetch(&mut provider, START_S);
    assert_eq!((second.url.as_str(), second.what), ("https://idp.test/keys", What::Keys));
    assert_eq!(provider.answered(&second, jwks().as_bytes(), None, START_S), Ok(true));
    provider
}

#[test]
fn keys_are_fetched_and_refreshed() {
    let mut provider = provider();
    assert!(provider.keys(START_S).is_none());
    provider = ready();
    let fresh_s = i64::from(FRESH_S_DEFAULT);
    assert_eq!(wait_s(&mut provider, START_S), fresh_s);
    assert_eq!(provider.keys(START_S + fresh_s - 1).map(KeySet::len), Some(5));
    let again = fetch(&mut provider, START_S + fresh_s);
    assert_eq!(again.what, What::Keys);
    assert_eq!(wait_s(&mut provider, START_S + fresh_s), FETCH_S_MAX, "asked once");
    let same = provider.answered(&again, jwks().as_bytes(), Some(120), START_S + fresh_s);
    assert_eq!((same, provider.document().1), (Ok(false), 1));
    assert_eq!(wait_s(&mut provider, START_S + fresh_s), 120);
    // Discovery is asked again after a day.
    let day = START_S + DISCOVERY_S;
    assert_eq!(fetch(&mut provider, day).what, What::Discovery);
}

#[test]
fn what_the_provider_says_of_caching_is_bounded() {
    for (max_age_s, fresh_s) in [(0, 60), (60, 60), (3600, 3600), (u32::MAX, 86_400)] {
        let mut provider = ready();
        let now_s = START_S + 900;
        let again = fetch(&mut provider, now_s);
        provider.answered(&again, jwks().as_bytes(), Some(max_age_s), now_s).unwrap();
        assert_eq!(provider.keys.as_ref().map(|k| k.due_s() - now_s), Some(fresh_s), "{max_age_s}");
    }
    let mut early = Provider::new(ISSUER, &record(), 255).unwrap();
    early.received(jwks().as_bytes(), Some(1000), 0).unwrap();
    assert_eq!(early.keys.map(|k| k.due_s()), Some(901));
}

/// Who configures it may have it asked more often than it wants to be, and less.
#[test]
fn times_that_are_configured_are_kept_to() {
    let short = ProviderRecord { fresh_s_max: 2, stale_s_max: 3, ..record() };
    let mut provider = Provider::new(ISSUER, &short, 0).unwrap();
    let first = fetch(&mut provider, START_S);
    provider.answered(&first, discovery().as_bytes(), None, START_S).unwrap();
    let second = fetch(&mut provider, START_S);
    provider.answered(&second, jwks().as_bytes(), Some(86_400), START_S).unwrap();
    assert_eq!((provider.due_s(), provider.ends_s()), (Some(START_S + 2), Some(START_S + 5)));
    assert!(!provider.unknown_key(START_S + 1) && provider.unknown_key(START_S + 2));
    assert!(provider.in_force(START_S + 4).is_some() && provider.in_force(START_S + 5).is_none());
}

#[test]
fn keys_of_an_earlier_life_end_when_they_would_have() {
    let mut provider = provider();
    provider.restore(jwks().as_bytes(), START_S, 900).unwrap();
    assert_eq!(provider.confirmed(), Some((START_S, 900)));
    // Where the keys are is not known any more, so all is asked anew.
    assert_eq!(fetch(&mut provider, START_S + 10).what, What::Discovery);
    assert!(provider.keys(START_S + 4499).is_some() && provider.is_stale(START_S + 4499));
    assert!(provider.keys(START_S + 4500).is_none());
    // By another record, which lets keys be fresh for a shorter time.
    let short = ProviderRecord { fresh_s_max: 60, ..record() };
    let mut provider = Provider::new(ISSUER, &short, 0).unwrap();
    provider.restore(jwks().as_bytes(), START_S, 900).unwrap();
    assert_eq!(provider.due_s(), Some(START_S + 60));
    assert!(provider.restore(b"{}", START_S, 900).is_err());
    assert_eq!(provider.in_force(START_S), Some(jwks().as_bytes()), "what can't be read replaces nothing");
}

#[test]
fn a_refresh_waits_for_no_pause() {
    let mut provider = ready();
    let now_s = START_S + 10;
    assert_eq!(wait_s(&mut provider, now_s), 890);
    provider.refresh();
    let asked = fetch(&mut provider, now_s);
    assert_eq!(asked.what, What::Discovery);
    provider.failed(&asked, now_s);
    assert_eq!(
        (wait_s(&mut provider, now_s), provider.failing_since_s()),
        (i64::from(PAUSE_S_FIRST), Some(now_s))
    );
    provider.refresh();
    let asked = fetch(&mut provider, now_s);
    provider.answered(&asked, discovery().as_bytes(), None, now_s).unwrap();
    let asked = fetch(&mut provider, now_s);
    assert_eq!(asked.what, What::Keys);
    assert_eq!(provider.answered(&asked, jwks().as_bytes(), None, now_s), Ok(false));
    assert_eq!((provider.failing_since_s(), provider.due_s()), (None, Some(now_s + 900)));
}

/// The same keys, written otherwise and in another order, are no news.
#[test]
fn only_other_keys_are_other_keys() {
    let mut provider = ready();
    let spaced = jwks().replace("},{", "}, {");
    let mut list: Vec<&str> =
        spaced.trim_start_matches("{\"keys\":[").trim_end_matches("]}").split("}, {").collect();
    list.reverse();
    let list: Vec<String> = list.iter().map(|key| format!("{{{}}}", key.trim_matches(['{', '}']))).collect();
    let turned = format!("{{\"keys\":[{}]}}", list.join(","));
    for (n, (document, is_other)) in
        [(spaced.clone(), false), (turned, false), (format!("{{\"keys\":[{}]}}", list[0]), true)]
            .into_iter()
            .enumerate()
    {
        let now_s = START_S + 900 * (n as i64 + 1);
        let asked = fetch(&mut provider, now_s);
        assert_eq!(provider.answered(&asked, document.as_bytes(), None, now_s), Ok(is_other), "{document}");
    }
    assert_eq!(provider.document().1, 2);
}

#[test]
fn failures_back_off_and_stale_keys_end() {
    let mut provider = ready();
    let due_s = START_S + i64::from(FRESH_S_DEFAULT);
    let (mut now_s, mut pauses) = (due_s, Vec::new());
    for _ in 0..10 {
        let asked = fetch(&mut provider, now_s);
        provider.failed(&asked, now_s);
        let pause_s = wait_s(&mut provider, now_s);
        pauses.push(pause_s);
        now_s += pause_s;
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
    assert_eq!(provider.failures(), 10);
    // After some failures the keys may have moved.
    assert_eq!(fetch(&mut provider, now_s).what, What::Discovery);
    let ends_s = due_s + 3600;
    assert!(!provider.is_stale(due_s - 1) && provider.is_stale(due_s) && provider.is_stale(ends_s - 1));
    assert!(provider.keys(ends_s - 1).is_some());
    assert!(provider.keys(ends_s).is_none() && !provider.is_stale(ends_s), "closed");
    assert!(provider.keys(i64::MAX).is_none());
    // It is back: one answer each, and all is as before.
    let mut provider = provider;
    let asked = provider.asked.clone().unwrap().0;
    provider.answered(&asked, discovery().as_bytes(), None, now_s).unwrap();
    let asked = fetch(&mut provider, now_s);
    assert_eq!(asked.what, What::Keys);
    provider.answered(&asked, jwks().as_bytes(), None, now_s).unwrap();
    assert_eq!((provider.failures(), wait_s(&mut provider, now_s)), (0, 900));
}

#[test]
fn a_fetch_nobody_tells_of_has_failed() {
    let mut provider = provider();
    let first = fetch(&mut provider, START_S);
    assert_eq!(wait_s(&mut provider, START_S + 59), 1);
    assert_eq!(wait_s(&mut provider, START_S + 60), i64::from(PAUSE_S_FIRST));
    assert_eq!(provider.answered(&first, discovery().as_bytes(), None, START_S + 61), Err(AnswerError::Late));
    let second = fetch(&mut provider, START_S + 65);
    assert_ne!(first, second);
    assert_eq!(provider.answered(&first, discovery().as_bytes(), None, START_S + 66), Err(AnswerError::Late));
    provider.failed(&first, START_S + 66);
    assert_eq!(provider.failures(), 1, "only what is asked counts");
    assert_eq!(provider.answered(&second, discovery().as_bytes(), None, START_S + 66), Ok(false));
}

#[test]
fn unknown_keys_refresh_at_a_bounded_rate() {
    let mut provider = ready();
    let mut asked = 0;
    for now_s in START_S..START_S + 600 {
        provider.unknown_key(now_s);
        if let Next::Fetch(fetch) = provider.next(now_s) {
            asked += 1;
            provider.answered(&fetch, jwks().as_bytes(), None, now_s).unwrap();
        }
    }
    assert_eq!(asked, 9, "one a minute, and none in the first");
    // While the provider fails, its pauses count too.
    let mut provider = ready();
    let mut asked = 0;
    for now_s in START_S + 100..START_S + 700 {
        provider.unknown_key(now_s);
        if let Next::Fetch(fetch) = provider.next(now_s) {
            asked += 1;
            provider.failed(&fetch, now_s);
        }
    }
    assert!(asked <= 9, "{asked}");
}

#[test]
fn a_rollover_takes_effect() {
    let mut provider = ready();
    let new = Signer::new_ed25519().jwk(r#","kid":"new""#);
    let rolled = jwks().replacen('[', &format!("[{new},"), 1);
    let now_s = START_S + 61;
    assert!(provider.keys(now_s).is_some_and(|keys| !keys.knows(Some("new"))));
    assert!(provider.unknown_key(now_s));
    let asked = fetch(&mut provider, now_s);
    assert_eq!(provider.answered(&asked, rolled.as_bytes(), None, now_s), Ok(true));
    assert!(provider.keys(now_s).is_some_and(|keys| keys.knows(Some("new"))));
    assert_eq!(provider.document(), (rolled.as_bytes(), 2));
}

#[test]
fn a_bad_key_set_replaces_nothing() {
    let mut provider = ready();
    let mut now_s = START_S + 900;
    for bad in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AA"}]}"#, "<html>"] {
        while let Next::Wait(until_s) = provider.next(now_s) {
            now_s = until_s;
        }
        let asked = provider.asked.clone().unwrap().0;
        let refused = provider.answered(&asked, bad.as_bytes(), None, now_s);
        assert!(refused.is_err(), "{bad}");
        assert_eq!(provider.keys(now_s).map(KeySet::len), Some(5), "{bad}");
    }
    assert_eq!(provider.document(), (jwks().as_bytes(), 1));
}

#[test]
fn discovery_documents_that_are_refused() {
    let with = |document: &str| {
        let mut provider = provider();
        let asked = fetch(&mut provider, START_S);
        let answered = provider.answered(&asked, document.as_bytes(), None, START_S).err();
        assert_eq!(wait_s(&mut provider, START_S), i64::from(PAUSE_S_FIRST));
        answered
    };
    let other = |from: &str, to: &str| with(&discovery().replace(from, to));
    for issuer in ["https://idp.test/realm/", "https://evil.test/realm", "HTTPS://idp.test/realm"] {
        assert_eq!(other(ISSUER, issuer), Some(AnswerError::OtherIssuer), "{issuer}");
    }
    for (url, error) in [
        ("http://idp.test/keys", UrlError::Scheme),
        ("https://evil.test/keys", UrlError::Host),
        ("https://169.254.169.254/keys", UrlError::Address),
        ("https://idp.test@evil.test/keys", UrlError::Parts),
        ("file:///etc/passwd", UrlError::Scheme),
    ] {
        assert_eq!(other("https://idp.test/keys", url), Some(AnswerError::KeysUrl(error)), "{url}");
    }
    assert_eq!(other("jwks_uri", "jwks"), Some(AnswerError::KeysUrl(UrlError::Missing)));
    let twice = discovery().replacen('{', r#"{"issuer":"https://evil.test","#, 1);
    assert_eq!(with(&twice), Some(AnswerError::Discovery(JsonError::Duplicate)));
    assert_eq!(with("[]"), Some(AnswerError::Discovery(JsonError::NotAnObject)));
    let large = discovery().replacen('{', &format!(r#"{{"x":"{}","#, "x".repeat(DISCOVERY_BYTES_MAX)), 1);
    assert_eq!(with(&large), Some(AnswerError::Discovery(JsonError::Size)));
}

#[test]
fn a_clock_that_steps_back_makes_nothing_fresher() {
    let mut provider = ready();
    // By an hour: the keys are asked again at once, and count for nothing meanwhile.
    let now_s = START_S - 3600;
    assert!(provider.keys(now_s).is_none());
    let asked = fetch(&mut provider, now_s);
    assert_eq!(asked.what, What::Discovery);
    provider.failed(&asked, START_S);
    // A pause from a time to come holds nothing up.
    assert!(matches!(provider.next(now_s), Next::Fetch(_)));
    for now_s in [i64::MIN, i64::MAX] {
        let mut provider = ready();
        assert!(provider.keys(now_s).is_none());
        let _ = provider.next(now_s);
        let _ = provider.unknown_key(now_s);
        let _ = provider.next(now_s);
    }
}

#[test]
fn providers_that_are_refused() {
    let refused = |change: &dyn Fn(&mut ProviderRecord)| {
        let mut record = record();
        change(&mut record);
        Provider::new(ISSUER, &record, 0).err()
    };
    assert_eq!(refused(&|_| {}), None);
    let plain = Provider::new("http://idp.test", &record(), 0).err();
    assert_eq!(plain, Some(ProviderError::Issuer(UrlError::Scheme)));
    assert_eq!(
        refused(&|r| r.key_hosts = vec!["10.0.0.1".to_owned()]),
        Some(ProviderError::Host("10.0.0.1".to_owned()))
    );
    assert_eq!(refused(&|r| r.key_hosts = vec!["a.test".to_owned(); 17]), Some(ProviderError::Hosts));
    assert_eq!(refused(&|r| r.stale_s_max = 7 * 86_400 + 1), Some(ProviderError::Stale));
    for fresh_s_max in [0, 86_401] {
        assert_eq!(refused(&|r| r.fresh_s_max = fresh_s_max), Some(ProviderError::Fresh));
    }
    assert_eq!(
        refused(&|r| r.networks = vec!["10.0.0.0/8".parse().unwrap(); 17]),
        Some(ProviderError::Networks)
    );
    assert_eq!(
        refused(&|r| r.ca = "no certificate".to_owned()),
        Some(ProviderError::Ca(AnchorsError::Count("certificates")))
    );
    assert_eq!(refused(&|r| r.ca = "x".repeat(200_000)), Some(ProviderError::CaSize));
    for wrong in
        [r#"{"stale_s_max":1,"issuer":"x"}"#, r#"{"stale_s_max":1,"networks":["10.0.0.0/8/8"]}"#, "{}"]
    {
        assert!(serde_json::from_str::<ProviderRecord>(wrong).is_err(), "{wrong}");
    }
}

proptest::proptest! {
    /// Whatever happens in whatever order: requests come at a bounded rate, and keys never count longer than they may.
    #[test]
    fn any_course_of_events(events in proptest::collection::vec((0u8..6, 0i64..400), 1..200), spread: u8) {
        let mut provider = Provider::new(ISSUER, &record(), spread).unwrap();
        let (mut now_s, mut asked, mut confirmed_s, mut requests) = (START_S, None, None, 0);
        for (event, step_s) in events {
            now_s += step_s;
            match (event, asked.take()) {
                (0, Some(fetch)) => {
                    let body = if matches!(fetch, Fetch { what: What::Keys, .. }) { jwks() } else { discovery() };
                    if provider.answered(&fetch, body.as_bytes(), None, now_s).is_ok() && fetch.what == What::Keys {
                        confirmed_s = Some(now_s);
                    }
                }
                (1, Some(fetch)) => provider.failed(&fetch, now_s),
                (2, Some(fetch)) => drop(provider.answered(&fetch, b"{}", None, now_s)),
                (3, other) => {
                    provider.unknown_key(now_s);
                    asked = other;
                }
                (_, other) => asked = other,
            }
            match provider.next(now_s) {
                Next::Fetch(fetch) => {
                    requests += 1;
                    asked = Some(fetch);
                }
                Next::Wait(until_s) => proptest::prop_assert!(until_s > now_s),
            }
            let counts = provider.keys(now_s).is_some();
            let may = confirmed_s.is_some_and(|t| now_s < t + i64::from(FRESH_S_DEFAULT) + 3600);
            proptest::prop_assert!(!counts || may);
        }
        // Two at once (discovery, then keys), and at least four seconds after each failure.
        let bound = 2 + (now_s - START_S) / 2;
        proptest::prop_assert!(requests <= bound, "{requests} {bound}");
    }
}
