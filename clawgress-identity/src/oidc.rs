//! What to fetch of an OpenID provider, and when: discovery document and key set, as a state machine without I/O.
//!
//! Whoever does the fetching asks [`Provider::next`], fetches what it says, and tells how it went. Must be held to: no
//! redirect is followed, TLS is verified, no more than [`JWKS_BYTES_MAX`] bytes are read, and no address is dialled
//! that policy does not permit. Times are Unix seconds; a clock that steps back makes things due, never fresh.
//!
//! INVARIANT: keys count until the time they may be stale has passed since they were last confirmed, and no longer,
//! whatever goes wrong. Whoever sends tokens can make the provider be asked at a bounded rate only.

use crate::json::{Document, JsonError};
use crate::{JWKS_BYTES_MAX, JwksError, KeySet, Retry};

mod record;
mod url;

pub(crate) use record::check_fetching;
pub use record::{ProviderError, ProviderRecord};
pub use url::{ProviderUrl, UrlError};

/// Longest discovery document, bytes: those of known providers have 2 to 6 KiB.
pub const DISCOVERY_BYTES_MAX: usize = 64 * 1024;
/// Shortest time that keys count as fresh, seconds, whatever the provider says of caching; unless its record wants them
/// asked more often.
const FRESH_S_LEAST: u32 = 60;
/// How long they do where the provider says nothing.
const FRESH_S_DEFAULT: u32 = 15 * 60;
/// How long a discovery document counts: it says where the keys are, which hardly ever changes.
const DISCOVERY_S: i64 = 24 * 60 * 60;
/// First pause after a failure, which doubles.
const PAUSE_S_FIRST: u32 = 5;
/// Longest pause: what a provider that is back waits for at most.
const PAUSE_S_MAX: u32 = 5 * 60;
/// Failures in a row to fetch the keys after which the discovery document is asked again: they may have moved.
const FAILURES_TO_DISCOVER: u32 = 3;
/// Shortest time between two refreshes for keys that are not known: with it a rollover takes effect, and a flood of
/// made-up ids costs the provider nothing.
const UNKNOWN_KEY_S: i64 = 60;
/// How long a fetch may take before it counts as failed, should nobody tell.
const FETCH_S_MAX: i64 = 60;

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
    fresh_s_max: u32,
    stale_s: i64,
    keys_url: Option<Known<ProviderUrl>>,
    keys: Option<Known<KeySet>>,
    /// Grows with each key set that differs from the one before.
    version: u64,
    document: Vec<u8>,
    asked: Option<(Fetch, i64)>,
    number: u64,
    retry: Retry,
    /// How many failures there were when it was last known where the keys are.
    failures_at_discovery: u32,
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
    pub fn new(issuer: &str, record: &ProviderRecord, spread: u8) -> Result<Provider, ProviderError> {
        let issuer = record.check(issuer)?;
        Ok(Provider {
            key_hosts: record.key_hosts.iter().cloned().chain([issuer.host().to_owned()]).collect(),
            issuer,
            fresh_s_max: record.fresh_s_max,
            stale_s: i64::from(record.stale_s_max),
            keys_url: None,
            keys: None,
            version: 0,
            document: Vec::new(),
            asked: None,
            number: 0,
            retry: Retry::new(PAUSE_S_FIRST, PAUSE_S_MAX, spread),
            failures_at_discovery: 0,
            refreshed_for_unknown_s: None,
            is_wanted: false,
        })
    }

    /// Takes back the keys of an earlier life: their document, when they were last confirmed, and how long they count
    /// as fresh since. They count no longer than they would have.
    ///
    /// # Errors
    /// If the document is no key set.
    pub fn restore(&mut self, document: &[u8], fetched_s: i64, fresh_s: u32) -> Result<(), JwksError> {
        let value = KeySet::parse(document)?;
        let fresh_s = i64::from(fresh_s.min(self.fresh_s_max));
        self.keys = Some(Known { value, fetched_s, fresh_s });
        document.clone_into(&mut self.document);
        self.version = self.version.wrapping_add(1);
        Ok(())
    }

    /// Has the provider asked again for all, at once, whatever pause there is.
    pub fn refresh(&mut self) {
        self.retry.at_once();
        self.keys_url = None;
        self.is_wanted = true;
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
        if let Some(until_s) = self.retry.pause(now_s) {
            return Next::Wait(until_s);
        }
        let has_moved =
            self.retry.failures().saturating_sub(self.failures_at_discovery) >= FAILURES_TO_DISCOVER;
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
                    self.retry.succeeded();
                }
                self.failures_at_discovery = self.retry.failures();
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
        let pause_s = UNKNOWN_KEY_S.min(i64::from(self.fresh_s_max));
        let is_recent = |at: i64| (at..at.saturating_add(pause_s)).contains(&now_s);
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
        let ends_s = self.ends_s()?;
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

    /// The document of the keys that count at `now_s`.
    #[must_use]
    pub fn in_force(&self, now_s: i64) -> Option<&[u8]> {
        self.keys(now_s).map(|_| self.document.as_slice())
    }

    /// When the keys were last confirmed, and how long they count as fresh since, seconds.
    #[must_use]
    pub fn confirmed(&self) -> Option<(i64, u32)> {
        let keys = self.keys.as_ref()?;
        Some((keys.fetched_s, u32::try_from(keys.fresh_s).unwrap_or(0)))
    }

    /// When the keys stop being fresh.
    #[must_use]
    pub fn due_s(&self) -> Option<i64> {
        self.keys.as_ref().map(Known::due_s)
    }

    /// When the keys stop counting, if nobody confirms them until then.
    #[must_use]
    pub fn ends_s(&self) -> Option<i64> {
        self.due_s().map(|due_s| due_s.saturating_add(self.stale_s))
    }

    /// How often the provider has failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.retry.failures()
    }

    /// Since when it fails, if it does.
    #[must_use]
    pub fn failing_since_s(&self) -> Option<i64> {
        self.retry.since_s()
    }

    /// When it may be asked again after a failure.
    #[must_use]
    pub fn pause_until_s(&self) -> i64 {
        self.retry.until_s()
    }

    fn discovered(&mut self, body: &[u8], now_s: i64) -> Result<(), AnswerError> {
        let document = Document::parse(body.to_vec(), DISCOVERY_BYTES_MAX)?;
        let document = document.object();
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
        let least_s = FRESH_S_LEAST.min(self.fresh_s_max);
        let fresh_s = i64::from(max_age_s.unwrap_or(FRESH_S_DEFAULT).clamp(least_s, self.fresh_s_max));
        let fresh_s = self.retry.spread(fresh_s);
        // By the keys: a document that only writes the same ones otherwise is no news for anybody.
        let is_other = self.keys.as_ref().is_none_or(|known| known.value != value);
        self.keys = Some(Known { value, fetched_s: now_s, fresh_s });
        self.is_wanted = false;
        if is_other {
            body.clone_into(&mut self.document);
            self.version = self.version.wrapping_add(1);
        }
        Ok(is_other)
    }

    fn fail(&mut self, now_s: i64) {
        self.asked = None;
        self.retry.failed(now_s);
    }
}

// The fetcher reads no more than this of either.
const _: () = assert!(DISCOVERY_BYTES_MAX <= JWKS_BYTES_MAX);

#[cfg(test)]
mod tests;
