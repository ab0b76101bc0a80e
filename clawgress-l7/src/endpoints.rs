//! Base-URL endpoints: for clients that don't know of proxies, and take a base URL. Such a request is made to the
//! gateway itself; its first segment names the upstream, its credential is the agent's own and stays here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clawgress_api::config::Endpoint;
use clawgress_inspect::proxy_request::{self, Target};
use clawgress_policy::{Host, Scheme};
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::roots;

/// Ports of the schemes (RFC 9110 section 4.2).
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Where an endpoint's requests go.
pub struct Upstream {
    /// Tells endpoints apart, from 1.
    pub number: u32,
    /// `Http` or `Https`.
    pub scheme: Scheme,
    /// Canonical host.
    pub host: Host,
    /// Port.
    pub port: u16,
    /// What every path begins with: empty, or `/…` without a slash at its end.
    pub path: String,
    /// What its certificate must lead to; `None` where there is none.
    pub ca: Option<Arc<CaType>>,
}

/// All of them, by name.
#[derive(Debug, Default)]
pub struct Endpoints(BTreeMap<String, Arc<Upstream>>);

// === impl Upstream ===

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Upstream { scheme, host, port, path, .. } = self;
        f.debug_struct("Upstream")
            .field("scheme", scheme)
            .field("host", host)
            .field("port", port)
            .field("path", path)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    pub(crate) fn parse(number: u32, text: &str, ca: Option<&Path>) -> Result<Upstream> {
        let (scheme, plain, default) = match text.strip_prefix("https://") {
            Some(rest) => (Scheme::Https, format!("http://{rest}"), HTTPS_PORT),
            None => (Scheme::Http, text.to_owned(), HTTP_PORT),
        };
        let Ok(Target::Absolute { is_tls: false, host, port, path }) =
            proxy_request::parse("GET", plain.as_bytes())
        else {
            bail!("it is not `https://HOST[:PORT][/PATH]`");
        };
        let host = Host::parse(host).context("its host is not a name or an address")?;
        if scheme == Scheme::Https && matches!(host, Host::Address(_)) {
            bail!("a certificate is verified for a name: write the host's name instead of its address");
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.contains('?') || !path.is_empty() && proxy_request::plain_path(path).is_err() {
            bail!("its path must be plain, and without a query");
        }
        let ca = match ca {
            Some(path) => Some(load(path)?),
            None if scheme == Scheme::Https => Some(roots::load(&[])?),
            None => None,
        };
        Ok(Upstream { number, scheme, host, port: port.unwrap_or(default), path: path.to_owned(), ca })
    }
}

fn load(path: &Path) -> Result<Arc<CaType>> {
    let parsed = certificates(path)?.into_iter().map(|c| WrappedX509::new(c.to_vec(), parse_x509));
    Ok(parsed.collect::<Vec<_>>().into())
}

/// Certificates of authorities that upstreams are verified by.
///
/// # Errors
/// If they can't be read or used.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = || format!("cannot read certificates from `{}`", path.display());
    let file = File::open(path).with_context(failed)?;
    let certificates = CertificateDer::pem_reader_iter(BufReader::new(file)).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.with_context(failed)?;
    if certificates.is_empty() {
        bail!("`{}` holds no certificate", path.display());
    }
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        // Pingora takes the process down for one that it can't read.
        roots.add(certificate.clone()).with_context(failed)?;
        x509_parser::parse_x509_certificate(certificate).with_context(failed)?;
    }
    Ok(certificates)
}

// === impl Endpoints ===

impl Endpoints {
    /// Those of the configuration.
    ///
    /// # Errors
    /// The first one that can't be used, and why.
    pub fn new(endpoints: &[Endpoint]) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (number, Endpoint { name, upstream, ca }) in (1..).zip(endpoints) {
            let parsed = Upstream::parse(number, upstream, ca.as_deref());
            let parsed = parsed.with_context(|| format!("endpoint `{name}`: `{upstream}` can't be used"))?;
            all.insert(name.clone(), Arc::new(parsed));
        }
        Ok(Endpoints(all))
    }

    /// The upstream that the first segment of `target` names, and the target to send there.
    #[must_use]
    pub fn find(&self, target: &str) -> Option<(Arc<Upstream>, String)> {
        let rest = target.strip_prefix('/')?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at_checked(end)?;
        let upstream = self.0.get(name)?;
        let slash = if rest.starts_with('/') { "" } else { "/" };
        Some((Arc::clone(upstream), format!("{}{slash}{rest}", upstream.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(upstream: &str) -> Result<Endpoints> {
        Endpoints::new(&[Endpoint { name: "llm".into(), upstream: upstream.into(), ca: None }])
    }

    #[test]
    fn paths_lead_below_the_upstream() {
        for (upstream, target, host, port, sent) in [
            ("https://API.Example.com", "/llm/v1/models?x=1", "api.example.com", 443, "/v1/models?x=1"),
            ("https://api.example.com/", "/llm", "api.example.com", 443, "/"),
            ("https://api.example.com/", "/llm?x", "api.example.com", 443, "/?x"),
            ("https://api.example.com:8443/base", "/llm/v1", "api.example.com", 8443, "/base/v1"),
            ("http://127.0.0.1:11434/a/b/", "/llm/", "127.0.0.1", 11434, "/a/b/"),
            ("http://[2001:db8::1]", "/llm/x", "2001:db8::1", 80, "/x"),
        ] {
            let endpoints = one(upstream).unwrap();
            let (found, path) = endpoints.find(target).unwrap();
            assert_eq!((found.host.to_string().as_str(), found.port), (host, port), "{upstream}");
            assert_eq!(path, sent, "{upstream} {target}");
        }
        let endpoints = one("https://api.example.com").unwrap();
        for target in ["/", "/other/v1", "/llmx", "/LLM/v1", "llm", "//llm"] {
            assert!(endpoints.find(target).is_none(), "{target}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for upstream in [
            "https://192.0.2.1",
            "https://",
            "https://a b",
            "https://user@a.test",
            "https://a.test/x?y",
            "https://a.test/../x",
            "https://a.test:0",
            "ftp://a.test",
        ] {
            let error = one(upstream).expect_err(upstream).to_string();
            assert!(error.starts_with("endpoint `llm`"), "{error}");
        }
        let ca = Some("/nonexistent.pem".into());
        let upstream = "https://a.test".to_owned();
        Endpoints::new(&[Endpoint { name: "llm".into(), upstream, ca }]).expect_err("no such file");
    }
}
