//! `policy explain`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clawgress_api::config::excludes;
use clawgress_api::identity::{AgentId, PolicyOwner};
use clawgress_policy::fingerprint::Fingerprints;
use clawgress_policy::study::explain::{Explanation, Phase, Target, TlsReading, explain};
use clawgress_policy::study::{Body, Texts, caret, places};
use clawgress_policy::{PLATFORM_PREFIX, PolicyBundle, PolicySet, Scheme, Surroundings};
use jiff::Timestamp;

use super::around::Around;
use super::files::Written;
use super::{Whose, agents, named, no_agent, surroundings};
use crate::ca;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

#[derive(Args)]
pub struct Arguments {
    /// The agent: `NAME` or `TENANT/NAME`.
    agent: AgentId,
    /// A URL such as `https://api.example/x`, or an address such as `192.0.2.1:443`.
    to: String,
    /// Method, for a URL.
    #[arg(long)]
    method: Option<String>,
    /// Protocol, for an address, such as `udp`.
    #[arg(long)]
    protocol: Option<String>,
    /// What a URL's host resolves to.
    #[arg(long)]
    address: Option<String>,
    /// Fingerprint of the client's hello, for `https`.
    #[arg(long)]
    ja4: Option<String>,
    /// Bytes of the request's body, where policy asks about it.
    #[arg(long, value_name = "BYTES")]
    body_bytes: Option<u64>,
    /// Media type of the body.
    #[arg(long, value_name = "TYPE")]
    media_type: Option<String>,
    /// What is found in the body, such as `private_key`; as often as there is something.
    #[arg(long = "finding", value_name = "NAME")]
    findings: Vec<String>,
    /// The body is so large that it streams, and not all of it was seen.
    #[arg(long)]
    streams: bool,
    /// The URL is asked of an endpoint: the gateway itself starts TLS, so that the request is read.
    #[arg(long)]
    endpoint: bool,
    /// SHA-256 of the executable of the agent's local run, where policy asks for it.
    #[arg(long, value_name = "SHA256")]
    executable: Option<String>,
    /// SHA-256 of its certificate or SVID, where policy asks for it.
    #[arg(long, value_name = "SHA256")]
    certificate: Option<String>,
    /// MAC address of its source, where policy asks for it.
    #[arg(long)]
    mac: Option<String>,
    /// Number of a revision, or a policy file or directory; the live revision if absent.
    #[arg(long, value_name = "REVISION|PATH")]
    policy: Option<String>,
    /// Named sets of the policy file.
    #[arg(long, value_name = "FILE", requires = "policy")]
    sets: Option<PathBuf>,
    /// For when: a time such as `2026-11-22T14:00Z`; now if absent.
    #[arg(long)]
    at: Option<Timestamp>,
}

/// What the policies were read from that a decision names.
struct Sources<'a> {
    own: &'a Written,
    platform: Option<&'a Written>,
}

/// Explains.
pub async fn run(client: &Client, output: Output, whose: Whose, arguments: Arguments) -> Result<(), Failure> {
    let target = target(&arguments).map_err(Failure::Refused)?;
    let Arguments { agent, policy, sets, at, executable, certificate, mac, .. } = arguments;
    let tenant = PolicyOwner::Tenant(agent.tenant().to_owned());
    // Without a word, the policy of the agent's own tenant.
    let owner = if whose.is_said() { whose.owner()? } else { tenant.clone() };
    if owner.tenant().is_some() && owner != tenant {
        return Err(Failure::Refused(format!(
            "`{agent}` is of {}, and no policy of {} is asked about it",
            tenant.told(),
            owner.told()
        )));
    }
    let written = named(client, &owner, policy.as_deref().unwrap_or("0"), sets.as_ref()).await?;
    let agents = agents(client).await?;
    let agent = agents.iter().find(|a| a.id == agent).ok_or_else(|| no_agent(&agent))?;
    let around = Around::new(client, written).await?;
    let set = around.policies.of(agent.id.tenant());
    let set = set.at(at.unwrap_or_else(Timestamp::now).as_millisecond());
    let seen = Fingerprints { executable, certificate, mac };
    let set = if seen == Fingerprints::default() { set } else { set.seeing(Arc::new(seen)) };
    let none = Written::from_bundle(&tenant, "nothing".to_owned(), PolicyBundle::default());
    let own = around.written.get(&tenant).unwrap_or(&none);
    let surroundings = surroundings(client, own).await?;
    let platform = around.written.get(&PolicyOwner::Platform);
    let above = match platform {
        Some(platform) => super::surroundings(client, platform).await?,
        None => Surroundings::default(),
    };
    let texts = Texts {
        own: own.in_force(&surroundings),
        platform: platform.map(|platform| platform.in_force(&above)),
    };
    let reading = reading(client, &target).await;
    let by = |reading| explain(&set, texts, agent, (&target, None), reading).in_state(agent.state);
    let mut explanation = by(reading.unwrap_or(TlsReading::Off));
    if reading.is_none() && explanation.allowed != by(TlsReading::On).allowed {
        // Denied, or allowed, by what nobody knows.
        (explanation.allowed, explanation.reason) = (true, None);
        explanation.unasked.extend(["tunnel".to_owned(), "http".to_owned()]);
    }
    let sources = Sources { own, platform };
    match output {
        Output::Json => output::json(&explanation)?,
        Output::Table => print(&sources, &explanation)?,
    }
    if !explanation.is_known() {
        let unasked = explanation.unasked.iter().map(|action| format!("`{action}`")).collect::<Vec<_>>();
        return Err(Failure::NotKnown(format!(
            "nothing that was asked denies it, but {} may: see the notes for what to name",
            unasked.join(", ")
        )));
    }
    if explanation.allowed {
        return Ok(());
    }
    let reason = explanation.reason.as_deref().unwrap_or("denied");
    Err(Failure::WouldDeny(format!("it would be denied by `{}`: {reason}", explanation.decided)))
}

fn target(arguments: &Arguments) -> Result<Target, String> {
    let Arguments { to, method, protocol, address, ja4, endpoint, .. } = arguments;
    let Arguments { body_bytes, media_type, findings, streams, .. } = arguments;
    let target = Target::parse(to, method.as_deref(), protocol.as_deref(), address.as_deref())?;
    let has_body = body_bytes.is_some() || media_type.is_some() || !findings.is_empty() || *streams;
    let body = Body {
        bytes: body_bytes.unwrap_or(0),
        streams: *streams,
        media_type: media_type.clone().unwrap_or_default(),
        findings: findings.clone(),
    };
    let target = if has_body { target.with_body(body)? } else { target };
    let target = match ja4 {
        Some(ja4) => target.with_hello(ja4.clone())?,
        None => target,
    };
    if *endpoint { target.by_endpoint() } else { Ok(target) }
}

/// Whether the node reads TLS to the target; `None` if that can't be found out.
async fn reading(client: &Client, target: &Target) -> Option<TlsReading> {
    let Target::Url { scheme: Scheme::Https, .. } = target else { return Some(TlsReading::Off) };
    match ca::authority(client).await {
        Ok(authority) => Some(of_target(target, authority.as_ref().map(|status| status.exclude.as_slice()))),
        Err(failure) => {
            output::note(&format!("note: whether TLS is read can't be found out: {failure}"));
            None
        }
    }
}

/// Whether TLS to the target is read, where it is (`exclude` of `[intercept]`) or isn't: as the proxy does.
pub fn of_target(target: &Target, exclude: Option<&[String]>) -> TlsReading {
    let (Target::Url { host, scheme: Scheme::Https, .. }, Some(exclude)) = (target, exclude) else {
        return TlsReading::Off;
    };
    let host = host.to_string();
    // No certificate is verified for a name with `_`.
    if excludes(exclude, &host) || host.contains('_') { TlsReading::Excluded } else { TlsReading::On }
}

/// The set, to be asked here, with what it rests on. Which zone that is is said where it may matter.
pub fn parsed(written: &Written, surroundings: &Surroundings) -> Result<PolicySet, Failure> {
    let set = PolicySet::parse_for(&written.owner, &written.bundle.text, &written.bundle.sets, surroundings)
        .map_err(|errors| written.refused(&errors.problems))?;
    if set.asks_time() {
        output::note(&format!(
            "note: conditions on the wall clock are answered in {}",
            output::clean(set.zone())
        ));
    }
    Ok(set)
}

fn print(sources: &Sources<'_>, explanation: &Explanation) -> Result<(), Failure> {
    let verdict = match &explanation.reason {
        _ if !explanation.is_known() => "allowed as far as it was asked".to_owned(),
        _ if explanation.allowed => "allowed".to_owned(),
        Some(reason) => format!("denied: {reason}"),
        None => "denied".to_owned(),
    };
    output::line(&format!("{verdict} (decided by `{}`)", explanation.decided))?;
    for phase in &explanation.phases {
        print_phase(sources, phase)?;
    }
    if let Some(opaque) = explanation.opaque.as_ref().filter(|_| !explanation.moot.is_empty()) {
        output::line(&format!("\nmoot, since `{opaque}` lets the content pass unread:"))?;
        for id in &explanation.moot {
            output::line(&format!("  {}", sources.shown(id)))?;
        }
    }
    for note in &explanation.notes {
        output::note(&format!("note: {}", output::clean(note)));
    }
    Ok(())
}

fn print_phase(sources: &Sources<'_>, phase: &Phase) -> Result<(), Failure> {
    let says = match &phase.reason {
        Some(reason) => format!("deny ({reason})"),
        None => "allow".to_owned(),
    };
    output::line(&format!("\n{}: {says}", phase.action))?;
    if phase.policies.is_empty() && !phase.allowed {
        output::line("  no policy permits it")?;
    }
    for id in &phase.policies {
        output::line(&format!("  by {}", sources.shown(id)))?;
    }
    for error in &phase.errors {
        output::line(&format!("  error in {}", output::clean(error)))?;
    }
    for effect in &phase.effects {
        output::line(&format!("  {} by {}", effect.effect, sources.shown(&effect.policy)))?;
    }
    for (name, half) in [("the platform", &phase.platform), ("the tenant", &phase.tenant)] {
        let Some(half) = half else { continue };
        let says = half.reason.as_deref().map_or("allow".to_owned(), |reason| format!("deny ({reason})"));
        let by = if half.policies.is_empty() {
            String::new()
        } else {
            format!(" by {}", half.policies.join(", "))
        };
        output::line(&format!("  {name} alone: {says}{by}"))?;
    }
    Ok(())
}

// === impl Sources ===

impl Sources<'_> {
    /// A policy's id and place, and its first line that is no annotation, with a caret.
    fn shown(&self, id: &str) -> String {
        let (written, name) = match (id.strip_prefix(PLATFORM_PREFIX), self.platform) {
            (Some(name), Some(platform)) => (platform, name),
            _ => (self.own, id),
        };
        let places = places(&written.bundle.text);
        let Some(place) = places.get(name) else { return format!("`{id}`") };
        let head = place.text.lines().take_while(|line| line.trim_start().starts_with('@')).count();
        let line = place.line.saturating_add(u32::try_from(head).unwrap_or(0));
        let column = if head == 0 { place.column } else { 1 };
        let shown = caret(&written.bundle.text, line, column).unwrap_or_default();
        let shown: String = shown.lines().map(|line| format!("\n    {line}")).collect();
        format!("`{id}` at {}{shown}", written.place(line))
    }
}
