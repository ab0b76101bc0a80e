//! Prefixes as people write them into sets. Must say which text is none, and how it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::host::quote;

/// One prefix.
struct Written(IpNet);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a prefix such as `192.0.2.0/24`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Written, E> {
                text.parse().map(Written).map_err(|_| E::custom(refusal(text)))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The prefixes of each set.
pub(super) fn networks<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, BTreeSet<IpNet>>, D::Error> {
    let sets = BTreeMap::<String, Vec<Written>>::deserialize(deserializer)?;
    Ok(sets.into_iter().map(|(name, list)| (name, list.into_iter().map(|w| w.0).collect())).collect())
}

fn refusal(text: &str) -> String {
    let shown = quote(text);
    match text.parse::<IpAddr>() {
        Ok(ip) => format!("`{shown}` is an address, not a prefix: write `{}`", IpNet::from(ip)),
        Err(_) => format!(
            "`{shown}` is not a prefix: write an address, `/`, and a length of at most 32 (IPv4) or 128 (IPv6), such as `192.0.2.0/24` or `2001:db8::/32`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::NamedSets;

    #[test]
    fn malformed_prefixes_are_refused_with_their_place() {
        for (written, wanted) in [
            (
                "10.0.0.0/33",
                "`10.0.0.0/33` is not a prefix: write an address, `/`, and a length of at most 32",
            ),
            ("10.0.0/8", "`10.0.0/8` is not a prefix"),
            ("2001:db8::/129", "`2001:db8::/129` is not a prefix"),
            ("", "`` is not a prefix"),
            ("192.0.2.7", "`192.0.2.7` is an address, not a prefix: write `192.0.2.7/32`"),
        ] {
            let toml =
                format!("[networks]\ngood = [\"10.0.0.0/8\"]\nbad = [\"10.0.0.0/8\", \"{written}\"]\n");
            let error = toml::from_str::<NamedSets>(&toml).unwrap_err();
            assert!(error.message().starts_with(wanted), "{written}: {error}");
            let line = toml.get(..error.span().unwrap().start).unwrap().matches('\n').count() + 1;
            assert_eq!(line, 3, "{written}: {error}");
        }
        let sets: NamedSets = toml::from_str("[networks]\na = [\"10.0.0.0/8\", \"10.0.0.0/8\"]").unwrap();
        assert_eq!(sets.networks["a"].len(), 1);
    }
}
