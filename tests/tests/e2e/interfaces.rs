//! More than one agents' interface: who a source is depends on where its packets come in.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clawgress_e2e::lab::{GatewayOptions, Host, Role};
use clawgress_e2e::plan::{API, GATEWAY, KNOWN, PROXY_PORT};
use clawgress_e2e::scenario::Site;
use socket2::{Domain, Socket, Type};

use crate::support::{admin, finish, site_with};

/// For what has to come sooner or later, on a busy machine.
const SOON: Duration = Duration::from_secs(40);
/// The port at the client's end of both connections.
const SOURCE_PORT: u16 = 40_777;
/// Ends of the second link.
const MACS: [&str; 2] = ["02:00:00:00:07:01", "02:00:00:00:07:02"];

/// From the known host's address and that port to the proxy, by `interface`.
fn connect(site: &Site, host: Host, interface: Option<&'static str>) -> TcpStream {
    let connected = site.gateway.lab.within(host, move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind_device(interface.map(str::as_bytes)).unwrap();
        socket.bind(&SocketAddr::from((KNOWN.v4, SOURCE_PORT)).into()).unwrap();
        socket.connect_timeout(&SocketAddr::from((GATEWAY.v4, PROXY_PORT)).into(), SOON).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        TcpStream::from(socket)
    });
    connected.unwrap()
}

fn ask(stream: &mut TcpStream) -> String {
    let head = format!("GET http://{API}/who HTTP/1.1\r\nHost: {API}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 1024];
    let n = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..n]).lines().next().unwrap_or_default().to_owned()
}

/// A record of an agent's connection is still there when a stranger comes by another interface with the same address
/// and port: it says nothing of the stranger.
#[test]
fn a_record_of_another_interface_names_nobody() {
    let more = "[[interface]]\nname = \"agents1\"\nrole = \"agents\"\n".to_owned();
    let mut site = site_with(GatewayOptions { more, ..GatewayOptions::default() });
    let stranger = site.gateway.lab.namespace(Host::Anon);
    let run = |site: &Site, host: Host, line: String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        site.gateway.lab.run(host, &words).unwrap().check().unwrap();
    };
    let [ours, theirs] = MACS;
    let link = format!(
        "ip link add agents1 address {ours} type veth peer name s0 address {theirs} netns {stranger}"
    );
    run(&site, Host::Gateway, link);
    run(&site, Host::Gateway, "ip link set agents1 up".to_owned());
    let attached = |site: &Site| {
        let interfaces = admin(site).status()?.datapath.map(|d| d.interfaces).unwrap_or_default();
        Ok(interfaces.iter().any(|i| i.name == "agents1" && i.tc != "off"))
    };
    site.gateway.lab.wait("programs on the second interface", SOON, || attached(&site)).unwrap();

    let mut known = connect(&site, Host::Known, None);
    assert_eq!(ask(&mut known), "HTTP/1.1 200 OK", "its source is an agent's");
    // The way to the address is another from now on, so nothing ends the record.
    run(&site, Host::Gateway, format!("ip route add {}/32 dev agents1", KNOWN.v4));
    run(&site, Host::Gateway, format!("ip neigh add {} lladdr {theirs} dev agents1", KNOWN.v4));
    for line in [
        "ip link set s0 up".to_owned(),
        format!("ip addr add {}/32 dev s0", KNOWN.v4),
        format!("ip route add {}/32 dev s0", GATEWAY.v4),
        format!("ip neigh add {} lladdr {ours} dev s0", GATEWAY.v4),
    ] {
        run(&site, Host::Anon, line);
    }
    site.gateway.kill(Role::L7).unwrap();
    site.gateway.launch(Role::L7).unwrap();
    site.gateway.ready().unwrap();
    let flows = site.gateway.ctl(&["flows"]).unwrap().check().unwrap().stdout;
    assert!(
        flows.contains(&format!("{}:{SOURCE_PORT}", KNOWN.v4)),
        "the record must still be there: {flows}"
    );
    let mut other = connect(&site, Host::Anon, Some("s0"));
    let answer = ask(&mut other);
    assert!(answer.starts_with("HTTP/1.1 407"), "a stranger is asked for a credential: {answer}");

    drop((known, other));
    run(&site, Host::Gateway, "ip link del agents1".to_owned());
    finish(site);
}
