//! One governed exchange (a request or a tunnel) and its two audit records.
//!
//! INVARIANT: whatever was decided has exactly one decision record and one outcome record, also when
//! its task is cancelled.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clawgress_api::{
    AnswerFacts, Attributes, AuditRecord, CallCost, CountedTokens, EffectRef, ModelFacts, PayloadFacts,
    RecordKind, TokenUsage, ToolFacts, Verdict,
};
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::dns::watch::Finding;
use clawgress_inspect::ja4::Ja4;
use clawgress_policy::fingerprint::Fingerprints;
use clawgress_policy::head::{Head, HeadFacts};
use clawgress_policy::{Host, Scheme, TunnelProtocol, may_have_body};

use crate::audit::{Audit, Room};
use crate::carries;
use crate::connection::Connection;
use crate::decide::{Refused, Ruling};
use crate::enforce::reference;
use crate::gateway::Gateway;
use crate::identify::{Stranger, Who};
use crate::opaque::{Content, Offered};
use crate::page::{self, Denial};
use crate::route::Way;
use crate::slots::Slot;
use crate::snapshot::{Basis, Plan, Snapshots};

/// Most bytes of an agent's labels, and of what a hello offers, that a record holds: most have few, and a record is one
/// line of a log.
const ATTRIBUTE_BYTES_MAX: usize = 4096;

/// An exchange.
#[derive(Debug)]
pub struct Exchange {
    audit: Audit,
    /// Boxed, as what was read: every connection's task holds an exchange, in each of its steps.
    record: Box<AuditRecord>,
    began: Instant,
    /// Time spent waiting for the client, which is not the gateway's.
    waited: Duration,
    read: Box<Read>,
    stage: Stage,
    /// Whether policy stopped it after it was allowed.
    is_stopped: bool,
    /// The agent's, once it is known whose it is.
    slot: Option<Slot>,
}

#[derive(Debug)]
enum Stage {
    Open,
    Decided(Option<Room>),
    Ended,
}

/// What decisions on it read, besides what its record tells elsewhere.
#[derive(Debug, Default)]
struct Read {
    /// Who it was, and what the plan rests on that judged it last.
    by: Option<(Who, Arc<Basis>)>,
    scheme: Option<Scheme>,
    protocol: Option<TunnelProtocol>,
    alpn: Option<Vec<String>>,
    head: Option<serde_json::Value>,
    asked: Vec<&'static str>,
    has_body: Option<bool>,
    payload: Option<PayloadFacts>,
    llm: Option<Box<ModelFacts>>,
    answer: Option<Box<AnswerFacts>>,
    tools: Vec<ToolFacts>,
    tools_more: u64,
    /// What is being enforced.
    obliged: Vec<EffectRef>,
}

/// How it went.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// HTTP status the client got.
    pub status: Option<u16>,
    /// Bytes from the agent.
    pub sent: u64,
    /// Bytes to the agent.
    pub received: u64,
    /// How it failed after it was allowed.
    pub reason: Option<DropReason>,
    /// Tokens, when known.
    pub tokens: Option<TokenUsage>,
    /// Those that were counted here.
    pub tokens_counted: Option<CountedTokens>,
    /// What they cost.
    pub cost: Option<CallCost>,
}

// === impl Exchange ===

impl Exchange {
    /// An exchange that began now.
    #[must_use]
    pub fn new(gateway: &Gateway, connection: &Connection) -> Self {
        let mut record = Box::new(gateway.audit.record(gateway.snapshots.generation()));
        record.ingress = Some(connection.ingress);
        record.source = connection.source();
        record.destination.protocol = Some("tcp".to_owned());
        if !connection.is_explicit() {
            record.destination.ip = Some(connection.local.ip());
            record.destination.port = Some(connection.local.port());
        }
        Exchange {
            audit: gateway.audit.clone(),
            record,
            began: Instant::now(),
            waited: Duration::ZERO,
            read: Box::default(),
            stage: Stage::Open,
            is_stopped: false,
            slot: None,
        }
    }

    /// Takes a slot of the agent's, which it has until it ends.
    ///
    /// # Errors
    /// [`DropReason::Overloaded`] if the agent has as many under way as one may have.
    pub fn occupy(&mut self, gateway: &Gateway, who: &Who) -> Result<(), DropReason> {
        if self.slot.is_none() {
            self.slot = Some(gateway.slots.take(who.identity.agent.index)?);
        }
        Ok(())
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.request
    }

    /// What its client is told of a denial for this reason.
    #[must_use]
    pub fn denial(&self, reason: DropReason) -> Denial<'_> {
        // Of what failed otherwise, and of what lost its permission, they are those that had allowed it.
        let is_denied = self.is_stopped || self.record.verdict == Some(Verdict::Deny);
        let policies = if is_denied && page::is_of_policy(reason) { &self.record.policies[..] } else { &[] };
        Denial { reason, request: &self.record.request, policies }
    }

    /// Notes who it is, under which plan.
    pub fn agent(&mut self, who: &Who, plan: &Plan) {
        self.record.agent = Some(who.reference());
        let Fingerprints { executable, cgroup, mac, .. } = &**who.seen();
        self.record.source.mac = mac.as_deref().and_then(|mac| mac.parse().ok());
        if executable.is_some() || cgroup.is_some() {
            let fingerprint = self.record.fingerprint.get_or_insert_default();
            fingerprint.executable.clone_from(executable);
            fingerprint.cgroup.clone_from(cgroup);
        }
        self.record.generation = plan.generation;
        let basis = plan.basis(who.identity.agent.id.tenant());
        self.record.revisions = basis.revisions;
        self.read.by = Some((who.clone(), Arc::clone(basis)));
    }

    /// Notes what is known of who is nobody; returns why.
    pub fn stranger(&mut self, stranger: Stranger) -> DropReason {
        self.record.detail = stranger.detail;
        stranger.reason
    }

    /// Notes that it was judged again under the generation that is live now.
    pub fn under(&mut self, snapshots: &Snapshots) {
        let tenant = self.record.agent.as_ref().map(|agent| agent.tenant.as_str());
        (self.record.generation, self.record.revisions) = snapshots.decides(tenant);
    }

    /// Notes what a tunnel carries.
    pub fn content(&mut self, content: &Content) {
        let (protocol, alpn) = match content {
            Content::Tls(offered) => (offered.hello().protocol(), Some(offered.alpn.clone())),
            Content::Unknown => (TunnelProtocol::Unknown, None),
        };
        self.read.protocol = Some(protocol);
        self.read.alpn = alpn;
    }

    /// Notes what a request opens that is not read.
    pub fn carries(&mut self, protocol: TunnelProtocol) {
        self.read.protocol = Some(protocol);
    }

    /// Notes what the hello of the connection offered that a request was read of.
    pub fn offered(&mut self, offered: &Offered) {
        self.read.alpn = Some(offered.alpn.clone());
        self.hello(offered.ja4);
    }

    /// Notes where it goes, and whether its name looks as if it carried data.
    pub fn host(&mut self, host: &Host, port: u16) {
        self.record.destination.host = Some(host.to_string());
        self.record.destination.port = Some(port);
        if let Host::Address(ip) = host {
            self.record.destination.ip = Some(*ip);
        }
        // Of one exchange, one host: that of a tunnel may be another than what is read in it.
        self.record.findings.retain(|found| found != carries::HOST);
        self.found(carries::of_host(host).iter());
    }

    /// Notes the fingerprint of its hello.
    pub fn hello(&mut self, ja4: Ja4) {
        self.record.fingerprint.get_or_insert_default().ja4 = Some(ja4.to_string());
    }

    /// Notes the address that was refused.
    pub fn address(&mut self, ip: IpAddr) {
        self.record.destination.ip = Some(ip);
    }

    /// Notes the way that is taken. What a client dialled is not where it goes: of that, nothing is told any more.
    pub fn way(&mut self, way: &Way) {
        let destination = &mut self.record.destination;
        destination.ip = way.ip;
        destination.via = way.parent().map(|parent| parent.name.clone());
        destination.via_address = way.parent().map(|parent| parent.address);
    }

    /// Notes which way was refused, and why if that has to be told.
    pub fn refused(&mut self, refused: &Refused) {
        refused.way.iter().for_each(|way| self.way(way));
        refused.detail.iter().for_each(|detail| self.detail(detail));
    }

    /// Notes that its TLS is read.
    pub fn intercepted(&mut self) {
        self.record.intercepted = true;
    }

    /// Notes how a request is sent on.
    pub fn scheme(&mut self, scheme: Scheme) {
        self.read.scheme = Some(scheme);
    }

    /// Notes the HTTP request.
    pub fn request(&mut self, method: &str, path: &str) {
        self.record.destination.method = Some(method.to_owned());
        self.record.destination.path = Some(path.to_owned());
    }

    /// Notes what its header fields and its query say, as far as policy asks for it.
    pub fn said(&mut self, head: &Head) {
        let mentions = self.read.by.as_ref().and_then(|(_, basis)| basis.mentions.as_ref());
        let facts = mentions.map(|mentions| HeadFacts::of(head, mentions));
        self.read.head = facts.and_then(|facts| serde_json::to_value(facts).ok());
    }

    /// Notes how it travels, where that is not TCP.
    pub fn protocol(&mut self, protocol: &str) {
        self.record.destination.protocol = Some(protocol.to_owned());
    }

    /// Notes the type that is asked of DNS.
    pub fn query_type(&mut self, query_type: &str) {
        self.record.destination.method = Some(query_type.to_owned());
    }

    /// Notes in words what its outcome came of.
    pub fn detail(&mut self, detail: &str) {
        self.record.detail = Some(detail.to_owned());
    }

    /// Notes what the names look like that its agent has asked for.
    pub fn names(&mut self, findings: &[Finding]) {
        self.record.findings.extend(findings.iter().map(|finding| finding.name().to_owned()));
    }

    /// Notes whether a request has a body, where its method does not say that it has none.
    pub fn has_body(&mut self, method: &str, has_body: bool) {
        self.read.has_body = (has_body || may_have_body(method)).then_some(has_body);
    }

    /// Notes that policy asks about an action that is asked by name.
    pub fn asks(&mut self, action: &'static str) {
        if !self.read.asked.contains(&action) {
            self.read.asked.push(action);
        }
    }

    /// Notes what is known of what is sent, and all that was found in it.
    pub fn payload(&mut self, facts: PayloadFacts) {
        let is_of_names = |found: &str| Finding::ALL.iter().any(|finding| finding.name() == found);
        self.record.findings.retain(|found| found == carries::HOST || is_of_names(found));
        self.found(facts.findings.iter());
        self.read.payload = Some(facts);
    }

    /// Notes what is known of the model that is called, and what was found in that besides.
    pub fn call(&mut self, facts: ModelFacts, findings: &[String]) {
        self.read.llm = Some(Box::new(facts));
        self.found(findings.iter());
    }

    /// Notes what is sent to a tool server, how much more that is, and what was found in it besides.
    pub fn messages<'a>(
        &mut self,
        (facts, more): (Vec<ToolFacts>, u64),
        findings: impl Iterator<Item = &'a String>,
    ) {
        (self.read.tools, self.read.tools_more) = (facts, more);
        self.found(findings);
    }

    /// Notes what was found, each once.
    pub fn found<'a>(&mut self, findings: impl Iterator<Item = &'a String>) {
        for finding in findings {
            if !self.record.findings.contains(finding) {
                self.record.findings.push(finding.clone());
            }
        }
    }

    /// Notes what was changed of the request, or of its answer.
    pub fn changed(&mut self, change: String) {
        self.record.changes.push(change);
    }

    /// Notes what is known of what came back.
    pub fn answer(&mut self, facts: AnswerFacts) {
        self.read.answer = Some(Box::new(facts));
    }

    /// Notes by what it was stopped after it was allowed: of what the agent turned out to send, or gets.
    pub fn stopped(&mut self, ruling: &Ruling) {
        self.is_stopped = true;
        self.record.action = Some(ruling.action.to_owned());
        self.record.policies.clone_from(&ruling.policies);
    }

    /// Notes obligations that matched after it was decided: of what a client turned out to say.
    pub fn effects(&mut self, effects: &[EffectRef]) {
        for effect in effects {
            // Of each message of a conversation the same may follow.
            if !self.record.effects.contains(effect) {
                self.record.effects.push(effect.clone());
            }
        }
    }

    /// Notes what a ruling obliges to that is about to be enforced: it is told also where that never comes to its end.
    pub fn obliged(&mut self, ruling: &Ruling) {
        if let Some(duties) = &ruling.duties {
            self.read.obliged = duties.obligations.iter().map(|obligation| reference(obligation)).collect();
        }
    }

    /// Takes time spent waiting for the client out of the latency.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Whether it was decided.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        !matches!(self.stage, Stage::Open)
    }

    /// Waits while whoever asks is ahead of the log; with what quarantines it, for nothing.
    pub async fn keep_pace(&self, ruling: &Ruling) {
        if ruling.quarantines() {
            return;
        }
        let agent = self.record.agent.as_ref().and_then(|agent| agent.index);
        self.audit.keep_pace(agent.unwrap_or(0)).await;
    }

    /// Records that it is allowed. Only after this may a byte go on.
    ///
    /// # Errors
    /// [`DropReason::AuditUnavailable`] if the record can't be queued; it is then recorded as denied,
    /// or counted in a gap.
    pub fn allow(&mut self, ruling: &Ruling) -> Result<(), DropReason> {
        self.decide(ruling);
        match self.audit.put_and_reserve(&self.record) {
            Some(room) => {
                self.stage = Stage::Decided(Some(room));
                Ok(())
            }
            None => {
                self.stage = Stage::Open;
                self.deny(Ruling::deny(ruling.action, DropReason::AuditUnavailable));
                Err(DropReason::AuditUnavailable)
            }
        }
    }

    /// Records that it is denied. Does nothing if it was decided before.
    pub fn deny(&mut self, ruling: Ruling) {
        if self.is_decided() {
            return;
        }
        self.decide(&ruling);
        let room = self.audit.put_and_reserve(&self.record);
        if room.is_none() {
            self.audit.lose(self.record.agent.as_ref(), 2);
        }
        self.stage = Stage::Decided(room);
    }

    fn decide(&mut self, ruling: &Ruling) {
        self.record.attributes = self.read.attributes();
        let latency = self.began.elapsed().saturating_sub(self.waited);
        self.record.time = self.audit.now();
        self.record.action = Some(ruling.action.to_owned());
        self.record.policies.clone_from(&ruling.policies);
        let obliged = std::mem::take(&mut self.read.obliged);
        self.record.effects = if ruling.effects.is_empty() { obliged } else { ruling.effects.to_vec() };
        self.record.reason = ruling.verdict.err();
        self.record.verdict = Some(if ruling.verdict.is_ok() { Verdict::Allow } else { Verdict::Deny });
        self.record.latency_us = u64::try_from(latency.as_micros()).ok();
    }

    /// Records the outcome. Does nothing if nothing was decided, or it ended before.
    pub fn end(&mut self, end: End) {
        self.finish(|record| {
            record.status = end.status;
            record.bytes_sent = Some(end.sent);
            record.bytes_received = Some(end.received);
            record.reason = end.reason.or(record.reason);
            record.tokens = end.tokens;
            record.tokens_counted = end.tokens_counted;
            record.cost = end.cost;
        });
    }

    fn finish(&mut self, fill: impl FnOnce(&mut AuditRecord)) {
        let Stage::Decided(room) = std::mem::replace(&mut self.stage, Stage::Ended) else { return };
        // Without room the decision was lost too, and both are counted.
        let Some(room) = room else { return };
        let record = &mut *self.record;
        record.kind = RecordKind::Outcome;
        let decided = record.attributes.take();
        record.attributes = self.read.since(decided.as_deref());
        record.time = self.audit.now();
        record.latency_us = u64::try_from(self.began.elapsed().as_micros()).ok();
        fill(record);
        room.put(record);
    }
}

// === impl Read ===

impl Read {
    fn attributes(&self) -> Option<Box<Attributes>> {
        let (who, basis) = self.by.as_ref()?;
        let bytes = |texts: &mut dyn Iterator<Item = &String>| texts.map(String::len).sum::<usize>();
        let labels = &who.identity.agent.labels;
        let is_short = bytes(&mut labels.iter().flat_map(|(key, value)| [key, value])) <= ATTRIBUTE_BYTES_MAX;
        let alpn = self.alpn.as_ref().filter(|alpn| bytes(&mut alpn.iter()) <= ATTRIBUTE_BYTES_MAX);
        Some(Box::new(Attributes {
            scheme: self.scheme.map(|scheme| scheme.name().to_owned()),
            protocol: self.protocol.map(|protocol| protocol.name().to_owned()),
            alpn: alpn.cloned(),
            labels: (basis.asks_agent && is_short).then(|| labels.clone()),
            history: who.history().and_then(|history| serde_json::to_value(history).ok()),
            fingerprints: basis.asks_fingerprints.then(|| serde_json::to_value(&**who.seen()).ok()).flatten(),
            head: self.head.clone(),
            asked: self.asked.iter().map(|action| (*action).to_owned()).collect(),
            has_body: self.has_body,
            llm: self.llm.clone(),
            tools: self.tools.clone(),
            tools_more: self.tools_more,
            payload: self.payload.clone(),
            answer: None,
            zone: basis.zone.clone(),
            geo: basis.geo.clone(),
        }))
    }

    /// What was read since this was recorded: what came back, and what more was sent.
    fn since(&mut self, decided: Option<&Attributes>) -> Option<Box<Attributes>> {
        let payload = self.payload.take().filter(|now| decided.and_then(|a| a.payload.as_ref()) != Some(now));
        let llm = self.llm.take().filter(|now| decided.and_then(|a| a.llm.as_ref()) != Some(now));
        let tools = std::mem::take(&mut self.tools);
        let tools = if decided.is_some_and(|a| a.tools == tools) { Vec::new() } else { tools };
        let tools_more = if tools.is_empty() { 0 } else { self.tools_more };
        let since = Attributes {
            payload,
            llm,
            tools,
            tools_more,
            answer: self.answer.take(),
            ..Attributes::default()
        };
        (since != Attributes::default()).then(|| Box::new(since))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Its task was cancelled, which happens at the end of draining; the bytes are not known here.
        self.finish(|record| record.reason = record.reason.or(Some(DropReason::Draining)));
    }
}
