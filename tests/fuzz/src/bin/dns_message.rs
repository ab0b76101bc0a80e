//! Fuzz target `dns_message`; what it asserts stands in `targets.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::dns_message(data));
