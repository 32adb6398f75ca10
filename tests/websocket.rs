//! Connections that switch to another protocol: the HTTP gateway that lets go of them, and the reverse proxy that carries WebSocket over them.
#![cfg(feature = "cli")]

mod support;
#[path = "support/bridge.rs"]
mod tool;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use gatespan::address::Endpoint;
use gatespan::application::{Body, Environ, Error, StartResponse, Upgrade};
use gatespan::gateway::http;
use gatespan::gateway::listener::{ListenOptions, Listener};
use gatespan::middleware::validate;
use support::process::free_address;
use tokio_util::sync::CancellationToken;
use tool::{Bridge, PORT, SOON, header, status};

/// What RFC 6455 1.3 shows.
const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A server that ends with its test.
struct Python(Child);

impl Python {
    fn echo(place: &str) -> Self {
        assert!(
            Path::new("/usr/lib/python3/dist-packages/websockets").exists(),
            "run tests/install, or as root: apt-get install --no-install-recommends python3-websockets"
        );
        let mut child = python("echo.py", place).stdout(Stdio::piped()).spawn().expect("python3 starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python(script: &str, argument: &str) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/websocket").join(script)).arg(argument);
    command
}

/// All that a client may say to a server passes the bridge.
fn speak(bridge: &Bridge) -> String {
    let output = python("client.py", &format!("ws://{}", bridge.place)).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.ends_with("all said\n"), "{said}{errors}");
    said.into_owned()
}

#[test]
fn a_real_client_and_a_real_server_speak_through_the_bridge() {
    let scratch = tempfile::tempdir().unwrap();
    let address = free_address();
    let _server = Python::echo(&address.port().to_string());
    let log = scratch.path().join("access.log").display().to_string();
    let bridge = Bridge::start(&[PORT, &format!("http://{address}"), "--access-log", &log]);
    let told = speak(&bridge);
    for line in ["Upgrade: websocket", "X-Own: 1", "X-Forwarded-For: 127.0.0.1", "Via: 1.1 gatespan"] {
        assert!(told.lines().any(|told| told.eq_ignore_ascii_case(line)), "{line} in {told}");
    }
    bridge.stop();
    let lines = fs::read_to_string(log).unwrap();
    let line =
        lines.lines().find(|line| line.contains("\"GET /echo HTTP/1.1\" 101 ")).unwrap_or_else(|| panic!("{lines}"));
    let bytes: u64 = line.split("\" 101 ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(bytes > 7_500_000, "what the client got is counted: {line}");
}

#[test]
fn a_server_on_a_unix_socket_and_behind_another_bridge_is_spoken_with() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("echo.sock").display().to_string();
    let _server = Python::echo(&socket);
    let inner = Bridge::start(&[PORT, &format!("http:{socket}")]);
    let outer = Bridge::start(&[PORT, &format!("http://{}", inner.place)]);
    let told = speak(&outer);
    assert!(told.to_ascii_lowercase().contains("via: 1.1 gatespan, 1.1 gatespan"), "{told}");
    outer.stop();
    inner.stop();
}

#[test]
fn a_gateway_that_can_not_hand_its_connection_over_says_501() {
    let mut command = tool::tool(&["bridge", "cgi:", "http://127.0.0.1:9"]);
    let variables = [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", "GET"),
        ("SCRIPT_NAME", "/"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("HTTP_UPGRADE", "websocket"),
        ("HTTP_CONNECTION", "Upgrade"),
    ];
    let output = command.envs(variables).output().unwrap();
    assert!(output.stdout.starts_with(b"Status: 501"), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A bridge to a server that the test plays itself.
struct Played {
    bridge: Bridge,
    listener: TcpListener,
}

impl Played {
    fn start(options: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = format!("http://{}", listener.local_addr().unwrap());
        Self { bridge: Bridge::start(&[&[PORT, &to], options].concat()), listener }
    }

    /// A client that has sent this, and the server that has got a request for it.
    fn asked(&self, request: &str) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(&self.bridge.place).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        let (mut server, _) = self.listener.accept().unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        let head = head(&mut server);
        assert!(head.to_ascii_lowercase().contains("sec-websocket-key: dghlihnhbxbszsbub25jzq=="), "{head}");
        (client, server)
    }

    /// Both, once they have switched. What the server says with it follows.
    fn switched(&self, with: &str) -> (TcpStream, TcpStream) {
        let (mut client, mut server) = self.asked(HANDSHAKE);
        server.write_all(format!("{SWITCHED}{with}").as_bytes()).unwrap();
        let head = head(&mut client);
        assert_eq!(status(&head), 101);
        for (name, value) in [
            ("Upgrade", "websocket"),
            ("Connection", "upgrade"),
            ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ] {
            assert_eq!(header(&head, name), Some(value), "{head}");
        }
        for name in ["Content-Length", "Content-Type", "Transfer-Encoding"] {
            assert_eq!(header(&head, name), None, "{head}");
        }
        (client, server)
    }
}

/// A head, and not a byte more.
fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn expect(stream: &mut TcpStream, text: &str) {
    let mut read = vec![0; text.len()];
    stream.read_exact(&mut read).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(String::from_utf8_lossy(&read), text);
}

fn expect_end(stream: &mut TcpStream) {
    match stream.read(&mut [0; 16]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("expected the end, got {other:?}"),
    }
}

#[test]
fn what_comes_with_the_heads_is_not_lost() {
    let played = Played::start(&[]);
    let (mut client, mut server) = played.asked(&format!("{HANDSHAKE}early"));
    server.write_all(format!("{SWITCHED}hello").as_bytes()).unwrap();
    head(&mut client);
    expect(&mut client, "hello");
    expect(&mut server, "early");
    client.write_all(b"more").unwrap();
    expect(&mut server, "more");
    drop((client, server));
    played.bridge.stop();
}

#[test]
fn either_half_may_be_closed_before_the_other() {
    let played = Played::start(&[]);
    let (mut client, mut server) = played.switched("");
    client.shutdown(Shutdown::Write).unwrap();
    expect_end(&mut server);
    server.write_all(b"late").unwrap();
    expect(&mut client, "late");
    drop(server);
    expect_end(&mut client);
    drop(client);
    let (mut client, mut server) = played.switched("");
    server.shutdown(Shutdown::Write).unwrap();
    expect_end(&mut client);
    client.write_all(b"late").unwrap();
    expect(&mut server, "late");
    drop(client);
    expect_end(&mut server);
    drop(server);
    played.bridge.stop();
}

#[test]
fn who_leaves_is_noticed_by_the_other() {
    let played = Played::start(&[]);
    let (client, mut server) = played.switched("");
    drop(client);
    expect_end(&mut server);
    drop(server);
    let (mut client, server) = played.switched("");
    drop(server);
    expect_end(&mut client);
    drop(client);
    // Before the switch, too.
    let (client, mut server) = played.asked(HANDSHAKE);
    drop(client);
    expect_end(&mut server);
    drop(server);
    played.bridge.stop();
}

#[test]
fn a_direction_that_is_full_does_not_hold_up_the_other() {
    const MUCH: usize = 256 << 20;
    let played = Played::start(&[]);
    let (mut client, mut server) = played.switched("");
    let mut pushing = client.try_clone().unwrap();
    pushing.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // Nobody reads it, so that it comes to a halt: what is held on the way is bounded.
    let block = vec![b'x'; 64 << 10];
    let mut pushed = 0;
    while pushed < MUCH {
        match pushing.write(&block) {
            Ok(len) => pushed += len,
            Err(_) => break,
        }
    }
    assert!(pushed < MUCH / 2, "{pushed} bytes were taken that nobody reads");
    server.write_all(b"hello").unwrap();
    expect(&mut client, "hello");
    // And goes on where it stopped.
    let reading = thread::spawn(move || {
        let mut left = pushed;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            left -= server.read(&mut buffer).unwrap();
        }
        server
    });
    let server = reading.join().unwrap();
    drop((client, pushing, server));
    played.bridge.stop();
}

#[test]
fn a_connection_on_which_nothing_moves_is_given_up() {
    let played = Played::start(&["--tunnel-timeout", "300ms"]);
    let (mut client, mut server) = played.switched("hello");
    expect(&mut client, "hello");
    expect_end(&mut client);
    expect_end(&mut server);
    played.bridge.log.line("nothing has passed between the client and");
    played.bridge.stop();
}

#[test]
fn the_time_limits_of_answers_do_not_end_what_has_switched() {
    let played = Played::start(&["--timeout", "300ms", "--read-timeout", "300ms"]);
    let (mut client, mut server) = played.switched("");
    thread::sleep(Duration::from_millis(700));
    server.write_all(b"hello").unwrap();
    expect(&mut client, "hello");
    drop((client, server));
    played.bridge.stop();
}

#[test]
fn a_bridge_that_stops_ends_them_within_its_limit() {
    let mut played = Played::start(&["--shutdown-timeout", "500ms"]);
    let (mut client, mut server) = played.switched("");
    played.bridge.signal(rustix::process::Signal::TERM);
    played.bridge.log.line("stopping");
    // Until then it goes on.
    server.write_all(b"hello").unwrap();
    expect(&mut client, "hello");
    expect_end(&mut client);
    expect_end(&mut server);
    assert_eq!(played.bridge.end(), Some(0));
}

#[test]
fn it_counts_among_the_connections_to_the_server() {
    let played = Played::start(&["--max-connections-to", "1", "--queue", "0"]);
    let (client, server) = played.switched("");
    let answer = played.bridge.get("/");
    assert_eq!((status(&answer), header(&answer, "Retry-After")), (503, Some("5")), "{answer}");
    drop((client, server));
    played.bridge.stop();
}

#[test]
fn a_server_that_does_not_switch_or_switches_to_something_else_is_heard() {
    let played = Played::start(&[]);
    let (mut client, mut server) = played.asked(HANDSHAKE);
    server.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").unwrap();
    let answer = head(&mut client);
    assert_eq!(status(&answer), 403);
    assert_eq!(header(&answer, "Upgrade"), None);
    expect(&mut client, "no");
    drop((client, server));
    let (mut client, mut server) = played.asked(HANDSHAKE);
    server.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: irc\r\nConnection: upgrade\r\n\r\n").unwrap();
    assert_eq!(status(&head(&mut client)), 502);
    played.bridge.log.line("answered with 101");
    played.bridge.stop();
}

// The gateway, with an application of one's own.

async fn shouts(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    match (environ.extensions().get::<Upgrade>(), environ.get("HTTP_UPGRADE")) {
        (Some(upgrade), Some(b"shout")) => {
            let input = upgrade.accept("shout").expect("nobody else has accepted it");
            start_response.start("101 Switching Protocols", [("X-Own", "1")])?;
            let loud =
                tokio_stream::StreamExt::map(input, |chunk| chunk.map(|chunk| Bytes::from(chunk.to_ascii_uppercase())));
            Ok(Body::stream(loud))
        }
        // Without an agreement there is no switch.
        (_, Some(b"lie")) => {
            start_response.start("101 Switching Protocols", ())?;
            Ok("nothing".into())
        }
        (upgrade, _) => {
            start_response.start("200 OK", [("Content-Type", "text/plain")])?;
            Ok(format!("offered: {}", upgrade.is_some()).into())
        }
    }
}

#[test]
fn an_application_may_take_its_client_s_connection_over() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: 0 };
    let (address, serving) = {
        let _entered = runtime.enter();
        let listener = runtime.block_on(Listener::bind(&endpoint, &ListenOptions::default())).unwrap();
        let address = listener.tcp_address().unwrap();
        let config = http::Config { shutdown_timeout: Duration::from_secs(1), ..http::Config::default() };
        (
            address,
            runtime.spawn(http::serve(listener, validate(shouts), config, async move { stopped.cancelled().await })),
        )
    };
    let ask = |upgrade: &str, behind: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\n\r\n{behind}");
        stream.write_all(request.as_bytes()).unwrap();
        let head = head(&mut stream);
        (stream, head)
    };
    let (mut stream, answer) = ask("shout", "early ");
    assert_eq!(
        (status(&answer), header(&answer, "Upgrade"), header(&answer, "X-Own")),
        (101, Some("shout"), Some("1"))
    );
    stream.write_all(b"and late").unwrap();
    expect(&mut stream, "EARLY AND LATE");
    stream.shutdown(Shutdown::Write).unwrap();
    expect_end(&mut stream);
    let (mut stream, answer) = ask("other", "");
    assert_eq!(status(&answer), 200);
    expect(&mut stream, "offered: true");
    let (_, answer) = ask("lie", "");
    assert_eq!(status(&answer), 500);
    // One that is open does not outlast the server.
    let (mut stream, answer) = ask("shout", "");
    assert_eq!(status(&answer), 101);
    stop.cancel();
    expect_end(&mut stream);
    runtime.block_on(serving).unwrap();
}
