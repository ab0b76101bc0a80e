#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgress_fuzz::connect_target(data));
