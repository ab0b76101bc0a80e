//! Fuzz target `prompt_text`; what it asserts stands in `prompt.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::prompt_text(data));
