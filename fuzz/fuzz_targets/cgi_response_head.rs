//! Any bytes as the head of an answer: no panic, and what is decoded is the same again once encoded.
#![no_main]

use bytes::BytesMut;
use gatespan::protocol::cgi::{Limits, ResponseHead};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let _ = ResponseHead::decode_nph(bytes, &limits);
    let Ok(Some((head, _))) = ResponseHead::decode(bytes, &limits) else { return };
    let mut encoded = BytesMut::new();
    // A head may be read that may not be written: then there is nothing to compare.
    if head.encode(&mut encoded).is_ok() {
        let (again, len) = ResponseHead::decode(&encoded, &limits).unwrap().unwrap();
        assert_eq!((again, len), (head, encoded.len()));
    }
});
