//! Identity by token and by certificate, and the same again whenever a snapshot or the time has changed.
//!
//! INVARIANT: what judges a live connection again is what judged its credential first, all but the signature of a
//! token, whose key has to be its issuer's still, and those of a chain while nobody else is trusted than before.

use std::fmt;
use std::sync::{Arc, Weak};

use rustls_pki_types::CertificateDer;

use super::{Identity, IdentityError, IdentityMethod, Origin, TrustSnapshot};
use crate::certificate::{CHAIN_BYTES_MAX, CHAIN_MAX, CertificateError, Details};
use crate::claims::{self, Actor};
use crate::mapping::Mapped;
use crate::token::{self, UnverifiedToken, VerifiedToken};
use crate::{AgentId, Issuer, RootId, Roots, TokenError, TrustDomain, TrustDomainName};

/// Longest time for which a judgement of a chain is taken for the same again, seconds: what only time changes is
/// known up to its end, but for a second way to an authority that begins to count.
const JUDGED_S_MAX: i64 = 60;

/// A credential that established an identity, without what would let anyone present it. Its `Debug` shows nothing that
/// the credential says of anybody.
#[derive(Clone, Debug)]
pub struct Proof {
    agent: AgentId,
    facts: ProofFacts,
    kind: Kind,
}

/// What records show of a credential: never the credential.
#[derive(Clone, PartialEq, Eq)]
pub struct ProofFacts {
    /// How the identity was established.
    pub method: IdentityMethod,
    /// Who is trusted for it.
    pub root: RootId,
    /// `jti` of a token or the hash of what was signed, or the hash of a certificate.
    pub credential: String,
    /// Whom it names in its own terms: `sub`, or the first name of a certificate.
    pub subject: Option<String>,
    /// The chain of delegated agents, who acts first.
    pub actors: Vec<Actor>,
    /// When it ends, Unix seconds, the skew that is allowed for included. A chain ends with the first of its
    /// certificates; or it has to be judged again then, because a revocation list that counts is too old.
    pub expires_at_s: i64,
}

#[derive(Clone)]
enum Kind {
    /// Of an issuer.
    Token(VerifiedToken),
    /// Of a trust domain.
    Svid(TrustDomainName, VerifiedToken),
    /// A chain.
    Chain { chain: Arc<[CertificateDer<'static>]>, judged: Judged },
}

/// What a chain was found to stand for, and where that counts.
#[derive(Clone, Debug)]
struct Judged {
    /// By whom. Weak: who is trusted no more is not kept for it.
    roots: Weak<Roots>,
    since_s: i64,
    mapped: Mapped,
}

/// Why a token establishes no identity, and what may be said of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct RefusedToken {
    /// Why.
    pub why: IdentityError,
    /// What it is; only if the signature was right, for before that anybody may have written it.
    pub credential: Option<RefusedCredential>,
    /// The issuer it says it is of, if that one has a provider and no key by which the token could be signed: the
    /// keys may have been rolled over.
    pub unknown_key_of: Option<RootId>,
}

/// What a token is whose signature was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedCredential {
    /// Its issuer here.
    pub root: RootId,
    /// Its id as [`ProofFacts::credential`] has it.
    pub id: String,
    /// Whom it stands for, if it counts but for that.
    pub agent: Option<AgentId>,
}

/// A credential's identity, and the credential to be judged again.
#[derive(Clone, Debug)]
pub struct Proven {
    /// The identity.
    pub identity: Identity,
    /// The credential.
    pub proof: Arc<Proof>,
}

// === impl TrustSnapshot ===

impl TrustSnapshot {
    /// The agent that a JWT or JWT-SVID proves, given where it comes from, and the time (Unix seconds).
    ///
    /// # Errors
    /// Every way in which the credential fails.
    pub fn by_token(&self, token: &str, origin: Origin<'_>, now_s: i64) -> Result<Proven, Box<RefusedToken>> {
        let token = UnverifiedToken::parse(token)?;
        let claims = token.claims();
        // INVARIANT: which keys a token is verified by is decided by one claim each, before any is tried: a known
        // issuer's token is never taken for an SVID, nor the other way round.
        if !self.roots.issuers.knows(claims)
            && let Some(domain) = self.roots.domains.of_token(claims)
        {
            let token = domain.verify(token)?;
            let judged = self.by_svid(domain, &token, origin, now_s);
            let (identity, mapped, facts) = judged.map_err(|why| {
                let mapped = domain.judge_token(&token, now_s).map(|(mapped, _)| mapped.agent);
                RefusedToken::of(why, &domain.record().id, &token, mapped.ok())
            })?;
            let kind = Kind::Svid(domain.record().domain.clone(), token);
            return Ok(Proven::new(identity, mapped, facts, kind));
        }
        let issuer = self.roots.issuers.of(claims)?;
        let id = &issuer.record().id;
        let token = issuer.verify(token).map_err(|error| {
            let may_have_rolled = error == TokenError::UnknownKey && issuer.record().provider.is_some();
            RefusedToken {
                why: error.into(),
                credential: None,
                unknown_key_of: may_have_rolled.then(|| id.clone()),
            }
        })?;
        let judged = self.by_issued(issuer, &token, origin, now_s);
        let (identity, mapped, facts) = judged.map_err(|why| {
            let mapped = issuer.judge(&token, now_s).map(|judged| judged.mapped.agent);
            RefusedToken::of(why, id, &token, mapped.ok())
        })?;
        Ok(Proven::new(identity, mapped, facts, Kind::Token(token)))
    }

    fn by_svid(
        &self,
        domain: &TrustDomain,
        token: &VerifiedToken,
        origin: Origin<'_>,
        now_s: i64,
    ) -> Result<(Identity, Mapped, ProofFacts), IdentityError> {
        let (mapped, ends_s) = domain.judge_token(token, now_s)?;
        let identity = self.admit(&mapped, IdentityMethod::SpiffeJwt, origin)?;
        let facts = token_facts(token, IdentityMethod::SpiffeJwt, domain.record().id.clone(), ends_s)?;
        Ok((identity, mapped, facts))
    }

    fn by_issued(
        &self,
        issuer: &Issuer,
        token: &VerifiedToken,
        origin: Origin<'_>,
        now_s: i64,
    ) -> Result<(Identity, Mapped, ProofFacts), IdentityError> {
        let judged = issuer.judge(token, now_s)?;
        let facts = token_facts(token, IdentityMethod::Jwt, issuer.record().id.clone(), judged.ends_s)?;
        let identity = self.admit(&judged.mapped, IdentityMethod::Jwt, origin)?;
        self.admit_actors(&judged.actors)?;
        Ok((identity, judged.mapped, facts))
    }

    /// Whether all who have to be known of those that act are agents that may.
    fn admit_actors(&self, actors: &[AgentId]) -> Result<(), IdentityError> {
        for actor in actors {
            let agent = self.agent(actor).ok_or(TokenError::UnknownActor)?;
            self.active(Some(agent), IdentityMethod::Jwt)?;
        }
        Ok(())
    }

    /// The agent that a client's certificate chain proves, leaf first, given where it comes from, and the time
    /// (Unix seconds). The TLS handshake has to have proved that the client has the leaf's key.
    ///
    /// # Errors
    /// Every way in which the credential fails.
    pub fn by_certificate(
        &self,
        chain: impl Into<Arc<[CertificateDer<'static>]>>,
        origin: Origin<'_>,
        now_s: i64,
    ) -> Result<Proven, IdentityError> {
        let chain = chain.into();
        let (mapped, facts) = self.judge_chain(&chain, now_s)?;
        let identity = self.admit(&mapped, facts.method, origin)?;
        let judged = Judged { roots: Arc::downgrade(&self.roots), since_s: now_s, mapped: mapped.clone() };
        Ok(Proven::new(identity, mapped, facts, Kind::Chain { chain, judged }))
    }

    /// Judges a credential again, under this snapshot and at this time. A chain's signatures are not checked again
    /// where nobody else is trusted than before, and for a short time only. The proof is the same one unless it says
    /// something new.
    ///
    /// # Errors
    /// Every way in which it fails now, one of which is that it stands for another agent.
    pub fn again(&self, proof: &Arc<Proof>, origin: Origin<'_>, now_s: i64) -> Result<Proven, IdentityError> {
        let (mapped, ends_s) = match &proof.kind {
            Kind::Token(token) => {
                let issuer = self.roots.issuers.by_id(&proof.facts.root).ok_or(TokenError::UnknownIssuer)?;
                let judged = issuer.judge(token, now_s)?;
                self.admit_actors(&judged.actors)?;
                (judged.mapped, judged.ends_s)
            }
            Kind::Svid(domain, token) => {
                let domain = self.roots.domains.by_name(domain).ok_or(TokenError::UnknownIssuer)?;
                domain.judge_token(token, now_s)?
            }
            Kind::Chain { judged, .. } if judged.stands(&self.roots, proof.facts.expires_at_s, now_s) => {
                (judged.mapped.clone(), proof.facts.expires_at_s)
            }
            Kind::Chain { chain, .. } => {
                let proven = self.by_certificate(Arc::clone(chain), origin, now_s)?;
                let is_same =
                    proven.proof.agent == proof.agent && proven.proof.facts.method == proof.facts.method;
                return if is_same { Ok(proven) } else { Err(IdentityError::OtherAgent) };
            }
        };
        if mapped.agent != proof.agent {
            return Err(IdentityError::OtherAgent);
        }
        let identity = self.admit(&mapped, proof.facts.method, origin)?;
        if ends_s == proof.facts.expires_at_s {
            return Ok(Proven { identity, proof: Arc::clone(proof) });
        }
        let facts = ProofFacts { expires_at_s: ends_s, ..proof.facts.clone() };
        Ok(Proven::new(identity, mapped, facts, proof.kind.clone()))
    }

    /// Whom a client's certificate chain stands for, whether there is such an agent or not, and what may be shown of the
    /// chain; `None` if it proves nobody.
    #[must_use]
    pub fn named_by_certificate(
        &self,
        chain: &[CertificateDer<'_>],
        now_s: i64,
    ) -> Option<(AgentId, ProofFacts)> {
        self.judge_chain(chain, now_s).ok().map(|(mapped, facts)| (mapped.agent, facts))
    }

    fn judge_chain(
        &self,
        chain: &[CertificateDer<'_>],
        now_s: i64,
    ) -> Result<(Mapped, ProofFacts), IdentityError> {
        let leaf = chain.first().ok_or(CertificateError::Missing)?;
        if chain.len() > CHAIN_MAX || chain.iter().map(|c| c.len()).sum::<usize>() > CHAIN_BYTES_MAX {
            return Err(CertificateError::Size.into());
        }
        // INVARIANT: nothing is read of what the strict parser has not taken.
        webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::Malformed)?;
        let details = Details::read(leaf)?;
        let (method, root, mapped, expires_at_s) = match self.roots.domains.of_certificate(&details)? {
            Some(domain) => {
                let (mapped, ends_s) = domain.judge_chain(chain, &details, now_s)?;
                (IdentityMethod::SpiffeX509, domain.record().id.clone(), mapped, ends_s)
            }
            None => {
                let (root, mapped, ends_s) = self.roots.authorities.judge(chain, &details, now_s)?;
                (IdentityMethod::Mtls, root.clone(), mapped, ends_s)
            }
        };
        let mut names = details.uris.iter().chain(&details.dns).chain(&details.emails);
        let facts = ProofFacts {
            method,
            root,
            credential: token::hash(leaf),
            subject: names.next().map(|name| (*name).to_owned()),
            actors: Vec::new(),
            expires_at_s,
        };
        Ok((mapped, facts))
    }

    /// The agent that a credential stands for, if it may be presented there and is where the credential has it.
    fn admit(
        &self,
        mapped: &Mapped,
        method: IdentityMethod,
        origin: Origin<'_>,
    ) -> Result<Identity, IdentityError> {
        if !self.may_present(origin, &mapped.agent) {
            return Err(IdentityError::Conflict);
        }
        let agent = self.agent(&mapped.agent).ok_or(IdentityError::UnknownAgent)?;
        mapped.agrees(agent).map_err(IdentityError::Mapping)?;
        self.active(Some(agent), method)
    }
}

fn token_facts(
    token: &VerifiedToken,
    method: IdentityMethod,
    root: RootId,
    ends_s: i64,
) -> Result<ProofFacts, TokenError> {
    let claims = token.claims.object();
    Ok(ProofFacts {
        method,
        root,
        credential: token.id.to_string(),
        subject: claims::text(claims, "sub")?.map(str::to_owned),
        actors: claims::actors(claims)?,
        expires_at_s: ends_s,
    })
}

// === impl RefusedToken ===

impl RefusedToken {
    /// Of a token whose signature was right.
    fn of(
        why: IdentityError,
        root: &RootId,
        token: &VerifiedToken,
        agent: Option<AgentId>,
    ) -> Box<RefusedToken> {
        let credential = Some(RefusedCredential { root: root.clone(), id: token.id.to_string(), agent });
        Box::new(RefusedToken { why, credential, unknown_key_of: None })
    }
}

impl From<TokenError> for Box<RefusedToken> {
    fn from(error: TokenError) -> Box<RefusedToken> {
        Box::new(RefusedToken { why: error.into(), credential: None, unknown_key_of: None })
    }
}

// === impl ProofFacts ===

/// Without whom the credential names, who may be a person.
impl fmt::Debug for ProofFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProofFacts")
            .field("method", &self.method)
            .field("root", &self.root)
            .field("credential", &self.credential)
            .field("actors", &self.actors.len())
            .field("expires_at_s", &self.expires_at_s)
            .finish_non_exhaustive()
    }
}

// === impl Kind ===

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Token(_) => f.write_str("token"),
            Kind::Svid(domain, _) => write!(f, "SVID of {domain}"),
            Kind::Chain { chain, .. } => write!(f, "chain of {}", chain.len()),
        }
    }
}

// === impl Judged ===

impl Judged {
    /// Whether nothing has changed that a judgement of the chain rests on: who is trusted is the same, and no end is
    /// reached. Nor has the clock gone back.
    fn stands(&self, roots: &Arc<Roots>, ends_s: i64, now_s: i64) -> bool {
        let until_s = self.since_s.saturating_add(JUDGED_S_MAX).min(ends_s);
        std::ptr::eq(self.roots.as_ptr(), Arc::as_ptr(roots)) && (self.since_s..until_s).contains(&now_s)
    }
}

// === impl Proven ===

impl Proven {
    fn new(identity: Identity, mapped: Mapped, facts: ProofFacts, kind: Kind) -> Proven {
        Proven { identity, proof: Arc::new(Proof { agent: mapped.agent, facts, kind }) }
    }
}

// === impl Proof ===

impl Proof {
    /// What records show of it.
    #[must_use]
    pub fn facts(&self) -> &ProofFacts {
        &self.facts
    }
}

#[cfg(test)]
mod tests;
