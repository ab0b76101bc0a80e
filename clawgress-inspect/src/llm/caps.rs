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
    /// Of TGI, in `parameters`.
    MaxNewTokens,
    /// The same of SGLang, in `sampling_params`.
    SamplingMaxNewTokens,
    /// In a place, or of a spelling, that only servers of one model may look at, if any does.
    Stray,
}

const CAPS: usize = 12;

/// What holds a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Holder {
    /// The request itself.
    #[default]
    Root,
    Generation,
    TextGeneration,
    Inference,
    Options,
    Parameters,
    Sampling,
    Other,
}

// === impl Holder ===

impl Holder {
    /// The member of a request by this name.
    pub(super) fn of(name: &str) -> Holder {
        match name {
            "generationConfig" | "generation_config" => Holder::Generation,
            "textGenerationConfig" => Holder::TextGeneration,
            "inferenceConfig" => Holder::Inference,
            "options" => Holder::Options,
            "parameters" => Holder::Parameters,
            "sampling_params" => Holder::Sampling,
            _ => Holder::Other,
        }
    }

    /// The limit that a member of it is, exactly so.
    pub(super) fn cap(self, name: &str) -> Cap {
        match (self, name) {
            (Holder::Root, "max_tokens") => Cap::MaxTokens,
            (Holder::Root, "max_completion_tokens") => Cap::MaxCompletionTokens,
            (Holder::Root, "max_output_tokens") => Cap::MaxOutputTokens,
            (Holder::Root, "max_tokens_to_sample") => Cap::MaxTokensToSample,
            (Holder::Root, "max_gen_len") => Cap::MaxGenLen,
            (Holder::Root, "n_predict") => Cap::NPredict,
            (Holder::Generation, "maxOutputTokens" | "max_output_tokens") => Cap::ConfigMaxOutputTokens,
            (Holder::TextGeneration, "maxTokenCount") => Cap::MaxTokenCount,
            (Holder::Inference, "maxTokens") => Cap::ConfigMaxTokens,
            (Holder::Parameters, "max_new_tokens") => Cap::MaxNewTokens,
            (Holder::Sampling, "max_new_tokens") => Cap::SamplingMaxNewTokens,
            _ => Cap::Stray,
        }
    }
}

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

/// What a server of [`CapNames::NewTokens`] is asked with: TGI by `inputs`, SGLang by `text` or otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTokens {
    pub(super) inputs: bool,
    pub(super) text: bool,
}

// === impl NewTokens ===

impl NewTokens {
    pub(super) fn of_both(self) -> bool {
        self.inputs && self.text
    }
}

/// The limits of a request: of each name the largest, and for how many answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    all: [Option<u64>; CAPS],
    /// The largest of those within what wraps a call.
    within: Option<u64>,
    copies: u64,
    /// Prompts that are answered one by one.
    prompts: u64,
    /// Whether it has what SGLang answers: a text, or its tokens.
    has_text: bool,
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

    /// What SGLang answers.
    pub(super) fn text(&mut self) {
        self.has_text = true;
    }

    /// Whether it has what SGLang answers.
    pub(super) fn has_text(&self) -> bool {
        self.has_text
    }

    /// One of several prompts, each of which is answered.
    pub(super) fn prompt(&mut self) {
        self.prompts = self.prompts.saturating_add(1);
    }

    /// How many answers are asked for, each of which has the limit: at least 1.
    pub(super) fn answers(&self) -> u64 {
        self.copies.max(1).saturating_mul(self.prompts.max(1))
    }

    /// The largest of all.
    pub(super) fn most(&self) -> Option<u64> {
        let most = self.all.iter().copied().max().flatten();
        self.times(most.map(|most| most.max(self.within.unwrap_or_default())))
    }

    /// The largest of all, where there is one that every server of this surface looks at: of several, some take the larger one, and
    /// others the one that they know (vLLM `max_completion_tokens`, llama.cpp `n_predict`).
    pub(super) fn most_of(&self, surface: Surface, names: CapNames, asked: NewTokens) -> Option<u64> {
        use Cap as C;
        let is_there = |cap: &Cap| self.all.get(*cap as usize).copied().flatten().is_some();
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
                // Who has both, may be asked of either.
                CapNames::NewTokens if asked.of_both() => {
                    let has_both = is_there(&C::MaxNewTokens) && is_there(&C::SamplingMaxNewTokens);
                    return self.most().filter(|_| has_both);
                }
                CapNames::NewTokens if asked.inputs => &[C::MaxNewTokens],
                CapNames::NewTokens => &[C::SamplingMaxNewTokens],
            },
            Surface::GenerateContent => &[C::ConfigMaxOutputTokens],
            Surface::Converse => &[C::ConfigMaxTokens],
            // In the shape that the model has, or of nobody who is known.
            _ => return self.most(),
        };
        looked_at.iter().any(is_there).then(|| self.most()).flatten()
    }

    fn times(&self, most: Option<u64>) -> Option<u64> {
        most.map(|most| most.saturating_mul(self.answers()))
    }
}
