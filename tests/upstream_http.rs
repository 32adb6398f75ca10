//! The reverse proxy against real servers and bad ones: our own HTTP gateway, nginx, and scripted sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gatespan::address::Address;
use gatespan::application::driver::{Response, call};
use gatespan::application::{Errors, Frame, Headers, Input, Log, Variables};
use gatespan::gateway::http as gateway;
use gatespan::gateway::listener::{ListenOptions, Listener};
use gatespan::upstream::http::{Config, Failure, ForwardedFields, HostField, Proxy};
use gatespan::{Application, Body, Environ, Error, StartResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

mod support;
use support::client::{self, Client, Upload};
use support::pattern;
use support::process::{Scratch, Server, certificate, free_address, program};

const SECOND: Duration = Duration::from_secs(1);
/// How long anything here may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

async fn within<F: Future>(step: F) -> F::Output {
    tokio::time::timeout(PATIENCE, step).await.expect("it should not hang")
}

/// Serves an application on a port of its own for as long as the test runs.
fn serve(application: impl Application) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let listener = Listener::from_descriptor(listener.into(), 0).expect("it listens");
    tokio::spawn(gateway::serve(listener, application, gateway::Config::default(), std::future::pending()));
    address
}

fn proxy(address: SocketAddr, config: Config) -> Proxy {
    proxy_to(&format!("http://{address}"), config)
}

fn proxy_to(address: &str, config: Config) -> Proxy {
    Proxy::new(&address.parse::<Address>().expect("an address"), config).expect("a proxy")
}

fn request(pairs: &[(&str, &str)]) -> Environ {
    let usual = [
        ("REQUEST_METHOD", "GET"),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", "/"),
        ("SERVER_NAME", "example.org"),
        ("SERVER_PORT", "80"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("REMOTE_ADDR", "192.0.2.1"),
    ];
    Environ::new(usual.iter().chain(pairs).copied().collect::<Variables>())
}

fn get(path: &str) -> Environ {
    request(&[("PATH_INFO", path)])
}

fn post(body: Input) -> Environ {
    request(&[("REQUEST_METHOD", "POST")]).with_input(body)
}

async fn text_of(proxy: &Proxy, environ: Environ) -> Result<(u16, String), Error> {
    let Response { head, mut body } = within(call(proxy.clone(), environ)).await?;
    let text = within(body.read_to_end(1 << 20)).await?;
    Ok((head.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

/// A server that does with each connection what it is told, and counts them.
struct Scripted {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// All bytes that came.
    received: Arc<Mutex<Vec<u8>>>,
}

impl Scripted {
    /// Each connection answers its first request with the first text, the next with the second, and is then closed. Its first pause is
    /// for the head of the request.
    async fn new(answers: Vec<Vec<Reply>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (connections, received) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counter, bytes) = (connections.clone(), received.clone());
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let replies = answers.next().unwrap_or_default();
                tokio::spawn(play(stream, replies, bytes.clone()));
            }
        });
        Self { address, connections, received }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn received(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().expect("no test fails with it")).into_owned()
    }
}

/// What a scripted server does next.
#[derive(Clone)]
enum Reply {
    /// Reads until the end of a request's head.
    ReadHead,
    /// Reads until these bytes have come.
    ReadUntil(&'static str),
    Write(Vec<u8>),
    Sleep(Duration),
    /// Goes on forever without another word.
    Stall,
    /// Closes its sending half.
    Shutdown,
}

fn say(text: &str) -> Reply {
    Reply::Write(text.as_bytes().to_vec())
}

async fn play(mut stream: TcpStream, replies: Vec<Reply>, received: Arc<Mutex<Vec<u8>>>) {
    let mut unread: Vec<u8> = Vec::new();
    for reply in replies {
        match reply {
            Reply::ReadHead => read_until(&mut stream, &mut unread, "\r\n\r\n", &received).await,
            Reply::ReadUntil(end) => read_until(&mut stream, &mut unread, end, &received).await,
            Reply::Write(bytes) => drop(stream.write_all(&bytes).await),
            Reply::Sleep(time) => tokio::time::sleep(time).await,
            Reply::Stall => std::future::pending().await,
            Reply::Shutdown => drop(stream.shutdown().await),
        }
    }
}

async fn read_until(stream: &mut TcpStream, unread: &mut Vec<u8>, end: &str, received: &Mutex<Vec<u8>>) {
    loop {
        if let Some(at) = unread.windows(end.len()).position(|window| window == end.as_bytes()) {
            unread.drain(..at + end.len());
            return;
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                unread.extend_from_slice(&buffer[..read]);
                received.lock().expect("no test fails with it").extend_from_slice(&buffer[..read]);
            }
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok";

/// Says what it was asked.
async fn echo(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    let mut text = String::new();
    for (name, value) in environ.variables().iter() {
        text.push_str(&format!("{}={}\n", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
    }
    let body = environ.input().read_to_end(1 << 20).await?;
    text.push_str(&format!("body={}\n", String::from_utf8_lossy(&body)));
    start_response.start("207 As It Pleases", [("Content-Type", "text/plain"), ("X-Twice", "1"), ("X-Twice", "2")])?;
    Ok(text.into())
}

#[tokio::test]
async fn a_request_and_its_answer_pass_as_they_are() {
    let proxy = proxy(serve(echo), Config::default());
    let environ = request(&[
        ("REQUEST_METHOD", "POST"),
        ("PATH_INFO", "/a b/\u{fc}"),
        ("REQUEST_URI", "/a%20b/%C3%BC?x=%2F&y"),
        ("QUERY_STRING", "x=%2F&y"),
        ("HTTP_HOST", "client.example:8080"),
        ("HTTP_X_ODD", "\u{fc}"),
        ("HTTP_COOKIE", "a=1"),
        ("CONTENT_TYPE", "text/odd"),
        ("CONTENT_LENGTH", "4"),
    ])
    .with_input(Input::from_bytes("body"));
    let Response { head, mut body } = call(proxy, environ).await.unwrap();
    assert_eq!((head.status.code(), head.status.reason()), (207, &b"As It Pleases"[..]));
    assert_eq!(head.headers.all("via").collect::<Vec<_>>(), [b"1.1 gatespan"]);
    assert_eq!(head.headers.all("x-twice").collect::<Vec<_>>(), [b"1", b"2"]);
    let text = String::from_utf8(body.read_to_end(1 << 20).await.unwrap().into()).unwrap();
    for line in [
        "REQUEST_METHOD=POST",
        "PATH_INFO=/a b/\u{fc}",
        "REQUEST_URI=/a%20b/%C3%BC?x=%2F&y",
        "QUERY_STRING=x=%2F&y",
        "HTTP_HOST=client.example:8080",
        "HTTP_X_ODD=\u{fc}",
        "HTTP_COOKIE=a=1",
        "CONTENT_TYPE=text/odd",
        "CONTENT_LENGTH=4",
        "HTTP_X_FORWARDED_FOR=192.0.2.1",
        "HTTP_X_FORWARDED_PROTO=http",
        "HTTP_X_FORWARDED_HOST=client.example:8080",
        "HTTP_VIA=1.1 gatespan",
        "body=body",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("HTTP_CONNECTION"), "{text}");
}

#[tokio::test]
async fn every_kind_of_socket_is_reached() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("http.sock");
    let name = format!("gatespan-test-{}", std::process::id());
    for address in [format!("http:{}", path.display()), format!("http:@{name}")] {
        let Address::Http(endpoint) = address.parse().unwrap() else { panic!("an HTTP address") };
        let listener = Listener::bind(&endpoint, &ListenOptions::default()).await.unwrap();
        tokio::spawn(gateway::serve(listener, echo, gateway::Config::default(), std::future::pending()));
        let (status, text) = text_of(&proxy_to(&address, Config::default()), get("/")).await.unwrap();
        assert_eq!(status, 207, "{address}: {text}");
        assert!(text.contains("HTTP_HOST=example.org\n"), "{text}");
        let target = Config { host: HostField::Target, ..Config::default() };
        let (_, text) = text_of(&proxy_to(&address, target), get("/")).await.unwrap();
        assert!(text.contains("HTTP_HOST=localhost\n"), "{text}");
    }
}

#[tokio::test]
async fn addresses_of_anything_else_are_refused() {
    for address in ["fastcgi://127.0.0.1:1", "http:fd", "file:/x", "cgi:"] {
        assert!(Proxy::new(&address.parse().unwrap(), Config::default()).is_err(), "{address}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Scripted::new(vec![vec![Reply::ReadHead, say(OK), Reply::ReadHead, say(OK), Reply::Stall]]).await;
    let proxy = proxy(server.address, Config::default());
    for _ in 0..2 {
        assert_eq!(text_of(&proxy, get("/")).await.unwrap(), (200, "ok".into()));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_connection_is_closed_when_it_is_not_to_be_kept() {
    let answer = vec![Reply::ReadHead, say(OK), Reply::ReadUntil("never")];
    let server = Scripted::new(vec![answer.clone(), answer]).await;
    let proxy = proxy(server.address, Config { idle: 0, ..Config::default() });
    for _ in 0..2 {
        text_of(&proxy, get("/")).await.unwrap();
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_was_kept_too_long_is_not_used() {
    let answer = vec![Reply::ReadHead, say(OK), Reply::Stall];
    let server = Scripted::new(vec![answer.clone(), answer]).await;
    let proxy = proxy(server.address, Config { idle_time: Duration::from_millis(50), ..Config::default() });
    text_of(&proxy, get("/")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    text_of(&proxy, get("/")).await.unwrap();
    assert_eq!(server.connections(), 2);
}

/// The server keeps the connection, takes another request, and closes without a word.
fn dies_on_the_second_request() -> Vec<Vec<Reply>> {
    let dies = vec![Reply::ReadHead, say(OK), Reply::ReadHead];
    vec![dies, vec![Reply::ReadHead, say(OK), Reply::Stall]]
}

#[tokio::test]
async fn a_kept_connection_found_dead_costs_no_request_that_may_be_repeated() {
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        let server = Scripted::new(dies_on_the_second_request()).await;
        let proxy = proxy(server.address, Config::default());
        text_of(&proxy, get("/")).await.unwrap();
        let (status, _) = text_of(&proxy, request(&[("REQUEST_METHOD", method)])).await.unwrap();
        assert_eq!((status, server.connections()), (200, 2), "{method}");
    }
}

#[tokio::test]
async fn a_request_that_may_not_be_repeated_is_not() {
    for environ in [
        request(&[("REQUEST_METHOD", "POST")]),
        request(&[("REQUEST_METHOD", "PUT")]).with_input(Input::from_bytes("x")),
        request(&[("REQUEST_METHOD", "PATCH")]),
    ] {
        let server = Scripted::new(dies_on_the_second_request()).await;
        let proxy = proxy(server.address, Config::default());
        text_of(&proxy, get("/")).await.unwrap();
        let error = text_of(&proxy, environ).await.unwrap_err();
        assert_eq!((error.status(), server.connections()), (502, 1), "{error}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_meanwhile_costs_nothing_at_all() {
    let server = Scripted::new(vec![vec![Reply::ReadHead, say(OK)], vec![Reply::ReadUntil("body"), say(OK)]]).await;
    let proxy = proxy(server.address, Config::default());
    text_of(&proxy, get("/")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(text_of(&proxy, post(Input::from_bytes("body"))).await.unwrap().0, 200);
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_new_connection_that_dies_is_not_tried_again() {
    let server = Scripted::new(vec![vec![Reply::ReadHead]]).await;
    let error = text_of(&proxy(server.address, Config::default()), get("/")).await.unwrap_err();
    assert_eq!((error.status(), server.connections()), (502, 1));
    assert!(matches!(error.downcast_ref(), Some(Failure::Closed { .. })), "{error}");
}

#[tokio::test]
async fn bad_servers_are_502_and_504_with_their_cause() {
    let long_field = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let many_fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101));
    let table: Vec<(&str, Vec<Reply>, u16, &str)> = vec![
        ("silent", vec![Reply::Stall], 504, "not begun its answer"),
        ("slow", vec![say("HTTP/1.1 200 OK\r\nX: "), Reply::Stall], 504, "not begun its answer"),
        ("closes", vec![Reply::ReadHead], 502, "closed the connection"),
        ("closes within the head", vec![Reply::ReadHead, say("HTTP/1.1 200 OK\r\nX:")], 502, "closed the connection"),
        ("half-closes", vec![Reply::ReadHead, Reply::Shutdown, Reply::Stall], 502, "closed the connection"),
        ("garbage", vec![Reply::ReadHead, say("SSH-2.0-OpenSSH_9.2\r\n\r\n"), Reply::Stall], 502, "expected the head"),
        ("HTTP/0.9", vec![Reply::ReadHead, say("<html>hello</html>\r\n\r\n"), Reply::Stall], 502, "expected the head"),
        ("no status", vec![Reply::ReadHead, say("HTTP/1.1 OK\r\n\r\n"), Reply::Stall], 502, "expected the head"),
        (
            "a name with a blank",
            vec![Reply::ReadHead, say("HTTP/1.1 200 OK\r\nA B: c\r\n\r\n"), Reply::Stall],
            502,
            "expected the head",
        ),
        (
            "a field without a colon",
            vec![Reply::ReadHead, say("HTTP/1.1 200 OK\r\nAB\r\n\r\n"), Reply::Stall],
            502,
            "expected the head",
        ),
        (
            "NUL",
            vec![Reply::ReadHead, say("HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n"), Reply::Stall],
            502,
            "expected the head",
        ),
        (
            "a length that is none",
            vec![Reply::ReadHead, say("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), Reply::Stall],
            502,
            "expected the head",
        ),
        (
            "two lengths",
            vec![
                Reply::ReadHead,
                say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
                Reply::Stall,
            ],
            502,
            "expected the head",
        ),
        (
            "a coding that nobody asked for",
            vec![
                Reply::ReadHead,
                say("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
                Reply::Stall,
            ],
            502,
            "Transfer-Encoding",
        ),
        (
            "a field that nobody may pass on",
            vec![Reply::ReadHead, say("HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: c=d\r\n\r\n"), Reply::Stall],
            502,
            "expected",
        ),
        ("a long head", vec![Reply::ReadHead, say(&long_field), Reply::Stall], 502, "expected the head"),
        ("many fields", vec![Reply::ReadHead, say(&many_fields), Reply::Stall], 502, "expected the head"),
        (
            "101 unasked",
            vec![
                Reply::ReadHead,
                say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
                Reply::Stall,
            ],
            502,
            "",
        ),
    ];
    for (name, replies, status, cause) in table {
        let server = Scripted::new(vec![replies]).await;
        let proxy = proxy(server.address, Config { head_timeout: SECOND / 2, ..Config::default() });
        let start = Instant::now();
        let error = text_of(&proxy, get("/")).await.expect_err(name);
        assert_eq!(error.status(), status, "{name}: {error}");
        assert!(error.to_string().contains(cause), "{name}: {error}");
        assert!(start.elapsed() < PATIENCE / 2, "{name}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_502_and_one_that_takes_no_connection_504() {
    let gone = free_address();
    let error = text_of(&proxy(gone, Config::default()), get("/")).await.unwrap_err();
    assert_eq!(error.status(), 502);
    assert!(error.to_string().contains("refused"), "{error}");
    let error = text_of(&proxy_to("http:/nowhere/http.sock", Config::default()), get("/")).await.unwrap_err();
    assert_eq!(error.status(), 502, "{error}");

    // A listener with a queue of one that nobody accepts from: further connections are left unanswered.
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("full.sock");
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let config = Config { connect_timeout: SECOND / 5, ..Config::default() };
    let error = text_of(&proxy_to(&format!("http:{}", path.display()), config), get("/")).await.unwrap_err();
    assert_eq!(error.status(), 504, "{error}");
    assert!(matches!(error.downcast_ref(), Some(Failure::ConnectTimeout { .. })), "{error}");
}

#[tokio::test]
async fn an_answer_that_stops_is_cut() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let table: Vec<(&str, Vec<Reply>, &str)> = vec![
        ("shorter than its length", vec![Reply::ReadHead, say(head)], "expected the rest"),
        ("chunks without an end", vec![Reply::ReadHead, say(chunked)], "expected the rest"),
        ("a bad chunk", vec![Reply::ReadHead, say(chunked), say("zz\r\n"), Reply::Stall], "expected the rest"),
        ("silence", vec![Reply::ReadHead, say(head), Reply::Stall], "not gone on"),
        ("chunks, then silence", vec![Reply::ReadHead, say(chunked), Reply::Stall], "not gone on"),
    ];
    for (name, replies, cause) in table {
        let server = Scripted::new(vec![replies]).await;
        let proxy = proxy(server.address, Config { read_timeout: SECOND / 2, ..Config::default() });
        let Response { head, mut body } = within(call(proxy, get("/"))).await.expect(name);
        assert_eq!(head.status.code(), 200);
        let error = within(body.read_to_end(99)).await.expect_err(name);
        assert!(error.to_string().contains(cause), "{name}: {error}");
    }
}

#[tokio::test]
async fn of_chunks_and_a_length_the_chunks_count() {
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let server = Scripted::new(vec![vec![Reply::ReadHead, say(both), Reply::Stall]]).await;
    let response = within(call(proxy(server.address, Config::default()), get("/"))).await.unwrap();
    assert!(!response.head.headers.contains("Content-Length"), "{:?}", response.head);
    let mut body = response.body;
    assert_eq!(within(body.read_to_end(99)).await.unwrap(), "hello");
}

/// How much goes through when nobody reads at the other end, of what would be 64 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_takes_nothing_stops_the_other() {
    const MANY: usize = 1024;
    const MOST: usize = 24 << 20;
    let (sent, counter) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = sent.clone();
    let endless = move |_: Environ, start_response: StartResponse| {
        let count = count.clone();
        async move {
            start_response.start("200 OK", ())?;
            let pieces = (0..MANY).map(move |_| {
                count.fetch_add(64 << 10, Ordering::SeqCst);
                Bytes::from(vec![0; 64 << 10])
            });
            Ok::<_, Error>(Body::iter(pieces))
        }
    };
    let mut response = within(call(proxy(serve(endless), Config::default()), get("/"))).await.unwrap();
    let mut received = within(data(&mut response)).await.unwrap().len();
    tokio::time::sleep(SECOND).await;
    assert!(sent.load(Ordering::SeqCst) < MOST, "{} bytes of an answer were taken", sent.load(Ordering::SeqCst));
    while let Some(data) = within(data(&mut response)).await {
        received += data.len();
    }
    assert_eq!(received, 64 << 20);

    let server = Scripted::new(vec![vec![Reply::ReadHead, Reply::Stall]]).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let taken = counter.clone();
    tokio::spawn(async move {
        while sender.send(Bytes::from(vec![0; 64 << 10])).await.is_ok() {
            taken.fetch_add(64 << 10, Ordering::SeqCst);
        }
    });
    let uploading = tokio::spawn(call(
        proxy(server.address, Config::default()),
        post(Input::from_source(Channel(receiver), Some(1 << 30))),
    ));
    tokio::time::sleep(SECOND).await;
    assert!(counter.load(Ordering::SeqCst) < MOST, "{} bytes of an upload were taken", counter.load(Ordering::SeqCst));
    uploading.abort();
}

#[tokio::test]
async fn no_more_connections_are_kept_than_may_be() {
    let answers = [Reply::ReadHead, Reply::Sleep(SECOND / 5), say(OK)];
    let server = Scripted::new(vec![[answers.clone(), answers].concat(); 4]).await;
    let proxy = proxy(server.address, Config { idle: 1, ..Config::default() });
    for connections in [2, 3] {
        let (first, second) = tokio::join!(text_of(&proxy, get("/1")), text_of(&proxy, get("/2")));
        assert_eq!((first.unwrap().0, second.unwrap().0), (200, 200));
        assert_eq!(server.connections(), connections);
    }
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection() {
    let server = Scripted::new(vec![vec![Reply::ReadHead, say("HTTP/1.0 200 OK\r\n\r\nhello")]]).await;
    assert_eq!(text_of(&proxy(server.address, Config::default()), get("/")).await.unwrap(), (200, "hello".into()));
}

#[tokio::test]
async fn the_whole_exchange_has_a_limit_of_its_own() {
    let drip: Vec<Reply> = [Reply::ReadHead, say("HTTP/1.1 200 OK\r\n\r\n")]
        .into_iter()
        .chain((0..100).flat_map(|_| [say("x"), Reply::Sleep(SECOND / 10)]))
        .collect();
    let server = Scripted::new(vec![drip, vec![Reply::Stall]]).await;
    let proxy = proxy(server.address, Config { timeout: Some(SECOND), ..Config::default() });
    let mut response = within(call(proxy.clone(), get("/"))).await.unwrap();
    let error = within(response.body.read_to_end(999)).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Failure::Timeout { .. })), "{error}");
    let error = text_of(&proxy, get("/")).await.unwrap_err();
    assert_eq!(error.status(), 504);
    assert!(matches!(error.downcast_ref(), Some(Failure::Timeout { .. })), "{error}");
}

/// Both bodies at once: each piece is answered before the next is sent.
#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    async fn ping_pong(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        start_response.start("200 OK", [("Content-Type", "text/plain")])?;
        let mut environ = environ;
        let input = environ.take_input();
        Ok(Body::stream(input))
    }
    let proxy = proxy(serve(ping_pong), Config::default());
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let environ = request(&[("REQUEST_METHOD", "POST")]).with_input(Input::from_source(Channel(receiver), None));
    let piece = |round| Bytes::from(format!("piece {round}"));
    // The head comes with the first piece.
    sender.send(piece(0)).await.unwrap();
    let mut response = within(call(proxy, environ)).await.unwrap();
    for round in 0..20 {
        assert_eq!(within(data(&mut response)).await, Some(piece(round)));
        sender.send(piece(round + 1)).await.unwrap();
    }
    assert_eq!(within(data(&mut response)).await, Some(piece(20)));
    drop(sender);
    assert_eq!(within(data(&mut response)).await, None);
}

async fn data(response: &mut Response) -> Option<Bytes> {
    loop {
        match response.body.next().await?.unwrap() {
            Frame::Data(data) => return Some(data),
            _ => continue,
        }
    }
}

/// An input whose pieces a test sends.
struct Channel(tokio::sync::mpsc::Receiver<Bytes>);

impl gatespan::application::Source for Channel {
    fn poll_chunk(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Bytes, gatespan::application::InputError>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}

#[tokio::test]
async fn a_client_that_takes_its_time_with_its_body_is_not_the_server_s_delay() {
    let server =
        Scripted::new(vec![vec![Reply::ReadUntil("0\r\n\r\n"), say(OK)], vec![Reply::ReadUntil("x"), Reply::Stall]])
            .await;
    let proxy = proxy(server.address, Config { head_timeout: SECOND / 2, ..Config::default() });
    let upload = |pause: Duration| {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        tokio::spawn(async move {
            for _ in 0..3 {
                tokio::time::sleep(pause).await;
                let _ = sender.send(Bytes::from_static(b"x")).await;
            }
        });
        request(&[("REQUEST_METHOD", "POST")]).with_input(Input::from_source(Channel(receiver), None))
    };
    assert_eq!(text_of(&proxy, upload(SECOND * 3 / 4)).await.unwrap().0, 200);
    // Once the body is there, the server's time runs.
    let error = text_of(&proxy, upload(Duration::ZERO)).await.unwrap_err();
    assert_eq!(error.status(), 504, "{error}");
}

/// FastCGI has no other way to say that there is no body than to end it.
#[tokio::test]
async fn a_body_without_a_length_that_has_nothing_is_none() {
    let answer = vec![Reply::ReadHead, say(OK)];
    let server = Scripted::new(vec![answer.clone(), answer]).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    drop(sender);
    let environ = get("/").with_input(Input::from_source(Channel(receiver), None));
    assert_eq!(text_of(&proxy(server.address, Config::default()), environ).await.unwrap().0, 200);
    assert!(!server.received().to_ascii_lowercase().contains("transfer-encoding"), "{}", server.received());

    let address = serve(echo);
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    sender.send(Bytes::from_static(b"one ")).await.unwrap();
    tokio::spawn(async move { sender.send(Bytes::from_static(b"two")).await });
    let environ = get("/").with_input(Input::from_source(Channel(receiver), None));
    let (_, text) = text_of(&proxy(address, Config::default()), environ).await.unwrap();
    assert!(text.contains("body=one two\n"), "{text}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_client_s_fault() {
    let server = Scripted::new(vec![vec![Reply::ReadUntil("never"), Reply::Stall]]).await;
    let proxy = proxy(server.address, Config::default());
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    sender.send(Bytes::from_static(b"abc")).await.unwrap();
    drop(sender);
    let error = text_of(&proxy, post(Input::from_source(Channel(receiver), Some(10)))).await.unwrap_err();
    assert_eq!(error.status(), 400, "{error}");
    assert!(error.to_string().contains("CONTENT_LENGTH announced 10"), "{error}");
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_is_read() {
    let early = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!";
    let server = Scripted::new(vec![vec![Reply::ReadHead, say(early), Reply::ReadUntil("never")]]).await;
    let proxy = proxy(server.address, Config::default());
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let environ = post(Input::from_source(Channel(receiver), Some(1 << 30)));
    assert_eq!(text_of(&proxy, environ).await.unwrap(), (413, "no!".into()));
    // The upload is given up with the answer.
    within(sender.closed()).await;
}

#[tokio::test]
async fn a_body_waits_for_the_server_s_100_continue() {
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    let server = Scripted::new(vec![
        vec![Reply::ReadHead, say(go_on), Reply::ReadUntil("body"), say(OK), Reply::Stall],
        vec![Reply::ReadHead, Reply::ReadUntil("body"), say(OK)],
    ])
    .await;
    let expecting = |config: Config| {
        let environ = request(&[("REQUEST_METHOD", "POST"), ("HTTP_EXPECT", "100-Continue")]);
        let proxy = proxy(server.address, config);
        async move { text_of(&proxy, environ.with_input(Input::from_bytes("body"))).await }
    };
    let patient = Config { expect_timeout: PATIENCE * 2, ..Config::default() };
    assert_eq!(expecting(patient).await.unwrap().0, 200);
    assert!(server.received().to_ascii_lowercase().contains("expect: 100-continue"));
    // A server that knows nothing of it gets the body after a while.
    let impatient = Config { expect_timeout: SECOND / 4, ..Config::default() };
    assert_eq!(expecting(impatient).await.unwrap().0, 200);
}

#[tokio::test]
async fn a_server_that_refuses_an_expectation_never_gets_the_body() {
    let refuses = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno";
    let server = Scripted::new(vec![vec![Reply::ReadHead, say(refuses), Reply::ReadUntil("body")]]).await;
    let proxy = proxy(server.address, Config { expect_timeout: PATIENCE * 2, ..Config::default() });
    let environ = request(&[("REQUEST_METHOD", "POST"), ("HTTP_EXPECT", "100-continue")]);
    assert_eq!(text_of(&proxy, environ.with_input(Input::from_bytes("body"))).await.unwrap().0, 401);
    tokio::time::sleep(SECOND / 10).await;
    assert!(!server.received().contains("body"), "{}", server.received());
}

#[tokio::test]
async fn trailers_pass_to_a_client_that_takes_them() {
    let answer =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n";
    let server = Scripted::new(vec![vec![Reply::ReadHead, say(answer), Reply::Stall]]).await;
    let mut response =
        within(call(proxy(server.address, Config::default()), request(&[("HTTP_TE", "trailers")]))).await.unwrap();
    let mut trailers = Headers::new();
    while let Some(frame) = within(response.body.next()).await {
        if let Frame::Trailers(fields) = frame.unwrap() {
            trailers = fields;
        }
    }
    assert_eq!(trailers.get("X-Sum"), Some(&b"7"[..]));
    assert!(server.received().to_ascii_lowercase().contains("te: trailers"));
}

#[tokio::test]
async fn what_belongs_to_the_server_s_connection_stays_on_it() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nStatus: 500 Odd\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Kept: 1\r\n\r\nok";
    let server = Scripted::new(vec![vec![Reply::ReadHead, say(answer), Reply::Stall]]).await;
    let response = within(call(proxy(server.address, Config::default()), get("/"))).await.unwrap();
    let names: Vec<_> =
        response.head.headers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(response.head.status.code(), 200);
    for gone in ["connection", "x-hop", "keep-alive", "status", "proxy-authenticate", "upgrade"] {
        assert!(!names.iter().any(|name| name == gone), "{gone} is in {names:?}");
    }
    assert!(names.iter().any(|name| name == "x-kept"));
}

#[tokio::test]
async fn answers_without_a_body_are_over_with_their_head() {
    for (method, answer, status) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", 304),
        ("POST", "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201),
    ] {
        let replies = vec![Reply::ReadHead, say(answer), Reply::ReadHead, say(OK), Reply::Stall];
        let server = Scripted::new(vec![replies]).await;
        let proxy = proxy(server.address, Config::default());
        let (code, text) = text_of(&proxy, request(&[("REQUEST_METHOD", method)])).await.unwrap();
        assert_eq!((code, &*text), (status, ""), "{method}");
        // The next answer is the next request's.
        assert_eq!(text_of(&proxy, get("/")).await.unwrap(), (200, "ok".into()), "{method} {status}");
        assert_eq!(server.connections(), 1, "{method} {status}");
    }
}

#[tokio::test]
async fn no_answer_reaches_another_request() {
    // More than was asked for comes on the connection: it is not an answer to what is asked next.
    let smuggled = format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    let server =
        Scripted::new(vec![vec![Reply::ReadHead, say(&smuggled), Reply::Stall], vec![Reply::ReadHead, say(OK)]]).await;
    let proxy = proxy(server.address, Config::default());
    assert_eq!(text_of(&proxy, get("/1")).await.unwrap().1, "ok");
    tokio::time::sleep(SECOND / 10).await;
    assert_eq!(text_of(&proxy, get("/2")).await.unwrap().1, "ok");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_to_its_end_closes_its_connection() {
    let endless = vec![
        Reply::ReadHead,
        say("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx"),
        Reply::ReadUntil("GET /2"),
        say(OK),
    ];
    let server = Scripted::new(vec![endless, vec![Reply::ReadHead, say(OK), Reply::Stall]]).await;
    let proxy = proxy(server.address, Config::default());
    let mut response = within(call(proxy.clone(), get("/1"))).await.unwrap();
    within(response.body.next()).await.unwrap().unwrap();
    response.body.close().await;
    drop(response);
    assert_eq!(text_of(&proxy, get("/2")).await.unwrap().1, "ok");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn so_many_at_once_so_many_in_the_queue_and_503_for_the_rest() {
    let server = Scripted::new(vec![vec![Reply::ReadHead, Reply::Stall]]).await;
    let config = Config { connections: 1, queue: 1, queue_wait: SECOND / 4, ..Config::default() };
    let proxy = proxy(server.address, config);
    let mut first = Box::pin(call(proxy.clone(), get("/1")));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut second = Box::pin(call(proxy.clone(), get("/2")));
    assert!(futures_util::poll!(&mut second).is_pending());
    let error = text_of(&proxy, get("/3")).await.unwrap_err();
    assert_eq!(error.status(), 503);
    assert!(matches!(error.downcast_ref(), Some(Failure::Busy { .. })), "{error}");
    assert_eq!(error.retry_after(), Some(5));
    let error = within(second).await.unwrap_err();
    assert_eq!((error.status(), error.retry_after()), (503, Some(5)));
    assert!(matches!(error.downcast_ref(), Some(Failure::QueueTimeout { .. })), "{error}");
}

/// Lines of requests' logs.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Log for Lines {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().expect("no test fails with it").extend_from_slice(bytes);
    }
}

#[tokio::test]
async fn through_the_gateway_a_failure_is_a_page_and_one_line_under_one_id() {
    let gone = free_address();
    let lines = Lines::default();
    let config = gateway::Config { errors: Errors::new(Arc::new(lines.clone())), ..gateway::Config::default() };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Listener::from_descriptor(listener.into(), 0).unwrap();
    tokio::spawn(gateway::serve(listener, proxy(gone, Config::default()), config, std::future::pending()));
    let answer = client::get(address, "/").await.unwrap();
    assert_eq!(answer.status, 502);
    let id = answer.text().lines().last().unwrap().strip_prefix("request ").unwrap().to_owned();
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains(&id) && log.contains("can't be reached") && log.contains("refused"), "{log}");
}

#[tokio::test]
async fn a_wish_for_websocket_passes_where_the_gateway_can_carry_it_and_one_for_h2c_nowhere() {
    let proxy = proxy(serve(echo), Config::default());
    let error =
        text_of(&proxy, request(&[("HTTP_CONNECTION", "upgrade"), ("HTTP_UPGRADE", "websocket")])).await.unwrap_err();
    assert_eq!(error.status(), 501);
    assert!(matches!(error.downcast_ref(), Some(Failure::Upgrade(_))), "{error}");
    let address = serve(proxy);
    let mut client = Client::connect(address).await.unwrap();
    let upgrade = |to| [("Connection", "Upgrade"), ("Upgrade", to), ("Sec-WebSocket-Version", "13")];
    let answer = client.send("GET", "/", &upgrade("websocket"), Upload::Nothing).await.unwrap();
    // That server knows no other protocol, and answers as ever.
    assert_eq!((answer.status, answer.line("HTTP_UPGRADE").as_deref()), (207, Some("websocket")));
    let mut client = Client::connect(address).await.unwrap();
    let answer = client.send("GET", "/", &upgrade("h2c"), Upload::Nothing).await.unwrap();
    assert_eq!(answer.status, 207, "{}", answer.text());
    assert_eq!(answer.line("HTTP_UPGRADE"), None);
}

#[tokio::test]
async fn smuggled_requests_reach_nobody() {
    let backend = Scripted::new(vec![vec![Reply::ReadHead, say(OK), Reply::Stall]; 20]).await;
    let address = serve(proxy(backend.address, Config::default()));
    for attack in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 5\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(attack.as_bytes()).await.unwrap();
        let mut answer = vec![0; 64];
        let read = within(stream.read(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400") || read == 0, "{attack:?}: {answer:?}");
    }
    // Both lengths: the chunks count, the number does not travel on, and what comes after is not a request of the connection's.
    let both =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(both.as_bytes()).await.unwrap();
    let mut answer = vec![0; 64];
    within(stream.read(&mut answer)).await.unwrap();
    let received = backend.received();
    assert!(!received.contains("smuggled"), "{received}");
    if received.contains("POST") {
        let lower = received.to_ascii_lowercase();
        assert!(lower.contains("transfer-encoding: chunked") && !lower.contains("content-length: 3"), "{received}");
    }
}

#[tokio::test]
async fn header_names_with_underscores_and_proxy_do_not_pass() {
    let address = serve(proxy(serve(echo), Config { forwarded: ForwardedFields::Off, ..Config::default() }));
    let mut client = Client::connect(address).await.unwrap();
    let headers = [("Proxy", "http://evil"), ("Remote_User", "root"), ("Remote-User", "me")];
    let answer = client.send("GET", "/", &headers, Upload::Nothing).await.unwrap();
    assert_eq!(answer.line("HTTP_PROXY"), None);
    assert_eq!(answer.line("HTTP_REMOTE_USER").as_deref(), Some("me"));
}

/// nginx with what `locations` says.
fn nginx(scratch: &Scratch, server: &str) -> (Server, SocketAddr) {
    let address = free_address();
    let values = [("PORT", &*address.port().to_string()), ("SERVER", server)];
    let configuration = scratch.configuration("nginx/plain.conf", &values);
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-p").arg(scratch.path("")).arg("-c").arg(configuration);
    (Server::start(scratch, "nginx", command, &[]).ready_on(address), address)
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_is_forwarded_to() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("htdocs/big"), pattern::blocks(5 << 20).flatten().collect::<Vec<u8>>()).unwrap();
    scratch.write("htdocs/small", "small\n");
    let (_nginx, address) = nginx(&scratch, "");
    let front = serve(proxy(address, Config::default()));
    let mut client = Client::connect(front).await.unwrap();
    for _ in 0..3 {
        let answer = client.get("/small").await.unwrap();
        assert_eq!((answer.status, &*answer.text()), (200, "small\n"));
        let ranged = client.send("GET", "/big", &[("Range", "bytes=100-199")], Upload::Nothing).await.unwrap();
        assert_eq!((ranged.status, ranged.length), (206, 100));
        let head = client.send("HEAD", "/big", &[], Upload::Nothing).await.unwrap();
        assert_eq!((head.status, head.values("content-length")), (200, vec![(5 << 20).to_string()]));
        let etag = answer.values("etag").remove(0);
        let known = client.send("GET", "/small", &[("If-None-Match", &etag)], Upload::Nothing).await.unwrap();
        assert_eq!(known.status, 304);
        let missing = client.get("/missing").await.unwrap();
        assert_eq!((missing.status, &*missing.reason), (404, "Not Found"));
        let direct = client::get(address, "/big").await.unwrap();
        let big = client.get("/big").await.unwrap();
        assert_eq!((big.cut, big.length, big.sha256), (None, 5 << 20, direct.sha256));
    }
}

#[cfg(feature = "upstream-https")]
#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_server_s_certificate_counts() {
    let scratch = Scratch::new();
    scratch.write("htdocs/small", "small\n");
    let (key, certificate) = certificate(&scratch, "test.example");
    let secure = free_address();
    let server = format!(
        "listen 127.0.0.1:{} ssl; ssl_certificate {}; ssl_certificate_key {};",
        secure.port(),
        certificate.display(),
        key.display()
    );
    let (_nginx, _) = nginx(&scratch, &server);
    let target = format!("https://{secure}");
    let named =
        |name: &str| Config { ca_file: Some(certificate.clone()), server_name: Some(name.into()), ..Config::default() };
    let proxy = proxy_to(&target, named("test.example"));
    for _ in 0..3 {
        assert_eq!(text_of(&proxy, get("/small")).await.unwrap(), (200, "small\n".into()));
    }
    for config in [named("other.example"), Config { server_name: Some("test.example".into()), ..Config::default() }] {
        let error = text_of(&proxy_to(&target, config), get("/small")).await.unwrap_err();
        assert_eq!(error.status(), 502);
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    let missing = Config { ca_file: Some("/nowhere.pem".into()), ..Config::default() };
    assert!(Proxy::new(&target.parse().unwrap(), missing).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_and_a_large_answer_pass_whole() {
    async fn mirror(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        start_response.start("200 OK", [("Content-Type", "application/octet-stream")])?;
        Ok(Body::stream(environ.take_input()))
    }
    let front = serve(proxy(serve(mirror), Config::default()));
    for upload in [Upload::Sized(20 << 20), Upload::Chunked(20 << 20)] {
        let mut client = Client::connect(front).await.unwrap();
        let answer = client.send("POST", "/", &[], upload.clone()).await.unwrap();
        assert_eq!((answer.status, answer.cut, answer.length), (200, None, 20 << 20), "{upload:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_connection_to_the_server() {
    let closed = Arc::new(tokio::sync::Notify::new());
    // The application's future is dropped with its client: what it held tells.
    struct Told(Arc<tokio::sync::Notify>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let told = closed.clone();
    let holds = move |_: Environ, _: StartResponse| {
        let told = Told(told.clone());
        async move {
            let _told = told;
            std::future::pending::<Result<Body, Error>>().await
        }
    };
    let front = serve(proxy(serve(holds), Config::default()));
    let mut stream = TcpStream::connect(front).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(SECOND / 5).await;
    drop(stream);
    within(closed.notified()).await;
}

/// Kept connections change hands all the time here, and a third of the requests are given up at some point.
#[tokio::test(flavor = "multi_thread")]
async fn answers_stay_with_their_requests_while_clients_come_and_go() {
    async fn named(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let name = environ.target().into_owned();
        start_response.start("200 OK", [("Content-Type", "text/plain")])?;
        Ok(Body::iter((0..50).map(move |_| Bytes::from(name.clone()))))
    }
    let proxy = proxy(serve(named), Config { idle: 4, connections: 8, ..Config::default() });
    let requests: Vec<_> = (0..300)
        .map(|number| {
            let proxy = proxy.clone();
            tokio::spawn(async move {
                let path = format!("/{number:03}");
                let mut response = within(call(proxy, get(&path))).await.unwrap();
                if number % 3 == 0 {
                    // Some pieces, and then no more.
                    for _ in 0..number % 5 {
                        within(response.body.next()).await;
                    }
                    return;
                }
                let body = within(response.body.read_to_end(1 << 20)).await.unwrap();
                assert_eq!(body, path.repeat(50));
            })
        })
        .collect();
    for request in requests {
        within(request).await.unwrap();
    }
}
