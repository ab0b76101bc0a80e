//! A bundle that is followed: what counts of it, and until when. Times are Unix seconds; a clock that steps back makes
//! things due, never fresh.
//!
//! INVARIANT: a bundle counts until the time it may be stale has passed since it was last confirmed, and no longer,
//! whatever goes wrong; and what its source takes back counts no more at once.

use super::{BundleError, SpiffeBundle};

/// Shortest time that a bundle of an endpoint counts as fresh, seconds, unless its record wants it asked more often.
const FRESH_S_LEAST: u32 = 60;
/// How long it does if it has no refresh hint: what SPIFFE Federation section 4.1 recommends.
const FRESH_S_DEFAULT: u32 = 5 * 60;
/// How far the clock may step back before nothing says any more how old a bundle is: what a fetch may take.
const STEP_S_MAX: i64 = 60;

/// A bundle, and until when it counts.
#[derive(Clone, Debug)]
pub struct FollowedBundle {
    stale_s: i64,
    known: Option<Known>,
    /// The last one that could verify a server, whether it counts or not.
    last: Option<SpiffeBundle>,
}

#[derive(Clone, Debug)]
struct Known {
    bundle: SpiffeBundle,
    document: String,
    confirmed_s: i64,
    fresh_s: i64,
}

// === impl FollowedBundle ===

impl FollowedBundle {
    /// Nothing, yet. What comes counts for so many seconds after it was fresh.
    #[must_use]
    pub fn new(stale_s_max: u32) -> FollowedBundle {
        FollowedBundle { stale_s: i64::from(stale_s_max), known: None, last: None }
    }

    /// Takes back the bundle of an earlier life: when it was last confirmed, and how long it counts as fresh since. It
    /// counts no longer than it would have.
    ///
    /// # Errors
    /// If the document is no bundle.
    pub fn restore(&mut self, document: &str, confirmed_s: i64, fresh_s: u32) -> Result<(), BundleError> {
        let bundle = SpiffeBundle::parse(document.as_bytes())?;
        let (document, fresh_s) = (document.to_owned(), i64::from(fresh_s));
        self.remember(&bundle);
        self.known = Some(Known { bundle, document, confirmed_s, fresh_s });
        Ok(())
    }

    /// Takes a bundle, which counts as fresh for so many seconds. Returns whether it has other keys or certificates.
    ///
    /// # Errors
    /// If it is no bundle, or an older one than that which counts.
    pub fn take(&mut self, document: &str, fresh_s: u32, now_s: i64) -> Result<bool, BundleError> {
        let bundle = SpiffeBundle::parse(document.as_bytes())?;
        let known = self.known.take();
        let counts = known.as_ref().filter(|known| known.counts(self.stale_s, now_s));
        if let (Some(was), Some(is)) = (counts.and_then(|known| known.bundle.sequence), bundle.sequence)
            && is < was
        {
            self.known = known;
            return Err(BundleError::Older { is, was });
        }
        self.remember(&bundle);
        let is_other = known.as_ref().is_none_or(|known| !known.bundle.trusts_same(&bundle));
        // A document that only writes the same otherwise is no news for anybody.
        let document = match known {
            Some(known) if !is_other => known.document,
            _ => document.to_owned(),
        };
        self.known = Some(Known { bundle, document, confirmed_s: now_s, fresh_s: i64::from(fresh_s) });
        Ok(is_other)
    }

    fn remember(&mut self, bundle: &SpiffeBundle) {
        if bundle.authorities() > 0 {
            self.last = Some(bundle.clone());
        }
    }

    /// The bundle to verify the source itself by: the last that could, also when it counts no longer. What was there
    /// before it must not come back by keys that it took out.
    #[must_use]
    pub fn last(&self) -> Option<&SpiffeBundle> {
        self.last.as_ref()
    }

    /// How long a bundle of an endpoint counts as fresh by its refresh hint, seconds.
    ///
    /// # Errors
    /// If it is no bundle.
    pub fn fresh_s(document: &str, fresh_s_max: u32) -> Result<u32, BundleError> {
        let hint_s = SpiffeBundle::parse(document.as_bytes())?.refresh_hint_s;
        let hint_s =
            hint_s.map_or(FRESH_S_DEFAULT, |hint_s| u32::try_from(hint_s).unwrap_or(FRESH_S_DEFAULT));
        Ok(hint_s.clamp(FRESH_S_LEAST.min(fresh_s_max), fresh_s_max))
    }

    /// Takes note that what there is still holds.
    pub fn confirm(&mut self, now_s: i64) {
        if let Some(known) = &mut self.known {
            known.confirmed_s = now_s;
        }
    }

    /// Takes note that its source has no such bundle any more.
    pub fn withdraw(&mut self) {
        self.known = None;
    }

    /// The bundle to judge by at `now_s`, and its document; `None` if there is none that counts.
    #[must_use]
    pub fn in_force(&self, now_s: i64) -> Option<(&SpiffeBundle, &str)> {
        let known = self.known.as_ref().filter(|known| known.counts(self.stale_s, now_s))?;
        Some((&known.bundle, &known.document))
    }

    /// The document of the bundle there is, whether it counts or not.
    #[must_use]
    pub fn document(&self) -> Option<&str> {
        self.known.as_ref().map(|known| known.document.as_str())
    }

    /// Whether what counts is past its time, because its source fails.
    #[must_use]
    pub fn is_stale(&self, now_s: i64) -> bool {
        self.in_force(now_s).is_some() && self.due_s().is_some_and(|due_s| now_s >= due_s)
    }

    /// When it was last confirmed, and how long it counts as fresh since, seconds.
    #[must_use]
    pub fn confirmed(&self) -> Option<(i64, u32)> {
        self.known.as_ref().map(|known| (known.confirmed_s, u32::try_from(known.fresh_s).unwrap_or(0)))
    }

    /// When it stops being fresh.
    #[must_use]
    pub fn due_s(&self) -> Option<i64> {
        self.known.as_ref().map(|known| known.confirmed_s.saturating_add(known.fresh_s))
    }

    /// Whether it is fresh at `now_s`.
    #[must_use]
    pub fn is_fresh(&self, now_s: i64) -> bool {
        let known = self.known.as_ref();
        known.is_some_and(|k| (k.confirmed_s..k.confirmed_s.saturating_add(k.fresh_s)).contains(&now_s))
    }

    /// When it stops counting, if nobody confirms it until then.
    #[must_use]
    pub fn ends_s(&self) -> Option<i64> {
        self.known.as_ref().map(|known| known.ends_s(self.stale_s))
    }
}

// === impl Known ===

impl Known {
    fn ends_s(&self, stale_s: i64) -> i64 {
        self.confirmed_s.saturating_add(self.fresh_s).saturating_add(stale_s)
    }

    fn counts(&self, stale_s: i64, now_s: i64) -> bool {
        // Before it was confirmed, by a clock that stepped back, nothing says how old it is.
        (self.confirmed_s.saturating_sub(STEP_S_MAX)..self.ends_s(stale_s)).contains(&now_s)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::Algorithm;
    use crate::testing::{Signer, pki};

    fn document(sequence: Option<u64>, key: Option<&str>) -> String {
        let sequence = sequence.map_or(String::new(), |n| format!(r#""spiffe_sequence":{n},"#));
        let key = key.map_or(String::new(), |kid| {
            Signer::of(Algorithm::Es256).jwk(&format!(r#","use":"jwt-svid","kid":"{kid}""#))
        });
        format!(r#"{{{sequence}"keys":[{key}]}}"#)
    }

    #[test]
    fn a_bundle_counts_until_nobody_confirmed_it_for_too_long() {
        let mut followed = FollowedBundle::new(100);
        assert!(followed.in_force(0).is_none() && !followed.is_stale(0));
        assert_eq!(followed.take(&document(None, Some("a")), 10, 1000), Ok(true));
        for (now_s, counts, stale) in [
            (1000, true, false),
            (1009, true, false),
            (1010, true, true),
            (1109, true, true),
            (1110, false, false),
        ] {
            assert_eq!(
                (followed.in_force(now_s).is_some(), followed.is_stale(now_s)),
                (counts, stale),
                "{now_s}"
            );
        }
        assert!(
            followed.in_force(940).is_some() && followed.in_force(939).is_none(),
            "a clock that steps back"
        );
        assert!(!followed.is_fresh(999), "nor is it fresh then");
        followed.confirm(1100);
        assert_eq!((followed.due_s(), followed.ends_s()), (Some(1110), Some(1210)));
        followed.withdraw();
        assert!(followed.in_force(1100).is_none() && followed.ends_s().is_none());
    }

    #[test]
    fn the_same_written_otherwise_is_no_news() {
        let mut followed = FollowedBundle::new(100);
        let (first, second) = (document(Some(1), Some("a")), document(Some(2), Some("a")));
        assert_eq!(followed.take(&first, 10, 0), Ok(true));
        assert_eq!(followed.take(&second, 10, 5), Ok(false));
        let (bundle, text) = followed.in_force(5).unwrap();
        assert_eq!((bundle.sequence, text), (Some(2), first.as_str()));
        assert_eq!(followed.take(&document(Some(3), Some("b")), 10, 6), Ok(true));
        assert_eq!(followed.take(&document(Some(4), None), 10, 7), Ok(true));
    }

    #[test]
    fn an_older_one_is_refused_while_the_newer_one_counts() {
        let mut followed = FollowedBundle::new(100);
        followed.take(&document(Some(7), Some("a")), 10, 0).unwrap();
        let older = document(Some(6), Some("b"));
        assert_eq!(followed.take(&older, 10, 50), Err(BundleError::Older { is: 6, was: 7 }));
        assert_eq!(followed.confirmed(), Some((0, 10)), "and confirms nothing");
        assert_eq!(followed.take("{", 10, 50).ok(), None);
        assert_eq!(followed.take(&document(None, Some("a")), 10, 50), Ok(false));
        let mut followed = FollowedBundle::new(100);
        followed.take(&document(Some(7), Some("a")), 10, 0).unwrap();
        assert_eq!(
            followed.take(&older, 10, 110),
            Ok(true),
            "nothing counts any more that it could come before"
        );
    }

    #[test]
    fn the_last_with_authorities_verifies_its_source_when_it_counts_no_longer() {
        let mut followed = FollowedBundle::new(100);
        assert!(followed.last().is_none());
        followed.take(&document(None, Some("a")), 10, 0).unwrap();
        assert!(followed.last().is_none(), "keys of JWT-SVIDs verify no server");
        let x5c = STANDARD.encode(pki::ca("td").der());
        let authority = format!(r#"{{"keys":[{{"kty":"EC","use":"x509-svid","x5c":["{x5c}"]}}]}}"#);
        followed.take(&authority, 10, 1).unwrap();
        followed.take(&document(None, None), 10, 2).unwrap();
        followed.withdraw();
        let parsed = SpiffeBundle::parse(authority.as_bytes()).unwrap();
        assert!(
            followed.in_force(2).is_none() && followed.last().is_some_and(|last| last.trusts_same(&parsed))
        );
    }

    #[test]
    fn what_was_kept_is_no_younger() {
        let mut followed = FollowedBundle::new(100);
        followed.restore(&document(None, Some("a")), 1000, 10).unwrap();
        assert!(followed.in_force(1109).is_some() && followed.in_force(1110).is_none());
        assert!(FollowedBundle::new(1).restore("[]", 0, 0).is_err());
    }

    #[test]
    fn hints_are_held_to_what_is_configured() {
        let hinted = |hint: &str| format!(r#"{{{hint}"keys":[]}}"#);
        for (hint, max, fresh_s) in [
            ("", 86_400, 300),
            (r#""spiffe_refresh_hint":600,"#, 86_400, 600),
            (r#""spiffe_refresh_hint":600,"#, 5, 5),
            (r#""spiffe_refresh_hint":0,"#, 86_400, 60),
            (r#""spiffe_refresh_hint":999999999,"#, 86_400, 86_400),
        ] {
            assert_eq!(FollowedBundle::fresh_s(&hinted(hint), max), Ok(fresh_s), "{hint}");
        }
    }
}
