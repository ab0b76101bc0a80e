//! What one side says at once, by real frames: others run while it is looked at, and what is found in one message is no other's.

use std::cell::Cell;
use std::path::Path;

use clawgress_api::Ingress;
use clawgress_identity::IdentityMethod;
use clawgress_inspect::http1;

use super::*;
use crate::connection::{Bound, Connection};
use crate::identify;
use crate::plain_http::{Place, admit, granted};
use crate::serve::tests::{dns, gateway};

const SNAPSHOT: &str = r#"{"generation":3,"agents":[
    {"id":"default/web","index":1,"state":"active","sources":[{"interface":"agents0","prefix":"127.0.0.0/8","mac":null}]}],"keys":[],
    "policy":{"text":"@id(\"web\") permit (principal, action, resource); @id(\"keys\") forbid (principal, action in [Action::\"send\", Action::\"receive\"], resource) when { context.findings.contains(\"private_key\") };"}}"#;
const OPENING: &[u8] = b"GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----";
/// Many times what is looked at without letting others run.
const LONG: usize = 512 * 1024;
/// Messages of a letter that a server can say in a record of TLS.
const LETTERS: usize = 16 * 1024 / 3;

/// A WebSocket that was opened, of which each side is read.
struct Opened {
    gateway: Arc<Gateway>,
    granted: Granted,
    exchange: Exchange,
    conversation: Conversation,
    _dns: dns::Dns,
}

impl Opened {
    async fn new() -> Opened {
        let dns = dns::Dns::start(&[]).await;
        let nowhere = Path::new("/nonexistent/clawgress.sock");
        let (gateway, _carrier) = gateway(nowhere, SNAPSHOT, dns.address).await;
        let connection = Connection {
            peer: "127.0.0.1:4000".parse().expect("address"),
            local: "192.0.2.1:80".parse().expect("address"),
            ingress: Ingress::Transparent,
            is_steered: true,
            bound: Ok(Some(Bound { index: 1, method: IdentityMethod::Source })),
            interface: Some("agents0".to_owned()),
            certificate: None,
        };
        let plan = gateway.snapshots.current().expect("a plan");
        let who = identify::bound(&plan, &connection).expect("bound").expect("an agent");
        let head = http1::parse(OPENING).expect("a head");
        let (admitted, _) = admit(&head, &Place::Transparent { port: 80 }).expect("admitted");
        let (ruling, reads) = granted::rule(&gateway, &plan, &who, &admitted);
        assert_eq!(
            (ruling.verdict, reads.sent, reads.received),
            (Ok(()), Reading::Decides, Reading::Decides)
        );
        let granted = Granted::new(admitted, who, (vec![], vec![]), None, ruling, plan.generation);
        granted.will_read(reads);
        let exchange = Exchange::new(&gateway, &connection);
        let conversation = Conversation::new(&gateway, &granted);
        Opened { gateway, granted, exchange, conversation, _dns: dns }
    }

    async fn hear(&mut self, of: Sender, bytes: &[u8]) -> Result<BytesMut, Stop> {
        let (mut rest, mut out) = (bytes, BytesMut::new());
        let asked = (&self.gateway, &self.granted);
        self.conversation.hear(of, asked, &mut self.exchange, &mut rest, &mut out).await?;
        Ok(out)
    }
}

/// A message of one frame.
fn said(of: Sender, first: u8, carried: &[u8]) -> Vec<u8> {
    let masked = if of == Sender::Client { 0x80 } else { 0 };
    let mut out = vec![first];
    match u8::try_from(carried.len()) {
        Ok(short @ 0..126) => out.push(masked | short),
        _ if carried.len() < 1 << 16 => {
            out.push(masked | 126);
            out.extend(u16::try_from(carried.len()).expect("short").to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend((carried.len() as u64).to_be_bytes());
        }
    }
    if of == Sender::Client {
        // Of a mask of zeros, which is one.
        out.extend([0; 4]);
    }
    out.extend(carried);
    out
}

#[tokio::test]
async fn others_run_while_what_a_client_says_is_looked_at() {
    let mut opened = Opened::new().await;
    let (bytes, ran) = (said(Sender::Client, 0x81, &vec![b'x'; LONG]), Cell::new(0));
    let others = async {
        loop {
            ran.set(ran.get() + 1);
            yield_now().await;
        }
    };
    tokio::select! {
        heard = opened.hear(Sender::Client, &bytes) => assert!(heard.is_ok_and(|out| out == bytes)),
        () = others => {}
    }
    assert!(ran.get() >= LONG / 4096, "{}", ran.get());
}

/// However little each says: nobody waits for more than one of them.
#[tokio::test]
async fn others_run_between_messages_of_a_letter() {
    let mut opened = Opened::new().await;
    let (bytes, ran) = (said(Sender::Client, 0x81, b"x").repeat(LETTERS), Cell::new(0));
    let others = async {
        loop {
            ran.set(ran.get() + 1);
            yield_now().await;
        }
    };
    tokio::select! {
        heard = opened.hear(Sender::Client, &bytes) => assert!(heard.is_ok_and(|out| out == bytes)),
        () = others => {}
    }
    assert!(ran.get() >= LETTERS, "{}", ran.get());
    assert_eq!(opened.conversation.client.bytes, LETTERS as u64, "each was judged");
}

/// Pingora's filter of answers can't wait: what is looked at there is taken off what the task may do at once.
#[tokio::test]
async fn what_a_server_says_has_others_run_soon() {
    let letters = said(Sender::Server, 0x81, b"x").repeat(LETTERS);
    for bytes in [said(Sender::Server, 0x81, &vec![b'x'; LONG]), letters] {
        let mut opened = Opened::new().await;
        yield_now().await;
        assert!(coop::has_budget_remaining());
        let heard = opened.hear(Sender::Server, &bytes).now_or_never().expect("nothing is waited for");
        assert!(heard.is_ok_and(|out| out == bytes));
        assert!(!coop::has_budget_remaining());
    }
}

/// What looks at messages looks at one after another, in the middle of which others may come.
#[tokio::test]
async fn what_is_found_in_one_message_is_no_others() {
    for of in [Sender::Client, Sender::Server] {
        let mut opened = Opened::new().await;
        let (first, rest) = KEY.split_at(9);
        for apart in [
            [said(of, 0x81, first), said(of, 0x81, rest)].concat(),
            [said(of, 0x81, first), said(of, 0x89, b"ping"), said(of, 0x82, rest), said(of, 0x81, b"")]
                .concat(),
            [said(of, 0x01, b"be"), said(of, 0x89, rest), said(of, 0x80, b"gin")].concat(),
        ] {
            assert!(opened.hear(of, &apart).await.is_ok_and(|out| out == apart));
            // The last of them in single bytes.
            let mut out = BytesMut::new();
            for byte in &apart {
                let Ok(more) = opened.hear(of, std::slice::from_ref(byte)).await else {
                    panic!("it goes on")
                };
                out.unsplit(more);
            }
            assert!(out == apart);
        }
        let parts = [said(of, 0x01, first), said(of, 0x8a, b""), said(of, 0x80, rest)].concat();
        let Err(stop) = opened.hear(of, &parts).await else { panic!("it is forbidden") };
        assert_eq!(stop.ruling.verdict, Err(DropReason::PolicyForbidden));
        assert_eq!(opened.conversation.side(of).findings, ["private_key"]);
    }
}
