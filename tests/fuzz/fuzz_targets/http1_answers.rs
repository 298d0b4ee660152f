#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| interceptor::fuzzing::run("http1_answers", input));
