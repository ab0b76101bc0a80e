//! What seems to be at the other end of a request, as policy may ask for it: signals, never credentials. What is not
//! known of a request, its context doesn't have.

use serde::{Deserialize, Serialize};

/// What is known besides the fingerprint of a hello.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprints {
    /// SHA-256 of the executable that its local run began with, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// Directory of the cgroup that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// SHA-256 of its certificate or X.509-SVID: `sha256:` and hexadecimal digits, as records have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// MAC address that its source is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// An attribute of the context that one of them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Executable,
    Cgroup,
    Certificate,
    Mac,
}

// === impl Signal ===

impl Signal {
    pub(crate) const ALL: [Signal; 4] =
        [Signal::Executable, Signal::Cgroup, Signal::Certificate, Signal::Mac];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Signal::Executable => "executable",
            Signal::Cgroup => "cgroup",
            Signal::Certificate => "certificate",
            Signal::Mac => "mac",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Signal> {
        Signal::ALL.into_iter().find(|signal| signal.name() == name)
    }
}

// === impl Fingerprints ===

impl Fingerprints {
    pub(crate) fn of(&self, signal: Signal) -> Option<&str> {
        match signal {
            Signal::Executable => self.executable.as_deref(),
            Signal::Cgroup => self.cgroup.as_deref(),
            Signal::Certificate => self.certificate.as_deref(),
            Signal::Mac => self.mac.as_deref(),
        }
    }
}
