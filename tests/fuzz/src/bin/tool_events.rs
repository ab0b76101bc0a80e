//! Fuzz target `tool_events`; what it asserts stands in `streams.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::tool_events(data));
