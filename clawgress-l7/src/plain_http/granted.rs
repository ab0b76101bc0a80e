//! A request that may be sent: judged in every respect, and judged again while it is served.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use clawgress_ebpf_common::DropReason;
use clawgress_policy::head::Head;
use clawgress_policy::transform::Changes;
use clawgress_policy::{Host, Need, Operation, Scheme, TunnelProtocol};
use parking_lot::Mutex;
use pingora_core::protocols::ALPN;
use pingora_core::protocols::tls::CaType;

use crate::carries;
use crate::decide::{self, Ruling};
use crate::gateway::Gateway;
use crate::identify::Who;
use crate::intercept::Interception;
use crate::route::Way;
use crate::snapshot::Plan;

use super::came::Came;
use super::model::Facts;
use super::said::{self, Said};
use super::tool::Messages;
use super::web_socket::{Reading, Reads};
use super::{Admitted, Upgrade, web_socket};

/// No generation: whatever counts by one is judged anew.
const UNJUDGED: u64 = u64::MAX;

/// The request. Its parts never change; where it goes and under which generation, does.
#[derive(Debug)]
pub struct Granted {
    admitted: Admitted,
    who: Who,
    ways: Vec<Way>,
    /// What `http` said.
    ruling: Ruling,
    /// Which policies let it take each way.
    reach: Vec<(Way, Vec<String>)>,
    /// What its client dialled, if it was steered.
    steered_to: Option<SocketAddr>,
    /// Which of the ways is taken.
    attempt: AtomicUsize,
    /// The generation it was last judged under.
    generation: AtomicU64,
    /// What came of that, and of which plan and second.
    standing: Mutex<Option<Standing>>,
    /// What of it is changed before it is sent on, under that.
    changes: Mutex<Option<Arc<Changes>>>,
    /// What is known of its body, if policy asked about that when it came.
    said: Mutex<Option<Said>>,
    /// Whether its body has gone on, all of it.
    is_sent: AtomicBool,
    /// Whether an answer comes, and what is known of it, if policy asked about that when it came.
    is_answered: AtomicBool,
    came: Mutex<Option<Came>>,
    /// Which messages are read, of a WebSocket.
    reads: Mutex<Reads>,
}

/// What came of judging a request again. Of the same plan and second it would be the same.
#[derive(Clone, Copy, Debug)]
struct Standing {
    plan: u64,
    now_s: i64,
    expires_at_s: Option<i64>,
}

// === impl Granted ===

impl Granted {
    /// A request of `who` by judged `ways`, which `reach` has the policies of, granted by `ruling` under
    /// `generation`. A client that was steered dialled `steered_to`.
    #[must_use]
    pub fn new(
        admitted: Admitted,
        who: Who,
        (ways, reach): (Vec<Way>, Vec<(Way, Vec<String>)>),
        steered_to: Option<SocketAddr>,
        ruling: Ruling,
        generation: u64,
    ) -> Self {
        let (attempt, generation) = (AtomicUsize::new(0), AtomicU64::new(generation));
        let changes = Mutex::new(ruling.changes.clone());
        let (said, came, reads, standing) =
            (Mutex::default(), Mutex::default(), Mutex::default(), Mutex::default());
        let (is_sent, is_answered) = (AtomicBool::new(false), AtomicBool::new(false));
        Granted {
            admitted,
            who,
            ways,
            reach,
            steered_to,
            ruling,
            attempt,
            generation,
            standing,
            changes,
            said,
            is_sent,
            is_answered,
            came,
            reads,
        }
    }

    /// The request.
    #[must_use]
    pub fn admitted(&self) -> &Admitted {
        &self.admitted
    }

    /// Notes what is known of its body.
    pub fn says(&self, said: Said) {
        *self.said.lock() = Some(said);
    }

    /// What is known of the model that it calls.
    #[must_use]
    pub fn call(&self) -> Option<Arc<Facts>> {
        self.said.lock().as_ref().and_then(Said::call)
    }

    /// What is known of the messages to a tool server that it is.
    #[must_use]
    pub fn messages(&self) -> Option<Arc<Messages>> {
        self.said.lock().as_ref().and_then(Said::messages)
    }

    /// Notes which messages are read, of a WebSocket that it opens.
    pub fn will_read(&self, reads: Reads) {
        *self.reads.lock() = reads;
    }

    /// Which messages are.
    #[must_use]
    pub fn reads(&self) -> Reads {
        *self.reads.lock()
    }

    /// Notes that those that are only told of can't be read; which of them decide by now all the same.
    pub fn forgoes(&self, gateway: &Gateway, side: impl Fn(&mut Reads) -> &mut Reading) -> Reading {
        // Before policy is asked: whoever judges again later finds it so.
        *side(&mut self.reads.lock()) = Reading::Unread;
        let wanted = gateway.snapshots.current().and_then(|plan| {
            let who = self.who.under(&plan, gateway.now_s())?;
            let (ruling, wanted) = rule(gateway, &plan, &who, &self.admitted);
            ruling.verdict.map(|()| wanted)
        });
        wanted.map_or(Reading::Decides, |mut wanted| *side(&mut wanted))
    }

    /// Notes that its body has gone on.
    pub fn sent(&self) {
        self.is_sent.store(true, Ordering::Release);
    }

    /// Whether all of it has gone on, and nothing has come back.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.is_sent.load(Ordering::Acquire) && !self.is_answered.load(Ordering::Acquire)
    }

    /// Notes that an answer comes, and what is known of it, if policy asks about that.
    pub fn answers(&self, came: Option<Came>) {
        *self.came.lock() = came;
        self.is_answered.store(true, Ordering::Release);
    }

    /// Judges what comes back again, as far as it is known: what has gone on is not called back.
    fn judge_answer(&self, plan: &Plan, who: &Who) -> Result<(), DropReason> {
        if !self.is_answered.load(Ordering::Acquire) {
            return Ok(());
        }
        match &*self.came.lock() {
            Some(came) => came.rule(plan, who, &self.admitted).verdict,
            // Nobody asked when it came.
            None if decide::asks_receive(plan, who).1 => Err(DropReason::InspectionRequired),
            None => Ok(()),
        }
    }

    /// Judges its body again, or what is known of it, after the rest: what of it has gone on is not called back.
    fn judge_body(
        &self,
        gateway: &Gateway,
        plan: &Plan,
        who: &Who,
        ruling: Ruling,
    ) -> Result<Ruling, DropReason> {
        if self.is_sent.load(Ordering::Acquire) {
            return Ok(ruling);
        }
        match &*self.said.lock() {
            Some(said) => {
                let said = said.rule(gateway, plan, who, &self.admitted);
                said.verdict.map(|()| ruling.obliged_by(&said))
            }
            None => said::judge_unseen(gateway, plan, who, &self.admitted).map(|()| ruling),
        }
    }

    /// Who asked.
    #[must_use]
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// Whether it is sent over TLS, and the name that its server must prove.
    #[must_use]
    pub fn tls(&self) -> (bool, String) {
        match (self.admitted.scheme(), &self.admitted.host) {
            (Scheme::Https, host) => (true, host.to_string()),
            (Scheme::Http, _) => (false, String::new()),
        }
    }

    /// Which protocols it is offered to its server by. In clear there is nothing to choose by: a server is spoken to in HTTP/2
    /// whose client knows that it does.
    #[must_use]
    pub fn alpn(&self) -> ALPN {
        let is_known = self.admitted.is_http2 && self.admitted.is_direct;
        match self.admitted.scheme() {
            // Over HTTP/2 it would be opened otherwise (RFC 8441).
            _ if self.opens_web_socket() => ALPN::H1,
            // Pingora writes what comes by HTTP/2 without a length in chunks, whoever takes it.
            _ if !self.admitted.takes_chunks => ALPN::H1,
            Scheme::Https => ALPN::H2H1,
            Scheme::Http if is_known => ALPN::H2,
            Scheme::Http => ALPN::H1,
        }
    }

    /// Notes by which protocol its server is spoken to, if that had the choice and its clients are to be offered the same.
    pub fn spoken(&self, gateway: &Gateway, two: bool) {
        if let Some(interception) = gateway.interception.as_ref().filter(|_| self.is_intercepted())
            && self.alpn() == ALPN::H2H1
        {
            interception.spoke(self.who.identity.agent.index, &self.to(), two);
        }
    }

    /// Number of the endpoint it is a request to, from 1; 0 for none.
    #[must_use]
    pub fn endpoint(&self) -> u32 {
        self.admitted.upstream.as_ref().map_or(0, |upstream| upstream.number)
    }

    /// What its server's certificate must lead to; `None` where there is none.
    #[must_use]
    pub fn ca(&self, gateway: &Gateway) -> Option<Arc<CaType>> {
        match &self.admitted.upstream {
            Some(upstream) => upstream.ca.clone(),
            None if self.is_intercepted() => gateway.interception.as_ref().map(Interception::roots),
            None => None,
        }
    }

    /// Whether the TLS that it came by is read.
    #[must_use]
    pub fn is_intercepted(&self) -> bool {
        self.admitted.opened.is_some()
    }

    /// Whether it opens a WebSocket.
    #[must_use]
    pub fn opens_web_socket(&self) -> bool {
        self.admitted.upgrade == Upgrade::WebSocket
    }

    /// What of it is changed before it is sent on.
    #[must_use]
    pub fn changes(&self) -> Option<Arc<Changes>> {
        self.changes.lock().clone()
    }

    /// What granted it, by the way that is taken.
    #[must_use]
    pub fn ruling(&self) -> Ruling {
        let taken = self.way();
        let reach = self.reach.iter().find(|(way, _)| Some(way) == taken);
        self.ruling.clone().with(reach.map_or(&[], |(_, policies)| policies))
    }

    /// The host and the port that it is for.
    #[must_use]
    pub fn to(&self) -> (Host, u16) {
        (self.admitted.host.clone(), self.admitted.port)
    }

    /// The way that is taken, or was.
    #[must_use]
    pub fn way(&self) -> Option<&Way> {
        self.ways.get(self.attempt.load(Ordering::Relaxed))
    }

    /// What tells the connections apart that it may share with others, besides what Pingora looks at: the address that is
    /// dialled, and the name. `keys` are of this process.
    #[must_use]
    pub fn group(&self, is_charged: bool, keys: &RandomState) -> u64 {
        let agent = u64::from(self.who.identity.agent.index);
        // Requests by different endpoints share none: each has its own authorities to verify the server by. Nor do those that
        // a client sent over TLS with those that the gateway starts it for: their roots are others.
        let (endpoint, is_read) = (u64::from(self.endpoint()), u64::from(self.is_intercepted()));
        let alpn = self.alpn();
        let (most, least) = (u64::from(alpn.get_max_http_version()), u64::from(alpn.get_min_http_version()));
        let way = self.way();
        let route = u64::from(way.map_or(0, Way::number));
        let group = agent
            | u64::from(is_charged) << 32
            | is_read << 33
            | most << 34
            | least << 36
            | endpoint << 38
            | route << 48;
        match way.filter(|way| way.parent().is_some()) {
            // Pingora knows the parent proxy's address alone. Nobody can choose a destination with the hash of another.
            Some(way) => keys.hash_one((group, way.ip, self.admitted.host.to_string(), self.admitted.port)),
            None => group,
        }
    }

    /// Goes on to the next way; whether there is one. If not, the last one stays.
    pub fn try_next(&self) -> bool {
        let next = self.attempt.load(Ordering::Relaxed) + 1;
        let is_there = next < self.ways.len();
        if is_there {
            self.attempt.store(next, Ordering::Relaxed);
            // Of the ways the one that was taken is judged under each new plan: this one was not, then.
            self.generation.store(UNJUDGED, Ordering::Relaxed);
            *self.standing.lock() = None;
        }
        is_there
    }

    /// Lets it know its history, where policy asks for it by now.
    ///
    /// # Errors
    /// If control can't be asked.
    pub async fn inform(&self, gateway: &Gateway) -> Result<(), DropReason> {
        let plan = gateway.snapshots.current()?;
        let need = needs_history(&plan, &self.who, &self.admitted);
        gateway.histories.inform(need, &self.who, &self.admitted.host).await
    }

    /// Judges again, as of now; returns when what it rests on expires, in Unix seconds.
    ///
    /// # Errors
    /// What denies that it is served any longer.
    pub fn judge_again(&self, gateway: &Gateway) -> Result<Option<i64>, Box<Ruling>> {
        let denied = |reason| Box::new(Ruling::deny("http", reason));
        let plan = gateway.snapshots.current().map_err(denied)?;
        let now_s = gateway.now_s();
        let is_same = |standing: &Standing| (standing.plan, standing.now_s) == (plan.serial, now_s);
        if let Some(standing) = self.standing.lock().filter(is_same) {
            return Ok(standing.expires_at_s);
        }
        let who = self.who.under(&plan, now_s).map_err(denied)?;
        let is_judged = plan.generation == self.generation.load(Ordering::Relaxed);
        // Whoever waits for changes lets it know its history first, and judges then.
        let lacks_history = || {
            let need = || needs_history(&plan, &who, &self.admitted);
            who.history().is_none() && need() == Need::Decided
        };
        if !is_judged && !lacks_history() {
            let agent = &who.identity.agent;
            let (ruling, wanted) = rule(gateway, &plan, &who, &self.admitted);
            if ruling.verdict.is_err() {
                return Err(Box::new(ruling));
            }
            if !self.reads().covers(wanted) {
                return Err(denied(DropReason::InspectionRequired));
            }
            let ruling = self.judge_body(gateway, &plan, &who, ruling).map_err(denied)?;
            self.judge_answer(&plan, &who).map_err(denied)?;
            // Of what has not gone on yet, as policy has it now: a body that was changed is not changed again.
            let changes = ruling.transforms();
            let body =
                |changes: &Option<Arc<Changes>>| changes.as_ref().map(|c| c.body.clone()).unwrap_or_default();
            if !self.is_sent.load(Ordering::Acquire) && body(&changes) != body(&self.changes.lock()) {
                return Err(denied(DropReason::InspectionRequired));
            }
            *self.changes.lock() = changes;
            if let Some(way) = self.way() {
                let way = (std::slice::from_ref(way), self.admitted.port);
                decide::connect(&plan, agent, &gateway.own, way, self.steered_to)
                    .map_err(|refused| Box::new(refused.ruling))?;
            }
            self.generation.store(plan.generation, Ordering::Relaxed);
        }
        let expires_at_s = who.expires_at_s(&plan);
        if plan.generation == self.generation.load(Ordering::Relaxed) {
            *self.standing.lock() = Some(Standing { plan: plan.serial, now_s, expires_at_s });
        }
        Ok(expires_at_s)
    }
}

/// The ruling on a request, but for where it goes; and what of the messages of a WebSocket has to be read for it.
#[must_use]
pub fn rule(gateway: &Gateway, plan: &Plan, who: &Who, admitted: &Admitted) -> (Ruling, Reads) {
    let operation = operation(plan, who, admitted);
    let mut ruling = match &admitted.opened {
        Some(opened) => opened.rule(plan, who, operation),
        None => decide::read(plan, who, operation),
    };
    let is_failed = ruling.action == "http" && ruling.verdict == Err(DropReason::PolicyError);
    if is_failed && decide::needs_head(plan, who, operation) {
        // Of what comes twice, or can't be read, who sends it is told.
        ruling.verdict = Err(DropReason::HttpMalformed);
    }
    match admitted.upgrade {
        Upgrade::None | Upgrade::Other => (ruling, Reads::default()),
        Upgrade::WebSocket => web_socket::rule(gateway, plan, who, admitted, ruling),
    }
}

/// Who needs to know what `who` did before, for what [`rule`] asks.
pub fn needs_history(plan: &Plan, who: &Who, admitted: &Admitted) -> Need {
    if !plan.asks_history(&who.identity.agent) {
        // Nor does any of what is asked below.
        return Need::None;
    }
    let operation = operation(plan, who, admitted);
    let need = match &admitted.opened {
        Some(opened) => opened.needs_history(plan, who).max(decide::needs_history(plan, who, &[operation])),
        None => decide::read_needs_history(plan, who, operation),
    };
    let need = match said::unseen(admitted).filter(|_| decide::asks_send(plan, who)) {
        Some(body) => need.max(decide::send_needs_history(plan, who, body)),
        None if carries::is_asked(plan, who, admitted) => {
            need.max(decide::send_needs_history(plan, who, said::bodyless(admitted)))
        }
        None => need,
    };
    let may_call = admitted.upgrade == Upgrade::WebSocket || said::unseen(admitted).is_some();
    let need = if may_call { need.max(decide::call_needs_history(plan, who)) } else { need };
    let need = need.max(decide::receive_needs_history(plan, who));
    match admitted.upgrade {
        Upgrade::None | Upgrade::Other => need,
        Upgrade::WebSocket => {
            let need = need.max(decide::needs_history(plan, who, &[messages(admitted)]));
            if decide::asks_send(plan, who) {
                need.max(decide::send_needs_history(plan, who, web_socket::sent(admitted)))
            } else {
                need
            }
        }
    }
}

/// What policy is asked about what follows a request that opens a WebSocket.
fn messages(admitted: &Admitted) -> Operation<'_> {
    Operation::Tunnel { host: &admitted.host, port: admitted.port, protocol: TunnelProtocol::WebSocket }
}

/// What policy is asked about. What the head says is read where it asks for it.
fn operation<'a>(plan: &Plan, who: &Who, admitted: &'a Admitted) -> Operation<'a> {
    let is_asked = plan.asks_head(&who.identity.agent);
    Operation::Http {
        host: &admitted.host,
        port: admitted.port,
        scheme: admitted.scheme(),
        method: &admitted.method,
        path: &admitted.path,
        head: if is_asked { admitted.said() } else { Head::none() },
    }
}
