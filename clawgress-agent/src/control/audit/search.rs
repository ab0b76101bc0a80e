//! Searching the segments, newest first. Reads files only; what is not durable yet is not seen.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;

use clawgress_api::{AuditQuery, AuditRecord, RecordKind, Verdict};
use clawgress_ebpf_common::DropReason;
use clawgress_identity::AgentId;
use jiff::Timestamp;

use super::segments::Line;
use super::{Kept, segments};

/// Most records in one answer, so that a search stays within memory.
pub const SEARCH_RECORDS_MAX: u64 = 50_000;
/// Records a search returns if nobody says how many.
const SEARCH_RECORDS_DEFAULT: u64 = 1000;

/// A query, parsed.
#[derive(Clone, Debug)]
pub struct Filter {
    agent: Option<Who>,
    verdict: Option<Verdict>,
    kind: Option<RecordKind>,
    reason: Option<DropReason>,
    destination: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    limit: u64,
}

#[derive(Clone, Debug)]
enum Who {
    Anonymous,
    Agent(AgentId),
}

/// Why a query was refused.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Not an agent.
    #[error("{0}; or use `anonymous`")]
    Agent(#[from] clawgress_identity::AgentIdError),
    /// Not a reason.
    #[error("`{0}` is not a drop reason; known are: {known}", known = reasons())]
    Reason(String),
    /// Too many.
    #[error("a search returns at most {SEARCH_RECORDS_MAX} records; narrow it by time or destination")]
    Limit,
}

fn reasons() -> String {
    DropReason::ALL.iter().map(|r| r.name()).collect::<Vec<_>>().join(", ")
}

// === impl Filter ===

impl Filter {
    /// Parses a query.
    ///
    /// # Errors
    /// If the agent or the reason is none, or the limit is too high.
    pub fn new(query: &AuditQuery) -> Result<Self, FilterError> {
        if query.limit.is_some_and(|n| n > SEARCH_RECORDS_MAX) {
            return Err(FilterError::Limit);
        }
        let agent = match query.agent.as_deref() {
            None => None,
            Some("anonymous") => Some(Who::Anonymous),
            Some(name) => Some(Who::Agent(name.parse()?)),
        };
        let reason = match query.reason.as_deref() {
            None => None,
            Some(name) => {
                Some(DropReason::from_name(name).ok_or_else(|| FilterError::Reason(name.to_owned()))?)
            }
        };
        Ok(Filter {
            agent,
            verdict: query.verdict,
            kind: query.kind,
            reason,
            destination: query.destination.as_ref().map(|d| d.to_lowercase()),
            since: query.since,
            until: query.until,
            limit: query.limit.unwrap_or(SEARCH_RECORDS_DEFAULT),
        })
    }

    /// Whether `record` is asked for.
    #[must_use]
    pub fn matches(&self, record: &AuditRecord) -> bool {
        let who = match &self.agent {
            None => true,
            // Gaps and changes have no agent, but nobody was anonymous there.
            Some(Who::Anonymous) => {
                record.agent.is_none() && matches!(record.kind, RecordKind::Decision | RecordKind::Outcome)
            }
            Some(Who::Agent(id)) => {
                record.agent.as_ref().is_some_and(|a| a.tenant == id.tenant() && a.agent == id.name())
            }
        };
        let destination = self.destination.as_ref().is_none_or(|want| {
            let host = record.destination.host.as_ref().is_some_and(|h| h.to_lowercase().contains(want));
            host || record.destination.ip.is_some_and(|ip| ip.to_string().contains(want))
        });
        who && destination
            && self.verdict.is_none_or(|v| record.verdict == Some(v))
            && self.kind.is_none_or(|k| record.kind == k)
            && self.reason.is_none_or(|r| record.reason == Some(r))
            && self.since.is_none_or(|t| record.time >= t)
            && self.until.is_none_or(|t| record.time < t)
    }
}

/// The newest records that match, oldest first, with numbers below `before`.
pub(super) fn newest(directory: &Path, filter: &Filter, before: u64) -> io::Result<Vec<Kept>> {
    let limit = usize::try_from(filter.limit).unwrap_or(0);
    let mut found: VecDeque<Kept> = VecDeque::new();
    for first in segments::list(directory)?.into_iter().rev() {
        let wanted = limit.saturating_sub(found.len());
        if wanted == 0 {
            break;
        }
        if first >= before {
            continue;
        }
        let file = match File::open(segments::path(directory, first)) {
            Ok(file) => file,
            // Retention has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut matches = segment(file, first, before, filter, wanted)?;
        while let Some(kept) = matches.pop_back() {
            found.push_front(kept);
        }
    }
    Ok(found.into())
}

/// The newest `wanted` matches of one segment.
fn segment(
    file: File,
    first: u64,
    before: u64,
    filter: &Filter,
    wanted: usize,
) -> io::Result<VecDeque<Kept>> {
    let mut reader = BufReader::new(file);
    let mut matches = VecDeque::new();
    let mut line = Vec::new();
    for sequence in first..before {
        let (kind, _) = segments::read_line(&mut reader, &mut line)?;
        if kind == Line::End {
            break;
        }
        // Counted as a gap when the log was opened.
        let Ok(record) = serde_json::from_slice::<AuditRecord>(&line) else {
            tracing::debug!(sequence, "a line of the audit log is no record to this version");
            continue;
        };
        if filter.matches(&record) {
            if matches.len() == wanted {
                matches.pop_front();
            }
            matches.push_back(Kept { sequence, record: Arc::new(record) });
        }
    }
    Ok(matches)
}
