//! SOCKS 5 (RFC 1928) at the explicit proxy's port: another way to ask for a tunnel, judged and carried as CONNECT is.
//!
//! Names go to the gateway as they are (`socks5h://` of curl and others): a client that resolves them itself asks for an
//! address, and is judged by that. `BIND` and `UDP ASSOCIATE` would open ports of the gateway to the outside; they are
//! refused.

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::proxy_authorization;
use clawgress_inspect::socks5::{self, Command, Destination, Method, Methods, Request, SocksError};
use clawgress_policy::Host;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::connect::{self, Asked, Begun, Manner, Refused};
use crate::connection::Connection;
use crate::decide::Ruling;
use crate::exchange::Exchange;
use crate::identify;
use crate::opaque;
use crate::peek;
use crate::rest::{Rest, then};
use crate::serve::Serving;
use crate::stream::Stream;

/// Whether `held`, which is no other protocol, is of a client that speaks SOCKS.
#[must_use]
pub fn is_meant(held: &[u8]) -> bool {
    matches!(held.first(), Some(&(socks5::VERSION | socks5::VERSION_4)))
}

/// What answers a SOCKS 4 request: rejected (there is no RFC; the memo "SOCKS: A protocol for TCP proxy across
/// firewalls" says so).
const REJECTED_4: [u8; 8] = [0, 0x5b, 0, 0, 0, 0, 0, 0];

/// Why a client got no further than its introduction, and the last word that it is told, which may be empty.
struct Unknown {
    reason: DropReason,
    word: Vec<u8>,
}

/// Begins to serve a SOCKS client, of which `held` was read.
pub async fn serve(
    serving: &Serving,
    connection: Connection,
    stream: Stream,
    held: Vec<u8>,
    deadline: Instant,
) -> Rest<'_> {
    let mut exchange = Exchange::new(&serving.gateway, &connection);
    serving.note_bound(&connection, &mut exchange);
    let mut begun = Begun { exchange, stream, held };
    let deny = |reason| Ruling::deny("tunnel", reason);
    let credential = match introduced(serving, &connection, &mut begun, deadline).await {
        Ok(credential) => credential,
        Err(Unknown { reason, word }) => {
            opaque::deny_silently(begun.exchange, deny(reason), None);
            return then(async move { peek::say_and_close(begun.stream, &word).await });
        }
    };
    match asked(&mut begun, deadline).await {
        Ok((host, port)) => {
            let asked = Asked { manner: Manner::Socks5, host, port, credential };
            connect::open(serving, connection, begun, asked).await
        }
        Err(reason) => {
            let Begun { exchange, stream, .. } = begun;
            let refused = Refused { manner: Manner::Socks5, exchange, stream, has_presented: false };
            then(refused.end(&serving.gateway, deny(reason)))
        }
    }
}

/// Greets the client, and has it prove itself unless its connection does: its credential, as `Proxy-Authorization` would
/// have it, which proves an agent.
async fn introduced(
    serving: &Serving,
    connection: &Connection,
    begun: &mut Begun,
    deadline: Instant,
) -> Result<Option<Zeroizing<Vec<u8>>>, Unknown> {
    let silent = |reason| Unknown { reason, word: Vec::new() };
    if begun.held.first() == Some(&socks5::VERSION_4) {
        return Err(Unknown { reason: DropReason::SocksUnsupported, word: REJECTED_4.to_vec() });
    }
    let offered = message(begun, deadline, socks5::greeting).await.map_err(silent)?;
    let is_known = matches!(connection.bound, Ok(Some(_))) || connection.certificate.is_some();
    let method = choose(offered, is_known);
    let choice = socks5::choice(method);
    if method == Method::Unacceptable {
        return Err(Unknown { reason: DropReason::CredentialMissing, word: choice.to_vec() });
    }
    say(begun, &choice).await.map_err(silent)?;
    if method == Method::None {
        return Ok(None);
    }
    let wrong = |reason| Unknown { reason, word: socks5::login_answer(false).to_vec() };
    let login = message(begun, deadline, socks5::login).await.map_err(wrong)?;
    let value = Zeroizing::new(proxy_authorization::encode(&login.user, &login.password).into_bytes());
    drop(login);
    let gateway = &serving.gateway;
    let plan = gateway.snapshots.current().map_err(wrong)?;
    // Judged once more with the request, as every one is: here the client is told what is wrong with its credential.
    let bound = identify::bound(&plan, connection).map_err(wrong)?;
    let who = identify::identify(gateway, &plan, connection, bound, Some(&value)).await;
    let who = who.map_err(|stranger| wrong(begun.exchange.stranger(*stranger)))?;
    begun.exchange.agent(&who, &plan);
    say(begun, &socks5::login_answer(true)).await.map_err(silent)?;
    Ok(Some(value))
}

/// How a client is to prove itself. Who is known need not, for some clients offer a password that they don't have.
fn choose(offered: Methods, is_known: bool) -> Method {
    match offered {
        Methods { none: true, .. } if is_known => Method::None,
        Methods { password: true, .. } => Method::Password,
        _ => Method::Unacceptable,
    }
}

/// Where the client wants to go.
async fn asked(begun: &mut Begun, deadline: Instant) -> Result<(Host, u16), DropReason> {
    let Request { command, destination, port } = message(begun, deadline, socks5::request).await?;
    let host = match destination {
        Destination::Address(ip) => Host::Address(ip.to_canonical()),
        Destination::Name(name) => Host::parse(&name).map_err(|_| DropReason::HostInvalid)?,
    };
    begun.exchange.host(&host, port);
    match command {
        Command::Connect => Ok((host, port)),
        Command::Other(_) => Err(DropReason::SocksUnsupported),
    }
}

async fn say(begun: &mut Begun, word: &[u8]) -> Result<(), DropReason> {
    let stream = &mut begun.stream;
    let said = async {
        stream.write_all(word).await?;
        stream.flush().await
    };
    // Who left has asked for nothing that could be understood.
    said.await.map_err(|_| DropReason::SocksMalformed)
}

/// The client's next message.
async fn message<T>(
    begun: &mut Begun,
    deadline: Instant,
    parse: fn(&[u8]) -> socks5::Parsed<T>,
) -> Result<T, DropReason> {
    loop {
        match parse(&begun.held) {
            Ok(Some((n, message))) => {
                let rest = begun.held.split_off(n);
                // It may hold a password.
                drop(Zeroizing::new(std::mem::replace(&mut begun.held, rest)));
                return Ok(message);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "refused a SOCKS message");
                return Err(match error {
                    SocksError::AddressKind => DropReason::HostInvalid,
                    _ => DropReason::SocksMalformed,
                });
            }
        }
        if peek::more(&mut begun.stream, &mut begun.held, deadline).await? == 0 {
            return Err(DropReason::SocksMalformed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_who_is_unknown_goes_without_a_credential() {
        let methods = |none, password| Methods { none, password };
        for (offered, is_known, expected) in [
            (methods(true, false), true, Method::None),
            (methods(true, true), true, Method::None),
            (methods(false, true), true, Method::Password),
            (methods(false, false), true, Method::Unacceptable),
            (methods(true, false), false, Method::Unacceptable),
            (methods(true, true), false, Method::Password),
            (methods(false, true), false, Method::Password),
            (methods(false, false), false, Method::Unacceptable),
        ] {
            assert_eq!(choose(offered, is_known), expected, "{offered:?}, known: {is_known}");
        }
    }
}
