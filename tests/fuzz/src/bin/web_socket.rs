//! Fuzz target `web_socket`; what it asserts stands in `web_socket.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::web_socket(data));
