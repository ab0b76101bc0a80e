//! Fuzz target `client_chain`; what it asserts stands in `identity.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::client_chain(data));
