//! The one list of drop reasons, from kernel to L7, audit, metrics, CLI and docs.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal, $name:literal, $plane:ident;)+) => {
        /// Why a packet, flow or request was denied. Codes and names are stable: they appear in
        /// audit records, metrics and the kernel ABI. Codes are below 128.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant = $code,)+ }

        impl DropReason {
            /// Every reason, by code.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The stable name, as in audit records.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(DropReason::$variant => $name,)+ } }

            /// One sentence for people.
            #[must_use]
            pub const fn describe(self) -> &'static str { match self { $(DropReason::$variant => concat!($($doc),+),)+ } }

            /// The stable code.
            #[must_use]
            pub const fn code(self) -> u16 { self as u16 }

            /// The reason with this code, if there is one.
            #[must_use]
            pub const fn from_code(code: u16) -> Option<DropReason> { match code { $($code => Some(DropReason::$variant),)+ _ => None } }

            /// The reason with this name, if there is one.
            #[must_use]
            pub fn from_name(name: &str) -> Option<DropReason> { match name { $($name => Some(DropReason::$variant),)+ _ => None } }
        }
    };
}

drop_reasons! {
    /// The packet's headers are truncated, inconsistent or of an unknown kind.
    Malformed = 1, "malformed", kernel;
    /// The EtherType is not one the gateway forwards.
    EthertypeUnsupported = 2, "ethertype_unsupported", kernel;
    /// IPv4 options are not accepted from agents.
    Ipv4Options = 3, "ipv4_options", kernel;
    /// Fragments are not accepted from agents.
    Fragment = 4, "fragment", kernel;
    /// The IPv6 extension headers are unknown, too many or malformed.
    Ipv6Extension = 5, "ipv6_extension", kernel;
    /// No policy that permits this names the transport protocol, or policy cannot name it.
    ProtocolUnsupported = 6, "protocol_unsupported", kernel;
    /// The source address or MAC does not match the binding of this interface, or the address is the gateway's own.
    SourceSpoofed = 7, "source_spoofed", kernel;
    /// The source has no binding and presented no credential.
    Anonymous = 8, "anonymous", both;
    /// No permit matched.
    PolicyDenied = 9, "policy_denied", both;
    /// A forbid matched.
    PolicyForbidden = 10, "policy_forbidden", both;
    /// A guard could not be evaluated, and that denies.
    PolicyError = 11, "policy_error", both;
    /// No policy has been loaded yet.
    PolicyMissing = 12, "policy_missing", both;
    /// The content would have to be read, but is neither plain nor intercepted, and no policy permits it opaque.
    InspectionRequired = 13, "inspection_required", both;
    /// The destination is the gateway itself, at a port that is no service for agents.
    GatewayAddress = 14, "gateway_address", both;
    /// The flow table is full.
    FlowTableFull = 15, "flow_table_full", kernel;
    /// A packet in the middle of a flow that is not known.
    FlowUnknown = 16, "flow_unknown", kernel;
    /// No listener is in the slot the flow is steered to.
    ListenerMissing = 17, "listener_missing", kernel;
    /// The agent is disabled.
    AgentDisabled = 18, "agent_disabled", both;
    /// ICMP of this type is not accepted from agents.
    IcmpUnsupported = 19, "icmp_unsupported", kernel;
    /// The agent is quarantined: nothing of it passes until it is released.
    AgentQuarantined = 20, "agent_quarantined", both;
    /// The frame belongs to a VLAN, or has more than two tags: each VLAN of agents is an interface of its own.
    VlanUnsupported = 21, "vlan_unsupported", kernel;
    /// The source address is one no host sends from: unspecified, loopback, multicast or broadcast.
    SourceMartian = 22, "source_martian", kernel;
    /// Source and destination are the same address.
    Land = 23, "land", kernel;
    /// The agent has as many flows as one agent may have.
    FlowShareFull = 24, "flow_share_full", kernel;
    /// The TCP flags are a combination no connection has.
    TcpFlags = 25, "tcp_flags", kernel;
    /// IPv6 routing headers are not accepted from agents.
    Ipv6Routing = 26, "ipv6_routing", kernel;
    /// The ARP or neighbour discovery message is malformed or of an unknown kind.
    NeighbourMalformed = 27, "neighbour_malformed", kernel;
    /// Agents neither announce routers nor redirect.
    RouterMessage = 28, "router_message", kernel;
    /// Multicast membership reports end at the gateway.
    MulticastListener = 29, "multicast_listener", kernel;
    /// The echo carries more bytes than `ping` sends unasked, or the error more than errors may.
    IcmpPayload = 30, "icmp_payload", kernel;
    /// The source MAC is one no host sends from: a group address, or zero.
    SourceMacGroup = 31, "source_mac_group", kernel;

    /// A credential was presented, and it is not valid.
    CredentialInvalid = 32, "credential_invalid", l7;
    /// No credential was presented where one is needed.
    CredentialMissing = 33, "credential_missing", l7;
    /// The credential names an agent that this source may not present.
    IdentityConflict = 34, "identity_conflict", l7;
    /// The credential could not be checked in time.
    IdentityUnavailable = 35, "identity_unavailable", l7;
    /// The TLS hello carries no server name.
    SniMissing = 36, "sni_missing", l7;
    /// The TLS server name is not the host of the CONNECT request, or not the one that a request inside asks for.
    SniMismatch = 37, "sni_mismatch", l7;
    /// The TLS hello is malformed or too large.
    TlsMalformed = 38, "tls_malformed", l7;
    /// The bytes are neither TLS nor HTTP, and no policy permits them opaque; or HTTP begins within a tunnel of such bytes.
    ProtocolUnknown = 39, "protocol_unknown", l7;
    /// The HTTP request is malformed or its framing ambiguous.
    HttpMalformed = 40, "http_malformed", l7;
    /// The destination host is not a valid name or address.
    HostInvalid = 41, "host_invalid", l7;
    /// The destination name could not be resolved.
    ResolveFailed = 42, "resolve_failed", l7;
    /// The address is private or reserved, and no policy that permits it names it.
    AddressReserved = 43, "address_reserved", both;
    /// The upstream refused the connection, or did not answer in time.
    UpstreamFailed = 44, "upstream_failed", l7;
    /// The client was too slow.
    Timeout = 45, "timeout", l7;
    /// A bound on connections, headers or memory was reached.
    Overloaded = 46, "overloaded", l7;
    /// No snapshot has been received, or the last one is too old.
    SnapshotMissing = 47, "snapshot_missing", l7;
    /// The flow record of a steered connection was not found.
    FlowRecordMissing = 48, "flow_record_missing", l7;
    /// The audit record could not be queued.
    AuditUnavailable = 49, "audit_unavailable", l7;
    /// The HTTP upgrade asked for is not one the gateway can read.
    UpgradeUnsupported = 50, "upgrade_unsupported", l7;
    /// The gateway is shutting down.
    Draining = 51, "draining", l7;
    /// Whether a limit of policy is reached can't be found out, so what it limits is denied.
    LimitUnavailable = 52, "limit_unavailable", l7;
    /// Policy asks for what the agent did before, and that can't be found out.
    HistoryUnavailable = 53, "history_unavailable", l7;
    /// The first segment of the path names no endpoint of the gateway.
    EndpointUnknown = 54, "endpoint_unknown", l7;
    /// TLS is to be read, and there is no certificate to show for its host.
    InterceptionUnavailable = 55, "interception_unavailable", l7;
    /// The client does not take the certificate that the gateway's authority signed, so what it sends can't be read.
    AuthorityDistrusted = 56, "authority_distrusted", l7;
    /// The upstream's certificate does not prove its name.
    UpstreamUntrusted = 57, "upstream_untrusted", l7;
    /// The credential is valid, and the agent that it proves is not registered.
    AgentUnknown = 58, "agent_unknown", l7;
    /// SOCKS 4, `BIND` and `UDP ASSOCIATE` are not served.
    SocksUnsupported = 59, "socks_unsupported", l7;

    /// The proxy used a socket that it had not registered for an agent.
    DialUnregistered = 60, "dial_unregistered", kernel;
    /// More than a rate limit permits: of a policy, or of sources that are not known.
    RateLimited = 61, "rate_limited", both;
    /// The table of token buckets is full, so a rate limit can't be kept.
    BucketTableFull = 62, "bucket_table_full", kernel;
    /// The agent has as many token buckets as one agent may have, so a rate limit can't be kept.
    BucketShareFull = 63, "bucket_share_full", kernel;
    /// What came from a load balancer does not begin with a header of version 2 of the PROXY protocol.
    ProxyHeaderMalformed = 64, "proxy_header_malformed", l7;
    /// The SOCKS message is malformed, or the client left before it was whole.
    SocksMalformed = 65, "socks_malformed", l7;

    /// Nobody has vouched for the kernel's tables lately: the datapath or the control role is away or behind.
    LeaseLapsed = 70, "lease_lapsed", kernel;
    /// The DNS message is malformed, or asks for what is not forwarded: another class, an update, a transfer.
    DnsMalformed = 71, "dns_malformed", l7;
    /// More questions to DNS of the kind that tunnels are made of than `[dns]` lets one agent ask in a minute.
    DnsCapped = 72, "dns_capped", l7;
    /// Policy asks about what is sent, and that can't be read with certainty.
    ContentUnreadable = 73, "content_unreadable", l7;
    /// There is no memory left for bodies that have to be read before they go on.
    ContentMemoryFull = 74, "content_memory_full", l7;
    /// Bodies of the agent that have to be read before they go on take as much memory as one agent's may.
    ContentShareFull = 75, "content_share_full", l7;
    /// The parent proxy that the route leads through can't be reached, or did not make the connection.
    ParentFailed = 76, "parent_failed", l7;
    /// Policy has the request sent with a provider's key that is not there, may not go there, or can't be opened.
    ProviderKeyUnavailable = 77, "provider_key_unavailable", l7;
}

impl core::fmt::Display for DropReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_round_trip() {
        for (i, a) in DropReason::ALL.iter().enumerate() {
            assert!(a.code() < 128, "{a}: codes below 128 leave room for other counters");
            assert_eq!(DropReason::from_code(a.code()), Some(*a));
            assert_eq!(DropReason::from_name(a.name()), Some(*a));
            for b in &DropReason::ALL[i + 1..] {
                assert_ne!(a.name(), b.name());
            }
        }
    }
}
