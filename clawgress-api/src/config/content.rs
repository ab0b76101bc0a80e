//! How bodies are read, where policy asks about them.

use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

/// How bodies are read, where policy asks about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Bytes of a body that are held until it is judged, before anything of the request goes on. What is larger streams from
    /// there on, and is read as it passes.
    #[serde(default = "hold")]
    pub hold_bytes_max: NonZeroU32,
    /// Seconds in which that many bytes, or the whole body, must be here.
    #[serde(default = "hold_s")]
    pub hold_s_max: NonZeroU32,
    /// Memory for all bodies that are held or read, bytes.
    #[serde(default = "memory")]
    pub memory_bytes_max: NonZeroU64,
    /// What of it those of one agent may take.
    #[serde(default = "agent_memory")]
    pub agent_memory_bytes_max: NonZeroU64,
    /// Bytes that one body may come to when it is decoded.
    #[serde(default = "decoded")]
    pub decoded_bytes_max: NonZeroU64,
    /// Bytes that it may come to for each of its own, beyond the first MiB.
    #[serde(default = "ratio")]
    pub ratio_max: NonZeroU32,
}

impl Default for Content {
    fn default() -> Self {
        Content {
            hold_bytes_max: hold(),
            hold_s_max: hold_s(),
            memory_bytes_max: memory(),
            agent_memory_bytes_max: agent_memory(),
            decoded_bytes_max: decoded(),
            ratio_max: ratio(),
        }
    }
}

/// A long conversation with a model, without its images.
fn hold() -> NonZeroU32 {
    const { NonZeroU32::new(1 << 20).unwrap() }
}

/// As long as a client may take between two reads.
fn hold_s() -> NonZeroU32 {
    const { NonZeroU32::new(60).unwrap() }
}

/// A hundred bodies of full size, with what their codings take.
fn memory() -> NonZeroU64 {
    const { NonZeroU64::new(256 << 20).unwrap() }
}

/// An eighth: one agent takes nobody else's.
fn agent_memory() -> NonZeroU64 {
    const { NonZeroU64::new(32 << 20).unwrap() }
}

/// A second or two of work.
fn decoded() -> NonZeroU64 {
    const { NonZeroU64::new(256 << 20).unwrap() }
}

/// Logs come to less than a hundred.
fn ratio() -> NonZeroU32 {
    const { NonZeroU32::new(250).unwrap() }
}
