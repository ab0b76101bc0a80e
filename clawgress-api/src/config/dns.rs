//! What agents may ask the gateway's DNS.

use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

/// What one agent may ask the gateway's DNS. What looks like a tunnel is told in the record at an eighth
/// of what it may in a minute, and refused beyond that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Questions in a second, four times as many at once. What is beyond that is answered with `SERVFAIL`, and counted in the
    /// record, not written there one by one.
    #[serde(default = "questions")]
    pub questions_per_second_max: NonZeroU32,
    /// Unique names below one registered name.
    #[serde(default = "names")]
    pub names_per_minute_max: NonZeroU32,
    /// Questions of types that no client needs to reach a host: `TXT`, `NULL` and the like.
    #[serde(default = "uncommon")]
    pub uncommon_per_minute_max: NonZeroU32,
    /// Bytes of questions and answers.
    #[serde(default = "bytes")]
    pub bytes_per_minute_max: NonZeroU64,
}

impl Default for Dns {
    fn default() -> Self {
        Dns {
            questions_per_second_max: questions(),
            names_per_minute_max: names(),
            uncommon_per_minute_max: uncommon(),
            bytes_per_minute_max: bytes(),
        }
    }
}

/// A crawler that begins a hundred connections a second, each after two questions.
fn questions() -> NonZeroU32 {
    const { NonZeroU32::new(200).unwrap() }
}

/// More hosts of one provider than a busy crawler meets in a minute; of a tunnel, some tens of KiB.
fn names() -> NonZeroU32 {
    const { NonZeroU32::new(600).unwrap() }
}

/// A mail server that checks each sender asks as many.
fn uncommon() -> NonZeroU32 {
    const { NonZeroU32::new(300).unwrap() }
}

/// Some thousand questions with their answers.
fn bytes() -> NonZeroU64 {
    const { NonZeroU64::new(1 << 20).unwrap() }
}
