//! What a client's hello opens that stays unread: what `tunnel` says of it, as the proxy asks.

use clawgress_ebpf_common::DropReason;
use clawgress_identity::Agent;

use super::{Half, Phase, TlsReading, ask};
use crate::{Host, Operation, PolicySet, TunnelProtocol};

/// What is supposed of a client's hello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    /// Its fingerprint; empty for none.
    pub ja4: String,
    /// Whether it may hide another name than it shows: it has `encrypted_client_hello` (RFC 9849).
    pub is_encrypted: bool,
}

/// What is said of TLS that a client begins.
pub(super) struct Began {
    pub(super) tls: Phase,
    /// Asked unless it is read.
    pub(super) tunnel: Phase,
    pub(super) is_read: bool,
    /// The same by a hello that may hide its name, where that is something else.
    pub(super) with_ech: Option<Box<Phase>>,
    pub(super) notes: Vec<String>,
}

/// `tls` and `tunnel` of a hello, and whether what follows is read.
pub(super) fn began(
    set: &PolicySet,
    agent: &Agent,
    (host, port): (&Host, u16),
    hello: &Offered,
    reading: TlsReading,
) -> Began {
    let tls = ask(set, agent, Operation::Tls { host, port, alpn: &[], ja4: &hello.ja4 });
    let of = |is_encrypted| {
        let mut tunnel = tunnelled(set, agent, (host, port), is_encrypted);
        let is_to_be_read = reads(&tls, &mut tunnel, reading == TlsReading::Excluded);
        (tunnel, is_to_be_read)
    };
    let (tunnel, is_to_be_read) = of(hello.is_encrypted);
    let with_ech = (tls.allowed && !hello.is_encrypted).then(|| of(true).0);
    let with_ech = with_ech.filter(|encrypted| *encrypted != tunnel).map(Box::new);
    let note = match reading {
        TlsReading::On => "its TLS is read, so that `http` is asked of each request instead of `tunnel`",
        TlsReading::Excluded => "`exclude` in [intercept] keeps its TLS from being read",
        TlsReading::Off => "no TLS is read: there is no [intercept] in the configuration",
    };
    let notes = is_to_be_read.then(|| note.to_owned()).into_iter().chain([hello.told()]).collect();
    Began { tls, tunnel, is_read: is_to_be_read && reading == TlsReading::On, with_ech, notes }
}

/// Whether TLS is to be read: since `tunnel` is not permitted, or by an effect, which counts for nothing where the host is
/// `excluded`. What `tunnel` says is told in the proxy's own words then.
pub(super) fn reads(tls: &Phase, tunnel: &mut Phase, excluded: bool) -> bool {
    let by = |phase: &Phase| {
        let all = phase.effects.iter().filter(|effect| effect.effect == "intercept");
        all.map(|effect| effect.policy.clone()).collect::<Vec<_>>()
    };
    let by_effect: Vec<String> =
        if excluded { Vec::new() } else { by(tls).into_iter().chain(by(tunnel)).collect() };
    let denied = [DropReason::PolicyDenied, DropReason::PolicyForbidden];
    let is_denied = denied.iter().any(|r| tunnel.reason.as_deref() == Some(r.name()));
    if !is_denied && (by_effect.is_empty() || !tunnel.allowed) {
        return false;
    }
    if tunnel.allowed {
        (tunnel.allowed, tunnel.policies) = (false, by_effect);
    }
    tunnel.reason = Some(DropReason::InspectionRequired.name().to_owned());
    true
}

/// `tunnel` of what follows a hello. One that may hide a name is held to what is said of `"tls"`.
fn tunnelled(set: &PolicySet, agent: &Agent, (host, port): (&Host, u16), is_encrypted: bool) -> Phase {
    let of = |protocol| ask(set, agent, Operation::Tunnel { host, port, protocol });
    let shown = of(TunnelProtocol::Tls);
    if is_encrypted { of(TunnelProtocol::TlsEch).held_to(shown) } else { shown }
}

/// Whether what is said of a hello that may hide a name gives way to what is said of one that shows it.
fn gives_way(own: (bool, Option<&String>), shown: (bool, Option<&String>)) -> bool {
    let denied = |(allowed, reason): (bool, Option<&String>)| {
        let reason = reason.and_then(|name| DropReason::from_name(name));
        (!allowed).then(|| reason.unwrap_or(DropReason::PolicyDenied))
    };
    TunnelProtocol::is_refused_as_tls(denied(own), denied(shown))
}

// === impl Offered ===

impl Offered {
    /// What is supposed of it, in words.
    pub(super) fn told(&self) -> String {
        let of_hello = if self.ja4.is_empty() { " and has no fingerprint" } else { "" };
        let encrypted = if self.is_encrypted {
            ", and `tunnel` for one that may hide for whom it is (`\"tls_ech\"`)"
        } else {
            ""
        };
        format!("`tls` is told for a hello that offers no ALPN{of_hello}{encrypted}")
    }
}

// === impl Phase ===

impl Phase {
    /// The phase, held to what another forbids and obliges to, and not to what it does not permit.
    fn held_to(mut self, shown: Phase) -> Phase {
        let more = shown.effects.into_iter().filter(|effect| !self.effects.contains(effect));
        let more: Vec<_> = more.collect();
        self.effects.extend(more);
        self.effects.sort_by(|a, b| (&a.policy, &a.effect).cmp(&(&b.policy, &b.effect)));
        if gives_way((self.allowed, self.reason.as_ref()), (shown.allowed, shown.reason.as_ref())) {
            (self.allowed, self.reason, self.policies) = (false, shown.reason, shown.policies);
            self.errors = shown.errors;
        }
        // What quarantines lets nothing pass, whatever else is said.
        if self.effects.iter().any(|effect| effect.effect == "quarantine") {
            (self.allowed, self.reason) = (false, Some(DropReason::AgentQuarantined.name().to_owned()));
        }
        let halves = [(&mut self.platform, shown.platform), (&mut self.tenant, shown.tenant)];
        for (own, shown) in halves {
            if let (Some(own), Some(shown)) = (own, shown) {
                own.held_to(shown);
            }
        }
        self
    }
}

// === impl Half ===

impl Half {
    fn held_to(&mut self, shown: Half) {
        if gives_way((self.allowed, self.reason.as_ref()), (shown.allowed, shown.reason.as_ref())) {
            *self = shown;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Supposed, Texts};
    use super::super::{Explanation, Target, TlsReading, explain};
    use super::*;
    use crate::{PolicyBundle, PolicyInForceRef, Surroundings};

    const TLS: &str = "@id(\"tls\") permit (principal, action == Action::\"tls\", resource);
        @id(\"http\") permit (principal, action == Action::\"http\", resource);";

    fn tunnel(id: &str, effect: &str, condition: &str) -> String {
        let effect = if effect.is_empty() { String::new() } else { format!("@effect(\"{effect}\") ") };
        let word = if effect.is_empty() && id.starts_with("no-") { "forbid" } else { "permit" };
        format!(
            "@id(\"{id}\") {effect}{word} (principal, action == Action::\"tunnel\", resource) when {{ {condition} }};"
        )
    }

    fn of(text: &str, is_encrypted: bool, reading: TlsReading) -> Explanation {
        let bundle = PolicyBundle { text: format!("{TLS}{text}"), sets: crate::NamedSets::default() };
        let (set, surroundings) = (PolicySet::parse(&bundle).unwrap(), Surroundings::default());
        let target = Target::parse("https://a.test/", None, None, None).unwrap();
        let target = if is_encrypted { target.with_ech().unwrap() } else { target };
        let own = PolicyInForceRef { text: &bundle.text, sets: &bundle.sets, surroundings: &surroundings };
        let texts = Texts { own, platform: None };
        explain(&set, texts, &crate::set::tests::agent("a"), (&target, Supposed::default()), reading)
    }

    fn said(explanation: &Explanation) -> (bool, Option<&str>, Vec<String>, Vec<String>) {
        (
            explanation.allowed,
            explanation.reason.as_deref(),
            explanation.policies().into_iter().collect(),
            explanation.effects().into_iter().collect(),
        )
    }

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    /// As the proxy has it: a permit of its own, and whatever forbids `"tls"` or obliges it to anything counts too.
    #[test]
    fn a_hello_that_may_hide_its_name_is_a_phase_of_its_own() {
        let (tls, both) =
            (r#"context.protocol == "tls""#, r#"["tls", "tls_ech"].contains(context.protocol)"#);
        let narrow = tunnel("narrow", "", tls);
        let shown = of(&narrow, false, TlsReading::Off);
        assert_eq!(said(&shown), (true, None, ids(&["narrow", "tls"]), ids(&[])));
        let phase = shown.with_ech.as_ref().unwrap();
        assert_eq!((phase.allowed, phase.reason.as_deref()), (false, Some("inspection_required")));
        let hidden = of(&narrow, true, TlsReading::Off);
        assert_eq!(said(&hidden), (false, Some("inspection_required"), ids(&[]), ids(&[])));
        assert!(hidden.with_ech.is_none() && hidden.notes.iter().any(|note| note.contains("tls_ech")));
        // It is read where that is on, and `http` asked of what is inside.
        let read = of(&narrow, true, TlsReading::On);
        assert!(read.is_read && read.allowed, "{read:?}");
        assert_eq!(read.decided, "http");

        let wide = tunnel("wide", "", both);
        assert_eq!(of(&wide, false, TlsReading::Off).with_ech, None, "nothing else is said of it");
        assert!(of(&wide, true, TlsReading::Off).allowed);
        // A forbid of "tls" holds it, and so does an effect on "tls"; one of its own is its own.
        let forbidden = format!("{wide}{}", tunnel("no-tls", "", tls));
        assert_eq!(
            said(&of(&forbidden, true, TlsReading::Off)),
            (false, Some("inspection_required"), ids(&["no-tls"]), ids(&[]))
        );
        let told = format!(
            "{wide}{}{}",
            tunnel("told", "alert", tls),
            tunnel("own", "alert", r#"context.protocol == "tls_ech""#)
        );
        assert_eq!(
            said(&of(&told, true, TlsReading::Off)),
            (true, None, ids(&["tls", "wide"]), ids(&["own", "told"]))
        );
        assert_eq!(said(&of(&told, false, TlsReading::Off)).3, ids(&["told"]));
        let held = format!("{wide}{}", tunnel("held", "quarantine", tls));
        assert_eq!(of(&held, true, TlsReading::Off).reason.as_deref(), Some("agent_quarantined"));
    }

    #[test]
    fn only_what_begins_tls_has_a_hello() {
        let of = |url: &str| Target::parse(url, None, None, None).unwrap().with_ech().map(drop);
        assert!(of("https://a.test/").is_ok());
        for other in ["http://a.test/", "dns://a.test", "192.0.2.1:443"] {
            assert!(of(other).unwrap_err().contains("https://"), "{other}");
        }
    }
}
