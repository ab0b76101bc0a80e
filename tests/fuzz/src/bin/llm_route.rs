//! Fuzz target `llm_route`; what it asserts stands in `heads.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::llm_route(data));
