//! Fuzz target `encoded`; what it asserts stands in `encoded.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::encoded(data));
