//! How much goes through: requests a second on kept connections, and one large transfer. Beside the same path without a
//! gateway and a bare Pingora, in interleaved rounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::client::{Way, Wire};
use crate::promises::{Bound, Promise};
use crate::report::Spread;

/// Kept connections that ask at once.
pub const CONNECTIONS: usize = 16;
/// Requests on each in a round.
pub const REQUESTS: usize = 250;
/// Connections that each of as many clients opens in a round, one after the other.
pub const HANDSHAKES: usize = 40;
/// Bytes of the large transfer.
pub const TRANSFER_BYTES: usize = 256 << 20;
/// Interleaved rounds.
pub const ROUNDS: usize = 9;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rate {
    /// Requests in clear for 1 KiB, a second.
    Requests,
    /// The same within TLS that is read.
    ReadRequests,
    /// Handshakes with whoever reads what follows, a second: a name that was asked for before.
    Handshakes,
    /// The same with a name that nobody asked for yet: a certificate is made for each.
    ColdHandshakes,
    /// Of one transfer over unread TLS, MB a second.
    Transfer,
}

/// The rounds of all ways.
#[derive(Debug, Default)]
pub struct Rates {
    rounds: BTreeMap<(Rate, usize), Vec<f64>>,
    /// Processor time of who is in the middle, µs for each request.
    costs: BTreeMap<(Rate, usize), Vec<f64>>,
}

// === impl Rate ===

impl Rate {
    /// All of them.
    pub const ALL: [Rate; 5] =
        [Rate::Requests, Rate::ReadRequests, Rate::Handshakes, Rate::ColdHandshakes, Rate::Transfer];

    /// Those of handshakes.
    pub const OF_HANDSHAKES: [Rate; 2] = [Rate::Handshakes, Rate::ColdHandshakes];

    /// What is spoken.
    pub fn wire(self) -> Wire {
        match self {
            Rate::Requests => Wire::Clear,
            Rate::ReadRequests | Rate::Handshakes | Rate::ColdHandshakes => Wire::Read,
            Rate::Transfer => Wire::Unread,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Rate::Requests => "plain HTTP, 1 KiB: requests a second",
            Rate::ReadRequests => "TLS that is read, 1 KiB: requests a second",
            Rate::Handshakes => "TLS that is read: handshakes a second, a known name",
            Rate::ColdHandshakes => "TLS that is read: handshakes a second, a new name each",
            Rate::Transfer => "TLS passthrough: one transfer, MB a second",
        }
    }

    /// Who is measured besides, that does this and nothing else.
    pub fn besides(self) -> &'static [Way] {
        match self {
            Rate::Requests => &[],
            Rate::ReadRequests => &[Way::Blind],
            Rate::Handshakes | Rate::ColdHandshakes => &[Way::Blind, Way::BlindProxy],
            Rate::Transfer => &[Way::Spliced, Way::Copied],
        }
    }

    /// Which of them is asked as `way` of Clawgress is.
    fn relay(self, way: Way) -> Option<Way> {
        match (self, way) {
            (Rate::Requests, _) => None,
            (Rate::Transfer, Way::Transparent | Way::Explicit) => Some(Way::Copied),
            (Rate::ReadRequests, Way::Transparent | Way::Explicit) | (_, Way::Transparent) => {
                Some(Way::Blind)
            }
            (_, Way::Explicit) => Some(Way::BlindProxy),
            _ => None,
        }
    }

    /// How many are counted in a round.
    pub fn operations(self) -> usize {
        match self {
            Rate::Requests | Rate::ReadRequests => CONNECTIONS * REQUESTS,
            Rate::Handshakes | Rate::ColdHandshakes => CONNECTIONS * HANDSHAKES,
            Rate::Transfer => 1,
        }
    }
}

// === impl Rates ===

impl Rates {
    /// Adds a round of one way.
    pub fn add(&mut self, rate: Rate, way: Way, value: f64) {
        self.rounds.entry((rate, way.place())).or_default().push(value);
    }

    /// Adds what a round of one way cost who is in the middle.
    pub fn cost(&mut self, rate: Rate, way: Way, us: f64) {
        self.costs.entry((rate, way.place())).or_default().push(us);
    }

    fn rounds(&self, rate: Rate, way: Way) -> &[f64] {
        self.rounds.get(&(rate, way.place())).map_or(&[], Vec::as_slice)
    }

    /// What is promised of it.
    pub fn promises(&self) -> Vec<Promise> {
        let mut promises = Vec::new();
        let (bare, blind) = ([Way::Bare; 2], [Way::Blind, Way::BlindProxy]);
        for (rate, beside, least) in [
            (Rate::Requests, bare, 1.0),
            (Rate::ReadRequests, bare, 1.0),
            (Rate::Handshakes, blind, 0.9),
            (Rate::ColdHandshakes, blind, 0.9),
            (Rate::Transfer, [Way::Spliced; 2], 0.9),
            (Rate::Transfer, [Way::Copied; 2], 0.9),
        ] {
            for (way, with) in [Way::Transparent, Way::Explicit].into_iter().zip(beside) {
                let pairs = self.rounds(rate, way).iter().zip(self.rounds(rate, with));
                let beside = Spread::of(pairs.map(|(a, b)| a / b).collect()).median();
                let what = format!("{}, {}, beside {}", rate.name(), way.name(), with.name());
                promises.push(Promise::new(what, Bound::Least(least), beside, "×"));
            }
        }
        promises
    }

    /// As a section.
    pub fn markdown(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(text, "## Throughput\n")?;
        writeln!(
            text,
            "{ROUNDS} interleaved rounds; each cell is least / **median** / most of them. Of rates more is better; the processor time is that of the bare Pingora, or of all of Clawgress's processes. Requests: {CONNECTIONS} kept connections with {REQUESTS} requests each. Handshakes: {CONNECTIONS} clients with {HANDSHAKES} connections each, whole handshakes; `direct` is a bare rustls server, which has its certificate, as the bare Pingora has its own. The blind copy makes a leaf for each new name, as Clawgress does, and asks nobody about anything; a client that asks it by CONNECT has a way to go more, as one of the explicit proxy. The bare relays carry bytes with a thread for each direction. Sockets joined in the kernel (sockmap), the third way, take programs and capabilities that the proxy has not, and are not measured. \
             The transfer is of {} MiB, and its client and server share the processors with what is between them.\n",
            TRANSFER_BYTES >> 20
        )?;
        let is_counted = |rate: &Rate| !self.rounds(*rate, Way::Direct).is_empty();
        for rate in Rate::ALL.into_iter().filter(is_counted) {
            writeln!(text, "### {}\n", rate.name())?;
            writeln!(
                text,
                "| way | rate | × direct | × bare Pingora | × relay | processor, µs each |\n|---|---|---|---|---|---|"
            )?;
            for way in Way::ALL.into_iter().filter(|way| !self.rounds(rate, *way).is_empty()) {
                let own = self.rounds(rate, way);
                let beside = |other: Way| {
                    let pairs = own.iter().zip(self.rounds(rate, other));
                    Spread::of(pairs.map(|(a, b)| a / b).collect()).text(2)
                };
                let direct = if way == Way::Direct { "1".to_owned() } else { beside(Way::Direct) };
                let is_ours = way == Way::Transparent || way == Way::Explicit;
                let bare = if is_ours { beside(Way::Bare) } else { "–".to_owned() };
                let relay = rate.relay(way).map_or("–".to_owned(), beside);
                let cost = self.costs.get(&(rate, way.place()));
                let cost = cost.map_or("–".to_owned(), |us| Spread::of(us.clone()).text(0));
                writeln!(
                    text,
                    "| {} | {} | {direct} | {bare} | {relay} | {cost} |",
                    way.name(),
                    Spread::of(own.to_vec()).text(0)
                )?;
            }
            writeln!(text)?;
        }
        Ok(text)
    }
}
