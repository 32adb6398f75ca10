//! nginx in front of the application: `fastcgi_pass`.

mod support;

use support::process::{Listening, Scratch, Server, free_address, program};
use support::{Front, table};

/// Starts the application and nginx.
///
/// `on` and `off` are nginx's words: for `fastcgi_keep_conn`, `fastcgi_request_buffering` and `fastcgi_buffering`.
fn front(name: &'static str, listening: Listening, keep: &str, request_buffering: &str, buffering: &str) -> Front {
    let scratch = Scratch::new();
    let listening = match listening {
        Listening::Unix(name) => Listening::Unix(scratch.path(&name.to_string_lossy())),
        tcp => tcp,
    };
    let upstream = match &listening {
        Listening::Unix(path) => format!("unix:{}", path.display()),
        Listening::Tcp(address) | Listening::Http(address) => address.to_string(),
    };
    let application = scratch.application(&listening, &[]);
    let address = free_address();
    let configuration = scratch.configuration(
        "nginx/fastcgi.conf",
        &[
            ("PORT", &address.port().to_string()),
            ("ADDRESS", &upstream),
            ("KEEP_CONN", keep),
            ("REQUEST_BUFFERING", request_buffering),
            ("BUFFERING", buffering),
        ],
    );
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-c").arg(configuration).arg("-e").arg("stderr");
    let nginx = Server::start(&scratch, "nginx", command, &[]).ready_on(address);
    Front { name, address, scratch, servers: vec![nginx, application] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_closed_each_time_and_buffered() {
    table::everything(&front("nginx/unix/closed/buffered", Listening::Unix("app.sock".into()), "off", "on", "on"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_kept_and_streamed() {
    table::everything(&front("nginx/unix/kept/streamed", Listening::Unix("app.sock".into()), "on", "off", "off")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_kept_and_buffered() {
    table::everything(&front("nginx/tcp/kept/buffered", Listening::Tcp(free_address()), "on", "on", "on")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_closed_each_time_and_streamed() {
    table::everything(&front("nginx/tcp/closed/streamed", Listening::Tcp(free_address()), "off", "off", "off")).await;
}
