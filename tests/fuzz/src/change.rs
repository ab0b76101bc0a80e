//! Target of calls of models that are changed.

use clawgress_inspect::llm::answer::Format;
use clawgress_inspect::llm::change::{Wanted, changed};
use clawgress_inspect::llm::rename::Renamer;
use clawgress_inspect::llm::{CapNames, Surface};
use clawgress_inspect::payload::{Claims, Inspector, Limits};
use clawgress_inspect::splice;

const SURFACES: [Surface; 8] = [
    Surface::ChatCompletions,
    Surface::Responses,
    Surface::Messages,
    Surface::GenerateContent,
    Surface::Converse,
    Surface::CohereChat,
    Surface::OllamaChat,
    Surface::Completions,
];

/// What policies set: of each kind of value, of names that mean something and of such that don't, and of what else is changed.
const PARAMS: [(&str, &str); 16] = [
    ("store", "false"),
    ("temperature", "0.10"),
    ("reasoning_effort", "\"low\""),
    ("service_tier", "\"default\""),
    ("think", "false"),
    ("thinking", "{\"type\":\"disabled\"}"),
    ("safe_prompt", "true"),
    ("parallel_tool_calls", "false"),
    ("n", "1"),
    ("max_tokens", "50"),
    ("user", "\"agent\""),
    ("metadata", "{\"user_id\":\"u\"}"),
    ("guardrailConfig", "{\"guardrailIdentifier\":\"g\"}"),
    ("generationConfig", "{\"candidateCount\":1}"),
    ("options", "{\"seed\":7}"),
    ("tool_choice", "\"auto\""),
];

/// The first byte says which surface, and what is wanted; the second which parameters, names and prompt. What was changed is JSON as
/// before, and is not changed again, but for the prompt.
pub fn llm_change(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let Some((what, body)) = rest.split_first() else { return };
    if let Some(root) = splice::root(body) {
        let _ = (splice::members(body, &root), splice::items(body, &root));
    }
    let surface = SURFACES[usize::from(which % 8)];
    let mut inspector =
        Inspector::of_call(Claims::new(&[b"application/json"], &[]), Limits::default(), Some(surface));
    if inspector.push(body).and_then(|()| inspector.finish()).is_err() {
        return;
    }
    let Some(call_before) = inspector.call().map(clawgress_inspect::llm::Request::call) else { return };
    let one = usize::from(what % 16);
    let params = [PARAMS[one], PARAMS[(one + 5) % 16]];
    let count = if which & 8 == 0 { 0 } else { 1 + usize::from(what >> 4 & 1) };
    let wanted = Wanted {
        params: &params[..count],
        tokens_max: (which & 16 != 0).then_some(if what & 64 == 0 { 100 } else { 1 }),
        cap_names: if which & 128 == 0 { CapNames::Newer } else { CapNames::Common },
        takes_tool: &|name| name.starts_with('s'),
        takes_tools: which & 32 != 0,
        renames: match (which & 64 != 0, what & 128 != 0) {
            (false, _) => &[],
            (true, false) => &[("read", "fetch")],
            (true, true) => &[("read", "write"), ("write", "read")],
        },
        prompt: (what & 32 != 0).then_some("Be \"good\"."),
    };
    let Ok(first) = changed(body, surface, call_before, &wanted) else { return };
    let parse = |body: &[u8]| serde_json::from_slice::<serde_json::Value>(body);
    // What a stricter parser refuses may be what was replaced or taken out.
    assert!(parse(&first.body).is_ok() || parse(body).is_err());
    assert_eq!(first.told.is_empty(), first.body == body);
    let mut again =
        Inspector::of_call(Claims::new(&[b"application/json"], &[]), Limits::default(), Some(surface));
    again.push(&first.body).and_then(|()| again.finish()).expect("it was read");
    let call = again.call().expect("a call").call();
    // Each time, a prompt comes before all others.
    let wanted = Wanted { prompt: None, ..wanted };
    let others = changed(body, surface, call_before, &wanted).expect("it is less");
    let named = Wanted { renames: &[], ..wanted };
    let wanted_again = if wanted.renames.len() > 1 { named } else { wanted };
    let second = changed(&first.body, surface, call, &wanted_again).expect("it holds");
    assert!(second.told.is_empty() && second.body == first.body);
    if let Some(renamed) = &others.renamed {
        // What the model would call these is what the client does.
        let without = Wanted { renames: &[], ..wanted };
        let before = changed(body, surface, call_before, &without).expect("it is less").body;
        let mut renamer = Renamer::new(renamed.clone(), Format::Json, 1 << 30).expect("a form");
        let back = renamer.push(&others.body, true).expect("it was read");
        assert_eq!(parse(&back).ok(), parse(&before).ok());
    }
}
