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

/// The first byte says which surface, and what is wanted. What was changed is JSON as before, and is not changed again.
pub fn llm_change(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
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
    let wanted = Wanted {
        params: if which & 8 != 0 { &[("store", "false")] } else { &[] },
        tokens_max: (which & 16 != 0).then_some(100),
        cap_names: if which & 128 == 0 { CapNames::Newer } else { CapNames::Common },
        takes_tool: &|name| name.starts_with('s'),
        takes_tools: which & 32 != 0,
        renames: if which & 64 != 0 { &[("read", "fetch")] } else { &[] },
        prompt: None,
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
    let second = changed(&first.body, surface, call, &wanted).expect("it holds");
    assert!(second.told.is_empty() && second.body == first.body);
    if let Some(renamed) = &first.renamed {
        // What the model would call these is what the client does.
        let without = Wanted { renames: &[], ..wanted };
        let before = changed(body, surface, call_before, &without).expect("it is less").body;
        let mut renamer = Renamer::new(renamed.clone(), Format::Json, 1 << 30).expect("a form");
        let back = renamer.push(&first.body, true).expect("it was read");
        assert_eq!(parse(&back).ok(), parse(&before).ok());
    }
    let prompt = Wanted { prompt: Some("Be \"good\"."), ..wanted };
    if let Ok(prompted) = changed(&first.body, surface, call, &prompt) {
        assert!(parse(&prompted.body).is_ok() || parse(&first.body).is_err());
    }
}
