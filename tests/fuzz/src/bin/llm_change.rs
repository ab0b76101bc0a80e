//! Fuzz target `llm_change`; what it asserts stands in `change.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::llm_change(data));
