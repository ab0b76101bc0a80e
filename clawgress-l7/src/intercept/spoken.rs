//! Which protocols servers have spoken, so that clients are offered what their server would have offered them.

use std::sync::Arc;

use clawgress_policy::Host;
use parking_lot::RwLock;
use rustls::ServerConfig;

use super::ALPN_HTTP2;
use crate::limit;
use crate::shared::Shared;

/// What servers that are read chose when they were dialled last, of both protocols: whether it was HTTP/2, by host and port; of
/// those that agents asked, each a share.
#[derive(Debug)]
pub struct Spoken(RwLock<Shared<(Host, u16), bool>>);

// === impl Spoken ===

impl Default for Spoken {
    fn default() -> Self {
        Spoken(RwLock::new(Shared::new(limit::LEAVES_MAX)))
    }
}

impl Spoken {
    /// Notes what a server speaks that the agent of this index has asked.
    pub fn note(&self, agent: u32, to: &(Host, u16), two: bool) {
        if self.0.read().find(to) != Some(&two) {
            self.0.write().keep(agent, to.clone(), two);
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
        let is_older = self.0.read().find(to) == Some(&false);
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
        spoken.note(1, &to, false);
        assert_eq!((offered(&both), offered(&two), offered(&[])), (1, 2, 2));
        spoken.note(1, &to, true);
        assert_eq!(offered(&both), 2);
        spoken.note(1, &to, false);
        for port in 0..u16::try_from(limit::LEAVES_MAX).expect("number") + 7 {
            spoken.note(2, &(to.0.clone(), port + 1000), true);
        }
        assert!(spoken.0.read().len() <= limit::LEAVES_MAX);
        assert_eq!(offered(&both), 1, "another agent's many push out nothing of this one's");
    }
}
