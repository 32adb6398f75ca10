//! Any bytes as HTTP messages: no panic, and what is read is the same again once written.
#![no_main]

use gatespan::recording::form::{ExchangeReader, ExchangeWriter, http};
use gatespan::recording::{Exchange, Spool};
use libfuzzer_sys::fuzz_target;

fn read(bytes: &[u8]) -> Vec<Exchange> {
    let mut reader = http::Reader::new(Spool::default());
    reader.receive(bytes);
    reader.end();
    std::iter::from_fn(|| reader.next().ok().flatten()).filter(Exchange::is_complete).collect()
}

fn written(exchanges: &[Exchange]) -> Vec<u8> {
    let (mut writer, mut bytes) = (http::Writer::default(), Vec::new());
    exchanges.iter().for_each(|exchange| drop(writer.write(exchange, &mut bytes).unwrap()));
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    // A message may be written otherwise than it was read, but only once.
    let once = written(&read(&written(&read(bytes))));
    assert!(written(&read(&once)) == once);
});
