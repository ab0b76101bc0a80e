//! What to fetch of an OpenID provider, and when: discovery document and key set, as a state machine without I/O.
//!
//! Whoever does the fetching asks [`Provider::next`], fetches what it says, and tells how it went. Must be held to: no
//! redirect is followed, TLS is verified, no more than [`JWKS_BYTES_MAX`] bytes are read, and no address is dialled
//! that policy does not permit. Times are Unix seconds; a clock that steps back makes things due, never fresh.
//!
//! INVARIANT: keys count until the time they may be stale has passed since they were last confirmed, and no longer,
//! whatever goes wrong. Whoever sends tokens can make the provider be asked at a bounded rate only.

use serde::{Deserialize, Serialize};

use crate::json::{JsonError, Object};
use crate::{JWKS_BYTES_MAX, JwksError, KeySet};

mod url;

pub use url::{ProviderUrl, UrlError};

/// Longest discovery document, bytes: those of known providers have 2 to 6 KiB.
pub const DISCOVERY_BYTES_MAX: usize = 64 * 1024;
/// Bounds of how long keys count as fresh, seconds, whatever the provider says of caching.
const FRESH_S: std::ops::RangeInclusive<u32> = 60..=24 * 60 * 60;
/// How long they do where the provider says nothing.
const FRESH_S_DEFAULT: u32 = 15 * 60;
/// Longest time that stale keys may count, seconds: a week of a provider that is away.
const STALE_S_MAX: u32 = 7 * 24 * 60 * 60;
/// How long a discovery document counts: it says where the keys are, which hardly ever changes.
const DISCOVERY_S: i64 = 24 * 60 * 60;
/// First pause after a failure, which doubles.
const PAUSE_S_FIRST: i64 = 5;
/// Longest pause: what a provider that is back waits for at most.
const PAUSE_S_MAX: i64 = 5 * 60;
/// Failures in a row to fetch the keys after which the discovery document is asked again: they may have moved.
const FAILURES_TO_DISCOVER: u32 = 3;
/// Shortest time between two refreshes for keys that are not known: with it a rollover takes effect, and a flood of
/// made-up ids costs the provider nothing.
const UNKNOWN_KEY_S: i64 = 60;
/// How long a fetch may take before it counts as failed, should nobody tell.
const FETCH_S_MAX: i64 = 60;

/// How a provider is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderRecord {
    /// The issuer: what `iss` is, and below what the discovery document is found.
    pub issuer: String,
    /// Where its keys may be (`host` or `host:port`), besides the issuer's own host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_hosts: Vec<String>,
    /// How long keys count after they were last confirmed as fresh, seconds, while the provider fails.
    pub stale_s_max: u32,
}

/// Why a provider was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The issuer is no URL that may be asked.
    #[error("`issuer`: {0}")]
    Issuer(UrlError),
    /// A host is none.
    #[error("`key_hosts`: `{0}` is not `HOST` or `HOST:PORT` in lowercase")]
    Host(String),
    /// Too many hosts.
    #[error("`key_hosts` has more than {} hosts", url::HOSTS_MAX)]
    Hosts,
    /// Longer than may be.
    #[error("`stale_s_max` is more than {STALE_S_MAX}, a week")]
    Stale,
}

/// What to fetch, by GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Where.
    pub url: String,
    /// What for.
    pub what: What,
    /// Which attempt it is: an answer to an older one is not taken.
    number: u64,
}

/// What is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The discovery document.
    Discovery,
    /// The key set.
    Keys,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Fetch this, and tell how it went.
    Fetch(Fetch),
    /// Nothing, until this time or until something is told.
    Wait(i64),
}

/// Why an answer was not taken. It counts as a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// An answer to something that is not asked any more; it changes nothing.
    #[error("the answer comes too late")]
    Late,
    /// The discovery document is no JSON object, or too large.
    #[error("the discovery document is {0}")]
    Discovery(#[from] JsonError),
    /// It is of another issuer (OpenID Connect Discovery section 4.3).
    #[error("the discovery document is not of this issuer")]
    OtherIssuer,
    /// Its keys are where they may not be.
    #[error("`jwks_uri` of the discovery document: {0}")]
    KeysUrl(UrlError),
    /// The key set can't be used.
    #[error(transparent)]
    Keys(#[from] JwksError),
}

/// A provider, and what is known of it.
#[derive(Clone, Debug)]
pub struct Provider {
    issuer: ProviderUrl,
    key_hosts: Vec<String>,
    stale_s: i64,
    /// Spreads the requests of many gateways: below a tenth of each time, from 0 to 255.
    spread: u8,
    keys_url: Option<Known<ProviderUrl>>,
    keys: Option<Known<KeySet>>,
    /// Grows with each key set that differs from the one before.
    version: u64,
    document: Vec<u8>,
    asked: Option<(Fetch, i64)>,
    number: u64,
    failures: u32,
    /// How many there were when it was last known where the keys are.
    failures_at_discovery: u32,
    /// Not before this.
    pause_until_s: i64,
    refreshed_for_unknown_s: Option<i64>,
    is_wanted: bool,
}

/// Something fetched, and until when it counts as fresh.
#[derive(Clone, Debug)]
struct Known<T> {
    value: T,
    fetched_s: i64,
    fresh_s: i64,
}

// === impl Known ===

impl<T> Known<T> {
    fn is_fresh(&self, now_s: i64) -> bool {
        (self.fetched_s..self.due_s()).contains(&now_s)
    }

    fn due_s(&self) -> i64 {
        self.fetched_s.saturating_add(self.fresh_s)
    }
}

// === impl Provider ===

impl Provider {
    /// A provider of which nothing is known. `spread` is drawn at random, once.
    ///
    /// # Errors
    /// If the issuer is no `https` URL in its one spelling, or something is out of bounds.
    pub fn new(record: &ProviderRecord, spread: u8) -> Result<Provider, ProviderError> {
        let issuer = ProviderUrl::issuer(&record.issuer).map_err(ProviderError::Issuer)?;
        if record.key_hosts.len() > url::HOSTS_MAX {
            return Err(ProviderError::Hosts);
        }
        if let Some(host) = record.key_hosts.iter().find(|host| !url::is_host(host)) {
            return Err(ProviderError::Host(crate::quote::quote(host)));
        }
        if record.stale_s_max > STALE_S_MAX {
            return Err(ProviderError::Stale);
        }
        Ok(Provider {
            key_hosts: record.key_hosts.iter().cloned().chain([issuer.host().to_owned()]).collect(),
            issuer,
            stale_s: i64::from(record.stale_s_max),
            spread,
            keys_url: None,
            keys: None,
            version: 0,
            document: Vec::new(),
            asked: None,
            number: 0,
            failures: 0,
            failures_at_discovery: 0,
            pause_until_s: i64::MIN,
            refreshed_for_unknown_s: None,
            is_wanted: false,
        })
    }

    /// What to do at `now_s`. Asked twice, it does not say twice to fetch.
    pub fn next(&mut self, now_s: i64) -> Next {
        if let Some((_, asked_s)) = &self.asked {
            let until_s = asked_s.saturating_add(FETCH_S_MAX);
            if (*asked_s..until_s).contains(&now_s) {
                return Next::Wait(until_s);
            }
            self.fail(now_s);
        }
        // A pause that is longer than any is left from before the clock stepped back.
        let pause_s = self.pause_until_s.saturating_sub(now_s);
        if (1..=PAUSE_S_MAX).contains(&pause_s) {
            return Next::Wait(self.pause_until_s);
        }
        let has_moved = self.failures.saturating_sub(self.failures_at_discovery) >= FAILURES_TO_DISCOVER;
        let known = self.keys_url.as_ref().filter(|url| url.is_fresh(now_s) && !has_moved);
        let (url, what) = match (known, &self.keys) {
            (Some(_), Some(keys)) if keys.is_fresh(now_s) && !self.is_wanted => {
                return Next::Wait(keys.due_s());
            }
            (Some(url), _) => (url.value.as_str().to_owned(), What::Keys),
            (None, _) => (self.issuer.discovery(), What::Discovery),
        };
        self.number = self.number.wrapping_add(1);
        let fetch = Fetch { url, what, number: self.number };
        self.asked = Some((fetch.clone(), now_s));
        Next::Fetch(fetch)
    }

    /// Takes the body of a successful answer, and what its `Cache-Control: max-age` says, in seconds. Returns whether
    /// there are other keys now.
    ///
    /// # Errors
    /// If it is not what was asked for, which counts as a failure.
    pub fn answered(
        &mut self,
        fetch: &Fetch,
        body: &[u8],
        max_age_s: Option<u32>,
        now_s: i64,
    ) -> Result<bool, AnswerError> {
        if self.asked.as_ref().is_none_or(|(asked, _)| asked != fetch) {
            return Err(AnswerError::Late);
        }
        let taken = match fetch.what {
            What::Discovery => self.discovered(body, now_s).map(|()| false),
            What::Keys => self.received(body, max_age_s, now_s),
        };
        match taken {
            Ok(is_other) => {
                self.asked = None;
                if fetch.what == What::Keys {
                    self.failures = 0;
                }
                self.failures_at_discovery = self.failures;
                Ok(is_other)
            }
            Err(error) => {
                self.fail(now_s);
                Err(error)
            }
        }
    }

    /// Takes note that a fetch failed: no answer, another status than 200, a redirect, or too large a body.
    pub fn failed(&mut self, fetch: &Fetch, now_s: i64) {
        if self.asked.as_ref().is_some_and(|(asked, _)| asked == fetch) {
            self.fail(now_s);
        }
    }

    /// Takes note of a token whose key id the keys don't have: they may have been rolled over. Returns whether the
    /// provider will be asked for it.
    pub fn unknown_key(&mut self, now_s: i64) -> bool {
        let is_recent = |at: i64| (at..at.saturating_add(UNKNOWN_KEY_S)).contains(&now_s);
        let fetched_s = self.keys.as_ref().map(|keys| keys.fetched_s);
        if [self.refreshed_for_unknown_s, fetched_s].into_iter().flatten().any(is_recent) {
            return false;
        }
        self.refreshed_for_unknown_s = Some(now_s);
        self.is_wanted = true;
        true
    }

    /// The keys to verify with at `now_s`; `None` if there are none that count.
    #[must_use]
    pub fn keys(&self, now_s: i64) -> Option<&KeySet> {
        let keys = self.keys.as_ref()?;
        let ends_s = keys.due_s().saturating_add(self.stale_s);
        // Before they were fetched, by a clock that stepped back, nothing says how old they are.
        let counts = (keys.fetched_s.saturating_sub(FETCH_S_MAX)..ends_s).contains(&now_s);
        counts.then_some(&keys.value)
    }

    /// Whether keys count that are past their time, because the provider fails.
    #[must_use]
    pub fn is_stale(&self, now_s: i64) -> bool {
        self.keys(now_s).is_some() && self.keys.as_ref().is_some_and(|keys| now_s >= keys.due_s())
    }

    /// The document the keys are of, for those who verify elsewhere, and its version.
    #[must_use]
    pub fn document(&self) -> (&[u8], u64) {
        (&self.document, self.version)
    }

    /// How often the provider has failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn discovered(&mut self, body: &[u8], now_s: i64) -> Result<(), AnswerError> {
        let document = Object::parse(body, DISCOVERY_BYTES_MAX)?;
        if document.text("issuer") != Ok(Some(self.issuer.as_str())) {
            return Err(AnswerError::OtherIssuer);
        }
        let url = document.text("jwks_uri").ok().flatten().ok_or(AnswerError::KeysUrl(UrlError::Missing))?;
        let url = ProviderUrl::keys(url, &self.key_hosts).map_err(AnswerError::KeysUrl)?;
        self.keys_url = Some(Known { value: url, fetched_s: now_s, fresh_s: DISCOVERY_S });
        Ok(())
    }

    fn received(&mut self, body: &[u8], max_age_s: Option<u32>, now_s: i64) -> Result<bool, AnswerError> {
        let value = KeySet::parse(body)?;
        let fresh_s = max_age_s.unwrap_or(FRESH_S_DEFAULT).clamp(*FRESH_S.start(), *FRESH_S.end());
        let fresh_s = i64::from(fresh_s);
        // Earlier by up to a tenth, so that gateways that started together don't ask together for ever.
        let fresh_s = fresh_s.saturating_sub(fresh_s.saturating_mul(i64::from(self.spread)) / 2560);
        self.keys = Some(Known { value, fetched_s: now_s, fresh_s });
        self.is_wanted = false;
        let is_other = self.document != body;
        if is_other {
            body.clone_into(&mut self.document);
            self.version = self.version.wrapping_add(1);
        }
        Ok(is_other)
    }

    fn fail(&mut self, now_s: i64) {
        self.asked = None;
        // Doubling ends at the longest pause; what is beyond it need not be counted.
        let doublings = self.failures.min(16);
        let pause_s = PAUSE_S_FIRST.saturating_mul(1 << doublings).min(PAUSE_S_MAX);
        let pause_s = pause_s.saturating_sub(pause_s.saturating_mul(i64::from(self.spread)) / 2560).max(1);
        self.failures = self.failures.saturating_add(1);
        self.pause_until_s = now_s.saturating_add(pause_s);
    }
}

// The fetcher reads no more than this of either.
const _: () = assert!(DISCOVERY_BYTES_MAX <= JWKS_BYTES_MAX);

#[cfg(test)]
mod tests;
