//! Targets of prompts: texts, and files of rules.

use std::sync::{Arc, LazyLock};

use clawgress_inspect::llm::Provenance;
use clawgress_inspect::prompt::{BUILT_IN, Detector, Rules};

use super::pieces;

/// Read once: it takes longer than a text does.
static RULES: LazyLock<Arc<Rules>> =
    LazyLock::new(|| Arc::new(Rules::parse(BUILT_IN).expect("the rules that come with the program")));

/// The second byte says where a text comes from: it comes to the same, whole or in pieces, in bounded steps; and from who
/// built the agent to nothing.
pub fn prompt_text(data: &[u8]) {
    let (whole, _) = pieces(data);
    let Some((from, text)) = whole.split_first() else { return };
    let rules = &*RULES;
    let provenance =
        [Provenance::User, Provenance::ToolOutput, Provenance::Unknown, Provenance::Instructions]
            [usize::from(from % 4)];
    let text = String::from_utf8_lossy(text);
    let mut at_once = Detector::new(rules);
    at_once.text(provenance, &text, true);
    let mut in_pieces = Detector::new(rules);
    text.chars().for_each(|c| in_pieces.text(provenance, c.encode_utf8(&mut [0; 4]), false));
    in_pieces.text(provenance, "", true);
    let assessment = at_once.assess();
    assert_eq!(assessment, in_pieces.assess());
    assert!(assessment.score <= 100 && (provenance != Provenance::Instructions || assessment.score == 0));
    assert!(at_once.steps() <= 400 * (text.len() as u64 + at_once.unpacked_bytes() + 1));
}

/// Rules are used or refused, never anything else; those that are used find something or nothing.
pub fn prompt_rules(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(rules) = Rules::parse(text) else { return };
    let mut detector = Detector::new(&Arc::new(rules));
    detector.text(Provenance::User, text, true);
    assert!(detector.assess().score <= 100);
}
