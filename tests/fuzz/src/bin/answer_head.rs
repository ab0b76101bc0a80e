//! Fuzz target `answer_head`; what it asserts stands in `tokens.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::answer_head(data));
