//! Random policies.

/// `SplitMix64`: small, seedable, and the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

pub const ACTIONS: [&str; 10] =
    ["connect", "direct", "tls", "tunnel", "http", "resolve", "llm", "tool", "send", "receive"];
pub const AGENTS: [&str; 4] = ["default/web", "default/bot", "acme/web", "acme/crawler"];
const GROUPS: [&str; 8] = [
    "Team::\"research\"",
    "Team::\"acme/research\"",
    "Team::\"ops\"",
    "Project::\"atlas\"",
    "Project::\"acme/atlas\"",
    "Environment::\"prod\"",
    "Tenant::\"default\"",
    "Tenant::\"acme\"",
];
pub const HOSTS: [&str; 7] =
    ["api.example.com", "example.com", "a.b.example.com", "packages.test", "203.0.113.7", "2001:db8::7", "x"];
pub const NETWORKS: [&str; 8] = [
    "203.0.113.7",
    "203.0.113.200",
    "10.1.2.3",
    "2001:db8::7",
    "198.51.100.1",
    "127.0.0.1",
    "::1",
    "ff02::1",
];
const RANGES: [&str; 5] =
    ["203.0.113.0/24", "203.0.113.128/25", "10.0.0.0/8", "2001:db8::/32", "198.51.100.1"];
pub const PATHS: [&str; 6] = ["/", "/index", "/admin", "/admin/x", "/a*b", "/a.b"];
pub const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];
const PATTERNS: [&str; 7] = ["*", "/admin*", "*.example.com", "*x*", "/a\\*b", "GET", "*e*e*"];
pub const LABELS: [&str; 3] = ["role", "tier", "none"];
/// Fingerprints of hellos.
pub const JA4S: [&str; 3] =
    ["t13d1516h2_8daaf6152771_e5627efa2ab1", "t12i0302h1_8daaf6152771_6d807ffa2a79", ""];
/// Of executables, certificates, and network cards.
pub const PRINTS: [&str; 3] = ["9f86d081", "02:00:5e:00:53:01", "x"];
/// Who offers models and tools, what they offer, and what is found in payloads.
pub const OFFERING: [&str; 3] = ["openai", "jira", "x"];
pub const OFFERED: [&str; 4] = ["gpt-5", "gpt-5-mini", "create/issue", ""];
pub const FINDINGS: [&str; 3] = ["private_key", "email", "jailbreak"];
/// Names of header fields and of parameters, and what they say. The last of each holds a secret.
pub const FIELDS: [&str; 4] = ["x-team", "accept", "X_Tier", "authorization"];
pub const PARAMETERS: [&str; 4] = ["alt", "tag", "a+b", "key"];
pub const SAID: [&str; 5] = ["sse", "gold", "a*b", "", "/admin"];
const STRINGS: [&str; 8] = ["crawler", "gold", "GET", "/admin", "tcp", "tls", "h2", "https"];
const TIMES: [&str; 3] = ["2026-11-25T09:00:00Z", "2026-11-26T00:00:00Z", "2030-01-01T12:30:00Z"];

/// Writes random policies for one action.
pub struct Writer<'a> {
    pub random: &'a mut Random,
    pub action: &'a str,
}

impl Writer<'_> {
    fn is_of_addresses(&self) -> bool {
        matches!(self.action, "connect" | "direct")
    }

    pub fn policy(&mut self) -> String {
        let effect = if self.random.one_in(4) { "forbid" } else { "permit" };
        let is_told = matches!(self.action, "http" | "send" | "connect");
        let annotation = if effect == "permit" && is_told && self.random.one_in(8) {
            self.effect()
        } else if (is_told || !self.is_of_addresses()) && self.random.one_in(8) {
            "@mode(\"log-only\") "
        } else {
            ""
        };
        let (principal, resource) = (self.principal(), self.resource());
        let action = match (self.action, self.random.below(8)) {
            (_, 0) if annotation.is_empty() => "action".to_owned(),
            ("http" | "send" | "receive", 1) => "action in Action::\"use\"".to_owned(),
            ("tls" | "tunnel", 1) => "action in [Action::\"tls\", Action::\"tunnel\"]".to_owned(),
            (action, _) => format!("action == Action::\"{action}\""),
        };
        let mut text = format!("@id(\"ID\") {annotation}{effect} ({principal}, {action}, {resource})");
        if !self.random.one_in(6) {
            let condition = self.bool(3);
            let word = if self.random.one_in(5) { "unless" } else { "when" };
            text.push_str(&format!(" {word} {{ {condition} }}"));
        }
        text + ";"
    }

    /// What an obligation says.
    fn effect(&mut self) -> &'static str {
        let effects = [
            "@effect(\"alert\") ",
            "@effect(\"alert\") @severity(\"high\") ",
            "@effect(\"quarantine\") @for(\"15m\") ",
            "@effect(\"rate-limit\") @limit(\"20 requests/minute burst 5\") ",
            "@effect(\"rate-limit\") @limit(\"3 requests/second\") @per(\"team\") ",
            "@effect(\"throttle\") @limit(\"900 requests/hour\") @per(\"tenant\") ",
        ];
        // Limits of `connect` are the kernel's: its tables are compared elsewhere.
        let of_both = if self.is_of_addresses() { 3 } else { effects.len() };
        self.random.pick(&effects[..of_both])
    }

    fn agent(&mut self) -> String {
        format!("Agent::\"{}\"", self.random.pick(&AGENTS))
    }

    fn principal(&mut self) -> String {
        match self.random.below(8) {
            0 => format!("principal == {}", self.agent()),
            1 => "principal is Agent".to_owned(),
            2 | 3 => format!("principal in {}", self.random.pick(&GROUPS)),
            4 => format!("principal is Agent in {}", self.random.pick(&GROUPS)),
            _ => "principal".to_owned(),
        }
    }

    fn set(&mut self) -> &'static str {
        if self.is_of_addresses() {
            self.random.pick(&["NetworkSet::\"offices\"", "NetworkSet::\"lab\"", "NetworkSet::\"all\""])
        } else if self.kind() == "Model" {
            self.random.pick(&["Provider::\"openai\"", "Provider::\"jira\""])
        } else if self.kind() == "Tool" {
            self.random.pick(&["ToolServer::\"openai\"", "ToolServer::\"jira\""])
        } else {
            self.random.pick(&["HostSet::\"saas\"", "HostSet::\"exact\"", "HostSet::\"wide\""])
        }
    }

    /// The type of the action's resource.
    fn kind(&self) -> &'static str {
        match self.action {
            "connect" | "direct" => "Network",
            "llm" => "Model",
            "tool" => "Tool",
            _ => "Host",
        }
    }

    fn thing(&mut self) -> String {
        match self.kind() {
            "Network" => format!("Network::\"{}\"", self.random.pick(&NETWORKS)),
            "Host" => format!("Host::\"{}\"", self.random.pick(&HOSTS)),
            kind => {
                let (by, name) = (self.random.pick(&OFFERING), self.random.pick(&OFFERED[..3]));
                format!("{kind}::\"{by}/{name}\"")
            }
        }
    }

    fn resource(&mut self) -> String {
        let kind = self.kind();
        match self.random.below(6) {
            0 => format!("resource == {}", self.thing()),
            1 | 2 => format!("resource in {}", self.set()),
            3 => format!("resource is {kind} in {}", self.set()),
            4 => format!("resource is {kind}"),
            _ => "resource".to_owned(),
        }
    }

    fn bool(&mut self, depth: usize) -> String {
        if depth > 0 && !self.random.one_in(3) {
            let (a, b) = (self.bool(depth - 1), self.bool(depth - 1));
            return match self.random.below(7) {
                0 | 1 => format!("({a} && {b})"),
                2 | 3 => format!("({a} || {b})"),
                4 => format!("!({a})"),
                5 => format!("(if {a} then {b} else {})", self.bool(depth - 1)),
                _ => format!("(({a}) == ({b}))"),
            };
        }
        match self.random.below(16) {
            0 | 1 => self.compare(),
            2 => self.text_question(),
            3 => self.label_question(),
            4 => self.principal_question(),
            5 => self.resource_question(),
            6 => self.time_question(),
            7 => self.set_question(),
            8 if self.is_of_addresses() => self.ip_question(),
            8 if self.random.one_in(3) => self.fingerprint_question(),
            8 => self.history_question(),
            9 => self.group_question(),
            10 if self.random.one_in(2) => self.entity_question(),
            10 => self.has_question(),
            11 => self.odd_question(),
            12 => format!("action == Action::\"{}\"", self.random.pick(&ACTIONS)),
            13 => format!("action in [Action::\"{}\", Action::\"reach\"]", self.action),
            _ => self.own_question(),
        }
    }

    fn compare(&mut self) -> String {
        if !self.is_of_addresses() && self.random.one_in(5) {
            // Overflows on some ports.
            let operator = self.random.pick(&["+", "-", "*"]);
            let far = self.random.pick(&["9223372036854775800", "-9223372036854775800"]);
            return format!("{far} {operator} {} < {}", self.number(), self.long(0));
        }
        let operator = self.random.pick(&["==", "!=", "<", "<=", ">", ">="]);
        format!("{} {operator} {}", self.long(2), self.long(1))
    }

    fn long(&mut self, depth: usize) -> String {
        if depth > 0 && !self.is_of_addresses() && self.random.one_in(3) {
            let operator = self.random.pick(&["+", "-", "*"]);
            let (a, b) = (self.long(depth - 1), self.long(depth - 1));
            return if self.random.one_in(6) { format!("-({a})") } else { format!("({a} {operator} {b})") };
        }
        let literals =
            ["0", "1", "22", "80", "443", "8080", "-1", "9223372036854775807", "-9223372036854775808"];
        if self.random.one_in(2) { self.number() } else { self.random.pick(&literals).to_owned() }
    }

    fn number(&mut self) -> String {
        let choices: &[&str] = match self.action {
            "llm" => &[
                "context.port",
                "context.llm.tokens_estimated",
                "context.llm.tokens_max",
                "context.llm.attachments",
                "context.llm.images",
                "context.llm.attachment_bytes",
                "context.llm.prompt_score",
            ],
            "send" => &["context.port", "context.bytes"],
            "receive" => &[
                "context.status",
                "context.bytes",
                "context.usage.input_tokens",
                "context.usage.output_tokens",
            ],
            _ => &["context.port"],
        };
        self.random.pick(choices).to_owned()
    }

    fn content_set(&mut self) -> &'static str {
        match self.action {
            "llm" => self.random.pick(&["context.findings", "context.llm.tools"]),
            "tool" => {
                self.random.pick(&["context.findings", "context.tool.argument_names", "context.tool.values"])
            }
            "receive" => {
                self.random.pick(&["context.findings", "context.usage.tools", "context.call.values"])
            }
            _ => "context.findings",
        }
    }

    fn string(&mut self) -> String {
        let choices: &[&str] = match self.action {
            "http" => {
                &["context.method", "context.path", "context.scheme", "resource.name", "principal.name"]
            }
            "tls" => &["resource.name", "principal.name", "context.ja4"],
            "resolve" => &["context.query_type", "resource.name", "principal.name"],
            "llm" => &[
                "context.llm.provider",
                "context.llm.model",
                "context.llm.family",
                "context.llm.surface",
                "context.host",
                "principal.name",
            ],
            "tool" => &[
                "context.tool.server",
                "context.tool.method",
                "context.tool.name",
                "context.tool.arguments",
                "context.host",
            ],
            "send" => &["context.method", "context.path", "context.media_type", "resource.name"],
            "receive" => &["context.media_type", "resource.name", "principal.name"],
            "tunnel" => &["context.protocol", "resource.name", "principal.name"],
            _ => &["context.protocol", "principal.name"],
        };
        self.random.pick(choices).to_owned()
    }

    fn literal(&mut self) -> String {
        let is_of_calls = matches!(self.action, "llm" | "tool");
        let list: &[&str] = match self.random.below(if self.action == "tls" { 6 } else { 5 }) {
            5 => &JA4S,
            0 | 1 if is_of_calls => &OFFERED,
            2 if is_of_calls => &OFFERING,
            0 => &STRINGS,
            1 => &PATHS,
            2 => &METHODS,
            3 => &HOSTS,
            _ => &["tcp", "udp", "tls", "tls_ech", "unknown", "http", "web", "bot"],
        };
        format!("\"{}\"", self.random.pick(list))
    }

    fn text_question(&mut self) -> String {
        let subject = self.string();
        match self.random.below(3) {
            0 => format!("{subject} like \"{}\"", self.random.pick(&PATTERNS)),
            1 => format!("{subject} != {}", self.literal()),
            _ => format!("{subject} == {}", self.literal()),
        }
    }

    fn label_question(&mut self) -> String {
        let label = self.random.pick(&LABELS);
        let value = self.literal();
        match self.random.below(3) {
            0 => format!("principal.hasTag(\"{label}\")"),
            1 => format!("(principal.hasTag(\"{label}\") && principal.getTag(\"{label}\") == {value})"),
            _ => format!("(principal.hasTag(\"{label}\") && principal.getTag(\"{label}\") like \"*e*\")"),
        }
    }

    fn principal_question(&mut self) -> String {
        match self.random.below(4) {
            0 => format!("principal == {}", self.agent()),
            1 => format!("principal in {}", self.random.pick(&GROUPS)),
            2 => format!("principal in [{}, {}]", self.random.pick(&GROUPS), self.agent()),
            _ => format!("principal.tenant == Tenant::\"{}\"", self.random.pick(&["default", "acme", "x"])),
        }
    }

    fn group_question(&mut self) -> String {
        let (name, kind) =
            [("team", "Team"), ("project", "Project"), ("environment", "Environment")][self.random.below(3)];
        let id = self.random.pick(&["research", "acme/research", "atlas", "prod", "ops"]);
        match self.random.below(3) {
            0 => format!("principal has {name}"),
            1 => format!("(principal has {name} && principal.{name} == {kind}::\"{id}\")"),
            _ => format!("(principal has {name} && principal.{name} in Tenant::\"acme\")"),
        }
    }

    fn resource_question(&mut self) -> String {
        match self.random.below(4) {
            0 => format!("resource == {}", self.thing()),
            1 => format!("resource in [{}, {}]", self.set(), self.thing()),
            2 if self.kind() == "Host" => {
                format!("[\"x\", \"api.example.com\"].contains(resource.name) == {}", self.bool(0))
            }
            _ => format!("resource in {}", self.set()),
        }
    }

    fn time_question(&mut self) -> String {
        let operator = self.random.pick(&["==", "!=", "<", "<=", ">", ">="]);
        match self.random.below(4) {
            0 => format!("context.hour {operator} {}", self.random.below(24)),
            1 => "[6, 7, 1].contains(context.weekday)".to_owned(),
            2 => format!("context.minute {operator} {}", self.random.below(60)),
            _ => format!("context.time {operator} datetime(\"{}\")", self.random.pick(&TIMES)),
        }
    }

    fn set_question(&mut self) -> String {
        if let "llm" | "tool" | "send" | "receive" = self.action {
            let set = self.content_set();
            let (one, two) = (self.random.pick(&FINDINGS), self.random.pick(&FINDINGS));
            return match self.random.below(5) {
                0 => format!("{set}.containsAll([\"{one}\", \"{two}\"])"),
                1 => format!("{set}.containsAny([\"{one}\", \"{two}\"])"),
                2 => format!("{set}.isEmpty()"),
                3 => format!("[\"{one}\", \"{two}\", \"{one}\"] == {set}"),
                _ => format!("{set}.contains(\"{one}\")"),
            };
        }
        if self.action == "tls" {
            return self
                .random
                .pick(&[
                    "context.alpn.contains(\"h2\")",
                    "context.alpn.containsAll([\"h2\", \"http/1.1\"])",
                    "context.alpn.containsAny([\"h2\", \"x\"])",
                    "context.alpn.isEmpty()",
                    "context.alpn == [\"http/1.1\", \"h2\", \"h2\"]",
                    "[\"h2\", \"http/1.1\", \"x\"].containsAll(context.alpn)",
                    "[\"h2\"].containsAny(context.alpn)",
                ])
                .to_owned();
        }
        match self.random.below(3) {
            0 => format!("[80, 443, 443].contains({})", self.number()),
            1 => format!("[{}, {}].contains({})", self.literal(), self.literal(), self.string()),
            _ => format!("![22, 25].contains({})", self.number()),
        }
    }

    fn ip_question(&mut self) -> String {
        let subject = self.random.pick(&["context.ip", "resource.ip"]);
        match self.random.below(6) {
            0 => format!("{subject}.isIpv4()"),
            1 => format!("{subject}.isIpv6()"),
            2 => format!("{subject}.{}()", self.random.pick(&["isLoopback", "isMulticast"])),
            3 => format!("{subject} == ip(\"{}\")", self.random.pick(&NETWORKS)),
            _ => format!("{subject}.isInRange(ip(\"{}\"))", self.random.pick(&RANGES)),
        }
    }

    /// Entities that are computed, and may be the request's own or written.
    fn entity_question(&mut self) -> String {
        let test = self.bool(0);
        let (own, written, set) = if self.random.one_in(2) {
            ("resource", self.thing(), format!("[{}, {}]", self.set(), self.thing()))
        } else {
            ("principal", self.agent(), format!("[{}, {}]", self.random.pick(&GROUPS), self.agent()))
        };
        let computed = if self.random.one_in(2) {
            format!("(if {test} then {own} else {written})")
        } else {
            format!("(if {test} then {written} else {own})")
        };
        match self.random.below(3) {
            0 => format!("{computed} == {written}"),
            _ => format!("{computed} in {set}"),
        }
    }

    fn has_question(&mut self) -> String {
        let attribute = self.random.pick(&[
            "port",
            "ip",
            "alpn",
            "method",
            "protocol",
            "hour",
            "time",
            "scheme",
            "llm",
            "tool",
            "usage",
            "history",
            "findings",
            "host",
            "executable",
            "cgroup",
            "mac",
            "headers",
            "query_names",
        ]);
        match self.random.below(4) {
            3 => format!(
                "context has {}",
                self.random.pick(&["llm.model", "tool.name", "usage.tools", "call.name", "llm.none"])
            ),
            0 => format!("resource has {}", self.random.pick(&["name", "ip"])),
            1 => "principal has name".to_owned(),
            _ => format!("context has {attribute}"),
        }
    }

    /// What has no tree: Cedar's evaluator is asked.
    fn odd_question(&mut self) -> String {
        self.random
            .pick(&[
                "decimal(\"1.5\").lessThan(decimal(\"2.0\"))",
                "{ a: context.port }.a == 443",
                "[principal].contains(principal)",
                "Agent::\"default/web\" in Team::\"research\"",
                "ip(\"10.0.0.1\").isInRange(ip(\"10.0.0.0/8\"))",
                "[[1], [context.port]].contains([443])",
                "duration(\"1h\") < duration(\"61m\")",
            ])
            .to_owned()
    }

    fn history_question(&mut self) -> String {
        let operator = self.random.pick(&["==", "!=", "<", "<=", ">", ">="]);
        let count = self.random.pick(&["requests", "denied"]);
        match self.random.below(5) {
            0 => {
                let flag = self.random.pick(&["first_seen", "request_surge", "denial_burst"]);
                format!("context.history.{flag}")
            }
            1 => format!("context.history.fingerprint_changed == {}", self.bool(0)),
            2 => format!("context.history.{count}_last_minute {operator} context.port"),
            3 => format!("context.history.{count}_last_hour {operator} {}", self.random.below(6)),
            _ => format!("context.history.{count}_last_day {operator} {}", self.random.below(100)),
        }
    }

    /// What may not be known.
    fn fingerprint_question(&mut self) -> String {
        let signal = self.random.pick(&["executable", "cgroup", "certificate", "mac"]);
        let print = self.random.pick(&PRINTS);
        match self.random.below(4) {
            0 => format!("context has {signal} && context.{signal} == \"{print}\""),
            1 => format!(
                "context has {signal} && context.{signal} like \"*{}*\"",
                self.random.pick(&["0", ":"])
            ),
            2 => format!("!(context has {signal}) || context.{signal} != \"{print}\""),
            _ => format!("(if context has {signal} then context.{signal} else \"none\") == resource.name"),
        }
    }

    /// What the request's head says.
    fn head_question(&mut self) -> String {
        let (part, names, all) = if self.random.one_in(2) {
            ("headers", "header_names", ["x-team", "accept", "x-tier", "authorization"])
        } else {
            ("query", "query_names", ["alt", "tag", "a b", "key"])
        };
        let (name, said) = (self.random.pick(&all[..3]), self.random.pick(&SAID).replace('*', "\\*"));
        let (any, other) = (self.random.pick(&all), self.random.pick(&all));
        let (has, get) =
            (format!("context.{part}.hasTag(\"{name}\")"), format!("context.{part}.getTag(\"{name}\")"));
        match self.random.below(9) {
            0 => has,
            1 => format!("({has} && {get} like \"*{said}*\")"),
            2 => format!("({has} && {get} != \"{}\")", self.random.pick(&SAID)),
            3 => format!("(if {has} then {get} == principal.name else context.port == 443)"),
            4 => format!("[\"{any}\", \"{other}\"].containsAll(context.{names})"),
            5 => format!("context.{names}.containsAny([\"{any}\", \"{other}\"])"),
            6 => format!("(context.{names}.isEmpty() || context.{names} == [\"{any}\", \"{other}\"])"),
            7 => format!("context.{names}.contains(\"{any}\")"),
            _ => format!("({has} && {get} == \"{}\")", self.random.pick(&SAID)),
        }
    }

    /// What only this action's context has.
    fn own_question(&mut self) -> String {
        match self.action {
            "http" if !self.random.one_in(3) => self.head_question(),
            "http" => format!("context.path == \"{}\"", self.random.pick(&PATHS)),
            "tunnel" => {
                format!("context.protocol == \"{}\"", self.random.pick(&["tls", "tls_ech", "unknown"]))
            }
            "tls" => "context.alpn.contains(\"h2\")".to_owned(),
            "resolve" => format!("context.query_type == \"{}\"", self.random.pick(&["A", "AAAA", "TXT"])),
            "llm" => self
                .random
                .pick(&[
                    "context.llm.stream",
                    "context.llm.model like \"gpt-5*\"",
                    "context.llm.tokens_estimated <= 443",
                    "context.llm.tools.contains(\"email\")",
                    "context.llm.unpriced",
                    "context.llm.tool_choice == \"email\"",
                    "context.llm.end_user like \"u-*\"",
                    "context.llm.store",
                    "context.llm.partial",
                ])
                .to_owned(),
            "tool" => self
                .random
                .pick(&["context.tool.arguments like \"*/etc/*\"", "context.tool.method == \"tools/call\""])
                .to_owned(),
            "send" => self
                .random
                .pick(&[
                    "context.complete",
                    "!context.complete",
                    "context.bytes > 80",
                    "context.method == \"PUT\"",
                ])
                .to_owned(),
            "receive" => self
                .random
                .pick(&[
                    "context.complete",
                    "context.status >= 443",
                    "context.usage.output_tokens > 80",
                    "context.usage.tools.contains(\"email\")",
                    "context.call.name == \"email\"",
                    "context.call.arguments like \"*passwd*\"",
                ])
                .to_owned(),
            _ => format!("context.protocol == \"{}\"", self.random.pick(&["tcp", "udp", "icmp", "gre"])),
        }
    }
}
