//! Connection tracking follows the flow table: where a flow ended, the kernel's own entry ends, too. It would
//! stay for days, and its table would fill with what nobody can use.
//!
//! Must never send a message that names no flow: the kernel takes that for all of them.

use std::io::{self, Read as _};
use std::net::IpAddr;

use clawgress_ebpf_common::user::ip;
use clawgress_ebpf_common::{FlowKey, protocol};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// ctnetlink (linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h).
const NETLINK_NETFILTER: i32 = 12;
const CT_DELETE: u16 = 1 << 8 | 2;
const NESTED: u16 = 1 << 15;
const TUPLE_ORIG: u16 = NESTED | 1;
const TUPLE_IP: u16 = NESTED | 1;
const TUPLE_PROTO: u16 = NESTED | 2;
const IP_V4: [u16; 2] = [1, 2];
const IP_V6: [u16; 2] = [3, 4];
const PROTO_NUMBER: u16 = 1;
const PROTO_PORTS: [u16; 2] = [2, 3];
/// Identifier, type and code of an echo, by family.
const PROTO_ICMP: [u16; 3] = [4, 5, 6];
const PROTO_ICMPV6: [u16; 3] = [7, 8, 9];
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
const NEXT_ICMPV6: u8 = 58;

/// Flows in one message to the kernel: some tens of kilobytes, less than any socket's send buffer.
const BATCH_MAX: usize = 256;

/// The way to the kernel's table in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens it.
    ///
    /// # Errors
    /// If there is no netlink.
    pub fn open() -> io::Result<Conntrack> {
        let socket =
            Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)))?;
        socket.set_nonblocking(true)?;
        Ok(Conntrack { socket })
    }

    /// Ends the entries of these flows; those without one are as wanted.
    ///
    /// # Errors
    /// If the kernel takes no messages.
    pub fn end<'a>(&self, flows: impl Iterator<Item = &'a FlowKey>) -> io::Result<()> {
        let mut flows = flows.peekable();
        while flows.peek().is_some() {
            let message: Vec<u8> = flows.by_ref().take(BATCH_MAX).flat_map(delete).collect();
            let sent = self.socket.send(&message);
            // Answers are errors of entries that are not there; unread ones would only fill the buffer.
            let mut answers = [0; 16 * 1024];
            let mut socket = &self.socket;
            while socket.read(&mut answers).is_ok() {}
            sent?;
        }
        Ok(())
    }
}

/// One message, which always names the flow.
fn delete(key: &FlowKey) -> Vec<u8> {
    let (source, destination) = (ip(key.source), ip(key.destination));
    let is_v6 = source.is_ipv6();
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let [from, to] = if is_v6 { IP_V6 } else { IP_V4 };
    let addresses = [attribute(from, &octets(source)), attribute(to, &octets(destination))].concat();
    let (id, target) = (key.source_port_be.to_ne_bytes(), key.destination_port_be.to_ne_bytes());
    let transport = if key.protocol == protocol::ICMP {
        let (number, [identifier, kind, code], echo) =
            if is_v6 { (NEXT_ICMPV6, PROTO_ICMPV6, ECHO_V6) } else { (protocol::ICMP, PROTO_ICMP, ECHO) };
        [
            attribute(PROTO_NUMBER, &[number]),
            attribute(identifier, &id),
            attribute(kind, &[echo]),
            attribute(code, &[0]),
        ]
        .concat()
    } else {
        let [from, to] = PROTO_PORTS;
        [attribute(PROTO_NUMBER, &[key.protocol]), attribute(from, &id), attribute(to, &target)].concat()
    };
    let tuple = [attribute(TUPLE_IP, &addresses), attribute(TUPLE_PROTO, &transport)].concat();
    // nfgenmsg: family, version 0, resource 0.
    let family = u8::try_from(if is_v6 { libc::AF_INET6 } else { libc::AF_INET }).unwrap_or(0);
    let body = [vec![family, 0, 0, 0], attribute(TUPLE_ORIG, &tuple)].concat();
    let length = u32::try_from(16 + body.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend(1_u16.to_ne_bytes()); // NLM_F_REQUEST
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// A netlink attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
