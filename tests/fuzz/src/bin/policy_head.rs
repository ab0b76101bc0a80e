//! Fuzz target `policy_head`; what it asserts stands in `policy_head.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::policy_head(data));
