//! JWT-SVIDs.

use super::*;

/// A JWT-SVID of the trust domain's bundle, as any bearer token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jwt_svids_are_bearer_tokens() {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let gateway = Gateway::start(Options::default()).await;
    let upstream = Upstream::http("127.1.0.1").await;
    let host = format!("api.allowed.test:{}", upstream.address.port());
    let signer = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("key");
    let (x, y) = signer.public_key().as_ref()[1..].split_at(32);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let jwk = format!(r#",{{"kty":"EC","crv":"P-256","use":"jwt-svid","kid":"k1","x":"{x}","y":"{y}"}}"#);
    let domain = trust_domain(&Authority::new("spire"), &jwk);
    assert_eq!(gateway.publish(|s| s.roots.trust_domains.push(domain)).await, "");
    let bearer = |subject: &str, audience: &str| {
        let claims = format!(
            r#"{{"sub":"{subject}","aud":["{audience}"],"exp":{}}}"#,
            jiff::Timestamp::now().as_second() + 60
        );
        let header = r#"{"alg":"ES256","kid":"k1","typ":"JWT"}"#;
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = signer.sign(&SystemRandom::new(), signed.as_bytes()).expect("signature");
        format!("Proxy-Authorization: Bearer {signed}.{}\r\n", URL_SAFE_NO_PAD.encode(signature))
    };
    let answer = gateway.ask(&get(&host, &bearer("spiffe://d.test/agent/web", "gateway"))).await;
    assert_eq!(answer.reason(), "none");
    // Before there are others: outcomes come in no order.
    let (decision, _) = gateway.exchange(0).await;
    let agent = decision.agent.expect("agent");
    assert_eq!((agent.agent.as_str(), agent.method), ("web", IdentityMethod::SpiffeJwt));
    for (subject, audience, expected) in [
        ("spiffe://d.test/agent/other", "gateway", "policy_denied"),
        ("spiffe://d.test/agent/web", "elsewhere", "credential_invalid"),
        ("spiffe://e.test/agent/web", "gateway", "credential_invalid"),
        ("spiffe://d.test", "gateway", "credential_invalid"),
    ] {
        let answer = gateway.ask(&get(&host, &bearer(subject, audience))).await;
        assert_eq!(answer.reason(), expected, "{subject} {audience}");
    }
    // The bundle without that key: the request after that is refused.
    let rotated = trust_domain(&Authority::new("spire"), "");
    gateway.publish(|s| s.roots.trust_domains = vec![rotated]).await;
    let answer = gateway.ask(&get(&host, &bearer("spiffe://d.test/agent/web", "gateway"))).await;
    assert_eq!(answer.reason(), "credential_invalid");
}
