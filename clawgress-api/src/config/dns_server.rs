//! DNS servers that the gateway asks, and how.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Refused;
use super::intercept::is_host;

/// Most servers: they are asked in order, and nobody waits for as many.
const SERVERS_MAX: usize = 16;
/// Most files of roots.
const ROOTS_MAX: usize = 16;
/// What errors name.
const KEY: &str = "resolvers";
const ROOTS: &str = "resolver_roots";

/// A DNS server: `ADDRESS:PORT`, `tcp://ADDRESS:PORT` or `tls://ADDRESS:PORT#NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsServer {
    /// Where it is.
    pub address: SocketAddr,
    /// How it is asked.
    pub transport: DnsTransport,
}

/// How a DNS server is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsTransport {
    /// Over UDP, and over TCP what that has no room for (RFC 7766).
    Udp,
    /// Over TCP alone.
    Tcp,
    /// Over TLS alone (RFC 7858); it must prove this name.
    Tls(String),
}

/// Why text is no DNS server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no DNS server: write `ADDRESS:PORT`, `tcp://ADDRESS:PORT`, or `tls://ADDRESS:PORT#NAME` with the name that it proves"
)]
pub struct DnsServerError(String);

// === impl DnsServer ===

impl TryFrom<String> for DnsServer {
    type Error = DnsServerError;

    fn try_from(text: String) -> Result<Self, DnsServerError> {
        let parse = || {
            let (address, transport) = match text.split_once("://") {
                None => (text.as_str(), DnsTransport::Udp),
                Some(("tcp", rest)) => (rest, DnsTransport::Tcp),
                Some(("tls", rest)) => {
                    let (address, name) = rest.split_once('#')?;
                    let is_name = is_host(name) && !name.starts_with("*.");
                    (address, is_name.then(|| DnsTransport::Tls(name.to_owned()))?)
                }
                Some(_) => return None,
            };
            let address = address.parse::<SocketAddr>().ok().filter(|address| address.port() != 0)?;
            Some(DnsServer { address, transport })
        };
        parse().ok_or_else(|| DnsServerError(text.escape_debug().to_string()))
    }
}

impl From<DnsServer> for String {
    fn from(server: DnsServer) -> String {
        let DnsServer { address, transport } = server;
        match transport {
            DnsTransport::Udp => address.to_string(),
            DnsTransport::Tcp => format!("tcp://{address}"),
            DnsTransport::Tls(name) => format!("tls://{address}#{name}"),
        }
    }
}

/// Checks what servers there are together.
pub(super) fn check(servers: &[DnsServer], roots: &[PathBuf]) -> Result<(), Refused> {
    if servers.len() > SERVERS_MAX {
        return Err((KEY, format!("at most {SERVERS_MAX} `resolvers`")));
    }
    let is_proven = |server: &&DnsServer| matches!(server.transport, DnsTransport::Tls(_));
    let proven = servers.iter().filter(is_proven).count();
    if proven > 0 && proven < servers.len() {
        let why = "`resolvers` are all `tls://` or none is: where a server over TLS fails, one that proves nothing would be asked";
        return Err((KEY, why.to_owned()));
    }
    if !roots.is_empty() && proven == 0 {
        let why = "`resolver_roots` are for `resolvers` over TLS (`tls://`), and there is none: remove them";
        return Err((ROOTS, why.to_owned()));
    }
    if roots.len() > ROOTS_MAX || roots.iter().any(|path| !path.is_absolute()) {
        let why = format!(
            "`resolver_roots` are {ROOTS_MAX} absolute paths at most: roles have no directory of their own"
        );
        return Err((ROOTS, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_they_are_written() {
        for text in [
            "192.0.2.53:53",
            "[2001:db8::53]:53",
            "tcp://192.0.2.53:5353",
            "tls://[2001:db8::53]:853#dns.example.com",
        ] {
            let server = DnsServer::try_from(text.to_owned()).expect(text);
            assert_eq!(String::from(server), text);
        }
        for text in [
            "192.0.2.53",
            "192.0.2.53:0",
            "dns.example.com:53",
            "udp://192.0.2.53:53",
            "tls://192.0.2.53:853",
            "tls://192.0.2.53:853#",
            "tls://192.0.2.53:853#*.example.com",
            "tls://192.0.2.53:853#DNS.example.com",
            "tls://dns.example.com:853#dns.example.com",
            "https://192.0.2.53/dns-query",
        ] {
            let error = DnsServer::try_from(text.to_owned()).expect_err(text);
            assert!(error.to_string().contains("write `ADDRESS:PORT`"), "{error}");
        }
    }

    #[test]
    fn what_is_proven_and_what_is_not_do_not_go_together() {
        let servers = |texts: &[&str]| -> Vec<DnsServer> {
            texts.iter().map(|text| DnsServer::try_from((*text).to_owned()).expect("server")).collect()
        };
        check(&servers(&["192.0.2.53:53", "tcp://192.0.2.54:53"]), &[]).expect("sound");
        let (proven, root) = (
            servers(&["tls://192.0.2.53:853#a.test", "tls://192.0.2.54:853#b.test"]),
            PathBuf::from("/a.pem"),
        );
        check(&proven, std::slice::from_ref(&root)).expect("sound");
        assert_eq!(check(&proven, &["a.pem".into()]).expect_err("relative").0, "resolver_roots");
        assert_eq!(check(&servers(&["192.0.2.53:53"]), &[root]).expect_err("of no use").0, "resolver_roots");
        let (place, why) =
            check(&servers(&["tls://192.0.2.53:853#a.test", "192.0.2.54:53"]), &[]).expect_err("mixed");
        assert!(place == "resolvers" && why.contains("all `tls://` or none"), "{why}");
    }
}
