//! Fuzz target `split_window`; what it asserts stands in `streams.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::split_window(data));
