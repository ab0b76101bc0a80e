//! Fuzz target `payload_claims`; what it asserts stands in `claims.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::payload_claims(data));
