//! Tokens counted as their vocabularies cut them, on a thread of its own: what is decided waits for none of it. Must never hold
//! more than its bounds: what finds no room is not counted, and said to be unknown.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use bpe_openai::Tokenizer;
use clawgress_api::CountedTokens;
use clawgress_inspect::llm::Surface;
use clawgress_inspect::llm::vocabulary::Vocabulary;

use crate::limit;

mod input;

/// What counts.
#[derive(Debug)]
pub struct Counter {
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of requests that wait.
    bytes: AtomicUsize,
    /// Requests that found no room.
    dropped: AtomicU64,
}

/// A request to count.
#[derive(Debug)]
struct Job {
    vocabulary: Vocabulary,
    surface: Surface,
    body: Vec<u8>,
    counted: Arc<OnceLock<Option<u64>>>,
}

/// A count that may come.
#[derive(Clone, Debug)]
pub struct Counting(Arc<OnceLock<Option<u64>>>);

// === impl Counter ===

impl Counter {
    /// Begins its thread.
    ///
    /// # Errors
    /// If there can be none.
    pub fn start() -> io::Result<Counter> {
        let (queue, jobs) = sync_channel(limit::COUNTED_WAITING_MAX);
        let shared = Arc::new(Shared::default());
        let known = Arc::clone(&shared);
        thread::Builder::new().name("tokens".to_owned()).spawn(move || work(&jobs, &known))?;
        Ok(Counter { queue, shared })
    }

    /// Has the request of this body counted, in time.
    pub fn count(&self, vocabulary: Vocabulary, surface: Surface, body: Vec<u8>) -> Counting {
        let counted = Arc::new(OnceLock::new());
        let (bytes, counting) = (body.len(), Counting(Arc::clone(&counted)));
        let waiting = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        let job = Job { vocabulary, surface, body, counted };
        if waiting.saturating_add(bytes) > limit::COUNTED_BYTES_MAX || self.queue.try_send(job).is_err() {
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            let dropped = self.shared.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "calls were not counted: more wait than there is room for");
            }
        }
        counting
    }

    /// How many found no room.
    #[cfg(test)]
    fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

// === impl Counting ===

impl Counting {
    /// What is known by now.
    #[must_use]
    pub fn so_far(&self) -> CountedTokens {
        self.0.get().copied().flatten().map_or(CountedTokens::Unknown, CountedTokens::Input)
    }
}

impl PartialEq for Counting {
    fn eq(&self, other: &Counting) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Counting {}

fn work(jobs: &Receiver<Job>, shared: &Shared) {
    let mut loaded = [false; 2];
    while let Ok(Job { vocabulary, surface, body, counted }) = jobs.recv() {
        let tokenizer = tokenizer(vocabulary, &mut loaded);
        let _ = counted.set(input::tokens(tokenizer, surface, &body));
        shared.bytes.fetch_sub(body.len(), Ordering::Relaxed);
    }
}

/// A vocabulary is loaded when it is first counted with, and kept.
fn tokenizer(vocabulary: Vocabulary, loaded: &mut [bool; 2]) -> &'static Tokenizer {
    let (name, at, load): (_, _, fn() -> &'static Tokenizer) = match vocabulary {
        Vocabulary::O200k => ("o200k_base", 0, bpe_openai::o200k_base),
        Vocabulary::Cl100k => ("cl100k_base", 1, bpe_openai::cl100k_base),
    };
    let Some(loaded) = loaded.get_mut(at).filter(|loaded| !**loaded) else { return load() };
    *loaded = true;
    let before = resident_bytes();
    let tokenizer = load();
    let bytes = resident_bytes().saturating_sub(before);
    tracing::info!(vocabulary = name, memory_bytes = bytes, "a vocabulary is loaded");
    tokenizer
}

/// Memory of the process that is resident (proc_pid_status(5)).
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clawgress_inspect::llm::Estimator;
    use proptest::prelude::*;

    use super::*;

    fn wait(counting: &Counting) -> Option<u64> {
        *counting.0.wait()
    }

    /// As `tiktoken` counts, by its documentation's examples.
    #[test]
    fn tokens_are_those_of_the_vocabularies() {
        for (text, cl100k, o200k) in [
            ("", 0, 0),
            ("hello world", 2, 2),
            ("tiktoken is great!", 6, 6),
            ("antidisestablishmentarianism", 6, 6),
            ("2 + 2 = 4", 7, 7),
            ("お誕生日おめでとう", 9, 8),
        ] {
            let counts = (bpe_openai::cl100k_base().count(text), bpe_openai::o200k_base().count(text));
            assert_eq!(counts, (cl100k, o200k), "{text}");
        }
    }

    #[test]
    fn requests_are_counted_whole_or_not_at_all() {
        let counter = Counter::start().expect("a thread");
        let count = |body: &str| {
            wait(&counter.count(Vocabulary::O200k, Surface::ChatCompletions, body.as_bytes().to_vec()))
        };
        let chat = |more: &str| {
            format!(r#"{{"model":"gpt-4o","messages":[{{"role":"user","content":"hello world"}}]{more}}}"#)
        };
        assert_eq!(count(&chat("")), Some(2 + 4 + 3));
        for unknown in [
            chat(r#","tools":[{"type":"function","function":{"name":"sh"}}]"#),
            chat(r#","previous_response_id":"r""#),
            "{".to_owned(),
        ] {
            assert_eq!(count(&unknown), None, "{unknown}");
        }
        // What costs the most there is, is as long as its bytes.
        let letters = chat("").replace("hello world", &"a".repeat(1 << 20));
        assert_eq!(count(&letters), Some((1 << 20) / 8 + 7));
        let blanks = chat("").replace("hello world", &" ".repeat(1 << 20));
        assert!(count(&blanks).is_some_and(|tokens| tokens < 1 << 18));
    }

    /// What counts a run of letters goes back to no place of it twice, and looks no further from one than the longest token is (`bpe`,
    /// `BacktrackEncoder`): how many steps a byte takes at most is in the vocabularies.
    #[test]
    fn a_byte_takes_no_more_steps_than_a_token_has_bytes() {
        for tokenizer in [bpe_openai::o200k_base(), bpe_openai::cl100k_base()] {
            let tokens = u32::try_from(tokenizer.bpe.num_tokens()).expect("few");
            let longest = (0..tokens).map(|token| tokenizer.bpe.token_len(token)).max();
            assert!(longest.is_some_and(|bytes| bytes <= 128), "{longest:?}");
            // Runs without end are one piece each, and no byte of one is in another.
            for (one, pieces) in
                [("a", 1), (" ", 1), ("=", 1), ("A", 1), ("\u{3042}", 1), ("7", 3000), ("\n", 1)]
            {
                let text = one.repeat(9000);
                let cut: Vec<&str> = tokenizer.split(&text).collect();
                assert_eq!((cut.len(), cut.concat()), (pieces, text), "{one:?}");
            }
        }
    }

    #[test]
    fn what_finds_no_room_is_unknown_and_counted() {
        // Nobody works.
        let (queue, _jobs) = sync_channel(1);
        let counter = Counter { queue, shared: Arc::default() };
        let count = |bytes| counter.count(Vocabulary::O200k, Surface::ChatCompletions, vec![b'x'; bytes]);
        assert_eq!(
            (count(limit::COUNTED_BYTES_MAX + 1).so_far(), counter.dropped()),
            (CountedTokens::Unknown, 1)
        );
        let (first, second) = (count(1), count(1));
        assert_eq!((first.so_far(), second.so_far()), (CountedTokens::Unknown, CountedTokens::Unknown));
        assert_eq!((counter.dropped(), counter.shared.bytes.load(Ordering::Relaxed)), (2, 1));
    }

    /// What the estimate of a text is to its count.
    fn ratio(text: &str) -> f64 {
        let mut estimator = Estimator::bare();
        estimator.push(text.as_bytes());
        estimator.end();
        let counted = u32::try_from(bpe_openai::o200k_base().count(text)).expect("few");
        f64::from(u32::try_from(estimator.tokens()).expect("few")) / f64::from(counted.max(1))
    }

    /// Texts of up to 4 KiB of all files of this kind below a directory.
    fn texts(directory: &Path, kind: &str, all: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                texts(&path, kind, all);
            } else if path.extension().is_some_and(|extension| extension == kind) {
                let text = std::fs::read_to_string(&path).expect("text");
                let mut rest = &text[..];
                while !rest.is_empty() {
                    let at = (0..=rest.len().min(4096)).rev().find(|at| rest.is_char_boundary(*at));
                    let (text, behind) = rest.split_at(at.expect("0 is one"));
                    all.push(text.to_owned());
                    rest = behind;
                }
            }
        }
    }

    /// As docs/llm.md has it, of this repository's own texts: from the first to the last percentile.
    #[test]
    fn the_estimate_is_as_near_as_the_docs_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
        for (directory, kind, least, most) in [
            ("docs", "md", 0.78, 1.14),
            ("clawgress-inspect/src", "rs", 0.78, 1.14),
            ("xtask", "py", 0.78, 1.14),
        ] {
            let mut all = Vec::new();
            texts(&root.join(directory), kind, &mut all);
            let mut ratios: Vec<f64> = all.iter().map(|text| ratio(text)).collect();
            ratios.sort_by(f64::total_cmp);
            let at = |percent: usize| ratios[(ratios.len() - 1) * percent / 100];
            assert!(
                at(1) >= least && at(99) <= most,
                "{directory}: {} to {} of {}",
                at(1),
                at(99),
                ratios.len()
            );
            assert!((0.9..=1.1).contains(&at(50)), "{directory}: {} in the middle", at(50));
        }
        for text in [
            "جميع الناس يولدون أحرارا متساوين في الكرامة والحقوق وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح الإخاء",
            "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
            "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience.",
            "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
            "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
            "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
            "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받았다.",
            "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
            "Todos los seres humanos nacen libres e iguales en dignidad y derechos y están dotados de razón y conciencia.",
        ] {
            let ratio = ratio(text);
            assert!((0.78..=1.25).contains(&ratio), "{ratio}: {text}");
        }
    }

    proptest! {
        /// Data that are no words come to no more than three times what is estimated.
        #[test]
        fn data_come_to_three_times_the_estimate(bytes in proptest::collection::vec(any::<u8>(), 100..3000)) {
            let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            for text in [base64, hex] {
                prop_assert!(ratio(&text) * 3.0 >= 1.0, "{} {}", ratio(&text), text);
            }
        }
    }
}
