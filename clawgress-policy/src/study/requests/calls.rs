//! Calls of models and messages to tools that both sets are asked about. What of one is a number, or a word, is tried as whatever
//! policy may ask for of it, since that is not known of what policies name.

use super::super::samples::Calls;
use super::{Kind, Samples};
use crate::content::{ModelCall, ToolCall, stores_by_default, streams_by_default};
use crate::{Host, Look, Operation, PolicySet};

/// Where calls go: to whom is asked by other things.
const PORT: u16 = 443;

/// Every kind of call, and of what, where either set asks about it.
pub(super) fn kinds<'a>(
    host: &'a Host,
    samples: &'a Samples,
    sets: [&PolicySet; 2],
) -> Vec<(String, Kind<'a>)> {
    let names = |need: fn(&PolicySet) -> Look| sets.into_iter().any(|set| need(set) != Look::Nothing);
    let mut kinds = Vec::new();
    if names(|set| set.needs_call().look()) {
        let of = |(provider, model): &'a (String, String)| {
            (format!("{provider}/{model}"), of_model(host, (provider, model), &samples.models))
        };
        kinds.extend(samples.models.offers.iter().map(of));
    }
    if names(|set| set.needs_tool().look()) {
        let of = |(server, name): &'a (String, String)| {
            (format!("{server}/{name}"), of_tool(host, (server, name), &samples.tools))
        };
        kinds.extend(samples.tools.offers.iter().map(of));
    }
    kinds
}

fn told(calls: &Calls) -> Vec<String> {
    calls.contents.iter().map(|content| content.told.clone()).collect()
}

fn of_model<'a>(host: &'a Host, (provider, model): (&'a str, &'a str), calls: &'a Calls) -> Kind<'a> {
    Kind {
        action: "llm",
        dimensions: vec![("call", told(calls))],
        ask: Box::new(move |index, ask| {
            let Some(content) = index.first().and_then(|n| calls.contents.get(*n)) else { return };
            let surface = content.surface.as_deref().unwrap_or("chat_completions");
            let small = u32::try_from(content.number).unwrap_or(u32::MAX);
            ask(Operation::Llm(ModelCall {
                host,
                port: PORT,
                provider,
                model,
                family: model,
                surface,
                tokens_estimated: content.number,
                tokens_max: Some(content.number),
                stream: content.stream.unwrap_or_else(|| streams_by_default(surface)),
                tools: &content.words,
                attachments: small,
                images: small,
                attachment_bytes: content.number,
                prompt_score: small,
                unpriced: false,
                tool_choice: &content.name,
                end_user: &content.name,
                store: content.store.unwrap_or_else(|| stores_by_default(surface)),
                partial: content.partial,
                findings: &content.words,
            }));
        }),
    }
}

fn of_tool<'a>(host: &'a Host, (server, name): (&'a str, &'a str), calls: &'a Calls) -> Kind<'a> {
    Kind {
        action: "tool",
        dimensions: vec![("method", calls.methods.clone()), ("call", told(calls))],
        ask: Box::new(move |index, ask| {
            let method = index.first().and_then(|n| calls.methods.get(*n));
            let content = index.get(1).and_then(|n| calls.contents.get(*n));
            let (Some(method), Some(content)) = (method, content) else { return };
            ask(Operation::Tool(ToolCall {
                host,
                port: PORT,
                server,
                method,
                name,
                argument_names: &content.words,
                values: &content.values,
                arguments: "{}",
                findings: &content.words,
            }));
        }),
    }
}
