//! Processes die, programs vanish: in no state does a denied or anonymous flow get through.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use clawgress_e2e::lab::{Forbidden, GatewayOptions, Host, Role};
use clawgress_e2e::scenario::Site;

use crate::support::{codes, curl, curl_within, denied, finish, proxy, record, site, site_with, untouched};

/// What must never succeed, whatever is up or down. Each try is short: a drop looks like silence.
#[track_caller]
fn nothing_forbidden_passes(site: &Site, state: &str) {
    let wrong = proxy("assistant", "wrong");
    let tries: &[(Host, &[&str])] = &[
        (Host::Anon, &["-k", "https://203.0.113.10/"]),
        (Host::Anon, &["http://203.0.113.10/"]),
        (Host::Anon, &["-g", "http://[2001:db8:113::10]/"]),
        (Host::Anon, &["http://198.51.100.66/"]),
        (Host::Anon, &["-x", &wrong, "http://secret.denied.test/"]),
        (
            Host::Known,
            &["-k", "--resolve", "secret.denied.test:443:198.51.100.66", "https://secret.denied.test/"],
        ),
        (Host::Known, &["--resolve", "secret.denied.test:80:198.51.100.66", "http://secret.denied.test/"]),
        (Host::Known, &["-k", "https://198.51.100.200/"]),
        (Host::Known, &["-g", "http://[2001:db8:51::66]/"]),
    ];
    for (host, args) in tries {
        let output = curl_within(site, *host, 1, args);
        let (status, connect) = codes(&output);
        assert!(status == 0 || status >= 400, "{state}: {args:?} from {host:?} got through: {output:?}");
        assert!(connect == 0 || connect >= 400, "{state}: {args:?} from {host:?} got a tunnel: {output:?}");
    }
    assert_eq!(site.gateway.lab.forbidden().unwrap(), Forbidden::default(), "{state}");
}

#[track_caller]
fn allowed_works(site: &mut Site, state: &str) {
    site.gateway.ready().unwrap_or_else(|e| panic!("{state}: {e:#}"));
    for family in ["-4", "-6"] {
        let output = curl(site, Host::Known, &[family, "https://api.allowed.test/again"]);
        assert_eq!(codes(&output).0, 200, "{state}: {output:?}");
    }
    let url = proxy("assistant", &site.assistant_key);
    let output = curl(site, Host::Anon, &["-x", &url, "https://api.allowed.test/again"]);
    assert_eq!(codes(&output), (200, 200), "{state}: {output:?}");
}

#[test]
fn killing_any_role_lets_nothing_through_and_restarting_heals() {
    let mut site = site();
    for role in Role::ALL {
        let state = format!("{} killed", role.name());
        site.gateway.kill(role).unwrap();
        nothing_forbidden_passes(&site, &state);
        site.gateway.launch(role).unwrap();
        allowed_works(&mut site, &format!("{state} and restarted"));
    }
    finish(site);
}

#[test]
fn with_every_process_killed_the_kernel_still_governs() {
    let mut site = site();
    for role in Role::ALL {
        site.gateway.kill(role).unwrap();
    }
    // Policy said that DNS goes direct; the pinned programs still do as they were told, until the lease is over.
    let output = site.gateway.lab.run(Host::Known, &["getent", "ahosts", "api.allowed.test"]).unwrap();
    assert!(output.stdout.contains("203.0.113.10"), "the last generation is in force: {output:?}");
    nothing_forbidden_passes(&site, "all killed");
    // Nothing stands behind the listeners, so not even allowed flows go on, let alone around them.
    assert!(!curl_within(&site, Host::Known, 2, &["https://api.allowed.test/"]).ok());
    for role in Role::ALL {
        site.gateway.launch(role).unwrap();
    }
    allowed_works(&mut site, "all restarted");
    finish(site);
}

#[test]
fn l7_without_control_denies_after_its_time() {
    let mut site = site_with(GatewayOptions { snapshot_stale_s_max: Some(2), ..GatewayOptions::default() });
    site.gateway.kill(Role::Control).unwrap();
    let served = curl(&site, Host::Known, &["http://api.allowed.test/at-once"]);
    assert_eq!(codes(&served).0, 200, "the last snapshot is served for its time: {served:?}");
    std::thread::sleep(Duration::from_secs(4));
    let to = ["--resolve", "api.allowed.test:80:203.0.113.10", "http://api.allowed.test/stale"];
    let output = curl(&site, Host::Known, &to);
    assert_eq!(codes(&output).0, 503, "{output:?}");
    // DNS goes direct here, by tables that nobody vouches for any more.
    let output = curl(&site, Host::Known, &["http://api.allowed.test/stale"]);
    assert!(output.stderr.contains("Could not resolve host"), "{output:?}");
    let url = proxy("assistant", &site.assistant_key);
    assert!(!curl(&site, Host::Anon, &["-x", &url, "https://api.allowed.test/stale"]).ok());
    nothing_forbidden_passes(&site, "stale");
    site.gateway.launch(Role::Control).unwrap();
    allowed_works(&mut site, "control is back");
    record(&site, "the denial, delivered late", |r| denied(r, "snapshot_missing"));
    finish(site);
}

#[test]
fn without_programs_there_is_no_traffic() {
    let mut site = site();
    assert_eq!(codes(&curl(&site, Host::Known, &["https://api.allowed.test/before"])).0, 200);
    let requests = site.gateway.lab.world().unwrap().requests.len();
    // Killed, so that nothing puts them back; then unpinned, which detaches them.
    site.gateway.kill(Role::Datapath).unwrap();
    site.gateway.kill(Role::L7).unwrap();
    let pins = site.gateway.bpffs();
    let pins = pins.to_str().unwrap();
    let remove = ["find", pins, "-type", "f", "-delete"];
    site.gateway.lab.run(Host::Gateway, &remove).unwrap().check().unwrap();
    let links = site.gateway.lab.run(Host::Gateway, &["ip", "link", "show", "agents0"]).unwrap();
    assert!(!links.stdout.contains("xdp"), "the programs are still there: {links:?}");
    nothing_forbidden_passes(&site, "no programs");
    for args in [["-k", "https://203.0.113.10/"], ["-4", "http://203.0.113.10/"]] {
        assert!(!curl_within(&site, Host::Known, 1, &args).ok(), "no program, no traffic");
    }
    let dns = curl_within(&site, Host::Known, 2, &["http://api.allowed.test/"]);
    assert_ne!(dns.code, Some(0), "direct flows depend on the programs too");
    assert_eq!(site.gateway.lab.world().unwrap().requests.len(), requests);
    site.gateway.launch(Role::Datapath).unwrap();
    site.gateway.launch(Role::L7).unwrap();
    allowed_works(&mut site, "programs are back");
    finish(site);
}

#[test]
fn detaching_stops_traffic() {
    let mut site = site();
    site.gateway.stop(Role::Datapath, Duration::from_secs(10)).unwrap();
    site.gateway.detach().unwrap();
    nothing_forbidden_passes(&site, "detached");
    assert!(!curl_within(&site, Host::Known, 2, &["http://203.0.113.10/"]).ok());
    untouched(&site);
}

#[test]
fn a_draining_proxy_finishes_what_it_began_and_begins_nothing() {
    let mut site = site();
    let llm = clawgress_e2e::plan::addresses(clawgress_e2e::plan::LLM)[0];
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let client = site.gateway.lab.within(Host::Known, move || {
        // Connected from within the host; read by a thread that outlives this closure.
        let mut stream = std::net::TcpStream::connect((llm, 80)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        std::thread::spawn(move || {
            let body = r#"{"stream":true}"#;
            let request = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: llm.allowed.test\r\nX-Lab-Hold: drain\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).unwrap();
            let (mut text, mut buffer) = (String::new(), [0; 4096]);
            loop {
                let n = stream.read(&mut buffer).unwrap();
                if n == 0 {
                    return text;
                }
                text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                if text.contains("Egress") {
                    let _ = sender.try_send(());
                }
            }
        })
    });
    receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    site.gateway.signal(Role::L7, nix::sys::signal::Signal::SIGTERM).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let late = curl_within(&site, Host::Known, 2, &["http://api.allowed.test/late"]);
    assert_ne!(codes(&late).0, 200, "a draining proxy begins nothing: {late:?}");
    site.gateway.lab.release("drain").unwrap();
    let text = client.unwrap().join().unwrap();
    assert!(text.contains("[DONE]"), "the stream was cut: {text}");
    // Its end, and its records, come by themselves.
    site.gateway.stop(Role::L7, Duration::from_secs(30)).unwrap();
    site.gateway.launch(Role::L7).unwrap();
    record(&site, "the outcome", |r| r.kind == clawgress_api::RecordKind::Outcome && r.status == Some(200));
    finish(site);
}
