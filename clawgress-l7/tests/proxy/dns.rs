//! A small authoritative DNS server over UDP, on loopback.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The type of an alias (RFC 1035 3.2.2).
const CNAME: u16 = 5;

/// Answers from a table; names it does not hold don't exist. What is no address is the name that a name is an alias of.
#[derive(Debug)]
pub struct Dns {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    /// Answers that take the place of the table's, one after the other; the last one stays.
    turns: Arc<Mutex<HashMap<String, VecDeque<Vec<Data>>>>>,
    /// Whether it answers; what is asked meanwhile waits.
    pub answers: watch::Sender<bool>,
    task: AbortHandle,
}

impl Dns {
    pub async fn start(zone: &[(&str, &[&str])]) -> Dns {
        let parse = |text: &&str| text.parse().map_err(|_| (*text).to_owned());
        let zone: HashMap<String, Vec<Data>> =
            zone.iter().map(|(n, data)| ((*n).to_owned(), data.iter().map(parse).collect())).collect();
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = socket.local_addr().expect("address");
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let turns = Arc::<Mutex<HashMap<String, VecDeque<Vec<Data>>>>>::default();
        let (log, next) = (Arc::clone(&asked), Arc::clone(&turns));
        let (answers, mut may_answer) = watch::channel(true);
        let task = tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((n, from)) = socket.recv_from(&mut query).await {
                let found = |name: &str, kind| found(&zone, &next, name, kind);
                if let Some((name, answer)) = answer(&query[..n], found) {
                    log.lock().push(name);
                    if may_answer.wait_for(|may| *may).await.is_err() {
                        return;
                    }
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Dns { address, asked, turns, answers, task: task.abort_handle() }
    }

    /// Has an IPv4 question for `name` be answered by each of these in turn.
    pub fn takes_turns(&self, name: &str, answers: &[&[&str]]) {
        let parse = |text: &&str| text.parse().map_err(|_| (*text).to_owned());
        let answers = answers.iter().map(|data| data.iter().map(parse).collect()).collect();
        self.turns.lock().insert(name.to_owned(), answers);
    }

    /// How often a name was asked for.
    pub fn asked(&self, name: &str) -> usize {
        self.asked.lock().iter().filter(|n| *n == name).count()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        // Nobody waits for it any more.
        self.answers.send_replace(true);
        self.task.abort();
    }
}

/// An address, or another name.
type Data = Result<IpAddr, String>;

/// What there is of a name; `None` if it doesn't exist.
fn found(
    zone: &HashMap<String, Vec<Data>>,
    turns: &Mutex<HashMap<String, VecDeque<Vec<Data>>>>,
    name: &str,
    kind: u16,
) -> Option<Vec<Data>> {
    let mut turns = turns.lock();
    match turns.get_mut(name) {
        Some(answers) if kind == 1 && answers.len() > 1 => answers.pop_front(),
        Some(answers) => answers.front().cloned(),
        None => zone.get(name).cloned(),
    }
}

fn answer(query: &[u8], found: impl Fn(&str, u16) -> Option<Vec<Data>>) -> Option<(String, Vec<u8>)> {
    let (mut at, mut labels) = (12, vec![]);
    loop {
        let n = usize::from(*query.get(at)?);
        at += 1;
        if n == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + n)?).to_lowercase());
        at += n;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let name = labels.join(".");
    let found = found(&name, kind);
    let answers: Vec<&Data> = found
        .iter()
        .flatten()
        .filter(|data| matches!((kind, data), (1, Ok(IpAddr::V4(_))) | (28, Ok(IpAddr::V6(_))) | (_, Err(_))))
        .collect();
    let mut out = query.get(..2)?.to_vec();
    // Response, authoritative, recursion available; NXDOMAIN if the name is unknown.
    out.extend([0x85, if found.is_some() { 0x80 } else { 0x83 }, 0, 1]);
    out.extend(u16::try_from(answers.len()).ok()?.to_be_bytes());
    out.extend([0, 0, 0, 0]);
    out.extend(question);
    for data in answers {
        out.extend([0xc0, 12]);
        out.extend(if data.is_ok() { kind } else { CNAME }.to_be_bytes());
        // Class IN, TTL 0: whoever wants to rebind says so.
        out.extend([0, 1, 0, 0, 0, 0]);
        let bytes = match data {
            Ok(IpAddr::V4(ip)) => ip.octets().to_vec(),
            Ok(IpAddr::V6(ip)) => ip.octets().to_vec(),
            Err(name) => {
                let label =
                    |label: &str| [&[u8::try_from(label.len()).unwrap_or(0)], label.as_bytes()].concat();
                name.split('.').flat_map(label).chain([0]).collect()
            }
        };
        out.extend(u16::try_from(bytes.len()).ok()?.to_be_bytes());
        out.extend(bytes);
    }
    Some((name, out))
}
