//! URLs of providers: `https` to named hosts, in their one spelling, so that whoever fetches them can't read another
//! host in them than was judged.

use url::{Host, Url};

/// Longest URL, bytes.
const URL_BYTES_MAX: usize = 512;
/// Most hosts that keys may be at.
pub(crate) const HOSTS_MAX: usize = 16;
/// Where a discovery document is (OpenID Connect Discovery section 4).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// A URL that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderUrl {
    text: String,
    /// `host`, or `host:port` if the port is not 443.
    host: String,
}

/// Why a URL may not be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// There is none.
    #[error("missing")]
    Missing,
    /// No URL, too long, or not as it would be written again.
    #[error("not a URL in its plain spelling of at most {URL_BYTES_MAX} bytes")]
    Spelling,
    /// Not `https`.
    #[error("not `https`")]
    Scheme,
    /// It has a user name or a fragment, or a query where none may be.
    #[error("has a user name, a fragment or a query")]
    Parts,
    /// Its host is an address: name the host, so that its certificate can be checked.
    #[error("its host is an address: name the host")]
    Address,
    /// Its host is not one where keys may be.
    #[error("its host is neither the issuer's nor one of `key_hosts`")]
    Host,
}

// === impl ProviderUrl ===

impl ProviderUrl {
    /// An issuer's URL: its spelling is that of `iss`, which may leave out the last `/`.
    pub(crate) fn issuer(text: &str) -> Result<ProviderUrl, UrlError> {
        let url = parse(text)?;
        if url.query().is_some() {
            return Err(UrlError::Parts);
        }
        ProviderUrl::of(text, &url)
    }

    /// A URL that is configured whole.
    pub(crate) fn endpoint(text: &str) -> Result<ProviderUrl, UrlError> {
        ProviderUrl::of(text, &parse(text)?)
    }

    /// A key set's URL, at one of these hosts.
    pub(crate) fn keys(text: &str, hosts: &[String]) -> Result<ProviderUrl, UrlError> {
        let url = ProviderUrl::of(text, &parse(text)?)?;
        if hosts.contains(&url.host) { Ok(url) } else { Err(UrlError::Host) }
    }

    fn of(text: &str, url: &Url) -> Result<ProviderUrl, UrlError> {
        let Some(Host::Domain(host)) = url.host() else { return Err(UrlError::Address) };
        // URLs may have stranger ones; names in certificates may not.
        if !host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-')) {
            return Err(UrlError::Spelling);
        }
        let host = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(ProviderUrl { text: text.to_owned(), host })
    }

    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its host, with the port if that is not 443.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn discovery(&self) -> String {
        format!("{}{DISCOVERY}", self.text.trim_end_matches('/'))
    }
}

fn parse(text: &str) -> Result<Url, UrlError> {
    if text.len() > URL_BYTES_MAX {
        return Err(UrlError::Spelling);
    }
    let url = Url::parse(text).map_err(|_| UrlError::Spelling)?;
    if url.scheme() != "https" {
        return Err(UrlError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(UrlError::Parts);
    }
    // Written again it is the same: no backslash, tab, dot segment, other case or numeric host is in between. Only
    // the `/` of an empty path may be left out.
    let again = url.as_str();
    if again == text || again.strip_suffix('/') == Some(text) { Ok(url) } else { Err(UrlError::Spelling) }
}

/// Whether a text is `host` or `host:port` as [`ProviderUrl::host`] would write it.
pub(crate) fn is_host(text: &str) -> bool {
    ProviderUrl::issuer(&format!("https://{text}")).is_ok_and(|url| url.host == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers() {
        for (text, host) in [
            ("https://idp.test", "idp.test"),
            ("https://idp.test/", "idp.test"),
            ("https://idp.test:8443/realms/a", "idp.test:8443"),
            ("https://idp.test/a/", "idp.test"),
            ("https://xn--bcher-kva.test", "xn--bcher-kva.test"),
        ] {
            let url = ProviderUrl::issuer(text).unwrap();
            assert_eq!((url.as_str(), url.host()), (text, host));
            assert!(!url.discovery().contains("//.") && url.discovery().ends_with(DISCOVERY));
        }
        for (text, error) in [
            ("", UrlError::Spelling),
            ("idp.test", UrlError::Spelling),
            ("http://idp.test", UrlError::Scheme),
            ("file:///etc/passwd", UrlError::Scheme),
            ("HTTPS://idp.test", UrlError::Spelling),
            ("https://IDP.test", UrlError::Spelling),
            ("https://idp.test:443", UrlError::Spelling),
            ("https://bücher.test", UrlError::Spelling),
            ("https://idp.test/a/../b", UrlError::Spelling),
            ("https://idp.test\\@evil.test", UrlError::Spelling),
            ("https://idp.test/\t", UrlError::Spelling),
            (" https://idp.test", UrlError::Spelling),
            ("https:idp.test", UrlError::Spelling),
            ("https://idp.test@evil.test", UrlError::Parts),
            ("https://u:p@idp.test", UrlError::Parts),
            ("https://idp.test/#f", UrlError::Parts),
            ("https://idp.test/?q", UrlError::Parts),
            ("https://127.0.0.1", UrlError::Address),
            ("https://[::1]", UrlError::Address),
            ("https://2130706433", UrlError::Spelling),
            ("https://0x7f.1", UrlError::Spelling),
            ("https://169.254.169.254/latest", UrlError::Address),
        ] {
            assert_eq!(ProviderUrl::issuer(text).err(), Some(error), "{text}");
        }
    }

    #[test]
    fn keys_are_where_they_may_be() {
        let hosts = ["idp.test".to_owned(), "keys.test:8443".to_owned()];
        for text in ["https://idp.test/jwks", "https://idp.test/jwks?v=1", "https://keys.test:8443/"] {
            assert!(ProviderUrl::keys(text, &hosts).is_ok(), "{text}");
        }
        for (text, error) in [
            ("https://keys.test/", UrlError::Host),
            ("https://idp.test:8443/", UrlError::Host),
            ("https://evil.test/", UrlError::Host),
            ("https://idp.test.evil.test/", UrlError::Host),
            ("https://idp.test./", UrlError::Host),
            ("http://idp.test/jwks", UrlError::Scheme),
            ("https://169.254.169.254/", UrlError::Address),
            ("https://evil.test/#@idp.test", UrlError::Parts),
        ] {
            assert_eq!(ProviderUrl::keys(text, &hosts).err(), Some(error), "{text}");
        }
    }

    #[test]
    fn hosts() {
        for host in ["idp.test", "idp.test:8443", "localhost"] {
            assert!(is_host(host), "{host}");
        }
        for host in
            ["", "IDP.test", "idp.test:443", "idp.test/", "idp.test:", "127.0.0.1", "*.test", "a@b", "a b"]
        {
            assert!(!is_host(host), "{host}");
        }
    }
}
