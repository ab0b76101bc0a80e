//! The trees that conditions are lowered to, and the constants in them.

use ipnet::IpNet;

use super::like::Like;
use crate::content::Attribute;
use crate::fingerprint::Signal;
use crate::head::Part;
use crate::history;

/// A type of entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Agent,
    Tenant,
    Team,
    Project,
    Environment,
    Network,
    NetworkSet,
    Asn,
    Country,
    Host,
    HostSet,
    Model,
    Provider,
    Tool,
    ToolServer,
}

impl Kind {
    /// The type of this name in the schema.
    pub(crate) fn named(name: &str) -> Option<Kind> {
        Some(match name {
            "Agent" => Kind::Agent,
            "Tenant" => Kind::Tenant,
            "Team" => Kind::Team,
            "Project" => Kind::Project,
            "Environment" => Kind::Environment,
            "Network" => Kind::Network,
            "NetworkSet" => Kind::NetworkSet,
            "Asn" => Kind::Asn,
            "Country" => Kind::Country,
            "Host" => Kind::Host,
            "HostSet" => Kind::HostSet,
            "Model" => Kind::Model,
            "Provider" => Kind::Provider,
            "Tool" => Kind::Tool,
            "ToolServer" => Kind::ToolServer,
            _ => return None,
        })
    }
}

/// A group that an agent may be in, as an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    Team,
    Project,
    Environment,
}

impl Membership {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Membership::Team => Kind::Team,
            Membership::Project => Kind::Project,
            Membership::Environment => Kind::Environment,
        }
    }

    pub(crate) fn named(attribute: &str) -> Option<Membership> {
        Some(match attribute {
            "team" => Membership::Team,
            "project" => Membership::Project,
            "environment" => Membership::Environment,
            _ => return None,
        })
    }
}

/// An entity written in a policy.
#[derive(Clone, Debug)]
pub(crate) struct Entity {
    pub(crate) kind: Kind,
    /// As Cedar has it: with the tenant.
    pub(crate) id: Box<str>,
    /// Number of the host set or class, if it is one that exists.
    pub(crate) set: Option<u32>,
}

impl PartialEq for Entity {
    fn eq(&self, other: &Entity) -> bool {
        self.kind == other.kind && self.id == other.id
    }
}

impl Entity {
    /// Tenant and name of an id that carries its tenant.
    pub(crate) fn parts(&self) -> Option<(&str, &str)> {
        self.id.split_once('/')
    }
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Const {
    Bool(bool),
    Long(i64),
    Str(Box<str>),
    Entity(Entity),
    Ip(IpNet),
    /// A `datetime`, Unix milliseconds.
    Time(i64),
}

/// A constant set.
#[derive(Clone, Debug)]
pub(crate) enum Elements {
    /// Ascending, each once.
    Longs(Box<[i64]>),
    /// Ascending, each once.
    Strings(Box<[Box<str>]>),
    /// Each once.
    Mixed(Box<[Const]>),
}

impl Elements {
    pub(crate) fn new(elements: Vec<Const>) -> Elements {
        let longs: Option<Vec<i64>> =
            elements.iter().map(|e| if let Const::Long(n) = e { Some(*n) } else { None }).collect();
        if let Some(mut longs) = longs.filter(|longs| !longs.is_empty()) {
            longs.sort_unstable();
            longs.dedup();
            return Elements::Longs(longs.into());
        }
        let strings: Option<Vec<Box<str>>> =
            elements.iter().map(|e| if let Const::Str(s) = e { Some(s.clone()) } else { None }).collect();
        if let Some(mut strings) = strings.filter(|strings| !strings.is_empty()) {
            strings.sort_unstable();
            strings.dedup();
            return Elements::Strings(strings.into());
        }
        let mut mixed: Vec<Const> = Vec::with_capacity(elements.len());
        for element in elements {
            if !mixed.contains(&element) {
                mixed.push(element);
            }
        }
        Elements::Mixed(mixed.into())
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Elements::Longs(all) => all.len(),
            Elements::Strings(all) => all.len(),
            Elements::Mixed(all) => all.len(),
        }
    }
}

/// Cedar's questions about one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IpTest {
    Ipv4,
    Ipv6,
    Loopback,
    Multicast,
}

/// A tree. What reads something that may be missing, or computes what may overflow, may come to nothing.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Const(Const),
    Set(Elements),
    // The request's own.
    Principal,
    Resource,
    AgentName,
    AgentTenant,
    AgentGroup(Membership),
    HasGroup(Membership),
    HostName,
    Ip,
    Port,
    Protocol,
    Scheme,
    Method,
    Path,
    /// Names of a part of the head; whether one is there; and what it says.
    Names(Part),
    HasNamed(Part, Box<str>),
    Named(Part, Box<str>),
    Alpn,
    Ja4,
    Fingerprint(Signal),
    HasFingerprint(Signal),
    /// Of the record that `context.history` is.
    History(history::Field),
    /// Of what is said.
    Content(Attribute),
    Time,
    Hour,
    Minute,
    Weekday,
    // Operators.
    Not(Box<Node>),
    Neg(Box<Node>),
    And(Box<(Node, Node)>),
    Or(Box<(Node, Node)>),
    If(Box<(Node, Node, Node)>),
    Eq(Box<(Node, Node)>),
    Less(Box<(Node, Node)>),
    LessEq(Box<(Node, Node)>),
    Add(Box<(Node, Node)>),
    Sub(Box<(Node, Node)>),
    Mul(Box<(Node, Node)>),
    Contains(Box<(Node, Node)>),
    ContainsAll(Box<(Node, Node)>),
    ContainsAny(Box<(Node, Node)>),
    IsEmpty(Box<Node>),
    In(Box<Node>, Box<[Entity]>),
    Is(Box<Node>, Kind),
    Like(Box<Node>, Like),
    HasTag(Box<Node>),
    GetTag(Box<Node>),
    IpIs(IpTest, Box<Node>),
    InRange(Box<(Node, Node)>),
}

impl Node {
    /// What it is made of.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Node> {
        let parts: [Option<&Node>; 3] = match self {
            Node::Not(a)
            | Node::Neg(a)
            | Node::IsEmpty(a)
            | Node::In(a, _)
            | Node::Is(a, _)
            | Node::Like(a, _)
            | Node::HasTag(a)
            | Node::GetTag(a)
            | Node::IpIs(_, a) => [Some(a), None, None],
            Node::And(pair)
            | Node::Or(pair)
            | Node::Eq(pair)
            | Node::Less(pair)
            | Node::LessEq(pair)
            | Node::Add(pair)
            | Node::Sub(pair)
            | Node::Mul(pair)
            | Node::Contains(pair)
            | Node::ContainsAll(pair)
            | Node::ContainsAny(pair)
            | Node::InRange(pair) => [Some(&pair.0), Some(&pair.1), None],
            Node::If(three) => [Some(&three.0), Some(&three.1), Some(&three.2)],
            _ => [None; 3],
        };
        parts.into_iter().flatten()
    }
}
