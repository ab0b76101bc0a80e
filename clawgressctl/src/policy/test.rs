//! `policy test`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use clawgress_api::identity::{Agent, AgentId, PolicyOwner};
use clawgress_policy::study::Texts;
use clawgress_policy::study::cases::{CASES_MAX, Case, CaseIntercept, CaseResult, Cases};
use clawgress_policy::study::explain::{Target, TlsReading};
use clawgress_policy::study::replay::Needs;
use clawgress_policy::{PolicySet, Surroundings, Zone};
use jiff::Timestamp;

use super::explain::{of_target, parsed};
use super::files::Written;
use super::{agents, named, zone};
use crate::client::Client;
use crate::failure::Failure;
use crate::input;
use crate::output::{self, Output};

#[derive(Args)]
pub struct Arguments {
    /// Cases: TOML with `[[agent]]` and `[[case]]`, or the same as YAML if the name ends in `.yaml` or `.yml`.
    cases: PathBuf,
    /// Number of a revision, or a policy file or directory; the live revision if absent.
    #[arg(long, value_name = "REVISION|PATH")]
    policy: Option<String>,
    /// Named sets of the policy file.
    #[arg(long, value_name = "FILE", requires = "policy")]
    sets: Option<PathBuf>,
    /// The platform's policy above it: a revision's number, or a file or directory. Without it a policy is tested alone.
    #[arg(long, value_name = "REVISION|PATH", conflicts_with = "platform")]
    under: Option<String>,
    /// Named sets of the platform's policy file.
    #[arg(long, value_name = "FILE", requires = "under")]
    under_sets: Option<PathBuf>,
    /// The wall clock's zone, such as `Europe/Berlin`: instead of `zone` of the cases, and of the node's.
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
}

/// Tests.
pub async fn run(
    client: &Client,
    output: Output,
    owner: &PolicyOwner,
    arguments: Arguments,
) -> Result<(), Failure> {
    let path = arguments.cases.display().to_string();
    let cases_text = input::read(&arguments.cases)?;
    let cases: Cases = input::yaml_or_toml_of(&arguments.cases, &cases_text)?;
    if cases.cases.is_empty() || cases.cases.len() > CASES_MAX {
        let count = cases.cases.len();
        return Err(Failure::Refused(format!(
            "`{path}` has {count} cases: write 1 to {CASES_MAX} `[[case]]`"
        )));
    }
    let written =
        named(client, owner, arguments.policy.as_deref().unwrap_or("0"), arguments.sets.as_ref()).await?;
    let platform = match &arguments.under {
        Some(name) => Some(named(client, &PolicyOwner::Platform, name, arguments.under_sets.as_ref()).await?),
        None => None,
    };
    let mut known: BTreeMap<AgentId, Agent> =
        cases.agents.iter().map(|agent| (agent.id.clone(), agent.agent())).collect();
    // Without an agent that runs, a file must bring all it names.
    if cases.cases.iter().any(|case| !known.contains_key(&case.agent)) {
        for agent in agents(client).await? {
            known.entry(agent.id.clone()).or_insert(agent);
        }
    }
    let now = Timestamp::now();
    let has_geo = cases.geo.asns.is_some() || cases.geo.countries.is_some();
    let mut surroundings = Vec::new();
    for text in [Some(&written), platform.as_ref()].into_iter().flatten() {
        let zone = match arguments.zone.as_ref().or(cases.zone.as_ref()) {
            Some(name) => zone::since(name, earliest(&cases, now)).map_err(Failure::Refused)?,
            None => of_node(client, text, earliest(&cases, now)).await?,
        };
        surroundings.push(if has_geo || !Needs::of(&text.bundle.text).geo {
            // Nothing of a node, so that a case comes out the same everywhere.
            Surroundings { geo: cases.geo.clone(), zone }
        } else {
            Surroundings { zone, ..super::surroundings(client, text).await? }
        });
    }
    let own = surroundings.first().cloned().unwrap_or_default();
    let mut set = parsed(&written, &own)?;
    let mut texts = Texts { own: written.in_force(&own), platform: None };
    if let (Some(platform), Some(surroundings)) = (&platform, surroundings.get(1)) {
        set = set.under(&parsed(platform, surroundings)?);
        texts.platform = Some(platform.in_force(surroundings));
    }
    let intercept = cases.intercept.as_ref();
    let asked = Asked { owner: &written.owner, set: &set, texts, intercept };
    let results = cases.cases.iter().enumerate().map(|(number, case)| {
        asked.one(case, &known, now).map_err(|wrong| {
            let place = input::place_of_case(&arguments.cases, &cases_text, number);
            input::misread(&arguments.cases, &cases_text, place, &wrong)
        })
    });
    let results = results.collect::<Result<Vec<_>, _>>()?;
    tell(output, &results)
}

/// A time before all that is asked; what can't be read as one is refused later.
fn earliest(cases: &Cases, now: Timestamp) -> Timestamp {
    let times = cases.cases.iter().filter_map(|case| case.at.as_ref()?.parse::<Timestamp>().ok());
    times.chain([now]).min().unwrap_or(now)
}

/// The node's zone, where the policy asks what a wall clock shows.
async fn of_node(client: &Client, text: &Written, from: Timestamp) -> Result<Zone, Failure> {
    if !Needs::of(&text.bundle.text).wall_clock {
        return Ok(Zone::default());
    }
    match super::surroundings(client, text).await {
        Ok(surroundings) => Ok(zone::widened(surroundings.zone, from)),
        Err(failure) => Err(Failure::Refused(format!(
            "policy asks what a wall clock shows, and the node's zone is not known ({failure}): write `zone = \"Europe/Berlin\"` above the cases, or name one with --zone"
        ))),
    }
}

/// What cases are asked of.
struct Asked<'a> {
    owner: &'a PolicyOwner,
    set: &'a PolicySet,
    texts: Texts<'a>,
    intercept: Option<&'a CaseIntercept>,
}

// === impl Asked ===

impl Asked<'_> {
    fn one(
        &self,
        case: &Case,
        known: &BTreeMap<AgentId, Agent>,
        now: Timestamp,
    ) -> Result<CaseResult, String> {
        let wrong = |what: String| format!("case `{}`: {what}", output::clean(&case.title()));
        let agent = known.get(&case.agent).ok_or_else(|| {
            wrong(format!("there is no agent `{}`: add it as `[[agent]]`, or register it", case.agent))
        })?;
        if let Some(tenant) = self.owner.tenant()
            && agent.id.tenant() != tenant
        {
            let told = format!(
                "no policy of tenant `{tenant}` is asked about `{}`: say whose with --tenant",
                agent.id
            );
            return Err(wrong(told));
        }
        let target = case.target().map_err(wrong)?;
        let at = match &case.at {
            Some(at) => at.parse::<Timestamp>().map_err(|_| {
                wrong(format!("`{}` is not a time: write such as `2026-11-22T14:00Z`", output::clean(at)))
            })?,
            None => now,
        };
        let reading = self.reading(case, &target);
        Ok(case.check(&self.set.at(at.as_millisecond()), self.texts, agent, &target, reading))
    }

    /// Whether TLS to the target is read: as the case says, else as the file does, and by the proxy's own rule.
    fn reading(&self, case: &Case, target: &Target) -> TlsReading {
        match case.read {
            Some(true) => TlsReading::On,
            Some(false) => TlsReading::Off,
            None => of_target(target, self.intercept.map(|intercept| intercept.exclude.as_slice())),
        }
    }
}

fn tell(output: Output, results: &[CaseResult]) -> Result<(), Failure> {
    let failed = results.iter().filter(|result| !result.differences.is_empty()).count();
    if output == Output::Json {
        output::json(&results)?;
    } else {
        for result in results {
            let word = if result.differences.is_empty() { "ok    " } else { "FAILED" };
            output::line(&format!("{word} {}", output::clean(&result.name)))?;
            for difference in &result.differences {
                output::line(&format!(
                    "       - {}: {}",
                    difference.what,
                    output::clean(&difference.wanted)
                ))?;
                output::line(&format!("       + {}: {}", difference.what, output::clean(&difference.got)))?;
            }
        }
        output::line(&format!("{} passed, {failed} failed", results.len() - failed))?;
    }
    if failed > 0 {
        return Err(Failure::Refused(format!("{failed} of {} cases failed", results.len())));
    }
    Ok(())
}
