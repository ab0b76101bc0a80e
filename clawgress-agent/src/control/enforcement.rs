//! What L7 asks control while it enforces: units of limits that hold for all workers together, and the quarantine of
//! an agent. Must never grant what the ledger doesn't have, nor shorten a quarantine.
//!
//! The ledger lives as long as this role: after a restart every bucket is full, so that a limit may be exceeded by one
//! burst then. Leases that were granted before are settled in vain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clawgress_api::proto::enforcement_server::Enforcement;
use clawgress_api::proto::{
    CommitRequest, Document, Empty, HistoryRequest, ImposeRequest, QuotaScope, ReleaseRequest,
    ReserveRequest, ReserveResponse, ResolvedRequest,
};
use clawgress_policy::quota::{Answer, Ledger, Pace, QuotaError, ReservationId, Scope};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::model::Refusal;
use super::observe::Observations;
use super::quarantine::Quarantines;
use super::resolved::Resolved;

/// Longest policy id or request id that is taken, bytes.
const TEXT_BYTES_MAX: usize = 512;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub quarantines: Arc<Quarantines>,
    pub observations: Arc<Observations>,
    pub quota: Arc<Quota>,
    pub resolved: Arc<Resolved>,
}

/// The ledger, on a clock that only goes forward.
#[derive(Debug)]
pub struct Quota {
    ledger: Mutex<Ledger>,
    began: Instant,
}

impl Default for Quota {
    fn default() -> Self {
        Quota { ledger: Mutex::default(), began: Instant::now() }
    }
}

// === impl Quota ===

impl Quota {
    fn ask<T>(
        &self,
        question: impl FnOnce(&mut Ledger, Duration) -> Result<T, QuotaError>,
    ) -> Result<T, Status> {
        // The time is read under the lock, so that it never goes back.
        let mut ledger = self.ledger.lock();
        question(&mut ledger, self.began.elapsed()).map_err(|error| match error {
            QuotaError::Malformed => Status::invalid_argument(error.to_string()),
            QuotaError::IdUsed => Status::already_exists(error.to_string()),
            QuotaError::Unknown => Status::not_found(error.to_string()),
            QuotaError::Full => Status::resource_exhausted(error.to_string()),
        })
    }
}

fn id(bytes: &[u8]) -> Result<ReservationId, Status> {
    bytes
        .try_into()
        .map(ReservationId::from_be_bytes)
        .map_err(|_| Status::invalid_argument("the id of a reservation has 16 bytes"))
}

fn scope(scope: QuotaScope) -> Scope {
    let QuotaScope { limit, subject, count, period_s, burst, want, least } = scope;
    Scope { limit, subject: subject.into(), pace: Pace { count, period_s, burst }, want, least }
}

fn milliseconds(time: Duration) -> u64 {
    // Rounded up: who comes back then finds what was promised.
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[tonic::async_trait]
impl Enforcement for Service {
    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveResponse>, Status> {
        let ReserveRequest { id: name, scopes, life_ms, spent } = request.into_inner();
        let name = id(&name)?;
        let spent = if spent.is_empty() { None } else { Some(id(&spent)?) };
        let scopes: Vec<Scope> = scopes.into_iter().map(scope).collect();
        let life = Duration::from_millis(life_ms.into());
        let answer = self.quota.ask(|ledger, now| {
            // Before what may be refused: it takes room.
            spent.into_iter().for_each(|spent| ledger.spent(spent, now));
            ledger.reserve(name, &scopes, life, now)
        })?;
        Ok(Response::new(match answer {
            Answer::Granted(granted) => ReserveResponse { granted, scope: 0, wait_ms: 0 },
            Answer::Short { scope, wait } => ReserveResponse {
                granted: Vec::new(),
                scope: u32::try_from(scope).unwrap_or(u32::MAX),
                wait_ms: milliseconds(wait),
            },
        }))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<Empty>, Status> {
        let CommitRequest { id: name, used } = request.into_inner();
        let name = id(&name)?;
        self.quota.ask(|ledger, now| ledger.commit(name, &used, now))?;
        Ok(Response::new(Empty {}))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<Empty>, Status> {
        let name = id(&request.into_inner().id)?;
        self.quota.ask(|ledger, now| ledger.release(name, now))?;
        Ok(Response::new(Empty {}))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<Document>, Status> {
        let HistoryRequest { agent, host } = request.into_inner();
        if host.len() > TEXT_BYTES_MAX {
            return Err(Status::invalid_argument("the name of the host is too long"));
        }
        let history = self.observations.history(agent, &host);
        let json = serde_json::to_vec(&history).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(Document { json }))
    }

    async fn resolved(&self, request: Request<ResolvedRequest>) -> Result<Response<Empty>, Status> {
        self.resolved.tell(request.into_inner()).await?;
        Ok(Response::new(Empty {}))
    }

    async fn impose(&self, request: Request<ImposeRequest>) -> Result<Response<Empty>, Status> {
        let ImposeRequest { agent, seconds, policy, request, age_ms } = request.into_inner();
        if policy.len() > TEXT_BYTES_MAX || request.len() > TEXT_BYTES_MAX {
            return Err(Status::invalid_argument("the names are too long"));
        }
        let reason = format!("policy `{policy}` at request {request}");
        let seconds = (seconds != 0).then_some(seconds);
        let age = Duration::from_millis(age_ms);
        let quarantines = Arc::clone(&self.quarantines);
        // To its end, also where the worker doesn't wait for it.
        let imposed =
            tokio::spawn(async move { quarantines.impose(agent, seconds, reason, age).await }).await;
        match imposed.map_err(|error| Status::internal(format!("the quarantine broke off: {error}")))? {
            Ok(()) => Ok(Response::new(Empty {})),
            Err(refusal @ Refusal::Missing(_)) => Err(Status::not_found(refusal.to_string())),
            Err(refusal @ Refusal::Invalid(_)) => Err(Status::invalid_argument(refusal.to_string())),
            Err(refusal) => Err(Status::unavailable(refusal.to_string())),
        }
    }
}
