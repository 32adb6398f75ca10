//! HAProxy in front of the application: the one common web server that sends several requests at once on one connection.

mod support;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use support::client::get;
use support::process::{Listening, Scratch, Server, free_address, program};
use support::{Front, table};
use tokio::task::JoinSet;

/// Starts the application, which says that it takes several requests at once on one connection, and HAProxy.
fn front(name: &'static str, listening: impl FnOnce(&Scratch) -> Listening) -> Front {
    let scratch = Scratch::new();
    let listening = listening(&scratch);
    let upstream = match &listening {
        Listening::Unix(path) => format!("unix@{}", path.display()),
        Listening::Tcp(address) | Listening::Http(address) => address.to_string(),
    };
    let application = scratch.application(&listening, &[("GATESPAN_FASTCGI_MULTIPLEX", "1")]);
    let address = free_address();
    let values = [("PORT", &*address.port().to_string()), ("ADDRESS", &*upstream)];
    let configuration = scratch.configuration("haproxy/fastcgi.cfg", &values);
    let mut command = program("/usr/sbin/haproxy", "haproxy");
    command.arg("-db").arg("-f").arg(configuration);
    let haproxy = Server::start(&scratch, "haproxy", command, &[]).ready_on(address);
    Front { name, address, scratch, servers: vec![haproxy, application] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket() {
    table::everything(&front("haproxy/unix", |scratch| Listening::Unix(scratch.path("app.sock")))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp() {
    table::everything(&front("haproxy/tcp", |_| Listening::Tcp(free_address()))).await;
}

/// The requests all wait for a while, so those that share a connection were open on it at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_requests_are_open_on_one_connection() {
    let front = front("haproxy/unix", |scratch| Listening::Unix(scratch.path("app.sock")));
    // The first answer to FCGI_GET_VALUES tells HAProxy that it may.
    get(front.address, "/app/connection?ms=0").await.expect("an answer comes");
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let address = front.address;
        tasks.spawn(async move { get(address, "/app/connection?ms=1000").await });
    }
    let mut requests: HashMap<String, HashSet<String>> = HashMap::new();
    for answer in tasks.join_all().await {
        let answer = answer.expect("an answer comes");
        let connection = answer.line("connection").expect("the application names its connection");
        let request = answer.line("request").expect("the application names its request's id");
        assert!(requests.entry(connection).or_default().insert(request), "an id was used twice at once");
    }
    assert!(start.elapsed() < Duration::from_millis(3_000), "they took turns: {:?}", start.elapsed());
    let most = requests.values().map(HashSet::len).max().unwrap_or_default();
    assert!(most >= 2, "no connection had two requests open at once: {requests:?}");
}
