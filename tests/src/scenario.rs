//! The gateway's contents in demo, tests and benchmarks: two agents, and a policy that has a reason
//! for each verdict.

use crate::lab::{Gateway, GatewayOptions, Lab};

/// The agent the known host is bound to; it also has a key.
pub const CRAWLER: &str = "crawler";
/// An agent known by its key alone.
pub const ASSISTANT: &str = "assistant";
/// An agent with a key, of a team that no policy permits anything.
pub const INTERN: &str = "intern";
/// The team of the first two.
pub const TEAM: &str = "research";

/// The policy text.
pub const POLICY: &str = r#"// What agents of the lab may do. Default is deny.

// In the kernel: web ports of the networks named in the sets; everything else is dropped there.
@id("reach-web")
permit (principal in Team::"research", action == Action::"connect", resource in NetworkSet::"web")
when { context.protocol == "tcp" && [80, 443].contains(context.port) };

// DNS goes straight through, masqueraded.
@id("dns")
permit (principal in Team::"research", action in [Action::"connect", Action::"direct"], resource in NetworkSet::"dns")
when { context.port == 53 && ["udp", "tcp"].contains(context.protocol) };

// TLS to these hosts may stay unread.
@id("saas-tls")
permit (principal in Team::"research", action in [Action::"tls", Action::"tunnel"], resource in HostSet::"saas");

// TLS to this one may start, but must be read: it is not permitted as a tunnel.
@id("must-read")
permit (principal in Team::"research", action == Action::"tls", resource == Host::"inspect.allowed.test");

@id("saas-http")
permit (principal in Team::"research", action == Action::"http", resource in HostSet::"saas");

@id("public-pages")
permit (principal in Team::"research", action == Action::"http", resource == Host::"web.allowed.test")
when { context.method == "GET" && context.path like "/public/*" };

@id("no-admin")
forbid (principal, action == Action::"http", resource)
when { context.path like "/admin*" };
"#;

/// The named sets.
pub const SETS: &str = r#"[hosts]
saas = ["api.allowed.test", "llm.allowed.test", "six.allowed.test", "rebind.allowed.test", "metadata.allowed.test"]

[networks]
# The second pair is FORBIDDEN by name only: names must keep agents out.
web = ["203.0.113.0/24", "2001:db8:113::/64", "198.51.100.0/25", "2001:db8:51::/80"]
dns = ["203.0.113.53/32", "2001:db8:113::35/128"]
"#;

/// A lab with a gateway, its agents and its policy.
#[derive(Debug)]
pub struct Site {
    /// The gateway, in its lab.
    pub gateway: Gateway,
    /// Key of [`CRAWLER`].
    pub crawler_key: String,
    /// Key of [`ASSISTANT`].
    pub assistant_key: String,
    /// Key of [`INTERN`].
    pub intern_key: String,
}

impl Site {
    /// Brings everything up in `lab`.
    ///
    /// # Errors
    /// If any part of it fails, with the end of the log that tells why.
    pub fn start(lab: Lab, options: GatewayOptions) -> anyhow::Result<Site> {
        let mut gateway = Gateway::start(lab, options)?;
        let admin = gateway.admin()?;
        let crawler_key = admin.create_agent(CRAWLER, TEAM, &Gateway::known_sources())?;
        let assistant_key = admin.create_agent(ASSISTANT, TEAM, &[])?;
        let intern_key = admin.create_agent(INTERN, "visitors", &[])?;
        gateway.apply_policy(POLICY, SETS)?;
        Ok(Site { gateway, crawler_key, assistant_key, intern_key })
    }
}
