//! What questions to DNS share: how many an agent asks, how many of it are under way, what each asked in this minute, and
//! the way to have addresses learned.
//!
//! Bounded: what has no room is refused. INVARIANT: one agent's questions never take what others need: neither the room for
//! questions under way, nor that for records.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use clawgress_api::config::Dns;
use clawgress_api::proto::enforcement_client::EnforcementClient;
use clawgress_api::proto::{ResolvedAddress, ResolvedRequest};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::dns::watch::{Finding, Limits, Noted, Watch};
use clawgress_policy::Host;
use hickory_resolver::proto::rr::RecordType;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use super::cache::Cache;
use crate::limit;
use crate::resolve::{Found, Resolver};

/// The desk.
#[derive(Debug)]
pub struct Desk {
    limits: Limits,
    /// Questions of one agent in a second, and at once.
    pace: (f64, f64),
    book: Arc<Mutex<Book>>,
    client: EnforcementClient<Channel>,
    resolver: Resolver,
    cache: Cache,
    /// Of what could not be learned.
    told: crate::told::Told,
    /// Datagrams that are looked at.
    pub datagrams: Arc<Semaphore>,
}

/// What is asked.
#[derive(Debug, Default)]
struct Book {
    agents: HashMap<u32, Asking>,
    /// Questions under way, of all agents.
    running: usize,
    /// When idle agents were looked for last, Unix time in seconds.
    swept_s: Option<i64>,
    /// Questions of each agent that were too many to be recorded, since that was told last.
    unrecorded: HashMap<u32, u64>,
}

/// What one agent asks.
#[derive(Debug)]
struct Asking {
    running: usize,
    watch: Watch,
    /// Questions that it may ask at once, and when that was reckoned.
    tokens: f64,
    reckoned: Instant,
}

/// A question under way.
#[derive(Debug)]
pub struct Running {
    book: Arc<Mutex<Book>>,
    agent: u32,
}

/// Whom an answer is for, and to what.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The agent's number.
    pub agent: u32,
    /// The name.
    pub host: &'a Host,
    /// The type.
    pub query_type: &'a str,
    /// The port that was asked.
    pub port: u16,
}

// === impl Desk ===

impl Desk {
    /// With these limits, asking by `resolver`, over a channel to control.
    #[must_use]
    pub fn new(limits: &Dns, resolver: Resolver, channel: Channel) -> Self {
        let rate = f64::from(limits.questions_per_second_max.get());
        Desk {
            limits: Limits {
                names_max: limits.names_per_minute_max.get(),
                uncommon_max: limits.uncommon_per_minute_max.get(),
                bytes_max: limits.bytes_per_minute_max.get(),
            },
            pace: (rate, rate * limit::DNS_BURST_S),
            book: Arc::default(),
            client: EnforcementClient::new(channel),
            resolver,
            cache: Cache::default(),
            told: crate::told::Told::default(),
            datagrams: Arc::new(Semaphore::new(limit::DNS_DATAGRAMS_MAX)),
        }
    }

    /// Whether one more question of an agent, or of nobody for 0, is looked at and recorded; others are counted, for
    /// [`Desk::unrecorded`].
    #[must_use]
    pub fn admits(&self, agent: u32, now: Instant, now_s: i64) -> bool {
        let (rate, burst) = self.pace;
        let mut book = self.book.lock();
        let is_admitted = book.asking(agent, now, now_s, self.pace).is_some_and(|asking| {
            let passed = now.saturating_duration_since(asking.reckoned);
            asking.tokens = (asking.tokens + passed.as_secs_f64() * rate).min(burst);
            asking.reckoned = now;
            let is_admitted = asking.tokens >= 1.0;
            if is_admitted {
                asking.tokens -= 1.0;
            }
            is_admitted
        });
        if !is_admitted {
            // Whose name has no room is counted as nobody's.
            let has_room = book.unrecorded.len() < limit::DNS_AGENTS_MAX;
            let named = if has_room || book.unrecorded.contains_key(&agent) { agent } else { 0 };
            *book.unrecorded.entry(named).or_default() += 1;
        }
        is_admitted
    }

    /// Whose questions were not recorded since this was asked last, and how many.
    #[must_use]
    pub fn unrecorded(&self) -> HashMap<u32, u64> {
        std::mem::take(&mut self.book.lock().unrecorded)
    }

    /// Questions under way.
    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.book.lock().running
    }

    /// One more question of an agent under way.
    ///
    /// # Errors
    /// [`DropReason::Overloaded`] if it has as many under way as it may, or there is no room for more.
    pub fn begin(&self, agent: u32, now: Instant, now_s: i64) -> Result<Running, DropReason> {
        let mut book = self.book.lock();
        // What is left when most of the room is taken is for those that ask little.
        let share = match book.running {
            running if running >= limit::DNS_QUESTIONS_MAX => 0,
            running if running >= limit::DNS_QUESTIONS_SHARED => limit::DNS_AGENT_LEAST,
            _ => limit::DNS_AGENT_MAX,
        };
        let asking = book.asking(agent, now, now_s, self.pace).ok_or(DropReason::Overloaded)?;
        if asking.running >= share {
            return Err(DropReason::Overloaded);
        }
        asking.running += 1;
        book.running += 1;
        drop(book);
        Ok(Running { book: Arc::clone(&self.book), agent })
    }

    /// Takes note that a name which an agent names elsewhere (in CONNECT, a request, a hello) is resolved for it, which tells that
    /// name as a question of its own would: such names count with those that it asks for. If more agents ask than there is room for,
    /// they count together with what nobody asks.
    #[must_use]
    pub fn resolves(&self, agent: u32, now: Instant, now_s: i64, name: &str) -> Noted {
        let mut book = self.book.lock();
        let asking = match book.asking(agent, now, now_s, self.pace) {
            Some(asking) => asking,
            None => book.agents.entry(0).or_insert_with(|| Asking::new(now, self.pace)),
        };
        let mut noted = asking.watch.resolved(now_s, name, &self.limits);
        // Questions and their bytes are asked elsewhere, and are refused there: no name is one too many by them.
        noted.over = noted.over.filter(|over| *over == Finding::Names);
        noted
    }

    /// What there is for a name and a type, for the agent of this index.
    ///
    /// # Errors
    /// [`DropReason::ResolveFailed`].
    pub async fn find(&self, agent: u32, host: &Host, kind: RecordType) -> Result<Found, DropReason> {
        let name = host.to_string();
        if let Some(found) = self.cache.find(&name, kind, Instant::now()) {
            return Ok(found);
        }
        let found = self.resolver.records(host, kind).await?;
        self.cache.keep(agent, &name, kind, &found, Instant::now());
        Ok(found)
    }

    /// Has what policy opens of these addresses for the agent opened before its answer is released.
    ///
    /// # Errors
    /// [`DropReason::ResolveFailed`] if that can't be done.
    pub async fn learn(&self, told: Told<'_>, addresses: &[(IpAddr, u32)]) -> Result<(), DropReason> {
        let address =
            |(ip, ttl): &(IpAddr, u32)| ResolvedAddress { ip: ip.to_string(), ttl_s: u64::from(*ttl) };
        let request = ResolvedRequest {
            agent: told.agent,
            host: told.host.to_string(),
            query_type: told.query_type.to_owned(),
            port: u32::from(told.port),
            addresses: addresses.iter().take(limit::ADDRESSES_MAX).map(address).collect(),
        };
        let mut client = self.client.clone();
        match tokio::time::timeout(limit::DNS_LEARN, client.resolved(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                if let Some(untold) = self.told.turn(told.agent, Instant::now()) {
                    let host = told.host;
                    tracing::warn!(%error, %host, untold, "addresses are not learned, so they are not told");
                }
                Err(DropReason::ResolveFailed)
            }
            Err(_) => Err(DropReason::ResolveFailed),
        }
    }
}

// === impl Book ===

impl Book {
    /// What an agent asks; none if more agents ask than there is room for.
    fn asking(&mut self, agent: u32, now: Instant, now_s: i64, pace: (f64, f64)) -> Option<&mut Asking> {
        let agents = &mut self.agents;
        if agents.len() >= limit::DNS_AGENTS_MAX && !agents.contains_key(&agent) {
            // Once a second: each look is at all of them.
            if self.swept_s == Some(now_s) {
                return None;
            }
            self.swept_s = Some(now_s);
            agents.retain(|_, asking| !asking.is_idle(now, now_s, pace));
            if agents.len() >= limit::DNS_AGENTS_MAX {
                return None;
            }
        }
        Some(agents.entry(agent).or_insert_with(|| Asking::new(now, pace)))
    }
}

// === impl Asking ===

impl Asking {
    fn new(now: Instant, (_, burst): (f64, f64)) -> Self {
        Asking { running: 0, watch: Watch::default(), tokens: burst, reckoned: now }
    }

    /// Whether nothing of it counts any more.
    fn is_idle(&self, now: Instant, now_s: i64, (rate, burst): (f64, f64)) -> bool {
        let passed = now.saturating_duration_since(self.reckoned);
        let is_full = self.tokens + passed.as_secs_f64() * rate >= burst;
        self.running == 0 && is_full && self.watch.is_over(now_s)
    }
}

// === impl Running ===

impl Running {
    /// Takes note of what is asked, and says what that looks like.
    #[must_use]
    pub fn asked(&self, desk: &Desk, now_s: i64, name: &str, kind: u16, bytes: usize) -> Noted {
        let mut book = self.book.lock();
        // It is there as long as this is.
        let Some(asking) = book.agents.get_mut(&self.agent) else { return Noted::default() };
        asking.watch.asked(now_s, name, kind, bytes, &desk.limits)
    }

    /// Takes note of what is answered.
    pub fn answered(&self, now_s: i64, bytes: usize) {
        if let Some(asking) = self.book.lock().agents.get_mut(&self.agent) {
            asking.watch.answered(now_s, bytes);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut book = self.book.lock();
        book.running = book.running.saturating_sub(1);
        if let Some(asking) = book.agents.get_mut(&self.agent) {
            asking.running = asking.running.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn desk() -> Desk {
        let nowhere = std::path::Path::new("/nonexistent/clawgress.sock");
        let channel = clawgress_api::socket::channel(nowhere).expect("channel");
        let config = toml::from_str("resolvers = [\"127.0.0.1:9\"]").expect("configuration");
        let resolver = Resolver::without_cache(&config).expect("resolver");
        Desk::new(&Dns::default(), resolver, channel)
    }

    #[tokio::test]
    async fn an_agent_has_its_share_and_all_together_have_room() {
        let (desk, now) = (desk(), Instant::now());
        let mut held: Vec<_> =
            (0..limit::DNS_AGENT_MAX).map(|_| desk.begin(1, now, 0).expect("a share")).collect();
        assert_eq!(desk.begin(1, now, 0).err(), Some(DropReason::Overloaded));
        held.pop();
        assert!(desk.begin(1, now, 0).is_ok());
        for agent in 2..=u32::try_from(limit::DNS_AGENTS_MAX).expect("number") {
            let running = desk.begin(agent, now, 0).expect("room");
            let _ = running.asked(&desk, 0, "a.test", 1, 30);
        }
        assert_eq!(desk.begin(0, now, 0).err(), Some(DropReason::Overloaded), "all asked in this minute");
        assert!(desk.begin(0, now, 60).is_ok(), "those that asked nothing since are forgotten");
        assert_eq!(desk.book.lock().agents.len(), 2, "but for whose questions are under way");
    }

    /// Names that are named elsewhere are not denied for want of room, and are counted nevertheless.
    #[tokio::test]
    async fn where_there_is_no_room_names_are_counted_as_nobodys() {
        let (desk, now) = (desk(), Instant::now());
        let most = u32::try_from(limit::DNS_AGENTS_MAX).expect("number");
        for agent in 1..=most {
            assert_eq!(desk.resolves(agent, now, 0, "a.test").over, None);
        }
        for n in 0..desk.limits.names_max {
            let (agent, name) = (most + 1 + n, format!("n{n}.zone.test"));
            assert_eq!(desk.resolves(agent, now, 0, &name).over, None, "{n}");
        }
        let over = desk.resolves(most + 1, now, 0, "more.zone.test");
        assert_eq!(over.over, Some(Finding::Names));
        assert!(desk.book.lock().agents.len() <= limit::DNS_AGENTS_MAX + 1);
    }

    /// What a name in CONNECT looks like is found of a question, too, which is recorded with it.
    #[tokio::test]
    async fn names_that_are_named_elsewhere_leave_the_finding_to_a_question() {
        let (desk, now, mut found) = (desk(), Instant::now(), Vec::new());
        for n in 0..desk.limits.names_max {
            let noted = desk.resolves(1, now, 0, &format!("n{n}.zone.test"));
            assert_eq!(noted.over, None, "{n}");
            found.extend(noted.found);
        }
        assert_eq!(found, [Finding::Names], "once");
        let running = desk.begin(1, now, 0).expect("room");
        let noted = running.asked(&desk, 0, "n0.zone.test", 1, 30);
        assert_eq!(noted.found.iter().map(|found| found.name()).collect::<Vec<_>>(), ["dns_tunnel_names"]);
    }

    /// Who has asked too much by DNS is refused there: names of others are resolved as long as these are few.
    #[tokio::test]
    async fn too_many_questions_or_bytes_are_no_names() {
        let now = Instant::now();
        for (kind, bytes) in [(16, 30), (1, 100_000)] {
            let desk = desk();
            let running = desk.begin(1, now, 0).expect("room");
            let mut over = None;
            for _ in 0..=desk.limits.uncommon_max {
                over = running.asked(&desk, 0, "one.test", kind, bytes).over;
            }
            assert!(over.is_some_and(|over| over != Finding::Names), "{over:?}");
            assert_eq!(desk.resolves(1, now, 0, "api.test").over, None, "{over:?}");
        }
    }

    #[tokio::test]
    async fn those_that_ask_much_leave_room_for_those_that_ask_little() {
        let (desk, now) = (desk(), Instant::now());
        let mut held = Vec::new();
        for agent in 1..=100 {
            held.extend((0..limit::DNS_AGENT_MAX).map_while(|_| desk.begin(agent, now, 0).ok()));
        }
        assert_eq!(held.len(), limit::DNS_QUESTIONS_MAX, "never more than there is room for");
        held.truncate(limit::DNS_QUESTIONS_SHARED);
        assert_eq!(desk.begin(1, now, 0).err(), Some(DropReason::Overloaded), "it has its share");
        let little: Vec<_> =
            (0..limit::DNS_AGENT_LEAST).map(|_| desk.begin(200, now, 0).expect("room")).collect();
        assert!(desk.begin(200, now, 0).is_err());
        drop((held, little));
        assert_eq!(desk.book.lock().running, 0);
    }

    #[tokio::test]
    async fn what_is_too_much_to_be_recorded_is_counted() {
        let (desk, now) = (desk(), Instant::now());
        let rate = Dns::default().questions_per_second_max.get();
        let admitted = (0..100_000).filter(|_| desk.admits(1, now, 0)).count();
        assert_eq!(admitted, (f64::from(rate) * limit::DNS_BURST_S) as usize);
        assert!(desk.admits(2, now, 0), "others have their own");
        assert_eq!(desk.unrecorded(), HashMap::from([(1, 100_000 - admitted as u64)]));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..100_000).filter(|_| desk.admits(1, later, 0)).count(), rate as usize);
        // Who is forgotten must not begin anew sooner than it would have as much anyway.
        for agent in 10..10 + 2 * u32::try_from(limit::DNS_AGENTS_MAX).expect("number") {
            let _ = desk.admits(agent, later, 0);
        }
        assert!(!desk.admits(1, later, 60));
        let unrecorded = desk.unrecorded();
        assert!(unrecorded.len() <= limit::DNS_AGENTS_MAX + 1);
        assert_eq!(desk.unrecorded(), HashMap::new(), "told once");
    }
}
