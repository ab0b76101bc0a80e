//! What is read of each message to a server of tools or another agent, and of what these answer: MCP of both eras, and A2A.

use std::collections::BTreeMap;

use clawgress_inspect::payload::{Claims, Inspector, Limits, Readings};
use clawgress_inspect::tool::{
    Change, Ends, Head, Heard, Message, Protocol, Validity, Value, agrees_with_schema, argument_values,
    changed_events, changes, definitions, filtered, heard, pin, rest, validate,
};

use super::cuts::{Cuts, all_of, golden, seed};

/// A fixture: the first line, the fields of its head, and the body.
struct Http {
    line: String,
    fields: Vec<(String, String)>,
    /// Of arguments, as [`Head`] has them.
    params: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Http {
    fn read(name: &str) -> Http {
        let text = String::from_utf8(golden(name)).expect("text");
        let (head, body) = text.split_once("\n\n").expect("a head");
        let mut lines = head.lines();
        let line = lines.next().expect("a line").to_owned();
        let field =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let fields: Vec<_> = lines.map(|line| field(line).expect("a field")).collect();
        let param = |(name, value): &(String, String)| {
            let name = name.to_ascii_lowercase();
            Some((name.strip_prefix("mcp-param-")?.to_owned(), value.clone()))
        };
        let params = fields.iter().filter_map(param).collect();
        Http { line, fields, params, body: body.as_bytes().to_vec() }
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut all = self.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        all.next().map(|(_, value)| value.as_str())
    }

    fn head(&self) -> Head<'_> {
        Head {
            is_a2a: self.field("A2A-Version").is_some(),
            method: self.field("Mcp-Method"),
            name: self.field("Mcp-Name"),
            params: &self.params,
            version: self.field("MCP-Protocol-Version"),
            session: self.field("Mcp-Session-Id"),
        }
    }

    /// What its method and path ask for, where that is no JSON-RPC.
    fn rest(&self) -> Option<&'static str> {
        let mut words = self.line.split(' ');
        let (method, target) = (words.next().expect("a method"), words.next().expect("a target"));
        rest(method, target.split('?').next().unwrap_or_default()).map(|rest| rest.method)
    }

    /// The body in these pieces, as the proxy reads it.
    fn inspect(&self, pieces: &[&[u8]]) -> Inspector {
        let kinds: Vec<&[u8]> = self.field("Content-Type").into_iter().map(str::as_bytes).collect();
        let readings = Readings { messages: Some(true), ..Readings::default() };
        let mut inspector = Inspector::reading(Claims::new(&kinds, &[]), Limits::default(), readings);
        pieces.iter().try_for_each(|piece| inspector.push(piece)).expect("read");
        inspector.finish().expect("read");
        inspector
    }

    /// What its messages say.
    fn told(&self, pieces: &[&[u8]]) -> Vec<Told> {
        let inspector = self.inspect(pieces);
        let reader = inspector.messages().expect("messages");
        let told = |message: &Message| Told {
            protocol: message.protocol,
            method: message.method.clone().unwrap_or_default(),
            name: message.name.clone().unwrap_or_default(),
            values: message.argument_values().expect("few").join("|"),
            is_answered: message.id.is_some(),
        };
        match self.rest() {
            Some(method) => {
                let said = reader.document().expect("JSON").map(argument_values);
                let values = said.map(|values| values.expect("few").join("|")).unwrap_or_default();
                let method = method.to_owned();
                vec![Told { protocol: Protocol::A2a, method, name: String::new(), values, is_answered: true }]
            }
            None => reader.read(&self.head()).expect("messages").iter().map(told).collect(),
        }
    }

    /// What goes on of an answer in these pieces, as the proxy reads it, for an agent that may not call `erase_station`.
    fn answered(&self, pieces: &[&[u8]]) -> Answered {
        let kind = self.field("Content-Type").expect("a type");
        let is_stream = kind.split(';').next() == Some("text/event-stream");
        let (mut ends, mut held, mut answered) = (Ends::default(), Vec::new(), Answered::default());
        for piece in pieces {
            held.extend_from_slice(piece);
            let whole = if is_stream { ends.next(&held) } else { 0 };
            let part: Vec<u8> = held.drain(..whole).collect();
            answered.part(&part, is_stream);
        }
        answered.part(&held, is_stream);
        answered
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    protocol: Protocol,
    method: String,
    name: String,
    values: String,
    is_answered: bool,
}

/// What an answer came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answered {
    out: Vec<u8>,
    removed: Vec<String>,
    asks: Vec<String>,
    answers: Vec<String>,
}

impl Answered {
    fn part(&mut self, part: &[u8], is_stream: bool) {
        let Answered { out, removed, asks, answers } = self;
        let mut document = |text: &[u8]| {
            let Heard { asks: more, answers: ids } = heard(text)?;
            asks.extend(more.into_iter().map(|ask| ask.method));
            answers.extend(ids);
            let less = filtered(text, &mut |name, _| name != "erase_station")?;
            Ok(less.map(|less| {
                removed.extend(less.removed);
                less.body
            }))
        };
        let other = if is_stream { changed_events(part, &mut document) } else { document(part) };
        out.extend(other.expect("read").map_or_else(|| part.to_vec(), String::into_bytes));
    }
}

/// A fixture; for each of its messages the method, what it is about, and the values that it says.
type Row = (&'static str, Protocol, &'static [(&'static str, &'static str, &'static str)]);

const MCP: Protocol = Protocol::Mcp;
const A2A: Protocol = Protocol::A2a;

const REQUESTS: &[Row] = &[
    (
        "mcp_2025_initialize",
        MCP,
        &[(
            "initialize",
            "",
            "/protocolVersion=2025-11-25|/capabilities/roots/listChanged=true|/clientInfo/name=ExampleClient|/clientInfo/title=Example Client|/clientInfo/version=1.0.0",
        )],
    ),
    ("mcp_2025_initialized", MCP, &[("notifications/initialized", "", "")]),
    ("mcp_2025_tools_list", MCP, &[("tools/list", "", "/cursor=page-2")]),
    (
        "mcp_2025_tools_call",
        MCP,
        &[("tools/call", "get_weather", "/location=Bern|/days=3|/units/temperature=C|/units/wind=null")],
    ),
    (
        "mcp_2025_sampling_result",
        MCP,
        &[(
            "",
            "",
            "/role=assistant|/content/type=text|/content/text=Yes, it is.|/model=claude-sonnet-4-20250514|/stopReason=endTurn",
        )],
    ),
    (
        "mcp_2025_resources_read",
        MCP,
        &[("resources/read", "file:///var/log/a b.txt", "/uri=file:///var/log/a b.txt")],
    ),
    (
        "mcp_2025_prompts_get",
        MCP,
        &[("prompts/get", "code_review", "/code=def hello():\n    print('world')")],
    ),
    (
        "mcp_2025_complete",
        MCP,
        &[(
            "completion/complete",
            "",
            "/ref/type=ref/prompt|/ref/name=code_review|/argument/name=language|/argument/value=py|/context/arguments/framework=flask",
        )],
    ),
    ("mcp_2025_task_call", MCP, &[("tools/call", "watch", "")]),
    ("mcp_2025_tasks_result", MCP, &[("tasks/result", "", "/taskId=786512e2-9e0d-44bd-8f29-789f320fe840")]),
    ("mcp_2025_ping", MCP, &[("ping", "", "")]),
    ("mcp_2025_resources_list", MCP, &[("resources/list", "", "/cursor=eyJwYWdlIjogM30=")]),
    ("mcp_2025_templates_list", MCP, &[("resources/templates/list", "", "")]),
    (
        "mcp_2025_resources_subscribe",
        MCP,
        &[("resources/subscribe", "file:///project/src/main.rs", "/uri=file:///project/src/main.rs")],
    ),
    (
        "mcp_2025_resources_unsubscribe",
        MCP,
        &[("resources/unsubscribe", "file:///project/src/main.rs", "/uri=file:///project/src/main.rs")],
    ),
    ("mcp_2025_prompts_list", MCP, &[("prompts/list", "", "/cursor=c-1")]),
    ("mcp_2025_set_level", MCP, &[("logging/setLevel", "", "/level=info")]),
    ("mcp_2025_tasks_get", MCP, &[("tasks/get", "", "/taskId=786512e2-9e0d-44bd-8f29-789f320fe840")]),
    ("mcp_2025_tasks_list", MCP, &[("tasks/list", "", "/cursor=c-7")]),
    ("mcp_2025_tasks_cancel", MCP, &[("tasks/cancel", "", "/taskId=786512e2-9e0d-44bd-8f29-789f320fe840")]),
    (
        "mcp_2025_cancelled",
        MCP,
        &[("notifications/cancelled", "", "/requestId=call-3|/reason=The user asked for something else")],
    ),
    (
        "mcp_2025_03_batch",
        MCP,
        &[
            ("tools/list", "", ""),
            ("notifications/roots/list_changed", "", ""),
            ("tools/call", "watch", "/place=Bern"),
        ],
    ),
    ("mcp_2026_discover", MCP, &[("server/discover", "", "")]),
    ("mcp_2026_tools_list", MCP, &[("tools/list", "", "")]),
    (
        "mcp_2026_tools_call",
        MCP,
        &[("tools/call", "query_region", "/region=Zürich|/limits/rows=10|/query=SELECT a=1")],
    ),
    (
        "mcp_2026_tools_call_again",
        MCP,
        &[(
            "tools/call",
            "query_region",
            "/region=Bern|/query=all|/inputResponses/who/action=accept|/inputResponses/who/content/name=octocat|/inputResponses/where/roots/0/uri=file:///home/o",
        )],
    ),
    ("mcp_2026_resources_read", MCP, &[("resources/read", "file:///ä.txt", "/uri=file:///ä.txt")]),
    (
        "mcp_2026_listen",
        MCP,
        &[(
            "subscriptions/listen",
            "",
            "/notifications/toolsListChanged=true|/notifications/resourceSubscriptions/0=weather://bern",
        )],
    ),
    ("mcp_2026_tasks_update", MCP, &[("tasks/update", "", "/taskId=t-9|/inputResponses/ok/action=decline")]),
    (
        "a2a_03_message_send",
        A2A,
        &[(
            "SendMessage",
            "",
            "/message/role=user|/message/parts/0/kind=text|/message/parts/0/text=Book a table.|/message/parts/1/kind=file|/message/parts/1/file/name=menu.txt|/message/parts/1/file/mimeType=text/plain|/message/parts/1/file/bytes=U291cA==|/message/parts/2/kind=data|/message/parts/2/data/seats=4|/message/messageId=9229e770-767c-417b-a0b0-f0741243c589|/message/contextId=c-1|/message/kind=message|/configuration/blocking=true|/configuration/acceptedOutputModes/0=text/plain",
        )],
    ),
    (
        "a2a_03_message_stream",
        A2A,
        &[(
            "SendStreamingMessage",
            "",
            "/message/role=user|/message/parts/0/kind=text|/message/parts/0/text=Write a poem.|/message/messageId=m-1|/message/taskId=t-1|/message/kind=message",
        )],
    ),
    // MCP has a method of this name, too, by another id.
    (
        "a2a_03_tasks_get",
        A2A,
        &[("GetTask", "", "/id=363422be-b0f9-4692-a24d-278670e7c7f1|/historyLength=10")],
    ),
    ("a2a_03_tasks_resubscribe", A2A, &[("SubscribeToTask", "", "/id=t-1")]),
    (
        "a2a_03_push_config_set",
        A2A,
        &[(
            "CreateTaskPushNotificationConfig",
            "",
            "/taskId=t-1|/pushNotificationConfig/url=https://client.example.com/webhook|/pushNotificationConfig/token=tok-1|/pushNotificationConfig/authentication/schemes/0=Bearer",
        )],
    ),
    ("a2a_03_tasks_list", A2A, &[("ListTasks", "", "/contextId=c-1|/pageSize=10")]),
    ("a2a_03_tasks_cancel", A2A, &[("CancelTask", "", "/id=t-1|/metadata/reason=no time")]),
    (
        "a2a_03_push_config_get",
        A2A,
        &[("GetTaskPushNotificationConfig", "", "/id=t-1|/pushNotificationConfigId=p-1")],
    ),
    ("a2a_03_push_config_list", A2A, &[("ListTaskPushNotificationConfigs", "", "/id=t-1")]),
    (
        "a2a_03_push_config_delete",
        A2A,
        &[("DeleteTaskPushNotificationConfig", "", "/id=t-1|/pushNotificationConfigId=p-1")],
    ),
    (
        "a2a_1_send_message",
        A2A,
        &[(
            "SendMessage",
            "",
            "/message/messageId=m-1|/message/role=ROLE_USER|/message/parts/0/text=Book a table.|/message/parts/1/url=https://example.com/menu.pdf|/message/parts/1/mediaType=application/pdf|/configuration/acceptedOutputModes/0=text/plain|/configuration/returnImmediately=false",
        )],
    ),
    (
        "a2a_1_send_streaming",
        A2A,
        &[(
            "SendStreamingMessage",
            "",
            "/tenant=acme|/message/messageId=m-3|/message/taskId=t-2|/message/role=ROLE_USER|/message/parts/0/data/seats=4|/message/parts/0/mediaType=application/json",
        )],
    ),
    ("a2a_1_get_task", A2A, &[("GetTask", "", "/id=t-2|/historyLength=2")]),
    ("a2a_1_list_tasks", A2A, &[("ListTasks", "", "/contextId=c-2|/status=TASK_STATE_WORKING|/pageSize=10")]),
    ("a2a_1_cancel_task", A2A, &[("CancelTask", "", "/id=t-2")]),
    ("a2a_1_subscribe", A2A, &[("SubscribeToTask", "", "/id=t-2")]),
    ("a2a_1_extended_card", A2A, &[("GetExtendedAgentCard", "", "")]),
    (
        "a2a_1_rest_send",
        A2A,
        &[(
            "SendMessage",
            "",
            "/message/messageId=m-1|/message/role=ROLE_USER|/message/parts/0/text=Book a table.|/configuration/acceptedOutputModes/0=text/plain",
        )],
    ),
    (
        "a2a_1_rest_stream",
        A2A,
        &[(
            "SendStreamingMessage",
            "",
            "/message/messageId=m-1|/message/role=ROLE_USER|/message/parts/0/text=Write a poem.",
        )],
    ),
    ("a2a_1_rest_tasks", A2A, &[("ListTasks", "", "")]),
    ("a2a_1_rest_cancel", A2A, &[("CancelTask", "", "")]),
    (
        "a2a_1_rest_push_config",
        A2A,
        &[("CreateTaskPushNotificationConfig", "", "/url=https://client.example.com/webhook|/token=tok-1")],
    ),
    ("a2a_card", A2A, &[("GetAgentCard", "", "")]),
];

/// A fixture; what its server asks for, what it answers, and how many tools are taken out.
const ANSWERS: &[(&str, &str, &str, usize)] = &[
    ("mcp_2024_events", "", "2", 1),
    ("mcp_2025_initialize", "", "1", 0),
    ("mcp_2025_tools_list", "", "2", 1),
    ("mcp_2025_tools_call", "sampling/createMessage", "\"call-3\"", 0),
    ("mcp_2025_resources_read", "", "4", 0),
    ("mcp_2025_prompts_get", "", "5", 0),
    ("mcp_2025_complete", "", "6", 0),
    ("mcp_2025_task_call", "", "7", 0),
    ("mcp_2025_tasks_result", "elicitation/create", "8", 0),
    ("mcp_2025_ping", "", "\"123\"", 0),
    ("mcp_2025_resources_list", "", "9", 0),
    ("mcp_2025_templates_list", "", "10", 0),
    ("mcp_2025_resources_subscribe", "", "11", 0),
    ("mcp_2025_prompts_list", "", "13", 0),
    ("mcp_2025_set_level", "", "14", 0),
    ("mcp_2025_tasks_get", "", "15", 0),
    ("mcp_2025_tasks_list", "", "16", 0),
    ("mcp_2025_tasks_cancel", "", "17", 0),
    ("mcp_2025_url_elicitation", "elicitation/create", "2", 0),
    ("mcp_2025_stream", "roots/list", "2", 1),
    ("mcp_2025_03_batch", "", "1 2", 1),
    ("mcp_2026_discover", "", "\"discover-1\"", 0),
    ("mcp_2026_tools_list", "", "1", 0),
    ("mcp_2026_tools_call", "elicitation/create sampling/createMessage roots/list", "2", 0),
    ("mcp_2026_tools_call_again", "", "3", 0),
    ("mcp_2026_listen", "", "", 0),
    ("mcp_2026_tasks_update", "", "6", 0),
    ("mcp_2026_header_mismatch", "", "2", 0),
    ("a2a_03_message_send", "", "1", 0),
    ("a2a_03_message_stream", "", "\"s-1\" \"s-1\" \"s-1\"", 0),
    ("a2a_03_tasks_get", "", "3", 0),
    ("a2a_03_tasks_list", "", "\"l-1\"", 0),
    ("a2a_03_tasks_cancel", "", "6", 0),
    ("a2a_03_push_config_get", "", "7", 0),
    ("a2a_03_push_config_list", "", "8", 0),
    ("a2a_03_push_config_delete", "", "9", 0),
    ("a2a_1_send_message", "", "1", 0),
    ("a2a_1_send_streaming", "", "2 2", 0),
    ("a2a_1_rest_send", "", "", 0),
    ("a2a_1_rest_stream", "", "", 0),
    ("a2a_card", "", "", 0),
];

fn request(name: &str) -> Http {
    Http::read(&format!("messages/{name}.http"))
}

fn answer(name: &str) -> Http {
    Http::read(&format!("messages/{name}_answer.http"))
}

#[test]
fn what_each_message_says() {
    for (name, protocol, want) in REQUESTS {
        let http = request(name);
        let told = http.told(&[&http.body]);
        let found: Vec<_> = told.iter().map(|one| (&*one.method, &*one.name, &*one.values)).collect();
        assert_eq!(found, *want, "{name}");
        for one in told {
            assert_eq!(one.protocol, *protocol, "{name}");
            let waits = !one.method.is_empty() && !one.method.starts_with("notifications/");
            assert_eq!(one.is_answered, waits, "{name}");
        }
    }
    for (name, asks, answers, removed) in ANSWERS {
        let http = answer(name);
        let came = http.answered(&[&http.body]);
        let said = (came.asks.join(" "), came.answers.join(" "), came.removed.len());
        assert_eq!(said, ((*asks).to_owned(), (*answers).to_owned(), *removed), "{name}");
        let text = String::from_utf8(came.out.clone()).expect("text");
        assert!(!text.contains("erase_station"), "{name}");
        if *removed == 0 {
            assert_eq!(came.out, http.body, "{name}");
        }
    }
    assert_eq!(all_of("messages/").len(), REQUESTS.len() + ANSWERS.len(), "every fixture is in a table");
}

#[test]
fn any_cutting_says_the_same() {
    let seed = seed();
    println!("CLAWGRESS_SEED={seed}");
    let mut cuts = Cuts(seed);
    for (name, ..) in REQUESTS {
        let http = request(name);
        let whole = http.told(&[&http.body]);
        for _ in 0..60 {
            assert_eq!(http.told(&cuts.of(&http.body)), whole, "{name}: CLAWGRESS_SEED={seed}");
        }
        let bytes: Vec<&[u8]> = http.body.chunks(1).collect();
        assert_eq!(http.told(&bytes), whole, "{name}");
    }
    for (name, ..) in ANSWERS {
        let http = answer(name);
        let whole = http.answered(&[&http.body]);
        for _ in 0..60 {
            assert_eq!(http.answered(&cuts.of(&http.body)), whole, "{name}: CLAWGRESS_SEED={seed}");
        }
        let bytes: Vec<&[u8]> = http.body.chunks(1).collect();
        assert_eq!(http.answered(&bytes), whole, "{name}");
    }
}

/// The definitions of a fixture, by their names.
fn defined(name: &str) -> BTreeMap<String, Value> {
    definitions(&answer(name).body).expect("read").expect("a list").into_iter().collect()
}

#[test]
fn definitions_are_held_against_those_of_before() {
    let approved =
        defined("mcp_2025_tools_list").iter().map(|(name, tool)| (name.clone(), pin(tool))).collect();
    let found = changes(&answer("mcp_2026_tools_list").body, &approved).expect("read");
    let found: Vec<_> = found.iter().map(|(name, change)| (&**name, *change)).collect();
    let want = [("get_weather", Change::Changed), ("watch", Change::Same), ("query_region", Change::New)];
    assert_eq!(found, want, "what is for the client alone is no change");
}

#[test]
fn calls_fit_what_was_listed() {
    let schema = |list: &str, tool: &str| {
        defined(list).get(tool).and_then(|tool| tool.member("inputSchema")).cloned().expect("a schema")
    };
    let call = |name: &str| {
        let http = request(name);
        let inspector = http.inspect(&[&http.body]);
        let mut all = inspector.messages().expect("messages").read(&http.head()).expect("read");
        (all.remove(0).arguments.expect("arguments"), http.params)
    };
    let (arguments, _) = call("mcp_2025_tools_call");
    let weather = schema("mcp_2025_tools_list", "get_weather");
    assert_eq!(validate(&weather, &arguments), Validity::Valid);
    let (arguments, params) = call("mcp_2026_tools_call");
    assert_eq!(params.len(), 2);
    let region = schema("mcp_2026_tools_list", "query_region");
    assert_eq!(validate(&region, &arguments), Validity::Valid);
    agrees_with_schema(&region, Some(&arguments), &params).expect("the head says what the body does");
    assert!(matches!(validate(&weather, &arguments), Validity::Invalid { .. }), "it has no place");
}
