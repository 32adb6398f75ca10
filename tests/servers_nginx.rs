//! nginx in front of the application: `fastcgi_pass`.

mod support;

use support::process::{Listening, Scratch, Server, free_address, program};
use support::{Front, table};

/// Starts the application and nginx with one of the fixtures. `streamed` is whether bodies pass as they come, both ways.
fn front(name: &'static str, listening: impl FnOnce(&Scratch) -> Listening, fixture: &str, streamed: bool) -> Front {
    let scratch = Scratch::new();
    let listening = listening(&scratch);
    let upstream = match &listening {
        Listening::Unix(path) => format!("unix:{}", path.display()),
        Listening::Tcp(address) | Listening::Http(address) => address.to_string(),
    };
    let application = scratch.application(&listening, &[]);
    let address = free_address();
    let buffering = if streamed { "off" } else { "on" };
    let port = address.port().to_string();
    let values =
        [("PORT", &*port), ("ADDRESS", &*upstream), ("REQUEST_BUFFERING", buffering), ("BUFFERING", buffering)];
    let configuration = scratch.configuration(fixture, &values);
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-c").arg(configuration).arg("-e").arg("stderr");
    let nginx = Server::start(&scratch, "nginx", command, &[]).ready_on(address);
    Front { name, address, servers: vec![nginx, application], scratch }
}

fn unix(scratch: &Scratch) -> Listening {
    Listening::Unix(scratch.path("app.sock"))
}

fn tcp(_: &Scratch) -> Listening {
    Listening::Tcp(free_address())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_closed_each_time_and_buffered() {
    table::everything(&front("nginx/unix/closed/buffered", unix, "nginx/closed.conf", false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_kept_and_streamed() {
    table::everything(&front("nginx/unix/kept/streamed", unix, "nginx/kept.conf", true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_kept_and_buffered() {
    table::everything(&front("nginx/tcp/kept/buffered", tcp, "nginx/kept.conf", false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_closed_each_time_and_streamed() {
    table::everything(&front("nginx/tcp/closed/streamed", tcp, "nginx/closed.conf", true)).await;
}
