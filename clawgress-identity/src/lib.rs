//! Who an agent is: ids that carry their tenant, source bindings, API keys, tokens, certificates and SPIFFE, and the
//! pure decision "credential + trust snapshot + now -> identity or a precise reason".
//!
//! This crate does no I/O, holds no clock and starts no task; time is an argument.
#![forbid(unsafe_code)]

mod agent;
mod algorithm;
mod api_key;
mod base64url;
mod binding;
mod certificate;
mod claims;
mod group;
mod holders;
mod issuer;
mod json;
mod jwk;
mod jwks;
mod mapping;
mod oidc;
mod owner;
mod provider_key;
mod quote;
mod retry;
mod root;
mod roots;
mod shared;
mod spiffe;
#[cfg(test)]
mod testing;
mod token;
mod trust;

pub use agent::{Agent, AgentId, AgentIdError, AgentState, DEFAULT_TENANT, name_is_valid};
pub use algorithm::Algorithm;
pub use api_key::{ApiKey, ApiKeyError, ApiKeyRecord, KEY_MAC_BYTES};
pub use binding::{BindingError, MacAddress, Source};
pub use certificate::{
    AnchorsError, Authority, AuthorityError, AuthorityRecord, CHAIN_BYTES_MAX, CHAIN_MAX, CertificateError,
    ListDetails, NameKind, PEM_BYTES_MAX, Revocation,
};
pub use claims::{ACTORS_MAX, Actor, SKEW_S_MAX};
pub use group::{Group, GroupId, GroupKind, OWNER_LABEL};
pub use holders::{Holder, Holders};
pub use issuer::{ClaimPath, Delegation, ISSUERS_MAX, Issuer, IssuerError, IssuerRecord};
pub use json::JsonError;
pub use jwks::{JWKS_BYTES_MAX, JWKS_KEYS_MAX, JwksError, KEYS_TRIED_MAX, KeySet, Skipped};
pub use mapping::{Mapping, MappingError, MappingRuleError, Part, Requirement, Rule};
pub use oidc::{
    AnswerError, DISCOVERY_BYTES_MAX, Fetch, Next, Provider, ProviderError, ProviderRecord, ProviderUrl,
    UrlError, What,
};
pub use owner::PolicyOwner;
pub use provider_key::{ProviderKeyId, ProviderKeyRecord};
pub use retry::Retry;
pub use root::RootId;
pub use roots::{RootError, RootRecords, Roots};
pub use shared::{SharedSource, SourceId};
pub use spiffe::{
    BUNDLE_CERTIFICATES_MAX, BundleEndpointRecord, BundleError, BundleSource, EndpointProfile,
    FollowedBundle, IdPart, SPIFFE_ID_BYTES_MAX, SourceError, SpiffeBundle, SpiffeId, SpiffeIdError,
    TrustDomain, TrustDomainError, TrustDomainName, TrustDomainRecord, WorkloadApiRecord,
};
pub use token::{TOKEN_BYTES_MAX, TokenError};
pub use trust::{
    Identity, IdentityError, IdentityMethod, Origin, Proof, ProofFacts, Proven, RefusedCredential,
    RefusedToken, TrustSnapshot,
};
