//! Tokens in `Proxy-Authorization: Bearer`: who they prove, each request, and what ends what they opened.

use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clawgress_api::{CredentialRef, RecordKind, Snapshot};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{IdentityMethod, IssuerRecord, SharedSource, Source};
use clawgress_policy::PolicyBundle;

use crate::balancers::{self, BALANCERS, HEADER};
use crate::harness::{Gateway, Options, PATIENCE};
use crate::upstream::Upstream;

/// An issuer of the tests' own.
pub struct Idp(Ed25519KeyPair);

impl Idp {
    pub fn new() -> Idp {
        Idp(Ed25519KeyPair::generate().expect("key"))
    }

    pub fn record(&self) -> IssuerRecord {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        let record = serde_json::json!({
            "id": "idp", "issuer": "https://idp.test", "audiences": ["gateway"], "algorithms": ["EdDSA"], "skew_s": 0,
            "mapping": {"agent": {"from": "sub", "prefix": "agent:"}},
            "keys": format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"1","x":"{x}"}}]}}"#)
        });
        serde_json::from_value(record).expect("record")
    }

    /// A token for an agent, meant for `audience`, with an id, until a Unix time.
    pub fn token_for(&self, audience: &str, agent: &str, id: &str, until_s: i64) -> String {
        let signed = unsigned(r#"{"alg":"EdDSA","kid":"1"}"#, audience, agent, id, until_s);
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// One that is meant for the gateway.
    pub fn token(&self, agent: &str, id: &str, until_s: i64) -> String {
        self.token_for("gateway", agent, id, until_s)
    }

    /// A header field with such a token.
    fn bearer(&self, agent: &str, id: &str, until_s: i64) -> String {
        format!("Proxy-Authorization: Bearer {}\r\n", self.token(agent, id, until_s))
    }
}

/// What is signed of a token under this header.
pub fn unsigned(header: &str, audience: &str, agent: &str, id: &str, until_s: i64) -> String {
    let claims = format!(
        r#"{{"iss":"https://idp.test","aud":"{audience}","sub":"agent:{agent}","jti":"{id}","exp":{until_s},"act":{{"sub":"orchestrator"}}}}"#
    );
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

pub fn in_s(seconds: i64) -> i64 {
    jiff::Timestamp::now().as_second() + seconds
}

fn get(host: &str, credential: &str) -> String {
    format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n{credential}\r\n")
}

async fn trusting(idp: &Idp) -> Gateway {
    let gateway = Gateway::start(Options::default()).await;
    let record = idp.record();
    assert_eq!(gateway.publish(|s| s.roots.issuers.push(record)).await, "");
    gateway
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_by_its_own_token() {
    let idp = Idp::new();
    let gateway = trusting(&idp).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let mut client = gateway.client().await;
    client.send(get(&host, &idp.bearer("web", "t1", in_s(60)))).await;
    assert_eq!(client.answer().await.status, 200);
    let (decision, _) = gateway.exchange(0).await;
    let credential = CredentialRef {
        issuer: Some("idp".parse().expect("id")),
        id: "t1".to_owned(),
        subject: Some("agent:web".to_owned()),
        actors: vec![clawgress_identity::Actor { subject: "orchestrator".to_owned(), issuer: None }],
    };
    let agent = decision.agent.expect("agent");
    assert_eq!((agent.agent.as_str(), agent.method), ("web", IdentityMethod::Jwt));
    assert_eq!(agent.credential, Some(credential));
    // On the same connection: another agent, whom policy permits nothing; a key; and nobody.
    client.send(get(&host, &idp.bearer("other", "t2", in_s(60)))).await;
    assert_eq!(client.answer().await.reason(), "policy_denied");
    client.send(get(&host, &gateway.web())).await;
    assert_eq!(client.answer().await.status, 200);
    let refused = client_refused(&gateway, &get(&host, "")).await;
    assert_eq!(refused, (407, "credential_missing".to_owned()));
    let seen = String::from_utf8_lossy(&upstream.seen.bytes.lock()).to_ascii_lowercase();
    assert!(!seen.contains("bearer") && !seen.contains("proxy-authorization"), "{seen}");
}

async fn client_refused(gateway: &Gateway, request: &str) -> (u16, String) {
    let answer = gateway.ask(request).await;
    (answer.status, answer.reason().to_owned())
}

/// Whatever is wrong with a token, the client learns what to do and never what was wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_prove_nobody() {
    let (idp, stranger) = (Idp::new(), Idp::new());
    let gateway = trusting(&idp).await;
    let sink = Upstream::sink("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", sink.address.port());
    let right = idp.bearer("web", "t", in_s(60));
    let unsigned = format!("{}.\r\n", right.rsplit_once('.').expect("a signature").0);
    let mut pages = Vec::new();
    for (what, credential) in [
        ("expired", idp.bearer("web", "t", in_s(0))),
        ("another key", stranger.bearer("web", "t", in_s(60))),
        ("unsigned", unsigned),
        ("no token", "Proxy-Authorization: Bearer x\r\n".to_owned()),
        ("empty", "Proxy-Authorization: Bearer\r\n".to_owned()),
        ("two", format!("{right}{right}")),
        ("long", format!("Proxy-Authorization: Bearer {}\r\n", "a".repeat(20_000))),
    ] {
        for request in
            [get(&host, &credential), format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{credential}\r\n")]
        {
            let answer = gateway.ask(&request).await;
            assert_eq!((answer.status, answer.reason()), (407, "credential_invalid"), "{what}");
            let page = answer.text();
            assert!(page.contains("get a new token that is meant for this gateway"), "{page}");
            // But for the request's id they are one page.
            let id = answer.field("x-clawgress-request").expect("an id").to_owned();
            pages.push(page.replace(&id, "ID"));
        }
    }
    assert!(pages.iter().all(|page| *page == pages[0]), "{pages:#?}");
    assert!(sink.seen.bytes.lock().is_empty());
    assert_eq!(
        gateway.ask(&get(&host, "")).await.field("proxy-authenticate").map(|f| f.starts_with("Basic")),
        Some(true)
    );
}

/// A token that is right for an agent that is not there, or may not act: asked for another, and recorded as what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_agents_that_may_not_act() {
    let idp = Idp::new();
    let gateway = trusting(&idp).await;
    let host = "api.allowed.test";
    gateway.publish(|s| s.agents[1].state = clawgress_identity::AgentState::Disabled).await;
    for (agent, reason, remedy) in
        [("unknown", "agent_unknown", "register the agent"), ("other", "agent_disabled", "enable the agent")]
    {
        let credential = idp.bearer(agent, "t9", in_s(60));
        for request in [
            get(host, &credential),
            format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n{credential}\r\n"),
        ] {
            let answer = gateway.ask(&request).await;
            assert_eq!((answer.status, answer.reason()), (407, reason));
            assert!(answer.field("proxy-authenticate").is_some());
            let page = answer.text();
            assert!(page.contains(remedy) && !page.contains(&format!("default/{agent}")), "{page}");
        }
    }
    // The same by an agent's key.
    let other = gateway.authorization("other", &gateway.other_key);
    assert_eq!(client_refused(&gateway, &get(host, &other)).await, (407, "agent_disabled".to_owned()));
    gateway.publish(|s| drop(s.agents.pop())).await;
    assert_eq!(client_refused(&gateway, &get(host, &other)).await, (407, "agent_unknown".to_owned()));
    let records = gateway.records(6).await;
    let details = |reason: DropReason| {
        let all = records.iter().filter(move |r| r.kind == RecordKind::Decision && r.reason == Some(reason));
        all.map(|r| r.detail.clone().expect("whose")).collect::<std::collections::BTreeSet<_>>()
    };
    let key = clawgress_identity::ApiKey::parse(&gateway.other_key).expect("key").id().to_owned();
    let by_key = format!("agent `default/other` by the API key `{key}`");
    let by_token = |agent: &str| format!("agent `default/{agent}` by the credential `t9` of `default/idp`");
    assert_eq!(details(DropReason::AgentUnknown), [by_token("unknown"), by_key.clone()].into());
    assert_eq!(details(DropReason::AgentDisabled), [by_token("other"), by_key].into());
}

/// Each change of a snapshot ends what its tokens opened, and a token's own end does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_token_opened_ends_with_it() {
    let idp = Idp::new();
    let gateway = trusting(&idp).await;
    let greeting = Upstream::server_first("127.1.0.1").await;
    let host = format!("raw.allowed.test:{}", greeting.address.port());
    let open = async |credential: &str| {
        let mut client = gateway.client().await;
        client.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{credential}\r\n")).await;
        assert_eq!(client.answer_head().await.status, 200);
        client.until("220 hello\r\n").await;
        client.held.clear();
        client
    };
    let change = async |change: &dyn Fn(&mut IssuerRecord)| {
        let applied = gateway
            .publish(|s: &mut Snapshot<PolicyBundle>| s.roots.issuers.iter_mut().for_each(change))
            .await;
        assert_eq!(applied, "");
    };
    let (mut kept, mut revoked) = (
        open(&idp.bearer("web", "kept", in_s(600))).await,
        open(&idp.bearer("web", "lost", in_s(600))).await,
    );
    change(&|issuer| issuer.revoked.extend(["lost".to_owned()])).await;
    assert!(revoked.is_closed(Duration::from_secs(5)).await);
    let refused =
        client_refused(&gateway, &get("api.allowed.test", &idp.bearer("web", "lost", in_s(600)))).await;
    assert_eq!(refused.1, "credential_invalid");
    assert!(!kept.is_closed(Duration::from_millis(300)).await, "only what is revoked ends");
    // The issuer's key is gone.
    let other = Idp::new().record().keys;
    change(&|issuer| issuer.keys.clone_from(&other)).await;
    assert!(kept.is_closed(Duration::from_secs(5)).await);
    let own = idp.record().keys;
    change(&|issuer| issuer.keys.clone_from(&own)).await;
    let ends_s = in_s(3);
    let mut short = open(&idp.bearer("web", "short", ends_s)).await;
    assert!(short.is_closed(Duration::from_secs(8)).await);
    assert!(in_s(0) >= ends_s, "not before its time");
    let mut orphan = open(&idp.bearer("web", "orphan", in_s(600))).await;
    gateway.publish(|s| s.roots.issuers.clear()).await;
    assert!(orphan.is_closed(Duration::from_secs(5)).await);
    // Four connections that ended, and the request that was refused.
    let records = gateway.records(5).await;
    let ended = records.iter().filter(|r| r.kind == RecordKind::Outcome);
    let ended = ended.filter(|r| r.reason == Some(DropReason::CredentialInvalid));
    let ids: Vec<String> =
        ended.filter_map(|r| Some(r.agent.as_ref()?.credential.as_ref()?.id.clone())).collect();
    assert_eq!(
        ids.iter().filter(|id| ["kept", "lost", "short", "orphan"].contains(&id.as_str())).count(),
        4,
        "{records:#?}"
    );
}

/// A token counts only where its source may present the agent: whoever comes from a bound address is whom that is bound to, at
/// each request and in what is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_held_to_their_source() {
    let idp = Idp::new();
    let gateway = Gateway::start(Options { proxy: BALANCERS, ..Options::default() }).await;
    let record = idp.record();
    assert_eq!(gateway.publish(|s| s.roots.issuers.push(record)).await, "");
    let upstream = Upstream::http("127.1.0.1").await;
    let greeting = Upstream::server_first("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let raw = format!("raw.allowed.test:{}", greeting.address.port());
    // From an address that could be on an agents' interface: a balancer tells it.
    let passed_on = async |request: String| {
        let mut client = balancers::from(&gateway, "127.1.9.1").await;
        client.send([HEADER, request.as_bytes()].concat()).await;
        client
    };
    let ask = async |agent: &str| {
        let token = idp.bearer(agent, "t", in_s(600));
        let answer = passed_on(get(&host, &token)).await.answer().await;
        (answer.status, answer.reason().to_owned())
    };
    let conflict = (403, "identity_conflict".to_owned());
    // Nobody is bound to it yet.
    assert_eq!(ask("web").await.0, 200);
    assert_eq!(ask("other").await, (403, "policy_denied".to_owned()));
    let token = idp.bearer("web", "kept", in_s(600));
    let mut tunnel = passed_on(format!("CONNECT {raw} HTTP/1.1\r\nHost: {raw}\r\n{token}\r\n")).await;
    assert_eq!(tunnel.answer_head().await.status, 200);
    tunnel.until("220 hello\r\n").await;
    tunnel.held.clear();
    // It is `web`'s own: another's token is a conflict, however good it is.
    let bind = async |web: &[&str], other: &[&str]| {
        let sources =
            |all: &[&str]| -> Vec<Source> { all.iter().map(|at| at.parse().expect("a source")).collect() };
        let (web, other) = (sources(web), sources(other));
        assert_eq!(gateway.publish(|s| (s.agents[0].sources, s.agents[1].sources) = (web, other)).await, "");
    };
    let source = ["eth9=203.0.113.9,any-mac"];
    bind(&source, &[]).await;
    assert_eq!(ask("web").await.0, 200);
    assert_eq!(ask("other").await, conflict);
    // It is the other's: what a token opened from there ends.
    bind(&[], &source).await;
    assert_eq!((ask("web").await, ask("other").await.1.as_str()), (conflict.clone(), "policy_denied"));
    assert!(tunnel.is_closed(PATIENCE).await);
    // Several share it, and `web` is none of them.
    bind(&[], &[]).await;
    let shared = SharedSource {
        id: "hosts".parse().expect("id"),
        at: vec!["eth9=203.0.113.0/24,any-mac".parse().expect("a place")],
        may_present: ["other".parse().expect("id")].into(),
    };
    gateway.publish(|s| s.shared.push(shared)).await;
    assert_eq!(ask("web").await, conflict);
    // Loopback is no agents' interface, and is held to none.
    let local = get(&host, &idp.bearer("web", "t", in_s(600)));
    assert_eq!(client_refused(&gateway, &local).await.0, 200);
    gateway.publish(|s| s.shared[0].may_present.extend(["web".parse().expect("id")])).await;
    assert_eq!(ask("web").await.0, 200);
    // A disabled agent is nobody, whatever its token.
    gateway.publish(|s| s.agents[0].state = clawgress_identity::AgentState::Disabled).await;
    assert_eq!(ask("web").await.1, "agent_disabled");
    let records = gateway.records(11).await;
    let of = |kind: RecordKind| {
        records.iter().filter(move |r| r.kind == kind && r.reason == Some(DropReason::IdentityConflict))
    };
    assert_eq!(of(RecordKind::Decision).count(), 3, "{records:#?}");
    let cut: Vec<_> = of(RecordKind::Outcome).filter_map(|r| r.agent.as_ref()?.credential.as_ref()).collect();
    assert!(cut.iter().any(|by| by.id == "kept"), "{records:#?}");
}

/// An issuer that can't be used is trusted for nothing; everybody else counts, and so does what comes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_cannot_be_used() {
    let idp = Idp::new();
    let gateway = trusting(&idp).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let token = get(&host, &idp.bearer("web", "t", in_s(60)));
    assert_eq!(gateway.ask(&token).await.status, 200);
    assert_eq!(gateway.publish(|s| s.roots.issuers[0].keys = "{}".to_owned()).await, "");
    assert_eq!(client_refused(&gateway, &token).await, (407, "credential_invalid".to_owned()));
    assert_eq!(gateway.ask(&get(&host, &gateway.web())).await.status, 200);
    assert_eq!(gateway.publish(|s| s.roots.issuers[0] = idp.record()).await, "");
    assert_eq!(gateway.ask(&token).await.status, 200);
}
