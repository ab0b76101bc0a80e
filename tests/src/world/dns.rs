//! An authoritative server for the lab's zone, over UDP and TCP (RFC 1035, RFC 7766). Questions about zones that are delegated
//! go to their own servers, as they are.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::svcb::{Alpn, EchConfigList, IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, HTTPS, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::control::State;
use crate::plan;

/// Short, so that a restarted resolver and a running one see the same.
const TTL_S: u32 = 5;
/// Strings of the large text, 200 bytes each.
const TEXTS: usize = 12;
/// Largest reply in a datagram, bytes; of a larger one only that it is.
const DATAGRAM_BYTES_MAX: usize = 1_232;
/// Largest query accepted, bytes.
const QUERY_BYTES_MAX: usize = 4_096;
/// Time for the server of a delegated zone: tunnels let questions wait until there is something to say.
const DELEGATED_TIME_MAX: Duration = Duration::from_secs(8);

pub(super) async fn serve_udp(socket: UdpSocket, state: Arc<State>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; QUERY_BYTES_MAX];
    loop {
        let Ok((n, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let query = buffer.get(..n).unwrap_or_default();
        if let Some(port) = delegated(query) {
            State::count(&state.delegated_queries, 1);
            let (socket, query) = (Arc::clone(&socket), query.to_vec());
            tokio::spawn(async move {
                if let Ok(reply) = ask(port, &query).await {
                    let _ = socket.send_to(&reply, peer).await;
                }
            });
            continue;
        }
        let Ok(mut reply) = answer(query, &state) else { continue };
        if reply.len() > DATAGRAM_BYTES_MAX {
            let truncated = Message::from_vec(&reply).map(|reply| reply.truncate().to_vec());
            let Ok(Ok(truncated)) = truncated else { continue };
            reply = truncated;
        }
        let _ = socket.send_to(&reply, peer).await;
    }
}

/// The port of the server that a question is for, if its zone is delegated.
fn delegated(query: &[u8]) -> Option<u16> {
    let query = Message::from_vec(query).ok()?;
    let name = query.queries.first()?.name.to_lowercase();
    let below = |zone: &str| Name::from_ascii(zone).is_ok_and(|zone| zone.zone_of(&name));
    plan::DELEGATED.iter().find(|(zone, _)| below(&format!("{zone}."))).map(|(_, port)| *port)
}

/// Takes a question to the server at `port`, and its answer back.
async fn ask(port: u16, query: &[u8]) -> anyhow::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect((Ipv4Addr::LOCALHOST, port)).await?;
    socket.send(query).await?;
    let mut reply = vec![0; usize::from(u16::MAX)];
    let n = tokio::time::timeout(DELEGATED_TIME_MAX, socket.recv(&mut reply)).await??;
    reply.truncate(n);
    Ok(reply)
}

pub(super) async fn serve_tcp(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(converse(stream, Arc::clone(&state)));
    }
}

async fn converse(mut stream: TcpStream, state: Arc<State>) -> anyhow::Result<()> {
    loop {
        let n = usize::from(stream.read_u16().await?);
        ensure!(n <= QUERY_BYTES_MAX, "too large a query");
        let mut query = vec![0; n];
        stream.read_exact(&mut query).await?;
        let reply = match delegated(&query) {
            Some(port) => {
                State::count(&state.delegated_queries, 1);
                ask(port, &query).await?
            }
            None => answer(&query, &state)?,
        };
        stream.write_u16(u16::try_from(reply.len())?).await?;
        stream.write_all(&reply).await?;
    }
}

/// How to reach a web server: with keys that would hide its name from whoever reads the hello.
fn service(entry: &plan::Entry) -> anyhow::Result<RData> {
    let mut params =
        vec![(SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h2".to_owned(), "http/1.1".to_owned()])))];
    if let Some(ip) = entry.v4 {
        params.push((SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A(ip)]))));
    }
    let keys = EchConfigList(vec![0, 4, 0xfe, 0x0d, 0, 0]);
    params.push((SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(keys)));
    Ok(RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), params))))
}

fn answer(query: &[u8], state: &State) -> anyhow::Result<Vec<u8>> {
    let query = Message::from_vec(query)?;
    let question = query.queries.first().context("no question")?.clone();
    State::count(&state.dns_queries, 1);
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    let name = question.name.to_lowercase().to_ascii();
    match plan::entry(name.trim_end_matches('.')) {
        None => reply.metadata.response_code = ResponseCode::NXDomain,
        Some(entry) => {
            let data = match question.query_type {
                RecordType::A => entry.v4.map(|a| RData::A(A(a))),
                RecordType::AAAA => entry.v6.map(|a| RData::AAAA(AAAA(a))),
                RecordType::HTTPS => Some(service(entry)?),
                RecordType::TXT if entry.name == plan::LARGE => {
                    Some(RData::TXT(TXT::new((0..TEXTS).map(|n| format!("{n:0200}")).collect())))
                }
                _ => None,
            };
            reply.add_answers(data.map(|d| Record::from_rdata(question.name.clone(), TTL_S, d)));
        }
    }
    reply.add_query(question);
    if query.edns.is_some() {
        reply.edns.get_or_insert_default();
    }
    Ok(reply.to_vec()?)
}
