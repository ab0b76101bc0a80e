//! The client of the SPIFFE Workload API: it holds the streams of bundles open, so that each change is known as it comes.
//!
//! What a message says is complete: what is not in it is taken back (SPIFFE Workload API section 4.4). A bundle is
//! confirmed for as long as the streams are open, which the connection's own keep-alive vouches for.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::time::Duration;

use clawgress_api::socket;
use clawgress_api::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use clawgress_api::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, X509BundlesRequest, X509BundlesResponse,
};
use clawgress_identity::{BundleSource, Retry, RootId, SpiffeBundle, TrustDomainName};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Bundles, Entry, IGNORED_MAX, LOOK_AGAIN};
use crate::control::providers::bounded;

/// Largest message, bytes: bundles of two hundred trust domains with three certificates each fit.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How long a bundle counts as fresh after it was last confirmed, seconds: some looks at the streams.
pub(super) const FRESH_S: u32 = 10;
/// Longest wait for the first message of each stream.
const FIRST_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after each message but the first of a stream: whatever it sends, four messages a second are taken at most, each of
/// which makes a generation for each bundle that it changes. What it sends meanwhile waits in its own hands.
const MESSAGE_PAUSE: Duration = Duration::from_millis(250);
/// First pause after a connection ended, which doubles up to the longest, seconds: an agent of the node is soon back.
const PAUSE_S: (u32, u32) = (1, 30);
/// How long a connection lasts that ended for a reason of its own, and not because the other side flaps.
const LASTING: Duration = Duration::from_secs(60);
/// The header that shows that a request was meant for the Workload API (SPIFFE Workload Endpoint section 3).
const HEADER: &str = "workload.spiffe.io";

type Client = SpiffeWorkloadApiClient<Channel>;
/// Bundles by the SPIFFE ID of their trust domain.
type ByDomain = HashMap<String, Vec<u8>>;

/// What is wanted of it: whether anything, and whether keys for JWT-SVIDs too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    bundles: bool,
    keys: bool,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{} ({:?})", .0.message(), .0.code())]
    Status(#[from] Status),
    /// Of the stream of keys, which not every trust domain needs.
    #[error("it gives no keys for JWT-SVIDs: {} ({:?})", .0.message(), .0.code())]
    Keys(Status),
    #[error("it ended the stream")]
    Stream,
    #[error("it sent no first message within {} s", FIRST_TIME_MAX.as_secs())]
    Silence,
    /// Something else is wanted of it now.
    #[error("something else is wanted")]
    Otherwise,
}

/// What it has said on one connection.
#[derive(Debug, Default)]
struct Said {
    certificates: Option<ByDomain>,
    keys: Option<ByDomain>,
    /// Why its last message on either stream is not taken.
    refused: [Option<String>; 2],
    /// Number of its last message, of all connections.
    number: u64,
}

// === impl Bundles ===

impl Bundles {
    /// Holds a connection to the Workload API while somebody wants it, until `stop`.
    pub(super) async fn run_workload(&self, stop: CancellationToken) {
        let Some(at) = self.workload_api() else { return };
        let mut live = self.governor.watch();
        let mut number = 0;
        let mut spread = [0];
        // Without it gateways of one machine only ask together.
        let _ = getrandom::fill(&mut spread);
        let mut retry = Retry::new(PAUSE_S.0, PAUSE_S.1, spread[0]);
        loop {
            let wanted = self.wanted();
            if !wanted.bundles {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = live.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
                continue;
            }
            let begun = tokio::time::Instant::now();
            let client =
                Client::new(socket::workload_channel(at)).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.hold(client, wanted, &mut number) => match ended {
                    Ok(never) => match never {},
                    Err(ended) => ended,
                },
            };
            if matches!(ended, Ended::Otherwise) {
                continue;
            }
            if begun.elapsed() >= LASTING {
                retry.succeeded();
            }
            retry.failed(self.now_s());
            self.ended(&ended);
            self.wake.notify_one();
            let left_s = retry.until_s().saturating_sub(self.now_s()).clamp(1, i64::from(PAUSE_S.1));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(left_s.unsigned_abs())) => {}
            }
        }
    }

    fn wanted(&self) -> Wanted {
        let live = self.governor.live();
        let mut wanted = Wanted::default();
        for record in live.model.trust_domains.values() {
            if matches!(record.source, Some(BundleSource::WorkloadApi(_))) {
                wanted.bundles = true;
                wanted.keys |= !record.audiences.is_empty();
            }
        }
        wanted
    }

    /// Takes what comes of one connection until that ends.
    async fn hold(&self, mut client: Client, wanted: Wanted, number: &mut u64) -> Result<Infallible, Ended> {
        let mut said = Said::default();
        let mut certificates = first(client.fetch_x509_bundles(request(X509BundlesRequest {}))).await?;
        let mut keys = None;
        if wanted.keys {
            let stream = first(client.fetch_jwt_bundles(request(JwtBundlesRequest {}))).await;
            keys = Some(stream.map_err(of_keys)?);
        }
        let deadline = tokio::time::Instant::now() + FIRST_TIME_MAX;
        // Not anew with each message: whoever sends many would never be looked at.
        let mut look = tokio::time::interval(LOOK_AGAIN);
        loop {
            let is_first = tokio::select! {
                message = certificates.message() => said.certificates(message?.ok_or(Ended::Stream)?),
                message = next(&mut keys) => said.keys(message.map_err(Ended::Keys)?.ok_or(Ended::Stream)?),
                _ = look.tick() => {
                    if self.wanted() != wanted {
                        return Err(Ended::Otherwise);
                    }
                    if !said.is_whole(wanted) && tokio::time::Instant::now() > deadline {
                        return Err(Ended::Silence);
                    }
                    self.hear(&said, wanted);
                    continue;
                }
            };
            *number += 1;
            said.number = *number;
            if self.hear(&said, wanted) {
                self.wake.notify_one();
            }
            if !is_first {
                tokio::time::sleep(MESSAGE_PAUSE).await;
            }
        }
    }

    /// Takes what was said for each trust domain that follows it: what is new of it, and else that it still holds. Whether
    /// anything is new.
    fn hear(&self, said: &Said, wanted: Wanted) -> bool {
        if !said.is_whole(wanted) {
            return false;
        }
        let now_s = self.now_s();
        let mut entries = self.entries.lock();
        let mut names = BTreeSet::new();
        let mut is_new = false;
        for (id, entry) in entries.iter_mut() {
            if !matches!(entry.source, BundleSource::WorkloadApi(_)) {
                continue;
            }
            names.insert(entry.record.domain.clone());
            if entry.heard != said.number {
                entry.heard = said.number;
                entry.hear(id, said, now_s);
                is_new = true;
            } else if entry.is_live {
                entry.followed.confirm(now_s);
            }
        }
        drop(entries);
        self.foreign.lock().now = said.foreign(&names);
        is_new
    }

    /// Takes note that a connection ended.
    fn ended(&self, ended: &Ended) {
        let now_s = self.now_s();
        let is_denied = matches!(ended, Ended::Status(status) if status.code() == Code::PermissionDenied);
        for (id, entry) in self.entries.lock().iter_mut() {
            if !matches!(entry.source, BundleSource::WorkloadApi(_)) {
                continue;
            }
            if is_denied {
                // All of them are taken back (SPIFFE Workload API section 5.2.2).
                entry.followed.withdraw();
            }
            entry.failed(id, format!("the Workload API: {ended}"), now_s);
        }
    }
}

// === impl Entry ===

impl Entry {
    fn hear(&mut self, id: &RootId, said: &Said, now_s: i64) {
        if let Some(refused) = said.refused.iter().flatten().next() {
            return self.failed(id, refused.clone(), now_s);
        }
        let key = format!("spiffe://{}", self.record.domain);
        let of = |all: &Option<ByDomain>| all.as_ref().and_then(|all| all.get(&key)).cloned();
        let (certificates, keys) = (of(&said.certificates), of(&said.keys));
        if certificates.is_none() && keys.is_none() {
            self.followed.withdraw();
            return self.failed(id, "the Workload API has no bundle of this trust domain".to_owned(), now_s);
        }
        let document =
            SpiffeBundle::of_workload_api(&certificates.unwrap_or_default(), &keys.unwrap_or_default());
        match document.and_then(|document| self.followed.take(&document, FRESH_S, now_s)) {
            Ok(_) => {
                self.succeeded();
                self.is_live = true;
            }
            Err(error) => self.failed(id, format!("the Workload API: {error}"), now_s),
        }
    }
}

// === impl Said ===

impl Said {
    /// Takes a message of certificates. Whether it is the first one.
    fn certificates(&mut self, message: X509BundlesResponse) -> bool {
        let why = if message.bundles.is_empty() {
            Some("the Workload API sent no bundles, where some must be")
        } else if message.crl.is_empty() {
            None
        } else {
            // INVARIANT: what may be revoked is not trusted because its list is not read.
            Some("the Workload API sent revocation lists, which are not supported")
        };
        let [refused, _] = &mut self.refused;
        *refused = why.map(str::to_owned);
        self.certificates.replace(message.bundles).is_none()
    }

    /// Takes a message of keys. Whether it is the first one.
    fn keys(&mut self, message: JwtBundlesResponse) -> bool {
        let [_, refused] = &mut self.refused;
        let is_empty = message.bundles.is_empty();
        *refused = is_empty.then(|| "the Workload API sent no key sets, where some must be".to_owned());
        self.keys.replace(message.bundles).is_none()
    }

    /// Whether it has said all that is wanted.
    fn is_whole(&self, wanted: Wanted) -> bool {
        self.certificates.is_some() && (self.keys.is_some() || !wanted.keys)
    }

    /// Of what else it has bundles, in words that may be shown.
    fn foreign(&self, names: &BTreeSet<TrustDomainName>) -> BTreeSet<String> {
        let all = self.certificates.iter().chain(&self.keys).flat_map(HashMap::keys);
        let is_foreign =
            |key: &&String| TrustDomainName::of_workload_api(key).is_none_or(|name| !names.contains(&name));
        all.filter(is_foreign).take(IGNORED_MAX).map(|key| bounded(key)).collect()
    }
}

/// A request as every one has to be.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HEADER, MetadataValue::from_static("true"));
    request
}

/// The stream that a call opens, which it has to do in time.
async fn first<T>(
    call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
) -> Result<Streaming<T>, Ended> {
    let opened = tokio::time::timeout(FIRST_TIME_MAX, call).await.map_err(|_| Ended::Silence)?;
    Ok(opened?.into_inner())
}

/// What the stream of keys ended by is nothing that certificates are taken back for.
fn of_keys(ended: Ended) -> Ended {
    match ended {
        Ended::Status(status) => Ended::Keys(status),
        other => other,
    }
}

/// The next message of a stream, if there is one.
async fn next<T>(stream: &mut Option<Streaming<T>>) -> Result<Option<T>, Status> {
    match stream {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}
