//! Time zones for what is asked here: of times that may be long over, for which the node's own offsets, which are those
//! around now, are none.

use clawgress_policy::{ZONE_OFFSETS_MAX, Zone};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The zone of this name, with its offsets from `from` on.
///
/// # Errors
/// If this machine has no such zone.
pub fn since(name: &str, from: Timestamp) -> Result<Zone, String> {
    if name == "UTC" {
        return Ok(Zone::default());
    }
    let zone = TimeZone::get(name).map_err(|_| {
        format!(
            "there is no time zone `{}` here: write a name such as `Europe/Berlin`, and have the time zone database (package `tzdata`) on this machine",
            crate::output::clean(name)
        )
    })?;
    let first = (from.as_second(), zone.to_offset(from).seconds());
    let later = zone.following(from).map(|t| (t.timestamp().as_second(), t.offset().seconds()));
    let offsets = std::iter::once(first).chain(later).take(ZONE_OFFSETS_MAX).collect();
    Ok(Zone { name: name.to_owned(), offsets })
}

/// The same zone, also of the time before the node's offsets begin; as it is, if this machine doesn't know it.
pub fn widened(zone: Zone, from: Timestamp) -> Zone {
    since(&zone.name, from).unwrap_or(zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_reach_back() {
        let from: Timestamp = "2020-01-01T00:00Z".parse().expect("a time");
        let zone = since("Europe/Berlin", from).expect("a zone");
        let offset = |at: &str| {
            let at = at.parse::<Timestamp>().expect("a time").as_second();
            zone.offsets.iter().rev().find(|(from, _)| *from <= at).map(|(_, offset)| *offset)
        };
        assert_eq!(offset("2020-07-01T12:00Z"), Some(7_200));
        assert_eq!(offset("2020-12-01T12:00Z"), Some(3_600));
        assert_eq!(offset("2033-07-01T12:00Z"), Some(7_200));
        assert_eq!(since("UTC", from), Ok(Zone::default()));
        assert!(since("Europe/Nowhere", from).is_err_and(|told| told.contains("`Europe/Nowhere`")));
    }
}
