//! What is read of each answer.

use clawgress_inspect::llm::answer::{Answer, Asked, CallsError, Editor, Following, Format, Reader, Usage};

use super::cuts::{Cuts, golden, names, seed};

/// How an answer is read, by the `Content-Type` that its provider sends.
pub fn format(name: &str) -> Format {
    let kind = match name.rsplit('.').next() {
        Some("sse") => "text/event-stream; charset=utf-8",
        Some("ndjson") if name.starts_with("cohere_chat_v1") => "application/stream+json",
        Some("ndjson") => "application/x-ndjson",
        Some("amazon") => "application/vnd.amazon.eventstream",
        _ => "application/json",
    };
    Format::of(kind).expect(kind)
}

fn read(name: &str, pieces: &[&[u8]]) -> Answer {
    let mut reader = Reader::new(format(name));
    for piece in pieces {
        reader.push(piece);
    }
    reader.finish()
}

/// Input, output, cached, written to a cache, reasoning.
type Counts = [u64; 5];

/// A fixture; the model, counts, tools asked for, why it ended, what failed.
type Row = (&'static str, &'static str, Option<Counts>, &'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    ("openai_chat_answer.json", "gpt-5-mini", Some([12, 34, 4, 0, 20]), "lookup", "tool_calls", ""),
    ("openai_chat_answer.sse", "gpt-5", Some([5, 8, 0, 0, 0]), "lookup", "tool_calls", ""),
    ("openai_responses_answer.json", "gpt-5", Some([30, 12, 10, 0, 6]), "web_search search", "", ""),
    ("openai_responses_answer.sse", "gpt-5", Some([3, 4, 0, 0, 0]), "search", "", ""),
    ("openai_embeddings_answer.json", "text-embedding-3-small", Some([5, 0, 0, 0, 0]), "", "", ""),
    ("openai_error_answer.json", "", None, "", "", "insufficient_quota"),
    (
        "anthropic_answer.json",
        "claude-sonnet-4-20250514",
        Some([1110, 25, 1000, 100, 0]),
        "get_weather web_search",
        "tool_use",
        "",
    ),
    ("anthropic_answer.sse", "claude-sonnet-4", Some([30, 15, 5, 0, 0]), "get_weather", "tool_use", ""),
    ("anthropic_error_answer.sse", "", None, "", "", "overloaded_error"),
    ("gemini_answer.json", "gemini-2.5-pro", Some([10, 35, 3, 0, 30]), "find", "STOP", ""),
    ("gemini_array_answer.json", "gemini-2.5-flash", Some([4, 2, 0, 0, 0]), "", "MAX_TOKENS", ""),
    ("gemini_answer.sse", "g", Some([4, 2, 0, 0, 0]), "", "STOP", ""),
    ("bedrock_converse_answer.json", "", Some([130, 60, 100, 0, 0]), "top_song", "tool_use", ""),
    ("bedrock_converse_answer.amazon", "", Some([11, 4, 2, 0, 0]), "top_song", "end_turn", ""),
    ("bedrock_invoke_answer.amazon", "claude-sonnet-4", Some([12, 6, 0, 0, 0]), "", "end_turn", ""),
    ("bedrock_exception_answer.amazon", "", None, "", "", "throttlingException"),
    ("cohere_chat_answer.json", "", Some([5, 418, 0, 0, 0]), "measure", "COMPLETE", ""),
    ("cohere_chat_answer.sse", "", Some([3, 13, 0, 0, 0]), "measure", "COMPLETE", ""),
    ("ollama_chat_answer.ndjson", "llama3.2", Some([26, 298, 0, 0, 0]), "sky", "stop", ""),
    ("ollama_generate_answer.ndjson", "llama3.2", Some([11, 7, 0, 0, 0]), "", "stop", ""),
    ("ollama_chat_answer.json", "llama3.2", Some([169, 15, 0, 0, 0]), "sky", "stop", ""),
    ("ollama_embed_answer.json", "all-minilm", Some([8, 0, 0, 0, 0]), "", "", ""),
    ("openai_completions_answer.json", "gpt-3.5-turbo-instruct", Some([5, 7, 0, 0, 0]), "", "length", ""),
    ("openai_completions_answer.sse", "gpt-3.5-turbo-instruct", Some([5, 6, 0, 0, 0]), "", "stop", ""),
    ("openai_images_answer.json", "", Some([50, 50, 0, 0, 0]), "", "", ""),
    ("openai_transcription_answer.json", "", Some([14, 45, 0, 0, 0]), "", "", ""),
    ("openai_transcription_answer.sse", "", Some([14, 5, 0, 0, 0]), "", "", ""),
    ("openai_translation_answer.json", "", None, "", "", ""),
    ("openai_image_edits_answer.json", "", Some([413, 50, 0, 0, 0]), "", "", ""),
    ("openai_image_variations_answer.json", "", None, "", "", ""),
    // By units of its own.
    ("bedrock_guardrail_answer.json", "", None, "", "", ""),
    ("llamacpp_completion_answer.json", "qwen3", Some([13, 6, 0, 0, 0]), "", "eos", ""),
    ("llamacpp_completion_answer.sse", "qwen3", Some([13, 6, 0, 0, 0]), "", "word", ""),
    // Whole, it does not say how long the prompt was.
    ("tgi_generate_answer.json", "", None, "", "length", ""),
    ("tgi_generate_answer.sse", "", Some([6, 5, 0, 0, 0]), "", "eos_token", ""),
    // What counts tokens uses none.
    ("openai_input_tokens_answer.json", "", None, "", "", ""),
    ("anthropic_count_tokens_answer.json", "", None, "", "", ""),
    ("gemini_count_tokens_answer.json", "", None, "", "", ""),
    ("bedrock_count_tokens_answer.json", "", None, "", "", ""),
    ("openai_chat_audio_answer.json", "gpt-4o-audio-preview", Some([52, 80, 0, 0, 0]), "", "stop", ""),
    ("openai_chat_audio_answer.sse", "gpt-4o-audio-preview", Some([52, 80, 0, 0, 0]), "", "stop", ""),
    ("gemini_audio_answer.json", "gemini-2.5-flash", Some([132, 63, 40, 0, 3]), "", "STOP", ""),
    ("azure_chat_answer.json", "gpt-4o-2024-08-06", Some([18, 5, 0, 0, 0]), "", "stop", ""),
    ("azure_responses_answer.sse", "my-deployment", Some([13, 3, 0, 0, 0]), "", "", ""),
    ("vertex_anthropic_answer.json", "claude-sonnet-4-20250514", Some([12, 6, 0, 0, 0]), "", "end_turn", ""),
    ("vertex_anthropic_answer.sse", "claude-sonnet-4-20250514", Some([17, 4, 3, 2, 0]), "", "end_turn", ""),
    ("vertex_generate_answer.sse", "gemini-2.5-flash", Some([5, 23, 0, 0, 20]), "", "STOP", ""),
    (
        "bedrock_invoke_anthropic_answer.json",
        "claude-sonnet-4-20250514",
        Some([60, 20, 10, 0, 0]),
        "get_weather",
        "tool_use",
        "",
    ),
    ("mistral_fim_answer.sse", "codestral-2508", Some([8, 4, 0, 0, 0]), "", "stop", ""),
    ("ollama_generate_answer.json", "llama3.2", Some([26, 290, 0, 0, 0]), "", "stop", ""),
    ("groq_chat_answer.json", "llama-3.3-70b-versatile", Some([36, 3, 0, 0, 0]), "", "stop", ""),
    ("deepseek_chat_answer.sse", "deepseek-reasoner", Some([16, 12, 10, 0, 9]), "", "stop", ""),
    ("vllm_chat_answer.json", "qwen3", Some([9, 3, 0, 0, 0]), "", "stop", ""),
    ("llamacpp_chat_answer.json", "qwen3", Some([11, 2, 0, 0, 0]), "", "stop", ""),
    (
        "openrouter_chat_answer.sse",
        "anthropic/claude-sonnet-4",
        Some([194, 12, 100, 0, 0]),
        "search",
        "tool_calls",
        "",
    ),
    ("openrouter_chat_answer.json", "anthropic/claude-sonnet-4", Some([194, 2, 0, 0, 0]), "", "stop", ""),
    (
        "together_chat_answer.json",
        "meta-llama/Llama-3.3-70B-Instruct-Turbo",
        Some([338, 39, 0, 0, 0]),
        "get_news",
        "tool_calls",
        "",
    ),
    (
        "together_chat_answer.sse",
        "meta-llama/Llama-3.3-70B-Instruct-Turbo",
        Some([40, 3, 0, 0, 0]),
        "",
        "stop",
        "",
    ),
    (
        "fireworks_chat_answer.json",
        "accounts/fireworks/models/llama-v3p1-8b-instruct",
        Some([24, 3, 0, 0, 0]),
        "",
        "stop",
        "",
    ),
    (
        "fireworks_chat_answer.sse",
        "accounts/fireworks/models/llama-v3p1-8b-instruct",
        Some([24, 3, 0, 0, 0]),
        "",
        "stop",
        "",
    ),
    // Reasoning is besides what these count as the answer.
    ("xai_chat_answer.json", "grok-4", Some([32, 103, 6, 0, 94]), "", "stop", ""),
    ("xai_chat_answer.sse", "grok-4", Some([32, 103, 6, 0, 94]), "", "stop", ""),
    ("perplexity_chat_answer.json", "sonar-deep-research", Some([34, 370, 0, 0, 300]), "", "stop", ""),
    ("perplexity_chat_answer.sse", "sonar-pro", Some([14, 6, 0, 0, 0]), "", "stop", ""),
    ("openai_images_answer.sse", "", Some([50, 50, 0, 0, 0]), "", "", ""),
    ("openai_speech_answer.sse", "", Some([14, 101, 0, 0, 0]), "", "", ""),
    ("openai_moderations_answer.json", "omni-moderation-latest", None, "", "", ""),
    ("azure_chat_answer.sse", "gpt-4o-2024-08-06", Some([8, 2, 0, 0, 0]), "", "stop", ""),
    ("azure_error_answer.json", "", None, "", "", "content_filter"),
    // Vectors of these are billed by what no answer says.
    ("gemini_embed_answer.json", "", None, "", "", ""),
    ("vertex_predict_answer.json", "", Some([4, 0, 0, 0, 0]), "", "", ""),
    ("gemini_cloudcode_answer.sse", "gemini-2.5-pro", Some([20, 13, 0, 0, 4]), "list_directory", "STOP", ""),
    ("bedrock_invoke_titan_answer.json", "", Some([5, 9, 0, 0, 0]), "", "FINISH", ""),
    ("bedrock_invoke_llama_answer.json", "", Some([5, 6, 0, 0, 0]), "", "stop", ""),
    ("cohere_chat_v1_answer.json", "", Some([7, 3, 0, 0, 0]), "query", "COMPLETE", ""),
    ("cohere_chat_v1_answer.ndjson", "", Some([7, 2, 0, 0, 0]), "", "COMPLETE", ""),
    ("cohere_embed_answer.json", "", Some([2, 0, 0, 0, 0]), "", "", ""),
    // By searches, not by tokens.
    ("cohere_rerank_answer.json", "", None, "", "", ""),
    ("mistral_chat_answer.json", "mistral-large-2411", Some([94, 30, 0, 0, 0]), "payment", "tool_calls", ""),
    ("mistral_chat_answer.sse", "mistral-large-2411", Some([4, 5, 0, 0, 0]), "", "length", ""),
    ("mistral_fim_answer.json", "codestral-2508", Some([8, 9, 0, 0, 0]), "", "stop", ""),
    ("mistral_embeddings_answer.json", "mistral-embed", Some([15, 0, 0, 0, 0]), "", "", ""),
    ("groq_chat_answer.sse", "llama-3.3-70b-versatile", Some([36, 2, 0, 0, 0]), "", "stop", ""),
    ("deepseek_chat_answer.json", "deepseek-reasoner", Some([16, 12, 10, 0, 9]), "", "stop", ""),
    ("vllm_chat_answer.sse", "qwen3", Some([9, 2, 0, 0, 0]), "", "stop", ""),
    ("llamacpp_chat_answer.sse", "qwen3", Some([11, 2, 0, 0, 0]), "", "stop", ""),
    ("azure_v1_chat_answer.json", "gpt-4.1-nano-2025-04-14", Some([61, 3, 0, 0, 0]), "", "stop", ""),
    (
        "azure_v1_chat_answer.sse",
        "gpt-4.1-nano-2025-04-14",
        Some([61, 15, 0, 0, 0]),
        "breeds",
        "tool_calls",
        "",
    ),
    ("azure_v1_responses_answer.json", "gpt-4.1-nano", Some([23, 4, 0, 0, 0]), "", "", ""),
    ("azure_foundry_chat_answer.json", "Mistral-Large-2411", Some([19, 6, 0, 0, 0]), "", "stop", ""),
    ("azure_foundry_chat_answer.sse", "Mistral-Large-2411", Some([19, 6, 0, 0, 0]), "", "stop", ""),
    ("azure_project_responses_answer.json", "gpt-4.1", Some([412, 18, 256, 0, 0]), "forecast", "", ""),
    (
        "azure_anthropic_messages_answer.json",
        "claude-sonnet-4-5-20250929",
        Some([19, 6, 0, 0, 0]),
        "",
        "end_turn",
        "",
    ),
    (
        "azure_anthropic_messages_answer.sse",
        "claude-sonnet-4-5-20250929",
        Some([19, 6, 0, 0, 0]),
        "",
        "end_turn",
        "",
    ),
    // Thoughts are in the total alone.
    (
        "gemini_openai_chat_answer.json",
        "gemini-2.5-flash",
        Some([57, 74, 0, 0, 0]),
        "get_weather",
        "tool_calls",
        "",
    ),
    ("gemini_openai_chat_answer.sse", "gemini-2.5-flash", Some([57, 44, 0, 0, 0]), "", "stop", ""),
    ("gemini_openai_embeddings_answer.json", "gemini-embedding-001", Some([11, 0, 0, 0, 0]), "", "", ""),
    ("gemini_tuned_answer.json", "tunedModels/roman-numerals-1", Some([10, 3, 0, 0, 0]), "", "STOP", ""),
    // Reasoning is besides.
    (
        "vertex_openai_chat_answer.json",
        "google/gemini-2.0-flash-001",
        Some([263, 45, 0, 0, 40]),
        "",
        "stop",
        "",
    ),
    ("vertex_openai_chat_answer.sse", "google/gemini-2.0-flash-001", Some([263, 5, 0, 0, 0]), "", "stop", ""),
    // What is made later, or stored, or what there is: nothing is used for it.
    ("openai_batches_answer.json", "", None, "", "", ""),
    ("anthropic_batches_answer.json", "", None, "", "", ""),
    ("gemini_batch_answer.json", "", None, "", "", ""),
    ("openai_files_answer.json", "", None, "", "", ""),
    ("openai_models_answer.json", "", None, "", "", ""),
    ("anthropic_models_answer.json", "", None, "", "", ""),
    ("gemini_models_answer.json", "", None, "", "", ""),
];

/// Tokens of sound: put in, of these cached, and come out.
fn sound(name: &str) -> [u64; 3] {
    match name {
        "openai_transcription_answer.json" => [14, 0, 0],
        "openai_chat_audio_answer.json" | "openai_chat_audio_answer.sse" => [40, 0, 60],
        "gemini_audio_answer.json" => [120, 30, 50],
        _ => [0; 3],
    }
}

#[test]
fn what_each_answer_says() {
    for (name, model, counts, tools, finish, error) in ROWS {
        let body = golden(name);
        let answer = read(name, &[&body]);
        let usage = counts.map(|[input, output, cached, cache_written, reasoning]| Usage {
            input,
            output,
            cached,
            cache_written,
            reasoning,
            input_audio: sound(name)[0],
            cached_audio: sound(name)[1],
            output_audio: sound(name)[2],
        });
        assert_eq!(answer.usage, usage, "{name}");
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let said = (text(&answer.model), answer.tools.join(" "), text(&answer.finish), text(&answer.error));
        let want = [*model, *tools, *finish, *error].map(str::to_owned);
        assert_eq!([said.0, said.1, said.2, said.3], want, "{name}");
        assert!(!answer.has_more_tools, "{name}");
        assert!(!answer.is_partial, "{name}: it is over");
    }
    assert_eq!(names(true).len(), ROWS.len(), "every fixture is in the table");
}

#[test]
fn any_cutting_says_the_same() {
    let seed = seed();
    println!("CLAWGRESS_SEED={seed}");
    let mut cuts = Cuts(seed);
    for name in names(true) {
        let body = golden(&name);
        let whole = read(&name, &[&body]);
        for _ in 0..60 {
            assert_eq!(read(&name, &cuts.of(&body)), whole, "{name}: CLAWGRESS_SEED={seed}");
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(read(&name, &bytes), whole, "{name}");
    }
}

#[test]
fn what_is_spoken_is_said() {
    let seed = seed();
    for name in ["openai_chat_audio_answer.json", "openai_chat_audio_answer.sse"] {
        let body = golden(name);
        for round in 0..20 {
            let (mut reader, mut said) = (Reader::new(format(name)).keeping_texts(), Vec::new());
            for piece in Cuts(seed + round).of(&body) {
                reader.push(piece);
                let [text, asked] = reader.take_texts();
                said.extend(text);
                assert!(asked.is_empty(), "{name}");
            }
            assert_eq!(String::from_utf8(said).expect("text"), "It is a song.", "{name}, seed {seed}");
            assert!(reader.finish().output_estimated >= 4, "{name}");
        }
    }
}

/// Of TGI: what is said in parts counts where the stream breaks off, and once where it is said again at the end.
#[test]
fn tokens_by_themselves_are_said() {
    let body = golden("tgi_generate_answer.sse");
    let last = body.windows(10).rposition(|part| part == b"{\"index\":5").expect("the last");
    let (mut reader, mut said) = (Reader::new(Format::EventStream).keeping_texts(), Vec::new());
    for piece in Cuts(seed()).of(body.get(..last).expect("before it")) {
        reader.push(piece);
        said.extend(reader.take_texts().into_iter().flatten());
    }
    assert_eq!(String::from_utf8(said).expect("text"), "Deep learning is learning");
    let cut = reader.cut();
    assert!((4..=8).contains(&cut.output_estimated), "{cut:?}");
    let whole = read("tgi_generate_answer.sse", &[&body]);
    assert!(whole.output_estimated <= cut.output_estimated + 4, "{whole:?}, {cut:?}");
    assert!(!whole.is_partial);
    assert!(read("tgi_generate_answer.json", &[&golden("tgi_generate_answer.json")]).output_estimated >= 6);
}

#[test]
fn only_the_event_of_usage_is_taken_out() {
    let edited = |body: &[u8], cuts: &[&[u8]]| {
        let (mut editor, mut out) = (Editor::default(), Vec::new());
        for piece in cuts {
            let before = out.len();
            editor.push(piece, &mut out);
            assert!(out.len() - before <= body.len());
        }
        editor.finish(&mut out);
        (editor.taken(), out)
    };
    let body = golden("openai_chat_answer.sse");
    let text = String::from_utf8(body.clone()).expect("text");
    let event = "data: {\"model\":\"gpt-5\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":8,\"total_tokens\":13}}\n\n";
    let want = (1, text.replace(event, "").into_bytes());
    let seed = seed();
    println!("CLAWGRESS_SEED={seed}");
    let mut cuts = Cuts(seed);
    assert_eq!(edited(&body, &[&body]), want);
    for _ in 0..60 {
        assert_eq!(edited(&body, &cuts.of(&body)), want, "CLAWGRESS_SEED={seed}");
    }
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    assert_eq!(edited(&body, &bytes), want);
    // With other line ends, and what is left as it is.
    for ends in ["\r\n", "\r"] {
        let (body, want) = (text.replace("\r\n", "\n").replace('\n', ends), text.replace("\r\n", "\n"));
        let want = (1, want.replace(event, "").replace('\n', ends).into_bytes());
        for _ in 0..20 {
            assert_eq!(edited(body.as_bytes(), &cuts.of(body.as_bytes())), want, "CLAWGRESS_SEED={seed}");
        }
    }
    let long = format!("data: {{\"choices\":[],\"usage\":{{}},\"x\":\"{}\"}}\n\n", "a".repeat(20_000));
    for kept in [
        "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":5}}\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5}}\n",
        "data: [DONE]",
        "\n\n\n",
        &long,
    ] {
        let kept = kept.as_bytes();
        assert_eq!(edited(kept, &cuts.of(kept)), (0, kept.to_vec()), "CLAWGRESS_SEED={seed}");
    }
}

/// Calls of every surface are put together: the tools that an answer names, and no others, however it is cut.
#[test]
fn calls_of_every_surface_are_whole() {
    let calls = |name: &str, pieces: &[&[u8]]| -> Result<Vec<Asked>, CallsError> {
        let mut reader = Reader::new(format(name)).following_calls(1 << 20, Following::Held, true);
        let mut all = Vec::new();
        for piece in pieces {
            reader.push(piece);
            all.extend(reader.take_calls()?);
        }
        reader.close();
        all.extend(reader.take_calls()?);
        Ok(all)
    };
    let seed = seed();
    for name in names(true) {
        let body = golden(&name);
        let whole = calls(&name, &[&body]).unwrap_or_else(|why| panic!("{name}: {why}"));
        let mut named: Vec<_> = whole.iter().map(|call| call.name.clone()).collect();
        named.dedup();
        let answer = read(&name, &[&body]);
        let unknown: Vec<_> = answer.tools.iter().filter(|tool| !named.contains(tool)).collect();
        assert!(
            unknown.is_empty() && named.iter().all(|call| answer.tools.contains(call)),
            "{name}: {whole:?}"
        );
        for round in 0..8 {
            let cut = calls(&name, &Cuts(seed + round).of(&body)).expect("as when it is whole");
            assert!(
                cut.iter().all(|call| whole.contains(call)) && whole.iter().all(|call| cut.contains(call)),
                "{name}, seed {seed}"
            );
        }
    }
}
