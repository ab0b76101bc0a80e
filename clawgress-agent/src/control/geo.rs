//! Geo data: `MaxMind` DB files to the prefixes of the ASNs and countries that policy names. Must never hand
//! on part of a file: all of it was read and understood, or none of it counts.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clawgress_api::GeoSource;
use clawgress_api::config;
use clawgress_policy::{GEO_PREFIXES_MAX, Geo, GeoNames};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use maxminddb::{LookupResult, Reader, WithinOptions};
use serde::{Deserialize, Serialize};

/// Largest file, bytes: several times the largest that is sold, and little beside what a compile takes.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Most networks taken from a file before neighbours are joined.
const NETWORKS_MAX: usize = 4 * GEO_PREFIXES_MAX;
/// Most leaves of a file's tree, empty ones too: a tree whose branches meet again has no end in practice.
const LEAVES_MAX: usize = 32 << 20;
/// Where the tree may hold all of IPv4 again (6to4, Teredo): reserved addresses, which data open to nobody.
const ALIASES: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
];

/// The geo data in force, and where they are from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeoInForce {
    /// What policy is decided by.
    pub geo: Geo,
    /// The file of the ASNs, if one was read.
    pub asn: Option<GeoSource>,
    /// The file of the countries, if one was read.
    pub country: Option<GeoSource>,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Autonomous systems.
    Asn,
    /// Countries.
    Country,
}

/// Why a file does not count; the data in force stay.
#[derive(Debug, thiserror::Error)]
pub enum GeoError {
    /// It can't be read.
    #[error("cannot read the {} data `{}`: {error}; put the file there, or correct `[geo] {}` in the configuration", .kind.name(), .path.display(), .kind.key())]
    Read {
        /// What it is for.
        kind: Kind,
        /// Where.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what it should be.
    #[error("`{}` is no usable file of {} data: {why}; bring it again whole, in the MaxMind DB format, or correct `[geo] {}` in the configuration", .path.display(), .kind.name(), .kind.key())]
    Invalid {
        /// What it is for.
        kind: Kind,
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// By which a change of a file is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What of a record is used, in the shapes that publishers write it.
#[derive(Deserialize)]
struct AsnRecord {
    autonomous_system_number: Option<u32>,
    asn: Option<AsnField>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AsnField {
    Number(u32),
    Text(String),
}

#[derive(Deserialize)]
struct CountryRecord {
    country: Option<CountryField>,
    country_code: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CountryField {
    Text(String),
    Map { iso_code: Option<String> },
}

// === impl Kind ===

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Asn, Kind::Country];

    fn name(self) -> &'static str {
        match self {
            Kind::Asn => "ASN",
            Kind::Country => "country",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Kind::Asn => "asn",
            Kind::Country => "country",
        }
    }

    /// The file that is configured for it.
    #[must_use]
    pub fn path(self, config: &config::Geo) -> Option<&Path> {
        match self {
            Kind::Asn => config.asn.as_deref(),
            Kind::Country => config.country.as_deref(),
        }
    }
}

// === impl GeoInForce ===

impl GeoInForce {
    /// Reads what `names` names from the files that are configured; with `all`, every file is read and
    /// checked, though nothing of it is named.
    ///
    /// # Errors
    /// If a file can't be read or isn't understood. What is named and not in the data is left out: policy
    /// is refused for it, with its place.
    pub fn read(config: &config::Geo, names: &GeoNames, all: bool) -> Result<GeoInForce, GeoError> {
        let mut this = GeoInForce::default();
        if let Some(path) = &config.asn {
            this.geo.asns = Some(BTreeMap::new());
            if all || !names.asns.is_empty() {
                let (found, source) = expand(Kind::Asn, path, |result| {
                    Ok(result.decode::<AsnRecord>()?.and_then(AsnRecord::number))
                })?;
                let named = found.into_iter().filter(|(number, _)| names.asns.contains(number));
                this.geo.asns = Some(named.collect());
                this.asn = Some(source);
            }
        }
        if let Some(path) = &config.country {
            this.geo.countries = Some(BTreeMap::new());
            if all || !names.countries.is_empty() {
                let (found, source) = expand(Kind::Country, path, |result| {
                    Ok(result.decode::<CountryRecord>()?.and_then(CountryRecord::code))
                })?;
                let named = found.into_iter().filter(|(code, _)| names.countries.contains(code));
                this.geo.countries = Some(named.collect());
                this.country = Some(source);
            }
        }
        Ok(this)
    }

    /// The names whose prefixes it has.
    #[must_use]
    pub fn names(&self) -> GeoNames {
        GeoNames {
            asns: self.geo.asns.iter().flatten().map(|(number, _)| *number).collect(),
            countries: self.geo.countries.iter().flatten().map(|(code, _)| code.clone()).collect(),
        }
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Of the file as it is now; `None` if it can't be looked at.
    #[must_use]
    pub fn of(path: &Path) -> Option<Fingerprint> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Fingerprint {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

// === impl AsnRecord ===

impl AsnRecord {
    fn number(self) -> Option<u32> {
        let number = self.autonomous_system_number.or(match self.asn {
            Some(AsnField::Number(number)) => Some(number),
            Some(AsnField::Text(text)) => text.trim_start_matches("AS").parse().ok(),
            None => None,
        });
        number.filter(|number| *number > 0)
    }
}

// === impl CountryRecord ===

impl CountryRecord {
    fn code(self) -> Option<String> {
        let code = match self.country {
            Some(CountryField::Text(code)) if code.len() == 2 => Some(code),
            Some(CountryField::Map { iso_code }) => iso_code,
            Some(CountryField::Text(_)) | None => None,
        };
        code.or(self.country_code).filter(|code| !code.is_empty())
    }
}

type Prefixes<K> = BTreeMap<K, Vec<IpNet>>;

/// Every key of a file with its prefixes, neighbours joined.
fn expand<K: Ord + Clone>(
    kind: Kind,
    path: &Path,
    key: impl Fn(&LookupResult<'_, Vec<u8>>) -> Result<Option<K>, maxminddb::MaxMindDbError>,
) -> Result<(Prefixes<K>, GeoSource), GeoError> {
    let invalid = |why: String| GeoError::Invalid { kind, path: path.to_owned(), why };
    let corrupt = |error: maxminddb::MaxMindDbError| invalid(error.to_string());
    let bytes = load(kind, path)?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let reader = Reader::from_source(bytes).map_err(corrupt)?;
    // Many networks share a record: each is decoded once.
    let mut keys: HashMap<usize, Option<K>> = HashMap::new();
    let mut found: Prefixes<K> = BTreeMap::new();
    let mut networks = 0_usize;
    // The reader takes for an alias whatever shares a record with IPv4's place, so aliases are told here.
    let options = WithinOptions::default().include_aliased_networks().include_networks_without_data();
    for (leaf, result) in reader.networks(options).map_err(corrupt)?.enumerate() {
        if leaf >= LEAVES_MAX {
            return Err(invalid(format!("its tree has more than {LEAVES_MAX} leaves")));
        }
        let result = result.map_err(corrupt)?;
        let Some(offset) = result.offset() else { continue };
        let known = match keys.get(&offset) {
            Some(known) => known.clone(),
            None => keys.entry(offset).or_insert(key(&result).map_err(corrupt)?).clone(),
        };
        let Some(key) = known else { continue };
        networks += 1;
        if networks > NETWORKS_MAX {
            return Err(invalid(format!("it has more than {NETWORKS_MAX} networks")));
        }
        let network = result.network().map_err(corrupt)?;
        let net = IpNet::new(network.ip(), network.prefix()).map_err(|e| invalid(e.to_string()))?;
        found.entry(key).or_default().extend(placed(net.trunc()));
    }
    if found.is_empty() {
        return Err(invalid(format!("it says nothing of any {}", kind.name())));
    }
    let found = found.into_iter().map(|(key, nets)| (key, IpNet::aggregate(&nets))).collect();
    let meta = reader.metadata();
    let source = GeoSource {
        path: path.to_owned(),
        database: meta.database_type.clone(),
        built: i64::try_from(meta.build_epoch)
            .ok()
            .and_then(|epoch_s| Timestamp::from_second(epoch_s).ok())
            .unwrap_or(Timestamp::UNIX_EPOCH),
        sha256: digest.as_ref().iter().map(|b| format!("{b:02x}")).collect(),
    };
    Ok((found, source))
}

/// Where a network of the file's tree lies for policy. The tree holds IPv4 below `::/96`, so what encloses
/// that says the same of IPv4; IPv4-mapped addresses are IPv4, and have no place of their own.
fn placed(net: IpNet) -> impl Iterator<Item = IpNet> {
    let mapped = |v6: Ipv6Net| v6.prefix_len() >= 96 && v6.addr().to_ipv4_mapped().is_some();
    let aliased = |v6: Ipv6Net| ALIASES.iter().any(|alias| alias.contains(&v6) && *alias != v6);
    let (own, v4) = match net {
        IpNet::V6(v6) if mapped(v6) || aliased(v6) => (None, None),
        IpNet::V6(v6) if v6.addr().is_unspecified() && v6.prefix_len() <= 96 => {
            (Some(net), Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).ok().map(IpNet::V4))
        }
        _ => (Some(net), None),
    };
    own.into_iter().chain(v4)
}

fn load(kind: Kind, path: &Path) -> Result<Vec<u8>, GeoError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| GeoError::Read { kind, path: path.to_owned(), error })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let why = format!("it is over {FILE_BYTES_MAX} bytes");
        return Err(GeoError::Invalid { kind, path: path.to_owned(), why });
    }
    Ok(bytes)
}
