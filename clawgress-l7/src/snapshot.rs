//! The snapshot L7 decides by: followed from control, swapped whole, acknowledged by generation.
//!
//! INVARIANT: with no snapshot, or one that control could not confirm for longer than the configured
//! time, there is no plan, and without a plan everything is denied. Nor is there one while a later generation waits to be
//! applied for too long, also because it was refused, or after this process stood still, until control has said what is live now: others may have gone
//! on without it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use clawgress_api::clock::Clock;
use clawgress_api::proto::snapshots_client::SnapshotsClient;
use clawgress_api::proto::{
    Applied, Confirm, Draining, Hello, Refused, UnknownKey, WatchRequest, watch_request,
};
use clawgress_api::{MESSAGE_BYTES_MAX, Revisions, Snapshot, proto};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::{Agent, PolicyOwner, ProviderKeyRecord, RootId, Roots, TrustSnapshot};
use clawgress_policy::{Policies, PolicySet};
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{boottime, limit};

mod parts;
mod prepared;
mod runs;
mod straggle;
mod wall;

pub use self::parts::Basis;
use self::parts::{Bases, Part};
use self::prepared::{Held, Preparing};
use self::runs::Runs;
use self::straggle::Straggle;

/// Acknowledgements on their way: one a snapshot, and snapshots come one by one.
const REQUESTS_MAX: usize = 4;
/// Shortest time between two messages of unknown keys.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_millis(100);
/// How long an agent that control took over is held here: until its list has surely come.
const HELD_FOR: Duration = Duration::from_secs(5);
/// [`Snapshots::lost_ms`] while control confirms the snapshot.
const CONFIRMED: u64 = u64::MAX;

/// One generation, ready to decide by.
#[derive(Debug)]
pub struct Plan {
    /// Its number.
    pub generation: u64,
    /// Which of all plans of this process it is: another has the same generation where other agents are quarantined.
    pub serial: u64,
    /// `None` before the first policy: deny.
    policies: Option<Policies>,
    /// Of each policy: what is the same in the next generation is taken from here.
    parts: BTreeMap<PolicyOwner, Part>,
    clock: Arc<dyn Clock>,
    /// Who is trusted to say who is who: what the next generation has of them is taken from here.
    roots: Arc<Roots>,
    /// Who is who.
    pub trust: TrustSnapshot,
    /// What local runs are.
    pub runs: Arc<Runs>,
    bases: Arc<Bases>,
    /// Keys of providers, sealed, by tenant and name.
    provider_keys: Arc<HashMap<String, ProviderKeyRecord>>,
}

/// The live plan.
#[derive(Debug)]
pub struct Snapshots {
    plan: ArcSwapOption<Plan>,
    /// Who is quarantined, by registry index: outside generations.
    quarantined: Mutex<Arc<BTreeSet<u32>>>,
    /// Of them, those that control names; and those that policy quarantined here, with when control took that over.
    named: Mutex<BTreeSet<u32>>,
    held: Mutex<BTreeMap<u32, Option<Instant>>>,
    changed: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
    /// Milliseconds since boot from which on nobody confirms the plan.
    lost_ms: AtomicU64,
    stale_after: Duration,
    /// An issuer whose keys may have been rolled over, for control to know.
    unknown_key: watch::Sender<Option<RootId>>,
    straggle: Straggle,
    /// What may come, and is not live.
    next: Held,
}

/// A number that no other plan of this process has.
fn serial() -> u64 {
    static PLANS: AtomicU64 = AtomicU64::new(0);
    PLANS.fetch_add(1, Ordering::Relaxed)
}

// === impl Plan ===

impl Plan {
    /// The plan of a snapshot. Whoever of those that are trusted can't be used is trusted for nothing, and the rest
    /// counts: one tenant's record must not keep every tenant's next policy from coming into force.
    fn new(document: &[u8], clock: Arc<dyn Clock>, former: Option<&Plan>) -> Result<Plan, String> {
        let snapshot: Snapshot<Box<RawValue>> =
            serde_json::from_slice(document).map_err(parts::unreadable)?;
        let parts = parts::parts(&snapshot, former.map(|plan| &plan.parts))?;
        let policies = parts::together(&parts)?;
        let bases = Arc::new(Bases::new(policies.as_ref(), &parts, &snapshot.revisions));
        let none = Roots::default();
        let (roots, refused) = Roots::renew(snapshot.roots, former.map_or(&none, |plan| &plan.roots));
        for error in refused {
            tracing::error!(%error, "not trusted, for the record can't be used; what it proved is refused");
        }
        let roots = Arc::new(roots);
        let trust = TrustSnapshot::new(snapshot.agents, snapshot.keys, snapshot.shared);
        let trust = trust.with_roots(Arc::clone(&roots));
        let runs = Arc::new(Runs::new(snapshot.runs, &trust));
        let generation = snapshot.generation;
        let keys = snapshot.provider_keys.into_iter().map(|key| (key.id.to_string(), key));
        let provider_keys = Arc::new(keys.collect());
        let serial = serial();
        Ok(Plan { generation, serial, policies, parts, clock, roots, trust, runs, bases, provider_keys })
    }

    /// The policies that decide for an agent, as they do now: its tenant's, under the platform's. `None` before the
    /// first of all: deny.
    #[must_use]
    pub fn policy(&self, agent: &Agent) -> Option<PolicySet> {
        self.of(agent).map(|policy| match policy.asks_time() {
            true => policy.at(self.clock.now().as_millisecond()),
            false => policy.clone(),
        })
    }

    /// The same, for what does not depend on the time.
    #[must_use]
    pub fn of(&self, agent: &Agent) -> Option<&PolicySet> {
        self.policies.as_ref().map(|policies| policies.of(agent.id.tenant()))
    }

    /// Whether policy may oblige what of an agent stays unread to something.
    #[must_use]
    pub fn obliges_opaque(&self, agent: &Agent) -> bool {
        self.of(agent).is_some_and(PolicySet::obliges_opaque)
    }

    /// Whether policy asks for what an agent did before.
    #[must_use]
    pub fn asks_history(&self, agent: &Agent) -> bool {
        self.of(agent).is_some_and(PolicySet::asks_history)
    }

    /// Whether policy asks what header fields or the query of an agent's requests say.
    #[must_use]
    pub fn asks_head(&self, agent: &Agent) -> bool {
        self.of(agent).is_some_and(PolicySet::asks_head)
    }

    /// A provider's key of a tenant.
    #[must_use]
    pub fn provider_key(&self, tenant: &str, name: &str) -> Option<&ProviderKeyRecord> {
        self.provider_keys.get(&format!("{tenant}/{name}"))
    }

    /// What decisions for the agents of a tenant rest on besides.
    #[must_use]
    pub fn basis(&self, tenant: &str) -> &Arc<Basis> {
        self.bases.of(tenant)
    }

    /// The same generation with these agents quarantined.
    fn with_quarantined(&self, quarantined: &Arc<BTreeSet<u32>>) -> Plan {
        Plan {
            generation: self.generation,
            serial: serial(),
            policies: self.policies.clone(),
            parts: self.parts.clone(),
            clock: Arc::clone(&self.clock),
            roots: Arc::clone(&self.roots),
            trust: self.trust.with_quarantined(quarantined),
            runs: Arc::clone(&self.runs),
            bases: Arc::clone(&self.bases),
            provider_keys: Arc::clone(&self.provider_keys),
        }
    }
}

// === impl Snapshots ===

impl Snapshots {
    /// With no plan yet.
    #[must_use]
    pub fn new(stale_after: Duration, clock: Arc<dyn Clock>) -> Self {
        Snapshots {
            plan: ArcSwapOption::empty(),
            quarantined: Mutex::default(),
            named: Mutex::default(),
            held: Mutex::default(),
            clock,
            changed: watch::channel(0).0,
            lost_ms: AtomicU64::new(boottime::now_ms()),
            stale_after,
            unknown_key: watch::channel(None).0,
            straggle: Straggle::default(),
            next: Held::default(),
        }
    }

    /// The plan to decide by.
    ///
    /// # Errors
    /// [`DropReason::SnapshotMissing`] if there is none, or none that counts any more.
    pub fn current(&self) -> Result<Arc<Plan>, DropReason> {
        if self.straggles() {
            return Err(DropReason::SnapshotMissing);
        }
        let lost = self.lost_ms.load(Ordering::Acquire);
        if lost != CONFIRMED && boottime::now().saturating_sub(Duration::from_millis(lost)) > self.stale_after
        {
            return Err(DropReason::SnapshotMissing);
        }
        self.plan.load_full().ok_or(DropReason::SnapshotMissing)
    }

    /// Whether the plan must not count, since this process may have missed a later one. Whoever carries something by a
    /// former answer asks this whenever it goes on.
    #[must_use]
    pub fn straggles(&self) -> bool {
        self.straggle.is_behind()
    }

    /// The generation of the last plan, 0 for none, for records of denials.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.plan.load().as_ref().map_or(0, |p| p.generation)
    }

    /// The generation of the last plan, and the revisions in it that decide for a tenant.
    #[must_use]
    pub fn decides(&self, tenant: Option<&str>) -> (u64, Option<Revisions>) {
        let plan = self.plan.load();
        let Some(plan) = plan.as_ref() else { return (0, None) };
        (plan.generation, tenant.and_then(|tenant| plan.basis(tenant).revisions))
    }

    /// Waits until there is a plan to decide by.
    pub async fn ready(&self) {
        let mut changes = self.subscribe();
        while self.current().is_err() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes note of a token by a key that an issuer's keys don't have. Of several at once control may hear of one: the
    /// others' next tokens tell of them.
    pub fn unknown_key(&self, issuer: &RootId) {
        self.unknown_key.send_replace(Some(issuer.clone()));
    }

    /// Tells when the plan changed, or began to age.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// When the plan stops counting, if nobody confirms it until then.
    #[must_use]
    pub fn stale_in(&self) -> Option<Duration> {
        let lost = self.lost_ms.load(Ordering::Acquire);
        (lost != CONFIRMED)
            .then(|| (Duration::from_millis(lost) + self.stale_after).saturating_sub(boottime::now()))
    }

    fn lose(&self) {
        let now = boottime::now_ms();
        // Only the first loss counts: a control that comes and goes without a snapshot confirms nothing.
        if self.lost_ms.compare_exchange(CONFIRMED, now, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.tell();
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Takes in who is quarantined: at once, and for whatever generation is live.
    fn isolate(&self, quarantined: &[u32]) {
        *self.named.lock() = quarantined.iter().copied().collect();
        self.isolate_all();
    }

    /// Quarantines an agent here, at once, whether control hears of it or not.
    pub fn hold(&self, agent: u32) {
        if self.held.lock().insert(agent, None).is_none() {
            self.isolate_all();
        }
    }

    /// Notes that control has taken over the quarantine of an agent that is held here.
    pub fn taken_over(&self, agent: u32) {
        if let Some(at) = self.held.lock().get_mut(&agent) {
            at.get_or_insert_with(Instant::now);
        }
    }

    /// Whether an agent that is held here is held until control takes it over.
    #[cfg(test)]
    pub fn waits_for_control(&self, agent: u32) -> bool {
        self.held.lock().get(&agent).is_some_and(Option::is_none)
    }

    /// Lets go of those that control took over a while ago: its own list has come since.
    pub fn let_go(&self) {
        let mut held = self.held.lock();
        let before = held.len();
        held.retain(|_, at| at.is_none_or(|at| at.elapsed() < HELD_FOR));
        let is_changed = held.len() != before;
        drop(held);
        if is_changed {
            self.isolate_all();
        }
    }

    fn isolate_all(&self) {
        // Held to the end, so that of two changes at once the later one is not lost.
        let mut current = self.quarantined.lock();
        let mut all = self.named.lock().clone();
        all.extend(self.held.lock().keys());
        let quarantined = Arc::new(all);
        *current = Arc::clone(&quarantined);
        if let Some(plan) = self.plan.load_full() {
            self.plan.store(Some(Arc::new(plan.with_quarantined(&quarantined))));
            self.tell();
        }
    }

    /// Whether the plan is of this generation.
    fn runs(&self, generation: u64) -> bool {
        self.plan.load().as_ref().is_some_and(|plan| plan.generation == generation)
    }

    async fn apply(&self, envelope: proto::Snapshot) -> Applied {
        let (generation, quarantine) = (envelope.generation, envelope.quarantine);
        self.isolate(&envelope.quarantined);
        if envelope.document.is_empty() && self.runs(generation) {
            return Applied { generation, error: String::new(), quarantine };
        }
        self.straggle.begin();
        let parsed = match self.next.take(envelope.commit) {
            Some(plan) => Ok(Ok(plan)),
            None => self.parse(envelope.document).await,
        };
        let error = match parsed {
            Ok(Ok(plan)) if plan.generation == generation => {
                let former = self.generation();
                if generation < former {
                    tracing::warn!(generation, former, "control went back to an older generation");
                }
                {
                    // Held to the end: whoever quarantines meanwhile would store the former plan again.
                    let quarantined = self.quarantined.lock();
                    self.plan.store(Some(Arc::new(plan.with_quarantined(&quarantined))));
                }
                self.lost_ms.store(CONFIRMED, Ordering::Release);
                self.straggle.end();
                self.tell();
                tracing::info!(generation, "snapshot applied");
                return Applied { generation, error: String::new(), quarantine };
            }
            Ok(Ok(_)) => "the snapshot's generation is not its envelope's".to_owned(),
            Ok(Err(error)) => error,
            Err(_) => "the snapshot could not be parsed".to_owned(),
        };
        // What control wants is not what runs, and may have been tightened: it waits on, as one that takes too long to
        // apply does, so that the former generation counts for as long as that may.
        self.lose();
        tracing::error!(generation, %error, "snapshot refused; the former generation counts for some seconds more");
        Applied { generation, error, quarantine }
    }

    /// Parses a document. A large policy takes long enough to hold up other tasks.
    fn parse(&self, document: Vec<u8>) -> JoinHandle<Result<Plan, String>> {
        let (clock, former) = (Arc::clone(&self.clock), self.plan.load_full());
        tokio::task::spawn_blocking(move || Plan::new(&document, clock, former.as_deref()))
    }

    /// Applies a snapshot as if control had sent it.
    #[cfg(test)]
    pub async fn apply_for_test(&self, envelope: proto::Snapshot) {
        let applied = self.apply(envelope).await;
        assert_eq!(applied.error, "");
    }

    /// Follows control for ever, and tells it when this worker drains, and why it gets no listeners.
    pub async fn follow(
        &self,
        channel: Channel,
        instance: String,
        draining: CancellationToken,
        refused: watch::Receiver<Option<String>>,
    ) {
        let watched = self.straggle.watch(|| self.tell());
        let clock = wall::watch(self.clock.as_ref(), || self.tell());
        tokio::join!(watched, clock, self.follow_control(channel, instance, draining, refused));
    }

    async fn follow_control(
        &self,
        channel: Channel,
        instance: String,
        draining: CancellationToken,
        mut refused: watch::Receiver<Option<String>>,
    ) {
        let mut pause = limit::REDIAL_FIRST;
        loop {
            match self.follow_once(channel.clone(), &instance, &draining, &mut refused).await {
                Ok(true) => pause = limit::REDIAL_FIRST,
                Ok(false) => {}
                Err(status) => {
                    tracing::warn!(%status, "control is away; the last snapshot is served until it is stale")
                }
            }
            self.lose();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(limit::REDIAL_MAX);
        }
    }

    /// Takes in what is live.
    async fn take_in(&self, envelope: proto::Snapshot) -> Result<Applied, tonic::Status> {
        let (generation, hollow) = (envelope.generation, envelope.document.is_empty());
        let confirms = envelope.confirms;
        let applied = self.apply(envelope).await;
        if hollow && !self.runs(generation) {
            // Control takes this worker for one that has it. A new stream begins with the whole.
            let told = format!("control sent generation {generation} without its document");
            return Err(tonic::Status::data_loss(told));
        }
        if applied.error.is_empty() && self.runs(generation) && self.straggle.confirm(confirms) {
            tracing::warn!(generation, "this process stood still; control has confirmed what it decides by");
            self.tell();
        }
        Ok(applied)
    }

    /// Follows one stream to its end; returns whether a snapshot came.
    async fn follow_once(
        &self,
        channel: Channel,
        instance: &str,
        draining: &CancellationToken,
        refused: &mut watch::Receiver<Option<String>>,
    ) -> Result<bool, tonic::Status> {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let hello = Hello {
            instance: instance.to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            prepares: true,
        };
        let say = |kind| WatchRequest { kind: Some(kind) };
        let gone = |_| tonic::Status::unavailable("the stream ended");
        requests.send(say(watch_request::Kind::Hello(hello))).await.map_err(gone)?;
        let mut client = SnapshotsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut snapshots = client.watch(ReceiverStream::new(receiver)).await?.into_inner();
        let (mut any, mut is_told) = (false, false);
        let (mut unknown_key, mut told) = (self.unknown_key.subscribe(), None::<Instant>);
        let mut stalls = self.straggle.stalls();
        // Of another stream, where numbers are others.
        self.next.clear();
        let mut preparing = Preparing::default();
        if refused.borrow().is_some() {
            // Who is at the other end now has not heard it.
            refused.mark_changed();
        }
        loop {
            let message = tokio::select! {
                message = snapshots.message() => message?,
                () = draining.cancelled(), if !is_told => {
                    is_told = true;
                    requests.send(say(watch_request::Kind::Draining(Draining {}))).await.map_err(gone)?;
                    continue;
                }
                // Asked on each stream anew, as long as nobody has answered.
                number = self.straggle.unconfirmed(&mut stalls) => {
                    let kind = watch_request::Kind::Confirm(Confirm { number });
                    requests.send(say(kind)).await.map_err(gone)?;
                    continue;
                }
                // A flood of made-up keys costs control a message now and then.
                Ok(()) = async {
                    if let Some(at) = told {
                        tokio::time::sleep_until((at + UNKNOWN_KEY_PAUSE).into()).await;
                    }
                    unknown_key.changed().await
                } => {
                    let Some(issuer) = unknown_key.borrow_and_update().clone() else { continue };
                    told = Some(Instant::now());
                    let kind = watch_request::Kind::UnknownKey(UnknownKey { issuer: issuer.to_string() });
                    requests.send(say(kind)).await.map_err(gone)?;
                    continue;
                }
                (number, parsed) = preparing.ended() => {
                    let kind = watch_request::Kind::Prepared(self.next.hold(number, parsed));
                    requests.send(say(kind)).await.map_err(gone)?;
                    continue;
                }
                // Its sender lives as long as this worker takes connections.
                Ok(()) = refused.changed() => {
                    let why = refused.borrow_and_update().clone().unwrap_or_default();
                    requests.send(say(watch_request::Kind::Refused(Refused { why }))).await.map_err(gone)?;
                    continue;
                }
            };
            let Some(envelope) = message else { return Ok(any) };
            if envelope.prepare != 0 {
                // Beside all else: what is live must not wait for it.
                preparing = Preparing::new(envelope.prepare, self.parse(envelope.document));
                continue;
            }
            let applied = self.take_in(envelope).await?;
            any |= applied.error.is_empty();
            requests.send(say(watch_request::Kind::Applied(applied))).await.map_err(gone)?;
        }
    }
}

#[cfg(test)]
mod tests;
