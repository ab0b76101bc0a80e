//! Reading TLS: whose authority signs for the servers that agents ask for, and for which of them never.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most names of a list: what is reviewed by eye.
const NAMES_MAX: usize = 1024;
/// Most files of further roots.
const ROOTS_MAX: usize = 16;
/// Longest name: that of DNS (RFC 1035 section 2.3.4), in text.
const NAME_BYTES_MAX: usize = 253;
/// Longest life of a leaf, hours: what is not revoked must end soon.
const LEAF_HOURS_MAX: u32 = 24 * 7;
/// Prefix of an entry that stands for what is below a name.
const BELOW: &str = "*.";

/// TLS is read where policy wants it read; without this table it is denied there (`inspection_required`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intercept {
    /// Certificate of an authority of one's own, and of those above it, in this order: PEM, read by the keys role.
    /// Without it, the keys role makes an authority at its first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM, which nobody but the keys role may read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Names that the authority made at first start may sign for, each with all below it; any if empty. They are
    /// constraints in its certificate, which clients check.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Hosts that are never read, such as those whose clients know their server's certificate: a name, or `*.` and a
    /// name for what is below it. They pass unread where policy permits that (`tunnel`), and are denied elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Files of certificates that servers' may lead to, PEM, beside the system's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<PathBuf>,
    /// How long a certificate for a host is valid, hours.
    #[serde(default = "leaf_hours")]
    pub leaf_hours: u32,
}

/// Long enough for any connection, and short enough to need no revocation.
fn leaf_hours() -> u32 {
    24
}

// === impl Intercept ===

impl Intercept {
    /// Whether `host`, in canonical form, is never read.
    #[must_use]
    pub fn excludes(&self, host: &str) -> bool {
        excludes(&self.exclude, host)
    }
}

/// Whether `host`, in canonical form, is among the hosts of a list as [`Intercept::exclude`] is.
#[must_use]
pub fn excludes(list: &[String], host: &str) -> bool {
    list.iter().any(|entry| match entry.strip_prefix(BELOW) {
        Some(above) => host.strip_suffix(above).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => entry == host,
    })
}

/// Checks names and paths; whether the files can be used is found out by who reads them.
pub(super) fn check(intercept: &Intercept) -> Result<(), super::check::Refused> {
    let Intercept { certificate, key, names, exclude, roots, leaf_hours } = intercept;
    let refused = |key: &'static str, why: String| Err((key, why));
    if certificate.is_some() != key.is_some() {
        return refused("[intercept]", "[intercept] needs both `certificate` and `key`, or neither".into());
    }
    if certificate.is_some() && !names.is_empty() {
        return refused(
            "names",
            "`names` in [intercept] are for an authority that is made here: yours has its own constraints"
                .into(),
        );
    }
    let paths = certificate.iter().map(|p| ("certificate", p)).chain(key.iter().map(|p| ("key", p)));
    for (key, path) in paths.chain(roots.iter().map(|p| ("roots", p))) {
        if !path.is_absolute() {
            return refused(
                key,
                format!("`{key}` must be an absolute path: roles have no directory of their own"),
            );
        }
    }
    if roots.len() > ROOTS_MAX || names.len() > NAMES_MAX || exclude.len() > NAMES_MAX {
        let most =
            format!("[intercept] takes {NAMES_MAX} `names`, as many of `exclude`, and {ROOTS_MAX} `roots`");
        return refused("[intercept]", most);
    }
    if !(1..=LEAF_HOURS_MAX).contains(leaf_hours) {
        return refused("leaf_hours", format!("`leaf_hours` in [intercept] is 1 to {LEAF_HOURS_MAX}"));
    }
    if let Some(name) = names.iter().find(|name| !is_name(name)) {
        let why = "write it in lower case, without a dot at its end; what is below it is meant too";
        return refused(
            "names",
            format!("`{}` is no name of [intercept] `names`: {why}", name.escape_debug()),
        );
    }
    if let Some(entry) = exclude.iter().find(|entry| !is_host(entry)) {
        let why = "write a name in lower case, without a dot at its end, or `*.` and such a name";
        return refused(
            "exclude",
            format!("`{}` is no host of [intercept] `exclude`: {why}", entry.escape_debug()),
        );
    }
    Ok(())
}

/// Whether it can be an entry of a list as [`Intercept::exclude`] is.
pub(super) fn is_host(entry: &str) -> bool {
    is_name(entry.strip_prefix(BELOW).unwrap_or(entry))
}

/// Whether decisions would compare it equal to anything: A-labels in lower case (RFC 5890).
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(is_known)
    };
    name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> Result<Intercept, (&'static str, String)> {
        let intercept: Intercept = toml::from_str(toml).expect("shape");
        check(&intercept).map(|()| intercept)
    }

    #[test]
    fn hosts_are_excluded_by_name_and_below_a_name() {
        let intercept = read("exclude = [\"a.test\", \"*.b.test\"]").expect("sound");
        for (host, want) in [
            ("a.test", true),
            ("x.a.test", false),
            ("b.test", false),
            ("x.b.test", true),
            ("x.y.b.test", true),
            ("xb.test", false),
            (".b.test", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(intercept.excludes(host), want, "{host}");
        }
    }

    #[test]
    fn what_would_do_nothing_is_refused() {
        for (toml, place) in [
            ("certificate = \"/a\"", "[intercept]"),
            ("key = \"/a\"", "[intercept]"),
            ("certificate = \"a\"\nkey = \"/b\"", "certificate"),
            ("certificate = \"/a\"\nkey = \"/b\"\nnames = [\"a\"]", "names"),
            ("roots = [\"a\"]", "roots"),
            ("leaf_hours = 0", "leaf_hours"),
            ("leaf_hours = 169", "leaf_hours"),
            ("names = [\"*.a.test\"]", "names"),
            ("names = [\"\"]", "names"),
            ("exclude = [\"A.test\"]", "exclude"),
            ("exclude = [\"a.test.\"]", "exclude"),
            ("exclude = [\"*\"]", "exclude"),
            ("exclude = [\"x.*.test\"]", "exclude"),
        ] {
            assert_eq!(read(toml).expect_err(toml).0, place, "{toml}");
        }
        read("").expect("all is optional");
    }
}
