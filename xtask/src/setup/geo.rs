//! Geo data for a start: which addresses a country and an autonomous system have. They come as packages,
//! pinned by version and hash, through the ordinary client; a gateway works without them, but for policy
//! that names an ASN or a country. Operators bring their own: these are of one day.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::mmdb::{Writer, map, number};
use super::say;
use crate::cache;
use crate::shell;

/// A package, and the hash of its archive.
struct Package {
    name: &'static str,
    version: &'static str,
    sha512: &'static str,
}

/// Countries. The numbers are the RIRs', by the NRO, CC BY 4.0.
const COUNTRY: Package = Package {
    name: "@ip-location-db/geo-whois-asn-country-mmdb",
    version: "2.3.2026061719",
    sha512: "c5e9810cd425e260980ee55ba9ede32862ac543ca464691fbde6e1b4e87fdd518b69dabcbeca7bb7ba27b69314b77847eec0064f478b0f227df5257ed306b166",
};
/// Autonomous systems, by Route Views, DB-IP and the NRO, CC BY 4.0.
const ASN: Package = Package {
    name: "@ip-location-db/asn",
    version: "2.3.2026061719",
    sha512: "3e9a988bbc321325b0ba75c1b65fb2dd58b8d374af372c28b56c2f9a2602394b44d1256897f49fe3dd847be784ac4ce79866a9c44401d9201fae95ee67d6bebd",
};
/// When both were made, Unix seconds: 2026-06-17.
const BUILT_S: u32 = 1_781_654_400;
/// What people must be told who use them.
const NOTICE: &str = "\
country.mmdb is made of data by the NRO (nro.net).
asn.mmdb is made of data by Route Views (routeviews.org), DB-IP (https://db-ip.com) and the NRO (nro.net),
changed in form only. All are under the Creative Commons Attribution 4.0 International License; the packages'
own licence files are beside this one.
Both are of 2026-06-17, and their publisher knows of errors in them: for enforcement, bring data of your own
(`[geo]` of the configuration).
";

/// Fetches them, unless they are there; what can't be had is said, and no failure of the set-up.
pub fn install() -> anyhow::Result<()> {
    let dir = cache::geo()?;
    let wanted = format!("{} {}\n{} {}\n", COUNTRY.name, COUNTRY.version, ASN.name, ASN.version);
    let stamp = dir.join("installed.txt");
    let has = |name: &str| dir.join(name).is_file();
    if fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) && has("country.mmdb") && has("asn.mmdb") {
        say("geo data", &format!("present ({})", dir.display()));
        return Ok(());
    }
    let without =
        "policy that names an ASN or a country needs files of your own (`[geo]` of the configuration)";
    if !shell::found("npm") {
        say("geo data", &format!("not fetched, because there is no `npm`: {without}"));
        return Ok(());
    }
    say("geo data", "missing: fetching countries and autonomous systems, pinned by hash (25 MB)");
    let made = make(&dir).and_then(|()| fs::write(&stamp, wanted).context("cannot write the stamp"));
    match made {
        Ok(()) => say("geo data", &format!("installed; see `{}`", dir.join("NOTICE").display())),
        Err(error) => say("geo data", &format!("can't be had ({error:#}): {without}")),
    }
    Ok(())
}

fn make(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    let staging = dir.join("new");
    if staging.exists() {
        fs::remove_dir_all(&staging)?;
    }
    let country = fetch(&COUNTRY, &staging.join("country"))?;
    let asn = fetch(&ASN, &staging.join("asn"))?;
    fs::rename(country.join("geo-whois-asn-country.mmdb"), dir.join("country.mmdb"))?;
    let mut writer = Writer::new();
    for name in ["asn-ipv6.csv", "asn-ipv4.csv"] {
        let path = asn.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        add(&mut writer, &text).with_context(|| format!("`{name}` is not what it was"))?;
    }
    fs::write(staging.join("asn.mmdb"), writer.finish("ip-location-db-ASN", BUILT_S))?;
    fs::rename(staging.join("asn.mmdb"), dir.join("asn.mmdb"))?;
    for (package, licences) in
        [(&country, &["NRO_LICENSE"][..]), (&asn, &["DBIP-LICENSE", "ROUTEVIEWS-LICENSE", "MODIFICATIONS"])]
    {
        for licence in licences {
            fs::rename(package.join(licence), dir.join(licence))?;
        }
    }
    fs::write(dir.join("NOTICE"), NOTICE)?;
    fs::remove_dir_all(&staging).context("cannot clear the staging directory")
}

/// The unpacked package, once its archive has the hash it should have.
fn fetch(package: &Package, into: &Path) -> anyhow::Result<std::path::PathBuf> {
    fs::create_dir_all(into)?;
    let mut command = Command::new("npm");
    command.current_dir(into).args(["pack", "--silent"]).arg(format!("{}@{}", package.name, package.version));
    let archive = into.join(shell::output(&mut command)?.lines().last().context("npm fetched nothing")?);
    let sum = shell::output(Command::new("sha512sum").arg(&archive))?;
    let sum = sum.split_whitespace().next().unwrap_or_default();
    ensure!(sum == package.sha512, "the SHA-512 of `{}` is {sum}, not {}", package.name, package.sha512);
    shell::run_quietly(Command::new("tar").arg("-C").arg(into).arg("-xzf").arg(&archive))?;
    Ok(into.join("package"))
}

/// Adds lines of `first,last,number,name`.
fn add(writer: &mut Writer, text: &str) -> anyhow::Result<()> {
    for (line, at) in text.lines().zip(1_u32..) {
        let mut fields = line.splitn(4, ',');
        let mut field = || fields.next().with_context(|| format!("line {at} has too few fields"));
        let (first, last, asn) = (bits(field()?)?, bits(field()?)?, field()?.parse::<u32>()?);
        ensure!(first <= last, "line {at}: the range ends before it begins");
        writer.insert_range(first, last, &map(&[("autonomous_system_number", number(asn))]));
    }
    Ok(())
}

/// Where an address lies in the tree: IPv4 first.
fn bits(address: &str) -> anyhow::Result<u128> {
    Ok(match address.parse()? {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_or_refused() {
        let add = |text: &str| add(&mut Writer::new(), text);
        add("1.0.0.0,1.0.0.255,13335,\"Cloudflare, Inc.\"\n2001:200::,2001:200:1b9:ffff:ffff:ffff:ffff:ffff,2500,WIDE\n")
            .expect("valid");
        for bad in ["1.0.0.0,1.0.0.255", "1.0.0.0,x,1,a", "1.0.0.9,1.0.0.0,1,a", "1.0.0.0,1.0.0.1,AS1,a"] {
            add(bad).expect_err(bad);
        }
    }
}
