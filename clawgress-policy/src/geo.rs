//! Which addresses belong to an autonomous system or a country: the classes `Asn` and `Country`.
//!
//! The data are handed in as prefixes, and only those that policy names; whoever may read files makes
//! them. Must never name an address for the guard of reserved addresses: what others wrote into a data
//! set opens nothing inside.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{Context, SHA256};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::set::Source;

/// Most prefixes of all ASNs and countries together, as for the members of named sets.
pub const GEO_PREFIXES_MAX: usize = crate::SET_MEMBERS_MAX;

/// The geo data in force: prefixes of the ASNs and countries that policy names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geo {
    /// Prefixes by number of the autonomous system; `None` if no such data are configured. One that the
    /// data don't have is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asns: Option<BTreeMap<u32, Vec<IpNet>>>,
    /// Prefixes by code of the country (ISO 3166-1 alpha-2, upper case); `None` if no such data are
    /// configured. One that the data don't have is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub countries: Option<BTreeMap<String, Vec<IpNet>>>,
}

/// The ASNs and countries that policy text names: what of the data must be handed in with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeoNames {
    /// Numbers of autonomous systems.
    pub asns: BTreeSet<u32>,
    /// Codes of countries.
    pub countries: BTreeSet<String>,
}

impl Geo {
    /// How many prefixes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let asns = self.asns.iter().flat_map(BTreeMap::values).map(Vec::len).sum::<usize>();
        asns + self.countries.iter().flat_map(BTreeMap::values).map(Vec::len).sum::<usize>()
    }

    /// A name for exactly these data, of 16 hexadecimal digits; `None` where nothing is named.
    #[must_use]
    pub fn edition(&self) -> Option<String> {
        let asns = self.asns.iter().flatten().map(|(number, prefixes)| (asn_id(*number), prefixes));
        let countries = self.countries.iter().flatten().map(|(code, prefixes)| (code.clone(), prefixes));
        let mut named = asns.chain(countries).peekable();
        named.peek()?;
        let mut digest = Context::new(&SHA256);
        // Names and prefixes have no space in them, so that no two lists are written alike.
        for (name, prefixes) in named {
            digest.update(format!("{name}\n").as_bytes());
            prefixes.iter().for_each(|prefix| digest.update(format!(" {prefix}\n").as_bytes()));
        }
        Some(digest.finish().as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// One name for the data that two sets rest on, by the editions of either's.
    #[must_use]
    pub fn joint_edition(own: Option<String>, platform: Option<String>) -> Option<String> {
        match (own, platform) {
            (Some(own), Some(platform)) => Some(format!("{own}+{platform}")),
            (own, platform) => own.or(platform),
        }
    }

    /// The data of these names alone.
    #[must_use]
    pub fn only(&self, names: &GeoNames) -> Geo {
        let asns = self.asns.as_ref().map(|all| {
            let named = names.asns.iter().filter_map(|n| Some((*n, all.get(n)?.clone())));
            named.collect()
        });
        let countries = self.countries.as_ref().map(|all| {
            let named = names.countries.iter().filter_map(|c| Some((c.clone(), all.get(c)?.clone())));
            named.collect()
        });
        Geo { asns, countries }
    }

    /// Whether there is no prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl GeoNames {
    /// Those that `text` names. Text that is not valid names nothing: parsing it as policy says why.
    #[must_use]
    pub fn of(text: &str) -> GeoNames {
        let mut names = GeoNames::default();
        if Source::new(text).check_bounds().is_err() {
            return names;
        }
        let Ok(set) = text.parse::<cedar_policy::PolicySet>() else { return names };
        for uid in set.policies().flat_map(cedar_policy::Policy::entity_literals) {
            match (uid.type_name().to_string().as_str(), uid.id().unescaped()) {
                ("Asn", id) => names.asns.extend(asn(id)),
                ("Country", id) if is_country(id) => drop(names.countries.insert(id.to_owned())),
                _ => {}
            }
        }
        names
    }

    /// Those of both.
    #[must_use]
    pub fn and(mut self, other: GeoNames) -> GeoNames {
        self.asns.extend(other.asns);
        self.countries.extend(other.countries);
        self
    }

    /// Whether nothing is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.asns.is_empty() && self.countries.is_empty()
    }
}

/// The number in `AS16509`, if it is written so (RFC 5396 asplain, after `AS`).
pub(crate) fn asn(id: &str) -> Option<u32> {
    let number: u32 = id.strip_prefix("AS")?.parse().ok()?;
    // `AS+1` and `AS01` parse too, and would be names that nothing has.
    (asn_id(number) == id && number > 0).then_some(number)
}

/// The id of an autonomous system's entity.
pub(crate) fn asn_id(number: u32) -> String {
    format!("AS{number}")
}

/// Whether the text has the form of a country's code.
pub(crate) fn is_country(id: &str) -> bool {
    id.len() == 2 && id.bytes().all(|b| b.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_scopes_and_conditions() {
        let names = GeoNames::of(
            r#"@id("a") permit (principal, action == Action::"connect", resource in Asn::"AS16509")
               when { resource in [Country::"DE", Asn::"AS4294967295"] };
               @id("b") forbid (principal, action == Action::"direct", resource) unless { resource in Country::"FR" };
               @id("c") permit (principal, action == Action::"connect", resource in Asn::"as1")
               when { resource in Country::"de" || resource in Asn::"AS01" };"#,
        );
        assert_eq!(names.asns, BTreeSet::from([16_509, u32::MAX]));
        assert_eq!(names.countries, BTreeSet::from(["DE".to_owned(), "FR".to_owned()]));
        assert!(GeoNames::of("permit (").is_empty() && GeoNames::of("").is_empty());
        assert!(GeoNames::of(&"(".repeat(100_000)).is_empty());
    }

    #[test]
    fn ids_have_one_spelling() {
        for (id, number) in [
            ("AS1", Some(1)),
            ("AS4294967295", Some(u32::MAX)),
            ("AS0", None),
            ("AS4294967296", None),
            ("as1", None),
            ("AS01", None),
            ("AS+1", None),
            ("AS", None),
            ("16509", None),
        ] {
            assert_eq!(asn(id), number, "{id}");
        }
        assert!(is_country("DE") && !is_country("de") && !is_country("DEU") && !is_country("ÄE"));
    }
}
