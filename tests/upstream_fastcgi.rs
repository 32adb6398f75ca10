//! The FastCGI forwarder from its client's side, with servers that answer from byte tables: well, oddly, and badly. There are no sockets here.
#![cfg(all(feature = "fastcgi", feature = "upstream-fastcgi"))]

#[path = "support/log.rs"]
mod log;
#[path = "support/scripted.rs"]
mod scripted;
#[path = "upstream_fastcgi/field.rs"]
mod field;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gatespan::application::driver::{self, Response};
use gatespan::application::{Body, Environ, Error, Frame, Input, InputError, LocalRedirects, Source, Variables};
use gatespan::protocol::fastcgi::{RecordType, Role};
use gatespan::upstream::fastcgi::{Cause, Config, Failure, Forwarder, Multiplexed, RequestBody};
use proptest::prelude::*;
use scripted::{Application, Script, Scripted, Step, answer, end, record, stderr, stdout};
use tokio::time::Instant;

/// A request with an id by which the log can be searched.
fn environ(method: &str, request_id: &str) -> Environ {
    let mut variables = Variables::new();
    for (name, value) in [
        ("REQUEST_METHOD", method),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", "/path"),
        ("QUERY_STRING", "a=b"),
        ("HTTP_X_REQUEST_ID", request_id),
    ] {
        variables.set(name, value).unwrap();
    }
    Environ::new(variables)
}

fn get(request_id: &str) -> Environ {
    environ("GET", request_id)
}

fn post(request_id: &str, body: &'static str) -> Environ {
    let mut environ = environ("POST", request_id);
    environ.set("CONTENT_LENGTH", body.len().to_string()).unwrap();
    environ.with_input(Input::from_bytes(body))
}

/// A body that comes in pieces of this size, with or without its length.
fn pieces(body: &'static [u8], size: usize, length: Option<u64>) -> Input {
    struct Pieces(&'static [u8], usize);
    impl Source for Pieces {
        fn poll_chunk(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Bytes, InputError>>> {
            let (piece, rest) = self.0.split_at(self.1.min(self.0.len()));
            self.0 = rest;
            std::task::Poll::Ready((!piece.is_empty()).then(|| Ok(Bytes::from_static(piece))))
        }
    }
    Input::from_source(Pieces(body, size), length)
}

fn forwarder(server: &Scripted, config: Config) -> Forwarder<Scripted> {
    Forwarder::with_connectors([("scripted", server.clone())], config).unwrap()
}

fn forwarder_of(servers: &[&Scripted], config: Config) -> Forwarder<Scripted> {
    let servers = servers.iter().enumerate().map(|(index, server)| (format!("server-{index}"), (*server).clone()));
    Forwarder::with_connectors(servers, config).unwrap()
}

fn kept() -> Config {
    Config { keep_alive: true, ..Config::default() }
}

/// The status and the body, or where the body was cut.
async fn whole(response: Response) -> (u16, Result<String, String>) {
    let Response { head, mut body } = response;
    let text = body.read_to_end(1 << 24).await;
    let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(|error| error.to_string());
    body.close().await;
    (head.status.code(), text)
}

/// The answer as a gateway would have it: errors are pages.
async fn ask(forwarder: &Forwarder<Scripted>, environ: Environ) -> (u16, Result<String, String>) {
    whole(driver::answer(forwarder.clone(), environ).await).await
}

/// The answer of one server to one request.
async fn ask_once(script: Script, environ: Environ) -> (u16, Result<String, String>) {
    ask(&forwarder(&Scripted::new([script]), Config::default()), environ).await
}

fn ok(text: &str) -> (u16, Result<String, String>) {
    (200, Ok(text.to_owned()))
}

const HEAD: &[u8] = b"Content-Type: text/plain\r\n\r\n";

/// Answers of which nothing is wrong that a good front end minds.
fn odd_but_legal() -> Vec<(&'static str, Vec<u8>)> {
    let whole = [HEAD, b"hello"].concat();
    let bytewise = whole.iter().flat_map(|byte| stdout(&[*byte])).collect::<Vec<_>>();
    let padded = |padding| record(RecordType::Stdout, 1, &whole, padding);
    vec![
        ("plain", answer("hello")),
        ("records of one byte", [bytewise, stdout(b""), end(0, 0)].concat()),
        ("padding of 1", [padded(1), end(0, 0)].concat()),
        ("padding of 255", [padded(255), record(RecordType::Stdout, 1, b"", 255), end(0, 0)].concat()),
        ("padding behind END_REQUEST", [padded(0), record(RecordType::EndRequest, 1, &[0; 8], 255)].concat()),
        ("bare line feeds", [stdout(b"Content-Type: text/plain\n\nhello"), end(0, 0)].concat()),
        ("mixed line ends", [stdout(b"Content-Type: text/plain\r\nX-A: b\n\r\nhello"), end(0, 0)].concat()),
        (
            "STDERR before, within and after",
            [
                stderr(b"a warning\n"),
                stdout(&whole[..10]),
                stderr(b"another"),
                stdout(&whole[10..]),
                stderr(b"\n"),
                stdout(b""),
                stderr(b""),
                end(0, 0),
            ]
            .concat(),
        ),
        ("no end of STDOUT", [stdout(&whole), end(0, 0)].concat()),
        ("ends of STDOUT twice", [stdout(&whole), stdout(b""), stdout(b""), end(0, 0)].concat()),
        ("an application status", [stdout(&whole), stdout(b""), end(938, 0)].concat()),
        ("a protocol status behind an answer", [stdout(&whole), stdout(b""), end(0, 2)].concat()),
        ("an unknown protocol status", [stdout(&whole), end(0, 77)].concat()),
        (
            "records for others",
            [
                record(RecordType::Stdout, 2, b"Status: 500\r\n\r\nsecret", 0),
                stdout(&whole[..20]),
                record(RecordType::EndRequest, 7, &[0; 8], 0),
                stdout(&whole[20..]),
                end(0, 0),
            ]
            .concat(),
        ),
        (
            "records of no known type",
            [
                record(RecordType::Unknown(77), 1, b"?", 3),
                stdout(&whole),
                record(RecordType::Unknown(12), 0, b"?", 0),
                end(0, 0),
            ]
            .concat(),
        ),
        ("a status of its own", [stdout(b"Status: 200 Fine\r\n\r\nhello"), end(0, 0)].concat()),
        (
            "an interim head",
            [stdout(b"Status: 103 Early Hints\r\nLink: a\r\n\r\n"), stdout(&whole), end(0, 0)].concat(),
        ),
        ("hop-by-hop fields", [stdout(b"Connection: close\r\nKeep-Alive: 5\r\n\r\nhello"), end(0, 0)].concat()),
        ("bytes over Content-Length", [stdout(b"Content-Length: 5\r\n\r\nhello and more"), end(0, 0)].concat()),
    ]
}

#[tokio::test]
async fn odd_but_legal_answers_pass() {
    for (name, bytes) in odd_but_legal() {
        let came = ask_once(vec![Step::Request, Step::Send(bytes)], get("odd")).await;
        assert_eq!(came, ok("hello"), "{name}");
    }
}

#[tokio::test]
async fn odd_but_legal_answers_pass_byte_by_byte() {
    for (name, bytes) in odd_but_legal() {
        let script = vec![Step::Request, Step::SendInPieces(bytes, 1)];
        assert_eq!(ask_once(script, get("bytewise")).await, ok("hello"), "{name}");
    }
}

#[tokio::test]
async fn cve_2026_55203_padding_behind_a_full_record_is_never_read_as_a_header() {
    for padding in [0, 1, 255] {
        let full = record(RecordType::Stdout, 1, &[b'x'; 65_535], padding);
        let bytes = [stdout(HEAD), full.clone(), full, end(0, 0)].concat();
        let (status, text) = ask_once(vec![Step::Request, Step::Send(bytes)], get("full")).await;
        assert_eq!((status, text.map(|text| text.len())), (200, Ok(2 * 65_535)), "{padding}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_at_any_byte_is_never_taken_for_whole() {
    for (name, bytes) in odd_but_legal() {
        let end_request = bytes.windows(8).rposition(|window| window[..4] == [1, 3, 0, 1]).unwrap() + 16;
        for cut in 0..bytes.len() {
            let came = ask_once(vec![Step::Request, Step::Send(bytes[..cut].to_vec())], get("cut")).await;
            match came {
                // What is still to come then is padding, or the rest of a body that Content-Length ended before.
                (200, Ok(text)) if cut >= end_request || name == "bytes over Content-Length" => {
                    assert_eq!(text, "hello", "{name} {cut}")
                }
                (200, Err(_)) | (502, Ok(_)) => {}
                other => panic!("{name}, cut at {cut}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn statuses_and_headers_pass_as_they_are() {
    let fields =
        "Status: 404 Not here\r\nX-b: 1\r\nSet-Cookie: a=1\r\nx-B: 2\r\nSet-Cookie: b=2\r\nContent-Type: text/html\r\n";
    let bytes = [stdout(format!("{fields}\r\nno").as_bytes()), end(0, 0)].concat();
    let server = Scripted::new([vec![Step::Request, Step::Send(bytes)]]);
    let Response { head, .. } = driver::answer(forwarder(&server, kept()), get("headers")).await;
    assert_eq!(head.status.to_string(), "404 Not here");
    let came: Vec<String> =
        head.headers.iter().map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii())).collect();
    let expected =
        ["X-b: 1", "Set-Cookie: a=1", "x-B: 2", "Set-Cookie: b=2", "Content-Type: text/html", "Content-Length: 2"];
    assert_eq!(came, expected);
    for code in [204, 304] {
        let bytes = [stdout(format!("Status: {code}\r\n\r\n").as_bytes()), end(0, 0)].concat();
        assert_eq!(ask_once(vec![Step::Request, Step::Send(bytes)], get("bodiless")).await, (code, Ok(String::new())));
    }
    let bytes = [stdout(b"Location: http://elsewhere/\r\n\r\n"), end(0, 0)].concat();
    assert_eq!(ask_once(vec![Step::Request, Step::Send(bytes)], get("location")).await.0, 302);
}

#[tokio::test]
async fn a_local_redirect_is_left_to_whoever_runs_it() {
    let bytes = [stdout(b"Location: /other?x=y\r\n\r\n"), end(0, 0)].concat();
    assert_eq!(ask_once(vec![Step::Request, Step::Send(bytes.clone())], get("redirect")).await.0, 302);
    let redirects = LocalRedirects::new();
    let mut environ = get("redirect");
    environ.set_local_redirects(Some(redirects.clone()));
    assert_eq!(ask_once(vec![Step::Request, Step::Send(bytes)], environ).await.1, Ok(String::new()));
    assert_eq!(redirects.take().unwrap(), "/other?x=y");
}

/// Servers that answer badly: what they do, the status that the client gets, and what the log says.
fn bad_servers() -> Vec<(&'static str, Script, u16, &'static str)> {
    let request = || Step::Request;
    let send = |bytes: Vec<u8>| vec![Step::Request, Step::Send(bytes)];
    vec![
        ("refused", vec![Step::Refuse], 502, "expected a connection, got none"),
        ("accepts nothing", vec![Step::NeverConnect], 504, "expected a connection within"),
        ("closes at once", vec![], 502, "the end of the connection after 0 bytes"),
        ("closes after the request", vec![request()], 502, "the end of the connection after 0 bytes"),
        ("silent", vec![request(), Step::Hang], 504, "expected the head of an answer within"),
        ("reads nothing", vec![Step::Hang], 504, "expected the head of an answer within"),
        (
            "half a head",
            vec![request(), Step::Send(stdout(b"Content-")), Step::Hang],
            504,
            "expected the head of an answer within",
        ),
        (
            "talks on STDERR only",
            vec![request(), Step::Repeat(stderr(b"."), Duration::from_secs(1))],
            504,
            "expected the head of an answer within",
        ),
        (
            "sends to nobody",
            vec![request(), Step::Repeat(record(RecordType::Stdout, 9, b".", 0), Duration::from_secs(1))],
            504,
            "expected the head of an answer within",
        ),
        ("closed within the head", send(stdout(b"Content-Type: te")), 502, "the end of the connection after"),
        (
            "HTTP",
            send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec()),
            502,
            "expected FastCGI records",
        ),
        ("garbage", send(vec![0xff; 300]), 502, "expected FastCGI records"),
        ("zeros", send(vec![0; 300]), 502, "expected FastCGI records"),
        (
            "no colon",
            send([stdout(b"hello\r\n\r\n"), end(0, 0)].concat()),
            502,
            "expected the head of an answer, got something else",
        ),
        ("an empty head", send([stdout(b"\r\nhello"), end(0, 0)].concat()), 502, "got something else"),
        ("an empty STDOUT", send([stdout(b""), end(0, 0)].concat()), 502, "got END_REQUEST with application status 0"),
        ("no STDOUT", send(end(3, 0)), 502, "got END_REQUEST with application status 3"),
        ("END_REQUEST within the head", send([stdout(b"X-A: b\r\n"), end(0, 0)].concat()), 502, "got something else"),
        (
            "a head after the end of STDOUT",
            send([stdout(b""), stdout(b"X-A: b\r\n\r\n"), end(0, 0)].concat()),
            502,
            "expected FastCGI records",
        ),
        ("a short END_REQUEST", send(record(RecordType::EndRequest, 1, &[0; 4], 0)), 502, "expected FastCGI records"),
        (
            "STDOUT for no request",
            send(record(RecordType::Stdout, 0, b"X-A: b\r\n\r\n", 0)),
            502,
            "expected FastCGI records",
        ),
        ("overloaded", send(end(0, 2)), 503, "overloaded"),
        ("no multiplexing", send(end(0, 1)), 502, "one at a time"),
        ("no such role", send(end(0, 3)), 502, "no role Responder"),
        (
            "an endless head",
            vec![request(), Step::Repeat(stdout(&[b'x'; 60_000]), Duration::ZERO)],
            502,
            "expected the head of an answer",
        ),
        (
            "endless fields",
            vec![request(), Step::Repeat(stdout(&b"a: b\r\n".repeat(100)), Duration::ZERO)],
            502,
            "expected the head of an answer",
        ),
        ("splitting", send([stdout(b"X-A: b\rSet-Cookie: c\r\n\r\n"), end(0, 0)].concat()), 502, "got something else"),
        ("NUL", send([stdout(b"X-A: b\0\r\n\r\n"), end(0, 0)].concat()), 502, "got something else"),
        (
            "a Transfer-Encoding",
            send([stdout(b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), end(0, 0)].concat()),
            502,
            "got something else",
        ),
        (
            "two lengths",
            send([stdout(b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), end(0, 0)].concat()),
            502,
            "got something else",
        ),
        ("another protocol", send([stdout(b"Status: 101\r\n\r\n"), end(0, 0)].concat()), 502, "got 101"),
        (
            "interim heads without end",
            vec![request(), Step::Repeat(stdout(b"Status: 100\r\n\r\n"), Duration::ZERO)],
            502,
            "a status that can be forwarded",
        ),
        ("interim heads alone", send([stdout(b"Status: 100\r\n\r\n"), end(0, 0)].concat()), 502, "got END_REQUEST"),
    ]
}

#[tokio::test(start_paused = true)]
async fn every_bad_server_has_its_status_and_a_line_in_the_log() {
    let log = log::capture();
    for (number, (name, script, status, line)) in bad_servers().into_iter().enumerate() {
        for method in ["GET", "POST"] {
            let request_id = format!("bad-{number}-{method}");
            let began = Instant::now();
            let environ = match method {
                "GET" => environ("GET", &request_id),
                _ => post(&request_id, "quantity=100"),
            };
            let (came, page) = ask_once(script.clone(), environ).await;
            assert_eq!(came, status, "{name}");
            assert!(page.unwrap().contains(&request_id), "{name}: the page names the request");
            assert!(began.elapsed() < Duration::from_secs(70), "{name}: {:?}", began.elapsed());
            let lines = log.of(&request_id);
            assert!(
                lines.iter().any(|logged| logged.contains(line) && logged.contains("failed")),
                "{name}: {lines:#?}"
            );
            let failed = lines.iter().filter(|logged| logged.contains("the request failed")).count();
            assert_eq!(failed, 1, "{name}: one line for one failure: {lines:#?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_cut_visibly_and_logged() {
    let log = log::capture();
    let head = stdout(b"Content-Type: text/plain\r\n\r\nhel");
    let sized = stdout(b"Content-Length: 5\r\n\r\nhel");
    let table: Vec<(&str, Script, &str)> = vec![
        ("closed", vec![Step::Request, Step::Send(head.clone())], "the end of the connection after"),
        (
            "no END_REQUEST",
            vec![Step::Request, Step::Send([head.clone(), stdout(b"")].concat())],
            "the end of the connection",
        ),
        ("silent", vec![Step::Request, Step::Send(head.clone()), Step::Hang], "expected more of the answer within"),
        ("garbage", vec![Step::Request, Step::Send([head.clone(), vec![9; 80]].concat())], "expected FastCGI records"),
        (
            "STDERR only",
            vec![Step::Request, Step::Send(head), Step::Repeat(stderr(b"x"), Duration::from_secs(1))],
            "expected more",
        ),
        ("closed, with a length", vec![Step::Request, Step::Send(sized.clone())], "the end of the connection after"),
    ];
    for (number, (name, script, line)) in table.into_iter().enumerate() {
        let request_id = format!("broken-{number}");
        let (status, text) = ask_once(script, get(&request_id)).await;
        assert_eq!(status, 200, "{name}");
        assert!(text.is_err(), "{name}: {text:?}");
        let lines = log.of(&request_id);
        let found = lines.iter().filter(|logged| logged.contains("cut") && logged.contains(line)).count();
        assert_eq!(found, 1, "{name}: {lines:#?}");
    }
    // Ended well, as far as FastCGI is concerned, and yet too short.
    let short = ask_once(vec![Step::Request, Step::Send([sized, end(0, 0)].concat())], get("short")).await;
    assert!(short.1.unwrap_err().contains("before its Content-Length"));
}

#[tokio::test(start_paused = true)]
async fn each_time_limit_ends_its_own_wait() {
    let second = Duration::from_secs(1);
    let slow = || {
        let piece = stdout(b"X-A: b\r\n\r\n");
        vec![Step::Request, Step::Sleep(second * 3), Step::Send(piece), Step::Sleep(second * 3), Step::Send(end(0, 0))]
    };
    let usual = Config::default();
    let table = [
        (Config { head_timeout: second * 2, ..usual.clone() }, (504, true), 2),
        (Config { head_timeout: second * 4, ..usual.clone() }, (200, true), 6),
        (Config { read_timeout: second * 2, ..usual.clone() }, (200, false), 5),
        (Config { read_timeout: second * 4, ..usual.clone() }, (200, true), 6),
        (Config { timeout: Some(second), ..usual.clone() }, (504, true), 1),
        (Config { timeout: Some(second * 4), ..usual.clone() }, (200, false), 4),
        (Config { timeout: Some(second * 7), ..usual.clone() }, (200, true), 6),
    ];
    for (number, (config, (status, is_whole), seconds)) in table.into_iter().enumerate() {
        let began = Instant::now();
        let (came, text) = ask(&forwarder(&Scripted::new([slow()]), config), get("limits")).await;
        assert_eq!((came, text.is_ok()), (status, is_whole), "{number}: {text:?}");
        assert_eq!(began.elapsed().as_secs(), seconds, "{number}");
    }
    let began = Instant::now();
    let config = Config { connect_timeout: second, ..usual };
    assert_eq!(ask(&forwarder(&Scripted::new([vec![Step::NeverConnect]]), config), get("limits")).await.0, 504);
    assert_eq!(began.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_time_for_its_body_is_not_timed_as_the_server() {
    struct Slow(u32, std::pin::Pin<Box<tokio::time::Sleep>>);
    impl Source for Slow {
        fn poll_chunk(
            &mut self,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Bytes, InputError>>> {
            std::task::ready!(self.1.as_mut().poll(cx));
            self.1.as_mut().reset(Instant::now() + Duration::from_secs(50));
            self.0 += 1;
            std::task::Poll::Ready((self.0 <= 10).then(|| Ok(Bytes::from_static(b"x"))))
        }
    }
    let body = Slow(0, Box::pin(tokio::time::sleep(Duration::from_secs(50))));
    let environ = environ("POST", "slow").with_input(Input::from_source(body, Some(10)));
    let script = vec![Step::Request, Step::Sleep(Duration::from_secs(50)), Step::Send(answer("late"))];
    let began = Instant::now();
    assert_eq!(ask_once(script, environ).await, ok("late"));
    assert!(began.elapsed() > Duration::from_secs(500));
}

/// As long as it takes until a kept connection serves requests that can't be sent again.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(15)).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_again_gets_no_connection_that_may_just_be_closing() {
    let script = vec![Step::Request, Step::Send(answer("one")), Step::Request, Step::Send(answer("two")), Step::Closed];
    for (method, retry_non_idempotent, connections) in [("POST", false, 2), ("GET", false, 1), ("POST", true, 1)] {
        let server = Scripted::new([script.clone(), script.clone()]);
        let forwarder = forwarder(&server, Config { retry_non_idempotent, ..kept() });
        assert_eq!(ask(&forwarder, get("settled-1")).await, ok("one"));
        assert_eq!(ask(&forwarder, environ(method, "settled-2")).await.0, 200);
        assert_eq!(server.connections(), connections, "{method}");
        if connections == 2 {
            // It was closed before the other was made, for a server that serves one at a time.
            server.finished(1).await;
        }
    }
}

#[tokio::test]
async fn a_kept_connection_serves_one_request_after_the_other() {
    let script = vec![Step::Request, Step::Send(answer("one")), Step::Request, Step::Send(answer("two")), Step::Hang];
    let server = Scripted::new([script]);
    let forwarder = forwarder(&server, kept());
    assert_eq!(ask(&forwarder, get("kept-1")).await, ok("one"));
    settle().await;
    assert_eq!(ask(&forwarder, post("kept-2", "body")).await, ok("two"));
    assert_eq!(server.connections(), 1);
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.keeps_connection));
    assert_eq!(requests[1].stdin, b"body");
    // The first request's variables are not the second's.
    assert!(requests[0].params.iter().all(|(name, _)| name != b"CONTENT_LENGTH"));
}

#[tokio::test]
async fn without_keep_alive_each_request_has_a_connection() {
    let script = vec![Step::Request, Step::Send(answer("one")), Step::Closed];
    let server = Scripted::new([script.clone(), script]);
    let forwarder = forwarder(&server, Config::default());
    for _ in 0..2 {
        assert_eq!(ask(&forwarder, get("closed")).await, ok("one"));
    }
    assert_eq!(server.connections(), 2);
    assert!(server.requests().iter().all(|request| !request.keeps_connection));
    server.finished(2).await;
}

#[tokio::test]
async fn no_answer_ever_reaches_another_request() {
    let leftovers: Vec<(&str, Vec<u8>)> = vec![
        ("another answer", [answer("one"), answer("a stranger's")].concat()),
        ("more STDOUT", [answer("one"), stdout(b"a stranger's")].concat()),
        ("half a header", [answer("one"), vec![1, 6, 0]].concat()),
        ("garbage", [answer("one"), vec![7; 9]].concat()),
        ("STDOUT for another", [record(RecordType::Stdout, 2, b"a stranger's", 0), answer("one")].concat()),
        ("unasked values", [record(RecordType::GetValuesResult, 0, b"", 0), answer("one")].concat()),
    ];
    for (name, bytes) in leftovers {
        let first = vec![Step::Request, Step::Send(bytes), Step::Request, Step::Send(answer("a stranger's"))];
        let server = Scripted::new([first, vec![Step::Request, Step::Send(answer("two"))]]);
        let forwarder = forwarder(&server, kept());
        assert_eq!(ask(&forwarder, get("first")).await, ok("one"), "{name}");
        assert_eq!(ask(&forwarder, get("second")).await, ok("two"), "{name}");
    }
    // What comes while nobody uses the connection.
    let first = vec![
        Step::Request,
        Step::Send(answer("one")),
        Step::Sleep(Duration::from_millis(30)),
        Step::Send(answer("a stranger's")),
        Step::Hang,
    ];
    let server = Scripted::new([first, vec![Step::Request, Step::Send(answer("two"))]]);
    let forwarder = forwarder(&server, kept());
    assert_eq!(ask(&forwarder, get("first")).await, ok("one"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(ask(&forwarder, get("second")).await, ok("two"));
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_passes_and_its_connection_is_not_used_again() {
    struct Stuck;
    impl Source for Stuck {
        fn poll_chunk(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Bytes, InputError>>> {
            std::task::Poll::Pending
        }
    }
    let first = vec![Step::Params, Step::Send(answer("early")), Step::Hang];
    let server = Scripted::new([first, vec![Step::Request, Step::Send(answer("two"))]]);
    let forwarder = forwarder(&server, kept());
    let early = environ("POST", "early").with_input(Input::from_source(Stuck, Some(100)));
    assert_eq!(ask(&forwarder, early).await, ok("early"));
    assert_eq!(ask(&forwarder, get("next")).await, ok("two"));
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_kept_connection_that_is_dead_is_replaced() {
    // Closed before the next request: any method goes on.
    for method in ["GET", "POST"] {
        let server = Scripted::new([
            vec![Step::Request, Step::Send(answer("one"))],
            vec![Step::Request, Step::Send(answer("two"))],
        ]);
        let forwarder = forwarder(&server, kept());
        assert_eq!(ask(&forwarder, get("dead")).await, ok("one"));
        server.finished(1).await;
        assert_eq!(ask(&forwarder, environ(method, "dead")).await, ok("two"));
    }
    // Closed when it had read the next request: it may have begun with it.
    for (method, status) in [("GET", 200), ("PUT", 200), ("POST", 502)] {
        let first = vec![Step::Request, Step::Send(answer("one")), Step::Request];
        let server = Scripted::new([first, vec![Step::Request, Step::Send(answer("two"))]]);
        let forwarder = forwarder(&server, kept());
        assert_eq!(ask(&forwarder, get("dead")).await, ok("one"));
        settle().await;
        assert_eq!(ask(&forwarder, environ(method, "dead")).await.0, status, "{method}");
    }
    // A server that is dead altogether is not asked without end.
    let first = vec![Step::Request, Step::Send(answer("one")), Step::Request];
    let server = Scripted::new([first, vec![Step::Request]]);
    let forwarder = forwarder(&server, kept());
    assert_eq!(ask(&forwarder, get("dead")).await, ok("one"));
    assert_eq!(ask(&forwarder, get("dead")).await.0, 502);
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_request_goes_from_server_to_server_until_each_was_tried_once() {
    for bad in [vec![Step::Refuse], vec![], vec![Step::Request], vec![Step::Request, Step::Send(end(0, 2))]] {
        let servers: Vec<Scripted> = (0..3).map(|_| Scripted::new([bad.clone()])).collect();
        let forwarder = forwarder_of(&servers.iter().collect::<Vec<_>>(), Config::default());
        let (status, _) = ask(&forwarder, get("all-bad")).await;
        assert!(matches!(status, 502 | 503), "{status}");
        assert_eq!(servers.iter().map(Scripted::connections).collect::<Vec<_>>(), [1, 1, 1]);

        let good = Scripted::new([vec![Step::Request, Step::Send(answer("good"))]]);
        let bad = Scripted::new([bad.clone()]);
        // Whichever is asked first.
        assert_eq!(ask(&forwarder_of(&[&bad, &good], Config::default()), get("one-good")).await, ok("good"));
    }
}

#[tokio::test]
async fn a_request_that_may_have_been_carried_out_is_not_sent_again() {
    let table: Vec<(Script, &str, Config, u16)> = vec![
        (vec![Step::Refuse], "POST", Config::default(), 200),
        (vec![Step::Request, Step::Send(end(0, 2))], "POST", Config::default(), 200),
        (vec![Step::Request, Step::Send(end(0, 1))], "POST", Config::default(), 200),
        (vec![Step::Request], "POST", Config::default(), 502),
        (vec![Step::Request], "PATCH", Config::default(), 502),
        (vec![Step::Request], "POST", Config { retry_non_idempotent: true, ..Config::default() }, 200),
        (vec![Step::Request], "PUT", Config::default(), 200),
        // More was sent than is kept.
        (vec![Step::Request], "PUT", Config { replay_limit: 3, ..Config::default() }, 502),
        (vec![Step::Refuse], "PUT", Config { replay_limit: 3, ..Config::default() }, 200),
        // A byte of the answer has come.
        (vec![Step::Request, Step::Send(stdout(b"X"))], "GET", Config::default(), 502),
        // Messages are no answer.
        (vec![Step::Request, Step::Send(stderr(b"X\n"))], "GET", Config::default(), 200),
        (vec![Step::Request, Step::Send(vec![0; 99])], "GET", Config::default(), 502),
    ];
    for (number, (script, method, config, status)) in table.into_iter().enumerate() {
        let bad = Scripted::new([script]);
        let good = Scripted::new([vec![Step::Request, Step::Send(answer("good"))]]);
        let environ = environ(method, "again").with_input(Input::from_bytes("four"));
        assert_eq!(ask(&forwarder_of(&[&bad, &good], config), environ).await.0, status, "row {number}");
        assert_eq!(bad.connections(), 1, "row {number}");
        if status == 200 {
            assert_eq!(good.requests()[0].stdin, b"four", "row {number}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_is_left_alone_and_asked_again_later() {
    let refuse = vec![Step::Refuse];
    let down = Scripted::new([refuse.clone(), refuse.clone(), refuse, vec![Step::Request, Step::Send(answer("back"))]]);
    let good = Scripted::answering("good");
    let config = Config { backoff: Duration::from_secs(1), backoff_max: Duration::from_secs(2), ..Config::default() };
    let forwarder = forwarder_of(&[&down, &good], config);
    let mut attempts = Vec::new();
    for _ in 0..12 {
        for _ in 0..4 {
            assert_eq!(ask(&forwarder, get("down")).await.0, 200);
        }
        attempts.push(down.connections());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // After 1 s, then after 2 s, and from then on every 2 s; back, it gets half of the requests.
    assert_eq!(attempts[..11], [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 5], "{attempts:?}");
}

#[tokio::test]
async fn the_server_with_the_fewest_connections_is_asked() {
    let busy = Scripted::new([vec![Step::Request, Step::Hang]]);
    let free = Scripted::answering("free");
    let forwarder = forwarder_of(&[&busy, &free], Config::default());
    let hanging = tokio::spawn({
        let forwarder = forwarder.clone();
        async move { ask(&forwarder, get("hanging")).await }
    });
    while busy.requests().is_empty() && free.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        assert_eq!(ask(&forwarder, get("free")).await, ok("free"));
    }
    assert_eq!((busy.connections(), free.connections()), (1, 5));
    hanging.abort();
}

#[tokio::test(start_paused = true)]
async fn the_cap_on_connections_holds_and_waiting_requests_are_served_in_order() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (counter, peak, list) = (running, most.clone(), order.clone());
    let application = move |environ: Environ, start_response: gatespan::StartResponse| {
        let (counter, peak, list) = (counter.clone(), peak.clone(), list.clone());
        async move {
            peak.fetch_max(counter.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            list.lock().unwrap().push(environ.request_id().parse::<usize>().unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
            counter.fetch_sub(1, Ordering::SeqCst);
            start_response.start("200 OK", [("Content-Type", "text/plain")])?;
            Ok::<_, Error>("done")
        }
    };
    for keep_alive in [true, false] {
        let server = Application::new(application.clone());
        let config = Config { connections: 3, keep_alive, ..Config::default() };
        let forwarder = Forwarder::with_connectors([("gateway", server.clone())], config).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..100_usize {
            let forwarder = forwarder.clone();
            tasks.spawn(async move { whole(driver::answer(forwarder, get(&number.to_string())).await).await });
            tokio::task::yield_now().await;
        }
        for came in tasks.join_all().await {
            assert_eq!(came, ok("done"));
        }
        assert_eq!(most.swap(0, Ordering::SeqCst), 3);
        let order = std::mem::take(&mut *order.lock().unwrap());
        // Three run at once, so that within each three any order is one.
        for (place, number) in order.iter().enumerate() {
            assert!(place.abs_diff(*number) <= 3, "request {number} was number {place}");
        }
        assert_eq!(server.connections(), if keep_alive { 3 } else { 100 });
    }
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_in_length_and_time() {
    let server = Scripted::new([vec![Step::Request, Step::Hang]]);
    let config = Config {
        connections: 1,
        queue: 2,
        queue_wait: Duration::from_secs(3),
        retry_after: Duration::from_millis(1500),
        ..Config::default()
    };
    let forwarder = forwarder(&server, config);
    let _hanging = {
        let forwarder = forwarder.clone();
        tokio::spawn(async move { ask(&forwarder, get("hanging")).await })
    };
    let began = Instant::now();
    let mut waiting = Vec::new();
    for number in 0..3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let forwarder = forwarder.clone();
        waiting.push(tokio::spawn(async move {
            let response = driver::answer(forwarder, get(&format!("waiting-{number}"))).await;
            let retry_after = response.head.headers.get("Retry-After").map(<[u8]>::to_vec);
            (response.head.status.code(), retry_after, Instant::now())
        }));
    }
    for (number, seconds) in [(2, 0), (0, 3), (1, 3)] {
        let (status, retry_after, at) = (&mut waiting[number]).await.unwrap();
        assert_eq!((status, retry_after), (503, Some(b"2".to_vec())));
        assert_eq!((at - began).as_secs(), seconds, "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_gives_up_waiting_leaves_no_trace() {
    let first = vec![Step::Request, Step::Sleep(Duration::from_secs(1)), Step::Send(answer("one"))];
    let server = Scripted::new([first, vec![Step::Request, Step::Send(answer("two"))]]);
    let forwarder = forwarder(&server, Config { connections: 1, ..Config::default() });
    let running = {
        let forwarder = forwarder.clone();
        tokio::spawn(async move { ask(&forwarder, get("running")).await })
    };
    tokio::time::sleep(Duration::from_millis(10)).await;
    for _ in 0..5 {
        let gives_up = ask(&forwarder, get("gives-up"));
        tokio::time::timeout(Duration::from_millis(10), gives_up).await.unwrap_err();
    }
    assert_eq!(ask(&forwarder, get("waits")).await, ok("two"));
    assert_eq!(running.await.unwrap(), ok("one"));
}

#[tokio::test(start_paused = true)]
async fn connections_are_closed_when_they_were_idle_for_long_enough() {
    let script = vec![Step::Request, Step::Send(answer("one")), Step::Closed];
    let server = Scripted::new([script]);
    let forwarder = forwarder(&server, Config { idle_time: Duration::from_secs(7), ..kept() });
    let began = Instant::now();
    assert_eq!(ask(&forwarder, get("idle")).await, ok("one"));
    server.finished(1).await;
    assert_eq!(began.elapsed().as_secs(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_serves_one_connection_at_a_time_does_not_starve_behind_kept_ones() {
    let server = Application::one_at_a_time(2);
    let forwarder = Forwarder::with_connectors([("gateway", server.clone())], kept()).unwrap();
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let forwarder = forwarder.clone();
        tasks.spawn(async move { whole(driver::answer(forwarder, get(&number.to_string())).await).await });
    }
    for came in tasks.join_all().await {
        assert_eq!(came, ok("done"));
    }
    // 25 times 10 ms, and no wait for the end of an idle time.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_leaves_is_an_abort_and_the_end_of_the_connection() {
    // Before the head.
    let server = Scripted::new([vec![Step::Request, Step::Closed]]);
    let waiting = forwarder(&server, kept());
    let asked = ask(&waiting, get("leaves"));
    tokio::time::timeout(Duration::from_millis(50), asked).await.unwrap_err();
    server.finished(1).await;
    assert_eq!(server.aborts(), 1);
    // Within the body, once closed by a gateway that has cancelled it, once dropped.
    for is_closed in [true, false] {
        let server = Scripted::new([vec![Step::Request, Step::Send(stdout(b"X-A: b\r\n\r\nhel")), Step::Closed]]);
        let environ = get("leaves");
        let (environ, cancellation) = environ.with_own_cancellation();
        let mut response = driver::answer(forwarder(&server, kept()), environ).await;
        assert!(matches!(response.body.next().await, Some(Ok(Frame::Data(_)))));
        if is_closed {
            cancellation.cancel();
            response.body.close().await;
        }
        drop(response);
        server.finished(1).await;
        assert_eq!(server.aborts(), 1);
    }
}

#[tokio::test]
async fn an_answer_that_nobody_wants_the_rest_of_is_read_to_its_end_in_the_background() {
    let more = [stdout(&[b'x'; 50_000]), stdout(&[b'x'; 50_000]), stdout(b""), end(0, 0)].concat();
    let first =
        vec![Step::Request, Step::Send(stdout(HEAD)), Step::Send(more), Step::Request, Step::Send(answer("two"))];
    let server = Scripted::new([first]);
    let forwarder = forwarder(&server, kept());
    assert_eq!(ask(&forwarder, environ("HEAD", "head")).await, ok(""));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ask(&forwarder, get("next")).await, ok("two"));
    assert_eq!((server.connections(), server.aborts()), (1, 0));
    // Not without limits.
    let endless = vec![Step::Request, Step::Send(stdout(HEAD)), Step::Repeat(stdout(&[b'x'; 50_000]), Duration::ZERO)];
    let server = Scripted::new([endless]);
    let (_, came) = ask(&self::forwarder(&server, kept()), environ("HEAD", "head")).await;
    assert_eq!(came, Ok(String::new()));
    server.finished(1).await;
}

#[tokio::test]
async fn messages_go_line_by_line_to_the_log_with_the_request_id() {
    let log = log::capture();
    let bytes = [stderr(b"PHP Warn"), stderr(b"ing: a\nsecond\nthi"), stdout(HEAD), stderr(b"rd"), end(5, 0)].concat();
    let server = Scripted::new([vec![Step::Request, Step::Send(bytes)]]);
    let config = Config { stderr_to_client_server: true, ..Config::default() };
    let errors = log::Errors::new();
    let environ = get("messages").with_errors(errors.errors());
    assert_eq!(ask(&forwarder(&server, config), environ).await, ok(""));
    assert_eq!(errors.text(), "PHP Warning: a\nsecond\nthird\n");
    let lines = log.of("messages");
    for part in ["stderr: PHP Warning: a", "stderr: second", "stderr: third", "application_status=5"] {
        assert!(lines.iter().any(|line| line.contains(part) && line.contains("scripted")), "{part}: {lines:#?}");
    }
}

#[tokio::test]
async fn params_are_the_environs_bytes_in_its_order_cut_between_pairs() {
    let mut environ = get("params");
    let long = vec![b'v'; 40_000];
    for name in ["X_LONG_1", "X_LONG_2", "X_LONG_3"] {
        environ.set(name, &long).unwrap();
    }
    environ.set("X_BYTES", b"\xff\xfe\n\r=").unwrap();
    environ.set("EMPTY", b"").unwrap();
    let expected: Vec<(Vec<u8>, Vec<u8>)> =
        environ.variables().pairs().iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    let server = Scripted::new([vec![Step::Request, Step::Send(answer("ok"))]]);
    assert_eq!(ask(&forwarder(&server, Config::default()), environ).await, ok("ok"));
    let requests = server.requests();
    assert_eq!(requests[0].params, expected);
    assert_eq!(requests[0].role, Role::Responder);
    assert!(requests[0].longest_record <= 65_535, "{}", requests[0].longest_record);
    assert!(requests[0].pairs_end_with_records);
}

#[tokio::test]
async fn too_many_params_are_431_and_nothing_is_sent() {
    let server = Scripted::new([vec![Step::Request, Step::Send(answer("ok"))]]);
    let config = Config { max_params_len: 100, ..Config::default() };
    let mut environ = get("many");
    environ.set("X", vec![b'x'; 100]).unwrap();
    assert_eq!(ask(&forwarder(&server, config), environ).await.0, 431);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_body_without_length_is_spooled_and_announced() {
    let body: &'static [u8] = Box::leak((0..300_000_u32).map(|n| n as u8).collect::<Vec<_>>().into_boxed_slice());
    let length = |server: &Scripted| {
        let requests = server.requests();
        let found = requests[0].params.iter().filter(|(name, _)| name == b"CONTENT_LENGTH");
        let lengths: Vec<String> = found.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect();
        assert!(requests[0].stdin == body);
        lengths
    };
    for spool_memory in [1 << 20, 1000] {
        // The second asks another server, which gets the file from its beginning.
        let bad = Scripted::new([vec![Step::Request]]);
        let server = Scripted::new([vec![Step::Request, Step::Send(answer("ok"))]]);
        let config = Config { spool_memory, ..Config::default() };
        let mut environ = environ("PUT", "spooled").with_input(pieces(body, 7000, None));
        environ.set("CONTENT_LENGTH", "").unwrap();
        assert_eq!(ask(&forwarder_of(&[&bad, &server], config), environ).await, ok("ok"));
        assert_eq!(length(&server), ["300000"]);
        assert_eq!(length(&bad), ["300000"]);
    }
    let server = Scripted::new([vec![Step::Request, Step::Send(answer("ok"))]]);
    let config = Config { request_body: RequestBody::Stream, ..Config::default() };
    let environ_ = environ("POST", "streamed").with_input(pieces(body, 7000, None));
    assert_eq!(ask(&forwarder(&server, config), environ_).await, ok("ok"));
    assert_eq!(length(&server), [""; 0]);
    let config = Config { spool_limit: 299_999, ..Config::default() };
    let environ = environ("POST", "too-long").with_input(pieces(body, 7000, None));
    assert_eq!(ask(&forwarder(&server, config), environ).await.0, 413);
}

#[tokio::test]
async fn content_length_is_what_is_sent() {
    for (announced, body, sent) in
        [("5", "hello", "5"), ("9", "hello", "5"), ("", "hello", "5"), ("5", "", "0"), ("", "", "")]
    {
        let server = Scripted::new([vec![Step::Request, Step::Send(answer("ok"))]]);
        let mut environ = environ("POST", "length").with_input(Input::from_bytes(body));
        environ.set("CONTENT_LENGTH", announced).unwrap();
        assert_eq!(ask(&forwarder(&server, Config::default()), environ).await, ok("ok"));
        let params = &server.requests()[0].params;
        let lengths: Vec<_> = params.iter().filter(|(name, _)| name == b"CONTENT_LENGTH").collect();
        assert_eq!(lengths.len(), 1);
        assert_eq!(lengths[0].1, sent.as_bytes(), "{announced} {body}");
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_the_clients_fault_and_aborts_the_request() {
    let server = Scripted::new([vec![Step::Params, Step::Closed]]);
    let environ = environ("POST", "early").with_input(pieces(b"short", 2, Some(100)));
    assert_eq!(ask(&forwarder(&server, Config::default()), environ).await.0, 400);
    server.finished(1).await;
    assert_eq!(server.aborts(), 1);
}

#[tokio::test]
async fn an_authorizer_is_told_what_it_is_to_be_told() {
    let server = Scripted::new([vec![Step::Request, Step::Send(answer("ok"))]]);
    let config = Config { role: Some(Role::Authorizer), ..Config::default() };
    assert_eq!(ask(&forwarder(&server, config), post("authorizer", "")).await, ok("ok"));
    let request = &server.requests()[0];
    assert_eq!(request.role, Role::Authorizer);
    for name in ["CONTENT_LENGTH", "PATH_INFO", "SCRIPT_NAME"] {
        assert!(request.params.iter().all(|(other, _)| other != name.as_bytes()), "{name}");
    }
    assert!(request.params.iter().any(|(name, _)| name == b"REQUEST_METHOD"));
}

#[tokio::test]
async fn a_filter_gets_its_file_after_the_body() {
    let server = Scripted::new([vec![Step::FilterRequest, Step::Send(answer("ok"))]]);
    let config = Config { role: Some(Role::Filter), ..Config::default() };
    let environ = post("filter", "the body").with_data(pieces(b"the file", 3, Some(8)));
    assert_eq!(ask(&forwarder(&server, config), environ).await, ok("ok"));
    let request = &server.requests()[0];
    assert_eq!(request.role, Role::Filter);
    assert_eq!((&request.stdin[..], &request.data[..]), (&b"the body"[..], &b"the file"[..]));
}

#[tokio::test]
async fn our_own_gateway_answers_both_ways_at_once() {
    async fn echo(mut environ: Environ, start_response: gatespan::StartResponse) -> Result<Body, Error> {
        start_response.start("200 OK", [("Content-Type", "application/octet-stream")])?;
        Ok(Body::stream(environ.take_input()))
    }
    let body: &'static [u8] =
        Box::leak((0..5_000_000_u32).map(|n| (n >> 3) as u8).collect::<Vec<_>>().into_boxed_slice());
    for keep_alive in [true, false] {
        let server = Application::new(echo);
        let config = Config { keep_alive, ..Config::default() };
        let forwarder = Forwarder::with_connectors([("gateway", server.clone())], config).unwrap();
        for size in [100, 9_000, 200_000] {
            let environ = environ("PUT", "echo").with_input(pieces(body, size, Some(body.len() as u64)));
            let mut response = driver::answer(forwarder.clone(), environ).await;
            let came = response.body.read_to_end(body.len()).await.unwrap();
            assert!(came == body);
        }
        assert_eq!(server.connections(), if keep_alive { 1 } else { 3 });
    }
}

#[tokio::test]
async fn a_head_is_passed_on_before_there_is_a_body() {
    let server = Scripted::new([vec![Step::Request, Step::Send(stdout(HEAD)), Step::Hang]]);
    let mut response = driver::answer(forwarder(&server, Config::default()), get("flush")).await;
    assert_eq!(response.head.status.code(), 200);
    assert!(matches!(response.body.next().await, Some(Ok(Frame::Flush))));
}

#[tokio::test]
async fn a_failure_is_there_for_middleware_to_see() {
    let forwarder = forwarder(&Scripted::new([vec![Step::Refuse]]), Config::default());
    let error = driver::call(forwarder, get("failure")).await.unwrap_err();
    let failure = error.downcast_ref::<Failure>().unwrap();
    assert!(matches!(failure.cause, Cause::Connect(_)));
    assert_eq!(failure.server.as_deref(), Some("scripted"));
    assert_eq!(error.status(), 502);
}

/// Answers with its body, in pieces, and says when it was given up.
fn shared_application(
    dropped: Arc<AtomicUsize>,
) -> impl Fn(Environ, gatespan::StartResponse) -> std::pin::Pin<Box<dyn Future<Output = Result<Body, Error>> + Send>>
+ Send
+ Sync
+ 'static {
    move |mut environ, start_response| {
        let dropped = dropped.clone();
        Box::pin(async move {
            start_response.start("200 OK", [("Content-Type", "text/plain")])?;
            if environ.request_id().starts_with("endless") {
                let pieces = std::iter::repeat_with(|| Bytes::from_static(&[b'x'; 10_000]));
                return Ok(Body::iter(pieces).on_close(move || {
                    dropped.fetch_add(1, Ordering::SeqCst);
                }));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(Body::stream(environ.take_input()))
        })
    }
}

#[tokio::test]
async fn a_server_that_announces_it_gets_several_requests_at_once_on_one_connection() {
    for keep_alive in [true, false] {
        let server = Application::multiplexing(shared_application(Arc::default()));
        let config = Config { keep_alive, ..Config::default() };
        let shared = Multiplexed::new(server.clone(), 32);
        let forwarder = Forwarder::with_connectors([("shared", shared)], config).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..30_usize {
            let forwarder = forwarder.clone();
            tasks.spawn(async move {
                let body: &'static [u8] = Box::leak(vec![number as u8; number * 9_000].into_boxed_slice());
                let environ =
                    environ("PUT", &number.to_string()).with_input(pieces(body, 5_000, Some(body.len() as u64)));
                let mut response = driver::answer(forwarder, environ).await;
                assert!(response.body.read_to_end(1 << 20).await.unwrap() == body, "request {number}");
            });
        }
        while let Some(came) = tasks.join_next().await {
            came.unwrap();
        }
        // One that was asked for the values, and one that all shared.
        assert_eq!(server.connections(), 2, "keep-alive {keep_alive}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_announce_it_gets_a_connection_for_each_request() {
    let server = Application::new(shared_application(Arc::default()));
    let forwarder =
        Forwarder::with_connectors([("own", Multiplexed::new(server.clone(), 32))], Config::default()).unwrap();
    for _ in 0..3 {
        let response =
            driver::answer(forwarder.clone(), environ("PUT", "own").with_input(Input::from_bytes("x"))).await;
        assert_eq!(whole(response).await, ok("x"));
    }
    assert_eq!(server.connections(), 4);
    // One that closes on GET_VALUES, or says that it does not know it.
    let unknown = record(RecordType::UnknownType, 0, &[9, 0, 0, 0, 0, 0, 0, 0], 0);
    for probed in [vec![], vec![Step::Send(unknown)], vec![Step::Send(vec![0; 40])]] {
        let server = Scripted::new([probed, vec![Step::Request, Step::Send(answer("own"))]]);
        let forwarder =
            Forwarder::with_connectors([("own", Multiplexed::new(server.clone(), 32))], Config::default()).unwrap();
        assert_eq!(whole(driver::answer(forwarder, get("own")).await).await, ok("own"));
    }
}

#[tokio::test]
async fn who_leaves_a_shared_connection_leaves_alone() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let server = Application::multiplexing(shared_application(dropped.clone()));
    // Both ids are in use until the server has ended what was aborted.
    let shared = Multiplexed::new(server.clone(), 2);
    let config = Config { connections: 2, ..Config::default() };
    let forwarder = Forwarder::with_connectors([("shared", shared)], config).unwrap();
    // Held open over all that follows, so that there is one shared connection.
    let held = environ("PUT", "held").with_input(Input::from_source(Silent, Some(4)));
    let held = tokio::spawn(driver::answer(forwarder.clone(), held));
    for round in 1..=5 {
        let mut response = driver::answer(forwarder.clone(), get("endless")).await;
        for _ in 0..20 {
            assert!(matches!(response.body.next().await, Some(Ok(_))));
        }
        drop(response);
        let gone = async {
            while dropped.load(Ordering::SeqCst) < round {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the server is told");
        let environ = environ("PUT", "other").with_input(Input::from_bytes("other"));
        assert_eq!(whole(driver::answer(forwarder.clone(), environ).await).await, ok("other"), "round {round}");
    }
    assert_eq!(server.connections(), 2);
    held.abort();
}

/// A body of which nothing ever comes.
struct Silent;

impl Source for Silent {
    fn poll_chunk(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Bytes, InputError>>> {
        std::task::Poll::Pending
    }
}

/// Whatever comes, the request comes to its end.
fn survives(bytes: Vec<u8>, piece: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let server = Scripted::new([vec![Step::Request, Step::SendInPieces(bytes, piece)]]);
        let (status, _) = ask(&forwarder(&server, kept()), get("any")).await;
        assert!((200..1000).contains(&status));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_end_a_request_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), piece in 1_usize..600) {
        survives(bytes, piece);
    }

    #[test]
    fn any_records_end_a_request_without_a_panic(
        records in prop::collection::vec((0_u8..13, 0_u16..3, prop::collection::vec(any::<u8>(), 0..40), any::<u8>()), 0..12),
        piece in 1_usize..600,
    ) {
        let bytes = records.iter().flat_map(|(kind, id, content, padding)| record(RecordType::from(*kind), *id, content, *padding));
        survives(bytes.collect(), piece);
    }
}

#[test]
fn a_forwarder_to_nowhere_cannot_be_made() {
    use gatespan::address::Endpoint;
    use gatespan::upstream::fastcgi::ConfigError;
    assert_eq!(Forwarder::new([], Config::default()).unwrap_err(), ConfigError::NoServer);
    assert_eq!(Forwarder::new([Endpoint::Inherited], Config::default()).unwrap_err(), ConfigError::Inherited);
    let config = Config { connections: 0, ..Config::default() };
    assert_eq!(Forwarder::new([Endpoint::Unix("/a".into())], config).unwrap_err(), ConfigError::Zero("connections"));
}
