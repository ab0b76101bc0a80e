//! What is asked of policy, and what it answers.

use std::net::IpAddr;

use clawgress_ebpf_common::{DropReason, protocol};
use clawgress_identity::Agent;
use serde::{Deserialize, Serialize};

use crate::Host;
use crate::content::{ModelCall, Payload, ToolCall, Usage};
use crate::head::Head;
use crate::vocabulary::ActionKind;

/// What the gateway offers a server that it speaks TLS to.
pub const UPSTREAM_ALPN: &str = "http/1.1";

/// ALPN lists a client may turn out to offer. A CONNECT is judged before its hello is seen: it is
/// refused only if no likely hello could be permitted. The hello itself is judged as it is.
pub const ALPN_GUESSES: [&[&str]; 4] = [&[], &["h2", "http/1.1"], &["http/1.1"], &["h2"]];

/// Methods of requests that have no body, unless somebody says so.
const WITHOUT_BODY: [&str; 3] = ["GET", "HEAD", "OPTIONS"];

/// Whether a request by this method may have a body of which nobody speaks.
#[must_use]
pub fn may_have_body(method: &str) -> bool {
    !WITHOUT_BODY.contains(&method)
}

/// Transport protocols policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// IPv4 in IP (protocol 4).
    Ipip,
    /// IPv6 in IP, such as 6in4 (protocol 41).
    Sit,
    /// GRE (protocol 47).
    Gre,
    /// ESP (protocol 50).
    Esp,
    /// AH (protocol 51).
    Ah,
    /// SCTP (protocol 132).
    Sctp,
}

impl Transport {
    /// Every one.
    pub const ALL: [Transport; 9] = [
        Transport::Tcp,
        Transport::Udp,
        Transport::Icmp,
        Transport::Ipip,
        Transport::Sit,
        Transport::Gre,
        Transport::Esp,
        Transport::Ah,
        Transport::Sctp,
    ];

    /// Whether policy tells its ports apart. Where it does not, `context.port` is 0.
    #[must_use]
    pub fn has_ports(self) -> bool {
        protocol::has_ports(self.number())
    }

    /// Whether only a permit that names it opens it: tunnels, and what the proxy can never read. A permit
    /// that asks for no protocol does not.
    #[must_use]
    pub fn is_named_only(self) -> bool {
        protocol::is_named_only(self.number())
    }

    /// IANA's number, with ICMP for both families as 1: what the kernel's tables hold.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Transport::Tcp => protocol::TCP,
            Transport::Udp => protocol::UDP,
            Transport::Icmp => protocol::ICMP,
            Transport::Ipip => protocol::IPIP,
            Transport::Sit => protocol::SIT,
            Transport::Gre => protocol::GRE,
            Transport::Esp => protocol::ESP,
            Transport::Ah => protocol::AH,
            Transport::Sctp => protocol::SCTP,
        }
    }

    /// The one with this name in policy text.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Transport> {
        Transport::ALL.into_iter().find(|t| t.name() == name)
    }
}

/// What stays unread in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelProtocol {
    /// TLS that is not intercepted.
    Tls,
    /// The same, where the hello may be for another server than it names: it has `encrypted_client_hello` (RFC 9849), which
    /// a hello that only greases has as well.
    #[serde(rename = "tls_ech")]
    TlsEch,
    /// Neither TLS nor HTTP.
    Unknown,
    /// Messages of a WebSocket, whose opening request is read, and judged as `http`.
    WebSocket,
}

impl TunnelProtocol {
    /// All of them.
    pub const ALL: [TunnelProtocol; 4] =
        [TunnelProtocol::Tls, TunnelProtocol::TlsEch, TunnelProtocol::Unknown, TunnelProtocol::WebSocket];

    /// Of TLS by whether its hello has `encrypted_client_hello`.
    #[must_use]
    pub fn of_tls(is_encrypted: bool) -> TunnelProtocol {
        if is_encrypted { TunnelProtocol::TlsEch } else { TunnelProtocol::Tls }
    }

    /// Whether a hello that may hide a name is refused as one that shows it is, by why either is denied, if it is. It needs a permit
    /// of its own, and whatever refuses [`TunnelProtocol::Tls`], rather than that nothing permits it, refuses it too: no client gets
    /// round that by what its hello only seems to have. What obliges either obliges both.
    #[must_use]
    pub fn is_refused_as_tls(own: Option<DropReason>, shown: Option<DropReason>) -> bool {
        own.is_none() && shown.is_some_and(|reason| reason != DropReason::PolicyDenied)
    }
}

/// URL scheme of an HTTP request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// In clear.
    Http,
    /// Over TLS.
    Https,
}

/// One action on one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Reach an address (`connect`).
    Connect { ip: IpAddr, port: u16, transport: Transport },
    /// Be forwarded by the kernel, unseen by L7 (`direct`).
    Direct { ip: IpAddr, port: u16, transport: Transport },
    /// Start TLS to a host (`tls`). `ja4` is the fingerprint of the hello.
    Tls { host: &'a Host, port: u16, alpn: &'a [String], ja4: &'a str },
    /// Let bytes pass unread (`tunnel`).
    Tunnel { host: &'a Host, port: u16, protocol: TunnelProtocol },
    /// Send an HTTP request (`http`). `path` is the [normal form](crate::path::normal) of the one that is sent, without the query;
    /// what that and the header fields say has `head`.
    Http { host: &'a Host, port: u16, scheme: Scheme, method: &'a str, path: &'a str, head: &'a Head },
    /// Ask for what a name resolves to (`resolve`): `query_type` is `A`, `AAAA`, `TXT`.
    Resolve { host: &'a Host, port: u16, query_type: &'a str },
    /// Call a language model (`llm`).
    Llm(ModelCall<'a>),
    /// Call a tool (`tool`).
    Tool(ToolCall<'a>),
    /// Send a payload (`send`).
    Send { host: &'a Host, port: u16, method: &'a str, path: &'a str, payload: Payload<'a> },
    /// Receive one (`receive`).
    Receive { host: &'a Host, port: u16, status: u16, payload: Payload<'a>, usage: Usage<'a> },
}

impl<'a> Operation<'a> {
    /// The action's name in policy text.
    #[must_use]
    pub fn action(&self) -> &'static str {
        ActionKind::of(self).name()
    }

    /// The host that is the resource, if one is.
    pub(crate) fn host(&self) -> Option<&'a Host> {
        match self {
            Operation::Tls { host, .. }
            | Operation::Tunnel { host, .. }
            | Operation::Http { host, .. }
            | Operation::Resolve { host, .. }
            | Operation::Send { host, .. }
            | Operation::Receive { host, .. } => Some(host),
            Operation::Connect { .. } | Operation::Direct { .. } | Operation::Llm(_) | Operation::Tool(_) => {
                None
            }
        }
    }

    /// The provider or server that the resource is of, and its own name, if it is of one.
    pub(crate) fn offered(&self) -> Option<(&'a str, &'a str)> {
        match self {
            Operation::Llm(call) => Some((call.provider, call.model)),
            Operation::Tool(call) => Some((call.server, call.name)),
            _ => None,
        }
    }
}

/// A question to policy.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub agent: &'a Agent,
    /// For what.
    pub operation: Operation<'a>,
}

/// Policy's answer. `Err` holds a stable reason; there is no default that allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed, else why not.
    pub verdict: Result<(), DropReason>,
    /// Ids of the determining policies, sorted.
    pub policies: Vec<String>,
    /// Evaluation errors, `policy id: message`, sorted; any of them denies.
    pub errors: Vec<String>,
}

impl Decision {
    /// Whether it is allowed.
    #[must_use]
    pub fn is_allow(&self) -> bool {
        self.verdict.is_ok()
    }
}
