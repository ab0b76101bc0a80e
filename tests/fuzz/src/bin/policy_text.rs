//! Fuzz target `policy_text`; what it asserts stands in `policy.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::policy_text(data));
