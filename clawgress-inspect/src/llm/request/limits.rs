//! How much may be answered, and what of it is an image. Must never take a limit for one where its server looks at none.

use super::super::caps::Holder;
use super::{Frame, Node, Request, Role};

// === impl Node ===

impl Node {
    /// The same, of a limit the one that it is by what holds it and how it is spelled.
    pub(super) fn limit(self, holder: Holder, name: &str) -> Node {
        match self {
            Node::Predict if holder == Holder::Options && name == "num_predict" => Node::Predict,
            Node::Cap(_) | Node::Predict => Node::Cap(holder.cap(name)),
            node => node,
        }
    }
}

// === impl Request ===

impl Request {
    /// How many tokens an answer may have, or how many answers there may be.
    pub(super) fn limit(&mut self, node: Node, most: u64) {
        match node {
            Node::Predict | Node::Cap(_) if self.wrapped.is_some() => self.call.caps.add_within(most),
            Node::Predict => self.call.tokens_predict = self.call.tokens_predict.max(Some(most)),
            Node::Copies => self.call.caps.copies(most),
            Node::Cap(cap) => self.call.caps.add(cap, most),
            _ => {}
        }
        self.call.tokens_max = self.call.caps.most();
    }

    /// Counts what begins here, if it is one of several prompts: a text, or tokens of one.
    pub(super) fn counts_prompt(&mut self, place: Node, is_whole: bool) {
        let is_prompt = matches!(place, Node::Prompt | Node::Say(Role::User) | Node::Input | Node::Output);
        if place == Node::Output && is_whole {
            self.call.caps.text();
        }
        if is_prompt
            && is_whole
            && self.frames.len() == 2
            && self.frames.last().is_some_and(|frame| !frame.is_object)
        {
            self.call.caps.prompt();
            self.call.tokens_max = self.call.caps.most();
        }
    }

    /// A part has ended: where it is said to be an image, so is what was attached in it.
    pub(super) fn images_of_part(&mut self, frame: Frame) {
        let [images, count] = frame.attached;
        if frame.is_image {
            let attached = &mut self.call.attachments;
            attached.images = images.saturating_add(attached.count.saturating_sub(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::takes;
    use crate::llm::{CapNames, Surface as S};

    fn check(cases: &[(&str, S, CapNames, Option<u64>)]) {
        for (body, surface, names, most) in cases {
            assert_eq!(takes(body).tokens_max_of(*surface, *names), *most, "{body} {surface:?}");
        }
    }

    /// Of completions, whose they are, their path says.
    #[test]
    fn completions_have_the_limit_of_their_server() {
        check(&[
            // Of completions, whose they are.
            (r#"{"n_predict":4}"#, S::Completions, CapNames::Common, None),
            (r#"{"max_tokens_to_sample":4}"#, S::Completions, CapNames::Common, None),
            (r#"{"parameters":{"max_new_tokens":4}}"#, S::Completions, CapNames::Common, None),
            (r#"{"max_tokens":4}"#, S::Completions, CapNames::Common, Some(4)),
            (r#"{"n_predict":4}"#, S::Completions, CapNames::Predict, Some(4)),
            (r#"{"max_tokens":4}"#, S::Completions, CapNames::Predict, None),
            (r#"{"max_tokens":4,"n_predict":-1}"#, S::Completions, CapNames::Common, Some(u64::MAX)),
            (r#"{"max_tokens_to_sample":4}"#, S::Completions, CapNames::ToSample, Some(4)),
            (r#"{"max_tokens":4}"#, S::Completions, CapNames::ToSample, None),
            (
                r#"{"inputs":"a","parameters":{"max_new_tokens":4}}"#,
                S::Completions,
                CapNames::NewTokens,
                Some(4),
            ),
            (
                r#"{"text":"a","sampling_params":{"max_new_tokens":4}}"#,
                S::Completions,
                CapNames::NewTokens,
                Some(4),
            ),
        ]);
    }

    /// Other names, letters and places.
    #[test]
    fn what_no_server_looks_at_limits_nothing() {
        check(&[
            // In another's place, or in other letters, it limits nothing.
            (
                r#"{"inputs":"a","sampling_params":{"max_new_tokens":1}}"#,
                S::Completions,
                CapNames::NewTokens,
                None,
            ),
            (r#"{"inputs":"a","options":{"max_new_tokens":1}}"#, S::Completions, CapNames::NewTokens, None),
            (
                r#"{"inputs":"a","parameters":{"MAX_NEW_TOKENS":1}}"#,
                S::Completions,
                CapNames::NewTokens,
                None,
            ),
            (r#"{"text":"a","parameters":{"max_new_tokens":1}}"#, S::Completions, CapNames::NewTokens, None),
            (
                r#"{"text":"a","inputs":"a","parameters":{"max_new_tokens":1}}"#,
                S::Completions,
                CapNames::NewTokens,
                None,
            ),
            (
                r#"{"text":"a","inputs":"a","parameters":{"max_new_tokens":1},"sampling_params":{"max_new_tokens":2}}"#,
                S::Completions,
                CapNames::NewTokens,
                Some(2),
            ),
            (
                r#"{"input_ids":[1],"inputs":"a","parameters":{"max_new_tokens":1}}"#,
                S::Completions,
                CapNames::NewTokens,
                None,
            ),
            (
                r#"{"text":["a","b"],"sampling_params":{"max_new_tokens":4}}"#,
                S::Completions,
                CapNames::NewTokens,
                Some(8),
            ),
            (r#"{"prompt":"a","N_PREDICT":1}"#, S::Completions, CapNames::Predict, None),
            (r#"{"prompt":"a","n_predict":1,"N_PREDICT":9}"#, S::Completions, CapNames::Predict, Some(9)),
            (r#"{"messages":[],"maxTokens":1}"#, S::ChatCompletions, CapNames::Newer, None),
            (r#"{"messages":[],"parameters":{"num_predict":1}}"#, S::OllamaChat, CapNames::Common, None),
            (r#"{"messages":[],"options":{"maxTokens":1}}"#, S::Converse, CapNames::Common, None),
            (r#"{"messages":[],"inferenceConfig":{"max_tokens":1}}"#, S::Converse, CapNames::Common, None),
            (r#"{"input":"a","maxOutputTokens":1}"#, S::Responses, CapNames::Common, None),
            (
                r#"{"contents":[],"inferenceConfig":{"maxOutputTokens":1}}"#,
                S::GenerateContent,
                CapNames::Common,
                None,
            ),
        ]);
    }

    /// Of several prompts, and several answers, each has the limit.
    #[test]
    fn each_prompt_has_answers() {
        check(&[
            // Each prompt has an answer of its own, and each of several answers its tokens.
            (
                r#"{"text":"a","sampling_params":{"max_new_tokens":4,"n":3}}"#,
                S::Completions,
                CapNames::NewTokens,
                Some(12),
            ),
            (
                r#"{"prompt":["a","b",[1,2]],"max_tokens":4,"n":2}"#,
                S::Completions,
                CapNames::Common,
                Some(24),
            ),
            (r#"{"prompt":[1,2,3],"max_tokens":4}"#, S::Completions, CapNames::Common, Some(4)),
            (r#"{"max_new_tokens":4}"#, S::Completions, CapNames::NewTokens, None),
            (r#"{"max_tokens":4}"#, S::Completions, CapNames::NewTokens, None),
        ]);
    }
}
