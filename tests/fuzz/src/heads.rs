//! Targets of what is known without a body: where a call of a model goes, what fields of tools say, prices, names that are asked
//! of DNS, heads that carry data, and messages of realtime conversations.

use std::sync::Arc;

use clawgress_inspect::dns::watch::{Limits as WatchLimits, Watch, parent};
use clawgress_inspect::llm::answer::{Following, Usage};
use clawgress_inspect::llm::realtime::{Dialect, Heard, Sent, sent};
use clawgress_inspect::llm::{Server, Surface, Target, route};
use clawgress_inspect::payload::Limits;
use clawgress_inspect::payload::head::Head as Sending;
use clawgress_inspect::price::{Cost, Day, Prices};
use clawgress_inspect::tool::{Head, Value, agrees_with_schema, read};

/// The parts of a text, a line each; as many as are wanted, the last ones empty where there are fewer.
fn lines<const N: usize>(data: &[u8]) -> [&str; N] {
    let text = std::str::from_utf8(data).unwrap_or_default();
    let mut lines = text.splitn(N, '\n');
    std::array::from_fn(|_| lines.next().unwrap_or_default())
}

/// Host, path, query, and a server's host and path: whatever they are, the letters of path and provider make no other call, and
/// nothing that sends nothing is one.
pub fn llm_route(data: &[u8]) {
    let [host, path, query, own, own_path] = lines::<5>(data);
    let servers =
        [Server { name: Arc::from("own"), host: own.to_owned(), port: Some(443), path: own_path.to_owned() }];
    let target = |path, is_upgrade, has_body| Target { host, port: 443, path, query, is_upgrade, has_body };
    assert_eq!(route(&servers, &target(path, false, false)), None);
    let known = route(&servers, &target(path, false, true));
    let upper = path.to_ascii_uppercase();
    if let (Some(known), Some(other)) = (&known, route(&servers, &target(&upper, false, true)))
        && !known.is_named
        && path.is_ascii()
    {
        assert_eq!((&known.provider, known.surface), (&other.provider, other.surface));
    }
    if let Some(opened) = route(&servers, &target(path, true, false)) {
        assert_eq!(opened.surface, Surface::Realtime);
        assert_eq!(
            Some(&opened.provider),
            route(&servers, &target(path, true, true)).as_ref().map(|r| &r.provider)
        );
    }
}

/// Method, name, version, the name and value of a field, and the message; a schema is what its arguments are: what is read is
/// what its head says.
pub fn tool_head(data: &[u8]) {
    let [method, name, version, field, told, body] = lines::<6>(data);
    let given = |text: &str| (!text.is_empty()).then_some(());
    let params = [(field.to_ascii_lowercase(), told.to_owned())];
    let head = Head {
        method: given(method).map(|()| method),
        name: given(name).map(|()| name),
        version: given(version).map(|()| version),
        params: if field.is_empty() { &[] } else { &params },
        ..Head::default()
    };
    if let Ok(messages) = read(body.as_bytes(), &head) {
        let all_named =
            messages.iter().all(|message| head.method.is_none() || message.method.as_deref() == head.method);
        assert!(all_named, "a message of another method than its head's");
    }
    if let Ok(value) = Value::parse(body.as_bytes()) {
        let first = agrees_with_schema(&value, Some(&value), head.params);
        assert_eq!(first, agrees_with_schema(&value, Some(&value), head.params));
        assert_eq!(agrees_with_schema(&value, None, &[]), Ok(()));
    }
}

/// A provider and model, and a table: what is used has one price, which grows with what is used; and is unpriced where it is not
/// there.
pub fn prices(data: &[u8]) {
    let [provider, model, table] = lines::<3>(data);
    let Ok(prices) = Prices::parse(table) else { return };
    let usage = |n: u64| Usage { input: n, output: n, cached: n / 2, reasoning: n / 3, ..Usage::default() };
    let day = Day::new(2026, 11, 27).expect("a day");
    let cost = |n| prices.cost(provider, model, day, &usage(n));
    for n in [0, 1, 1000, 1 << 40, u64::MAX] {
        assert_eq!(cost(n), cost(n));
    }
    assert_eq!(
        Prices::parse("").expect("an empty table").cost(provider, model, day, &usage(1)),
        Cost::Unpriced
    );
    let own = prices.clone().overridden_by(prices.clone());
    assert_eq!(own.cost(provider, model, day, &usage(7)), cost(7), "a table stands in its own place");
}

/// Names, a line each, asked second by second: the same twice, and never more below one parent than is let through.
pub fn dns_watch(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let limits = WatchLimits { names_max: 8, uncommon_max: 8, bytes_max: 4096 };
    let (mut one, mut two) = (Watch::default(), Watch::default());
    for (n, name) in text.lines().enumerate() {
        let (at, kind) = ((n / 4) as i64, if name.len() % 3 == 0 { 16 } else { 1 });
        let noted = one.asked(at, name, kind, name.len(), &limits);
        assert_eq!(noted, two.asked(at, name, kind, name.len(), &limits));
        assert!(name.ends_with(parent(name)));
        one.answered(at, name.len());
        two.answered(at, name.len());
        assert!(!one.is_over(at) && one.is_over(at + 3600));
    }
}

/// Host, path, query, the name and value of a field: what is found does not depend on what is asked first, and no more pieces
/// come out than are bounded.
pub fn request_head(data: &[u8]) {
    let [host, path, query, name, value] = lines::<5>(data);
    let head = Sending { host, target: (path, query) };
    let look = || head.look([(name, value.as_bytes())].into_iter(), Limits::default());
    let carries = look();
    assert_eq!(carries, look());
    assert!(carries.pieces.len() <= 64 && host.ends_with(head.destination()));
    if query.is_empty() && path.len() < 20 && host.len() < 20 && value.len() < 20 {
        // Numbers that mean somebody are as short.
        assert!(!carries.findings.iter().any(|found| found.ends_with("_data")), "{carries:?}");
    }
}

/// Messages, a line each: those of a client are requests or are none; those of a server come to the same again, within bounds.
pub fn llm_realtime(data: &[u8]) {
    // OpenAI's begin so, those of its Responses API by a blank here.
    let dialect = match data {
        [b' ', ..] => Dialect::Responses,
        data if data.starts_with(b"{\"type") => Dialect::Events,
        _ => Dialect::Live,
    };
    let hear = |following| {
        let mut heard = Heard::new(dialect, 4096, following);
        let mut all = Vec::new();
        for message in data.split(|b| *b == b'\n') {
            if heard.message(message).is_err() {
                break;
            }
            all.extend(heard.take_calls());
        }
        (all, heard.tokens(), heard.tools().0.to_vec())
    };
    assert_eq!(hear(Following::Held), hear(Following::Held));
    let (told, names) = (hear(Following::Told), hear(Following::Names));
    assert!(names.0.is_empty() && told.0.iter().all(|call| !call.name.is_empty()));
    for message in data.split(|b| *b == b'\n') {
        if let Ok(Sent::Shows(document) | Sent::Asks(document) | Sent::GoesOn(document)) =
            sent(dialect, message)
        {
            assert!(Value::parse(document.as_bytes()).is_ok(), "{document}");
        }
    }
}
