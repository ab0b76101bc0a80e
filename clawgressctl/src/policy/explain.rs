//! `policy explain`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clawgress_api::Status;
use clawgress_api::config::route::find;
use clawgress_api::config::{Resolve, excludes};
use clawgress_api::identity::{AgentId, PolicyOwner};
use clawgress_api::proto::Empty;
use clawgress_policy::fingerprint::Fingerprints;
use clawgress_policy::study::explain::{Explanation, Phase, Target, TlsReading, explain};
use clawgress_policy::study::{Body, Supposed, Texts, caret, places};
use clawgress_policy::{Host, PLATFORM_PREFIX, PolicyBundle, PolicySet, Scheme, Surroundings};
use jiff::Timestamp;

use self::supposed::Supposing;
use super::around::Around;
use super::files::Written;
use super::{Whose, agents, named, no_agent, surroundings};
use crate::ca;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

mod supposed;

#[derive(Args)]
pub struct Arguments {
    /// The agent: `NAME` or `TENANT/NAME`.
    agent: AgentId,
    /// A URL such as `https://api.example/x`, or an address such as `192.0.2.1:443`.
    to: String,
    /// Method, for a URL.
    #[arg(long)]
    method: Option<String>,
    /// Header field, for a URL, where policy asks for it: `Name: value`; as often as there is one.
    #[arg(long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// Protocol, for an address, such as `udp`.
    #[arg(long)]
    protocol: Option<String>,
    /// What a URL's host resolves to.
    #[arg(long)]
    address: Option<String>,
    /// Fingerprint of the client's hello, for `https`.
    #[arg(long)]
    ja4: Option<String>,
    /// The hello may hide another name than it shows, for `https`: it has Encrypted ClientHello (`"tls_ech"` to policy).
    #[arg(long)]
    ech: bool,
    /// Bytes of the request's body, where policy asks about it.
    #[arg(long, value_name = "BYTES")]
    body_bytes: Option<u64>,
    /// Media type of the body.
    #[arg(long, value_name = "TYPE")]
    media_type: Option<String>,
    /// What is found in the body, or in the call that it is, such as `private_key`; as often as there is something.
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
    /// Directory of the cgroup of that run, where policy asks for it.
    #[arg(long, value_name = "DIR")]
    cgroup: Option<String>,
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
    #[command(flatten)]
    supposing: Supposing,
}

/// What the policies were read from that a decision names.
struct Sources<'a> {
    own: &'a Written,
    platform: Option<&'a Written>,
}

/// Explains.
pub async fn run(client: &Client, output: Output, whose: Whose, arguments: Arguments) -> Result<(), Failure> {
    let target = target(&arguments).map_err(Failure::Refused)?;
    let cases = arguments.supposing.cases(&arguments.findings).map_err(Failure::Refused)?;
    if !cases.is_empty() && !matches!(target, Target::Url { .. }) {
        let what = "a call and an answer go with a URL such as `https://api.example/x`";
        return Err(Failure::Refused(what.to_owned()));
    }
    let Arguments { agent, policy, sets, at, executable, cgroup, certificate, mac, .. } = arguments;
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
    let seen = Fingerprints { executable, cgroup, certificate, mac };
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
    tell_route(client, &target).await;
    let supposed =
        Supposed { call: cases.call.as_ref(), tool: cases.tool.as_ref(), answer: cases.answer.as_ref() };
    let by = |reading| explain(&set, texts, agent, (&target, supposed), reading).in_state(agent.state);
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
    let Arguments { to, method, protocol, address, ja4, ech, endpoint, .. } = arguments;
    let Arguments { body_bytes, media_type, findings, streams, headers, .. } = arguments;
    let target = Target::parse(to, method.as_deref(), protocol.as_deref(), address.as_deref())?;
    let target = if headers.is_empty() { target } else { target.with_headers(headers)? };
    // What is found in a call is said by the same word.
    let is_found = !findings.is_empty() && !arguments.supposing.is_of_call();
    let has_body = body_bytes.is_some() || media_type.is_some() || is_found || *streams;
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
    let target = if *ech { target.with_ech()? } else { target };
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

/// Says by which route the target of a URL is reached, and of what else `connect` is asked then.
async fn tell_route(client: &Client, target: &Target) {
    let Target::Url { host, port, ip, .. } = target else { return };
    let status: Result<Status, Failure> = async {
        let mut admin = client.connect().await?;
        client.document(admin.status(Empty {}).await)
    }
    .await;
    match status {
        Ok(status) => {
            let told = route_of(&status, host, *port, *ip);
            told.iter().for_each(|told| output::note(&format!("note: {}", output::clean(told))));
        }
        Err(failure) => output::note(&format!("note: the route can't be found out: {failure}")),
    }
}

/// In words, if there are routes.
fn route_of(status: &Status, host: &Host, port: u16, ip: Option<IpAddr>) -> Option<String> {
    let literal = match host {
        Host::Address(ip) => Some(*ip),
        Host::Name(_) => None,
    };
    let by_name = find(&status.routes, &host.to_string(), port, literal);
    let is_by_name = by_name.is_some_and(|(_, route)| route.resolve == Resolve::Parent);
    let found = match literal.or(ip) {
        Some(ip) if !is_by_name => find(&status.routes, &host.to_string(), port, Some(ip)),
        None if !is_by_name && status.routes.iter().any(|route| !route.networks.is_empty()) => {
            return Some(
                "which route is taken depends on what the name resolves to: name it by `--address`".into(),
            );
        }
        _ => by_name,
    };
    let Some((number, route)) = found else {
        return (!status.routes.is_empty()).then(|| "no route fits: it is reached direct".to_owned());
    };
    let told = format!("by route {number} it is reached {}", route.way());
    let parent = route.parent.as_ref().and_then(|name| status.parents.get(name));
    let Some(parent) = parent else { return Some(told) };
    let of = if is_by_name && literal.is_none() {
        "the parent's address instead"
    } else {
        "the parent's address, too"
    };
    Some(format!("{told}; `connect` is asked of {of}: explain {parent}"))
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
        print_phase(sources, phase, "")?;
    }
    if let Some(phase) = &explanation.with_ech {
        print_phase(sources, phase, ", where the hello may hide its name (`tls_ech`; ask with --ech)")?;
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

fn print_phase(sources: &Sources<'_>, phase: &Phase, of: &str) -> Result<(), Failure> {
    let says = match &phase.reason {
        Some(reason) => format!("deny ({reason})"),
        None => "allow".to_owned(),
    };
    output::line(&format!("\n{}{of}: {says}", phase.action))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_route_is_told_as_far_as_it_is_known() {
        let status = |routes: &str| {
            let json = format!(
                r#"{{"node":"gw","version":"0","revision":0,"generation":0,"agents":0,"datapath":null,"l7":[],"proxies":[],
                     "audit_records":0,"warnings":[],"parents":{{"corp":"10.1.0.5:3128"}},"routes":[{routes}]}}"#
            );
            serde_json::from_str::<Status>(&json).expect("status")
        };
        let named = r#"{"hosts":["a.test"],"parent":"corp","resolve":"parent"}"#;
        let some = status(&format!(r#"{named},{{"networks":["192.0.2.0/24"],"source":["198.51.100.7"]}}"#));
        let last = status(r#"{"parent":"corp"}"#);
        for (status, host, ip, want) in [
            (
                &some,
                "a.test",
                None,
                Some(
                    "by route 1 it is reached through the parent proxy `corp`, which resolves names; `connect` is asked of the parent's address instead: explain 10.1.0.5:3128",
                ),
            ),
            (
                &some,
                "b.test",
                None,
                Some("which route is taken depends on what the name resolves to: name it by `--address`"),
            ),
            (&some, "b.test", Some("192.0.2.1"), Some("by route 2 it is reached direct, from 198.51.100.7")),
            (&some, "203.0.113.1", None, Some("no route fits: it is reached direct")),
            (
                &last,
                "b.test",
                None,
                Some(
                    "by route 1 it is reached through the parent proxy `corp`, which is given addresses; `connect` is asked of the parent's address, too: explain 10.1.0.5:3128",
                ),
            ),
            (&status(""), "b.test", None, None),
        ] {
            let host = Host::parse(host).expect("host");
            let ip = ip.map(|ip: &str| ip.parse().expect("address"));
            assert_eq!(route_of(status, &host, 443, ip).as_deref(), want, "{host} {ip:?}");
        }
    }
}
