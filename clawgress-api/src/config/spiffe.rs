//! SPIFFE on this node.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// SPIFFE on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spiffe {
    /// Where its Workload API is, of which control follows the bundles of the trust domains that say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_api: Option<WorkloadEndpoint>,
}

/// Where a Workload API is: `unix:///PATH` or `tcp://ADDRESS:PORT` (SPIFFE Workload Endpoint section 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WorkloadEndpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port of this machine.
    Tcp(SocketAddr),
}

// === impl WorkloadEndpoint ===

impl TryFrom<String> for WorkloadEndpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let refused = || {
            format!(
                "`{text}` is not where a Workload API may be: write `unix:///PATH`, or `tcp://ADDRESS:PORT` with a loopback \
                 address"
            )
        };
        if let Some(path) = text.strip_prefix("unix://") {
            let is_plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::RootDir);
            let is_path =
                path.len() > 1 && path.starts_with('/') && Path::new(path).components().all(is_plain);
            // Characters that a URI would have to escape are of no use here.
            let is_uri = path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%'));
            return if is_path && is_uri { Ok(WorkloadEndpoint::Unix(path.into())) } else { Err(refused()) };
        }
        let address = text.strip_prefix("tcp://").and_then(|address| address.parse::<SocketAddr>().ok());
        // INVARIANT: who is trusted never comes in clear over a network.
        let address = address.filter(|address| address.ip().is_loopback() && address.port() != 0);
        address.map(WorkloadEndpoint::Tcp).ok_or_else(refused)
    }
}

impl From<WorkloadEndpoint> for String {
    fn from(endpoint: WorkloadEndpoint) -> String {
        endpoint.to_string()
    }
}

impl fmt::Display for WorkloadEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkloadEndpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            WorkloadEndpoint::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_workload_api_may_be() {
        for text in ["unix:///run/spire/api.sock", "tcp://127.0.0.1:8000", "tcp://[::1]:8000"] {
            let endpoint = WorkloadEndpoint::try_from(text.to_owned()).expect(text);
            assert_eq!(endpoint.to_string(), text);
        }
        for text in [
            "",
            "/run/spire/api.sock",
            "unix://",
            "unix:///",
            "unix:/run/api.sock",
            "unix://run/api.sock",
            "unix:///run/../api.sock",
            "unix:///run/api.sock?x",
            "unix:///run/api%20.sock",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:8000/foo",
            "tcp://localhost:8000",
            "tcp://192.0.2.1:8000",
            "https://127.0.0.1:8000",
        ] {
            assert!(WorkloadEndpoint::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
