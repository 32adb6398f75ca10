//! Apache httpd in front of the application: mod_cgid, mod_fcgid, mod_proxy_fcgi, and mod_authnz_fcgi with an authorizer.

mod support;

use std::net::SocketAddr;

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
