//! Questions as they come from the kernel plane, answered from a zone on loopback.

use std::net::SocketAddr;
use std::path::Path;

use clawgress_api::{AuditRecord, Ingress, RecordKind, Verdict};
use clawgress_identity::IdentityMethod;
use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_resolver::proto::rr::rdata::{A, HTTPS};
use hickory_resolver::proto::rr::{RData, Record};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv4OrigDstAddr;
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::audit::Carrier;
use crate::connection::Bound;
use crate::serve::tests::dns as zone;

const SNAPSHOT: &str = r#"{"generation":3,"agents":[
    {"id":"default/web","index":1,"state":"active","sources":[{"interface":"agents0","prefix":"10.0.0.1/32","mac":null}]},{"id":"default/off","index":2,"state":"disabled","sources":[{"interface":"agents0","prefix":"10.0.0.2/32","mac":null}]},
    {"id":"default/other","index":3,"state":"active","sources":[{"interface":"agents0","prefix":"10.0.0.3/32","mac":null}]}],"keys":[],
    "policy":{"text":"@id(\"net\") permit (principal, action == Action::\"connect\", resource) when { context.ip.isInRange(ip(\"127.1.0.0/16\")) && context.port == 80 }; @id(\"names\") permit (principal, action == Action::\"resolve\", resource) when { resource.name like \"*.allowed.test\" && [\"A\", \"AAAA\", \"TXT\", \"HTTPS\", \"TYPE65399\"].contains(context.query_type) }; @id(\"no\") forbid (principal, action == Action::\"resolve\", resource == Host::\"no.allowed.test\"); @id(\"open\") @direct(\"tcp 5432\") permit (principal, action == Action::\"resolve\", resource == Host::\"db.allowed.test\"); @id(\"known\") permit (principal, action == Action::\"resolve\", resource == Host::\"known.test\") when { context.history.denied_last_hour < 5 };"}}"#;

struct Desk {
    gateway: Arc<Gateway>,
    carrier: Carrier,
    zone: zone::Dns,
}

impl Desk {
    async fn new() -> Desk {
        Desk::with(Path::new("/nonexistent/clawgress.sock")).await
    }

    async fn with(control: &Path) -> Desk {
        let zone = zone::Dns::start(&[
            ("api.allowed.test", &["192.0.2.1", "2001:db8::1"]),
            ("local.allowed.test", &["127.1.0.1"]),
            ("rebind.allowed.test", &["127.2.0.1", "10.0.0.1"]),
            ("half.allowed.test", &["198.51.100.2", "169.254.169.254"]),
            ("no.allowed.test", &["192.0.2.3"]),
            ("db.allowed.test", &["192.0.2.4"]),
            ("other.test", &["192.0.2.5"]),
            ("cdn.allowed.test", &["edge.other.test"]),
            ("edge.other.test", &["192.0.2.6"]),
            ("way.allowed.test", &["on.other.test"]),
            ("on.other.test", &["no.allowed.test"]),
            ("inward.allowed.test", &["host.other.test"]),
            ("host.other.test", &["10.0.0.2"]),
            ("odd.allowed.test", &["xn--a.other.test"]),
            ("xn--a.other.test", &["192.0.2.7"]),
        ])
        .await;
        let (gateway, carrier) = crate::serve::tests::gateway(control, SNAPSHOT, zone.address).await;
        Desk { gateway, carrier, zone }
    }

    /// The answer to an agent, or to nobody for 0, and the records of it.
    async fn ask(
        &mut self,
        bound: Result<u32, DropReason>,
        name: &str,
        kind: u16,
    ) -> (Message, Vec<AuditRecord>) {
        let said = answer(&self.gateway, &connection(bound), &asked(name, kind), Carriage::Udp).await;
        let said = Message::from_vec(&said.expect("an answer")).expect("readable");
        assert_eq!(said.metadata.id, 7);
        (said, self.carrier.drain_for_test())
    }

    async fn refused(&mut self, bound: Result<u32, DropReason>, name: &str, reason: DropReason) {
        let (said, records) = self.ask(bound, name, 1).await;
        assert_eq!(said.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(said.answers.is_empty());
        let [decision, outcome] = &records[..] else { panic!("{records:?}") };
        assert_eq!((decision.verdict, decision.reason), (Some(Verdict::Deny), Some(reason)), "{name}");
        assert_eq!((decision.action.as_deref(), outcome.kind), (Some("resolve"), RecordKind::Outcome));
    }
}

fn connection(bound: Result<u32, DropReason>) -> Connection {
    let at = |text: &str| text.parse::<SocketAddr>().expect("address");
    let method = IdentityMethod::Source;
    Connection {
        peer: at(&format!("10.0.0.{}:40000", bound.unwrap_or_default())),
        local: at("192.0.2.53:53"),
        ingress: Ingress::Transparent,
        is_steered: true,
        bound: bound.map(|index| (index != 0).then_some(Bound { index, method })),
        interface: Some("agents0".to_owned()),
        certificate: None,
    }
}

/// A question with EDNS.
fn asked(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    bytes
}

#[tokio::test]
async fn what_policy_permits_is_asked_and_told() {
    let mut desk = Desk::new().await;
    let (said, records) = desk.ask(Ok(1), "API.allowed.test", 1).await;
    assert_eq!(said.answers.len(), 1);
    assert_eq!(said.queries[0].name().to_ascii(), "API.allowed.test.", "in its case");
    let [decision, outcome] = &records[..] else { panic!("{records:?}") };
    assert_eq!((decision.verdict, &decision.policies[..]), (Some(Verdict::Allow), &["names".to_owned()][..]));
    assert_eq!(decision.destination.host.as_deref(), Some("api.allowed.test"));
    assert_eq!(decision.destination.method.as_deref(), Some("A"));
    assert_eq!(decision.destination.port, Some(53));
    assert!(outcome.bytes_received > decision.bytes_received, "{outcome:?}");
    let (said, _) = desk.ask(Ok(1), "missing.allowed.test", 1).await;
    assert_eq!(said.metadata.response_code, ResponseCode::NXDomain);
    let (said, _) = desk.ask(Ok(1), "api.allowed.test", 16).await;
    assert_eq!((said.metadata.response_code, said.answers.len()), (ResponseCode::NoError, 0));
    let (said, records) = desk.ask(Ok(1), "api.allowed.test", 65_399).await;
    assert_eq!(said.metadata.response_code, ResponseCode::NoError);
    assert_eq!(records[0].destination.method.as_deref(), Some("TYPE65399"));
}

#[tokio::test]
async fn what_it_does_not_permit_goes_nowhere() {
    let mut desk = Desk::new().await;
    for (bound, name, reason) in [
        (Ok(1), "other.test", DropReason::PolicyDenied),
        (Ok(1), "no.allowed.test", DropReason::PolicyForbidden),
        (Ok(1), "xn--a.allowed.test", DropReason::HostInvalid),
        (Ok(1), "1.2.3.4", DropReason::HostInvalid),
        (Ok(0), "api.allowed.test", DropReason::Anonymous),
        (Ok(2), "api.allowed.test", DropReason::AgentDisabled),
        (Ok(9), "api.allowed.test", DropReason::Anonymous),
        (Err(DropReason::FlowRecordMissing), "api.allowed.test", DropReason::FlowRecordMissing),
    ] {
        desk.refused(bound, name, reason).await;
        assert_eq!(desk.zone.asked(name), 0, "{name}");
    }
    desk.gateway.snapshots.hold(1);
    desk.refused(Ok(1), "api.allowed.test", DropReason::AgentQuarantined).await;
    assert_eq!(desk.zone.asked("api.allowed.test"), 0);
}

#[tokio::test]
async fn an_agent_quarantined_meanwhile_is_told_nothing() {
    let mut desk = Desk::new().await;
    desk.zone.answers.send_replace(false);
    let gateway = Arc::clone(&desk.gateway);
    let waiting = tokio::spawn(async move {
        answer(&gateway, &connection(Ok(1)), &asked("api.allowed.test", 1), Carriage::Udp).await
    });
    while desk.zone.asked("api.allowed.test") == 0 {
        tokio::task::yield_now().await;
    }
    desk.gateway.snapshots.hold(1);
    desk.zone.answers.send_replace(true);
    let said = Message::from_vec(&waiting.await.expect("answered").expect("an answer")).expect("readable");
    assert_eq!((said.metadata.response_code, said.answers.len()), (ResponseCode::Refused, 0));
    let records = desk.carrier.drain_for_test();
    assert_eq!(records[1].reason, Some(DropReason::AgentQuarantined), "{records:?}");
}

#[tokio::test]
async fn private_addresses_are_told_only_where_policy_names_them() {
    let mut desk = Desk::new().await;
    let (said, records) = desk.ask(Ok(1), "rebind.allowed.test", 1).await;
    assert_eq!((said.metadata.response_code, said.answers.len()), (ResponseCode::Refused, 0));
    assert_eq!(records[1].reason, Some(DropReason::AddressReserved), "{records:?}");
    let (said, records) = desk.ask(Ok(1), "half.allowed.test", 1).await;
    assert_eq!(said.answers.len(), 1, "the rest may be told");
    assert_eq!(records[1].reason, Some(DropReason::AddressReserved), "and that there was more is recorded");
    let (said, _) = desk.ask(Ok(1), "local.allowed.test", 1).await;
    assert_eq!(said.answers.len(), 1, "`net` names it");
}

#[tokio::test]
async fn what_can_not_be_opened_is_not_told() {
    let mut desk = Desk::new().await;
    // Nobody is there to open it.
    let (said, records) = desk.ask(Ok(1), "db.allowed.test", 1).await;
    assert_eq!((said.metadata.response_code, said.answers.len()), (ResponseCode::ServFail, 0));
    assert_eq!(records[1].reason, Some(DropReason::ResolveFailed), "{records:?}");
}

#[tokio::test]
async fn what_looks_like_a_tunnel_is_told_and_then_refused() {
    let mut desk = Desk::new().await;
    let (mut found, mut capped) = (Vec::new(), 0);
    for n in 0..320 {
        let (said, records) = desk.ask(Ok(1), &format!("n{n}.allowed.test"), 16).await;
        found.extend(records[0].findings.clone());
        if records[0].reason == Some(DropReason::DnsCapped) {
            assert_eq!(said.metadata.response_code, ResponseCode::Refused);
            assert_eq!(desk.zone.asked(&format!("n{n}.allowed.test")), 0);
            capped += 1;
        }
    }
    // A minute may end meanwhile, and another begin.
    assert!(found.contains(&"dns_tunnel_types".to_owned()), "{found:?}");
    assert!(capped <= 20, "{capped}");
    let (_, records) = desk.ask(Ok(1), "api.allowed.test", 1).await;
    assert_ne!(records[0].reason, Some(DropReason::Overloaded));
}

#[tokio::test]
async fn what_is_no_question_is_not_answered_or_said_to_be_malformed() {
    let mut desk = Desk::new().await;
    let connection = connection(Ok(1));
    let mut an_answer = asked("api.allowed.test", 1);
    an_answer[2] |= 0x80;
    for bytes in [&[][..], &[0; 11], &an_answer] {
        assert_eq!(answer(&desk.gateway, &connection, bytes, Carriage::Udp).await, None);
    }
    assert!(desk.carrier.drain_for_test().is_empty());
    let mut two = asked("api.allowed.test", 1);
    two[5] = 2;
    let said = answer(&desk.gateway, &connection, &two, Carriage::Udp).await.expect("an answer");
    let said = Message::from_vec(&said).expect("readable");
    assert_eq!((said.metadata.id, said.metadata.response_code), (7, ResponseCode::FormErr));
    let records = desk.carrier.drain_for_test();
    assert_eq!(records[0].reason, Some(DropReason::DnsMalformed));
    let agent = records[0].agent.as_ref().map(|agent| agent.agent.as_str());
    assert_eq!(agent, Some("web"), "the source tells whose it is");
}

#[tokio::test]
async fn an_alias_needs_no_permit_and_is_no_way_around_a_forbid() {
    let mut desk = Desk::new().await;
    let (said, _) = desk.ask(Ok(1), "cdn.allowed.test", 1).await;
    assert_eq!((said.metadata.response_code, said.answers.len()), (ResponseCode::NoError, 2), "{said:?}");
    for (name, reason, alias) in [
        ("way.allowed.test", DropReason::PolicyForbidden, Some("by way of `no.allowed.test.`")),
        ("odd.allowed.test", DropReason::HostInvalid, Some("by way of `xn--a.other.test.`")),
        ("inward.allowed.test", DropReason::AddressReserved, None),
    ] {
        let (said, records) = desk.ask(Ok(1), name, 1).await;
        assert_eq!((said.metadata.response_code, said.answers.len()), (ResponseCode::Refused, 0), "{name}");
        assert_eq!((records[1].reason, records[1].detail.as_deref()), (Some(reason), alias), "{records:?}");
    }
}

/// What a service leads to is asked about as an alias is, and its addresses with it.
#[tokio::test]
async fn a_service_is_no_way_around_a_forbid() {
    let desk = Desk::new().await;
    let hint = || (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(192, 0, 2, 3)])));
    let (_, who) = identified(&desk.gateway, &connection(Ok(1))).expect("an agent");
    let host = Host::parse("api.allowed.test").expect("host");
    let query_type = "HTTPS".to_owned();
    let admitted = Admitted { who, host, kind: RecordType::HTTPS, query_type };
    for (target, want) in [
        (".", Ok(1)),
        ("api.allowed.test.", Ok(1)),
        ("edge.other.test.", Ok(1)),
        ("No.allowed.test.", Err(DropReason::PolicyForbidden)),
        ("xn--a.other.test.", Err(DropReason::HostInvalid)),
    ] {
        let name = Name::from_ascii("api.allowed.test.").expect("name");
        let service = SVCB::new(1, Name::from_ascii(target).expect("name"), vec![hint()]);
        let answers = vec![Record::from_rdata(name.clone(), 60, RData::HTTPS(HTTPS(service)))];
        let found = Found { name, code: ResponseCode::NoError, answers, soa: None };
        let mut exchange = Exchange::new(&desk.gateway, &connection(Ok(1)));
        let said = released(&desk.gateway, 53, &admitted, found, &mut exchange).await;
        assert_eq!(said.map(|(said, _)| said.answers.len()), want, "{target}");
    }
}

#[tokio::test]
async fn a_flood_is_answered_counted_and_not_recorded_one_by_one() {
    let mut desk = Desk::new().await;
    let mut two = asked("api.allowed.test", 1);
    two[5] = 2;
    let mut busy = 0;
    for n in 0..4000 {
        // Neither what is malformed nor what is denied.
        let bytes = if n % 2 == 0 { two.clone() } else { asked("other.test", 1) };
        let said = answer(&desk.gateway, &connection(Ok(1)), &bytes, Carriage::Udp).await.expect("an answer");
        let said = Message::from_vec(&said).expect("readable");
        busy += u64::from(said.metadata.response_code == ResponseCode::ServFail);
    }
    // Some seconds may have passed.
    assert!(busy > 1000, "{busy}");
    let others = answer(&desk.gateway, &connection(Ok(0)), &two, Carriage::Udp).await.expect("an answer");
    assert_eq!(Message::from_vec(&others).expect("readable").metadata.response_code, ResponseCode::FormErr);
    tell_unrecorded(&desk.gateway);
    let records = desk.carrier.drain_for_test();
    let gap = records.last().expect("a record");
    assert_eq!((gap.kind, gap.count), (RecordKind::Gap, Some(2 * busy)), "{gap:?}");
    assert_eq!(gap.agent.as_ref().map(|agent| agent.agent.as_str()), Some("web"));
    assert_eq!(records.len() as u64, 2 * (4000 - busy) + 2 + 1, "none is lost in silence");
    tell_unrecorded(&desk.gateway);
    assert!(desk.carrier.drain_for_test().is_empty(), "told once");
}

#[tokio::test]
async fn what_waits_for_control_takes_the_share_of_its_agent_alone() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("control.sock");
    // It takes connections, and answers nothing.
    let _control = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let mut desk = Desk::with(&path).await;
    let waiting: Vec<_> = (0..limit::DNS_AGENT_MAX)
        .map(|_| {
            let gateway = Arc::clone(&desk.gateway);
            tokio::spawn(async move {
                answer(&gateway, &connection(Ok(1)), &asked("known.test", 1), Carriage::Udp).await
            })
        })
        .collect();
    let taken = async {
        while desk.gateway.dns.running() < limit::DNS_AGENT_MAX {
            tokio::task::yield_now().await;
        }
    };
    timeout(limit::RESOLVE, taken).await.expect("a share is taken before anything is waited for");
    let (_, records) = desk.ask(Ok(1), "known.test", 1).await;
    let over = records.iter().find(|record| record.kind == RecordKind::Decision).expect("a decision");
    assert_eq!(over.reason, Some(DropReason::Overloaded), "{records:?}");
    let (said, _) = desk.ask(Ok(3), "api.allowed.test", 1).await;
    assert_eq!(said.answers.len(), 1, "another agent is answered");
    for task in waiting {
        let said = task.await.expect("ended").expect("an answer");
        let code = Message::from_vec(&said).expect("readable").metadata.response_code;
        assert_ne!(code, ResponseCode::NoError, "nobody knows its history");
    }
    assert_eq!(desk.gateway.dns.running(), 0);
}

#[tokio::test]
async fn datagrams_are_answered_from_where_they_were_sent_to() {
    let desk = Desk::new().await;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
    socket.set_nonblocking(true).expect("nonblocking");
    setsockopt(&socket, Ipv4OrigDstAddr, &true).expect("option");
    let port = socket.local_addr().expect("address").port();
    let served = Datagrams::new(socket.into(), false).expect("a socket");
    let (stop, beat) = (CancellationToken::new(), Beat::default());
    let serving = tokio::spawn(datagrams(
        Arc::clone(&desk.gateway),
        served,
        Arc::new(Flows::default()),
        stop.clone(),
        beat.clone(),
    ));
    for to in ["127.0.0.1", "127.0.0.7"] {
        let client = UdpSocket::bind("127.0.0.9:0").await.expect("bind");
        // Connected: an answer from elsewhere never comes.
        client.connect((to, port)).await.expect("connect");
        client.send(&asked("api.allowed.test", 1)).await.expect("sent");
        let mut bytes = [0; 2048];
        let n = timeout(limit::RESOLVE, client.recv(&mut bytes)).await.expect("in time").expect("an answer");
        let said = Message::from_vec(&bytes[..n]).expect("readable");
        // Without a flow record it is nobody's.
        assert_eq!((said.metadata.id, said.metadata.response_code), (7, ResponseCode::Refused));
    }
    assert!(beat.take());
    stop.cancel();
    serving.await.expect("ended");
}

#[tokio::test]
async fn what_was_counted_is_told_when_the_socket_is_given_back() {
    const QUESTIONS: u64 = 2_000;
    let mut desk = Desk::new().await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_nonblocking(true).expect("nonblocking");
    setsockopt(&socket, Ipv4OrigDstAddr, &true).expect("option");
    let to = socket.local_addr().expect("address");
    let served = Datagrams::new(socket.into(), false).expect("a socket");
    let stop = CancellationToken::new();
    let gateway = Arc::clone(&desk.gateway);
    let serving =
        tokio::spawn(datagrams(gateway, served, Arc::new(Flows::default()), stop.clone(), Beat::default()));
    let client = UdpSocket::bind("127.0.0.9:0").await.expect("bind");
    client.connect(to).await.expect("connect");
    for _ in 0..QUESTIONS {
        client.send(&asked("api.allowed.test", 1)).await.expect("sent");
        let mut bytes = [0; 2048];
        timeout(limit::RESOLVE, client.recv(&mut bytes)).await.expect("in time").expect("an answer");
    }
    stop.cancel();
    serving.await.expect("ended");
    let records = desk.carrier.drain_for_test();
    let decided = records.iter().filter(|r| r.kind == RecordKind::Decision).count() as u64;
    let counted: u64 = records.iter().filter(|r| r.kind == RecordKind::Gap).filter_map(|r| r.count).sum();
    assert!(counted > 0);
    // Each would have had a decision and an outcome.
    assert_eq!(2 * decided + counted, 2 * QUESTIONS, "none is lost in silence");
}

#[tokio::test]
async fn questions_of_a_connection_are_answered_in_their_order() {
    let desk = Desk::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut client, server) = (client.expect("connect"), accepted.expect("accept").0);
    let gateway = Arc::clone(&desk.gateway);
    let serving = tokio::spawn(async move { stream(&gateway, &connection(Ok(1)), server).await });
    let framed = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        [&length[..], bytes].concat()
    };
    let mut second = asked("other.test", 1);
    second[1] = 8;
    client.write_all(&[framed(&asked("api.allowed.test", 1)), framed(&second)].concat()).await.expect("sent");
    for (id, answers) in [(7, 1), (8, 0)] {
        let length = client.read_u16().await.expect("a length");
        let mut bytes = vec![0; usize::from(length)];
        client.read_exact(&mut bytes).await.expect("an answer");
        let said = Message::from_vec(&bytes).expect("readable");
        assert_eq!((said.metadata.id, said.answers.len()), (id, answers));
    }
    client.write_all(&[0xff, 0xff]).await.expect("sent");
    assert!(client.read_u8().await.is_err(), "no question is as large");
    serving.await.expect("ended");
}
