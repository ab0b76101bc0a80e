//! Fuzz target `payload_multipart`; what it asserts stands in `payload.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::payload_multipart(data));
