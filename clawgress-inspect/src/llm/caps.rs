//! Limits of tokens, by their names: servers look at those of their own dialect, and at no others. Must never count one that whoever is
//! asked may leave out of account.

use super::Surface;

/// A name of a limit, or some that mean the same in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cap {
    /// `max_tokens`.
    MaxTokens,
    /// OpenAI's newer name: of what others have of its dialect, some skip it.
    MaxCompletionTokens,
    /// `max_output_tokens`, of the Responses API.
    MaxOutputTokens,
    /// Of Anthropic's first models.
    MaxTokensToSample,
    /// Of Llama at Bedrock.
    MaxGenLen,
    /// Of llama.cpp.
    NPredict,
    /// `maxTokens` of `inferenceConfig`.
    ConfigMaxTokens,
    /// `maxOutputTokens` of `generationConfig`.
    ConfigMaxOutputTokens,
    /// Of Titan.
    MaxTokenCount,
    /// Of TGI.
    MaxNewTokens,
}

const CAPS: usize = 10;

/// Which names of a limit whoever is asked looks at, of those that others of the same surface have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CapNames {
    /// Those that all who have the surface look at.
    #[default]
    Common,
    /// Of chat completions, OpenAI's newer one too: `max_completion_tokens`.
    Newer,
    /// Of Anthropic's first completions: `max_tokens_to_sample`.
    ToSample,
    /// Of llama.cpp's own: `n_predict`.
    Predict,
    /// Of TGI's and SGLang's own: `max_new_tokens`, among their parameters.
    NewTokens,
}

/// The limits of a request: of each name the largest, and for how many answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    all: [Option<u64>; CAPS],
    /// The largest of those within what wraps a call.
    within: Option<u64>,
    copies: u64,
}

// === impl Caps ===

impl Caps {
    pub(super) fn add(&mut self, cap: Cap, most: u64) {
        if let Some(known) = self.all.get_mut(cap as usize) {
            *known = (*known).max(Some(most));
        }
    }

    /// One within what wraps a call, and perhaps nobody unwraps: it limits nothing, and is more than what does, perhaps.
    pub(super) fn add_within(&mut self, most: u64) {
        self.within = self.within.max(Some(most));
    }

    /// How many answers there may be.
    pub(super) fn copies(&mut self, most: u64) {
        self.copies = self.copies.max(most);
    }

    /// How many answers are asked for, each of which has the limit: at least 1.
    pub(super) fn answers(&self) -> u64 {
        self.copies.max(1)
    }

    /// The largest of all.
    pub(super) fn most(&self) -> Option<u64> {
        let most = self.all.iter().copied().max().flatten();
        self.times(most.map(|most| most.max(self.within.unwrap_or_default())))
    }

    /// The largest of all, where there is one that every server of this surface looks at: of several, some take the larger one, and
    /// others the one that they know (vLLM `max_completion_tokens`, llama.cpp `n_predict`).
    pub(super) fn most_of(&self, surface: Surface, names: CapNames) -> Option<u64> {
        use Cap as C;
        let looked_at: &[Cap] = match surface {
            Surface::ChatCompletions if names == CapNames::Newer => &[C::MaxTokens, C::MaxCompletionTokens],
            Surface::ChatCompletions | Surface::Messages | Surface::CountTokens | Surface::CohereChat => {
                &[C::MaxTokens]
            }
            Surface::Responses => &[C::MaxOutputTokens],
            Surface::Completions => match names {
                CapNames::Common | CapNames::Newer => &[C::MaxTokens],
                CapNames::ToSample => &[C::MaxTokensToSample],
                CapNames::Predict => &[C::NPredict],
                CapNames::NewTokens => &[C::MaxNewTokens],
            },
            Surface::GenerateContent => &[C::ConfigMaxOutputTokens],
            Surface::Converse => &[C::ConfigMaxTokens],
            // In the shape that the model has, or of nobody who is known.
            _ => return self.most(),
        };
        let is_there = |cap: &Cap| self.all.get(*cap as usize).copied().flatten().is_some();
        looked_at.iter().any(is_there).then(|| self.most()).flatten()
    }

    fn times(&self, most: Option<u64>) -> Option<u64> {
        most.map(|most| most.saturating_mul(self.answers()))
    }
}
