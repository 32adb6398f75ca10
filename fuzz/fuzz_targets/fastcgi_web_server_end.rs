//! Anything an application may answer, in two parts, to two requests and a question for values: no panic.
#![no_main]

use gatespan::protocol::fastcgi::Role;
use gatespan::protocol::fastcgi::web_server_end::{Settings, WebServerEnd};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (&[u8], &[u8])| {
    let mut end = WebServerEnd::new(Settings { max_requests: 2, ..Settings::default() });
    for role in [Role::Responder, Role::Filter] {
        end.begin(role, true, [(&b"NAME"[..], &b"value"[..])]).unwrap();
    }
    end.get_values(["FCGI_MPXS_CONNS"]).unwrap();
    for part in [parts.0, parts.1] {
        end.receive(part);
        while let Ok(Some(_)) = end.next_event() {}
    }
});
