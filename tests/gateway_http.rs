//! The HTTP gateway from its clients' side: raw bytes over a pipe in memory where the bytes count, hyper's client and real
//! sockets elsewhere.
#![cfg(feature = "http")]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gatespan::application::{
    Application, Body, Environ, Error, Errors, Frame, Frames, Headers, Log, Peer, StartResponse,
};
use gatespan::gateway::http::{Config, ConnectionError, Gateway, serve, serve_connection};
use gatespan::gateway::listener::Listener;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

const CLIENT: &str = "192.0.2.7:50000";
const SERVER: &str = "192.0.2.1:8080";

/// A connection to an application.
struct Client {
    stream: DuplexStream,
    server: tokio::task::JoinHandle<Result<(), ConnectionError>>,
    stop: CancellationToken,
}

fn connect<A: Application>(application: A, config: Config) -> Client {
    connect_to(&Arc::new(Gateway::new(application, config)))
}

fn connect_to<A: Application>(gateway: &Arc<Gateway<A>>) -> Client {
    connect_through(gateway, 64 << 10)
}

/// With a pipe that holds that many bytes.
fn connect_through<A: Application>(gateway: &Arc<Gateway<A>>, capacity: usize) -> Client {
    let (stream, other) = tokio::io::duplex(capacity);
    let stop = CancellationToken::new();
    let (gateway, stopped) = (gateway.clone(), stop.clone());
    let server = tokio::spawn(async move {
        let peer = Peer::Ip(CLIENT.parse().unwrap());
        serve_connection(other, peer, Some(SERVER.parse().unwrap()), &gateway, &stopped).await
    });
    Client { stream, server, stop }
}

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// All up to and with the first `end`.
    async fn read_until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            let byte = within(self.stream.read_u8()).await;
            read.push(byte.unwrap_or_else(|error| {
                panic!("expected {end:?}, got {error} after {:?}", String::from_utf8_lossy(&read))
            }));
        }
        String::from_utf8_lossy(&read).into_owned()
    }

    async fn read_to_end(&mut self) -> String {
        let mut read = Vec::new();
        within(self.stream.read_to_end(&mut read)).await.unwrap();
        String::from_utf8_lossy(&read).into_owned()
    }

    /// Sends a request that is its connection's last, and reads the answer.
    async fn ask(mut self, request: impl AsRef<[u8]>) -> String {
        self.send(request).await;
        self.read_to_end().await
    }
}

/// No test waits for longer than this for anything.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes more than 20 seconds")
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n")
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}")).1
}

fn quiet() -> Config {
    Config { errors: Errors::new(Arc::new(Discarded)), ..Config::default() }
}

struct Discarded;

impl Log for Discarded {
    fn write(&self, _: &[u8]) {}
}

/// Keeps what was written.
#[derive(Default)]
struct Kept(Mutex<String>);

impl Log for Kept {
    fn write(&self, text: &[u8]) {
        self.0.lock().unwrap().push_str(&String::from_utf8_lossy(text));
    }
}

/// An application that has a state: what a closure captures can't be lent to each of its calls.
fn with<T, F, R, B>(state: T, function: F) -> impl Application
where
    T: Clone + Send + Sync + 'static,
    F: Fn(T, Environ, StartResponse) -> R + Send + Sync + 'static,
    R: Future<Output = Result<B, Error>> + Send + 'static,
    B: Into<Body> + 'static,
{
    move |environ: Environ, start_response: StartResponse| function(state.clone(), environ, start_response)
}

async fn hello(_: Environ, start_response: StartResponse) -> Result<Bytes, Error> {
    start_response.start("200 OK", [("Content-Type", "text/plain")])?;
    Ok("hello\n".into())
}

/// The variables, one `NAME=VALUE` a line, as they came.
async fn variables(environ: Environ, start_response: StartResponse) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    for (name, value) in environ.variables().pairs().iter() {
        text.extend_from_slice(name);
        text.push(b'=');
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    start_response.start("200 OK", [("Content-Type", "text/plain")])?;
    Ok(text)
}

/// The request's body, sent back as it comes.
async fn echo(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    start_response.start("200 OK", [("Content-Type", "application/octet-stream")])?;
    Ok(Body::stream(environ.take_input()))
}

/// The length of the request's body.
async fn count(mut environ: Environ, start_response: StartResponse) -> Result<String, Error> {
    let mut len = 0;
    while let Some(chunk) = environ.input().chunk().await? {
        len += chunk.len();
    }
    start_response.start("200 OK", [("Content-Type", "text/plain")])?;
    Ok(format!("{len} bytes"))
}

async fn variables_of(request: &str) -> Vec<String> {
    variables_with(request, quiet()).await
}

async fn variables_with(request: &str, config: Config) -> Vec<String> {
    let answer = connect(variables, config).ask(request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{request:?}: {answer:?}");
    body_of(&answer).lines().map(str::to_owned).collect()
}

fn assert_has(variables: &[String], expected: &[&str]) {
    for each in expected {
        assert!(variables.iter().any(|variable| variable == each), "expected {each:?} in {variables:#?}");
    }
}

fn assert_lacks(variables: &[String], name: &str) {
    let found = variables.iter().find(|variable| variable.starts_with(&format!("{name}=")));
    assert_eq!(found, None, "expected no {name}");
}

// What an application is told.

#[tokio::test]
async fn the_environ_is_what_rfc_3875_says() {
    let request = "POST /a%20b/c%2Fd/%C3%BC?x=1&y=%20 HTTP/1.1\r\nHost: Example.org:8000\r\nContent-Type: text/plain\r\n\
                   Content-Length: 2\r\nX-Some: thing\r\nConnection: close\r\n\r\nhi";
    let variables = variables_of(request).await;
    let software = format!("SERVER_SOFTWARE=gatespan/{}", env!("CARGO_PKG_VERSION"));
    assert_has(
        &variables,
        &[
            "GATEWAY_INTERFACE=CGI/1.1",
            "SERVER_PROTOCOL=HTTP/1.1",
            &software,
            "SERVER_NAME=Example.org",
            // The port is the one that the request came to (RFC 3875 4.1.15), whatever Host says.
            "SERVER_PORT=8080",
            "SERVER_ADDR=192.0.2.1",
            "REQUEST_METHOD=POST",
            "REQUEST_SCHEME=http",
            "SCRIPT_NAME=",
            "PATH_INFO=/a b/c/d/\u{fc}",
            "REQUEST_URI=/a%20b/c%2Fd/%C3%BC?x=1&y=%20",
            "QUERY_STRING=x=1&y=%20",
            "REMOTE_ADDR=192.0.2.7",
            "REMOTE_PORT=50000",
            "CONTENT_TYPE=text/plain",
            "CONTENT_LENGTH=2",
            "HTTP_HOST=Example.org:8000",
            "HTTP_X_SOME=thing",
        ],
    );
    for name in ["HTTPS", "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "PATH_TRANSLATED", "AUTH_TYPE"] {
        assert_lacks(&variables, name);
    }
}

#[tokio::test]
async fn a_request_without_a_body_has_no_content_variables_and_always_a_query_string() {
    let variables = variables_of(&get("/")).await;
    assert_has(
        &variables,
        &["QUERY_STRING=", "REQUEST_URI=/", "PATH_INFO=/", "SERVER_NAME=example.org", "SERVER_PORT=8080"],
    );
    assert_lacks(&variables, "CONTENT_LENGTH");
    assert_lacks(&variables, "CONTENT_TYPE");
    assert_has(&variables_of(&get("/?")).await, &["QUERY_STRING=", "REQUEST_URI=/?"]);
}

#[tokio::test]
async fn without_a_host_the_local_address_is_the_server() {
    let answer = connect(variables, quiet()).ask("GET / HTTP/1.0\r\n\r\n").await;
    let variables: Vec<String> = body_of(&answer).lines().map(str::to_owned).collect();
    assert_has(&variables, &["SERVER_NAME=192.0.2.1", "SERVER_PORT=8080", "SERVER_PROTOCOL=HTTP/1.0"]);
    assert_lacks(&variables, "HTTP_HOST");
}

#[tokio::test]
async fn an_absolute_target_is_reduced_to_its_path_and_its_host_counts() {
    let request = "GET http://real.example:81/p?q HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n";
    let variables = variables_of(request).await;
    assert_has(
        &variables,
        &[
            "REQUEST_URI=/p?q",
            "PATH_INFO=/p",
            "HTTP_HOST=real.example:81",
            "SERVER_NAME=real.example",
            "SERVER_PORT=8080",
        ],
    );
    assert_eq!(variables.iter().filter(|variable| variable.starts_with("HTTP_HOST=")).count(), 1);
}

#[tokio::test]
async fn options_asterisk_has_no_path() {
    let request = "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_has(&variables_of(request).await, &["REQUEST_METHOD=OPTIONS", "REQUEST_URI=*", "PATH_INFO="]);
    let answer = connect(variables, quiet()).ask("GET * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn script_name_is_split_off_decoded_and_other_paths_are_404() {
    let config = || Config { script_name: b"/my app".into(), ..quiet() };
    for (path, path_info) in [("/my%20app", ""), ("/my%20app/", "/"), ("/m%79%20app/x%2Fy?z", "/x/y")] {
        let variables = variables_with(&get(path), config()).await;
        assert_has(
            &variables,
            &["SCRIPT_NAME=/my app", &format!("PATH_INFO={path_info}"), &format!("REQUEST_URI={path}")],
        );
    }
    for path in ["/", "/my%20application", "/other"] {
        let answer = connect(variables, config()).ask(get(path)).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
}

#[tokio::test]
async fn cve_2019_11043_line_ends_in_the_path_are_decoded_and_nothing_else_happens() {
    let answer = connect(
        async |environ: Environ, start_response: StartResponse| {
            start_response.start("200 OK", ())?;
            Ok::<_, Error>(environ.path_info().escape_ascii().to_string())
        },
        quiet(),
    );
    assert_eq!(body_of(&answer.ask(get("/a%0a%0db")).await), "/a\\n\\rb");
}

#[tokio::test]
async fn cve_2026_24895_a_nul_or_a_broken_escape_in_the_path_is_400() {
    for path in ["/a%00", "/%", "/%4", "/%4g", "/%%41", "/a%zzb"] {
        let answer = connect(variables, quiet()).ask(get(path)).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
    }
    // A query is nobody's to decode here.
    assert_has(&variables_of(&get("/?%00%zz")).await, &["QUERY_STRING=%00%zz"]);
}

#[tokio::test]
async fn header_aliases_with_underscores_are_dropped_in_both_orders_and_repeated() {
    for fields in [
        "Remote-User: real\r\nRemote_User: forged",
        "Remote_User: forged\r\nRemote-User: real",
        "Remote_User: forged\r\nRemote-User: real\r\nRemote_User: forged\r\nREMOTE_USER: forged",
        "Remote.User: forged\r\nRemote-User: real",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\nConnection: close\r\n\r\n");
        let variables = variables_of(&request).await;
        assert_has(&variables, &["HTTP_REMOTE_USER=real"]);
        assert!(!variables.iter().any(|variable| variable.contains("forged")), "{fields}: {variables:#?}");
    }
}

#[tokio::test]
async fn httpoxy_cve_2016_5385_a_proxy_header_is_dropped() {
    for name in ["Proxy", "PROXY", "proxy", "pRoXy"] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: http://evil\r\nConnection: close\r\n\r\n");
        let variables = variables_of(&request).await;
        assert!(!variables.iter().any(|variable| variable.contains("evil")), "{variables:#?}");
    }
}

#[tokio::test]
async fn cve_2018_1283_a_header_never_replaces_a_variable_of_the_server() {
    let request = "GET /real HTTP/1.1\r\nHost: a\r\nPath-Info: /x\r\nRemote-Addr: 1.1.1.1\r\nServer-Name: x\r\n\
                   Request-Method: PUT\r\nHttps: on\r\nScript-Filename: /etc/passwd\r\nConnection: close\r\n\r\n";
    let variables = variables_of(request).await;
    for (name, value) in [
        ("PATH_INFO", Some("/real")),
        ("REMOTE_ADDR", Some("192.0.2.7")),
        ("SERVER_NAME", Some("a")),
        ("REQUEST_METHOD", Some("GET")),
        ("HTTPS", None),
        ("SCRIPT_FILENAME", None),
    ] {
        let found: Vec<_> =
            variables.iter().filter_map(|variable| variable.strip_prefix(&format!("{name}="))).collect();
        assert_eq!(found, value.into_iter().collect::<Vec<_>>(), "{name}");
    }
}

#[tokio::test]
async fn repeated_headers_are_repeated_pairs_and_values_stay_bytes() {
    let mut request =
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nCookie: c=1\r\nX-A: 2\r\nX-B: \xff\xfe\r\nCookie: d=2\r\n".to_vec();
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    let application = async |environ: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        assert_eq!(environ.get("HTTP_X_A"), Some(&b"1, 2"[..]));
        assert_eq!(environ.get("HTTP_COOKIE"), Some(&b"c=1; d=2"[..]));
        assert_eq!(environ.get("HTTP_X_B"), Some(&b"\xff\xfe"[..]));
        let count = environ.variables().pairs().iter().filter(|(name, _)| *name == b"HTTP_X_A").count();
        Ok::<_, Error>(format!("{count} pairs"))
    };
    let answer = connect(application, quiet()).ask(request).await;
    assert_eq!(body_of(&answer), "2 pairs");
}

#[tokio::test]
async fn the_settings_replace_what_requests_say() {
    let config = Config {
        server_name: Some("canonical.example".into()),
        server_port: Some(443),
        https: true,
        server_software: "test/1".into(),
        ..quiet()
    };
    let variables = variables_with(&get("/"), config).await;
    assert_has(
        &variables,
        &[
            "SERVER_NAME=canonical.example",
            "SERVER_PORT=443",
            "HTTPS=on",
            "REQUEST_SCHEME=https",
            "SERVER_SOFTWARE=test/1",
            "HTTP_HOST=example.org",
        ],
    );
}

#[tokio::test]
async fn the_server_is_told_with_its_connection_and_request_numbers() {
    let application = async |environ: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        let server = environ.server();
        Ok::<_, Error>(format!(
            "{} {} {} {} {} {}\n",
            server.gateway,
            server.connection,
            environ.request_number(),
            environ.multithread(),
            environ.multiprocess(),
            environ.run_once()
        ))
    };
    let gateway = Arc::new(Gateway::new(application, quiet()));
    let mut first = connect_to(&gateway);
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(first.read_until("\n").await.starts_with("HTTP"));
    assert!(first.read_until("false\n").await.ends_with("http 1 1 true false false\n"));
    assert!(first.ask(get("/")).await.ends_with("http 1 2 true false false\n"));
    assert!(connect_to(&gateway).ask(get("/")).await.ends_with("http 2 1 true false false\n"));
}

// What clients get.

#[tokio::test]
async fn a_kept_connection_serves_a_thousand_requests() {
    let mut client = connect(hello, quiet());
    for _ in 0..1000 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.read_until("hello\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("content-length: 6\r\n"), "{answer}");
    }
    drop(client.stream);
    within(client.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mut client = connect(
        async |environ: Environ, start_response: StartResponse| {
            if environ.path_info() == b"/slow" {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            start_response.start("200 OK", ())?;
            Ok::<_, Error>(environ.path_info().to_vec())
        },
        quiet(),
    );
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    client.send(request("/slow") + &request("/b") + &get("/c")).await;
    let answer = client.read_to_end().await;
    let bodies: Vec<_> = ["/slow", "/b", "/c"].iter().map(|path| answer.find(&format!("\r\n\r\n{path}"))).collect();
    assert!(bodies.iter().all(Option::is_some) && bodies.is_sorted(), "{answer}");
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let mut client = connect(echo, quiet());
    let request =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for byte in request.as_bytes() {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    let answer = client.read_to_end().await;
    assert!(answer.ends_with("\r\n\r\n1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn chunks_of_a_request_are_decoded_and_have_no_length() {
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                   5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nTrailer: x\r\n\r\n";
    let variables = variables_of(request).await;
    assert_lacks(&variables, "CONTENT_LENGTH");
    assert_lacks(&variables, "HTTP_TRANSFER_ENCODING");
    assert!(connect(count, quiet()).ask(request).await.ends_with("11 bytes"));
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let request = "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = connect(hello, quiet()).ask(request).await;
    assert!(answer.contains("content-length: 6\r\n") || !answer.contains("content-length"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    let application = async |_: Environ, start_response: StartResponse| {
        start_response.start("200 OK", [("Content-Length", "1000")])?;
        Ok::<_, Error>(())
    };
    let answer = connect(application, quiet()).ask(request).await;
    assert!(answer.contains("content-length: 1000\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn answers_204_and_304_have_neither_body_nor_chunks() {
    for status in ["204 No Content", "304 Not Modified"] {
        let application = with(status, async |status, _: Environ, start_response: StartResponse| {
            start_response.start(status, [("ETag", "\"x\"")])?;
            Ok::<_, Error>(Body::iter(["must not", " be sent"]))
        });
        let answer = connect(application, quiet()).ask(get("/")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.ends_with("\r\n\r\n"), "{answer}");
        assert!(!answer.contains("transfer-encoding") && !answer.contains("content-length"), "{answer}");
    }
}

#[tokio::test]
async fn a_custom_reason_phrase_survives_and_an_unknown_code_has_one() {
    for (status, line) in [
        ("200 Fine By Me", "HTTP/1.1 200 Fine By Me\r\n"),
        ("404 Not Found", "HTTP/1.1 404 Not Found\r\n"),
        ("418 I'm a teapot", "HTTP/1.1 418 I'm a teapot\r\n"),
        ("418", "HTTP/1.1 418 I'm a teapot\r\n"),
        ("599 Odd", "HTTP/1.1 599 Odd\r\n"),
    ] {
        let application = with(status, async |status, _: Environ, start_response: StartResponse| {
            start_response.start(status, ())?;
            Ok::<_, Error>("x")
        });
        let answer = connect(application, quiet()).ask(get("/")).await;
        assert!(answer.starts_with(line), "{status}: {answer}");
    }
}

#[tokio::test]
async fn repeated_response_headers_keep_their_order_and_values_stay_bytes() {
    let application = async |_: Environ, start_response: StartResponse| {
        let mut headers = Headers::new();
        headers.push("Set-Cookie", "a=1");
        headers.push("X-Bytes", b"\xff\xfe");
        headers.push("set-cookie", "b=2");
        headers.push("Set-Cookie", "a=3");
        start_response.start("200 OK", headers)?;
        Ok::<_, Error>("x")
    };
    let mut client = connect(application, quiet());
    client.send(get("/")).await;
    let mut answer = Vec::new();
    within(client.stream.read_to_end(&mut answer)).await.unwrap();
    let lines: Vec<_> = answer.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"set-cookie")).collect();
    assert_eq!(lines, [&b"set-cookie: a=1\r"[..], b"set-cookie: b=2\r", b"set-cookie: a=3\r"]);
    assert!(answer.windows(12).any(|window| window == b"x-bytes: \xff\xfe\r"));
}

#[tokio::test]
async fn date_and_server_are_added_once_and_only_where_wanted() {
    let own = async |_: Environ, start_response: StartResponse| {
        start_response.start("200 OK", [("Date", "Thu, 01 Jan 1970 00:00:00 GMT"), ("Server", "mine")])?;
        Ok::<_, Error>("x")
    };
    let plain = connect(hello, quiet()).ask(get("/")).await;
    assert!(plain.matches("\r\ndate: ").count() == 1 && !plain.contains("\r\nserver: "), "{plain}");
    let named = connect(hello, Config { server: true, date: false, ..quiet() }).ask(get("/")).await;
    assert!(!named.contains("\r\ndate: ") && named.contains("\r\nserver: gatespan/"), "{named}");
    let own = connect(own, Config { server: true, ..quiet() }).ask(get("/")).await;
    assert!(own.matches("\r\ndate: ").count() == 1 && own.contains("\r\ndate: Thu, 01 Jan 1970"), "{own}");
    assert!(own.matches("\r\nserver: ").count() == 1 && own.contains("\r\nserver: mine"), "{own}");
}

#[tokio::test]
async fn a_flush_sends_the_head_and_each_piece_goes_out_before_the_next() {
    let next = Arc::new(Notify::new());
    let told = next.clone();
    let application = with(told, async |told, _: Environ, start_response: StartResponse| {
        start_response.start("200 OK", [("Content-Type", "text/event-stream")])?;
        let (sender, mut receiver) = mpsc::channel::<Frame>(1);
        let told = told.clone();
        tokio::spawn(async move {
            sender.send(Frame::Flush).await.unwrap();
            for event in ["one", "two", "three"] {
                told.notified().await;
                sender.send(Frame::Data(event.into())).await.unwrap();
            }
        });
        struct Channel(Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Frame>> + Send>);
        impl Frames for Channel {
            fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
                self.0(cx).map(|frame| frame.map(Ok))
            }
        }
        Ok::<_, Error>(Body::frames(Channel(Box::new(move |cx| receiver.poll_recv(cx)))))
    });
    let mut client = connect(application, quiet());
    client.send(get("/")).await;
    client.read_until("\r\n\r\n").await;
    for event in ["3\r\none\r\n", "3\r\ntwo\r\n", "5\r\nthree\r\n"] {
        next.notify_one();
        assert_eq!(client.read_until(event).await, event);
    }
    assert_eq!(client.read_to_end().await, "0\r\n\r\n");
}

#[tokio::test]
async fn pieces_of_an_iterator_are_not_kept_back_while_the_next_is_made() {
    let (sender, receiver) = std::sync::mpsc::channel::<&'static str>();
    let receiver = Mutex::new(Some(receiver));
    let application = gatespan::application::blocking(move |_: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        Ok(receiver.lock().unwrap().take().expect("one request"))
    });
    let mut client = connect(application, quiet());
    client.send(get("/")).await;
    for piece in ["one", "two"] {
        sender.send(piece).unwrap();
        client.read_until(piece).await;
    }
    drop(sender);
    assert!(client.read_to_end().await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn parts_of_files_are_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(file.path(), &content).unwrap();
    let path = file.path().to_owned();
    let application = with(path, async |path, environ: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        Ok::<_, Error>(environ.file_wrapper(std::fs::File::open(&path)?, None)?)
    });
    let mut client = connect(application, quiet());
    client.send(get("/")).await;
    assert!(client.read_until("\r\n\r\n").await.contains("content-length: 300000\r\n"));
    let mut body = Vec::new();
    within(client.stream.read_to_end(&mut body)).await.unwrap();
    assert!(body == content);
}

#[tokio::test]
async fn trailers_go_to_clients_that_take_them() {
    let application = async |_: Environ, start_response: StartResponse| {
        start_response.start("200 OK", [("Trailer", "X-Sum")])?;
        struct WithTrailers(Vec<Frame>);
        impl Frames for WithTrailers {
            fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
                Poll::Ready(self.0.pop().map(Ok))
            }
        }
        let trailers = Headers::from([("X-Sum", "1"), ("X-Sum", "2")]);
        Ok::<_, Error>(Body::frames(WithTrailers(vec![Frame::Trailers(trailers), Frame::Data("data".into())])))
    };
    let request = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close\r\n\r\n";
    let answer = connect(application, quiet()).ask(request).await;
    assert!(answer.ends_with("\r\n\r\n4\r\ndata\r\n0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n"), "{answer}");
    let answer = connect(application, quiet()).ask(get("/")).await;
    assert!(answer.ends_with("\r\n\r\n4\r\ndata\r\n0\r\n\r\n"), "{answer}");
}

// Requests' bodies.

#[tokio::test]
async fn expect_continue_is_answered_when_the_application_reads_and_not_before() {
    let read = Arc::new(Notify::new());
    let may_read = read.clone();
    let mut client = connect(
        with(may_read, async |may_read, mut environ: Environ, start_response: StartResponse| {
            may_read.notified().await;
            let body = environ.input().read_to_end(100).await?;
            start_response.start("200 OK", ())?;
            Ok::<_, Error>(body)
        }),
        quiet(),
    );
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await;
    let early = tokio::time::timeout(Duration::from_millis(100), client.stream.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    read.notify_one();
    assert_eq!(client.read_until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("abc").await;
    assert!(client.read_until("abc").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_expectation_that_the_application_does_not_read_is_answered_at_once() {
    let client = connect(hello, quiet());
    let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello\n"), "{answer}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_announced_or_not() {
    let config = || Config { max_body: Some(10), ..quiet() };
    for (fields, expected) in [
        ("Content-Length: 10\r\n\r\n0123456789", "200 OK"),
        ("Content-Length: 11\r\n\r\n0123456789x", "413 Content Too Large"),
        ("Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n", "200 OK"),
        ("Transfer-Encoding: chunked\r\n\r\nb\r\n0123456789x\r\n0\r\n\r\n", "413 Content Too Large"),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}");
        let answer = connect(count, config()).ask(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")), "{fields:?}: {answer}");
    }
}

#[tokio::test]
async fn a_broken_chunk_is_400_and_a_body_that_stops_coming_408() {
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n";
    let answer = connect(count, quiet()).ask(request).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let config = Config { body_timeout: Duration::from_millis(50), ..quiet() };
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc";
    let answer = connect(count, config).ask(request).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn an_answer_to_an_unread_upload_arrives_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Arc::new(Gateway::new(hello, quiet()));
    let server = tokio::spawn(async move {
        let (stream, peer) = listener.accept().await.unwrap();
        serve_connection(stream, Peer::Ip(peer), None, &gateway, &CancellationToken::new()).await
    });
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 800000\r\n\r\n").await.unwrap();
    stream.write_all(&vec![b'x'; 800_000]).await.unwrap();
    // Whoever sends first and reads then must not find a reset in the place of the answer.
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.ends_with(b"hello\n"), "{}", String::from_utf8_lossy(&answer));
    drop(stream);
    within(server).await.unwrap().unwrap();
}

// Bad requests.

#[tokio::test]
async fn bad_request_lines_and_fields_are_400() {
    for request in [
        "GET\r\n\r\n",
        "GET /\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / FTP/1.0\r\n\r\n",
        "G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX : z\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded: line\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\r\n\r\n",
        // RFC 9112 3.2.
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::g]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    ] {
        let mut client = connect(variables, quiet());
        client.send(request).await;
        let line = client.read_until("\r\n").await;
        assert!(line.starts_with("HTTP/1.1 400 "), "{request:?}: {line}");
    }
}

#[tokio::test]
async fn good_hosts_are_taken_apart() {
    for (host, name) in [
        ("a", "a"),
        ("a:", "a"),
        ("a.b-c_d:8080", "a.b-c_d"),
        ("[::1]", "[::1]"),
        ("[2001:db8::1]:81", "[2001:db8::1]"),
        ("127.0.0.1:65535", "127.0.0.1"),
        ("", "192.0.2.1"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let variables = variables_of(&request).await;
        assert_has(&variables, &[&format!("SERVER_NAME={name}")]);
    }
}

#[tokio::test]
async fn connect_is_501() {
    let answer = connect(hello, quiet()).ask("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
}

#[tokio::test]
async fn smuggling_conflicting_lengths_are_400_and_chunks_beside_a_length_end_the_connection() {
    for fields in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: xchunked",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello");
        let answer = connect(count, quiet()).ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields}: {answer}");
    }
    // RFC 9112 6.3: the chunks count; 6.1: the connection must not be used again, so that what follows is nobody's request.
    for fields in ["Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 3"]
    {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let answer = connect(count, quiet()).ask(request.as_str()).await;
        assert!(answer.contains("connection: close") && answer.ends_with("5 bytes"), "{answer}");
        let answer = connect(variables, quiet()).ask(request).await;
        assert!(!answer.contains("CONTENT_LENGTH") && !answer.contains("smuggled"), "{answer}");
    }
    let request = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert!(connect(count, quiet()).ask(request).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_head_over_max_head_len_or_max_headers_is_431() {
    let config = || Config { max_head_len: 1000, max_headers: 5, ..quiet() };
    let long = |len: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(len));
    assert!(connect(hello, config()).ask(long(900)).await.starts_with("HTTP/1.1 200 "));
    assert!(connect(hello, config()).ask(long(1000)).await.starts_with("HTTP/1.1 431 "));
    assert!(connect(hello, config()).ask(long(30_000)).await.starts_with("HTTP/1.1 431 "));
    let many =
        |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert!(connect(hello, config()).ask(many(3)).await.starts_with("HTTP/1.1 200 "));
    assert!(connect(hello, config()).ask(many(4)).await.starts_with("HTTP/1.1 431 "));
    // A head that never ends is noticed at the limit, without its end.
    let mut client = connect(hello, config());
    client.send("GET / HTTP/1.1\r\n".to_owned() + &"X: y\r\n".repeat(200)).await;
    assert!(client.read_until("\r\n").await.starts_with("HTTP/1.1 431 "));
}

// Slow clients.

#[tokio::test]
async fn a_head_that_takes_longer_than_head_timeout_is_408() {
    let config = Config { head_timeout: Duration::from_millis(80), ..quiet() };
    for part in ["G", "PRI * HTTP", "GET / HTTP/1.1\r\nHost"] {
        let mut client = connect(hello, config.clone());
        client.send(part).await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{part}: {answer}");
        let error = within(client.server).await.unwrap().unwrap_err();
        assert!(matches!(error, ConnectionError::Head { .. }), "{error}");
    }
    // One byte now and then doesn't help.
    let mut client = connect(hello, config.clone());
    let began = Instant::now();
    for byte in b"GET / HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaa".chunks(1) {
        if client.stream.write_all(byte).await.is_err() || began.elapsed() > Duration::from_millis(300) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(client.read_to_end().await.starts_with("HTTP/1.1 408 "));
    // The second request of a connection has the same limit.
    let mut client = connect(hello, config);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.read_until("hello\n").await;
    client.send("GET /").await;
    assert!(client.read_to_end().await.starts_with("HTTP/1.1 408 "));
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_in_silence() {
    let config =
        Config { head_timeout: Duration::from_millis(80), idle_timeout: Duration::from_millis(250), ..quiet() };
    let mut client = connect(hello, config.clone());
    assert_eq!(client.read_to_end().await, "");
    within(client.server).await.unwrap().unwrap();
    // After a request it may wait for idle_timeout, which is longer than head_timeout here.
    let mut client = connect(hello, config);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.read_until("hello\n").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.read_until("hello\n").await;
    let began = Instant::now();
    assert_eq!(client.read_to_end().await, "");
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    within(client.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_application_may_take_longer_than_the_timeouts_of_its_connection() {
    let application = async |_: Environ, start_response: StartResponse| {
        tokio::time::sleep(Duration::from_millis(300)).await;
        start_response.start("200 OK", ())?;
        Ok::<_, Error>("late")
    };
    let config = Config {
        head_timeout: Duration::from_millis(50),
        idle_timeout: Duration::from_millis(50),
        write_stall: Duration::from_millis(50),
        ..quiet()
    };
    assert!(connect(application, config).ask(get("/")).await.ends_with("late"));
}

#[tokio::test]
async fn a_client_that_takes_nothing_for_write_stall_is_dropped() {
    let (closed, is_closed) = oneshot::channel();
    let closed = Arc::new(Mutex::new(Some(closed)));
    let application = with(closed, async |closed, environ: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        let token = environ.cancellation();
        let closed = closed.lock().unwrap().take().expect("one request");
        let pieces = std::iter::repeat_with(|| Bytes::from(vec![b'x'; 10_000]));
        Ok::<_, Error>(Body::iter(pieces).on_close(move || {
            let _ = closed.send(token.is_cancelled());
        }))
    });
    let config = Config { write_stall: Duration::from_millis(100), ..quiet() };
    let mut client = connect(application, config);
    client.send(get("/")).await;
    let error = within(&mut client.server).await.unwrap().unwrap_err();
    assert!(matches!(error, ConnectionError::Left(_)), "{error:?}");
    assert!(within(is_closed).await.unwrap(), "closed before it was cancelled");
}

#[tokio::test]
async fn a_slow_reader_holds_the_application_back() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let application = with(counted, async |counted, _: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        let counted = counted.clone();
        Ok::<_, Error>(Body::iter(std::iter::repeat_with(move || {
            counted.fetch_add(10_000, Ordering::SeqCst);
            Bytes::from(vec![b'x'; 10_000])
        })))
    });
    let config = Config { max_unsent: 16 << 10, max_head_len: 8 << 10, ..quiet() };
    let mut client = connect(application, config);
    client.send(get("/")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let ahead = made.load(Ordering::SeqCst);
    // The pipe's 64 KiB, hyper's 16 KiB and a piece or two.
    assert!(ahead <= 130_000, "{ahead} bytes are made ahead of the client");
    drop(client.stream);
    within(client.server).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn an_upload_is_read_as_the_application_takes_it() {
    let next = Arc::new(Notify::new());
    let may_read = next.clone();
    let application = with(may_read, async |may_read, mut environ: Environ, start_response: StartResponse| {
        may_read.notified().await;
        let mut len = 0;
        while let Some(chunk) = environ.input().chunk().await? {
            len += chunk.len();
        }
        start_response.start("200 OK", ())?;
        Ok::<_, Error>(len.to_string())
    });
    let mut client = connect(application, Config { max_unsent: 16 << 10, max_head_len: 8 << 10, ..quiet() });
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n").await;
    let taken = Arc::new(AtomicU64::new(0));
    let (mut reader, mut writer) = tokio::io::split(client.stream);
    let written = taken.clone();
    let upload = tokio::spawn(async move {
        for piece in vec![b'x'; 1_000_000].chunks(1000) {
            writer.write_all(piece).await.unwrap();
            written.fetch_add(1000, Ordering::SeqCst);
        }
        writer
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let ahead = taken.load(Ordering::SeqCst);
    assert!(ahead <= 110_000, "{ahead} bytes are read ahead of the application");
    next.notify_one();
    let _writer = within(upload).await.unwrap();
    let mut answer = String::new();
    within(reader.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("1000000"), "{answer}");
}

// Clients that leave.

/// Tells when its request is cancelled, and when what it awaits is dropped.
fn waits_forever() -> (impl Application, mpsc::UnboundedReceiver<&'static str>) {
    let (told, tells) = mpsc::unbounded_channel();
    let application = move |environ: Environ, _: StartResponse| {
        let told = told.clone();
        async move {
            let _input = environ;
            let token = _input.cancellation();
            let cancelled = told.clone();
            tokio::spawn(async move {
                token.cancelled().await;
                let _ = cancelled.send("cancelled");
            });
            let _dropped = OnDrop(told.clone(), _input.cancellation());
            told.send("called").unwrap();
            std::future::pending::<Result<(), Error>>().await
        }
    };
    (application, tells)
}

struct OnDrop(mpsc::UnboundedSender<&'static str>, CancellationToken);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(if self.1.is_cancelled() { "dropped after the token" } else { "dropped before the token" });
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_within_a_second_token_first() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        // A body that the application has not read, in part or in whole, hides nothing.
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    ] {
        let (application, mut tells) = waits_forever();
        let mut client = connect(application, quiet());
        client.send(request).await;
        assert_eq!(within(tells.recv()).await, Some("called"), "{request}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let left = Instant::now();
        drop(client.stream);
        let mut told = [within(tells.recv()).await, within(tells.recv()).await];
        told.sort();
        assert_eq!(told, [Some("cancelled"), Some("dropped after the token")], "{request}");
        assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
        within(client.server).await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn a_client_that_leaves_over_tcp_cancels() {
    let (application, mut tells) = waits_forever();
    let (address, _stop, server) = start(application, quiet()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(within(tells.recv()).await, Some("called"));
    drop(stream);
    within(tells.recv()).await.unwrap();
    within(tells.recv()).await.unwrap();
    server.abort();
}

#[tokio::test]
async fn a_client_that_leaves_during_the_body_has_it_cancelled_and_closed() {
    struct Endless(mpsc::UnboundedSender<&'static str>, CancellationToken, Option<Pin<Box<tokio::time::Sleep>>>, bool);
    impl Frames for Endless {
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
            if std::mem::replace(&mut self.3, true) {
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(Frame::Data("first".into()))))
        }

        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            // A close that takes its time is waited for.
            let sleep = self.2.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::from_millis(50))));
            std::task::ready!(sleep.as_mut().poll(cx));
            let _ =
                self.0.send(if self.1.is_cancelled() { "closed after the token" } else { "closed before the token" });
            Poll::Ready(())
        }
    }
    let (told, mut tells) = mpsc::unbounded_channel();
    let application = with(told, async |told, environ: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        Ok::<_, Error>(Body::frames(Endless(told.clone(), environ.cancellation(), None, false)))
    });
    let gateway = Arc::new(Gateway::new(application, quiet()));
    let mut client = connect_to(&gateway);
    client.send(get("/")).await;
    client.read_until("first").await;
    drop(client.stream);
    within(client.server).await.unwrap().unwrap_err();
    within(gateway.closed()).await;
    assert_eq!(tells.try_recv(), Ok("closed after the token"));
}

#[tokio::test]
async fn a_close_that_takes_longer_than_close_limit_is_dropped() {
    struct NeverCloses(Arc<AtomicBool>, bool);
    impl Frames for NeverCloses {
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
            if std::mem::replace(&mut self.1, true) {
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(Frame::Data("first".into()))))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }
    impl Drop for NeverCloses {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = dropped.clone();
    let application = with(flag, async |flag, _: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        Ok::<_, Error>(Body::frames(NeverCloses(flag.clone(), false)))
    });
    let mut client = connect(application, Config { close_limit: Duration::from_millis(50), ..quiet() });
    client.send(get("/")).await;
    client.read_until("first").await;
    drop(client.stream);
    within(async {
        while !dropped.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_finished_response_is_closed_and_not_cancelled() {
    for length in [None, Some("6")] {
        let (sender, closed) = oneshot::channel();
        let sender = Arc::new(Mutex::new(Some(sender)));
        let application =
            with((length, sender), async |(length, sender), environ: Environ, start_response: StartResponse| {
                let headers: Headers = length.into_iter().map(|length| ("Content-Length", length)).collect();
                start_response.start("200 OK", headers)?;
                let (token, sender) = (environ.cancellation(), sender.lock().unwrap().take().expect("one request"));
                Ok::<_, Error>(Body::iter(["one", "two"]).on_close(move || {
                    let _ = sender.send(token.is_cancelled());
                }))
            });
        let mut client = connect(application, quiet());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.read_until("two").await;
        assert!(!within(closed).await.unwrap(), "cancelled with Content-Length {length:?}");
    }
}

#[tokio::test]
async fn a_half_closing_client_gets_its_answer_only_where_that_is_allowed() {
    let application = async |_: Environ, start_response: StartResponse| {
        tokio::time::sleep(Duration::from_millis(50)).await;
        start_response.start("200 OK", ())?;
        Ok::<_, Error>("answer")
    };
    for (half_close, expected) in [(false, false), (true, true)] {
        let mut client = connect(application, Config { half_close, ..quiet() });
        client.send(get("/")).await;
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.read_to_end().await.ends_with("answer"), expected);
    }
}

// Applications that fail.

#[tokio::test]
async fn an_error_before_the_head_is_a_page_and_the_log_learns_the_cause() {
    let log = Arc::new(Kept::default());
    let config = Config { errors: Errors::new(log.clone()), ..Config::default() };
    let application =
        async |_: Environ, _: StartResponse| Err::<(), Error>(io::Error::other("the disk is on fire").into());
    let mut client = connect(application, config);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: abc\r\n\r\n").await;
    let answer = client.read_until("request abc\n").await;
    assert!(answer.starts_with("HTTP/1.1 500 Internal Server Error\r\n") && !answer.contains("fire"), "{answer}");
    let log = log.0.lock().unwrap().clone();
    assert!(log.contains("abc") && log.contains("the disk is on fire"), "{log}");
    // The connection is none the worse for it.
    client.send(get("/")).await;
    assert!(client.read_to_end().await.starts_with("HTTP/1.1 500 "));
}

#[tokio::test]
async fn an_error_after_the_head_cuts_the_response_visibly() {
    for length in [None, Some("100")] {
        let log = Arc::new(Kept::default());
        let config = Config { errors: Errors::new(log.clone()), ..Config::default() };
        let application = with(length, async |length, _: Environ, start_response: StartResponse| {
            let headers: Headers = length.into_iter().map(|length| ("Content-Length", length)).collect();
            start_response.start("200 OK", headers)?;
            Ok::<_, Error>(Body::iter([Ok("the beginning"), Err(io::Error::other("no more"))]))
        });
        let mut client = connect(application, config);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.read_to_end().await;
        // What came before the error arrives, and it is plain that it is not all.
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("the beginning"), "{answer}");
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
        let error = within(client.server).await.unwrap().unwrap_err();
        assert!(matches!(error, ConnectionError::Cut(_)), "{error:?}");
        assert!(log.0.lock().unwrap().contains("was cut: no more"));
    }
}

#[tokio::test]
async fn a_body_shorter_than_its_length_is_cut_and_a_longer_one_shortened() {
    let application = |body: &'static str| {
        with(body, async |body, _: Environ, start_response: StartResponse| {
            start_response.start("200 OK", [("Content-Length", "5")])?;
            Ok::<_, Error>(Body::iter([body]))
        })
    };
    let mut client = connect(application("abc"), quiet());
    client.send(get("/")).await;
    assert!(client.read_to_end().await.ends_with("\r\n\r\nabc"));
    assert!(within(client.server).await.unwrap().is_err());
    assert!(connect(application("abcdefgh"), quiet()).ask(get("/")).await.ends_with("\r\n\r\nabcde"));
}

#[tokio::test]
async fn a_panic_costs_its_own_request_only() {
    let application = async |environ: Environ, start_response: StartResponse| {
        assert!(environ.path_info() != b"/panic", "as asked");
        start_response.start("200 OK", ())?;
        Ok::<_, Error>("fine")
    };
    let mut client = connect(application, quiet());
    client.send("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.read_until("\n").await.starts_with("HTTP/1.1 500 "));
    client.read_until("request ").await;
    client.read_until("\n").await;
    assert!(client.ask(get("/")).await.ends_with("fine"));
}

#[tokio::test]
async fn an_interim_status_from_an_application_is_500() {
    for status in ["100 Continue", "101 Switching Protocols", "103 Early Hints"] {
        let application = with(status, async |status, _: Environ, start_response: StartResponse| {
            start_response.start(status, ())?;
            Ok::<_, Error>(())
        });
        let answer = connect(application, quiet()).ask(get("/")).await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{status}: {answer}");
    }
}

// Limits and stopping.

#[tokio::test]
async fn requests_over_max_requests_are_503_with_retry_after() {
    let go = Arc::new(Notify::new());
    let may_go = go.clone();
    let application = with(may_go, async |may_go, _: Environ, start_response: StartResponse| {
        may_go.notified().await;
        start_response.start("200 OK", ())?;
        Ok::<_, Error>("ok")
    });
    let gateway = Arc::new(Gateway::new(application, Config { max_requests: 1, ..quiet() }));
    let mut first = connect_to(&gateway);
    first.send(get("/")).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let refused = connect_to(&gateway).ask(get("/")).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1\r\n"), "{refused}");
    go.notify_one();
    assert!(first.read_to_end().await.ends_with("ok"));
    go.notify_one();
    assert!(connect_to(&gateway).ask(get("/")).await.ends_with("ok"));
}

#[tokio::test]
async fn stopping_closes_idle_connections_and_finishes_requests() {
    let application = async |_: Environ, start_response: StartResponse| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        start_response.start("200 OK", ())?;
        Ok::<_, Error>("finished")
    };
    let gateway = Arc::new(Gateway::new(application, quiet()));
    let (mut fresh, mut idle, mut busy) = (connect_to(&gateway), connect_to(&gateway), connect_to(&gateway));
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    idle.read_until("finished").await;
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    for client in [&fresh, &idle, &busy] {
        client.stop.cancel();
    }
    assert_eq!(fresh.read_to_end().await, "");
    assert_eq!(idle.read_to_end().await, "");
    assert!(busy.read_to_end().await.ends_with("finished"));
    for client in [fresh, idle, busy] {
        drop(client.stream);
        within(client.server).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn stopping_gives_up_after_shutdown_limit_and_cancels() {
    let (application, mut tells) = waits_forever();
    let mut client = connect(application, Config { shutdown_limit: Duration::from_millis(50), ..quiet() });
    client.send(get("/")).await;
    assert_eq!(within(tells.recv()).await, Some("called"));
    client.stop.cancel();
    let error = within(client.server).await.unwrap().unwrap_err();
    assert!(matches!(error, ConnectionError::Stop { .. }), "{error}");
    within(tells.recv()).await.unwrap();
    within(tells.recv()).await.unwrap();
}

/// A server on a port of its own.
async fn start<A: Application>(
    application: A,
    config: Config,
) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let listener = Listener::from_descriptor(socket.into(), 3).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, application, config, async move {
        let _ = stopped.await;
    }));
    (address, stop, server)
}

#[tokio::test]
async fn serve_accepts_until_shutdown_and_then_finishes() {
    let (address, stop, server) = start(hello, quiet()).await;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(get("/").as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.ends_with("hello\n"));
    }
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.send(()).unwrap();
    within(server).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn cve_2012_1181_max_connections_holds_under_a_burst() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, highest) = (now.clone(), most.clone());
    let application =
        with((highest, running), async |(highest, running), _: Environ, start_response: StartResponse| {
            highest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            start_response.start("200 OK", ())?;
            Ok::<_, Error>("ok")
        });
    let (address, stop, server) = start(application, Config { max_connections: 3, ..quiet() }).await;
    let clients: Vec<_> = (0..30)
        .map(|_| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(get("/").as_bytes()).await.unwrap();
                let mut answer = String::new();
                within(stream.read_to_string(&mut answer)).await.unwrap();
                assert!(answer.ends_with("ok"), "{answer}");
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
    stop.send(()).unwrap();
    within(server).await.unwrap();
}

// HTTP/2.

type H2<B> = hyper::client::conn::http2::SendRequest<B>;

async fn connect_h2<A: Application, B>(application: A, config: Config) -> (H2<B>, Client)
where
    B: http_body::Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let gateway = Arc::new(Gateway::new(application, config));
    let mut client = connect_to(&gateway);
    let (stream, _) = tokio::io::duplex(1);
    let stream = std::mem::replace(&mut client.stream, stream);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    (sender, client)
}

#[tokio::test]
async fn h2c_with_prior_knowledge_has_the_same_environ() {
    let (mut sender, client) = connect_h2(variables, quiet()).await;
    let request = http::Request::get("http://example.org:8080/a%20b?c")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("proxy", "http://evil")
        .header("remote_user", "forged")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let variables: Vec<String> = String::from_utf8_lossy(&body).lines().map(str::to_owned).collect();
    assert_has(
        &variables,
        &[
            "SERVER_PROTOCOL=HTTP/2.0",
            "HTTP_HOST=example.org:8080",
            "SERVER_NAME=example.org",
            "SERVER_PORT=8080",
            "REQUEST_URI=/a%20b?c",
            "PATH_INFO=/a b",
            "HTTP_COOKIE=a=1",
            "HTTP_COOKIE=b=2",
        ],
    );
    assert!(!variables.iter().any(|variable| variable.contains("evil") || variable.contains("forged")));
    assert_lacks(&variables, "CONTENT_LENGTH");
    drop(sender);
    within(client.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn h2c_streams_both_ways_with_many_requests_at_once() {
    let (sender, _client) = connect_h2(echo, quiet()).await;
    let requests: Vec<_> = (0..50_u8)
        .map(|number| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let body = Bytes::from(vec![number; 50_000]);
                let request = http::Request::post("http://a/").body(Full::new(body.clone())).unwrap();
                let response = within(sender.send_request(request)).await.unwrap();
                assert!(within(response.into_body().collect()).await.unwrap().to_bytes() == body);
            })
        })
        .collect();
    for request in requests {
        request.await.unwrap();
    }
}

#[tokio::test]
async fn h2c_a_failure_after_the_head_is_a_reset_of_its_stream_only() {
    let application = async |environ: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        if environ.path_info() == b"/fine" {
            return Ok(Body::from("fine"));
        }
        Ok::<_, Error>(Body::iter([Ok("the beginning"), Err(io::Error::other("no more"))]))
    };
    let (mut sender, _client) = connect_h2(application, quiet()).await;
    let request = |path: &str| http::Request::get(format!("http://a{path}")).body(Empty::<Bytes>::new()).unwrap();
    let response = within(sender.send_request(request("/"))).await.unwrap();
    let error = within(response.into_body().collect()).await.unwrap_err();
    assert!(error.to_string().contains("stream error") || error.to_string().contains("body"), "{error}");
    let response = within(sender.send_request(request("/fine"))).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "fine");
}

#[tokio::test]
async fn h2c_a_client_that_resets_its_stream_cancels() {
    let (application, mut tells) = waits_forever();
    let (mut sender, _client) = connect_h2(application, quiet()).await;
    let request = http::Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
    let pending = tokio::spawn(async move {
        let _ = sender.send_request(request).await;
        sender
    });
    assert_eq!(within(tells.recv()).await, Some("called"));
    pending.abort();
    let mut told = [within(tells.recv()).await, within(tells.recv()).await];
    told.sort();
    assert_eq!(told, [Some("cancelled"), Some("dropped after the token")]);
}

#[tokio::test]
async fn h2c_trailers_arrive() {
    let application = async |_: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        struct WithTrailers(Vec<Frame>);
        impl Frames for WithTrailers {
            fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
                Poll::Ready(self.0.pop().map(Ok))
            }
        }
        let trailers = Headers::from([("grpc-status", "0")]);
        Ok::<_, Error>(Body::frames(WithTrailers(vec![Frame::Trailers(trailers), Frame::Data("data".into())])))
    };
    let (mut sender, _client) = connect_h2(application, quiet()).await;
    let request = http::Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
    let collected = within(sender.send_request(request)).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().and_then(|trailers| trailers.get("grpc-status")).unwrap(), "0");
    assert_eq!(collected.to_bytes(), "data");
}

#[tokio::test]
async fn h2c_idle_connections_are_closed_and_large_heads_refused() {
    let config = Config { idle_timeout: Duration::from_millis(100), max_head_len: 10_000, ..quiet() };
    let (mut sender, client) = connect_h2(hello, config).await;
    let request =
        |len: usize| http::Request::get("http://a/").header("x", "y".repeat(len)).body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(within(sender.send_request(request(100))).await.unwrap().status().as_u16(), 200);
    match within(sender.send_request(request(12_000))).await {
        Ok(response) => assert_eq!(response.status().as_u16(), 431),
        Err(error) => assert!(!error.is_timeout(), "{error}"),
    }
    within(client.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn h2c_stopping_finishes_streams() {
    let application = async |_: Environ, start_response: StartResponse| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        start_response.start("200 OK", ())?;
        Ok::<_, Error>("finished")
    };
    let (mut sender, client) = connect_h2(application, quiet()).await;
    let request = http::Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
    let answer = tokio::spawn(async move {
        let response = sender.send_request(request).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    client.stop.cancel();
    assert_eq!(within(answer).await.unwrap(), "finished");
    within(client.server).await.unwrap().unwrap();
}

// Size.

/// The most memory that this process has had resident, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[tokio::test]
async fn a_hundred_megabytes_pass_both_ways_with_bounded_memory() {
    const TOTAL: usize = 100 << 20;
    // An application that is slower than its client: it gives way at each piece.
    let application = async |mut environ: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        let mut input = environ.take_input();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = input.chunk().await {
                tokio::task::yield_now().await;
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        Ok::<_, Error>(Body::stream(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    };
    let (address, stop, server) = start(application, quiet()).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let upload = tokio_stream::iter(
        (0..TOTAL / piece.len()).map(move |_| Ok::<_, std::convert::Infallible>(http_body::Frame::data(piece.clone()))),
    );
    let before = peak_memory();
    let request = http::Request::post("/").header("host", "a").body(StreamBody::new(upload)).unwrap();
    let mut body = within(sender.send_request(request)).await.unwrap().into_body();
    let mut received = 0;
    while let Some(frame) = tokio::time::timeout(Duration::from_secs(120), body.frame()).await.unwrap() {
        received += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    assert_eq!(received, TOTAL);
    let grown = peak_memory() - before;
    assert!(grown < 32 << 10, "memory grew by {grown} KiB");
    drop(sender);
    let _ = connection.await;
    stop.send(()).unwrap();
    within(server).await.unwrap();
}
