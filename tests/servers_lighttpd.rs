//! lighttpd in front of the application: mod_cgi, mod_fastcgi that starts it, and an authorizer.

mod support;

use std::net::SocketAddr;

use support::client::{Client, Upload};
use support::process::{Scratch, Server, free_address, program};
use support::{Front, table};

/// Starts lighttpd with one of the fixtures. `stream` is its own number for how bodies pass: 0 collects them whole, 2
/// passes them on as they come and holds little.
fn lighttpd(scratch: &Scratch, fixture: &str, stream: &str) -> (Server, SocketAddr) {
    let address = free_address();
    let configuration = scratch.configuration(fixture, &[("PORT", &address.port().to_string()), ("STREAM", stream)]);
    let mut command = program("/usr/sbin/lighttpd", "lighttpd");
    command.arg("-D").arg("-f").arg(configuration);
    (Server::start(scratch, "lighttpd", command, &["error.log"]).ready_on(address), address)
}

async fn everything(name: &'static str, fixture: &str, stream: &str) {
    let scratch = Scratch::new();
    let (lighttpd, address) = lighttpd(&scratch, fixture, stream);
    table::everything(&Front { name, address, scratch, servers: vec![lighttpd] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_cgi_collecting_bodies() {
    everything("lighttpd/cgi/collected", "lighttpd/cgi.conf", "0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_cgi_streaming_bodies() {
    everything("lighttpd/cgi/streamed", "lighttpd/cgi.conf", "2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_fastcgi_starts_the_application_and_collects_bodies() {
    everything("lighttpd/fastcgi/collected", "lighttpd/fastcgi.conf", "0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_fastcgi_starts_the_application_and_streams_bodies() {
    everything("lighttpd/fastcgi/streamed", "lighttpd/fastcgi.conf", "2").await;
}

/// lighttpd starts the authorizer itself, and passes its refusal on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_fastcgi_asks_the_authorizer() {
    let scratch = Scratch::new();
    scratch.write("htdocs/secret.txt", "the secret\n");
    scratch.program("authorizer", "cgi-bin/authorizer");
    let (_lighttpd, address) = lighttpd(&scratch, "lighttpd/authorizer.conf", "2");
    for (token, status, text) in [("swordfish", 200, "the secret\n"), ("herring", 401, "Who is there?\n")] {
        let mut client = Client::connect(address).await.expect("lighttpd accepts connections");
        let answer = client.send("GET", "/secret.txt", &[("X-Token", token)], Upload::Nothing).await;
        let answer = answer.expect("an answer comes");
        assert_eq!((answer.status, answer.text().as_str()), (status, text), "{token}");
    }
}
