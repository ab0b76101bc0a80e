//! Fuzz target `model_name`; what it asserts stands in `tokens.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::model_name(data));
