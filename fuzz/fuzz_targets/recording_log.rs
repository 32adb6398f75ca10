//! Any bytes as a recording, in two parts: no panic, and what is read is the same again once written.
#![no_main]

use gatespan::recording::log::{HEADER, put};
use gatespan::recording::{LogReader, Reader, Seen};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (&[u8], &[u8])| {
    let seen = read([HEADER, parts.0, parts.1]);
    let mut written = HEADER.to_vec();
    for Seen { time, connection, what, .. } in &seen {
        put(what, *time, *connection, &mut written).expect("what was read fits into frames");
    }
    let again = read([&written, b"", b""]);
    assert!(seen.iter().map(|seen| &seen.what).eq(again.iter().map(|seen| &seen.what)));
});

fn read(parts: [&[u8]; 3]) -> Vec<Seen> {
    let (mut reader, mut all) = (LogReader::new(), Vec::new());
    for part in parts {
        reader.receive(part);
        while let Ok(Some(seen)) = reader.next() {
            all.push(seen);
        }
    }
    reader.end();
    let _ = reader.next();
    all
}
