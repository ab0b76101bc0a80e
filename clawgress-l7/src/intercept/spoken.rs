//! Which protocols servers have spoken, so that clients are offered what their server would have offered them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use clawgress_policy::Host;
use parking_lot::RwLock;
use rustls::ServerConfig;

use super::ALPN_HTTP2;
use crate::limit;

/// What servers that are read chose when they were dialled last, of both protocols.
#[derive(Debug, Default)]
pub struct Spoken(RwLock<Known>);

/// By host and port, first in first out.
#[derive(Debug, Default)]
struct Known {
    /// Whether it was HTTP/2.
    two: HashMap<(Host, u16), bool>,
    order: VecDeque<(Host, u16)>,
}

// === impl Spoken ===

impl Spoken {
    /// Notes what a server speaks.
    pub fn note(&self, to: &(Host, u16), two: bool) {
        if self.0.read().two.get(to) == Some(&two) {
            return;
        }
        let mut known = self.0.write();
        if known.two.insert(to.clone(), two).is_some() {
            return;
        }
        known.order.push_back(to.clone());
        if known.order.len() > limit::LEAVES_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.two.remove(&oldest);
        }
    }

    /// `config`, without HTTP/2 if the server at `to` does not speak it. A client that `offers` nothing else is left it:
    /// the gateway speaks either protocol to either side.
    #[must_use]
    pub fn mirrored(
        &self,
        config: Arc<ServerConfig>,
        to: &(Host, u16),
        offers: &[String],
    ) -> Arc<ServerConfig> {
        let is_older = self.0.read().two.get(to) == Some(&false);
        if !is_older || offers.iter().all(|name| name == ALPN_HTTP2) {
            return config;
        }
        let mut older = ServerConfig::clone(&config);
        older.alpn_protocols.retain(|name| name != ALPN_HTTP2.as_bytes());
        Arc::new(older)
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::server::ResolvesServerCertUsingSni;

    use super::*;

    #[test]
    fn a_client_is_offered_what_its_server_chose_last() {
        let (spoken, to) = (Spoken::default(), (Host::parse("a.test").expect("host"), 443));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        config.alpn_protocols = super::super::ALPN.map(|name| name.as_bytes().to_vec()).to_vec();
        let config = Arc::new(config);
        let (both, two) = (["h2", "http/1.1"].map(str::to_owned), ["h2".to_owned()]);
        let offered =
            |offers: &[String]| spoken.mirrored(Arc::clone(&config), &to, offers).alpn_protocols.len();
        assert_eq!(offered(&both), 2, "nobody knows");
        spoken.note(&to, false);
        assert_eq!((offered(&both), offered(&two), offered(&[])), (1, 2, 2));
        spoken.note(&to, true);
        assert_eq!(offered(&both), 2);
        for port in 0..u16::try_from(limit::LEAVES_MAX).expect("number") + 7 {
            spoken.note(&(to.0.clone(), port), true);
        }
        let known = spoken.0.read();
        assert_eq!((known.two.len(), known.order.len()), (limit::LEAVES_MAX, limit::LEAVES_MAX));
    }
}
