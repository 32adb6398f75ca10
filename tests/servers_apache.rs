//! Apache httpd in front of the application: mod_cgid, mod_fcgid, mod_proxy_fcgi, and mod_authnz_fcgi with an authorizer.

mod support;

use std::net::SocketAddr;
use std::process::Command;

use support::client::{Client, Upload};
use support::process::{Listening, Scratch, Server, free_address, program};
use support::{Front, table};

/// Starts Apache with one of the fixtures.
fn apache(scratch: &Scratch, fixture: &str, values: &[(&str, &str)]) -> (Server, SocketAddr) {
    let address = free_address();
    let port = address.port().to_string();
    let values: Vec<(&str, &str)> = values.iter().copied().chain([("PORT", port.as_str())]).collect();
    let configuration = scratch.configuration(fixture, &values);
    let mut command = program("/usr/sbin/apache2", "apache2 libapache2-mod-fcgid");
    command.arg("-f").arg(configuration).arg("-DFOREGROUND");
    (Server::start(scratch, "apache", command, &["error.log"]).ready_on(address), address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_cgid_runs_a_process_for_each_request() {
    let scratch = Scratch::new();
    let (apache, address) = apache(&scratch, "apache/cgid.conf", &[]);
    table::everything(&Front { name: "apache/cgid", address, scratch, servers: vec![apache] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_fcgid_starts_processes_with_a_socket_as_descriptor_0() {
    let scratch = Scratch::new();
    let (apache, address) = apache(&scratch, "apache/fcgid.conf", &[]);
    table::everything(&Front { name: "apache/fcgid", address, scratch, servers: vec![apache] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_proxy_fcgi_over_a_unix_socket_that_is_kept() {
    let scratch = Scratch::new();
    let socket = scratch.path("app.sock");
    let application = scratch.application(&Listening::Unix(socket.clone()), &[]);
    let upstream = format!("unix:{}|fcgi://localhost", socket.display());
    let values = [("ADDRESS", upstream.as_str()), ("REUSE", "on")];
    let (apache, address) = apache(&scratch, "apache/proxy_fcgi.conf", &values);
    let servers = vec![apache, application];
    table::everything(&Front { name: "apache/proxy_fcgi/unix", address, scratch, servers }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_proxy_fcgi_over_tcp_closed_each_time() {
    let scratch = Scratch::new();
    let listening = free_address();
    let application = scratch.application(&Listening::Tcp(listening), &[]);
    let values = [("ADDRESS", &*format!("fcgi://{listening}")), ("REUSE", "off")];
    let (apache, address) = apache(&scratch, "apache/proxy_fcgi.conf", &values);
    let servers = vec![apache, application];
    table::everything(&Front { name: "apache/proxy_fcgi/tcp", address, scratch, servers }).await;
}

/// mod_authnz_fcgi asks over TCP, and takes 200 for a right password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_authnz_fcgi_asks_the_authorizer() {
    let scratch = Scratch::new();
    scratch.write("htdocs/secret.txt", "the secret\n");
    let listening = free_address();
    let mut command = Command::new(scratch.program("authorizer", "cgi-bin/authorizer"));
    command.arg(format!("fastcgi://{listening}"));
    let _authorizer = Server::start(&scratch, "authorizer", command, &[]).ready_on(listening);
    let values = [("AUTHORIZER_PORT", &*listening.port().to_string())];
    let (_apache, address) = apache(&scratch, "apache/authnz_fcgi.conf", &values);
    // alice:rabbit, alice:wrong, nobody
    for (credentials, status) in [(Some("YWxpY2U6cmFiYml0"), 200), (Some("YWxpY2U6d3Jvbmc="), 401), (None, 401)] {
        let value = credentials.map(|credentials| format!("Basic {credentials}"));
        let headers: Vec<(&str, &str)> = value.iter().map(|value| ("Authorization", value.as_str())).collect();
        let mut client = Client::connect(address).await.expect("Apache accepts connections");
        let answer = client.send("GET", "/secret.txt", &headers, Upload::Nothing).await.expect("an answer comes");
        assert_eq!(answer.status, status, "{credentials:?}: {}", answer.text());
        assert_eq!(answer.text() == "the secret\n", status == 200, "{credentials:?}: {}", answer.text());
    }
}
