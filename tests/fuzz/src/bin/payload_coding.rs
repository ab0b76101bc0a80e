//! Fuzz target `payload_coding`; what it asserts stands in `payload.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::payload_coding(data));
