//! The FastCGI gateway from the web server's side: connections as web servers use and misuse them.
#![cfg(feature = "fastcgi")]

#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastcgi_client::{Answer, Client, soon};
use gatespan::StartResponse;
use gatespan::address::Endpoint;
use gatespan::application::{
    AnyApplication, Application, Body, Environ, Error, FileRange, Frame, Frames, Peer, blocking,
};
use gatespan::gateway::fastcgi::{Config, ConnectionError, Gateway, ServeError, serve, serve_connection};
use gatespan::gateway::listener::{Closed, ListenOptions, Listener, Transport};
use gatespan::protocol::fastcgi::application_end::Roles;
use gatespan::protocol::fastcgi::{ProtocolStatus, RecordType, RequestId, Role, put_record};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const ONE: RequestId = RequestId(1);
const PLAIN: [(&str, &str); 1] = [("Content-Type", "text/plain")];

type Served = JoinHandle<Result<(), ConnectionError>>;

/// A connection without a socket.
fn connect(application: impl Application, config: Config) -> (Client<DuplexStream>, Served) {
    let (theirs, ours) = tokio::io::duplex(64 * 1024);
    (Client::new(theirs), spawn(ours, application, config))
}

fn connect_unix(application: impl Application, config: Config) -> (Client<UnixStream>, Served) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    (Client::new(theirs), spawn(ours, application, config))
}

async fn connect_tcp(application: impl Application, config: Config) -> (Client<TcpStream>, Served) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (theirs, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (Client::new(theirs.unwrap()), spawn(accepted.unwrap().0, application, config))
}

fn spawn<S: Transport + 'static>(stream: S, application: impl Application, config: Config) -> Served {
    let gateway = Arc::new(Gateway::new(application, config));
    tokio::spawn(async move { serve_connection(stream, Peer::Unknown, &gateway, &CancellationToken::new()).await })
}

fn config() -> Config {
    Config { allow: Vec::new(), ..Config::default() }
}

async fn hello(_: Environ, start_response: StartResponse) -> Result<&'static str, Error> {
    start_response.start("200 OK", PLAIN)?;
    Ok("Hello, world!\n")
}

/// Answers with what it reads.
async fn echo(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    start_response.start("200 OK", PLAIN)?;
    Ok(Body::stream(environ.take_input()))
}

/// Answers with its variables.
async fn variables(environ: Environ, start_response: StartResponse) -> Result<String, Error> {
    start_response.start("200 OK", PLAIN)?;
    let line = |(name, value): (&[u8], &[u8])| format!("{}={}\n", name.escape_ascii(), value.escape_ascii());
    Ok(environ.variables().iter().map(line).collect())
}

/// Tells whether the cancellation token was pulled before it was dropped.
struct Dropped(CancellationToken, UnboundedSender<bool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.1.send(self.0.is_cancelled());
    }
}

/// An application that waits for ever, with the news that it began (`false`) and that it was cancelled (`true`).
fn waits(answers_first: bool) -> (AnyApplication, UnboundedReceiver<bool>) {
    let (news, receiver) = unbounded_channel();
    let application = move |environ: Environ, start_response: StartResponse| {
        let news = news.clone();
        async move {
            let dropped = Dropped(environ.cancellation(), news.clone());
            news.send(false)?;
            // The body stays unread.
            let _environ = environ;
            if answers_first {
                let mut write = start_response.start("200 OK", PLAIN)?;
                write.write("begun").await?;
            }
            std::future::pending::<()>().await;
            drop(dropped);
            Ok::<_, Error>("")
        }
    };
    (AnyApplication::new(application), receiver)
}

/// Dispatches by PATH_INFO: `/slow` waits until it is told, everything else is answered at once.
fn slow_or_fast() -> (AnyApplication, Arc<tokio::sync::Notify>) {
    let notify = Arc::new(tokio::sync::Notify::new());
    let told = notify.clone();
    let application = move |environ: Environ, start_response: StartResponse| {
        let told = told.clone();
        async move {
            if environ.path_info() == b"/slow" {
                told.notified().await;
            }
            start_response.start("200 OK", PLAIN)?;
            Ok::<_, Error>(String::from_utf8_lossy(environ.path_info()).into_owned())
        }
    };
    (AnyApplication::new(application), notify)
}

/// Counts the calls that moved bytes.
struct Counting<S> {
    stream: S,
    reads: Arc<AtomicUsize>,
    writes: Arc<AtomicUsize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Transport> Transport for Counting<S> {
    fn closed(&self) -> Closed {
        self.stream.closed()
    }
}

// ---- Answers, small and large ----

#[tokio::test]
async fn a_small_request_is_one_read_and_one_write() {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let (reads, writes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counting = Counting { stream: ours, reads: reads.clone(), writes: writes.clone() };
    let _served = spawn(counting, hello, config());
    let mut client = Client::new(theirs);
    for count in 1..=10 {
        let id = client.get("/", true);
        assert!(client.answer(id).await.is_complete());
        assert_eq!((reads.load(Ordering::Relaxed), writes.load(Ordering::Relaxed)), (count, count));
    }
}

#[tokio::test]
async fn a_head_and_a_small_body_are_one_record() {
    let (mut theirs, ours) = tokio::io::duplex(64 * 1024);
    let _served = spawn(ours, hello, config());
    theirs.write_all(&request(1, false, &[("REQUEST_METHOD", "GET")])).await.unwrap();
    let mut answer = Vec::new();
    soon(theirs.read_to_end(&mut answer)).await.unwrap();
    let page = b"Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\nHello, world!\n";
    let mut expected = Vec::new();
    let padding = page.len().next_multiple_of(8) - page.len();
    put_record(RecordType::Stdout, ONE, page, padding as u8, &mut expected);
    put_record(RecordType::Stdout, ONE, b"", 0, &mut expected);
    put_record(RecordType::EndRequest, ONE, &[0; 8], 0, &mut expected);
    assert_eq!(answer.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    const LEN: usize = 8 << 20;
    let (mut client, served) = connect_unix(echo, config());
    let body: Bytes = (0..LEN).map(|at| ((at * 31) >> 8) as u8).collect();
    let id = client.post("/", LEN, false);
    client.end.stdin(id, body.clone());
    client.end.end_stdin(id);
    let answer = client.answer(id).await;
    assert!(answer.is_complete());
    assert!(answer.body() == body, "the body was changed");
    assert!(soon(served).await.unwrap().is_ok());
}

#[tokio::test]
async fn one_connection_serves_a_thousand_requests() {
    let (mut client, served) = connect(variables, config());
    for number in 0..1000 {
        let id = client.get(&format!("/{number}"), true);
        assert_eq!(id, ONE);
        let answer = client.answer(id).await;
        assert!(answer.is_complete());
        assert!(answer.text().contains(&format!("PATH_INFO=/{number}\n")));
    }
    drop(client);
    assert!(soon(served).await.unwrap().is_ok());
}

#[tokio::test]
async fn cve_2011_2766_a_request_sees_nothing_of_the_one_before() {
    let (mut client, _served) = connect(variables, config());
    let id =
        client.begin(Role::Responder, true, &[("REQUEST_METHOD", "GET"), ("HTTP_COOKIE", "s=1"), ("REMOTE_USER", "a")]);
    client.end.end_stdin(id);
    assert!(client.answer(id).await.text().contains("REMOTE_USER=a\n"));
    let id = client.begin(Role::Responder, true, &[("X", "1")]);
    client.end.end_stdin(id);
    assert_eq!(client.answer(id).await.body(), b"X=1\n");
    let id = client.begin(Role::Responder, true, &[]);
    client.end.end_stdin(id);
    assert_eq!(client.answer(id).await.body(), b"");
}

#[tokio::test]
async fn httpoxy_and_its_family_do_not_come_in_as_params() {
    let (mut client, _served) = connect(variables, config());
    let params = [("HTTP_PROXY", "http://evil"), ("HTTP_CONTENT_LENGTH", "7"), ("HTTP_CONTENT_TYPE", "x"), ("A", "b")];
    let id = client.begin(Role::Responder, true, &params);
    client.end.end_stdin(id);
    assert_eq!(client.answer(id).await.body(), b"A=b\n");
}

#[tokio::test]
async fn records_may_be_cut_at_every_byte_in_both_directions() {
    let (theirs, ours) = tokio::io::duplex(1);
    let _served = spawn(ours, echo, config());
    let mut client = Client::new(theirs);
    for _ in 0..2 {
        let id = client.post("/", 5, true);
        client.end.stdin(id, "12345".into());
        client.end.end_stdin(id);
        let answer = client.answer(id).await;
        assert!(answer.is_complete());
        assert_eq!(answer.body(), b"12345");
    }
}

#[tokio::test]
async fn padding_is_sent_as_zeros() {
    let application = |_: Environ, start_response: StartResponse| async move {
        start_response.start("200 OK", ())?;
        Ok::<_, Error>("x")
    };
    let (mut theirs, ours) = tokio::io::duplex(64 * 1024);
    let _served = spawn(ours, application, config());
    theirs.write_all(&request(1, false, &[])).await.unwrap();
    let mut answer = Vec::new();
    soon(theirs.read_to_end(&mut answer)).await.unwrap();
    let content = usize::from(u16::from_be_bytes([answer[4], answer[5]]));
    let padding = usize::from(answer[6]);
    assert_eq!((content + padding) % 8, 0);
    assert!(answer[8 + content..][..padding].iter().all(|byte| *byte == 0));
}

/// BEGIN_REQUEST, params, their end, and the end of STDIN.
fn request(id: u16, keep: bool, params: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_record(RecordType::BeginRequest, RequestId(id), &[0, 1, keep.into(), 0, 0, 0, 0, 0], 0, &mut bytes);
    let mut content = Vec::new();
    for (name, value) in params {
        content.extend([name.len() as u8, value.len() as u8]);
        content.extend(name.bytes().chain(value.bytes()));
    }
    if !content.is_empty() {
        put_record(RecordType::Params, RequestId(id), &content, 0, &mut bytes);
    }
    put_record(RecordType::Params, RequestId(id), b"", 0, &mut bytes);
    put_record(RecordType::Stdin, RequestId(id), b"", 0, &mut bytes);
    bytes
}

// ---- Several at once ----

#[tokio::test]
async fn multiplexed_requests_do_not_wait_for_a_slow_one() {
    let (application, notify) = slow_or_fast();
    let (mut client, _served) = connect(application, config());
    let slow = client.get("/slow", true);
    for number in 0..20 {
        let fast = client.get(&format!("/{number}"), true);
        assert_eq!(client.answer(fast).await.body(), format!("/{number}").as_bytes());
    }
    notify.notify_one();
    assert_eq!(client.answer(slow).await.body(), b"/slow");
}

#[tokio::test]
async fn a_large_answer_does_not_keep_multiplexed_ones_waiting() {
    let application = |environ: Environ, start_response: StartResponse| async move {
        start_response.start("200 OK", PLAIN)?;
        let block = Bytes::from(vec![b'x'; 16 * 1024]);
        Ok::<_, Error>(match environ.path_info() {
            // It never ends.
            b"/large" => Body::stream(tokio_stream::iter(std::iter::repeat(block))),
            _ => "small".into(),
        })
    };
    let (mut client, _served) = connect(application, config());
    let large = client.get("/large", true);
    client.wait_for(large, "x").await;
    let small = client.get("/small", true);
    // `answer` reads on, and so lets the large one go on for ever.
    assert_eq!(client.answer(small).await.body(), b"small");
}

#[tokio::test]
async fn an_abort_cancels_and_has_exactly_one_end() {
    for answers_first in [false, true] {
        let (application, mut news) = waits(answers_first);
        let (mut client, _served) = connect(application, config());
        let id = client.post("/", 10, true);
        client.flush().await;
        assert_eq!(soon(news.recv()).await, Some(false));
        client.end.abort(id);
        assert_eq!(client.answer(id).await.end, Some((1, ProtocolStatus::RequestComplete)));
        assert_eq!(soon(news.recv()).await, Some(true));
        // A second one for the same id is for no request, and the id can be used again.
        put_abort(&mut client, id).await;
        let again = client.get("/", true);
        assert_eq!(again, id);
        client.flush().await;
        assert_eq!(soon(news.recv()).await, Some(false));
        assert_eq!(client.so_far(id).ends, 0);
    }
}

async fn put_abort(client: &mut Client<DuplexStream>, id: RequestId) {
    let mut bytes = Vec::new();
    put_record(RecordType::AbortRequest, id, b"", 0, &mut bytes);
    client.stream.write_all(&bytes).await.unwrap();
}

// ---- A web server that leaves ----

#[tokio::test]
async fn a_closed_socket_cancels_an_application_that_waits() {
    let (application, mut news) = waits(true);
    let (mut client, served) = connect_unix(application, config());
    let id = client.get("/", true);
    client.wait_for(id, "begun").await;
    drop(client);
    assert_cancelled(&mut news, served).await;
}

#[tokio::test]
async fn a_closed_socket_cancels_an_application_that_does_not_read() {
    for over_tcp in [false, true] {
        let (application, mut news) = waits(false);
        if over_tcp {
            let (mut client, served) = connect_tcp(application, config()).await;
            let id = client.post("/", 1 << 30, true);
            client.end.stdin(id, vec![0; 120 * 1024].into());
            client.flush().await;
            drop(client);
            assert_cancelled(&mut news, served).await;
        } else {
            let (mut client, served) = connect_unix(application, config());
            let id = client.post("/", 1 << 30, true);
            client.end.stdin(id, vec![0; 120 * 1024].into());
            client.flush().await;
            drop(client);
            assert_cancelled(&mut news, served).await;
        }
    }
}

#[tokio::test]
async fn a_closed_socket_cancels_an_application_whose_answer_is_held_up() {
    let (news, mut receiver) = unbounded_channel();
    let application = move |environ: Environ, start_response: StartResponse| {
        let news = news.clone();
        async move {
            let dropped = Dropped(environ.cancellation(), news.clone());
            news.send(false)?;
            let mut write = start_response.start("200 OK", PLAIN)?;
            loop {
                write.write(vec![0; 32 * 1024]).await?;
                if dropped.0.is_cancelled() {
                    return Ok::<_, Error>("");
                }
            }
        }
    };
    let (mut client, served) = connect_unix(application, config());
    client.get("/", true);
    client.flush().await;
    // Until everything is full.
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(client);
    assert_cancelled(&mut receiver, served).await;
}

async fn assert_cancelled(news: &mut UnboundedReceiver<bool>, served: Served) {
    let left = Instant::now();
    assert_eq!(soon(news.recv()).await, Some(false));
    assert_eq!(soon(news.recv()).await, Some(true), "dropped before the token was pulled");
    assert!(left.elapsed() < Duration::from_secs(1));
    soon(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_half_closed_unix_socket_gets_its_answer() {
    let (application, notify) = slow_or_fast();
    let (mut client, served) = connect_unix(application, config());
    let id = client.get("/slow", true);
    client.flush().await;
    client.stream.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    notify.notify_one();
    assert_eq!(client.answer(id).await.body(), b"/slow");
    assert!(client.is_closed().await);
    drop(client);
    soon(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_half_closed_unix_socket_gets_its_answer_though_its_body_is_larger_than_the_window() {
    let (mut client, served) = connect_unix(echo, Config { input_window: 4096, ..config() });
    let body = vec![b'x'; 100 * 1024];
    let id = client.post("/", body.len(), true);
    client.end.stdin(id, body.into());
    client.end.end_stdin(id);
    client.flush().await;
    client.stream.shutdown().await.unwrap();
    let answer = client.answer(id).await;
    assert!(answer.is_complete());
    assert_eq!(answer.body().len(), 100 * 1024);
    soon(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_that_waits_to_be_written_survives_a_half_close() {
    const LEN: usize = 2 << 20;
    let application = |_: Environ, start_response: StartResponse| async move {
        start_response.start("200 OK", PLAIN)?;
        Ok::<_, Error>(vec![b'x'; LEN])
    };
    let (mut client, served) = connect_unix(application, config());
    let id = client.get("/", true);
    client.flush().await;
    client.stream.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = client.answer(id).await;
    assert!(answer.is_complete());
    assert_eq!(answer.body().len(), LEN);
    soon(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_half_closed_tcp_connection_is_an_abort_unless_the_option_says_otherwise() {
    let (application, mut news) = waits(false);
    let (mut client, served) = connect_tcp(application, config()).await;
    client.get("/", true);
    client.flush().await;
    client.stream.shutdown().await.unwrap();
    assert_cancelled(&mut news, served).await;

    let (application, notify) = slow_or_fast();
    let (mut client, served) = connect_tcp(application, Config { finish_half_closed: true, ..config() }).await;
    let id = client.get("/slow", true);
    client.flush().await;
    client.stream.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    notify.notify_one();
    assert_eq!(client.answer(id).await.body(), b"/slow");
    soon(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn half_a_request_and_a_half_close_is_no_request() {
    for (keep_open, body) in [(false, false), (true, false), (false, true)] {
        let (application, mut news) = waits(false);
        let (mut client, served) = connect_unix(application, config());
        let bytes = request(1, true, &[("CONTENT_LENGTH", "5")]);
        let cut = if body { bytes.len() - 8 } else { 20 };
        client.stream.write_all(&bytes[..cut]).await.unwrap();
        if !keep_open {
            client.stream.shutdown().await.unwrap();
        } else {
            drop(client);
        }
        let result = soon(served).await.unwrap();
        if body {
            // The request is one, but its body will never be whole.
            result.unwrap();
            assert_eq!((news.recv().await, news.recv().await), (Some(false), Some(true)));
        } else {
            assert!(matches!(result, Err(ConnectionError::Incomplete)), "{result:?}");
        }
    }
}

// ---- Request bodies that are not read, or never end ----

#[tokio::test]
async fn stdin_that_is_never_ended_is_no_reason_to_close_a_kept_connection() {
    tokio::time::pause();
    let application = |environ: Environ, start_response: StartResponse| async move {
        if environ.path_info() == b"/slow" {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        start_response.start("200 OK", PLAIN)?;
        Ok::<_, Error>("ok")
    };
    let (mut client, served) = connect(application, config());
    for path in ["/", "/slow", "/slow"] {
        let id = client.begin(Role::Responder, true, &[("REQUEST_METHOD", "GET"), ("PATH_INFO", path)]);
        assert_eq!(id, ONE);
        let answer = tokio::time::timeout(Duration::from_secs(100), client.answer_patiently(id)).await.unwrap();
        assert!(answer.is_complete(), "{path}");
        // Longer than bodies linger.
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    drop(client);
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn five_megabytes_that_are_not_read_do_not_cost_the_answer() {
    for keep in [false, true] {
        let (mut client, served) = connect_tcp(hello, config()).await;
        let id = client.post("/", 5 << 20, keep);
        client.end.stdin(id, vec![0; 5 << 20].into());
        client.end.end_stdin(id);
        // As some web servers do: all is written before anything is read.
        client.flush().await;
        let answer = client.answer(id).await;
        assert!(answer.is_complete());
        assert_eq!(answer.body(), b"Hello, world!\n");
        if keep {
            let id = client.get("/", false);
            assert!(client.answer(id).await.is_complete());
        }
        assert!(client.is_closed().await);
        drop(client);
        soon(served).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn unread_bodies_have_a_limit_in_bytes() {
    for keep in [false, true] {
        let (mut client, served) = connect(hello, Config { linger_len: 100_000, ..config() });
        let id = client.post("/", 1 << 30, keep);
        client.flush().await;
        assert!(client.answer(id).await.is_complete());
        let mut bytes = Vec::new();
        put_record(RecordType::Stdin, id, &[0; 60_000], 0, &mut bytes);
        soon(async { while client.stream.write_all(&bytes).await.is_ok() {} }).await;
        let result = soon(served).await.unwrap();
        if keep {
            assert!(matches!(result, Err(ConnectionError::Unread { limit: 100_000 })), "{result:?}");
        }
    }
}

#[tokio::test]
async fn unread_bodies_of_multiplexed_requests_are_limited_each_for_itself() {
    let (mut client, served) = connect(hello, Config { linger_len: 100_000, ..config() });
    let (first, second) = (client.post("/", 1 << 30, true), client.post("/", 1 << 30, true));
    client.flush().await;
    assert!(client.answer(first).await.is_complete() && client.answer(second).await.is_complete());
    let mut bytes = Vec::new();
    put_record(RecordType::Stdin, first, &[0; 60_000], 0, &mut bytes);
    soon(async { while client.stream.write_all(&bytes).await.is_ok() {} }).await;
    let result = soon(served).await.unwrap();
    assert!(matches!(result, Err(ConnectionError::Unread { limit: 100_000 })), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn unread_bodies_have_a_limit_in_time() {
    for keep in [false, true] {
        let began = tokio::time::Instant::now();
        let (mut client, served) = connect(hello, config());
        let id = client.post("/", 1 << 30, keep);
        assert!(client.answer_patiently(id).await.is_complete());
        let mut bytes = Vec::new();
        put_record(RecordType::Stdin, id, b"x", 7, &mut bytes);
        while client.stream.write_all(&bytes).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(began.elapsed().as_secs(), 5);
        assert_eq!(served.await.unwrap().is_ok(), !keep);
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_for_an_unread_body_begins_when_the_answer_is_written() {
    let application = |_: Environ, start_response: StartResponse| async move {
        start_response.start("200 OK", PLAIN)?;
        Ok::<_, Error>(vec![b'x'; 200 * 1024])
    };
    let (mut client, _served) = connect(application, config());
    let id = client.post("/", 1 << 20, true);
    client.end.stdin(id, vec![0; 1000].into());
    client.flush().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    client.end.stdin(id, vec![0; 1000].into());
    client.end.end_stdin(id);
    assert!(client.answer_patiently(id).await.is_complete());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let id = client.get("/", true);
    assert!(client.answer_patiently(id).await.is_complete());
}

// ---- Limits ----

#[tokio::test]
async fn a_request_whose_content_length_is_sent_is_over_although_its_answer_still_waits() {
    // HAProxy sends another in its place as soon as it has all that was announced, whether or not it has seen END_REQUEST.
    let application = |_: Environ, start_response: StartResponse| async move {
        start_response.start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4096")])?;
        Ok::<_, Error>(Body::stream(tokio_stream::iter([Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 4096]))])))
    };
    let (theirs, ours) = tokio::io::duplex(512);
    let _served = spawn(ours, application, Config { output_window: 1024, max_requests_per_connection: 1, ..config() });
    let mut client = Client::new(theirs);
    let first = client.get("/1", true);
    client.wait_for(first, "200 OK").await;
    let second = client.get("/2", true);
    for id in [first, second] {
        let answer = client.answer(id).await;
        assert!(answer.is_complete() && answer.text().starts_with("Status: 200 OK"), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_file_is_read_no_faster_than_it_is_taken() {
    // Nothing is there yet: what was read before it was written would be zeros.
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let shared = Arc::new(file.try_clone().unwrap());
    let application = move |_: Environ, start_response: StartResponse| {
        let file = shared.clone();
        async move {
            start_response.start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1048576")])?;
            Ok::<_, Error>(FileRange { file, offset: 0, len: 1 << 20, block_size: 4096 })
        }
    };
    let (theirs, ours) = tokio::io::duplex(512);
    let _served = spawn(ours, application, Config { output_window: 1024, ..config() });
    let mut client = Client::new(theirs);
    let id = client.get("/", true);
    client.wait_for(id, "200 OK").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::io::Write::write_all(&mut file, &vec![b'x'; 1 << 20]).unwrap();
    let answer = client.answer(id).await;
    let early = answer.body().iter().filter(|byte| **byte == 0).count();
    assert!(answer.is_complete() && early < 64 << 10, "{early} bytes were read before anybody could take them");
}

#[tokio::test]
async fn a_request_too_many_is_overloaded_with_a_503_page() {
    let (application, notify) = slow_or_fast();
    for config in [Config { max_requests: 2, ..config() }, Config { max_requests_per_connection: 2, ..config() }] {
        let (mut client, _served) = connect(application.clone(), config);
        let (first, second) = (client.get("/slow", true), client.get("/slow", true));
        let third = client.get("/3", true);
        let answer = client.answer(third).await;
        assert_eq!(answer.end, Some((0, ProtocolStatus::Overloaded)));
        assert!(answer.text().starts_with("Status: 503 "), "{}", answer.text());
        assert!(answer.text().contains("\r\nRetry-After: "));
        notify.notify_one();
        notify.notify_one();
        notify.notify_waiters();
        let (one, two) = (client.answer(first).await, client.answer(second).await);
        assert!(one.is_complete() && two.is_complete());
        let fourth = client.get("/4", true);
        assert!(client.answer(fourth).await.is_complete());
    }
}

#[tokio::test]
async fn params_over_the_limits_are_431_and_the_connection_goes_on() {
    let long = "x".repeat(5000);
    let many: Vec<(String, String)> = (0..200).map(|number| (format!("N{number}"), String::new())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
    let (mut client, _served) = connect(hello, Config { max_params_len: 4096, max_params_count: 100, ..config() });
    for params in [&[("LONG", &*long)][..], &many] {
        let id = client.begin(Role::Responder, true, params);
        client.end.stdin(id, "body".into());
        client.end.end_stdin(id);
        let answer = client.answer(id).await;
        assert!(answer.text().starts_with("Status: 431 "), "{}", answer.text());
        assert!(answer.is_complete());
    }
    let id = client.get("/", true);
    assert!(client.answer(id).await.text().starts_with("Status: 200 "));
}

#[tokio::test]
async fn malformed_params_are_400_and_the_connection_goes_on() {
    for content in [
        &b"\x05\x05abc"[..],
        // CVE-2025-23016, CVE-2025-40907: lengths of 31 bits.
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\x00",
    ] {
        let (theirs, ours) = tokio::io::duplex(64 * 1024);
        let _served = spawn(ours, hello, config());
        let mut client = Client::new(theirs);
        // Takes the id on this side; what is sent is written by hand.
        let id = client.get("/", true);
        let len = client.end.output().len();
        bytes::Buf::advance(client.end.output(), len);
        let mut bytes = Vec::new();
        put_record(RecordType::BeginRequest, id, &[0, 1, 1, 0, 0, 0, 0, 0], 0, &mut bytes);
        put_record(RecordType::Params, id, content, 0, &mut bytes);
        put_record(RecordType::Params, id, b"", 0, &mut bytes);
        put_record(RecordType::Stdin, id, b"", 0, &mut bytes);
        client.stream.write_all(&bytes).await.unwrap();
        let answer = client.answer(id).await;
        assert!(answer.text().starts_with("Status: 400 "), "{}", answer.text());
        let id = client.get("/", true);
        assert!(client.answer(id).await.text().starts_with("Status: 200 "));
    }
}

#[tokio::test]
async fn a_content_length_that_is_no_number_is_400() {
    let (mut client, _served) = connect(hello, config());
    for length in ["x", "-2", "1 2", "99999999999999999999999", "+1", "0x10"] {
        let id = client.begin(Role::Responder, true, &[("CONTENT_LENGTH", length)]);
        client.end.end_stdin(id);
        assert!(client.answer(id).await.text().starts_with("Status: 400 "), "{length}");
    }
    // Empty is unset: nginx sends that.
    let id = client.begin(Role::Responder, true, &[("CONTENT_LENGTH", "")]);
    client.end.end_stdin(id);
    assert!(client.answer(id).await.text().starts_with("Status: 200 "));
}

/// Caddy says -1 of a body in chunks.
#[tokio::test]
async fn a_content_length_of_minus_one_is_none_and_the_body_is_read_to_its_end() {
    let application = |mut environ: Environ, start_response: StartResponse| async move {
        start_response.start("200 OK", PLAIN)?;
        let body = environ.input().read_to_end(100).await?;
        Ok::<_, Error>(format!("{:?} {}", environ.get("CONTENT_LENGTH"), body.escape_ascii()))
    };
    let (mut client, _served) = connect(application, config());
    let id = client.begin(Role::Responder, true, &[("REQUEST_METHOD", "POST"), ("CONTENT_LENGTH", "-1")]);
    client.end.stdin(id, "in chunks".into());
    client.end.end_stdin(id);
    assert_eq!(client.answer(id).await.body(), b"None in chunks");
}

#[tokio::test]
async fn cve_2026_24895_a_nul_in_a_param_is_400() {
    let (mut client, _served) = connect(hello, config());
    for param in [("PATH_INFO", "/a.php\0.txt"), ("SCRIPT_FILENAME", "\0"), ("A\0B", "")] {
        let id = client.begin(Role::Responder, true, &[("REQUEST_METHOD", "GET"), param]);
        client.end.end_stdin(id);
        assert!(client.answer(id).await.text().starts_with("Status: 400 "), "{param:?}");
    }
}

#[tokio::test]
async fn a_refused_request_has_its_reason_in_the_log_under_the_id_on_its_page() {
    let (mut client, _served) = connect(hello, config());
    let id = client.begin(Role::Responder, true, &[("CONTENT_LENGTH", "abc")]);
    client.end.end_stdin(id);
    let answer = client.answer(id).await;
    let (text, log) = (answer.text(), answer.errors());
    let (_, name) = text.trim_end().rsplit_once("request ").expect("the page names the request");
    assert!(log.starts_with(&format!("request {name} answered with 400: ")) && log.contains("abc"), "{log}");
    assert!(text.contains("\r\nContent-Length: "), "{text}");
}

#[tokio::test]
async fn a_filters_length_that_is_no_number_is_400() {
    let roles = Roles::ALL;
    let (mut client, _served) = connect(hello, Config { roles, ..config() });
    let id = client.begin(Role::Filter, true, &[("FCGI_DATA_LENGTH", "12x")]);
    client.end.end_stdin(id);
    client.end.end_data(id);
    assert!(client.answer(id).await.text().starts_with("Status: 400 "));
}

#[tokio::test]
async fn cve_2026_55203_content_and_padding_over_sixteen_bits_are_kept_apart() {
    for padding in [1, 255] {
        let (mut theirs, ours) = tokio::io::duplex(1 << 20);
        let _served = spawn(ours, echo, config());
        let mut bytes = request(1, false, &[("CONTENT_LENGTH", "65536")]);
        bytes.truncate(bytes.len() - 8);
        // Bytes that would be an ABORT_REQUEST if padding were read as headers.
        put_record(RecordType::Stdin, ONE, &[1; 65_535], 0, &mut bytes);
        let header = bytes.len() - 65_535 - 8;
        bytes[header + 6] = padding;
        bytes.extend([1, 2, 0, 1, 0, 0, 0, 0].iter().cycle().take(padding.into()));
        put_record(RecordType::Stdin, ONE, &[2; 1], 0, &mut bytes);
        put_record(RecordType::Stdin, ONE, b"", 0, &mut bytes);
        theirs.write_all(&bytes).await.unwrap();
        let mut client = Client::new(theirs);
        let id = client.get("/", false);
        let len = client.end.output().len();
        bytes::Buf::advance(client.end.output(), len);
        let answer = client.answer(id).await;
        assert!(answer.is_complete());
        assert_eq!(answer.body().len(), 65_536);
    }
}

#[tokio::test]
async fn malformed_records_close_the_connection_with_a_reason() {
    let mut begin = request(1, true, &[]);
    begin.truncate(16);
    let mut short_begin = Vec::new();
    put_record(RecordType::BeginRequest, ONE, &[0, 1, 0], 0, &mut short_begin);
    let mut stdin_first = begin.clone();
    put_record(RecordType::Stdin, ONE, b"x", 0, &mut stdin_first);
    let twice = [&begin[..], &begin].concat();
    for bytes in [&[2; 8][..], &short_begin, &stdin_first, &twice, b"GET / HTTP/1.1\r\n\r\n"] {
        let (mut theirs, ours) = tokio::io::duplex(64 * 1024);
        let served = spawn(ours, hello, config());
        theirs.write_all(bytes).await.unwrap();
        let error = soon(served).await.unwrap().unwrap_err();
        assert!(matches!(error, ConnectionError::Protocol(_)), "{error:?}");
        assert!(error.to_string().contains("expected") || error.to_string().contains("got"), "{error}");
        let mut rest = Vec::new();
        soon(theirs.read_to_end(&mut rest)).await.unwrap();
    }
}

// ---- Management records and roles ----

#[tokio::test]
async fn get_values_is_answered_at_once() {
    let limits = Config { max_connections: 7, max_requests: 9, ..config() };
    for (announced, expected) in [(false, "0"), (true, "1")] {
        let (mut client, _served) = connect(hello, Config { announce_multiplexing: announced, ..limits.clone() });
        client.end.get_values(["FCGI_MPXS_CONNS", "FCGI_MAX_CONNS", "FCGI_MAX_REQS", "OTHER"]).unwrap();
        soon(client.step()).await.unwrap();
        let values = client.values.take().unwrap();
        let value = |name: &str| values.iter().find(|(known, _)| known == name).map(|(_, value)| &**value);
        assert_eq!(value("FCGI_MPXS_CONNS"), Some(expected));
        assert_eq!((value("FCGI_MAX_CONNS"), value("FCGI_MAX_REQS"), value("OTHER")), (Some("7"), Some("9"), None));
        let id = client.get("/", true);
        assert!(client.answer(id).await.is_complete());
    }
}

#[tokio::test]
async fn a_name_that_is_asked_for_a_thousand_times_is_answered_once() {
    let (mut client, _served) = connect(hello, config());
    client.end.get_values(["FCGI_MAX_CONNS"; 1000]).unwrap();
    soon(client.step()).await.unwrap();
    assert_eq!(client.values.as_ref().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_role_that_the_application_does_not_have_is_unknown_role_whatever_follows() {
    let (mut client, served) = connect_unix(hello, config());
    let id = client.begin(Role::Authorizer, true, &[("A", "b")]);
    assert_eq!(client.answer(id).await.end, Some((0, ProtocolStatus::UnknownRole)));
    let id = client.begin(Role::Filter, false, &[("CONTENT_LENGTH", "500000")]);
    client.end.stdin(id, vec![0; 500_000].into());
    client.end.end_stdin(id);
    client.end.end_data(id);
    client.flush().await;
    assert_eq!(client.answer(id).await.end, Some((0, ProtocolStatus::UnknownRole)));
    assert!(client.is_closed().await);
    drop(client);
    soon(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_unknown_management_record_is_answered_with_unknown_type() {
    let (mut client, _served) = connect(hello, config());
    let mut bytes = Vec::new();
    put_record(RecordType::from(77), RequestId::NULL, b"?", 7, &mut bytes);
    client.stream.write_all(&bytes).await.unwrap();
    soon(client.step()).await.unwrap();
    assert_eq!(client.unknown_types, [77]);
}

#[tokio::test]
async fn an_authorizer_sends_its_variables_and_waits_for_no_stdin() {
    let application = |mut environ: Environ, start_response: StartResponse| async move {
        assert_eq!(environ.role(), Role::Authorizer);
        assert!(environ.input().read_to_end(1).await?.is_empty());
        start_response.start("200 OK", [("Variable-AUTH_METHOD", "database"), ("Content-Type", "text/plain")])?;
        Ok::<_, Error>("")
    };
    let roles = Roles::NONE.with(Role::Authorizer);
    let (mut client, served) = connect_unix(application, Config { roles, ..config() });
    for keep in [true, false] {
        let id = client.begin(Role::Authorizer, keep, &[("REQUEST_METHOD", "GET"), ("REMOTE_USER", "a")]);
        let answer = client.answer(id).await;
        assert!(answer.is_complete());
        assert!(answer.text().contains("\r\nVariable-AUTH_METHOD: database\r\n"));
    }
    assert!(client.is_closed().await);
    drop(client);
    soon(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_filter_gets_its_file_with_length_and_date() {
    let application = |mut environ: Environ, start_response: StartResponse| async move {
        let body = environ.input().read_to_end(100).await?;
        let file = environ.data().expect("a Filter has DATA").read_to_end(100).await?;
        let date = environ.text("FCGI_DATA_LAST_MOD")?.unwrap_or_default().to_owned();
        start_response.start("200 OK", PLAIN)?;
        Ok::<_, Error>([&body[..], b"|", &file, b"|", date.as_bytes()].concat())
    };
    let (mut client, _served) = connect(application, Config { roles: Roles::ALL, ..config() });
    let params = [("CONTENT_LENGTH", "4"), ("FCGI_DATA_LENGTH", "6"), ("FCGI_DATA_LAST_MOD", "17")];
    let id = client.begin(Role::Filter, true, &params);
    client.end.stdin(id, "body".into());
    client.end.end_stdin(id);
    client.end.data(id, "a file".into());
    client.end.end_data(id);
    assert_eq!(client.answer(id).await.body(), b"body|a file|17");
}

#[tokio::test]
async fn a_filter_that_leaves_its_file_unread_gets_its_answer_out() {
    let (mut client, served) = connect_tcp(hello, Config { roles: Roles::ALL, ..config() }).await;
    let id = client.begin(Role::Filter, false, &[("FCGI_DATA_LENGTH", "5000000")]);
    client.end.end_stdin(id);
    client.end.data(id, vec![0; 5_000_000].into());
    client.end.end_data(id);
    client.flush().await;
    assert!(client.answer(id).await.is_complete());
    assert!(client.is_closed().await);
    drop(client);
    soon(served).await.unwrap().unwrap();
}

// ---- When things go wrong ----

fn failing() -> AnyApplication {
    AnyApplication::new(|environ: Environ, start_response: StartResponse| async move {
        match environ.path_info() {
            b"/before" => return Err(Error::new("the database is away")),
            b"/panic" => panic!("a hole in the floor"),
            b"/slow" => tokio::time::sleep(Duration::from_millis(200)).await,
            _ => {}
        }
        let mut write = start_response.start("200 OK", PLAIN)?;
        write.write("some").await?;
        if environ.path_info() == b"/after" {
            tokio::task::yield_now().await;
            return Err(Error::new("the disk is full"));
        }
        Ok("")
    })
}

#[tokio::test]
async fn an_error_before_the_head_is_a_500_and_its_cause_goes_to_the_web_servers_log() {
    for (path, cause) in [("/before", "the database is away"), ("/panic", "a hole in the floor")] {
        let (mut client, _served) = connect(failing(), config());
        let id = client.get(path, true);
        let answer = client.answer(id).await;
        assert!(answer.is_complete());
        assert!(answer.text().starts_with("Status: 500 "), "{}", answer.text());
        assert!(!answer.text().contains(cause));
        assert!(answer.errors().contains(cause), "{}", answer.errors());
        let request_id = answer.text().lines().last().unwrap().trim_start_matches("request ").to_owned();
        assert!(answer.errors().contains(&request_id));
        let id = client.get("/", true);
        assert_eq!(client.answer(id).await.body(), b"some");
    }
}

#[tokio::test]
async fn an_error_after_the_head_cuts_its_own_request_and_the_others_finish() {
    let (mut client, served) = connect(failing(), config());
    let slow = client.get("/slow", true);
    let cut = client.get("/after", true);
    let answer = client.answer(slow).await;
    assert!(answer.is_complete());
    assert_eq!(answer.body(), b"some");
    let cut = client.answer(cut).await;
    assert_eq!((cut.end, cut.body()), (None, &b"some"[..]));
    assert!(cut.errors().contains("the disk is full"), "{}", cut.errors());
    assert!(client.is_closed().await);
    drop(client);
    soon(served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_body_shorter_than_its_content_length_is_cut() {
    let application = |_: Environ, start_response: StartResponse| async move {
        start_response.start("200 OK", [("Content-Length", "100")])?;
        Ok::<_, Error>("short")
    };
    let (mut client, _served) = connect(application, config());
    let id = client.get("/", true);
    let answer = client.answer(id).await;
    assert_eq!(answer.end, None);
    assert!(answer.errors().contains("Content-Length"), "{}", answer.errors());
}

#[tokio::test]
async fn errors_arrive_while_the_application_runs() {
    let application = |environ: Environ, _: StartResponse| async move {
        environ.errors().line("still here");
        std::future::pending::<()>().await;
        Ok::<_, Error>("")
    };
    let (mut client, _served) = connect(application, config());
    let id = client.get("/", true);
    client.wait_for(id, "still here\n").await;
}

#[tokio::test]
async fn errors_that_the_web_server_does_not_take_do_not_grow_without_bound() {
    const LINES: usize = 20_000;
    let lines = Arc::new(AtomicUsize::new(0));
    let written = lines.clone();
    // On a thread of its own, which no full output holds up.
    let application = blocking(move |environ: Environ, start_response: StartResponse| {
        let line = "x".repeat(1000);
        for _ in 0..LINES {
            environ.errors().line(&line);
            written.fetch_add(1, Ordering::Relaxed);
        }
        start_response.start("200 OK", PLAIN)?;
        Ok(["done"])
    });
    let (mut client, _served) = connect(application, config());
    let id = client.get("/", true);
    client.flush().await;
    soon(async {
        while lines.load(Ordering::Relaxed) < LINES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let answer = client.answer(id).await;
    assert!(answer.is_complete());
    assert!(answer.errors().contains("bytes of error messages were dropped here"));
    // One window, what goes over it, and what waits outside.
    assert!(answer.stderr.len() < 512 * 1024, "{} bytes", answer.stderr.len());
}

// ---- Streaming ----

#[tokio::test]
async fn events_arrive_one_by_one() {
    let (sender, receiver) = unbounded_channel::<&'static str>();
    let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
    let application = move |_: Environ, start_response: StartResponse| {
        let events = receiver.lock().unwrap().take().unwrap();
        async move {
            start_response.start("200 OK", [("Content-Type", "text/event-stream")])?;
            let next = |mut events: UnboundedReceiver<&'static str>| async {
                events.recv().await.map(|event| (event, events))
            };
            Ok::<_, Error>(Body::stream(futures_util::stream::unfold(events, next)))
        }
    };
    let (mut client, _served) = connect(application, config());
    let id = client.get("/", true);
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        sender.send(event).unwrap();
        client.wait_for(id, event).await;
        assert!(client.so_far(id).text().ends_with(event));
    }
    drop(sender);
    assert!(client.answer(id).await.is_complete());
}

#[tokio::test]
async fn pieces_of_an_iterator_are_sent_before_the_next_is_asked_for() {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let writes = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (count, list) = (writes.clone(), seen.clone());
    let application = move |_: Environ, start_response: StartResponse| {
        let (count, list) = (count.clone(), list.clone());
        async move {
            start_response.start("200 OK", PLAIN)?;
            Ok::<_, Error>(Body::iter((0..4).map(move |number| {
                list.lock().unwrap().push(count.load(Ordering::Relaxed));
                number.to_string()
            })))
        }
    };
    let _served = spawn(Counting { stream: ours, reads: Arc::default(), writes }, application, config());
    let mut client = Client::new(theirs);
    let id = client.get("/", true);
    let answer = client.answer(id).await;
    assert_eq!(answer.body(), b"0123");
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3]);
}

#[tokio::test]
async fn what_is_written_comes_before_what_is_returned() {
    let application = |_: Environ, start_response: StartResponse| async move {
        let mut write = start_response.start("200 OK", PLAIN)?;
        for piece in ["a", "b", "c"] {
            write.write(piece).await?;
        }
        Ok::<_, Error>("d")
    };
    let (mut client, _served) = connect(application, config());
    let id = client.get("/", true);
    assert_eq!(client.answer(id).await.body(), b"abcd");
}

#[tokio::test]
async fn a_blocking_application_reads_and_answers_from_its_thread() {
    let application = blocking(|mut environ: Environ, start_response: StartResponse| {
        let mut body = Vec::new();
        io::Read::read_to_end(&mut environ.input().blocking(), &mut body)?;
        start_response.start("200 OK", PLAIN)?;
        Ok((0..3).map(move |number| format!("{number}:{} ", body.len())))
    });
    let (mut client, _served) = connect(application, config());
    for _ in 0..3 {
        let id = client.post("/", 1 << 20, true);
        client.end.stdin(id, vec![0; 1 << 20].into());
        client.end.end_stdin(id);
        assert_eq!(client.answer(id).await.body(), b"0:1048576 1:1048576 2:1048576 ");
    }
}

#[tokio::test]
async fn a_web_server_that_reads_slowly_holds_the_application_up() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let application = move |_: Environ, start_response: StartResponse| {
        let count = count.clone();
        async move {
            start_response.start("200 OK", PLAIN)?;
            Ok::<_, Error>(Body::stream(tokio_stream::iter((0..2000).map(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                Bytes::from(vec![0; 10_000])
            }))))
        }
    };
    let (mut client, _served) = connect(application, config());
    let id = client.get("/", false);
    client.flush().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    // 64 KiB in the connection, 64 KiB of window, and the piece that goes over it.
    assert!(made.load(Ordering::Relaxed) <= 15, "{made:?}");
    let answer = client.answer(id).await;
    assert_eq!(answer.body().len(), 20_000_000);
}

#[tokio::test]
async fn an_application_that_does_not_read_holds_the_web_server_up() {
    let (application, _news) = waits(false);
    let (client, _served) = connect(application, config());
    let mut stream = client.stream;
    let mut bytes = request(1, true, &[("CONTENT_LENGTH", "1000000000")]);
    bytes.truncate(bytes.len() - 8);
    stream.write_all(&bytes).await.unwrap();
    let mut record = Vec::new();
    put_record(RecordType::Stdin, ONE, &[0; 8000], 0, &mut record);
    let mut taken = 0;
    while tokio::time::timeout(Duration::from_millis(200), stream.write_all(&record)).await.is_ok() {
        taken += record.len();
        assert!(taken < 512 * 1024, "it takes without end");
    }
    assert!(taken > 64 * 1024);
}

/// Both full at once: the application waits for room while the web server writes, and goes on when it reads.
#[tokio::test]
async fn an_echo_against_a_web_server_that_writes_first_goes_on_when_it_reads() {
    let (mut client, _served) = connect(echo, config());
    let id = client.post("/", 1 << 20, true);
    client.end.stdin(id, vec![7; 1 << 20].into());
    client.end.end_stdin(id);
    let _ = tokio::time::timeout(
        Duration::from_millis(100),
        std::future::poll_fn(|cx| {
            while !client.end.output().is_empty() {
                let written = tokio_util::io::poll_write_buf(Pin::new(&mut client.stream), cx, client.end.output());
                if written.is_pending() {
                    return Poll::Pending;
                }
            }
            Poll::Ready(())
        }),
    )
    .await;
    assert!(!client.end.output().is_empty(), "nothing was held up");
    assert_eq!(client.answer(id).await.body().len(), 1 << 20);
}

/// A body whose close takes longer than anybody waits.
struct NeverCloses(UnboundedSender<&'static str>);

impl Frames for NeverCloses {
    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        Poll::Pending
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let _ = self.0.send("closing");
        Poll::Pending
    }
}

impl Drop for NeverCloses {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_that_takes_too_long_is_given_up_even_while_output_is_held_up() {
    let (sender, mut news) = unbounded_channel();
    let application = move |environ: Environ, start_response: StartResponse| {
        let sender = sender.clone();
        async move {
            let mut write = start_response.start("200 OK", PLAIN)?;
            write.write("x").await?;
            Ok::<_, Error>(match environ.path_info() {
                b"/large" => Body::stream(tokio_stream::iter(std::iter::repeat(Bytes::from(vec![0; 50_000])))),
                _ => Body::frames(NeverCloses(sender)),
            })
        }
    };
    let (mut client, _served) = connect(application, Config { write_timeout: Duration::from_secs(3600), ..config() });
    let id = client.get("/", true);
    client.wait_for(id, "x").await;
    client.get("/large", true);
    client.flush().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    put_abort(&mut client, id).await;
    assert_eq!(news.recv().await, Some("closing"));
    let began = tokio::time::Instant::now();
    while news.recv().await != Some("dropped") {}
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

// ---- Time limits ----

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_after_the_first_byte_timeout() {
    let began = tokio::time::Instant::now();
    let (mut client, served) = connect(hello, config());
    assert!(matches!(client.event().await, Ok(None)));
    assert_eq!(began.elapsed().as_secs(), 30);
    assert!(matches!(served.await.unwrap(), Err(ConnectionError::TimedOut { .. })));
}

#[tokio::test(start_paused = true)]
async fn half_a_head_is_closed_after_the_params_timeout() {
    let bytes = request(1, true, &[("A", "b")]);
    for cut in [1, 8, 16, 20, 30] {
        let began = tokio::time::Instant::now();
        let (mut client, served) = connect(hello, config());
        tokio::time::sleep(Duration::from_secs(10)).await;
        client.stream.write_all(&bytes[..cut]).await.unwrap();
        assert!(matches!(client.event().await, Ok(None)));
        assert_eq!(began.elapsed().as_secs(), 40, "cut at {cut}");
        assert!(matches!(served.await.unwrap(), Err(ConnectionError::TimedOut { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_has_its_idle_time_after_every_request() {
    let (mut client, served) = connect(hello, config());
    for pause in [20, 20, 100, 170, 179, 179] {
        let id = client.get("/", true);
        assert!(client.answer_patiently(id).await.is_complete());
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
    let id = client.get("/", true);
    assert!(client.answer_patiently(id).await.is_complete());
    let began = tokio::time::Instant::now();
    assert!(matches!(client.event().await, Ok(None)));
    assert_eq!(began.elapsed().as_secs(), 180);
    // Nothing went wrong: it was not used.
    served.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_ends_the_connection_after_the_write_timeout() {
    let (news, mut receiver) = unbounded_channel();
    let application = move |environ: Environ, start_response: StartResponse| {
        let news = news.clone();
        async move {
            let _dropped = Dropped(environ.cancellation(), news);
            let mut write = start_response.start("200 OK", PLAIN)?;
            loop {
                write.write(vec![0; 50_000]).await?;
            }
            #[expect(unreachable_code, reason = "it says what the application returns")]
            Ok::<_, Error>("")
        }
    };
    let (mut client, served) = connect(application, config());
    client.get("/", true);
    client.flush().await;
    let began = tokio::time::Instant::now();
    assert!(matches!(served.await.unwrap(), Err(ConnectionError::TimedOut { .. })));
    assert!((60..=61).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(receiver.recv().await, Some(true));
}

#[tokio::test(start_paused = true)]
async fn an_application_may_take_its_time() {
    let application = |_: Environ, start_response: StartResponse| async move {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        start_response.start("200 OK", PLAIN)?;
        Ok::<_, Error>("late")
    };
    let (mut client, _served) = connect(application, config());
    let id = client.get("/", true);
    assert_eq!(client.answer_patiently(id).await.body(), b"late");
}

// ---- Listeners ----

struct Server {
    stop: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
    endpoint: Endpoint,
    _folder: tempfile::TempDir,
}

async fn start(application: impl Application, config: Config) -> Server {
    let folder = tempfile::tempdir().unwrap();
    start_at(Endpoint::Unix(folder.path().join("a.sock")), folder, application, config).await
}

async fn start_at(
    endpoint: Endpoint,
    folder: tempfile::TempDir,
    application: impl Application,
    config: Config,
) -> Server {
    let listener = Listener::bind(&endpoint, &ListenOptions::default()).await.unwrap();
    let endpoint = listener.endpoint();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(listener, application, config, stop.clone().cancelled_owned()));
    Server { stop, served, endpoint, _folder: folder }
}

impl Server {
    async fn connect(&self) -> Client<UnixStream> {
        let Endpoint::Unix(path) = &self.endpoint else { panic!("no path") };
        Client::new(UnixStream::connect(path).await.unwrap())
    }
}

#[tokio::test]
async fn a_draining_server_finishes_what_runs_and_answers_what_arrives() {
    let (application, notify) = slow_or_fast();
    let server = start(application, Config { shutdown_idle_timeout: Duration::from_millis(400), ..config() }).await;
    let (mut running, mut kept, mut silent) = (server.connect().await, server.connect().await, server.connect().await);
    let slow = running.get("/slow", true);
    running.flush().await;
    let id = kept.get("/1", true);
    assert!(kept.answer(id).await.is_complete());
    server.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let Endpoint::Unix(path) = &server.endpoint else { panic!("no path") };
    assert!(UnixStream::connect(path).await.is_err(), "it still accepts");
    let id = kept.get("/2", true);
    assert!(kept.answer(id).await.is_complete());
    assert!(kept.is_closed().await);
    assert!(silent.is_closed().await);
    assert!(!server.served.is_finished());
    notify.notify_one();
    assert!(running.answer(slow).await.is_complete());
    assert!(running.is_closed().await);
    soon(server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shutdown_cuts_what_runs_past_its_limit() {
    let (application, mut news) = waits(true);
    let server = start(application, Config { shutdown_timeout: Duration::from_millis(300), ..config() }).await;
    let mut client = server.connect().await;
    let id = client.get("/", true);
    client.wait_for(id, "begun").await;
    server.stop.cancel();
    soon(server.served).await.unwrap().unwrap();
    assert_eq!((news.recv().await, news.recv().await), (Some(false), Some(true)));
    assert_eq!(client.answer(id).await.end, None);
}

#[tokio::test]
async fn the_longest_time_there_is_is_no_limit() {
    let (application, notify) = slow_or_fast();
    let longest = Duration::MAX;
    let config = Config {
        first_byte_timeout: longest,
        params_timeout: longest,
        idle_timeout: longest,
        write_timeout: longest,
        linger_timeout: longest,
        close_timeout: longest,
        shutdown_timeout: longest,
        ..config()
    };
    let server = start(application, config).await;
    let mut running = server.connect().await;
    // From here on the connection is one of those that are finished.
    let fast = running.get("/fast", true);
    assert!(running.answer(fast).await.is_complete());
    let slow = running.get("/slow", true);
    running.flush().await;
    server.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    notify.notify_one();
    assert!(running.answer(slow).await.is_complete());
    soon(server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn further_connections_wait_while_there_are_as_many_as_may_be() {
    let server = start(hello, Config { max_connections: 2, ..config() }).await;
    let (mut first, mut second, mut third) = (server.connect().await, server.connect().await, server.connect().await);
    for client in [&mut first, &mut second] {
        let id = client.get("/", true);
        assert!(client.answer(id).await.is_complete());
    }
    let id = third.get("/", true);
    third.flush().await;
    assert!(tokio::time::timeout(Duration::from_millis(200), third.event()).await.is_err());
    drop(first);
    assert!(third.answer(id).await.is_complete());
}

#[tokio::test]
async fn an_abstract_socket_serves_its_own_user() {
    let name = format!("gatespan-test-{}", std::process::id());
    let folder = tempfile::tempdir().unwrap();
    let (news, mut peers) = unbounded_channel();
    let application = move |environ: Environ, start_response: StartResponse| {
        let _ = news.send(environ.server().peer.clone());
        async move {
            start_response.start("200 OK", PLAIN)?;
            Ok::<_, Error>("ok")
        }
    };
    let _server = start_at(Endpoint::Abstract(name.clone()), folder, application, config()).await;
    let stream = tokio::net::UnixStream::connect(format!("\0{name}")).await.unwrap();
    let mut client = Client::new(stream);
    let id = client.get("/", true);
    assert!(client.answer(id).await.is_complete());
    let peer = peers.recv().await.unwrap();
    let own = rustix::process::geteuid().as_raw();
    let pid = i32::try_from(std::process::id()).unwrap();
    assert!(matches!(peer, Peer::Unix { uid: Some(uid), pid: Some(by) } if uid == own && by == pid), "{peer:?}");
}

#[tokio::test]
async fn an_address_outside_the_allow_list_is_not_answered() {
    for (allow, is_allowed) in [("127.0.0.1", true), ("::ffff:127.0.0.1", true), ("192.0.2.1", false), ("::1", false)] {
        let allow: IpAddr = allow.parse().unwrap();
        let tcp = Endpoint::Tcp { host: "127.0.0.1".into(), port: 0 };
        let server =
            start_at(tcp, tempfile::tempdir().unwrap(), hello, Config { allow: vec![allow], ..config() }).await;
        let Endpoint::Tcp { host, port } = &server.endpoint else { panic!("no port") };
        let address: SocketAddr = format!("{host}:{port}").parse().unwrap();
        let mut client = Client::new(TcpStream::connect(address).await.unwrap());
        let id = client.get("/", true);
        if is_allowed {
            assert!(client.answer(id).await.is_complete());
        } else {
            assert!(!matches!(soon(client.event()).await, Ok(Some(_))), "{allow} was served");
        }
    }
}

#[tokio::test]
async fn tcp_outside_loopback_needs_an_allow_list() {
    let any = Endpoint::Tcp { host: "0.0.0.0".into(), port: 0 };
    let listener = Listener::bind(&any, &ListenOptions::default()).await.unwrap();
    let refused = soon(serve(listener, hello, config(), std::future::pending())).await;
    assert!(matches!(&refused, Err(ServeError::AllowListRequired(_))), "{refused:?}");
    let listener = Listener::bind(&any, &ListenOptions::default()).await.unwrap();
    let allow = vec![IpAddr::from([192, 0, 2, 1])];
    soon(serve(listener, hello, Config { allow, ..config() }, std::future::ready(()))).await.unwrap();
}

// ---- Where the application is mounted ----

#[tokio::test]
async fn cve_2019_11043_the_path_is_split_bytewise_whatever_it_holds() {
    let long = format!("/app/{}", "x".repeat(60_000));
    let table: &[(&str, &str, &str, Option<(&str, &str)>)] = &[
        ("/app", "/app/page", "", Some(("/app", "/page"))),
        ("/app", "/app", "/page", Some(("/app", "/page"))),
        ("/app", "/app", "", Some(("/app", ""))),
        ("/app", "/app/", "", Some(("/app", "/"))),
        ("/app", "/app/a\nb", "", Some(("/app", "/a\\nb"))),
        ("/app", "/app/\r", "\n", Some(("/app", "/\\r\\n"))),
        ("/app", &long, "", Some(("/app", &long["/app".len()..]))),
        ("", "/a/b", "", Some(("", "/a/b"))),
        ("", "", "", Some(("", ""))),
        ("/app", "/apple", "", None),
        ("/app", "/ap", "", None),
        ("/app", "", "", None),
        ("/app", "/APP/x", "", None),
        // U+017F folds to s, U+212A to k: not here (CVE-2026-24895).
        ("/ask", "/a\u{17f}\u{212a}/x", "", None),
    ];
    for (mounted, script_name, path_info, expected) in table {
        let script = Some(mounted.as_bytes().to_vec());
        let (mut client, _served) = connect(variables, Config { script_name: script, ..config() });
        let id = client.begin(Role::Responder, true, &[("SCRIPT_NAME", script_name), ("PATH_INFO", path_info)]);
        client.end.end_stdin(id);
        let answer = client.answer(id).await;
        match expected {
            Some((script, path)) => {
                let text = answer.text();
                assert!(text.contains(&format!("\nSCRIPT_NAME={script}\n")), "{mounted} {script_name:.20} {text:.200}");
                assert!(text.contains(&format!("\nPATH_INFO={path}\n")), "{mounted} {script_name:.20} {text:.200}");
            }
            None => assert!(answer.text().starts_with("Status: 404 "), "{mounted} {script_name} {}", answer.text()),
        }
    }
}

/// For tests with a clock of their own, in which a limit of real time would be over at once.
impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn answer_patiently(&mut self, id: RequestId) -> Answer {
        while self.so_far(id).end.is_none() && self.step().await.expect("no reset") {}
        std::mem::take(self.so_far(id))
    }
}
