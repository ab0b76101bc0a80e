//! What is known of one request while it is served, and what its record has at its end. Must never end without one.

use std::sync::Arc;

use clawgress_api::CallCost;
use clawgress_ebpf_common::DropReason;
use clawgress_inspect::llm::answer::Answer;

use super::coming::Coming;
use super::conversation::Conversation;
use super::pace::Pace;
use super::receive::Back;
use super::renaming::Renaming;
use super::respond::is_of_attempt;
use super::tool::Listing;
use super::{Front, Granted, content, model};
use crate::counter::Counting;
use crate::decide::Ruling;
use crate::dial::{Opening, Taken};
use crate::exchange::{End, Exchange};
use crate::gateway::Gateway;

/// What is known of one request.
#[derive(Debug, Default)]
pub struct Context {
    pub(super) gateway: Option<Arc<Gateway>>,
    pub(super) front: Option<Arc<Front>>,
    pub(super) exchange: Option<Exchange>,
    pub(super) granted: Option<Arc<Granted>>,
    /// The body of the request, where policy asks about it.
    pub(super) content: content::Judged,
    /// How fast it comes.
    pub(super) pace: Option<Pace>,
    /// What reads the upstream's answer.
    pub(super) answer: Option<Coming>,
    /// What there was of one that could be read no longer.
    pub(super) partial: Option<Answer>,
    /// What policy asks about it.
    pub(super) back: Option<Back>,
    /// What gives the tools in it the client's names.
    pub(super) renaming: Option<Box<Renaming>>,
    /// What takes out of it what the agent may not use.
    pub(super) listing: Option<Box<Listing>>,
    /// The request that opens a WebSocket, as its connection knows it.
    pub(super) opening: Option<Arc<Opening>>,
    /// The place of its connection to a server, while it is not known whether there is one already.
    pub(super) taken: Option<Arc<Taken>>,
    /// The messages of a WebSocket that is read.
    pub(super) conversation: Option<Box<Conversation>>,
    /// Interim answers of the upstream's.
    pub(super) interims: u32,
    /// Status of the upstream's answer.
    pub(super) status: Option<u16>,
    /// Status of what the client got in its place.
    pub(super) replaced: Option<u16>,
    /// Why it failed.
    pub(super) reason: Option<DropReason>,
}

// === impl Context ===

impl Context {
    /// Writes the records that are still missing, once.
    pub(super) fn conclude(&mut self, status: Option<u16>) {
        let (Some(front), Some(mut exchange)) = (&self.front, self.exchange.take()) else { return };
        let (sent, received) = front.finish();
        let reason = self.reason.or(front.was_cut());
        if !exchange.is_decided() {
            match &self.granted {
                // It was allowed, but no upstream could be reached.
                Some(granted) if front.was_cut().is_none() => {
                    granted.way().into_iter().for_each(|way| exchange.way(way));
                    let _ = exchange.allow(&granted.ruling());
                }
                // Nothing of it went out: nor was it allowed any more, if that is why it was cut.
                _ => {
                    // One that its client took back while it was judged.
                    let left = if front.has_left() { DropReason::Timeout } else { DropReason::Draining };
                    exchange.deny(Ruling::deny("http", reason.unwrap_or(left)));
                }
            }
        }
        let conversation = self.conversation.take();
        conversation.iter().for_each(|conversation| conversation.tell(&mut exchange));
        let asked = conversation.zip(self.granted.as_ref()).zip(self.gateway.as_ref());
        let spoken = asked.and_then(|((mut conversation, granted), gateway)| {
            conversation.spent(gateway, granted.admitted())
        });
        self.back.take().into_iter().for_each(|back| back.tell(&mut exchange));
        if self.renaming.take().is_some_and(|renaming| renaming.is_changed()) {
            exchange.changed("answer: tools are called as their client calls them".to_owned());
        }
        if let Some((change, findings)) = self.listing.take().map(|listing| listing.finish()) {
            exchange.found(findings.iter());
            change.into_iter().for_each(|change| exchange.changed(change));
        }
        let is_unanswered = self.granted.as_ref().is_some_and(|granted| granted.is_unanswered());
        // Of what says that an answer is to come (1xx) none has to, but where it opens a WebSocket.
        let has_none = self.status.is_none_or(|status| status < 200 && status != 101);
        let is_left = is_unanswered && has_none && !reason.is_some_and(is_of_attempt);
        let is_success = self.status.is_some_and(|status| (200..300).contains(&status));
        let answer = self.answer.take().map(Coming::finish).or(self.partial.take());
        let is_queued = answer.as_ref().is_some_and(|answer| answer.is_queued);
        let is_unread = is_success && answer.is_none();
        let tokens = match self.granted.as_ref().and_then(|granted| granted.call()) {
            // Also of what can't be read, if anything came back.
            Some(call) if is_success => call.tokens(answer.unwrap_or_default(), true),
            // The provider has it, and nobody says what it counts: it never answered, its client did not wait, or it was cut.
            Some(call) if is_left => call.tokens(Answer::default(), true),
            Some(call) => answer.and_then(|answer| call.tokens(answer, false)),
            None => answer.and_then(model::tokens),
        };
        let (tokens, cost_spoken) = spoken.map_or((tokens, None), |(all, cost)| (Some(all), Some(cost)));
        let asked = self.granted.as_ref().zip(self.gateway.as_ref()).zip(tokens.as_ref());
        let cost = asked.map(|((granted, gateway), tokens)| match is_unread {
            // Speech, for one: what of it there was, nobody has counted.
            true => CallCost::Unpriced,
            false => gateway.calls.cost(granted.admitted(), tokens, gateway.audit.now()),
        });
        let call = self.granted.as_ref().and_then(|granted| granted.call());
        // Whoever asks how far it is, asks for nothing that costs.
        let cost =
            cost_spoken.or(cost).or((is_queued && is_success && call.is_some()).then_some(CallCost::Unknown));
        let tokens_counted = call.as_ref().and_then(|call| call.counting()).map(Counting::so_far);
        exchange.end(End { status, sent, received, reason, tokens, tokens_counted, cost });
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Pingora was cut off in the middle.
        self.conclude(self.status);
    }
}
