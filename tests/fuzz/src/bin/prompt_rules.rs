//! Fuzz target `prompt_rules`; what it asserts stands in `prompt.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::prompt_rules(data));
