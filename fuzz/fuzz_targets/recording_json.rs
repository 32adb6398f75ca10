//! Any bytes as lines of JSON: no panic, and what is read is the same again once written.
#![no_main]

use gatespan::recording::EntryReader;
use gatespan::recording::form::json;
use libfuzzer_sys::fuzz_target;

fn written(bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer, mut lines) = (json::Reader::default(), json::Writer::default(), Vec::new());
    reader.receive(bytes);
    reader.end();
    while let Ok(Some(entry)) = reader.next() {
        writer.write(&entry, &mut lines);
    }
    lines
}

fuzz_target!(|bytes: &[u8]| {
    let lines = written(bytes);
    assert!(written(&lines) == lines);
});
