//! Parent proxies, with the kernel plane: what L7 dials is the parent, and the kernel judges that for the agent.

use std::fs;

use clawgress_api::Verdict;
use clawgress_e2e::lab::{Daemon, GatewayOptions, Host, Lab};
use clawgress_e2e::plan::{API, TWO, WEB};
use clawgress_e2e::scenario::{ASSISTANT, CRAWLER, POLICY, SETS, Site};
use clawgress_e2e::world;

use crate::support::{agent, codes, curl, denied, finish, pair, proxy, record, to_host};

/// A proxy for CONNECT outside, that goes on from an address of its own; over TLS if it is given a certificate.
const PARENT: &str = r#"
import asyncio, ssl, sys
own, own6, port = "203.0.113.11", "2001:db8:113::11", int(sys.argv[1])
async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    try:
        writer.close()
    except OSError:
        pass
async def serve(reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
    print(target, flush=True)
    host, _, to = target.rpartition(":")
    far = await asyncio.open_connection(host.strip("[]"), int(to), local_addr=(own6 if ":" in host else own, 0))
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.gather(carry(reader, far[1]), carry(far[0], writer))
async def main():
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2], sys.argv[3])
    server = await asyncio.start_server(serve, own, port, ssl=context)
    await server.serve_forever()
asyncio.run(main())
"#;

const CLEAR: u16 = 3129;
const SECURED: u16 = 3130;

/// The agent may reach the parents, both.
const REACH: &str = r#"
@id("parents") permit (principal in Team::"research", action == Action::"connect", resource in NetworkSet::"web")
when { context.protocol == "tcp" && [3129, 3130].contains(context.port) };
@id("more") permit (principal in Team::"research", action in [Action::"tls", Action::"tunnel", Action::"http"], resource == Host::"two.allowed.test");
"#;

fn parent(lab: &Lab, port: u16, tls: bool) -> Daemon {
    let file = |kind| lab.dir().join(world::CERTIFICATES).join(format!("{WEB}.{kind}")).display().to_string();
    let (port_text, pem, key) = (port.to_string(), file("pem"), file("key"));
    let mut argv = vec!["python3", "-c", PARENT, &port_text];
    argv.extend(tls.then_some([&*pem, &*key]).into_iter().flatten());
    let daemon = lab.spawn(Host::World, &format!("parent-{port}"), &argv).unwrap();
    let listens = format!("exec 3<>/dev/tcp/203.0.113.11/{port}");
    let ready = || Ok(lab.run(Host::World, &["bash", "-c", &listens])?.ok());
    lab.wait("the parent", std::time::Duration::from_secs(15), ready).unwrap();
    daemon
}

/// What a parent was asked for, but for the probe above.
fn asked(site: &Site, port: u16) -> Vec<String> {
    let log = site.gateway.lab.dir().join("logs").join(format!("parent-{port}.log"));
    let text = fs::read_to_string(log).unwrap();
    text.lines().filter(|line| line.ends_with(":443") || line.ends_with(":80")).map(str::to_owned).collect()
}

#[test]
fn what_a_route_leads_through_a_parent_is_judged_by_both_planes() {
    let lab = Lab::builder().start().unwrap();
    let mut parents = [parent(&lab, CLEAR, false), parent(&lab, SECURED, true)];
    let more = format!(
        "[[parent]]\nname = \"corp\"\naddress = \"203.0.113.11:{CLEAR}\"\n\
         [[parent]]\nname = \"sure\"\naddress = \"203.0.113.11:{SECURED}\"\ntls = \"{WEB}\"\nroots = [\"{}\"]\n\
         [[route]]\nhosts = [\"{API}\"]\nparent = \"corp\"\n\
         [[route]]\nhosts = [\"{TWO}\"]\nparent = \"sure\"\nresolve = \"parent\"\n",
        lab.ca().display()
    );
    // The parent asks the lab's DNS as every host does.
    let mut site = Site::start(lab, GatewayOptions { more, ..GatewayOptions::default() }).unwrap();
    let own = proxy(ASSISTANT, &site.assistant_key);
    // Before policy permits the parent's port: neither plane lets it be dialled.
    for (host, via) in [(Host::Known, vec![]), (Host::Anon, vec!["-x", &*own])] {
        for url in ["https://api.allowed.test/early", "http://api.allowed.test/early"] {
            let output = curl(&site, host, &[&via[..], &[url]].concat());
            assert!(codes(&output).0 != 200, "{output:?}");
        }
    }
    record(&site, "the parent's address", |r| to_host(r, API) && denied(r, "policy_denied"));
    assert!(asked(&site, CLEAR).is_empty());
    site.gateway.apply_policy(&format!("{POLICY}{REACH}"), SETS).unwrap();
    for (host, who, via) in [(Host::Known, CRAWLER, vec![]), (Host::Anon, ASSISTANT, vec!["-x", &*own])] {
        for (name, parent) in [(API, "corp"), (TWO, "sure")] {
            for scheme in ["https", "http"] {
                let url = format!("{scheme}://{name}/by-parent");
                let output = curl(&site, host, &[&via[..], &[&url]].concat());
                assert_eq!(codes(&output).0, 200, "{url}: {output:?}");
            }
            let (decision, _) = pair(&site, "what went through it", |r| {
                to_host(r, name) && agent(r) == Some(who) && r.verdict == Some(Verdict::Allow)
            });
            assert_eq!(decision.destination.via.as_deref(), Some(parent), "{decision:?}");
        }
    }
    let seen = site.gateway.lab.world().unwrap().requests;
    let by_parent: Vec<_> = seen.iter().filter(|r| r.target == "/by-parent").collect();
    assert!(
        by_parent.len() == 8
            && by_parent
                .iter()
                .all(|r| r.peer.starts_with("203.0.113.11:") || r.peer.starts_with("[2001:db8:113::11]")),
        "{seen:?}"
    );
    // Addresses that were judged, and names where the parent resolves.
    assert!(asked(&site, CLEAR).iter().all(|to| to.starts_with("203.0.113.10:") || to.starts_with("[2001:")));
    assert!(asked(&site, SECURED).iter().all(|to| to.starts_with(TWO)), "{:?}", asked(&site, SECURED));
    // Who is quarantined does not get that far.
    site.gateway.ctl(&["agent", "quarantine", CRAWLER]).unwrap().check().unwrap();
    let before = asked(&site, CLEAR).len();
    assert!(!curl(&site, Host::Known, &["https://api.allowed.test/late"]).ok());
    assert_eq!(asked(&site, CLEAR).len(), before);
    site.gateway.ctl(&["agent", "release", CRAWLER]).unwrap().check().unwrap();
    finish(site);
    parents.iter_mut().for_each(|parent| parent.kill().unwrap());
}
