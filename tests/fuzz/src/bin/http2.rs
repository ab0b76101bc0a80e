//! Fuzz target `http2`; what it asserts stands in `targets.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::http2(data));
