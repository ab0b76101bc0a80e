//! Fuzz target `client_hello`; what it asserts stands in `targets.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::client_hello(data));
