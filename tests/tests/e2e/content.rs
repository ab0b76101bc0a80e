//! What bodies hold: uploads of real clients, judged before anything of them leaves.

use std::fs;

use clawgress_e2e::lab::Host;
use clawgress_e2e::scenario::{ASSISTANT, POLICY, SETS};

use crate::support::{agent, codes, curl, denied, finish, pair, proxy, record, site};

const BODIES: &str = r#"
@id("bodies") permit (principal in Team::"research", action == Action::"send", resource in HostSet::"saas");
@id("no-keys-out") forbid (principal, action == Action::"send", resource)
when { context.findings.contains("private_key") };
"#;
const KEY: &str =
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n";
const UPLOAD: &str = "http://api.allowed.test/upload";

#[test]
fn a_packed_key_does_not_leave_and_other_files_do() {
    let mut site = site();
    site.gateway.apply_policy(&format!("{POLICY}{BODIES}"), SETS).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        let packed = site.gateway.lab.run(Host::Known, &["gzip", "-k", path.to_str().unwrap()]).unwrap();
        assert!(packed.ok(), "{packed:?}");
        path.to_str().unwrap().to_owned()
    };
    let (key, notes) = (file("id_key", KEY), file("notes", "nothing to see\n"));
    let explicit = proxy(ASSISTANT, &site.assistant_key);
    for by in [None, Some(&explicit)] {
        let host = if by.is_some() { Host::Anon } else { Host::Known };
        let ask = |more: &[&str]| {
            let by: Vec<&str> = by.iter().flat_map(|url| ["-x", url.as_str()]).collect();
            codes(&curl(&site, host, &[&by[..], more, &[UPLOAD]].concat())).0
        };
        for (path, status) in [(&key, 403), (&notes, 200)] {
            // As a part of a form, as what is sent, and with its coding said.
            let (form, whole) = (format!("file=@{path}.gz"), format!("@{path}.gz"));
            assert_eq!(ask(&["-F", &form]), status, "{path} by {by:?}");
            assert_eq!(ask(&["--data-binary", &whole]), status, "{path} by {by:?}");
            let coded =
                ["-H", "Content-Encoding: gzip", "-H", "Transfer-Encoding: chunked", "--data-binary", &whole];
            assert_eq!(ask(&coded), status, "{path} by {by:?}");
        }
    }
    let leak = record(&site, "the key", |r| denied(r, "policy_forbidden") && agent(r) == Some(ASSISTANT));
    assert_eq!((leak.action.as_deref(), leak.policies), (Some("send"), vec!["no-keys-out".to_owned()]));
    assert_eq!(leak.findings, ["private_key"]);
    let (decision, _) = pair(&site, "the notes", |r| r.policies.iter().any(|policy| policy == "bodies"));
    assert!(decision.attributes.unwrap().payload.unwrap().complete);
    finish(site);
}
