//! Agents with SVIDs of a SPIFFE Workload API that speaks the official protobuf, which they get by the `spiffe` client of
//! Python, and whose bundle the gateway follows by the same API while it rotates.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clawgress_api::RecordKind;
use clawgress_api::workload_api::{Jwtsvid, X509svid};
use clawgress_e2e::clients;
use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::GATEWAY;
use clawgress_e2e::scenario::ASSISTANT;
use clawgress_identity::IdentityMethod;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificates::{PLAIN, Setting, WRITER, method};
use crate::pki::{Authority, Pair, Wanted};
use crate::shared::wait_for;
use crate::support::{admin, agent, finish, record};
use crate::tokens::{self, Idp, now_s};
use crate::workload_api::{Says, WorkloadApi};

const DOMAIN: &str = "spiffe://d.test";
const SETTINGS: &str = "domain = \"d.test\"\naudiences = [\"clawgress\"]\n\
     [mapping]\nagent = { from = \"path\", prefix = \"/agent/\" }\n[source.workload_api]\nstale_s_max = 600\n";
/// Time for control to follow.
const FOLLOW_TIME: Duration = Duration::from_secs(30);

/// Asks the Workload API for everything that an agent and a verifier ask it for, verifies by what it says, and keeps the
/// SVIDs in files.
const CLIENT: &str = r"
import sys
import grpc
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import JwtSvid, TrustDomain, WorkloadApiClient
socket, certificate, key = sys.argv[1:]
# For a Unix socket gRPC's C library writes the path as `:authority`, which the HTTP/2 of this server takes for malformed.
plain = grpc.insecure_channel
grpc.insecure_channel = lambda target: plain(target, options=[('grpc.default_authority', 'localhost')])
with WorkloadApiClient('unix://' + socket) as client:
    svid = client.fetch_x509_svid(timeout=10)
    svid.save(certificate, key, Encoding.PEM)
    domain = TrustDomain('d.test')
    bundles = client.fetch_x509_bundles(timeout=10)
    keys = client.fetch_jwt_bundles(timeout=10).get_bundle_for_trust_domain(domain)
    token = client.fetch_jwt_svid(audience={'clawgress'}, timeout=10)
    JwtSvid.parse_and_validate(token.token, keys, {'clawgress'})
    authorities = bundles.get_bundle_for_trust_domain(domain).x509_authorities
    assert any(a.subject == svid.leaf.issuer for a in authorities), authorities
    print(svid.spiffe_id, token.spiffe_id, len(authorities), len(keys.jwt_authorities))
    print(token.token)
";

fn der(authority: &Authority) -> Vec<u8> {
    CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap().to_vec()
}

fn certificates(authorities: &[&Authority]) -> HashMap<String, Vec<u8>> {
    [(DOMAIN.to_owned(), authorities.iter().flat_map(|authority| der(authority)).collect())].into()
}

fn keys(idp: &Idp) -> HashMap<String, Vec<u8>> {
    let jwk = idp.jwk();
    let jwk = jwk.strip_prefix("\"jwk\":").unwrap();
    [(DOMAIN.to_owned(), format!(r#"{{"keys":[{jwk}]}}"#).into_bytes())].into()
}

/// An SVID as the Workload API gives it.
fn x509_svid(pair: &Pair, id: &str, authority: &Authority) -> X509svid {
    X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: CertificateDer::from_pem_file(&pair.certificate).unwrap().to_vec(),
        x509_svid_key: PrivateKeyDer::from_pem_file(&pair.key).unwrap().secret_der().to_vec(),
        bundle: der(authority),
        hint: String::new(),
    }
}

fn token(idp: &Idp, id: &str) -> String {
    let claims = format!(r#"{{"sub":"{id}","aud":["clawgress"],"exp":{}}}"#, now_s() + 600);
    let header = idp.header(r#"{"alg":"RS256","typ":"JWT","kid":"1"}"#, &claims);
    header.strip_prefix("Proxy-Authorization: Bearer ").unwrap().to_owned()
}

fn issue(authority: &Authority, name: &str) -> (Pair, String) {
    let id = format!("{DOMAIN}/agent/{name}");
    let names = format!("URI:{id}");
    let more = "basicConstraints = critical, CA:FALSE";
    let wanted = Wanted { names: &names, usage: "clientAuth, serverAuth", more, ..Wanted::default() };
    (authority.issue(name, &wanted), id)
}

/// Waits until `trust-domain show` says so.
#[track_caller]
fn until_shown(s: &Setting, what: &str, fits: impl Fn(&str) -> bool) {
    let shown = || {
        let shown = admin(&s.site).ctl(&["trust-domain", "show", "spire"])?.check()?;
        Ok(fits(&shown.stdout))
    };
    s.site.gateway.lab.wait(what, FOLLOW_TIME, shown).unwrap();
}

#[test]
fn svids_whose_bundle_comes_by_the_workload_api() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let socket = |directory: &Path| directory.join("workload.sock");
    let s = Setting::with(|directory| {
        format!("\n[spiffe]\nworkload_api = \"unix://{}\"\n", socket(directory).display())
    });
    let lab = &s.site.gateway.lab;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (idp, next_idp) = (Idp::new(lab.dir(), "tokens"), Idp::new(lab.dir(), "next"));
    let ((of_old, writer), (of_new, assistant)) = (issue(&old, WRITER), issue(&new, ASSISTANT));
    let given = Jwtsvid { spiffe_id: assistant.clone(), svid: token(&idp, &assistant), hint: String::new() };
    let api = WorkloadApi::start(
        &socket(lab.dir()),
        Says {
            certificates: certificates(&[&old, &new]),
            keys: keys(&idp),
            svids: vec![x509_svid(&of_old, &writer, &old)],
            tokens: [("clawgress".to_owned(), given)].into(),
            ..Says::default()
        },
    );

    // The client that others use understands it, and gets an agent its SVIDs.
    let python = clients::python().unwrap();
    let svid = Pair { certificate: s.path("svid.pem").into(), key: s.path("svid.key").into() };
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let argv = [path(&python), "-c".to_owned(), CLIENT.to_owned(), path(&socket(lab.dir()))];
    let argv: Vec<String> = argv.into_iter().chain([path(&svid.certificate), path(&svid.key)]).collect();
    let got = lab.run(Host::Gateway, &argv).unwrap();
    let (ids, bearer) = got.stdout.split_once('\n').unwrap_or_else(|| panic!("{got:?}"));
    assert_eq!(ids, format!("{writer} {assistant} 2 1"), "{got:?}");
    let bearer = format!("Proxy-Authorization: Bearer {}", bearer.trim());

    let v4 = GATEWAY.v4.to_string();
    let by_svid = |pair: &Pair| s.ask(Host::Anon, &v4, Some(pair), PLAIN);
    let by_token = || tokens::ask(&s.site, &bearer, PLAIN);
    assert_eq!((by_svid(&svid).0, by_token().0), (407, 407), "nobody is trusted yet");
    let settings = s.file("spire.toml", SETTINGS);
    let set =
        admin(&s.site).ctl(&["trust-domain", "set", "spire", "--settings", &settings, "--workload-api"]);
    set.unwrap().check().unwrap();
    until_shown(&s, "the bundle", |shown| shown.contains("fresh") && shown.contains("workload api, unix://"));
    let answered = || Ok((by_svid(&svid).0, by_svid(&of_new).0, by_token().0) == (200, 200, 200));
    lab.wait("the workers to trust it", FOLLOW_TIME, answered).unwrap();
    record(&s.site, "by X.509-SVID", |r| {
        method(r) == Some(IdentityMethod::SpiffeX509) && agent(r) == Some(WRITER)
    });
    record(&s.site, "by JWT-SVID", |r| {
        method(r) == Some(IdentityMethod::SpiffeJwt) && agent(r) == Some(ASSISTANT)
    });

    // The authorities rotate while connections are open, and then all is taken back.
    let directory = lab.dir().join("rotation");
    fs::create_dir(&directory).unwrap();
    let client = s.client(&directory, [&svid, &of_new]);
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| lab.run(Host::Anon, &client).unwrap());
        wait_for(&s.site, &directory.join("ready"));
        api.say(|says| says.certificates = certificates(&[&new]));
        let is_refused = || Ok(by_svid(&svid).0 == 407);
        lab.wait("the old authority to end", FOLLOW_TIME, is_refused).unwrap();
        fs::write(directory.join("revoked"), "").unwrap();
        wait_for(&s.site, &directory.join("half"));
        assert_eq!((by_svid(&of_new).0, by_token().0), (200, 200));
        api.say(|says| says.keys = keys(&next_idp));
        lab.wait("the old key to end", FOLLOW_TIME, || Ok(by_token().0 == 407)).unwrap();
        api.say(|says| says.status = Some(tonic::Code::PermissionDenied));
        lab.wait("all to end", FOLLOW_TIME, || Ok(by_svid(&of_new).0 == 407)).unwrap();
        fs::write(directory.join("deleted"), "").unwrap();
        client.join().unwrap()
    });
    assert!(client.ok(), "{client:?}");
    assert_eq!(client.stdout.trim(), "first is cut 407\nother lives 200\nother is cut 407", "{client:?}");
    until_shown(&s, "why", |shown| shown.contains("none, failing") && shown.contains("PermissionDenied"));
    record(&s.site, "what control did", |r| {
        let said = r.detail.as_deref().unwrap_or_default();
        r.kind == RecordKind::Change && said.contains("bundle of trust domain `default/spire` withdrawn")
    });
    runtime.block_on(api.stop());
    finish(s.site);
}
