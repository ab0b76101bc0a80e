//! How much goes through: requests a second on kept connections, and one large transfer. Beside the same path without a
//! gateway and a bare Pingora, in interleaved rounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::client::Way;
use crate::report::Spread;

/// Kept connections that ask at once.
pub const CONNECTIONS: usize = 16;
/// Requests on each in a round.
pub const REQUESTS: usize = 250;
/// Bytes of the large transfer.
pub const TRANSFER_BYTES: usize = 64 << 20;
/// Interleaved rounds.
pub const ROUNDS: usize = 9;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rate {
    /// Requests in clear for 1 KiB, a second.
    Requests,
    /// Of one transfer over unread TLS, MB a second.
    Transfer,
}

/// The rounds of all ways.
#[derive(Debug, Default)]
pub struct Rates(BTreeMap<(Rate, usize), Vec<f64>>);

// === impl Rate ===

impl Rate {
    /// Both.
    pub const ALL: [Rate; 2] = [Rate::Requests, Rate::Transfer];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Rate::Requests => "plain HTTP, 1 KiB: requests a second",
            Rate::Transfer => "TLS passthrough: one transfer, MB a second",
        }
    }
}

// === impl Rates ===

impl Rates {
    /// Adds a round of one way.
    pub fn add(&mut self, rate: Rate, way: Way, value: f64) {
        self.0.entry((rate, way.place())).or_default().push(value);
    }

    fn rounds(&self, rate: Rate, way: Way) -> &[f64] {
        self.0.get(&(rate, way.place())).map_or(&[], Vec::as_slice)
    }

    /// As a section.
    pub fn markdown(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(text, "## Throughput\n")?;
        writeln!(
            text,
            "{ROUNDS} interleaved rounds; each cell is least / **median** / most of them, and more is better. Requests: {CONNECTIONS} kept connections with {REQUESTS} requests each. \
             The transfer is of {} MiB, and its client and server share the processors with what is between them.\n",
            TRANSFER_BYTES >> 20
        )?;
        for rate in Rate::ALL {
            writeln!(text, "### {}\n", rate.name())?;
            writeln!(text, "| way | rate | × direct | × bare Pingora |\n|---|---|---|---|")?;
            for way in Way::ALL {
                let own = self.rounds(rate, way);
                let beside = |other: Way| {
                    let pairs = own.iter().zip(self.rounds(rate, other));
                    Spread::of(pairs.map(|(a, b)| a / b).collect()).text(2)
                };
                let direct = if way == Way::Direct { "1".to_owned() } else { beside(Way::Direct) };
                let is_ours = way == Way::Transparent || way == Way::Explicit;
                let bare = if is_ours { beside(Way::Bare) } else { "–".to_owned() };
                writeln!(
                    text,
                    "| {} | {} | {direct} | {bare} |",
                    way.name(),
                    Spread::of(own.to_vec()).text(0)
                )?;
            }
            writeln!(text)?;
        }
        Ok(text)
    }
}
