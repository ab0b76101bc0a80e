//! About how much memory a record takes while it waits: what an agent can make large counts by its length, all else is of a size
//! that is known.

use std::mem::size_of;

use clawgress_api::{Attributes, AuditRecord, EffectRef};
use serde_json::Value;

/// Of history, and of fingerprints: each has a bounded number of short fields.
const FACTS_BYTES: usize = 1024;

/// Bytes of a record.
pub(super) fn weight(record: &AuditRecord) -> usize {
    let destination = &record.destination;
    let texts = [&destination.host, &destination.path, &destination.method, &record.detail];
    let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
    let lists = record.policies.iter().chain(&record.findings).map(|id| text(id)).sum::<usize>();
    let effects = record.effects.iter().map(|effect| size_of::<EffectRef>() + effect.policy.len());
    let subject = record.agent.as_ref().and_then(|agent| agent.credential.as_ref()?.subject.as_ref());
    let attributes = record.attributes.as_deref().map_or(0, of_attributes);
    size_of::<AuditRecord>()
        + texts
        + lists
        + effects.sum::<usize>()
        + subject.map_or(0, |subject| text(subject))
        + attributes
}

fn of_attributes(attributes: &Attributes) -> usize {
    let labels = attributes.labels.iter().flatten().map(|(key, value)| text(key) + text(value));
    let alpn = attributes.alpn.iter().flatten().map(|name| text(name));
    let tools = attributes.llm.iter().flat_map(|llm| &llm.tools).map(|name| text(name));
    let facts = [&attributes.history, &attributes.fingerprints];
    let facts = facts.into_iter().flatten().count() * FACTS_BYTES;
    let head = attributes.head.as_ref().map_or(0, of_value);
    size_of::<Attributes>()
        + labels.sum::<usize>()
        + alpn.sum::<usize>()
        + tools.sum::<usize>()
        + facts
        + head
}

fn of_value(value: &Value) -> usize {
    let parts: usize = match value {
        Value::String(text) => text.len(),
        Value::Array(all) => all.iter().map(of_value).sum(),
        Value::Object(all) => all.iter().map(|(name, value)| text(name) + of_value(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    size_of::<Value>() + parts
}

fn text(text: &str) -> usize {
    size_of::<String>() + text.len()
}
