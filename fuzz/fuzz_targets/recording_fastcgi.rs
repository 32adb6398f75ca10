//! Any bytes as records: no panic in anything that is made of them, and the same bytes again, by themselves and by way of lines of JSON.
#![no_main]

use gatespan::recording::form::{fastcgi, json};
use gatespan::recording::{Checker, Describer, Entry, EntryReader, Exchanges, Spool, Summaries};
use libfuzzer_sys::fuzz_target;

fn read(mut reader: impl EntryReader, bytes: &[u8]) -> Vec<Entry> {
    reader.receive(bytes);
    reader.end();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let entries = read(fastcgi::Reader::default(), bytes);
    let (mut wire, mut lines, mut writer) = (Vec::new(), Vec::new(), json::Writer::default());
    let (mut checker, mut describer, mut summaries) = (Checker::default(), Describer::default(), Summaries::default());
    let mut exchanges = Exchanges::new(Spool::default());
    for entry in &entries {
        fastcgi::write(entry, &mut wire);
        writer.write(entry, &mut lines);
        let findings = checker.check(entry).len();
        describer.describe(entry);
        summaries.receive(entry, findings);
        exchanges.receive(entry).unwrap();
    }
    assert!(wire == bytes);
    exchanges.end().unwrap();
    while let Some(exchange) = exchanges.next() {
        exchange.records().for_each(|entry| assert!(entry.is_ok()));
    }
    wire.clear();
    read(json::Reader::default(), &lines).iter().for_each(|entry| fastcgi::write(entry, &mut wire));
    assert!(wire == bytes);
});
