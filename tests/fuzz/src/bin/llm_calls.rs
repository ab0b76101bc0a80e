//! Fuzz target `llm_calls`; what it asserts stands in `llm.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::llm_calls(data));
