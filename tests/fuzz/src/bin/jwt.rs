//! Fuzz target `jwt`; what it asserts stands in `identity.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::jwt(data));
