//! Fuzz target `jwks`; what it asserts stands in `identity.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::jwks(data));
