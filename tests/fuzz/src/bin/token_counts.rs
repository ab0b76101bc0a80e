//! Fuzz target `token_counts`; what it asserts stands in `tokens.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::token_counts(data));
