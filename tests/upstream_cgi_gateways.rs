//! The script host behind the HTTP and the FastCGI gateway, over loopback: what streams, what is cut, and what is left when clients leave.
#![cfg(all(feature = "upstream-cgi", feature = "http", feature = "fastcgi"))]

#[path = "support/client.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod client;
#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;
#[path = "support/pattern.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod pattern;
#[path = "support/site.rs"]
mod site;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::Upload;
use gatespan::address::Endpoint;
use gatespan::gateway::listener::{ListenOptions, Listener};
use gatespan::gateway::{fastcgi, http};
use gatespan::middleware::validate;
use gatespan::protocol::fastcgi::Role;
use gatespan::upstream::cgi::Host;
use site::{Site, gone, is_there, soon};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

/// A host behind both gateways.
struct Served {
    http: SocketAddr,
    fastcgi: PathBuf,
    stop: CancellationToken,
    servers: Vec<JoinHandle<()>>,
}

async fn serve(site: &Site, host: Arc<Host>) -> Served {
    let stop = CancellationToken::new();
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: 0 };
    let listener = Listener::bind(&endpoint, &ListenOptions::default()).await.unwrap();
    let http = listener.tcp_address().unwrap();
    let (stopped, application) = (stop.clone().cancelled_owned(), validate(host.clone()));
    let config = http::Config { shutdown_timeout: Duration::from_millis(200), ..http::Config::default() };
    let first = tokio::spawn(http::serve(listener, application, config, stopped));
    let fastcgi = site.path("fastcgi.sock");
    let listener = Listener::bind(&Endpoint::Unix(fastcgi.clone()), &ListenOptions::default()).await.unwrap();
    // Without the validator, since the requests here have few of the variables that there must be.
    let stopped = stop.clone().cancelled_owned();
    let config = fastcgi::Config { shutdown_timeout: Duration::from_millis(200), ..fastcgi::Config::default() };
    let second = tokio::spawn(async move { fastcgi::serve(listener, host, config, stopped).await.unwrap() });
    Served { http, fastcgi, stop, servers: vec![first, second] }
}

impl Served {
    async fn http(&self) -> client::Client {
        client::Client::connect(self.http).await.unwrap()
    }

    async fn fastcgi(&self) -> fastcgi_client::Client<UnixStream> {
        fastcgi_client::Client::new(UnixStream::connect(&self.fastcgi).await.unwrap())
    }

    async fn stop(self) {
        self.stop.cancel();
        for server in self.servers {
            soon(server).await.unwrap();
        }
    }
}

#[tokio::test]
async fn events_arrive_one_by_one_through_both_gateways() {
    let site = Site::of(
        "printf 'Content-Type: text/event-stream\\n\\n'; while read event <$MARKS/events; do echo $event; done",
    );
    let mut events = site.fifo("events");
    let served = serve(&site, site.host(|_| {})).await;

    let mut http = served.http().await;
    let mut head = http.head("GET", "/script", &[], Upload::Nothing).await.unwrap();
    for event in ["one\n", "two\n", "three\n"] {
        events.write_all(event.as_bytes()).unwrap();
        let begun = Instant::now();
        assert_eq!(head.next().await.unwrap().unwrap(), event);
        println!("HTTP: {:?}", begun.elapsed());
    }
    http.leave().await;
    drop(head);

    let mut fastcgi = served.fastcgi().await;
    let id = fastcgi.get("/script", true);
    fastcgi.wait_for(id, "\r\n\r\n").await;
    for event in ["one\n", "two\n", "three\n"] {
        events.write_all(event.as_bytes()).unwrap();
        let begun = Instant::now();
        fastcgi.wait_for(id, event).await;
        println!("FastCGI: {:?}", begun.elapsed());
    }
    drop(fastcgi);
    served.stop().await;
}

#[tokio::test]
async fn an_unread_upload_gets_its_answer_and_not_a_reset() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\nnot interested'");
    let served = serve(&site, site.host(|_| {})).await;
    for upload in [Upload::Sized(5 * MIB as u64), Upload::Chunked(5 * MIB as u64)] {
        let answer = served.http().await.send("POST", "/script", &[], upload).await.unwrap();
        assert_eq!((answer.status, answer.text(), answer.cut), (200, "not interested".into(), None));
    }
    let mut fastcgi = served.fastcgi().await;
    let id = fastcgi.post("/script", 5 * MIB, true);
    for block in pattern::blocks(5 * MIB as u64) {
        fastcgi.end.stdin(id, Bytes::from(block));
    }
    fastcgi.end.end_stdin(id);
    let answer = fastcgi.answer(id).await;
    assert!(answer.is_complete() && answer.body() == b"not interested", "{answer:?}");
    served.stop().await;
}

#[tokio::test]
async fn uploads_in_chunks_get_their_length() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\n%s ' $CONTENT_LENGTH; sha256sum");
    let served = serve(&site, site.host(|_| {})).await;
    for len in [0, 1, 50_000, 3 * MIB as u64] {
        let sized = served.http().await.send("POST", "/script", &[], Upload::Sized(len)).await.unwrap();
        let chunked = served.http().await.send("POST", "/script", &[], Upload::Chunked(len)).await.unwrap();
        assert!(chunked.text().starts_with(&format!("{len} ")), "{}", chunked.text());
        assert_eq!(sized.text(), chunked.text());
    }
    let mut fastcgi = served.fastcgi().await;
    for len in [50_000, 3 * MIB as u64] {
        let params = [("REQUEST_METHOD", "POST"), ("PATH_INFO", "/script"), ("HTTP_TRANSFER_ENCODING", "chunked")];
        let id = fastcgi.begin(Role::Responder, true, &params);
        for block in pattern::blocks(len) {
            fastcgi.end.stdin(id, Bytes::from(block));
        }
        fastcgi.end.end_stdin(id);
        let sized = served.http().await.send("POST", "/script", &[], Upload::Sized(len)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(fastcgi.answer(id).await.body()), sized.text());
    }
    assert_eq!(site.spooled_files(), 0);
    served.stop().await;
}

#[tokio::test]
async fn a_get_whose_stdin_never_ends_is_answered() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\n%s' \"${CONTENT_LENGTH-unset}\"; cat");
    let served = serve(&site, site.host(|_| {})).await;
    let mut fastcgi = served.fastcgi().await;
    let id = fastcgi.begin(Role::Responder, false, &[("REQUEST_METHOD", "GET"), ("PATH_INFO", "/script")]);
    let answer = fastcgi.answer(id).await;
    assert!(answer.is_complete() && answer.body() == b"unset", "{answer:?}");
    served.stop().await;
}

#[tokio::test]
async fn a_crash_within_the_body_can_be_seen_by_the_client() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\nsome'; kill -SEGV $$");
    let served = serve(&site, site.host(|_| {})).await;
    let answer = served.http().await.get("/script").await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, "some".into()));
    assert!(answer.cut.is_some());
    let mut fastcgi = served.fastcgi().await;
    let id = fastcgi.get("/script", true);
    let answer = fastcgi.answer(id).await;
    assert!(answer.text().ends_with("some") && answer.end.is_none(), "{answer:?}");
    assert_eq!(answer.errors().lines().count(), 1, "{}", answer.errors());
    assert!(answer.errors().contains("SEGV"), "{}", answer.errors());
    served.stop().await;
}

#[tokio::test]
async fn a_script_that_works_on_behind_its_content_length_is_left_to_finish() {
    let site = Site::new();
    // A server that knows the length asks for no end of the body: it lets go of it with the last byte.
    site.shell(
        "some",
        "printf 'Content-Type: text/plain\\nContent-Length: 4\\n\\nsome'; sleep 0.3; echo $1 >$MARKS/$QUERY_STRING",
    );
    site.shell(
        "none",
        "printf 'Content-Type: text/plain\\nContent-Length: 0\\n\\n'; sleep 0.3; echo $1 >$MARKS/$QUERY_STRING",
    );
    let host = site.host(|_| {});
    let served = serve(&site, host.clone()).await;
    for (name, body) in [("some", "some"), ("none", "")] {
        let answer = served.http().await.get(&format!("/{name}?http-{name}")).await.unwrap();
        assert_eq!((answer.status, answer.text(), answer.cut), (200, body.into(), None));
        let mut fastcgi = served.fastcgi().await;
        let mark = format!("fastcgi-{name}");
        let path = format!("/{name}");
        let params = [("REQUEST_METHOD", "GET"), ("PATH_INFO", path.as_str()), ("QUERY_STRING", &mark)];
        let id = fastcgi.begin(Role::Responder, false, &params);
        fastcgi.end.end_stdin(id);
        let answer = fastcgi.answer(id).await;
        assert!(answer.is_complete() && answer.body() == body.as_bytes(), "{answer:?}");
    }
    soon(host.idle()).await;
    for mark in ["http-some", "fastcgi-some", "http-none", "fastcgi-none"] {
        assert!(site.has_mark(mark), "{mark}");
    }
    served.stop().await;
}

#[tokio::test]
async fn clients_that_leave_take_their_scripts_along() {
    let site = Site::of(
        "echo $$ >$MARKS/$QUERY_STRING; case $QUERY_STRING in head*) ;; *) printf 'Content-Type: text/plain\\n\\nsome\\n';; esac; exec sleep 60",
    );
    let host = site.host(|_| {});
    let served = serve(&site, host.clone()).await;
    // In the body, and before the head.
    let mut http = served.http().await;
    let mut head = http.head("GET", "/script?body-http", &[], Upload::Nothing).await.unwrap();
    head.next().await.unwrap();
    http.leave().await;
    drop(head);
    gone(&site.mark("body-http").await).await;
    let (mut http, target) = (served.http().await, "/script?head-http");
    let waiting = tokio::spawn(async move { http.get(target).await.map(drop) });
    let pid = site.mark("head-http").await;
    waiting.abort();
    let _ = waiting.await;
    gone(&pid).await;
    for name in ["body-fastcgi", "head-fastcgi"] {
        let mut fastcgi = served.fastcgi().await;
        let params = [("REQUEST_METHOD", "GET"), ("PATH_INFO", "/script"), ("QUERY_STRING", name)];
        let id = fastcgi.begin(Role::Responder, true, &params);
        fastcgi.end.end_stdin(id);
        fastcgi.flush().await;
        let pid = site.mark(name).await;
        drop(fastcgi);
        gone(&pid).await;
    }
    // While it uploads.
    let mut fastcgi = served.fastcgi().await;
    let params = [
        ("REQUEST_METHOD", "POST"),
        ("PATH_INFO", "/script"),
        ("QUERY_STRING", "head-upload"),
        ("CONTENT_LENGTH", "1000000"),
    ];
    let id = fastcgi.begin(Role::Responder, true, &params);
    fastcgi.end.stdin(id, Bytes::from_static(b"a beginning"));
    fastcgi.flush().await;
    let pid = site.mark("head-upload").await;
    drop(fastcgi);
    gone(&pid).await;
    soon(host.idle()).await;
    served.stop().await;
}

#[tokio::test]
async fn a_server_that_stops_ends_what_runs() {
    let site = Site::of("echo $$ >$MARKS/$QUERY_STRING; sleep 60 & echo $! >$MARKS/child; wait");
    let host = site.host(|_| {});
    let served = serve(&site, host.clone()).await;
    let mut http = served.http().await;
    let waiting = tokio::spawn(async move { http.get("/script?http").await.map(drop) });
    let (pid, child) = (site.mark("http").await, site.mark("child").await);
    served.stop().await;
    soon(host.idle()).await;
    assert!(!is_there(&pid), "it is idle when nothing is left");
    soon(async {
        while site::is_alive(&child) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let _ = soon(waiting).await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_script_down() {
    let site = Site::of(
        "printf 'Content-Type: application/octet-stream\\n\\n'; yes | head -c 50000000; echo done >$MARKS/done",
    );
    let served = serve(&site, site.host(|_| {})).await;
    let mut http = served.http().await;
    let mut head = http.head("GET", "/script", &[], Upload::Nothing).await.unwrap();
    let mut len = head.next().await.unwrap().unwrap().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!site.has_mark("done"), "50 MB have no room on the way");
    while let Some(data) = head.next().await.unwrap() {
        len += data.len();
    }
    assert_eq!(len, 50_000_000);
    served.stop().await;
}
