//! Any bytes as a capture, in two parts: no panic, and no more held than the window.
#![no_main]

use gatespan::recording::capture::Settings;
use gatespan::recording::{CaptureReader, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (&[u8], &[u8])| {
    for ports in [vec![], vec![9000]] {
        let settings = Settings { ports, max_waiting: 2000, max_waiting_in_all: 3000, max_connections: 2, ..Settings::default() };
        let mut reader = CaptureReader::new(settings);
        for part in [parts.0, parts.1] {
            reader.receive(part);
            while let Ok(Some(_)) = reader.next() {}
        }
        reader.end();
        while let Ok(Some(_)) = reader.next() {}
        assert!(reader.next().is_err() || reader.held() == 0);
    }
});
