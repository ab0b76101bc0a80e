//! Fuzz target `proxy_response`; what it asserts stands in `targets.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::proxy_response(data));
