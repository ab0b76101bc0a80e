//! Messages to tool servers and other agents (MCP, A2A): which requests are some, what policy is told of each, and what an
//! agent gets to see of lists.
//!
//! INVARIANT: what goes to a server that is named is read as its server would, or does not go on.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use clawgress_api::ToolFacts;
use clawgress_api::config::{self, Content, UNLISTED};
use clawgress_inspect::tool::{
    CARD, Head, Message, PARAM, Protocol, Reader, Rest, ToolError, Value, argument_values, has_heads, rest,
};
use clawgress_inspect::{http1, tool};
use clawgress_policy::content::ToolCall;
use clawgress_policy::{Look, Operation, PayloadNeed, path};
use http::{HeaderMap, HeaderValue};

use self::catalog::{Catalog, Found, Key};
use super::Admitted;
use crate::decide;
use crate::endpoints::Upstream;
use crate::identify::Who;
use crate::snapshot::Plan;

mod asking;
pub mod catalog;
mod learned;
mod listing;

pub use listing::Listing;

/// Names of arguments that a record tells of one message, and messages of one request.
const ARGUMENTS_TOLD: usize = 32;
const MESSAGES_TOLD: usize = 16;
/// Bytes of a name that a record tells: a resource's may be any.
const NAME_BYTES_TOLD: usize = 256;
/// Fields of the newer era.
const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";
const VERSION: &str = "mcp-protocol-version";
const SESSION: &str = "mcp-session-id";
/// What every request to an agent has, of A2A since 1.0.
const A2A_VERSION: &str = "a2a-version";

/// Tool servers, and what is known of their tools.
#[derive(Debug, Default)]
pub struct Tools {
    servers: Vec<Server>,
    /// What tools there are.
    pub catalog: Catalog,
    /// Bytes of a message that are held.
    pub hold_bytes_max: usize,
}

#[derive(Debug)]
struct Server {
    name: Arc<str>,
    host: String,
    port: u16,
    /// In lower case: some servers tell none from capitals.
    path: String,
}

/// How policy asks about what is sent to a tool server, or may be.
#[derive(Clone, Debug)]
pub struct Addressed {
    /// Its name; `None` for nobody who is listed.
    server: Option<Arc<str>>,
    key: Key,
    /// Who needs to know.
    pub need: PayloadNeed,
    head: Fields,
    /// What it asks an agent for by its path, whatever its body.
    rest: Option<Rest>,
    /// Whether it opens a stream of events, on which a server may list and ask.
    opens: bool,
}

/// What the head says of the message.
#[derive(Clone, Debug, Default)]
struct Fields {
    method: Option<String>,
    name: Option<String>,
    version: Option<String>,
    session: Option<String>,
    /// Those of arguments, by what is behind [`PARAM`].
    params: Vec<(String, String)>,
    is_a2a: bool,
    /// One of them that comes twice, or is no text.
    unclear: Option<&'static str>,
    /// Whether there are any.
    is_meant: bool,
}

/// What is known of the messages of a request.
#[derive(Clone, Debug)]
pub struct Messages {
    addressed: Addressed,
    all: Vec<Facts>,
    is_batch: bool,
}

#[derive(Clone, Debug)]
struct Facts {
    id: Option<String>,
    protocol: Protocol,
    method: String,
    sent_as: String,
    name: String,
    argument_names: Vec<String>,
    values: Vec<String>,
    arguments: String,
    findings: Vec<String>,
    /// Whether what its server listed of it was forgotten, so that findings may be missing.
    is_forgotten: bool,
    /// Whether it is one by its path alone.
    is_bare: bool,
}

/// A message of the newer era whose head says something else than its body.
#[derive(Clone, Debug)]
pub struct Mismatch {
    id: Option<String>,
}

// === impl Tools ===

impl Tools {
    /// Those of the configuration.
    ///
    /// # Errors
    /// The first server that can't be used, and why.
    pub fn new(tool: &config::Tool, content: &Content) -> Result<Tools> {
        let mut tools = Tools {
            hold_bytes_max: usize::try_from(tool.held_bytes_max(content)).unwrap_or(usize::MAX),
            ..Tools::default()
        };
        for config::ToolServer { name, url, approved } in &tool.servers {
            let parsed = Upstream::parse(0, url, None);
            let parsed = parsed.with_context(|| format!("tool server `{name}`: `{url}` can't be used"))?;
            if let Some(path) = approved {
                tools.catalog.approve(name, path)?;
            }
            tools.servers.push(Server {
                name: name.as_str().into(),
                host: parsed.host.to_string(),
                port: parsed.port,
                path: path::normal(parsed.path.trim_end_matches('/')).to_ascii_lowercase(),
            });
        }
        // Of two that fit, the longer path says more.
        tools.servers.sort_by_key(|server| std::cmp::Reverse(server.path.len()));
        Ok(tools)
    }

    /// How policy asks about `admitted`, if it does.
    #[must_use]
    pub fn addressed(
        &self,
        plan: &Plan,
        who: &Who,
        admitted: &Admitted,
        headers: &HeaderMap,
    ) -> Option<Addressed> {
        let need = decide::tool_need(plan, who);
        if need.look() == Look::Nothing {
            return None;
        }
        let server = self.server(admitted);
        let rest = rest(&admitted.method, &admitted.path).filter(|rest| {
            // Other servers have tasks, too.
            server.is_some() || rest.is_distinct || headers.contains_key(A2A_VERSION)
        });
        let is_bare = admitted.body == http1::Body::Length(0);
        let opens = is_bare && opens(admitted.method == "GET", headers);
        if server.is_none() && rest.is_none() && is_bare && !opens {
            return None;
        }
        let at = format!("{}:{} {}", admitted.host, admitted.port, server.as_deref().unwrap_or(UNLISTED));
        let key = Key { agent: who.identity.agent.index, at: at.into() };
        Some(Addressed { server, key, need, head: Fields::of(headers), rest, opens })
    }

    /// Whether it goes to a server that is named, and is one of messages by its body or path; or says by its path alone that it is one.
    #[must_use]
    pub fn is_meant(&self, admitted: &Admitted) -> bool {
        let has_body = admitted.body != http1::Body::Length(0);
        let rest = rest(&admitted.method, &admitted.path);
        rest.is_some_and(|rest| rest.is_distinct)
            || (has_body || rest.is_some()) && self.server(admitted).is_some()
    }

    /// Whether it goes to a server that is named.
    #[must_use]
    pub fn is_named(&self, admitted: &Admitted) -> bool {
        self.server(admitted).is_some()
    }

    /// Whether it goes to one server or another, or asks one thing or another there, by how that takes an encoded slash in its path.
    #[must_use]
    pub fn is_ambiguous(&self, admitted: &Admitted) -> bool {
        let separated = path::separated(&admitted.path).and_then(|path| self.server_at(admitted, &path));
        let written = self.server_at(admitted, &admitted.path);
        written.is_some() && separated.is_some() && written != separated
            || tool::is_ambiguous(&admitted.method, &admitted.path)
    }

    /// Where an encoded slash is taken for a part of a name, and where nothing is found so, for a slash.
    fn server(&self, admitted: &Admitted) -> Option<Arc<str>> {
        if self.servers.is_empty() {
            return None;
        }
        let written = self.server_at(admitted, &admitted.path);
        written.or_else(|| self.server_at(admitted, &path::separated(&admitted.path)?))
    }

    fn server_at(&self, admitted: &Admitted, path: &str) -> Option<Arc<str>> {
        let host = admitted.host.to_string();
        // Some servers take parameters off a path (RFC 3986 section 3.3), and serve what is left.
        let bare: Vec<&str> = path.split('/').map(|part| part.split(';').next().unwrap_or(part)).collect();
        let bare = bare.join("/").to_ascii_lowercase();
        let is = |server: &&Server| {
            let rest = bare.strip_prefix(server.path.as_str());
            server.host == host
                && server.port == admitted.port
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let found = self.servers.iter().find(is).map(|server| Arc::clone(&server.name));
        // An agent says what it is at the root of its host, wherever it is itself: whose that is if there are two, nobody knows.
        let is_card = || rest(&admitted.method, path).is_some_and(|rest| rest.method == CARD);
        found.or_else(|| {
            let mut there = self.servers.iter().filter(|s| s.host == host && s.port == admitted.port);
            let one = there.next().filter(|_| is_card() && there.next().is_none())?;
            Some(Arc::clone(&one.name))
        })
    }
}

/// Whether a request asks for a stream of events: clients of MCP have to say that they take one (2024-11-05, HTTP with SSE; since
/// 2025-03-26, section "Listening for Messages from the Server"), or which session or version it is of.
pub fn opens(is_get: bool, headers: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let takes =
        |value: &HeaderValue| value.as_bytes().windows(EVENTS.len()).any(|w| w.eq_ignore_ascii_case(EVENTS));
    let is_meant = || headers.contains_key(SESSION) || headers.contains_key(VERSION);
    is_get && (headers.get_all("accept").iter().any(takes) || is_meant())
}

// === impl Fields ===

impl Fields {
    fn of(headers: &HeaderMap) -> Fields {
        let mut fields = Fields::default();
        let mut only = |name: &'static str| {
            let mut values = headers.get_all(name).iter();
            let first = values.next()?;
            fields.is_meant = true;
            let text = first.to_str().ok().filter(|_| values.next().is_none());
            if text.is_none() {
                fields.unclear = Some(name);
            }
            text.map(str::to_owned)
        };
        let (method, name, version, session) = (only(METHOD), only(NAME), only(VERSION), only(SESSION));
        for key in headers.keys() {
            let Some(param) = key.as_str().strip_prefix(PARAM) else { continue };
            fields.is_meant = true;
            let mut values = headers.get_all(key).iter();
            match values.next().and_then(|value| value.to_str().ok()).filter(|_| values.next().is_none()) {
                Some(value) => fields.params.push((param.to_owned(), value.to_owned())),
                None => fields.unclear = Some("Mcp-Param"),
            }
        }
        let is_a2a = headers.contains_key(A2A_VERSION);
        Fields { method, name, version, session, is_a2a, ..fields }
    }

    fn head(&self) -> Head<'_> {
        Head {
            method: self.method.as_deref(),
            name: self.name.as_deref(),
            version: self.version.as_deref(),
            session: self.session.as_deref(),
            params: &self.params,
            is_a2a: self.is_a2a,
        }
    }
}

// === impl Addressed ===

impl Addressed {
    /// Whether it has to be one of messages: its server is named, or its head says so, or its path.
    #[must_use]
    pub fn is_meant(&self) -> bool {
        self.server.is_some() || self.head.is_meant || self.rest.is_some()
    }

    /// Whether its server is named.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.server.is_some()
    }

    /// Whether what answers it is looked at, if that is a stream: of a server that is named, or of whoever is asked for one.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.is_named() || self.opens
    }

    /// Whether it asks for a stream of events: some clients read its answer as one, whatever that is said to be.
    #[must_use]
    pub fn opens(&self) -> bool {
        self.opens
    }

    /// Who needs to see its body: what goes to nobody who is listed need not be readable.
    #[must_use]
    pub fn body_need(&self) -> PayloadNeed {
        if self.is_meant() {
            return self.need;
        }
        PayloadNeed { decided: Look::Nothing, logged: Look::Content }
    }

    /// Whether what was read so far has to be judged as messages.
    #[must_use]
    pub fn judges(&self, reader: &Reader) -> bool {
        let may_be = self.is_meant() || reader.is_like() || reader.is_doubtful();
        self.need.decided != Look::Nothing && may_be
    }

    /// The messages of a body that is whole, in which this was `found`; `None` if they are none that policy asks about.
    ///
    /// # Errors
    /// Why they can't be read.
    pub fn read(
        &self,
        reader: &Reader,
        catalog: &Catalog,
        found: &[String],
    ) -> Result<Option<Messages>, ToolError> {
        if !self.is_meant() && !reader.is_like() && !reader.is_doubtful() {
            return Ok(None);
        }
        if let Some(field) = self.head.unclear {
            return Err(ToolError::Mismatch(field));
        }
        // What its path asks for, has any body, unless that is a message besides.
        let is_bare = self.rest.is_some() && !reader.is_like() && !reader.is_doubtful();
        if let Some(messages) = self.bare(found).filter(|_| is_bare) {
            return messages.saying(reader.document()?).map(Some);
        }
        let messages = reader.read(&self.head.head())?;
        if !self.is_meant() && messages.iter().all(|message| message.protocol == Protocol::Other) {
            return Ok(None);
        }
        let is_batch = messages.len() > 1;
        let facts = |message: Message| self.facts(message, catalog, found);
        let mut all = messages.into_iter().map(facts).collect::<Result<Vec<_>, _>>()?;
        if let Some(bare) = self.bare(found) {
            all.extend(bare.saying(reader.document()?)?.all);
        }
        Ok(Some(Messages { addressed: self.clone(), all, is_batch }))
    }

    /// The message that a request is by its path, in whose body this was `found`.
    #[must_use]
    pub fn bare(&self, found: &[String]) -> Option<Messages> {
        let facts = Facts {
            id: None,
            protocol: Protocol::A2a,
            method: self.rest?.method.to_owned(),
            sent_as: String::new(),
            name: String::new(),
            argument_names: Vec::new(),
            values: Vec::new(),
            arguments: String::new(),
            findings: found.to_vec(),
            is_forgotten: false,
            is_bare: true,
        };
        Some(Messages { addressed: self.clone(), all: vec![facts], is_batch: false })
    }

    /// Whether a message is refused for what its version has an error of its own for.
    #[must_use]
    pub fn mismatch(&self, reader: &Reader, why: &ToolError) -> Option<Mismatch> {
        let is_one =
            matches!(why, ToolError::Mismatch(_) | ToolError::ParamMismatch(_) | ToolError::Missing(_));
        let has_heads = self.head.version.as_deref().is_some_and(has_heads);
        (is_one && has_heads).then(|| Mismatch { id: reader.id() })
    }

    fn facts(&self, message: Message, catalog: &Catalog, found: &[String]) -> Result<Facts, ToolError> {
        let name = message.name.clone().unwrap_or_default();
        let held = if message.is_call() {
            let called = (&*name, message.arguments.as_ref(), &*self.head.params);
            catalog.call(self.server(), &self.key, called)?
        } else {
            Found::default()
        };
        let values = message.argument_values()?;
        Ok(Facts {
            argument_names: message.argument_names().map(str::to_owned).collect(),
            values,
            arguments: message.arguments_text(),
            findings: {
                let answers = message.answers.is_some().then_some(ANSWERS_SERVER);
                let held = held.names().chain(answers).map(str::to_owned);
                found.iter().cloned().chain(held).collect()
            },
            is_forgotten: held.is_forgotten,
            is_bare: false,
            protocol: message.protocol,
            id: message.id,
            method: message.method.unwrap_or_default(),
            sent_as: message.sent_as.unwrap_or_default(),
            name,
        })
    }

    fn server(&self) -> &str {
        self.server.as_deref().unwrap_or(UNLISTED)
    }
}

// === impl Messages ===

impl Messages {
    /// Has them say this, as the arguments of what a path asks for.
    fn saying(mut self, document: Option<&Value>) -> Result<Messages, ToolError> {
        let Some(document) = document else { return Ok(self) };
        for facts in &mut self.all {
            facts.argument_names = document.members().iter().map(|(name, _)| name.clone()).collect();
            (facts.values, facts.arguments) = (argument_values(document)?, document.canonical());
        }
        Ok(self)
    }

    /// What policy is asked, of each; and whether all is known that it may ask.
    pub fn operations<'a>(&'a self, admitted: &'a Admitted) -> impl Iterator<Item = (Operation<'a>, bool)> {
        self.all.iter().map(|facts| {
            let operation = Operation::Tool(ToolCall {
                host: &admitted.host,
                port: admitted.port,
                server: self.addressed.server(),
                method: &facts.method,
                name: &facts.name,
                argument_names: &facts.argument_names,
                values: &facts.values,
                arguments: &facts.arguments,
                findings: &facts.findings,
            });
            (operation, !facts.is_forgotten)
        })
    }

    /// Why the first of them is refused of which findings may be missing.
    #[must_use]
    pub fn forgotten(&self) -> Option<String> {
        let Facts { name, .. } = self.all.iter().find(|facts| facts.is_forgotten)?;
        Some(format!(
            "what its server listed of `{name}` was forgotten, and policy asks about it: have the agent list its tools again"
        ))
    }

    /// What was found in any of them.
    pub fn findings(&self) -> impl Iterator<Item = &String> {
        self.all.iter().flat_map(|facts| &facts.findings)
    }

    /// What the record tells, and how much more there is.
    #[must_use]
    pub fn record(&self) -> (Vec<ToolFacts>, u64) {
        let told = |facts: &Facts| {
            let name: String = facts.name.chars().take(NAME_BYTES_TOLD).collect();
            ToolFacts {
                server: self.addressed.server().to_owned(),
                method: facts.method.clone(),
                sent_as: facts.sent_as.clone(),
                cut: name.len() < facts.name.len() || facts.argument_names.len() > ARGUMENTS_TOLD,
                name,
                arguments: facts.argument_names.iter().take(ARGUMENTS_TOLD).cloned().collect(),
                findings: Some(facts.findings.clone()),
                forgotten: facts.is_forgotten,
            }
        };
        let more = self.all.len().saturating_sub(MESSAGES_TOLD) as u64;
        (self.all.iter().take(MESSAGES_TOLD).map(told).collect(), more)
    }

    /// Whether any asks for a list of tools.
    #[must_use]
    pub fn lists(&self) -> bool {
        self.all.iter().any(|facts| facts.method == "tools/list")
    }

    /// Whether what answers them is JSON-RPC, which may list or ask: of one by its path alone it is not.
    #[must_use]
    pub fn are_answered(&self) -> bool {
        self.all.iter().any(|facts| !facts.is_bare)
    }

    /// Ids of those that are answered, as JSON.
    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.all.iter().filter_map(|facts| facts.id.as_ref())
    }

    /// A denial in the protocol's own terms, for a client that `takes_json`: clients show it as what became of their call. None
    /// where nobody waits for an answer, or where that comes by another connection.
    #[must_use]
    pub fn denial(&self, takes_json: bool, code: &str, message: &str, request: &str) -> Option<String> {
        let is_mcp = self.all.iter().any(|facts| facts.protocol == Protocol::Mcp);
        if is_mcp && !takes_json {
            return None;
        }
        let all: Vec<String> = self.ids().map(|id| error(id, (DENIED, code), message, request)).collect();
        match &all[..] {
            [] => None,
            [one] if !self.is_batch => Some(one.clone()),
            all => Some(format!("[{}]", all.join(","))),
        }
    }
}

/// What is found of a message by which a client tells its server what that asked for: of its user, its model or its files.
const ANSWERS_SERVER: &str = "answers_server";

/// The error of a denial (JSON-RPC 2.0 section 5.1: -32000 to -32099 are the server's own).
const DENIED: i32 = -32050;

/// The same of a message whose head says something else than its body (MCP 2026-07-28, `HeaderMismatch`).
const MISMATCH: i32 = -32020;

/// The answer to a message that is denied, by its id as JSON.
fn error(id: &str, (number, code): (i32, &str), message: &str, request: &str) -> String {
    let error = serde_json::json!({
        "code": number, "message": message, "data": { "reason": code, "request": request },
    });
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}")
}

// === impl Mismatch ===

impl Mismatch {
    /// What the protocol has said of it, in the form that clients of it take; with the status 400.
    #[must_use]
    pub fn denial(&self, code: &str, request: &str) -> String {
        let message = "HeaderMismatch: the head does not say what the body does, or not all that it has to";
        error(self.id.as_deref().unwrap_or("null"), (MISMATCH, code), message, request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lint says that methods are asked about as is what they are asked about as.
    #[test]
    fn former_names_of_methods_are_those_that_lint_tells() {
        for (former, now) in clawgress_policy::lint::FORMER_METHODS {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{former}","params":{{}}}}"#);
            let messages = tool::read(body.as_bytes(), &tool::Head::default()).expect("messages");
            let told =
                messages.first().map(|message| (message.method.as_deref(), message.sent_as.as_deref()));
            assert_eq!(told, Some((Some(now), Some(former))));
        }
    }

    /// Requests are asked about by the normal form of their path: a server that is named in another is the same one.
    #[test]
    fn servers_are_known_by_the_normal_form_of_their_path() {
        for (url, path) in [
            ("https://tools.test/mcp%3Ateam/", "/mcp:team"),
            ("https://tools.test/%c3%bc%5bx%5D", "/%c3%bc[x]"),
            ("https://tools.test/MCP", "/mcp"),
            ("https://tools.test", ""),
        ] {
            let server = config::ToolServer { name: "team".to_owned(), url: url.to_owned(), approved: None };
            let tool = config::Tool { hold_bytes_max: None, servers: vec![server] };
            let tools = Tools::new(&tool, &Content::default()).expect("tools");
            assert_eq!(tools.servers[0].path, path, "{url}");
        }
    }

    /// Some servers tell no letters from capitals.
    #[test]
    fn servers_are_known_in_capitals_and_in_small_letters() {
        let server = |name: &str, path: &str| config::ToolServer {
            name: name.to_owned(),
            url: format!("https://tools.test{path}"),
            approved: None,
        };
        let servers = vec![server("team", "/mcp"), server("own", "/Own/Mcp")];
        let tool = config::Tool { hold_bytes_max: None, servers };
        let tools = Tools::new(&tool, &Content::default()).expect("tools");
        for (path, name) in [
            ("/mcp", Some("team")),
            ("/MCP", Some("team")),
            ("/Mcp;v=1/x", Some("team")),
            ("/own/mcp", Some("own")),
            ("/OWN/mcp/", Some("own")),
            ("/mcps", None),
        ] {
            let raw = format!("POST {path} HTTP/1.1\r\nHost: tools.test\r\nContent-Length: 1\r\n\r\n");
            let head = http1::parse(raw.as_bytes()).expect("a head");
            let place = crate::plain_http::Place::Transparent { port: 443 };
            let (admitted, _) = crate::plain_http::admit(&head, &place).expect("admitted");
            assert_eq!(tools.server(&admitted).as_deref(), name, "{path}");
        }
    }
}
