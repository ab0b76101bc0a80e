//! The proxy under test over real sockets: allowed and denied traffic, hostile bytes, loss of its peers.

#[cfg(test)]
mod a2a;
#[cfg(test)]
mod asks;
#[cfg(test)]
mod balancers;
#[cfg(test)]
mod body;
#[cfg(test)]
mod carried;
#[cfg(test)]
mod client;
#[cfg(test)]
mod conversations;
#[cfg(test)]
mod delays;
#[cfg(test)]
mod desync;
#[cfg(test)]
#[path = "../../../tests/tests/corpora/desync.rs"]
mod desync_cases;
#[cfg(test)]
mod dns;
#[cfg(test)]
mod endpoints;
#[cfg(test)]
mod fingerprints;
#[cfg(test)]
mod generation;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod heads;
#[cfg(test)]
mod hellos;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod http2_bounds;
#[cfg(test)]
mod http2_clients;
#[cfg(test)]
mod http2_hostile;
#[cfg(test)]
mod http2_proxy;
#[cfg(test)]
mod intercept;
#[cfg(test)]
mod interims;
#[cfg(test)]
mod kept;
#[cfg(test)]
mod large;
#[cfg(test)]
mod leaves;
#[cfg(test)]
mod life;
#[cfg(test)]
mod live;
#[cfg(test)]
mod llm;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod mismatches;
#[cfg(test)]
mod model_sockets;
#[cfg(test)]
mod mtls;
#[cfg(test)]
mod obligations;
#[cfg(test)]
mod parents;
#[cfg(test)]
mod pki;
#[cfg(test)]
mod platform;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod process;
#[cfg(test)]
mod realtime;
#[cfg(test)]
mod receive;
#[cfg(test)]
mod renaming;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod resolvers;
#[cfg(test)]
mod responses;
#[cfg(test)]
mod revocation;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod silent;
#[cfg(test)]
mod slashes;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod small_messages;
#[cfg(test)]
mod socks;
#[cfg(test)]
mod speech;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod tool;
#[cfg(test)]
mod tunnels;
#[cfg(test)]
mod unasked;
#[cfg(test)]
mod upstream;
#[cfg(test)]
mod web_sockets;
#[cfg(test)]
mod words;
