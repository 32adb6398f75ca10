//! Anything a web server may send, in two parts: no panic, and every request that was given out can be answered.
#![no_main]

use gatespan::protocol::fastcgi::ProtocolStatus;
use gatespan::protocol::fastcgi::application_end::{ApplicationEnd, Event, Roles, Settings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (&[u8], &[u8])| {
    let mut end = ApplicationEnd::new(Settings { roles: Roles::ALL, ..Settings::default() });
    for part in [parts.0, parts.1] {
        end.receive(part);
        while let Ok(Some(event)) = end.next_event() {
            if let Event::StdinEnd { id } | Event::Abort { id } | Event::Rejected { id, .. } = event {
                let active = end.active_requests();
                end.stdout_slice(id, b"Status: 204\r\n\r\n");
                end.end_request(id, 0, ProtocolStatus::RequestComplete);
                assert_eq!(end.active_requests(), active - 1);
            }
        }
    }
    assert!(end.output().len() <= 64 * (parts.0.len() + parts.1.len()));
});
