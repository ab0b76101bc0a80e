//! Fuzz target `prices`; what it asserts stands in `heads.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::prices(data));
