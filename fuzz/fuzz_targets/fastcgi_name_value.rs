//! Any bytes as name-value pairs: no panic, and what is decoded is the same again once encoded.
#![no_main]

use gatespan::protocol::fastcgi::name_value::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(pairs) = decode(bytes.to_vec(), 1000) else { return };
    let mut encoded = Vec::new();
    for (name, value) in pairs.iter() {
        encode(name, value, &mut encoded).unwrap();
    }
    assert_eq!(decode(encoded, 1000), Ok(pairs));
});
