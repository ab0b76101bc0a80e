//! Fuzz target `llm_rename`; what it asserts stands in `streams.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::llm_rename(data));
