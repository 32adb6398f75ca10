//! What the FastCGI gateway costs in memory, counted by an allocator of the test's own. One test, because it counts for the whole process.
#![cfg(feature = "fastcgi")]

#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use fastcgi_client::Client;
use gatespan::application::{Environ, Error, Peer};
use gatespan::gateway::fastcgi::{Config, serve_connection};
use gatespan::{Application, StartResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Bytes at this moment, and how often memory was asked for.
static BYTES: AtomicI64 = AtomicI64::new(0);
static MOST: AtomicI64 = AtomicI64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(more: i64) {
    let bytes = BYTES.fetch_add(more, Ordering::Relaxed) + more;
    MOST.fetch_max(bytes, Ordering::Relaxed);
    CALLS.fetch_add(u64::from(more > 0), Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "there is no other way to count allocations")]
// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(-(layout.size() as i64));
        count(size as i64);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What an idle kept connection may cost, in bytes.
const IDLE_CONNECTION: i64 = 16 * 1024;

/// What a request costs while its application runs, beyond its params and what the application itself needs.
const REQUEST: i64 = 4 * 1024;

/// How often memory is asked for from a small request's first byte to its last.
const REQUEST_ALLOCATIONS: u64 = 24;

async fn hello(mut environ: Environ, start_response: StartResponse) -> Result<&'static str, Error> {
    if environ.path_info() == b"/read" {
        while environ.input().chunk().await?.is_some() {}
    }
    if environ.path_info() == b"/wait" {
        std::future::pending::<()>().await;
    }
    start_response.start("200 OK", [("Content-Type", "text/plain")])?;
    Ok("Hello, world!\n")
}

fn connect<A: Application>(application: A) -> Client<UnixStream> {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let config = Config { allow: Vec::new(), ..Config::default() };
    tokio::spawn(serve_connection(ours, Peer::Unknown, application, config));
    Client::new(theirs)
}

#[test]
fn memory_is_bounded_as_promised() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(an_idle_connection_is_small());
    runtime.block_on(a_request_has_a_fixed_cost());
    runtime.block_on(no_variable_is_an_allocation());
}

async fn an_idle_connection_is_small() {
    const COUNT: i64 = 50;
    for large in [false, true] {
        let len = if large { 1 << 20 } else { 100 };
        // What the sockets of our own side cost is counted too: it is little.
        let mut streams = Vec::with_capacity(COUNT as usize);
        let before = BYTES.load(Ordering::Relaxed);
        for _ in 0..COUNT {
            let mut client = connect(hello);
            let id = client.post("/read", len, true);
            client.end.stdin(id, vec![0; len].into());
            client.end.end_stdin(id);
            assert!(client.answer(id).await.is_complete());
            streams.push(client.stream);
        }
        tokio::task::yield_now().await;
        let each = (BYTES.load(Ordering::Relaxed) - before) / COUNT;
        println!("an idle kept connection costs {each} bytes after a body of {len}");
        assert!(each < IDLE_CONNECTION, "{each} bytes");
        drop(streams);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn a_request_has_a_fixed_cost() {
    let mut client = connect(hello);
    for _ in 0..3 {
        let id = client.get("/", true);
        assert!(client.answer(id).await.is_complete());
    }
    // From here on with bytes that were made before, so that only the gateway's own are counted.
    let mut stream = client.stream;
    let wait = encoded(&[("REQUEST_METHOD", "GET"), ("PATH_INFO", "/wait")]);
    let before = BYTES.load(Ordering::Relaxed);
    stream.write_all(&wait).await.unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let cost = BYTES.load(Ordering::Relaxed) - before;
    println!("a request under way costs {cost} bytes");
    assert!(cost > 0 && cost < REQUEST, "{cost} bytes");
}

async fn no_variable_is_an_allocation() {
    let mut counts = Vec::new();
    for variables in [10, 60] {
        let names: Vec<String> = (0..variables).map(|number| format!("HTTP_X_NAME_{number}")).collect();
        let params: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "some value or other")).collect();
        let bytes = encoded(&params);
        let mut stream = connect(hello).stream;
        let mut answer = vec![0; 4096];
        let mut calls = 0;
        for _ in 0..5 {
            let before = CALLS.load(Ordering::Relaxed);
            stream.write_all(&bytes).await.unwrap();
            assert!(stream.read(&mut answer).await.unwrap() > 0);
            calls = CALLS.load(Ordering::Relaxed) - before;
        }
        println!("a request with {variables} variables asks for memory {calls} times");
        counts.push(calls);
    }
    assert_eq!(counts[0], counts[1]);
    assert!(counts[0] <= REQUEST_ALLOCATIONS, "{counts:?}");
}

/// A whole GET on a connection that is kept.
fn encoded(params: &[(&str, &str)]) -> Vec<u8> {
    use gatespan::protocol::fastcgi::{Role, WebServerEnd, web_server_end::Settings};
    let mut end = WebServerEnd::new(Settings::default());
    let params = params.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let id = end.begin(Role::Responder, true, params).unwrap();
    end.end_stdin(id);
    let mut bytes = vec![0; end.output().len()];
    bytes::Buf::copy_to_slice(end.output(), &mut bytes);
    bytes
}
