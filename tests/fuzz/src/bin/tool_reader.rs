//! Fuzz target `tool_reader`; what it asserts stands in `claims.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::tool_reader(data));
