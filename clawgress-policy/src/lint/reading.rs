//! Which TLS is read in a configuration, as far as findings rest on it.

use cedar_policy_core::ast::{Pattern, PatternElem};

use super::facts::{HOST, Literal};
use super::formula::{Formula, Reading};
use super::moot::of_tls;
use super::search::Search;
use super::{Certainty, Lint, Linter, Rule};
use crate::host::quote;
use crate::vocabulary::ActionKind;

/// The port at which no clear text is expected.
const TLS_PORT: i64 = 443;

/// Where TLS is read: by `[intercept]`, or because the gateway itself starts it for an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadTls {
    is_on: bool,
    exclude: Vec<String>,
    /// What the names in `exclude` stand for, where they are no single hosts.
    below: Vec<Pattern>,
    endpoints: Vec<String>,
}

// === impl ReadTls ===

impl ReadTls {
    /// As the configuration says: whether there is an `[intercept]`, and what it excludes (a name, or `*.` and a name for
    /// what is below it); and the hosts of endpoints over TLS.
    #[must_use]
    pub fn new(intercept: Option<&[String]>, endpoints: Vec<String>) -> ReadTls {
        let exclude = intercept.unwrap_or_default().to_vec();
        let pattern = |entry: &String| {
            let rest = entry.strip_prefix('*')?.chars().map(PatternElem::Char);
            Some(Pattern::from(std::iter::once(PatternElem::Wildcard).chain(rest).collect::<Vec<_>>()))
        };
        let below = exclude.iter().filter_map(pattern).collect();
        ReadTls { is_on: intercept.is_some(), exclude, below, endpoints }
    }

    /// That the host is excluded, or that it isn't.
    fn excluded(&self, holds: bool) -> Formula<'_> {
        let names = self.exclude.iter().filter(|entry| !entry.starts_with('*'));
        let names = names.map(|name| host(name, holds));
        let below = self.below.iter();
        let below = below.map(|pattern| Formula::Is(Literal::Like(HOST.to_owned(), pattern, holds)));
        let all = names.chain(below).collect();
        if holds { Formula::Any(all) } else { Formula::All(all) }
    }
}

fn host(name: &str, holds: bool) -> Formula<'static> {
    Formula::Is(Literal::Text(HOST.to_owned(), name.into(), holds))
}

fn scheme(name: &str) -> Formula<'static> {
    Formula::Is(Literal::Text("context.scheme".to_owned(), name.into(), true))
}

impl Linter<'_> {
    /// Tells content rules of what is never read in this configuration: of hosts whose TLS `[intercept]` excludes, and of
    /// TLS alone where none is read.
    pub(super) fn never_read(&mut self, rules: &[Rule<'_>], search: &Search<'_>) {
        let Some(reading) = self.configuration.reading else { return };
        let members = self.set.inner().members();
        let http = ActionKind::Http;
        for rule in rules.iter().filter(|rule| super::moot::is_content(rule) && rule.actions.contains(&http))
        {
            let matches = Reading::whole(http, members).policy(rule.ast(), true);
            let tls = scheme("https");
            let is_read = reading.is_on && search.is_possible(&[&matches, &tls, &reading.excluded(false)]);
            let by_endpoint = |name: &String| search.is_possible(&[&matches, &tls, &host(name, true)]);
            if is_read || reading.endpoints.iter().any(by_endpoint) {
                continue;
            }
            let elsewhere = super::spans::Spans::of_longs([(0, TLS_PORT - 1), (TLS_PORT + 1, i64::MAX)]);
            let clear_port = Formula::Is(Literal::Number("context.port".to_owned(), elsewhere));
            let in_clear = search.is_possible(&[&matches, &scheme("http"), &clear_port]);
            if in_clear && !reading.is_on {
                // As any rule where no TLS is read: it is about clear text.
                continue;
            }
            let why = match reading.exclude.first() {
                Some(first) if reading.is_on => {
                    format!(
                        "`exclude` in [intercept] keeps TLS to its hosts from being read (`{}`)",
                        quote(first)
                    )
                }
                _ => "no TLS is read in this configuration".to_owned(),
            };
            let (message, remedy) = if in_clear {
                let remedy =
                    "take the hosts out of `exclude`, or bear in mind that it governs clear text alone";
                (format!("{why}, so that it counts for clear text alone"), remedy)
            } else {
                let remedy = "have TLS read ([intercept] in the configuration), or remove the policy";
                (format!("{why}, and it is about requests inside TLS"), remedy)
            };
            self.find(rule.cedar, None, (Certainty::Warning, Lint::NeverRead), message, remedy.into());
        }
    }

    /// What it means that nothing obliges to read some TLS: that none of these matches, of `tls` or of `tunnel`.
    pub(super) fn unread<'a>(&'a self, rules: &'a [Rule<'a>]) -> Vec<Formula<'a>> {
        let members = self.set.inner().members();
        let reads = rules.iter().filter(|rule| rule.effect == Some("intercept"));
        let unread = reads.flat_map(|rule| {
            let asked = rule.actions.iter().filter(|a| matches!(a, ActionKind::Tls | ActionKind::Tunnel));
            asked.map(|action| Reading::whole(*action, members).policy(rule.ast(), false))
        });
        unread.collect()
    }

    /// Whether what a permit of `tunnel` lets pass of TLS, which is `there`, where `content` is about is read all the same, by
    /// what obliges to it; or denied, where nobody can read it.
    pub(super) fn is_read_all_the_same(
        &self,
        content: &Formula<'_>,
        there: &Formula<'_>,
        unread: &[Formula<'_>],
        search: &Search<'_>,
    ) -> bool {
        if unread.is_empty() {
            return false;
        }
        let of_tls = of_tls();
        let passes = |tls| {
            let passes: Vec<&Formula<'_>> = [content, there, tls].into_iter().chain(unread).collect();
            search.is_possible(&passes)
        };
        if of_tls.iter().any(passes) {
            return false;
        }
        // Of what is excluded the effect counts for nothing.
        let excludes = self.configuration.reading.filter(|reading| reading.is_on);
        !excludes.is_some_and(|reading| {
            let excluded = reading.excluded(true);
            of_tls.iter().any(|tls| search.is_possible(&[content, there, tls, &excluded]))
        })
    }
}
