//! Whom tokens are from and for, and records that are refused.

use super::*;
use crate::testing::{jwks, token};

const NOW_S: i64 = 1_000_000;

fn record(change: impl FnOnce(&mut IssuerRecord)) -> IssuerRecord {
    let mut record = IssuerRecord {
        id: "acme/idp".parse().unwrap(),
        issuer: "https://idp.test".to_owned(),
        audiences: BTreeSet::from(["gateway".to_owned()]),
        algorithms: Algorithm::ALL.into(),
        types: default_types(),
        type_required: false,
        skew_s: 10,
        lifetime_s_max: None,
        issued_after_s: None,
        revoked: BTreeSet::new(),
        id_tokens: false,
        act: Delegation::Record,
        actor: None,
        mapping: serde_json::from_str(r#"{"agent":{"from":"sub"}}"#).unwrap(),
        provider: None,
        keys: jwks(),
    };
    change(&mut record);
    record
}

fn claims(more: &str) -> String {
    format!(r#"{{"iss":"https://idp.test","aud":"gateway","sub":"web","exp":{}{more}}}"#, NOW_S + 60)
}

fn judge_as(record: IssuerRecord, algorithm: Algorithm, claims: &str) -> Result<String, TokenError> {
    let issuer = Issuer::new(record).unwrap();
    let text = token(algorithm, claims);
    let token = issuer.verify(UnverifiedToken::parse(&text)?)?;
    issuer.judge(&token, NOW_S).map(|judged| judged.mapped.agent.to_string())
}

fn judge(record: IssuerRecord, claims: &str) -> Result<String, TokenError> {
    judge_as(record, Algorithm::Es256, claims)
}

#[test]
fn whom_tokens_are_from_and_for() {
    let plain = || record(|_| {});
    assert_eq!(judge(plain(), &claims("")), Ok("acme/web".to_owned()));
    let with = |from: &str, to: &str| judge(plain(), &claims("").replace(from, to));
    for iss in ["https://idp.test/", "https://IDP.test", "http://idp.test", "https://idp.test ", "", "x"] {
        assert_eq!(
            with("https://idp.test", iss).err(),
            Some(if iss.is_empty() { TokenError::Claim("iss") } else { TokenError::UnknownIssuer }),
            "{iss}"
        );
    }
    assert_eq!(with(r#""aud":"gateway","#, ""), Err(TokenError::Audience));
    assert_eq!(with(r#""gateway""#, r#""other""#), Err(TokenError::Audience));
    assert_eq!(with(r#""gateway""#, r#"["other","gateway"]"#), Ok("acme/web".to_owned()));
    assert_eq!(with(r#","exp":1000060"#, ""), Err(TokenError::Missing("exp")));
    assert_eq!(with(r#""exp":1000060"#, r#""exp":999990"#), Err(TokenError::Expired));
    assert_eq!(judge(plain(), &claims(r#","nbf":1000011"#)), Err(TokenError::NotYet));
    assert_eq!(with("web", "other/web"), Err(MappingError::Nothing(crate::Part::Agent).into()));
}

use crate::MappingError;

#[test]
fn an_algorithm_the_issuer_may_not_use() {
    for algorithm in Algorithm::ALL {
        let only = record(|r| r.algorithms = BTreeSet::from([algorithm]));
        for signing in Algorithm::ALL {
            let expected = if signing == algorithm {
                Ok("acme/web".to_owned())
            } else {
                Err(TokenError::AlgorithmNotAllowed)
            };
            assert_eq!(judge_as(only.clone(), signing, &claims("")), expected);
        }
    }
}

#[test]
fn types() {
    let judge = |change: fn(&mut IssuerRecord), typ: &str| {
        let issuer = Issuer::new(record(change)).unwrap();
        issuer.is_type((!typ.is_empty()).then_some(typ))
    };
    for typ in ["", "JWT", "jwt", "at+jwt", "application/at+jwt", "Application/AT+JWT"] {
        assert!(judge(|_| {}, typ), "{typ}");
    }
    for typ in ["JOSE", "dpop+jwt", "application/", "application/x/JWT", "logout+jwt", "JWT "] {
        assert!(!judge(|_| {}, typ), "{typ}");
    }
    assert!(!judge(|r| r.type_required = true, ""));
    assert!(judge(|r| r.types = BTreeSet::from(["application/x+jwt".to_owned()]), "x+jwt"));
}

#[test]
fn revoked_tokens() {
    let revoked = |id: &str| record(|r| r.revoked = BTreeSet::from([id.to_owned()]));
    assert_eq!(judge(revoked("t1"), &claims(r#","jti":"t1""#)), Err(TokenError::Revoked));
    assert_eq!(judge(revoked("t1"), &claims(r#","jti":"t2""#)), Ok("acme/web".to_owned()));
    assert_eq!(judge(revoked("t1"), &claims(r#","jti":7"#)), Err(TokenError::Claim("jti")));
    assert_eq!(judge(revoked("t1"), &claims(r#","jti":"t1\u0000""#)), Err(TokenError::Claim("jti")));
    // One without an id is revoked by the one that records show.
    let issuer = Issuer::new(record(|_| {})).unwrap();
    let text = token(Algorithm::EdDsa, &claims(""));
    let id = issuer.verify(UnverifiedToken::parse(&text).unwrap()).unwrap().id;
    assert_eq!(judge_as(revoked(&id), Algorithm::EdDsa, &claims("")), Err(TokenError::Revoked));
    for no_id in [String::new(), "x".repeat(2049)] {
        let error = Issuer::new(revoked(&no_id)).map(drop).unwrap_err();
        assert_eq!(error, IssuerError::RevokedId);
    }
    let later = record(|r| r.issued_after_s = Some(NOW_S));
    assert_eq!(judge(later.clone(), &claims(r#","iat":999999"#)), Err(TokenError::Revoked));
    assert_eq!(judge(later.clone(), &claims(r#","iat":1000000"#)), Ok("acme/web".to_owned()));
    assert_eq!(judge(later, &claims("")), Err(TokenError::Missing("iat")));
}

#[test]
fn tokens_that_are_bound_to_a_key_are_no_bearer_tokens() {
    for cnf in
        [r#"{"jkt":"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}"#, r#"{"x5t#S256":"x"}"#, "{}", "null"]
    {
        assert_eq!(
            judge(record(|_| {}), &claims(&format!(r#","cnf":{cnf}"#))),
            Err(TokenError::KeyBound),
            "{cnf}"
        );
    }
}

#[test]
fn claims_of_known_providers() {
    let mapped = |mapping: &str, more: &str| {
        judge(record(|r| r.mapping = serde_json::from_str(mapping).unwrap()), &claims(more))
    };
    let kubernetes = r#"{"agent":{"from":["kubernetes.io","serviceaccount","name"]},
        "require":[{"from":["kubernetes.io","namespace"],"any_of":["agents"]}]}"#;
    let pod = |namespace: &str| {
        format!(r#","kubernetes.io":{{"namespace":"{namespace}","serviceaccount":{{"name":"crawler"}}}}"#)
    };
    assert_eq!(mapped(kubernetes, &pod("agents")), Ok("acme/crawler".to_owned()));
    assert_eq!(mapped(kubernetes, &pod("default")), Err(MappingError::Required(1).into()));
    let delegated = r#"{"agent":{"from":["act","sub"],"prefix":"agent:"}}"#;
    assert_eq!(mapped(delegated, r#","act":{"sub":"agent:bot"}"#), Ok("acme/bot".to_owned()));
    assert_eq!(mapped(delegated, ""), Err(MappingError::Nothing(crate::Part::Agent).into()));
    let url = r#"{"agent":{"from":"https://acme.test/agent"}}"#;
    assert_eq!(mapped(url, r#","https://acme.test/agent":"bot""#), Ok("acme/bot".to_owned()));
    let verified = r#"{"agent":{"from":"sub"},"require":[{"from":"email_verified","any_of":["true"]},{"from":"v","any_of":["2"]}]}"#;
    assert_eq!(mapped(verified, r#","email_verified":true,"v":2"#), Ok("acme/web".to_owned()));
    assert_eq!(mapped(verified, r#","email_verified":false,"v":2"#), Err(MappingError::Required(1).into()));
    let groups = r#"{"agent":{"from":"groups","prefix":"agent-"}}"#;
    assert_eq!(mapped(groups, r#","groups":["all","agent-web",7,{}]"#), Ok("acme/web".to_owned()));
    assert_eq!(
        mapped(groups, r#","groups":["agent-web","agent-bot"]"#),
        Err(MappingError::Several(crate::Part::Agent).into())
    );
}

#[test]
fn records_that_are_refused() {
    let refused = |change: fn(&mut IssuerRecord)| Issuer::new(record(change)).err();
    assert_eq!(refused(|_| {}), None);
    assert_eq!(refused(|r| r.issuer.clear()), Some(IssuerError::Issuer));
    assert_eq!(refused(|r| r.audiences.clear()), Some(IssuerError::Audiences));
    assert_eq!(refused(|r| r.audiences = BTreeSet::from([String::new()])), Some(IssuerError::Audiences));
    assert_eq!(refused(|r| r.algorithms.clear()), Some(IssuerError::Algorithms));
    assert_eq!(refused(|r| r.types.clear()), Some(IssuerError::Types));
    assert_eq!(refused(|r| r.skew_s = SKEW_S_MAX + 1), Some(IssuerError::Skew));
    let revoked = |r: &mut IssuerRecord| r.revoked = (0..=REVOKED_MAX).map(|n| n.to_string()).collect();
    assert_eq!(refused(revoked), Some(IssuerError::Revoked));
    assert_eq!(refused(|r| r.mapping.agent.from = Some(ClaimPath::new(&[]))), Some(IssuerError::Path));
    assert_eq!(refused(|r| r.mapping.agent.from = Some(ClaimPath::new(&["a"; 9]))), Some(IssuerError::Path));
    assert!(matches!(refused(|r| r.mapping.agent.from = None), Some(IssuerError::Mapping(_))));
    assert!(matches!(refused(|r| r.keys = "{}".to_owned()), Some(IssuerError::Keys(JwksError::Keys))));
}

#[test]
fn records_that_contradict_themselves() {
    let refused = |change: fn(&mut IssuerRecord)| Issuer::new(record(change)).err();
    let provider = || serde_json::from_str(r#"{"stale_s_max":60}"#).ok();
    let actor = || serde_json::from_str(r#"{"from":"sub"}"#).ok();
    assert_eq!(refused(|r| r.keys.clear()), Some(IssuerError::NoKeys));
    assert_eq!(
        refused(
            |r| (r.keys, r.provider) = (String::new(), serde_json::from_str(r#"{"stale_s_max":60}"#).ok())
        ),
        None
    );
    assert!(matches!(
        refused(|r| (r.issuer, r.provider) =
            ("urn:x".to_owned(), serde_json::from_str(r#"{"stale_s_max":60}"#).ok())),
        Some(IssuerError::Provider(_))
    ));
    assert_eq!(refused(|r| r.act = Delegation::Known), Some(IssuerError::Actor));
    assert_eq!(
        refused(|r| r.actor = serde_json::from_str(r#"{"from":"sub"}"#).ok()),
        Some(IssuerError::Actor)
    );
    let same = |r: &mut IssuerRecord| {
        (r.act, r.actor) = (Delegation::Known, serde_json::from_str(r#"{"value":"web"}"#).ok())
    };
    assert_eq!(refused(same), Some(IssuerError::Actor));
    let formless =
        |r: &mut IssuerRecord| (r.act, r.actor) = (Delegation::Known, serde_json::from_str("{}").ok());
    assert!(matches!(refused(formless), Some(IssuerError::Mapping(_))));
    let unused = |r: &mut IssuerRecord| {
        r.act = Delegation::None;
        r.mapping.agent.from = Some(ClaimPath::new(&["act", "sub"]));
    };
    assert_eq!(refused(unused), Some(IssuerError::ActUnused));
    // Written and read, nothing is lost, and what is default is left out.
    let full = record(|r| {
        (r.act, r.actor, r.provider, r.id_tokens) = (Delegation::Known, actor(), provider(), true)
    });
    let stored = serde_json::to_string(&full).unwrap();
    assert!(stored.contains(r#""act":"known""#) && stored.contains(r#""id_tokens":true"#), "{stored}");
    assert_eq!(serde_json::from_str::<IssuerRecord>(&stored).unwrap(), full);
    assert!(!serde_json::to_string(&record(|_| {})).unwrap().contains("id_tokens"));
}

/// OpenID Connect has clients get ID tokens by the same keys: they are for the client, not for whoever finds them.
#[test]
fn id_tokens_are_for_their_clients_alone() {
    let as_typ = |change: fn(&mut IssuerRecord), typ: &str, more: &str| {
        let issuer = Issuer::new(record(change)).unwrap();
        let header = format!(r#"{{"alg":"ES256","kid":"ES256"{typ}}}"#);
        let text =
            crate::testing::Signer::of(Algorithm::Es256).token(Algorithm::Es256, &header, &claims(more));
        let token = issuer.verify(UnverifiedToken::parse(&text).unwrap()).unwrap();
        issuer.judge(&token, NOW_S).err()
    };
    for more in
        [r#","nonce":"n""#, r#","at_hash":"h""#, r#","c_hash":"h""#, r#","s_hash":"h""#, r#","nonce":null"#]
    {
        for typ in ["", r#","typ":"JWT""#] {
            assert_eq!(as_typ(|_| {}, typ, more), Some(TokenError::IdToken), "{typ} {more}");
        }
        assert_eq!(as_typ(|r| r.id_tokens = true, "", more), None);
        assert_eq!(as_typ(|_| {}, r#","typ":"application/AT+JWT""#, more), None, "typed as an access token");
    }
}

#[test]
fn records_survive_being_stored() {
    let stored = serde_json::to_string(&record(|r| r.lifetime_s_max = Some(3600))).unwrap();
    let read: IssuerRecord = serde_json::from_str(&stored).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), stored);
    assert!(
        serde_json::from_str::<IssuerRecord>(&stored.replacen('{', r#"{"algorithm":"none","#, 1)).is_err()
    );
    for algorithm in ["none", "HS256", "RS512"] {
        assert!(
            serde_json::from_str::<IssuerRecord>(&stored.replace("\"ES384\"", &format!("\"{algorithm}\"")))
                .is_err()
        );
    }
}
