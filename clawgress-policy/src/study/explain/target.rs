//! What people write for what an agent may want: URLs, addresses and names. Must never take one thing for another.

use std::net::{IpAddr, SocketAddr};

use super::{Body, Offered, Target};
use crate::head::Head;
use crate::host::quote;
use crate::{Host, Scheme, Transport, path as spelling};

impl Target {
    /// Reads what a person writes: `http://…` or `https://…`, `ws://…` or `wss://…`, or an address, with a port where the protocol has them.
    /// `address` is what a URL's host resolves to.
    ///
    /// # Errors
    /// What is not understood, and what to write.
    pub fn parse(
        text: &str,
        method: Option<&str>,
        protocol: Option<&str>,
        address: Option<&str>,
    ) -> Result<Target, String> {
        let shown = quote(text);
        if let Some((scheme, rest)) = text.split_once("://") {
            if protocol.is_some() {
                return Err("a protocol goes with an address, not with a URL".to_owned());
            }
            let (scheme, port, opens) = match scheme.to_ascii_lowercase().as_str() {
                "dns" if method.is_none() && address.is_none() => return Target::of_name(rest),
                "http" => (Scheme::Http, 80, false),
                "https" => (Scheme::Https, 443, false),
                "ws" | "wss" if method.is_some() => {
                    return Err("a WebSocket is opened by GET: leave the method out".to_owned());
                }
                "ws" => (Scheme::Http, 80, true),
                "wss" => (Scheme::Https, 443, true),
                _ => {
                    return Err(format!(
                        "`{shown}` is none of `http://…`, `https://…`, `ws://…`, `wss://…` and `dns://NAME/TYPE`"
                    ));
                }
            };
            let ip = |text: &str| text.parse().map_err(|_| format!("`{}` is not an address", quote(text)));
            let ip = address.map(ip).transpose()?;
            return Target::of_url(&shown, rest, (scheme, port, opens), method, ip);
        }
        if method.is_some() || address.is_some() {
            return Err("a method and an address go with a URL such as `https://api.example/x`".to_owned());
        }
        let name = protocol.unwrap_or("tcp");
        let known = || Transport::ALL.map(Transport::name).join(", ");
        let transport = Transport::from_name(name)
            .ok_or_else(|| format!("`{}` is not a protocol: it is one of {}", quote(name), known()))?;
        let bare = || text.parse::<IpAddr>().ok().filter(|_| !transport.has_ports()).map(|ip| (ip, 0));
        let with_port = || text.parse::<SocketAddr>().ok().map(|at| (at.ip(), at.port()));
        let (ip, port) = bare().or_else(with_port).ok_or_else(|| {
            format!("`{shown}` is neither a URL nor an address: write such as `https://api.example/x`, `192.0.2.1:443` or `[2001:db8::1]:443`")
        })?;
        Ok(Target::Address { ip, port, transport })
    }

    /// The same by a hello with this fingerprint.
    ///
    /// # Errors
    /// If it is no `https://…`.
    pub fn with_hello(mut self, fingerprint: String) -> Result<Target, String> {
        match &mut self {
            Target::Url { scheme: Scheme::Https, hello, .. } => hello.ja4 = fingerprint,
            _ => return Err("the fingerprint of a hello goes with a URL `https://…`".to_owned()),
        }
        Ok(self)
    }

    /// The same by a hello that may hide another name than it shows.
    ///
    /// # Errors
    /// If it is no `https://…`.
    pub fn with_ech(mut self) -> Result<Target, String> {
        match &mut self {
            Target::Url { scheme: Scheme::Https, hello, .. } => hello.is_encrypted = true,
            _ => return Err("a hello with ECH goes with a URL `https://…`".to_owned()),
        }
        Ok(self)
    }

    /// The same, asked of an endpoint.
    ///
    /// # Errors
    /// If it is no `https://…`, or something is said of a client's hello.
    pub fn by_endpoint(mut self) -> Result<Target, String> {
        match &mut self {
            Target::Url { scheme: Scheme::Https, hello, is_endpoint, .. } if *hello == Offered::default() => {
                *is_endpoint = true;
            }
            Target::Url { scheme: Scheme::Https, .. } => {
                return Err("the hello to an endpoint's server is the gateway's own".to_owned());
            }
            _ => return Err("what is asked of an endpoint goes on as `https://…`".to_owned()),
        }
        Ok(self)
    }

    /// The same with this body.
    ///
    /// # Errors
    /// If it is no URL.
    pub fn with_body(mut self, sent: Body) -> Result<Target, String> {
        match &mut self {
            Target::Url { body, .. } => *body = Some(sent),
            _ => return Err("a body goes with a URL such as `https://api.example/x`".to_owned()),
        }
        Ok(self)
    }

    /// The same with these header fields, each as `Name: value`.
    ///
    /// # Errors
    /// If it is no URL, or one of them is no header field.
    pub fn with_headers(mut self, fields: &[String]) -> Result<Target, String> {
        let Target::Url { head, .. } = &mut self else {
            return Err("header fields go with a URL such as `https://api.example/x`".to_owned());
        };
        let parsed: Option<Vec<_>> = fields.iter().map(|field| field.split_once(':')).collect();
        let parsed = parsed.filter(|all| all.iter().all(|(name, _)| !name.trim().is_empty()));
        let parsed = parsed.ok_or("a header field is written as `Name: value`")?;
        **head = head.with_fields(parsed.into_iter().map(|(name, value)| (name.trim(), value.as_bytes())));
        Ok(self)
    }

    /// `NAME` or `NAME/TYPE`.
    fn of_name(text: &str) -> Result<Target, String> {
        let (name, query_type) = text.split_once('/').unwrap_or((text, "A"));
        let host = Host::parse(name).map_err(|error| error.to_string())?;
        let is_type = !query_type.is_empty() && query_type.bytes().all(|b| b.is_ascii_alphanumeric());
        if host.address().is_some() || !is_type {
            return Err(format!(
                "`{}` is not a name and a type: write such as `dns://api.example/AAAA`",
                quote(text)
            ));
        }
        Ok(Target::Name { host, query_type: query_type.to_ascii_uppercase() })
    }

    fn of_url(
        shown: &str,
        rest: &str,
        (scheme, port, opens): (Scheme, u16, bool),
        method: Option<&str>,
        ip: Option<IpAddr>,
    ) -> Result<Target, String> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if authority.contains('@') {
            return Err(format!("`{shown}` has a user: leave it out"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, digits)) if !digits.ends_with(']') => {
                let port =
                    digits.parse().map_err(|_| format!("`{shown}`: `{}` is not a port", quote(digits)))?;
                (host, port)
            }
            _ => (authority, port),
        };
        let host = Host::parse(host).map_err(|error| error.to_string())?;
        let path = if path.is_empty() { "/".to_owned() } else { spelling::normal(path).into_owned() };
        let method = method.unwrap_or("GET").to_owned();
        let (head, hello, is_endpoint) = (Box::new(Head::of([], query)), Offered::default(), false);
        Ok(Target::Url { host, port, scheme, method, path, head, ip, hello, is_endpoint, opens, body: None })
    }
}
