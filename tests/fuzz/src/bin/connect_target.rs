//! Fuzz target `connect_target`; what it asserts stands in `targets.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::connect_target(data));
