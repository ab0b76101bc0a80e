//! What the gate and the application of one connection tell each other.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::Poll;
use std::time::Instant;

use clawgress_ebpf_common::DropReason;
use http::HeaderMap;
use parking_lot::Mutex;
use pingora_proxy::Session;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::http2::Incoming;
use crate::identify::{self, Who};
use crate::limit;
use crate::page::{Client, Guise};
use crate::snapshot::Plan;
use crate::told::Told;

use super::alarm::Alarm;
use super::withheld::Withheld;
use super::{Admitted, Granted, Place};

static RESETS_TOLD: LazyLock<Told> = LazyLock::new(Told::default);

/// One connection's side of the client, or that of one of its streams.
#[derive(Debug)]
pub struct Front {
    /// The connection.
    pub connection: Connection,
    /// What its requests are taken for.
    pub place: Place,
    arrived: Mutex<Option<Result<Admitted, DropReason>>>,
    violation: Mutex<Option<DropReason>>,
    /// The request that is being served, from its grant to its end.
    live: Mutex<Option<Arc<Granted>>>,
    /// How many were granted: whoever watches over them is polled in the same turn of the task, and need not be woken.
    grants: AtomicU64,
    cut: OnceLock<DropReason>,
    /// What a connection's streams have in common.
    common: Arc<Common>,
    /// The body of a stream's request; of a connection there is none.
    incoming: Option<Arc<Incoming>>,
    /// Whether the request at hand is for an endpoint.
    is_endpoint: AtomicBool,
    /// Whether a credential came with it, or with its connection.
    has_presented: AtomicBool,
    /// Whether the client took back its stream.
    has_left: AtomicBool,
    /// Whether it is served also if the client takes it back.
    stays: AtomicBool,
    /// Whether nothing passes any more, either way.
    is_over: AtomicBool,
    /// Whether the request at hand is nobody's.
    is_nobodys: AtomicBool,
    /// Whether nothing that a server says before its answer goes on to a stream.
    is_hushed: AtomicBool,
    /// Whether what follows is no HTTP any more.
    is_upgraded: AtomicBool,
    /// What of an answer waits for what is in it.
    withheld: Withheld,
    /// What ends a stream's answer, behind what was kept back of it until that came: Pingora would have one or the other go.
    trailers: Mutex<Option<HeaderMap>>,
    /// When a conversation has to be looked at.
    alarm: Alarm,
    /// Requests whose head went on, and requests that were answered.
    begun: AtomicU64,
    answered: AtomicU64,
    /// Bytes of the request at hand, and of its response.
    read: AtomicU64,
    written: AtomicU64,
}

/// What a connection's streams have in common. Of HTTP/1 there is one.
#[derive(Debug)]
struct Common {
    /// Why the connection was cut.
    cut: OnceLock<DropReason>,
    /// Requests of nobody.
    strangers: AtomicU32,
    /// Streams that the client has reset while they were served, and since when they are counted.
    resets: Mutex<(u32, Instant)>,
    /// Of streams that are looked at while it is not known whose the connection is.
    unknown: Arc<Semaphore>,
    /// Cancelled when that is known.
    known: CancellationToken,
    /// No more requests are taken.
    ending: CancellationToken,
    /// There is no connection any more.
    gone: CancellationToken,
    /// Whom the source was bound to, under the plan of this serial number: the same for each request until the next plan.
    bound: Mutex<Option<(u64, Option<Who>)>>,
}

impl Default for Common {
    fn default() -> Self {
        Common {
            cut: OnceLock::new(),
            strangers: AtomicU32::new(0),
            resets: Mutex::new((0, Instant::now())),
            unknown: Arc::new(Semaphore::new(limit::STRANGER_STREAMS_MAX)),
            known: CancellationToken::new(),
            ending: CancellationToken::new(),
            gone: CancellationToken::new(),
            bound: Mutex::default(),
        }
    }
}

// === impl Front ===

impl Front {
    /// The front of a connection.
    #[must_use]
    pub fn new(connection: Connection, place: Place) -> Self {
        let common = Common::default();
        if matches!(place, Place::Explicit { is_known: true, .. } | Place::Tunnel { .. } | Place::Read(_)) {
            common.known.cancel();
        }
        Front::with(connection, place, Arc::new(common), None)
    }

    /// The front of a stream of `connection`, whose body comes by `incoming`.
    #[must_use]
    pub fn of_stream(connection: &Front, incoming: Arc<Incoming>) -> Self {
        let Front { connection, place, common, .. } = connection;
        Front::with(connection.clone(), place.clone(), Arc::clone(common), Some(incoming))
    }

    fn with(
        connection: Connection,
        place: Place,
        common: Arc<Common>,
        incoming: Option<Arc<Incoming>>,
    ) -> Self {
        Front {
            connection,
            place,
            arrived: Mutex::default(),
            violation: Mutex::default(),
            live: Mutex::default(),
            grants: AtomicU64::new(0),
            cut: OnceLock::new(),
            common,
            incoming,
            is_endpoint: AtomicBool::new(false),
            has_presented: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            stays: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            is_nobodys: AtomicBool::new(false),
            is_hushed: AtomicBool::new(false),
            is_upgraded: AtomicBool::new(false),
            withheld: Withheld::default(),
            trailers: Mutex::default(),
            alarm: Alarm::default(),
            begun: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// The front of a session.
    #[must_use]
    pub fn of(session: &Session) -> Option<Arc<Front>> {
        let digest = session.digest()?.proxy_digest.as_ref()?;
        digest.user_data.as_ref()?.downcast_ref::<Arc<Front>>().cloned()
    }

    /// Notes whether the request at hand is for an endpoint: its client takes the gateway for a server.
    pub fn serves_endpoint(&self, is_endpoint: bool) {
        self.is_endpoint.store(is_endpoint, Ordering::Relaxed);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_endpoint(&self) -> bool {
        self.is_endpoint.load(Ordering::Relaxed)
    }

    /// The agent its source is bound to, as [`identify::bound`] says; what it did before is to be found out anew.
    ///
    /// # Errors
    /// As there.
    pub(super) fn bound(&self, plan: &Plan) -> Result<Option<Who>, DropReason> {
        let mut known = self.common.bound.lock();
        let who = match &*known {
            Some((serial, who)) if *serial == plan.serial => who.clone(),
            _ => {
                let who = identify::bound(plan, &self.connection)?;
                known.insert((plan.serial, who)).1.clone()
            }
        };
        Ok(who.map(Who::later))
    }

    /// Notes whether a credential came with the request at hand, or with its connection.
    pub fn presents(&self, has_presented: bool) {
        self.has_presented.store(has_presented, Ordering::Relaxed);
    }

    /// Who is answered.
    #[must_use]
    pub fn client(&self) -> Client {
        let guise = match &self.place {
            Place::Read(_) => Guise::Server,
            _ if self.is_endpoint() => Guise::Endpoint,
            _ => Guise::Proxy,
        };
        Client { guise, has_presented: self.has_presented.load(Ordering::Relaxed) }
    }

    /// Notes where a request goes that is within something else, also one that is not understood.
    pub fn note_place(&self, exchange: &mut Exchange) {
        if let Place::Tunnel { host, port, .. } = &self.place {
            exchange.host(host, *port);
        }
        self.note_read(exchange);
    }

    /// Notes where a request goes whose TLS is read, also one that is not understood.
    pub fn note_read(&self, exchange: &mut Exchange) {
        if let Place::Read(opened) = &self.place {
            exchange.intercepted();
            exchange.offered(&opened.offered);
            exchange.host(&opened.host, opened.port);
        }
    }

    /// Notes that what follows is no HTTP any more.
    pub fn upgrade(&self) {
        self.is_upgraded.store(true, Ordering::Release);
    }

    /// Whether it is not.
    pub(super) fn is_upgraded(&self) -> bool {
        self.is_upgraded.load(Ordering::Acquire)
    }

    /// Has no interim answer go on any more to a stream's client. What a connection of HTTP/1 is told, Pingora sees to.
    pub(super) fn hush(&self) {
        self.is_hushed.store(true, Ordering::Relaxed);
    }

    /// Whether none does.
    pub(crate) fn is_hushed(&self) -> bool {
        self.is_hushed.load(Ordering::Relaxed)
    }

    /// What of an answer waits.
    #[must_use]
    pub fn withheld(&self) -> &Withheld {
        &self.withheld
    }

    /// Has these trailers end a stream's answer in place of the last of its body. A client of HTTP/1 is sent none.
    pub(super) fn trails(&self, trailers: HeaderMap) {
        if self.incoming.is_some() {
            *self.trailers.lock() = Some(trailers);
        }
    }

    /// What is to end a stream's answer in place of the last of its body, once.
    #[must_use]
    pub(crate) fn take_trailers(&self) -> Option<HeaderMap> {
        self.trailers.lock().take()
    }

    /// When a conversation has to be looked at.
    #[must_use]
    pub(super) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// The request whose head arrived last.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn take(&self) -> Result<Admitted, DropReason> {
        self.arrived.lock().take().unwrap_or(Err(DropReason::HttpMalformed))
    }

    /// The request whose head arrived and that nobody took: Pingora answered it by itself, or was cut off
    /// before.
    #[must_use]
    pub fn untaken(&self) -> Option<Result<Admitted, DropReason>> {
        self.arrived.lock().take()
    }

    /// Notes that a request is served from now on.
    pub fn serve(&self, granted: Arc<Granted>) {
        *self.live.lock() = Some(granted);
        self.grants.fetch_add(1, Ordering::Release);
    }

    /// Notes whether what is decided of the request at hand has to be done also if its client takes it back.
    pub fn stay(&self, stays: bool) {
        self.stays.store(stays, Ordering::Release);
    }

    /// Whether the request at hand may be dropped as it is if its client takes it back: it is being judged, and nothing that was
    /// decided of it would be left undone.
    #[must_use]
    pub(crate) fn may_leave(&self) -> bool {
        !self.stays.load(Ordering::Acquire) && self.live.lock().is_none()
    }

    /// Ends when the request at hand may be served no longer, and says why; between requests, when TLS may be read no
    /// longer, or everything ends.
    ///
    /// INVARIANT: polled by the task that serves, in each of its turns, after what serves: nothing else tells it that another request
    /// was granted. To be woken for that would cost each request a turn, and a turn may wake another thread.
    pub async fn forbidden(&self, gateway: &Gateway) -> DropReason {
        let mut changes = gateway.snapshots.subscribe();
        loop {
            let mut known = self.grants.load(Ordering::Acquire);
            let expires_at_s = match self.stands(gateway).await {
                Ok(expires_at_s) => expires_at_s,
                Err(reason) => return reason,
            };
            let mut again = pin!(async {
                match expires_at_s {
                    Some(expires_at_s) => gateway.until_judged_again(&mut changes, expires_at_s).await,
                    None => {
                        gateway.cut.cancelled().await;
                        Err(DropReason::Draining)
                    }
                }
            });
            loop {
                let more = poll_fn(|_| match self.grants.load(Ordering::Acquire) == known {
                    true => Poll::Pending,
                    false => Poll::Ready(()),
                });
                tokio::select! {
                    biased;
                    () = more => {}
                    again = &mut again => match again {
                        Ok(()) => break,
                        Err(reason) => return reason,
                    },
                }
                known = self.grants.load(Ordering::Acquire);
                match self.stands(gateway).await {
                    // What is waited for is the same, and is not waited for anew.
                    Ok(same) if same == expires_at_s => {}
                    Ok(_) => break,
                    Err(reason) => return reason,
                }
            }
        }
    }

    /// When what is served has to be judged again at last, or what is read between requests; `None` where there is neither.
    ///
    /// # Errors
    /// Why it may be no longer.
    async fn stands(&self, gateway: &Gateway) -> Result<Option<Option<i64>>, DropReason> {
        let granted = self.live.lock().clone();
        match (&granted, &self.place) {
            (Some(granted), _) => {
                granted.inform(gateway).await?;
                granted.judge_again(gateway).map(Some).map_err(|denied| denied.reason())
            }
            // What was opened for one request is there for the next. Of streams the connection's front sees to it.
            (None, Place::Read(opened)) if self.incoming.is_none() => {
                opened.judge_again(gateway).await.map(Some)
            }
            (None, _) => Ok(None),
        }
    }

    /// Notes why it is cut: a connection with all its streams, or one stream.
    pub fn cut(&self, reason: DropReason) {
        let cut = if self.incoming.is_some() { &self.cut } else { &self.common.cut };
        let _ = cut.set(reason);
    }

    /// Lets nothing pass any more, either way: what serves it finds that out where it reads or writes next.
    pub(crate) fn shut(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Whether nothing passes any more.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Notes that the client has reset a stream that was served; from too many on, its connection takes no more.
    pub(crate) fn was_reset(&self) {
        let mut resets = self.common.resets.lock();
        if resets.1.elapsed() > limit::STREAM_RESETS_LOOK {
            *resets = (0, Instant::now());
        }
        resets.0 += 1;
        if resets.0 > limit::STREAM_RESETS_SERVED_MAX && !self.ending().is_cancelled() {
            let peer = self.connection.peer;
            if let Some(untold) = RESETS_TOLD.turn_of(peer.ip(), Instant::now()) {
                tracing::warn!(%peer, untold, "a client resets streams without end; its connection takes no more");
            }
            self.ending().cancel();
        }
    }

    /// Why it was cut, or its connection.
    #[must_use]
    pub fn was_cut(&self) -> Option<DropReason> {
        self.cut.get().or(self.common.cut.get()).copied()
    }

    /// The body of the stream, if it is one's.
    #[must_use]
    pub fn incoming(&self) -> Option<Arc<Incoming>> {
        self.incoming.clone()
    }

    /// Cancelled when no more requests are taken: the connection ends after what is under way.
    #[must_use]
    pub fn ending(&self) -> &CancellationToken {
        &self.common.ending
    }

    /// Cancelled when there is no connection any more.
    #[must_use]
    pub fn gone(&self) -> &CancellationToken {
        &self.common.gone
    }

    /// Notes a request of nobody; whether more of them are answered on this connection.
    #[must_use]
    pub fn stranger(&self) -> bool {
        self.common.strangers.fetch_add(1, Ordering::Relaxed) + 1 < limit::STRANGER_REQUESTS_MAX
    }

    /// Notes that a request of the connection has told whose it is.
    pub fn identified(&self) {
        self.common.known.cancel();
    }

    /// Waits until a stream may be looked at: of a connection that has not told whose it is, few are at a time. `None` if its
    /// connection ends before.
    pub async fn turn(&self) -> Option<Option<OwnedSemaphorePermit>> {
        let common = &self.common;
        tokio::select! {
            biased;
            () = common.known.cancelled() => Some(None),
            () = common.ending.cancelled() => None,
            () = common.gone.cancelled() => None,
            turn = Arc::clone(&common.unknown).acquire_owned() => turn.ok().map(Some),
        }
    }

    /// Notes that the request at hand is nobody's.
    pub fn denies_nobody(&self) {
        self.is_nobodys.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_nobodys(&self) -> bool {
        self.is_nobodys.load(Ordering::Relaxed)
    }

    /// Whether the client waits for a 100 before it sends its body.
    #[must_use]
    pub fn awaits_continue(&self) -> bool {
        matches!(&*self.arrived.lock(), Some(Ok(admitted)) if admitted.awaits_continue)
    }

    /// What was wrong with a body.
    #[must_use]
    pub fn violation(&self) -> Option<DropReason> {
        *self.violation.lock()
    }

    /// Notes that a request was answered; returns its bytes and its response's.
    pub fn finish(&self) -> (u64, u64) {
        *self.live.lock() = None;
        self.answered.store(self.begun.load(Ordering::Acquire), Ordering::Release);
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.begun.load(Ordering::Acquire) > self.answered.load(Ordering::Acquire)
    }

    /// Notes a request.
    pub(crate) fn begin(&self, request: Result<Admitted, DropReason>, head_bytes: usize) {
        *self.arrived.lock() = Some(request);
        self.read.store(head_bytes as u64, Ordering::Relaxed);
        self.written.store(0, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that a client took back its stream.
    pub(crate) fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
    }

    /// Whether it did.
    pub(super) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    /// Notes what is wrong with a body.
    pub(crate) fn violate(&self, reason: DropReason) {
        *self.violation.lock() = Some(reason);
    }

    /// Counts bytes of a body.
    pub(crate) fn count_read(&self, n: usize) {
        self.read.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Counts bytes of a response.
    pub(crate) fn count_written(&self, n: usize) {
        self.written.fetch_add(n as u64, Ordering::Relaxed);
    }
}
