//! Fuzz target `tool_message`; what it asserts stands in `tool.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::tool_message(data));
