//! Ways out: parent proxies, and by which way each destination is reached.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::check::Refused;
use super::intercept::{excludes, is_host};

/// Most parent proxies: one for each way out of a large site.
const PARENTS_MAX: usize = 16;
/// Most routes: what is reviewed by eye. L7 keeps connections apart by their number.
const ROUTES_MAX: usize = 256;
/// Most entries of a list of a route.
const ENTRIES_MAX: usize = 1024;
/// Longest name: it stands in audit records.
const NAME_BYTES_MAX: usize = 63;
/// What errors name, of which there may be several.
const PARENT: &str = "[[parent]]";
const ROUTE: &str = "[[route]]";

/// A proxy that connections are made through (`CONNECT`, RFC 9110 section 9.3.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its name in routes and audit records.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The name that its certificate proves, if it is spoken to over TLS; else it is in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Files of authorities that its certificate may lead to, beside the system's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<PathBuf>,
    /// File with `USER:PASSWORD` for it (RFC 7617), which nobody but `clawgress-l7` needs to read. It is read again when it
    /// changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<PathBuf>,
}

/// By which way what fits is reached. The first that fits is taken; what fits none is dialled from the address that the
/// system chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Hosts it is for: a name, or `*.` and a name for what is below it; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Addresses it is for, as they were resolved; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<IpNet>,
    /// Ports it is for; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Name of the parent proxy that it leads through; the destination itself is dialled if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Who resolves names.
    #[serde(default, skip_serializing_if = "Resolve::is_gateway")]
    pub resolve: Resolve,
    /// Addresses of this machine to dial from, one of a family at most; nothing is dialled in a family that has none.
    /// The system chooses if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<IpAddr>,
}

/// Who resolves the names that a route is for, and so what `connect` is judged on besides the parent proxy's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolve {
    /// The gateway: `connect` is judged on each address, and a parent proxy is asked for that address.
    #[default]
    Gateway,
    /// The parent proxy: it is asked for the name, and nobody here judges where that leads.
    Parent,
}

// === impl Resolve ===

impl Resolve {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    fn is_gateway(&self) -> bool {
        *self == Resolve::Gateway
    }
}

// === impl Route ===

impl Route {
    /// Whether it is for `host`, in canonical form, at `port` of `ip`. Without an address, those of networks fit nothing.
    #[must_use]
    pub fn fits(&self, host: &str, port: u16, ip: Option<IpAddr>) -> bool {
        let is_in = |ip: IpAddr| self.networks.iter().any(|network| network.contains(&ip));
        (self.hosts.is_empty() || excludes(&self.hosts, host))
            && (self.ports.is_empty() || self.ports.contains(&port))
            && (self.networks.is_empty() || ip.is_some_and(is_in))
    }

    /// Whether everything fits.
    fn is_for_all(&self) -> bool {
        self.hosts.is_empty() && self.networks.is_empty() && self.ports.is_empty()
    }

    /// In a line, for people.
    #[must_use]
    pub fn told(&self) -> String {
        let list = |items: Vec<String>| items.join(", ");
        let mut to = Vec::new();
        to.extend((!self.hosts.is_empty()).then(|| list(self.hosts.clone())));
        to.extend(
            (!self.networks.is_empty())
                .then(|| list(self.networks.iter().map(ToString::to_string).collect())),
        );
        to.extend(
            (!self.ports.is_empty())
                .then(|| format!("port {}", list(self.ports.iter().map(ToString::to_string).collect()))),
        );
        let to = if to.is_empty() { "all else".to_owned() } else { to.join(" at ") };
        format!("{to}: {}", self.way())
    }

    /// How what fits it is reached, for people.
    #[must_use]
    pub fn way(&self) -> String {
        let way = match (&self.parent, self.resolve) {
            (Some(parent), Resolve::Gateway) => {
                format!("through the parent proxy `{parent}`, which is given addresses")
            }
            (Some(parent), Resolve::Parent) => {
                format!("through the parent proxy `{parent}`, which resolves names")
            }
            (None, _) => "direct".to_owned(),
        };
        if self.source.is_empty() {
            return way;
        }
        let source = self.source.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        format!("{way}, from {source}")
    }
}

/// The first of `routes` that fits, and its number, from 1.
#[must_use]
pub fn find<'a>(
    routes: &'a [Route],
    host: &str,
    port: u16,
    ip: Option<IpAddr>,
) -> Option<(usize, &'a Route)> {
    (1..).zip(routes).find(|(_, route)| route.fits(host, port, ip))
}

/// Checks what can be said of parents and routes without the machine they are for.
pub(super) fn check(parents: &[Parent], routes: &[Route]) -> Result<(), Refused> {
    if parents.len() > PARENTS_MAX {
        return Err((PARENT, format!("at most {PARENTS_MAX} parent proxies")));
    }
    for (n, parent) in parents.iter().enumerate() {
        check_parent(parent).map_err(|why| (PARENT, why))?;
        let Parent { name, .. } = parent;
        if parents.iter().take(n).any(|other| other.name == *name) {
            return Err((PARENT, format!("parent `{name}` is named twice")));
        }
    }
    if routes.len() > ROUTES_MAX {
        return Err((ROUTE, format!("at most {ROUTES_MAX} routes")));
    }
    let mut is_by_address = false;
    for (n, route) in (1..).zip(routes) {
        check_route(route, parents).map_err(|why| (ROUTE, format!("route {n}: {why}")))?;
        if route.resolve == Resolve::Parent && is_by_address {
            let why = "routes with `resolve = \"parent\"` come before those with `networks`: which of those fits is known only of what was resolved";
            return Err((ROUTE, format!("route {n}: {why}")));
        }
        is_by_address |= !route.networks.is_empty();
        if route.is_for_all() && n < routes.len() {
            let why = "everything fits it, so those below it are never taken: move it to the end";
            return Err((ROUTE, format!("route {n}: {why}")));
        }
    }
    // Last, since a misspelt name is told by the route that has it.
    let is_named = |parent: &&Parent| routes.iter().any(|route| route.parent.as_ref() == Some(&parent.name));
    match parents.iter().find(|parent| !is_named(parent)) {
        Some(Parent { name, .. }) => {
            let why = format!(
                "no [[route]] leads through parent `{name}`: write one with `parent = \"{name}\"`, or remove it"
            );
            Err((PARENT, why))
        }
        None => Ok(()),
    }
}

fn check_parent(parent: &Parent) -> Result<(), String> {
    let Parent { name, address, tls, roots, credential } = parent;
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) {
        let name = name.escape_debug();
        return Err(format!(
            "`{name}` is no name of a parent: 1 to {NAME_BYTES_MAX} of a-z, 0-9, `-` and `_`"
        ));
    }
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("`{address}` of parent `{name}` is nowhere to connect to: write `ADDRESS:PORT`"));
    }
    if let Some(server) = tls.as_ref().filter(|server| !is_host(server) || server.starts_with('*')) {
        let server = server.escape_debug();
        return Err(format!(
            "`{server}` in `tls` of parent `{name}` is no name: write the one that its certificate has, in lower case"
        ));
    }
    if tls.is_none() && !roots.is_empty() {
        return Err(format!("`roots` of parent `{name}` are for TLS: write the name to verify in `tls`"));
    }
    let relative = |path: &PathBuf| !path.is_absolute();
    let key = if credential.as_ref().is_some_and(relative) { Some("credential") } else { None };
    if let Some(key) = key.or(roots.iter().any(relative).then_some("roots")) {
        return Err(format!(
            "`{key}` of parent `{name}` must be an absolute path: roles have no directory of their own"
        ));
    }
    Ok(())
}

fn check_route(route: &Route, parents: &[Parent]) -> Result<(), String> {
    let Route { hosts, networks, ports, parent, resolve, source } = route;
    if [hosts.len(), networks.len(), ports.len()].into_iter().any(|n| n > ENTRIES_MAX) {
        return Err(format!("a list holds {ENTRIES_MAX} entries at most"));
    }
    if let Some(entry) = hosts.iter().find(|entry| !is_host(entry)) {
        let why = "write a name in lower case, without a dot at its end, or `*.` and such a name";
        return Err(format!("`{}` is no host: {why}", entry.escape_debug()));
    }
    if ports.contains(&0) {
        return Err("there is no port 0: remove it from `ports`".to_owned());
    }
    let through = match parent {
        Some(name) => {
            let known = parents.iter().find(|parent| parent.name == *name);
            Some(known.ok_or_else(|| {
                format!("there is no parent `{}`: write a [[parent]] of that name", name.escape_debug())
            })?)
        }
        None => None,
    };
    if *resolve == Resolve::Parent && through.is_none() {
        return Err("`resolve = \"parent\"` needs a `parent`".to_owned());
    }
    if *resolve == Resolve::Parent && !networks.is_empty() {
        return Err("`resolve = \"parent\"` leaves no address to find in `networks`: use `hosts`".to_owned());
    }
    check_source(source, through)
}

fn check_source(source: &[IpAddr], through: Option<&Parent>) -> Result<(), String> {
    let of_family = |is_v6: bool| source.iter().filter(|ip| ip.is_ipv6() == is_v6).count();
    if of_family(false) > 1 || of_family(true) > 1 {
        return Err("`source` has one IPv4 and one IPv6 address at most".to_owned());
    }
    if let Some(ip) = source.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return Err(format!("`{ip}` is no address to dial from: write one of this machine's in `source`"));
    }
    match through {
        Some(Parent { name, address, .. }) if !source.is_empty() && of_family(address.is_ipv6()) == 0 => {
            Err(format!(
                "parent `{name}` can't be dialled from `source`: it has no address of the family of `{address}`"
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Part {
        #[serde(default, rename = "parent")]
        parents: Vec<Parent>,
        #[serde(default, rename = "route")]
        routes: Vec<Route>,
    }

    fn read(toml: &str) -> Result<Part, Refused> {
        let part: Part = toml::from_str(toml).expect("shape");
        check(&part.parents, &part.routes).map(|()| part)
    }

    const CORP: &str = "[[parent]]\nname = \"corp\"\naddress = \"10.1.0.5:3128\"\n";

    #[test]
    fn the_first_route_that_fits_is_taken() {
        let text = "[[route]]\nhosts = [\"a.test\", \"*.b.test\"]\nports = [443]\nparent = \"corp\"\nresolve = \"parent\"\n\
                    [[route]]\nnetworks = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nsource = [\"198.51.100.7\", \"2001:db8::7\"]\n\
                    [[route]]\nparent = \"corp\"\n";
        let Part { routes, .. } = read(&format!("{CORP}{text}")).expect("sound");
        for (host, port, ip, want) in [
            ("a.test", 443, None, 1),
            ("x.b.test", 443, Some("192.0.2.1"), 1),
            ("b.test", 443, Some("192.0.2.1"), 2),
            ("a.test", 80, Some("2001:db8::1"), 2),
            ("192.0.2.9", 22, Some("192.0.2.9"), 2),
            ("c.test", 443, Some("203.0.113.1"), 3),
            ("c.test", 443, None, 3),
        ] {
            let ip = ip.map(|ip| ip.parse().expect("address"));
            assert_eq!(find(&routes, host, port, ip).map(|(n, _)| n), Some(want), "{host}:{port} {ip:?}");
        }
        assert_eq!(
            routes.iter().map(Route::told).collect::<Vec<_>>(),
            [
                "a.test, *.b.test at port 443: through the parent proxy `corp`, which resolves names",
                "192.0.2.0/24, 2001:db8::/32: direct, from 198.51.100.7 or 2001:db8::7",
                "all else: through the parent proxy `corp`, which is given addresses",
            ]
        );
        assert!(find(&[], "a.test", 443, None).is_none());
    }

    #[test]
    fn what_would_do_nothing_is_refused() {
        for (text, say) in [
            ("", "no [[route]] leads through parent `corp`"),
            (
                "roots = [\"/roots.pem\"]\n[[route]]\nparent = \"corp\"",
                "`roots` of parent `corp` are for TLS",
            ),
            ("tls = \"Proxy\"\n[[route]]\nparent = \"corp\"", "`Proxy` in `tls` of parent `corp` is no name"),
            ("tls = \"*.a.test\"\n[[route]]\nparent = \"corp\"", "is no name"),
            (
                "tls = \"a.test\"\nroots = [\"roots.pem\"]\n[[route]]\nparent = \"corp\"",
                "`roots` of parent `corp` must be an absolute path",
            ),
            ("[[route]]\nparent = \"corp\"\n[[route]]\n", "route 1: everything fits it"),
            ("[[route]]\nparent = \"other\"", "route 1: there is no parent `other`"),
            (
                "[[route]]\nresolve = \"parent\"\n[[route]]\nparent = \"corp\"",
                "route 1: `resolve = \"parent\"` needs",
            ),
            (
                "[[route]]\nparent = \"corp\"\nresolve = \"parent\"\nnetworks = [\"192.0.2.0/24\"]",
                "leaves no address",
            ),
            (
                "[[route]]\nnetworks = [\"192.0.2.0/24\"]\n[[route]]\nparent = \"corp\"\nresolve = \"parent\"",
                "route 2: routes with `resolve = \"parent\"` come before",
            ),
            ("[[route]]\nparent = \"corp\"\nhosts = [\"A.test\"]", "`A.test` is no host"),
            ("[[route]]\nparent = \"corp\"\nports = [0]", "port 0"),
            ("[[route]]\nparent = \"corp\"\nsource = [\"2001:db8::1\"]", "can't be dialled from `source`"),
            ("[[route]]\nparent = \"corp\"\nsource = [\"192.0.2.1\", \"192.0.2.2\"]", "one IPv4"),
            ("[[route]]\nparent = \"corp\"\nsource = [\"0.0.0.0\"]", "no address to dial from"),
        ] {
            let (_, why) = read(&format!("{CORP}{text}")).expect_err(text);
            assert!(why.contains(say), "{text}: {why}");
        }
        for (parent, say) in [
            ("name = \"A\"\naddress = \"10.0.0.1:1\"", "is no name of a parent"),
            ("name = \"a\"\naddress = \"10.0.0.1:0\"", "is nowhere to connect to"),
            ("name = \"a\"\naddress = \"10.0.0.1:1\"\ncredential = \"x\"", "must be an absolute path"),
        ] {
            let (place, why) =
                read(&format!("[[parent]]\n{parent}\n[[route]]\nparent = \"a\"")).expect_err(parent);
            assert!(place == PARENT && why.contains(say), "{parent}: {why}");
        }
    }
}
