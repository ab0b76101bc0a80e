//! Fuzz target `payload_body`; what it asserts stands in `payload.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::payload_body(data));
